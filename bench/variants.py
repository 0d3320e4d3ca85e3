"""Variants of the method that the paper does not have: each replaces one function of ours by one of its own.

    python bench/variants.py dpop --model coder --data spider …     flags of codelutra.py behind the name
    python bench/variants.py dpop+nearest …                         two at once

They answer when failures teach, and stay out of codelutra.py until one of them is clearly better. A run's
folder does not hold the variant's name: give --out one that does, as bench/experiment.py does.
"""

import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch

import cli
import codelutra
import pairs
import prompts
import refine
from data import Answer, Question
from loss import dpo_margin
from pairs import Ids, draw_pairs, sort_answers
from prompts import prompt
from tree import Tree, answer_logps
from verify import GoldError, InfrastructureError, Verdict


def distinct(chosen: list[Ids], rejected: list[Ids], count: int, rng: random.Random) -> list[tuple[Ids, Ids]]:
    """No pair twice: of all pairs of different answers, at most K."""
    every = [(c, r) for c in dict.fromkeys(chosen) for r in dict.fromkeys(rejected)]
    return rng.sample(every, min(count, len(every)))


def by_distance(chosen: list[Ids], rejected: list[Ids], count: int, rng: random.Random, sign: int):
    """The paper's chosen answers, each with the rejected answer nearest (1) or farthest (-1) in tokens."""

    def partner(answer: Ids) -> Ids:
        likeness = [SequenceMatcher(None, answer, other, autojunk=False).ratio() for other in rejected]
        return rejected[max(range(len(rejected)), key=lambda i: sign * likeness[i])]

    return [(answer, partner(answer)) for answer, _ in draw_pairs(chosen, rejected, count, rng)]


def nearest(chosen: list[Ids], rejected: list[Ids], count: int, rng: random.Random) -> list[tuple[Ids, Ids]]:
    """Pairs that differ in few tokens: what is told apart is then the fault itself."""
    return by_distance(chosen, rejected, count, rng, 1)


def farthest(chosen: list[Ids], rejected: list[Ids], count: int, rng: random.Random) -> list[tuple[Ids, Ids]]:
    """Pairs that share little: lowering the rejected answer then lowers little of the chosen one."""
    return by_distance(chosen, rejected, count, rng, -1)


def rejecting(keep):
    """sort_answers where only the failed answers that `keep` accepts are rejected."""

    def sort(config, question, gold, gold_text, drawn: list[tuple[Answer, Verdict]], counts: Counter):
        chosen, rejected = sort_answers(config, question, gold, gold_text, drawn, counts)
        accepted = {answer.ids for answer, verdict in drawn if keep(verdict)}
        kept = [ids for ids in rejected if ids in accepted]
        counts["questions_without_wrong"] += bool(rejected) and not kept
        return chosen, kept

    return sort


def mixed(config, question, gold, gold_text, drawn: list[tuple[Answer, Verdict]], counts: Counter):
    """Only questions with at least two right and two wrong answers."""
    answers = sort_answers(config, question, gold, gold_text, drawn, counts)
    right = sum(v.verdict == "correct" for _, v in drawn)
    return answers if 2 <= right <= len(drawn) - 2 else ([], [])


def tables(query: str) -> int:
    """A query's FROMs and JOINs, about how many tables it reads.

    Subqueries and set operations count, also on the same table; tables behind a comma do not.
    """
    return len(re.findall(r"\b(?:from|join)\b", query, re.IGNORECASE))


def alike(config, question, gold, gold_text, drawn: list[tuple[Answer, Verdict]], counts: Counter):
    """Rejected answers that read as many tables as a chosen one: "it has a join" then tells no pair apart."""
    chosen, rejected = sort_answers(config, question, gold, gold_text, drawn, counts)
    text = {answer.ids: answer.text for answer, _ in drawn} | {gold: gold_text}
    numbers = {tables(text[ids]) for ids in chosen}
    kept = [ids for ids in rejected if tables(text[ids]) in numbers]
    counts["questions_without_wrong"] += bool(rejected) and not kept
    return chosen, kept


def dpop_margin(chosen, rejected, reference_chosen, reference_rejected, penalty: float = 5.0):
    """DPOP (Pal et al. 2024, equation 3): `penalty` times what a chosen answer falls below its reference.

    β scales the penalty as well, and what is logged as `margin` and `preferred` has it in it.
    """
    fallen = (reference_chosen - chosen).clamp(min=0)
    return dpo_margin(chosen, rejected, reference_chosen, reference_rejected) - penalty * fallen


def logps_per_token(model: torch.nn.Module, tree: Tree) -> torch.Tensor:
    """log π(y|x) divided by the answer's tokens, in the reference too: a margin normalised by length.

    It needs --sft-reduction sum, for `mean` would divide by the length twice; and a β some 25 times as large.
    """
    return answer_logps(model, tree) / tree.owner.bincount(minlength=tree.answers)


def planned(question: Question) -> str:
    """The prompt that asks for a plan before the query: the tables and columns, and how they are joined."""
    plain = prompt(question)
    ask = "Reply with the query only."
    assert ask in plain
    plan = "First name in one line the tables and columns that it needs and how they are joined,"
    return plain.replace(ask, f"{plan} then write the query between ```sql and ```.")


class Variant(NamedTuple):
    module: ModuleType  # where the function is called
    name: str
    replacement: Callable
    shares: str  # with a run of the paper's method: its "pairs" and draws, its "draws" alone, or "nothing"


VARIANTS = {
    "distinct": Variant(pairs, "draw_pairs", distinct, "draws"),
    "nearest": Variant(pairs, "draw_pairs", nearest, "draws"),
    "farthest": Variant(pairs, "draw_pairs", farthest, "draws"),
    # rejects only answers that ran, with another result; only those that did not run
    "running": Variant(pairs, "sort_answers", rejecting(lambda v: v.ran), "draws"),
    "failing": Variant(pairs, "sort_answers", rejecting(lambda v: not v.ran), "draws"),
    "alike": Variant(pairs, "sort_answers", alike, "draws"),
    "mixed": Variant(pairs, "sort_answers", mixed, "draws"),
    "dpop": Variant(refine, "dpo_margin", dpop_margin, "pairs"),
    "normalised": Variant(refine, "answer_logps", logps_per_token, "draws"),
    "planned": Variant(prompts, "prompt", planned, "nothing"),
}


def parts(name: str) -> list[Variant]:
    """The variants that a name like dpop or dpop+nearest puts together; none where it is no such name."""
    every = name.split("+")
    return [VARIANTS[part] for part in every] if set(every) <= set(VARIANTS) else []


def main():
    if len(sys.argv) < 2 or not parts(sys.argv[1]):
        sys.exit(f"{__doc__}\nvariants, to be joined by +: {', '.join(VARIANTS)}")
    for variant in parts(sys.argv[1]):
        setattr(variant.module, variant.name, variant.replacement)
    codelutra.main(sys.argv[2:])


if __name__ == "__main__":
    cli.run(main, InfrastructureError, GoldError)
