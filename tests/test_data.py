"""Loaders count what they leave out, subsets nest, prompts share schemas, one rule says where code ends."""

import gzip
import json
import random
import re
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from conftest import TRAIN, make_database

import cli
import data
import data_sets
import database
import prompts
from cli import UserError
from eval import scores
from prompts import code_ended, extract_code
from verifier.sql_text import MAX_QUERY
from verify import InfrastructureError, Verdict, Verifier

SHOP = Path(__file__).resolve().parent.parent / "data" / "shop"


@pytest.fixture
def copy(spider, tmp_path):
    return Path(shutil.copytree(spider, tmp_path / "set"))


def test_questions_come_in_file_order_with_their_gold_and_database(spider):
    questions, notes = data.load("spider", spider, "train")
    assert [(q.db_id, q.text, q.gold) for q in questions] == TRAIN and notes == []
    assert [q.index for q in questions] == list(range(12))
    assert all(q.database == str(spider / "database" / q.db_id / f"{q.db_id}.sqlite") for q in questions)


def test_a_missing_database_leaves_out_its_questions_and_keeps_the_indices(copy):
    shutil.rmtree(copy / "database" / "pets")
    questions, notes = data.load("spider", copy, "train")
    assert [q.index for q in questions] == [6, 7, 8, 9, 10, 11]
    assert notes == ["6 questions: no database file, or an empty one (pets)"]
    assert data.count("spider", copy, "train") == 12


def test_a_database_without_rows_leaves_out_training_questions_alone(copy):
    path = copy / "database" / "books" / "books.sqlite"
    path.unlink()
    make_database(
        path, "CREATE TABLE book (id INTEGER, title TEXT, year INTEGER, price REAL); CREATE TABLE other (x)"
    )
    questions, notes = data.load("spider", copy, "train")
    assert {q.db_id for q in questions} == {"pets"}
    assert notes == ["6 questions: their database has no rows (books)"]
    questions, notes = data.load("spider", copy, "dev")
    assert len(questions) == 6 and notes == []


def test_one_row_in_one_table_is_enough(tmp_path):
    script = """CREATE TABLE a (x); CREATE TABLE "odd name" (x); INSERT INTO "odd name" VALUES (1)"""
    make_database(tmp_path / "a.sqlite", script)
    assert database.has_rows(str(tmp_path / "a.sqlite"))


@pytest.mark.parametrize(
    "text", ["{", "[1]", '[{"db_id": "pets"}]', '[{"db_id": "pets", "question": 3, "query": "x"}]']
)
def test_a_file_in_another_layout_is_a_user_error(copy, text):
    (copy / "train_spider.json").write_text(text)
    with pytest.raises(UserError, match="train_spider.json"):
        data.load("spider", copy, "train")


def test_what_is_missing_is_a_user_error_that_names_it(copy, tmp_path):
    with pytest.raises(UserError, match="yale-lily"):
        data.load("spider", tmp_path / "nowhere", "train")
    shutil.rmtree(copy / "database")
    with pytest.raises(UserError, match="database"):
        data.load("spider", copy, "dev")


def test_where_no_database_is_found_the_file_of_the_questions_and_the_folder_are_named(copy):
    shutil.rmtree(copy / "database")
    with pytest.raises(UserError) as error:
        data.load("spider", copy, "dev")
    assert str(error.value) == (
        f"{copy / 'dev.json'} has no question with a usable database under {copy / 'database'}:"
        " 6 questions: no database file, or an empty one (books, pets)."
    )


def overwritten(at, what):
    def damage(raw):
        return raw[:at] + what + raw[at + len(what) :]

    return damage


BROKEN = {
    "a pointer in place of the file": lambda raw: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    ),
    "text": lambda raw: b"no database" * 1000,
    "cut off": lambda raw: raw[:-4096],
    "no header": overwritten(0, bytes(100)),
    "a page of zeros": overwritten(8192, bytes(4096)),
    "a page of noise": overwritten(4096, random.Random(0).randbytes(4096)),
    "the table's name is no text": lambda raw: raw.replace(b"CREATE TABLE book", b"CREATE\xffTABLE book"),
    "a row's columns": lambda raw: raw.replace(b"\x05\x00\x15\x02\x07Dust", b"\x05\x00\xff\x02\x07Dust"),
}


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_database_that_cannot_be_read_leaves_out_its_own_questions(fault, split, copy):
    path = copy / "database" / "books" / "books.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE INDEX by_title ON book (title)")
    whole = path.read_bytes()
    path.write_bytes(BROKEN[fault](whole))
    assert path.read_bytes() != whole
    everything = json.loads((copy / data_sets.DATA_SETS["spider"].splits[split].questions[0]).read_text())
    questions, (note,) = data.load("spider", copy, split)
    assert [q.index for q in questions] == [i for i, row in enumerate(everything) if row["db_id"] == "pets"]
    assert re.match(r"[36] questions: their database (is damaged|cannot be read): .*\(books\)$", note)


def test_a_large_database_that_was_cut_off_is_noticed_without_reading_all_of_it(copy, monkeypatch):
    monkeypatch.setattr(database, "CHECKED", 0)
    path = copy / "database" / "pets" / "pets.sqlite"
    path.write_bytes(path.read_bytes()[:-4096])
    questions, notes = data.load("spider", copy, "dev")
    assert {q.db_id for q in questions} == {"books"} and "cannot be read" in notes[0]


@pytest.mark.parametrize("script", [
    "CREATE TABLE t (a NOT NULL, b CHECK (nowhere(b)))",
    "CREATE TABLE t (a, b AS (nowhere(a)))",
    "CREATE TABLE t (a COLLATE nowhere); CREATE INDEX i ON t (a)",
    "CREATE TABLE t (a INT PRIMARY KEY NOT NULL, b NOT NULL) WITHOUT ROWID",
    "CREATE VIRTUAL TABLE t USING fts5(a)",
    "CREATE TABLE t (a); CREATE VIEW v AS SELECT nowhere(b) FROM missing",
])  # fmt: skip
def test_a_database_that_can_be_read_in_part_is_not_damaged(script, copy):
    path = copy / "database" / "books" / "books.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.create_function("nowhere", 1, lambda x: 1, deterministic=True)
        connection.create_collation("nowhere", lambda x, y: (x > y) - (x < y))
        connection.executescript(script)
        connection.execute(f"INSERT INTO t {'VALUES (1, 2)' if 'b NOT' in script else '(a) VALUES (1)'}")
        connection.execute("PRAGMA writable_schema = on")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'price REAL', 'price REAL NOT NULL')")
        connection.execute("UPDATE book SET price = NULL")
        connection.commit()
    for split, count in (("train", 12), ("dev", 6)):
        questions, notes = data.load("spider", copy, split)
        assert len(questions) == count and notes == []


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
@pytest.mark.parametrize("split, count", [("train", 6), ("dev", 3)])
def test_a_database_that_was_not_closed_leaves_out_its_own_questions(suffix, split, count, copy):
    beside = copy / "database" / "books" / f"books.sqlite{suffix}"
    beside.touch()  # an empty one holds nothing
    questions, notes = data.load("spider", copy, split)
    assert len(questions) == 2 * count and notes == []
    beside.write_bytes(b"x" * 512)
    questions, notes = data.load("spider", copy, split)
    assert {q.db_id for q in questions} == {"pets"}
    fault = f"their database was not closed (there is a {suffix} file): open it once with sqlite3"
    assert notes == [f"{count} questions: {fault} (books)"]


def test_a_journal_that_sqlite_keeps_after_a_write_holds_no_data(copy):
    """With journal_mode = PERSIST the file stays, and zeros in its header say that nothing is left to do."""
    path = copy / "database" / "books" / "books.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = PERSIST")
        connection.execute("UPDATE book SET price = 8")
        connection.commit()
    left = Path(f"{path}-journal").read_bytes()
    assert left and not left[0]
    questions, notes = data.load("spider", copy, "train")
    assert len(questions) == 12 and notes == []


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_a_folder_in_place_of_a_journal_leaves_out_its_own_questions(suffix, copy):
    (copy / "database" / "books" / f"books.sqlite{suffix}").mkdir()
    questions, notes = data.load("spider", copy, "train")
    assert {q.db_id for q in questions} == {"pets"}
    assert len(notes) == 1 and "cannot be read" in notes[0] and "Is a directory (books)" in notes[0]


def test_a_name_that_is_too_long_for_a_file_leaves_out_its_own_question(copy):
    rows = json.loads((copy / "train_spider.json").read_text())
    rows[3]["db_id"] = "x" * 300
    (copy / "train_spider.json").write_text(json.dumps(rows))
    questions, notes = data.load("spider", copy, "train")
    assert [q.index for q in questions] == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert notes == [f"1 questions: their database cannot be read: File name too long ({'x' * 300})"]


@pytest.mark.parametrize("called", ["is_file", "stat"])
def test_a_folder_that_may_not_be_entered_leaves_out_its_own_questions(called, copy, monkeypatch):
    plain = getattr(Path, called)

    def refuse(path, **options):  # the tests may run as root, whom no folder refuses
        if path.name == "books.sqlite":
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, **options)

    monkeypatch.setattr(Path, called, refuse)
    questions, notes = data.load("spider", copy, "train")
    assert {q.db_id for q in questions} == {"pets"}
    assert notes == ["6 questions: their database cannot be read: Permission denied (books)"]


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
@pytest.mark.parametrize(
    "contents, unfinished", [(b"", False), (bytes(512), False), (b"\0x", False), (b"x", True)]
)
def test_a_file_beside_a_database_means_here_what_it_means_to_the_judge(copy, suffix, contents, unfinished):
    """journal_mode = PERSIST leaves zeros, which hold nothing."""
    database = str(copy / "database" / "books" / "books.sqlite")
    Path(database + suffix).write_bytes(contents)
    assert bool(data.load("spider", copy, "train")[1]) is unfinished
    with Verifier(1) as verifier:
        if unfinished:
            with pytest.raises(InfrastructureError, match="was not closed"):
                verifier.execute(database, "SELECT 1", 1.0).result()
        else:
            assert verifier.execute(database, "SELECT 1", 1.0).result().verdict == "correct"


def test_rows_that_are_in_the_wal_file_alone_are_not_missed(copy):
    path = copy / "database" / "books" / "books.sqlite"
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript("CREATE TABLE book (id, title, year, price); PRAGMA wal_checkpoint")
        connection.executescript("INSERT INTO book VALUES (1, 'Dust', 1999, 7.5)")
        left = shutil.copytree(copy, copy.parent / "left")  # as its writer leaves it when it is killed
    questions, notes = data.load("spider", left, "train")
    assert {q.db_id for q in questions} == {"pets"} and "open it once with sqlite3" in notes[0]
    with closing(sqlite3.connect(left / "database" / "books" / "books.sqlite")) as connection:
        connection.execute("SELECT count(*) FROM book").fetchone()
    questions, notes = data.load("spider", left, "train")  # the advice helps
    assert len(questions) == 12 and notes == []


def test_birds_layout_brings_evidence_and_question_id(spider, tmp_path):
    shutil.copytree(spider / "database", tmp_path / "dev" / "dev_databases")
    row = {"db_id": "pets", "question": "How  many?", "SQL": " SELECT 1 ", "evidence": " many\nmeans 2 "}
    row |= {"question_id": 71, "difficulty": "simple"}
    (tmp_path / "dev" / "dev.json").write_text(json.dumps([row]))
    (question,), _ = data.load("bird", tmp_path, "dev")
    assert (question.text, question.gold, question.evidence) == ("How  many?", "SELECT 1", "many\nmeans 2")
    assert (question.question_id, question.difficulty, question.index) == (71, "simple", 0)


BAD = {
    "an id that is a list": {"question_id": [7]},
    "an id that is true": {"question_id": True},
    "an id that is a fraction": {"question_id": 1.5},
    "an id that cannot be written": {"question_id": "\ud800"},
    "a name that is a number": {"db_id": 3},
    "a name that cannot be written": {"db_id": "\ud800"},
    "a difficulty that cannot be written": {"difficulty": "\ud800"},
    "a question that is none": {"question": None},
    "evidence that is a list": {"evidence": ["x"]},
}


@pytest.mark.parametrize("change", BAD)
def test_a_row_that_cannot_be_a_question_is_a_user_error_that_names_the_row(change, copy):
    rows = json.loads((copy / "dev.json").read_text())
    rows[2] |= BAD[change]
    (copy / "dev.json").write_text(json.dumps(rows))
    with pytest.raises(
        UserError, match=r"dev\.json, row 2, counted from 0: .*(not text|whole number|surrogates)"
    ):
        data.load("spider", copy, "dev")


def problem(number, **change):
    meta = {"library": "Numpy", "problem_id": number} | change
    return {"metadata": meta, "prompt": "p", "reference_code": "x = 1", "code_context": "test"}


@pytest.mark.parametrize("change", [{"library": ["Numpy"]}, {"library": 3}, {"problem_id": [1]}])
def test_a_problem_that_cannot_be_one_is_a_user_error_that_names_the_row(change, tmp_path):
    rows = [problem(0), problem(1, **change), problem(2)]
    with gzip.open(tmp_path / "ds1000.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="ds1000.jsonl.gz, line 2: "):
        data.load("ds1000", tmp_path, "dev")


def test_a_compressed_file_that_is_damaged_is_a_user_error(tmp_path):
    raw = bytearray(gzip.compress(json.dumps(problem(0)).encode() * 50))
    raw[20:40] = b"\xff" * 20
    (tmp_path / "ds1000.jsonl.gz").write_bytes(raw)
    with pytest.raises(UserError, match="is not readable"):
        data.load("ds1000", tmp_path, "dev")


def test_difficulties_of_mixed_kinds_are_texts_by_which_scores_are_grouped(copy):
    rows = json.loads((copy / "dev.json").read_text())
    given = [1, "hard", None, 0, ["a"], 2.5]
    (copy / "dev.json").write_text(json.dumps([row | {"difficulty": d} for row, d in zip(rows, given)]))
    questions, _ = data.load("spider", copy, "dev")
    assert [q.difficulty for q in questions] == ["1", "hard", "", "0", "['a']", "2.5"]
    groups = scores(questions, [q.gold for q in questions], [Verdict("correct")] * 6).groups
    assert sorted(groups) == ["0", "1", "2.5", "['a']", "easy", "hard"]


def test_a_larger_subset_contains_the_smaller_ones():
    everything = list(range(500))
    chosen = [set(data.subset(everything, n, 3)) for n in (1, 7, 100, 499, 500, 0)]
    assert [len(c) for c in chosen] == [1, 7, 100, 499, 500, 500]
    assert all(small <= large for small, large in zip(chosen, chosen[1:]))
    assert data.subset(everything, 100, 3) == sorted(chosen[2])
    assert set(data.subset(everything, 100, 4)) != chosen[2]


def test_prompts_of_one_database_share_everything_before_the_question(spider, tokenizer):
    questions, _ = data.load("spider", spider, "train")
    for db in ("pets", "books"):
        texts = [prompts.prompt(q) for q in questions if q.db_id == db]
        head = texts[0].split("Question:")[0]
        assert database.schema(next(q.database for q in questions if q.db_id == db)) in head
        assert all(p.startswith(head) for p in texts)
        ids = [prompts.prompt_ids(q, tokenizer) for q in questions if q.db_id == db]
        shared = next(n for n in range(len(ids[0])) if len({tuple(p[:n]) for p in ids}) > 1) - 1
        assert shared > 0.7 * len(ids[0])


def test_the_schema_is_the_databases_own_create_statements(spider):
    assert database.schema(str(spider / "database" / "pets" / "pets.sqlite")) == (
        "CREATE TABLE owner (id INTEGER PRIMARY KEY, name TEXT, city TEXT);\n"
        "CREATE TABLE pet (id INTEGER PRIMARY KEY, owner_id INTEGER, kind TEXT, age INTEGER);"
    )


# Each lost something when its white space was collapsed, or was not in the schema, or should not be in it.
NASTY = {
    "line comments": "CREATE TABLE t (a INTEGER, -- it's the key\n b TEXT -- (last)\n)",
    "block comments": "CREATE TABLE t (a /* -- it's */ INTEGER /* two\n lines */, b TEXT /**/ NOT NULL)",
    "comment signs in names": 'CREATE TABLE t ("a -- b" TEXT, [c /* d] TEXT, `e */ f` TEXT)',
    "white space in names": (
        """CREATE TABLE "my  table" ([a  b] TEXT, `c\n d` TEXT, "e\t'f" TEXT, 'g  h' TEXT)"""
    ),
    "quotes in names": (
        'CREATE TABLE "say ""x  y" (`a``  b` TEXT, "[c]" TEXT); CREATE TABLE [it\'s  "odd] (a)'
    ),
    "defaults": (
        "CREATE TABLE t (a DEFAULT 'two  blanks -- none', b DEFAULT 'it''s  /* x */', c DEFAULT x'00')"
    ),
    "a no-break space in a name": "CREATE TABLE t (a\u00a0b TEXT, c\u3000d TEXT)",
    "names like SQLite's": "CREATE TABLE sqliteX (a); CREATE TABLE sqlite (b); CREATE TABLE xsqlite_y (c)",
    "keys": (
        "CREATE TABLE p (a INTEGER PRIMARY KEY AUTOINCREMENT); CREATE TABLE c (a -- of p\n REFERENCES p(a))"
    ),
    "views": """CREATE TABLE t (a); CREATE VIEW v AS SELECT a, '  ' AS "x  y" -- it's all\n FROM t;
                CREATE TABLE u (b)""",
    "a comment after a view": (
        "CREATE VIEW v AS SELECT 1 -- one\n; CREATE VIEW w AS SELECT * FROM v /* all */;"
    ),
    "generated": """CREATE TABLE t (a INT, b INT GENERATED ALWAYS AS (a -- twice\n * 2) STORED,
                    c AS (a / 1) /* virtual */)""",
    "without rowid": "CREATE TABLE t (a TEXT PRIMARY KEY, b) -- no rowid\n WITHOUT /* it's */ ROWID",
    "full text": "CREATE VIRTUAL TABLE t USING fts5(a, b, tokenize = 'porter  ascii'); CREATE TABLE u (a)",
    "full text, older": 'CREATE VIRTUAL TABLE "my  t" USING fts4(a -- it\'s\n, b /* c */)',
    "boxes": "CREATE VIRTUAL TABLE t USING rtree(id, low,  high)",
    "renamed": """CREATE TABLE t (a, b -- it's\n); ALTER TABLE t RENAME TO "new  t";
                  ALTER TABLE "new  t" ADD c DEFAULT '  ' """,
}


def shape(connection):
    """All that a query can see of tables and views: kinds, columns, types, keys, defaults, foreign keys."""
    found = {}
    for _, name, kind, _, without_rowid, strict in connection.execute("PRAGMA table_list").fetchall():
        if not name.startswith("sqlite_"):
            quoted = name.replace('"', '""')
            columns = connection.execute(f'PRAGMA table_xinfo("{quoted}")').fetchall()
            keys = connection.execute(f'PRAGMA foreign_key_list("{quoted}")').fetchall()
            found[name] = kind, without_rowid, strict, columns, keys
    return found


def rebuilt(path):
    with closing(sqlite3.connect(path)) as theirs, closing(sqlite3.connect(":memory:")) as ours:
        ours.executescript(database.schema(str(path)))
        return shape(theirs), shape(ours)


@pytest.mark.parametrize("name", NASTY)
def test_the_schema_rebuilds_the_database(name, tmp_path):
    make_database(tmp_path / "a.sqlite", NASTY[name])
    theirs, ours = rebuilt(tmp_path / "a.sqlite")
    assert theirs == ours and theirs


def test_the_schemas_of_the_shop_rebuild_their_databases():
    paths = sorted(SHOP.glob("database/*/*.sqlite"))
    assert len(paths) > 10
    for path in paths:
        theirs, ours = rebuilt(path)
        assert theirs == ours


def test_a_schema_has_its_tables_without_comments_and_then_its_views_as_written(tmp_path):
    make_database(
        tmp_path / "a.sqlite", "CREATE VIEW v AS SELECT 1  + 1 -- two\n; CREATE TABLE t (a, -- it's\n b )"
    )
    assert (
        database.schema(str(tmp_path / "a.sqlite"))
        == "CREATE TABLE t (a, b );\nCREATE VIEW v AS SELECT 1  + 1 -- two\n;"
    )


def test_a_view_that_ends_in_an_open_comment_swallows_no_other(tmp_path):
    """SQLite takes such a view, and keeps its text as it is."""
    views = {
        "a": "SELECT x FROM t /* all; it's", "b": "SELECT x FROM t /*/", "c": "SELECT x FROM t /* *",
        "d": "SELECT 1 x /**/", "e": "SELECT x FROM t -- no /* comment", "f": "SELECT '/* text' x",
        "g": "SELECT x FROM a /* */ /* x",
    }  # fmt: skip
    with closing(sqlite3.connect(tmp_path / "a.sqlite")) as connection:
        connection.execute("CREATE TABLE t (x)")
        for name, query in views.items():
            connection.execute(f"CREATE VIEW {name} AS {query}")
        connection.commit()
    theirs, ours = rebuilt(tmp_path / "a.sqlite")
    assert theirs == ours and set(views) < set(theirs)


@pytest.mark.parametrize("table", ['"say ""x"""', "sqliteX", "[it's]", '"a b"'])
def test_a_table_of_any_name_may_have_the_only_row(copy, table):
    path = copy / "database" / "books" / "books.sqlite"
    path.unlink()
    make_database(path, f"CREATE TABLE {table} (a); INSERT INTO {table} VALUES (1)")
    questions, notes = data.load("spider", copy, "train")
    assert len(questions) == 12 and notes == []


def test_a_virtual_table_whose_module_is_missing_hides_no_other_table(copy):
    path = copy / "database" / "books" / "books.sqlite"
    path.unlink()
    make_database(
        path,
        """CREATE TABLE t (a); INSERT INTO t VALUES (1); PRAGMA writable_schema = on;
           INSERT INTO sqlite_master (rowid, type, name, tbl_name, rootpage, sql)
           VALUES (0, 'table', 'v', 'v', 0, 'CREATE VIRTUAL TABLE v USING nowhere(b)')""",
    )
    questions, notes = data.load("spider", copy, "train")
    assert len(questions) == 12 and notes == []
    assert database.schema(str(path)) == "CREATE VIRTUAL TABLE v USING nowhere(b);\nCREATE TABLE t (a);"


def test_what_a_virtual_table_keeps_for_itself_is_no_row(tmp_path):
    make_database(tmp_path / "a.sqlite", "CREATE VIRTUAL TABLE t USING fts5(a)")
    assert not database.has_rows(str(tmp_path / "a.sqlite"))


def test_a_question_keeps_the_white_space_inside_it(copy):
    text = "Who wrote \n 'A  B\tC'?"
    row = {"db_id": "pets", "question": f" {text}\n", "query": "SELECT 1"}
    (copy / "train_spider.json").write_text(json.dumps([row]))
    (question,), _ = data.load("spider", copy, "train")
    assert question.text == text and prompts.prompt(question).endswith(f"Question: {text}")


# ---- where code begins and ends ----------------------------------------------------------------------------

Q = "SELECT name FROM pet"
EXTRACTED = {
    Q: (Q, False),
    f"{Q};": (Q, True),
    f"  {Q} ; SELECT 2": (Q, True),
    f"{Q}\n\nThis lists the names.": (Q, True),
    f"{Q}\nWHERE age > 1": (f"{Q}\nWHERE age > 1", False),
    f"```sql\n{Q}\n```": (Q, True),
    f"```sql\n{Q}\n\nLIMIT 3\n```": (f"{Q}\n\nLIMIT 3", True),
    f"```\n{Q};\n```": (Q, True),
    f"```{Q}```": (Q, True),
    f"```sql {Q}```": (Q, True),
    f"```SQL\n{Q}": (Q, False),
    f"Here is the query:\n\n```sql\n{Q}\n```": (Q, True),
    f"Here is the query:\n\n{Q};": (Q, True),
    "Here is the query:\n\n": ("Here is the query:", False),
    "SELECT ';' FROM a;": ("SELECT ';' FROM a", True),
    "SELECT 'it''s; so' FROM a; x": ("SELECT 'it''s; so' FROM a", True),
    'SELECT "a;b" FROM a;': ('SELECT "a;b" FROM a', True),
    "SELECT 'open; ": ("SELECT 'open;", False),
    "WITH a AS (SELECT 1) SELECT * FROM a;": ("WITH a AS (SELECT 1) SELECT * FROM a", True),
    "WITH RECURSIVE a(x) AS (SELECT 1)\nSELECT x FROM a;": (
        "WITH RECURSIVE a(x) AS (SELECT 1)\nSELECT x FROM a",
        True,
    ),
    f"With pleasure:\n{Q};": (Q, True),
    "(SELECT 1) UNION (SELECT 2);": ("(SELECT 1) UNION (SELECT 2)", True),
    # what else stands on a fence's line is no code
    f"```sqlite3\n{Q}\n```": (Q, True),
    f"``` sql\n{Q}\n```": (Q, True),
    f"```{{sql}}\n{Q}\n```": (Q, True),
    f"```{{.sql .numberLines}}\n{Q}\n```": (Q, True),
    f"```SQL-lite\n{Q}\n```": (Q, True),
    f'```sql title="it\'s; `all`"\r\n{Q}\n```': (Q, True),
    f"```sql -- with; it's\n{Q}\n```": (Q, True),
    f"````sql\n{Q}\n````": (Q, True),
    f"`````  \n{Q}\n`````": (Q, True),
    f"```T-SQL {Q}```": (Q, True),
    f"``` {Q} ```": (Q, True),
    f"```sql\t{Q}\nWHERE age > 1```": (f"{Q}\nWHERE age > 1", True),
    "```sql (SELECT 1) UNION SELECT 2```": ("(SELECT 1) UNION SELECT 2", True),
    "```sql(SELECT 1)```": ("(SELECT 1)", True),
    "```sql /* it's all */ SELECT 1```": ("/* it's all */ SELECT 1", True),
    "```sql WITH a AS (SELECT 1)\nSELECT 2;": ("WITH a AS (SELECT 1)\nSELECT 2", True),
    f"```sql with comments\n{Q};": (Q, True),
    f"```selected\n{Q};": (Q, True),
    "```SELECT": ("SELECT", False),
    "```sql": ("", False),
    "```sql```": ("", True),
    "```sql; select": ("", False),
    "no code; at all\n\n": ("no code; at all", False),
    "": ("", False),
    # comments of both forms hold no end, and an apostrophe in one opens no text
    "```sql\nSELECT 1 -- it's\n```": ("SELECT 1 -- it's", True),
    "```sql\nSELECT a -- all; rows\nFROM t\n```": ("SELECT a -- all; rows\nFROM t", True),
    "```sql\n-- first; it's this\nSELECT 1\n```": ("-- first; it's this\nSELECT 1", True),
    "SELECT a /* it's; ``` \n\n \" */ FROM t;": ("SELECT a /* it's; ``` \n\n \" */ FROM t", True),
    "SELECT a -- it's\n\nThis lists a.": ("SELECT a -- it's", True),
    "SELECT a /* open; it's": ("SELECT a /* open; it's", False),
    "SELECT '--', '/*' FROM t; x": ("SELECT '--', '/*' FROM t", True),
    "/* all; */ SELECT 1": ("/* all; */ SELECT 1", False),
    "/* it's all */ SELECT 1; x": ("/* it's all */ SELECT 1", True),
    "/* all */\n(/**/ SELECT 1); x": ("/* all */\n(/**/ SELECT 1)", True),
    f"Use /* and */:\n{Q} /* all */; x": (f"{Q} /* all */", True),
    f"/* open\n{Q}; x": (Q, True),
    f"Use /* here:\n{Q} /* all */; x": (f"{Q} /* all */", True),
    "/* with\nselect a */\nSELECT 1; x": ("/* with\nselect a */\nSELECT 1", True),
    "WITH /* it's */ a -- new\nAS (\nSELECT 1) SELECT 2;": (
        "WITH /* it's */ a -- new\nAS (\nSELECT 1) SELECT 2",
        True,
    ),
    # names in backticks and brackets
    "SELECT `a;b`, [c;'d], [``] FROM t;": ("SELECT `a;b`, [c;'d], [``] FROM t", True),
    "```sql\nSELECT `a` FROM `b````": ("SELECT `a` FROM `b`", True),
    'WITH "my a" AS (\nSELECT 1)\nSELECT 2;': ('WITH "my a" AS (\nSELECT 1)\nSELECT 2', True),
    # a fence at the start of a line ends everything, also what was never closed
    "```sql\nSELECT 'it's\n```\nIt's; this": ("SELECT 'it's", True),
    "```sql\nSELECT [a\n  ```\nSo]; this": ("SELECT [a", True),
    "```sql\nSELECT 1 /* open\n```\nThis */ lists": ("SELECT 1 /* open", True),
    "SELECT 'open\n```": ("SELECT 'open", True),
    # in a `--` comment a fence ends the query where it ends the line
    "```sql\nSELECT 1 -- it's```\nThis": ("SELECT 1 -- it's", True),
    "```sql\nSELECT 1 -- it's ```": ("SELECT 1 -- it's ```", False),
    "```sql\nSELECT a -- no ``` fence\nFROM t\n```": ("SELECT a -- no ``` fence\nFROM t", True),
    # thinking is no answer
    "<think>\n\n</think>\n\nSELECT 1;": ("SELECT 1", True),
    "<think>\nMaybe:\nSELECT 2;\n```sql\nSELECT 3\n```\n</think>SELECT 1; x": ("SELECT 1", True),
    "\n <think>a</think>\n<think>SELECT 2;\n</think>\n```sql\nSELECT 1\n```": ("SELECT 1", True),
    "<think>\nSELECT 2;\n\n```sql\nSELECT 3\n```\n</thin": ("", False),
    "<think>\nSELECT 2;\n</think>\n": ("", False),
    "SELECT '<think>' FROM t; </think>": ("SELECT '<think>' FROM t", True),
}


@pytest.mark.parametrize("text", EXTRACTED)
def test_the_query_inside_an_answer(text):
    assert (extract_code(text), code_ended(text)) == EXTRACTED[text]


def test_once_code_has_ended_nothing_that_follows_changes_it():
    pieces = [
        "SELECT ", "select", "WITH ", "with a as (", " as", "recursive ", "```", "`", "sql", ";", "\n", "\n",
        " ", "'",
    ]  # fmt: skip
    pieces += [
        '"', "(", ")", "a", "x", "''", "\n\n", "\t", "Here:", "--", "/*", "*/", "[", "]", "\n```", "\r\n",
        "-", "/",
    ]  # fmt: skip
    pieces += ["<think>", "</think>", "sqlite3", "{sql}", "-lite", "```sql ", "```` sql"]
    rng, ended = random.Random(0), 0
    for _ in range(30000):
        text = "".join(rng.choices(pieces, k=rng.randrange(2, 16)))
        for n in range(len(text)):
            if code_ended(text[:n]):
                ended += 1
                code, longer = extract_code(text[:n]), [text[:m] for m in range(n + 1, len(text) + 1)]
                assert all(code_ended(t) and extract_code(t) == code for t in longer), (text, n)
                break
    assert ended > 4000


SLOW = [
    "with " + "/**/" * 20000, "with " + "/*" * 40000, "with a" + " " * 80000, "(" * 80000, "with [" * 20000,
]  # fmt: skip
SLOW += [text * (80000 // len(text)) for text in (
    "/*x\n", "/**/\n", "/*\n*/", "x/*\n/*x", "with /*\n", "with /**/ /*\n", "with/**/\n", "with\n",
    "with a /*\n", "(\n", "\n ", "\n", "with\n/**//*x\n", "/*/", "/* */x\n", "`", "````a\n", "'\n", '"',
    "--`", "<think>", "select\n/*", "/*x\n(", "``` ",
)]  # fmt: skip
SLOW += ["/*x\n" * 20000 + "*/", "with /*a\n" * 10000 + "*/"]
SLOW += ["```sql " + "/*x\n" * 20000, "```" + "x " * 40000, "```" + "(" * 80000, "```" + "/**/" * 20000]


@pytest.mark.parametrize("text", SLOW, ids=lambda text: repr(text[:12]))
def test_a_text_that_only_looks_like_a_query_takes_no_time(text):
    started = time.process_time()
    code_ended(text)
    assert time.process_time() - started < 2  # measured: below 0.1 s; what tries each line anew took minutes


def test_code_that_the_judge_would_not_run_is_not_read_to_its_end():
    text = f"SELECT {'1, ' * MAX_QUERY}"
    assert extract_code(f"{text} 1; x") == extract_code(text) and len(extract_code(text)) > MAX_QUERY
    started = time.process_time()
    extract_code("/*x\n" * 2_000_000)
    assert time.process_time() - started < 2


def test_once_a_python_answer_has_ended_nothing_that_follows_changes_it():
    pieces = ["```", "python", "<code>", "</code>", "\n", "END SOLUTION", "x = 1", "`", "END", "</", "code>"]
    pieces += ["\nEND SOLUTION", "<think>", "</think>"]
    rng, ended = random.Random(0), 0
    for _ in range(10000):
        text = "".join(rng.choices(pieces, k=rng.randrange(2, 12)))
        n = next((n for n in range(len(text)) if code_ended(text[:n], "python")), None)
        if n is not None:
            ended += 1
            code = extract_code(text[:n], "python")
            assert all(extract_code(text[:m], "python") == code for m in range(n, len(text) + 1))
    assert ended > 5000


@pytest.mark.parametrize("code", ["    return x", "<code>\n    return x\n</code>", "```python\nx = 1\n```"])
def test_a_python_answer_begins_after_the_thinking(code):
    thought = "<think>\n<code>no</code>\nEND SOLUTION\n"
    assert (extract_code(thought, "python"), code_ended(thought, "python")) == ("", False)
    for end in ("</think>", "</think> \n\n", "</think>\n<think></think>\n"):
        text = f"\n{thought}{end}{code}"
        assert extract_code(text, "python") == extract_code(code, "python")
        assert code_ended(text, "python") == code_ended(code, "python")


@pytest.mark.parametrize("split", ["train", "dev"])
def test_every_gold_query_of_the_shop_survives_extraction(split):
    for q in data.load("shop", SHOP, split)[0]:
        for text in ("{}", "{};", " {}\n\nwhich is it", "```sql\n{};\n```", "Sure:\n{};"):
            assert extract_code(text.format(q.gold)) == q.gold
        assert not code_ended(q.gold)


def test_a_user_error_is_one_line_and_exit_code_2(capsys):
    def main():
        raise UserError("no such thing.")

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 2 and capsys.readouterr().err == "error: no such thing.\n"
