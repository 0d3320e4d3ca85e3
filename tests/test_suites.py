"""eval.py --test-suite: an answer is right where it is right on every database of its question's folder."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import SCHEMAS, make_database

import data
import eval as evaluation
import suites
from cli import UserError
from verify import Verifier


@pytest.fixture
def suite(spider, tmp_path):
    """Spider's layout; beside pets.sqlite lies a second database, in which Oslo has another owner."""
    folder = Path(shutil.copytree(spider, tmp_path / "set"))
    other = SCHEMAS["pets"].replace("(3, 'Cleo', 'Porto')", "(3, 'Cleo', 'Porto'), (4, 'Dag', 'Oslo')")
    make_database(folder / "database" / "pets" / "pets_1.sqlite", other)
    return folder


def answers(folder, gold, answer):
    """One dev question on pets, answered."""
    (folder / "dev.json").write_text(json.dumps([{"db_id": "pets", "question": "?", "query": gold}]))
    (folder / "answers.sql").write_text(answer + "\n")
    return ["--data", "spider", "--data-dir", str(folder), "--predictions", str(folder / "answers.sql")]


def classes(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])["classes"]


@pytest.mark.parametrize("answer, one, both", [
    ("SELECT count(id) FROM owner", "correct", "correct"),
    ("SELECT 3", "correct", "wrong"),  # right on the question's own database, by chance
    ("SELECT 3 / (4 - count(*)) FROM owner", "correct", "wrong"),  # NULL on the other
    ("SELECT 4", "wrong", "wrong"),  # right on the other alone
    ("SELECT x FROM owner", "error", "error"),
])  # fmt: skip
def test_right_means_right_on_every_database_of_the_folder(answer, one, both, suite, capsys):
    command = answers(suite, "SELECT count(*) FROM owner", answer)
    for flags, expected in ((command, one), ([*command, "--test-suite"], both)):
        evaluation.main(flags)
        assert {k: n for k, n in classes(capsys).items() if n} == {expected: 1}


def test_a_gold_query_that_fails_on_one_of_them_leaves_its_question_out(suite, capsys):
    rows = [{"db_id": "pets", "question": "?", "query": "SELECT count(*) FROM owner"}]
    rows.append(rows[0] | {"query": "SELECT age FROM pet"})
    flags = answers(suite, "", "SELECT count(*) FROM owner\nSELECT age FROM pet")
    (suite / "dev.json").write_text(json.dumps(rows))
    make_database(suite / "database" / "pets" / "pets_2.sqlite", "CREATE TABLE owner (id, name, city)")
    evaluation.main([*flags, "--test-suite"])
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert (result["n"], result["ex"], result["left_out"]) == (1, 1.0, 1)
    assert (
        "left out: question 1, counted from 0 (pets): gold query fails on" in err and "pets_2.sqlite" in err
    )


def test_a_damaged_database_of_a_suite_is_named_and_its_questions_left_out(suite):
    (suite / "database" / "pets" / "pets_1.sqlite").write_bytes(b"no database" * 999)
    questions, _ = data.load("spider", suite, "dev")
    with Verifier(1) as verifier:
        kept, notes = suites.usable_on_all(questions, verifier, 5.0)
    assert {q.db_id for q in kept} == {"books"} and len(notes) == 1
    assert notes[0].startswith(f"the questions on {suite}/database/pets/pets_1.sqlite: their database cannot")


@pytest.mark.parametrize("flags", [["--data", "spider"], ["--data", "shop"]])
def test_without_a_second_database_the_flag_is_refused(flags, spider):
    folder = [] if "shop" in flags else ["--data-dir", str(spider)]
    with pytest.raises(UserError, match="--test-suite: no database has a second .sqlite file in its folder"):
        evaluation.main([*flags, *folder, "--test-suite", "--model", "nowhere"])


def test_the_own_database_is_asked_first(suite):
    question = data.load("spider", suite, "dev")[0][0]
    make_database(suite / "database" / "pets" / "a.sqlite", SCHEMAS["pets"])
    names = [Path(q.database).name for q in suites.suite(question)]
    assert names == ["pets.sqlite", "a.sqlite", "pets_1.sqlite"]
