"""Runs side by side: intervals, names of methods, means over seeds, differences between methods.

A share of one set of questions has Wilson's interval. A mean over seeds has a bootstrap interval, and so has
the difference between two policies that answered the same questions. All are 95 % intervals. Runs are
dictionaries as `report.load_run` returns them.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from itertools import combinations

import numpy as np

from cli import UserError
from run_folder import FREE
from settings import Config

DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config)}
Z = 1.959964  # the normal distribution has 2.5 % above it


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of the share right / n; (0, 1) where n is 0, since nothing is known.

    Source: E. B. Wilson 1927, "Probable inference, the law of succession, and statistical inference". It
    holds every share p that is at most Z standard errors √(p (1 − p) / n) away from the share seen, so it has
    a width also where all answers are right, or none is.
    """
    if not n:
        return 0.0, 1.0
    share = right / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def share(right: int, n: int) -> dict:
    """The share right / n with Wilson's interval, in the form of `mean_interval`."""
    low, high = wilson(right, n)
    return {"ex": right / max(n, 1), "low": low, "high": high}


def correct(rows: list[dict]) -> np.ndarray:
    """1 for every question that was answered right, else 0: (questions,)."""
    return np.array([row["verdict"] == "correct" for row in rows], dtype=float)


def mean_interval(*groups: np.ndarray, repeats: int = 2000) -> dict:
    """Mean of the first group, less that of the second where there is one, with its 95 % interval.

    A group has a row of 0 and 1 for each run, by seed: (runs, questions), with at least one question. One
    group of one run is a single share and has Wilson's interval. Otherwise questions and seeds are drawn
    anew, the same for both groups. (Few seeds make it too narrow: they show little of how seeds differ.)

    Where all questions came out alike, every draw has the same mean, and the bootstrap's interval would have
    no width. Wilson's bound on the share of questions that come out otherwise takes its place: if 8 of 8
    questions stayed as they were, up to 32 % of all questions may still change.
    """
    seeds, count = groups[0].shape
    values = groups[0] - sum(groups[1:])
    mean, paired = float(values.mean()), len(groups) > 1
    if seeds == 1 and not paired:
        low, high = wilson(int(values.sum()), count)
    elif values.min() == values.max():
        other = wilson(0, count)[1]
        if paired and mean:  # where all were gained, another question may be lost: that moves the mean by 2
            other *= 2
        low, high = max(-1.0 if paired else 0.0, mean - other), min(1.0, mean + other)
    else:
        rng, draws = np.random.default_rng(0), []
        for _ in range(repeats):
            drawn = np.ix_(rng.integers(0, seeds, seeds), rng.integers(0, count, count))
            draws.append(values[drawn].mean())
        low, high = np.percentile(draws, [2.5, 97.5])
    return {k: round(float(v), 4) for k, v in (("ex", mean), ("low", low), ("high", high))} | {"runs": seeds}


def change(after: list[dict], before: list[dict]) -> dict | None:
    """How many questions one policy gained and lost against another, and their difference in EX, `gap`.

    after, before: the answers of both, rows of dev.jsonl or validation.jsonl. Questions that only one of them
    was asked do not count; None where no question is left.
    """
    old = {row["index"]: row for row in before}
    new = [row for row in after if row["index"] in old]
    if not new:
        return None
    now, then = correct(new), correct([old[row["index"]] for row in new])
    return {
        "questions": len(new), "gained": int((now > then).sum()), "lost": int((now < then).sum()),
        "gap": mean_interval(now[None], then[None]),
    }  # fmt: skip


# what a method's name does not say, besides what may change when a run is resumed
UNNAMED = FREE | {"objective", "gold", "seed", "data_dir", "python", "device", "batch_tokens",
                  "allow_unsandboxed"}  # fmt: skip


def method(config: dict, others: list[dict]) -> str:
    """What a run is called beside others: its objective, and each setting in which some of them differ."""
    objective, gold = config["objective"], config["gold"]

    def on_gold(c: dict) -> bool:  # its answers train nothing
        return (c["objective"], c["gold"]) == ("sft", "only")

    def value(c: dict, k: str):  # a setting that is newer than the run had its default's effect
        return ("an adapter" if c.get(k) else "none") if k == "start" else c.get(k, DEFAULTS.get(k))

    name = {"dual": "codelutra", "dpo": "dpo only"}.get(objective)
    name = name or ("sft on gold" if on_gold(config) else "positives only")
    differ = []
    for k in DEFAULTS:
        comparable = [o for o in others if k != "answers" or not (on_gold(o) or on_gold(config))]
        if k not in UNNAMED and any(value(o, k) != value(config, k) for o in comparable):
            differ.append(k)
    if not on_gold(config) and (gold == "only" or any(o["gold"] not in (gold, "only") for o in others)):
        differ.append("gold")
    return ", ".join([name, *(f"{k} {value(config, k)}" for k in differ)])


def methods(runs: list[dict]) -> list[str]:
    """The name of each run's method. Runs of other code have the same settings: then the folder names them.

    That is so where two runs of one seed would have the same name; "-seed0" is no part of a method's name.
    """
    configs = [run["config"] for run in runs]
    names = [method(config, configs) for config in configs]
    count = Counter((name, run["config"]["seed"]) for name, run in zip(names, runs))
    twice = {name for (name, _), n in count.items() if n > 1}
    folders = [run["name"].removesuffix(f"-seed{run['config']['seed']}") for run in runs]
    return [f"{name}, {folder}" if name in twice else name for name, folder in zip(names, folders)]


def side_by_side(runs: list[dict]) -> tuple[list[dict], list[str]]:
    """The table of several runs, and sentences that say which means over seeds it cannot have.

    Methods stand in the order in which they are first met. Each has a row for every run and policy, by seed,
    then the mean over its seeds for every policy that at least two of its runs have, and for the best ones.
    `gap` is the difference in EX to π_0 of the same run; em and executable are shares.
    """
    by_method, rows, notes = {}, [], []
    for name, run in zip(methods(runs), runs):
        by_method.setdefault(name, []).append(run)
    for name, members in by_method.items():
        members.sort(key=lambda run: run["config"]["seed"])
        for run in members:
            for t, (answers, scores) in enumerate(zip(run["dev"], run["scores"])):
                if not answers:
                    continue
                since_base = change(answers, run["dev"][0]) if t else None
                rows.append({
                    "method": name, "data": run["config"]["data"], "run": run["name"],
                    "seed": run["config"]["seed"], "policy": t, "best": t == run["best"], "n": len(answers),
                    "ex": share(int(correct(answers).sum()), len(answers)),
                    "em": scores["dev"]["em"], "executable": scores["dev"]["executable"],
                    "gap": since_base and since_base["gap"],
                })  # fmt: skip
        if len(members) > 1:
            means, missing = means_over_seeds(members)
            rows += [{"method": name, "data": members[0]["config"]["data"]} | row for row in means]
            notes += [f"{name}: {sentence}" for sentence in missing]
    return rows, notes


def means_over_seeds(runs: list[dict]) -> tuple[list[dict], list[str]]:
    """Rows of `side_by_side` with the means over these runs of one method, and why some are missing."""
    asked = [[row["index"] for row in answers] for run in runs for answers in run["dev"]]
    if not asked[0] or any(indices != asked[0] for indices in asked):
        return [], ["no means, since its runs were not all scored on the same held-out questions."]
    if len({run["config"]["seed"] for run in runs}) < len(runs):
        return [], ["no means, since two of its runs have the same seed."]
    policies: dict[int | str, list] = {}  # 0, 1, … or "best" → (run, iteration) of each run that has it
    for run in runs:
        for t in range(len(run["dev"])):
            policies.setdefault(t, []).append((run, t))
    notes = []
    if len({run["config"]["iterations"] for run in runs}) > 1:
        notes.append("no mean of the best policies, since its runs have different --iterations.")
    elif any(run["best"] is None for run in runs):
        notes.append("no mean of the best policies, since one of its runs has not ended.")
    else:
        policies["best"] = [(run, run["best"]) for run in runs]
    rows = []
    for policy, members in policies.items():
        if len(members) < 2:
            continue
        scores = [run["scores"][t]["dev"] for run, t in members]
        now = np.array([correct(run["dev"][t]) for run, t in members])
        base = np.array([correct(run["dev"][0]) for run, _ in members])
        ems = [s["em"] for s in scores if s["em"] is not None]
        rows.append({
            "run": "", "seed": f"mean of {len(members)} seeds", "policy": policy, "best": False,
            "n": now.shape[1], "ex": mean_interval(now),
            "em": float(np.mean(ems)) if len(ems) == len(members) else None,
            "executable": float(np.mean([s["executable"] for s in scores])),
            "gap": None if policy == 0 else mean_interval(now, base),
        })  # fmt: skip
    return rows, notes


def results(runs: list[dict]) -> dict:
    """All scores; each method's mean EX over its runs, and how far the methods' best policies are apart.

    `best` is the policy that the run itself names. EX, EM and executable are shares. A mean is over those
    runs that got to that iteration, a difference over the seeds that both methods have: `runs` says how many.
    Raises UserError for runs that cannot be compared.
    """
    configs = [run["config"] for run in runs]
    if len({(c["data"], c["model"]) for c in configs}) > 1:
        raise UserError("these runs are not all on one data set and one model.")
    asked = [[q["index"] for q in rows] for run in runs for rows in run["dev"]]
    if not asked[0] or any(indices != asked[0] for indices in asked):
        scored = ", ".join(f"{run['name']} on {len(run['dev'][0])}" for run in runs)
        raise UserError(f"these runs were not all scored on the same held-out questions: {scored}.")
    rows, right, last = {}, {}, {}  # right: method → iteration or "best" → seed → which questions are right
    for name, run in zip(methods(runs), runs):
        seed = run["config"]["seed"]
        if run["best"] is None:
            raise UserError(f"{run['name']} has not ended.")
        if any(row["seed"] == seed for row in rows.get(name, ())):
            raise UserError(f"two runs of {name!r} with seed {seed}.")
        if last.setdefault(name, run["config"]["iterations"]) != run["config"]["iterations"]:
            raise UserError(f"the best of runs of {name!r} with different --iterations have no common mean.")
        for t, scores in enumerate(run["scores"]):
            row = {"seed": seed, "iteration": t} | {k: scores["dev"][k] for k in ("ex", "em", "executable")}
            minutes = round(sum(run["seconds"][t].values()) / 60, 1)
            rows.setdefault(name, []).append(row | {"best": t == run["best"], "minutes": minutes})
            for key in [str(t)] + ["best"] * (t == run["best"]):
                right.setdefault(name, {}).setdefault(key, {})[seed] = correct(run["dev"][t])
    best = {name: policies["best"] for name, policies in right.items()}
    best["π_0"] = {seed: v for policies in right.values() for seed, v in policies["0"].items()}
    apart = {(a, b): sorted(best[a].keys() & best[b].keys()) for a, b in combinations(best, 2)}
    common = {k: v for k, v in configs[0].items() if all(c.get(k) == v for c in configs)}
    for path in ("out", "data_dir", "python", "start"):  # of this machine alone
        common.pop(path, None)
    return {
        "data": common["data"], "model": common["model"], "split": "dev", "n": len(asked[0]),
        "seeds": sorted({c["seed"] for c in configs}),
        "code": sorted({code for c in configs for code in c["code"]}),
        "settings": common, "methods": rows,
        "means": {
            name: {t: mean_interval(np.array([*by_seed.values()])) for t, by_seed in sorted(policies.items())}
            for name, policies in right.items()
        },
        "differences of the best": {
            f"{a} − {b}": mean_interval(*(np.array([best[name][s] for s in seeds]) for name in (a, b)))
            for (a, b), seeds in apart.items() if seeds
        },
    }  # fmt: skip
