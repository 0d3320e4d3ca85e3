"""Questions and the verifier: the job of judging an answer, and the questions whose answers can be judged at
all.
"""

from __future__ import annotations

from tqdm import tqdm

from data import Question
from verify import GOLD_SECONDS, GoldError, PythonJob, SqlJob, Unreadable, Verifier


def job(question: Question, code: str, timeout: float) -> SqlJob | PythonJob:
    """What the verifier needs to judge `code` as an answer to the question."""
    if question.language == "python":
        return PythonJob(question.context, code, timeout)
    return SqlJob(question.database, question.gold, code, question.comparison, timeout)


def usable(
    questions: list[Question], verifier: Verifier, timeout: float, progress: str | None = None
) -> tuple[list[Question], list[str]]:
    """Questions whose gold code is right when it is judged as an answer would be, and a note for each of the
    others.

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
        name = f"problem {q.question_id}" if q.language == "python" else f"question {q.index}"
        notes.append(f"{name} ({q.db_id}): {cause}")
    return kept, notes


def with_rows(questions: list[Question], verifier: Verifier, timeout: float) -> list[Question]:
    """Usable questions without those whose gold query gives no rows, or nothing but NULL in them.

    Any query that gives none would be right, or any that aggregates over nothing.
    """

    def empty(q: Question) -> bool:
        return q.language == "sql" and verifier.gold_is_empty(
            SqlJob(q.database, q.gold, q.gold, q.comparison, timeout)
        )

    return [q for q in questions if not empty(q)]
