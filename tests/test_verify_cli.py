"""`python verify.py`: jobs in, verdicts out, one JSON line each, in the same order."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from verifier import walls  # noqa: E402

CONTEXT = '''
def generate_test_case(test_case_id):
    return 7, 14

def exec_test(result, ans):
    assert result == ans
    return 1

exec_context = """
x = test_input
[insert]
"""

def test_execution(solution):
    test_input, expected_result = generate_test_case(1)
    test_env = {"test_input": test_input}
    exec(exec_context.replace("[insert]", solution), test_env)
    assert exec_test(test_env["result"], expected_result)
'''
strict = pytest.mark.skipif(not walls.is_strict(), reason=f"not all walls on this machine: {walls.tier()}")


@pytest.fixture
def run(tmp_path):
    with closing(sqlite3.connect(tmp_path / "t.sqlite")) as connection:
        connection.executescript("CREATE TABLE t(a); INSERT INTO t VALUES (1), (2);")

    def run(*jobs, arguments=(), env=None):
        text = "".join((job if isinstance(job, str) else json.dumps(job)) + "\n" for job in jobs)
        ended = subprocess.run(
            [sys.executable, str(ROOT / "verify.py"), *arguments],
            input=text,
            text=True,
            cwd=tmp_path,
            capture_output=True,
            timeout=90,
            env=env,
        )
        return ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()], ended.stderr

    return run


def sql(number, answer, **more):
    return {
        "id": number,
        "kind": "sql",
        "database": "t.sqlite",
        "gold": "SELECT a FROM t",
        "answer": answer,
        **more,
    }


def python(number, answer, **more):
    return {"id": number, "kind": "python", "context": CONTEXT, "answer": answer, **more}


def test_sql_in_order_with_a_relative_path(run):
    slow = "WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s) SELECT count(*) FROM s"
    code, verdicts, errors = run(
        sql("slow", slow, timeout=0.5),
        sql(1, "SELECT a FROM t", comparison="bird"),
        "",
        sql(2, "SELECT 1"),
        sql([3], "SELEKT"),
        sql(None, "DROP TABLE t"),
    )
    assert code == 0, errors
    assert [(v["id"], v["verdict"]) for v in verdicts] == [
        ("slow", "timeout"), (1, "correct"), (2, "wrong"), ([3], "error"), (None, "denied")]  # fmt: skip
    assert all(set(v) == {"id", "verdict", "message", "seconds"} for v in verdicts)
    assert errors.startswith("walls for Python: ") and errors.count("\n") == 1


@strict
def test_both_kinds_and_the_tier(run):
    code, verdicts, errors = run(
        python(1, "result = x * 2"),
        sql(2, "SELECT a FROM t"),
        python(3, "result = 'y'"),
        python(4, "while True: pass", timeout=0.5),
        arguments=("--workers", "1"),
    )
    assert code == 0, errors
    assert [v["verdict"] for v in verdicts] == ["correct", "correct", "wrong", "timeout"]
    assert "strict: landlock" in errors


@strict
def test_tests_that_are_asserts(run):
    job = {"kind": "tests", "tests": ["assert f(1) == 2", "assert f(2) == K"], "setup": "K = 3"}
    check = {"kind": "tests", "tests": ["def check(c): assert c(1) == 2"], "entry_point": "sum", "timeout": 5}
    made = {
        "kind": "tests",
        "tests": ["assert A().x() == 1"],
        "answer": "class A:\n    def x(self): return 1",
    }
    code, verdicts, errors = run(
        {"id": 1, "answer": "def f(x): return x + 1", **job},
        {"id": 2, "answer": "def f(x): return 2", **job},
        {"id": 3, "answer": "def sum(x): return 2", **check},
        {"id": 4, "classes": ["A"], **made},
        {"id": 5, **made},
        {"id": 6, "answer": "f = 1", **job | {"setup": "1 / 0"}},
    )
    assert code == 1, errors
    assert [v["verdict"] for v in verdicts] == ["correct", "wrong", "correct", "correct", "wrong", None]
    assert "ZeroDivisionError" in verdicts[5]["message"] and "`classes`" in verdicts[4]["message"]


@strict
def test_the_interpreter_may_be_a_relative_path_or_a_name(run, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    code, verdicts, _ = run(python(1, "result = x * 2"), arguments=("--python", "bin/python"))
    assert code == 0 and verdicts[0]["verdict"] == "correct"
    code, verdicts, _ = run(python(1, "result = x * 2"), arguments=("--python", "python3"))
    assert code == 0 and verdicts[0]["verdict"] == "correct"


def test_a_fault_is_no_verdict(run):
    code, verdicts, _ = run(
        sql(1, "SELECT a FROM t", database="none.sqlite"),
        sql(2, "SELECT a FROM t"),
        sql(3, "SELECT 1", gold="SELEKT"),
    )
    assert code == 1
    assert [v["verdict"] for v in verdicts] == [None, "correct", None]
    assert "none.sqlite" in verdicts[0]["message"] and "gold query fails" in verdicts[2]["message"]


@strict
def test_a_test_that_fails_by_itself_is_no_verdict(run):
    broken = CONTEXT.replace("return 7, 14", "return 7, no_such_name")
    code, verdicts, _ = run({**python(1, "result = x * 2"), "context": broken}, python(2, "result = x * 2"))
    assert code == 1 and [v["verdict"] for v in verdicts] == [None, "correct"]
    assert "the test itself fails: NameError" in verdicts[0]["message"]


@strict
def test_an_interpreter_that_cannot_be_started(run):
    code, verdicts, errors = run(python(1, "result = x * 2"), arguments=("--python", "/no/such/python"))
    assert code == 1 and verdicts[0]["verdict"] is None and "/no/such/python" in verdicts[0]["message"]
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ('{"kind": "sql"}', "with an id"),
        ('{"id": 1}', "kind is None"),
        ('{"id": 1, "kind": ["sql"]}', "kind is"),
        ('{"id": 1, "kind": "tests", "answer": ""}', "no field 'tests'"),
        ('{"id": 1, "kind": "tests", "answer": "", "tests": "assert 1"}', "tests is not a list of texts"),
        ('{"id": 1, "kind": "tests", "answer": "", "tests": [1]}', "tests is not a list of texts"),
        ('{"id": 1, "kind": "tests", "answer": "", "tests": [], "classes": "A"}', "classes is not a list"),
        ('{"id": 1, "kind": "tests", "answer": "", "tests": [], "context": ""}', "unknown field 'context'"),
        ('{"id": 1, "kind": "sql", "gold": "", "answer": ""}', "'database'"),
        (json.dumps(sql(1, 5)), "answer is not a text"),
        (json.dumps(sql(1, "", comparison="exact")), "comparison"),
        (json.dumps(sql(1, "", timeout="1")), "timeout"),
        (json.dumps(sql(1, "", timeout=0)), "timeout"),
        (json.dumps(sql(1, "", gold_sql="")), "'gold_sql'"),
        (json.dumps({"id": 1, "kind": "python", "answer": ""}), "'context'"),
        ("[" * 100_000, "not JSON"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(run, line, complaint):
    code, verdicts, errors = run(sql(1, "SELECT a FROM t"), line, sql(3, "SELECT a FROM t"))
    assert code == 2
    assert [(v["id"], v["verdict"]) for v in verdicts] == [(1, "correct")]  # the lines before it are not lost
    assert "line 2" in errors and complaint in errors and "Traceback" not in errors


def test_help_and_flags():
    ended = subprocess.run(
        [sys.executable, str(ROOT / "verify.py"), "--help"], capture_output=True, text=True
    )
    assert ended.returncode == 0
    for flag in ("--workers", "--python", "--allow-unsandboxed"):
        assert flag in ended.stdout
    ended = subprocess.run(
        [sys.executable, str(ROOT / "verify.py"), "--workers", "0"], capture_output=True, text=True
    )
    assert ended.returncode == 2 and "--workers" in ended.stderr


def test_torch_is_not_needed():
    """The command runs where no package at all is installed."""
    ended = subprocess.run(
        [sys.executable, "-S", str(ROOT / "verify.py")],
        input="",
        text=True,
        capture_output=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert ended.returncode == 0, ended.stderr
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import verify; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
