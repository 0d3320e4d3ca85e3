"""Scores by hand, every form of a predictions file, and the command on the bundled set."""

import dataclasses
import gzip
import json
import shutil
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
from test_verify_cli import CONTEXT, strict
from test_verify_sql import damaged

import data
import eval as evaluation
import prompts
from cli import UserError
from data import Question
from eval import PolicyScores, scores
from judging import usable
from predictions import read_predictions
from verify import InfrastructureError, Verdict, Verifier

ROOT = Path(__file__).resolve().parent.parent


def questions(*indices, offset=700):
    return [Question(i, "pets", "pets.sqlite", "?", "SELECT 1", question_id=offset + i) for i in indices]


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "predictions"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_scores_by_hand():
    outcomes = ("correct", "correct", "wrong", "error", "timeout", "error", "correct", "wrong")
    asked = [dataclasses.replace(q, difficulty="hard" if q.index > 3 else "") for q in questions(*range(8))]
    # EM: values do not count
    codes = ["SELECT 2", "SELECT x", "", "(", "SELECT 1", "SELECT 1", "SELECT 1 LIMIT 1", "SELECT 1"]
    found = scores(asked, codes, [Verdict(v) for v in outcomes])
    assert (found.n, found.ex, found.executable, found.em) == (8, 3 / 8, 5 / 8, 4 / 8)
    counts = {"correct": 3, "wrong": 2, "error": 2, "timeout": 1}
    assert {v: n for v, n in found.classes.items() if n} == counts
    assert found.groups == {
        "easy": {"n": 4, "ex": 2 / 4, "executable": 3 / 4, "em": 1 / 4},
        "hard": {"n": 4, "ex": 1 / 4, "executable": 2 / 4, "em": 3 / 4},
    }
    silent = scores(
        questions(0, 1), ["", "SELECT 2"], [Verdict("wrong", "not a query"), Verdict("wrong", "1 row, not 2")]
    )
    assert (silent.executable, silent.classes["wrong"]) == (1 / 2, 2)  # an empty answer runs nothing
    empty = scores([], [], [])
    assert (empty.n, empty.ex, empty.executable, empty.em) == (0, 0, 0, None)


def test_a_python_question_has_no_em():
    asked = [dataclasses.replace(questions(0)[0], context="test", difficulty="Numpy")]
    found = scores(asked, ["result = 1"], [Verdict("correct")])
    assert found.em is None and found.groups == {"Numpy": {"n": 1, "ex": 1.0, "executable": 1.0, "em": None}}


@pytest.mark.parametrize("splits", [(), ("dev",), ("validation", "dev")], ids=" ".join)
def test_a_policys_scores_are_read_as_they_were_written(splits):
    one = scores(questions(0, 1), ["SELECT 1", "SELECT x"], [Verdict("correct"), Verdict("error")])
    made = PolicyScores(*(one if split in splits else None for split in ("validation", "dev")))
    plain = json.loads(json.dumps(made.plain()))
    assert list(plain) == list(splits) and PolicyScores.of(plain, splits) == made
    for split in splits:
        with pytest.raises(KeyError):
            PolicyScores.of({name: value for name, value in plain.items() if name != split}, splits)
        with pytest.raises(TypeError):
            PolicyScores.of(plain | {split: {"n": 3}}, splits)


# ---- predictions -------------------------------------------------------------------------------------------


def test_one_query_a_line_for_the_whole_file(write):
    path = write("SELECT 1\n\nSELECT 3\n")  # an empty line is an empty answer
    assert read_predictions(path, questions(0, 1), total=3) == {0: "SELECT 1", 1: ""}
    assert read_predictions(path, questions(0, 2), total=3) == {0: "SELECT 1", 2: "SELECT 3"}


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n \n\n"])
def test_empty_answers_at_the_end_are_answers_and_what_is_too_much_is_not(write, end):
    found = read_predictions(write("SELECT 1\n\nSELECT 3" + end), questions(0, 1, 2), total=3)
    assert found == {0: "SELECT 1", 1: "", 2: "SELECT 3"}
    if end.startswith("\n\n"):
        found = read_predictions(write("SELECT 1" + end), questions(0, 1), total=2)
        assert found == {0: "SELECT 1", 1: ""}


def test_a_file_for_the_usable_questions_alone_is_not_guessed_at(write):
    with pytest.raises(UserError, match="2 lines; the split has 3 questions"):
        read_predictions(write("SELECT 1\nSELECT 3"), questions(0, 2), total=3)


def test_a_tab_and_the_name_of_the_database_are_dropped(write):
    path = write("SELECT 1\tpets\nSELECT '\t'\tpets\n")
    assert read_predictions(path, questions(0, 1), 2) == {0: "SELECT 1", 1: "SELECT '\t'"}


def test_a_tab_inside_a_query_drops_nothing(write):
    path = write("SELECT 1\tFROM pets\nSELECT '\tx'\n")
    assert read_predictions(path, questions(0, 1), 2) == {0: "SELECT 1\tFROM pets", 1: "SELECT '\tx'"}


def on(index, db_id, **more):
    return dataclasses.replace(questions(index)[0], db_id=db_id, **more)


@pytest.mark.parametrize("line, named", [
    ("SELECT a FROM t\tbooks", "books"),  # another question's database
    ("SELECT a FROM t\tbooks  ", "books"), ("SELECT a FROM t \t books", "books"),
    ("SELECT a FROM t\tpets\tbooks", "books"),
    ("SELECT a FROM t\t3-d", "3-d"),  # a known name, though no word of SQL
    ("SELECT a FROM t\tPets", "Pets"), ("SELECT a FROM t\tpet", "pet"),  # misspelt
    ("SELECT a FROM t\tfoo", "foo"),  # unknown
    ("SELECT a FROM t\t----- bird -----\tbooks", "books"),
    ("SELECT a FROM t\t----- bird -----\tno word", "no word"), ("SELECT a FROM t\t----- bird -----\t", ""),
])  # fmt: skip
def test_the_name_of_another_database_is_refused(write, line, named):
    """It would be an alias, and the query would be judged on the question's own database."""
    asked = [on(0, "pets"), on(1, "pets"), on(2, "books"), on(3, "3-d")]
    path = write(f"SELECT 1\n{line}\nSELECT 1\nSELECT 1")
    with pytest.raises(UserError, match=f"line 2: after the TAB stands {named}, but question 1 is on pets"):
        read_predictions(path, asked, 4)


def test_gold_queries_of_another_order_are_refused(write):
    asked = [on(i, ("pets", "books")[i % 2]) for i in range(6)]
    lines = [f"SELECT {q.index} FROM t\t{q.db_id}" for q in asked]
    assert read_predictions(write("\n".join(lines)), asked, 6) == {i: f"SELECT {i} FROM t" for i in range(6)}
    with pytest.raises(UserError, match="line 3: after the TAB stands books"):
        read_predictions(write("\n".join(lines[:2] + lines[3:] + lines[2:3])), asked, 6)


@pytest.mark.parametrize("query", [
    "SELECT a FROM t ORDER BY b\tDESC", "SELECT a FROM t WHERE b IS NOT\tnull", "SELECT a FROM t LIMIT\t1",
    'SELECT a FROM t WHERE b\t=  "Emma"', 'SELECT a FROM t WHERE b = "Emma\t"', "SELECT\ta FROM t",
    "SELECT a FROM t\t", "SELECT a FROM\tt;",
])  # fmt: skip
def test_what_cannot_be_a_database_after_a_tab_is_part_of_the_query(write, query):
    assert read_predictions(write(query), questions(0), 1) == {0: query}


def test_an_empty_answer_may_have_the_name_of_its_database(write):
    path = write("\tpets\nSELECT 1\t----- bird -----\tpets")
    assert read_predictions(path, questions(0, 1), 2) == {0: "", 1: "SELECT 1"}


def test_python_code_has_no_database(write):
    asked = [on(0, "Pandas", context="test"), on(1, "Numpy", context="test")]
    assert read_predictions(write("x =\ty\nx =\tNumpy"), asked, 2) == {0: "x =\ty", 1: "x =\tNumpy"}
    assert read_predictions(write('{"0": "x =\\ty"}'), asked, 2) == {0: "x =\ty"}


# ---- BIRD's predict_dev.json ----


@pytest.mark.parametrize("indent", [None, 4])
def test_birds_own_file(write, indent):
    asked = [on(0, "pets"), on(2, "books"), on(3, "books")]
    answers = {
        "0": "SELECT 1\t----- bird -----\tpets",
        "2": "SELECT\n2 -- \u2028\t----- bird -----\tbooks",
        "3": "SELECT 3",
        "1": "of a question left out\t----- bird -----\tshops",
    }
    found = read_predictions(write(json.dumps(answers, indent=indent)), asked, 4)
    assert {i: found[i] for i in (0, 2, 3)} == {0: "SELECT 1", 2: "SELECT\n2 -- \u2028", 3: "SELECT 3"}


@pytest.mark.parametrize("text, words", [
    ('{"0": "SELECT 1\\t----- bird -----\\tbooks"}', "key '0': after the TAB stands books, but question 0"),
    ('{"0": "SELECT 1\\t----- bird -----\\tnone"}', "key '0': after the TAB stands none"),
    ('{"0": "x", "4": "x"}', "key '4': a key must be a position among the official file's 4 questions"),
    ('{"0": "x", "00": "x"}', "key '00'"), ('{"0": "x", "-1": "x"}', "key '-1'"),
    ('{"0": "x", "a": "x"}', "key 'a'"),
    ('{"0": "x", "0": "y"}', "key '0': question 0 has an answer already"),
    ('{"0": 0}', "key '0': the answer must be a string"), ('{"0": null}', "key '0'"),
    ('{"0": {"1": "x"}}', "key '0'"), ('{"0": "\\ud800"}', "key '0': the answer must be a string"),
    ('{"1": "x"}', "no line answers a question of this split"), ("{}", "line 1"), ('{"0": "x"', "line 1"),
])  # fmt: skip
def test_what_is_wrong_with_birds_own_file_is_named(write, text, words):
    with pytest.raises(UserError, match=words):
        read_predictions(write(text), questions(0, 2, 3), 4)


# ---- ids ----


def twice(**other):
    """Question 1's id is question 3's as well."""
    asked = [dataclasses.replace(q, text=f"question {q.index}?") for q in questions(*range(5))]
    return [*asked[:3], dataclasses.replace(asked[1], index=3, **other), asked[4]]


def with_ids(*rows):
    return "".join(json.dumps({"question_id": own, "answer": answer}) + "\n" for own, answer in rows)


def test_one_line_answers_all_questions_with_its_id(write):
    found = read_predictions(write(with_ids((700, "a"), (701, "b"), (704, "c"))), twice(), 5)
    assert found == {0: "a", 1: "b", 3: "b", 4: "c"}


def test_as_many_lines_as_questions_with_an_id_answer_them_in_order(write):
    found = read_predictions(write(with_ids((701, "first"), (700, "a"), (701, "second"))), twice(), 5)
    assert found == {0: "a", 1: "first", 3: "second"}


def test_more_lines_than_questions_with_an_id_are_refused(write):
    with pytest.raises(UserError, match="line 3: question 3 has an answer already"):
        read_predictions(write(with_ids(*[(701, "a")] * 3)), twice(), 5)
    with pytest.raises(UserError, match="line 2: question 0 has an answer already"):
        read_predictions(write(with_ids(*[(700, "a")] * 2)), twice(), 5)
    by_index = '{"index": 3, "answer": "a"}\n'
    with pytest.raises(UserError, match="line 2: question 3 has an answer already"):
        read_predictions(write(by_index + with_ids((701, "a"))), twice(), 5)
    with pytest.raises(UserError, match="line 2: question 3 has an answer already"):
        read_predictions(write(with_ids((701, "a")) + by_index), twice(), 5)


@pytest.mark.parametrize("other", [{"text": "?"}, {"gold": "SELECT 2"}, {"db_id": "books"}])
def test_an_id_of_questions_that_differ_is_refused(write, other):
    with pytest.raises(UserError, match="line 2: questions 1 and 3 differ, but share the id 701: give their"):
        read_predictions(write(with_ids((700, "a"), (701, "b"))), twice(**other), 5)
    rows = [{"index": i, "question_id": 701, "answer": str(i)} for i in (3, 1)]
    assert read_predictions(write("\n".join(map(json.dumps, rows))), twice(**other), 5) == {3: "3", 1: "1"}


def test_a_line_that_names_no_question_is_refused(write):
    good = {"index": None, "question_id": 700, "answer": "a"}  # as tables write a value that is missing
    assert read_predictions(write(json.dumps(good)), questions(0), 1) == {0: "a"}
    for row in ({"answer": "a"}, {"index": None, "answer": "a"}, {"question_id": None, "answer": "a"}):
        with pytest.raises(UserError, match="line 2: index or question_id is missing"):
            read_predictions(write(json.dumps(good) + "\n" + json.dumps(row)), questions(0), 1)
    with pytest.raises(UserError, match="line 1: answer is missing"):
        read_predictions(write(json.dumps({"index": 0})), questions(0), 1)
    with pytest.raises(UserError, match="is a list: predictions in JSON stand one object a line"):
        read_predictions(write(json.dumps([good], indent=1)), questions(0), 1)
    unknown = with_ids((1, "a"), (1, "b"))  # of questions left out
    assert read_predictions(write(json.dumps(good) + "\n" + unknown), questions(0), 1) == {0: "a"}


def test_an_id_may_be_written_as_text(write):
    by_words = [dataclasses.replace(q, question_id=f"q{q.index}") for q in questions(0, 1)]
    assert read_predictions(write(with_ids(("701", "a"), (700, "b"))), questions(0, 1), 2) == {1: "a", 0: "b"}
    assert read_predictions(write(with_ids(("q1", "a"), ("q7", "b"))), by_words, 2) == {1: "a"}
    with pytest.raises(UserError, match="line 2: question 1 has an answer already"):
        read_predictions(write(with_ids((701, "a"), ("701", "b"))), questions(0, 1), 2)


@pytest.mark.parametrize("own", [True, False, 701.0, 1e400, [701], {"id": 701}])
def test_an_id_that_can_be_none_is_refused(write, own):
    asked = [dataclasses.replace(q, question_id=q.index) for q in questions(0, 1)]  # to Python, True is 1
    for row in ({"question_id": own}, {"problem_id": own}, {"question_id": own, "index": 1}):
        text = with_ids((0, "a")) + json.dumps(row | {"answer": "x"})
        with pytest.raises(UserError, match="line 2: question_id must be a whole number or a string, not "):
            read_predictions(write(text), asked, 2)


@pytest.mark.parametrize("known, own", [
    (700, "q1"), (700, "0701"), (700, " 701"), (700, "701.0"), (700, "\u0667"), (700, ""), ("q", 701),
    ("q", "701"), (None, 701), (None, "None"), (None, "q"),
])  # fmt: skip
def test_an_id_that_no_question_could_have_is_refused_and_not_passed_over(write, known, own):
    asked = questions(0, 1)
    if known != 700:
        asked = [dataclasses.replace(q, question_id=known and f"q{q.index}") for q in asked]
    text = json.dumps({"index": 0, "answer": "a"}) + "\n" + with_ids((own, "b"))
    with pytest.raises(UserError, match="line 2: no question of this split could have the id"):
        read_predictions(write(text), asked, 2)


@pytest.mark.parametrize("row", [
    {"index": 0, "question_id": 701},
    {"index": 0, "question_id": "701"},
    {"index": 0, "question_id": 9999},  # of a question left out
    {"index": 0, "problem_id": 701},
    {"index": 5, "question_id": 701},  # the index is of a question left out
])  # fmt: skip
def test_an_index_and_an_id_of_different_questions_are_refused(write, row):
    text = (
        json.dumps({"index": 1, "question_id": 701, "answer": "a"}) + "\n" + json.dumps(row | {"answer": "b"})
    )
    with pytest.raises(
        UserError, match=f"line 2: index {row['index']} and id .* are two different questions"
    ):
        read_predictions(write(text), questions(0, 1), 9)


def test_an_index_and_an_id_that_agree_are_taken(write):
    rows = [{"index": 1, "question_id": "701", "problem_id": 701}, {"index": 0, "question_id": None}]
    rows.append({"index": 5, "question_id": 3})
    text = "\n".join(json.dumps(row | {"answer": "a", "db_id": None}) for row in rows)
    assert read_predictions(write(text), questions(0, 1), 9) == {0: "a", 1: "a", 5: "a"}
    without = [dataclasses.replace(q, question_id=None) for q in questions(0, 1)]
    # nothing says that they are others
    assert read_predictions(write(text), without, 9) == {0: "a", 1: "a", 5: "a"}


@pytest.mark.parametrize("row", [
    '{"question_id": 700, "problem_id": 701, "answer": "x"}',
    '{"index": 0, "index": 1, "answer": "x"}',
    '{"index": 0, "answer": "x", "answer": "y"}',
    '{"index": 0, "answer": "x", "\\u0061nswer": "y"}',
    '{"question_id": 700, "answer": "x", "question_id": 701}',
])  # fmt: skip
def test_a_line_that_says_two_things_is_refused(write, row):
    with pytest.raises(UserError, match="line 1: .*(700 and 701|a key stands twice)"):
        read_predictions(write(row), questions(0, 1), 2)


@pytest.mark.parametrize("named", [{"index": 1}, {"question_id": 701}, {"index": 1, "db_id": "pets"}])
def test_a_databases_name_behind_the_sql_of_a_json_line_is_read_as_in_the_other_forms(write, named):
    def found(answer):
        return read_predictions(write(json.dumps(named | {"answer": answer})), questions(0, 1), 2)

    for end in ("\tpets", "\t----- bird -----\tpets"):
        assert found("SELECT 1" + end) == {1: "SELECT 1"}
    assert found("SELECT '\tx'") == {1: "SELECT '\tx'"}
    for end in ("\tbooks", "\t----- bird -----\tbooks", "\tbooks\n"):
        with pytest.raises(UserError, match="line 1: after the TAB stands books, but question 1 is on pets"):
            found("SELECT 1" + end)


def test_lines_of_windows(write):
    assert read_predictions(write("SELECT 1\r\nSELECT 2\tpets\r\n"), questions(0, 1), 2) == {
        0: "SELECT 1",
        1: "SELECT 2",
    }


def test_a_byte_order_mark_is_no_part_of_the_first_query(write):
    assert read_predictions(write("\ufeffSELECT 1\nSELECT 2"), questions(0, 1), 2)[0] == "SELECT 1"


def test_json_lines_by_index_and_by_question_id(write):
    rows = [{"index": 2, "answer": "SELECT 2"}, {"question_id": 700, "answer": "SELECT 0", "other": 1}]
    rows.append({"question_id": 12345, "answer": "of a question left out"})
    path = write("".join(json.dumps(row) + "\n" for row in rows) + "\n\n")
    assert read_predictions(path, questions(0, 2), total=9) == {2: "SELECT 2", 0: "SELECT 0"}


def test_a_json_answer_may_hold_line_separators(write):
    answer = "SELECT '\u2028 \u0085 \x0c'\n"
    row = json.dumps({"index": 0, "answer": answer}, ensure_ascii=False)
    assert read_predictions(write(row + "\n"), questions(0), total=1) == {0: answer}


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "empty"),
        ("\n \n", "empty"),
        ("SELECT 1\nSELECT 2\nSELECT 3\n", "3 lines; the split has 4 questions"),
        ("1\n2\n3\n4\n5\n", "5 lines; the split has 4 questions"),
        (b"\xff\xfe\x00", "cannot read"),
        ('{"index": 0, "answer": "x"}\nSELECT 1', "line 2"),
        ('{"index": 0, "answer": "x"}\n{"index": 1}', "line 2"),
        ('{"answer": "x"}', "line 1"),
        ('{"index": 0, "answer": 7}', "line 1: answer must be a string"),
        ('{"index": 0, "answer": "x"}\n[1]', "line 2"),
        ('{"index": "0", "answer": "x"}', "line 1"),
        ('{"index": [0], "answer": "x"}', "line 1"),
        ('{"question_id": [0], "answer": "x"}', "line 1"),
    ],
)
def test_a_broken_file_is_a_user_error_that_names_the_place(write, text, words):
    with pytest.raises(UserError, match=words):
        read_predictions(write(text), questions(0, 2), total=4)


def test_a_file_that_is_not_there_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_predictions(tmp_path / "none", questions(0), 1)


# ---- with the verifier -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verifier():
    with Verifier(1) as verifier:
        yield verifier


def test_a_question_whose_gold_fails_is_left_out_and_named(spider, verifier):
    good = data.load("spider", spider, "dev")[0]
    bad = Question(41, "pets", good[0].database, "?", "SELECT x FROM nowhere")
    kept, notes = usable([*good, bad], verifier, 5.0)
    assert kept == good and len(notes) == 1
    assert (
        notes[0].startswith("question 41, counted from 0 (pets): gold query fails")
        and "no such table: nowhere" in notes[0]
    )


def test_a_gold_is_judged_as_an_answer_would_be(spider, verifier):
    """Spider's preparation of a query comes before it runs; a gold that changes between runs says nothing."""
    path = data.load("spider", spider, "dev")[0][0].database
    golds = ["SELECT name FROM owner WHERE id > = 2", "SELECT name FROM owner ORDER BY random()"]
    golds.append("EXPLAIN SELECT name FROM owner")
    asked = [Question(i, "pets", path, "?", gold) for i, gold in enumerate(golds)]
    kept, notes = usable(asked, verifier, 5.0)
    assert [q.index for q in kept] == [0]
    assert (
        "question 1, counted from 0 (pets): gold query fails" in notes[0]
        and "changes from run to run: random" in notes[0]
    )
    assert "not a query" in notes[1]
    kept, notes = usable([dataclasses.replace(q, comparison="strict") for q in asked], verifier, 5.0)
    assert (
        not kept
        and "question 0, counted from 0 (pets): gold query fails" in notes[0]
        and "syntax error" in notes[0]
    )


def test_a_question_whose_gold_reads_a_damaged_page_is_left_out_and_named(verifier, tmp_path):
    path = damaged(tmp_path / "bad.sqlite")
    asked = [
        Question(i, "bad", path, "?", gold)
        for i, gold in enumerate(["SELECT id FROM t", "SELECT * FROM lost"])
    ]
    kept, notes = usable(asked, verifier, 5.0)
    assert kept == asked[:1] and len(notes) == 1
    assert (
        notes[0].startswith("question 1, counted from 0 (bad): ")
        and "bad.sqlite: database disk image is malformed" in notes[0]
    )


@strict
def test_problems_whose_test_or_gold_code_fails_are_left_out_and_named(verifier):
    broken = CONTEXT.replace("return 7, 14", "return 7, open('/no/such/file')")
    problems = [
        ("result = x * 2", CONTEXT),
        ("result = x * 2", broken),
        ("result = x", CONTEXT),
        ("1 / 0", CONTEXT),
    ]
    asked = [
        Question(i, "Numpy", "", "?", gold, "", 900 + i, "Numpy", test)
        for i, (gold, test) in enumerate(problems)
    ]
    kept, notes = usable(asked, verifier, 60.0)
    assert kept == asked[:1] and len(notes) == 3
    assert notes[0].startswith("problem 901 (Numpy): the test itself fails: ") and "make ds1000" in notes[0]
    assert notes[1].startswith("problem 902 (Numpy): its gold code fails: wrong: the result: AssertionError")
    assert notes[2] == "problem 903 (Numpy): its gold code fails: error: ZeroDivisionError: division by zero"


@strict
def test_a_fault_of_the_machine_is_not_taken_for_a_broken_question(verifier, tmp_path):
    with pytest.raises(InfrastructureError, match="no database"):
        usable([Question(0, "pets", str(tmp_path / "none.sqlite"), "?", "SELECT 1")], verifier, 5.0)
    problem = Question(0, "Numpy", "", "?", "result = x * 2", context=CONTEXT)
    with Verifier(1, "/no/such/python") as other, pytest.raises(InfrastructureError, match="/no/such/python"):
        usable([problem], other, 5.0)


class Recording:
    """A verifier for which every gold is right and takes so many seconds of processor time."""

    def __init__(self, seconds=0.0):
        self.timeouts, self.seconds = [], seconds

    def submit(self, job):
        self.timeouts.append(job.timeout)
        future = Future()
        future.set_result(Verdict("correct", "", self.seconds))
        return future


def test_gold_code_has_its_time_on_a_slow_machine():
    """A gold query as well: the verifier gives it, and then its answers, the time that it needs."""
    asked, verifier = [*questions(0), dataclasses.replace(questions(1)[0], context="test")], Recording()
    for timeout in (10.0, 60.0, 500.0):
        assert usable(asked, verifier, timeout) == (asked, [])
    assert verifier.timeouts == [10, 120, 60, 120, 500, 500]


def test_a_program_that_needs_more_than_half_of_an_answers_time_is_left_out_by_name():
    query, program = *questions(0), dataclasses.replace(questions(1)[0], context="test", db_id="Numpy")
    assert usable([query, program], Recording(30.0), 60.0) == ([query, program], [])
    kept, notes = usable([query, program], Recording(41.0), 60.0)
    assert kept == [query] and notes == [
        "problem 701 (Numpy): its gold code takes 41 s of processor time, more than half of an answer's 60"
    ]


def test_a_slow_gold_is_right_as_an_answer_too(spider, tmp_path):
    """It runs for longer than an answer's time, and would be a timeout as a prediction."""
    rows = json.loads((spider / "dev.json").read_text())
    digits = " UNION ALL ".join(f"SELECT {i} x" for i in range(10))
    tables = ", ".join(f"d {name}" for name in "abcdef")
    rows[0]["query"] = (
        f"WITH d AS ({digits}) SELECT count(*) FROM {tables} WHERE a.x + b.x * c.x + d.x * e.x * f.x > 300"
    )
    shutil.copytree(spider, tmp_path / "data")
    (tmp_path / "data" / "dev.json").write_text(json.dumps(rows))
    predictions = tmp_path / "gold.sql"
    predictions.write_text("\n".join(row["query"] for row in rows))
    done = command(
        "--data", "spider", "--data-dir", tmp_path / "data", "--predictions", predictions, "--timeout", "0.05"
    )
    assert done.returncode == 0, done.stderr
    assert last(done.stdout)["ex"] == 1.0 and last(done.stdout)["n"] == len(rows)


def test_greedy_answers_are_verified_in_the_order_of_the_questions(spider, verifier, folders, monkeypatch):
    from policy import load_policy

    held_out = data.load("spider", spider, "dev")[0]
    codes = [q.gold for q in held_out]
    codes[1], codes[4] = "SELECT 12345", "SELEC"
    monkeypatch.setattr(evaluation, "greedy", lambda policy, questions, *_: codes)
    found = evaluation.evaluate(None, held_out, verifier, "dev", 5.0)
    assert [v.verdict for v in found.verdicts] == ["correct", "wrong", *["correct"] * 2, "error", "correct"]
    assert (found.scores.ex, found.scores.executable, found.codes) == (4 / 6, 5 / 6, codes)
    q = held_out[1]
    row = {"index": 1, "db_id": "pets", "question": q.text, "gold": q.gold, "answer": "SELECT 12345"}
    assert len(found.rows()) == 6 and found.rows()[1].items() >= (row | {"verdict": "wrong"}).items()
    monkeypatch.undo()
    policy = load_policy(folders["gpt2"], "float32", "cpu")
    forward, backward = (evaluation.greedy(policy, q, 10, 5000) for q in (held_out, held_out[::-1]))
    assert forward == backward[::-1] and len(set(forward)) > 1


def test_a_prompt_too_long_for_the_model_is_a_question_without_an_answer(spider, folders):
    from policy import load_policy

    held_out = data.load("spider", spider, "dev")[0]
    policy = load_policy(folders["gpt2"], "float32", "cpu")
    lengths = sorted(len(prompts.prompt_ids(q, policy.tokenizer)) for q in held_out)
    policy.max_positions = lengths[3] + 10
    codes = evaluation.greedy(policy, held_out, 10, 5000)
    fitting = [len(prompts.prompt_ids(q, policy.tokenizer)) <= lengths[3] for q in held_out]
    assert [bool(code) for code in codes] == fitting and 0 < sum(fitting) < 6


# ---- the command -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag, value", [
    ("--workers", "0"), ("--workers", "-1"), ("--limit", "-3"), ("--timeout", "0"), ("--timeout", "-2"),
    ("--timeout", "nan"), ("--timeout", "inf"), ("--batch-tokens", "0"), ("--max-new", "0"),
])  # fmt: skip
def test_a_number_that_cannot_be_is_exit_code_2_and_named(capsys, flag, value):
    with pytest.raises(SystemExit) as end:
        evaluation.main([f"{flag}={value}", "--data-dir", "/no/such/folder"])
    message = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and f"error: {flag} must" in message and value.split(".")[0] in message


class Reached(Exception):
    """The gold code would be run now."""


@pytest.fixture
def reached(monkeypatch):
    """What `usable` was given: it raises instead of running the gold code."""
    given = []

    def usable(*arguments):
        given.append(arguments)
        raise Reached

    monkeypatch.setattr(evaluation, "usable", usable)
    return given


def test_the_timeout_is_the_data_sets_own(reached, spider, write, tmp_path):
    meta = {"library": "Numpy", "problem_id": 0}
    row = {"metadata": meta, "prompt": "?", "reference_code": "result = 1", "code_context": CONTEXT}
    with gzip.open(tmp_path / "ds1000.jsonl.gz", "wt") as file:
        file.write(2 * (json.dumps(row) + "\n"))
    predictions = str(write('{"index": 0, "answer": ""}\n{"index": 1, "answer": ""}'))
    cases = ("spider", spider), ("ds1000", tmp_path), ("ds1000", tmp_path, "--timeout", "7")
    for name, folder, *flags in cases:
        with pytest.raises(Reached):
            evaluation.main(["--data", name, "--data-dir", str(folder), "--predictions", predictions, *flags])
    assert [arguments[2] for arguments in reached] == [10.0, 60.0, 7.0]


def test_the_model_and_its_adapter_are_loaded_before_any_gold_code_runs(reached, spider, folders, tmp_path):
    arguments = ["--data", "spider", "--data-dir", str(spider), "--precision", "float32", "--device", "cpu"]
    with pytest.raises(UserError):
        evaluation.main([*arguments, "--model", str(tmp_path / "no-model")])
    with pytest.raises(UserError, match="no readable adapter"):
        evaluation.main([*arguments, "--model", folders["gpt2"], "--adapter", str(tmp_path)])
    assert not reached
    with pytest.raises(Reached):
        evaluation.main([*arguments, "--model", folders["gpt2"]])


def command(*argv):
    return subprocess.run(
        [sys.executable, "eval.py", "--workers", "1", *map(str, argv)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def last(text):
    summary = json.loads(text.strip().splitlines()[-1])
    return {key: summary[key] for key in ("n", "ex", "executable", "em")}


def test_gold_as_predictions_of_the_shop_is_all_right(write, tmp_path):
    golds = [row["query"] for row in json.loads((ROOT / "data/shop/dev.json").read_text())]
    done = command(
        "--predictions", write("\n".join(golds)), "--data", "shop", "--out", tmp_path / "out.jsonl"
    )
    assert done.returncode == 0, done.stderr
    assert last(done.stdout) == {"n": len(golds), "ex": 1.0, "executable": 1.0, "em": 1.0}
    # what --out writes is a predictions file itself
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == golds and {row["verdict"] for row in rows} == {"correct"}
    assert list(rows[0]) == ["index", "verdict", "em", "message", "answer"]
    assert {row["em"] for row in rows} == {True}
    again = command("--predictions", tmp_path / "out.jsonl", "--limit", 7)
    assert last(again.stdout) == {"n": 7, "ex": 1.0, "executable": 1.0, "em": 1.0}


def test_an_answer_that_is_missing_counts_as_not_answered(spider, write):
    rows = [
        {"index": i, "answer": gold}
        for i, gold in enumerate(q.gold for q in data.load("spider", spider, "dev")[0])
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows[:3])
    done = command("--predictions", write(text), "--data", "spider", "--data-dir", spider)
    found = last(done.stdout)
    assert done.returncode == 0 and (found["n"], found["ex"]) == (6, 0.5)
    assert "3 questions have no prediction" in done.stderr


def test_out_has_em_beside_each_verdict_and_the_same_as_the_score(spider, tmp_path, capsys):
    golds = [q.gold for q in data.load("spider", spider, "dev")[0]]
    answers = ["SELECT count(id) FROM owner", "SELECT max(age) FROM pet", "SELEC", *golds[3:5]]
    answers.append("SELECT count(*) FROM book WHERE price > 0")
    (tmp_path / "predictions").write_text("\n".join(answers))
    files = ["--predictions", str(tmp_path / "predictions"), "--out", str(tmp_path / "out.jsonl")]
    evaluation.main(["--data", "spider", "--data-dir", str(spider), *files])
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["verdict"], row["em"]) for row in rows] == [
        ("correct", False), ("wrong", False), ("error", False), ("correct", True), ("correct", True),
        ("wrong", True),
    ]  # fmt: skip
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["em"] == 3 / 6


@strict
def test_out_has_no_em_where_there_is_none(write, tmp_path):
    meta = {"library": "Numpy", "problem_id": 5}
    row = {"metadata": meta, "prompt": "?", "reference_code": "result = x * 2", "code_context": CONTEXT}
    with gzip.open(tmp_path / "ds1000.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n")
    flags = ["--data", "ds1000", "--data-dir", tmp_path, "--split", "train", "--out", tmp_path / "out.jsonl"]
    done = command(*flags, "--predictions", write(json.dumps({"problem_id": 5, "answer": "result = x * 2"})))
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert list(row) == ["index", "question_id", "verdict", "message", "answer"]
    assert row["verdict"] == "correct"


def test_a_broken_file_is_exit_code_2_and_one_line(spider, write):
    done = command("--predictions", write('{"index": 0}'), "--data", "spider", "--data-dir", spider)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("loading torch …\nerror: ") and done.stderr.count("\n") == 2
    assert "line 1" in done.stderr


def test_a_folder_without_the_data_is_exit_code_2_and_one_line(tmp_path):
    done = command("--data", "bird", "--data-dir", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 2
    assert done.stderr.startswith("loading torch …\nerror: ")


@pytest.mark.parametrize("row, message", [
    ({"index": 6, "answer": "SELECT 1"}, "line 2: index 6, but the split has 6 questions"),
    ({"index": -1, "answer": "SELECT 1"}, "line 2: index -1"),
    ({"index": 0, "db_id": "books", "answer": "SELECT 1"},
     "line 2: database books, but question 0 is on pets"),
])  # fmt: skip
def test_predictions_for_another_split_are_refused(spider, tmp_path, row, message):
    path = tmp_path / "predictions.jsonl"
    path.write_text(
        json.dumps({"index": 1, "db_id": "pets", "answer": "SELECT 1"}) + "\n" + json.dumps(row) + "\n"
    )
    with pytest.raises(UserError, match=message):
        evaluation.main(["--data", "spider", "--data-dir", str(spider), "--predictions", str(path)])


def test_predictions_of_which_none_belongs_to_a_question_are_refused(write):
    with pytest.raises(UserError, match="no line answers a question of this split"):
        read_predictions(write(json.dumps({"question_id": 12345, "answer": "SELECT 1"})), questions(0), 1)


def test_a_folder_that_is_not_there_and_an_adapter_that_is_none_are_noticed_first(
    spider, tmp_path, monkeypatch
):
    monkeypatch.setattr("policy.load_policy", None)
    with pytest.raises(UserError, match="--out: .*nowhere.* cannot be a file's name"):
        evaluation.main(
            ["--data", "spider", "--data-dir", str(spider), "--out", str(tmp_path / "nowhere" / "x.jsonl")]
        )
    with pytest.raises(UserError, match="no readable adapter"):
        evaluation.main(["--data", "spider", "--data-dir", str(spider), "--adapter", str(tmp_path)])
