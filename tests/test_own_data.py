"""A folder of one's own questions: data/README.md's examples run to their end, and what is wrong is named."""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import make_database
from test_tasks import python  # noqa: F401 (a fixture)
from test_verify_cli import strict

import analysis
import codelutra
import data
import data_sets
import eval as evaluation
import export_pairs
import page
import report
import sample
import settings
from bench import experiment
from cli import UserError

README = (Path(__file__).resolve().parent.parent / "data" / "README.md").read_text()
QUICK = [
    "--iterations", "1", "--answers", "4", "--pairs", "2", "--max-new", "12", "--workers", "1",
    "--device", "cpu", "--precision", "float32", "--batch-size", "4", "--lr", "0.01",
]  # fmt: skip


def build(folder, name):
    """The files of one of the README's examples, as it shows them."""
    for file, text in re.findall(r"^`(\S+?)`[^\n]*\n\n```\w+\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        if file.startswith(f"{name}/"):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)
    for script in (folder / name).glob("*.sql"):
        database = f"{name}/database/{script.stem}/{script.stem}.sqlite"
        commands = f"`mkdir -p {Path(database).parent}`, `sqlite3 {database} < {name}/{script.name}`"
        assert commands in README
        make_database(folder / database, script.read_text())
    return folder / name


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The README's SQL example in the working folder."""
    monkeypatch.chdir(tmp_path)
    return build(tmp_path, "library")


def rows(path, change=None, at=0):
    found = json.loads(path.read_text())
    if change:
        found[at] = {k: v for k, v in (found[at] | change).items() if v != "(gone)"}
        path.write_text(json.dumps(found))
    return found


def test_the_readmes_sql_example_runs_to_its_end(library, folders, capsys):
    command = re.search(r"`python codelutra.py (--data library)`", README)[1].split()
    codelutra.main([*command, "--model", folders["gpt2"], *QUICK])
    out = capsys.readouterr().out
    assert "questions of library: 1 held back (--validation), 4 trained on" in out
    assert "4 training, 1 validation, 1 held-out questions" in out and "left out" not in out
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("library-tiny-gpt2") and (run / "summary.json").exists()
    config = json.loads((run / "config.json").read_text())
    assert (config["data"], config["data_dir"], config["validation"]) == ("library", "library", 1)
    assert (config["max_new"], config["timeout"], config["beta"]) == (12, 10.0, 0.1)

    report.main([str(run)])
    text = (run / "report.html").read_text()
    assert "library: 4 training questions with pairs" in text and "the paper's Llama" not in text
    assert "CREATE TABLE book" in text and "old means" not in text
    capsys.readouterr()
    codelutra.main([*command, "--model", folders["gpt2"], *QUICK])  # the same command resumes
    assert "4 training, 1 validation, 1 held-out questions" in capsys.readouterr().out
    assert len(export_pairs.train_questions(run, config)) == 4
    shutil.rmtree(library)
    report.main([str(run)])  # the data set is gone, the run is not
    assert "CREATE TABLE book" not in (run / "report.html").read_text()


def test_the_command_on_the_page_names_the_folder_once(library):
    config = settings.parse(["--data", "library", "--device", "cpu", "--lr", "0.01"])
    assert settings.command(config.__dict__).split()[2:8] == [
        "--model",
        "smollm2",
        "--data",
        "library",
        "--seed",
        "0",
    ]
    assert "--data-dir" not in settings.command(config.__dict__)
    assert page.PAPER.get(config.data) is None and not page.PAPER.keys() - data_sets.DATA_SETS.keys()


@pytest.mark.parametrize("count, held", [(4, 0), (5, 1), (30, 6), (499, 99), (500, 100), (9999, 100)])
def test_a_fifth_is_held_back_by_default(count, held, library):
    (library / "train.json").write_text(json.dumps(rows(library / "train.json")[:1] * count))
    assert settings.parse(["--data", "library", "--device", "cpu"]).validation == held
    given = settings.parse(["--data", "library", "--device", "cpu", "--validation", "3"])
    assert given.validation == 3


def test_without_dev_nothing_held_out_is_scored_and_that_is_said(library, folders, capsys):
    (library / "dev.json").unlink()
    codelutra.main(["--data", "library", "--model", folders["gpt2"], *QUICK])
    out = capsys.readouterr().out
    assert "library has no held-out questions: no policy is scored on any" in out
    (run,) = Path("runs").iterdir()
    assert set(json.loads((run / "iter_1" / "scores.json").read_text())) == {"validation"}
    report.main([str(run)])
    with pytest.raises(UserError, match="library has no split dev: it has train."):
        evaluation.main(["--data", "library", "--model", folders["gpt2"]])


def test_every_command_takes_the_folder(library, folders, capsys, monkeypatch):
    Path("answers.sql").write_text("SELECT MAX(price) FROM book\n")
    Path("wrong.sql").write_text("SELECT 1\n")
    evaluation.main(["--data", "library", "--predictions", "answers.sql"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ex"] == 1.0
    flags = ["--data", "library", "--model", folders["gpt2"]]
    analysis.main(["passes", *flags, "--answers", "2", "--workers", "1"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n"] == 1
    analysis.main(["preferences", *flags, "--workers", "1", "answers.sql", "wrong.sql"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pairs"] == 1
    monkeypatch.setattr(
        sys, "argv", ["sample.py", *flags, "--answers", "1", "--split", "train", "--limit", "1"]
    )
    sample.main()
    assert capsys.readouterr().out.count("log π") == 1
    for main in (evaluation.main, lambda argv: analysis.main(["passes", *argv])):
        with pytest.raises(SystemExit, match="2"):
            main([*flags, "--data-dir", "elsewhere"])
        assert "so --data-dir elsewhere has no use" in capsys.readouterr().err


def test_the_experiment_takes_the_folder(library):
    args = argparse.Namespace(
        size="tiny", model="m", data="library/", data_dir=None, flags="--device cpu", out=Path("runs")
    )
    config = settings.parse(experiment.command(args, "dual", 0))
    assert (config.data, config.data_dir, config.validation) == ("library", "library", 4)


def test_results_are_compared_strictly(library):
    rows(library / "train.json", {"query": "SELECT title, author FROM book ORDER BY year"})
    question = data.load(*data_sets.place("library"), "train")[0][0]
    assert question.comparison == "strict"


@pytest.mark.parametrize("change, words", [
    ({"query": "(gone)"}, "'query' is missing."),
    ({"question": "(gone)"}, "'question' is missing."),
    ({"db_id": "(gone)"}, "'db_id' is missing."),
    ({"question": 3}, "question is a number, not text."),
    ({"evidence": ["x"]}, "evidence is a list, not text."),
    ({"question": " "}, "the question is empty."),
    ({"db_id": "bookz"}, "db_id is 'bookz', but there is no {}/database/bookz/bookz.sqlite."),
])  # fmt: skip
def test_what_is_wrong_in_a_row_is_one_sentence_before_a_model_is_loaded(change, words, library):
    rows(library / "train.json", change, at=3)
    with pytest.raises(UserError) as error:
        codelutra.main(["--data", "library", "--model", "smollm2", *QUICK])
    assert str(error.value) == f"library/train.json, row 3, counted from 0: {words.format(library)}"


def test_a_file_that_is_no_json_or_empty_is_named(library):
    for text, words in (
        ("SELECT 1", "library/train.json, line 1, is not JSON: "),
        ("", "library/train.json is empty."),
        ('{\n "data": []\n}', "library/train.json is one object of JSON: its rows must be a list"),
    ):
        (library / "train.json").write_text(text)
        with pytest.raises(UserError, match=words):
            codelutra.main(["--data", "library", "--model", "smollm2", *QUICK])


def test_no_database_is_named(library):
    shutil.rmtree(library / "database")
    with pytest.raises(
        UserError, match=r"row 0, counted from 0: db_id is 'books', but there is no .*/database/books/"
    ):
        data.load(*data_sets.place("library"), "train")


@pytest.mark.parametrize("given, said", [("library/database", "library"), (".", "library")])
def test_a_folder_one_level_off_is_told_where_the_questions_are(given, said, library, capsys):
    words = rf"has no questions, but (\./)?library/(train|dev)\.json is there: pass --data {said}\.$"
    with pytest.raises(SystemExit, match="2"):
        settings.parse(["--data", given])
    assert re.search(words, capsys.readouterr().err.strip())


def test_a_folder_without_questions_or_with_both_kinds_is_refused(library, tmp_path, capsys):
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    with pytest.raises(SystemExit, match="2"):
        settings.parse(["--data", "empty/deep"])
    words = "empty/deep has no questions: there is neither train.json nor train.jsonl"
    assert words in capsys.readouterr().err
    (library / "train.jsonl").touch()
    with pytest.raises(SystemExit, match="2"):
        settings.parse(["--data", "library"])
    assert "library has questions of two kinds: train.json (SQL) and train.jsonl" in capsys.readouterr().err


def test_train_spider_json_is_taken_as_well(library):
    (library / "train.json").rename(library / "train_spider.json")
    assert len(data.load(*data_sets.place("library"), "train")[0]) == 5


# ---- Python ----


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """The README's Python example in the working folder."""
    monkeypatch.chdir(tmp_path)
    return build(tmp_path, "tasks")


def test_the_readmes_python_example_is_read(tasks):
    name, folder = data_sets.place("tasks")
    train, dev = (data.load(name, folder, split)[0] for split in ("train", "dev"))
    assert (name, len(train), len(dev)) == ("tasks", 5, 1)
    assert [q.entry_point for q in train] == ["double", "last", "area", "total", "even"]
    assert (
        train[0].tests == ("assert double(3) == 6", "assert double(0) == 0")
        and train[2].setup == "import math"
    )
    assert train[3].text.startswith("def total(numbers):") and {q.language for q in train} == {"python"}


@strict
def test_the_readmes_python_example_runs_to_its_end(tasks, folders, python, capsys):  # noqa: F811
    command = re.search(r"`python codelutra.py (--data tasks)`", README)[1].split()
    codelutra.main([*command, "--model", folders["gpt2"], "--python", python, *QUICK])
    out = capsys.readouterr().out
    assert "4 training, 1 validation, 1 held-out questions" in out and "left out" not in out
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("tasks-tiny-gpt2") and (run / "summary.json").exists()
    report.main([str(run)])
    assert "tasks: 4 training questions with pairs" in (run / "report.html").read_text()
    kinds = page.by_kind(report.load_run(run))
    assert [row[0] for row in kinds] == ["tasks"]
    tasks.rename("elsewhere")  # the run's own files say that these are programs
    assert page.by_kind(report.load_run(run)) == kinds
    Path("elsewhere").rename(tasks)
    answers = {"double": "def double(x): return x + x", "last": "def last(a): return a[0]"}
    Path("answers.jsonl").write_text(
        "".join(
            json.dumps({"index": i, "answer": answer}) + "\n" for i, answer in enumerate(answers.values())
        )
    )
    evaluation.main(
        ["--data", "tasks", "--split", "train", "--predictions", "answers.jsonl", "--python", python]
    )
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["n"], result["classes"]["correct"], result["left_out"]) == (5, 1, 0)


def test_one_file_with_a_split_in_each_row(tasks, capsys):
    parts = {split: (tasks / f"{split}.jsonl").read_text().splitlines() for split in ("train", "dev")}
    lines = [json.dumps(json.loads(row) | {"split": split}) for split, part in parts.items() for row in part]
    for split in parts:
        (tasks / f"{split}.jsonl").unlink()
    (tasks / "all.jsonl").write_text("\n".join(lines))
    assert [[q.index for q in data.load("tasks", tasks, split)[0]] for split in parts] == [
        [0, 1, 2, 3, 4],
        [5],
    ]
    assert settings.parse(["--data", "tasks", "--device", "cpu"]).validation == 1
    wrong = {
        lines[0].replace('"train"', '"test"'): "line 3: split is 'test', neither train nor dev.",
        parts["train"][0]: "line 3: 'split' is missing.",
    }
    for change, words in wrong.items():
        (tasks / "all.jsonl").write_text("\n".join([*lines[:2], change]))
        with pytest.raises(UserError, match=f"all.jsonl, {words}"):
            data.load("tasks", tasks, "train")
    (tasks / "all.jsonl").write_text(lines[0])
    with pytest.raises(UserError, match="all.jsonl has no row whose split is dev."):
        data.load("tasks", tasks, "dev")
    (tasks / "more.jsonl").touch()
    with pytest.raises(SystemExit, match="2"):
        settings.parse(["--data", "tasks"])
    assert "which of all.jsonl, more.jsonl has the questions" in capsys.readouterr().err


@pytest.mark.parametrize("row, words", [
    ({"text": "?", "tests": ["assert f()"]}, "'code' is missing."),
    ({"text": "?", "code": "x = 1"}, "'tests' is missing."),
    ({"code": "x = 1", "tests": ["assert x"]}, "it needs either text or prompt, and not both."),
    ({"text": "?", "code": "x = 1", "tests": []}, "tests are neither a text nor a list of texts."),
    ({"text": "?", "code": ["x = 1"], "tests": ["assert x"]}, "code is not a text."),
    (["x"], "it is not an object of JSON but a list."),
    ({"text": "?", "code": "x = 1", "tests": ["f(1)"]}, "tests have no assert"),
    ({"text": "?", "code": "x = 1", "tests": "print(x)"}, "tests have no assert"),
    ({"text": "?", "code": "x = 1", "tests": "def check(f):\n    assert f"}, "tests define check, but"),
])  # fmt: skip
def test_what_is_wrong_in_a_task_is_said_with_its_line(row, words, tasks):
    with open(tasks / "train.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=f"tasks/train.jsonl, line 6: {words}"):
        data.load(*data_sets.place("tasks"), "train")


def test_a_folder_without_training_questions_names_the_file_that_is_missing(library, tasks):
    (library / "train.json").rename(library / "training.json")
    with pytest.raises(UserError, match="library has no train.json: its questions can only be scored"):
        codelutra.main(["--data", "library", "--model", "smollm2", *QUICK])
    (tasks / "train.jsonl").unlink()
    with pytest.raises(UserError, match="tasks has no train.jsonl: its questions can only be scored"):
        codelutra.main(["--data", "tasks", "--model", "smollm2", *QUICK])


@pytest.mark.parametrize("tests", [
    ["import numpy as np", "np.testing.assert_allclose(f(1), 2)"],
    "if f(1) != 2:\n    raise ValueError",
    "def check(f):\n    assert f(1) == 2\ncheck(f)",
    "assert f(",  # cannot be parsed: the verifier says so
])  # fmt: skip
def test_tests_may_ask_in_other_ways_than_an_assert(tests, tasks):
    with open(tasks / "train.jsonl", "a") as file:
        file.write(json.dumps({"text": "?", "code": "def f(x):\n    return 2", "tests": tests}) + "\n")
    assert len(data.load(*data_sets.place("tasks"), "train")[0]) == 6


def test_questions_that_are_trained_on_and_scored_are_named(library, folders, capsys):
    """Held-out EX is not held out where a question stands in both files."""
    train = json.loads((library / "train.json").read_text())
    (library / "dev.json").write_text(json.dumps([{**train[0], "question": "New?"}, train[1], train[2]]))
    codelutra.main(["--data", "library", "--validation", "0", "--model", folders["gpt2"], *QUICK])
    words = (
        "2 dev questions are trained on as well: row 1 is row 1 of the training questions (counted from 0)"
    )
    assert words in capsys.readouterr().out


def test_a_task_that_is_left_out_is_named_by_its_row(tasks, folders, capsys, python):  # noqa: F811
    with open(tasks / "train.jsonl", "a") as file:
        file.write(
            json.dumps({"text": "?", "code": "def f(x):\n    return 2", "tests": "assert f(1) == 1"}) + "\n"
        )
    codelutra.main(["--data", "tasks", "--validation", "0", "--model", folders["gpt2"], *QUICK])
    assert (
        "left out: train: question 5, counted from 0 (tasks): its gold code fails" in capsys.readouterr().out
    )
