"""All of DS-1000's reference answers must pass in the strict tier: the check of an installation.

    python bench/ds1000_references.py --data-dir data/ds1000 --python .venv-ds1000/bin/python

Expected: 1000 of 1000, in about four minutes on two cores. 14 Matplotlib problems and one of scikit-learn
load a data set by name from the network, which no program reaches; `--fetch` (run with the interpreter that
has the libraries) puts these five sets where the walls let them be read. Without them those 15 are named as
left out: their test cannot run. Any other reference that does not pass makes the exit code 1.
"""

import argparse
import gzip
import json
import os
import sys
import time
from collections import Counter

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from verifier.judge import NOT_FETCHED  # noqa: E402
from verifier.walls import tier  # noqa: E402
from verify import GoldError, InfrastructureError, PythonJob, Verifier  # noqa: E402

SEABORN = ("exercise", "penguins", "planets", "tips")
BY_NAME = ("load_dataset(", "fetch_california_housing(")  # how these tests ask for their data


def fetch() -> int:
    share = os.path.join(sys.prefix, "share")
    os.environ["SEABORN_DATA"] = os.path.join(share, "seaborn-data")
    os.environ["SCIKIT_LEARN_DATA"] = os.path.join(share, "scikit-learn-data")
    missing = 0
    for name in (*SEABORN, "california housing"):
        try:
            if name in SEABORN:
                import seaborn

                seaborn.load_dataset(name)
            else:
                from sklearn.datasets import fetch_california_housing

                fetch_california_housing()
        except Exception as error:
            missing += 1
            print(f"{name}: not fetched ({error})", file=sys.stderr)
    print(f"{5 - missing} of 5 data sets in {share}")
    return 0  # a machine without network still judges the other 985 problems


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run the reference answers of DS-1000 through the Python judge."
    )
    parser.add_argument("--data-dir", help="folder of ds1000.jsonl.gz")
    parser.add_argument(
        "--python", default=sys.executable, help="the interpreter that has DS-1000's libraries"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="programs at a time (default: cores)"
    )
    parser.add_argument(
        "--fetch", action="store_true", help="fetch the five data sets that tests load by name, and end"
    )
    options = parser.parse_args()
    if options.fetch:
        return fetch()
    path = os.path.join(options.data_dir or "", "ds1000.jsonl.gz")
    if not options.data_dir or not os.path.isfile(path):
        parser.error(f"--data-dir: no ds1000.jsonl.gz in {options.data_dir}")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file]
    print(f"walls: {tier()}")
    started, passed, left_out, failed = time.monotonic(), Counter(), 0, 0
    with Verifier(options.workers, python=options.python) as verifier:
        futures = [verifier.submit(PythonJob(row["code_context"], row["reference_code"])) for row in problems]
        for row, future in zip(problems, futures):
            number, library = row["metadata"]["problem_id"], row["metadata"]["library"]
            try:
                verdict = future.result()
                complaint = "" if verdict.verdict == "correct" else f"{verdict.verdict}: {verdict.message}"
            except (GoldError, InfrastructureError) as error:
                complaint = f"no verdict: {error}"
            if not complaint:
                passed[library] += 1
            elif NOT_FETCHED in complaint and any(call in row["code_context"] for call in BY_NAME):
                left_out += 1
                print(f"{number} {library}: left out: {complaint}")
            else:
                failed += 1
                print(f"{number} {library}: {complaint}")
    seconds, total = time.monotonic() - started, sum(passed.values())
    print(", ".join(f"{library} {count}" for library, count in passed.items()))
    print(
        f"{total} of {len(problems)} references pass, {left_out} left out for want of their data, "
        f"{failed} fail; {len(problems) / seconds:.1f} programs/s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
