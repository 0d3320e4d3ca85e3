"""Figures and one page from run folders.

    python report.py runs/shop-smollm2-seed0 [more runs]     writes report.html and PNG figures into the first run's folder
    python report.py runs/shop-smollm2-seed0 --pairs FILE    writes its preference pairs as JSON lines that TRL's trainers read
    python report.py RUN RUN … --results FILE                writes the scores of all runs, a mean over seeds for each method

The page is one file that works offline: accuracy by iteration with intervals, error classes (Fig. 4a), log-probabilities
through training (Fig. 2), pair yield and time by stage, a table beside the paper's Table 1, what the best policy gets wrong, by
fault and by kind of question, and every held-out question with its gold code and all policies' answers, to filter and sort.
"""

from __future__ import annotations

import base64
import html
import json
import re
import signal
from collections import Counter
from itertools import combinations
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # until data.run takes over: Ctrl-C while the libraries are imported ends it, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import cli
import export_pairs
from cli import UserError
from database import schema
from eval import interval
from run_folder import iterations, read_lines, read_seconds
from verify import VERDICTS

COLOURS = dict(zip(VERDICTS, ("#2a9d8f", "#e9c46a", "#e76f51", "#6d597a", "#457b9d", "#333333")))
# Table 1 and 2 of the paper: Llama-3-8B, EX on Spider and BIRD, pass@1 on DS-1000
PAPER = {
    "spider": {0: 59.3, 1: 67.8, 2: 72.4, 3: 76.6, 4: 76.3},
    "bird": {0: 22.3, 1: 37.8, 2: 40.8, 3: 43.1, 4: 42.6},
    "ds1000": {0: 28.2, 1: 43.2, 2: 46.8, 3: 48.6, 4: 48.2},
}


def load_run(folder: Path) -> dict:
    """Everything the figures need; raises UserError where the folder is not a run with at least π_0's scores."""
    try:
        config = dict(json.loads((folder / "config.json").read_text()))
        done = iterations(folder, "scores.json")
        if not done:
            raise UserError(f"{folder} has no scores yet.")
        run = {
            "name": folder.name,
            "best": json.loads(q.read_text())["best"] if (q := folder / "summary.json").exists() else None,
            "config": config,
            "scores": [dict(json.loads((p / "scores.json").read_text())) for p in done],
            "dev": [read_lines(q) if (q := p / "dev.jsonl").exists() else [] for p in done],
            "train": [read_lines(q) if (q := p / "train.jsonl").exists() else [] for p in done],
            "pairs": [dict(json.loads(q.read_text())) if (q := p / "pairs_summary.json").exists() else {} for p in done],
            "seconds": [read_seconds(p) for p in done],
        }
        for p, scores, rows in zip(done, run["scores"], run["dev"]):
            if "dev" in scores and len(rows) != scores["dev"]["n"]:
                raise UserError(f"{p / 'dev.jsonl'} has {len(rows)} answers, scores.json counts {scores['dev']['n']}.")
        return run
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not the folder of a run: {error}")


def ex_interval(rows: list[dict]) -> tuple[float, float]:
    """95 % bootstrap interval of EX over questions, in points."""
    low, high = interval([row["verdict"] == "correct" for row in rows])
    return 100 * low, 100 * high


def accuracy(runs, ax):
    for run in runs:
        ex = [100 * s["dev"]["ex"] for s in run["scores"] if "dev" in s]
        spread = [ex_interval(rows) for rows in run["dev"]][: len(ex)]
        errors = np.array([[max(0, e - low), max(0, high - e)] for e, (low, high) in zip(ex, spread)]).T
        ax.errorbar(range(len(ex)), ex, yerr=errors, marker="o", capsize=4, label=run["name"])
    ax.set(xlabel="iteration", ylabel="held-out EX, %", title="Accuracy by iteration (95 % bootstrap intervals)")
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    ax.legend(fontsize=8)


def classes(runs, ax):
    scores = [s["dev"] for s in runs[0]["scores"] if "dev" in s]
    bottom = np.zeros(len(scores))
    for verdict in VERDICTS:
        share = np.array([100 * s["classes"][verdict] / max(s["n"], 1) for s in scores])
        ax.bar(range(len(scores)), share, bottom=bottom, color=COLOURS[verdict], label=verdict)
        bottom += share
    ax.set(xlabel="iteration", ylabel="share of held-out questions, %", title="Error classes (Fig. 4a)")
    ax.set_xticks(range(len(scores)))
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def log_probabilities(runs, axes):
    for ax, suffix, title in zip(axes, ("", "_per_token"), ("summed", "per token")):
        start = 0
        for t, rows in enumerate(runs[0]["train"]):
            for kind, colour in (("chosen", COLOURS["correct"]), ("rejected", COLOURS["error"])):
                values = [row[f"{kind}_logp{suffix}"] for row in rows if f"{kind}_logp{suffix}" in row]
                ax.plot(range(start, start + len(values)), values, color=colour, label=kind if t == 1 else None)
            start += len(rows)
            if rows:
                ax.axvline(start, color="#bbbbbb", linewidth=0.8, label="new answers, new pairs" if t == 1 else None)
        ax.set(xlabel="optimizer step", ylabel=f"log π(y|x), {title}", title=f"Log-probabilities, {title} (Fig. 2)")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8)


def yields(runs, ax):
    pairs = runs[0]["pairs"][1:]
    x = np.arange(len(pairs)) + 1
    parts = {
        "answers that are right": [100 * p.get("answers_right", 0) / max(p.get("answers", 1), 1) for p in pairs],
        "questions given the gold code": [
            100 * p.get("questions_given_gold", 0) / max(p.get("questions", 1), 1) for p in pairs
        ],
        "answers repeating themselves": [100 * p.get("answers_degenerate", 0) / max(p.get("answers", 1), 1) for p in pairs],
    }
    for i, (name, share) in enumerate(parts.items()):
        ax.bar(x + (i - 1) * 0.25, share, 0.25, label=name)
    ax.set(xlabel="iteration", ylabel="% of all answers, or of all questions", title="Where the pairs come from")
    ax.set_xticks(x)
    ax.legend(fontsize=8)


def time_by_stage(runs, ax):
    seconds = runs[0]["seconds"]
    bottom = np.zeros(len(seconds))
    for stage in ("sample", "verify", "reference", "train", "score"):
        values = np.array([s.get(stage, 0) / 60 for s in seconds])
        ax.bar(range(len(seconds)), values, bottom=bottom, label=stage)
        bottom += values
    ax.set(xlabel="iteration", ylabel="minutes", title="Time by stage")
    ax.set_xticks(range(len(seconds)))
    ax.legend(fontsize=8)


FIGURES = {"accuracy": (accuracy, 1), "classes": (classes, 1), "logps": (log_probabilities, 2), "yield": (yields, 1),
           "time": (time_by_stage, 1)}  # fmt: skip


def draw(runs, folder: Path) -> dict[str, Path]:
    paths = {}
    for name, (function, columns) in FIGURES.items():
        figure, axes = plt.subplots(1, columns, figsize=(6 * columns, 3.8), layout="constrained")
        function(runs, axes)
        for ax in np.atleast_1d(axes):
            ax.spines[["top", "right"]].set_visible(False)
        paths[name] = folder / f"{name}.png"
        figure.savefig(paths[name], dpi=110)
        plt.close(figure)
    return paths


def html_table(head, rows) -> str:
    """Cells are HTML already."""
    lines = ["".join(f"<{tag}>{cell}</{tag}>" for cell in cells) for tag, cells in [("th", head), *(("td", r) for r in rows)]]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def table(runs) -> str:
    rows, with_paper = [], any(run["config"]["data"] in PAPER for run in runs)
    points = lambda of, key: "" if of.get(key) is None else f"{100 * of[key]:.1f}"  # noqa: E731
    for run in runs:
        for t, scores in enumerate(run["scores"]):
            if dev := scores.get("dev"):
                low, high = ex_interval(run["dev"][t])
                best = " (best on validation)" if t == run["best"] and "validation" in scores else ""
                cells = [html.escape(run["name"]), f"π_{t}{best}", dev["n"], f"{points(dev, 'ex')} ({low:.1f} to {high:.1f})",
                         points(dev, "em"), points(dev, "executable"), points(scores.get("validation", {}), "ex")]  # fmt: skip
                rows.append(cells + [PAPER.get(run["config"]["data"], {}).get(t, "")] * with_paper)
    head = ["run", "policy", "questions", "EX or pass@1, % (95 % interval)", "EM, %", "executable, %", "validation EX, %"]
    return html_table(head + ["EX of the paper's Llama-3-8B"] * with_paper, rows)


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


def faults(rows: list[dict]) -> str:
    """Every fault of one policy's answers by kind, the commonest first."""
    kinds: dict[tuple[str, str], list] = {}
    for row in rows:
        if row["verdict"] != "correct":
            kind, detail = fault(row["message"])
            kinds.setdefault((row["verdict"], kind), []).append((row["index"], detail[:60]))
    lines = []
    for (verdict, kind), cases in sorted(kinds.items(), key=lambda item: -len(item[1])):
        details = [f"{d} ({n})" if n > 1 else d for d, n in Counter(d for _, d in cases if d).most_common(6)]
        numbers = ", ".join(f"#{index}" for index, _ in cases[:6]) + (", …" if len(cases) > 6 else "")
        share = f"{len(cases)} ({len(cases) / len(rows):.0%})"
        lines.append([verdict, html.escape(kind), share, html.escape(", ".join(details)), numbers])
    return html_table(("verdict", "fault", f"answers, of {len(rows)}", "commonest", "questions"), lines)


ORDER = ("easy", "medium", "hard", "extra", "simple", "moderate", "challenging")
CLAUSES = {"JOIN": r"\bjoin\b", "GROUP BY": r"\bgroup\s+by\b", "ORDER BY": r"\border\s+by\b",
           "a set operation": r"\b(union|intersect|except)\b", "a query within the query": r"\(\s*select\b"}  # fmt: skip


def by_kind(run) -> str:
    """EX of every policy by hardness, difficulty or library, and by what the gold query has in it."""
    scored = [(scores["dev"]["groups"], rows) for scores, rows in zip(run["scores"], run["dev"]) if "dev" in scores]
    groups = {name: of["n"] for found, _ in scored for name, of in found.items()}
    rows = []
    for name in sorted(groups, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
        rows.append([html.escape(name), groups[name], *(f"{of[name]['ex']:.1%}" if name in of else "" for of, _ in scored)])
    if run["config"]["data"] != "ds1000":
        has = lambda row: [c for c, p in CLAUSES.items() if re.search(p, row["gold"], re.I)] or ["none of these"]  # noqa: E731
        for clause in (*CLAUSES, "none of these"):
            right = [[row["verdict"] == "correct" for row in of if clause in has(row)] for _, of in scored]
            if any(right):
                rows.append([f"gold query with {clause}", len(right[-1]), *(f"{np.mean(r):.1%}" if r else "" for r in right)])
    return html_table(("kind of question", "questions", *(f"EX of π_{t}" for t in range(len(scored)))), rows)


def schemas(config: dict) -> dict[str, str]:
    """db_id → its CREATE TABLE statements, where the data are still at hand."""
    try:
        questions = data.load(config["data"], config["data_dir"], "dev")[0]
        return {db_id: schema(path) for db_id, path in {q.db_id: q.database for q in questions if q.database}.items()}
    except (UserError, KeyError, OSError):
        return {}


def samples(run) -> list[dict]:
    """One row per held-out question: its text, its gold code, and each policy's answer, verdict, message and kind of fault."""
    by_index: dict[int, dict] = {}
    for t, rows in enumerate(run["dev"]):
        for row in rows:
            entry = by_index.setdefault(row["index"], {k: row.get(k, "") for k in ("index", "db_id", "question", "gold")})
            entry.setdefault("answers", {})[t] = [row["answer"], row["verdict"], row["message"], fault(row["message"])[0]]
    return [by_index[i] for i in sorted(by_index)]


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>codelutra: {name}</title><style>
body{{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1200px;padding:0 1em;color:#222}}
img{{max-width:100%;margin:.5em 0}} table{{border-collapse:collapse;width:100%;margin:.5em 0 1.5em}}
td,th{{border-bottom:1px solid #ddd;padding:.35em .5em;text-align:left;vertical-align:top}}
th{{background:#f6f6f6}} th[data-k]{{cursor:pointer}}
code{{font:13px ui-monospace,monospace;white-space:pre-wrap;word-break:break-word}}
.v{{border-radius:3px;color:#fff;padding:0 .4em;font-size:12px}} {colours} .wrong{{color:#222}} .controls{{margin:1em 0}}
small,dd{{color:#666}} .figures img{{width:49%}} .figures img[alt=logps]{{width:100%}} .wide{{overflow-x:auto}} #q{{width:22em}}
th[data-k]::after{{content:" ↕";color:#999}} dt{{float:left;min-width:6em}}
</style><h1>{name}</h1><p>{summary}</p><div class="wide">{table}</div><h2>What π_{shown} still gets wrong</h2><p>{wrong}</p>
<div class="wide">{faults}</div>
<div class="wide">{kinds}</div><h2>Figures</h2><div class="figures">{figures}</div>
<h2>Held-out questions</h2><dl><dt>correct</dt><dd>the gold query's result, or for DS-1000 the test passes; their share is EX
</dd><dt>wrong</dt><dd>it runs, with another result: too few rows, say, or as many, but other ones (or it is no
query); correct and wrong are the executable ones, but for what is no query</dd><dt>error</dt><dd>it does not
run</dd><dt>denied</dt><dd>it tried to write, load or read what it may not</dd><dt>timeout</dt><dd>it ran too long</dd>
<dt>crash</dt><dd>its process died</dd></dl>
<div class="controls">policy <select id="t"></select> its verdict <select id="v"><option value="">any</option></select> contains
<input id="q" placeholder="text of question, gold, its answer, fault; or #12"> <span id="n"></span></div>
<div class="wide"><table><thead><tr><th data-k="index">#</th><th data-k="db_id">database</th><th data-k="question">question</th>
<th data-k="verdict">answers</th></tr></thead><tbody id="rows"></tbody></table></div><script>
const DATA={rows}, T={count}, VERDICTS={verdicts}, SCHEMAS={schemas};
const $=id=>document.getElementById(id); let key="index", up=1;
for(let t=0;t<T;t++)$("t").add(new Option("π_"+t,t)); $("t").value={shown};
VERDICTS.forEach(v=>$("v").add(new Option(v,v)));
$("v").add(new Option("gained: not correct before","gained")); $("v").add(new Option("lost: correct before","lost"));
const right=(r,t)=>(r.answers[t]||[])[1]==="correct";
const has=(r,t,v)=>!v||r.answers[t][1]===v||
t>0&&right(r,t)!==right(r,t-1)&&v===(right(r,t)?"gained":"lost");
const esc=s=>String(s).replace(/[&<>"]/g,c=>({{"&":"&amp;","<":"&lt;",">":"&gt;",'"':"&quot;"}}[c]));
const database=d=>SCHEMAS[d]?`<details><summary>${{esc(d)}}</summary><code>${{esc(SCHEMAS[d])}}</code></details>`:esc(d);
function draw(){{const t=+$("t").value,v=$("v").value,q=$("q").value.toLowerCase();
let rows=DATA.filter(r=>r.answers[t]&&has(r,t,v)&&(!q||q==="#"+r.index||
[r.db_id,r.question,r.gold,...r.answers[t]].join("\\n").toLowerCase().includes(q)));
const val=r=>key==="verdict"?r.answers[t][1]:r[key];
rows.sort((a,b)=>(val(a)>val(b)?1:val(a)<val(b)?-1:a.index-b.index)*up);
$("n").textContent=rows.length+" of "+DATA.length;
$("rows").innerHTML=rows.map(r=>`<tr><td>${{r.index}}</td><td>${{database(r.db_id)}}</td><td>${{esc(r.question)}}<br>
<small>gold</small> <code>${{esc(r.gold)}}</code></td><td>`+Object.entries(r.answers).map(([i,[a,w,m]])=>
`<div><small>π_${{i}}</small> <span class="v ${{w}}">${{w}}</span> <code>${{esc(a)}}</code> <small>${{esc(m)}}</small></div>`
).join("")+"</td></tr>").join("")}}
["t","v","q"].forEach(id=>$(id).addEventListener("input",draw));
document.querySelectorAll("th[data-k]").forEach(h=>h.onclick=()=>{{up=key===h.dataset.k?-up:1;key=h.dataset.k;draw()}});draw();
</script></html>
"""


def page(runs, figures: dict[str, Path]) -> str:
    run = runs[0]
    images = "".join(
        f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for name, path in figures.items()
    )
    c = run["config"]
    summary = (
        f"{c['model']} on {c['data']}: M = {c['answers']}, K = {c['pairs']}, objective {c['objective']}, β {c['beta']},"
        f" λ {c['lam']}, learning rate {c['lr']}, seed {c['seed']}, {c['precision']};"
        f" {sum(map(len, run['train']))} optimizer steps, pairs of {run['pairs'][-1].get('questions', 0)} training questions."
    )
    shown = len(run["dev"]) - 1 if run["best"] is None else run["best"]
    count = Counter(row["verdict"] for row in run["dev"][shown])
    others = ", ".join(f"{count[v]} {v}" for v in VERDICTS if v != "correct" and count[v])
    script = lambda value: json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")  # noqa: E731 (nothing may close it)
    return PAGE.format(
        name=html.escape(run["name"]), summary=html.escape(summary), table=table(runs), figures=images, count=len(run["dev"]),
        wrong=f"Of {count.total()} held-out questions it answers {count['correct']} right; the others: {others or 'none'}.",
        shown=shown,
        faults=faults(run["dev"][shown]), kinds=by_kind(run), rows=script(samples(run)), verdicts=json.dumps(VERDICTS),
        schemas=script(schemas(c)), colours=" ".join(f".{v}{{background:{colour}}}" for v, colour in COLOURS.items()),
    )  # fmt: skip


NOT_A_METHOD = {"objective", "gold", "seed", "out", "data_dir", "python", "start", "code", "workers", "save_every",
                "iterations", "min_gain", "device"}  # fmt: skip


def method(config: dict, others: list[dict]) -> str:
    """What a run is called beside the others: its objective, and each setting in which some of them differ."""
    objective, gold = config["objective"], config["gold"]
    on_gold = lambda c: (c["objective"], c["gold"]) == ("sft", "only")  # noqa: E731 (its answers train nothing)
    name = {"dual": "codelutra", "dpo": "dpo only"}.get(objective) or ("sft on gold" if on_gold(config) else "positives only")
    differ = [
        k for k in config if k not in NOT_A_METHOD
        and any(o.get(k) != config[k] for o in others if k != "answers" or not (on_gold(o) or on_gold(config)))
    ]  # fmt: skip
    if not on_gold(config) and (gold == "only" or any(o["gold"] not in (gold, "only") for o in others)):
        differ.append("gold")
    return ", ".join([name, *(f"{k} {config[k]}" for k in differ)])


def mean_interval(*groups: np.ndarray, repeats: int = 2000) -> dict:
    """Mean of the first group, less that of the second where there is one, with its 95 % bootstrap interval.

    A group has a row of 0 and 1 for each run, by seed: (runs, questions). Drawn anew are questions and seeds, the same for
    both groups. (Few seeds make it too narrow: what differs between seeds is seen only as far as these few show it.)
    """
    rng, (seeds, count), draws = np.random.default_rng(0), groups[0].shape, []
    for _ in range(repeats):
        drawn = np.ix_(rng.integers(0, seeds, seeds), rng.integers(0, count, count))
        means = [group[drawn].mean() for group in groups]
        draws.append(means[0] - sum(means[1:]))
    low, high = np.percentile(draws, [2.5, 97.5])
    mean = groups[0].mean() - sum(group.mean() for group in groups[1:])
    return {k: round(float(v), 4) for k, v in (("ex", mean), ("low", low), ("high", high))} | {"runs": len(groups[0])}


def results(runs) -> dict:
    """The scores of all runs; for each method the mean EX over its runs, and how far the methods' best policies are apart.

    `best` is the policy that the run itself names. EX, EM and executable are shares. A mean is over those runs that got to that
    iteration, a difference over the seeds that both methods have: `runs` says how many. Raises UserError for runs that cannot
    be compared.
    """
    configs = [run["config"] for run in runs]
    if len({(c["data"], c["model"]) for c in configs}) > 1:
        raise UserError("--results: these runs are not all on one data set and one model.")
    asked = [[q["index"] for q in rows] for run in runs for rows in run["dev"]]
    if not asked[0] or any(indices != asked[0] for indices in asked):
        raise UserError("--results: these runs were not all scored on the same held-out questions.")
    rows, right, last = {}, {}, {}  # right: method → iteration or "best" → seed → which questions are right
    for run in runs:
        name, seed = method(run["config"], configs), run["config"]["seed"]
        if run["best"] is None:
            raise UserError(f"--results: {run['name']} has not ended.")
        if any(row["seed"] == seed for row in rows.get(name, ())):
            raise UserError(f"--results: two runs of {name!r} with seed {seed}.")
        if last.setdefault(name, run["config"]["iterations"]) != run["config"]["iterations"]:
            raise UserError(f"--results: the best of runs of {name!r} with different --iterations have no common mean.")
        for t, scores in enumerate(run["scores"]):
            row = {"seed": seed, "iteration": t} | {k: scores["dev"][k] for k in ("ex", "em", "executable")}
            minutes = round(sum(run["seconds"][t].values()) / 60, 1)
            rows.setdefault(name, []).append(row | {"best": t == run["best"], "minutes": minutes})
            correct = [q["verdict"] == "correct" for q in run["dev"][t]]
            for key in [str(t)] + ["best"] * (t == run["best"]):
                right.setdefault(name, {}).setdefault(key, {})[seed] = correct
    best = {n: of["best"] for n, of in right.items()} | {"π_0": {s: v for of in right.values() for s, v in of["0"].items()}}
    apart = {(a, b): sorted(best[a].keys() & best[b].keys()) for a, b in combinations(best, 2)}
    of_seeds = lambda found, seeds: np.array([found[seed] for seed in seeds], dtype=float)  # noqa: E731
    common = {k: v for k, v in configs[0].items() if all(c.get(k) == v for c in configs)}
    for path in ("out", "data_dir", "python", "start"):  # of this machine alone
        common.pop(path, None)
    return {
        "data": common["data"], "model": common["model"], "split": "dev", "n": len(asked[0]),
        "seeds": sorted({c["seed"] for c in configs}), "code": sorted({code for c in configs for code in c["code"]}),
        "settings": common, "methods": rows,
        "means": {n: {k: mean_interval(of_seeds(v, v)) for k, v in sorted(of.items())} for n, of in right.items()},
        "differences of the best": {
            f"{a} − {b}": mean_interval(of_seeds(best[a], seeds), of_seeds(best[b], seeds))
            for (a, b), seeds in apart.items() if seeds
        },
    }  # fmt: skip


def main(argv=None):
    parser = cli.flags(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders; details are of the first")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--pairs", type=Path, metavar="FILE", help="write the first run's preference pairs here instead")
    only.add_argument("--results", type=Path, metavar="FILE", help="write the scores of all runs here instead")
    args = parser.parse_args(argv)
    for flag, path in (("--pairs", args.pairs), ("--results", args.results)):
        if path:
            cli.check_output(flag, path)
    if args.pairs:
        print(export_pairs.export(args.runs[0], args.pairs))
        return
    runs = [load_run(folder) for folder in args.runs]
    if args.results:
        found = results(runs)
        points = lambda m: f"{100 * m['ex']:.1f} ({100 * m['low']:.1f} to {100 * m['high']:.1f}; {m['runs']})"  # noqa: E731
        args.results.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for name, of in found["means"].items():
            print(f"{name}: " + ", ".join(f"π_{k} {points(m)}".replace("π_best", "best") for k, m in of.items()))
        for name, m in found["differences of the best"].items():
            print(f"{name}: {points(m)}")
        return
    figures = draw(runs, args.runs[0])
    path = args.runs[0] / "report.html"
    path.write_text(page(runs, figures), encoding="utf-8")
    print(f"{path} and {', '.join(p.name for p in figures.values())}")


if __name__ == "__main__":
    cli.run(main)
