"""Training by hand arithmetic and invariances, and the whole loop on a tiny GPT-2: stopped anywhere, it ends the same."""

import json
import math
import random
import shutil
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import plain_logps
from safetensors.torch import load_file
from test_verify_sql import damaged

import codelutra
import data
import lora
import report
import settings
from codelutra import QuestionPairs, batches, check_first_step, learning_rate, reference_logps, train
from data import Answer, Question, UserError
from folder import UNIT_END
from policy import halving, load_policy, load_tokenizer
from settings import Config, choose_questions, parse
from verify import VERDICTS, GoldError, SqlJob, Verdict, Verifier

LN2 = math.log(2)

# ---- schedule and batches ---------------------------------------------------------------------------------------------


def test_learning_rate_by_hand():
    config = Config(lr=1.0, warmup=0.1)
    # 20 steps: 2 of warm-up (½, 1), then 18 of cosine from 1 at step 2 over 0.1 + 0.45 = 0.55 half-way at step 11
    found = [learning_rate(config, step, 20) for step in range(20)]
    assert found[:3] == [0.5, 1.0, 1.0] and found[11] == pytest.approx(0.55)
    assert found[19] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 17 / 18)))
    assert found[2:] == sorted(found[2:], reverse=True) and min(found[2:]) > 0.1
    assert learning_rate(config, 0, 1) == 1.0
    assert [learning_rate(Config(lr=1.0, warmup=1.0), s, 4) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]


def some_pairs(*counts):
    """Question i has counts[i] pairs; pair j is (2 j, 2 j + 1)."""
    return [
        QuestionPairs(10 + i, tuple((i, j) for j in range(2 * n)), tuple((2 * j, 2 * j + 1) for j in range(n)))
        for i, n in enumerate(counts)
    ]


@pytest.mark.parametrize("together", [1, 2, 10])
@pytest.mark.parametrize("count", [1, 2])
def test_a_step_takes_its_questions_from_few_databases(count, together):
    pairs = some_pairs(*[3] * 20)
    databases = {p.question: "abc"[n % 3] for n, p in enumerate(pairs)}  # 21, 21 and 18 pairs: 5 + 5 + 4 blocks of 4
    config = Config(batch_size=4 * count, step_databases=count, pairs_per_tree=together)
    steps = batches(config, pairs, 1, databases)
    sizes = sorted(map(len, steps))
    assert sizes == ([4] * 15 if count == 1 else [4, *[8] * 7])
    expected = Counter((i, c, r) for i, p in enumerate(pairs) for c, r in p.pairs)
    assert Counter(pair for step in steps for pair in step) == expected
    used = [{databases[pairs[i].question] for i, *_ in step} for step in steps]
    assert sum(len(names) > count for names in used) <= 1  # the last block of all: what filled none before
    assert len({frozenset(names) for names in used}) > 1 and steps == batches(config, pairs, 1, databases)
    assert steps != batches(config, pairs, 2, databases)


@pytest.mark.parametrize("together", [1, 2, 3, 10])
def test_every_pair_is_in_one_batch_of_an_epoch(together):
    pairs = some_pairs(4, 1, 7, 3, 10)
    config = Config(batch_size=3, accumulation=2, pairs_per_tree=together, epochs=2)
    steps = batches(config, pairs, 1, {})
    assert [len(step) for step in steps] == [6, 6, 6, 6, 1] * 2
    expected = Counter((i, c, r) for i, p in enumerate(pairs) for c, r in p.pairs)
    first, second = ([triple for step in half for triple in step] for half in (steps[:5], steps[5:]))
    assert Counter(first) == Counter(second) == expected and first != second
    assert steps == batches(config, pairs, 1, {})
    assert steps != batches(config, pairs, 2, {}) and steps != batches(replace(config, seed=1), pairs, 1, {})
    for i, p in enumerate(pairs):  # groups of a question are neighbours in the epoch
        for start in range(0, len(p.pairs), together):
            group = [(i, c, r) for c, r in p.pairs[start : start + together]]
            at = first.index(group[0])
            assert first[at : at + len(group)] == group


def test_packs_are_consecutive_and_keep_the_limit():
    sizes = [5, 5, 3, 9, 20, 1, 1]
    assert list(codelutra.packs(range(7), lambda i: sizes[i], 10)) == [[0, 1], [2], [3], [4], [5, 6]]


# ---- gradients --------------------------------------------------------------------------------------------------------

RNG = random.Random(1)
HEAD = [RNG.randrange(300) for _ in range(20)]
PROMPTS = {10 + i: HEAD * (i % 2) + [RNG.randrange(300) for _ in range(5 + i)] for i in range(4)}
PAIRS = [
    QuestionPairs(
        10 + i,
        tuple(tuple(RNG.randrange(300) for _ in range(RNG.randrange(1, 9))) for _ in range(4)),
        ((0, 1), (0, 2), (3, 1), (0, 1)),  # an answer in several pairs, and a pair drawn twice
    )
    for i in range(4)
]
BASE = Config(batch_size=16, warmup=0.0, lr=1e-3, pairs_per_tree=10, beta=0.3, lam=0.7, clip=1e9, weight_decay=0.0)


def shaken(model, seed=0):
    """LoRA with values as after training: with B = 0, A has no gradient."""
    lora.inject(model, rank=4, alpha=8, seed=2)
    generator = torch.Generator().manual_seed(seed)
    for p in lora.parameters(model):
        p.data.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def gradients(folder, tmp_path, monkeypatch, config, pairs=PAIRS, reference=None):
    """The gradients that `train` steps with, one list of tensors a step, and the log's rows."""
    policy = load_policy(folder, "float32", "cpu")
    shaken(policy.model)
    if reference is None:
        (tmp_path / "reference").unlink(missing_ok=True)
        reference = reference_logps(config, policy, PROMPTS, pairs, tmp_path / "reference")
    seen, clip = [], torch.nn.utils.clip_grad_norm_

    def record(parameters, limit):
        seen.append([p.grad.clone() for p in parameters])
        return clip(parameters, limit)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", record)
        train(config, policy, PROMPTS, pairs, reference, batches(config, pairs, 1, {}), tmp_path, 1)
    return seen, [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]


def assert_same(one, two, tolerance=2e-5):
    assert len(one) == len(two)
    for a, b in zip(one, two):
        scale = max(p.norm() for p in a)
        assert all((p - q).norm() < tolerance * scale for p, q in zip(a, b)) and scale > 1e-3


@pytest.mark.parametrize("objective, reduction", [("dual", "mean"), ("dual", "sum"), ("dpo", "mean"), ("sft", "mean")])
def test_the_gradient_of_a_step_is_that_of_equation_6_on_plain_sequences(
    folder, reference, tmp_path, monkeypatch, objective, reduction
):
    # margins other than 0: the reference is another policy, so the check of the first step has to stand aside
    config = replace(BASE, objective=objective, sft_reduction=reduction)
    before = [torch.linspace(-60, -20, 4) - i for i in range(4)]
    monkeypatch.setattr(codelutra, "check_first_step", lambda *_: None)
    mine, _ = gradients(folder, tmp_path, monkeypatch, config, reference=before)
    shaken(reference)
    total = 0.0
    for i, p in enumerate(PAIRS):
        logps = [plain_logps(reference, PROMPTS[p.question], list(a)).sum() for a in p.answers]
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
def test_how_a_step_is_computed_does_not_change_its_gradient(folder, tmp_path, monkeypatch, change):
    plain, rows = gradients(folder, tmp_path, monkeypatch, BASE)
    other, others = gradients(folder, tmp_path, monkeypatch, replace(BASE, **change))
    assert_same(plain, other)
    for key in ("loss", "dpo", "sft", "margin", "chosen_logp", "rejected_logp", "grad_norm"):
        assert rows[0][key] == pytest.approx(others[0][key], rel=1e-4, abs=1e-4), key


def test_a_short_last_step_is_a_mean_over_its_own_pairs(folder, tmp_path, monkeypatch):
    config = replace(BASE, batch_size=12, lr=1e-12, pairs_per_tree=4)  # 12 pairs and 4; the policy does not move
    seen, rows = gradients(folder, tmp_path, monkeypatch, config)
    whole, _ = gradients(folder, tmp_path, monkeypatch, replace(config, batch_size=16))
    assert len(seen) == len(rows) == 2
    assert_same([[(12 * a + 4 * b) / 16 for a, b in zip(*seen)]], whole)


# ---- the reference is the previous policy ------------------------------------------------------------------------------


def test_dpo_starts_at_ln_2_in_every_iteration_and_a_wrong_reference_is_caught(folder, tmp_path):
    policy = load_policy(folder, "float32", "cpu")
    lora.inject(policy.model, 4, 8, seed=2)
    config = replace(BASE, batch_size=4, lr=0.02)
    for t in (1, 2):
        path = tmp_path / f"iter_{t}"
        path.mkdir()
        codelutra.refine(config, policy, PROMPTS, {}, PAIRS, path, t)
        rows = [json.loads(line) for line in (path / "train.jsonl").read_text().splitlines()]
        assert rows[0]["dpo"] == pytest.approx(LN2, abs=1e-4) and abs(rows[0]["margin"]) < 1e-3
        assert abs(rows[-1]["dpo"] - LN2) > 1e-2
    first, second = (load_file(tmp_path / f"iter_{t}" / "reference.safetensors")["logps"] for t in (1, 2))
    assert (first - second).abs().max() > 1  # π_0 and π_1 are different policies
    sizes, steps = [len(p.answers) for p in PAIRS], batches(config, PAIRS, 3, {})
    with pytest.raises(AssertionError, match="ln 2"):  # π_2 trained against π_1
        train(config, policy, PROMPTS, PAIRS, list(second.split(sizes)), steps, tmp_path, 3)
    lora.load(policy.model, tmp_path / "iter_1" / "adapter")
    with pytest.raises(AssertionError, match="ln 2"):  # π_1 trained against π_0, as if the adapter were switched off
        train(config, policy, PROMPTS, PAIRS, list(first.split(sizes)), steps, tmp_path, 3)
    train(config, policy, PROMPTS, PAIRS, list(second.split(sizes)), steps, tmp_path, 3)  # against itself


def test_the_first_step_is_checked_by_hand_numbers():
    check_first_step(LN2 + 0.9e-4, 0.1, torch.float32)
    check_first_step(LN2 - 0.04, 0.1, torch.bfloat16)
    for dpo, dtype in ((LN2 + 2e-4, torch.float32), (LN2 - 2e-4, torch.float32), (LN2 + 0.06, torch.bfloat16)):
        with pytest.raises(AssertionError):
            check_first_step(dpo, 0.1, dtype)


def test_reference_logps_are_those_of_plain_sequences_and_are_computed_once(folder, reference, tmp_path, monkeypatch):
    policy = load_policy(folder, "float32", "cpu")
    path = tmp_path / "reference"
    found = reference_logps(replace(BASE, train_tokens=70), policy, PROMPTS, PAIRS, path)
    for p, values in zip(PAIRS, found):
        with torch.no_grad():
            plain = [plain_logps(reference, PROMPTS[p.question], list(a)).sum() for a in p.answers]
        torch.testing.assert_close(values, torch.stack(plain), atol=2e-4, rtol=1e-5)
    monkeypatch.setattr(codelutra, "answer_logps", None)  # a second call reads the file
    assert all(torch.equal(a, b) for a, b in zip(found, reference_logps(BASE, policy, PROMPTS, PAIRS, path)))


def test_a_loss_that_is_not_a_number_stops_with_one_sentence(folder, tmp_path, monkeypatch):
    bad = [torch.full((4,), math.inf) for _ in PAIRS]
    with pytest.raises(UserError, match="--lr"):
        gradients(folder, tmp_path, monkeypatch, BASE, reference=bad)


def test_no_pairs_at_all_stop_with_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no pairs"):
        codelutra.refine(BASE, None, PROMPTS, {}, [], tmp_path, 1)


# ---- the criterion without gold ----------------------------------------------------------------------------------------


def test_by_the_criterion_executable_a_text_that_is_no_query_is_not_right(spider):
    questions = data.load("spider", spider, "train")[0][:1]
    config = Config(data="spider", criterion="executable", gold="never", timeout=5.0)
    texts = {"SELECT 5": "correct", "SELECT x FROM y": "error", "": "wrong", "SELECT": "error", "-- no": "wrong"}
    texts |= {"EXPLAIN SELECT 5": "wrong"}
    with Verifier(1) as verifier:
        for text, expected in texts.items():
            answer = Answer(0, 0, (1,), text, -1.0, True)
            verdict = codelutra.outcome(config, codelutra.execute(config, questions[0], answer, verifier))
            assert verdict.verdict == expected, text


@pytest.mark.parametrize("criterion", ["match", "executable"])
def test_an_answer_that_reads_a_damaged_page_ends_no_run(tmp_path, criterion):
    question = Question(0, "bad", damaged(tmp_path / "bad.sqlite"), "?", "SELECT id FROM t")
    config = Config(data="spider", criterion=criterion, timeout=5.0)
    with Verifier(1) as verifier:
        for text, judged in (("SELECT name FROM lost", False), ("SELECT id FROM t", True)):
            answer = Answer(0, 0, (1,), text, -1.0, True)
            verdict = codelutra.outcome(config, codelutra.execute(config, question, answer, verifier))
            assert (verdict.verdict, verdict.judged) == ("correct" if judged else "error", judged)


@pytest.mark.parametrize("criterion, chosen", [("match", {"correct"}), ("executable", {"correct", "wrong"})])
def test_the_criterion_decides_which_verdicts_are_chosen(criterion, chosen):
    for name in VERDICTS:
        future = Future()
        future.set_result(Verdict(name, "why", 1.5))
        expected = Verdict("correct" if name in chosen else name, "why", 1.5)
        assert codelutra.outcome(Config(criterion=criterion), future) == expected


def test_no_training_question_left_is_one_sentence_and_no_file(spider, tmp_path):
    train, dev = (data.load("spider", spider, split)[0] for split in ("train", "dev"))
    splits = [replace(q, gold="SELECT x FROM nowhere") for q in train], train[:1], dev
    policy = SimpleNamespace(max_positions=512)
    with Verifier(1) as verifier, pytest.raises(UserError, match="no training question is left.*question 11 .*no such table"):
        choose_questions(Config(data="spider"), policy, splits, [], tmp_path, verifier)
    assert not list(tmp_path.iterdir())


class NoGold(Verifier):
    """A verifier that must not run a gold query of the questions in `forbidden`."""

    forbidden = ()

    def _gold(self, database, gold, timeout):
        assert gold not in self.forbidden
        return super()._gold(database, gold, timeout)


@pytest.mark.parametrize("flags, kept, counts", [
    ({}, [[0, 3], [5], [0, 1]], ["train: 2 questions", "validation: 1 questions"]),
    ({"keep_empty": True}, [[0, 1, 2, 3], [4, 5], [0, 1]], []),
    ({"criterion": "executable", "gold": "never"}, [[0, 1, 2, 3], [4, 5], [0, 1]], []),
])  # fmt: skip
def test_questions_whose_gold_gives_no_rows_are_counted_and_not_trained_on(spider, tokenizer, flags, kept, counts):
    train, dev = (data.load("spider", spider, split)[0] for split in ("train", "dev"))
    empty = {1: "SELECT name FROM owner WHERE id > 9", 2: "SELECT * FROM pet WHERE 0", 4: "SELECT id FROM owner LIMIT 0"}
    train = [replace(q, gold=empty.get(q.index, q.gold)) for q in train]
    splits = train[:4], train[4:6], [replace(dev[0], gold="SELECT 1 WHERE 0"), dev[1]]
    policy = SimpleNamespace(max_positions=4096, tokenizer=tokenizer)
    with NoGold(1) as verifier:
        if "criterion" in flags:
            verifier.forbidden = {q.gold for q in train[:4]}
        found = settings.fitting_questions(Config(data="spider", **flags), policy, splits, [], verifier)
    assert found["kept"] == kept
    assert [note.split(":")[0] + ":" + note.split(":")[1] for note in found["left out"]] == counts
    assert all("--keep-empty" in note for note in found["left out"])


def test_an_empty_result_is_one_by_the_official_preparation_and_numbers_are_not_empty(spider):
    database = data.load("spider", spider, "train")[0][0].database
    golds = {"SELECT name FROM owner WHERE id > = 9": True, "SELECT count(*) FROM owner WHERE id > 9": False,
             "SELECT NULL": False, "SELECT max(id) FROM owner WHERE id > 9": False}  # fmt: skip
    with Verifier(1) as verifier:
        assert {gold: verifier.gold_is_empty(SqlJob(database, gold, "")) for gold in golds} == golds
        with pytest.raises(GoldError):
            verifier.gold_is_empty(SqlJob(database, "SELECT x FROM nowhere", ""))


# ---- the whole loop ----------------------------------------------------------------------------------------------------

COMPARED = ("answers.jsonl", "reference.safetensors", "pairs.jsonl", "scores.json", "dev.jsonl", "validation.jsonl")


def command(folders, spider, run, *extra):
    return [
        "--model", folders["gpt2"], "--data", "spider", "--data-dir", str(spider), "--out", str(run), "--iterations", "2",
        "--answers", "4", "--pairs", "3", "--max-new", "12", "--batch-size", "6", "--validation", "2", "--min-gain", "-1",
        "--lr", "0.01", "--workers", "1", "--precision", "float32", "--timeout", "5", "--device", "cpu",
        "--batch-tokens", "150", "--train-tokens", "500", "--seed", "3", *extra,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(folders, spider, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "finished"
    codelutra.main(command(folders, spider, run))
    return run


@pytest.fixture
def again(folders, spider, finished, tmp_path):
    """`again(*flags)` runs the same command in `again.run`; `again.same()` compares its files with the finished run's."""

    def again(*flags):
        codelutra.main(command(folders, spider, again.run, *flags))

    def same():
        for t in (0, 1, 2):
            for name in (*COMPARED, "adapter/adapter_model.safetensors"):
                mine, theirs = again.run / f"iter_{t}" / name, finished / f"iter_{t}" / name
                assert mine.exists() == theirs.exists() and (t == 0 or mine.exists()), mine
                assert not mine.exists() or mine.read_bytes() == theirs.read_bytes(), mine
        assert (again.run / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()
        assert not list(again.run.rglob("*.part"))
        return True

    again.run, again.same, again.finished = tmp_path / "run", same, finished
    return again


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_loop_trains_on_gold_where_nothing_is_right(finished):
    for t in (1, 2):
        folder = finished / f"iter_{t}"
        summary = json.loads((folder / "pairs_summary.json").read_text())
        assert summary["questions"] == 10 and summary["answers"] == 40
        assert summary["pairs"] == 3 * (10 - summary.get("questions_without_wrong", 0)) and summary["questions_given_gold"] > 5
        rows = lines(folder / "train.jsonl")
        assert len(rows) == math.ceil(summary["pairs"] / 6)
        assert rows[0]["dpo"] == pytest.approx(LN2, abs=1e-4)
    first, second = (lines(finished / f"iter_{t}" / "train.jsonl")[0]["sft"] for t in (1, 2))
    assert second < first - 0.05
    one, two = (load_file(finished / f"iter_{t}" / "adapter" / "adapter_model.safetensors") for t in (1, 2))
    assert all(not torch.equal(one[k], two[k]) for k in one)


def test_answers_of_iteration_t_are_drawn_from_the_policy_before_by_seed_and_t(finished, folders, spider):
    kept = json.loads((finished / "questions.json").read_text())["kept"][0]
    questions = [q for q in data.load("spider", spider, "train")[0] if q.index in kept]
    policy = load_policy(folders["gpt2"], "float32", "cpu")
    lora.inject(policy.model, 8, 16, seed=3)
    for t, adapter in ((1, None), (2, finished / "iter_1" / "adapter")):
        if adapter:
            lora.load(policy.model, adapter)
        units = codelutra.sample(policy, questions, 4, 12, seed=3, iteration=t, batch_tokens=150)
        expected = {(a.question, a.sample): list(a.ids) for unit in units for a in unit}
        rows = [row for row in lines(finished / f"iter_{t}" / "answers.jsonl") if "unit" not in row]
        assert {(row["question"], row["sample"]): row["ids"] for row in rows} == expected and len(expected) == 40


def test_validation_questions_are_neither_trained_on_nor_the_dev_split(finished, spider):
    kept = json.loads((finished / "questions.json").read_text())["kept"]
    assert [len(k) for k in kept] == [10, 2, 6] and not set(kept[0]) & set(kept[1])
    assert {row["index"] for row in lines(finished / "iter_1" / "validation.jsonl")} == set(kept[1])
    assert {p["question"] for p in lines(finished / "iter_1" / "pairs.jsonl")} <= set(kept[0])


class Stop(Exception):
    pass


def stop_before(module, name, patch, when=lambda *args: True, after=False):
    original = getattr(module, name)

    def stopped(*args, **kwargs):
        if not when(*args):
            return original(*args, **kwargs)
        if after:
            original(*args, **kwargs)
        raise Stop

    patch.setattr(module, name, stopped)


def mid_units(patch):
    original = codelutra.sample

    def two(*args, **kwargs):
        for n, unit in enumerate(original(*args, **kwargs)):
            if n == 2:
                raise Stop
            yield unit

    patch.setattr(codelutra, "sample", two)


def test_a_run_stopped_at_every_boundary_ends_with_the_same_files(again, monkeypatch):
    at = lambda t, *names: lambda path, *_: path.parent.name == f"iter_{t}" and path.name in names  # noqa: E731
    stops = [lambda patch: stop_before(codelutra, "write", patch, at(0, "scores.json"))]
    for t in (1, 2):
        stops += [
            mid_units,
            lambda patch, t=t: stop_before(codelutra, "write", patch, at(t, "verdicts.jsonl")),
            lambda patch, t=t: stop_before(codelutra, "write", patch, at(t, "pairs.jsonl")),
            lambda patch: stop_before(codelutra, "reference_logps", patch, after=True),
            lambda patch: stop_before(codelutra, "train", patch, after=True),
            lambda patch: stop_before(lora, "save", patch, after=True),  # written, not yet renamed
            lambda patch, t=t: stop_before(codelutra, "score", patch, lambda *args, t=t: args[3].name == f"iter_{t}"),
            lambda patch, t=t: stop_before(codelutra, "write", patch, at(t, "scores.json")),
        ]
    for stop in stops:
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop(patch)
            again()
    again()
    assert again.same()


@pytest.mark.parametrize("stop, how", [(1, Stop), (2, Stop), (3, Stop), (2, KeyboardInterrupt)])
def test_a_run_stopped_within_an_epoch_goes_on_from_its_checkpoint(again, monkeypatch, stop, how):
    original, done = codelutra.add_gradients, []

    def counted(*args):
        if len(done) == stop:
            raise how
        done.append(args[-1])
        return original(*args)

    with monkeypatch.context() as patch, pytest.raises(how):
        patch.setattr(codelutra, "add_gradients", counted)
        again("--save-every", "1e-9" if how is Stop else "1e9")  # Ctrl-C writes a checkpoint of its own
    assert (again.run / "iter_1" / "checkpoint.pt").exists()
    first, stop = done, -1
    done = []
    monkeypatch.setattr(codelutra, "add_gradients", counted)
    again()
    assert not set(first) & set(done)  # no step was made twice
    assert again.same() and not list(again.run.rglob("checkpoint.pt"))


def test_a_gpu_without_memory_for_a_pack_takes_it_in_halves(again, monkeypatch, capsys):
    """The same gradients up to rounding: packs and their order change nothing else."""
    original, full = codelutra.pack_loss, []

    def pack_loss(*args):
        if len(args[-1]) > 1:
            full.append(len(args[-1]))
            raise torch.OutOfMemoryError
        return original(*args)

    monkeypatch.setattr(codelutra, "pack_loss", pack_loss)
    again("--iterations", "1")
    assert full and "out of GPU memory" in capsys.readouterr().out
    mine, theirs = (load_file(run / "iter_1/adapter/adapter_model.safetensors") for run in (again.run, again.finished))
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=1e-5)


def test_halves_keep_the_order_and_one_alone_is_an_error():
    def run(items):
        if len(items) > 2 or items == ["too large"]:
            raise torch.OutOfMemoryError
        return [item * 2 for item in items]

    assert halving(run, list(range(7))) == [0, 2, 4, 6, 8, 10, 12]
    with pytest.raises(UserError, match="one question does not fit"):
        halving(run, ["too large"])


@pytest.mark.parametrize("lost", [1, 2, 3, 4, 5], ids=lambda n: f"the last {n} stages")
def test_a_run_whose_later_files_are_gone_makes_them_again(again, finished, lost):
    shutil.copytree(finished, again.run)
    stages = ["answers.jsonl", "verdicts.jsonl", "pairs.jsonl", "adapter", "scores.json"]
    for name in stages[-lost:]:
        path = again.run / "iter_2" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again()
    assert again.same()


def test_a_torn_answers_file_is_cut_back_to_whole_units(again, finished, monkeypatch):
    raw = (finished / "iter_1" / "answers.jsonl").read_bytes()
    units = raw.count(UNIT_END.encode())
    assert units > 3
    ends = [n + len(UNIT_END) for n in range(len(raw)) if raw.startswith(UNIT_END.encode(), n)]
    drawn, original = [], codelutra.sample

    def counted(*args, **kwargs):
        for unit in original(*args, **kwargs):
            drawn.append(unit)
            yield unit

    monkeypatch.setattr(codelutra, "sample", counted)
    for place, whole in ((ends[1] + 150, 2), (ends[1] - 3, 1), (ends[2], 3), (40, 0), (0, 0)):
        shutil.rmtree(again.run, ignore_errors=True)
        shutil.copytree(finished, again.run)
        shutil.rmtree(again.run / "iter_1")
        (again.run / "iter_1").mkdir()
        (again.run / "iter_1" / "answers.part").write_bytes(raw[:place])
        drawn.clear()
        again("--iterations", "1")
        assert (again.run / "iter_1" / "answers.jsonl").read_bytes() == raw
        assert len(drawn) == units - whole


def test_answers_that_are_complete_are_not_drawn_again(again, finished, monkeypatch):
    shutil.copytree(finished, again.run)
    (again.run / "iter_2" / "verdicts.jsonl").unlink()
    drawn, original = [], codelutra.sample
    monkeypatch.setattr(codelutra, "sample", lambda *a, **k: (drawn.append(u) or u for u in original(*a, **k)))
    again()
    assert drawn == [] and again.same()


def test_a_finished_run_is_not_run_again(again, finished, monkeypatch):
    shutil.copytree(finished, again.run)
    for name in ("sample", "train", "evaluate", "reference_logps"):
        monkeypatch.setattr(codelutra, name, None)
    again()
    assert again.same()


@pytest.mark.parametrize("flag, value", [("lr", "0.02"), ("answers", "5"), ("seed", "4"), ("gold", "always"), ("limit", "5")])
def test_a_changed_setting_is_refused_by_name(again, finished, flag, value):
    shutil.copytree(finished, again.run)
    with pytest.raises(UserError, match=rf"made with {flag} = .*{value}"):
        again(f"--{flag}", value)


def test_another_number_of_iterations_or_workers_goes_on(again):
    again("--iterations", "1")
    again("--workers", "2")
    assert again.same()


def test_a_run_may_start_from_an_adapter_and_keeps_it(again, finished, tmp_path):
    shutil.copytree(finished / "iter_1/adapter", tmp_path / "start")
    again("--start", str(tmp_path / "start"), "--iterations", "1")
    for name in ("dev.jsonl", "validation.jsonl"):  # π_0 is the finished run's π_1
        assert (again.run / "iter_0" / name).read_bytes() == (finished / "iter_1" / name).read_bytes()
    assert lines(again.run / "iter_1/train.jsonl")[0]["dpo"] == pytest.approx(LN2, abs=1e-4)
    first = load_file(again.run / "iter_1/adapter/adapter_model.safetensors")
    shutil.rmtree(again.run / "iter_1")
    shutil.rmtree(tmp_path / "start")  # the run has its own
    again("--start", str(tmp_path / "start"), "--iterations", "1")
    again_ = load_file(again.run / "iter_1/adapter/adapter_model.safetensors")
    assert all(torch.equal(first[name], again_[name]) for name in first)


NO_START = [("none", (), "no readable adapter"), ("", ("--lora-rank", "4"), "made with --lora-rank 8")]


@pytest.mark.parametrize("start, extra, sentence", NO_START)
def test_an_adapter_that_a_run_cannot_start_from_is_one_sentence(again, finished, monkeypatch, start, extra, sentence):
    monkeypatch.setattr(codelutra, "load_policy", None)
    with pytest.raises(UserError, match=sentence):
        again("--start", str(finished / "iter_1/adapter" / start), *extra)
    assert not again.run.exists()


def test_where_memory_is_short_a_run_goes_on_with_less(again):
    again("--iterations", "1")
    again("--checkpointing", "--train-tokens", "100")
    two = [load_file(run / "iter_2/adapter/adapter_model.safetensors") for run in (again.run, again.finished)]
    for name in two[0]:
        torch.testing.assert_close(two[0][name], two[1][name], rtol=1e-3, atol=1e-4)


def test_a_run_keeps_the_fingerprint_of_every_version_of_the_code_that_it_was_made_with(again, monkeypatch, capsys):
    again("--iterations", "1")
    first = json.loads((again.run / "config.json").read_text())["code"]
    monkeypatch.setattr(settings, "fingerprint", lambda: "newer")
    again("--iterations", "1")
    again("--iterations", "1")
    assert len(first) == 1 and json.loads((again.run / "config.json").read_text())["code"] == [*first, "newer"]
    assert capsys.readouterr().out.count("the code has changed") == 1


def test_a_marginal_gain_stops_the_loop_and_the_last_of_the_best_is_named(again, capsys):
    again("--min-gain", "0.5")  # a random model stays at 0: no gain
    assert (again.run / "iter_1").exists() and not (again.run / "iter_2").exists()
    assert json.loads((again.run / "summary.json").read_text())["best"] == 1  # equal on validation: the later one
    assert "less than --min-gain" in capsys.readouterr().out


def test_fine_tuning_on_gold_draws_nothing_and_trains_on_the_gold_code_alone(folders, spider, tmp_path, capsys):
    argv = command(folders, spider, tmp_path / "run", "--gold", "only", "--objective", "sft", "--iterations", "1")
    at = argv.index("--answers")
    codelutra.main(argv[:at] + argv[at + 2 :])
    folder, tokenizer = tmp_path / "run" / "iter_1", load_tokenizer(folders["gpt2"])
    assert not (folder / "answers.jsonl").read_text() and not (folder / "verdicts.jsonl").read_text()
    gold = {q.index: list(data.code_ids(q.gold, tokenizer)) for q in data.load("spider", spider, "train")[0]}
    pairs = lines(folder / "pairs.jsonl")
    assert len(pairs) == 10 and all(p["answers"] == [gold[p["question"]]] and p["pairs"] == [[0, None]] * 3 for p in pairs)
    rows = lines(folder / "train.jsonl")
    assert len(rows) == 5 and all(row["loss"] == row["sft"] for row in rows) and rows[-1]["sft"] < rows[0]["sft"]
    shown = capsys.readouterr().out.split("\n")
    assert next(line for line in shown if line.startswith("1  ")).split()[1] == "30"  # no answers: the pairs come first
    report.main([str(tmp_path / "run")])


def test_a_data_set_without_questions_is_one_sentence(folders, spider, tmp_path, monkeypatch):
    monkeypatch.setattr(codelutra, "load_policy", None)
    shutil.copytree(spider, tmp_path / "data")
    (tmp_path / "data" / "train_spider.json").write_text("[]")
    with pytest.raises(UserError, match="train_spider.json has no question"):
        codelutra.main(command(folders, tmp_path / "data", tmp_path / "run"))


def test_every_problem_at_the_door_is_said_before_a_model_is_loaded(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(codelutra, "load_policy", None)
    argv = command(folders, tmp_path / "no-data", tmp_path / "run", "--model", str(tmp_path))
    with pytest.raises(UserError) as error:
        codelutra.main(argv)
    assert "train_spider.json is missing" in str(error.value) and "config.json" in str(error.value)
    assert not (tmp_path / "run").exists()


# ---- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        "--unknown 1", "--iter 3", "--answers 0", "--answers -3", "--answers two", "--pairs 0", "--lr 0", "--lr -1",
        "--lr nan", "--lr inf",
        "--beta 0", "--beta nan", "--batch-size 0", "--accumulation 0", "--iterations 0", "--max-new 0", "--lora-rank 0",
        "--temperature -0.5", "--top-p 0", "--top-p 1.5", "--limit -1", "--validation -1", "--eval-limit -1", "--lam -1",
        "--warmup -0.1", "--warmup 1.5", "--gold sometimes", "--criterion executable --gold always", "--precision int8",
        "--gold only --objective sft --answers 4",
        "--data nothing", "--objective ppo", "--sft-reduction max", "--timeout 0", "--clip 0", "--train-tokens 0",
        "--pairs-per-tree 0", "--seed -1", "--weight-decay -1", "--lora-alpha 0", "--max-length 0",
    ],
)  # fmt: skip
def test_a_bad_value_is_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(argv.split())
    assert stop.value.code == 2 and "error" in capsys.readouterr().err


def test_presets_are_defaults_that_a_flag_overrides():
    config = parse(["--data", "bird", "--beta", "0.5", "--device", "cpu"])
    assert (config.answers, config.pairs, config.lr, config.beta, config.out) == (16, 10, 5e-5, 0.5, "runs/bird-smollm2-seed0")
    assert parse(["--answers", "3", "--device", "cpu"]).answers == 3 != parse(["--device", "cpu"]).answers


def test_a_second_process_on_one_run_is_refused(folders, spider, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with codelutra.lock(run), pytest.raises(UserError, match="another process is working on"):
        codelutra.main(command(folders, spider, run))
    assert not (run / "config.json").exists()
    with codelutra.lock(run):
        pass


def test_a_run_folder_that_cannot_be_made_is_one_sentence(folders, spider, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Not a directory"):
        codelutra.main(command(folders, spider, tmp_path / "file" / "run"))


def test_commit_gives_a_name_to_whole_files_and_folders(tmp_path):
    (tmp_path / "a.part").mkdir()
    (tmp_path / "a.part" / "x").write_text("x")
    codelutra.commit(tmp_path / "a.part", tmp_path / "a")
    codelutra.write(tmp_path / "b", "text")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"] and (tmp_path / "a" / "x").read_text() == "x"
