"""All reference answers of MBPP or HumanEval must pass behind the walls: the check of an installation.

    python bench/task_references.py --data mbpp --data-dir PATH
    python bench/task_references.py --data humaneval --data-dir PATH

Expected: 974 of 974, and 164 of 164. Any reference that does not pass is named, and makes the exit code 1.
"""

import argparse
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import data  # noqa: E402
import data_sets  # noqa: E402
import tasks  # noqa: E402
from judging import job  # noqa: E402
from verifier.walls import tier  # noqa: E402
from verify import GoldError, Verifier  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description="Run reference answers through the Python judge.")
    parser.add_argument("--data", required=True, choices=("mbpp", "humaneval"))
    parser.add_argument("--data-dir", required=True, help="its folder")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="programs at a time")
    options = parser.parse_args()
    make = {"mbpp": tasks.mbpp, "humaneval": tasks.humaneval}[options.data]
    rows = data.rows(options.data, options.data_dir, "dev")
    questions = [make(i, row) for i, row in enumerate(rows)]
    print(f"walls: {tier()}")
    started, failed, longest = time.monotonic(), 0, 0.0
    with Verifier(options.workers) as verifier:
        futures = [
            verifier.submit(job(q, q.gold, data_sets.DATA_SETS[options.data].timeout)) for q in questions
        ]
        for question, future in zip(questions, futures):
            try:
                verdict = future.result()
                complaint = "" if verdict.verdict == "correct" else f"{verdict.verdict}: {verdict.message}"
                longest = max(longest, verdict.seconds)
            except GoldError as error:
                complaint = f"no verdict: {error}"
            if complaint:
                failed += 1
                print(f"{question.question_id}: {complaint}")
    seconds = time.monotonic() - started
    print(
        f"{len(questions) - failed} of {len(questions)} references pass; {seconds:.0f} s, "
        f"{len(questions) / seconds:.1f} programs/s; the longest takes {longest:.1f} s of processor time"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
