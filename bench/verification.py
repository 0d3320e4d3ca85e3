"""Verdicts per second: one pool of workers behind all walls, against the official evaluators' way of working.

    python bench/verification.py --official FOLDER --spider FOLDER [--ds1000 FOLDER --python PATH] [--quick]

SQL: theirs is a new process per query, which opens the database and runs answer and gold. Python: theirs is a
fresh interpreter in an empty folder per DS-1000 program. Both sides run as many at once as there are workers;
cache hits are avoided on ours by a comment with a running number. For Python a third figure is the most that
a warm interpreter could do: it forks for each program and runs it there, without judge, walls or deadline.
The last line is JSON. What the programs leave in the temporary folder is removed at the end, also after an
error.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data
from verifier.child import PROJECT
from verifier.interpreter import ONE_THREAD, QUIET
from verify import PythonJob, SqlJob, Verifier

ONE_QUERY = """
import sqlite3, sys
database, answer, gold = sys.argv[1:]
def run(query):
    return sqlite3.connect(database).execute(query).fetchall()
try:
    print(sorted(map(repr, run(answer))) == sorted(map(repr, run(gold))))
except sqlite3.Error:
    print(False)
"""

FORKS_ALONE = """
import sys; sys.path.append(sys.argv[1])
import contextlib, gc, json, os, tempfile
from verifier.libraries import LIBRARIES, PARTS, load, warm_up
programs = json.loads(sys.stdin.readline())
for name in (*LIBRARIES, *PARTS, "tensorflow"):
    load(name)
warm_up()
gc.collect()
gc.freeze()
print("ready", flush=True)
sys.stdin.readline()
for program in programs:
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            with contextlib.suppress(BaseException):
                os.chdir(folder)
                exec(program, {"__name__": "__test__"})
            os._exit(0)
        os.waitpid(child, 0)
"""


@contextlib.contextmanager
def temporary_files():
    """A temporary folder for this process and all that it starts, removed with everything that is in it."""
    outer = tempfile.tempdir, os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="codelutra-bench-") as folder:
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            tempfile.tempdir = outer[0]
            os.environ.pop("TMPDIR")
            if outer[1] is not None:
                os.environ["TMPDIR"] = outer[1]


def predictions(folder):
    return [
        json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in open(file, encoding="utf-8")
    ]


def per_second(run, jobs):
    started = time.time()
    results = run(jobs)
    return len(jobs) / (time.time() - started), results


def new_process(arguments, folder=None, environment=None, timeout=150):
    done = subprocess.run(
        arguments, capture_output=True, text=True, cwd=folder, timeout=timeout, env=environment
    )
    return done.returncode == 0 and done.stdout.strip() != "False"


def sql(args, count):
    questions = {q.index: q for q in data.load("spider", args.spider, "dev")[0]}
    rows = [r for r in predictions(args.official / "spider_dev") if r["index"] in questions]
    random.Random(0).shuffle(rows)
    rows = [(questions[r["index"]], r["answer"]) for r in rows[:count]]
    with ThreadPoolExecutor(args.workers) as pool:
        few = rows[: count // 20]
        commands = [[sys.executable, "-I", "-c", ONE_QUERY, q.database, answer, q.gold] for q, answer in few]
        theirs, _ = per_second(lambda jobs: list(pool.map(new_process, jobs)), commands)
    with Verifier(args.workers) as verifier:
        verifier.run([SqlJob(q.database, q.gold, q.gold) for q, _ in rows[:50]])  # the pool is up
        jobs = [SqlJob(q.database, q.gold, f"{answer} -- {i}") for i, (q, answer) in enumerate(rows)]
        ours, _ = per_second(verifier.run, jobs)
    return ours, theirs


def python(args, count):
    contexts = {q.index: q for split in ("train", "dev") for q in data.load("ds1000", args.ds1000, split)[0]}
    rows = predictions(args.official / "ds1000")
    random.Random(0).shuffle(rows)
    rows = [(contexts[r["problem_id"]], r["answer"]) for r in rows]
    # 15 problems fetch a data set from the network in their test: no verdict where there is none
    rows = [r for r in rows if not any(x in r[0].context for x in ("load_dataset", "fetch_california"))]
    rows = rows[:count]

    def whole(question, answer):
        program = f"{question.context}\ncode = {answer!r}\ntest_execution(code)\n"
        return program + ("test_string(code)\n" if "def test_string" in question.context else "")

    def official(job):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "program.py").write_text(whole(*job), encoding="utf-8")
            return new_process([args.python, "program.py"], folder, {**os.environ, "OMP_NUM_THREADS": "1"})

    with ThreadPoolExecutor(args.workers) as pool:
        theirs, passed = per_second(lambda jobs: list(pool.map(official, jobs)), rows[: count // 4])
    with Verifier(args.workers, python=args.python) as verifier:
        started, libraries = time.time(), {q.db_id: q for q, _ in rows}
        twice = [
            PythonJob(q.context, f"{q.gold}\n# {i}") for q in libraries.values() for i in range(args.workers)
        ]
        verifier.run(twice)  # the pool is up: every worker has loaded every library
        print(
            f"Python: the pool starts and loads all libraries once in {time.time() - started:.0f} s "
            "(not counted below)"
        )
        jobs = [PythonJob(q.context, f"{answer}\n# {i}") for i, (q, answer) in enumerate(rows)]
        ours, verdicts = per_second(verifier.run, jobs)
    same = sum((v.verdict == "correct") == p for v, p in zip(verdicts, passed))
    print(f"Python: {same} of {len(passed)} verdicts as those of the fresh interpreters")
    most = forks_alone(args, [whole(*row) for row in rows])
    print(f"Python: forks alone, no judge, no walls: {most:.1f} programs/s, {most / theirs:.1f} times theirs")
    return ours, theirs


def forks_alone(args, programs):
    """Programs per second of warm interpreters, one a worker, that fork for each program and do no more."""
    environment = {**os.environ, **ONE_THREAD, **QUIET}
    command = [args.python, "-s", "-c", FORKS_ALONE, PROJECT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with contextlib.ExitStack() as stack:
        running = []
        for _ in range(args.workers):
            running.append(stack.enter_context(subprocess.Popen(command, env=environment, **pipes)))
            stack.callback(running[-1].kill)  # after an error; by then it may have ended
        for i, process in enumerate(running):
            process.stdin.write(json.dumps(programs[i :: args.workers]) + "\n")
            process.stdin.flush()
        for process in running:
            while process.stdout.readline() != "ready\n":
                assert process.poll() is None, "it ended while loading"
        started = time.time()
        for process in running:
            process.stdin.write("go\n")
            process.stdin.close()
        for process in running:
            process.wait()
        return len(programs) / (time.time() - started)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--official", type=Path, required=True, help="folder with spider_dev/ and ds1000/ predictions"
    )
    parser.add_argument("--spider", type=Path, required=True, help="Spider's folder")
    parser.add_argument("--ds1000", type=Path, help="DS-1000's folder")
    parser.add_argument("--python", default=sys.executable, help="interpreter with DS-1000's libraries")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    args = parser.parse_args()
    args.python = str(Path(args.python).absolute())
    with temporary_files():
        results = {"SQL queries": sql(args, 1000 if args.quick else 10_000)}
        if args.ds1000:
            results["DS-1000 programs"] = python(args, 80 if args.quick else 400)
    print(f"{'':18}{'ours /s':>10}{'theirs /s':>11}{'ratio':>8}")
    for what, (ours, theirs) in results.items():
        print(f"{what:18}{ours:10.1f}{theirs:11.1f}{ours / theirs:8.1f}")
    figures = {w: {"ours": o, "theirs": t, "ratio": o / t} for w, (o, t) in results.items()}
    first = next(iter(figures.values()))
    settings = {"workers": args.workers}
    print(json.dumps({"what": "verdicts per second", **first, "all": figures, "settings": settings}))


if __name__ == "__main__":
    main()
