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
from data import Answer, UserError

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
    if ranks.rank():
        yield
        return
    with open(run / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is working on {run}: wait for it, or name another --out.")
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing alone would not, while a child just forked has it open as well


@contextmanager
def timed(folder: Path, stage: str):
    """Add the time of the block to the stage's in seconds.json, also where it was interrupted (not where it was killed)."""
    started, path = time.time(), folder / "seconds.json"
    try:
        yield
    finally:
        if ranks.rank() == 0:
            seconds = json.loads(path.read_text()) if path.exists() else {}
            seconds[stage] = round(seconds.get(stage, 0) + time.time() - started, 1)
            temporary = path.with_suffix(".part")
            temporary.write_text(json.dumps(seconds) + "\n")
            commit(temporary, path)


def read_lines(path: Path) -> list:
    with open(path, encoding="utf-8") as file:  # not splitlines: an answer may hold U+2028 and its like
        return [json.loads(line) for line in file]


def read_answers(path: Path) -> list[Answer]:
    return [Answer(**{**row, "ids": tuple(row["ids"])}) for row in read_lines(path) if "unit" not in row]


def complete_units(part: Path) -> int:
    """How many whole units a stopped run left in `part`; the unit that was in flight is cut off and drawn again."""
    part.parent.mkdir(parents=True, exist_ok=True)
    if not part.exists():
        return 0
    raw, mark = part.read_bytes(), UNIT_END.encode()
    end = raw.rfind(mark)
    os.truncate(part, end + len(mark) if end >= 0 else 0)
    return raw.count(mark)
