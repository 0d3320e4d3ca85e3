"""SQL queries -> verdicts: run one query against a database that it cannot change, compare two results.

Comparison modes (of the results; the official evaluators are reimplemented, not copied):
  spider  Spider's test-suite evaluator (Zhong et al. 2020): a multiset of rows, in order if the gold text has ORDER BY
          anywhere, columns in any order. DISTINCT is taken out of both queries first, as it does by default;
          `spider_keep_distinct` is its --keep_distinct.
  bird    BIRD's evaluation.py: set(answer) == set(gold).
  strict  a multiset of rows, in order if the gold's outermost SELECT has ORDER BY, columns in place.

Two results of no rows are equal however many columns they have, as officially; in `strict` they need as many.
Where this differs from the official code on purpose: 1 and 1.0 are equal beside any other column; text that is not UTF-8
is compared byte by byte; only one statement that reads may run; columns are matched by refinement, not by trying all
permutations.
"""

import marshal
import os
import re
import signal
import sqlite3
import sys
import time
from collections import Counter, deque
from contextlib import closing
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import sandbox
from sandbox import InfrastructureError
from sql_text import TOKEN

if sys.version_info < (3, 11):
    raise ImportError("verify.py needs Python 3.11: before it, sqlite3 has neither limits nor error codes")

HEAP = 256 << 20  # bytes that SQLite may hold (plans, sorts, temporary tables); the process grows to 1.4 times that
MEMORY = 1 << 30  # bytes of address space of a worker: SQLite's heap and the two results as Python objects
MAX_VALUE = 16 << 20  # bytes of one value; a model's answer can ask for printf('%.*c', 1e9, 'x')
MAX_QUERY = 100_000  # bytes of one query
QUICK = 10.0  # seconds to read the schema
MAX_DEPTH = 500  # of an expression: SQLite's own 1000 is a matter of how it was built
MAX_ROWS = 1_000_000  # of a gold result; an answer may have one row more than its gold
NO_ROWS = "no rows"  # the message of a gold query whose result is empty
NO_QUERY = "not a query"  # the message of an empty text, a comment, an EXPLAIN: wrong, though nothing failed


# --- the text of queries ----------------------------------------------------------------------------------------------


def words(query: str) -> list[str]:
    """The tokens in lower case, without white space and comments."""
    tokens = (token.lower() for token in TOKEN.findall(query))
    return [token for token in tokens if not token.isspace() and token[:2] not in ("--", "/*")]


def spider_query(query: str, keep_distinct: bool) -> str:
    """The official preparation: `> =` becomes `>=`, MySQL's current year becomes 2020, DISTINCT goes.

    A text that is too long to run stays as it is.
    """
    if len(query) > MAX_QUERY:
        return query
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
CHANGING_FUNCTIONS = {"random", "randomblob", "current_date", "current_time", "current_timestamp"}
DATE_FUNCTIONS = {"date", "time", "datetime", "julianday", "strftime", "unixepoch", "timediff"}  # these may ask for 'now'
DENIED_FUNCTIONS = {"load_extension", "fts3_tokenizer", "randomblob", "zeroblob"}
# Extended result codes have the basic one in their low byte. IOERR_WRITE alone is the query's doing: it met the limit.
INFRASTRUCTURE_CODES = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN,
                        sqlite3.SQLITE_FULL, sqlite3.SQLITE_PERM, sqlite3.SQLITE_PROTOCOL}


class Unreadable(InfrastructureError):
    """This query met what cannot be read, say a damaged page; the database can be read otherwise."""


class Rejected(Exception):
    """The query gave no result; carries the verdict and the message."""


def read_only_uri(path: str) -> str:
    quoted = os.path.abspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return f"file:{quoted}?mode=ro&immutable=1"


def holds_data(path: str) -> bool:
    """Whether this -wal or -journal must be read: SQLite takes one that is empty or begins with a zero for none."""
    try:
        with open(path, "rb") as file:
            return file.read(1) not in (b"", b"\0")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InfrastructureError(f"{path}: {error.strerror}") from None


def open_database(path: str, deadline: float, denials: list, functions: set) -> sqlite3.Connection:
    """A connection that can read this one file and nothing else, until this process has used `deadline` seconds.

    What it refuses to do is appended to `denials`, the functions that a query calls are added to `functions`, also those
    of the views that it reads.
    """
    if not os.path.isfile(path) or os.path.getsize(path) == 0:
        raise InfrastructureError(f"no database at {path}")
    for suffix in ("-wal", "-journal"):  # read as immutable, the file would show old or half-written data
        if holds_data(path + suffix):
            raise InfrastructureError(f"{path}{suffix} exists: the database was not closed; open it once with sqlite3")
    connection = sqlite3.connect(read_only_uri(path), uri=True, isolation_level=None, cached_statements=0)
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    connection.execute("PRAGMA temp_store = memory")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
    connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, MAX_QUERY)
    connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, MAX_DEPTH)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)

    def authorize(action, first, second, _database, _trigger):
        if action == sqlite3.SQLITE_FUNCTION:
            functions.add(second.lower())
        reads = action in READING and not (action == sqlite3.SQLITE_FUNCTION and second.lower() in DENIED_FUNCTIONS)
        # SQLite asks for this one when it declares json_each; a real UPDATE of sqlite_master is an error of its own
        if reads or (action, first) == (sqlite3.SQLITE_UPDATE, "sqlite_master"):
            return sqlite3.SQLITE_OK
        denials.append(second or first or "")
        return sqlite3.SQLITE_DENY

    connection.set_authorizer(authorize)
    connection.set_progress_handler(lambda: time.process_time() > deadline, 10_000)
    return connection


def has_schema(database: str) -> bool:
    """Whether the database can be read at all."""
    try:
        with closing(open_database(database, time.process_time() + QUICK, [], set())) as connection:
            return connection.execute("SELECT count(*) FROM sqlite_master").fetchone() is not None
    except (sqlite3.Error, InfrastructureError):
        return False


def rows_of(database: str, query: str, timeout: float, take, functions: set[str] | None = None) -> tuple[int, Any]:
    """The number of columns and `take(cursor)`; adds to `functions`. Raises Rejected or InfrastructureError."""
    if len(query) > MAX_QUERY:  # before any work on it; SQLite counts the bytes of what is shorter
        raise Rejected("error", f"a query of more than {MAX_QUERY} bytes")
    first = next((word for word in words(query) if word not in (";", "\ufeff")), "")  # SQLite skips these
    if first == "explain":  # it executes, and may give no row at all
        raise Rejected("wrong", NO_QUERY)
    denials = []
    functions = set() if functions is None else functions
    connection = open_database(database, time.process_time() + timeout, denials, functions)
    try:
        cursor = connection.execute(query)
        if cursor.description is None:  # an empty text or a comment "succeeds"; nobody asked for nothing
            raise Rejected("wrong", NO_QUERY)
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
            kind = Unreadable if has_schema(database) else InfrastructureError
            raise kind(f"{database}: {error}") from None
        raise Rejected("error", str(error)) from None
    finally:
        connection.close()


def run_gold(database: str, query: str, timeout: float) -> tuple[str, str, bytes]:
    """The gold result, small enough to be kept and sent: (verdict, message, marshalled result)."""
    functions: set[str] = set()
    width, rows = rows_of(database, query, timeout, partial(take_bag, limit=MAX_ROWS), functions)
    if len(rows) > MAX_ROWS:
        raise Rejected("error", f"more than {MAX_ROWS} rows")
    if found := changing(database, query, functions):
        raise Rejected("error", f"its result changes from run to run: {found}")
    return "correct", "" if rows else NO_ROWS, marshal.dumps((width, rows))


def changing(database: str, query: str, functions: set[str]) -> str:
    """What in a query gives another result at another time, an empty text where nothing does.

    `functions`: those that it calls. A date function asks for the present time where it is given 'now' or no time at all.
    """
    if found := sorted(functions & CHANGING_FUNCTIONS):
        return found[0]
    if not functions & DATE_FUNCTIONS:
        return ""
    _, views = rows_of(database, "SELECT sql FROM sqlite_master WHERE type = 'view'", QUICK, list)
    for text in (query, *(sql for sql, in views)):
        tokens = words(text)
        if "'now'" in tokens or '"now"' in tokens:
            return "'now'"
        for at, token in enumerate(tokens):
            name, after = token.strip('"`[]'), tokens[at + 1:at + 4]
            if name in DATE_FUNCTIONS and (after[:2] == ["(", ")"] or name == "strftime" and after[::2] == ["(", ")"]):
                return f"{name} without a time"
    return ""


def run_alone(database: str, query: str, timeout: float) -> tuple[str, str, bytes]:
    """Run a query until it ends or has given MAX_ROWS rows, and keep none of them: it executes."""
    rows_of(database, query, timeout, lambda cursor: deque(islice(cursor, MAX_ROWS), maxlen=0))
    return "correct", "", b""


def run_answer(database: str, query: str, timeout: float, comparison: str, ordered: bool,
               gold: bytes) -> tuple[str, str, bytes]:
    """Run an answer until it ends or has more rows than the gold, and compare."""
    gold_width, gold_rows = unpack(gold)
    if comparison == "bird":
        gold_rows = set(gold_rows)
    take = partial(take_set if comparison == "bird" else take_bag, limit=len(gold_rows))
    width, rows = rows_of(database, query, timeout, take)
    message = difference(gold_rows, rows, gold_width, width, comparison, ordered)
    return "wrong" if message else "correct", message, b""


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
    if comparison != "strict" and not gold and not answer:
        return ""
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
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it ends this process, whatever the parent does with it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    sqlite3.connect(":memory:").execute(f"PRAGMA hard_heap_limit = {HEAP}")
    sandbox.serve(handle_sql)


def handle_sql(kill: float, kind: str, *arguments) -> tuple[str, str, float, bytes]:
    """(verdict, message, seconds, marshalled result of a gold query); times are those that this process itself uses.

    The deadline is in the arguments. After `kill` seconds the kernel ends this process, which may be inside a call that
    nothing else can interrupt.
    """
    started, gold = time.process_time(), b""
    signal.setitimer(signal.ITIMER_PROF, min(kill, 1e9))  # the kernel knows no time beyond some centuries
    try:
        verdict, message, gold = {"gold": run_gold, "answer": run_answer, "alone": run_alone}[kind](*arguments)
    except Rejected as rejected:
        verdict, message = rejected.args
    except MemoryError:
        verdict, message = "error", "out of memory"
    except InfrastructureError as error:
        verdict, message = "unreadable" if isinstance(error, Unreadable) else "infrastructure", str(error)
    signal.setitimer(signal.ITIMER_PROF, 0)
    message = " ".join(message.encode("utf-8", "replace").decode().split())[:200]
    return verdict, message, time.process_time() - started, gold
