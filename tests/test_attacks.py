"""More attacks on the verifier, by somebody who had not built it: each was tried, and each must still fail.

What test_verify_sql.py and test_verify_python.py hold already is not repeated. After all of it no process, no
folder and no changed database may be left. DS1000_PYTHON names another interpreter for the programs, as in
test_verify_python.py.
"""

import functools
import hashlib
import json
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
from test_verify_sql import spent

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import verify  # noqa: E402
from verifier import sql_text, unpack, walls  # noqa: E402
from verifier.interpreter import WALL  # noqa: E402
from verify import InfrastructureError, PythonJob, SqlJob, Verifier  # noqa: E402

# the command runs in another folder
PYTHON = os.path.abspath(os.environ.get("DS1000_PYTHON", sys.executable))
SLACK = 1.5  # seconds after a deadline; half a second where nothing else runs on the machine
strict = pytest.mark.skipif(not walls.is_strict(), reason=f"not all walls on this machine: {walls.tier()}")


def descendants():
    """Every process below this one, zombies apart."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        found[int(stat.parent.name)] = (int(parent), state)
    mine, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, (parent, state) in found.items() if parent in mine and state != "Z"} - mine
        mine, grown = mine | more, bool(more)
    return mine - {os.getpid()}


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(tmp_path_factory):
    own, outer = str(tmp_path_factory.mktemp("tmp")), (tempfile.tempdir, os.environ.get("TMPDIR"))
    tempfile.tempdir = os.environ["TMPDIR"] = own
    before = descendants()
    yield
    tempfile.tempdir = outer[0]
    os.environ.pop("TMPDIR")
    if outer[1]:
        os.environ["TMPDIR"] = outer[1]
    end = time.monotonic() + 5
    while descendants() - before and time.monotonic() < end:
        time.sleep(0.05)
    assert descendants() <= before
    assert os.listdir(own) == []


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("attacked") / "a.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT); CREATE INDEX i ON t(name);"
            "CREATE TABLE big(x INTEGER); INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'b')"
        )
        connection.executemany("INSERT INTO big VALUES (?)", [(i,) for i in range(2000)])
        connection.commit()
    before = path.read_bytes()
    yield str(path)
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(before).digest()
    assert os.listdir(path.parent) == [path.name]


@pytest.fixture(scope="module")
def verifier(nothing_is_left, database):
    with Verifier(workers=2, python=PYTHON) as verifier:
        yield verifier


# --- SQL ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ask(verifier, database):
    """The verdict on an answer, by its deadline; whatever it was, the next plain query must be right."""

    def ask(answer, gold="SELECT id FROM t", comparison="strict", timeout=1.0):
        verifier.submit(SqlJob(database, gold, "SELECT 1", comparison)).exception()  # the gold has run
        before = spent(verifier)
        verdict = verifier.submit(SqlJob(database, gold, answer, comparison, timeout)).result()
        tries = 2 if verdict.verdict == "timeout" else 1  # on a machine that is busy
        assert spent(verifier) - before < tries * (timeout + 0.5)
        assert (
            verdict.verdict in verify.VERDICTS and "\n" not in verdict.message and len(verdict.message) <= 200
        )
        check = SqlJob(
            database, "SELECT id FROM t", f"SELECT id FROM t WHERE {time.monotonic_ns()}", "strict"
        )
        assert verifier.submit(check).result().verdict == "correct"
        return verdict

    return ask


WRITES = [
    "ANALYZE", "REINDEX", "REINDEX i", "SAVEPOINT a", "RELEASE a", "ROLLBACK", "COMMIT", "END", "DETACH main",
    "ALTER TABLE t ADD COLUMN z", "ALTER TABLE t RENAME TO u", "ALTER TABLE t DROP COLUMN name",
    "CREATE INDEX j ON t(id)", "CREATE VIEW v AS SELECT 1",
    "CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; END", "DROP INDEX i",
    "REPLACE INTO t VALUES (1, 'z')", "INSERT INTO t(id) VALUES (1) ON CONFLICT DO NOTHING",
    "INSERT INTO t SELECT id + 10, name FROM t", "UPDATE t SET id = id RETURNING id", "VACUUM",
    "VACUUM main INTO 'file:copy.sqlite?mode=rwc'", "ATTACH ':memory:' AS m", "ATTACH 'file:/dev/null' AS n",
    "PRAGMA writable_schema = 1", "PRAGMA mmap_size = 1000000", "PRAGMA temp_store_directory = '/tmp'",
    "PRAGMA locking_mode = EXCLUSIVE", "PRAGMA wal_checkpoint", "PRAGMA database_list",
    "PRAGMA table_info(t)", "SELECT * FROM pragma_table_info('t')", "SELECT file FROM pragma_database_list",
    "SELECT * FROM pragma_user_version", "SELECT rtreecheck('t')", "SELECT \"load_extension\"('x')",
    "SELECT LOAD_EXTENSION('x', 'y')", "SELECT 1 WHERE EXISTS (SELECT [randomblob](9))",
    "SELECT (SELECT fts3_tokenizer('simple', x'00'))",
    "WITH a AS (SELECT load_extension('x')) SELECT 1 FROM a",
    "SELECT count(*) FILTER (WHERE load_extension('x')) FROM t",
    "SELECT 1 FROM t ORDER BY zeroblob(1000000000)",
]  # fmt: skip


@pytest.mark.parametrize("answer", WRITES)
def test_statements_that_do_more_than_read(ask, answer):
    """Where the gold has no rows, a statement without a result would look right."""
    assert ask(answer, "SELECT id FROM t WHERE id > 100").verdict == "denied"


def ascii_name(text, length=40):
    return text[:length].encode("ascii", "backslashreplace").decode()


@pytest.mark.parametrize("answer", [
    "SELECT readfile('/etc/passwd')", "SELECT writefile('attacked', 'x')", "SELECT edit('x')",
    "SELECT * FROM [file:/etc/passwd?mode=ro].x", "SELECT @a", "SELECT :a", "SELECT $a", "SELECT ?1",
    "SELECT id FROM t\0; DROP TABLE t", "SELECT 1 AS \"\ud800\"", "SELECT id FROM t WHERE name = '",
    "SELECT id FROM t [", "SELECT id FROM t; COMMIT; SELECT id FROM t",
    "SELECT " + "(" * 400 + "1" + ")" * 400, "SELECT * FROM " + "(SELECT * FROM " * 90 + "t" + ")" * 90,
    "SELECT " + "NOT " * 20_000 + "1", "SELECT " + ", ".join(["1"] * 3000),
    " UNION ALL ".join(["SELECT id FROM t"] * 600), "SELECT json('" + "[" * 40_000 + "]" * 40_000 + "')",
    "UPDATE sqlite_schema SET sql = ''",
], ids=ascii_name)  # fmt: skip
def test_queries_that_do_not_execute(ask, answer):
    assert ask(answer).verdict == "error"


NONE = dict.fromkeys(verify.COMPARISONS, "wrong")
ALL = dict.fromkeys(verify.COMPARISONS, "correct")


@pytest.mark.parametrize("comparison", verify.COMPARISONS)
@pytest.mark.parametrize("gold, answer, expected", [
    ("SELECT 9e999", "SELECT 1e308 * 10", ALL),  # infinity
    ("SELECT 9e999", "SELECT -9e999", NONE),
    ("SELECT NULL", "SELECT 9e999 - 9e999", ALL),  # SQLite knows no NaN
    ("SELECT 0", "SELECT -0.0", ALL),
    ("SELECT 9007199254740992.0", "SELECT 9007199254740993", NONE),
    ("SELECT 9223372036854775807", "SELECT 9223372036854775807.0", NONE),
    ("SELECT 9223372036854775807", "SELECT 9223372036854775806", NONE),
    ("SELECT -9223372036854775807 - 1", "SELECT -9223372036854775808.0", ALL),
    ("SELECT 'a'", "SELECT 'a' || char(0) || 'b'", NONE),
    ("SELECT 'a'", "SELECT 'a' || char(0)", NONE),
    ("SELECT 'a'", "SELECT x'61'", NONE),
    ("SELECT ''", "SELECT x''", NONE),
    ("SELECT NULL", "SELECT x''", NONE),
    ("SELECT NULL", "SELECT 'None'", NONE),
    ("SELECT NULL", "SELECT 0", NONE),
    ("SELECT '\u00e9'", "SELECT 'e\u0301'", NONE),
    ("SELECT 'a'", "SELECT 'A'", NONE),
    ("SELECT 'a'", "SELECT 'a '", NONE),
    ("SELECT 'ss'", "SELECT '\u00df'", NONE),
    # a surrogate that stands for a byte
    ("SELECT CAST(x'edb3bf' AS TEXT)", "SELECT CAST(x'ff' AS TEXT)", NONE),
    ("SELECT CAST(x'c080' AS TEXT)", "SELECT char(0)", NONE),
    ("SELECT CAST(x'ff' AS TEXT)", "SELECT CAST(x'fe' AS TEXT)", NONE),
    ("SELECT 1, 2, 2", "SELECT 1, 1, 2", NONE),
    ("SELECT 1, 1 UNION ALL SELECT 2, 2", "SELECT 1, 2 UNION ALL SELECT 2, 1", NONE),
    ("SELECT 1, 2 UNION ALL SELECT 2, 1", "SELECT 2, 1 UNION ALL SELECT 1, 2", ALL),
    ("SELECT 1 UNION ALL SELECT 1 UNION ALL SELECT 2", "SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 2",
     NONE | {"bird": "correct"}),
    ("SELECT 1", "SELECT '1.0'", NONE),
    ("SELECT 'True'", "SELECT 1 = 1", NONE),
    ("SELECT id FROM t WHERE 0", "SELECT NULL", NONE),
    ("SELECT id FROM t WHERE 0", "SELECT NULL WHERE 0", ALL),
    ("SELECT id FROM t WHERE 0", "SELECT NULL, NULL WHERE 0", ALL | {"strict": "wrong"}),
    # statements of this connection: its own alone
    ("SELECT 'SELECT id FROM t'", "SELECT sql FROM sqlite_stmt", NONE),
    ("SELECT count(*) FROM t", "SELECT sql FROM sqlite_stmt WHERE sql NOT LIKE '%sqlite_stmt%'", NONE),
    ("SELECT 3", "SELECT 3 /* ; DROP TABLE t */ ; -- x", ALL),
    ("SELECT 3", "\ufeffSELECT 3", ALL),  # a byte-order mark
    ("SELECT 3", "SELECT 3 ORDER BY (SELECT count(*) FROM big a, big b, big c)", ALL),
], ids=lambda value: ascii_name(value, 45) if type(value) is str else "")  # fmt: skip
def test_results_that_look_alike(ask, gold, answer, expected, comparison):
    assert ask(answer, gold, comparison).verdict == expected[comparison]


@pytest.mark.parametrize("prefix", [";", "; ;", "\ufeff", " ;\ufeff/* x */", "-- x\n", "\x0c"])
@pytest.mark.parametrize("explain", ["EXPLAIN SELECT 1", "explain query plan SELECT 1"])
def test_explain_in_disguise(ask, prefix, explain):
    verdict = ask(prefix + explain, "SELECT 1, 2, 3, 4 WHERE 0")
    assert (verdict.verdict, verdict.message, verdict.ran) == ("wrong", "not a query", False)


SLOW = {
    "LIKE": "SELECT printf('%.*c', 16000000, 'a') LIKE '%" + "_%a" * 2000 + "b'",
    "GLOB": "SELECT printf('%.*c', 90000, 'a') GLOB '" + "*[ab]" * 9000 + "c'",
    "replace": "SELECT replace(printf('%.*c', 800000, 'a'), printf('%.*c', 400000, 'a') || 'b', 'x')",
    "window": "SELECT group_concat(a.x) OVER (ORDER BY a.x) FROM big a, big b",
    "JSON that grows": "WITH RECURSIVE s(x) AS (SELECT '[]' UNION ALL SELECT json_array(x) FROM s) "
                       "SELECT max(x) FROM s",
    "hex": "SELECT length(hex(hex(hex(printf('%.*c', 2000000, 'a')))))",
    "width": "SELECT printf('%2000000000d', 1)", "precision": "SELECT printf('%.*f', 100000000, 1.0)",
    "deep plan": "WITH c0 AS (SELECT 1 AS x)"
                 + "".join(f", c{i} AS (SELECT * FROM c{i - 1})" for i in range(1, 2500))
                 + " SELECT x + 1 FROM c2499",
    "values": "VALUES " + ", ".join(["(1)"] * 12_000),
    "correlated": "SELECT (SELECT count(*) FROM big b, big c WHERE b.x <> a.x) FROM big a",
    "triangle": "WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s LIMIT 100000000) "
                "SELECT sum(x) FROM s",
}  # fmt: skip


@pytest.mark.parametrize("name", SLOW)
def test_queries_that_grow_or_hang(ask, name):
    assert ask(SLOW[name]).verdict in ("wrong", "error", "timeout", "crash")


@pytest.mark.parametrize("text", [
    "[" * 300_000, "'" * 300_001, '"a' * 150_001, "`" * 300_001, "/*" * 150_000, "YEAR(" * 60_000,
    "YEAR" + " " * 300_000, "> " * 150_000, "'[\"`" * 75_000, "[distinct " * 30_000, "distinct" * 40_000,
    "((" * 150_000,
], ids=lambda text: text[:8])  # fmt: skip
def test_reading_a_query_takes_no_time(text):
    """This happens in the main process, which no deadline ends."""
    started = time.monotonic()
    sql_text.spider_query(text, False)
    sql_text.outermost_orders(text)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "answers",
    [
        ("SELECT length('\u00e9')", "SELECT length('e\u0301')"),
        ("SELECT 1", "SELECT 1\0"),
        ("SELECT 1", "select 1 from t limit 2"),
        ("SELECT 1", "SELECT \uff11"),
        ("SELECT 1", "\ud800"),
        ("SELECT '1'", "SELECT 1"),
    ],
    ids=range(6),
)
def test_two_answers_are_two_entries_of_the_cache(verifier, database, answers):
    jobs = [SqlJob(database, "SELECT 1", answer, "strict") for answer in answers * 2]
    first, second, *again = (v.verdict for v in verifier.run(jobs))
    assert sorted([first == "correct", second == "correct"]) == [False, True] and again == [first, second]


def test_gold_and_answer_do_not_run_into_each_other(verifier, database):
    texts = ["SELECT 1", "SELECT 2", "SELECT 1 WHERE 1", "SELECT 1, 2"]
    jobs = [
        SqlJob(database, gold, answer, comparison, timeout)
        for gold in texts
        for answer in texts
        for comparison in verify.COMPARISONS
        for timeout in (5.0, 6.0)
    ]
    same = {("SELECT 1", "SELECT 1 WHERE 1"), ("SELECT 1 WHERE 1", "SELECT 1")}
    for job, verdict in zip(jobs, verifier.run(jobs)):
        right = job.gold == job.answer or (job.gold, job.answer) in same
        assert verdict.verdict == ("correct" if right else "wrong"), job
    assert len({id(verifier.submit(job)) for job in jobs}) == len(jobs)


def test_two_databases_of_one_name_one_size_and_other_contents(verifier, tmp_path):
    """A folder in between, a space or a link does not make one of two."""
    verdicts = []
    for number, name in ((1, "x"), (2, "x ")):
        path = tmp_path / name / "a.sqlite"
        path.parent.mkdir()
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(f"CREATE TABLE t(a); INSERT INTO t VALUES ({number})")
        os.utime(path, ns=(1, 1))
        verdicts.append(verifier.run([SqlJob(str(path), "SELECT a FROM t", "SELECT 1", "bird")])[0].verdict)
    assert verdicts == ["correct", "wrong"]


@pytest.mark.parametrize(
    "path",
    ["a\0b", "\ud800", "x" * 5000, "", ".", "/dev/zero", "/proc/self/mem", "file:a?mode=rw"],
    ids=["zero byte", "surrogate", "long", "empty", "folder", "device", "memory", "uri"],
)
def test_what_is_no_database_is_a_fault(verifier, path):
    job = SqlJob(path, "SELECT 1", "SELECT 1")
    with pytest.raises(InfrastructureError):
        verifier.submit(job).result(10)
    with pytest.raises(InfrastructureError):
        verifier.execute(path, "SELECT 1", 1.0).result(10)


def test_many_hostile_queries_at_once_do_not_touch_the_good_ones(verifier, database):
    bad = [list(SLOW.values())[i % len(SLOW)] + f" -- {i}" for i in range(6)] + WRITES[:12]
    jobs = []
    for i, answer in enumerate(bad):
        jobs += [
            SqlJob(database, "SELECT id FROM t", answer, "strict", 0.3),
            SqlJob(database, "SELECT id FROM t", f"SELECT id FROM t WHERE id <> -{i}", "strict"),
        ]
    verdicts = [v.verdict for v in verifier.run(jobs)]
    assert verdicts[1::2] == ["correct"] * len(bad) and "correct" not in verdicts[::2]


# --- Python: forging ----------------------------------------------------------------------------------------

CONTEXT = '''
{imports}
def generate_test_case(test_case_id):
    test_input = {value}
    x = test_input
    return test_input, {expected}

def exec_test(result, ans):
    {check}
    return 1

exec_context = r"""
x = test_input
[insert]
"""

def test_execution(solution):
    code = exec_context.replace("[insert]", solution)
    for i in range({cases}):
        test_input, expected_result = generate_test_case(i + 1)
        test_env = {{"test_input": test_input}}
        exec(code, test_env)
        assert exec_test(test_env["result"], expected_result)
'''


def context(imports="", value="7", expected="x * 2", check="assert result == ans", cases=1):
    return CONTEXT.format(imports=imports, value=value, expected=expected, check=check, cases=cases)


PLAIN = context()
ARRAY = context(
    "import numpy as np", expected="np.arange(4) * x", check="np.testing.assert_array_equal(result, ans)"
)


@pytest.fixture
def judge(verifier):
    def judge(answer, test=PLAIN, timeout=20.0):
        verifier.run([PythonJob(PLAIN, "result = 'warm'")])
        started = time.monotonic()
        verdict = verifier.run([PythonJob(test, answer, timeout)])[0]
        assert time.monotonic() - started < 2 * WALL * timeout + SLACK
        assert "\n" not in verdict.message and len(verdict.message) <= 300
        return verdict

    return judge


EQUAL = "class E:\n    def __eq__(s, o): return True\n    def __hash__(s): return hash(14)\n"
FORGERIES = {
    "mock.ANY": "from unittest.mock import ANY\nresult = ANY", "inside a list": EQUAL + "result = [E()]",
    "inside a tuple": EQUAL + "result = (E(),)", "inside a dictionary": EQUAL + "result = {14: E()}",
    "as a key": EQUAL + "result = {E(): 14}", "inside a set": EQUAL + "result = {E()}",
    "inside a deque": EQUAL + "import collections\nresult = collections.deque([E()])",
    "inside a counter": EQUAL + "import collections\nresult = collections.Counter([E()])",
    "a named tuple": "import collections\nclass N(collections.namedtuple('N', 'a')):\n"
                     "    __eq__ = lambda s, o: True\nresult = N(1)",
    "a dictionary": "class D(dict):\n    __eq__ = lambda s, o: True\nresult = D()",
    "a decimal": "import decimal\nclass D(decimal.Decimal):\n    __eq__ = lambda s, o: True\nresult = D(1)",
    "a date": "import datetime\nclass D(datetime.date):\n    __eq__ = lambda s, o: True\nresult = D(1, 1, 1)",
    "an enum": "import enum\nclass D(enum.IntEnum):\n    a = 13\n    __eq__ = lambda s, o: True\n"
               "result = D.a",
    "a module": "import types\nclass M(types.ModuleType):\n    __eq__ = lambda s, o: True\nresult = M('m')",
    "a function": "result = lambda *a: True",
    "a partial": "import functools\nresult = functools.partial(max, 1)",
    "a simple namespace": EQUAL + "import types\nresult = types.SimpleNamespace(a=E())",
    "an ellipsis": "result = ...", "not implemented": "result = NotImplemented",
    "not a number": "result = float('nan')",
    "a builder": "from verifier import unpack\nresult = unpack.copied",
    "itself": "result = []\nresult.append(result)",
    "itself in a dictionary": "result = {}\nresult[14] = result", "text": "result = '14'",
    "a million fourteens": "result = [14] * 10 ** 6", "nothing": "result = None",
}  # fmt: skip


@strict
@pytest.mark.parametrize("name", FORGERIES)
def test_a_result_cannot_choose_how_it_is_compared(judge, name):
    assert judge(FORGERIES[name]).verdict in ("wrong", "error")


@strict
@pytest.mark.parametrize(
    "name", ["inside a list", "inside a deque", "mock.ANY", "a named tuple", "a dictionary"]
)
@pytest.mark.parametrize("turn", ["[14]", "np.array([14])", "pd.Series([14])"])
def test_nor_inside_an_array_or_a_series(judge, name, turn):
    library = turn[:2] if turn[0] in "np" else ""
    imports = {"np": "import numpy as np", "pd": "import pandas as pd", "": ""}[library]
    if library:
        pytest.importorskip({"np": "numpy", "pd": "pandas"}[library])
    wrap = {
        "np": "import numpy as np\nresult = np.array([result], object)",
        "pd": "import pandas as pd\nresult = pd.Series([result], dtype=object)",
        "": "result = [result]",
    }[library]
    check = {
        "np": "np.testing.assert_array_equal(result, ans)",
        "pd": "pd.testing.assert_series_equal(result, ans, check_dtype=False)",
        "": "assert result == ans",
    }[library]
    verdict = judge(f"{FORGERIES[name]}\n{wrap}", context(imports, expected=turn, check=check))
    assert verdict.verdict in ("wrong", "error")


@strict
@pytest.mark.parametrize("method", [
    "__eq__", "__array__", "__array_ufunc__", "__array_function__", "__array_wrap__", "__array_finalize__",
    "__array_priority__", "__float__", "__index__", "__len__", "__getattr__", "__getattribute__", "__class__",
    "__reduce_ex__", "__getstate__",
])  # fmt: skip
def test_numpy_protocols_of_the_result_do_not_arrive(judge, method):
    """The official program would call these, as attributes of whatever the answer returns."""
    answer = (
        "import numpy as np\nclass F:\n"
        "    def f(s, *a, **k): return np.arange(4) * 0 + 7 * np.arange(4)[::-1]\n"
        f"    {method} = f\nresult = F()"
    )
    assert judge(answer, ARRAY).verdict in ("wrong", "error")


WRITE = (
    "import os, json, time\ndef w(data, more=b''):\n"
    "    data = len(data).to_bytes(8, 'little') + data + more\n"
    "    for fd in range(3, 40):\n        try: os.write(fd, data)\n        except OSError: pass\n"
)
FRAMES = {
    "correct as an error": WRITE + "w(b'E' + json.dumps(['correct', '']).encode())",
    "infrastructure as an error": WRITE + "w(b'E' + json.dumps(['infrastructure', '']).encode())",
    "killed as an error": WRITE + "w(b'E' + json.dumps(['killed', '']).encode())",
    "a number as an error": WRITE + "w(b'E5')", "one item": WRITE + "w(b'E[\"error\"]')",
    "three items": WRITE + "w(b'E[\"error\", \"a\", \"b\"]')", "no text": WRITE + "w(b'E[\"error\", {}]')",
    "deep JSON": WRITE + "w(b'E' + b'[' * 200000)", "not UTF-8": WRITE + "w(b'E\\xff\\xfe')",
    "ready again": WRITE + "w(b'ready')", "report": WRITE + "w(json.dumps(['candidate', 1]).encode())",
    "only a letter": WRITE + "w(b'R')", "two stops": WRITE + "w(b'RK\\x01.K\\x0e.')",
    "an unknown letter": WRITE + "w(b'P')",
    "2 ** 64 - 1 bytes": WRITE + "os.write = os.write\nfor fd in range(3, 40):\n"
                                 "    try: os.write(fd, b'\\xff' * 8)\n"
                                 "    except OSError: pass\ntime.sleep(1)",
    "2 ** 63 bytes": WRITE + "for fd in range(3, 40):\n    try: os.write(fd, bytes(7) + b'\\x80')\n"
                             "    except OSError: pass",
    "a second reply": WRITE + "w(b'RK\\x01.', (5).to_bytes(8, 'little') + b'RK\\x0e.')\ntime.sleep(1)",
}  # fmt: skip


@strict
@pytest.mark.parametrize("name", FRAMES)
def test_malformed_replies(judge, name):
    assert judge(FRAMES[name] + "\nresult = 1").verdict in ("error", "wrong")


@strict
@pytest.mark.parametrize("said", [
    "5", "5.0", "null", "true", "[]", "{}", '"a"', '["error"]', '["error", "a", "b"]', '[["error"], 1]',
    "1" * 5000, "[" * 9999, "NaN", "",
], ids=lambda said: said[:9])  # fmt: skip
def test_a_malformed_error_is_an_error(judge, said):
    """Not `wrong`: that would say that the program ran."""
    verdict = judge(WRITE + f"w(b'E' + {said.encode()!r})\ntime.sleep(5)")
    assert (verdict.verdict, verdict.message) == ("error", "not a result") and not verdict.ran


@strict
def test_a_result_that_uses_up_the_judges_memory_is_an_error(judge):
    """A few bytes describe an array of 8 TB."""
    shape = "('<f8', (10 ** 12,), b'')"
    code = (
        "import pickle\nclass Large:\n    def __reduce__(self):\n        from verifier import unpack\n"
        f"        return unpack.array, {shape}\n"
    )
    verdict = judge(code + WRITE + "w(b'R' + pickle.dumps(Large(), 5))\ntime.sleep(5)", ARRAY)
    assert verdict.verdict == "error" and not verdict.ran, verdict


@strict
def test_replies_sent_ahead_are_only_results(judge):
    """The answers to all three cases before the second was asked: right, wrong, and one more right."""
    reply = "b'RK' + bytes([{}]) + b'.'"
    ahead = WRITE + "".join(f"w({reply.format(v)})\n" for v in (2, 4, 7)) + "time.sleep(2)"
    assert judge(ahead, context(value="test_case_id", cases=3)).verdict == "wrong"


NEVER_REPLY = {
    "closed pipes": "import os, time\nos.closerange(3, 99)\ntime.sleep(60)",
    "empty reply": "import os, time\nfor fd in range(3, 40):\n    try: os.write(fd, bytes(8))\n"
                   "    except OSError: pass\ntime.sleep(60)",
    "a call without end": "import hashlib\nhashlib.pbkdf2_hmac('sha256', b'a', b'b', 10 ** 9)",
    "a sum": "sum(range(10 ** 12))",
    "blocked signals": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
                       "while True: pass",
    "threads": "import threading\n"
               "for _ in range(20): threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()",
    "an empty pipe": "import fcntl, os\nr, w = os.pipe()\nos.read(r, 1)",
    "a lock": "import threading\nl = threading.Lock()\nl.acquire()\nl.acquire()",
    "a fraction": "from verifier import pack\n"
                  "pack.pack = lambda r: (b'\\x8c\\x0fverifier.unpack\\x8c\\x08standard\\x93'\n"
                  "    b'\\x8c\\x08Fraction\\x8c\\x0c1e9999999999\\x86R.')\n"
                  "result = 1  # the judge would compute 10 ** 9999999999",
}  # fmt: skip


@strict
@pytest.mark.parametrize("answer", NEVER_REPLY.values(), ids=NEVER_REPLY)
def test_it_ends_at_its_deadline(judge, answer):
    assert judge(answer, timeout=0.2).verdict == "timeout"


RAW_PICKLES = {
    "a tuple too deep to hash": ("b'}' + b')' + b'\\x85' * 2000000 + b'K\\x01s.'",
                                 ("crash", "error", "wrong")),
    "a list too deep to compare": ("b']' * 500000 + b'a' * 499999 + b'.'", ("crash", "error", "wrong")),
    "2 ** 62 bytes of a bytearray": ("b'\\x96' + (1 << 62).to_bytes(8, 'little') + b'.'", ("error", "wrong")),
    "2 ** 62 bytes": ("b'\\x8e' + (1 << 62).to_bytes(8, 'little') + b'.'", ("error",)),
    "2 ** 62 letters": ("b'\\x8d' + (1 << 62).to_bytes(8, 'little') + b'.'", ("error",)),
    "a frame of 2 ** 63 bytes": ("b'\\x95' + (1 << 63).to_bytes(8, 'little') + b'K\\x01.'", ("error",)),
    "a number of negative length": ("b'\\x8b\\xff\\xff\\xff\\xff.'", ("error",)),
    "a number of a megabyte": ("b'\\x8b' + (1 << 20).to_bytes(4, 'little') + b'x' * (1 << 20) + b'.'",
                               ("wrong",)),
    "an array of 2 ** 40 bytes": ("b'\\x8c\\x0fverifier.unpack\\x8c\\x05array\\x93(\\x8c\\x03|u1'"
                                  "b'\\x8a\\x06\\0\\0\\0\\0\\0\\1\\x85C\\0tR.'", ("error", "wrong")),
}  # fmt: skip


@strict
@pytest.mark.parametrize("name", RAW_PICKLES)
def test_pickles_that_are_too_much(judge, name):
    data, allowed = RAW_PICKLES[name]
    assert judge(f"from verifier import pack\npack.pack = lambda r: {data}\nresult = 1").verdict in allowed
    assert judge(f"result = x * 2  # {name}").verdict == "correct"


REFUSED = {
    "no stack": b"a.", "no mark": b"t.", "no memo": b"h\x05.", "an empty pop": b"0.",
    "reduce of nothing": b"R.", "stop": b".", "no stop": b"K\x01", "half a number": b"J\x01.",
    "text instruction": b"I14\n.", "global": b"cos\nsystem\n.", "instance": b"(ios\nsystem\n.",
    "object": b"(cos\nsystem\no.", "build": b"}}b.", "persistent": b"K\x01Q.", "extension": b"\x82\x01.",
    "extension 4": b"\x84\x01\0\0\0.", "next buffer": b"\x97.", "readonly buffer": b"K\x01\x98.",
    "newobj": b"K\x01)\x81.", "newobj_ex": b"K\x01)}\x92.", "put": b"K\x01q\0.",
    "long put": b"K\x01r\0\0\0\0.", "dup": b"K\x012.", "dict of a mark": b"(K\x01K\x02d.",
    "list of a mark": b"(K\x01l.", "float text": b"F1\n.", "string text": b"S'a'\n.",
    "unicode text": b"Va\n.", "short string": b"U\x01a.", "string": b"T\x01\0\0\0a.",
    "get text": b"K\x01\x94g0\n.",
    "attribute of a builder": b"\x8c\x0fverifier.unpack\x8c\x0fopaque.__code__\x93.",
    "another module": b"\x8c\x02os\x8c\x06system\x93.",
    "the module's imports": b"\x8c\x0fverifier.unpack\x8c\x06pickle\x93.",
    "the unpickler": b"\x8c\x0fverifier.unpack\x8c\x08Unpacker\x93.",
    "builtins": b"\x8c\x08builtins\x8c\x04eval\x93.",
    "a call of a type": b"\x8c\x0fverifier.unpack\x8c\x0atype_named\x93\x8c\x08builtins\x8c\x03int\x86R)R.",
    "a call of text": b"\x8c\x01a)R.", "arguments in a list": b"\x8c\x0fverifier.unpack\x8c\x06copied\x93]R.",
    "an unhashable key": b"}]K\x01s.", "filling a frozen set": b"(\x91(K\x01\x90.",
    "filling a tuple": b")K\x01a.", "appending to text": b"\x8c\x01aK\x01a.",
    "items of a list": b"]K\x01K\x02s.", "extending a set": b"\x8f(K\x01e.",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_instruction_that_is_not_data(name):
    with pytest.raises(Exception):  # noqa: B017 (of whatever kind: nothing comes back)
        print(unpack.unpack(REFUSED[name]))


def test_shared_references_and_loops_are_data():
    shared = unpack.unpack(b"](]\x94h\0e.")  # two times the same list
    assert shared == [[], []] and shared[0] is shared[1]
    loop = unpack.unpack(b"]\x94h\0a.")
    assert type(loop) is list and loop[0] is loop
    assert unpack.unpack(b"(K\x01]\x94h\0at.")[1][0] is not None


ARRAYS = {
    "negative": ("|u1", (-1,), b"x"), "negative and negative": ("|u1", (-1, -1), b"x"),
    "negative and empty": ("|u1", (-5,), b""), "true": ("|u1", (True,), b"x"),
    "a float": ("|u1", (1.0,), b"x"), "a list": ("|u1", [1], b"x"), "a number": ("|u1", 1, b"x"),
    "too long": ("|u1", (9,), b"x"), "overflow": ("|u1", (2 ** 32, 2 ** 32), b"x"),
    "overflow to 0": ("<i8", (2 ** 61,), b"x"), "pointers": ("|O", (1,), b"x" * 8),
    "pointers in text": ("O", (1,), b"x" * 8), "pointers in a list": ([("a", "O")], (1,), b"x" * 8),
    "pointers after commas": ("i8,O", (1,), b"x" * 16),
    "pointers in a subarray": (("O", (2,)), (1,), b"x" * 16),
    "pointers deep": ([("a", [("b", "|O")])], (1,), b"x" * 8),
    "a dictionary": ({"names": ["a"], "formats": ["O"]}, (1,), b"x" * 8), "no type": (None, (1,), b"x" * 8),
    "a builder": (unpack.opaque, (1,), b"x" * 8), "a name": ("numpy.ndarray", (1,), b"x"),
    "text for bytes": ("|u1", (1,), "x"), "65 dimensions": ("|u1", (1,) * 65, b"x"),
    "objects too few": ("|O", (3,), [1]), "objects too many": ("|O", (1,), [1, 2, 3]),
    "objects in a tuple": ("|O", (1,), (1,)),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_none(name):
    pytest.importorskip("numpy")
    with pytest.raises(Exception):  # noqa: B017
        print(unpack.array(*ARRAYS[name]))


def test_a_truth_value_of_two_is_not_both():
    """numpy's booleans are bytes; one that is not 0 or 1 must not be equal to both, nor missing and there."""
    np = pytest.importorskip("numpy")
    for size in (1, 16, 67):
        for byte in range(256):
            values = unpack.array("|b1", (size,), bytes([byte]) * size)
            assert not ((values == np.ones(size, bool)) & (values == np.zeros(size, bool))).any()
            assert not ((values == np.zeros(size, bool)) & ~(~values)).any()


# --- Python: reaching out -----------------------------------------------------------------------------------

REACHING = {
    "system by ctypes": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
                        "if libc.system(b'true') != 0: raise PermissionError",
    "popen": "import os\nos.popen('true').read()",
    "multiprocessing": "import multiprocessing as m\nm.Process(target=int).start()",
    "a pool of processes": "import concurrent.futures as c\nlist(c.ProcessPoolExecutor(1).map(int, [1]))",
    "a listener": "import socket\nsocket.create_server(('127.0.0.1', 0))",
    "netlink": "import socket\nsocket.socket(16, 3)",
    "kernel cryptography": "import socket\nsocket.socket(38, 5)",
    "virtual machine sockets": "import socket\nsocket.socket(40, 1)",
    "raw socket": "import socket\nsocket.socket(17, 3)", "ipv6": "import socket\nsocket.socket(10, 1)",
    "asyncio": "import asyncio\nasyncio.run(asyncio.sleep(0))",
    "a package by a shared mapping": "import mmap, json, os\nf = os.open(json.__file__, os.O_RDONLY)\n"
                                     "mmap.mmap(f, 1, mmap.MAP_SHARED, mmap.PROT_WRITE)",
    "a package by its folder": "import json, os\nos.rmdir(os.path.dirname(json.__file__))",
    "a package renamed": "import json, os\nos.rename(json.__file__, json.__file__ + '.old')",
    "a file taken into its folder": "import json, os\nos.rename(json.__file__, 'json.py')",
    "path and reopen": "import json, os\nf = os.open(json.__file__, os.O_PATH)\n"
                       "os.open(f'/proc/self/fd/{f}', os.O_RDWR)",
    "the folder above": "import os\nos.listdir('..')",
    "up and up": "import os\nos.chdir('..')\nos.mkdir('new')",
    "its folder moved": "import os\nos.rename(os.getcwd(), os.getcwd() + 'x')",
    "temporary folder": "import tempfile\ntempfile.mkdtemp(dir='/tmp')",
    "/var/tmp": "open('/var/tmp/x', 'w')", "/run": "import os\nos.mkdir('/run/x')",
    "terminal": "open('/dev/tty', 'w')", "/dev/pts": "import os\nos.listdir('/dev/pts')",
    "kernel log": "open('/dev/kmsg', 'w')", "kernel memory": "open('/dev/mem', 'rb')",
    "message to the machine": "open('/proc/sysrq-trigger', 'w')",
    "settings of the kernel": "open('/proc/sys/kernel/core_pattern', 'w')",
    "control groups": "open('/sys/fs/cgroup/cgroup.procs', 'w')",
    "own memory": "open('/proc/self/mem', 'r+b')", "own environment": "open('/proc/self/environ').read()",
    "own score": "open('/proc/self/oom_score_adj', 'w').write('-1000')",
    "own name map": "open('/proc/self/uid_map', 'w')", "mounts": "open('/proc/self/mountinfo').read()",
    "network table": "open('/proc/net/tcp').read()", "names of hosts": "open('/etc/hosts').read()",
    "all settings": "import os\nos.listdir('/etc')", "group": "import os\nos.setgid(1)",
    "groups": "import os\nos.setgroups([1])", "priority": "import os\nos.nice(-5)",
    "scheduler": "import os\nos.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "signal by number of a file": "import signal, os\nsignal.pidfd_send_signal(0, 9)",
    "kill itself": "import os\nos.kill(os.getpid(), 9)",
    "user name space": "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000): raise PermissionError",
    "a trace of it": "import ctypes\nif ctypes.CDLL(None).ptrace(0, 0, 0, 0): raise PermissionError",
    "swap": "import ctypes\nif ctypes.CDLL(None).swapoff(b'/x'): raise PermissionError",
}  # fmt: skip


@strict
@pytest.mark.parametrize("name", REACHING)
def test_reaching_out(judge, name):
    """Denied, or an error where what is looked for is not there at all."""
    verdict = judge(REACHING[name] + "\nresult = x * 2")
    assert verdict.verdict in ("denied", "error"), verdict
    assert verdict.verdict == "denied" or "No such file" in verdict.message, verdict


# Numbers on x86-64 alone: name, number, arguments.
CALLS = [
    ("rt_tgsigqueueinfo", 297, "parent", "parent", 9), ("pidfd_send_signal", 424, 3, 9),
    ("process_madvise", 440), ("move_pages", 279, "parent"), ("migrate_pages", 256, "parent"),
    ("mq_open", 240), ("inotify_init1", 294), ("fanotify_init", 300), ("splice", 275), ("tee", 276),
    ("vmsplice", 278), ("memfd_secret", 447), ("name_to_handle_at", 303), ("msgget", 68, 1, 0o1000),
    ("semget", 64, 1, 1, 0o1000), ("syslog", 103, 3), ("iopl", 172, 3), ("modify_ldt", 154),
    ("pivot_root", 155), ("settimeofday", 164), ("adjtimex", 159), ("timer_create", 222),
    ("ioprio_set", 251, 1, "parent", 0), ("setpgid", 109), ("set_mempolicy", 238), ("prctl SET_MM", 157, 35),
    ("prctl SET_PTRACER", 157, 0x59616D61, 1), ("prctl SUBREAPER", 157, 36, 1), ("prctl SECCOMP", 157, 22, 1),
    ("prctl NO_NEW_PRIVS", 157, 38, 0), ("sched_setattr", 314), ("fsopen", 430), ("open_tree", 428),
    ("move_mount", 429), ("mount_setattr", 442), ("pidfd_getfd", 438), ("io_setup", 206, 1),
    ("landlock_add_rule", 445), ("landlock_restrict_self", 446), ("process_mrelease", 448), ("sync", 162),
    ("syncfs", 306, 1), ("sendmsg", 46), ("recvmsg", 47), ("bind", 49), ("mlockall", 151, 3),
    ("kexec_load", 246), ("delete_module", 176), ("vhangup", 153), ("capset", 126),
    ("setresuid", 117, 1, 1, 1), ("setfsuid", 122, 1),
    ("clone of a process in a new name space", 56, 0x20000000 | 17), ("vfork by clone", 56, 0x4111),
]  # fmt: skip


@strict
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of x86-64")
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0])
def test_more_system_calls_that_fail(call):
    """All in one process of the test's own, behind the same walls."""
    assert call[0] in refused_calls()


@functools.cache
def refused_calls():
    code = f"""
import ctypes, os, sys, tempfile
sys.path.insert(0, {str(ROOT)!r})
from verifier import walls
folder = tempfile.mkdtemp()
os.chdir(folder)
walls.enclose(folder, 10)
libc = ctypes.CDLL(None, use_errno=True)
for name, number, *arguments in {CALLS!r}:
    arguments = [os.getppid() if a == "parent" else ctypes.c_long(a) for a in arguments]
    ctypes.set_errno(0)
    value = libc.syscall(ctypes.c_long(number), *arguments)
    if value == -1 and ctypes.get_errno() in (1, 38):
        print(name)
    elif value == 0 and "clone" in name:
        os._exit(0)
"""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"TMPDIR": folder}
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@strict
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="machine code of x86-64")
def test_a_32_bit_system_call(judge):
    """Its numbers mean other calls; the filter must not read them as 64-bit ones."""
    answer = (
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\n"
        "m.write(bytes.fromhex('b802000000cd80c3'))  # fork\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()\nresult = x * 2"
    )
    assert judge(answer).verdict in ("denied", "crash")


@strict
def test_open_files_of_other_processes_are_not_opened_through_proc(judge):
    """Landlock knows no rule for pipes; what stops this is that one domain cannot look into another."""
    answer = (
        "import os\nopened = []\n"
        "for pid in [os.getppid(), *range(max(2, os.getppid() - 10), os.getppid() + 10)]:\n"
        "    for fd in range(40):\n        for flags in (os.O_RDONLY, os.O_WRONLY):\n"
        "            if pid != os.getpid():\n"
        "                try: opened.append(os.open(f'/proc/{pid}/fd/{fd}', flags | os.O_NONBLOCK))\n"
        "                except OSError: pass\nassert not opened\nresult = x * 2"
    )
    assert judge(answer).verdict == "correct"


@strict
@pytest.mark.parametrize(
    "name", ["evil.py", "json.py", "copy.py", "sitecustomize.py", "<context>", "conftest.py"]
)
def test_the_judge_imports_nothing_from_the_folder_of_the_program(judge, name):
    """Each works in a folder of its own."""
    module = name.removesuffix(".py")
    check = (
        f"import importlib, sys; sys.modules.pop({module!r}, 0); "
        f"m = importlib.import_module({module!r}); assert m.x != 5"
    )
    verdict = judge(f"open({name!r}, 'w').write('x = 5')\nresult = x * 2", context(check=check))
    assert verdict.verdict == "wrong" and (
        "No module" in verdict.message or "no attribute" in verdict.message
    )


# What a test of somebody's own may do with a file of the program's, or with bytes that are its result.
READS = {
    "pickle.load": "pickle.load(open('f', 'rb'))",
    "pickle.Unpickler": "pickle.Unpickler(open('f', 'rb')).load()",
    "Python's unpickler": "pickle._Unpickler(open('f', 'rb')).load()",
    "read_pickle": "__import__('pandas').read_pickle('f')",
    "numpy": "__import__('numpy').load('f', allow_pickle=True)",
    "torch": "__import__('torch').load('f', weights_only=False)",
    "an import": "__import__('f')",
    "text": "open('f').read()",
    "another folder": "open('../program/f', 'rb').read()",
    "glob": "[pickle.load(open(name, 'rb')) for name in __import__('glob').glob('../**', recursive=True)][0]",
}
PICKLED = (
    "import os, pickle\nclass R:\n    def __reduce__(s): return (print, (1,))\ndata = pickle.dumps(R())\n"
)


@strict
@pytest.mark.parametrize("name", READS)
def test_no_file_of_the_program_is_read_by_its_test(judge, name):
    """Whoever unpickles or imports such a file runs what the program wrote into it."""
    write = "for name in ('f', 'f.py'):\n    with open(name, 'wb') as f: f.write(data)\n"
    test = context("import pickle", check=f"{READS[name]}; assert False, 'it was read'")
    verdict = judge(PICKLED + write + "result = 14", test)
    assert verdict.verdict == "wrong" and "it was read" not in verdict.message, verdict
    assert any(
        word in verdict.message for word in ("No such file", "No module", "Permission", "list index")
    ), verdict


LOADS = {
    "loads": "pickle.loads(result)",
    "Python's loads": "pickle._loads(result)",
    "twice": "pickle.loads(pickle.loads(result))",
    "Unpickler": "pickle.Unpickler(io.BytesIO(result)).load()",
    "written to a file": "open('f', 'wb').write(result); pickle.load(open('f', 'rb'))",
    "read_pickle": "__import__('pandas').read_pickle(io.BytesIO(result))",
    "in a thread": (
        "t = threading.Thread(target=lambda: seen.append(pickle.loads(result))); "
        "t.start(); t.join(); assert seen"
    ),
    "a subclass": "type('U', (pickle.Unpickler,), {})(io.BytesIO(result)).load()",
}


@strict
@pytest.mark.parametrize("name", LOADS)
def test_a_result_that_is_a_pickle_makes_no_object_in_the_judge(judge, name):
    """Else its pickle could make the comparison that follows true."""
    code = (
        "import builtins\nclass R:\n"
        "    def __reduce__(s): return (exec, ('import builtins; builtins.taken = 1',))\n"
        "result = pickle.dumps(R())\n"
    )
    if name == "twice":
        code += "result = pickle.dumps(result)\n"
    test = context(
        "import builtins, io, pickle, threading\nseen = []",
        check=f"{LOADS[name]}; assert False, 'it was read'",
    )
    verdict = judge(PICKLED + code, test)
    assert verdict.verdict in ("denied", "wrong") and "it was read" not in verdict.message, verdict
    taking = test.replace("assert False, 'it was read'", "assert hasattr(builtins, 'taken')")
    assert judge(PICKLED + code, taking).verdict in ("denied", "wrong")


@strict
def test_plain_pickles_and_pickles_of_the_test_itself_are_read(judge):
    test = context("import pickle", check="assert pickle.loads(result) == [ans]")
    assert judge("import pickle\nresult = pickle.dumps([14])", test).verdict == "correct"
    own = context(
        "import fractions, pickle", cases=2, value="pickle.loads(pickle.dumps(fractions.Fraction(7)))"
    )
    assert judge("result = x * 2", own).verdict == "correct"
    seven = context(
        "import fractions, pickle",
        check="assert pickle.loads(pickle.dumps(fractions.Fraction(14))) == result",
    )
    answer = (
        "import pickle, fractions\nassert pickle.loads(pickle.dumps(fractions.Fraction(7))) == x\n"
        "result = x * 2"
    )
    assert judge(answer, seven + "# plt.gcf(").verdict == "correct"


@strict
def test_files_of_the_test_reach_the_program(judge):
    write = (
        "import os, tempfile\ndef write(case):\n    os.makedirs('deep/er', exist_ok=True)\n"
        "    os.makedirs('empty', exist_ok=True)\n"
        "    for name in ('a.bin', 'deep/er/b.bin'):\n"
        "        with open(name, 'wb') as f: f.write(bytes([case, 255]))\n"
        "    path = os.path.join(tempfile.mkdtemp(), 'named')\n    open(path, 'w').write(str(case))\n"
        "    return path"
    )
    test = context(write, value="write(test_case_id)", expected="test_case_id * 3", cases=2)
    answer = (
        "import os, shutil\nassert os.listdir('empty') == []\n"
        "result = sum(open(name, 'rb').read()[0] for name in ('a.bin', 'deep/er/b.bin'))"
        " + int(open(x).read())\n"
    )
    assert judge(answer, test).verdict == "correct"
    # they come again
    assert judge(answer + "shutil.rmtree('deep')\nopen('a.bin', 'w')", test).verdict == "correct"
    spoiled = answer + "os.remove('a.bin')\nos.makedirs('a.bin/x')"
    assert judge(spoiled, test).verdict == "error"
    assert judge("open(x, 'w')\nresult = 3", test).verdict == "denied"
    assert judge("import os\nos.remove(x)\nresult = 3", test).verdict == "denied"


@strict
@pytest.mark.parametrize(
    "test", [PLAIN, PLAIN + "# plt.gcf("], ids=["beside its judge", "in its judge's process"]
)
@pytest.mark.parametrize("answer", [
    "assert 0\nresult = 14", "result = 14\nassert x == 8, 'no'", "raise AssertionError",
    "class E(AssertionError): pass\nraise E", "result = 15\nassert result == 14",
    "try: 1 / 0\nfinally: assert 0", "import json\nraise json.JSONDecodeError('a', 'b', 1)",
])  # fmt: skip
def test_a_program_that_raises_did_not_run_whatever_it_raises(judge, test, answer):
    verdict = judge(answer, test)
    assert verdict.verdict == "error" and not verdict.ran, verdict
    wrong = judge("result = 15", test)
    assert wrong.verdict == "wrong" and wrong.ran


@strict
def test_a_test_that_raises_anything_is_a_wrong_result(judge):
    for error in ("AssertionError", "KeyError", "SystemExit", "MemoryError"):
        verdict = judge("result = 14", context(check=f"raise {error}"))
        assert verdict.verdict == "wrong" and verdict.ran, (error, verdict)


@strict
def test_a_program_cannot_call_its_own_error_wrong(judge):
    verdict = judge(WRITE + "w(b'E' + json.dumps(['wrong', 'x']).encode())\ntime.sleep(5)")
    assert verdict.verdict == "error" and not verdict.ran


@strict
@pytest.mark.parametrize("stream", [1, 2])
@pytest.mark.parametrize("where", ["os.write", "print", "warnings", "faulthandler"])
def test_floods(judge, stream, where):
    text = "'x' * (1 << 20)"
    flood = {
        "os.write": f"[os.write({stream}, b'x' * (1 << 20)) for _ in range(300)]",
        "print": f"[print({text}, file=(sys.stdout, sys.stderr)[{stream} - 1]) for _ in range(300)]",
        "warnings": f"[warnings.warn({text} + str(i)) for i in range(20)]",
        "faulthandler": "[faulthandler.dump_traceback(all_threads=True) for _ in range(2000)]",
    }[where]
    assert judge(f"import os, sys, warnings, faulthandler\n{flood}\nresult = x * 2").verdict == "correct"


# --- Python: from one program to the next -------------------------------------------------------------------

DISK = {
    "reserved": (
        "for i in range(40):\n f = os.open(str(i), os.O_RDWR | os.O_CREAT)\n"
        " os.posix_fallocate(f, 0, 64 << 20)\n os.close(f)"
    ),
    "deleted and mapped": (
        "libc = ctypes.CDLL(None)\nfor i in range(12):\n f = os.open('f', os.O_RDWR | os.O_CREAT)\n"
        " os.write(f, bytes(8192))\n libc.mmap(None, 4096, 1, 1, f, 0)\n os.close(f)\n os.unlink('f')\n"
        "time.sleep(9)"
    ),
}


@strict
@pytest.mark.parametrize("name", DISK)
def test_the_disk_does_not_fill(judge, name):
    free = shutil.disk_usage(tempfile.tempdir).free
    verdict = judge("import ctypes, os, time\n" + DISK[name] + "\nresult = 14")
    assert verdict.verdict == "error" and "256 MB of files" in verdict.message
    assert shutil.disk_usage(tempfile.tempdir).free > free - (512 << 20)


@strict
def test_shared_memory_and_small_reserved_files_are_harmless(judge):
    answer = """import mmap, os, time
shared = [mmap.mmap(-1, 4096) for _ in range(20)]
f = os.open('f', os.O_RDWR | os.O_CREAT)
os.posix_fallocate(f, 0, 1 << 20)
assert os.fstat(f).st_size == 1 << 20
time.sleep(0.3)
result = 14"""
    assert judge(answer).verdict == "correct"


# --- programs beside their test, and tests that a program disturbs ------------------------------------------


FIGURE = context("import copy  # plt.gcf(")  # judged in one process: by its text, which needs no Matplotlib
REPORT = """import gc, json, os, sys, time
f, nonce, report = sys._getframe(), "", 0
while f:
    nonce, report = f.f_locals.get("nonce", nonce), f.f_locals.get("report", report)
    f = f.f_back
def w(data):
    os.write(report, len(data).to_bytes(8, "little") + data)
"""
DISTURBING = {
    "a number": "w(b'5')", "nothing": "w(b'')", "deep": "w(b'[' * 9999)", "bytes": "w(b'\\xff')",
    "a dictionary": "w(b'{}')", "no message": "w(json.dumps([nonce, 'wrong']).encode())",
    "no verdict": "w(json.dumps([nonce, 5, 'x']).encode())",
    "not a text": "w(json.dumps([nonce, 'correct', {'a': 1}]).encode())",
    "unhashable": "w(json.dumps([nonce, [], 'x']).encode())", "huge": "os.write(report, bytes([255] * 8))",
    "half": "os.write(report, b'abc')",
    "infrastructure": "w(json.dumps([nonce, 'infrastructure', 'x']).encode())",
    "killed": "w(json.dumps([nonce, 'killed', '']).encode())",
    "broken test": "w(json.dumps([nonce, 'broken test', 'x']).encode())",
    "announced twice": "w(b'[\"local\", 0]')", "all is closed": "os.closerange(3, 99)",
}  # fmt: skip


@strict
@pytest.mark.parametrize("name", DISTURBING)
def test_a_forged_report_is_the_fault_of_the_program(judge, name):
    verdict = judge(REPORT + DISTURBING[name] + "\ntime.sleep(9)", FIGURE)
    assert verdict.verdict == "error" and verdict.message == "in one process: the program disturbed its judge"


@strict
def test_a_forged_pass_keeps_its_label(judge):
    long = REPORT + "w(json.dumps([nonce, 'correct', 'a\\n' * 900]).encode())\ntime.sleep(9)"
    assert judge(long, FIGURE).message.startswith("in one process: a a a")
    # by its use; on a very busy machine by the clock
    endless = judge("while True: pass", FIGURE, 0.5).message
    assert endless.startswith(
        ("in one process: more than 0.5 s of processor", "in one process: longer than 2 s")
    )
    assert judge("result = 14", FIGURE).message == "in one process"


@strict
def test_a_program_that_collects_its_judges_children(judge):
    reap = """import os, sys
os.closerange(3, 99)
try:
    while True: os.wait()
except ChildProcessError:
    os._exit(0)"""
    assert judge(reap, FIGURE).verdict == "error"
    assert judge("result = 14", FIGURE).verdict == "correct"


@strict
def test_a_test_that_fails_after_a_program_has_run_is_no_fault_of_the_machine(judge):
    removing = context("import os\nopen('t.csv', 'w').close()", value="os.path.getsize('t.csv') + 7", cases=2)
    assert judge("result = 14", removing).verdict == "correct"
    assert judge("import os\nos.remove('t.csv')\nresult = 14", removing).verdict == "correct"  # its own copy
    assert (
        "disturbed its test"
        in judge("import os\nos.remove('t.csv')\nresult = 14", removing + "# plt.gcf(").message
    )
    memory = context(value="7 if test_case_id == 1 else [].missing", cases=2)
    assert "disturbed its test" in judge("result = 14", memory).message


@strict
@pytest.mark.parametrize("trouble", ["MemoryError", "ValueError"])
def test_a_program_cannot_make_the_judge_run_it_beside_the_test(judge, trouble):
    """What the judge cannot send the second time is not a reason to run the program itself."""
    refuse = f"class N:\n    def __reduce__(s): raise {trouble}\n    def __mul__(s, o): return 14"
    verdict = judge("result = 14", context(refuse, value="7 if test_case_id == 1 else N()", cases=2))
    assert verdict.verdict == "error" and "in one process" not in verdict.message
    assert ("out of memory" in verdict.message) == (trouble == "MemoryError")
    if trouble == "MemoryError":
        assert judge("result = 14", context(refuse, value="N()")).verdict == "error"
    else:
        assert judge("result = 14", context(refuse, value="N()")).message == "in one process"


@strict
def test_each_program_has_a_session_of_its_own(judge):
    assert judge("import os\nassert os.getsid(0) == os.getppid()\nresult = 14").verdict == "correct"


@strict
@pytest.mark.parametrize("answer", ["np.ma.masked_all(())", "np.ma.masked", "[np.ma.masked_all(4)]",
                                    "np.ma.array(np.arange(4) * 7, mask=[0, 0, 0, 1])"])  # fmt: skip
def test_a_masked_result_is_equal_to_nothing(judge, answer):
    for check in ("np.testing.assert_array_equal(result, ans)", "np.testing.assert_allclose(result, ans)"):
        test = context("import numpy as np", expected="np.arange(4) * x", check=check)
        assert judge(f"import numpy as np\nresult = {answer}", test).verdict in ("wrong", "error")
        unmasked = "import numpy as np\nresult = np.ma.array(np.arange(4) * 7, mask=False)"
        assert judge(unmasked, test).verdict == "correct"


STATE = {
    "modules": ("sys.modules['left'] = 1", "'left' in sys.modules"),
    "builtins": ("builtins.left = 1", "hasattr(builtins, 'left')"),
    "an open function": ("builtins.sum = lambda *a: 5", "sum([1]) == 5"),
    "environment": ("os.environ['LEFT'] = '1'", "'LEFT' in os.environ"),
    "real environment": ("ctypes.CDLL(None).setenv(b'LEFT', b'1', 1)", "ctypes.CDLL(None).getenv(b'LEFT')"),
    "mask": ("os.umask(0o111)", "os.umask(0) == 0o111"),
    "signal handler": ("signal.signal(signal.SIGTERM, signal.SIG_IGN)",
                       "signal.getsignal(signal.SIGTERM) is signal.SIG_IGN"),
    "blocked signals": ("signal.pthread_sigmask(0, [signal.SIGTERM])", "signal.pthread_sigmask(0, [])"),
    "alarm": ("signal.setitimer(signal.ITIMER_REAL, 0.3)", "signal.getitimer(signal.ITIMER_REAL)[0]"),
    "recursion": ("sys.setrecursionlimit(123456)", "sys.getrecursionlimit() == 123456"),
    "switch interval": ("sys.setswitchinterval(0.5)", "sys.getswitchinterval() == 0.5"),
    "trace": ("sys.settrace(lambda *a: None)", "sys.gettrace()"),
    "audit": ("sys.addaudithook(lambda *a: setattr(builtins, 'seen', 1))",
              "sys.audit('left') or hasattr(builtins, 'seen')"),
    "path": ("sys.path.insert(0, os.getcwd())", "os.getcwd() in sys.path"),
    "import hook": ("sys.meta_path.insert(0, type('left', (), {}))", "sys.meta_path[0].__name__ == 'left'"),
    "warnings": ("warnings.simplefilter('error')", "warnings.filters[0][0] == 'error'"),
    "decimal": ("decimal.getcontext().prec = 3", "decimal.getcontext().prec == 3"),
    "random": ("random.seed(77)", "random.random() == random.Random(77).random()"),
    "locale": ("locale.setlocale(locale.LC_ALL, 'C')", "locale.setlocale(locale.LC_ALL) == 'C'"),
    "codecs": ("codecs.register(lambda n: codecs.lookup('utf-8') if n == 'left' else None)",
               "codecs.lookup('left')"),
    "patched class": ("ctypes.pythonapi.PyType_Modified; fractions.Fraction.__eq__ = lambda *a: True",
                      "fractions.Fraction(1) == 5"),
    "a function's code": ("json.detect_encoding.__code__ = (lambda b: 5).__code__",
                          "json.detect_encoding(b'1') == 5"),
    "interned integer": ("ctypes.memmove(id(200) + 24, id(201) + 24, 4)", "int('200') == int('201')"),
    "files": ("open('left', 'w').close()", "os.listdir('.')"),
    "home": ("open(os.path.expanduser('~/.pythonrc'), 'w').close()",
             "os.path.exists(os.path.expanduser('~/.pythonrc'))"),
    "a lock on a package": ("lock = os.open(json.__file__, 0); fcntl.flock(lock, fcntl.LOCK_EX)",
                            "fcntl.flock(os.open(json.__file__, 0), fcntl.LOCK_EX | fcntl.LOCK_NB)"),
    "collector": ("gc.disable(); gc.set_threshold(1)", "not gc.isenabled()"),
    "name": ("ctypes.CDLL(None).prctl(15, b'left')", "open('/proc/self/stat').read().split()[1] == '(left)'"),
}  # fmt: skip


@strict
@pytest.mark.parametrize("name", STATE)
def test_nothing_passes_from_one_program_to_the_next(judge, name):
    change, seen = STATE[name]
    imports = (
        "import builtins, codecs, ctypes, decimal, fcntl, fractions, gc, json, locale, os, random, signal\n"
        "import sys, warnings\n"
    )
    look = (
        f"try: seen = {seen}\nexcept (LookupError, AttributeError): seen = False\n"
        "except BlockingIOError: seen = True\n"
        "assert {} seen\nresult = 14"
    )
    for worker in (1, 2):  # one of them runs the last program
        assert judge(f"{imports}{change}\n{look.format('')}  # {name} {worker}").verdict == "correct"
    assert judge(f"{imports}{look.format('not')}  # {name}").verdict == "correct"


@strict
def test_a_program_cannot_change_the_test_of_the_next_case(judge):
    """The judge's own state is not the program's: what it changes in its process stays there."""
    answer = (
        "import sys, builtins\nbuiltins.range = lambda n: []\nsys.modules['copy'] = None\n"
        "result = x * 2 if x == 1 else 0"
    )
    assert (
        judge(answer, context("import copy", value="copy.deepcopy(test_case_id)", cases=2)).verdict == "wrong"
    )


@strict
@pytest.mark.parametrize(
    "answers",
    [
        ("result = 14", "result = 14\0"),
        ("result = len('\u00e9') * 14", "result = len('e\u0301') * 14"),
        ("result = 14", "result = 15"),
        ("result = 14", "result = 14\ud800"),
    ],
    ids=range(4),
)
def test_two_programs_are_two_entries_of_the_cache(verifier, answers):
    verdicts = [v.verdict for v in verifier.run([PythonJob(PLAIN, answer) for answer in answers * 2])]
    assert verdicts[0] == "correct" != verdicts[1] and verdicts[2:] == verdicts[:2]


@strict
def test_a_test_and_an_answer_do_not_run_into_each_other(verifier):
    other = PLAIN.replace("x * 2", "x * 3")
    jobs = [
        PythonJob(test, answer, timeout)
        for test in (PLAIN, other)
        for answer in ("result = 14", "result = 21")
        for timeout in (20, 21.0)
    ]
    assert [v.verdict for v in verifier.run(jobs)] == ["correct"] * 2 + ["wrong"] * 4 + ["correct"] * 2
    assert len({id(verifier.submit(job)) for job in jobs}) == len(jobs)


# --- the command --------------------------------------------------------------------------------------------


def line(number=1, answer="SELECT id FROM t", **more):
    job = {"id": number, "kind": "sql", "database": "a.sqlite", "gold": "SELECT id FROM t", "answer": answer}
    return json.dumps(job | more)


@pytest.fixture
def command(database):
    def command(*lines, arguments=()):
        data = b"".join((text.encode() if type(text) is str else text) + b"\n" for text in lines)
        ended = subprocess.run(
            [sys.executable, str(ROOT / "verify.py"), "--workers", "1", *arguments],
            input=data,
            capture_output=True,
            timeout=120,
            cwd=os.path.dirname(database),
        )
        assert b"Traceback" not in ended.stderr
        return (
            ended.returncode,
            [json.loads(text) for text in ended.stdout.splitlines()],
            ended.stderr.decode(),
        )

    return command


BAD_LINES = {
    "id NaN": '{"id": NaN, "kind": "sql", "database": "a.sqlite", "gold": "SELECT 1", "answer": "SELECT 1"}',
    "id endless": '{"id": [1e999], "kind": "sql", "database": "a.sqlite", "gold": "SELECT 1", '
                  '"answer": "SELECT 1"}',
    "a byte-order mark": b"\xef\xbb\xbf" + line(2).encode(), "a zero byte": "\0",
    "not UTF-8": b'{"id": "\xff", "kind": 1}', "a number": "5", "a text": '"a"', "true": "true",
    "two objects": line(2) + line(3), "half an object": line(2)[:-1], "single quotes": "{'id': 1}",
    "a timeout that is none": line(2).replace("}", ', "timeout": NaN}'),
    "an endless timeout": line(2).replace("}", ', "timeout": Infinity}'),
    "a true timeout": line(2, timeout=True), "a negative timeout": line(2, timeout=-1),
    "a huge timeout": line(2).replace("}", f', "timeout": {"9" * 5000}}}'),
    "a timeout of days": line(2, timeout=86401), "no timeout": line(2, timeout=None),
    "a list of answers": line(2, answer=["SELECT 1"]), "no answer": line(2, answer=None),
    "a database that is a number": line(2, database=5), "a kind in capitals": line(2, kind="SQL"),
    "a null kind": line(2, kind=None), "a comparison in a list": line(2, comparison=["bird"]),
    "no comparison": line(2, comparison=None),
    "a Python answer with a comparison": '{"id": 2, "kind": "python", "context": "", "answer": "", '
                                         '"comparison": "bird"}',
    "a deep line": '{"id": ' + "[" * 50_000, "an unknown field": line(2, verdict="correct"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LINES)
def test_lines_that_are_no_job(command, name):
    code, verdicts, errors = command(line(1), BAD_LINES[name], line(3))
    assert code == 2 and [(v["id"], v["verdict"]) for v in verdicts] == [(1, "correct")]
    assert "verify.py: " in errors and len(errors) < 6000


@pytest.mark.parametrize(
    "path",
    ["a\0b", "\ud800", "x" * 5000, "..", "file:a.sqlite?mode=rw", "/proc/self/mem", "~/a.sqlite"],
    ids=["zero byte", "surrogate", "long", "folder", "uri", "memory", "home"],
)
def test_a_path_that_is_no_database_spares_the_other_lines(command, path):
    code, verdicts, _ = command(line(1), line(2, database=path), line(3))
    assert code == 1 and [v["verdict"] for v in verdicts] == ["correct", None, "correct"]


def test_odd_lines_that_are_jobs(command, database):
    name = os.path.basename(os.path.dirname(database))
    code, verdicts, errors = command(
        line(1), line(1, "SELECT 1"), "", " \t\r", line(None) + "\r", line({"a": [1]}), line("\ud800\u2028"),
        line(2**200), line(7, database=f"../{name}/./a.sqlite"),
        line(8, "SELECT '\x1b[2J\u2028' FROM nothing"), line(9, timeout=1e-320),
        line(10)[:-1] + ', "answer": "SELECT 5"}', line(11, "SELECT '" + "a" * 3_000_000 + "'"),
        line(12, "[" * 100_000),
    )  # fmt: skip
    assert code == 0, errors
    expected = ["correct", "wrong", *["correct"] * 5, "error", None, "wrong", "error", "error"]
    assert [v["id"] for v in verdicts] == [
        1, 1, None, {"a": [1]}, "\ud800\u2028", 2**200, 7, 8, 9, 10, 11, 12,
    ]  # fmt: skip
    assert all(e in (None, v["verdict"]) for e, v in zip(expected, verdicts)), verdicts
    assert verdicts[8]["verdict"] in ("correct", "timeout")


@strict
def test_odd_programs_on_the_command_line(command):
    def program(number, answer, test=PLAIN):
        return json.dumps({"id": number, "kind": "python", "context": test, "answer": answer, "timeout": 20})

    code, verdicts, _ = command(
        program(1, "result = x * 2"), program(2, "result = 14\0"), program(3, "\ud800"), program(4, ""),
        program(5, "result = 14", "\0"), program(6, "result = 14", "\ud800"),
        program(7, "result = 14", "raise SystemExit"), program(8, "x" * 2_000_000), program(9, "(" * 100_000),
        program(10, "result = [insert]"), program(11, "'''"), program(12, "result = x * 2  # last"),
        arguments=("--python", PYTHON),
    )  # fmt: skip
    assert code == 1  # the tests of 5 to 7 are at fault
    found = [v["verdict"] for v in verdicts]
    assert found[0] == found[11] == "correct" and found[4:7] == [None] * 3
    assert set(found[1:4] + found[7:11]) == {"error"}


def test_nobody_reads_the_verdicts(database):
    """A closed pipe ends the command, and all that it started."""
    before = descendants()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "verify.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=os.path.dirname(database),
    )
    process.stdout.close()
    endless = "WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s) SELECT count(*) FROM s"
    process.stdin.write("\n".join([line(1), line(2, endless, timeout=60), line(3)]).encode() + b"\n")
    process.stdin.close()
    process.stderr.read()
    process.stderr.close()
    assert process.wait(20) != 0
    assert descendants() <= before


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-", "> /dev/full"])
def test_closed_streams_end_in_a_sentence(database, closed):
    ended = subprocess.run(
        ["sh", "-c", f'exec "$0" "$1" {closed}', sys.executable, str(ROOT / "verify.py")],
        text=True,
        input=line() + "\n",
        capture_output=True,
        cwd=os.path.dirname(database),
        timeout=30,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr
    assert "2>&-" in closed or ended.stderr.splitlines()[-1].startswith("verify.py: ")


def test_a_partner_may_wait_for_each_verdict(database):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "verify.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        bufsize=1,
        cwd=os.path.dirname(database),
    )
    for number in range(3):
        process.stdin.write(line(number) + "\n")
        assert select.select([process.stdout], [], [], 20)[0]
        assert json.loads(process.stdout.readline())["id"] == number
    process.stdin.close()
    assert process.wait(20) == 0
    process.stdout.close()


def test_a_relative_path_is_the_callers(verifier, database, monkeypatch):
    monkeypatch.chdir(os.path.dirname(database))
    name = os.path.basename(database)
    assert verifier.submit(SqlJob(name, "SELECT id FROM t", "SELECT id FROM t")).result().verdict == "correct"
    three = "SELECT CASE count(*) WHEN 3 THEN 1 ELSE abs(-9223372036854775808) END FROM t"  # else an overflow
    assert verifier.execute(name, three, 1.0).result().verdict == "correct"


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP], ids=lambda n: n.name
)
def test_the_command_is_killed_in_the_middle(database, number):
    before = descendants()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "verify.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=os.path.dirname(database),
    )
    instr = "SELECT instr(printf('%.*c', 900000, 'a'), printf('%.*c', 450000, 'a') || 'b')"
    process.stdin.write(
        "\n".join([line(1), line(2, instr, timeout=60), line(3, "SELECT 1")]).encode() + b"\n"
    )
    process.stdin.flush()
    end = time.monotonic() + 10
    while len(descendants() - before) < 3 and time.monotonic() < end:  # the command and both of its workers
        time.sleep(0.02)
    workers = descendants() - before - {process.pid}
    assert workers
    process.send_signal(number)
    process.stdin.close()
    process.wait(20)
    process.stdout.close()
    end = time.monotonic() + 5
    while any(is_worker(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(is_worker(pid) for pid in workers)


def is_worker(pid):
    """By its command: the number may have been given to another process."""
    try:
        return b"verifier.sql" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
