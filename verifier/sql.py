"""The SQL worker process: runs one query after another against databases that it cannot change.

The main process starts it as a fresh interpreter (workers.py) and asks it through a pipe. The Python in it is
trusted. A query is held by SQLite's own authorizer, a heap limit and a deadline inside SQLite, and behind
these by the limits of the process and a kill: `instr`, `trim` and the query planner cannot be interrupted.
"""

import marshal
import os
import signal
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from functools import lru_cache, partial
from itertools import islice
from typing import Any, NamedTuple

from verifier import child
from verifier.beside import SUFFIXES, holds_data
from verifier.compare import COMPARISONS, difference
from verifier.sql_text import MAX_QUERY, words
from verifier.verdicts import NO_QUERY, NO_VALUES, InfrastructureError, Unreadable, one_line

if sys.version_info < (3, 11):
    raise ImportError("verify.py needs Python 3.11: before it, sqlite3 has neither limits nor error codes")

# Bytes that SQLite may hold (plans, sorts, temporary tables); the process grows to 1.4 times that.
HEAP = 256 << 20
MEMORY = 1 << 30  # bytes of address space of a worker: SQLite's heap and the two results as Python objects
MAX_VALUE = 16 << 20  # bytes of one value; a model's answer can ask for printf('%.*c', 1e9, 'x')
QUICK = 10.0  # seconds to read the schema
MAX_DEPTH = 500  # of an expression: SQLite's own 1000 is a matter of how it was built
MAX_ROWS = 1_000_000  # of a gold result; an answer may have one row more than its gold

READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
CHANGES = "its result changes from run to run: "  # and what in the query does that
DENIED_FUNCTIONS = {"load_extension", "fts3_tokenizer", "randomblob", "zeroblob"}
CHANGING_FUNCTIONS = {"random", "randomblob", "current_date", "current_time", "current_timestamp"}
# These may ask for 'now'.
DATE_FUNCTIONS = {"date", "time", "datetime", "julianday", "strftime", "unixepoch", "timediff"}
# Extended result codes have the basic one in their low byte. IOERR_WRITE alone is the query's doing: it met
# the limit.
INFRASTRUCTURE_CODES = {
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_PERM, sqlite3.SQLITE_PROTOCOL,
}  # fmt: skip


# --- the process --------------------------------------------------------------------------------------------


def main(parent: int) -> None:
    """The whole life of a SQL worker."""
    child.die_with_parent(parent)
    child.limit_resources(memory=MEMORY, file_size=0)  # no query writes a file, not even a temporary one
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it ends this process, whatever the parent does with it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    sqlite3.connect(":memory:").execute(f"PRAGMA hard_heap_limit = {HEAP}")
    child.serve(answer)


def answer(kill: float, kind: str, *arguments: Any) -> tuple[str, str, float, bytes]:
    """The reply to one request: (verdict, message, seconds, marshalled result of a gold query).

    kill: after so many seconds the kernel ends this process, which may be inside a call that nothing else can
    interrupt. The query's own deadline is in the arguments. All times are those that this process itself
    uses.
    """
    started, gold = time.process_time(), b""
    signal.setitimer(signal.ITIMER_PROF, min(kill, 1e9))  # the kernel knows no time beyond some centuries
    try:
        run = {"gold": run_gold, "answer": run_answer, "alone": run_alone}[kind]
        verdict, message, gold = run(*arguments)
    except NoResult as outcome:
        verdict, message = outcome.args
    except MemoryError:
        verdict, message = "error", "out of memory"
    except InfrastructureError as error:
        verdict, message = "unreadable" if isinstance(error, Unreadable) else "infrastructure", str(error)
    signal.setitimer(signal.ITIMER_PROF, 0)
    return verdict, one_line(message, 200), time.process_time() - started, gold


class NoResult(Exception):
    """The query gave no result; carries the verdict and the message."""


# --- the three kinds of requests ----------------------------------------------------------------------------


def run_gold(database: str, query: str, timeout: float) -> tuple[str, str, bytes]:
    """The gold result, small enough to be kept and sent: (verdict, message, marshalled result)."""
    result = run(database, query, timeout, partial(take_list, limit=MAX_ROWS))
    if len(result.rows) > MAX_ROWS:
        raise NoResult("error", f"more than {MAX_ROWS} rows")
    empty = all(value is None for row in result.rows for value in row)
    return "correct", NO_VALUES if empty else "", marshal.dumps((result.width, result.rows))


def run_answer(
    database: str, query: str, timeout: float, comparison: str, ordered: bool, gold: bytes
) -> tuple[str, str, bytes]:
    """Run an answer until it ends or has more rows than the gold, and compare."""
    how = COMPARISONS[comparison]
    gold_width, gold_rows = unmarshalled(gold)
    if not how.repeats:
        gold_rows = set(gold_rows)
    take = partial(take_list if how.repeats else take_set, limit=len(gold_rows))
    result = run(database, query, timeout, take)
    message = difference(gold_rows, result.rows, gold_width, result.width, how, ordered)
    return "wrong" if message else "correct", message, b""


def run_alone(database: str, query: str, timeout: float) -> tuple[str, str, bytes]:
    """Run a query until it ends or has given MAX_ROWS rows, and keep none of them: it executes."""
    run(database, query, timeout, lambda cursor: deque(islice(cursor, MAX_ROWS), maxlen=0))
    return "correct", "", b""


def take_list(cursor: sqlite3.Cursor, limit: int) -> list[tuple]:
    """The rows, and at most one more than `limit`: that many cannot be right."""
    return list(islice(cursor, limit + 1))


def take_set(cursor: sqlite3.Cursor, limit: int) -> set[tuple]:
    """The same of distinct rows: repeats are free in BIRD's metric."""
    rows = set()
    for row in cursor:
        rows.add(row)
        if len(rows) > limit:
            break
    return rows


unmarshalled = lru_cache(maxsize=1)(marshal.loads)  # many answers in a row have the same gold


def refuse_changing(database: str, query: str, functions: set[tuple[str, str]]) -> None:
    """Raises NoResult where the result of a query may be another one at another time: that is no label.

    functions: (name, view) of each that it calls; the view is the one in which it stands, "" for the query
    itself. A date function asks for the present time where 'now' stands among its arguments, or no time. A
    'now' that the query computes elsewhere is not seen.
    """
    names = {name for name, _ in functions}
    if found := sorted(names & CHANGING_FUNCTIONS):
        raise NoResult("error", CHANGES + found[0])
    if not names & DATE_FUNCTIONS:
        return
    texts, views = [query], {view.lower() for name, view in functions if view and name in DATE_FUNCTIONS}
    if views:
        created = run(database, "SELECT name, sql FROM sqlite_master WHERE type = 'view'", QUICK, list).rows
        texts += [sql for name, sql in created if name.lower() in views]
    for text in texts:
        if cause := present_time(words(text)):
            raise NoResult("error", CHANGES + cause)


def present_time(tokens: list[str]) -> str:
    """How a text in SQL asks for the present time, an empty text where it does not."""
    for position, token in enumerate(tokens):
        name = token.strip('"`[]')
        if name not in DATE_FUNCTIONS or tokens[position + 1 : position + 2] != ["("]:
            continue
        inside = arguments(tokens, position + 1)
        if "'now'" in inside or '"now"' in inside:
            return "'now'"
        if not inside or name == "strftime" and len(inside) == 1:  # a format alone
            return f"{name} without a time"
    return ""


def arguments(tokens: list[str], start: int) -> list[str]:
    """The tokens between the parenthesis that opens at `start` and the one that closes it."""
    depth = 0
    for end in range(start, len(tokens)):
        depth += (tokens[end] == "(") - (tokens[end] == ")")
        if depth == 0:
            return tokens[start + 1 : end]
    return tokens[start + 1 :]


# --- one query ----------------------------------------------------------------------------------------------


class Result(NamedTuple):
    width: int  # how many columns
    rows: Any  # what `take` made of the cursor


def run(database: str, query: str, timeout: float, take: Callable[[sqlite3.Cursor], Any]) -> Result:
    """Run one query and `take` its rows. Raises NoResult or InfrastructureError."""
    if len(query) > MAX_QUERY:  # before any work on it; SQLite counts the bytes of what is shorter
        raise NoResult("error", f"a query of more than {MAX_QUERY} bytes")
    first = next((word for word in words(query) if word not in (";", "\ufeff")), "")  # SQLite skips these
    if first == "explain":  # it executes, and may give no row at all
        raise NoResult("wrong", NO_QUERY)
    reader = Reader(database, time.process_time() + timeout)
    try:
        cursor = reader.connection.execute(query)
        if cursor.description is None:  # an empty text or a comment "succeeds"; nobody asked for nothing
            raise NoResult("wrong", NO_QUERY)
        result = Result(len(cursor.description), take(cursor))
    except MemoryError:
        raise NoResult("error", "out of memory") from None
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if reader.denials or code & 255 in (sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY):
            said = ["not allowed:", *words(query)[:1], *reader.denials[:1]]
            raise NoResult("denied", " ".join(said)) from None
        if code == sqlite3.SQLITE_INTERRUPT:
            raise NoResult("timeout", f"longer than {timeout:g} s") from None
        if code & 255 in INFRASTRUCTURE_CODES and code != sqlite3.SQLITE_IOERR_WRITE:
            kind = Unreadable if has_schema(database) else InfrastructureError
            raise kind(f"{database}: {error}") from None
        raise NoResult("error", str(error)) from None
    finally:
        reader.connection.close()
    refuse_changing(database, query, reader.functions)
    return result


class Reader:
    """A connection that can read one file alone, until this process has used `deadline` seconds."""

    def __init__(self, path: str, deadline: float):
        self.denials: list[str] = []  # what it refused to do
        # (name, view) of what queries called; the view is the one in which the call stands, "" for none.
        self.functions: set[tuple[str, str]] = set()
        check_files(path)
        uri = read_only_uri(path)
        self.connection = sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=0)
        self.connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
        self.connection.execute("PRAGMA temp_store = memory")
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, MAX_QUERY)
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, MAX_DEPTH)
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self.connection.set_authorizer(self.authorize)
        self.connection.set_progress_handler(lambda: time.process_time() > deadline, 10_000)

    def authorize(
        self, action: int, first: str | None, second: str | None, _: str | None, view: str | None
    ) -> int:
        """SQLite asks this for each thing that a query would do, itself or in a view that it reads."""
        reads = action in READING
        if action == sqlite3.SQLITE_FUNCTION:
            self.functions.add((second.lower(), view or ""))
            reads = second.lower() not in DENIED_FUNCTIONS
        # SQLite asks for the first when it declares json_each; a real UPDATE of sqlite_master is an error of
        # its own. A search in a full-text table (FTS5) asks for the second, which is the number of changes to
        # the file.
        declares = (action, first) == (sqlite3.SQLITE_UPDATE, "sqlite_master")
        if reads or declares or (action, first, second) == (sqlite3.SQLITE_PRAGMA, "data_version", None):
            return sqlite3.SQLITE_OK
        self.denials.append(second or first or "")
        return sqlite3.SQLITE_DENY


def check_files(path: str) -> None:
    """Raises InfrastructureError where the database is not there, or was left half written."""
    if not os.path.isfile(path) or os.path.getsize(path) == 0:
        raise InfrastructureError(f"no database at {path}")
    for suffix in SUFFIXES:  # read as immutable, the file would show old or half-written data
        try:
            unfinished = holds_data(path + suffix)
        except OSError as error:
            raise InfrastructureError(f"{path}{suffix}: {error.strerror}") from None
        if unfinished:
            cause = "the database was not closed; open it once with sqlite3"
            raise InfrastructureError(f"{path}{suffix} exists: {cause}")


def read_only_uri(path: str) -> str:
    quoted = os.path.abspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return f"file:{quoted}?mode=ro&immutable=1"


def has_schema(database: str) -> bool:
    """Whether the database can be read at all."""
    try:
        with closing(Reader(database, time.process_time() + QUICK).connection) as connection:
            return connection.execute("SELECT count(*) FROM sqlite_master").fetchone() is not None
    except (sqlite3.Error, InfrastructureError):
        return False
