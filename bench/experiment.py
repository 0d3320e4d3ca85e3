"""The paper's comparison on one base model: many runs of codelutra.py, one by one, from the same draws.

    python bench/experiment.py --data spider --data-dir PATH         one seed, 256 questions, one iteration
    python bench/experiment.py --data spider --data-dir PATH --size paper --seeds 0 1 2 --minutes 28

Each run is a folder under --out; the same command resumes. What runs of one size and seed have in common is
made once and copied: the base model's scores, the answers that it draws in iteration 1 with their verdicts,
their pairs and the reference's log-probabilities. With --minutes it stops in time (a run that is in training
writes a checkpoint first). When a run ends, its settings, scores, verdicts and training curves are
written to --results, one small JSON file a run; bench/table.py makes a table of them.
"""

import argparse
import dataclasses
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.variants import VARIANTS, parts, tables
from policy import settled, today
from run_folder import read_lines, write_settings
from settings import parse

ROOT = Path(__file__).resolve().parent.parent
# settings of all runs of a size
SIZES = {
    "tiny": "--limit 8 --validation 4 --eval-limit 8 --answers 2 --pairs 2 --iterations 1 --max-new 24",
    "first": "--limit 256 --validation 60 --answers 8 --pairs 4 --iterations 1 --lr 1e-4 --step-databases 1",
    "middle": "--limit 1000 --answers 8 --pairs 4 --iterations 3 --lr 1e-4 --step-databases 1 --min-gain -1",
    "paper": "--step-databases 1 --min-gain -1",
}
# fine-tuning: one pair a question, and as many epochs as CodeLutra has pairs
GOLD = "--gold only --objective sft"
# what a method has beside them; {k} is the size's K
METHODS = {
    "dual": "",
    "dual-sum": "--sft-reduction sum",
    "positives": "--objective sft",
    "gold": GOLD + " --pairs 1 --epochs {k} --iterations 1",
    "dpo": "--objective dpo",
    "dual-lam5": "--lam 5",
    "dual-beta.02": "--beta 0.02",
    "dual-beta.5": "--beta 0.5",
    "dual-lr3e-5": "--lr 3e-5",
}
METHODS |= dict.fromkeys([*VARIANTS, "dpop+nearest", "dpop+running"], "")  # bench/variants.py
# logps per token make a margin some 25 times smaller; a plan needs room
METHODS |= {"normalised": "--sft-reduction sum --beta 2.5", "planned": "--max-new 192"}
# files that two runs of one seed share, and what must be equal for it
BASE = ("scores.json", "dev.jsonl", "validation.jsonl", "seconds.json")
SAME = (
    "own_prompts", "model", "start", "precision", "data", "limit", "validation", "eval_limit", "keep_empty",
    "max_length", "max_new",
)  # fmt: skip
DRAWN = (*SAME, "draws", "answers", "temperature", "top_p", "criterion")
SHARED = [
    (("questions.json", *(f"iter_0/{name}" for name in BASE)), SAME),
    (("iter_1/answers.jsonl", "iter_1/verdicts.jsonl"), DRAWN),
    (
        ("iter_1/pairs.jsonl", "iter_1/pairs_summary.json", "iter_1/reference.safetensors"),
        (*DRAWN, "objective", "pairs", "gold", "own_pairs"),
    ),
]


def command(args, method: str, seed: int) -> list[str]:
    size = SIZES[args.size].split()
    k = size[size.index("--pairs") + 1] if "--pairs" in size else "10"
    if GOLD in METHODS[method] and "--answers" in size:  # it draws none, and the flag is refused
        at = size.index("--answers")
        del size[at : at + 2]
    flags = [*size, *METHODS[method].format(k=k).split(), *shlex.split(args.flags)]
    return [
        "--model", args.model, "--data", args.data, *(["--data-dir", args.data_dir] if args.data_dir else []),
        "--seed", str(seed), *flags, "--out", str(args.out / f"{args.size}-{method}-seed{seed}"),
    ]  # fmt: skip


def sharing(run: Path, config: dict) -> dict:
    """The settings of a run that say what it shares, and what its variant makes for itself alone."""
    method = run.name.split("-seed")[0].split("-", 1)[1]
    shares = {variant.shares for variant in parts(method)}
    # the dual loss and DPO compare the same answers
    objective = "sft" if config["objective"] == "sft" else "pairs"
    draws = (config["gold"], config["objective"]) != ("only", "sft")
    return config | {
        "objective": objective,
        "draws": draws,
        "own_prompts": run.name if "nothing" in shares else None,
        "own_pairs": run.name if shares - {"pairs"} else None,
    }


def begin(arguments: list[str]):
    """Give a run what it shares with its neighbours of the same size and seed, where one has it already."""
    config = settled(parse(arguments))
    run = Path(config.out)
    if (run / "config.json").exists():
        return
    ours, day = sharing(run, dataclasses.asdict(config)), None
    size, seed = run.name.split("-")[0], run.name.rsplit("-", 1)[1]
    for other in sorted(run.parent.glob(f"{size}-*-{seed}/config.json")):
        begun = json.loads(other.read_text())
        theirs, day = sharing(other.parent, begun), begun.get("day") or day
        for names, settings in SHARED:
            used = "draws" not in settings or config.draws
            if used and all(theirs[name] == ours[name] for name in settings):
                for name in names:
                    if (other.parent / name).exists() and not (run / name).exists():
                        (run / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy(other.parent / name, run / name)
    if run.exists():
        write_settings(config, run, day or today())


def letters(answers: Path) -> str:
    """The verdicts of a file of scored answers, one letter each, "-" for none: c, w, e, d, t, x (crash)."""
    verdicts = [row["verdict"] for row in read_lines(answers)]
    return "".join("x" if verdict == "crash" else (verdict or "-")[0] for verdict in verdicts)


def table_counts(answers: Path) -> dict[str, str]:
    """How many tables each question's gold query and its answer read, a digit each (9: or more)."""
    rows = read_lines(answers)
    return {key: "".join(str(min(tables(row[key]), 9)) for row in rows) for key in ("gold", "answer")}


def collect(run: Path, results: Path):
    """What is worth keeping of a run: settings, scores and verdicts, pairs, seconds, training curves."""
    iterations = []
    config = json.loads((run / "config.json").read_text())
    for folder in sorted(run.glob("iter_*"), key=lambda path: int(path.name[5:])):
        row = {
            name: json.loads((folder / f"{name}.json").read_text())
            for name in ("scores", "pairs_summary", "seconds")
            if (folder / f"{name}.json").exists()
        }
        row["verdicts"] = {
            name: letters(folder / f"{name}.jsonl")
            for name in ("validation", "dev")
            if (folder / f"{name}.jsonl").exists()
        }
        if config["data"] in ("spider", "bird") and (folder / "dev.jsonl").exists():
            row["tables"] = table_counts(folder / "dev.jsonl")
        if (folder / "train.jsonl").exists():
            steps = read_lines(folder / "train.jsonl")
            row["train"] = (
                {key: [float(f"{step[key]:.4g}") for step in steps] for key in steps[0]} if steps else {}
            )
        iterations.append(row)
    results.mkdir(parents=True, exist_ok=True)
    for place in ("data_dir", "out", "python"):  # of the machine, not of the result
        config.pop(place, None)
    kept = {"config": config, "iterations": iterations}
    (results / f"{run.name}.json").write_text(json.dumps(kept) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="coder")
    parser.add_argument("--data", default="spider")
    parser.add_argument("--data-dir")
    parser.add_argument("--size", default="first", choices=list(SIZES))
    parser.add_argument(
        "--methods", nargs="+", default=["dual", "positives", "gold", "dpo"], choices=list(METHODS)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--flags", default="", help="further flags of codelutra.py for every run, as one text"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--out", type=Path, default=Path("runs/experiment"))
    parser.add_argument("--results", type=Path, default=Path("results/experiment"))
    args = parser.parse_args()
    end = time.time() + 60 * args.minutes
    for seed in args.seeds:
        for method in args.methods:
            arguments = command(args, method, seed)
            run = Path(arguments[-1])
            if (run / "summary.json").exists():
                collect(run, args.results)
                continue
            if time.time() >= end:
                print("the time is over; the same command resumes")
                return
            begin(arguments)
            print(f"== {run.name}, {time.strftime('%H:%M')}", flush=True)
            program = [ROOT / "bench/variants.py", method] if parts(method) else [ROOT / "codelutra.py"]
            process, stopped = subprocess.Popen([sys.executable, *program, *arguments]), False
            try:
                process.wait(max(0, end - time.time()) if end < float("inf") else None)
            except subprocess.TimeoutExpired:
                stopped = True
                process.send_signal(signal.SIGINT)
                process.wait()
            if (run / "config.json").exists():
                collect(run, args.results)
            if process.returncode and not stopped:
                sys.exit(f"{run.name} ended with exit code {process.returncode}")


if __name__ == "__main__":
    main()
