"""D_t: K pairs (chosen, rejected) for each question, from its answers and their verdicts (equations 4 and 5).

No model and no file: the same answers, verdicts and seed give the same pairs.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from data import Answer, Question
from prompts import answer_text, code_ids, extract_code, normal_form
from settings import Config
from verify import Verdict

Ids = tuple[int, ...]  # an answer's token ids


@dataclass(frozen=True)
class QuestionPairs:
    """D_t for one question: its distinct answers, and pairs (chosen, rejected) of positions among them."""

    question: int  # Question.index
    answers: tuple[Ids, ...]
    pairs: tuple[tuple[int, int | None], ...]  # None: nothing is rejected (objective sft)


def make_pairs(
    config: Config,
    tokenizer: Any,
    questions: list[Question],
    answers: list[Answer],
    verdicts: list[Verdict],
    t: int,
) -> tuple[list[QuestionPairs], Counter]:
    """Each question's K pairs in iteration t, and how many questions and answers fell into each case.

    A question without a chosen answer, or without a rejected one (but for objective sft), gives no pairs.
    verdicts: one for each of `answers`.
    """
    drawn: dict[int, list[tuple[Answer, Verdict]]] = {q.index: [] for q in questions}
    for answer, verdict in zip(answers, verdicts, strict=True):
        drawn[answer.question].append((answer, verdict))
    counts: Counter = Counter()
    result = []
    for question in questions:
        gold = code_ids(question.gold, tokenizer)
        gold_text = answer_text(gold[:-1], tokenizer)
        chosen, rejected = sort_answers(config, question, gold, gold_text, drawn[question.index], counts)
        if config.objective == "sft":
            rejected = [None]
        if chosen and rejected:
            # seeded for each question, so that another question more or less changes no other pairs
            rng = random.Random(f"pairs {config.seed} {t} {question.index}")
            if drawn_pairs := draw_pairs(chosen, rejected, config.pairs, rng):
                result.append(numbered(question.index, drawn_pairs))
    counts["pairs"] = sum(len(p.pairs) for p in result)
    return result, counts


def sort_answers(
    config: Config,
    question: Question,
    gold: Ids,
    gold_text: str,
    drawn: list[tuple[Answer, Verdict]],
    counts: Counter,
) -> tuple[list[Ids], list[Ids]]:
    """Y_c and Y_r of one question, equation 4; `counts` is updated with every case.

    gold: the token ids of its gold code with the end token. gold_text: what these ids say, without the end
    token. drawn: its answers with their verdicts.
    """
    chosen = [a.ids for a, v in drawn if v.verdict == "correct"]
    failed = [a for a, v in drawn if v.verdict != "correct" and v.judged]
    rejected = [a.ids for a in failed if not is_degenerate(a)]
    counts["questions"] += 1
    counts["answers"] += len(drawn)
    counts["answers_right"] += len(chosen)
    # a damaged page of the database: neither right nor wrong
    if unknown := len(drawn) - len(chosen) - len(failed):
        counts["answers_not_judged"] += unknown
    counts["answers_degenerate"] += len(failed) - len(rejected)
    # the gold code, where no answer is right; `only`: fine-tuning, which learns from nothing else
    if config.gold == "always" or (config.gold == "if-empty" and not chosen):
        counts["questions_given_gold"] += 1
        chosen.append(gold)
    if config.gold == "only":
        chosen = [gold]
    # The same code can get two verdicts: it was correct once and too slow another time, or the gold code was
    # too slow as an answer. Code that is chosen is never rejected as well, so no answer is preferred to
    # itself. Answers are the same where their code is (`prompts.normal_form`), or, where they have none,
    # their tokens.
    content = {
        a.ids: normal_form(extract_code(a.text, question.form), question.language) or a.ids for a, _ in drawn
    }
    content[gold] = normal_form(extract_code(gold_text, question.form), question.language)
    right = {content[ids] for ids in chosen}
    contradicted = [ids for ids in rejected if content[ids] in right]
    if contradicted:
        counts["answers_wrong_but_chosen"] += len(contradicted)
        rejected = [ids for ids in rejected if content[ids] not in right]
    if not chosen:
        counts["questions_without_right"] += 1
    if not rejected:
        counts["questions_without_wrong"] += 1
    return chosen, rejected


def draw_pairs(
    chosen: list[Ids], rejected: list[Ids] | list[None], count: int, rng: random.Random
) -> list[tuple[Ids, Ids | None]]:
    """The pair rule, equation 5: `count` chosen and `count` rejected answers, drawn apart from each other.

    A side that has fewer answers is drawn with replacement. Answers that were drawn twice are there twice.
    rejected: [None] for objective sft. A rule may return fewer pairs; without any the question is left out.
    """
    sides = [
        rng.sample(side, count) if len(side) >= count else rng.choices(side, k=count)
        for side in (chosen, rejected)
    ]
    return list(zip(*sides))


def numbered(question: int, pairs: list[tuple[Ids, Ids | None]]) -> QuestionPairs:
    """The pairs as positions among their distinct answers, each of which is then computed once."""
    number: dict[Ids, int] = {}

    def position(ids: Ids | None) -> int | None:
        return None if ids is None else number.setdefault(ids, len(number))

    positions = tuple((position(chosen), position(rejected)) for chosen, rejected in pairs)
    return QuestionPairs(question, tuple(number), positions)


def is_degenerate(answer: Answer, repeats: int = 3) -> bool:
    """Our reading of the paper's "answers that contain repeated strings": repeated up to the length limit.

    Precisely: it has no end, and its last half is one n-gram of tokens, n ≥ 1, back to back at least
    `repeats` times.
    """
    half = answer.ids[len(answer.ids) // 2 :]
    periods = range(1, len(half) // repeats + 1)
    return not answer.finished and any(half[n:] == half[:-n] for n in periods)
