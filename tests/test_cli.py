"""The commands' doors: --help without torch, one line for what is wrong, and a line before what takes long.

`python -S` has the standard library alone: it stands for a Python outside the environment.
"""

import dataclasses
import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_verify_cli import CONTEXT

import cli
import codelutra
import data
from cli import UserError
from judging import check_libraries
from settings import Config

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ["codelutra.py", "eval.py", "sample.py", "report.py", "analysis.py", "lora.py"]


def run(*argv, python=("-S",)):
    """A command → (exit code, stdout, lines of stderr)."""
    argv = [sys.executable, *python, *map(str, argv)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr.splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_library(command):
    code, out, errors = run(command, "--help")
    assert (code, errors) == (0, []) and "usage: " in out


def test_every_setting_stands_under_a_heading():
    _, out, _ = run("codelutra.py", "--help")
    headings = [line[:-1] for line in out.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == ["options", "model", "data", "drawing", "pairs and loss", "training", "machine"]
    grouped = out[out.index("\nmodel:") :]
    for f in dataclasses.fields(Config):
        assert f"\n  --{f.name.replace('_', '-')}" in grouped


WRONG = [
    ("codelutra.py --lrr 3", "no flag --lrr; did you mean --lr? --help lists all"),
    ("codelutra.py --lrr=3 --zzz", "no flag --lrr; did you mean --lr? --help lists all"),
    ("codelutra.py --zzzzzz", "no flag --zzzzzz; --help lists all"),
    ("codelutra.py 7", "no flag 7; --help lists all"),
    ("codelutra.py --data spidr", "--data: spidr is neither a data set (bird, "),
    ("codelutra.py --lr fast", "--lr: invalid float value: 'fast'"),
    ("codelutra.py --lr 0", "--lr must be above 0, not 0.0"),
    ("codelutra.py --lr", "--lr: expected one argument"),
    ("eval.py --prediction x", "no flag --prediction; did you mean --predictions? --help lists all"),
    ("eval.py --workers 0", "--workers must be above 0, not 0"),
    ("sample.py --answer 2", "no flag --answer; did you mean --answers? --help lists all"),
    ("report.py runs/x --pair y", "no flag --pair; did you mean --pairs? --help lists all"),
    ("report.py", "the following arguments are required: runs"),
    ("analysis.py", "the following arguments are required: what"),
    ("analysis.py passes --answer 2", "no flag --answer; did you mean --answers? --help lists all"),
    ("lora.py split", "command: invalid choice: 'split' (choose from "),
]  # fmt: skip


@pytest.mark.parametrize("argv, sentence", WRONG, ids=[argv for argv, _ in WRONG])
def test_a_flag_that_is_wrong_is_one_line(argv, sentence):
    code, out, errors = run(*argv.split())
    assert (code, out, len(errors)) == (2, "", 1), errors
    assert errors[0].startswith(f"error: {sentence}")


@pytest.mark.parametrize("command", [["report.py", "run"], ["analysis.py", "passes"], ["codelutra.py"]])
def test_a_python_without_torch_is_told_what_makes_one_that_has_it(command):
    code, out, errors = run(*command)
    assert (code, out, len(errors)) == (2, "", 1), errors
    assert "has no torch: `make demo`" in errors[0] and f".venv/bin/python {command[0]}" in errors[0]


def test_it_says_that_it_is_loading_before_it_loads(tmp_path):
    command = ["codelutra.py", "--data", "spider", "--data-dir", tmp_path]
    code, out, errors = run(*command, python=("-X", "importtime"))
    first_of_torch = next(n for n, line in enumerate(errors) if "| torch" in line.replace("  ", ""))
    assert code == 2 and errors.index("loading torch …") < first_of_torch
    assert [line for line in errors if line.startswith("error: ")][0].count("train_spider.json is missing")


# ---- what is refused before a model is loaded -----------------------------------------------------


@pytest.fixture
def ds1000(tmp_path):
    """`ds1000(library)`: flags of a set of two problems of that library."""

    def make(library):
        meta = {"library": library, "problem_id": 0}
        row = {"metadata": meta, "prompt": "?", "reference_code": "result = x * 2", "code_context": CONTEXT}
        with gzip.open(tmp_path / "ds1000.jsonl.gz", "wt") as file:
            file.write(4 * (json.dumps(row) + "\n"))
        run = tmp_path / "run"
        return ["--data", "ds1000", "--data-dir", str(tmp_path), "--validation", "1", "--out", str(run)]

    return make


@pytest.mark.parametrize(
    "library, python, sentence",
    [
        ("Nosuchlibrary", sys.executable, "has no nosuchlibrary: `make ds1000"),
        ("Numpy", "/no/python", "cannot be used"),
    ],
)
def test_ds1000_without_its_libraries_is_refused_before_a_model_is_loaded(
    ds1000, folders, monkeypatch, library, python, sentence
):
    monkeypatch.setattr(codelutra, "load_policy", None)
    argv = [*ds1000(library), "--model", folders["gpt2"], "--device", "cpu", "--python", python]
    with pytest.raises(UserError, match=sentence):
        codelutra.main(argv)
    assert not Path(argv[5 + argv[5:].index("--out") + 1]).exists()


def test_an_interpreter_that_has_the_libraries_is_taken(ds1000):
    folder = ds1000("Pytorch")[3]
    questions, _ = data.load("ds1000", folder, "train")
    check_libraries(questions, None)
    check_libraries([], "/no/python")  # nothing is asked of it


def test_an_older_python_is_refused_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    with pytest.raises(SystemExit, match="2"):
        cli.begin(lambda argv, description: None, "")
    assert re.fullmatch("error: codelutra needs Python 3.11 or newer; this is .*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    "given, says", [((), True), (("MODEL=coder",), False), (("ARGS=--seed 1 --iterations 9",), False)]
)
def test_the_demo_says_how_long_it_takes_where_that_was_measured(given, says):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--no-print-directory", "minutes", *given],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment,
    )
    pattern = r"The demo took \d+ minutes on two cores of this kind of processor\.\n"
    assert bool(re.fullmatch(pattern, done.stdout)) == says, done.stdout
