"""The questions of a data set (data_sets.py): an official one, the bundled `shop`, or a user's own.

A loader reads the official release's folder as it comes; questions it must leave out are counted, with the
reason, in the list of notes it returns. No torch here.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cli import UserError
from data_sets import DataSet, Layout, data_set, elsewhere, find, root
from database import fault


@dataclass(frozen=True)
class Question:
    """x_i and y_i of the paper: one prompt's content and its ground-truth code."""

    index: int  # position in the official file
    db_id: str
    database: str  # path of the SQLite file
    text: str
    gold: str
    evidence: str = ""  # BIRD's external knowledge
    question_id: int | str | None = None  # BIRD's own number
    difficulty: str = ""  # BIRD's; for DS-1000 the library
    context: str = ""  # DS-1000's code_context, the test program; empty for a SQL question
    comparison: str = "spider"  # how results are compared (verify.COMPARISONS), for a SQL question
    # Of a Python task whose tests are asserts (tasks.py), as in verify.AssertJob:
    tests: tuple[str, ...] = ()
    setup: str = ""
    entry_point: str = ""
    classes: tuple[str, ...] = ()

    @property
    def language(self) -> str:
        return "python" if self.context or self.tests else "sql"

    @property
    def form(self) -> str:
        """What an answer is: sql, python (goes into DS-1000's program), or program (is one itself)."""
        return "program" if self.tests else self.language


@dataclass(frozen=True)
class Answer:
    """One ŷ ~ π_t(x): the token ids as they were sampled, never re-tokenised."""

    question: int  # Question.index
    sample: int  # 0 .. M−1
    ids: tuple[int, ...]
    text: str
    logp: float  # log π_t(ŷ|x), summed over its tokens, at temperature 1
    finished: bool  # False: it hit the length limit and has no end token


def load(name: str, folder: str | Path, split: str) -> tuple[list[Question], list[str]]:
    """All usable questions of a split in file order, and one line for each reason that left some out.

    Raises UserError where the folder or file is missing or unreadable, or a row is no question.
    """
    this = data_set(name, folder)
    path, layout = questions_file(name, folder, split)
    databases = databases_of(name, folder, layout)
    placed, questions, make = _rows(path), [], _maker(name, this, databases)
    for i, (line, row) in enumerate(placed):
        try:
            if not isinstance(row, dict):
                raise TypeError(f"it is not an object of JSON but {_kind(row)}")
            made = make(i, row)
            if this.splits_by_row and row["split"] not in this.splits:
                raise ValueError(f"split is {row['split']!r}, neither train nor dev")
            # a lone surrogate could not be written anywhere
            "".join((made.db_id, made.text, made.evidence, made.gold, made.context, *made.tests)).encode()
            "".join((made.setup, made.entry_point)).encode()
            f"{made.difficulty}{made.question_id}".encode()
        except KeyError as error:
            raise UserError(f"{path}, {line}: {error} is missing.")
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, {line}: {error}.")
        if this.is_own and not made.text.strip():
            raise UserError(f"{path}, {line}: the question is empty.")
        if this.is_own and made.database and not os.path.isfile(made.database):
            raise UserError(f"{path}, {line}: db_id is {made.db_id!r}, but there is no {made.database}.")
        questions.append(made)
    if not questions:
        raise UserError(f"{path} has no questions.")
    if this.language == "python":
        if not (kept := _of_split(name, this, split, [row for _, row in placed], questions)):
            raise UserError(f"{path} has no row whose split is {split}.")
        return kept, []
    files = {q.db_id: q.database for q in questions}
    # empty equals empty: in training an execution label on a database without rows says nothing
    faults = {db_id: fault(database, needs_rows=split == "train") for db_id, database in files.items()}
    kept = [q for q in questions if not faults[q.db_id]]
    notes = []
    for cause in dict.fromkeys(filter(None, faults.values())):
        concerned = [q.db_id for q in questions if faults[q.db_id] == cause]
        notes.append(f"{len(concerned)} questions: {cause} ({_some(sorted(set(concerned)))})")
    if not kept:
        where = " or ".join(map(str, databases))
        raise UserError(f"{path} has no question with a usable database under {where}: {'; '.join(notes)}.")
    return kept, notes


def count(name: str, folder: str | Path, split: str) -> int:
    """How many questions the file has, usable or not, and of all splits that it holds."""
    return len(rows(name, folder, split))


def rows(name: str, folder: str | Path, split: str) -> list[dict]:
    """The file of a split as it is. Raises UserError where it is missing or unreadable."""
    return [row for _, row in _rows(questions_file(name, folder, split)[0])]


def questions_file(name: str, folder: str | Path, split: str) -> tuple[Path, Layout]:
    """The file of a split's questions, and where the rest lies; raises UserError where it is missing."""
    this, place = data_set(name, folder), root(name, folder)
    if split == "train" and split not in this.splits and this.is_own:
        wanted = "train.json" if this.language == "sql" else "train.jsonl"
        raise UserError(f"{place} has no {wanted}: its questions can only be scored, by eval.py.")
    if split == "train" and split not in this.splits:
        raise UserError(f"{name} has no questions for training: it is scored only, by eval.py.")
    if split not in this.splits:
        raise UserError(f"{name} has no split {split}: it has {', '.join(this.splits)}.")
    layout = this.splits[split]
    if files := [path for path in find(place, layout.questions) if path.is_file()]:
        return files[0], layout
    missing = f"{place / layout.questions[0]} is missing"
    if hint := elsewhere(place, layout.questions, name):
        raise UserError(f"{missing}, but {hint[1]} is there: pass --data-dir {hint[0]}.")
    raise UserError(
        f"{missing}: get {name} from {this.source}, unpack it and pass its folder as --data-dir"
        f" (data/README.md shows the layout; a folder of your own questions is --data FOLDER)."
    )


def databases_of(name: str, folder: str | Path, layout: Layout) -> list[Path]:
    """The folders of a split's databases that are there; where none is, the one that is missing."""
    place = root(name, folder)
    return find(place, layout.databases) or [place / folder for folder in layout.databases[:1]]


def _rows(path: Path, lines: bool = True) -> list[tuple[str, Any]]:
    """(its place in words, row) of each row of a JSON list or, if allowed by `lines`, of JSON lines.

    A byte-order mark is skipped. Raises UserError where the file cannot be read, is empty or something else.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not readable: {type(error).__name__}: {error}.")
    if not text.strip():
        raise UserError(f"{path} is empty.")
    try:
        if not lines or text.lstrip().startswith("["):
            if not isinstance(found := json.loads(text), list):
                raise UserError(f"{path} is not a list but {_kind(found)}.")
            return [(f"row {i}, counted from 0", row) for i, row in enumerate(found)]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}.")
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may hold U+2028 and its like
        try:
            if line.strip():
                rows.append((f"line {number}", json.loads(line)))
        except (ValueError, RecursionError) as error:
            if number == 1 and _is_json(text):
                raise UserError(
                    f"{path} is one object of JSON: its rows must be a list, or one object a line."
                )
            raise UserError(f"{path}, line {number}, is not JSON: {error}.")
    return rows


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _maker(name: str, this: DataSet, databases: list[Path]) -> Callable[[int, dict], Question]:
    """What makes a Question of an index and a row; raises KeyError, TypeError or ValueError for a bad row."""
    import tasks

    known = {"ds1000": _problem, "mbpp": tasks.mbpp, "humaneval": tasks.humaneval}
    if this.language == "python":
        return known.get(name) or partial(tasks.question, source=name)
    return partial(_question, databases=databases, this=this)


def _of_split(
    name: str, this: DataSet, split: str, rows: list[dict], questions: list[Question]
) -> list[Question]:
    """Of the questions in a file those of this split; one file may hold training and held-out questions."""
    import tasks

    if name == "ds1000":
        return [questions[i] for i in ds1000_half([q.difficulty for q in questions], split)]
    if this.splits_by_row:
        return [q for q, row in zip(questions, rows) if row["split"] == split]
    return tasks.of_split(name, questions, split)


def ds1000_half(libraries: list[str], split: str) -> list[int]:
    """Indices of one half of DS-1000, half of each library, by a fixed seed (the paper's is not known)."""
    train, extra = [], 0
    for library in sorted(set(libraries)):
        members = [i for i, name in enumerate(libraries) if name == library]
        random.Random(f"ds1000 {library}").shuffle(members)
        extra += len(members) % 2  # odd libraries round up and down in turn
        train += members[: len(members) // 2 + (len(members) % 2 and extra % 2)]
    return sorted(train) if split == "train" else sorted(set(range(len(libraries))) - set(train))


def tables(name: str, folder: str | Path, split: str) -> tuple[dict[str, dict], list[str]]:
    """db_id → its entry in tables.json, for EM's foreign keys alone; and a note where entries are left out.

    There is none where there is no such file. An entry that EM cannot read is left out: its database is
    scored as one without an entry. Raises UserError where the file is no JSON list.
    """
    import exact_match

    layout = data_set(name, folder).splits.get(split, Layout(()))
    path = next(iter(find(root(name, folder), layout.tables)), None)
    found, bad = {}, []
    for i, (_, row) in enumerate(_rows(path, lines=False) if path else []):
        try:
            exact_match.Schema(row)  # what EM will read
            found[row["db_id"]] = row
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            name = row.get("db_id") if isinstance(row, dict) else None
            bad.append(f"entry {i}, {name!r}" if isinstance(name, str) else f"entry {i}")
    return found, [f"of {path} what EM cannot read: {_some(bad)}"] if bad else []


def subset(questions: list[Question], limit: int, seed: int) -> list[Question]:
    """`limit` questions drawn by `seed`, in file order (0: all). A larger limit adds to a smaller one's."""
    if not limit or limit >= len(questions):
        return questions
    chosen = sorted(random.Random(seed).sample(range(len(questions)), len(questions))[:limit])
    return [questions[i] for i in chosen]


def _question(index: int, row: dict, databases: list[Path], this: DataSet) -> Question:
    db_id = _text(row, "db_id")
    places = [str((folder / db_id / f"{db_id}.sqlite").absolute()) for folder in databases]
    return Question(
        index=index,
        db_id=db_id,
        database=next(filter(os.path.isfile, places), places[0]),
        text=_text(row, this.question).strip(),
        gold=_text(row, "SQL" if "SQL" in row else "query").strip(),
        evidence=_text(row, "evidence", "").strip(),
        question_id=_id(row, "question_id"),
        difficulty=_label(row.get("difficulty")),
        comparison=this.comparison,
    )


def _problem(index: int, row: dict) -> Question:
    """A DS-1000 problem. Its prompt is kept whole: it is text and code that the answer continues."""
    meta = row["metadata"]
    library = _text(meta, "library")
    return Question(
        index=index, db_id=library, database="", text=_text(row, "prompt"),
        gold=_text(row, "reference_code").strip("\n"),
        question_id=_id(meta, "problem_id"), difficulty=library, context=_text(row, "code_context"),
    )  # fmt: skip


def _text(row: dict, key: str, absent: str | None = None) -> str:
    """The text under this key, `absent` where there is none. Raises KeyError without either, TypeError."""
    value = row[key] if absent is None else row.get(key) or absent
    if not isinstance(value, str):
        raise TypeError(f"{key} is {_kind(value)}, not text")
    return value


def _id(row: dict, key: str) -> int | str | None:
    value = row.get(key)
    if not isinstance(value, int | str | None) or isinstance(value, bool):
        raise TypeError(f"{key} is {_kind(value)}, neither a whole number nor text")
    return value


def _label(value: Any) -> str:
    """A label as text: some releases write numbers, and scores are sorted by it."""
    return "" if value is None else str(value)


def _kind(value: Any) -> str:
    """What a value of JSON is, in words."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a fraction",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "null")


def _some(names: list[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
