"""The report of a run: intervals by hand, figures drawn, and a page that no answer can break out of."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import report
from cli import UserError

HOSTILE = "</script><b><!--<script>"


@pytest.fixture
def run(tmp_path):
    classes = dict.fromkeys(report.VERDICTS, 0)
    (tmp_path / "config.json").write_text(json.dumps({
        "model": "tiny", "data": "spider", "answers": 4, "pairs": 3, "objective": "dual", "beta": 0.1, "lam": 1.0,
        "lr": 0.1, "iterations": 2, "seed": 0, "precision": "float32",
    }))  # fmt: skip
    for t, right in enumerate((1, 3)):
        folder = tmp_path / f"iter_{t}"
        folder.mkdir()
        rows = [
            {"index": i, "db_id": "pets", "question": f"question {i}?", "gold": "SELECT 1", "message": "",
             "answer": HOSTILE if i == 3 else f"SELECT {i + t}", "verdict": "correct" if i < right else "wrong"}
            for i in range(4)
        ]  # fmt: skip
        (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        dev = {"n": 4, "ex": right / 4, "executable": 1.0, "em": None, "classes": classes | {"correct": right}, "groups": {}}
        (folder / "scores.json").write_text(json.dumps({"dev": dev}))
        (folder / "seconds.json").write_text(json.dumps({"score": 6.0}))
        if t:
            step = {"chosen_logp": -3.0, "rejected_logp": -9.0, "chosen_logp_per_token": -1, "rejected_logp_per_token": -3}
            (folder / "train.jsonl").write_text(json.dumps(step) + "\n")
            (folder / "pairs_summary.json").write_text(json.dumps({"answers": 16, "answers_right": 4, "questions": 4}))
    return tmp_path


def test_the_page_holds_every_question_with_all_answers(run):
    report.main([str(run)])
    text = (run / "report.html").read_text()
    rows = json.loads(re.search(r"const DATA=(.*), T=2", text).group(1))
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert rows[1]["answers"] == {"0": ["SELECT 1", "wrong", "", ""], "1": ["SELECT 2", "correct", "", ""]}
    assert rows[3]["answers"]["0"][0] == HOSTILE
    assert text.count("data:image/png;base64,") == len(report.FIGURES)
    assert all((run / f"{name}.png").stat().st_size > 2000 for name in report.FIGURES)
    table = [(row[1], row[3].split()[0], row[-1]) for row in cells(report.table([report.load_run(run)]))]
    assert table == [("π_0", "25.0", "59.3"), ("π_1", "75.0", "67.8")]  # ours, and the paper's on Spider


def test_an_answer_may_hold_line_separators(run):
    path = run / "iter_0" / "dev.jsonl"
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    rows[0]["answer"] = "SELECT '\u2028 \u0085 \x1e'"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert report.load_run(run)["dev"][0] == rows


def test_no_answer_closes_the_script(run):
    report.main([str(run)])
    text = (run / "report.html").read_text()
    assert text.count("</script>") == 1 and "<!--" not in text


def cells(table):
    return [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]]


def test_every_fault_is_in_the_table_once():
    messages = {
        "other rows": "wrong", "0 rows, not 7": "wrong", "1 rows, not 7": "wrong", "10 rows, not 16": "wrong",
        "more than 3 rows": "wrong", "2 columns, not 1": "wrong", "no such column: <b>": "error", "no such column: b": "error",
        'near "WHERE": syntax error': "error", "": "correct",
    }  # fmt: skip
    rows = [{"index": i, "verdict": verdict, "message": text} for i, (text, verdict) in enumerate(messages.items())]
    found = cells(report.faults(rows + [{"index": 10, "verdict": "error", "message": "no such column: b"}]))
    assert found[0] == ["error", "no such column", "3 (27%)", "b (2), &lt;b&gt;", "#6, #7, #10"]
    assert found[1] == ["wrong", "too few rows", "2 (18%)", "", "#2, #3"]
    assert sum(int(row[2].split()[0]) for row in found) == 10  # all but the right one
    assert sorted(row[1] for row in found) == sorted(
        ["no such column", "too few rows", "other rows", "no rows", "too many rows", "more or fewer columns", "syntax error"]
    )


@pytest.mark.parametrize("message, kind", [
    ("the result: AssertionError: index differs", "the result: AssertionError"),
    ("in one process: NameError: name 'x' is not defined", "NameError"),
    ("no such table: t", "no such table"), ("", ""),
])  # fmt: skip
def test_the_kind_of_a_fault(message, kind):
    assert report.fault(message)[0] == kind


def test_accuracy_by_kind_of_question_by_hand():
    golds = ["SELECT a FROM t", "SELECT a FROM t JOIN u GROUP  BY a", "select a from t where b in (select b from u)",
             "SELECT a FROM t ORDER BY a", "SELECT a FROM t UNION SELECT b FROM u"]  # fmt: skip
    policies = [[{"gold": g, "verdict": v} for g, v in zip(golds, of)]
                for of in (["wrong"] * 5, ["correct", "wrong", "correct", "wrong", "wrong"])]  # fmt: skip
    groups = [{"hard": {"n": 4, "ex": 0}}, {"hard": {"n": 4, "ex": 0.25}, "easy": {"n": 1, "ex": 1.0}}]
    run = {"dev": [*policies, []], "scores": [*({"dev": {"groups": of}} for of in groups), {}], "config": {"data": "spider"}}
    assert cells(report.by_kind(run)) == [
        ["easy", "1", "", "100.0%"],
        ["hard", "4", "0.0%", "25.0%"],
        ["gold query with JOIN", "1", "0.0%", "0.0%"],
        ["gold query with GROUP BY", "1", "0.0%", "0.0%"],
        ["gold query with ORDER BY", "1", "0.0%", "0.0%"],
        ["gold query with a set operation", "1", "0.0%", "0.0%"],
        ["gold query with a query within the query", "1", "0.0%", "100.0%"],
        ["gold query with none of these", "1", "0.0%", "100.0%"],
    ]


def test_the_page_has_the_schema_of_every_database(run, spider):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"data_dir": str(spider)}))
    report.main([str(run)])
    found = json.loads(re.search(r"SCHEMAS=(.*);", (run / "report.html").read_text()).group(1))
    assert set(found) == {"pets", "books"} and all(text.startswith("CREATE TABLE") for text in found.values())
    (run / "config.json").write_text(json.dumps(config | {"data_dir": str(spider / "gone")}))
    report.main([str(run)])
    assert "SCHEMAS={};" in (run / "report.html").read_text()


def test_the_page_is_about_the_policy_that_the_run_names_best(run):
    (run / "summary.json").write_text(json.dumps({"best": 0}))
    report.main([str(run)])
    assert "What π_0 still gets wrong</h2><p>Of 4 held-out questions it answers 1 right; the others: 3 wrong." in (
        run / "report.html"
    ).read_text()


def test_a_run_that_has_only_the_base_model_or_nothing_held_out_has_a_page(run):
    shutil.rmtree(run / "iter_1")
    report.main([str(run)])
    (run / "iter_0" / "scores.json").write_text(json.dumps({"validation": {"ex": 0.5}}))
    (run / "iter_0" / "dev.jsonl").unlink()
    report.main([str(run)])
    assert "Of 0 held-out questions it answers 0 right; the others: none." in (run / "report.html").read_text()


def test_each_run_stands_beside_the_papers_figures_of_its_own_data(run):
    loaded = report.load_run(run)
    other = loaded | {"config": loaded["config"] | {"data": "bird"}, "name": "a&b"}
    rows = cells(report.table([loaded, other]))
    assert [row[-1] for row in rows] == ["59.3", "67.8", "22.3", "37.8"] and rows[2][0] == "a&amp;b"
    shop = loaded | {"config": loaded["config"] | {"data": "shop"}}
    assert len(cells(report.table([shop]))[0]) == len(rows[0]) - 1


def test_intervals():
    rows = [{"verdict": v} for v in ["correct"] * 30 + ["wrong"] * 70]
    low, high = report.ex_interval(rows)
    # the normal approximation: 30 ± 1.96 · √(0.3 · 0.7 / 100) = 30 ± 9.0 points
    assert low == pytest.approx(21, abs=1.5) and high == pytest.approx(39, abs=1.5)
    assert report.ex_interval([{"verdict": "correct"}] * 5) == (100, 100) and report.ex_interval([]) == (0, 0)


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="not the folder of a run"):
        report.main([str(tmp_path)])


def several(run, tmp_path):
    """Copies of the run: two seeds of the dual loss, one of fine-tuning on gold; what is right differs, and what is best."""
    folders = []
    dual = {"objective": "dual", "gold": "if-empty"}
    sft = {"objective": "sft", "gold": "only", "answers": 0}
    for name, change, right, best in (
        ("a", dual | {"seed": 0}, 3, 1), ("b", dual | {"seed": 1}, 2, 0), ("sft", sft, 2, 1),
    ):  # fmt: skip
        folder = tmp_path / "runs" / name
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("runs"))
        config = json.loads((folder / "config.json").read_text()) | {"data_dir": f"/{name}", "code": ["x"]} | change
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "summary.json").write_text(json.dumps({"best": best}))
        path = folder / "iter_1" / "dev.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [row | {"verdict": "correct" if row["index"] < right else "wrong"} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        scores = json.loads((folder / "iter_1" / "scores.json").read_text())
        scores["dev"]["ex"] = right / 4
        (folder / "iter_1" / "scores.json").write_text(json.dumps(scores))
        folders.append(str(folder))
    return folders


def test_results_of_several_runs_by_hand(run, tmp_path):
    file = tmp_path / "results.json"
    report.main([*several(run, tmp_path), "--results", str(file)])
    found = json.loads(file.read_text())
    assert (found["data"], found["n"], found["seeds"]) == ("spider", 4, [0, 1]) and "/a" not in file.read_text()
    rows = found["methods"]["codelutra"]
    assert [(r["seed"], r["iteration"], r["ex"], r["best"]) for r in rows] == [
        (0, 0, 0.25, False), (0, 1, 0.75, True), (1, 0, 0.25, True), (1, 1, 0.5, False),
    ]  # fmt: skip
    means = {n: {k: (v["ex"], v["runs"]) for k, v in of.items()} for n, of in found["means"].items()}
    assert means == {
        "codelutra": {"0": (0.25, 2), "1": (0.625, 2), "best": (0.5, 2)},  # best: 3 of 4 and 1 of 4
        "sft on gold": {"0": (0.25, 1), "1": (0.5, 1), "best": (0.5, 1)},
    }
    gaps = {name: gap["ex"] for name, gap in found["differences of the best"].items()}
    assert gaps == {"codelutra − sft on gold": 0.25, "codelutra − π_0": 0.25, "sft on gold − π_0": 0.25}  # first: seed 0 alone


def test_the_interval_of_a_mean_over_runs_is_that_of_runs_and_questions():
    rng = np.random.default_rng(1)
    alike, apart = np.tile(rng.random(400) < 0.5, (3, 1)), np.array([[0.2], [0.5], [0.8]]) > rng.random((3, 400))
    widths = [report.mean_interval(group.astype(float)) for group in (alike, apart)]
    width = lambda m: m["high"] - m["low"]  # noqa: E731
    assert width(widths[0]) == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.15)  # the runs agree: only questions differ
    assert width(widths[1]) > 4 * width(widths[0])
    gap = report.mean_interval(alike.astype(float), alike.astype(float))
    assert gap["ex"] == gap["low"] == gap["high"] == 0  # the same questions on both sides


def test_runs_that_differ_in_a_setting_are_methods_of_their_own(run, tmp_path):
    folders, file = several(run, tmp_path), tmp_path / "results.json"
    config = json.loads((tmp_path / "runs/b/config.json").read_text())
    for change, names in (
        ({"lr": 0.1}, ["codelutra", "sft on gold"]),
        ({"lr": 0.2}, ["codelutra, lr 0.1", "codelutra, lr 0.2", "sft on gold, lr 0.1"]),
        ({"gold": "always"}, ["codelutra, gold if-empty", "codelutra, gold always", "sft on gold"]),
        ({"gold": "only"}, ["codelutra", "codelutra, gold only", "sft on gold"]),
        ({"objective": "dpo"}, ["codelutra", "dpo only", "sft on gold"]),
    ):
        (tmp_path / "runs/b/config.json").write_text(json.dumps(config | change))
        report.main([*folders, "--results", str(file)])
        assert list(json.loads(file.read_text())["methods"]) == names


def test_runs_that_cannot_be_compared_are_one_sentence(run, tmp_path):
    folders, file = several(run, tmp_path), str(tmp_path / "results.json")
    with pytest.raises(UserError, match="two runs of"):
        report.main([folders[0], folders[0], "--results", file])
    config = Path(folders[1], "config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"iterations": 9}))
    with pytest.raises(UserError, match="different --iterations"):
        report.main([*folders, "--results", file])
    with pytest.raises(UserError, match="cannot be a file's name"):
        report.main([*folders, "--results", str(tmp_path)])
    config, dev = tmp_path / "runs/b/config.json", tmp_path / "runs/b/iter_0/dev.jsonl"
    text, rows = config.read_text(), dev.read_text()
    config.write_text(json.dumps(json.loads(text) | {"data": "bird"}))
    with pytest.raises(UserError, match="one data set"):
        report.main([*folders, "--results", file])
    config.write_text(text)
    dev.write_text(rows.replace('"index": 0', '"index": 77'))
    with pytest.raises(UserError, match="same held-out questions"):
        report.main([*folders, "--results", file])
    dev.write_text(rows)
    (tmp_path / "runs/b/summary.json").unlink()
    with pytest.raises(UserError, match="has not ended"):
        report.main([*folders, "--results", file])
