"""The whole loop on a tiny GPT-2: stopped anywhere, it ends the same; which verdicts it chooses; errors."""

import json
import math
import re
import shutil
from concurrent.futures import Future

import pytest
import torch
from conftest import Stop, command, lines, never, stop_before
from safetensors.torch import load_file
from test_verify_sql import damaged

import codelutra
import data
import lora
import prompts
import refine
import report
import run_folder
import stages
from cli import UserError
from codelutra import Execution
from data import Answer, Question
from policy import load_policy, load_tokenizer
from sample import SamplingParams
from settings import Config
from verify import VERDICTS, Verdict, Verifier

LN2 = math.log(2)

# ---- the criterion without gold ----------------------------------------------------------------------------


def test_by_the_criterion_executable_a_text_that_is_no_query_is_not_right(spider):
    questions = data.load("spider", spider, "train")[0][:1]
    config = Config(data="spider", criterion="executable", gold="never", timeout=5.0)
    texts = {
        "SELECT 5": "correct",
        "SELECT x FROM y": "error",
        "": "wrong",
        "SELECT": "error",
        "-- no": "wrong",
    }
    texts |= {"EXPLAIN SELECT 5": "wrong"}
    with Verifier(1) as verifier:
        execution = Execution(config, questions, verifier)
        execution.start([Answer(0, 0, (1,), text, -1.0, True) for text in texts])
        assert dict(zip(texts, (v.verdict for v in execution.verdicts()), strict=True)) == texts


@pytest.mark.parametrize("criterion", ["match", "executable"])
def test_an_answer_that_reads_a_damaged_page_ends_no_run(tmp_path, criterion):
    question = Question(0, "bad", damaged(tmp_path / "bad.sqlite"), "?", "SELECT id FROM t")
    config = Config(data="spider", criterion=criterion, timeout=5.0)
    with Verifier(1) as verifier:
        execution = Execution(config, [question], verifier)
        for text in ("SELECT name FROM lost", "SELECT id FROM t"):  # in two batches
            execution.start([Answer(0, 0, (1,), text, -1.0, True)])
        assert [(v.verdict, v.judged) for v in execution.verdicts()] == [("error", False), ("correct", True)]


@pytest.mark.parametrize("criterion, chosen", [("match", {"correct"}), ("executable", {"correct", "wrong"})])
def test_the_criterion_decides_which_verdicts_are_chosen(criterion, chosen):
    for name in VERDICTS:
        future = Future()
        future.set_result(Verdict(name, "why", 1.5))
        expected = Verdict("correct" if name in chosen else name, "why", 1.5)
        assert Execution(Config(criterion=criterion), [], None)._verdict(future) == expected


# ---- the whole loop ----------------------------------------------------------------------------------------


def test_the_loop_trains_on_gold_where_nothing_is_right(finished):
    for t in (1, 2):
        folder = finished / f"iter_{t}"
        summary = json.loads((folder / "pairs_summary.json").read_text())
        assert summary["questions"] == 10 and summary["answers"] == 40
        assert (
            summary["pairs"] == 3 * (10 - summary.get("questions_without_wrong", 0))
            and summary["questions_given_gold"] > 5
        )
        rows = lines(folder / "train.jsonl")
        assert len(rows) == math.ceil(summary["pairs"] / 6)
        assert rows[0]["dpo"] == pytest.approx(LN2, abs=1e-4)
    first, second = (lines(finished / f"iter_{t}" / "train.jsonl")[0]["sft"] for t in (1, 2))
    assert second < first - 0.05
    one, two = (load_file(finished / f"iter_{t}" / "adapter" / "adapter_model.safetensors") for t in (1, 2))
    assert all(not torch.equal(one[k], two[k]) for k in one)


def test_an_adapter_names_its_base_model_as_peft_does(finished, folders):
    config = json.loads((finished / "iter_1" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == folders["gpt2"]


def test_answers_of_iteration_t_are_drawn_from_the_policy_before_by_seed_and_t(finished, folders, spider):
    kept = json.loads((finished / "questions.json").read_text())["kept"][0]
    questions = [q for q in data.load("spider", spider, "train")[0] if q.index in kept]
    policy = load_policy(folders["gpt2"], "float32", "cpu")
    lora.inject(policy.model, 8, 16, seed=3)
    for t, adapter in ((1, None), (2, finished / "iter_1" / "adapter")):
        if adapter:
            lora.load(policy.model, adapter)
        drawn = codelutra.sample(
            policy, questions, SamplingParams(4, 12, seed=3, iteration=t, batch_tokens=150)
        )
        expected = {(a.question, a.sample): list(a.ids) for batch in drawn for a in batch}
        rows = [row for row in lines(finished / f"iter_{t}" / "answers.jsonl") if "unit" not in row]
        assert {(row["question"], row["sample"]): row["ids"] for row in rows} == expected
        assert len(expected) == 40


def test_validation_questions_are_neither_trained_on_nor_the_dev_split(finished, spider):
    kept = json.loads((finished / "questions.json").read_text())["kept"]
    assert [len(k) for k in kept] == [10, 2, 6] and not set(kept[0]) & set(kept[1])
    assert {row["index"] for row in lines(finished / "iter_1" / "validation.jsonl")} == set(kept[1])
    assert {p["question"] for p in lines(finished / "iter_1" / "pairs.jsonl")} <= set(kept[0])


def after_two_batches(patch):
    original = codelutra.sample

    def two(*args, **kwargs):
        for n, batch in enumerate(original(*args, **kwargs)):
            if n == 2:
                raise Stop
            yield batch

    patch.setattr(codelutra, "sample", two)


def test_a_run_stopped_at_every_boundary_ends_with_the_same_files(again, monkeypatch):
    def named(module, t, name):
        """Stop where a file has been written, and has not got its name yet."""
        when = lambda _, path: path.parent.name == f"iter_{t}" and path.name == name  # noqa: E731
        return lambda patch: stop_before(module, "commit", patch, when)

    stops = [named(stages, 0, "dev.jsonl"), named(run_folder, 0, "scores.json")]
    for t in (1, 2):
        stops += [
            after_two_batches,
            named(run_folder, t, "verdicts.jsonl"),
            named(run_folder, t, "pairs_summary.json"),
            named(run_folder, t, "pairs.jsonl"),
            named(run_folder, t, "reference.safetensors"),
            lambda patch: stop_before(codelutra, "refine", patch),  # the reference is there
            lambda patch: stop_before(codelutra, "refine", patch, after=True),
            lambda patch: stop_before(lora, "save", patch, after=True),
            named(run_folder, t, "adapter"),
            lambda patch, t=t: stop_before(codelutra, "score", patch, lambda *args, t=t: args[-1] == t),
            named(stages, t, "validation.jsonl"),
            named(run_folder, t, "scores.json"),
        ]
    for stop in stops:
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop(patch)
            again()
    again()
    assert again.same()


@pytest.mark.parametrize("stop, how", [(1, Stop), (2, Stop), (3, Stop), (2, KeyboardInterrupt)])
def test_a_run_stopped_within_an_epoch_goes_on_from_its_checkpoint(again, monkeypatch, stop, how):
    original, done = refine.add_gradients, []

    def counted(*args):
        if len(done) == stop:
            raise how
        done.append(args[-1])
        return original(*args)

    with monkeypatch.context() as patch, pytest.raises(how):
        patch.setattr(refine, "add_gradients", counted)
        again("--save-every", "1e-9" if how is Stop else "1e9")  # Ctrl-C writes a checkpoint of its own
    assert (again.run / "iter_1" / "checkpoint.pt").exists()
    first, stop = done, -1
    done = []
    monkeypatch.setattr(refine, "add_gradients", counted)
    again()
    assert not set(first) & set(done)  # no step was made twice
    assert again.same() and not list(again.run.rglob("checkpoint.pt"))


def test_a_gpu_without_memory_for_a_micro_batch_takes_it_in_halves(again, monkeypatch, capsys):
    """The same gradients up to rounding: micro-batches and their order change nothing else."""
    original, full = refine.batch_loss, []

    def batch_loss(*args):
        if len(args[-1]) > 1:
            full.append(len(args[-1]))
            raise torch.OutOfMemoryError
        return original(*args)

    monkeypatch.setattr(refine, "batch_loss", batch_loss)
    again("--iterations", "1")
    assert full and "out of GPU memory" in capsys.readouterr().out
    mine, theirs = (
        load_file(run / "iter_1/adapter/adapter_model.safetensors") for run in (again.run, again.finished)
    )
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=1e-5)


def test_answers_that_are_complete_are_not_drawn_again(again, finished, monkeypatch):
    shutil.copytree(finished, again.run)
    (again.run / "iter_2" / "verdicts.jsonl").unlink()
    drawn, original = [], codelutra.sample
    monkeypatch.setattr(
        codelutra, "sample", lambda *a, **k: (drawn.append(b) or b for b in original(*a, **k))
    )
    again()
    assert drawn == [] and again.same()


def test_a_finished_run_is_not_run_again(again, finished, monkeypatch):
    shutil.copytree(finished, again.run)
    for name in ("sample", "refine", "evaluate", "reference_logps", "make_pairs"):
        monkeypatch.setattr(codelutra, name, never)
    again()
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


NO_START = [("none", (), "there is no folder"), ("", ("--lora-rank", "4"), "made with --lora-rank 8")]


@pytest.mark.parametrize("start, extra, sentence", NO_START)
def test_an_adapter_that_a_run_cannot_start_from_is_one_sentence(
    again, finished, monkeypatch, start, extra, sentence
):
    monkeypatch.setattr(codelutra, "load_policy", None)
    with pytest.raises(UserError, match=sentence):
        again("--start", str(finished / "iter_1/adapter" / start), *extra)
    assert not again.run.exists()


def test_the_adapter_of_another_model_is_refused_by_its_own_path_before_anything_is_written(
    again, finished, folders, monkeypatch
):
    monkeypatch.setattr(codelutra, "load_policy", None)
    start = str(finished / "iter_1/adapter")
    with pytest.raises(UserError, match=f"the adapter in {re.escape(start)} was made for another model"):
        again("--model", folders["llama"], "--start", start)
    assert not again.run.exists()


def test_where_memory_is_short_a_run_goes_on_with_less(again):
    again("--iterations", "1")
    again("--checkpointing", "--train-tokens", "100")
    two = [load_file(run / "iter_2/adapter/adapter_model.safetensors") for run in (again.run, again.finished)]
    for name in two[0]:
        torch.testing.assert_close(two[0][name], two[1][name], rtol=1e-3, atol=1e-4)


def test_a_marginal_gain_stops_the_loop_and_the_last_of_the_best_is_named(again, capsys):
    again("--min-gain", "0.5")  # a random model stays at 0: no gain
    assert (again.run / "iter_1").exists() and not (again.run / "iter_2").exists()
    assert json.loads((again.run / "summary.json").read_text())["best"] == 1
    assert "less than --min-gain" in capsys.readouterr().out


def test_fine_tuning_on_gold_draws_nothing_and_trains_on_the_gold_code_alone(
    folders, spider, tmp_path, capsys
):
    argv = command(
        folders, spider, tmp_path / "run", "--gold", "only", "--objective", "sft", "--iterations", "1"
    )
    at = argv.index("--answers")
    codelutra.main(argv[:at] + argv[at + 2 :])
    folder, tokenizer = tmp_path / "run" / "iter_1", load_tokenizer(folders["gpt2"])
    assert not (folder / "answers.jsonl").exists() and not (folder / "verdicts.jsonl").exists()
    gold = {
        q.index: list(prompts.code_ids(q.gold, tokenizer)) for q in data.load("spider", spider, "train")[0]
    }
    pairs = lines(folder / "pairs.jsonl")
    assert len(pairs) == 10 and all(
        p["answers"] == [gold[p["question"]]] and p["pairs"] == [[0, None]] * 3 for p in pairs
    )
    rows = lines(folder / "train.jsonl")
    assert (
        len(rows) == 5 and all(row["loss"] == row["sft"] for row in rows) and rows[-1]["sft"] < rows[0]["sft"]
    )
    shown = capsys.readouterr().out.split("\n")
    # no answers: the pairs come first
    assert next(line for line in shown if line.startswith("1  ")).split()[1] == "30"
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
