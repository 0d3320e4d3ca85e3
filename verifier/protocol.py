"""Main process: the lines that `python verify.py` reads and writes, one JSON object each.

   {"id": 1, "kind": "sql", "database": "a.sqlite", "gold": "SELECT 1", "answer": "SELECT 2", "timeout": 5}
   {"id": 2, "kind": "python", "context": "code_context of DS-1000", "answer": "result = 1", "timeout": 120}
   {"id": 3, "kind": "tests", "tests": ["assert f(1) == 2"], "answer": "def f(x): return x + 1"}
-> {"id": 1, "verdict": "wrong", "message": "other rows", "seconds": 0.0004}
"""

import json
import queue
import threading
from concurrent.futures import Future
from typing import Any

from verifier.compare import COMPARISONS
from verifier.verdicts import GoldError, InfrastructureError

FIELDS = {  # by kind: the fields that a line must have, and those that it may have
    "sql": (("database", "gold", "answer"), ("comparison", "timeout")),
    "python": (("context", "answer"), ("timeout",)),
    "tests": (("tests", "answer"), ("setup", "entry_point", "classes", "timeout")),
}
LISTS = ("tests", "classes")  # these fields are lists of texts; all others but timeout are texts


class BadLine(ValueError):
    """A line of the input is not a job."""


def read(line: str, number: int) -> tuple[Any, str, dict[str, Any]]:
    """The id, the kind and the other fields of a line. Raises BadLine, which names its number."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadLine(f"line {number} is not JSON: {error}") from None
    if type(fields) is not dict or "id" not in fields:
        raise BadLine(f"line {number} is not an object with an id")
    kind = fields.pop("kind", None)
    if type(kind) is not str or kind not in FIELDS:
        raise BadLine(f"line {number}: kind is {kind!r}, not one of {', '.join(FIELDS)}")
    needed, optional = FIELDS[kind]
    identifier = fields.pop("id")
    for name in needed:
        if name not in fields:
            raise BadLine(f"line {number}: no field {name!r}")
    for name, value in fields.items():
        if name not in needed + optional:
            raise BadLine(f"line {number}: unknown field {name!r}")
        if name == "timeout":
            if type(value) not in (int, float) or not 0 < value <= 86400:
                raise BadLine(f"line {number}: timeout is not a number of seconds")
        elif name in LISTS:
            if type(value) is not list or not all(type(text) is str for text in value):
                raise BadLine(f"line {number}: {name} is not a list of texts")
        elif type(value) is not str:
            raise BadLine(f"line {number}: {name} is not a text")
    if fields.get("comparison", "spider") not in list(COMPARISONS):
        raise BadLine(f"line {number}: comparison is not one of {', '.join(COMPARISONS)}")
    try:
        json.dumps(identifier, allow_nan=False)
    except (ValueError, RecursionError):
        raise BadLine(f"line {number}: the id is not JSON") from None
    return identifier, kind, fields


def written(identifier: Any, verdict: str | None, message: str, seconds: float) -> str:
    """One line of the output. No verdict: a fault of the machine, of the database or of the question."""
    fields = {"id": identifier, "verdict": verdict, "message": message, "seconds": round(seconds, 6)}
    return json.dumps(fields)


class Printer:
    """A thread that prints each verdict once it and all before it are ready, also while a line is awaited."""

    def __init__(self, size: int):
        self.waiting: queue.Queue[tuple[Any, Future] | None] = queue.Queue(size)
        self.faults = False  # a verdict is null
        self.broken: BaseException | None = None  # what ended the printing
        self.thread = threading.Thread(target=self._print, daemon=True)
        self.thread.start()

    def _print(self) -> None:
        try:
            while (item := self.waiting.get()) is not None:
                identifier, future = item
                try:
                    verdict = future.result()
                    line = written(identifier, verdict.verdict, verdict.message, verdict.seconds)
                except (InfrastructureError, GoldError) as error:
                    self.faults = True
                    line = written(identifier, None, str(error), 0.0)
                print(line, flush=True)
        except BaseException as error:
            self.broken = error
            while self.waiting.get() is not None:  # nobody may wait for a place in the queue
                pass

    def finish(self) -> None:
        self.waiting.put(None)
        self.thread.join()
