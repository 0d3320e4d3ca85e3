"""The report page: what it shows of runs, as data for its template page.html, which has all HTML and script.

Tables are lists of rows that the template prints. Questions and training curves go into the page as one block
of JSON, from which the page's own script makes the list to filter and the curves. Runs are dictionaries as
`report.load_run` returns them.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from pathlib import Path
from urllib.parse import urlencode

import jinja2
import numpy as np

import data
from cli import UserError
from compare_runs import change, correct, mean_interval, results, share, side_by_side
from curves import curves
from data import Question
from database import schema
from run_folder import read_lines, whole
from settings import command
from stages import read_answers
from verify import VERDICTS, Verdict

# Table 1 and 2 of the paper: Llama-3-8B, EX on Spider and BIRD, pass@1 on DS-1000
PAPER = {
    "spider": {0: 59.3, 1: 67.8, 2: 72.4, 3: 76.6, 4: 76.3},
    "bird": {0: 22.3, 1: 37.8, 2: 40.8, 3: 43.1, 4: 42.6},
    "ds1000": {0: 28.2, 1: 43.2, 2: 46.8, 3: 48.6, 4: 48.2},
}
PAIRS_SHOWN = 1000  # training questions whose pairs are in the page, so that it opens quickly
TITLES = {"accuracy": "held-out EX by iteration", "classes": "share of each verdict by iteration",
          "yield": "where the pairs come from", "time": "minutes of every stage by iteration"}  # fmt: skip


# ---- the page's tables ---------------------------------------------------------------------------


def link(split: str, **filters) -> str:
    """The end of the page's address, from # on, with which its list shows these questions alone."""
    return "#" + urlencode({"split": split} | {k: v for k, v in filters.items() if v != ""}, errors="replace")


def policies(run: dict) -> list[dict]:
    """The table of iterations: what each policy scores, and the answers and pairs that made it.

    Shares; None for what is not there.
    """
    rows, measure = [], "ex" if run["config"]["criterion"] == "match" else "executable"
    for t, (folder, scores, pairs) in enumerate(zip(run["folders"], run["scores"], run["pairs"])):
        ran = []
        if (path := folder / "verdicts.jsonl").exists():
            ran = read_lines(path, lambda row: Verdict(**row).ran)
        dev, validation = scores.get("dev"), scores.get("validation")
        rows.append({
            "policy": t, "best": t == run["best"] and bool(validation), "pairs": pairs.get("pairs"),
            "right": pairs["answers_right"] / pairs["answers"] if pairs.get("answers") else None,
            "ran": sum(ran) / len(ran) if ran else None,
            "validation": validation and share(round(validation[measure] * validation["n"]), validation["n"]),
            "ex": dev and share(round(dev["ex"] * dev["n"]), dev["n"]),
            "em": dev and dev["em"], "executable": dev and dev["executable"],
            "minutes": sum(run["seconds"][t].values()) / 60,
            "paper": PAPER.get(run["config"]["data"], {}).get(t),
        })  # fmt: skip
    return rows


def changes(run: dict) -> list[dict]:
    """Held-out questions that every policy gained and lost against π_0 and against the policy before it."""
    rows = []
    for t in range(1, len(run["dev"])):
        for before in sorted({0, t - 1}):
            if found := change(run["dev"][t], run["dev"][before]):
                links = {way: link("dev", policy=t, verdict=f"{way}-{before}") for way in ("gained", "lost")}
                rows.append({"policy": t, "before": before, "links": links} | found)
    return rows


def choice(run: dict) -> dict | None:
    """How surely the validation questions choose the best policy: from which others they cannot tell it.

    None where nothing was chosen: the run has not ended, or holds no question back.
    """
    best, rows = run["best"], run["validation"]
    if best is None or not rows[best]:
        return None
    match = run["config"]["criterion"] == "match"

    def counted(t: int) -> np.ndarray:
        if match:
            return correct(rows[t])
        return np.array([Verdict(row["verdict"], row["message"]).ran for row in rows[t]], dtype=float)

    others = [t for t in range(len(rows)) if t != best and len(rows[t]) == len(rows[best])]
    gaps = {t: mean_interval(counted(best)[None], counted(t)[None]) for t in others}
    undecided = [{"policy": t, "gap": gap} for t, gap in gaps.items() if gap["low"] <= 0]
    return {"best": best, "questions": len(rows[best]), "measure": "EX" if match else "executable share",
            "others": len(gaps), "undecided": undecided}  # fmt: skip


def fault(message: str) -> tuple[str, str]:
    """A verdict's message as a kind of fault and what differs from case to case: numbers of rows, names."""
    message = message.removeprefix("in one process: ")
    if re.fullmatch(r"\d+ rows, not \d+", message):
        return ("no rows" if message.startswith("0 ") else "too few rows"), ""
    if re.fullmatch(r"more than \d+ rows", message):
        return "too many rows", ""
    if re.fullmatch(r"\d+ columns, not \d+", message):
        return "more or fewer columns", ""
    if message.endswith(": syntax error"):
        return "syntax error", message.removesuffix(": syntax error")
    parts = message.split(": ")
    head = 2 if parts[0] in ("the result", "the text of the answer") else 1
    return ": ".join(parts[:head]), ": ".join(parts[head:])


def kind_of_fault(verdict: str, message: str) -> str:
    """What the page filters by; empty for a right answer alone."""
    return "" if verdict == "correct" else fault(message)[0] or "no message"


def faults(rows: list[dict], policy: int) -> list[dict]:
    """Every fault of one policy's held-out answers, the commonest kind first, with links to its questions."""
    kinds: dict[tuple[str, str], list] = {}
    for row in rows:
        if row["verdict"] != "correct":
            kind, detail = kind_of_fault(row["verdict"], row["message"]), fault(row["message"])[1]
            kinds.setdefault((row["verdict"], kind), []).append((row["index"], detail[:60]))
    found = []
    for (verdict, kind), cases in sorted(kinds.items(), key=lambda item: -len(item[1])):
        details = [f"{d} ({n})" if n > 1 else d for d, n in Counter(d for _, d in cases if d).most_common(6)]
        numbers = [(f"#{index}", link("dev", policy=policy, text=f"#{index}")) for index, _ in cases[:6]]
        found.append({
            "verdict": verdict, "kind": kind, "count": len(cases), "share": len(cases) / len(rows),
            "details": ", ".join(details), "questions": numbers, "more": len(cases) > len(numbers),
            "link": link("dev", policy=policy, verdict=verdict, fault=kind),
        })  # fmt: skip
    return found


ORDER = ("easy", "medium", "hard", "extra", "simple", "moderate", "challenging")
CLAUSES = {"JOIN": r"\bjoin\b", "GROUP BY": r"\bgroup\s+by\b", "ORDER BY": r"\border\s+by\b",
           "a set operation": r"\b(union|intersect|except)\b",
           "a query within the query": r"\(\s*select\b"}  # fmt: skip


def by_kind(run: dict) -> list[list]:
    """EX of every policy by hardness, difficulty or library, and by what the gold query has in it.

    A row is the kind, how many questions, and a share for every policy that was scored (None: no question).
    """
    scored = [t for t, scores in enumerate(run["scores"]) if "dev" in scores]
    groups = [run["scores"][t]["dev"]["groups"] for t in scored]
    sizes = {name: part["n"] for group in groups for name, part in group.items()}
    rows = []
    for name in sorted(sizes, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
        rows.append([name, sizes[name], *(group[name]["ex"] if name in group else None for group in groups)])
    if all(run["scores"][t]["dev"]["em"] is None for t in scored):  # programs, which have no EM
        return rows

    def clauses(gold: str) -> list[str]:
        return [c for c, pattern in CLAUSES.items() if re.search(pattern, gold, re.I)] or ["none of these"]

    for clause in (*CLAUSES, "none of these"):
        right = [correct([row for row in run["dev"][t] if clause in clauses(row["gold"])]) for t in scored]
        if any(map(len, right)):
            shares = [float(r.mean()) if len(r) else None for r in right]
            rows.append([f"gold query with {clause}", len(right[-1]), *shares])
    return rows


# ---- questions -----------------------------------------------------------------------------------


def questions_of(config: dict, split: str) -> dict[int, Question]:
    """index → question of the data set, where it is still at hand; else nothing."""
    try:
        return {q.index: q for q in data.load(config["data"], config["data_dir"], split)[0]}
    except (UserError, KeyError, OSError):
        return {}


def schemas(questions: list[Question]) -> dict[str, str]:
    """db_id → its CREATE TABLE statements."""
    return {q.db_id: schema(q.database) for q in {q.db_id: q for q in questions if q.database}.values()}


def answers(run: dict, split: str) -> list[dict]:
    """Every question of a split; `answers` is {t: [[code, verdict, message, kind of fault]]}."""
    by_index: dict[int, dict] = {}
    for t, rows in enumerate(run[split]):
        for row in rows:
            new = {k: row[k] for k in ("index", "db_id", "question", "gold")} | {"answers": {}}
            kind = kind_of_fault(row["verdict"], row["message"])
            answer = [row["answer"], row["verdict"], row["message"], kind]
            by_index.setdefault(row["index"], new)["answers"][t] = [answer]
    return [by_index[i] for i in sorted(by_index)]


def trained_on(run: dict, questions: dict[int, Question]) -> tuple[list[dict], int]:
    """Training questions with the pairs of every iteration, PAIRS_SHOWN at most, and how many there are.

    A row is as those of `answers`, with all answers that stand in a pair of iteration t, and with `pairs`:
    {t: [[chosen, rejected, how often], …]}, positions in the list of answers. Rejected is None for objective
    sft. An answer that was not drawn is the gold code, with the verdict "gold".
    """
    pairs = {}
    for t, folder in enumerate(run["folders"]):
        if all((folder / f"{name}.jsonl").exists() for name in ("pairs", "answers", "verdicts")):
            pairs[t] = read_lines(folder / "pairs.jsonl")
    for t in pairs:
        with whole(run["folders"][t] / "pairs.jsonl"):
            numbers = sorted({row["question"] for rows in pairs.values() for row in rows})
    shown = {} if not pairs else dict.fromkeys(data.subset(numbers, PAIRS_SHOWN, 0))
    found: dict[int, dict] = {}
    for t, rows in pairs.items():
        folder, drawn = run["folders"][t], {}
        verdicts = read_lines(folder / "verdicts.jsonl", lambda row: Verdict(**row))
        with whole(folder / "verdicts.jsonl"):
            for answer, v in zip(read_answers(folder / "answers.jsonl"), verdicts, strict=True):
                if answer.question in shown:
                    code = [answer.text, v.verdict, v.message, kind_of_fault(v.verdict, v.message)]
                    drawn.setdefault((answer.question, answer.ids), code)
        with whole(folder / "pairs.jsonl", IndexError):
            for row in rows:
                if (index := row["question"]) not in shown:
                    continue
                q = questions.get(index)
                entry = found.setdefault(index, {
                    "index": index, "db_id": q.db_id if q else "",
                    "question": q.text if q else "(The data set is not at hand.)",
                    "gold": q.gold if q else "(not at hand)", "answers": {}, "pairs": {},
                })  # fmt: skip
                gold = [entry["gold"], "gold", "", ""]
                answers = [drawn.get((index, tuple(ids)), gold) for ids in row["answers"]]
                counts = Counter((chosen, rejected) for chosen, rejected in row["pairs"])
                for place in {place for pair in counts for place in pair if place is not None}:
                    answers[place]  # raises where the file is damaged
                entry["answers"][t] = answers
                entry["pairs"][t] = [[*pair, times] for pair, times in counts.items()]
    return [found[i] for i in sorted(found)], len(numbers) if pairs else 0


def questions_part(run: dict) -> dict:
    """The three lists of questions that the page can show, and the schemas of their databases."""
    last, best = len(run["folders"]) - 1, run["best"]
    at_hand = {split: questions_of(run["config"], split) for split in ("train", "dev")}
    pairs, total = trained_on(run, at_hand["train"])
    splits: dict[str, dict] = {
        "dev": {"label": "held-out", "rows": answers(run, "dev")},
        "validation": {"label": "validation", "rows": answers(run, "validation")},
        "train": {"label": "training (pairs)", "rows": pairs},
    }
    for split, part in splits.items():
        part["policies"] = sorted({t for row in part["rows"] for t in row["answers"]})
        part["policy"] = last if split == "train" or best is None else best
    names = {row["db_id"] for part in splits.values() for row in part["rows"]}
    used = [q for by_index in at_hand.values() for q in by_index.values() if q.db_id in names]
    return {"splits": splits, "schemas": schemas(used), "verdicts": VERDICTS, "trained": total}


# ---- the page ------------------------------------------------------------------------------------


def points(value: float | None, sign: bool = False) -> str:
    """A share in points, with a true minus; nothing where there is none."""
    if value is None:
        return ""
    rounded = round(100 * value, 1) + 0.0  # −0.0 becomes 0.0
    return f"{rounded:{'+' if sign and rounded else ''}.1f}".replace("-", "−")


def page(runs: list[dict], figures: dict[str, Path]) -> str:
    """report.html of the runs; what is not about all of them is about the first."""
    run, folder = runs[0], Path(__file__).resolve().parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False}
    environment.filters["points"] = points
    compared, notes, apart = [], [], {}
    if len(runs) > 1:
        compared, notes = side_by_side(runs)
        for row in compared:
            row["paper"] = PAPER.get(row["data"], {}).get(row["policy"])
        try:
            apart = results(runs)["differences of the best"]
        except UserError as error:
            notes.append(f"No differences between methods: {error}")
    shown = len(run["dev"]) - 1 if run["best"] is None else run["best"]
    config, questions = run["config"], questions_part(run)
    images = {
        name: base64.b64encode(path.read_bytes()).decode()
        for name, path in figures.items()
        if name != "logps"  # the training curves show the same
    }
    return environment.get_template("page.html").render(
        run=run, config=config, command=command(config), compared=compared, notes=notes, apart=apart,
        policies=policies(run), changes=changes(run), choice=choice(run), shown=shown,
        faults=[faults(rows, t) for t, rows in enumerate(run["dev"])], kinds=by_kind(run),
        steps=sum(map(len, run["train"])), images=images, titles=TITLES, verdicts=VERDICTS,
        counts=[Counter(row["verdict"] for row in rows) for rows in run["dev"]],
        sizes={name: len(part["rows"]) for name, part in questions["splits"].items()},
        trained=questions["trained"],
        payload=questions | {"curves": curves(run["train"])},
    )  # fmt: skip
