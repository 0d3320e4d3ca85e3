"""Execution as a reward: what the verifier says of an answer is 1 or 0. Two functions, for two trainers.

    TRL    GRPOTrainer(reward_funcs=trl_reward, …)           examples/grpo.py is a whole program
    verl   custom_reward_function.path=examples/rewards.py custom_reward_function.name=compute_score

Both need the path of the question's SQLite database, and its gold query. They work in forked and in fresh
processes, each of which starts a verifier of its own with the first answer.
"""

import sys
from concurrent.futures import Future
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from prompts import extract_code
from verify import GoldError, InfrastructureError, SqlJob, Verifier

WORKERS = 2  # queries that run at a time


@cache
def verifier() -> Verifier:
    return Verifier(WORKERS)


def score(future: Future) -> float | None:
    """1 for a right answer, 0 for any other; None for a fault of the machine or of the question."""
    try:
        return float(future.result().verdict == "correct")
    except (GoldError, InfrastructureError):
        return None


def query(completion: str | list[dict] | None) -> str | None:
    """The query in a completion, which is a text or a chat's messages. None is no answer: an error."""
    text = completion[-1]["content"] if isinstance(completion, list) else completion
    return text if text is None else extract_code(text)


def trl_reward(completions: list, database: list[str], gold: list[str], **_) -> list[float | None]:
    """One score a completion; `database` and `gold` are columns of the data set. TRL passes over None."""
    answers = [query(completion) for completion in completions]
    jobs = [SqlJob(*job) for job in zip(database, gold, answers, strict=True)]
    return [score(future) for future in [verifier().submit(job) for job in jobs]]


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict
) -> dict[str, float | bool]:
    """ground_truth: the gold query. extra_info["database"]: the path of the database.

    verl wants a number for every answer: where there is no verdict the score is 0 and `judged` is false.
    """
    found = score(verifier().submit(SqlJob(extra_info["database"], ground_truth, query(solution_str))))
    return {"score": found or 0.0, "judged": found is not None}
