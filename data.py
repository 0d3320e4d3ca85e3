"""Data sets and their questions: Spider, BIRD, DS-1000, MBPP, HumanEval, and the bundled `shop` (in Spider's
layout).

A data set is one row of DATA_SETS. Each loader reads the official release's folder as it comes; questions it
must leave out are counted, with the reason, in the list of notes it returns. No torch here.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli import UserError
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


@dataclass(frozen=True)
class DataSet:
    """All that the rest of the project knows of a data set: one row of DATA_SETS."""

    source: str  # where to get it
    train: tuple[str, str]  # in --data-dir: the file of questions, and the folder of databases
    dev: tuple[str, str]
    tables: str = ""  # the file of foreign keys, for EM; {split} stands for train or dev
    language: str = "sql"  # of the answers: sql or python
    comparison: str = (
        ""  # the official comparison of results (verify.COMPARISONS); none for Python, which has tests
    )
    max_new: int = 128  # longest answer, tokens
    timeout: float = 10.0  # seconds that an answer may run
    settings: dict = field(default_factory=dict)  # settings.Config where Table 5's values do not fit

    @property
    def preset(self) -> dict:
        """The settings of a run on this data set that differ from Config's defaults."""
        return {"max_new": self.max_new, "timeout": self.timeout, **self.settings}


SPIDER: dict[str, Any] = {
    "train": ("train_spider.json", "database"),
    "dev": ("dev.json", "database"),
    "tables": "tables.json",
}
DATA_SETS = {
    "spider": DataSet(source="https://yale-lily.github.io/spider", **SPIDER, comparison="spider"),
    "bird": DataSet(
        source="https://bird-bench.github.io",
        train=("train/train.json", "train/train_databases"),
        dev=("dev/dev.json", "dev/dev_databases"),
        tables="{split}/{split}_tables.json",
        comparison="bird",
        max_new=160,
    ),
    "ds1000": DataSet(
        source="https://github.com/xlang-ai/DS-1000",
        train=("ds1000.jsonl.gz", ""),
        dev=("ds1000.jsonl.gz", ""),
        language="python",
        max_new=192,
        timeout=60.0,
        settings={"beta": 0.5, "lam": 0.5, "max_length": 512},
    ),
    "mbpp": DataSet(
        source="https://github.com/google-research/google-research/tree/master/mbpp",
        train=("mbpp.jsonl", ""),
        dev=("mbpp.jsonl", ""),
        language="python",
        max_new=256,
    ),
    "humaneval": DataSet(
        source="https://github.com/openai/human-eval",
        train=("", ""),
        dev=("HumanEval.jsonl.gz", ""),
        language="python",
        max_new=512,
    ),
    # for a 135M model on two CPU cores, found on its training questions (README, differences from the paper)
    "shop": DataSet(
        source="this project's own repository (data/shop)",
        **SPIDER,
        comparison="spider",
        max_new=64,
        settings={
            "limit": 128, "validation": 32, "iterations": 2, "answers": 8, "pairs": 8, "lr": 3e-4,
            "max_length": 512,
        },
    ),
}  # fmt: skip


def load(name: str, folder: str | Path, split: str) -> tuple[list[Question], list[str]]:
    """All usable questions of a split in file order, and one line for each reason that left some out.

    Raises UserError where the folder or file is missing or unreadable.
    """
    import tasks

    data_set = DATA_SETS[name]
    file, place = getattr(data_set, split)
    if not file:
        raise UserError(f"{name} has no questions for training: it is scored only, by eval.py.")
    path, databases = Path(folder) / file, Path(folder) / place
    python, questions = data_set.language == "python", []
    make = {"ds1000": _problem, "mbpp": tasks.mbpp, "humaneval": tasks.humaneval}.get(name)
    for i, row in enumerate(_rows(name, path)):
        try:
            made = make(i, row) if make else _question(i, row, databases, data_set.comparison)
            if not isinstance(made.question_id, int | str | None) or isinstance(made.question_id, bool):
                raise TypeError("the question's id is neither a number nor text")
            # a lone surrogate could not be written anywhere
            "".join((made.db_id, made.text, made.evidence, made.gold, made.context, *made.tests)).encode()
            "".join((made.setup, made.entry_point)).encode()
            f"{made.difficulty}{made.question_id}".encode()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            found = f"row {i}, counted from 0: {type(error).__name__}: {error}"
            raise UserError(f"{path} is not in {name}'s layout: {found}.")
        questions.append(made)
    if name in ("mbpp", "humaneval"):
        return tasks.of_split(name, questions, split), []
    if python:
        return [questions[i] for i in ds1000_half([q.difficulty for q in questions], split)], []
    files = {q.db_id: q.database for q in questions}
    # empty equals empty: in training an execution label on a database without rows says nothing
    faults = {db_id: fault(database, needs_rows=split == "train") for db_id, database in files.items()}
    kept = [q for q in questions if not faults[q.db_id]]
    notes = []
    for cause in dict.fromkeys(filter(None, faults.values())):
        concerned = [q.db_id for q in questions if faults[q.db_id] == cause]
        notes.append(f"{len(concerned)} questions: {cause} ({_some(sorted(set(concerned)))})")
    if not kept:
        reasons = "; ".join(notes) or "it is empty"
        raise UserError(f"{path} has no question with a usable database under {databases}: {reasons}.")
    return kept, notes


def count(name: str, folder: str | Path, split: str) -> int:
    """How many questions the official file has, usable or not."""
    return len(rows(name, folder, split))


def rows(name: str, folder: str | Path, split: str) -> list[dict]:
    """The official file as it is. Raises UserError where it is missing or unreadable."""
    return _rows(name, Path(folder) / getattr(DATA_SETS[name], split)[0])


def _rows(name: str, path: Path) -> list[dict]:
    if not path.is_file():
        raise UserError(
            f"{path} is missing: get {name} from {DATA_SETS[name].source}, unpack it and pass its folder"
            " as --data-dir"
            f" (the README shows the layout)."
        )
    try:
        if ".jsonl" in path.suffixes:
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
                return [json.loads(line) for line in file]
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, EOFError, RecursionError, zlib.error) as error:
        raise UserError(f"{path} is not readable: {type(error).__name__}: {error}.")
    if not isinstance(rows, list):
        raise UserError(f"{path} is not in {name}'s layout: it is not a list.")
    return rows


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

    file = DATA_SETS[name].tables.format(split=split)
    path = Path(folder) / file
    rows = _rows(name, path) if file and path.is_file() else []
    found, bad = {}, []
    for i, row in enumerate(rows):
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


def _question(index: int, row: dict, databases: Path, comparison: str) -> Question:
    db_id = row["db_id"]
    return Question(
        index=index,
        db_id=db_id,
        database=str((databases / db_id / f"{db_id}.sqlite").absolute()),
        text=row["question"].strip(),
        gold=(row["SQL"] if "SQL" in row else row["query"]).strip(),
        evidence=(row.get("evidence") or "").strip(),
        question_id=row.get("question_id"),
        difficulty=_text(row.get("difficulty")),
        comparison=comparison,
    )


def _text(value: Any) -> str:
    """A label as text: some releases write numbers, and scores are sorted by it."""
    return "" if value is None else str(value)


def _problem(index: int, row: dict) -> Question:
    """A DS-1000 problem. Its prompt is kept whole: it is text and code that the answer continues."""
    meta = row["metadata"]
    return Question(
        index=index, db_id=meta["library"], database="", text=row["prompt"],
        gold=row["reference_code"].strip("\n"),
        question_id=meta["problem_id"], difficulty=meta["library"], context=row["code_context"],
    )  # fmt: skip


def _some(names: list[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
