"""Score a policy, or a file of anybody's predictions, on a held-out split.

    python eval.py --model smollm2 --adapter runs/shop-smollm2-seed0/iter_2/adapter --data shop
    python eval.py --data spider --data-dir PATH --split dev --predictions FILE

EX (execution accuracy): the share of questions whose query returns the gold query's result, by the data set's official
comparison; for DS-1000 it is pass@1. EM (exact set match): the query agrees with the gold query clause by clause.
Executable: the share that runs at all. The error analysis of Fig. 4a is the count of each verdict.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

import cli
import data
from cli import UserError
from data import Question
from exact_match import exact_match, hardness
from judging import job, usable
from prompts import extract_code
from verify import VERDICTS, GoldError, InfrastructureError, Verdict, Verifier

if TYPE_CHECKING:  # scoring a file of predictions needs no torch
    from policy import Policy


@dataclass(frozen=True)
class Scores:
    """Shares are of `n`, the questions scored; `classes` counts each verdict (Fig. 4a)."""

    n: int
    ex: float  # DS-1000: pass@1
    executable: float
    classes: dict[str, int]
    em: float | None = None  # SQL alone
    groups: dict[str, dict] = field(default_factory=dict)  # the same for each hardness, difficulty or library


@dataclass(frozen=True)
class PolicyScores:
    """A policy's scores on the training questions held back and on the dev split, where there are such questions."""

    validation: Scores | None
    dev: Scores | None

    @staticmethod
    def of(plain: dict, scored: Collection[str]) -> PolicyScores:
        """What `plain` has returned; raises TypeError or KeyError where that does not hold the splits `scored`."""
        return PolicyScores(*(Scores(**plain[split]) if split in scored else None for split in ("validation", "dev")))

    def plain(self) -> dict:
        """As it is written to scores.json."""
        return {f.name: dataclasses.asdict(value) for f in dataclasses.fields(self) if (value := getattr(self, f.name))}


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


def scores(questions: list[Question], codes: list[str], verdicts: list[Verdict], tables: dict | None = None) -> Scores:
    """tables: db_id → its entry in tables.json, for EM (`data.tables`)."""
    rows = []
    for q, code, v in zip(questions, codes, verdicts, strict=True):
        rows.append((q.difficulty or hardness(q.gold), v.verdict, v.ran, em(q, code, tables)))
    groups = {name: [r for r in rows if r[0] == name] for name in dict.fromkeys(r[0] for r in rows)}
    count = Counter(v.verdict for v in verdicts)
    parts = {name: dataclasses.asdict(_shares(of)) for name, of in sorted(groups.items())}
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


def interval(values, repeats: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of one number a question; (0, 0) where there is none."""
    values = np.asarray(values, dtype=float)
    if not len(values):
        return 0.0, 0.0
    draws = np.random.default_rng(0).integers(0, len(values), (repeats, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def greedy(
    policy: Policy, questions: list[Question], max_new: int, batch_tokens: int, progress: str | None = None
) -> list[str]:
    """The most likely answer's code for every question, in order; no code where the prompt is too long for the model."""
    from sample import SamplingParams, sample

    room = policy.max_positions - max_new
    fitting = [q for q in questions if len(policy.prompt_ids(q)) <= room]
    params = SamplingParams(answers=1, max_new=max_new, temperature=0, batch_tokens=batch_tokens)
    text = {a.question: a.text for batch in sample(policy, fitting, params, progress=progress) for a in batch}
    return [extract_code(text.get(q.index, ""), q.language) for q in questions]


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


BIRD_MARK = "\t----- bird -----\t"  # stands between the SQL and its database's name in BIRD's own files
LAST_WORDS = {"asc", "desc", "null", "end"}  # a query may end with one of these; no database is called so


def read_predictions(path: Path, questions: list[Question], total: int) -> dict[int, str]:
    """Question.index → code, from a file in one of three forms; the official file has `total` questions.

    1. One SQL a line, as many and in the order of the official file. An empty line is an empty answer; empty
       lines at the end that are too many are dropped.
    2. BIRD's predict_dev.json: one JSON object whose keys are positions in the official file.
    3. JSON lines: an answer, and a question's index or id.

    In all of them a TAB and the name of the question's database may follow the SQL. Raises UserError,
    naming the line, for anything else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read predictions {path}: {error}.")
    if not text.strip():
        raise UserError(f"{path} is empty.")
    lines = text.removesuffix("\n").split("\n")  # not splitlines: JSON may hold U+2028 and its like
    if not text.lstrip().startswith("{"):
        return answers_of_lines(lines, path, questions, total)
    pairs = bird_pairs(text)
    if pairs is not None:
        found = answers_of_bird_pairs(pairs, path, questions, total)
    else:
        found = answers_of_json_lines(lines, path, questions, total)
    if found.keys().isdisjoint(q.index for q in questions):
        raise UserError(f"{path}: no line answers a question of this split.")
    return found


def answers_of_lines(lines: list[str], path: Path, questions: list[Question], total: int) -> dict[int, str]:
    while len(lines) > total and not lines[-1].strip():
        lines.pop()
    if len(lines) != total:
        counts = f"{len(lines)} lines; the split has {total} questions"
        raise UserError(f"{path} has {counts}, and each needs one.")
    known, found = {q.db_id for q in questions}, {}
    for q in questions:
        found[q.index] = without_database(lines[q.index], q, known, f"{path}, line {q.index + 1}")
    return found


def without_database(text: str, question: Question, known: set[str], place: str) -> str:
    """The SQL of `text`, without the TAB and the name of the question's database that may follow it.

    Raises UserError where another name follows. Any single word after the last TAB counts as a name, even if
    no database is called so: the official evaluators cut the line there as well. Read as SQL it would be an
    alias of the last table, and a query for another database would be judged on this one without a complaint.
    known: databases' names; by it those are recognised that are not single words.
    """
    if question.language == "python":
        return text
    sql, mark, name = text.rpartition(BIRD_MARK)
    if not mark:
        sql, mark, name = text.rstrip().rpartition("\t")
    name = name.strip()
    if mark and name == question.db_id:
        return sql
    is_word = name.isidentifier() and name.lower() not in LAST_WORDS
    if mark and (is_word or name in known or mark == BIRD_MARK):
        raise UserError(
            f"{place}: after the TAB stands {name}, but question {question.index} is on {question.db_id}"
            " (if it is part of the SQL, put a space in place of the TAB)."
        )
    return text


def bird_pairs(text: str) -> list[tuple[str, object]] | None:
    """The keys and values of a file that is one JSON object with numbers as keys; None for any other file."""
    try:
        pairs = json.loads(text, object_pairs_hook=list)  # a dictionary would hide a key that stands twice
    except (ValueError, RecursionError):
        return None
    return pairs if any(key.isdecimal() for key, _ in pairs) else None


def answers_of_bird_pairs(pairs, path: Path, questions: list[Question], total: int) -> dict[int, str]:
    positions, by_index = {str(i): i for i in range(total)}, {q.index: q for q in questions}
    known, found = {q.db_id for q in questions}, {}
    for key, code in pairs:
        index, place = positions.get(key), f"{path}, key {key!r}"
        if index is None:
            raise UserError(f"{place}: a key must be a position among the official file's {total} questions.")
        if index in found:
            raise UserError(f"{place}: question {index} has an answer already.")
        try:
            code.encode()
        except (AttributeError, UnicodeEncodeError):
            raise UserError(f"{place}: the answer must be a string, without half characters.")
        found[index] = without_database(code, by_index[index], known, place) if index in by_index else code
    return found


def answers_of_json_lines(lines: list[str], path: Path, questions: list[Question], total: int) -> dict:
    """A line with an id that no question has is passed over: its question was left out.

    An id that none of the questions could have is refused: a word where ids are numbers, a number where they
    are words, any id where questions have none.

    BIRD's mini_dev has two questions twice, both times with the same id. The first line with such an id
    answers all questions that have the id; the second line answers all but the first of them, and so on. So
    one line is enough, and as many lines as questions are taken in order.
    """
    by_index, known = {q.index: q for q in questions}, {q.db_id for q in questions}
    by_id: dict[str, list[Question]] = {}
    for q in questions:
        if q.question_id is not None:
            by_id.setdefault(str(q.question_id), []).append(q)
    kinds = {is_number(own) for own in by_id}
    found, seen = {}, Counter()  # seen: id → how many lines have named it
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        code, index, own, database = read_answer(line, place, total)
        named, earlier = by_id.get(own, []), 0
        if index is not None:
            indices = [index]
            has_id = index in by_index and by_index[index].question_id is not None
            if own is not None and (named or has_id) and index not in [q.index for q in named]:
                raise UserError(f"{place}: index {index} and id {own} are two different questions.")
        else:
            if is_number(own) not in kinds:
                words = f"no question of this split could have the id {own}"
                raise UserError(f"{place}: {words}: give its index.")
            if len({(q.db_id, q.text, q.gold) for q in named}) > 1:
                numbers = " and ".join(str(q.index) for q in named)
                words = f"questions {numbers} differ, but share the id {own}"
                raise UserError(f"{place}: {words}: give their index.")
            earlier = seen[own]
            seen[own] += 1
            indices = [q.index for q in named[earlier:]]
            if named and not indices:
                raise UserError(f"{place}: question {named[-1].index} has an answer already.")
        for i in indices:
            if i in found and not earlier:
                raise UserError(f"{place}: question {i} has an answer already.")
            if i in by_index and database not in (None, by_index[i].db_id):
                raise UserError(f"{place}: database {database}, but question {i} is on {by_index[i].db_id}.")
            found[i] = without_database(code, by_index[i], known, place) if i in by_index else code
    return found


def read_answer(line: str, place: str, total: int) -> tuple[str, int | None, str | None, object]:
    """(code, index, id, database) of one JSON line, which has an index, an id, or both; else raises UserError.

    The id is text, so that "7" is 7.
    """
    try:
        row = json.loads(line, object_pairs_hook=without_repeats)
        code, index = row["answer"], row.get("index")
        names = ("question_id", "problem_id")  # the second is DS-1000's name for it
        ids = [row[name] for name in names if row.get(name) is not None]
        if index is None and not ids:
            raise KeyError("question_id")
        str(code).encode()  # JSON can spell half a character
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{place}: expected a JSON object with answer and index or question_id ({error!r}).")
    if not isinstance(code, str) or not isinstance(index, int | None) or isinstance(index, bool):
        raise UserError(f"{place}: answer must be a string and index a number.")
    valid = all(isinstance(own, int | str) and not isinstance(own, bool) for own in ids)
    if not valid or len({str(own) for own in ids}) > 1:
        given = " and ".join(map(repr, ids))
        raise UserError(f"{place}: question_id must be a whole number or a string, not {given}.")
    if index is not None and not 0 <= index < total:
        raise UserError(f"{place}: index {index}, but the split has {total} questions.")
    return code, index, str(ids[0]) if ids else None, row.get("db_id")


def is_number(own: str) -> bool:
    """Whether an id is written as a whole number is."""
    return re.fullmatch("0|-?[1-9][0-9]*", own) is not None


def without_repeats(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object; raises ValueError where a key stands in it twice, with two values perhaps."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def main(argv=None):
    parser = cli.flags(__doc__)
    parser.add_argument("--data", default="shop", choices=sorted(data.DATA_SETS), help="data set (default shop)")
    parser.add_argument("--data-dir", help="its folder (default data/NAME)")
    parser.add_argument("--split", default="dev", choices=("train", "dev"), help="default dev")
    parser.add_argument("--limit", type=int, default=0, help="score this many questions, chosen by --seed (0: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of questions")
    parser.add_argument("--predictions", type=Path, help="score this file instead of a model")
    parser.add_argument("--model", default="smollm2", help="hub id, folder, .gguf file, or smollm2")
    parser.add_argument("--adapter", help="folder of a LoRA adapter (default: the base model)")
    parser.add_argument("--max-new", type=int, help="longest answer, tokens (default: the data set's, as in training)")
    parser.add_argument("--batch-tokens", type=int, default=32768, help="cached tokens per unit of questions")
    parser.add_argument("--comparison", choices=("spider", "bird", "strict"), help="default: the data set's official one")
    parser.add_argument("--timeout", type=float, help="seconds per answer (default: the data set's, as in training)")
    parser.add_argument("--workers", type=int, default=2, help="verification processes")
    parser.add_argument("--python", help="DS-1000: the interpreter that has its libraries (default: this one)")
    parser.add_argument("--allow-unsandboxed", action="store_true", help="DS-1000: run programs without all the walls")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    parser.add_argument("--out", type=Path, help="write one JSON line per question here")
    args = parser.parse_args(argv)
    args.max_new = data.DATA_SETS[args.data].max_new if args.max_new is None else args.max_new
    args.timeout = data.DATA_SETS[args.data].timeout if args.timeout is None else args.timeout
    for name in ("max_new", "batch_tokens", "timeout", "workers"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name)}")
    if args.limit < 0:
        parser.error(f"--limit must not be negative, but is {args.limit}")

    if args.predictions and args.adapter:
        parser.error("--predictions are scored as they are: --adapter has no use")
    if args.out:
        cli.check_output("--out", args.out)

    folder = args.data_dir or f"data/{args.data}"
    questions, notes = data.load(args.data, folder, args.split)
    total = data.count(args.data, folder, args.split)
    total_left_out = total - len(questions) if args.data != "ds1000" else 0  # one file holds both of its halves
    tables, unread = data.tables(args.data, folder, args.split)
    if args.comparison:
        questions = [dataclasses.replace(q, comparison=args.comparison) for q in questions]
    if args.predictions:
        predictions = read_predictions(args.predictions, questions, total)
        missing = sum(q.index not in predictions for q in questions)
        if missing:
            print(f"{missing} questions have no prediction and count as not answered", file=sys.stderr)
    else:
        import lora
        from policy import load_policy

        if args.adapter:
            lora.read(args.adapter)  # a wrong one is noticed before the model is loaded
        policy = load_policy(args.model, args.precision, args.device)
        if args.adapter:
            lora.load(policy.model, args.adapter)
    questions = data.subset(questions, args.limit, args.seed)
    with Verifier(args.workers, args.python, args.allow_unsandboxed) as verifier:
        kept, failing = usable(questions, verifier, args.timeout, "gold code")
        for note in notes + unread + failing:
            print(f"left out: {note}", file=sys.stderr)
        if args.predictions:
            codes = [predictions.get(q.index, "") for q in kept]
            bar = tqdm(total=len(kept), desc="verify", unit="query", disable=None)
            verdicts = verifier.run(
                [job(q, c, args.timeout) for q, c in zip(kept, codes)], progress=bar.update
            )
            bar.close()
            result = scores(kept, codes, verdicts, tables)
        else:
            made = evaluate(
                policy, kept, verifier, args.split, args.timeout, args.max_new, args.batch_tokens,
                "answering", tables,
            )  # fmt: skip
            result, codes, verdicts = made.scores, made.codes, made.verdicts
    for verdict, count in result.classes.items():
        print(f"{verdict:>8}  {count:5d}  {count / max(result.n, 1):6.1%}")
    for name, part in result.groups.items():
        matched = "" if part["em"] is None else f"  EM {part['em']:6.1%}"
        print(f"{name:>12}  n {part['n']:5d}  {'EX' if matched else 'pass@1'} {part['ex']:6.1%}{matched}")
    if not result.n:
        raise UserError("no question is left to score.")
    result = {k: v for k, v in dataclasses.asdict(result).items() if v is not None}
    result["ex_interval"] = interval([v.verdict == "correct" for v in verdicts])
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
