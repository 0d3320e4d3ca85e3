"""Our verdicts against those that the official evaluators gave to published systems' answers.

    python bench/agreement.py --official FOLDER --data-dir-spider PATH --data-dir-bird PATH

FOLDER holds spider_dev/SYSTEM.jsonl (fields index, answer, ex, ex_keep_distinct, em, em_parsed, hardness) and
bird_dev/SYSTEM.jsonl (question_id, answer, ex); ds1000/MODEL.jsonl (problem_id, answer, pass). A folder that
is not there is skipped. For each file: how many rows, how many are right officially and by us, how many
verdicts agree; then every row that does not. Where `em_parsed` is false the official parser could not read
the answer and EM is false whatever it says: such rows are counted apart. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cli  # noqa: E402
import data  # noqa: E402
import judging  # noqa: E402
from cli import UserError  # noqa: E402
from exact_match import exact_match, hardness  # noqa: E402
from verify import GoldError, InfrastructureError, PythonJob, SqlJob, Verifier  # noqa: E402


def compare(metric: str, keys: list, ours: list, official: list, detail) -> dict:
    """Print one metric's agreement and the rows that disagree; `detail(position)` says more about one."""
    different = [i for i in range(len(keys)) if ours[i] != official[i]]
    n, share = len(keys), 1 - len(different) / max(len(keys), 1)
    numbers = {"rows": n, "agree": n - len(different), "rows_that_differ": [keys[i] for i in different]}
    right = ""
    if all(isinstance(x, bool) for x in official):
        numbers |= {"ours": sum(ours), "official": sum(official)}
        right = f"official {sum(official):4d}, ours {sum(ours):4d}, "
    print(f"  {metric:20s} {n:4d} rows, {right}agree {n - len(different)} ({share:.2%})")
    for i in different:
        print(f"    #{keys[i]}: ours {ours[i]}, official {official[i]}\n{detail(i)}")
    return numbers


def lines(file: Path) -> list[dict]:
    with open(file, encoding="utf-8") as rows:  # not splitlines: an answer may hold U+2028 and its like
        return [json.loads(row) for row in rows]


said: set[str] = set()  # notes, once for all files


def sql(name: str, folder: str, file: Path, verifier: Verifier, timeout: float) -> dict:
    """One file of answers to Spider's or BIRD's dev questions."""
    questions, notes = data.load(name, folder, "dev")
    key = "index" if name == "spider" else "question_id"
    questions = {getattr(q, key): q for q in questions}
    rows = lines(file)
    asked = [questions[row[key]] for row in rows if row[key] in questions]
    usable, failing = judging.usable(asked, verifier, timeout)
    usable = {getattr(q, key): q for q in usable}
    for note in notes + failing:
        if note not in said:
            print(f"left out: {note}", file=sys.stderr)
            said.add(note)
    rows = [row for row in rows if row[key] in usable]
    asked = [usable[row[key]] for row in rows]
    keys, answers = [row[key] for row in rows], [row["answer"] for row in rows]
    print(f"{file.parent.name}/{file.name}")

    result = {}
    comparisons = {"ex": name} | ({"ex_keep_distinct": "spider_keep_distinct"} if name == "spider" else {})
    for field, comparison in comparisons.items():
        jobs = [SqlJob(q.database, q.gold, answer, comparison, timeout) for q, answer in zip(asked, answers)]
        verdicts = verifier.run(jobs)

        def ex_detail(i, verdicts=verdicts):
            return f"      {verdicts[i].verdict}: {verdicts[i].message}\n{both(i)}"

        def both(i):
            return f"      gold   {asked[i].gold}\n      answer {' '.join(answers[i].split())}"

        ours = [v.verdict == "correct" for v in verdicts]
        result[field] = compare(field, keys, ours, [row[field] for row in rows], ex_detail)
    if name == "spider":
        path = Path(folder) / "tables.json"
        if not path.is_file():
            raise UserError(
                f"{path} is missing: it is part of Spider's release, and EM needs its foreign keys."
            )
        tables = {t["db_id"]: t for t in json.loads(path.read_text(encoding="utf-8"))}
        found = [exact_match(q.gold, answer, tables[q.db_id]) for q, answer in zip(asked, answers)]
        parsed = [i for i, row in enumerate(rows) if row["em_parsed"]]
        result["em"] = compare(
            "em",
            [keys[i] for i in parsed],
            [found[i] for i in parsed],
            [rows[i]["em"] for i in parsed],
            lambda i: both(parsed[i]),
        )
        outside = [i for i, row in enumerate(rows) if not row["em_parsed"]]
        matching = [keys[i] for i in outside if found[i]]
        print(
            f"    {len(outside)} answers outside the official grammar; "
            f"{len(matching)} match by us: {matching}"
        )
        result["em_outside"] = {"rows": len(outside), "ours": len(matching), "rows_that_match": matching}
        levels = [hardness(q.gold) for q in asked]
        result["hardness"] = compare("hardness", keys, levels, [row["hardness"] for row in rows], both)
    return result


def ds1000(folder: str, file: Path, verifier: Verifier) -> dict:
    """Answers to DS-1000's problems. A test that misses a data set from the network gives no verdict."""
    questions = {
        q.question_id: q for split in ("train", "dev") for q in data.load("ds1000", folder, split)[0]
    }
    rows = lines(file)
    futures = [
        verifier.submit(PythonJob(questions[row["problem_id"]].context, row["answer"])) for row in rows
    ]
    verdicts = []
    for future in tqdm(futures, desc=file.stem, unit="program", leave=False):
        try:
            verdicts.append(future.result())
        except GoldError:
            verdicts.append(None)
    judged = [i for i, v in enumerate(verdicts) if v]
    print(f"{file.parent.name}/{file.name}")
    faults = [rows[i]["problem_id"] for i, v in enumerate(verdicts) if not v]
    print(f"    {len(faults)} without a verdict, their test needs a download: {faults}")

    def detail(i):
        row, v = rows[judged[i]], verdicts[judged[i]]
        return f"      {row['library']}: {v.verdict}: {v.message}; official error {row['error']}"

    keys, ours = [rows[i]["problem_id"] for i in judged], [verdicts[i].verdict == "correct" for i in judged]
    return {
        "pass": compare("pass", keys, ours, [rows[i]["pass"] for i in judged], detail),
        "no_verdict": faults,
    }


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--official", type=Path, required=True, help="folder of the recorded verdicts")
    parser.add_argument(
        "--data-dir-spider", default="data/spider", help="Spider's release (default data/spider)"
    )
    parser.add_argument("--data-dir-bird", default="data/bird", help="BIRD's release (default data/bird)")
    parser.add_argument("--data-dir-ds1000", help="DS-1000's release (default: leave it out)")
    parser.add_argument("--python", help="the interpreter that has DS-1000's libraries")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds per query")
    parser.add_argument("--workers", type=int, default=2, help="verification processes")
    args = parser.parse_args(argv)

    kinds = {
        "spider_dev": lambda file, verifier: sql(
            "spider", args.data_dir_spider, file, verifier, args.timeout
        ),
        "bird_dev": lambda file, verifier: sql("bird", args.data_dir_bird, file, verifier, args.timeout),
    }
    if args.data_dir_ds1000:
        kinds["ds1000"] = lambda file, verifier: ds1000(args.data_dir_ds1000, file, verifier)
    files = [(kind, file) for kind in kinds for file in sorted((args.official / kind).glob("*.jsonl"))]
    if not files:
        raise UserError(f"{args.official} has no {' or '.join(f'{kind}/*.jsonl' for kind in kinds)}.")
    with Verifier(args.workers, python=args.python) as verifier:
        results = {f"{kind}/{file.name}": kinds[kind](file, verifier) for kind, file in files}
    print(json.dumps(results))


if __name__ == "__main__":
    cli.run(main, InfrastructureError)
