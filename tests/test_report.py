"""The report: tables and intervals by hand, figures drawn, and a page that no answer can break out of."""

import dataclasses
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from math import inf, nan
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest

import compare_runs
import curves
import page
import report
import settings
from cli import UserError
from verify import VERDICTS

HOSTILE = "</script><b><!--<script>"
SHARES = {"em": 0.0, "executable": 1.0, "groups": {}}


def make_run(folder):
    """One iteration. 1 of 4 held-out answers is right, then 3; 1 of 3 validation answers, then another."""
    config = settings.Config(
        model="tiny", data="spider", data_dir="data/spider", answers=4, pairs=3, lr=0.1, iterations=2
    )
    write(folder / "config.json", dataclasses.asdict(config) | {"precision": "float32", "code": ["x"]})
    for t, right in enumerate((1, 3)):
        (iteration := folder / f"iter_{t}").mkdir()
        write_answers(iteration, "dev", [i < right for i in range(4)], t)
        write_answers(iteration, "validation", [i == t for i in range(3)], t)
        write(iteration / "seconds.json", {"score": 6.0})
        if t:
            step = {"chosen_logp": -3.0, "rejected_logp": -9.0}
            step |= {"chosen_logp_per_token": -1, "rejected_logp_per_token": -3}
            write(iteration / "train.jsonl", step)
            counts = {"answers": 16, "answers_right": 4, "questions": 4, "pairs": 12}
            write(iteration / "pairs_summary.json", counts)
    return folder


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def write_answers(folder, split, right, t=0):
    """Answers of one policy, and their scores; question 3's answer tries to break out of the page."""
    rows = []
    for i, r in enumerate(right):
        row = {"index": i, "db_id": "pets", "question": f"question {i}?", "gold": "SELECT 1"}
        row |= {"verdict": "correct" if r else "wrong", "message": "" if r else "0 rows, not 7"}
        rows.append(row | {"answer": HOSTILE if i == 3 else f"SELECT {i + t}"})
    write(folder / f"{split}.jsonl", *rows)
    path = folder / "scores.json"
    classes = dict.fromkeys(VERDICTS, 0) | {"correct": sum(right), "wrong": len(right) - sum(right)}
    scores = SHARES | {"n": len(right), "ex": sum(right) / len(right), "classes": classes}
    write(path, (read(path)[0] if path.exists() else {}) | {split: scores})


class Page(HTMLParser):
    """What a browser makes of the page: text, scripts, links, what it loads, and tables as rows of cells."""

    def __init__(self, source):
        super().__init__()
        self.source = source
        self.words, self.scripts, self.links, self.tables, self.loads = [], [], [], [], []
        self.inside, self.in_cell = "", False
        self.feed(source)
        self.text = " ".join(" ".join(self.words).split())
        self.tables = [[[" ".join(cell.split()) for cell in row] for row in rows] for rows in self.tables]
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attributes):
        attributes, self.inside = dict(attributes), tag
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "script":
            self.scripts.append("")
        elif tag == "a":
            self.links.append(attributes["href"])
        self.loads += [attributes[name] for name in ("src", "srcset", "action") if name in attributes]
        self.loads += [attributes["href"]] if tag == "link" else []

        self.in_cell = tag in ("td", "th") or (self.in_cell and tag not in ("table", "tr"))

    def handle_endtag(self, tag):
        self.inside = "" if tag in ("script", "style") else self.inside
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, text):
        if self.inside == "script":
            self.scripts[-1] += text
        elif self.inside != "style":
            self.words.append(text)
            if self.in_cell:
                self.tables[-1][-1][-1] += text

    def table(self, head):
        """The rows of the table that begins with this cell."""
        return next(rows[1:] for rows in self.tables if rows[0][0] == head)


def made(*folders):
    """The page of these runs, without figures: to draw them takes a second."""
    return Page(page.page([report.load_run(Path(folder)) for folder in folders], {}))


def written(run):
    """The page with its figures, as the command writes it."""
    report.main([str(run)])
    return Page((run / "report.html").read_text(encoding="utf-8"))


def test_the_page_holds_every_question_with_all_answers(run):
    found = written(run)
    rows = found.data["splits"]["dev"]["rows"]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert rows[1]["answers"] == {
        "0": [["SELECT 1", "wrong", "0 rows, not 7", "no rows"]], "1": [["SELECT 2", "correct", "", ""]],
    }  # fmt: skip
    assert rows[3]["answers"]["0"][0][0] == HOSTILE
    assert [row["index"] for row in found.data["splits"]["validation"]["rows"]] == [0, 1, 2]
    assert all((run / f"{name}.png").stat().st_size > 2000 for name in report.FIGURES)


def test_the_table_of_iterations_by_hand(run):
    write(run / "summary.json", {"best": 1, "scores": [{}, {}]})
    verdicts = [{"verdict": v} for v in ("correct", "wrong", "error", "error")]
    write(run / "iter_1" / "verdicts.jsonl", *verdicts, {"verdict": "wrong", "message": "not a query"})
    found = made(run)
    # the intervals are those of scipy.stats.binomtest(1, 3).proportion_ci(method="wilson"), and so on
    third, quarter, rest = "33.3 (6.1 to 79.2)", "25.0 (4.6 to 69.9)", "75.0 (30.1 to 95.4)"
    assert found.table("policy") == [
        ["π_0", "", "", "", third, quarter, "0.0", "100.0", "0.1", "59.3"],
        ["π_1 (best on validation)", "25.0", "40.0", "12", third, rest, "0.0", "100.0", "0.1", "67.8"],
    ]
    assert "3 validation questions chose π_1. They cannot tell it from π_0" in found.text
    # of three questions one was gained and one lost
    assert "in points: 0.0, 95 % interval −100.0 to +100.0)." in found.text


def test_questions_gained_and_lost_by_hand(run):
    shutil.copytree(run / "iter_1", run / "iter_2")
    write_answers(run / "iter_2", "dev", [False, True, False, True])
    rows = page.changes(report.load_run(run))
    assert [(r["policy"], r["before"], r["gained"], r["lost"], r["gap"]["ex"]) for r in rows] == [
        (1, 0, 2, 0, 0.5), (2, 0, 2, 1, 0.25), (2, 1, 1, 2, -0.25),
    ]  # fmt: skip
    assert rows[2]["links"]["gained"] == "#split=dev&policy=2&verdict=gained-1"
    assert [(row[0], row[1], row[2], row[3]) for row in made(run).tables[1][1:]] == [
        ("π_1", "π_0", "2", "0"), ("π_2", "π_0", "2", "1"), ("π_2", "π_1", "1", "2"),
    ]  # fmt: skip


def test_validation_that_decides_says_so_and_that_counts_what_runs_where_gold_may_not_be_used(run):
    for t in (0, 1):
        write_answers(run / f"iter_{t}", "validation", [t == 1] * 20 + [True])
    write(run / "summary.json", {"best": 1, "scores": [{}, {}]})
    assert page.choice(report.load_run(run)) == {
        "best": 1, "questions": 21, "measure": "EX", "others": 1, "undecided": [],
    }  # fmt: skip
    assert "Its EX is above that of every other policy by more than chance explains" in made(run).text
    config = read(run / "config.json")[0]
    write(run / "config.json", config | {"criterion": "executable"})
    found = page.choice(report.load_run(run))  # wrong answers run as well: both policies are alike
    assert found["measure"] == "executable share" and [g["gap"]["ex"] for g in found["undecided"]] == [0]
    assert "validation executable, %" in made(run).tables[0][0]


def test_the_page_says_what_the_run_was_and_the_command_makes_the_same_run(run):
    for name, argv in {
        "plain": [], "gold": ["--gold", "only", "--objective", "sft"],
        "bird": ["--data", "bird", "--data-dir", "a b"], "fig3c": ["--criterion", "executable"],
        "other": ["--data", "ds1000", "--beta", "0.3", "--min-gain", "-1", "--checkpointing", "--limit", "9"],
    }.items():  # fmt: skip
        config = settings.parse([*argv, "--model", "org/model", "--seed", "3", "--out", name])
        command = shlex.split(settings.command(dataclasses.asdict(config) | {"code": ["x"]}))
        assert command[:2] == ["python", "codelutra.py"] and settings.parse(command[2:]) == config
    text = made(run).text
    assert "model tiny" in text and "learning rate 0.1" in text and "not ended: 2 policies are scored" in text
    assert settings.command(read(run / "config.json")[0]) in text


def test_nothing_is_loaded_from_elsewhere(run):
    found = written(run)
    assert all(source.startswith("data:image/png;base64,") for source in found.loads)
    assert len(found.loads) == len(page.TITLES) == len(report.FIGURES) - 1
    assert "default-src 'none'" in found.source
    assert "url(" not in found.source and "@import" not in found.source


def test_an_answer_may_hold_line_separators(run):
    path = run / "iter_0" / "dev.jsonl"
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    rows[0]["answer"] = "SELECT '\u2028 \u0085 \x1e'"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert report.load_run(run)["dev"][0] == rows


def test_no_answer_closes_the_script(run):
    for t in (0, 1):  # in all places where a text of a run stands
        change = dict.fromkeys(("question", "gold", "db_id"), HOSTILE)
        change |= {"message": f"{HOSTILE}: {HOSTILE}", "verdict": "error"}
        rows = read(run / f"iter_{t}" / "dev.jsonl")
        write(run / f"iter_{t}" / "dev.jsonl", *(row | change for row in rows))
    config = read(run / "config.json")[0]
    write(run / "config.json", config | {"model": HOSTILE})
    found = made(run)
    assert found.source.count("</script>") == 2 and "<!--" not in found.source and "<b><" not in found.source
    assert f"model {HOSTILE}" in found.text and found.table("verdict")[0][1] == HOSTILE


def test_half_a_surrogate_pair_in_an_answer_is_no_error(run):
    change = {"answer": "\ud800", "message": "\udfff: x", "verdict": "error"}
    rows = read(run / "iter_0" / "dev.jsonl")
    write(run / "iter_0" / "dev.jsonl", *(row | change for row in rows))
    assert written(run).table("verdict")[0][1] == "?"


def test_every_fault_is_in_the_table_once():
    messages = {
        "other rows": "wrong", "0 rows, not 7": "wrong", "1 rows, not 7": "wrong", "10 rows, not 16": "wrong",
        "more than 3 rows": "wrong", "2 columns, not 1": "wrong", "no such column: <b>": "error",
        "no such column: b": "error",
        'near "WHERE": syntax error': "error", "": "correct",
    }  # fmt: skip
    cases = [*messages.items(), ("no such column: b", "error")]
    rows = [{"index": i, "verdict": verdict, "message": text} for i, (text, verdict) in enumerate(cases)]
    found = page.faults(rows, 2)
    first, second = ([f[k] for k in ("verdict", "kind", "count", "details")] for f in found[:2])
    assert first == ["error", "no such column", 3, "b (2), <b>"]
    assert second == ["wrong", "too few rows", 2, ""]
    assert [number for number, _ in found[0]["questions"]] == ["#6", "#7", "#10"]
    assert sum(f["count"] for f in found) == 10 and found[0]["share"] == 3 / 11  # all but the right one
    assert {f["kind"] for f in found} == {
        "no such column", "too few rows", "other rows", "no rows", "too many rows", "more or fewer columns",
        "syntax error",
    }  # fmt: skip


def test_links_of_faults_and_questions_find_them_in_the_list(run):
    rows = read(run / "iter_1" / "dev.jsonl")
    rows[3] |= {"verdict": "error", "message": "a & b+c%: #1 d"}
    rows[2] |= {"verdict": "timeout", "message": ""}
    write(run / "iter_1" / "dev.jsonl", *rows)
    found = made(run)
    asked = [{k: v[0] for k, v in parse_qs(link[1:]).items()} for link in found.links]
    assert {"split": "dev", "policy": "1", "verdict": "error", "fault": "a & b+c%"} in asked
    assert {"split": "dev", "policy": "1", "verdict": "timeout", "fault": "no message"} in asked
    assert {"split": "dev", "policy": "1", "text": "#3"} in asked
    answers = {row["index"]: row["answers"]["1"][0] for row in found.data["splits"]["dev"]["rows"]}
    assert answers[3][3] == "a & b+c%" and answers[2][3] == "no message" and answers[0][3] == ""


@pytest.mark.parametrize("message, kind", [
    ("the result: AssertionError: index differs", "the result: AssertionError"),
    ("in one process: NameError: name 'x' is not defined", "NameError"),
    ("no such table: t", "no such table"), ("", ""),
])  # fmt: skip
def test_the_kind_of_a_fault(message, kind):
    assert page.fault(message)[0] == kind


def test_accuracy_by_kind_of_question_by_hand():
    golds = ["SELECT a FROM t", "SELECT a FROM t JOIN u GROUP  BY a",
             "select a from t where b in (select b from u)", "SELECT a FROM t ORDER BY a",
             "SELECT a FROM t UNION SELECT b FROM u"]  # fmt: skip
    policies = [[{"gold": g, "verdict": v} for g, v in zip(golds, of)]
                for of in (["wrong"] * 5, ["correct", "wrong", "correct", "wrong", "wrong"])]  # fmt: skip
    groups = [{"hard": {"n": 4, "ex": 0}}, {"hard": {"n": 4, "ex": 0.25}, "easy": {"n": 1, "ex": 1.0}}]
    scores = [*({"dev": {"groups": of, "em": 0.0}} for of in groups), {}]
    run = {"dev": [*policies, []], "scores": scores}
    assert page.by_kind(run) == [
        ["easy", 1, None, 1],
        ["hard", 4, 0, 0.25],
        ["gold query with JOIN", 1, 0, 0],
        ["gold query with GROUP BY", 1, 0, 0],
        ["gold query with ORDER BY", 1, 0, 0],
        ["gold query with a set operation", 1, 0, 0],
        ["gold query with a query within the query", 1, 0, 1],
        ["gold query with none of these", 1, 0, 1],
    ]


def with_pairs(run, spider):
    """Pairs of two training questions: of a right answer, a wrong one and the gold code; of gold alone."""
    config = read(run / "config.json")[0]
    write(run / "config.json", config | {"data_dir": str(spider)})
    wrong = (0, [7], "SELEC", "error", 'near "SELEC": syntax error')
    other = (2, [5, 6], "SELECT 2", "wrong", "other rows")
    drawn = [(0, [5, 6], "SELECT 1", "correct", ""), wrong, wrong, other]
    write(run / "iter_1" / "answers.jsonl", *(
        {"question": q, "sample": m, "ids": ids, "text": text, "logp": -1.0, "finished": True}
        for m, (q, ids, text, _, _) in enumerate(drawn)
    ))  # fmt: skip
    verdicts = ({"verdict": v, "message": m, "seconds": 0.1} for *_, v, m in drawn)
    write(run / "iter_1" / "verdicts.jsonl", *verdicts)
    write(
        run / "iter_1" / "pairs.jsonl",
        {"question": 0, "answers": [[5, 6], [7], [9, 0]], "pairs": [[0, 1], [0, 1], [2, 1]]},
        {"question": 2, "answers": [[9, 0]], "pairs": [[0, None]]},
    )


def test_training_questions_stand_with_the_pairs_that_were_trained_on(run, spider):
    with_pairs(run, spider)
    found = made(run)
    rows = found.data["splits"]["train"]["rows"]
    assert [(row["index"], row["question"], row["gold"]) for row in rows] == [
        (0, "How many pets are there?", "SELECT count(*) FROM pet"),
        (2, "How old is the oldest pet?", "SELECT max(age) FROM pet"),
    ]  # fmt: skip
    assert rows[0]["answers"] == {"1": [
        ["SELECT 1", "correct", "", ""], ["SELEC", "error", 'near "SELEC": syntax error', "syntax error"],
        ["SELECT count(*) FROM pet", "gold", "", ""],
    ]}  # fmt: skip
    assert rows[0]["pairs"] == {"1": [[0, 1, 2], [2, 1, 1]]}
    assert rows[1]["answers"] == {"1": [["SELECT max(age) FROM pet", "gold", "", ""]]}
    assert rows[1]["pairs"] == {"1": [[0, None, 1]]}
    assert "2 training questions with pairs" in found.text and "drawn at random" not in found.text
    config = read(run / "config.json")[0]
    write(run / "config.json", config | {"data_dir": str(spider / "gone")})
    rows = made(run).data["splits"]["train"]["rows"]
    assert rows[0]["question"] == "(The data set is not at hand.)"
    assert [code for code, *_ in rows[0]["answers"]["1"]] == ["SELECT 1", "SELEC", "(not at hand)"]


def test_a_page_of_many_training_questions_has_some_of_them_and_says_so(run, spider, monkeypatch):
    with_pairs(run, spider)
    monkeypatch.setattr(page, "PAIRS_SHOWN", 1)
    found = made(run)
    assert len(found.data["splits"]["train"]["rows"]) == 1
    assert "Of 2 training questions with pairs, 1 drawn at random are in this page." in found.text


@pytest.mark.parametrize("name, line", [
    ("pairs.jsonl", {"question": 0, "answers": [[7]], "pairs": [[0, 1]]}),
    ("pairs.jsonl", {"question": 0, "answers": [[7]], "pairs": [[0]]}),
    ("pairs.jsonl", {"question": 0, "pairs": []}), ("verdicts.jsonl", {"verdict": "correct"}),
])  # fmt: skip
def test_damaged_pairs_are_one_sentence(run, spider, name, line):
    with_pairs(run, spider)
    write(run / "iter_1" / name, line)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        report.main([str(run)])


@pytest.mark.parametrize(
    "change", [{"verdict": "right"}, {"message": None}, {"index": "1"}, {"answer": 5}, {"gold": []}]
)
def test_an_answer_that_the_page_could_not_show_is_one_sentence(run, change):
    rows = read(run / "iter_0" / "validation.jsonl")
    write(run / "iter_0" / "validation.jsonl", *rows[1:], rows[0] | change)
    with pytest.raises(UserError, match="iter_0/validation.jsonl is damaged"):
        report.main([str(run)])


def test_curves_by_hand(monkeypatch):
    steps = [{"loss": 3.0, "grad_norm": inf, "chosen_logratio": 0.5}, {"loss": 2.0, "grad_norm": 1.0}]
    steps.append({"loss": nan})
    found = curves.curves([[], steps, [{"loss": 1.0, "other": 4}]])
    assert (found["steps"], found["starts"]) == ([0, 1, 2, 3], [[0, 1], [3, 2]])
    charts = {c["title"]: {line["name"]: line["values"] for line in c["lines"]} for c in found["charts"]}
    assert charts == {
        "loss": {"loss": [3.0, 2.0, None, 1.0]}, "gradient norm": {"gradient norm": [None, 1.0, None, None]},
        "log-ratio to the reference": {"chosen": [0.5, None, None, None]},
    }  # fmt: skip
    monkeypatch.setattr(curves, "POINTS", 2)  # long iterations: a point is the mean of neighbours
    found = curves.curves([[{"lr": v} for v in (1, 3, 5, 9, 4)], [{"lr": 2}]])
    assert found["steps"] == [0, 3, 5] and found["charts"][0]["lines"][0]["values"] == [3, 6.5, 2]
    assert curves.curves([[], [], []]) == {"steps": [], "starts": [], "charts": []}


def test_a_page_is_readable_json_where_training_overflowed(run):
    (run / "iter_1" / "train.jsonl").write_text('{"loss": NaN, "grad_norm": Infinity, "lr": 0.1}\n')
    found = made(run)
    assert "NaN" not in found.scripts[0] and "Infinity" not in found.scripts[0]
    assert [chart["title"] for chart in found.data["curves"]["charts"]] == ["learning rate"]


def test_the_page_has_the_schema_of_every_database(run, spider):
    with_pairs(run, spider)
    for t in (0, 1):
        rows = read(run / f"iter_{t}" / "dev.jsonl")
        write(run / f"iter_{t}" / "dev.jsonl", *(row | {"db_id": "books"} for row in rows))
    found = made(run).data["schemas"]
    assert set(found) == {"pets", "books"} and all(text.startswith("CREATE TABLE") for text in found.values())
    config = read(run / "config.json")[0]
    write(run / "config.json", config | {"data_dir": str(spider / "gone")})
    assert made(run).data["schemas"] == {}


def test_the_page_is_about_the_policy_that_the_run_names_best(run):
    write(run / "summary.json", {"best": 0, "scores": [{}, {}]})
    found = made(run)
    summary = "<summary>π_0: 4 held-out questions, 1 right, 3 wrong</summary>"
    assert re.search(rf"<details open>\s*{summary}", found.source)
    assert found.source.count("<details open>") == 1 and found.data["splits"]["dev"]["policy"] == 0


def test_a_run_that_has_ended_once_and_goes_on_names_no_best_policy(run):
    write(run / "summary.json", {"best": 0, "scores": [{}]})
    assert report.load_run(run)["best"] is None and "has not named a best policy" in made(run).text
    write(run / "summary.json", {"best": 7, "scores": [{}, {}]})
    with pytest.raises(UserError, match="not the folder of a run"):
        report.main([str(run)])


def test_what_is_empty_says_so_in_words(run):
    shutil.rmtree(run / "iter_1")
    text = made(run).text
    assert "There are no two policies that answered the same held-out questions." in text
    assert "Nothing has been trained yet." in text
    write_answers(run / "iter_0", "dev", [True] * 4)
    assert "Nothing: every answer is right." in made(run).text
    scores = read(run / "iter_0" / "scores.json")[0]
    write(run / "iter_0" / "scores.json", {"validation": scores["validation"]})  # dev.jsonl is left over
    found = made(run)
    assert "No held-out questions were scored." in found.text and found.data["splits"]["dev"]["rows"] == []
    assert "None of these runs has scored held-out questions." in made(run, run).text


def test_runs_side_by_side_by_hand(run, tmp_path):
    folders = several(run, tmp_path)
    found = made(folders[1], folders[0], folders[2])  # seeds 1 and 0 of one method, then another method
    columns = [[row[i].split(" (")[0] for i in (0, 1, 2, 4, 7, 8, 9)] for row in found.table("method")]
    first, last = "codelutra", "sft on gold"
    assert [row[2] for row in found.table("method") if "best" in row[2]] == [
        "π_1 (best)", "π_0 (best)", "best", "π_1 (best)",
    ]  # fmt: skip
    assert [tuple(row) for row in columns] == [
        (first, "0", "π_0", "25.0", "", "59.3", "a"), (first, "0", "π_1", "75.0", "+50.0", "67.8", "a"),
        (first, "1", "π_0", "25.0", "", "59.3", "b"), (first, "1", "π_1", "50.0", "+25.0", "67.8", "b"),
        (first, "mean of 2 seeds", "π_0", "25.0", "", "59.3", ""),
        (first, "mean of 2 seeds", "π_1", "62.5", "+37.5", "67.8", ""),
        (first, "mean of 2 seeds", "best", "50.0", "+25.0", "", ""),
        (last, "0", "π_0", "25.0", "", "59.3", "sft"), (last, "0", "π_1", "50.0", "+25.0", "67.8", "sft"),
    ]  # fmt: skip
    assert [(row[0], row[1].split()[0], row[2]) for row in found.table("difference")] == [
        ("codelutra − sft on gold", "+25.0", "1"), ("codelutra − π_0", "+25.0", "2"),
        ("sft on gold − π_0", "+25.0", "1"),
    ]  # fmt: skip


def test_runs_without_a_common_mean_stand_side_by_side_and_say_why(run, tmp_path):
    folders = [Path(folder) for folder in several(run, tmp_path)[:2]]
    config = read(folders[1] / "config.json")[0]
    for change, words in (
        ({"iterations": 9}, "no mean of the best policies, since its runs have different --iterations."),
        ({"data": "bird"}, "these runs are not all on one data set and one model."),
    ):
        write(folders[1] / "config.json", config | change)
        found = made(*folders)
        assert words in found.text and len(found.table("method")) == 4 + 2 * ("iterations" in change)
    # each stands beside the paper's figures of its own data
    assert [row[8] for row in found.table("method")] == ["59.3", "67.8", "22.3", "37.8"]
    write(folders[1] / "config.json", config | {"data": "shop"})
    assert [row[8] for row in made(*folders).table("method")] == ["59.3", "67.8", "", ""]
    write(folders[1] / "config.json", config)
    (folders[1] / "summary.json").unlink()
    assert "no mean of the best policies, since one of its runs has not ended." in made(*folders).text
    write_answers(folders[1] / "iter_0", "dev", [True] * 3)
    words = "no means, since its runs were not all scored on the same held-out questions."
    assert words in made(*folders).text


def test_wilsons_interval():
    # the two ends p solve |share − p| = z √(p (1 − p) / n)
    for right, n in ((0, 8), (8, 8), (1, 3), (30, 100), (1, 733)):
        low, high = compare_runs.wilson(right, n)
        for p in {low, high} - {0.0, 1.0}:
            assert abs(right / n - p) == pytest.approx(compare_runs.Z * (p * (1 - p) / n) ** 0.5)
        assert 0 <= low <= right / n <= high <= 1 and low < high
    assert compare_runs.wilson(0, 8) == pytest.approx((0, 0.3244), abs=1e-4)  # the book's z² / (n + z²)
    assert compare_runs.wilson(8, 8) == pytest.approx((0.6756, 1), abs=1e-4)
    assert compare_runs.wilson(0, 0) == (0, 1)


def test_no_interval_is_without_width():
    def bounds(*groups):
        found = compare_runs.mean_interval(*groups)
        return [found[k] for k in ("ex", "low", "high")]

    nothing, everything = np.zeros((1, 8)), np.ones((1, 8))
    assert bounds(nothing) == bounds(np.zeros((3, 8))) == [0, 0, 0.3244]  # one run, three runs that agree
    assert bounds(everything) == bounds(np.ones((3, 8))) == [1, 0.6756, 1]
    # one run is a single share: Wilson's
    assert bounds(np.array([[1.0, 0.0, 0.0]])) == [0.3333, 0.0615, 0.7923]
    assert bounds(everything, everything) == [0, -0.3244, 0.3244]  # nothing gained, nothing lost
    assert bounds(everything, nothing) == [1, 0.3512, 1] and bounds(nothing, everything) == [-1, -1, -0.3512]


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="not the folder of a run"):
        report.main([str(tmp_path)])


def several(run, tmp_path):
    """Copies of the run: two seeds of the dual loss, one of fine-tuning on gold; other answers are right."""
    folders = []
    dual = {"objective": "dual", "gold": "if-empty"}
    sft = {"objective": "sft", "gold": "only", "answers": 0}
    for name, change, right, best in (
        ("a", dual | {"seed": 0}, 3, 1), ("b", dual | {"seed": 1}, 2, 0), ("sft", sft, 2, 1),
    ):  # fmt: skip
        folder = tmp_path / "runs" / name
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("runs"))
        config = read(folder / "config.json")[0]
        write(folder / "config.json", config | {"data_dir": f"/{name}", "code": ["x"]} | change)
        write(folder / "summary.json", {"best": best, "scores": [{}, {}]})
        write_answers(folder / "iter_1", "dev", [i < right for i in range(4)], 1)
        folders.append(str(folder))
    return folders


def test_results_of_several_runs_by_hand(run, tmp_path):
    file = tmp_path / "results.json"
    report.main([*several(run, tmp_path), "--results", str(file)])
    found = json.loads(file.read_text())
    assert (found["data"], found["n"], found["seeds"]) == ("spider", 4, [0, 1])
    assert "/a" not in file.read_text()
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
    # the first is of seed 0 alone
    assert gaps == {"codelutra − sft on gold": 0.25, "codelutra − π_0": 0.25, "sft on gold − π_0": 0.25}


def test_the_interval_of_a_mean_over_runs_is_that_of_runs_and_questions():
    rng = np.random.default_rng(1)
    alike = np.tile(rng.random(400) < 0.5, (3, 1))
    apart = np.array([[0.2], [0.5], [0.8]]) > rng.random((3, 400))
    widths = [compare_runs.mean_interval(group.astype(float)) for group in (alike, apart)]
    width = lambda m: m["high"] - m["low"]  # noqa: E731
    # the runs agree: only questions differ
    assert width(widths[0]) == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.15)
    assert width(widths[1]) > 4 * width(widths[0])
    one, other = (group.astype(float) for group in (alike, np.roll(alike, 1, axis=1)))
    gap = compare_runs.mean_interval(one, other)
    spread = 1.96 * (one[0] - other[0]).std() / 20
    assert gap["ex"] == 0 and [gap["low"], gap["high"]] == pytest.approx([-spread, spread], rel=0.15)


def test_runs_that_differ_in_a_setting_are_methods_of_their_own(run, tmp_path):
    folders, file = several(run, tmp_path), tmp_path / "results.json"
    config = json.loads((tmp_path / "runs/b/config.json").read_text())
    for change, names in (
        ({"lr": 0.1}, ["codelutra", "sft on gold"]),
        ({"lr": 0.2}, ["codelutra, lr 0.1", "codelutra, lr 0.2", "sft on gold, lr 0.1"]),
        ({"gold": "always"}, ["codelutra, gold if-empty", "codelutra, gold always", "sft on gold"]),
        ({"gold": "only"}, ["codelutra", "codelutra, gold only", "sft on gold"]),
        ({"objective": "dpo"}, ["codelutra", "dpo only", "sft on gold"]),
        ({"start": "runs/c/adapter"}, ["codelutra, start none", "codelutra, start an adapter",
                                       "sft on gold, start none"]),
        # of the machine, the day or its code: other runs of one method
        ({"day": "1 May 2030", "tensorboard": True, "train_tokens": 7}, ["codelutra", "sft on gold"]),
        # one seed twice: code that was changed for one of them, which settings do not say
        ({"seed": 0}, ["codelutra, a", "codelutra, b", "sft on gold"]),
    ):  # fmt: skip
        (tmp_path / "runs/b/config.json").write_text(json.dumps(config | change))
        report.main([*folders, "--results", str(file)])
        assert list(json.loads(file.read_text())["methods"]) == names


def test_a_setting_newer_than_a_run_had_its_default(run, tmp_path):
    folders, file = several(run, tmp_path), tmp_path / "results.json"
    config = tmp_path / "runs/b/config.json"
    older = json.loads(config.read_text())
    del older["step_databases"], older["tensorboard"]
    config.write_text(json.dumps(older))
    report.main([*folders, "--results", str(file)])
    assert list(json.loads(file.read_text())["methods"]) == ["codelutra", "sft on gold"]


def test_runs_of_changed_code_are_named_by_their_folders(run, tmp_path):
    for folder, seed in (("dual-seed0", 0), ("dual-seed1", 1), ("dpop-seed0", 0)):
        shutil.copytree(run, tmp_path / folder)
        config = json.loads((run / "config.json").read_text())
        (tmp_path / folder / "config.json").write_text(json.dumps(config | {"seed": seed}))
    found = made(*(tmp_path / folder for folder in ("dual-seed0", "dual-seed1", "dpop-seed0")))
    assert [row[0] for row in found.table("method") if "mean" in row[1]] == ["codelutra, dual"] * 2
    assert {row[0] for row in found.table("method")} == {"codelutra, dual", "codelutra, dpop"}
    # nor do the folders' names tell these two apart
    shutil.copytree(tmp_path / "dual-seed0", tmp_path / "again/dual-seed0")
    text = made(tmp_path / "dual-seed0", tmp_path / "again/dual-seed0").text
    assert "codelutra, dual: no means, since two of its runs have the same seed." in text


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
