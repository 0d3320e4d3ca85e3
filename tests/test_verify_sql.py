"""The SQL verifier against answers that cheat, hang, grow or break, and against results that only look equal.

Attacks on the verifier are numbered through all its tests. A name begins with the numbers that the test
holds.
"""

import hashlib
import itertools
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import verify  # noqa: E402
from verifier import compare, sql, workers  # noqa: E402
from verifier.child import Child, Died  # noqa: E402
from verifier.verdicts import NO_QUERY, Reply  # noqa: E402
from verify import GoldError, InfrastructureError, SqlJob, Verifier  # noqa: E402

EMPTY = "SELECT id FROM t WHERE id > 100"
ENDLESS = "WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s) SELECT count(*) FROM s"
INSTR = "SELECT instr(printf('%.*c', 900000, 'a'), printf('%.*c', 450000, 'a') || 'b')"
TRIM = "SELECT length(trim(printf('%.*c', 900000, 'a'), printf('%.*c', 400000, 'b') || 'a'))"
DOUBLINGS = "".join(f", c{i} AS (SELECT a.x FROM c{i - 1} a, c{i - 1} b)" for i in range(1, 22))
BOMB = f"WITH c0 AS (SELECT 1 AS x){DOUBLINGS} SELECT x FROM c21"
SORT = "SELECT printf('%.*c', 200000, 'x') || a.x AS k FROM big a, big b ORDER BY k LIMIT 3"


def make_database(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, half REAL);"
            "CREATE TABLE big(x INTEGER); CREATE TABLE latin(word TEXT);"
            "INSERT INTO latin VALUES (CAST(x'4142ff' AS TEXT))"
        )
        connection.executemany(
            "INSERT INTO t VALUES (?, ?, ?)", [(i, f"n{i % 3}", i / 2) for i in range(1, 7)]
        )
        connection.executemany("INSERT INTO big VALUES (?)", [(i,) for i in range(2000)])
        connection.commit()
    return str(path)


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def children():
    """Processes whose parent is this one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(stat.parent.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def spent(verifier):
    """Seconds of processor time of the SQL workers, also of those that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = 0
    for process in [child.process for child in verifier.sql.children if child.process]:
        ticks += sum(
            map(int, Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13])
        )
    return ended.ru_utime + ended.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """The database; when all tests are done its folder must hold this one file, byte for byte as it was."""
    path = make_database(tmp_path_factory.mktemp("sql") / "shop #1?.sqlite")
    before = digest(path)
    yield path
    assert digest(path) == before
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]


@pytest.fixture(scope="module")
def verifier(database):
    before = set(children())
    with Verifier(workers=1) as verifier:
        yield verifier
        verifier.run([SqlJob(database, "SELECT 1", "SELECT 1 AS last")])
        assert set(children()) - before  # so that the next line can fail
    assert not set(children()) - before


@pytest.fixture
def judge(verifier, database):
    """The verdict on one answer; the file must not change and the deadline must hold."""
    before = digest(database)

    def judge(answer, gold="SELECT id FROM t", comparison="strict", timeout=0.5):
        # worker and gold are warm
        verifier.submit(SqlJob(database, gold, "SELECT 1", comparison)).exception()
        before = spent(verifier)
        verdict = verifier.submit(SqlJob(database, gold, answer, comparison, timeout)).result()
        tries = 2 if verdict.verdict == "timeout" else 1  # on a machine that is busy
        assert spent(verifier) - before < tries * (timeout + 0.5)
        assert verdict.verdict in verify.VERDICTS and "\n" not in verdict.message
        return verdict

    yield judge
    assert digest(database) == before
    assert os.listdir(os.path.dirname(database)) == [os.path.basename(database)]


# --- 1 to 13: what a query may do ---------------------------------------------------------------------------


@pytest.mark.parametrize("comparison", verify.COMPARISONS)
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("DELETE FROM t", id="1 delete"),
        pytest.param("DELETE FROM t WHERE id > 100 RETURNING id", id="2 delete returning"),
        pytest.param("CREATE TEMP TABLE t AS SELECT 1 AS id", id="3 temporary table"),
        pytest.param("CREATE TEMP VIEW t AS SELECT 1 AS id", id="3 temporary view"),
        pytest.param("DROP TABLE t", id="4 drop"),
        pytest.param("ATTACH '{folder}/new.sqlite' AS new", id="5 attach"),
        pytest.param("VACUUM INTO '{folder}/copy.sqlite'", id="6 vacuum into"),
        pytest.param("PRAGMA user_version = 3", id="7 user_version"),
        pytest.param("PRAGMA journal_mode = WAL", id="7 journal_mode"),
        pytest.param("PRAGMA hard_heap_limit = 0", id="7 heap limit"),
        pytest.param("SELECT load_extension('x')", id="8 load_extension"),
        pytest.param("SELECT fts3_tokenizer('simple')", id="9 fts3_tokenizer"),
        pytest.param("BEGIN EXCLUSIVE", id="13 begin"),
        pytest.param("SELECT randomblob(100000000) FROM big", id="21 randomblob"),
        pytest.param("INSERT INTO t(name) VALUES ('x')", id="insert"),
        pytest.param("WITH a AS (SELECT 1) UPDATE t SET name = 'x'", id="update"),
        pytest.param("CREATE VIRTUAL TABLE v USING fts5(x)", id="virtual table"),
    ],
)
def test_only_reading_is_allowed(judge, database, answer, comparison):
    answer = answer.replace("{folder}", os.path.dirname(database))
    assert judge(answer, EMPTY, comparison).verdict == "denied"


@pytest.mark.parametrize("comparison", verify.COMPARISONS)
@pytest.mark.parametrize("answer", [
    "", " ; ", "-- SELECT id FROM t", "/* nothing */", "EXPLAIN SELECT id FROM t",
    "/* a */ explain query plan SELECT 1", "EXPLAIN DELETE FROM t",
])  # fmt: skip
def test_10_12_no_result_is_wrong_where_the_gold_has_no_rows(judge, answer, comparison):
    assert judge(answer, EMPTY, comparison).verdict == "wrong"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("SELECT id FROM t; SELECT id FROM t", id="11 two statements"),
        pytest.param("SELECT " + "+".join(["id"] * 1000) + " FROM t", id="24 long expression"),
        pytest.param("SELECT ?", id="25 parameter"),
        pytest.param("SELEC id FROM t", id="syntax"),
        pytest.param("SELECT nothing FROM t", id="column"),
        pytest.param("SELECT \0 id FROM t", id="zero byte"),
        pytest.param("SELECT '\ud800' FROM t", id="surrogate"),
        pytest.param("SELECT id FROM t" + " " * 200_000, id="long text"),
        pytest.param("UPDATE sqlite_master SET sql = ''", id="schema"),
        pytest.param("SELECT 1 FROM [file is not a database]", id="false infrastructure error"),
    ],
)
@pytest.mark.parametrize("comparison", verify.COMPARISONS)
def test_what_does_not_execute_is_an_error(judge, answer, comparison):
    assert judge(answer, comparison=comparison).verdict == "error"


@pytest.mark.parametrize("comparison", verify.COMPARISONS)
@pytest.mark.parametrize("text", [
    "SELECT 1" + " " * 20_000_000, "SELECT DISTINCT " * 1_000_000, "distinct" * 12_501, "-- " * 5_000_000,
    "EXPLAIN " * 1_000_000,
], ids=lambda text: text[:12])  # fmt: skip
def test_a_text_that_is_too_long_to_run_costs_nothing(verifier, database, text, comparison):
    """It is an error whatever it says, also where the preparation for `spider` would make it short enough."""
    verifier.submit(SqlJob(database, "SELECT 1", "SELECT 2")).result()  # the worker is up
    started = time.process_time()
    verdict = verifier.submit(SqlJob(database, "SELECT 1", text, comparison)).result()
    verdicts = {verdict, verifier.execute(database, text, 1.0).result()}
    assert {v.verdict for v in verdicts} == {"error"} and all(v.seconds < 0.1 for v in verdicts)
    with pytest.raises(GoldError, match="more than 100000 bytes") as error:
        verifier.submit(SqlJob(database, text, "SELECT 1", comparison)).result()
    assert len(str(error.value)) < 2000
    assert time.process_time() - started < 0.5 and all(len(str(key)) < 300_000 for key in verifier._verdicts)


# --- 14 to 23: time, memory and disk ------------------------------------------------------------------------


def test_14_endless_recursion(judge):
    assert judge(ENDLESS).verdict == "timeout"


def test_15_doubling_string(judge):
    doubling = (
        "WITH RECURSIVE s(x) AS (SELECT 'ab' UNION ALL SELECT x || x FROM s) SELECT max(length(x)) FROM s"
    )
    assert judge(doubling).verdict in ("error", "timeout")


def test_16_cross_join(judge):
    assert judge("SELECT count(*) FROM big a, big b, big c").verdict == "timeout"


@pytest.mark.parametrize("comparison", verify.COMPARISONS)
def test_17_endless_rows_end_at_the_row_cap(judge, comparison):
    verdict = judge("SELECT a.x * 2000 + b.x FROM big a, big b, big c", comparison=comparison)
    assert verdict.verdict == "wrong" and verdict.seconds < 0.3


def test_17_endless_repeats_of_a_right_row_end_at_the_deadline(judge):
    assert judge("SELECT 1 FROM big a, big b, big c", "SELECT 1", "bird").verdict == "timeout"


@pytest.mark.parametrize("answer", [pytest.param(INSTR, id="18 instr"), pytest.param(TRIM, id="19 trim")])
def test_18_19_36_calls_that_cannot_be_interrupted_are_killed(judge, answer):
    verdict = judge(answer)
    assert verdict.verdict == "timeout" and "killed" in verdict.message
    assert judge("SELECT id FROM t WHERE 18 > 0").verdict == "correct"  # 36: the next query in the same place


# --- deadlines count a query's own time ---------------------------------------------------------------------


@pytest.mark.parametrize("query", [INSTR, TRIM, BOMB, ENDLESS], ids=["instr", "trim", "planner", "endless"])
def test_a_query_ends_by_its_deadline_in_processor_time(database, query):
    """The worker and the kernel see to it: here the parent would wait for a minute."""
    child = Child("verifier.sql")
    child.start()
    before, verdict = resource.getrusage(resource.RUSAGE_CHILDREN), ""
    try:
        verdict = child.ask((0.5, "alone", database, query, 0.3), 60)[0]
    except Died as died:
        assert died.status == -signal.SIGPROF
    finally:
        child.stop()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert verdict in ("", "timeout", "error")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_the_kill_does_not_depend_on_what_the_parent_does_with_signals(database):
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
    handler = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    try:
        with Verifier(workers=1) as verifier:
            verdict = verifier.execute(database, INSTR, 0.2).result()
            assert verdict.verdict == "timeout" and "longer than 0.2 s, killed" in verdict.message
    finally:
        signal.signal(signal.SIGPROF, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_a_deadline_may_be_beyond_all_times(verifier, database):
    for timeout in (1e12, 1e300):
        assert (
            verifier.run([SqlJob(database, "SELECT 1", "SELECT 1", timeout=timeout)])[0].verdict == "correct"
        )


HEAVY = "SELECT count(*) FROM big a, big b WHERE a.x + b.x > {}"  # 0.2 s


def stopped(verifier, database):
    """Stop the only worker, as a machine does that has other things to do; return its process."""
    # it is up, and the gold has run
    verifier.submit(SqlJob(database, HEAVY.format(-1), "SELECT 4000000")).result()
    process = verifier.sql.children[0].process
    process.send_signal(signal.SIGSTOP)
    return process


def test_a_right_answer_on_a_machine_that_is_busy_is_right(database):
    with Verifier(workers=1) as verifier:
        process = stopped(verifier, database)
        future = verifier.submit(SqlJob(database, HEAVY.format(-1), HEAVY.format(-2), timeout=1.0))
        with pytest.raises(TimeoutError):
            future.result(2.5)  # well after its deadline
        process.send_signal(signal.SIGCONT)
        assert future.result(20).verdict == "correct" and verifier.sql.children[0].process is process


def test_what_the_wall_clock_has_ended_runs_again(database, monkeypatch):
    monkeypatch.setattr(workers, "WALL", 2)
    with Verifier(workers=1) as verifier:
        process = stopped(verifier, database)
        future = verifier.submit(SqlJob(database, HEAVY.format(-1), HEAVY.format(-2), timeout=0.7))
        assert future.result(20).verdict == "correct" and verifier.sql.children[0].process is not process


def test_what_the_wall_clock_has_ended_twice_is_a_timeout(database, monkeypatch):
    monkeypatch.setattr(workers, "WALL", 2)
    with Verifier(workers=1) as verifier:
        verifier.submit(SqlJob(database, "SELECT 1", "SELECT 1")).result()
        child, tries = verifier.sql.children[0], []
        ask = child.ask

        def ask_and_stop(request, timeout):
            tries.append(request)
            child.process.send_signal(signal.SIGSTOP)
            return ask(request, timeout)

        with monkeypatch.context() as patch:
            patch.setattr(child, "ask", ask_and_stop)
            verdict = verifier.submit(SqlJob(database, "SELECT 1", "SELECT 2", timeout=0.2)).result(20)
        assert verdict.verdict == "timeout" and "killed after 0.9 s" in verdict.message and len(tries) == 2
        assert verifier.run([SqlJob(database, "SELECT 1", "SELECT 1 WHERE 1")])[0].verdict == "correct"


@pytest.mark.parametrize("kind", ["gold", "answer", "alone"])
@pytest.mark.parametrize("waited", [True, False])
def test_a_timeout_is_tried_once_more_only_where_the_query_had_to_wait(database, monkeypatch, kind, waited):
    with Verifier(workers=2) as verifier:
        exchange, tries = verifier.sql.ask, []

        def first_late(request, timeout):
            if request[0] != kind:
                return exchange(request, timeout)
            tries.append(request)
            if len(tries) == 1:
                return Reply("timeout", "slow", 5.0, waited)
            assert verifier._turns._taken and not verifier._turns._running  # nothing runs beside it
            return exchange(request, timeout)

        monkeypatch.setattr(verifier.sql, "ask", first_late)
        future = (verifier.execute(database, "SELECT 1", 5.0) if kind == "alone" else
                  verifier.submit(SqlJob(database, "SELECT 1", "SELECT 1")))  # fmt: skip
        if waited:
            assert future.result().verdict == "correct" and len(tries) == 2
        elif kind == "gold":
            with pytest.raises(GoldError, match="timeout"):
                future.result()
        else:
            assert future.result().verdict == "timeout" and len(tries) == 1
        assert verifier.sql.idle.qsize() == 2


def test_second_tries_run_one_at_a_time_and_nothing_beside_them(database, monkeypatch):
    seen, running, lock, first = [], [], threading.Lock(), set()
    with Verifier(workers=3) as verifier:
        exchange = verifier.sql.ask

        def watched(request, timeout):
            again = request[2] in first
            with lock:
                first.add(request[2])
                running.append(again)
                seen.append(list(running))
            try:
                reply = exchange(request, timeout)
                late = not again and int(request[2].split()[-1]) % 4 == 0
                return Reply("timeout", "slow", 5.0, waited=True) if late else reply._replace(waited=False)
            finally:
                with lock:
                    running.remove(again)

        monkeypatch.setattr(verifier.sql, "ask", watched)
        verdicts = [
            f.result() for f in [verifier.execute(database, HEAVY.format(-i), 5.0) for i in range(1, 13)]
        ]
    assert {v.verdict for v in verdicts} == {"correct"}
    alone = [beside for beside in seen if True in beside]
    assert alone == [[True]] * 3 and any(len(beside) > 1 for beside in seen)


def test_a_verifier_closes_while_second_tries_wait(database, monkeypatch):
    before = set(children())
    verifier = Verifier(workers=2)
    exchange = verifier.sql.ask
    monkeypatch.setattr(verifier.sql, "ask", lambda *arguments: exchange(*arguments)._replace(waited=True))
    futures = [verifier.execute(database, f"{ENDLESS} LIMIT {i + 1}", 0.3 if i % 2 else 30) for i in range(6)]
    time.sleep(1)
    started = time.monotonic()
    verifier.close()
    assert time.monotonic() - started < 3 and not set(children()) - before
    for future in futures:
        assert future.cancelled() or isinstance(future.exception(), InfrastructureError)


def test_an_answer_gets_at_least_twice_the_time_of_its_gold(database, monkeypatch):
    assert [verify.answer_seconds(10, gold) for gold in (0.1, 5, 5.1, 9, 12, 29)] == [10, 10, 20, 20, 40, 80]
    with Verifier(workers=1) as verifier:
        limits, ask = [], verifier._ask
        monkeypatch.setattr(
            verifier, "_ask", lambda request, timeout: limits.append(timeout) or ask(request, timeout)
        )
        slow = HEAVY.format(-1)
        assert verifier.run([SqlJob(database, slow, HEAVY.format(-2), timeout=0.01)])[0].verdict == "correct"
        assert limits[0] == 30 and 0.1 < limits[1] < 10
        verdict = verifier.run([SqlJob(database, slow, ENDLESS, timeout=0.01)])[0]
        assert verdict.verdict == "timeout" and verdict.message.startswith(f"longer than {limits[1]:g} s")


# --- memory and disk ----------------------------------------------------------------------------------------

PEAK = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from verify import SqlJob, Verifier
with Verifier(1) as verifier:
    job = SqlJob(sys.argv[2], "SELECT x FROM big", sys.argv[3], "strict", float(sys.argv[4]))
    verdict, = verifier.run([job])
print(verdict.verdict, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


GREEDY = {
    "20 printf": ("SELECT length(printf('%.*c', 1000000000, 'x'))", 1, ("error", "timeout"), 400),
    "22 planner bomb": (BOMB, 10, ("error",), 400),
    "one long value": ("SELECT group_concat(printf('%.*c', 10000, 'x')) FROM big", 5, ("error",), 100),
    "long values": ("SELECT printf('%.*c', 10000000, 'x') || x FROM big", 2, ("error", "timeout"), 1100),
}


@pytest.mark.parametrize("answer, timeout, verdicts, megabytes", GREEDY.values(), ids=GREEDY)
def test_20_22_memory_is_bounded(database, answer, timeout, verdicts, megabytes):
    """In a small process of its own: the peak of a child counts its parent's memory too."""
    output = subprocess.run(
        [sys.executable, "-c", PEAK, str(ROOT), database, answer, str(timeout)],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout.split()
    assert output[0] in verdicts and 10 < int(output[1]) < megabytes


def test_23_a_sort_of_long_rows_opens_no_file(judge, verifier, database):
    judge("SELECT 23")
    pid, opened, stop = verifier.sql.children[0].process.pid, set(), threading.Event()

    def watch():
        while not stop.wait(0.01):
            for link in Path(f"/proc/{pid}/fd").glob("*"):
                try:
                    if int(link.name) > 2:
                        opened.add(os.readlink(link))
                except OSError:
                    pass  # closed meanwhile, or the worker is gone

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        found = judge(SORT.replace("LIMIT 3", "LIMIT 3000"), "SELECT x FROM big")
        assert found.verdict in ("error", "timeout")
    finally:
        stop.set()
        watcher.join()
    files = {name for name in opened if name.startswith("/") and not name.startswith("/dev/")}
    assert files == {database}


def test_23_a_worker_cannot_write_a_file(judge, verifier):
    judge("SELECT 23, 23")
    limits = Path(f"/proc/{verifier.sql.children[0].process.pid}/limits").read_text()
    rows = {line[:25].strip(): line[25:].split()[:2] for line in limits.splitlines()}
    assert rows["Max file size"] == rows["Max core file size"] == ["0", "0"]
    assert rows["Max address space"] == [str(sql.MEMORY)] * 2


# --- 26 to 33: what counts as equal -------------------------------------------------------------------------

ALL = dict.fromkeys(verify.COMPARISONS, "correct")
NONE = dict.fromkeys(verify.COMPARISONS, "wrong")
BIRD = NONE | {"bird": "correct"}
SPIDER = NONE | {"spider": "correct", "spider_keep_distinct": "correct"}


RESULTS = {
    "26 invalid UTF-8": ("SELECT word FROM latin", "SELECT word FROM latin WHERE 1", ALL),
    "27 invalid UTF-8 lost": ("SELECT word FROM latin", "SELECT 'AB'", NONE),
    "29 integer and real": ("SELECT 1, '1.5'", "SELECT 1.0, '1.5'", ALL),
    "29 number and text": ("SELECT 1", "SELECT '1'", NONE),
    "29 text and blob": ("SELECT 'a'", "SELECT CAST('a' AS BLOB)", NONE),
    "29 nothing and empty": ("SELECT NULL", "SELECT ''", NONE),
    "30 lost duplicates": ("SELECT name FROM t", "SELECT name FROM t GROUP BY name", BIRD),
    "30 distinct": ("SELECT name FROM t", "SELECT DISTINCT name FROM t", BIRD | {"spider": "correct"}),
    "31 order": (
        "SELECT id % 2, name FROM t ORDER BY id",
        "SELECT id % 2, name FROM t ORDER BY id DESC",
        BIRD,
    ),
    "31 order not asked for": ("SELECT id FROM t", "SELECT id FROM t ORDER BY id DESC", ALL),
    "31 order asked for inside": (
        "SELECT id FROM (SELECT id FROM t ORDER BY id)",
        "SELECT id FROM t ORDER BY id DESC",
        ALL | {"spider": "wrong", "spider_keep_distinct": "wrong"},
    ),
    "32 columns swapped": ("SELECT id, name FROM t", "SELECT name, id FROM t", SPIDER),
    "32 swapped, ordered": (
        "SELECT id, name FROM t ORDER BY id",
        "SELECT name, id FROM t ORDER BY id",
        SPIDER,
    ),
    "33 rounding": ("SELECT 0.3", "SELECT 0.1 + 0.2", NONE),
    "empty and empty": (EMPTY, EMPTY + " AND 1", ALL),
    "empty and empty of another width": (
        EMPTY,
        "SELECT id, name FROM t WHERE id > 100",
        ALL | {"strict": "wrong"},
    ),
    "empty and empty of another width, ordered": (
        EMPTY + " ORDER BY id",
        "SELECT id, name FROM t WHERE id > 100",
        ALL | {"strict": "wrong"},
    ),
    "empty and not": (EMPTY, "SELECT id FROM t", NONE),
    "not and empty": ("SELECT id FROM t", EMPTY, NONE),
    "operators apart": ("SELECT id FROM t WHERE id > = 3", "SELECT id FROM t WHERE id >= 3", None),
    "json": ("SELECT 2", "SELECT value FROM json_each('[2]')", ALL),
    "repeated": ("SELECT 2", "SELECT 2 FROM t", BIRD),
    "a row missing": ("SELECT id FROM t", "SELECT id FROM t WHERE id < 6", NONE),
    "a row too many": ("SELECT id FROM t", "SELECT id FROM t UNION ALL SELECT 7", NONE),
    "distinct inside a literal": ("SELECT 'distinct \"'", "SELECT DISTINCT 'distinct \"'", ALL),
}


@pytest.mark.parametrize("comparison", verify.COMPARISONS)
@pytest.mark.parametrize("gold, answer, expected", RESULTS.values(), ids=RESULTS)
def test_26_to_33_results(judge, gold, answer, expected, comparison):
    if expected is None and not comparison.startswith("spider"):
        with pytest.raises(GoldError):
            judge(answer, gold, comparison)
    else:
        assert judge(answer, gold, comparison, 2).verdict == (expected or ALL)[comparison]


def parity(bits, odd):
    return [row for row in itertools.product((0, 1), repeat=bits) if sum(row) % 2 == odd]


def edges(*successors):
    """A graph as a table, one row for each edge and one column for each vertex, beside eight equal columns.
    Refinement alone cannot tell a ring of six vertices from two rings of three."""
    return [
        (0,) * 8 + tuple(int(i in (a, b)) for i in range(len(successors))) for a, b in enumerate(successors)
    ]


MANY_COLUMNS = {
    "equal columns": ([(i,) * 9 for i in range(50)], [(i,) * 9 for i in range(50)], True),
    "equal columns, other rows": (
        [(i % 7,) * 9 + (i,) for i in range(50)],
        [(i % 7,) * 9 + (1 - i if i < 2 else i,) for i in range(50)],
        False,
    ),
    "a ring of six is not two of three": (edges(1, 2, 3, 4, 5, 0), edges(1, 2, 0, 4, 5, 3), False),
    "rings of six": (edges(1, 2, 3, 4, 5, 0), edges(2, 3, 4, 5, 1, 0)[::-1], True),
    "any 8 of 9 columns agree": (parity(9, 0), parity(9, 1), False),
    "every order of the columns is right": (parity(9, 0), parity(9, 0)[::-1], True),
    "all columns alike": (
        [tuple(int(i == j) for i in range(20)) for j in range(20)],
        [tuple(int(i == (j + 1) % 20) for i in range(20)) for j in range(20)],
        True,
    ),
}


@pytest.mark.parametrize("gold, answer, equal", MANY_COLUMNS.values(), ids=MANY_COLUMNS)
def test_28_columns_are_matched_fast(gold, answer, equal):
    started = time.monotonic()
    assert compare.match_columns(gold, answer) is equal
    assert time.monotonic() - started < 1


def test_28_many_equal_columns_through_the_verifier(judge):
    columns = ", ".join(f"x % 5 AS c{i}" for i in range(10))
    answer = f"SELECT x, {columns} FROM big"
    assert judge(f"SELECT {columns}, x + 1 FROM big", answer, "spider", 1).verdict == "wrong"
    # every column holds the right values, two rows are mixed up
    swapped = "CASE WHEN x < 2 THEN 1 - x ELSE x END"
    assert judge(f"SELECT {columns}, {swapped} FROM big", answer, "spider", 1).verdict == "wrong"
    assert judge(f"SELECT {columns}, x FROM big", answer, "spider", 1).verdict == "correct"


def test_28_a_gold_of_many_columns_does_not_end_the_worker(verifier, database):
    """1,200 columns, which only a search of that depth could tell apart if equal ones were not counted."""
    columns = ", ".join(["x"] * 1200)
    jobs = [
        SqlJob(database, f"SELECT {columns}, x % 2 FROM big WHERE x < 9", answer)
        for answer in (
            f"SELECT x % 2, {columns} FROM big WHERE x < 9",
            f"SELECT x % 3, {columns} FROM big WHERE x < 9",
        )
    ]
    assert [v.verdict for v in verifier.run(jobs)] == ["correct", "wrong"]


def test_28_a_search_may_be_deeper_than_python_calls():
    """Columns that are all alike, though no two are equal, are told apart one after the other."""
    identity = [tuple(int(i == j) for i in range(40)) for j in range(40)]
    frame, depth, limit = sys._getframe(), 0, sys.getrecursionlimit()
    while frame:
        frame, depth = frame.f_back, depth + 1
    sys.setrecursionlimit(depth + 30)
    try:
        assert compare.match_columns(identity, identity[::-1])
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("equal", [True, False])
def test_28_equal_columns_are_tried_once(equal):
    """20 columns of NULL beside two that only their rows tell apart."""
    gold = [(*[None] * 20, i % 500, i * 7 % 500) for i in range(20_000)]
    answer = (
        [(b, *[None] * 20, a) for *_, a, b in gold]
        if equal
        else [(*[None] * 20, i % 500, i % 500) for i in range(20_000)]
    )
    started = time.process_time()
    assert compare.match_columns(gold, answer) is equal
    assert time.process_time() - started < 1.5


@pytest.mark.parametrize(
    "gold, answer, equal",
    [
        ([(1, 1, 2)], [(1, 2, 2)], False),  # as many different columns, but not as often
        ([(1, 1, 2, 2)], [(2, 1, 2, 1)], True),
        ([(1, 1, 2), (3, 3, 4)], [(3, 4, 3), (1, 2, 1)], True),
        ([(1, 1, 2), (3, 3, 4)], [(3, 4, 4), (1, 2, 1)], False),
        ([(1, 1.0, True)], [(1, 1, 1)], True),
    ],
)
def test_28_equal_columns_are_counted(gold, answer, equal):
    assert compare.match_columns(gold, answer) is equal and compare.match_columns(answer, gold) is equal


@pytest.mark.parametrize("colours", ["hashed", "all the same"])
def test_columns_are_matched_as_trying_all_permutations_would(monkeypatch, colours):
    """Random small tables, half of them shuffled copies, by the definition; also if all hashes collide."""
    if colours == "all the same":
        monkeypatch.setattr(compare, "hash", lambda _: 0, raising=False)
    rng, seen = random.Random(0), Counter()
    for _ in range(1500):
        width, height = rng.randint(1, 4), rng.randint(1, 5)
        gold = [tuple(rng.choice((0, 1, "1", None)) for _ in range(width)) for _ in range(height)]
        order = rng.sample(range(width), width)
        answer = rng.sample([tuple(row[i] for i in order) for row in gold], height)
        if rng.random() < 0.7:  # two cells of one column change places: the columns keep their values
            column, (a, b) = rng.randrange(width), (rng.randrange(height), rng.randrange(height))
            rows = [list(row) for row in answer]
            rows[a][column], rows[b][column] = rows[b][column], rows[a][column]
            answer = [tuple(row) for row in rows]
        expected = any(
            Counter(tuple(row[i] for i in p) for row in answer) == Counter(gold)
            for p in itertools.permutations(range(width))
        )
        assert compare.match_columns(gold, answer) is expected
        seen[expected] += 1
    assert min(seen.values()) > 200


# --- 34 and 35: files ---------------------------------------------------------------------------------------


def test_34_a_lock_of_another_process_does_not_matter(verifier, tmp_path):
    path = make_database(tmp_path / "locked.sqlite")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:  # the worker is another process
        other.execute("BEGIN EXCLUSIVE")
        with closing(sqlite3.connect(path, timeout=0)) as plain, pytest.raises(sqlite3.OperationalError):
            plain.execute("SELECT id FROM t")
        assert (
            verifier.run([SqlJob(path, "SELECT id FROM t", "SELECT id FROM t WHERE 1")])[0].verdict
            == "correct"
        )
        other.execute("ROLLBACK")


@pytest.mark.parametrize("fault", ["-wal", "-journal", "missing", "empty", "text", "corrupt"])
def test_35_a_database_at_fault_is_never_a_label(verifier, tmp_path, fault):
    path = make_database(tmp_path / "bad.sqlite")
    if fault.startswith("-"):
        Path(path + fault).write_bytes(b"x")
    elif fault == "missing":
        os.remove(path)
    else:
        good = Path(path).read_bytes()
        contents = {"empty": b"", "text": b"version https://git-lfs" * 99, "corrupt": good[:4096] * 9}
        Path(path).write_bytes(contents[fault])
    with pytest.raises(InfrastructureError, match="bad.sqlite"):
        verifier.submit(SqlJob(path, "SELECT id FROM t", "SELECT id FROM t")).result()
    with pytest.raises(InfrastructureError, match="bad.sqlite"):
        verifier.execute(path, "SELECT id FROM t", 1.0).result()
    if fault.startswith("-"):  # the fault is not remembered
        os.remove(path + fault)
        assert verifier.run([SqlJob(path, "SELECT id FROM t", "SELECT id FROM t")])[0].verdict == "correct"


@pytest.mark.parametrize("beside", ["-wal", "-journal", "-shm"])
@pytest.mark.parametrize("contents", [b"", bytes(512)], ids=["empty", "zeros"])
def test_35_what_holds_nothing_is_no_reason_to_refuse_a_database(verifier, tmp_path, beside, contents):
    """A program that has the database open leaves an empty -wal; journal_mode = PERSIST leaves zeros."""
    path = make_database(tmp_path / "closed.sqlite")
    Path(path + beside).write_bytes(contents)
    assert verifier.run([SqlJob(path, "SELECT id FROM t", "SELECT id FROM t")])[0].verdict == "correct"
    assert verifier.execute(path, "SELECT id FROM t", 1.0).result().verdict == "correct"


@pytest.mark.parametrize("mode, suffix", [("WAL", "-wal"), ("PERSIST", "-journal")])
def test_35_files_that_sqlite_itself_has_left(verifier, tmp_path, mode, suffix):
    """In the middle of a change they hold data, and the database is refused; afterwards they hold none."""
    path = make_database(tmp_path / "used.sqlite")
    job = SqlJob(path, "SELECT count(*) FROM big", "SELECT 2001")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO big VALUES (1)")
        connection.execute("UPDATE big SET x = 0")
        if mode == "WAL":
            connection.execute("COMMIT")
        with pytest.raises(InfrastructureError, match=f"{suffix} exists"):
            verifier.submit(job).result()
        if mode == "WAL":
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        else:
            connection.execute("COMMIT")
        assert os.path.exists(path + suffix)
        assert verifier.submit(job).result().verdict == "correct"


def test_35_a_folder_beside_a_database_is_named(verifier, tmp_path):
    path = make_database(tmp_path / "odd.sqlite")
    os.mkdir(path + "-wal")
    with pytest.raises(InfrastructureError, match="odd.sqlite-wal"):
        verifier.submit(SqlJob(path, "SELECT 1", "SELECT 1")).result()


def damaged(path, byte=b"\xa5"):
    """A database whose table `lost` cannot be read, while all others can."""
    make_database(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE lost(id INTEGER PRIMARY KEY, name TEXT)")
        connection.executemany("INSERT INTO lost VALUES (?, ?)", [(i, f"name {i}" * 50) for i in range(200)])
        connection.commit()
        first = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'lost'").fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    with open(path, "r+b") as file:
        file.seek((first - 1) * size)
        file.write(byte * size)
    return str(path)


@pytest.mark.parametrize("byte", [b"\xa5", b"\0"])
@pytest.mark.parametrize("comparison", verify.COMPARISONS)
def test_an_answer_that_reads_a_damaged_page_is_no_label_and_ends_no_run(
    verifier, tmp_path, byte, comparison
):
    path = damaged(tmp_path / "bad.sqlite", byte)
    gold, lost = "SELECT id FROM t", "SELECT count(name) FROM lost"
    with pytest.raises(verify.Unreadable, match="bad.sqlite: database disk image is malformed"):
        verifier.submit(SqlJob(path, gold, lost, comparison)).result()
    with pytest.raises(verify.Unreadable, match="bad.sqlite"):
        verifier.execute(path, lost, 1.0).result()
    found = verifier.run(
        [SqlJob(path, gold, answer, comparison) for answer in (lost, gold, "SELECT 5", "SELECT x")]
    )
    assert [v.verdict for v in found] == ["error", "correct", "wrong", "error"]
    assert [v.judged for v in found] == [False, True, True, True] and "bad.sqlite" in found[0].message
    # where the gold itself cannot be read, no answer has a label
    found = verifier.run([SqlJob(path, lost, answer, comparison) for answer in (lost, gold)])
    assert [(v.verdict, v.judged) for v in found] == [("error", False)] * 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: good[:-4096],
        lambda good: good[:2048],
        lambda good: b"text" * 9999,
        lambda good: good[:100] + b"\xa5" * (len(good) - 100),
        lambda good: b"",
    ],
    ids=["cut", "cut short", "another file", "all pages", "empty"],
)
def test_a_database_that_is_lost_between_two_answers_is_the_machines_fault(verifier, tmp_path, damage):
    path = make_database(tmp_path / "bad.sqlite")
    job = SqlJob(path, "SELECT id FROM t", "SELECT id FROM t")
    assert verifier.run([job])[0].verdict == "correct"
    Path(path).write_bytes(damage(Path(path).read_bytes()))
    for ask in (lambda: verifier.run([job]), verifier.execute(path, "SELECT id FROM t", 1.0).result):
        with pytest.raises(InfrastructureError, match="bad.sqlite") as error:
            ask()
        assert not isinstance(error.value, verify.Unreadable)


def test_no_query_can_say_that_it_was_not_judged(verifier, database):
    """The message of a query or program has no two spaces side by side."""
    said = verify.NOT_JUDGED + "x"
    assert not verify.Verdict("error", said).judged and verify.Verdict("error", " ".join(said.split())).judged
    verdict = verifier.execute(database, f'SELECT "{said}"(1)', 1.0).result()
    assert "not judged: x" in verdict.message and verify.NOT_JUDGED not in verdict.message


# --- promises -----------------------------------------------------------------------------------------------


def test_a_full_text_table_is_searched_and_not_changed(verifier, tmp_path):
    path = str(tmp_path / "words.sqlite")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE VIRTUAL TABLE words USING fts5(text); INSERT INTO words VALUES ('a b'), ('c')"
        )
        connection.commit()
    before, search = digest(path), "SELECT text FROM words WHERE words MATCH '{}'"
    answers = [
        search.format("b"), search.format("c"), "INSERT INTO words VALUES ('b')", "PRAGMA data_version(7)",
        "INSERT INTO words(words) VALUES ('rebuild')",
    ]  # fmt: skip
    found = verifier.run([SqlJob(path, search.format("a"), answer) for answer in answers])
    assert [v.verdict for v in found] == ["correct", "wrong", "denied", "denied", "denied"]
    assert digest(path) == before


def test_a_gold_that_fails_is_named(verifier, database):
    for gold in ("SELECT nothing FROM t", "DELETE FROM t"):
        with pytest.raises(GoldError) as error:
            verifier.submit(SqlJob(database, gold, "SELECT 1", "strict")).result()
        assert gold in str(error.value) and database in str(error.value)


CHANGING = {
    "SELECT random()": "random",
    "SELECT id FROM t ORDER BY RANDOM() LIMIT 1": "random",
    'SELECT abs("random"()) > 0': "random",
    "SELECT id FROM t WHERE id IN (SELECT id FROM t ORDER BY random())": "random",
    "SELECT CURRENT_TIMESTAMP": "current_timestamp",
    "SELECT strftime('%Y', current_date) - 1": "current_date",
    "SELECT id FROM t WHERE current_time IS NULL": "current_time",
    "SELECT date('now')": "'now'",
    "SELECT strftime('%Y', 'NOW') - 5": "'now'",
    'SELECT julianday("now") > 0': "'now'",
    "SELECT unixepoch('now', '-1 day')": "'now'",
    "SELECT DATE() > '2020'": "date without a time",
    "SELECT datetime(/* no time */)": "datetime without a time",
    'SELECT "time"()': "time without a time",
    "SELECT strftime('%s')": "strftime without a time",
    "SELECT * FROM recent": "'now'",
    "SELECT count(*) FROM RECENT": "'now'",
    "SELECT 1 FROM t WHERE id IN recent": "'now'",
    "SELECT * FROM outer_view": "'now'",
    "SELECT EXISTS (SELECT 1 FROM main.[recent] AS r)": "'now'",
    "SELECT date(coalesce(name, ('now'))) FROM t": "'now'",
    "SELECT date((('now')), '+1 day')": "'now'",
    "SELECT date(name) FROM t WHERE name < date('now')": "'now'",
    "WITH recent AS (SELECT date('now') AS d) SELECT d FROM recent": "'now'",
    "SELECT count(*) FROM shuffled": "random",
}
STEADY = [
    "SELECT id FROM t LIMIT 2",
    "SELECT date('2020-01-01', '+1 day')",
    "SELECT strftime('%Y', name) FROM t",
    "SELECT 'now'",
    "SELECT id AS random FROM t ORDER BY random",
    "SELECT 'random()', 'current_date'",
    "SELECT date(now) FROM (SELECT '2020-01-01' AS now)",
    "SELECT id FROM t -- random() date('now')",
    "SELECT date FROM (SELECT 1 date)",
    "SELECT strftime('%Y', name) FROM t WHERE name = 'now'",
    "SELECT date(name), 'now' FROM t",
    "SELECT 'now', (SELECT date(max(name))) FROM t WHERE name IN ('now', 'then')",
    "SELECT y FROM years",  # a view that asks for no time, beside others that do
    "SELECT date(y) FROM years WHERE y != 'now'",
    "SELECT date(name) FROM t JOIN plain USING (id)",
]


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    path = make_database(tmp_path_factory.mktemp("views") / "views.sqlite")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE VIEW recent AS SELECT id FROM t WHERE name < date('now')")
        connection.execute("CREATE VIEW shuffled AS SELECT id FROM t ORDER BY random() LIMIT 2")
        connection.execute("CREATE VIEW outer_view AS SELECT id FROM recent")
        connection.execute("CREATE VIEW years AS SELECT strftime('%Y', name) AS y FROM t WHERE name <> 'now'")
        connection.execute("CREATE VIEW plain AS SELECT id, 'now' AS word FROM t")
    return path


@pytest.mark.parametrize("comparison", ["spider", "bird", "strict"])
@pytest.mark.parametrize("gold", CHANGING)
def test_a_gold_whose_result_changes_from_run_to_run_is_named(verifier, views, gold, comparison):
    with pytest.raises(GoldError) as error:
        verifier.submit(SqlJob(views, gold, gold, comparison)).result()
    assert f"its result changes from run to run: {CHANGING[gold]})" in str(error.value)


@pytest.mark.parametrize("gold", STEADY)
def test_a_gold_that_only_speaks_of_the_time_or_of_chance_is_a_gold(verifier, views, gold):
    assert verifier.submit(SqlJob(views, gold, gold, "strict")).result().verdict == "correct"
    assert verifier.execute(views, gold, 5.0).result().verdict == "correct"


@pytest.mark.parametrize("comparison", ["spider", "bird", "strict"])
@pytest.mark.parametrize("answer", [
    "SELECT id FROM t ORDER BY random()", "SELECT id FROM t WHERE date('now') > '2020'",
    "SELECT id FROM t WHERE abs(random() % 2)", *CHANGING,
])  # fmt: skip
def test_an_answer_that_asks_for_the_time_or_for_chance_has_no_repeatable_label(
    verifier, views, answer, comparison
):
    said = "its result changes from run to run: " + CHANGING.get(
        answer, "'now'" if "now" in answer else "random"
    )
    found = [
        verifier.submit(SqlJob(views, "SELECT id FROM t", answer, comparison)).result(),
        verifier.execute(views, answer, 5.0).result(),
    ]
    assert [(v.verdict, v.message) for v in found] == [("error", said)] * 2


def test_many_calls_of_date_functions_are_looked_through_in_no_time():
    tokens = ["x", "in", "("] + ["date", "(", "x", ")", ","] * 20_000 + ["date", "("] * 500 + ["x"]
    started = time.process_time()
    assert sql.present_time(tokens) == "" and time.process_time() - started < 5


@pytest.mark.parametrize(
    "query, verdict, ran",
    [
        ("SELECT id FROM t", "correct", True),
        ("SELECT id FROM t WHERE id > 100", "correct", True),
        ("SELECT id FROM t ORDER BY random()", "error", False),
        ("SELECT date('now')", "error", False),
        ("SELECT nothing FROM t", "error", False),
        ("SELECT 1; SELECT 2", "error", False),
        ("DROP TABLE t", "denied", False),
        (ENDLESS, "timeout", False),
        ("", "wrong", False),
        (" ; -- no query", "wrong", False),
        ("EXPLAIN SELECT id FROM t", "wrong", False),
        (";explain query plan SELECT id FROM t", "wrong", False),
    ],
)
def test_a_query_alone(verifier, database, monkeypatch, query, verdict, ran):
    asked, ask = [], verifier._ask
    monkeypatch.setattr(
        verifier, "_ask", lambda request, timeout: asked.append(request) or ask(request, timeout)
    )
    found = verifier.execute(database, query, 0.5).result()
    assert (found.verdict, found.ran) == (verdict, ran)
    assert verifier.execute(database, query, 0.5).result() is found  # and it runs once
    assert [request[0] for request in asked] == ["alone"]  # no gold is involved
    judged = verifier.submit(SqlJob(database, "SELECT 1, 2, 3, 4 WHERE 0", query, "strict", 0.5)).result()
    # beside a gold it is the same
    assert (judged.verdict, judged.ran) == ("wrong" if verdict == "correct" else verdict, ran)


def test_a_query_alone_keeps_no_row_and_stops_where_a_gold_would():
    # together 120 MB
    endless, large = ENDLESS.replace("count(*)", "x"), "SELECT printf('%.*c', 60000, 'x') FROM big"
    with Verifier(workers=1) as verifier, tempfile.TemporaryDirectory() as folder:
        path = make_database(Path(folder) / "a.sqlite")
        found = verifier.run([SqlJob(path, "SELECT 1", "SELECT 1")])
        process = verifier.sql.children[0].process
        before = peak_memory(process.pid)
        found += [verifier.execute(path, query, 20).result() for query in (endless, large)]
        assert peak_memory(process.pid) - before < 30_000
    assert [v.verdict for v in found] == ["correct"] * 3


def peak_memory(pid):
    """In kilobytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_what_ran():
    ran = {"correct": True, "wrong": True, "error": False, "denied": False, "timeout": False, "crash": False}
    assert {name: verify.Verdict(name).ran for name in verify.VERDICTS} == ran
    assert verify.Verdict("wrong", "1 columns, not 2").ran and verify.Verdict("correct", "in one process").ran
    assert not verify.Verdict("wrong", NO_QUERY).ran


def test_each_distinct_job_runs_once_and_its_gold_once(database, monkeypatch):
    asked = []
    with Verifier(workers=2) as verifier:
        ask = verifier._ask
        monkeypatch.setattr(
            verifier, "_ask", lambda request, timeout: asked.append(request) or ask(request, timeout)
        )
        answers = ["SELECT id FROM t WHERE 1", "SELECT name FROM t", "SELECT id FROM t WHERE 1"] * 5
        ticks = []
        verdicts = verifier.run(
            [SqlJob(database, "SELECT id FROM t", a, "strict") for a in answers], ticks.append
        )
        verifier.run([SqlJob(database, "SELECT id FROM t", answers[0], "bird")])
    assert [v.verdict for v in verdicts] == ["correct", "wrong", "correct"] * 5 and ticks == [1] * 15
    assert Counter(request[0] for request in asked) == {"gold": 1, "answer": 3}


def test_a_changed_database_is_judged_anew(verifier, tmp_path):
    path = make_database(tmp_path / "changing.sqlite")
    job = SqlJob(path, "SELECT id FROM t", "SELECT id FROM t WHERE id < 7")
    assert verifier.run([job])[0].verdict == "correct"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO t VALUES (7, 'new', 0)")
        connection.commit()
    assert verifier.run([job])[0].verdict == "wrong"


def test_kept_gold_results_are_bounded(database, monkeypatch):
    monkeypatch.setattr(verify, "KEPT_GOLD_BYTES", 25_000)
    with Verifier(workers=1) as verifier:
        jobs = [SqlJob(database, f"SELECT x + {i} FROM big", "SELECT 1") for i in range(10)]
        assert {v.verdict for v in verifier.run(jobs)} == {"wrong"}
        kept = sum(len(future.result().data) for future in verifier._golds.values())
        assert 0 < kept == verifier._gold_bytes <= 25_000


def test_the_gold_result_used_longest_ago_is_forgotten_first(database, monkeypatch):
    monkeypatch.setattr(verify, "KEPT_GOLD_BYTES", 30_000)  # two of these
    asked = []
    with Verifier(workers=1) as verifier:
        ask = verifier._ask
        monkeypatch.setattr(
            verifier, "_ask", lambda request, timeout: asked.append(request) or ask(request, timeout)
        )
        for answer, gold in enumerate("abacab"):
            verifier.run([SqlJob(database, f"SELECT x AS {gold} FROM big", f"SELECT {answer}")])
    assert "".join(request[2][12] for request in asked if request[0] == "gold") == "abcb"


def kill_workers(verifier, number, stop):
    """Send a signal to every worker that runs, again and again."""
    while not stop.is_set():
        for child in verifier.sql.children:
            if process := child.process:
                process.send_signal(number)
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGTERM])
def test_4_a_worker_that_dies(database, number):
    """A fault of the query is a crash; a kill from outside (by the kernel, short of memory) is no label."""
    with Verifier(workers=1) as verifier:
        verifier.run([SqlJob(database, "SELECT 1", "SELECT 1")])
        future, stop = verifier.submit(SqlJob(database, "SELECT 1", ENDLESS, timeout=20)), threading.Event()
        killer = threading.Thread(target=kill_workers, args=(verifier, number, stop))
        killer.start()
        try:
            if number in (signal.SIGSEGV, signal.SIGABRT):
                assert future.result(15).verdict == "crash"
            else:
                with pytest.raises(InfrastructureError, match="out of memory"):
                    future.result(15)
        finally:
            stop.set()
            killer.join()
        assert verifier.run([SqlJob(database, "SELECT 1", "SELECT 1 WHERE 1")])[0].verdict == "correct"


def test_4_a_worker_killed_once_is_replaced_and_the_job_is_run_again(database):
    with Verifier(workers=1) as verifier:
        verifier.run([SqlJob(database, "SELECT 1", "SELECT 1")])
        future = verifier.submit(SqlJob(database, "SELECT 1", ENDLESS, timeout=1))
        time.sleep(0.3)
        verifier.sql.children[0].process.kill()
        assert future.result(10).verdict == "timeout"
        verifier.sql.children[0].process.kill()  # and one that dies while it has nothing to do
        assert verifier.run([SqlJob(database, "SELECT 1", "SELECT 1 WHERE 1")])[0].verdict == "correct"


def test_3_closing_does_not_wait_for_what_runs(database):
    before = set(children())
    verifier = Verifier(workers=2)
    jobs = [SqlJob(database, "SELECT 1", f"{ENDLESS} LIMIT {i + 1}", timeout=30) for i in range(6)]
    futures = [verifier.submit(job) for job in jobs]
    assert wait_for(lambda: len(set(children()) - before) == 2)
    time.sleep(0.3)
    started = time.monotonic()
    verifier.close()
    assert time.monotonic() - started < 3 and not set(children()) - before
    for future in futures:
        assert future.cancelled() or isinstance(future.exception(), InfrastructureError)


ORPHANS = """
import sys, time
sys.path.insert(0, sys.argv[1])
from verify import SqlJob, Verifier
verifier = Verifier(2)
for answer in sys.argv[3:]:
    verifier.submit(SqlJob(sys.argv[2], "SELECT 1", answer, timeout=60))
while not all(child.process for child in verifier.sql.children):
    time.sleep(0.01)
time.sleep(0.5)
print(*(child.process.pid for child in verifier.sql.children), flush=True)
time.sleep(60)
"""


def test_3_a_killed_parent_leaves_no_worker(database):
    """Also one inside a call that reads no pipe and cannot be interrupted."""
    command = [sys.executable, "-c", ORPHANS, str(ROOT), database, INSTR, ENDLESS]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(alive(pid) for pid in pids)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert wait_for(lambda: not any(alive(pid) for pid in pids), 3)


def test_a_worker_sees_no_secret_and_starts_fast(database, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    with Verifier(workers=1) as verifier:
        started = time.monotonic()
        assert verifier.run([SqlJob(database, "SELECT 1", "SELECT 1")])[0].verdict == "correct"
        # about 0.04 s; much slower where torch or site-packages are imported
        assert time.monotonic() - started < 2
        pid = verifier.sql.children[0].process.pid
        assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert "torch" not in Path(f"/proc/{pid}/maps").read_text()


def test_nothing_is_left_in_the_temporary_folder(database, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Verifier(workers=2) as verifier:
        jobs = [
            SqlJob(database, "SELECT id FROM t", q, timeout=0.5)
            for q in (SORT, INSTR, BOMB, ENDLESS, "VACUUM")
        ]
        assert {v.verdict for v in verifier.run(jobs)} <= {"timeout", "error", "denied"}
    assert os.listdir(tmp_path) == []


def test_an_unknown_comparison_is_refused_at_once(verifier, database):
    with pytest.raises(ValueError, match="spyder"):
        verifier.submit(SqlJob(database, "SELECT 1", "SELECT 1", "spyder"))
