"""A million SQL verdicts through one pool: memory stays flat, nothing leaks, no database changes.

    python bench/soak.py --official FOLDER --spider FOLDER [--count 1000000]

Real predictions of published systems on Spider's dev split, repeated, with hostile queries mixed in at 1 %. A
comment with a running number makes every query distinct, so that no verdict comes from the cache. Prints a
line per 5 % and, last, JSON.
"""

import argparse
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter, deque
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data
from verify import SqlJob, Verifier

CHAIN = "".join(f", c{i} AS (SELECT a.x FROM c{i - 1} a, c{i - 1} b)" for i in range(1, 22))
ENDLESS = "WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s) SELECT count(*) FROM s"
# the numbered SQL attacks of the verifier's tests that need no file of their own
HOSTILE = [
    "DELETE FROM {t}",
    "DELETE FROM {t} RETURNING 1",
    "CREATE TEMP TABLE {t} AS SELECT 1",
    "CREATE TEMP VIEW {t} AS SELECT 1",
    "DROP TABLE {t}",
    "ATTACH 'soak_new_file.db' AS x",
    "VACUUM INTO 'soak_copy.db'",
    "PRAGMA user_version = 7",
    "PRAGMA journal_mode = WAL",
    "SELECT load_extension('x')",
    "SELECT fts3_tokenizer('simple')",
    "",
    "SELECT 1; SELECT 2",
    "EXPLAIN SELECT 1",
    "BEGIN EXCLUSIVE",
    ENDLESS,
    "WITH RECURSIVE s(x) AS (SELECT 'ab' UNION ALL SELECT x || x FROM s) SELECT max(length(x)) FROM s",
    "SELECT count(*) FROM " + ", ".join(f"{{t}} AS a{i}" for i in range(12)) + f", ({ENDLESS})",
    "SELECT a0.* FROM " + ", ".join(f"{{t}} AS a{i}" for i in range(12)),
    "SELECT instr(printf('%.*c', 900000, 'a'), printf('%.*c', 450000, 'a') || 'b')",
    "SELECT length(trim(printf('%.*c', 900000, 'a'), printf('%.*c', 400000, 'b') || 'a'))",
    "SELECT length(printf('%.*c', 1000000000, 'x'))",
    "SELECT length(randomblob(100000000)) FROM {t}",
    f"WITH c0 AS (SELECT 1 AS x){CHAIN} SELECT x FROM c21",
    "SELECT printf('%.*c', 200000, 'x') || a.rowid AS k FROM {t} a, {t} b, {t} c ORDER BY k",
    "SELECT " + " + ".join(["1"] * 1000),
    "SELECT ?",
]


def process_facts(pids):
    """(resident MiB of this process, of the workers, open descriptors here)"""
    page = os.sysconf("SC_PAGE_SIZE")
    rss = lambda pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page / 2**20  # noqa: E731
    return rss("self"), sum(rss(p) for p in pids), len(os.listdir("/proc/self/fd"))


def children():
    mine = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                mine.append(int(stat.parent.name))
        except OSError:
            continue
    return mine


def digests(files):
    return {f: hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in files}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--official", type=Path, required=True, help="folder with spider_dev/SYSTEM.jsonl")
    parser.add_argument("--spider", type=Path, required=True, help="Spider's folder")
    parser.add_argument("--count", type=int, default=1_000_000, help="verdicts")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    questions = {q.index: q for q in data.load("spider", args.spider, "dev")[0]}
    rows = [
        json.loads(line) for f in sorted((args.official / "spider_dev").glob("*.jsonl")) for line in open(f)
    ]
    rows = [(questions[r["index"]], r["answer"], r["ex"]) for r in rows if r["index"] in questions]
    files = sorted({q.database for q, _, _ in rows})
    before, temporary = digests(files), set(os.listdir(tempfile.gettempdir()))
    rng, counts, wrong, started, first = random.Random(0), Counter(), 0, time.time(), None
    pending: deque = deque()
    with Verifier(args.workers) as verifier:
        for number in range(args.count):
            question, answer, official = rows[number % len(rows)]
            hostile = rng.random() < 0.01
            if hostile:
                answer, official = rng.choice(HOSTILE).replace("{t}", "sqlite_master"), None
            # a third of the hostile queries never end: their limit is what most of the time goes into
            job = SqlJob(
                question.database, question.gold, f"{answer} -- {number}", "spider", 0.3 if hostile else 10.0
            )
            pending.append((verifier.submit(job), official))
            while len(pending) > (1000 if number + 1 < args.count else 0):
                future, expected = pending.popleft()
                verdict = future.result().verdict
                counts["hostile " + verdict if expected is None else verdict] += 1
                wrong += expected is not None and (verdict == "correct") != expected
            if (number + 1) % max(1, args.count // 20) == 0:
                facts = process_facts(children())
                first = first or facts
                rate = (number + 1) / (time.time() - started)
                print(
                    f"{number + 1:>9,} verdicts  {rate:6.0f}/s  this process {facts[0]:.0f} MiB"
                    f"  workers {facts[1]:.0f} MiB  descriptors {facts[2]}  children {len(children())}",
                    flush=True,
                )
    left = children()
    result = {
        "what": "SQL verdicts through one pool",
        "count": args.count,
        "per_second": round(args.count / (time.time() - started), 1),
        "verdicts": dict(sorted(counts.items())),
        "unlike_official": wrong,
        "growth_MiB": round(facts[0] - first[0], 1),
        "descriptors": [first[2], facts[2]],
        "children_left": len(left),
        "temporary_files_left": sorted(set(os.listdir(tempfile.gettempdir())) - temporary),
        "databases_unchanged": digests(files) == before,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
