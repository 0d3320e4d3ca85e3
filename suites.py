"""Test suites: an answer is right where it is right on every database of its question's folder.

On one database a wrong query may give the gold result by chance. So the official test-suite evaluator
(Zhong, Yu and Klein 2020, "Semantic Evaluation for Text-to-SQL with Distilled Test Suites"; `eval_exec_match`
in its exec_eval.py) runs gold query and answer on all .sqlite files of database/<db_id>/, and one difference
is enough. `eval.py --test-suite` does the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from cli import UserError
from data import Question
from database import fault
from judging import job, usable
from verify import Verdict, Verifier


def suite(question: Question) -> list[Question]:
    """The question on each of its databases: its own comes first, then the others by name."""
    if not question.database:  # a Python question
        return [question]
    own = Path(question.database)
    others = sorted(path for path in own.parent.glob("*.sqlite") if path != own)
    return [question, *(dataclasses.replace(question, database=str(path)) for path in others)]


def check(questions: list[Question]):
    """Raises UserError where no question has a database besides its own: there is no test suite."""
    if all(len(suite(q)) == 1 for q in {q.database: q for q in questions}.values()):
        raise UserError("--test-suite: no database has a second .sqlite file in its folder.")


def usable_on_all(
    questions: list[Question], verifier: Verifier, timeout: float, progress: str | None = None
) -> tuple[list[Question], list[str]]:
    """Questions whose gold query runs on all of their databases; a note for each of the others."""
    suites = [suite(q) for q in questions]
    databases = dict.fromkeys(q.database for asked in suites for q in asked)
    faults = {database: fault(database, needs_rows=False) for database in databases}
    notes = [f"the questions on {database}: {cause}" for database, cause in faults.items() if cause]
    whole = [asked for asked in suites if not any(faults[q.database] for q in asked)]
    run, failing = usable([q for asked in whole for q in asked], verifier, timeout, progress)
    runs = {(q.index, q.database) for q in run}
    kept = [asked[0] for asked in whole if all((q.index, q.database) in runs for q in asked)]
    return kept, notes + failing


def judged(
    questions: list[Question],
    codes: list[str],
    timeout: float,
    verifier: Verifier,
    progress: Callable[[int], object] | None = None,
) -> list[Verdict]:
    """One verdict an answer: correct where it is correct on all databases, else the first that is not."""
    jobs = [[job(q, code, timeout) for q in suite(question)] for question, code in zip(questions, codes)]
    verdicts = iter(verifier.run([j for group in jobs for j in group], progress))
    found = []
    for group in jobs:
        own = [next(verdicts) for _ in group]
        found.append(next((v for v in own if v.verdict != "correct"), own[0]))
    return found
