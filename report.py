"""Figures and one page from run folders.

    python report.py RUN                        writes report.html and PNG figures into the run's folder
    python report.py RUN RUN …                  the same for the first run, and compares all of them
    python report.py RUN --pairs FILE           writes its preference pairs as JSON lines, for TRL's trainers
    python report.py RUN RUN … --results FILE   writes the scores of all runs, and means over seeds

The page (page.py, page.html) is one file that works offline. From top to bottom: what the run was, its
policies beside the paper's Table 1, questions gained and lost, what each policy gets wrong, training curves
(Fig. 2), figures (Fig. 4a), and every question to filter and sort, with all policies' answers or with the
pairs that were trained on.
"""

from __future__ import annotations

import json
from pathlib import Path

import cli
import flags

if __name__ == "__main__":
    cli.begin(flags.report, __doc__, "matplotlib", "jinja2")

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import export_pairs
from cli import UserError
from compare_runs import correct, results, share
from page import page
from run_folder import iterations, read_lines, read_seconds
from verify import VERDICTS

BESIDE = {"fontsize": 8, "loc": "center left", "bbox_to_anchor": (1, 0.5)}  # a legend that covers no bar
COLOURS = dict(zip(VERDICTS, ("#2a9d8f", "#e9c46a", "#e76f51", "#6d597a", "#457b9d", "#333333")))


def answered(row: dict) -> dict:
    """A row of dev.jsonl or validation.jsonl; raises where the page could not show it."""
    texts = [row[k] for k in ("db_id", "question", "gold", "answer", "message")]
    if any(type(text) is not str for text in texts) or type(row["index"]) is not int:
        raise ValueError(f"a field of another type: {row}")
    if row["verdict"] not in VERDICTS:
        raise ValueError(f"no such verdict: {row['verdict']!r}")
    return row


# the settings that are read here, in page.py and in compare_runs.py
SETTINGS = ("model", "start", "data", "data_dir", "seed", "iterations", "answers", "pairs", "objective",
            "gold", "criterion", "beta", "lam", "lr", "code")  # fmt: skip


def load_run(folder: Path) -> dict:
    """What the page and the comparison need of a run; raises UserError where π_0's scores are missing."""

    def read(path: Path) -> dict:
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def lines(name: str, kind) -> list[list]:
        return [read_lines(p / name, kind) if (p / name).exists() else [] for p in done]

    if not (folder / "config.json").exists():
        raise UserError(f"{folder} is not the folder of a run: it has no config.json.")
    try:
        config = read(folder / "config.json")
        if absent := [name for name in SETTINGS if name not in config]:
            raise ValueError(f"config.json has no {', '.join(absent)}")
        done = iterations(folder, "scores.json")
        if not done:
            raise UserError(f"{folder} has no scores yet.")
        run: dict = {
            "name": folder.resolve().name,
            "folders": done,
            "config": config,
            "scores": [read(p / "scores.json") for p in done],
            "validation": lines("validation.jsonl", answered),
            "dev": lines("dev.jsonl", answered),
            "train": lines("train.jsonl", dict),
            "pairs": [read(q) if (q := p / "pairs_summary.json").exists() else {} for p in done],
            "seconds": [read_seconds(p) for p in done],
            "best": None,  # until the run has ended
        }
        for split in ("validation", "dev"):
            for t, scores in enumerate(run["scores"]):
                if split not in scores:
                    run[split][t] = []
                    continue
                for name in ("n", "ex", "em", "executable", "classes", "groups"):
                    scores[split][name]
                if len(run[split][t]) != scores[split]["n"]:
                    counted = f"{len(run[split][t])} answers, scores.json counts {scores[split]['n']}"
                    raise UserError(f"{done[t] / split}.jsonl has {counted}.")
        if (path := folder / "summary.json").exists():
            summary = read(path)
            if len(summary["scores"]) == len(done):  # else it had ended, and goes on with more iterations
                run["best"] = range(len(done)).index(summary["best"])
        return run
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder} is not the folder of a run: {type(error).__name__}: {error}")


# ---- PNG figures ---------------------------------------------------------------------------------


def accuracy(runs, ax):
    for run in runs:
        ex = [100 * s["dev"]["ex"] for s in run["scores"] if "dev" in s]
        spread = [share(int(correct(rows).sum()), len(rows)) for rows in run["dev"]][: len(ex)]
        errors = 100 * np.array([[m["ex"] - m["low"], m["high"] - m["ex"]] for m in spread]).clip(0).T
        name = run["name"].replace("$", r"\$")  # or matplotlib reads a formula
        ax.errorbar(range(len(ex)), ex, yerr=errors, marker="o", capsize=4, label=name)
    ax.set(xlabel="iteration", ylabel="held-out EX, %", title="Accuracy by iteration (95 % intervals)")
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
    ax.legend(**BESIDE)


def log_probabilities(runs, axes):
    for ax, suffix, title in zip(axes, ("", "_per_token"), ("summed", "per token")):
        start = 0
        for t, rows in enumerate(runs[0]["train"]):
            for kind, colour in (("chosen", COLOURS["correct"]), ("rejected", COLOURS["error"])):
                values = [row[f"{kind}_logp{suffix}"] for row in rows if f"{kind}_logp{suffix}" in row]
                label = kind if t == 1 else None
                ax.plot(range(start, start + len(values)), values, color=colour, label=label)
            start += len(rows)
            if rows:
                label = "new answers, new pairs" if t == 1 else None
                ax.axvline(start, color="#bbbbbb", linewidth=0.8, label=label)
        ax.set(xlabel="optimizer step", ylabel=f"log π(y|x), {title}")
        ax.set_title(f"Log-probabilities, {title} (Fig. 2)")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8)


def yields(runs, ax):
    pairs = runs[0]["pairs"][1:]
    x = np.arange(len(pairs)) + 1
    parts = {
        "answers that are right": ("answers_right", "answers"),
        "questions given the gold code": ("questions_given_gold", "questions"),
        "answers repeating themselves": ("answers_degenerate", "answers"),
    }
    for i, (name, (part, whole)) in enumerate(parts.items()):
        shares = [100 * p.get(part, 0) / max(p.get(whole, 1), 1) for p in pairs]
        ax.bar(x + (i - 1) * 0.25, shares, 0.25, label=name)
    ax.set(xlabel="iteration", ylabel="% of all answers, or of all questions")
    ax.set_title("Where the pairs come from")
    ax.set_xticks(x)
    ax.legend(**BESIDE)


def time_by_stage(runs, ax):
    seconds = runs[0]["seconds"]
    bottom = np.zeros(len(seconds))
    for stage in ("sample", "verify", "reference", "train", "score"):
        values = np.array([s.get(stage, 0) / 60 for s in seconds])
        ax.bar(range(len(seconds)), values, bottom=bottom, label=stage)
        bottom += values
    ax.set(xlabel="iteration", ylabel="minutes", title="Time by stage")
    ax.set_xticks(range(len(seconds)))
    ax.legend(**BESIDE)


FIGURES = {"accuracy": (accuracy, 1), "classes": (classes, 1), "logps": (log_probabilities, 2),
           "yield": (yields, 1), "time": (time_by_stage, 1)}  # fmt: skip


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


def main(argv: list[str] | None = None):
    args = flags.report(argv, __doc__)
    for flag, path in (("--pairs", args.pairs), ("--results", args.results)):
        if path:
            cli.check_output(flag, path)
    if args.pairs:
        print(export_pairs.export(args.runs[0], args.pairs))
        return
    runs = [load_run(folder) for folder in args.runs]
    if args.results:
        found = results(runs)

        def points(m: dict) -> str:
            return f"{100 * m['ex']:.1f} ({100 * m['low']:.1f} to {100 * m['high']:.1f}; {m['runs']})"

        args.results.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for name, policies in found["means"].items():
            means = ", ".join(f"π_{t} {points(m)}" for t, m in policies.items())
            print(f"{name}: {means.replace('π_best', 'best')}")
        for name, m in found["differences of the best"].items():
            print(f"{name}: {points(m)}")
        return
    figures = draw(runs, args.runs[0])
    path = args.runs[0] / "report.html"
    text = page(runs, figures)
    path.write_text(text, encoding="utf-8", errors="replace")  # an answer may hold half of a surrogate pair
    for run in runs:
        if run["best"] is None:
            print(f"{run['name']} has not ended: it has scores until π_{len(run['scores']) - 1}")
    print(f"{path} and {', '.join(p.name for p in figures.values())}")


if __name__ == "__main__":
    cli.run(main)
