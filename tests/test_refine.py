"""Training by hand arithmetic, against plain sequences, and by invariances."""

import math
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import plain_logps

import lora
import refine as refining
from batches import Pair, batches, micro_batches, trees
from cli import UserError
from pairs import QuestionPairs
from policy import halving, load_policy
from refine import check_first_step, learning_rate, reference_logps, refine
from settings import Config
from tree import Tree

LN2 = math.log(2)

# ---- schedule and batches ----------------------------------------------------------------------------------


def test_learning_rate_by_hand():
    config = Config(lr=1.0, warmup=0.1)
    # 20 steps: 2 of warm-up (½, 1), then 18 of cosine from 1 at step 2; half-way, step 11, 0.1 + 0.45 = 0.55
    found = [learning_rate(config, step, 20) for step in range(20)]
    assert found[:3] == [0.5, 1.0, 1.0] and found[11] == pytest.approx(0.55)
    assert found[19] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 17 / 18)))
    assert found[2:] == sorted(found[2:], reverse=True) and min(found[2:]) > 0.1
    assert learning_rate(config, 0, 1) == 1.0
    assert [learning_rate(Config(lr=1.0, warmup=1.0), s, 4) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]


def some_pairs(*counts):
    """Question i has counts[i] pairs; pair j is (2 j, 2 j + 1)."""
    return [
        QuestionPairs(
            10 + i, tuple((i, j) for j in range(2 * n)), tuple((2 * j, 2 * j + 1) for j in range(n))
        )
        for i, n in enumerate(counts)
    ]


@pytest.mark.parametrize("together", [1, 2, 10])
@pytest.mark.parametrize("count", [1, 2])
def test_a_step_takes_its_questions_from_few_databases(count, together):
    pairs = some_pairs(*[3] * 20)
    databases = ["abc"[n % 3] for n in range(len(pairs))]  # 21, 21 and 18 pairs: 5 + 5 + 4 blocks of 4
    config = Config(batch_size=4 * count, step_databases=count, pairs_per_tree=together)
    steps = batches(config, pairs, databases, 1)
    sizes = sorted(map(len, steps))
    assert sizes == ([4] * 15 if count == 1 else [4, *[8] * 7])
    expected = Counter(Pair(i, c, r) for i, p in enumerate(pairs) for c, r in p.pairs)
    assert Counter(pair for step in steps for pair in step) == expected
    used = [{databases[pair.at] for pair in step} for step in steps]
    assert sum(len(names) > count for names in used) <= 1  # the last block of all: what filled none before
    assert len({frozenset(names) for names in used}) > 1 and steps == batches(config, pairs, databases, 1)
    assert steps != batches(config, pairs, databases, 2)


@pytest.mark.parametrize("together", [1, 2, 3, 10])
def test_every_pair_is_in_one_batch_of_an_epoch(together):
    pairs = some_pairs(4, 1, 7, 3, 10)
    config = Config(batch_size=3, accumulation=2, pairs_per_tree=together, epochs=2)
    databases = ["a"] * len(pairs)
    steps = batches(config, pairs, databases, 1)
    assert [len(step) for step in steps] == [6, 6, 6, 6, 1] * 2
    expected = Counter(Pair(i, c, r) for i, p in enumerate(pairs) for c, r in p.pairs)
    first, second = ([pair for step in half for pair in step] for half in (steps[:5], steps[5:]))
    assert Counter(first) == Counter(second) == expected and first != second
    assert steps == batches(config, pairs, databases, 1)
    assert steps != batches(config, pairs, databases, 2)
    assert steps != batches(replace(config, seed=1), pairs, databases, 1)
    for i, p in enumerate(pairs):  # groups of a question are neighbours in the epoch
        for start in range(0, len(p.pairs), together):
            group = [(i, c, r) for c, r in p.pairs[start : start + together]]
            at = first.index(group[0])
            assert first[at : at + len(group)] == group


def test_micro_batches_are_consecutive_and_keep_the_limit():
    prompts = [[i] * 2 for i in range(7)]
    answers = [3, 3, 1, 7, 18, 0, 0]
    assert list(micro_batches(range(7), prompts, answers, 10)) == [[0, 1], [2], [3], [4], [5, 6]]


def test_a_schema_that_neighbours_share_is_counted_once():
    schema, other = [1] * 300, [2] * 300
    prompts = [schema + [5], schema + [6], schema + [7], other + [5], other + [6]]
    answers = dict.fromkeys(range(5), 9)
    # 310 tokens the first, 10 more each of the others
    assert list(micro_batches(range(5), prompts, answers, 330)) == [[0, 1, 2], [3, 4]]
    assert list(micro_batches(range(5), prompts, answers, 329)) == [[0, 1], [2], [3, 4]]
    assert list(micro_batches(range(5), prompts, answers, 309)) == [[0], [1], [2], [3], [4]]
    assert list(micro_batches(range(5), prompts, answers, 650)) == [[0, 1, 2, 3, 4]]
    pairs = [QuestionPairs(i, ((1,) * 9,), ((0, None),)) for i in range(5)]
    batch = [Pair(at, 0, None) for at in (3, 0, 4, 1, 2)]
    # the passes of a step count alike, and bring prompts that begin alike together
    passes = [[used.at for used in part] for part in trees(batch, prompts, pairs, 330)]
    assert passes == [[0, 1, 2], [3, 4]]
    tree = Tree([prompts[at] for at in passes[0]], [pairs[at].answers for at in passes[0]])
    assert len(tree.ids[0]) == 330


# ---- gradients ---------------------------------------------------------------------------------------------

RNG = random.Random(1)
HEAD = [RNG.randrange(300) for _ in range(20)]
PROMPTS = [HEAD * (i % 2) + [RNG.randrange(300) for _ in range(5 + i)] for i in range(4)]
PAIRS = [
    QuestionPairs(
        10 + i,
        tuple(tuple(RNG.randrange(300) for _ in range(RNG.randrange(1, 9))) for _ in range(4)),
        ((0, 1), (0, 2), (3, 1), (0, 1)),  # an answer in several pairs, and a pair drawn twice
    )
    for i in range(4)
]
BASE = Config(
    batch_size=16, warmup=0.0, lr=1e-3, pairs_per_tree=10, beta=0.3, lam=0.7, clip=1e9, weight_decay=0.0
)


def shaken(model, seed=0):
    """LoRA with values as after training: with B = 0, A has no gradient."""
    lora.inject(model, rank=4, alpha=8, seed=2)
    generator = torch.Generator().manual_seed(seed)
    for p in lora.parameters(model):
        p.data.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


class Log:
    """A checkpoint that keeps nothing but the log's rows."""

    def __init__(self):
        self.rows = []

    def load(self, apply):
        return []

    def step(self, row):
        self.rows.append(row)


def trained(config, policy, reference, t=1):
    """Train the policy in iteration t; the log's rows."""
    log = Log()
    refine(config, policy, PROMPTS, PAIRS, reference, batches(config, PAIRS, ["a"] * len(PAIRS), t), log, t)
    return log.rows


def gradients(folder, monkeypatch, config, reference=None):
    """The gradients that `refine` steps with, one list of tensors a step, and the log's rows."""
    policy = load_policy(folder, "float32", "cpu")
    shaken(policy.model)
    if reference is None:
        reference = reference_logps(config, policy, PROMPTS, PAIRS)
    seen, clip = [], torch.nn.utils.clip_grad_norm_

    def record(parameters, limit):
        seen.append([p.grad.clone() for p in parameters])
        return clip(parameters, limit)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", record)
        rows = trained(config, policy, reference)
    return seen, rows


def assert_same(one, two, tolerance=2e-5):
    assert len(one) == len(two)
    for a, b in zip(one, two):
        scale = max(p.norm() for p in a)
        assert all((p - q).norm() < tolerance * scale for p, q in zip(a, b)) and scale > 1e-3


@pytest.mark.parametrize(
    "objective, reduction", [("dual", "mean"), ("dual", "sum"), ("dpo", "mean"), ("sft", "mean")]
)
def test_the_gradient_of_a_step_is_that_of_equation_6_on_plain_sequences(
    folder, reference, monkeypatch, objective, reduction
):
    # margins other than 0: the reference is another policy, so the check of the first step has to stand aside
    config = replace(BASE, objective=objective, sft_reduction=reduction)
    before = [torch.linspace(-60, -20, 4) - i for i in range(4)]
    monkeypatch.setattr(refining, "check_first_step", lambda *_: None)
    mine, _ = gradients(folder, monkeypatch, config, reference=before)
    shaken(reference)
    total = 0.0
    for i, p in enumerate(PAIRS):
        logps = [plain_logps(reference, PROMPTS[i], list(a)).sum() for a in p.answers]
        for c, r in p.pairs:
            margin = (logps[c] - before[i][c]) - (logps[r] - before[i][r])
            dpo = torch.log(1 + torch.exp(-0.3 * margin))
            sft = -logps[c] / (len(p.answers[c]) if reduction == "mean" else 1)
            total = total + {"dual": dpo + 0.7 * sft, "dpo": dpo, "sft": sft}[objective]
    (total / 16).backward()
    assert_same([[p.grad for p in lora.parameters(reference)]], mine, 1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"train_tokens": 1},
        {"train_tokens": 60},
        {"batch_size": 4, "accumulation": 4},
        {"batch_size": 2, "accumulation": 8, "train_tokens": 1},
        {"pairs_per_tree": 1},
        {"pairs_per_tree": 3},
        {"checkpointing": True},
    ],
    ids=str,
)
def test_how_a_step_is_computed_does_not_change_its_gradient(folder, monkeypatch, change):
    plain, rows = gradients(folder, monkeypatch, BASE)
    other, others = gradients(folder, monkeypatch, replace(BASE, **change))
    assert_same(plain, other)
    for key in ("loss", "dpo", "sft", "margin", "chosen_logp", "rejected_logp", "grad_norm"):
        assert rows[0][key] == pytest.approx(others[0][key], rel=1e-4, abs=1e-4), key


def test_a_short_last_step_is_a_mean_over_its_own_pairs(folder, monkeypatch):
    # 12 pairs and 4; the policy does not move
    config = replace(BASE, batch_size=12, lr=1e-12, pairs_per_tree=4)
    seen, rows = gradients(folder, monkeypatch, config)
    whole, _ = gradients(folder, monkeypatch, replace(config, batch_size=16))
    assert len(seen) == len(rows) == 2
    assert_same([[(12 * a + 4 * b) / 16 for a, b in zip(*seen)]], whole)


# ---- the reference is the previous policy ------------------------------------------------------------------


def test_dpo_starts_at_ln_2_in_every_iteration_and_a_wrong_reference_is_caught(folder):
    policy = load_policy(folder, "float32", "cpu")
    lora.inject(policy.model, 4, 8, seed=2)
    parameters = lora.parameters(policy.model)
    config = replace(BASE, batch_size=4, lr=0.02)
    references, adapters = [], []
    for t in (1, 2):
        references.append(reference_logps(config, policy, PROMPTS, PAIRS))
        rows = trained(config, policy, references[-1], t)
        adapters.append([p.detach().clone() for p in parameters])
        assert rows[0]["dpo"] == pytest.approx(LN2, abs=1e-4) and abs(rows[0]["margin"]) < 1e-3
        assert abs(rows[-1]["dpo"] - LN2) > 1e-2
    first, second = references
    assert (torch.cat(first) - torch.cat(second)).abs().max() > 1  # π_0 and π_1 are different policies
    with pytest.raises(AssertionError, match="ln 2"):  # π_2 trained against π_1
        trained(config, policy, second, 3)
    with torch.no_grad():
        for p, value in zip(parameters, adapters[0]):
            p.copy_(value)
    # π_1 trained against π_0, as if the adapter were switched off
    with pytest.raises(AssertionError, match="ln 2"):
        trained(config, policy, first, 3)
    trained(config, policy, second, 3)  # against itself


def test_the_first_step_is_checked_by_hand_numbers():
    check_first_step(LN2 + 0.9e-4, 0.1, torch.float32)
    check_first_step(LN2 - 0.04, 0.1, torch.bfloat16)
    for off, dtype in ((2e-4, torch.float32), (-2e-4, torch.float32), (0.06, torch.bfloat16)):
        with pytest.raises(AssertionError):
            check_first_step(LN2 + off, 0.1, dtype)


def test_reference_logps_are_those_of_plain_sequences(folder, reference):
    policy = load_policy(folder, "float32", "cpu")
    found = reference_logps(replace(BASE, train_tokens=70), policy, PROMPTS, PAIRS)
    for prompt, p, values in zip(PROMPTS, PAIRS, found, strict=True):
        with torch.no_grad():
            plain = [plain_logps(reference, prompt, list(a)).sum() for a in p.answers]
        torch.testing.assert_close(values, torch.stack(plain), atol=2e-4, rtol=1e-5)


def test_a_loss_that_is_not_a_number_stops_with_one_sentence(folder, monkeypatch):
    bad = [torch.full((4,), math.inf) for _ in PAIRS]
    with pytest.raises(UserError, match="--lr"):
        gradients(folder, monkeypatch, BASE, reference=bad)


def test_halves_keep_the_order_and_one_alone_is_an_error():
    def run(items):
        if len(items) > 2 or items == ["too large"]:
            raise torch.OutOfMemoryError
        return [item * 2 for item in items]

    assert halving(run, list(range(7))) == [0, 2, 4, 6, 8, 10, 12]
    with pytest.raises(UserError, match="one question does not fit"):
        halving(run, ["too large"])


def test_memory_that_a_stage_has_freed_is_given_back():
    code = (
        "import torch, policy\n"
        "def mib(): return int(open('/proc/self/statm').read().split()[1]) * 4096 >> 20\n"
        "policy.keep_memory()\n"
        "tensors = [torch.ones(1 << 18) for _ in range(300)]\n"
        "full = mib()\n"
        "del tensors\n"
        "kept = mib()\n"
        "policy.release_memory()\n"
        "print(full - kept, full - mib())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    kept, released = map(int, out.split())
    assert kept < 50 and released > 250
