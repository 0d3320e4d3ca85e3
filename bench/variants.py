"""Variants of the method that the paper does not have: each replaces one function of ours by one of its own.

    python bench/variants.py dpop --model coder --data spider …          the flags of codelutra.py behind the variant's name

They answer when failures teach, and stay out of codelutra.py until one of them is clearly better. A run's
folder does not hold the variant's name: give --out one that does, as bench/experiment.py does.
"""

import random
import sys
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import cli
import codelutra
import pairs
import refine
from data import Answer
from loss import dpo_margin
from pairs import Ids, draw_pairs, sort_answers
from verify import GoldError, InfrastructureError, Verdict


def distinct(chosen: list[Ids], rejected: list[Ids], count: int, rng: random.Random) -> list[tuple[Ids, Ids]]:
    """No pair twice: of all pairs of different answers, at most K."""
    every = [(c, r) for c in dict.fromkeys(chosen) for r in dict.fromkeys(rejected)]
    return rng.sample(every, min(count, len(every)))


def by_distance(chosen: list[Ids], rejected: list[Ids], count: int, rng: random.Random, sign: int):
    """The paper's draw of chosen answers, each with the rejected answer that is nearest (1) or farthest (-1)
    in tokens.
    """

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
        kept = [(answer, v) for answer, v in drawn if v.verdict == "correct" or keep(v)]
        return sort_answers(config, question, gold, gold_text, kept, counts)

    return sort


def mixed(config, question, gold, gold_text, drawn: list[tuple[Answer, Verdict]], counts: Counter):
    """Only questions with at least two right and two wrong answers."""
    right = sum(v.verdict == "correct" for _, v in drawn)
    some = 2 <= right <= len(drawn) - 2
    return sort_answers(config, question, gold, gold_text, drawn, counts) if some else ([], [])


def dpop_margin(chosen, rejected, reference_chosen, reference_rejected, penalty: float = 5.0):
    """DPOP (Pal et al. 2024, equation 3): a chosen answer below its reference costs `penalty` times what it
    fell.
    """
    fallen = (reference_chosen - chosen).clamp(min=0)
    return dpo_margin(chosen, rejected, reference_chosen, reference_rejected) - penalty * fallen


# what is replaced: where it is called from, its name, by what. Pairs stay the same where the module is
# `refine`
VARIANTS = {
    "distinct": (pairs, "draw_pairs", distinct),
    "nearest": (pairs, "draw_pairs", nearest),
    "farthest": (pairs, "draw_pairs", farthest),
    "running": (pairs, "sort_answers", rejecting(lambda v: v.ran)),  # rejected: runs, with another result
    "failing": (pairs, "sort_answers", rejecting(lambda v: not v.ran)),  # rejected: does not run
    "mixed": (pairs, "sort_answers", mixed),
    "dpop": (refine, "dpo_margin", dpop_margin),
}


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in VARIANTS:
        sys.exit(f"{__doc__}\nvariants: {', '.join(VARIANTS)}")
    module, name, replacement = VARIANTS[sys.argv[1]]
    setattr(module, name, replacement)
    codelutra.main(sys.argv[2:])


if __name__ == "__main__":
    cli.run(main, InfrastructureError, GoldError)
