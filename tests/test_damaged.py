"""What a crash, a full disk or a hand leave behind: one sentence that names it, never wrong results."""

import json
import re
import shutil
import sqlite3
from contextlib import closing

import pytest
import torch
from conftest import Stop, command, never, stop_before
from transformers import AutoModelForCausalLM

import analysis
import cli
import codelutra
import data
import eval as evaluation
import lora
import prompts
import questions
import report
from cli import UserError
from decode import pick
from settings import Config, parse
from stages import Checkpoint

READ = (
    "questions.json", "iter_0/scores.json", "iter_1/answers.jsonl", "iter_1/verdicts.jsonl",
    "iter_1/pairs.jsonl", "iter_2/pairs_summary.json", "iter_2/scores.json",
)  # fmt: skip


@pytest.fixture
def copy(again):
    shutil.copytree(again.finished, again.run)
    return again


@pytest.mark.parametrize("name", READ)
def test_a_damaged_file_of_a_run_is_named(copy, monkeypatch, name):
    path = copy.run / name
    whole = path.read_bytes()
    monkeypatch.setattr(codelutra, "refine", never)
    for damage in (b"", whole[: len(whole) // 2], b"\xff\x00garbage", b"null\n", b"{}", b"\0" * len(whole)):
        path.write_bytes(damage)
        with pytest.raises(
            UserError, match=f"{path} is damaged .*: delete it, and the same command makes it again"
        ):
            copy()
    path.unlink()
    copy()
    assert copy.same() and (path.read_bytes() == whole or "verdicts" in name)  # these hold times


@pytest.mark.parametrize("name", ["iter_1/answers.jsonl", "iter_2/verdicts.jsonl", "iter_2/pairs.jsonl"])
def test_a_file_that_has_lost_a_line_is_named(copy, name):
    path = copy.run / name
    path.write_text("".join(path.read_text().splitlines(True)[1:]))
    with pytest.raises(UserError, match="is damaged"):
        copy()


def test_a_damaged_reference_or_checkpoint_is_named_and_can_be_deleted(copy, monkeypatch):
    shutil.rmtree(copy.run / "iter_2" / "adapter")
    stop_at_the_second_checkpoint = lambda *_: (copy.run / "iter_2/checkpoint.pt").exists()  # noqa: E731
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_before(Checkpoint, "save", patch, stop_at_the_second_checkpoint)
        copy("--save-every", "1e-9")
    for name in ("checkpoint.pt", "reference.safetensors"):
        path = copy.run / "iter_2" / name
        whole = path.read_bytes()
        for damage in (b"", b"garbage", whole[:100], whole[: len(whole) // 2], b"\0" * len(whole)):
            path.write_bytes(damage)
            with pytest.raises(UserError, match=f"{path} is damaged"):
                copy()
        path.unlink()
    copy()
    assert copy.same()


def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(copy, monkeypatch):
    shutil.rmtree(copy.run / "iter_2" / "adapter")
    (copy.run / "iter_2" / "checkpoint.pt").write_bytes(b"")
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError("no memory")):

        def fails(*_, error=error, **__):
            raise error

        monkeypatch.setattr(torch, "load", fails)
        with pytest.raises(type(error), match=str(error)):
            copy()


def test_times_that_are_gone_or_damaged_stop_nothing(copy):
    (copy.run / "iter_0" / "seconds.json").unlink()
    (copy.run / "iter_1" / "seconds.json").write_text("{")
    (copy.run / "iter_2" / "seconds.json").write_text('{"score": null}')
    copy()
    assert copy.same()


def test_a_run_without_its_settings_is_refused(copy):
    (copy.run / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json"):
        copy("--lr", "0.5")


@pytest.mark.parametrize("change", ["order", "fewer held-out", "gold", "schema", "rows"])
def test_data_that_have_changed_are_noticed_before_a_model_is_loaded(
    copy, folders, spider, tmp_path, monkeypatch, change
):
    folder = tmp_path / "data"
    shutil.copytree(spider, folder)
    file = folder / ("dev.json" if "held" in change else "train_spider.json")
    rows = json.loads(file.read_text())
    if change == "gold":
        rows[0]["query"] += " LIMIT 3"
    for path in folder.rglob("*.sqlite"):
        with closing(sqlite3.connect(path)) as connection, connection:
            if change == "schema":
                connection.execute("CREATE TABLE one_more (x)")
            elif change == "rows":
                [table] = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchone()
                width = len(connection.execute(f"SELECT * FROM {table}").description)
                for n in range(1000, 2000):
                    connection.execute(f"INSERT INTO {table} VALUES ({', '.join([str(n)] * width)})")
    file.write_text(json.dumps(rows[::-1] if change == "order" else rows[:-1] if "held" in change else rows))
    config = copy.run / "config.json"
    config.write_text(config.read_text().replace(str(spider), str(folder)))
    monkeypatch.setattr(codelutra, "load_policy", None)
    with pytest.raises(UserError, match="the data have changed"):
        codelutra.main(command(folders, folder, copy.run))


def test_a_run_begun_before_its_data_were_remembered_goes_on(copy):
    path = copy.run / "questions.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "digest"}))
    copy()
    assert copy.same()


@pytest.mark.parametrize("name", ["a#b", "a?b", "per%20cent", "ü \\ä", "100%", "a&mode=rwc", "\udcff"])
def test_any_character_may_be_in_the_name_of_the_data(spider, tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(spider, folder)
    before = sorted(tmp_path.iterdir())
    (mine, _), (theirs, _) = (data.load("spider", f, "train") for f in (folder, spider))
    assert [prompts.prompt(q) for q in mine] == [prompts.prompt(q) for q in theirs]
    assert sorted(tmp_path.iterdir()) == before


TABLE = {
    "db_id": "pets",
    "table_names_original": ["t"],
    "column_names_original": [[-1, "*"], [0, "x"]],
    "foreign_keys": [],
}
TABLES = [json.dumps([TABLE | change]) for change in (
    {"foreign_keys": 7}, {"foreign_keys": [[1, 9]]}, {"column_names_original": [[5, "id"]]},
    {"table_names_original": None}, {"table_names_original": [1]}, {"db_id": ["x"]},
)]  # fmt: skip


@pytest.mark.parametrize("text", ["", "{", "{}", "7", "null", "[" * 100_000])
def test_tables_that_are_no_list_are_noticed_before_a_model_is_loaded(
    folders, spider, tmp_path, monkeypatch, text
):
    folder = tmp_path / "data"
    shutil.copytree(spider, folder)
    (folder / "tables.json").write_text(text)
    monkeypatch.setattr(codelutra, "load_policy", None)
    with pytest.raises(UserError, match="tables.json is (not|empty)"):
        codelutra.main(command(folders, folder, tmp_path / "run"))


@pytest.mark.parametrize("text", ['[{"a": 1}]', "[[1]]", "[null]", '[{"db_id": "pets"}]', *TABLES])
def test_an_entry_of_the_tables_that_em_cannot_read_is_left_out_with_a_note(spider, tmp_path, text):
    folder = tmp_path / "data"
    shutil.copytree(spider, folder)
    good = TABLE | {"db_id": "books"}
    (folder / "tables.json").write_text(json.dumps([*json.loads(text), good]))
    found, notes = data.tables("spider", folder, "dev")
    assert found == {"books": good}
    named = r"entry 0, 'pets'$" if '"pets"' in text else r"entry 0$"
    assert len(notes) == 1 and re.search(rf"tables\.json what EM cannot read: {named}", notes[0])
    splits, left_out = questions.load(Config(data="spider", data_dir=str(folder), validation=2))
    assert left_out == notes and splits.train and splits.dev


def test_a_list_without_tables_is_no_fault(spider, tmp_path):
    shutil.copytree(spider, tmp_path / "data")
    (tmp_path / "data" / "tables.json").write_text("[]")
    assert data.tables("spider", tmp_path / "data", "dev") == ({}, [])


def test_a_question_that_cannot_be_written_is_refused(spider, tmp_path):
    shutil.copytree(spider, tmp_path / "data")
    file = tmp_path / "data" / "dev.json"
    rows = json.loads(file.read_text())
    rows[0]["question"] = "\ud800"
    file.write_text(json.dumps(rows))
    with pytest.raises(UserError, match="dev.json, row 0, counted from 0: .*surrogates not allowed"):
        data.load("spider", tmp_path / "data", "dev")


@pytest.mark.parametrize("rows, words", [
    ([{"index": 0, "answer": "\ud800"}], "line 1"), ([{"index": True, "answer": "x"}], "line 1"),
    ([{"index": 0, "answer": "x"}] * 2, "line 2: question 0 has an answer already"),
])  # fmt: skip
def test_predictions_that_cannot_be_meant_are_refused(spider, tmp_path, rows, words):
    file = tmp_path / "predictions"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=words):
        evaluation.main(["--data", "spider", "--data-dir", str(spider), "--predictions", str(file)])


def test_an_output_that_is_no_file_is_noticed_first_and_a_full_one_loses_no_score(spider, tmp_path, capsys):
    golds = [row["query"] for row in json.loads((spider / "dev.json").read_text())]
    (tmp_path / "golds").write_text("\n".join(golds) + "\n")
    argv = ["--data", "spider", "--data-dir", str(spider), "--predictions", str(tmp_path / "golds"), "--out"]
    for name in (str(tmp_path), "", str(tmp_path / "none" / "x")):
        with pytest.raises(UserError, match="cannot be a file's name"):
            evaluation.main([*argv, name])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: evaluation.main([*argv, "/dev/full"]))
    shown = capsys.readouterr()
    assert (
        stop.value.code == 2
        and shown.err.count("\n") == 1 + shown.err.count("left out")
        and "No space left" in shown.err
    )
    assert json.loads(shown.out.splitlines()[-1])["ex"] == 1


@pytest.mark.parametrize("change", [
    {"use_rslora": True}, {"use_dora": True}, {"alpha_pattern": {"x": 1}}, {"peft_type": "IA3"}, {"r": 0},
    {"r": "8"}, {"r": None}, {"r": True}, {"lora_alpha": None}, {"lora_alpha": "16"},
    {"lora_alpha": float("inf")},
])  # fmt: skip
def test_an_adapter_of_another_kind_is_refused(copy, change):
    folder = copy.run / "iter_2" / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match="is not plain LoRA|r must be a number"):
        lora.read(folder)


@pytest.mark.parametrize("plain, settings", [
    (True, {}), (True, {"init_lora_weights": "gaussian"}), (True, {"lora_dropout": 0.1}),
    (True, {"bias": "lora_only"}), (False, {"use_rslora": True}), (False, {"use_dora": True}),
    (False, {"init_lora_weights": "pissa"}), (False, {"init_lora_weights": "olora"}),
    (False, {"alora_invocation_tokens": [5, 6]}), (False, {"rank_pattern": {"q_proj": 2}}),
])  # fmt: skip
def test_of_pefts_own_adapters_those_are_refused_that_compute_something_else(
    folders, tmp_path, plain, settings
):
    peft = pytest.importorskip("peft")
    ids, load = torch.tensor([[5, 6, 7, 8]]), AutoModelForCausalLM.from_pretrained
    torch.manual_seed(0)
    model = peft.get_peft_model(
        load(folders["llama"]), peft.LoraConfig(r=4, target_modules="all-linear", **settings)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    model.eval().save_pretrained(tmp_path / "adapter")
    if not plain:
        with pytest.raises(UserError, match="is not plain LoRA"):
            lora.read(tmp_path / "adapter")
        return
    mine = load(folders["llama"])
    lora.load(mine, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(mine(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_weights_that_are_no_numbers_are_refused(copy):
    folder = copy.run / "iter_2" / "adapter"
    rank, _, tensors = lora.read(folder)
    assert rank == 8
    for damaged in (lambda x: x * float("nan"), lambda x: x.to(dtype=torch.int8)):
        broken = {name: damaged(tensor) for name, tensor in tensors.items()}
        (folder / "adapter_model.safetensors").write_bytes(lora.serialize(broken))
        with pytest.raises(UserError, match="not finite"):
            lora.read(folder)


def test_a_merge_that_could_not_be_written_is_noticed_first(copy, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    monkeypatch.setattr("policy.load_policy", None)
    for out in (tmp_path / "file" / "x", tmp_path / "link"):
        adapter = str(copy.run / "iter_2/adapter")
        argv = ["lora.py", "merge", "--model", "m", "--adapter", adapter, "--out", str(out)]
        monkeypatch.setattr("sys.argv", argv)
        with pytest.raises(UserError, match="exists already|no folder can be made"):
            lora.main()


def test_a_report_of_a_run_with_a_hole_is_refused(copy):
    (copy.run / "iter_1.bak").mkdir()  # not an iteration
    report.main([str(copy.run)])
    dev = copy.run / "iter_1" / "dev.jsonl"
    rows = dev.read_text().splitlines(True)
    dev.write_text("".join(rows[1:]))
    similarity = lambda argv: analysis.main(["similarity", *argv])  # noqa: E731
    for main, words in ((report.main, "dev.jsonl has"), (similarity, "different numbers")):
        with pytest.raises(UserError, match=words):
            main([str(copy.run)])
    dev.write_text("".join(rows))
    exported = copy.run / "exported"
    exported.write_text("kept")
    (copy.run / "iter_2" / "pairs.jsonl").rename(copy.run / "away")
    with pytest.raises(FileNotFoundError, match="iter_2/pairs.jsonl"):
        report.main([str(copy.run), "--pairs", str(exported)])
    (copy.run / "away").rename(copy.run / "iter_2" / "pairs.jsonl")
    (copy.run / "iter_1" / "pairs.jsonl").write_text("{")
    with pytest.raises(UserError, match="pairs.jsonl is damaged"):
        report.main([str(copy.run), "--pairs", str(exported)])
    assert exported.read_text() == "kept"
    (copy.run / "iter_1" / "scores.json").unlink()
    dev.unlink()
    for main in (report.main, similarity):
        with pytest.raises(UserError, match="has no iter_1/"):
            main([str(copy.run)])


def test_a_run_folder_that_is_a_file_is_one_sentence(folders, spider, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name in ("file", "link"):
        with pytest.raises(UserError, match="is not a folder"):
            codelutra.main(command(folders, spider, tmp_path / name))


@pytest.mark.parametrize("argv", ["--min-gain nan", "--seed 18446744073709551616"])
def test_more_bad_values_are_exit_code_2(argv):
    with pytest.raises(SystemExit) as stop:
        parse([*argv.split(), "--device", "cpu"])
    assert stop.value.code == 2


def test_extreme_values_that_have_a_meaning_have_it(spider, tmp_path):
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    # the most likely token is always there
    assert pick(logits, torch.tensor([0.7]), 1.0, 1e-300)[0].item() == 1
    golds = [row["query"] for row in json.loads((spider / "dev.json").read_text())]
    (tmp_path / "golds").write_text("\n".join(golds) + "\n")
    argv = ["--data", "spider", "--data-dir", str(spider), "--predictions", str(tmp_path / "golds")]
    for seconds in ("1e10", "1e300"):
        evaluation.main([*argv, "--timeout", seconds])
