"""Programs -> verdicts: an answer is run, and its result is compared with that of the gold query.

The paper (Algorithm 1, Section 3.2) calls an answer chosen when executing it gives the gold result and rejected when
not, so a wrong verdict here trains the model on a lie. Answers are written by a model that is rewarded for passing:
every one is treated as hostile. Queries run in worker processes (sandbox.Child), one fresh read-only connection each,
behind an authorizer, a heap limit, a deadline inside SQLite, and a kill behind that, since `instr`, `trim` and the
query planner cannot be interrupted. The comparison is made by this code, never by anything that the answer says.

Comparison modes (of the results; the official evaluators are reimplemented, not copied):
  spider  Spider's test-suite evaluator (Zhong et al. 2020): a multiset of rows, in order if the gold text has ORDER BY
          anywhere, columns in any order. DISTINCT is taken out of both queries first, as it does by default;
          `spider_keep_distinct` is its --keep_distinct.
  bird    BIRD's evaluation.py: set(answer) == set(gold).
  strict  a multiset of rows, in order if the gold's outermost SELECT has ORDER BY, columns in place.

Where this differs from the official code on purpose: results of no rows are equal only if they have as many columns;
1 and 1.0 are equal beside any other column; text that is not UTF-8 is compared byte by byte; only one statement that
reads may run; columns are matched by refinement, not by trying all permutations.
"""

import marshal
import os
import queue
import re
import sqlite3
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice

import sandbox

if sys.version_info < (3, 11):
    raise ImportError("verify.py needs Python 3.11: before it, sqlite3 has neither limits nor error codes")

VERDICTS = ("correct", "wrong", "error", "denied", "timeout", "crash")
COMPARISONS = ("spider", "spider_keep_distinct", "bird", "strict")

HEAP = 256 << 20  # bytes that SQLite may hold (plans, sorts, temporary tables); the process grows to 1.4 times that
MEMORY = 1 << 30  # bytes of address space of a worker: SQLite's heap and the two results as Python objects
MAX_VALUE = 16 << 20  # bytes of one value; a model's answer can ask for printf('%.*c', 1e9, 'x')
MAX_QUERY = 100_000  # bytes of one query
MAX_DEPTH = 500  # of an expression: SQLite's own 1000 is a matter of how it was built
MAX_ROWS = 1_000_000  # of a gold result; an answer may have one row more than its gold
GOLD_SECONDS = 30.0  # a gold query is given at least this long: a slow machine must not make it look broken
GRACE = 0.25  # seconds after the deadline inside SQLite until the process is killed
KEPT_GOLD_BYTES, KEPT_VERDICTS = 256 << 20, 100_000


@dataclass(frozen=True)
class Verdict:
    verdict: str  # one of VERDICTS
    message: str = ""  # short, one line
    seconds: float = 0.0


@dataclass(frozen=True)
class SqlJob:
    database: str  # path to the .sqlite file
    gold: str
    answer: str
    comparison: str = "spider"  # one of COMPARISONS
    timeout: float = 10.0


@dataclass(frozen=True)
class GoldReport:
    """What running the gold query alone showed."""

    verdict: Verdict  # "correct" where it executes, else error, denied, timeout or crash
    rows: int | None  # number of rows of its result
    deterministic: bool  # False where it asks for the time or for a random number


class InfrastructureError(RuntimeError):
    """The machine or the data is at fault, not the answer: never a label."""


class GoldError(ValueError):
    """The gold query does not execute, so no answer to its question can be judged."""


# --- the text of queries ----------------------------------------------------------------------------------------------

TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)|\s+|\w+|.""", re.S)
CLOCK = re.compile(r"\b(random|randomblob|current_date|current_time|current_timestamp)\b|['\"]now['\"]"
                   r"|\b(date|time|datetime|julianday|unixepoch)\s*\(\s*\)|\bstrftime\s*\(\s*'[^']*'\s*\)", re.I)


def words(query: str) -> list[str]:
    """The tokens in lower case, without white space and comments."""
    tokens = (token.lower() for token in TOKEN.findall(query))
    return [token for token in tokens if not token.isspace() and token[:2] not in ("--", "/*")]


def spider_query(query: str, keep_distinct: bool) -> str:
    """The official preparation: `> =` becomes `>=`, MySQL's current year becomes 2020, DISTINCT goes."""
    for operator in (">", "<", "!"):
        query = query.replace(f"{operator} =", f"{operator}=")
    query = re.sub(r"YEAR\s*\(\s*CURDATE\s*\(\s*\)\s*\)\s*", "2020", query, flags=re.IGNORECASE)
    return query if keep_distinct else "".join(t for t in TOKEN.findall(query) if t.lower() != "distinct")


def outermost_orders(query: str) -> bool:
    """Whether ORDER BY stands outside all parentheses."""
    depth, last = 0, ""
    for word in words(query):
        depth += (word == "(") - (word == ")")
        if depth == 0 and (last, word) == ("order", "by"):
            return True
        last = word
    return False


# --- running one query (in the worker) --------------------------------------------------------------------------------

READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
DENIED_FUNCTIONS = {"load_extension", "fts3_tokenizer", "randomblob", "zeroblob"}
# Extended result codes have the basic one in their low byte. IOERR_WRITE alone is the query's doing: it met the limit.
INFRASTRUCTURE_CODES = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN,
                        sqlite3.SQLITE_FULL, sqlite3.SQLITE_PERM, sqlite3.SQLITE_PROTOCOL}


class Rejected(Exception):
    """The query gave no result; carries the verdict and the message."""


def open_database(path: str, deadline: float, denials: list[str]) -> sqlite3.Connection:
    """A connection that can read this one file and nothing else; what it refuses to do is appended to `denials`."""
    if not os.path.isfile(path) or os.path.getsize(path) == 0:
        raise InfrastructureError(f"no database at {path}")
    for suffix in ("-wal", "-journal"):  # read as immutable, the file would show old or half-written data
        if os.path.exists(path + suffix):
            raise InfrastructureError(f"{path}{suffix} exists: the database was not closed; open it once with sqlite3")
    quoted = os.path.abspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    connection = sqlite3.connect(f"file:{quoted}?mode=ro&immutable=1", uri=True, isolation_level=None,
                                 cached_statements=0)
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    connection.execute("PRAGMA temp_store = memory")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
    connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, MAX_QUERY)
    connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, MAX_DEPTH)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)

    def authorize(action, first, second, _database, _trigger):
        reads = action in READING and not (action == sqlite3.SQLITE_FUNCTION and second.lower() in DENIED_FUNCTIONS)
        # SQLite asks for this one when it declares json_each; a real UPDATE of sqlite_master is an error of its own
        if reads or (action, first) == (sqlite3.SQLITE_UPDATE, "sqlite_master"):
            return sqlite3.SQLITE_OK
        denials.append(second or first or "")
        return sqlite3.SQLITE_DENY

    connection.set_authorizer(authorize)
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
    return connection


def rows_of(database: str, query: str, timeout: float, take) -> tuple[int, object]:
    """The number of columns and `take(cursor)`. Raises Rejected or InfrastructureError."""
    denials = []
    connection = open_database(database, time.monotonic() + timeout, denials)
    try:
        cursor = connection.execute(query)
        if cursor.description is None:  # an empty text or a comment "succeeds"; nobody asked for nothing
            raise Rejected("wrong", "not a query")
        return len(cursor.description), take(cursor)
    except MemoryError:
        raise Rejected("error", "out of memory") from None
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if denials or code & 255 in (sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY):
            raise Rejected("denied", " ".join(["not allowed:", *words(query)[:1], *denials[:1]])) from None
        if code == sqlite3.SQLITE_INTERRUPT:
            raise Rejected("timeout", f"longer than {timeout:g} s") from None
        if code & 255 in INFRASTRUCTURE_CODES and code != sqlite3.SQLITE_IOERR_WRITE:
            raise InfrastructureError(f"{database}: {error}") from None
        raise Rejected("error", str(error)) from None
    finally:
        connection.close()


def run_gold(database: str, query: str, timeout: float) -> tuple[str, str, int, bytes]:
    """The gold result, small enough to be kept and sent: (verdict, message, number of rows, marshalled result)."""
    width, rows = rows_of(database, query, timeout, partial(take_bag, limit=MAX_ROWS))
    if len(rows) > MAX_ROWS:
        raise Rejected("error", f"more than {MAX_ROWS} rows")
    return "correct", "", len(rows), marshal.dumps((width, rows))


def run_answer(database: str, query: str, timeout: float, comparison: str, ordered: bool,
               gold: bytes) -> tuple[str, str, int, bytes]:
    """Run an answer until it ends or has more rows than the gold, and compare."""
    gold_width, gold_rows = unpack(gold)
    if words(query)[:1] == ["explain"]:  # it executes, and may give no row at all
        raise Rejected("wrong", "EXPLAIN gives no answer")
    if comparison == "bird":
        gold_rows = set(gold_rows)
    take = partial(take_set if comparison == "bird" else take_bag, limit=len(gold_rows))
    width, rows = rows_of(database, query, timeout, take)
    message = difference(gold_rows, rows, gold_width, width, comparison, ordered)
    return "wrong" if message else "correct", message, len(rows), b""


def take_bag(cursor, limit: int) -> list:
    """The rows, and at most one more than `limit`: that many cannot be right."""
    return list(islice(cursor, limit + 1))


def take_set(cursor, limit: int) -> set:
    """The same of distinct rows: repeats are free in BIRD's metric."""
    rows = set()
    for row in cursor:
        rows.add(row)
        if len(rows) > limit:
            break
    return rows


unpack = lru_cache(maxsize=1)(marshal.loads)  # many answers in a row have the same gold


# --- comparing two results --------------------------------------------------------------------------------------------


def difference(gold, answer, gold_width: int, width: int, comparison: str, ordered: bool) -> str:
    """What is different, in a few words; an empty text where the results are equal."""
    if width != gold_width:
        return f"{width} columns, not {gold_width}"
    if len(answer) != len(gold):
        return f"more than {len(gold)} rows" if len(answer) > len(gold) else f"{len(answer)} rows, not {len(gold)}"
    if comparison == "bird":
        return "" if answer == gold else "other rows"
    if answer == gold or not ordered and Counter(answer) == Counter(gold):
        return ""
    if comparison == "strict":
        return "other order" if ordered and Counter(answer) == Counter(gold) else "other rows"
    if ordered:  # rows are in place, so each column must be found as it is, whichever place it has
        return "" if Counter(zip(*answer)) == Counter(zip(*gold)) else "other rows or order"
    return "" if match_columns(gold, answer) else "other rows"


def match_columns(gold: list, answer: list) -> bool:
    """Whether some order of the columns makes the two multisets of rows equal.

    Colour refinement: columns that hold different values get different colours, rows with different values in the
    columns of one colour get different colours, then columns again, until nothing changes. Columns that still share a
    colour are tried in turn, and refined again; equal columns are tried once. The answer is exact. Each refinement
    takes at most (columns) passes over the table. The number of tries is 1 in practice; no polynomial bound is known
    for any exact method (the problem contains graph isomorphism), and the job's deadline holds for what is left.
    """
    number = {}  # every value as a small integer, so that 1 and 1.0 are one value and text beside numbers can be sorted
    tables = [[[number.setdefault(value, len(number)) for value in column] for column in zip(*table)]
              for table in (gold, answer)]
    same = [tuple(column) for column in tables[1]]

    def refine(colours):
        """The colours of the columns of both tables, as fine as they get; None where the tables are seen to differ."""
        while True:
            rows = [[sum(cells) for cells in zip(*([hash((colour, value, 1)) for value in column]
                     for colour, column in zip(of_columns, table)))] for of_columns, table in zip(colours, tables)]
            finer = [[(colour, sum(hash((row, value, 2)) for row, value in zip(of_rows, column)))
                      for colour, column in zip(of_columns, table)]
                     for of_columns, of_rows, table in zip(colours, rows, tables)]
            if Counter(finer[0]) != Counter(finer[1]):  # sums over all rows: other rows show here as well
                return None
            name = {colour: index for index, colour in enumerate(sorted(set(finer[0])))}
            finer = [[name[colour] for colour in of_columns] for of_columns in finer]
            if len(name) == len(set(colours[0])):
                return finer
            colours = finer

    def search(colours):
        colours = refine(colours)
        if colours is None:
            return False
        shared = [colour for colour, count in Counter(colours[0]).items() if count > 1]
        if not shared:  # one way is left: see whether it holds (colours are sums of hashes, so this is the proof)
            order = [colours[1].index(colour) for colour in colours[0]]
            return Counter(zip(*tables[0])) == Counter(zip(*(tables[1][column] for column in order)))
        fresh, first, tried = len(same), colours[0].index(shared[0]), set()
        for column, colour in enumerate(colours[1]):
            if colour == shared[0] and same[column] not in tried:
                tried.add(same[column])
                if search([with_colour(colours[0], first, fresh), with_colour(colours[1], column, fresh)]):
                    return True
        return False

    return search([[0] * len(table) for table in tables])


def with_colour(colours: list, column: int, colour: int) -> list:
    return colours[:column] + [colour] + colours[column + 1:]


# --- the worker process -----------------------------------------------------------------------------------------------


def serve_sql(parent: int) -> None:
    """The whole life of a SQL worker."""
    sandbox.die_with_parent(parent)
    sandbox.limit_resources(memory=MEMORY, file_size=0)  # no query writes a file, not even a temporary one
    sqlite3.connect(":memory:").execute(f"PRAGMA hard_heap_limit = {HEAP}")
    sandbox.serve(handle_sql)


def handle_sql(kind: str, *arguments) -> tuple[str, str, float, int, bytes]:
    started = time.monotonic()
    try:
        verdict, message, rows, gold = (run_gold if kind == "gold" else run_answer)(*arguments)
    except Rejected as rejected:
        (verdict, message), rows, gold = rejected.args, 0, b""
    except MemoryError:
        verdict, message, rows, gold = "error", "out of memory", 0, b""
    except InfrastructureError as error:
        verdict, message, rows, gold = "infrastructure", str(error), 0, b""
    message = " ".join(message.encode("utf-8", "replace").decode().split())[:200]
    return verdict, message, time.monotonic() - started, rows, gold


# --- the parent's side ------------------------------------------------------------------------------------------------


class Verifier:
    """A pool of workers with a memory: `with Verifier() as verifier: verdicts = verifier.run(jobs)`."""

    def __init__(self, workers: int = 2, timeout: float | None = None):
        self.timeout, self.closed = timeout, False
        self.children = [sandbox.Child("verify", "serve_sql") for _ in range(workers)]
        self._idle = queue.LifoQueue()
        for child in self.children:
            self._idle.put(child)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="verify")
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
        self._pool.shutdown(wait=True)
        for child in self.children:
            child.stop()

    def submit(self, job) -> Future:
        """A Future of the Verdict; it raises GoldError or InfrastructureError. The same job runs once."""
        if job.comparison not in COMPARISONS:
            raise ValueError(f"unknown comparison {job.comparison!r}: one of {', '.join(COMPARISONS)}")
        timeout = self.timeout or job.timeout
        gold, answer, ordered = job.gold, job.answer, False
        if job.comparison.startswith("spider"):
            gold, answer = (spider_query(query, job.comparison == "spider_keep_distinct") for query in (gold, answer))
            ordered = "order by" in gold.lower()
        elif job.comparison == "strict":
            ordered = outermost_orders(gold)
        key = (*identity(job.database), gold, answer, job.comparison, timeout)
        with self._lock:
            future = self._verdicts.get(key)
            if future is None or future.cancelled() or future.done() and future.exception():
                future = self._pool.submit(self._judge_sql, job.database, gold, answer, timeout, job.comparison,
                                           ordered)
            self._verdicts[key] = future
            self._verdicts.move_to_end(key)
            while len(self._verdicts) > KEPT_VERDICTS:
                self._verdicts.popitem(last=False)
        return future

    def run(self, jobs: Iterable, progress=None) -> list[Verdict]:
        """Verdicts in the order of the jobs; `progress(1)` is called for each."""
        futures = [self.submit(job) for job in jobs]
        verdicts = []
        for future in futures:
            verdicts.append(future.result())
            if progress:
                progress(1)
        return verdicts

    def check_gold(self, database: str, gold: str, timeout: float = GOLD_SECONDS) -> Future:
        """A Future of the GoldReport: does the gold query execute, and does it always say the same?"""
        return self._pool.submit(self._check_gold, database, gold, timeout)

    def _check_gold(self, database, gold, timeout):
        verdict, rows, _ = self._gold(database, gold, timeout)
        works = verdict.verdict == "correct"
        return GoldReport(verdict, rows if works else None, not CLOCK.search(gold))

    def _judge_sql(self, database, gold, answer, timeout, comparison, ordered):
        reference, _, data = self._gold(database, gold, max(timeout, GOLD_SECONDS))
        if reference.verdict != "correct":
            raise GoldError(f"gold query fails on {database} ({reference.verdict}: {reference.message}): {gold}")
        return self._ask(("answer", database, answer, timeout, comparison, ordered, data), timeout)[0]

    def _gold(self, database, gold, timeout) -> tuple[Verdict, int, bytes]:
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
        self._forget_golds(len(result[2]))
        return result

    def _forget_golds(self, size: int) -> None:
        """Count a new gold result; forget those that were used longest ago where there are too many."""
        with self._lock:
            self._gold_bytes += size
            for key in list(self._golds):
                if self._gold_bytes <= KEPT_GOLD_BYTES:
                    break
                if self._golds[key].done():
                    self._gold_bytes -= len(self._golds.pop(key).result()[2])

    def _ask(self, request, timeout) -> tuple[Verdict, int, bytes]:
        """One request to an idle worker. One that dies is replaced and asked once more: what comes again is real."""
        # more for a big gold result, which travels through the pipe
        grace = GRACE + (len(request[-1]) / 20e6 if request[0] == "answer" else 0.1 * timeout)
        child = self._idle.get()
        try:
            for _ in range(2):
                if self.closed:
                    raise InfrastructureError("the verifier is closed")
                try:
                    verdict, message, seconds, rows, data = child.ask(request, timeout + grace)
                except sandbox.Late:
                    return Verdict("timeout", f"longer than {timeout:g} s, killed", timeout), 0, b""
                except sandbox.Died as died:
                    status = died.status
                    continue
                if verdict == "infrastructure":
                    raise InfrastructureError(message)
                if message == "out of memory":  # what it freed may be in pieces
                    child.stop()
                return Verdict(verdict, message, seconds), rows, data
        finally:
            self._idle.put(child)
        if -status in sandbox.CRASHES:
            return Verdict("crash", f"the worker died of signal {-status}"), 0, b""
        raise InfrastructureError(f"a SQL worker died twice (exit status {status}; -9: the machine is out of memory)")


def identity(database: str) -> tuple:
    """A path and what tells one version of the file from another."""
    try:
        status = os.stat(database)
    except OSError:
        return (database, 0, 0)  # the worker will say so
    return (database, status.st_size, status.st_mtime_ns)
