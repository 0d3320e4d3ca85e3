"""Where the releases keep their files, old and new; what --data and --data-dir mean."""

import codecs
import json
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from conftest import DEV, SCHEMAS, make_database

import data
import data_sets
import eval as evaluation
import page
import settings
from cli import UserError

ROW = {
    "db_id": "pets",
    "question": "How many?",
    "SQL": "SELECT count(*) FROM pet",
    "evidence": "",
    "question_id": 7,
}


def put(path, rows=(ROW,), text=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(rows)) if text is None else text)


def asked(name, folder, split):
    """(text, the folder of databases) of every question."""
    questions, top = data.load(name, folder, split)[0], Path(folder).absolute().parent
    return [(q.text, str(Path(q.database).parent.parent.relative_to(top))) for q in questions]


# ---- BIRD ----


@pytest.mark.parametrize("file", ["dev/dev.json", "dev_20240627/dev.json", "dev_20251106/dev.json"])
def test_birds_dev_questions_in_the_folders_of_its_releases(file, tmp_path):
    put(tmp_path / "x" / file)
    databases = Path(file).parent / "dev_databases"
    make_database(tmp_path / "x" / databases / "pets" / "pets.sqlite", SCHEMAS["pets"])
    assert asked("bird", tmp_path / "x", "dev") == [("How many?", f"x/{databases}")]


@pytest.mark.parametrize("file", [
    "dev_20251106.json", "dev_20251106/dev_20251106-00000-of-00001.json", "dev_20251106-00000-of-00001.json",
])  # fmt: skip
def test_birds_revised_questions_have_the_databases_of_dev_and_are_a_split_of_their_own(file, tmp_path):
    folder = tmp_path / "x"
    put(folder / "dev_20240627" / "dev.json", [ROW | {"question": "The old one?"}])
    put(folder / file)
    make_database(folder / "dev_20240627" / "dev_databases" / "pets" / "pets.sqlite", SCHEMAS["pets"])
    place = "x/dev_20240627/dev_databases"
    assert asked("bird", folder, "dev") == [("The old one?", place)]
    assert asked("bird", folder, "dev_20251106") == [("How many?", place)]
    (folder / "dev_20240627" / "dev.json").unlink()
    assert asked("bird", folder, "dev") == [("How many?", place)]


@pytest.mark.parametrize("file", [
    "mini_dev/mini_dev_sqlite.json", "minidev/MINIDEV/mini_dev_sqlite.json", "MINIDEV/mini_dev_sqlite.json",
    "mini_dev_data/mini_dev_sqlite-00000-of-00001.json",
])  # fmt: skip
def test_mini_dev_has_its_own_databases_or_those_of_dev(file, tmp_path):
    folder = tmp_path / "x"
    put(folder / file)
    make_database(folder / "dev" / "dev_databases" / "pets" / "pets.sqlite", SCHEMAS["pets"])
    assert asked("bird", folder, "mini_dev") == [("How many?", "x/dev/dev_databases")]
    own = Path(file).parent / "dev_databases"
    make_database(folder / own / "pets" / "pets.sqlite", SCHEMAS["pets"])
    assert asked("bird", folder, "mini_dev") == [("How many?", f"x/{own}")]


def test_the_tables_of_a_split_lie_beside_its_questions(tmp_path):
    entry = {
        "db_id": "pets", "table_names_original": ["pet"], "column_types": ["text", "number"],
        "column_names_original": [[-1, "*"], [0, "id"]], "foreign_keys": [], "primary_keys": [1],
    }  # fmt: skip
    put(tmp_path / "dev_20240627" / "dev_tables.json", [entry])
    assert data.tables("bird", tmp_path, "dev") == ({"pets": entry}, [])
    assert data.tables("bird", tmp_path, "mini_dev") == ({"pets": entry}, [])
    assert data.tables("bird", tmp_path, "train") == ({}, [])


# ---- files ----


@pytest.mark.parametrize("form", ["list", "lines", "blank lines between"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_a_list_and_json_lines_with_and_without_a_byte_order_mark_are_the_same(form, mark, spider, tmp_path):
    folder = Path(shutil.copytree(spider, tmp_path / "set"))
    rows = json.loads((folder / "dev.json").read_text())
    text = json.dumps(rows, indent=1) if form == "list" else ("\n\n" if "blank" in form else "\n").join(
        json.dumps(row | {"note": "\u2028"}, ensure_ascii=False) for row in rows
    )  # fmt: skip
    (folder / "dev.json").write_bytes(mark + text.encode())
    questions, _ = data.load("spider", folder, "dev")
    assert [(q.db_id, q.text, q.gold) for q in questions] == DEV and [q.index for q in questions] == [
        *range(6)
    ]
    assert data.count("spider", folder, "dev") == 6


GOOD = '{"db_id": "pets", "question": "?", "query": "SELECT 1"}'
WRONG = {
    "": " is empty.",
    " \n": " is empty.",
    "[]": " has no questions.",
    '[{"db_id": 3},\n {"db_id" 3}]': " is not JSON: Expecting ':' delimiter: line 2 column 11 (char 25).",
    '{"db_id"': ", line 1, is not JSON: Expecting ':' delimiter: line 1 column 9 (char 8).",
    f"{GOOD}\n\nSELECT 1": ", line 3, is not JSON: Expecting value",
    f'{GOOD}\n\n{{"db_id": "pets"}}': ", line 3: 'question' is missing.",
    '[{"db_id": "pets", "question": "?"}]': ", row 0, counted from 0: 'query' is missing.",
    f"[{GOOD}, 3]": ", row 1, counted from 0: it is not an object of JSON but a number.",
    f'[{GOOD[:-1]}, "question_id": 0.5}}]':
        ", row 0, counted from 0: question_id is a fraction, neither a whole number nor text.",
    f'[{GOOD[:-1]}, "question": ["?"]}}]': ", row 0, counted from 0: question is a list, not text.",
    f'[{GOOD[:-1]}, "query": null}}]': ", row 0, counted from 0: query is null, not text.",
}  # fmt: skip


@pytest.mark.parametrize("text, words", WRONG.items())
def test_what_is_wrong_in_a_file_is_said_with_its_place(text, words, spider, tmp_path):
    folder = Path(shutil.copytree(spider, tmp_path / "set"))
    (folder / "dev.json").write_text(text)
    with pytest.raises(UserError) as error:
        data.load("spider", folder, "dev")
    assert str(error.value).startswith(f"{folder}/dev.json{words}")


# ---- a folder one level off ----


@pytest.mark.parametrize("name, file, given, said", [
    ("bird", "x/dev/dev.json", "x/dev", "x"),  # too deep
    ("bird", "x/dev_20240627/dev.json", "x/dev_20240627", "x"),
    ("bird", "a/x/dev/dev.json", "a", "a/x"),  # too high
    ("spider", "spider/dev.json", "spider/database", "spider"),
    ("spider", "spider_data/dev.json", ".", "spider_data"),
])  # fmt: skip
def test_a_folder_one_level_too_deep_or_too_high_is_told_where_the_file_is(name, file, given, said, tmp_path):
    put(tmp_path / file)
    (tmp_path / given).mkdir(exist_ok=True)
    with pytest.raises(UserError) as error:
        data.load(name, tmp_path / given, "dev")
    assert str(error.value).endswith(
        f"is missing, but {tmp_path / file} is there: pass --data-dir {tmp_path / said}."
    )


def test_another_data_sets_folder_is_not_what_is_looked_for(tmp_path):
    for name in ("shop", "spider_dk", "z"):
        put(tmp_path / name / "dev.json")
    with pytest.raises(UserError, match=f"{tmp_path}/z/dev.json is there"):
        data.load("spider", tmp_path, "dev")
    put(tmp_path / "spider" / "dev.json")
    with pytest.raises(UserError, match=f"{tmp_path}/spider/dev.json is there"):
        data.load("spider", tmp_path, "dev")


# ---- further splits and sets of Spider ----


@pytest.fixture
def releases(spider, tmp_path):
    """Spider beside Spider-Syn and Spider-DK, which has a database of its own."""
    folder = Path(shutil.copytree(spider, tmp_path / "spider"))
    row = {"db_id": "pets", "question": "Others?", "query": "SELECT count(*) FROM owner"}
    put(folder / "train_others.json", [row])
    put(folder / "test.json", [row | {"question": "Test?"}])
    make_database(folder / "test_database" / "pets" / "pets.sqlite", SCHEMAS["pets"])
    row |= {"SpiderSynQuestion": "How many keepers?", "SpiderQuestion": "How many owners?"}
    del row["question"]
    put(tmp_path / "spider_syn" / "dev.json", [row])
    own = {"db_id": "new_pets", "question": "Known?", "query": "SELECT count(*) FROM owner"}
    put(tmp_path / "spider_dk" / "dev.json", [own, own | {"db_id": "pets"}, own | {"db_id": "nowhere"}])
    make_database(tmp_path / "spider_dk" / "database" / "new_pets" / "new_pets.sqlite", SCHEMAS["pets"])
    return tmp_path


def test_spiders_other_splits(releases):
    assert asked("spider", releases / "spider", "train_others") == [("Others?", "spider/database")]
    assert asked("spider", releases / "spider", "test") == [("Test?", "spider/test_database")]
    with pytest.raises(
        UserError, match="spider has no split nowhere: it has train, dev, train_others, test."
    ):
        data.load("spider", releases / "spider", "nowhere")


def test_spider_syn_and_spider_dk_find_spiders_databases_in_the_folder_beside(releases):
    assert asked("spider_syn", releases / "spider_syn", "dev") == [
        ("How many keepers?", "spider_syn/../spider/database")
    ]
    questions, notes = data.load("spider_dk", releases / "spider_dk", "dev")
    assert [Path(q.database).parts[-5:-2] for q in questions] == [
        (releases.name, "spider_dk", "database"), ("..", "spider", "database"),
    ]  # fmt: skip
    assert notes == ["1 questions: no database file, or an empty one (nowhere)"]


def test_where_spider_is_not_beside_them_both_folders_are_named(releases):
    shutil.rmtree(releases / "spider")
    with pytest.raises(
        UserError, match=r"spider_syn/dev\.json has no question with a usable database under .*spider_syn/"
    ):
        data.load("spider_syn", releases / "spider_syn", "dev")


def test_a_split_is_scored_by_its_name(releases, capsys):
    (releases / "a.sql").write_text("SELECT count(id) FROM owner\n")
    flags = ["--predictions", str(releases / "a.sql"), "--data"]
    for name, split in (("spider", "test"), ("spider", "train_others"), ("spider_syn", "dev")):
        evaluation.main([*flags, name, "--data-dir", str(releases / name), "--split", split])
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (result["n"], result["ex"]) == (1, 1.0)


def test_a_set_to_score_on_is_not_trained_on(releases):
    config = settings.parse(
        ["--data", "spider_syn", "--data-dir", str(releases / "spider_syn"), "--device", "cpu"]
    )
    with pytest.raises(
        UserError, match="spider_syn has no questions for training: it is scored only, by eval.py."
    ):
        data.load(config.data, config.data_dir, "train")


# ---- --data and --data-dir ----


def test_the_bundled_set_is_found_from_any_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = settings.parse(["--device", "cpu"])
    assert (config.data, config.data_dir) == ("shop", "data/shop")  # as it has always stood in config.json
    questions, notes = data.load(config.data, config.data_dir, "dev")
    assert (len(questions), data.count("shop", "data/shop", "train"), notes) == (182, 360, [])
    assert data.tables("shop", "data/shop", "dev")[0]
    assert page.schemas(questions)
    put(tmp_path / "data" / "shop" / "dev.json", [ROW])  # a folder of this name here is the one that is meant
    make_database(tmp_path / "data" / "shop" / "database" / "pets" / "pets.sqlite", SCHEMAS["pets"])
    assert asked("shop", "data/shop", "dev") == [("How many?", "shop/database")]


def test_what_data_names_is_a_set_or_a_folder(spider, tmp_path, capsys):
    def refused(*argv: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            settings.parse([*argv])
        return capsys.readouterr().err

    words = r"--data: nothing is neither a data set \(bird, .*spider_syn\) nor a folder."
    assert re.search(words, refused("--data", "nothing"))
    own = shutil.copytree(spider, tmp_path / "mine")
    said = refused("--data", str(own), "--data-dir", str(tmp_path))
    assert f"--data {own} is a folder, so --data-dir {tmp_path} has no use" in said
    own = shutil.copytree(spider, tmp_path / "bird")
    words = f"the folder {own} is called like a data set: rename it, or pass --data bird --data-dir {own} if"
    assert words in refused("--data", str(own))
    assert data_sets.place("bird", None) == ("bird", "data/bird")
    assert data_sets.place("bird", "x") == ("bird", "x")


def test_a_database_is_read_where_it_lies_first(tmp_path):
    put(tmp_path / "spider_dk" / "dev.json", [{"db_id": "pets", "question": "?", "query": "SELECT 1"}])
    for place in ("spider", "spider_dk"):
        make_database(tmp_path / place / "database" / "pets" / "pets.sqlite", f"CREATE TABLE {place} (x)")
    (question,), _ = data.load("spider_dk", tmp_path / "spider_dk", "dev")
    with closing(sqlite3.connect(question.database)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("spider_dk",)]
