"""What is said of an answer, and the faults that are never said of one. Every process here knows these."""

from typing import NamedTuple

VERDICTS = ("correct", "wrong", "error", "denied", "timeout", "crash")
NO_VALUES = "no values"  # the message of a gold query whose result has no rows, or nothing but NULL in them
NO_QUERY = "not a query"  # the message of an empty text, a comment, an EXPLAIN: wrong, though nothing failed


class InfrastructureError(RuntimeError):
    """The machine or the data is at fault, not the answer: never a label."""


class Unreadable(InfrastructureError):
    """This query met what cannot be read, say a damaged page; the database can be read otherwise."""


class GoldError(ValueError):
    """The gold query does not execute, or the test fails by itself: no answer can be judged."""


class Reply(NamedTuple):
    """What comes back from the process that ran a query or a program."""

    verdict: str
    message: str
    seconds: float
    waited: bool = False  # it had to wait for the processor or the disk: a timeout may be the machine's fault
    data: bytes = b""  # a gold query's result


def one_line(text: str, longest: int) -> str:
    """At most so many characters, without line breaks and without what UTF-8 cannot say."""
    return " ".join(text.encode("utf-8", "replace").decode().split())[:longest]
