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
from data import Question, UserError
from eval import read_predictions, scores, usable
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
    codes = ["SELECT 2", "SELECT x", "", "(", "SELECT 1", "SELECT 1", "SELECT 1 LIMIT 1", "SELECT 1"]  # EM: values do not count
    found = scores(asked, codes, [Verdict(v) for v in outcomes])
    assert (found.n, found.ex, found.executable, found.em) == (8, 3 / 8, 5 / 8, 4 / 8)
    assert {v: n for v, n in found.classes.items() if n} == {"correct": 3, "wrong": 2, "error": 2, "timeout": 1}
    assert found.groups == {
        "easy": {"n": 4, "ex": 2 / 4, "executable": 3 / 4, "em": 1 / 4},
        "hard": {"n": 4, "ex": 1 / 4, "executable": 2 / 4, "em": 3 / 4},
    }
    silent = scores(questions(0, 1), ["", "SELECT 2"], [Verdict("wrong", "not a query"), Verdict("wrong", "1 row, not 2")])
    assert (silent.executable, silent.classes["wrong"]) == (1 / 2, 2)  # an empty answer runs nothing
    empty = scores([], [], [])
    assert (empty.n, empty.ex, empty.executable, empty.em) == (0, 0, 0, None)


def test_a_python_question_has_no_em():
    asked = [dataclasses.replace(questions(0)[0], context="test", difficulty="Numpy")]
    found = scores(asked, ["result = 1"], [Verdict("correct")])
    assert found.em is None and found.groups == {"Numpy": {"n": 1, "ex": 1.0, "executable": 1.0, "em": None}}


# ---- predictions ----------------------------------------------------------------------------------------------------


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


def test_lines_of_windows(write):
    assert read_predictions(write("SELECT 1\r\nSELECT 2\tpets\r\n"), questions(0, 1), 2) == {0: "SELECT 1", 1: "SELECT 2"}


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


# ---- with the verifier ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verifier():
    with Verifier(1) as verifier:
        yield verifier


def test_a_question_whose_gold_fails_is_left_out_and_named(spider, verifier):
    good = data.load("spider", spider, "dev")[0]
    bad = Question(41, "pets", good[0].database, "?", "SELECT x FROM nowhere")
    kept, notes = usable([*good, bad], verifier, "spider", 5.0)
    assert kept == good and len(notes) == 1
    assert notes[0].startswith("question 41 (pets): gold query fails") and "no such table: nowhere" in notes[0]


def test_a_gold_is_judged_as_an_answer_would_be(spider, verifier):
    """Spider's preparation of a query comes before it runs; a gold that is not the same the next time says nothing."""
    path = data.load("spider", spider, "dev")[0][0].database
    golds = ["SELECT name FROM owner WHERE id > = 2", "SELECT name FROM owner ORDER BY random()"]
    golds.append("EXPLAIN SELECT name FROM owner")
    asked = [Question(i, "pets", path, "?", gold) for i, gold in enumerate(golds)]
    kept, notes = usable(asked, verifier, "spider", 5.0)
    assert [q.index for q in kept] == [0]
    assert "question 1 (pets): gold query fails" in notes[0] and "changes from run to run: random" in notes[0]
    assert "not a query" in notes[1]
    kept, notes = usable(asked, verifier, "strict", 5.0)
    assert not kept and "question 0 (pets): gold query fails" in notes[0] and "syntax error" in notes[0]


def test_a_question_whose_gold_reads_a_damaged_page_is_left_out_and_named(verifier, tmp_path):
    path = damaged(tmp_path / "bad.sqlite")
    asked = [Question(i, "bad", path, "?", gold) for i, gold in enumerate(["SELECT id FROM t", "SELECT * FROM lost"])]
    kept, notes = usable(asked, verifier, "spider", 5.0)
    assert kept == asked[:1] and len(notes) == 1
    assert notes[0].startswith("question 1 (bad): ") and "bad.sqlite: database disk image is malformed" in notes[0]


@strict
def test_problems_whose_test_or_gold_code_fails_are_left_out_and_named(verifier):
    broken = CONTEXT.replace("return 7, 14", "return 7, open('/no/such/file')")
    problems = [("result = x * 2", CONTEXT), ("result = x * 2", broken), ("result = x", CONTEXT), ("1 / 0", CONTEXT)]
    asked = [Question(i, "Numpy", "", "?", gold, "", 900 + i, "Numpy", test) for i, (gold, test) in enumerate(problems)]
    kept, notes = usable(asked, verifier, "", 60.0)
    assert kept == asked[:1] and len(notes) == 3
    assert notes[0].startswith("problem 901 (Numpy): the test itself fails: ") and "make ds1000" in notes[0]
    assert notes[1].startswith("problem 902 (Numpy): its gold code fails: wrong: the result: AssertionError")
    assert notes[2] == "problem 903 (Numpy): its gold code fails: error: ZeroDivisionError: division by zero"


@strict
def test_a_fault_of_the_machine_is_not_taken_for_a_broken_question(verifier, tmp_path):
    with pytest.raises(InfrastructureError, match="no database"):
        usable([Question(0, "pets", str(tmp_path / "none.sqlite"), "?", "SELECT 1")], verifier, "spider", 5.0)
    problem = Question(0, "Numpy", "", "?", "result = x * 2", context=CONTEXT)
    with Verifier(1, "/no/such/python") as other, pytest.raises(InfrastructureError, match="/no/such/python"):
        usable([problem], other, "", 5.0)


class Recording:
    """A verifier for which every gold is right and takes so long."""

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
        assert usable(asked, verifier, "spider", timeout) == (asked, [])
    assert verifier.timeouts == [10, 120, 60, 120, 500, 500]


def test_a_program_that_needs_more_than_half_of_an_answers_time_is_left_out_by_name():
    query, program = *questions(0), dataclasses.replace(questions(1)[0], context="test", db_id="Numpy")
    assert usable([query, program], Recording(30.0), "", 60.0) == ([query, program], [])
    kept, notes = usable([query, program], Recording(41.0), "", 60.0)
    assert kept == [query] and notes == ["problem 701 (Numpy): its gold code takes 41 s, more than half of an answer's 60"]


def test_a_slow_gold_is_right_as_an_answer_too(spider, tmp_path):
    """It runs for longer than an answer's time, and would be a timeout as a prediction."""
    rows = json.loads((spider / "dev.json").read_text())
    digits = " UNION ALL ".join(f"SELECT {i} x" for i in range(10))
    tables = ", ".join(f"d {name}" for name in "abcdef")
    rows[0]["query"] = f"WITH d AS ({digits}) SELECT count(*) FROM {tables} WHERE a.x + b.x * c.x + d.x * e.x * f.x > 300"
    shutil.copytree(spider, tmp_path / "data")
    (tmp_path / "data" / "dev.json").write_text(json.dumps(rows))
    predictions = tmp_path / "gold.sql"
    predictions.write_text("\n".join(row["query"] for row in rows))
    done = command("--data", "spider", "--data-dir", tmp_path / "data", "--predictions", predictions, "--timeout", "0.05")
    assert done.returncode == 0 and last(done.stdout)["ex"] == 1.0 and last(done.stdout)["n"] == len(rows), done.stderr


def test_greedy_answers_are_verified_in_the_order_of_the_questions(spider, verifier, folders, monkeypatch):
    from policy import load_policy

    held_out = data.load("spider", spider, "dev")[0]
    codes = [q.gold for q in held_out]
    codes[1], codes[4] = "SELECT 12345", "SELEC"
    monkeypatch.setattr(evaluation, "greedy", lambda policy, questions, *_: codes)
    found, given, verdicts = evaluation.evaluate(None, held_out, verifier, "spider", 5.0)
    assert [v.verdict for v in verdicts] == ["correct", "wrong", "correct", "correct", "error", "correct"]
    assert (found.ex, found.executable, given) == (4 / 6, 5 / 6, codes)
    monkeypatch.undo()
    policy = load_policy(folders["gpt2"], "float32", "cpu")
    forward, backward = (evaluation.greedy(policy, q, 10, 5000) for q in (held_out, held_out[::-1]))
    assert forward == backward[::-1] and len(set(forward)) > 1


def test_a_prompt_too_long_for_the_model_is_a_question_without_an_answer(spider, folders):
    from policy import load_policy

    held_out = data.load("spider", spider, "dev")[0]
    policy = load_policy(folders["gpt2"], "float32", "cpu")
    lengths = sorted(len(data.prompt_ids(q, policy.tokenizer)) for q in held_out)
    policy.max_positions = lengths[3] + 10
    codes = evaluation.greedy(policy, held_out, 10, 5000)
    fitting = [len(data.prompt_ids(q, policy.tokenizer)) <= lengths[3] for q in held_out]
    assert [bool(code) for code in codes] == fitting and 0 < sum(fitting) < 6


# ---- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag, value", [
    ("--workers", "0"), ("--workers", "-1"), ("--limit", "-3"), ("--timeout", "0"), ("--timeout", "-2"), ("--timeout", "nan"),
    ("--timeout", "inf"), ("--batch-tokens", "0"), ("--max-new", "0"),
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
    for name, folder, *flags in (("spider", spider), ("ds1000", tmp_path), ("ds1000", tmp_path, "--timeout", "7")):
        with pytest.raises(Reached):
            evaluation.main(["--data", name, "--data-dir", str(folder), "--predictions", predictions, *flags])
    assert [arguments[2:4] for arguments in reached] == [("spider", 10.0), ("", 60.0), ("", 7.0)]


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
        [sys.executable, "eval.py", "--workers", "1", *map(str, argv)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def last(text):
    summary = json.loads(text.strip().splitlines()[-1])
    return {key: summary[key] for key in ("n", "ex", "executable", "em")}


def test_gold_as_predictions_of_the_shop_is_all_right(write, tmp_path):
    golds = [row["query"] for row in json.loads((ROOT / "data/shop/dev.json").read_text())]
    done = command("--predictions", write("\n".join(golds)), "--data", "shop", "--out", tmp_path / "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert last(done.stdout) == {"n": len(golds), "ex": 1.0, "executable": 1.0, "em": 1.0}
    # what --out writes is a predictions file itself
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == golds and {row["verdict"] for row in rows} == {"correct"}
    again = command("--predictions", tmp_path / "out.jsonl", "--limit", 7)
    assert last(again.stdout) == {"n": 7, "ex": 1.0, "executable": 1.0, "em": 1.0}


def test_an_answer_that_is_missing_counts_as_not_answered(spider, write):
    rows = [{"index": i, "answer": gold} for i, gold in enumerate(q.gold for q in data.load("spider", spider, "dev")[0])]
    text = "".join(json.dumps(row) + "\n" for row in rows[:3])
    done = command("--predictions", write(text), "--data", "spider", "--data-dir", spider)
    found = last(done.stdout)
    assert done.returncode == 0 and (found["n"], found["ex"]) == (6, 0.5)
    assert "3 questions have no prediction" in done.stderr


def test_a_broken_file_is_exit_code_2_and_one_line(spider, write):
    done = command("--predictions", write('{"index": 0}'), "--data", "spider", "--data-dir", spider)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "line 1" in done.stderr


def test_a_folder_without_the_data_is_exit_code_2_and_one_line(tmp_path):
    done = command("--data", "bird", "--data-dir", tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("row, message", [
    ({"index": 6, "answer": "SELECT 1"}, "line 2: index 6, but the split has 6 questions"),
    ({"index": -1, "answer": "SELECT 1"}, "line 2: index -1"),
    ({"index": 0, "db_id": "books", "answer": "SELECT 1"}, "line 2: database books, but question 0 is on pets"),
])  # fmt: skip
def test_predictions_for_another_split_are_refused(spider, tmp_path, row, message):
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps({"index": 1, "db_id": "pets", "answer": "SELECT 1"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        evaluation.main(["--data", "spider", "--data-dir", str(spider), "--predictions", str(path)])


def test_predictions_of_which_none_belongs_to_a_question_are_refused(spider, tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps({"question_id": 717, "answer": "SELECT 1"}) + "\n")
    with pytest.raises(UserError, match="no line answers a question of this split"):
        evaluation.main(["--data", "spider", "--data-dir", str(spider), "--predictions", str(path)])


def test_a_folder_that_is_not_there_and_an_adapter_that_is_none_are_noticed_first(spider, tmp_path, monkeypatch):
    monkeypatch.setattr("policy.load_policy", None)
    with pytest.raises(UserError, match="--out: .*nowhere.* cannot be a file's name"):
        evaluation.main(["--data", "spider", "--data-dir", str(spider), "--out", str(tmp_path / "nowhere" / "x.jsonl")])
    with pytest.raises(UserError, match="no readable adapter"):
        evaluation.main(["--data", "spider", "--data-dir", str(spider), "--adapter", str(tmp_path)])
