"""A run's folder: what is there is read, what is missing or torn made again, what differs refused by name."""

import json
import shutil
from collections import Counter

import pytest
import torch
from conftest import command, never

import codelutra
import run_folder
from cli import UserError
from events import Events
from run_folder import check_settings, commit, lock, write, write_settings
from settings import parse
from stages import BATCH_END, Checkpoint, Run


@pytest.mark.parametrize("lost", [1, 2, 3, 4, 5], ids=lambda n: f"the last {n} stages")
def test_a_run_whose_later_files_are_gone_makes_them_again(again, finished, lost):
    shutil.copytree(finished, again.run)
    stages = ["answers.jsonl", "verdicts.jsonl", "pairs.jsonl", "adapter", "scores.json"]
    for name in stages[-lost:]:
        path = again.run / "iter_2" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again()
    assert again.same()


def test_a_torn_answers_file_is_cut_back_to_whole_batches(again, finished, monkeypatch):
    raw = (finished / "iter_1" / "answers.jsonl").read_bytes()
    batches = raw.count(BATCH_END.encode())
    assert batches > 3
    ends = [n + len(BATCH_END) for n in range(len(raw)) if raw.startswith(BATCH_END.encode(), n)]
    drawn, original = [], codelutra.sample

    def counted(*args, **kwargs):
        for batch in original(*args, **kwargs):
            drawn.append(batch)
            yield batch

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
        assert len(drawn) == batches - whole


def test_no_pairs_at_all_stop_with_one_sentence(tmp_path):
    for make in (lambda: ([], Counter(pairs=0)), never):  # a run that is resumed makes them no second time
        with pytest.raises(UserError, match="iteration 1 has no pairs"):
            Run(tmp_path).pairs(1, make)


def test_a_checkpoint_holds_the_steps_as_they_are_in_train_jsonl(tmp_path):
    """So that a version of the code goes on from the checkpoint of another."""
    checkpoint, applied = Checkpoint(tmp_path, Events(tmp_path, False)), []
    rows = [{"step": 0, "loss": 1 / 3}, {"step": 1, "loss": float("inf")}]
    for row in rows:
        checkpoint.step(row)
    text = (tmp_path / "train.jsonl").read_text()
    checkpoint.save({"adapter": [torch.ones(2)]}, rows)
    checkpoint.step({"step": 2})  # after the last checkpoint: made again
    assert torch.load(tmp_path / "checkpoint.pt")["log"] == text.splitlines(True)
    assert checkpoint.load(applied.append) == rows
    assert (tmp_path / "train.jsonl").read_text() == text and applied[0]["adapter"][0].equal(torch.ones(2))


@pytest.mark.parametrize(
    "flag, value", [("lr", "0.02"), ("answers", "5"), ("seed", "4"), ("gold", "always"), ("limit", "5")]
)
def test_a_changed_setting_is_refused_by_name(again, finished, flag, value):
    shutil.copytree(finished, again.run)
    with pytest.raises(UserError, match=rf"made with {flag} = .*{value}"):
        again(f"--{flag}", value)


def test_a_run_that_draws_nothing_has_no_number_of_answers(folders, spider, tmp_path):
    """Runs that were begun at commit 1b499ae and before say 0."""
    argv = command(folders, spider, tmp_path / "run", "--gold", "only", "--objective", "sft")
    at = argv.index("--answers")
    config = parse(argv[:at] + argv[at + 2 :])
    (tmp_path / "run").mkdir()
    write_settings(config, tmp_path / "run", "27 Nov 2026")
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"answers": 0}))
    check_settings(config, tmp_path / "run")
    with pytest.raises(UserError, match="made with answers = 0, this command has 4"):
        check_settings(parse(argv[:-4]), tmp_path / "run")


def test_another_number_of_iterations_or_workers_goes_on(again):
    again("--iterations", "1")
    again("--workers", "2")
    assert again.same()


def test_a_run_keeps_the_fingerprint_of_every_version_of_the_code_that_it_was_made_with(
    again, monkeypatch, capsys
):
    again("--iterations", "1")
    first = json.loads((again.run / "config.json").read_text())["code"]
    monkeypatch.setattr(run_folder, "fingerprint", lambda: "newer")
    again("--iterations", "1")
    again("--iterations", "1")
    now = json.loads((again.run / "config.json").read_text())["code"]
    assert len(first) == 1 and now == [*first, "newer"]
    assert capsys.readouterr().out.count("the code has changed") == 1


def test_a_second_process_on_one_run_is_refused(folders, spider, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with lock(run), pytest.raises(UserError, match="another process is working on"):
        codelutra.main(command(folders, spider, run))
    assert not (run / "config.json").exists()
    with lock(run):
        pass


def test_a_run_folder_that_cannot_be_made_is_one_sentence(folders, spider, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Not a directory"):
        codelutra.main(command(folders, spider, tmp_path / "file" / "run"))


def test_commit_gives_a_name_to_whole_files_and_folders(tmp_path):
    (tmp_path / "a.part").mkdir()
    (tmp_path / "a.part" / "x").write_text("x")
    commit(tmp_path / "a.part", tmp_path / "a")
    write(tmp_path / "b", "text")
    assert (
        sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"] and (tmp_path / "a" / "x").read_text() == "x"
    )
