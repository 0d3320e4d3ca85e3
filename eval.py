"""Score a policy, or a file of anybody's predictions, on a held-out split.

    python eval.py --model smollm2 --adapter runs/shop-smollm2-seed0/iter_2/adapter --data shop
    python eval.py --data spider --data-dir PATH --split dev --predictions FILE
    python eval.py --data spider --data-dir PATH --test-suite --predictions FILE

EX (execution accuracy): the share of questions whose query returns the gold query's result, by the data set's
official comparison; for Python it is pass@1. EM (exact set match): the query agrees with the gold query
clause by clause. Executable: the share that runs at all. The error analysis of Fig. 4a is the count of each
verdict.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cli
import flags

if __name__ == "__main__":
    cli.begin(flags.evaluation, __doc__)

from tqdm import tqdm

import data
import data_sets
import suites
from cli import UserError
from compare_runs import wilson
from data import Question
from exact_match import exact_match, hardness
from judging import check_libraries, job, usable
from predictions import read_predictions
from prompts import extract_code
from verify import VERDICTS, GoldError, InfrastructureError, Verdict, Verifier

if TYPE_CHECKING:  # scoring a file of predictions needs no torch
    from policy import Policy


@dataclass(frozen=True)
class Scores:
    """Shares are of `n`, the questions scored; `classes` counts each verdict (Fig. 4a)."""

    n: int
    ex: float  # Python: pass@1
    executable: float
    classes: dict[str, int]
    em: float | None = None  # SQL alone
    groups: dict[str, dict] = field(default_factory=dict)  # the same for each hardness, difficulty or library


@dataclass(frozen=True)
class PolicyScores:
    """A policy's scores on the training questions held back and on the dev split, where they are scored."""

    validation: Scores | None
    dev: Scores | None

    @staticmethod
    def of(plain: dict, scored: Collection[str]) -> PolicyScores:
        """Inverts `plain`; raises TypeError or KeyError where the splits `scored` are not in it."""
        return PolicyScores(
            *(Scores(**plain[split]) if split in scored else None for split in ("validation", "dev"))
        )

    def plain(self) -> dict:
        """As it is written to scores.json."""
        return {
            f.name: dataclasses.asdict(value)
            for f in dataclasses.fields(self)
            if (value := getattr(self, f.name))
        }


@dataclass(frozen=True)
class Evaluation:
    """A policy's greedy answers to a split's questions, verified."""

    split: str
    questions: list[Question]
    codes: list[str]
    verdicts: list[Verdict]
    scores: Scores

    def rows(self) -> list[dict]:
        """One row a question, as written to validation.jsonl and dev.jsonl."""
        return [
            {"index": q.index, "db_id": q.db_id, "question": q.text, "gold": q.gold}
            | {"answer": code, "verdict": v.verdict, "message": v.message}
            for q, code, v in zip(self.questions, self.codes, self.verdicts)
        ]


def scores(
    questions: list[Question], codes: list[str], verdicts: list[Verdict], tables: dict | None = None
) -> Scores:
    """tables: db_id → its entry in tables.json, for EM (`data.tables`)."""
    rows = []
    for q, code, v in zip(questions, codes, verdicts, strict=True):
        rows.append((q.difficulty or hardness(q.gold), v.verdict, v.ran, em(q, code, tables)))
    groups = {name: [r for r in rows if r[0] == name] for name in dict.fromkeys(r[0] for r in rows)}
    count = Counter(v.verdict for v in verdicts)
    parts = {name: dataclasses.asdict(_shares(group)) for name, group in sorted(groups.items())}
    for part in parts.values():
        del part["groups"], part["classes"]
    return dataclasses.replace(_shares(rows), classes={v: count[v] for v in VERDICTS}, groups=parts)


def em(question: Question, code: str, tables: dict | None = None) -> bool | None:
    """Whether the answer is an exact set match; None for a Python question, which has no EM."""
    if question.language == "python":
        return None
    return exact_match(question.gold, code, (tables or {}).get(question.db_id))


def _shares(rows) -> Scores:
    n, ems = max(len(rows), 1), [match for *_, match in rows if match is not None]
    right, ran = sum(verdict == "correct" for _, verdict, *_ in rows), sum(ran for _, _, ran, _ in rows)
    return Scores(len(rows), right / n, ran / n, {}, sum(ems) / n if ems else None)


def greedy(
    policy: Policy, questions: list[Question], max_new: int, batch_tokens: int, progress: str | None = None
) -> list[str]:
    """The most likely answer's code for every question, in order; none where the prompt is too long."""
    from sample import SamplingParams, sample

    room = policy.max_positions - max_new
    fitting = [q for q in questions if len(policy.prompt_ids(q)) <= room]
    params = SamplingParams(answers=1, max_new=max_new, temperature=0, batch_tokens=batch_tokens)
    text = {a.question: a.text for batch in sample(policy, fitting, params, progress=progress) for a in batch}
    return [extract_code(text.get(q.index, ""), q.form) for q in questions]


def evaluate(
    policy: Policy,
    questions: list[Question],
    verifier: Verifier,
    split: str,
    timeout: float = 10.0,
    max_new: int = 128,
    batch_tokens: int = 32768,
    progress: str | None = None,
    tables: dict[str, dict] | None = None,
) -> Evaluation:
    """Greedy answers, verified and scored. tables: see `scores`."""
    import ranks

    codes = greedy(policy, questions, max_new, batch_tokens, progress)
    jobs = [job(q, code, timeout) for q, code in zip(questions, codes)]
    verdicts = ranks.share_work(jobs, verifier.run)
    return Evaluation(split, questions, codes, verdicts, scores(questions, codes, verdicts, tables))


def main(argv: list[str] | None = None):
    args = flags.evaluation(argv, __doc__)
    folder, this = args.data_dir, data_sets.data_set(args.data, args.data_dir)
    if args.out:
        cli.check_output("--out", args.out)

    questions, notes = data.load(args.data, folder, args.split)
    check_libraries(questions, args.python)
    total = data.count(args.data, folder, args.split)
    # a file of Python questions may hold those of other splits
    total_left_out = total - len(questions) if this.language == "sql" else 0
    tables, unread = data.tables(args.data, folder, args.split)
    if args.test_suite:
        suites.check(questions)
    if args.comparison:
        questions = [dataclasses.replace(q, comparison=args.comparison) for q in questions]
    if args.predictions:
        predictions = read_predictions(args.predictions, questions, total)
        missing = sum(q.index not in predictions for q in questions)
        if missing:
            print(f"{missing} questions have no prediction and count as not answered", file=sys.stderr)
    else:
        import lora
        from policy import check_adapter, load_policy

        if args.adapter:
            check_adapter(args.model, args.adapter)
        policy = load_policy(args.model, args.precision, args.device)
        if args.adapter:
            lora.load(policy.model, args.adapter)
    questions = data.subset(questions, args.limit, args.seed)
    with Verifier(args.workers, args.python, args.allow_unsandboxed) as verifier:
        choose = suites.usable_on_all if args.test_suite else usable
        kept, failing = choose(questions, verifier, args.timeout, "gold code")
        for note in notes + unread + failing:
            print(f"left out: {note}", file=sys.stderr)
        if args.predictions:
            codes = [predictions.get(q.index, "") for q in kept]
        else:
            codes = greedy(policy, kept, args.max_new, args.batch_tokens, "answering")
        size = None if args.test_suite else len(kept)
        with tqdm(total=size, desc="verify", unit="query", disable=None) as bar:
            if args.test_suite:
                verdicts = suites.judged(kept, codes, args.timeout, verifier, bar.update)
            else:
                verdicts = verifier.run([job(q, c, args.timeout) for q, c in zip(kept, codes)], bar.update)
    result = scores(kept, codes, verdicts, tables)
    for verdict, count in result.classes.items():
        print(f"{verdict:>8}  {count:5d}  {count / max(result.n, 1):6.1%}")
    for name, part in result.groups.items():
        matched = "" if part["em"] is None else f"  EM {part['em']:6.1%}"
        print(f"{name:>12}  n {part['n']:5d}  {'EX' if matched else 'pass@1'} {part['ex']:6.1%}{matched}")
    if not result.n:
        raise UserError("no question is left to score.")
    result = {k: v for k, v in dataclasses.asdict(result).items() if v is not None}
    result["ex_interval"] = wilson(sum(v.verdict == "correct" for v in verdicts), len(verdicts))
    print(json.dumps(result | {"left_out": len(questions) - len(kept) + total_left_out}))
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            for q, code, v in zip(kept, codes, verdicts):
                row = {"index": q.index, "question_id": q.question_id, "verdict": v.verdict}
                row |= {"em": em(q, code, tables), "message": v.message, "answer": code}
                row = {k: x for k, x in row.items() if x is not None}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    cli.run(main, InfrastructureError, GoldError)
