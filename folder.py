"""A run's folder: every file complete or absent, one run at a time, one process that writes.

Where several processes share a run (ranks.py), all of them call `missing` and `write`, and the first one alone writes.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager
from pathlib import Path

import ranks
from data import Answer, UserError, first_line

UNIT_END = '{"unit": "complete"}\n'  # the line after the answers that were drawn together


def missing(path: Path) -> bool:
    """Whether a stage's output has still to be made: what the first process sees, for all of them."""
    return not ranks.gather(path.exists())[0]


def write(path: Path, text: str):
    """Complete or absent: written beside, flushed to disk, then renamed. When it returns, every process can read it."""
    if ranks.rank() == 0:
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(text, encoding="utf-8")
        commit(temporary, path)
    ranks.wait()


def commit(temporary: Path, path: Path):
    """Flush a file, or a folder's files, to disk and give it its name, so that the name never stands for half of it."""
    for file in [*temporary.iterdir(), temporary] if temporary.is_dir() else [temporary]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    os.replace(temporary, path)


@contextmanager
def lock(run: Path):
    """Hold the run's folder for this process; raises UserError where another one does. Dying lets go as well."""
    file, held = None, False
    if ranks.rank() == 0:
        file = open(run / "lock", "w")  # noqa: SIM115 (closed below)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = True
    try:
        if ranks.gather(held)[0]:
            raise UserError(f"another process is working on {run}: wait for it, or name another --out.")
        yield
    finally:
        if file:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing alone would not, while a child just forked has it open as well
            file.close()


@contextmanager
def timed(folder: Path, stage: str):
    """Add the time of the block to the stage's in seconds.json, also where it was interrupted (not where it was killed)."""
    started, path = time.time(), folder / "seconds.json"
    try:
        yield
    finally:
        if ranks.rank() == 0:
            seconds = read_seconds(folder)
            seconds[stage] = round(seconds.get(stage, 0) + time.time() - started, 1)
            temporary = path.with_suffix(".part")
            temporary.write_text(json.dumps(seconds) + "\n")
            commit(temporary, path)


def read_seconds(folder: Path) -> dict:
    """What `timed` has written; nothing where that is gone or damaged, since nothing depends on it."""
    try:
        return {stage: float(s) for stage, s in json.loads((folder / "seconds.json").read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@contextmanager
def whole(path: Path, *errors):
    """Around the reading of a run's file: what a damaged one raises becomes a UserError that names it."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, *errors) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): delete it, and the same command makes it again.")


def read_lines(path: Path, kind=lambda row: row) -> list:
    """Each line of the file as `kind` makes it of the line's JSON; raises UserError where the file is damaged."""
    with whole(path), open(path, encoding="utf-8") as file:  # not splitlines: an answer may hold U+2028 and its like
        return [kind(json.loads(line)) for line in file]


def read_answers(path: Path) -> list[Answer]:
    rows = read_lines(path, lambda row: None if "unit" in row else Answer(**{**row, "ids": tuple(row["ids"])}))
    return [answer for answer in rows if answer]


def iterations(run: Path, file: str) -> list[Path]:
    """The folders iter_0, iter_1, … of a run that have this file, in order; raises UserError where one before has not."""
    found = {int(path.parent.name[5:]) for path in run.glob(f"iter_*/{file}") if path.parent.name[5:].isdecimal()}
    for t in range(len(found)):
        if t not in found:
            raise UserError(f"{run} has no iter_{t}/{file}, though it has one of a later iteration.")
    return [run / f"iter_{t}" for t in range(len(found))]


def complete_units(part: Path) -> int:
    """How many whole units a stopped run left in `part`; the unit that was in flight is cut off and drawn again."""
    part.parent.mkdir(parents=True, exist_ok=True)
    if not part.exists():
        return 0
    raw, mark = part.read_bytes(), UNIT_END.encode()
    end = raw.rfind(mark)
    os.truncate(part, end + len(mark) if end >= 0 else 0)
    return raw.count(mark)
