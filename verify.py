"""Programs -> verdicts: an answer is run, and its result is compared with that of the reference.

The paper (Algorithm 1, Section 3.2) calls an answer chosen when executing it gives the gold result and
rejected when not, so a wrong verdict here trains the model on a lie. Answers are written by a model that is
rewarded for passing: every one is treated as hostile, and the comparison is made by this code, never by
anything that the answer says.

Queries run in worker processes, Python programs behind walls in processes of a second interpreter. The
package `verifier` holds these; its docstring has a picture of them, and verifier/README.md says what they do
not stop.

As a command it reads one job per line (JSON) and writes one verdict per line, in the same order:

    {"id": 1, "kind": "sql", "database": "a.sqlite", "gold": "SELECT 1", "answer": "SELECT 2", "timeout": 5}
    {"id": 2, "kind": "python", "context": "code_context of DS-1000", "answer": "result = 1", "timeout": 120}
    {"id": 3, "kind": "tests", "tests": ["assert f(1) == 2", "assert f(2) == 3"], "setup": "import math",
     "entry_point": "f", "classes": [], "answer": "def f(x): return x + 1", "timeout": 10}     (in one line)
 -> {"id": 1, "verdict": "wrong", "message": "other rows", "seconds": 0.0004}

A job of the kind `tests` needs `tests` and `answer` alone; AssertJob (verifier/jobs.py) says what each is.

A verdict of null is a fault of the machine (InfrastructureError), of the database (Unreadable: a damaged
page) or of the question (GoldError: its gold query does not execute, its test fails before the program has
run), never of the answer; the exit code is then 1.
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from verifier import protocol, walls
from verifier.compare import COMPARISONS as COMPARISONS  # others import it from here, and VERDICTS
from verifier.interpreter import Interpreter
from verifier.jobs import AssertJob, PythonJob, SqlJob, answer_seconds, identity, prepared
from verifier.sql_text import cut
from verifier.turns import BUSY, Turns
from verifier.verdicts import NO_QUERY, NO_VALUES, GoldError, InfrastructureError, Reply, Unreadable
from verifier.verdicts import VERDICTS as VERDICTS
from verifier.workers import Workers

# Gold code is given at least this long: a slow machine must not make it look broken.
GOLD_SECONDS = {"sql": 30.0, "python": 120.0}
# Begins the message of what is no label; two spaces, which no program's message has.
NOT_JUDGED = "not judged:  "
KEPT_GOLD_BYTES, KEPT_VERDICTS = 256 << 20, 100_000


@dataclass(frozen=True)
class Verdict:
    verdict: str  # one of VERDICTS
    message: str = ""  # short, one line
    seconds: float = 0.0  # of processor time, as a deadline counts it

    @property
    def ran(self) -> bool:
        """Whether it executed to its end: `correct` and `wrong`. A text that is no query did not run.

        An exception in a Python program, AssertionError too, is an `error`; a test that fails afterwards is
        `wrong`.
        """
        return self.verdict in ("correct", "wrong") and self.message != NO_QUERY

    @property
    def judged(self) -> bool:
        """Whether it is a label; if not, the answer is neither right nor wrong (`settled`)."""
        return not self.message.startswith(NOT_JUDGED)


def settled(future: Future) -> Verdict:
    """The verdict that a Future has, so that one answer ends no run.

    An answer that reads a damaged page gets an `error` that is not `judged`: a score counts it as the
    official evaluators do, and no pair is made of it. All other faults are raised.
    """
    try:
        return future.result()
    except Unreadable as error:
        return Verdict("error", f"{NOT_JUDGED}{error}")


class Verifier:
    """A pool of workers with a memory: `with Verifier() as verifier: verdicts = verifier.run(jobs)`.

    After a fork the child's Verifier is a new one, with workers of its own and without the memory; so is one
    that was pickled. A Future from before the fork gets no verdict in the child.
    """

    def __init__(self, workers: int = 2, python: str | None = None, allow_unsandboxed: bool = False):
        self.isolation = walls.tier()  # the walls that Python answers run behind
        self._arguments = (workers, python, allow_unsandboxed)
        self._begin()
        VERIFIERS.add(self)

    def __reduce__(self):
        return Verifier, self._arguments

    def _begin(self) -> None:
        """With no worker started yet and nothing remembered."""
        workers, python, allow_unsandboxed = self._arguments
        self.sql = Workers(workers)
        self.python = Interpreter(workers, python or sys.executable, allow_unsandboxed)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="verify")
        self._turns = Turns()
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[tuple, Future] = OrderedDict()
        self._golds: OrderedDict[tuple, Future] = OrderedDict()
        self._gold_bytes = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.sql.kill()
        self.python.stop()
        self._pool.shutdown(wait=True)
        self.sql.stop()

    # What a caller asks for.

    def submit(self, job: "SqlJob | PythonJob | AssertJob") -> Future:
        """A Future of the Verdict. The same job runs once.

        It raises GoldError where the gold query does not execute or the test fails before any of the program
        has run, Unreadable where a query meets a damaged page of its database, and InfrastructureError where
        the machine is at fault: a database that cannot be read at all, walls that are missing, an interpreter
        that does not start, too little memory.
        """
        if job.answer is None:
            nothing: Future = Future()
            nothing.set_result(Verdict("error", "no answer"))
            return nothing
        if isinstance(job, PythonJob):
            context = hashlib.sha256(job.context.encode("utf-8", "surrogatepass")).digest()
            key, parts = (context, job.answer, job.timeout), [job.context, job.answer]
            return self._once(key, self._judge_python, "python", parts, job.timeout)
        if isinstance(job, AssertJob):
            test = [job.setup, list(job.tests), job.entry_point, list(job.classes)]
            key = (hashlib.sha256(json.dumps(test).encode()).digest(), job.answer, job.timeout)
            return self._once(key, self._judge_python, "tests", [*test, job.answer], job.timeout)
        database, gold, answer, ordered = prepared(job)
        key = (*identity(database), gold, answer, job.comparison, job.timeout)
        return self._once(key, self._judge_sql, database, gold, answer, job.timeout, job.comparison, ordered)

    def execute(self, database: str, query: str, timeout: float) -> Future:
        """A Future of the Verdict on a query without a gold: "correct" where it executes."""
        database, query = os.path.abspath(database), cut(query)
        return self._once((*identity(database), query, timeout), self._run_alone, database, query, timeout)

    def gold_is_empty(self, job: SqlJob) -> bool:
        """Whether the gold result has no rows, or nothing but NULL in them. Raises as `submit`.

        Any answer without rows is right then, or any that aggregates over nothing.
        """
        database, gold, *_ = prepared(job)
        return self._gold_result(database, gold, job.timeout).message == NO_VALUES

    def run(
        self, jobs: "Iterable[SqlJob | PythonJob | AssertJob]", progress: Callable[[int], Any] | None = None
    ) -> list[Verdict]:
        """Verdicts in the order of the jobs, as `settled` gives them; `progress(1)` is called for each."""
        futures = [self.submit(job) for job in jobs]
        verdicts = []
        for future in futures:
            verdicts.append(settled(future))
            if progress:
                progress(1)
        return verdicts

    def _once(self, key: tuple, function: Callable[..., Verdict], *arguments: Any) -> Future:
        """The Future of this key: a verdict is remembered, a fault is not."""
        with self._lock:
            future = self._verdicts.get(key)
            if future is None or future.cancelled() or future.done() and future.exception():
                future = self._pool.submit(function, *arguments)
            self._verdicts[key] = future
            self._verdicts.move_to_end(key)
            while len(self._verdicts) > KEPT_VERDICTS:
                self._verdicts.popitem(last=False)
        return future

    # In a thread of the pool: one program or query.

    def _judge_python(self, kind: str, job: list, timeout: float) -> Verdict:
        def ask() -> Reply:
            verdict, message, seconds, delay = self.python.ask(kind, job, timeout)
            # One that sleeps waits for no processor, and would sleep as long alone.
            return Reply(verdict, message, seconds, waited=seconds + delay > BUSY * timeout)

        reply = self._turns.fairly(ask)
        if reply.verdict == "broken test":
            missing = self.python.missing
            if any(f"No module named '{name.split('.')[0]}" in reply.message for name in missing):
                lacks = f"{self.python.python} lacks {', '.join(missing)}"
                raise InfrastructureError(
                    f"{reply.message}; {lacks}: `make ds1000` builds one that has them, for --python"
                )
            raise GoldError(reply.message)
        if reply.verdict == "infrastructure":
            raise InfrastructureError(reply.message)
        return Verdict(reply.verdict, reply.message, reply.seconds)

    def _judge_sql(
        self, database: str, gold: str, answer: str, timeout: float, comparison: str, ordered: bool
    ) -> Verdict:
        reference = self._gold_result(database, gold, timeout)
        limit = answer_seconds(timeout, reference.seconds)
        reply = self._ask(("answer", database, answer, limit, comparison, ordered, reference.data), limit)
        return Verdict(reply.verdict, reply.message, reply.seconds)

    def _run_alone(self, database: str, query: str, timeout: float) -> Verdict:
        reply = self._ask(("alone", database, query, timeout), timeout)
        return Verdict(reply.verdict, reply.message, reply.seconds)

    def _ask(self, request: tuple, timeout: float) -> Reply:
        return self._turns.fairly(lambda: self.sql.ask(request, timeout))

    # Gold results are kept, the last ones used first.

    def _gold_result(self, database: str, gold: str, timeout: float) -> Reply:
        reply = self._gold(database, gold, max(timeout, GOLD_SECONDS["sql"]))
        if reply.verdict != "correct":
            cause = f"{reply.verdict}: {reply.message}"
            raise GoldError(f"gold query fails on {database} ({cause}): {gold[:1000]}")
        return reply

    def _gold(self, database: str, gold: str, timeout: float) -> Reply:
        """The gold result: run by the first thread that wants it, while the others wait for that one."""
        key = (*identity(database), gold, timeout)
        with self._lock:
            future, mine = self._golds.get(key), False
            if future is None:
                future, mine = Future(), True
                self._golds[key] = future
            self._golds.move_to_end(key)
        if not mine:
            return future.result()
        try:
            reply = self._ask(("gold", database, gold, timeout), timeout)
        except Exception as error:
            with self._lock:
                del self._golds[key]
            future.set_exception(error)
            raise
        future.set_result(reply)
        self._forget_golds(len(reply.data))
        return reply

    def _forget_golds(self, size: int) -> None:
        """Count a new gold result; forget those that were used longest ago where there are too many."""
        with self._lock:
            self._gold_bytes += size
            for key in list(self._golds):
                if self._gold_bytes <= KEPT_GOLD_BYTES:
                    break
                if self._golds[key].done():
                    self._gold_bytes -= len(self._golds.pop(key).result().data)


VERIFIERS: "weakref.WeakSet[Verifier]" = weakref.WeakSet()  # those of this process


def begin_again() -> None:
    """In a forked child: a fork copies no threads, and its copies of the pipes are the parent's."""
    for verifier in list(VERIFIERS):
        verifier._begin()


os.register_at_fork(after_in_child=begin_again)


# --- the command --------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    about = "Jobs in (JSON lines), verdicts out (JSON lines), in the same order."
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("--workers", type=int, default=2, help="how many programs run at a time (default 2)")
    parser.add_argument(
        "--python",
        default=sys.executable,
        metavar="PATH",
        help="the interpreter that has DS-1000's libraries (default: this one; `make ds1000` builds one)",
    )
    unsafe = "run Python answers even where the walls are not complete"
    parser.add_argument("--allow-unsandboxed", action="store_true", help=unsafe)
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error("--workers must be at least 1")
    print(f"walls for Python: {walls.tier()}", file=sys.stderr, flush=True)
    if sys.stdin is None or sys.stdout is None:
        print("verify.py: standard input and output must be open", file=sys.stderr)
        return 2
    with Verifier(options.workers, options.python, options.allow_unsandboxed) as verifier:
        printer = protocol.Printer(100 * options.workers)
        complaint = submit_lines(sys.stdin, verifier, printer)
        printer.finish()
    if printer.broken:
        if not isinstance(printer.broken, OSError):
            raise printer.broken
        with contextlib.suppress(OSError):  # what is still in the buffer goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        complaint = printer.broken
    if complaint:
        print(f"verify.py: {complaint}", file=sys.stderr)
        return 2
    return 1 if printer.faults else 0


def submit_lines(lines: Iterable[str], verifier: Verifier, printer: protocol.Printer) -> Exception | None:
    """Submit each line's job and have its verdict printed; what ended that before the last line."""
    make = {"sql": SqlJob, "python": PythonJob, "tests": AssertJob}
    try:
        for number, line in enumerate(lines, 1):
            if printer.broken:
                break
            if line.strip():
                identifier, kind, fields = protocol.read(line, number)
                lists = {name: tuple(fields[name]) for name in protocol.LISTS if name in fields}
                printer.waiting.put((identifier, verifier.submit(make[kind](**{**fields, **lists}))))
    except (protocol.BadLine, UnicodeDecodeError, OSError) as error:
        return error
    return None


if __name__ == "__main__":
    sys.exit(main())
