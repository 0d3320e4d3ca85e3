"""What is computed together: the pairs of an optimizer step, and the questions of a forward pass.

Sharing saves time: a question's answers share its prompt, and questions on one database share its schema
(tree.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
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
    sizes = {
        at: len(prompts[at]) + sum(len(pairs[at].answers[a]) for a in u.answers) for at, u in used.items()
    }
    for micro_batch in micro_batches(sorted(used), sizes, limit):
        yield [used[at] for at in micro_batch]


def micro_batches(items: list[int], sizes, limit: int) -> Iterator[list[int]]:
    """Consecutive items in lists whose sizes sum to at most `limit`; an item above it stands alone.

    sizes: the size of each item, as sizes[item].
    """
    batch, total = [], 0
    for item in items:
        if batch and total + sizes[item] > limit:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += sizes[item]
    if batch:
        yield batch


def sampling_batches(prompts: Prompts, answers: int, max_new: int, batch_tokens: int) -> list[list[int]]:
    """Batches of at most `batch_tokens` cached tokens: prompts of like length and one schema together."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]) // 128, prompts[i]))
    result, size, last = [], 0, []
    for i in order:
        # a shared schema is cached once
        need = len(prompts[i]) - shared(prompts[i], last) + answers * max_new
        if not result or size + need > batch_tokens:
            result.append([])
            size, need = 0, len(prompts[i]) + answers * max_new
        result[-1].append(i)
        size, last = size + need, prompts[i]
    return result
