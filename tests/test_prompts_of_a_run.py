"""A run's prompts are part of its fixed data: its first day's date, the same tokens when it is resumed."""

import json
import shutil
from pathlib import Path

import pytest

import codelutra
import policy
import refine
from cli import UserError

DATED = "{{ strftime_now('%d %b %Y') }}\n{{ messages[0]['content'] }}\nSQL:\n"


class Stop(BaseException):
    pass


@pytest.fixture
def dated(folders, spider, tmp_path):
    """`dated(run, day, *flags)` makes a run on that day, with a model whose chat template prints the date."""
    model = tmp_path / "model"
    shutil.copytree(folders["gpt2"], model)
    (model / "chat_template.jinja").write_text(DATED)

    def dated(run, day, *flags):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(policy, "today", lambda: day)
            codelutra.main([
                "--model", str(model), "--data", "spider", "--data-dir", str(spider), "--out", str(run),
                "--iterations", "1", "--answers", "3", "--pairs", "2", "--max-new", "8", "--batch-size", "4",
                "--validation", "2", "--lr", "0.01", "--workers", "1", "--precision", "float32",
                "--device", "cpu", "--limit", "6", *flags,
            ])  # fmt: skip

    dated.model = model
    return dated


def adapter(run: Path) -> bytes:
    return (run / "iter_1" / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("place", ["before training", "inside the epoch"])
def test_a_run_that_is_resumed_on_another_day_keeps_the_prompts_of_its_first_day(
    dated, tmp_path, monkeypatch, place
):
    dated(tmp_path / "whole", "30 Nov 2026")
    original, steps = refine.add_gradients, []

    def stopped(*arguments):
        if len(steps) == (0 if place == "before training" else 2):
            raise Stop
        steps.append(1)
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(refine, "add_gradients", stopped)
        dated(tmp_path / "stopped", "30 Nov 2026", "--save-every", "1e-9")
    dated(tmp_path / "stopped", "01 Dec 2026")
    assert adapter(tmp_path / "stopped") == adapter(tmp_path / "whole")
    assert json.loads((tmp_path / "stopped" / "config.json").read_text())["day"] == "30 Nov 2026"
    dated(tmp_path / "later", "01 Dec 2026")
    assert adapter(tmp_path / "later") != adapter(tmp_path / "whole")  # the date does reach the prompts


def test_a_changed_template_is_refused_by_name(dated, tmp_path):
    dated(tmp_path / "run", "30 Nov 2026")
    before = adapter(tmp_path / "run")
    (dated.model / "chat_template.jinja").write_text(DATED.replace("SQL:", "Query:"))
    with pytest.raises(
        UserError, match="the prompts of .*run have changed since it was begun .*chat template"
    ):
        dated(tmp_path / "run", "30 Nov 2026")
    assert adapter(tmp_path / "run") == before
    (dated.model / "chat_template.jinja").write_text(DATED)
    dated(tmp_path / "run", "30 Nov 2026")  # as it was: it is read, nothing is made again
