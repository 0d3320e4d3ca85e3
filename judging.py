"""Questions and the verifier: how answers are judged, and which questions can be judged at all."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from concurrent.futures import Future

from tqdm import tqdm

import ranks
from cli import UserError
from data import Answer, Question
from prompts import extract_code
from settings import Config
from tasks import program
from verify import (
    GOLD_SECONDS,
    AssertJob,
    GoldError,
    PythonJob,
    SqlJob,
    Unreadable,
    Verdict,
    Verifier,
    settled,
)


def job(question: Question, code: str, timeout: float) -> SqlJob | PythonJob | AssertJob:
    """What the verifier needs to judge `code` as an answer to the question."""
    if question.tests:
        q = question
        return AssertJob(q.tests, program(q.text, code), q.setup, q.entry_point, q.classes, timeout)
    if question.language == "python":
        return PythonJob(question.context, code, timeout)
    return SqlJob(question.database, question.gold, code, question.comparison, timeout)


def check_libraries(questions: list[Question], python: str | None):
    """Raises UserError where the interpreter that is to run DS-1000's answers lacks one of its libraries.

    python: its path; empty or None: this one.
    """
    problems = {q.db_id for q in questions if q.context}
    if not problems:
        return
    names = sorted({"torch" if library == "Pytorch" else library.lower() for library in problems})
    look = "import importlib.util, sys; print(*(n for n in sys.argv[1:] if not importlib.util.find_spec(n)))"
    python = python or sys.executable
    try:
        found = subprocess.run([python, "-c", look, *names], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"--python: {python} cannot be used: {error}")
    if missing := found.stdout.split():
        raise UserError(
            f"--python: {python} has no {', '.join(missing)}: `make ds1000 DATA_DIR=…` makes"
            " .venv-ds1000/bin/python, which has DS-1000's libraries."
        )


def usable(
    questions: list[Question], verifier: Verifier, timeout: float, progress: str | None = None
) -> tuple[list[Question], list[str]]:
    """Questions whose gold code is right when judged as an answer would be; a note for each of the others.

    The others are left out, never counted as answered wrongly; so is a program that needs more than half of
    the processor time that an answer has (a query's answers get more, `verify.answer_seconds`). Processor
    time, so that a busy machine leaves out the same questions as an idle one. A fault of the machine is
    raised (InfrastructureError).
    """
    seconds = {"sql": timeout, "python": max(timeout, GOLD_SECONDS["python"])}
    jobs = [job(q, q.gold, seconds[q.language]) for q in questions]
    futures = [verifier.submit(j) for j in jobs]
    kept, notes = [], []
    for q, future in tqdm(
        list(zip(questions, futures)), desc=progress, disable=progress is None, unit="question", leave=False
    ):
        try:
            verdict = future.result()
            slow = q.language == "python" and verdict.seconds > timeout / 2
            if verdict.verdict == "correct" and not slow:
                kept.append(q)
                continue
            cause = f"its gold code fails: {verdict.verdict}: {verdict.message}"
            if slow and verdict.verdict == "correct":
                taken = f"{verdict.seconds:.0f} s of processor time"
                cause = f"its gold code takes {taken}, more than half of an answer's {timeout:g}"
        except (GoldError, Unreadable) as error:  # say, a test that loads data from the network
            cause = error
        notes.append(f"{named(q)}: {cause}")
    return kept, notes


def named(question: Question) -> str:
    """A question in a message: its id, where its file has ids, else its row; and its database or library."""
    q = question
    has_id = q.language == "python" and q.question_id is not None
    return f"{f'problem {q.question_id}' if has_id else f'question {q.index}, counted from 0'} ({q.db_id})"


def with_rows(questions: list[Question], verifier: Verifier, timeout: float) -> list[Question]:
    """Usable questions without those whose gold query gives no rows, or nothing but NULL in them.

    Any query that gives none would be right, or any that aggregates over nothing.
    """

    def empty(q: Question) -> bool:
        return q.language == "sql" and verifier.gold_is_empty(
            SqlJob(q.database, q.gold, q.gold, q.comparison, timeout)
        )

    return [q for q in questions if not empty(q)]


class Execution:
    """Answers that are executed while others are drawn; each process executes its share of them."""

    def __init__(self, config: Config, train_questions: list[Question], verifier: Verifier):
        self.config, self.verifier = config, verifier
        self.questions = {q.index: q for q in train_questions}
        self.count = 0
        self.running: dict[int, Future] = {}

    def start(self, answers: list[Answer]):
        for n, answer in enumerate(answers, self.count):
            if n % ranks.world_size() == ranks.rank():
                self.running[n] = self._execute(self.questions[answer.question], answer)
        self.count += len(answers)

    def _execute(self, question: Question, answer: Answer) -> Future:
        code, timeout = extract_code(answer.text, question.form), self.config.timeout
        if self.config.criterion == "executable" and question.language == "sql":
            return self.verifier.execute(question.database, code, timeout)  # no gold is involved
        return self.verifier.submit(job(question, code, timeout))

    def verdicts(self) -> list[Verdict]:
        """Wait for all; one verdict for each answer, in the order in which they were started."""
        bar = ranks.bar(self.running.items(), desc="executing", unit="answer")
        shares = ranks.all_gather({n: self._verdict(future) for n, future in bar})
        return [shares[n % ranks.world_size()][n] for n in range(self.count)]

    def _verdict(self, future: Future) -> Verdict:
        """By the criterion `executable` an answer that runs at all is correct."""
        try:
            verdict = settled(future)
        except GoldError as broken:
            if self.config.criterion == "match":
                raise
            # nobody has run the gold code before; all answers get the same, so no pair comes of it
            return Verdict("error", str(broken))
        chosen = self.config.criterion == "executable" and verdict.ran
        return dataclasses.replace(verdict, verdict="correct") if chosen else verdict
