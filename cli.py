"""What all commands share: their flags, the errors that a user can mend, and Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path


class UserError(Exception):
    """Something the user can mend: shown as one sentence, exit code 2."""


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def flags(description: str) -> argparse.ArgumentParser:
    """A parser for a command; its flags cannot be abbreviated."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def check_output(flag: str, path: Path):
    """Raises UserError where no file of this name could be written: noticed before the work, not after it."""
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"{flag}: {path} cannot be a file's name.")


def interruptible():
    """Until `run` takes over, Ctrl-C ends the process at once: importing the libraries takes seconds.

    A command calls this before its slow imports. A process that ignores Ctrl-C goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(main: Callable[[], object], *errors):
    """Call `main`; what the user can mend becomes one line on stderr and exit code 2, Ctrl-C exit code 130.

    That is a UserError, one of `errors` (exception classes), or what the system refuses: a full disk, a
    folder that cannot be written.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except (UserError, OSError, *errors) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
