"""Main process: a SQL job as it is run: its texts, which database file it means, how long it may take."""

import os
from typing import Any

from verifier.compare import COMPARISONS
from verifier.sql_text import cut, outermost_orders, spider_query


def answer_seconds(timeout: float, gold: float) -> float:
    """An answer's deadline: the timeout, doubled until it is at least twice the gold's own seconds.

    In steps, so that it does not follow every small change of the gold's time from one run to the next.
    """
    while timeout < 2 * gold:
        timeout *= 2
    return timeout


def prepared(job: Any) -> tuple[str, str, str, bool]:
    """Database, gold and answer of a verify.SqlJob as they are run, and whether the order of rows counts."""
    if job.comparison not in COMPARISONS:
        raise ValueError(f"unknown comparison {job.comparison!r}: one of {', '.join(COMPARISONS)}")
    gold, answer, ordered = cut(job.gold), cut(job.answer), False
    if job.comparison.startswith("spider"):
        keep_distinct = job.comparison == "spider_keep_distinct"
        gold, answer = spider_query(gold, keep_distinct), spider_query(answer, keep_distinct)
        ordered = "order by" in gold.lower()
    elif job.comparison == "strict":
        ordered = outermost_orders(gold)
    # Absolute: the workers live in another folder.
    return os.path.abspath(job.database), gold, answer, ordered


def identity(database: str) -> tuple:
    """A path and what tells one version of the file from another."""
    try:
        status = os.stat(database)
    except (OSError, ValueError):  # ValueError: a path with a zero byte or a lone surrogate
        return (database, 0, 0)  # the worker will say so
    return (database, status.st_size, status.st_mtime_ns)
