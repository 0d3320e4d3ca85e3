"""Main process: what the verifier can be asked, and a query's database and text as they are run."""

import os
from dataclasses import dataclass

from verifier.compare import COMPARISONS
from verifier.sql_text import cut


@dataclass(frozen=True)
class SqlJob:
    database: str  # path to the .sqlite file
    gold: str
    answer: str
    comparison: str = "spider"  # one of COMPARISONS
    timeout: float = 10.0  # seconds of processor time; more where the gold itself needs more than half of it


@dataclass(frozen=True)
class PythonJob:
    context: str  # code_context of DS-1000: the test, with a place for the answer
    answer: str
    # Seconds of processor time, of all threads together; the official limit, by the clock.
    timeout: float = 120.0


@dataclass(frozen=True)
class AssertJob:
    """Tests that are a program of asserts. They run in another process than the answer, and call it there."""

    tests: tuple[str, ...]  # pieces of one program, most of them one assert each
    answer: str  # a program
    setup: str = ""  # code that runs before the answer, and before the tests
    # What is asked for. It may have the name of a built-in function. If the tests define `check`, then
    # check(entry_point) is called after them.
    entry_point: str = ""
    classes: tuple[str, ...] = ()  # names of the answer's classes whose objects the tests make and use
    timeout: float = 10.0  # seconds of processor time, of all threads together


def answer_seconds(timeout: float, gold: float) -> float:
    """An answer's deadline: the timeout, doubled until it is at least twice the gold's own seconds.

    In steps, so that it does not follow every small change of the gold's time from one run to the next.
    """
    while timeout < 2 * gold:
        timeout *= 2
    return timeout


def prepared(job: SqlJob) -> tuple[str, str, str, bool]:
    """Database, gold and answer as they are run, and whether the order of the gold's rows counts."""
    if job.comparison not in COMPARISONS:
        raise ValueError(f"unknown comparison {job.comparison!r}: one of {', '.join(COMPARISONS)}")
    comparison = COMPARISONS[job.comparison]
    gold, answer = comparison.prepare(cut(job.gold)), comparison.prepare(cut(job.answer))
    # Absolute: the workers live in another folder.
    return os.path.abspath(job.database), gold, answer, comparison.ordered(gold)


def identity(database: str) -> tuple:
    """A path and what tells one version of the file from another."""
    try:
        status = os.stat(database)
    except (OSError, ValueError):  # ValueError: a path with a zero byte or a lone surrogate
        return (database, 0, 0)  # the worker will say so
    return (database, status.st_size, status.st_mtime_ns)
