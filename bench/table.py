"""The table of an experiment, from the small files that bench/experiment.py keeps of each run.

    python bench/table.py results/experiment/first-*.json [--against gold]

A row for each method and policy π_t: the mean of EX over its seeds, how far it is from the base model and
from the method --against, paired by question and seed, with 95 % bootstrap intervals over both; then its
shares of executable answers and of exact matches, and its steps. The best row comes first. A second table
divides the questions: does the gold query read one table, or several?
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from compare_runs import mean_interval


def load(paths: list[Path]) -> dict[str, dict[int, list[dict]]]:
    """Files SIZE-METHOD-seedN.json → method → seed → iterations; without those that have no scores yet."""
    runs: dict[str, dict[int, list[dict]]] = {}
    sizes = set()
    for path in paths:
        named = re.fullmatch(r"([^-]+)-(.+)-seed(\d+)", path.stem)
        if not named:
            sys.exit(f"{path} is not named SIZE-METHOD-seedN.json, as bench/experiment.py names its files.")
        size, method, seed = named.groups()
        sizes.add(size)
        iterations = [row for row in json.loads(path.read_text())["iterations"] if "scores" in row]
        if len(iterations) > 1:
            runs.setdefault(method, {})[int(seed)] = iterations
    if len(sizes) > 1:
        sys.exit(f"the files are of several sizes: {', '.join(sorted(sizes))}.")
    return runs


def right(iterations: list[dict], t: int) -> np.ndarray:
    """1 for each dev question that π_t answers correctly, else 0: (questions,)."""
    return np.array([letter == "c" for letter in iterations[t]["verdicts"]["dev"]], dtype=float)


def points(found: dict) -> str:
    """A difference and its interval, in points of EX."""
    mean, low, high = (100 * found[key] for key in ("ex", "low", "high"))
    return f"{mean:+.1f} ({low:.1f} to {high:.1f})"


def rows(runs: dict[str, dict[int, list[dict]]], against: str):
    """Each row's cells, with the mean of EX before them."""
    for method, seeds in runs.items():
        for t in range(1, min(map(len, seeds.values()))):
            now = np.array([right(seeds[s], t) for s in sorted(seeds)])
            base = np.array([right(seeds[s], 0) for s in sorted(seeds)])
            # the other method's last policy, for the seeds that both have
            both = sorted(set(seeds) & set(runs.get(against, {})))
            apart = ""
            if both and method != against:
                other = np.array([right(runs[against][s], -1) for s in both])
                apart = points(mean_interval(np.array([right(seeds[s], t) for s in both]), other))
                apart += f", {len(both)} seed{'s' * (len(both) > 1)}"
            dev = [seeds[s][t]["scores"]["dev"] for s in sorted(seeds)]
            executable, em = (100 * np.mean([d[key] for d in dev]) for key in ("executable", "em"))
            each = ", ".join(f"{100 * d['ex']:.1f}" for d in dev)
            steps = "/".join(str(len(seeds[s][t]["train"]["loss"])) for s in sorted(seeds))
            yield now.mean(), [
                f"{method}, π_{t}", f"{100 * now.mean():.1f}", each, points(mean_interval(now, base)), apart,
                f"{executable:.1f}", f"{em:.1f}", steps,
            ]  # fmt: skip


def by_tables(runs: dict[str, dict[int, list[dict]]], against: str):
    """Each policy and its cells, for questions whose gold query reads one table, and for the others.

    EX; how far it is from the method `against` on these questions; for the others the share of answers that
    read fewer tables than the gold query. Runs of other data than SQL have no such counts and are left out.
    """
    runs = {m: seeds for m, seeds in runs.items() if all("tables" in i[0] for i in seeds.values())}
    if not runs:
        return
    first = next(iter(next(iter(runs.values())).values()))
    gold = np.array([int(digit) for digit in first[0]["tables"]["gold"]])
    others = {seed: right(iterations, -1) for seed, iterations in runs.get(against, {}).items()}

    def cells(seeds: dict[int, list[dict]], t: int, other: dict[int, np.ndarray]) -> list[str]:
        now = {seed: right(iterations, t) for seed, iterations in seeds.items()}
        given = np.array([[int(digit) for digit in i[t]["tables"]["answer"]] for i in seeds.values()])
        both = sorted(set(now) & set(other))
        found = []
        for some in (gold == 1, gold > 1):
            apart = [np.array([side[seed][some] for seed in both]) for side in (now, other)]
            found.append(f"{100 * np.mean([values[some] for values in now.values()]):.1f}")
            found.append(points(mean_interval(*apart)) if both else "")
        return [*found, f"{100 * (given < gold)[:, gold > 1].mean():.0f}"]

    yield ["base", *cells({0: first}, 0, {})]
    for method, seeds in runs.items():
        for t in range(1, min(map(len, seeds.values()))):
            yield [f"{method}, π_{t}", *cells(seeds, t, {} if method == against else others)]


def show(heads: list[str], rows: list[list[str]]):
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--against", default="dual", help="the method that the others are compared with")
    args = parser.parse_args()
    runs = load(args.files)
    if args.against not in runs:
        sys.exit(f"there is no run of {args.against} that has ended; there are: {', '.join(runs)}.")
    heads = [
        "policy",
        "EX, %",
        "each seed",
        "to the base",
        f"to {args.against}",
        "executable, %",
        "EM, %",
        "steps",
    ]
    show(heads, [cells for _, cells in sorted(rows(runs, args.against), key=lambda row: -row[0])])
    if divided := list(by_tables(runs, args.against)):
        print("\nEX where the gold query reads one table, and several:\n")
        columns = [
            f"{which}: {name}" for which in ("one", "several") for name in ("EX, %", f"to {args.against}")
        ]
        show(["policy", *columns, "several: fewer tables than gold, %"], divided)


if __name__ == "__main__":
    main()
