"""What is computed together: the pairs of an optimizer step, and the questions of a forward pass.

Sharing saves time: a question's answers share its prompt, and questions on one database share its schema
(tree.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pairs import QuestionPairs
from settings import Config
from tree import shared

Prompts = list[list[int]]  # token ids of each question's prompt


class Pair(NamedTuple):
    """One term of equation 6."""

    at: int  # position of its question in the list of QuestionPairs
    chosen: int  # position among that question's answers
    rejected: int | None  # None: nothing is rejected (objective sft)


class Used(NamedTuple):
    """A question's part of a forward pass: those of its answers that the pass needs, and its pairs."""

    at: int
    answers: list[int]
    pairs: list[Pair]


def batches(config: Config, pairs: list[QuestionPairs], databases: list[str], t: int) -> list[list[Pair]]:
    """The epoch's optimizer steps of batch_size · accumulation pairs, shuffled by (seed, iteration, epoch).

    A question's pairs stay together in groups of `pairs_per_tree`. With `step_databases` a step's questions
    come from so many databases alone, whose schemas its passes then share. databases: the database of each
    entry of `pairs`.
    """
    steps, size = [], config.batch_size * config.accumulation
    for epoch in range(config.epochs):
        groups = [
            [
                Pair(at, chosen, rejected)
                for chosen, rejected in p.pairs[start : start + config.pairs_per_tree]
            ]
            for at, p in enumerate(pairs)
            for start in range(0, len(p.pairs), config.pairs_per_tree)
        ]
        rng = random.Random(f"order {config.seed} {t} {epoch}")
        rng.shuffle(groups)
        order = [pair for group in groups for pair in group]
        if config.step_databases:
            order = blocks_of_databases(order, databases, max(1, size // config.step_databases), rng)
        epoch_steps = [order[start : start + size] for start in range(0, len(order), size)]
        if config.step_databases:
            rng.shuffle(epoch_steps)
        steps += epoch_steps
    return steps


def blocks_of_databases(order: list[Pair], databases: list[str], size: int, rng: random.Random) -> list[Pair]:
    """The same pairs in shuffled blocks of `size` from one database each; what fills no block comes last."""
    by_database: dict[str, list[Pair]] = {}
    for pair in order:
        by_database.setdefault(databases[pair.at], []).append(pair)
    blocks, rest = [], []
    for members in by_database.values():
        full = len(members) // size * size
        blocks += [members[start : start + size] for start in range(0, full, size)]
        rest += members[full:]
    rng.shuffle(blocks)
    return [pair for block in [*blocks, rest] for pair in block]


def trees(
    batch: list[Pair], prompts: Prompts, pairs: list[QuestionPairs], limit: int
) -> Iterator[list[Used]]:
    """A batch's pairs in forward passes of at most `limit` tokens."""
    by_question: dict[int, list[Pair]] = {}
    for pair in batch:
        by_question.setdefault(pair.at, []).append(pair)
    used = {
        at: Used(at, sorted({a for p in members for a in p[1:] if a is not None}), members)
        for at, members in by_question.items()
    }
    tokens = {at: sum(len(pairs[at].answers[a]) for a in u.answers) for at, u in used.items()}
    # sorted, so that prompts that begin alike meet in one pass
    for micro_batch in micro_batches(sorted(used, key=prompts.__getitem__), prompts, tokens, limit):
        yield [used[at] for at in micro_batch]


def micro_batches(
    order: list[int], prompts: Prompts, answers: Mapping[int, int] | Sequence[int], limit: int
) -> Iterator[list[int]]:
    """The questions of `order` in lists of at most `limit` tokens; a question above it stands alone.

    answers: the answer tokens of each question. A prefix that neighbours share is computed once, and is
    counted once.
    """
    batch, size = [], 0
    for at in order:
        whole = added = len(prompts[at]) + answers[at]
        if batch:
            added -= shared(prompts[at], prompts[batch[-1]])
        if batch and size + added > limit:
            yield batch
            batch, size, added = [], 0, whole
        batch.append(at)
        size += added
    if batch:
        yield batch


def sampling_batches(prompts: Prompts, answers: int, max_new: int, batch_tokens: int) -> list[list[int]]:
    """Batches of at most `batch_tokens` cached tokens: prompts of like length and one schema together."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]) // 128, prompts[i]))
    return list(micro_batches(order, prompts, [answers * max_new] * len(prompts), batch_tokens))
