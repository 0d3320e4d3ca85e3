"""One SQLite database of a data set: its schema for the prompt, whether it has rows, what is wrong
with it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

from cli import UserError
from verifier import sql_text
from verifier.beside import SUFFIXES, holds_data

CHECKED = 1 << 30  # bytes; a larger database is not read as a whole by `fault` (2 seconds a GB were measured)


@cache
def schema(database: str) -> str:
    """The database's own CREATE statements, tables and then views; run on an empty database they rebuild it.

    A table's is one line without comments: few databases have any, and most of those switch off a line of the
    statement. A view's stays as it was written, because SQLite names columns by the text of their
    expressions.
    """
    with _reading(database) as connection:
        tables, views = _created(connection, "table"), _created(connection, "view")
    lines = [f"{sql_text.one_line(sql)};" for _, sql in tables]
    return "\n".join(lines + [f"{_closed(sql)}\n;" for _, sql in views])


@cache
def has_rows(database: str) -> bool:
    """Whether any table that can be read here has a row."""
    with _reading(database) as connection:
        names = [_quoted(name) for name, _ in _created(connection, "table")]
        return any(_fetch(connection, f"SELECT 1 FROM {name} LIMIT 1") for name in names)


def fault(database: str, needs_rows: bool) -> str:
    """Why the questions of a database are left out; an empty text where they are not."""
    path = Path(database)
    try:
        if not path.is_file() or not path.stat().st_size:
            return "no database file, or an empty one"
        for suffix in SUFFIXES:  # where it holds data, the database alone is old or half-written
            if holds_data(database + suffix):
                return f"their database was not closed (there is a {suffix} file): open it once with sqlite3"
        if damage := _damage(database):
            return f"their database is damaged: {damage}"
        # without rows every query gives the same result: an execution label says nothing
        return "their database has no rows" if needs_rows and not has_rows(database) else ""
    except UserError as error:
        return f"their database cannot be read: {error.__cause__}"
    except OSError as error:  # a name that is too long, a folder that may not be entered
        return f"their database cannot be read: {error.strerror}"


def _damage(database: str) -> str:
    """What SQLite finds wrong with a database, in a few words; raises UserError where it cannot be read.

    Every page is checked, and every row's list of its columns. A file that was cut off is found whatever its
    size.
    """
    with _reading(database) as connection:
        tables = _created(connection, "table")
        if Path(database).stat().st_size > CHECKED:
            return ""
        for (found,) in _fetch(connection, "PRAGMA quick_check(1)"):
            # else it is about values, as a NULL against NOT NULL: they can be read
            if found.startswith("***"):
                return found.splitlines()[-1]
        for name, _ in tables:
            columns = [_quoted(row[1]) for row in _fetch(connection, f"PRAGMA table_info({_quoted(name)})")]
            # a row whose last column is found is whole; that may be its rowid, kept elsewhere: read two
            if columns:
                counts = ", ".join(f"count({column})" for column in columns[-2:])
                _fetch(connection, f"SELECT {counts} FROM {_quoted(name)} NOT INDEXED")
    return ""


@contextmanager
def _reading(database: str) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write; raises UserError where the file cannot be read as a SQLite database."""
    try:
        address = f"{Path(database).absolute().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as connection:
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            yield connection
    # the latter: SQLite's message has a damaged name
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise UserError(f"{database} is not a readable SQLite file: {error}.") from error


def _closed(sql: str) -> str:
    """The statement; where it ends in a comment that is still open, with the end of that comment.

    Else it would swallow the views after it. (SQLite takes the comment into the name of a last column
    `1 + 1 /* sum`, which therefore gets the `*/` as well.)
    """
    last = sql_text.TOKEN.findall(sql)[-1]
    is_open = last.startswith("/*") and (len(last) < 4 or not last.endswith("*/"))
    return f"{sql}*/" if is_open else sql


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _fetch(connection: sqlite3.Connection, query: str) -> list[tuple]:
    """The query's rows; none where it cannot run here, as where a module or a function is missing."""
    try:
        return connection.execute(query).fetchall()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 255 != sqlite3.SQLITE_ERROR:  # the file is at fault, not the query
            raise
        return []


def _created(connection: sqlite3.Connection, kind: str) -> list[tuple[str, str]]:
    """(name, CREATE statement) of each table or view, in the order of creation.

    Left out are tables that SQLite makes by itself: its own, and those in which a virtual table keeps its
    rows.
    """
    shadows = {name for _, name, type_, *_ in connection.execute("PRAGMA table_list") if type_ == "shadow"}
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = ? ORDER BY rowid", (kind,)
    ).fetchall()
    return [
        (name, sql) for name, sql in rows if name not in shadows and not name.lower().startswith("sqlite_")
    ]
