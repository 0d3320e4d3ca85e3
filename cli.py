"""What all commands share: their flags, the errors that a user can mend, and Ctrl-C."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

LIBRARIES = ("torch", "transformers", "safetensors", "numpy", "tqdm", "sqlglot")  # every command needs them


class UserError(Exception):
    """Something the user can mend: shown as one sentence, exit code 2."""


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Parser(argparse.ArgumentParser):
    """A command's flags, which cannot be abbreviated. What is wrong with them is one line, exit code 2."""

    def __init__(self, description: str | None = None, **options):
        kind = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=kind, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message.removeprefix('argument ')}\n")

    def parse_known_args(self, args=None, namespace=None):  # a subcommand's parser is asked by this name
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, 1)
            meant = f"; did you mean {near[0]}?" if near else ";"
            self.error(f"no flag {flag}{meant} --help lists all")
        return found, unknown


def begin(parse: Callable[[list[str] | None, str], object], description: str, *libraries: str):
    """What a command does before its slow imports: answers --help and wrong flags, says that it is loading.

    parse(argv, description) reads the command's flags. libraries: what it imports besides LIBRARIES. Until
    `run` takes over, Ctrl-C ends the process at once. A process that ignores Ctrl-C goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.version_info < (3, 11):
        print(
            f"error: codelutra needs Python 3.11 or newer; this is {sys.version.split()[0]}.", file=sys.stderr
        )
        sys.exit(2)
    parse(None, description)
    for name in (*LIBRARIES, *libraries):
        if not find_spec(name):
            command = f".venv/bin/python {os.path.basename(sys.argv[0])}"
            print(
                f"error: {sys.executable} has no {name}: `make demo` makes an environment that has it,"
                f" then {command} works.",
                file=sys.stderr,
            )
            sys.exit(2)
    note("loading torch …")


def note(text: str):
    """Say on stderr what takes seconds, in the first process alone."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(text, file=sys.stderr, flush=True)


def check_output(flag: str, path: Path):
    """Raises UserError where no file of this name could be written: noticed before the work, not after it."""
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"{flag}: {path} cannot be a file's name.")


def run(main: Callable[[], object], *errors, interrupted: str = ""):
    """Call `main`; what the user can mend becomes one line on stderr and exit code 2, Ctrl-C exit code 130.

    That is a UserError, one of `errors` (exception classes), or what the system refuses: a full disk, a
    folder that cannot be written. interrupted: what Ctrl-C's line says behind "interrupted".
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except (UserError, OSError, *errors) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\ninterrupted{interrupted}", file=sys.stderr)
        sys.exit(130)
