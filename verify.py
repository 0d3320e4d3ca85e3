"""Programs -> verdicts: an answer is run, and its result is compared with that of the reference.

The paper (Algorithm 1, Section 3.2) calls an answer chosen when executing it gives the gold result and rejected when
not, so a wrong verdict here trains the model on a lie. Answers are written by a model that is rewarded for passing:
every one is treated as hostile, and the comparison is made by this code, never by anything that the answer says.

  SQL     (judge_sql.py) persistent worker processes, one fresh read-only connection per query, behind an authorizer, a
          heap limit, a deadline inside SQLite, and a kill behind that: `instr`, `trim` and the query planner cannot be
          interrupted. Both count the processor time of the query itself, so that a busy machine makes no label; a
          wall-clock limit, ten times as long, is behind them.
  Python  (judge_python.py) DS-1000's official test in a judge process, the program in another one that cannot see the
          test, behind Landlock, seccomp and limits (walls.py); only data comes back (transport.py). Both are forked
          from an interpreter that has the libraries loaded (zygote.py).

As a command it reads one job per line (JSON) and writes one verdict per line, in the same order:

    {"id": 1, "kind": "sql", "database": "shop.sqlite", "gold": "SELECT 1", "answer": "SELECT 2", "comparison": "bird"}
    {"id": 2, "kind": "python", "context": "...code_context of DS-1000...", "answer": "result = 1", "timeout": 120}
 -> {"id": 1, "verdict": "wrong", "message": "other rows", "seconds": 0.0004}

A verdict of null is a fault of the machine (InfrastructureError), of the database (Unreadable: a damaged page) or of the
question (GoldError: its gold query does not execute, its test fails before the program has run), never of the answer; the
exit code is then 1.
"""

import argparse
import ast
import contextlib
import hashlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import sandbox
import walls
from judge_sql import MAX_QUERY, NO_QUERY, NO_ROWS, Unreadable, outermost_orders, spider_query
from sandbox import InfrastructureError
from zygote import Zygote

VERDICTS = ("correct", "wrong", "error", "denied", "timeout", "crash")
COMPARISONS = ("spider", "spider_keep_distinct", "bird", "strict")

# gold code is given at least this long: a slow machine must not make it look broken
GOLD_SECONDS = {"sql": 30.0, "python": 120.0}
BUSY = 1.5  # a timeout that took so many times its processor time by the clock may be the machine's fault
GRACE = 0.25  # seconds after the deadline inside SQLite until the process is killed; all these are processor time
WALL = 10  # a query that waits, for the processor or the disk, is killed after this many times as long
NOT_JUDGED = "not judged:  "  # begins the message of what is no label; two spaces, which no program's message has
KEPT_GOLD_BYTES, KEPT_VERDICTS = 256 << 20, 100_000


@dataclass(frozen=True)
class Verdict:
    verdict: str  # one of VERDICTS
    message: str = ""  # short, one line
    seconds: float = 0.0  # SQL: processor time

    @property
    def ran(self) -> bool:
        """Whether it executed to its end: `correct` and `wrong`, but not a text that is no query.

        An exception in a Python program, AssertionError too, is an `error`; a test that fails after it is `wrong`.
        """
        return self.verdict in ("correct", "wrong") and self.message != NO_QUERY

    @property
    def judged(self) -> bool:
        """Whether it is a label; if not, the answer is neither right nor wrong (`settled`)."""
        return not self.message.startswith(NOT_JUDGED)


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
    timeout: float = 120.0  # seconds of processor time of all threads together; official: as many by the clock


class GoldError(ValueError):
    """The gold query does not execute, or the test fails by itself: no answer to the question can be judged."""


def settled(future: Future) -> Verdict:
    """The verdict that a Future has, so that one answer ends no run.

    An answer that reads a damaged page gets an `error` that is not `judged`: a score counts it as the official evaluators
    do, and no pair is made of it. All other faults are raised.
    """
    try:
        return future.result()
    except Unreadable as error:
        return Verdict("error", f"{NOT_JUDGED}{error}")


# --- the parent's side ------------------------------------------------------------------------------------------------


class Turns:
    """Programs take their turn side by side, or one has it alone: then the others wait."""

    def __init__(self):
        self._changed = threading.Condition()
        self._running, self._taken = 0, False

    @contextlib.contextmanager
    def together(self):
        with self._changed:
            self._changed.wait_for(lambda: not self._taken)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self):
        with self._changed:
            self._changed.wait_for(lambda: not self._taken)
            self._taken = True  # nobody starts any more
            self._changed.wait_for(lambda: self._running == 0)
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()


class Verifier:
    """A pool of workers with a memory: `with Verifier() as verifier: verdicts = verifier.run(jobs)`."""

    def __init__(self, workers: int = 2, python: str | None = None, allow_unsandboxed: bool = False):
        self.closed = False
        self.isolation = walls.tier()  # the walls that Python answers run behind
        self.children = [sandbox.Child("judge_sql", "serve_sql") for _ in range(workers)]
        self.python = Zygote(workers, python or sys.executable, allow_unsandboxed)
        self._idle = queue.LifoQueue()
        for child in self.children:
            self._idle.put(child)
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
        self.closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for child in self.children:
            child.kill()
        self.python.stop()
        self._pool.shutdown(wait=True)
        for child in self.children:
            child.stop()

    def submit(self, job) -> Future:
        """A Future of the Verdict. The same job runs once.

        It raises GoldError where the gold query does not execute or the test fails before any of the program has run,
        Unreadable where a query meets a damaged page of its database, and InfrastructureError where the machine is at
        fault: a database that cannot be read at all, walls that are missing, an interpreter that does not start, too
        little memory.
        """
        if isinstance(job, PythonJob):
            key = (hashlib.sha256(job.context.encode("utf-8", "surrogatepass")).digest(), job.answer, job.timeout)
            return self._once(key, self._judge_python, job)
        database, gold, answer, ordered = prepared(job)
        key = (*identity(database), gold, answer, job.comparison, job.timeout)
        return self._once(key, self._judge_sql, database, gold, answer, job.timeout, job.comparison, ordered)

    def gold_is_empty(self, job: SqlJob) -> bool:
        """Whether the gold result has no rows: any answer without rows is right then. Raises as `submit`'s Future does."""
        database, gold, *_ = prepared(job)
        return self._gold_result(database, gold, job.timeout)[0].message == NO_ROWS

    def execute(self, database: str, query: str, timeout: float) -> Future:
        """A Future of the Verdict on a query that runs alone, without a gold: "correct" where it executes."""
        database, query = os.path.abspath(database), cut(query)
        return self._once((*identity(database), query, timeout), self._run_alone, database, query, timeout)

    def _once(self, key: tuple, function, *arguments) -> Future:
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

    def run(self, jobs: Iterable, progress=None) -> list[Verdict]:
        """Verdicts in the order of the jobs, as `settled` gives them; `progress(1)` is called for each."""
        futures = [self.submit(job) for job in jobs]
        verdicts = []
        for future in futures:
            verdicts.append(settled(future))
            if progress:
                progress(1)
        return verdicts

    def _judge_python(self, job: PythonJob) -> Verdict:
        head = {"imports": imports_of(job.context), "timeout": job.timeout}
        with self._turns.together():
            verdict, message, seconds = self.python.ask(head, [job.context, job.answer], job.timeout)
        if verdict == "timeout" and seconds > BUSY * job.timeout:
            # It had no processor for much of the time: it slept, or the machine was busy. Once more, while no
            # other program of this pool runs.
            with self._turns.alone():
                verdict, message, seconds = self.python.ask(head, [job.context, job.answer], job.timeout)
        if verdict == "broken test":
            if any(f"No module named '{name.split('.')[0]}" in message for name in self.python.missing):
                raise InfrastructureError(
                    f"{message}; {self.python.python} lacks {', '.join(self.python.missing)}: `make ds1000` builds one"
                    " that has them, for --python"
                )
            raise GoldError(message)
        if verdict == "infrastructure":
            raise InfrastructureError(message)
        return Verdict(verdict, message, seconds)

    def _run_alone(self, database, query, timeout):
        return self._ask(("alone", database, query, timeout), timeout)[0]

    def _judge_sql(self, database, gold, answer, timeout, comparison, ordered):
        reference, data = self._gold_result(database, gold, timeout)
        limit = answer_seconds(timeout, reference.seconds)
        return self._ask(("answer", database, answer, limit, comparison, ordered, data), limit)[0]

    def _gold_result(self, database, gold, timeout) -> tuple[Verdict, bytes]:
        reference, data = self._gold(database, gold, max(timeout, GOLD_SECONDS["sql"]))
        if reference.verdict != "correct":
            raise GoldError(f"gold query fails on {database} ({reference.verdict}: {reference.message}): {gold[:1000]}")
        return reference, data

    def _gold(self, database, gold, timeout) -> tuple[Verdict, bytes]:
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
            result = self._ask(("gold", database, gold, timeout), timeout)
        except Exception as error:
            with self._lock:
                del self._golds[key]
            future.set_exception(error)
            raise
        future.set_result(result)
        self._forget_golds(len(result[1]))
        return result

    def _forget_golds(self, size: int) -> None:
        """Count a new gold result; forget those that were used longest ago where there are too many."""
        with self._lock:
            self._gold_bytes += size
            for key in list(self._golds):
                if self._gold_bytes <= KEPT_GOLD_BYTES:
                    break
                if self._golds[key].done():
                    self._gold_bytes -= len(self._golds.pop(key).result()[1])

    def _ask(self, request, timeout) -> tuple[Verdict, bytes]:
        """The reply of an idle worker. A timeout on a machine that is busy is no verdict: the query runs again, alone."""
        with self._turns.together():
            verdict, data, waited = self._exchange(request, timeout)
        if verdict.verdict == "timeout" and waited:
            with self._turns.alone():
                verdict, data, _ = self._exchange(request, timeout)
        return verdict, data

    def _exchange(self, request, timeout) -> tuple[Verdict, bytes, bool]:
        """The reply of an idle worker, and whether it had to wait for the processor or the disk."""
        child = self._idle.get()
        try:
            return self._reply(child, request, timeout)
        finally:
            self._idle.put(child)

    def _reply(self, child, request, timeout) -> tuple[Verdict, bytes, bool]:
        """As `_exchange`. A worker that dies is replaced and asked once more: what comes again is real."""
        # more for a big gold result, which travels through the pipe
        kill = timeout + GRACE + (len(request[-1]) / 20e6 if request[0] == "answer" else 0.1 * timeout)
        for _ in range(2):
            if self.closed:
                raise InfrastructureError("the verifier is closed")
            try:
                if child.process is None:
                    child.start()  # before the clock starts
                started = time.monotonic()
                verdict, message, seconds, data = child.ask((kill, *request), WALL * kill)
            except sandbox.Late:
                message = f"killed after {WALL * kill:.3g} s by the wall clock"
                return Verdict("timeout", message, timeout), b"", True
            except sandbox.Died as died:
                status = died.status
                if status != -signal.SIGPROF:
                    continue
                verdict, message, seconds, data = "timeout", f"longer than {timeout:g} s, killed", kill, b""
            if verdict in ("infrastructure", "unreadable"):
                raise (Unreadable if verdict == "unreadable" else InfrastructureError)(message)
            if message == "out of memory":  # what it freed may be in pieces
                child.stop()
            return Verdict(verdict, message, seconds), data, time.monotonic() - started > BUSY * seconds
        if -status in sandbox.CRASHES:
            return Verdict("crash", f"the worker died of signal {-status}"), b"", False
        raise InfrastructureError(f"a SQL worker died twice (exit status {status}; -9: the machine is out of memory)")


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
    gold, answer, ordered = cut(job.gold), cut(job.answer), False
    if job.comparison.startswith("spider"):
        gold, answer = (spider_query(query, job.comparison == "spider_keep_distinct") for query in (gold, answer))
        ordered = "order by" in gold.lower()
    elif job.comparison == "strict":
        ordered = outermost_orders(gold)
    return os.path.abspath(job.database), gold, answer, ordered  # absolute: the workers live in another folder


def cut(query: str) -> str:
    """The query itself, or so much of it that it is still too long to run: no work is done on the rest."""
    return query[: MAX_QUERY + 1]


def identity(database: str) -> tuple:
    """A path and what tells one version of the file from another."""
    try:
        status = os.stat(database)
    except (OSError, ValueError):  # ValueError: a path with a zero byte or a lone surrogate
        return (database, 0, 0)  # the worker will say so
    return (database, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1000)
def imports_of(context: str) -> list[str]:
    """The modules that a test imports anywhere: in the official program the answer runs where they are loaded."""
    try:
        tree = ast.parse(context)
    except (SyntaxError, ValueError):
        return []  # the judge will say what is wrong with it
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return list(dict.fromkeys(names))


# --- the command ------------------------------------------------------------------------------------------------------


class BadLine(ValueError):
    """A line of the input is not a job."""


def job_of(line: str, number: int) -> tuple[object, SqlJob | PythonJob]:
    """The id and the job of one line."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadLine(f"line {number} is not JSON: {error}") from None
    if type(fields) is not dict or "id" not in fields:
        raise BadLine(f"line {number} is not an object with an id")
    kinds = {"sql": (SqlJob, ("database", "gold", "answer"), ("comparison", "timeout")),
             "python": (PythonJob, ("context", "answer"), ("timeout",))}
    kind = fields.pop("kind", None)
    if kind not in ("sql", "python"):
        raise BadLine(f"line {number}: kind is {kind!r}, not sql or python")
    make, needed, optional = kinds[kind]
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
        elif type(value) is not str:
            raise BadLine(f"line {number}: {name} is not a text")
    if fields.get("comparison", "spider") not in COMPARISONS:
        raise BadLine(f"line {number}: comparison is not one of {', '.join(COMPARISONS)}")
    try:
        json.dumps(identifier, allow_nan=False)
    except (ValueError, RecursionError):
        raise BadLine(f"line {number}: the id is not JSON") from None
    return identifier, make(**fields)


def main(arguments: list[str] | None = None) -> int:
    about = "Jobs in (JSON lines), verdicts out (JSON lines), in the same order."
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("--workers", type=int, default=2, help="how many programs run at a time (default 2)")
    parser.add_argument("--python", default=sys.executable, metavar="PATH",
                        help="the interpreter that has DS-1000's libraries (default: this one; `make ds1000` builds one)")
    parser.add_argument("--allow-unsandboxed", action="store_true",
                        help="run Python answers even where the walls are not complete")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error("--workers must be at least 1")
    print(f"walls for Python: {walls.tier()}", file=sys.stderr, flush=True)
    if sys.stdin is None or sys.stdout is None:
        print("verify.py: standard input and output must be open", file=sys.stderr)
        return 2
    waiting, faults, broken = queue.Queue(100 * options.workers), [], []

    def report() -> None:
        """Print each verdict as soon as it and all before it are ready, also while the next line is awaited."""
        try:
            while (item := waiting.get()) is not None:
                identifier, future = item
                try:
                    verdict = future.result()
                    fields = {"verdict": verdict.verdict, "message": verdict.message, "seconds": round(verdict.seconds, 6)}
                except (InfrastructureError, GoldError) as error:
                    faults.append(identifier)
                    fields = {"verdict": None, "message": str(error), "seconds": 0.0}
                print(json.dumps({"id": identifier, **fields}), flush=True)
        except BaseException as error:
            broken.append(error)
            while waiting.get() is not None:  # nobody may wait for a place in the queue
                pass

    with Verifier(options.workers, python=options.python, allow_unsandboxed=options.allow_unsandboxed) as verifier:
        printer, complaint = threading.Thread(target=report, daemon=True), None
        printer.start()
        try:
            for number, line in enumerate(sys.stdin, 1):
                if broken:
                    break
                if line.strip():
                    identifier, job = job_of(line, number)
                    waiting.put((identifier, verifier.submit(job)))
        except (BadLine, UnicodeDecodeError, OSError) as error:
            complaint = error
        waiting.put(None)
        printer.join()
    if broken:
        if not isinstance(broken[0], OSError):
            raise broken[0]
        with contextlib.suppress(OSError):  # what is still in the buffer goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        complaint = broken[0]
    if complaint:
        print(f"verify.py: {complaint}", file=sys.stderr)
        return 2
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
