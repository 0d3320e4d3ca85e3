"""TensorBoard's curves: what its own reader finds in the folder of a run that was stopped and resumed."""

import json

import pytest
from conftest import Stop, lines, stop_before
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import codelutra
import events
import stages
from cli import UserError

LOGGED = {
    "loss", "sft", "dpo", "lr", "grad_norm", "margin", "preferred", "chosen_logp", "chosen_logp_per_token",
    "rejected_logp", "rejected_logp_per_token", "chosen_logratio", "rejected_logratio",
}  # fmt: skip


def read(run):
    """{tag: [(step, value), …]} of all of a run's event files."""
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_a_run_that_was_resumed_has_every_step_once(again, monkeypatch):
    with monkeypatch.context() as patch:
        third = lambda checkpoint, row: "iter_2" in str(checkpoint.log) and row["step"] == 2  # noqa: E731
        stop_before(stages.Checkpoint, "step", patch, third)
        with pytest.raises(Stop):
            again("--tensorboard")
    rows = lines(again.run / "iter_1" / "train.jsonl")
    stopped = read(again.run)  # written while it trained: iteration 1, and two steps of iteration 2
    assert [step for step, _ in stopped["train/loss"]] == list(range(len(rows) + 2))
    again("--tensorboard")
    assert again.same()
    rows += lines(again.run / "iter_2" / "train.jsonl")
    found = read(again.run)
    assert {tag.removeprefix("train/") for tag in found if tag.startswith("train/")} == LOGGED
    for name in LOGGED:
        expected = [pytest.approx(row[name], rel=1e-6) for row in rows]
        assert found[f"train/{name}"] == list(enumerate(expected))
    scores = [json.loads((again.run / f"iter_{t}" / "scores.json").read_text()) for t in range(3)]
    for split in ("validation", "dev"):
        for name in ("ex", "em", "executable"):
            values = [pytest.approx(score[split][name], rel=1e-6) for score in scores]
            assert found[f"scores/{split} {name}"] == list(enumerate(values))


def test_without_the_package_it_is_one_sentence(again, monkeypatch):
    monkeypatch.setattr(events, "find_spec", lambda name: None)
    monkeypatch.setattr(codelutra, "load_policy", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        again("--tensorboard")
    assert not again.run.exists()
