"""Which data sets there are, and where in its folder each keeps its files: one row of DATA_SETS a set.

A folder of a user's own questions is a data set as well: `own` recognises what it holds. data/README.md shows
such a folder. No torch here.
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass, field
from pathlib import Path

from cli import UserError


@dataclass(frozen=True)
class Layout:
    """Where one split lies. The names are patterns (as of glob.glob) inside the data set's folder."""

    questions: tuple[str, ...]  # the file of questions: of these the first that is there
    databases: tuple[str, ...] = ()  # folders of databases: each database is looked for in all of them
    tables: tuple[str, ...] = ()  # the file of foreign keys, for EM: of these the first that is there


@dataclass(frozen=True)
class DataSet:
    """All that the rest of the project knows of a data set: one row of DATA_SETS."""

    source: str  # where to get it
    splits: dict[str, Layout]  # runs use train and dev; eval.py scores any of them
    language: str = "sql"  # of the answers: sql or python
    comparison: str = ""  # how results are compared (verify.COMPARISONS); none for Python, which has tests
    question: str = "question"  # the key of a question's text
    max_new: int = 128  # longest answer, tokens
    timeout: float = 10.0  # seconds that an answer may run
    settings: dict = field(default_factory=dict)  # settings.Config where Table 5's values do not fit
    is_own: bool = False  # a user's folder, not one of DATA_SETS
    splits_by_row: bool = False  # one file holds train and dev; each row's `split` says which it belongs to

    @property
    def preset(self) -> dict:
        """The settings of a run on this data set that differ from Config's defaults."""
        return {"max_new": self.max_new, "timeout": self.timeout, **self.settings}


def spider(*questions: str, databases=("database",), tables=("tables.json",)) -> Layout:
    return Layout(questions, databases, tables)


# BIRD's dev.zip has unpacked into dev, later into dev_20240627. The questions revised in November 2025 come
# without databases, which are the same; so do those of mini_dev, where its own package is not there.
BIRD_DEV = ("dev", "dev_20240627", "dev_20251106")
BIRD_REVISED = ("dev_20251106/dev.json", "dev_20251106/dev_20251106*.json", "dev_20251106*.json")
BIRD_MINI = ("mini_dev", "minidev/MINIDEV", "MINIDEV", "mini_dev_data")


def bird(*questions: str, folders: tuple[str, ...] = BIRD_DEV) -> Layout:
    return Layout(
        questions,
        tuple(f"{folder}/dev_databases" for folder in folders),
        tuple(f"{folder}/dev_tables.json" for folder in folders),
    )


BESIDE_SPIDER = {
    "databases": ("database", "../spider/database"),
    "tables": ("tables.json", "../spider/tables.json"),
}
DATA_SETS = {
    "spider": DataSet(
        source="https://yale-lily.github.io/spider",
        splits={
            "train": spider("train_spider.json"),
            "dev": spider("dev.json"),
            "train_others": spider("train_others.json"),
            "test": Layout(("test.json",), ("test_database",), ("test_tables.json", "tables.json")),
        },
        comparison="spider",
    ),
    "bird": DataSet(
        source="https://bird-bench.github.io",
        splits={
            "train": Layout(("train/train.json",), ("train/train_databases",), ("train/train_tables.json",)),
            "dev": bird("dev/dev.json", "dev_20240627/dev.json", *BIRD_REVISED),
            "dev_20251106": bird(*BIRD_REVISED),
            "mini_dev": bird(
                *(f"{folder}/mini_dev_sqlite*.json" for folder in BIRD_MINI), folders=BIRD_MINI + BIRD_DEV
            ),
        },
        comparison="bird",
        max_new=160,
    ),
    "ds1000": DataSet(
        source="https://github.com/xlang-ai/DS-1000",
        splits=dict.fromkeys(("train", "dev"), Layout(("ds1000.jsonl.gz",))),
        language="python",
        max_new=192,
        timeout=60.0,
        settings={"beta": 0.5, "lam": 0.5, "max_length": 512},
    ),
    "mbpp": DataSet(
        source="https://github.com/google-research/google-research/tree/master/mbpp",
        splits=dict.fromkeys(("train", "dev"), Layout(("mbpp.jsonl",))),
        language="python",
        max_new=256,
    ),
    "humaneval": DataSet(  # to score on
        source="https://github.com/openai/human-eval",
        splits={"dev": Layout(("HumanEval.jsonl.gz",))},
        language="python",
        max_new=512,
    ),
    # Spider's dev questions in other words; to score on. Their databases are Spider's, in the folder beside.
    "spider_syn": DataSet(
        source="https://github.com/ygan/Spider-Syn",
        splits={"dev": spider("dev.json", "Spider-Syn/dev.json", **BESIDE_SPIDER)},
        comparison="spider",
        question="SpiderSynQuestion",
    ),
    "spider_dk": DataSet(
        source="https://github.com/ygan/Spider-DK",
        splits={"dev": spider("dev.json", "Spider-DK.json", **BESIDE_SPIDER)},
        comparison="spider",
    ),
    # for a 135M model on two CPU cores, found on its training questions (README, differences from the paper)
    "shop": DataSet(
        source="this project's own repository (data/shop)",
        splits={"train": spider("train_spider.json"), "dev": spider("dev.json")},
        comparison="spider",
        max_new=64,
        settings={
            "limit": 128, "validation": 32, "iterations": 2, "answers": 8, "pairs": 8, "lr": 3e-4,
            "max_length": 512,
        },
    ),
}  # fmt: skip

# ---- a user's own folder -------------------------------------------------------------------------

OWN_SQL = {"train": spider("train.json", "train_spider.json"), "dev": spider("dev.json")}
OWN_PYTHON = {name: Layout((f"{name}.jsonl",)) for name in ("train", "dev")}


def own(folder: str | Path) -> DataSet:
    """The data set in a user's folder; its splits are those whose files are there.

    SQL: Spider's files. Results are compared as `strict` does, the comparison that forgives least: none is
    official here. Python (tasks.question): train.jsonl and dev.jsonl, or one file of another name whose rows
    have a `split`. Raises UserError where the folder holds no questions, or both kinds.
    """
    sql, python = (
        {split: layout for split, layout in layouts.items() if find(folder, layout.questions)}
        for layouts in (OWN_SQL, OWN_PYTHON)
    )
    others = find(folder, ("*.jsonl",))
    if sql and others:
        first = find(folder, next(iter(sql.values())).questions)[0].name
        raise UserError(f"{folder} has questions of two kinds: {first} (SQL) and {others[0].name} (Python).")
    if sql:
        return DataSet(str(folder), sql, comparison="strict", is_own=True)
    if python:
        return DataSet(str(folder), python, "python", max_new=256, is_own=True)
    if len(others) == 1:
        both = dict.fromkeys(OWN_PYTHON, Layout((glob.escape(others[0].name),)))
        return DataSet(str(folder), both, "python", max_new=256, is_own=True, splits_by_row=True)
    if others:
        names = ", ".join(path.name for path in others)
        raise UserError(f"{folder}: which of {names} has the questions? Call them train.jsonl and dev.jsonl.")
    patterns = [
        name for layouts in (OWN_SQL, OWN_PYTHON) for layout in layouts.values() for name in layout.questions
    ]
    if hint := elsewhere(folder, tuple(patterns)):
        raise UserError(f"{folder} has no questions, but {hint[1]} is there: pass --data {hint[0]}.")
    raise UserError(
        f"{folder} has no questions: there is neither train.json nor train.jsonl (data/README.md)."
    )


FLAG = f"{', '.join(sorted(DATA_SETS))}, or a folder of your own questions (data/README.md)"  # help of --data
SPLITS = "; ".join(
    f"{name} has {', '.join(this.splits)}" for name, this in DATA_SETS.items() if len(this.splits) > 2
)  # help of --split


def place(name: str, folder: str | None = None) -> tuple[str, str]:
    """What --data and --data-dir say → the data set's name and its folder.

    The name of a user's own set is that of its folder. Raises UserError for what cannot be meant.
    """
    if name in DATA_SETS:
        return name, folder or f"data/{name}"
    if not os.path.isdir(name):
        raise UserError(
            f"--data: {name} is neither a data set ({', '.join(sorted(DATA_SETS))}) nor a folder."
        )
    if folder:
        raise UserError(f"--data {name} is a folder, so --data-dir {folder} has no use: leave it out.")
    own_name = os.path.basename(os.path.abspath(name))
    if own_name in DATA_SETS:
        raise UserError(
            f"--data: the folder {name} is called like a data set: rename it, or pass --data {own_name}"
            f" --data-dir {name} if that is what it holds."
        )
    return own_name, os.path.normpath(name)


def data_set(name: str, folder: str | Path) -> DataSet:
    """The data set that `place` has named; raises UserError where a user's own folder holds no questions."""
    return DATA_SETS.get(name) or own(folder)


def still_there(name: str, folder: str | Path) -> DataSet | None:
    """The data set of a run; None where it is a user's own and its folder is gone."""
    try:
        return data_set(name, folder)
    except UserError:
        return None


# ---- finding files -------------------------------------------------------------------------------


def root(name: str, folder: str | Path) -> Path:
    """The data set's folder. The bundled one is found from any working folder."""
    bundled = Path(__file__).resolve().parent / "data" / "shop"
    if name == "shop" and str(folder) == "data/shop" and not os.path.isdir(folder):
        return bundled
    return Path(folder)


def find(folder: str | Path, patterns: tuple[str, ...]) -> list[Path]:
    """All files and folders inside `folder` with these names, those of the first pattern first."""
    return [
        Path(path)
        for name in patterns
        for path in sorted(glob.glob(os.path.join(glob.escape(str(folder)), name)))
    ]


def elsewhere(folder: str | Path, patterns: tuple[str, ...], name: str = "") -> tuple[Path, Path] | None:
    """The folder one level below or above in which such a file lies, and the file; None where there is none.

    name: the data set; the folder that is called so is looked at first, other data sets' folders not at all.
    """
    here = Path(folder)
    below = sorted(path for path in here.iterdir() if path.is_dir()) if here.is_dir() else []
    below = [path for path in below if path.name not in DATA_SETS.keys() - {name}]
    for near in (*sorted(below, key=lambda path: path.name != name), Path(os.path.normpath(here / ".."))):
        if files := find(near, patterns):
            return near, files[0]
    return None
