"""The report of a run: intervals by hand, figures drawn, and a page that no answer can break out of."""

import json
import re

import pytest

import report
from data import UserError


@pytest.fixture
def run(tmp_path):
    classes = dict.fromkeys(report.VERDICTS, 0)
    (tmp_path / "config.json").write_text(json.dumps({
        "model": "tiny", "data": "spider", "answers": 4, "pairs": 3, "objective": "dual", "beta": 0.1, "lam": 1.0,
        "lr": 0.1, "seed": 0, "precision": "float32",
    }))  # fmt: skip
    for t, right in enumerate((1, 3)):
        folder = tmp_path / f"iter_{t}"
        folder.mkdir()
        rows = [
            {"index": i, "db_id": "pets", "question": f"question {i}?", "gold": "SELECT 1", "message": "",
             "answer": "</script><b>" if i == 3 else f"SELECT {i + t}", "verdict": "correct" if i < right else "wrong"}
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
    rows = json.loads(re.search(r"const DATA=(.*), T=2", text).group(1).replace("<\\/", "</"))
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert rows[1]["answers"] == {"0": ["SELECT 1", "wrong", ""], "1": ["SELECT 2", "correct", ""]}
    assert text.count("data:image/png;base64,") == len(report.FIGURES)
    assert all((run / f"{name}.png").stat().st_size > 2000 for name in report.FIGURES)
    assert "25.0" in text and "75.0" in text and "67.8" in text  # ours, and the paper's π_1 on Spider


def test_an_answer_may_hold_line_separators(run):
    path = run / "iter_0" / "dev.jsonl"
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    rows[0]["answer"] = "SELECT '\u2028 \u0085 \x1e'"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert report.load_run(run)["dev"][0] == rows


def test_no_answer_closes_the_script(run):
    report.main([str(run)])
    text = (run / "report.html").read_text()
    assert text.count("</script>") == 1 and "<\\/script><b>" in text


def test_intervals():
    rows = [{"verdict": v} for v in ["correct"] * 30 + ["wrong"] * 70]
    low, high = report.interval(rows)
    # the normal approximation: 30 ± 1.96 · √(0.3 · 0.7 / 100) = 30 ± 9.0 points
    assert low == pytest.approx(21, abs=1.5) and high == pytest.approx(39, abs=1.5)
    assert report.interval([{"verdict": "correct"}] * 5) == (100, 100) and report.interval([]) == (0, 0)


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="not the folder of a run"):
        report.main([str(tmp_path)])
