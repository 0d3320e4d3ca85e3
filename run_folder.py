"""A run's folder: every file is complete or absent, one process writes, and the same command resumes.

A run is made in stages (stages.py). `stage` is the only place that knows about resuming: what a stage makes
is written to a file, and where the file exists it is read instead.

Where several processes share a run (ranks.py), all of them call these functions, and the first one alone
writes.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ranks
from cli import UserError, first_line
from settings import FREE, Config

# ---- files that are complete or absent -----------------------------------------------------------


def stage(
    path: Path,
    make: Callable[[], Any],
    write: Callable[[Path, Any], object],
    read: Callable[[Path], Any],
    *damage,
    seconds: str | None = None,
) -> Any:
    """`read(path)`; where the file or folder is missing, `make` its content first and `write` it.

    seconds: the name under which the time of `make` is added to seconds.json.
    damage: exception classes that `read` raises for a damaged file, besides those that `whole` knows.
    """
    if missing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with timed(path.parent, seconds):
            value = make()  # every process computes, the first one writes
        if ranks.rank() == 0:
            write(part(path), value)
            commit(part(path), path)
        ranks.barrier()
    with whole(path, *damage):
        return read(path)


def text(form: Callable[[Any], str]) -> Callable[[Path, Any], object]:
    """A `write` for `stage`: what `form` makes of the value, as text."""
    return lambda path, value: path.write_text(form(value), encoding="utf-8")


def part(path: Path) -> Path:
    """Where a file lies until it is complete."""
    return path.with_name(path.name + ".part")


def missing(path: Path) -> bool:
    """Whether a stage's output has still to be made: what the first process sees, for all of them."""
    return not ranks.all_gather(path.exists())[0]


def write(path: Path, text: str):
    """Complete or absent: written beside, flushed, renamed. When it returns, every process can read it."""
    if ranks.rank() == 0:
        part(path).write_text(text, encoding="utf-8")
        commit(part(path), path)
    ranks.barrier()


def commit(temporary: Path, path: Path):
    """Flush a file, or a folder's files, to disk and then name it: a name never stands for half of it."""
    for file in [*temporary.iterdir(), temporary] if temporary.is_dir() else [temporary]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    os.replace(temporary, path)


def copy(folder: Path, path: Path):
    """Keep a copy of a folder in the run's."""
    if missing(path) and ranks.rank() == 0:
        shutil.copytree(folder, part(path), dirs_exist_ok=True)
        commit(part(path), path)
    ranks.barrier()


@contextmanager
def whole(path: Path, *errors) -> Iterator[None]:
    """Around the reading of a run's file: what a damaged one raises becomes a UserError that names it."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, *errors) as error:
        raise UserError(
            f"{path} is damaged ({first_line(error)}): delete it, and the same command makes it again."
        )


def read_lines(path: Path, kind: Callable[[dict], Any] = lambda row: row) -> list:
    """Each line of the file as `kind` makes it of the line's JSON; raises UserError for a damaged file."""
    with whole(path), open(path, encoding="utf-8") as file:
        # not splitlines: an answer may hold U+2028 and its like
        return [kind(json.loads(line)) for line in file]


def read_json(path: Path) -> dict:
    """Raises ValueError where the file is no JSON object (within `whole`: it is damaged)."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def lines(rows: Iterable) -> str:
    """JSON lines of dataclasses or dictionaries."""
    plain = (row if isinstance(row, dict) else dataclasses.asdict(row) for row in rows)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in plain)


def indented(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


# ---- times ---------------------------------------------------------------------------------------


@contextmanager
def timed(folder: Path, name: str | None) -> Iterator[None]:
    """Add the block's time to `name` in seconds.json, also where Ctrl-C ended it."""
    started, path = time.time(), folder / "seconds.json"
    try:
        yield
    finally:
        if ranks.rank() == 0 and name:
            seconds = read_seconds(folder)
            seconds[name] = round(seconds.get(name, 0) + time.time() - started, 1)
            temporary = path.with_suffix(".part")
            temporary.write_text(json.dumps(seconds) + "\n")
            commit(temporary, path)


def read_seconds(folder: Path) -> dict[str, float]:
    """What `timed` has written; nothing where that is gone or damaged, since nothing depends on it."""
    try:
        return {name: float(s) for name, s in json.loads((folder / "seconds.json").read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def iterations(run: Path, file: str) -> list[Path]:
    """A run's folders iter_0, iter_1, … that have this file; raises UserError where one before has not."""
    found = {
        int(path.parent.name[5:]) for path in run.glob(f"iter_*/{file}") if path.parent.name[5:].isdecimal()
    }
    for t in range(len(found)):
        if t not in found:
            raise UserError(f"{run} has no iter_{t}/{file}, though it has one of a later iteration.")
    return [run / f"iter_{t}" for t in range(len(found))]


# ---- what a run was begun with -------------------------------------------------------------------


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold the run's folder; raises UserError where another process does. A process that dies lets go."""
    file, held = None, False
    if ranks.rank() == 0:
        file = open(run / "lock", "w")  # noqa: SIM115 (closed below)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = True
    try:
        if ranks.all_gather(held)[0]:
            raise UserError(f"another process is working on {run}: wait for it, or name another --out.")
        yield
    finally:
        if file:
            # closing alone does not unlock it while a child just forked has it open as well
            fcntl.flock(file, fcntl.LOCK_UN)
            file.close()


def fingerprint() -> str:
    """A hash of this project's code, so that a run knows whether it goes on under the code that began it."""
    here = Path(__file__).resolve().parent
    files = sorted([*here.glob("*.py"), *here.glob("verifier/*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def begun(run: Path) -> dict:
    """The run's config.json, empty where it has none; raises UserError where that is not a run's settings."""
    path = run / "config.json"
    if not path.exists():
        return {}
    try:
        settings = read_json(path)
        if not (isinstance(settings["device"], str) and isinstance(settings["code"][-1], str)):
            raise ValueError
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{path} is not a run's settings: name another --out, or delete the folder.")
    return settings


def check_settings(config: Config, run: Path):
    """Raises UserError naming the setting that differs from those a resumed run was begun with."""
    theirs = begun(run)
    if not theirs:
        if (run.exists() or run.is_symlink()) and not run.is_dir():
            raise UserError(f"--out: {run} is not a folder.")
        if (run / "iter_0").exists():
            raise UserError(
                f"{run} has iterations and no config.json: name another --out, or delete the folder."
            )
        return
    device = theirs["device"].partition(":")[0]
    defaults = {f.name: f.default for f in dataclasses.fields(Config)}
    free = FREE if config.draws else FREE | {"answers"}
    for name, value in dataclasses.asdict(config).items():
        # a setting that is newer than the run had its default's effect
        before = theirs.get(name, defaults[name])
        same = value.partition(":")[0] == device if name == "device" else before == value
        if name not in free and not same:
            raise UserError(
                f"{run} was made with {name} = {before!r}, this command has {value!r}: name another --out,"
                " or delete the folder."
            )
    if fingerprint() != theirs["code"][-1]:
        ranks.say(
            f"the code has changed since {run} was begun: its finished stages stay as they are"
            " (--out starts another)"
        )


def write_settings(config: Config, run: Path, today: str) -> str:
    """config.json: settings, fingerprints of the versions of the code, and the first day, which is returned.

    The day is that of the prompts: a chat template may print the date, and a run has the same prompts on
    every day.
    """
    before = begun(run)
    code = [version for version in before.get("code", []) if version != fingerprint()] + [fingerprint()]
    day = before.get("day", today)
    write(run / "config.json", indented(dataclasses.asdict(config) | {"code": code, "day": day}))
    return day
