"""Questions, schemas and prompts: Spider, BIRD, DS-1000, and the bundled `shop` (in Spider's layout).

Each loader reads the official release's folder as it comes; questions it must leave out are counted, with the reason, in
the list of notes it returns. No torch here.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import signal
import sqlite3
import sys
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

import sql_text
from judge_sql import read_only_uri


class UserError(Exception):
    """Something the user can mend: shown as one sentence, exit code 2."""


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def flags(description: str) -> argparse.ArgumentParser:
    """A parser for a command; its flags cannot be abbreviated."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def run(main, *errors):
    """Call `main`; what the user can mend becomes a line on stderr and exit code 2, Ctrl-C 130, without a traceback.

    That is a UserError, one of `errors`, or what the system refuses: a full disk, a folder that cannot be written.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except (UserError, OSError, *errors) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


@dataclass(frozen=True)
class Question:
    """x_i and y_i of the paper: one prompt's content and its ground-truth code."""

    index: int  # position in the official file
    db_id: str
    database: str  # path of the SQLite file
    text: str
    gold: str
    evidence: str = ""  # BIRD's external knowledge
    question_id: int | None = None  # BIRD's own number
    difficulty: str = ""  # BIRD's; for DS-1000 the library
    context: str = ""  # DS-1000's code_context, the test program; empty for a SQL question

    @property
    def language(self) -> str:
        return "python" if self.context else "sql"


@dataclass(frozen=True)
class Answer:
    """One ŷ ~ π_t(x): the token ids as they were sampled, never re-tokenised."""

    question: int  # Question.index
    sample: int  # 0 .. M−1
    ids: tuple[int, ...]
    text: str
    logp: float  # log π_t(ŷ|x), summed over its tokens, at temperature 1
    finished: bool  # False: it hit the length limit and has no end token


# where each official release keeps its things, relative to --data-dir
LAYOUT = {
    "spider": {"train": ("train_spider.json", "database"), "dev": ("dev.json", "database")},
    "bird": {"train": ("train/train.json", "train/train_databases"), "dev": ("dev/dev.json", "dev/dev_databases")},
}
LAYOUT["shop"] = LAYOUT["spider"]
LAYOUT["ds1000"] = {"train": ("ds1000.jsonl.gz", ""), "dev": ("ds1000.jsonl.gz", "")}
SOURCES = {
    "spider": "https://yale-lily.github.io/spider",
    "bird": "https://bird-bench.github.io",
    "ds1000": "https://github.com/xlang-ai/DS-1000",
    "shop": "this project's own repository (data/shop)",
}
MAX_NEW = {"spider": 128, "bird": 160, "ds1000": 192, "shop": 64}  # longest answer, tokens
TIMEOUT = {"spider": 10.0, "bird": 10.0, "ds1000": 60.0, "shop": 10.0}  # seconds an answer may run
COMPARISON = {"spider": "spider", "shop": "spider", "bird": "bird", "ds1000": ""}  # each data set's official result comparison
CHECKED = 1 << 30  # bytes; a larger database is not read as a whole by `load` (2 seconds a GB were measured)


def load(name: str, folder: str | Path, split: str) -> tuple[list[Question], list[str]]:
    """All usable questions of a split in file order, and one line for each reason that left some out.

    Raises UserError where the folder or file is missing or unreadable.
    """
    file, place = LAYOUT[name][split]
    path, databases = Path(folder) / file, Path(folder) / place
    rows = _rows(name, path)
    try:
        if name == "ds1000":
            half = ds1000_half([row["metadata"]["library"] for row in rows], split)
            questions = [_problem(i, rows[i]) for i in half]
        else:
            questions = [_question(i, row, databases) for i, row in enumerate(rows)]
        for q in questions:  # a lone surrogate could not be written anywhere
            (q.text + q.evidence + q.gold + q.context).encode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not in {name}'s layout: {type(error).__name__}: {error}.")
    if name == "ds1000":
        return questions, []
    files = {q.db_id: q.database for q in questions}
    faults = {db_id: _fault(files[db_id], split) for db_id in files}
    kept = [q for q in questions if not faults[q.db_id]]
    notes = []
    for fault in dict.fromkeys(filter(None, faults.values())):
        concerned = [q.db_id for q in questions if faults[q.db_id] == fault]
        notes.append(f"{len(concerned)} questions: {fault} ({_some(set(concerned))})")
    if not kept:
        reasons = "; ".join(notes) or "it is empty"
        raise UserError(f"{path} has no question with a usable database under {databases}: {reasons}.")
    return kept, notes


def _fault(database, split):
    """Why the questions of a database are left out; an empty text where they are not."""
    path = Path(database)
    if not path.is_file() or not path.stat().st_size:
        return "no database file, or an empty one"
    for suffix in ("-wal", "-journal"):  # the file alone holds old or half-written data
        beside = Path(database + suffix)
        if beside.exists() and beside.stat().st_size:
            return f"their database was not closed (there is a {suffix} file): open it once with sqlite3"
    try:
        if damage := _damage(database):
            return f"their database is damaged: {damage}"
        # empty equals empty: an execution label on a database without rows says nothing
        return "their database has no rows" if split == "train" and not has_rows(database) else ""
    except UserError as error:
        return f"their database cannot be read: {error.__cause__}"


def _damage(database):
    """What SQLite finds wrong with a database, in a few words; raises UserError where it cannot be read.

    Every page is checked, and every row's list of its columns. A file that was cut off is found whatever its size.
    """
    with _reading(database) as connection:
        tables = _created(connection, "table")
        if Path(database).stat().st_size > CHECKED:
            return ""
        for (found,) in _fetch(connection, "PRAGMA quick_check(1)"):
            if found.startswith("***"):  # else it is about values, as a NULL against NOT NULL: they can be read
                return found.splitlines()[-1]
        for name, _ in tables:
            columns = [_quoted(row[1]) for row in _fetch(connection, f"PRAGMA table_info({_quoted(name)})")]
            if columns:  # a row is whole where its last column is found; that may be its number, kept elsewhere
                counts = ", ".join(f"count({column})" for column in columns[-2:])
                _fetch(connection, f"SELECT {counts} FROM {_quoted(name)} NOT INDEXED")
    return ""


def check_output(flag: str, path: Path):
    """Raises UserError where no file of this name could be written: noticed before the work, not after it."""
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"{flag}: {path} cannot be a file's name.")


def count(name: str, folder: str | Path, split: str) -> int:
    """How many questions the official file has, usable or not."""
    return len(_rows(name, Path(folder) / LAYOUT[name][split][0]))


def _rows(name, path):
    if not path.is_file():
        raise UserError(
            f"{path} is missing: get {name} from {SOURCES[name]}, unpack it and pass its folder as --data-dir"
            f" (the README shows the layout)."
        )
    try:
        if path.suffix != ".gz":
            return json.loads(path.read_text(encoding="utf-8"))
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (ValueError, OSError, EOFError, RecursionError) as error:
        raise UserError(f"{path} is not readable: {type(error).__name__}: {error}.")


def ds1000_half(libraries: list[str], split: str) -> list[int]:
    """Indices of one half of DS-1000: half of each library, 500 and 500, by a fixed seed (the paper's own is not known)."""
    train, extra = [], 0
    for library in sorted(set(libraries)):
        members = [i for i, name in enumerate(libraries) if name == library]
        random.Random(f"ds1000 {library}").shuffle(members)
        extra += len(members) % 2  # odd libraries round up and down in turn
        train += members[: len(members) // 2 + (len(members) % 2 and extra % 2)]
    return sorted(train) if split == "train" else sorted(set(range(len(libraries))) - set(train))


def tables(name: str, folder: str | Path, split: str) -> dict[str, dict]:
    """db_id → its entry in the release's tables.json (for EM's foreign keys); empty where there is no such file.

    Raises UserError where the file is not in the release's layout.
    """
    import exact_match

    file = {"bird": f"{split}/{split}_tables.json", "ds1000": ""}.get(name, "tables.json")
    path = Path(folder) / file
    rows = _rows(name, path) if file and path.is_file() else []
    try:
        for row in rows:
            exact_match.Schema(row)  # what EM will read
        return {row["db_id"]: row for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is not in {name}'s layout: {type(error).__name__}: {error}.")


def subset(questions: list[Question], limit: int, seed: int) -> list[Question]:
    """`limit` questions drawn by `seed`, in file order (0: all). A larger limit contains the smaller one's questions."""
    if not limit or limit >= len(questions):
        return questions
    chosen = sorted(random.Random(seed).sample(range(len(questions)), len(questions))[:limit])
    return [questions[i] for i in chosen]


def _question(index, row, databases):
    db_id = row["db_id"]
    return Question(
        index=index,
        db_id=db_id,
        database=str((databases / db_id / f"{db_id}.sqlite").absolute()),
        text=row["question"].strip(),
        gold=(row["SQL"] if "SQL" in row else row["query"]).strip(),
        evidence=(row.get("evidence") or "").strip(),
        question_id=row.get("question_id"),
        difficulty=row.get("difficulty", ""),
    )


def _problem(index, row):
    """A DS-1000 problem. Its prompt is kept whole: it is text and code that the answer continues."""
    meta = row["metadata"]
    return Question(
        index=index, db_id=meta["library"], database="", text=row["prompt"], gold=row["reference_code"].strip("\n"),
        question_id=meta["problem_id"], difficulty=meta["library"], context=row["code_context"],
    )  # fmt: skip


def _some(names, most=4):
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@contextmanager
def _reading(database):
    """A connection that cannot write; raises UserError where the file cannot be read as a SQLite database."""
    try:
        with closing(sqlite3.connect(read_only_uri(database), uri=True)) as connection:
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            yield connection
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter: SQLite's message has a damaged name
        raise UserError(f"{database} is not a readable SQLite file: {error}.") from error


def _quoted(name):
    return '"' + name.replace('"', '""') + '"'


def _fetch(connection, query):
    """The query's rows; none where it cannot run here, as where a module or a function is missing."""
    try:
        return connection.execute(query).fetchall()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 255 != sqlite3.SQLITE_ERROR:  # the file is at fault, not the query
            raise
        return []


def _created(connection, kind):
    """(name, CREATE statement) of each table or view, in the order of creation.

    Left out are tables that SQLite makes by itself: its own, and those in which a virtual table keeps its rows.
    """
    shadows = {name for _, name, type_, *_ in connection.execute("PRAGMA table_list") if type_ == "shadow"}
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = ? ORDER BY rowid", (kind,)).fetchall()
    return [(name, sql) for name, sql in rows if name not in shadows and not name.lower().startswith("sqlite_")]


@cache
def has_rows(database: str) -> bool:
    """Whether any table that can be read here has a row."""
    with _reading(database) as connection:
        names = [_quoted(name) for name, _ in _created(connection, "table")]
        return any(_fetch(connection, f"SELECT 1 FROM {name} LIMIT 1") for name in names)


@cache
def schema(database: str) -> str:
    """The database's own CREATE statements, tables and then views; run on an empty database they rebuild it.

    A table's is one line without comments: few databases have any, and most of those switch off a line of the
    statement. A view's stays as it was written, because SQLite names columns by the text of their expressions.
    """
    with _reading(database) as connection:
        tables, views = _created(connection, "table"), _created(connection, "view")
    return "\n".join([f"{sql_text.one_line(sql)};" for _, sql in tables] + [f"{sql}\n;" for _, sql in views])


def prompt(question: Question) -> str:
    """The zero-shot prompt: schema first and question last, so that a database's questions share their prefix."""
    if question.language == "python":
        return question.text
    evidence = f"Hint: {question.evidence}\n" if question.evidence else ""
    return (
        "Write one SQLite query that answers the question. Reply with the query only.\n\n"
        f"{schema(question.database)}\n\n{evidence}Question: {question.text}"
    )


# A template calls strftime_now(format) for today's date. Only texts can be handed to a template, not another
# function, so this is put before it: the same function for the date whose parts are given as texts, {"%d": "26", …}.
DATE_CODES = [f"%{sign}{letter}" for letter in "aAbBhdejmyYCDFGguUVwWxHIklMpPrRSTX%" for sign in ("", "-")]
DAY_OF_TEMPLATE = (
    "{%- macro strftime_now(format) -%}{%- set text = namespace(value=format) -%}"
    "{%- for code, part in date_parts.items() -%}{%- set text.value = text.value.replace(code, part) -%}"
    "{%- endfor -%}{{ text.value }}{%- endmacro %}\n"
)


def prompt_ids(question: Question, tokenizer, day: str | None = None) -> list[int]:
    """The prompt's tokens: through the tokenizer's chat template where it has one, else followed by "SQL:".

    What looks like a special token in the question or its schema is tokenised as plain text. `day` ("26 Jul 2024")
    is the date that a template prints in place of today's, so that a run has the same prompts on every day.
    Raises UserError where the tokenizer reads a special token even from plain text.
    """
    text = prompt(question)
    if not tokenizer.chat_template:
        text += "\n" if question.language == "python" else "\nSQL:\n"
        plain = _plain_ids(text, tokenizer)
        whole = tokenizer(text, split_special_tokens=True)["input_ids"]
        # some tokenizers add an end token after the text: the answer comes before it
        start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), len(whole))
        return whole[: start + len(plain)]
    if question.language == "python":
        text = f"Complete the program. Reply with the missing code only, between <code> and </code>.\n\n{text}"
    template = tokenizer.get_chat_template()
    settings: dict = {"enable_thinking": False}  # the answer is code from its first token on; most templates ignore it
    if day is not None:
        template = DAY_OF_TEMPLATE + template
        date = datetime.strptime(day, "%d %b %Y")
        settings |= {"date_string": day, "date_parts": {code: date.strftime(code) for code in DATE_CODES}}
    try:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], chat_template=template, add_generation_prompt=True,
            return_dict=False, sanitize_control_tokens=True, **settings,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"the prompt of question {question.index} cannot be made: {error}.")
    if tokenizer.decode(ids[-16:]).rstrip().endswith("<think>"):  # a template that always opens it: close it
        ids += _plain_ids("\n</think>\n\n", tokenizer)
    return ids


def code_ids(code: str, tokenizer) -> tuple[int, ...]:
    """Code as an answer: its tokens and the end token."""
    return (*_plain_ids(code, tokenizer), tokenizer.eos_token_id)


def _plain_ids(text, tokenizer):
    """Tokens of a text as it stands: none is added, and what looks like a special token is not one."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


# Where a query begins: at a fence, or at SELECT or WITH at the start of a line. A block comment may stand before
# them, and comments of both forms between WITH and the name that it defines. What makes a beginning holds nothing
# that could end a query (a semicolon, a fence, a blank line), or a text that has ended could get another beginning
# when more of it comes. `++` and `*+` give nothing back: without them a text that only looks like a beginning could
# take minutes.
BLANK = r"\n[^\S\n]*\n"
NOTE = rf"/\*(?:(?!\*/|```|{BLANK})[^;])*+\*/"
GAP = rf"(?:(?:[^\S\n]|{NOTE})++(?:--(?:(?!```)[^;\n])*+)?+\n?+|\n)(?:[^\S\n]|{NOTE})*+"
NAME = r"(?:\"[^\"`;\n]*\"|\[[^\]`;\n]*\]|`[^`;\n]+`|(?:(?!```|--|/\*)[^\s;(])++)"
BEGIN = re.compile(
    r"```(?!select\b|with\b)[a-z]*\n?|```"
    rf"|^(?:[ \t(]|{NOTE}\n?)*+(?=select\b|with{GAP}(?:recursive{GAP})?{NAME}(?:{GAP})?(?:\(|as\b))",
    re.IGNORECASE | re.MULTILINE,
)
# Where it ends: at a fence, a semicolon or a blank line outside quotes and comments. Two fences count even inside
# them, because there they are Markdown's: one that starts a line, and one that ends the line of a `--` comment.
LINE_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
END = re.compile(
    rf"(?P<end>```|;|(?P<blank>{BLANK}))|{sql_text.QUOTED}|--(?:(?!```[ \t\r]*\n)[^\n])*|{sql_text.BLOCK_COMMENT}"
)


# DS-1000's official postprocessing: what stands between these, the first only where the answer begins with it
TAGS = (("```python", "```"), ("<code>", "</code>"), ("", "</code>"), ("", "\nEND SOLUTION"))
END_CHARACTERS = {";", "`", "\n"} | {end[-1] for _, end in TAGS}  # code can have ended only after one of these


# what a model thinks before it answers; where it has not come to an end, there is no answer yet
THOUGHT = re.compile(r"(?:\s*<think>(?s:.*?)(?:</think>(?:[^\S\n]*\n)*|\Z))+")


def extract_code(text: str, language: str = "sql") -> str:
    """The code inside a model's answer. Thinking at its beginning is skipped; while that is not closed, no code is there.

    Python: DS-1000's official rule. SQL: from its first fence, SELECT or WITH to the next `;`, fence or blank line.

    A blank line ends a bare query alone, not one inside a fence. Inside quotes and comments only a fence that starts
    a line ends it, or one that ends a `--` comment's line. Without a beginning: all of it.
    """
    return _cut(text, language)[0]


def code_ended(text: str, language: str = "sql") -> bool:
    """True once nothing that follows could change `extract_code`: sampling stops here."""
    return _cut(text, language)[1]


def _cut(text, language):
    thought = THOUGHT.match(text)
    return (_cut_python if language == "python" else _cut_sql)(text[thought.end() :] if thought else text)


def _cut_python(text):
    ended = False
    for start, end in TAGS:
        begin = len(start) if text.startswith(start) else 0
        stop = text.find(end, len(start))
        ended = ended or stop >= 0
        text = text[begin : stop if stop >= 0 else len(text)]
    return text, ended


def _cut_sql(text):
    begin = BEGIN.search(text)
    if not begin:
        return text.strip(), False
    fenced = begin.group().startswith("```")
    start = begin.end() if fenced else begin.start()
    fence = LINE_FENCE.search(text, start)
    stop = fence.start() if fence else len(text)
    for match in END.finditer(text, start, stop):
        if match.group("end") and not (fenced and match.group("blank")):
            return text[start : match.start()].strip(), True
    return text[start:stop].strip(), bool(fence)
