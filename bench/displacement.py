"""How far training moved what the base model knew: its own right answers to the dev questions.

    python bench/displacement.py runs/experiment/first-dual-seed0 runs/experiment/first-positives-seed0 …

For each run (a folder of codelutra.py on Spider or BIRD): the mean of log π_t(ŷ|x) − log π_0(ŷ|x), in nats,
over the code ŷ of π_0's greedy answers that were right, apart for code that reads one table and more. No
method was trained on these questions. Where π_0's right answers fall, the rejected ones took from them what
they share (likelihood displacement: Razin et al. 2024). Then, for each run with rejected answers, how many of
the chosen and of the rejected answers in its pairs read several tables: a policy can tell them apart by that.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch

import data
import lora
from bench.variants import tables
from pairs import QuestionPairs
from policy import Policy, load_policy
from prompts import code_ids
from refine import reference_logps
from run_folder import read_lines
from settings import Config
from stages import read_answers, read_pairs, read_verdicts


def pairs_by_tables(run: Path, t: int, policy: Policy) -> dict[str, tuple[int, float, float]]:
    """{own, gold: (pairs, share of chosen and of rejected answers that read several tables)}.

    own: the chosen answer was drawn from the policy. gold: no drawn answer was right.
    """
    folder = run / f"iter_{t}"
    drawn = zip(read_answers(folder / "answers.jsonl"), read_verdicts(folder / "verdicts.jsonl"), strict=True)
    own = {(answer.question, answer.ids) for answer, verdict in drawn if verdict.verdict == "correct"}
    found: dict[str, list[tuple[bool, bool]]] = {}
    for p in read_pairs(folder / "pairs.jsonl"):
        several = [tables(policy.tokenizer.decode(ids)) > 1 for ids in p.answers]
        for chosen, rejected in p.pairs:
            whose = "own" if (p.question, p.answers[chosen]) in own else "gold"
            found.setdefault(whose, []).append((several[chosen], several[rejected]))
    return {
        whose: (len(rows), *(sum(side) / len(rows) for side in zip(*rows))) for whose, rows in found.items()
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="runs of one base model on one data set")
    parser.add_argument("--iteration", type=int, default=1, help="t, of π_t")
    args = parser.parse_args()
    config = json.loads((args.runs[0] / "config.json").read_text())
    settings = Config(train_tokens=config["train_tokens"])
    questions = {q.index: q for q in data.load(config["data"], config["data_dir"], "dev")[0]}
    policy = load_policy(config["model"], config["precision"], config["device"])
    policy.day = config.get("day") or policy.day  # a chat template may print it
    if config["start"]:
        lora.load(policy.model, Path(config["start"]))
    right = [row for row in read_lines(args.runs[0] / "iter_0/dev.jsonl") if row["verdict"] == "correct"]
    prompts = [policy.prompt_ids(questions[row["index"]]) for row in right]
    answers = [QuestionPairs(row["index"], (code_ids(row["answer"], policy.tokenizer),), ()) for row in right]
    several = torch.tensor([tables(row["answer"]) > 1 for row in right])
    before = torch.cat(reference_logps(settings, policy, prompts, answers))
    print(f"| nats an answer | one table ({(~several).sum()}) | more ({several.sum()}) |\n|---|---|---|")
    for run in args.runs:
        lora.load(policy.model, run / f"iter_{args.iteration}" / "adapter")
        moved = torch.cat(reference_logps(settings, policy, prompts, answers)) - before
        print(f"| {run.name} | {moved[~several].mean():+.2f} | {moved[several].mean():+.2f} |", flush=True)
    print("\n| pairs | chosen is | pairs | chosen, several tables, % | rejected, % |\n|---|---|---|---|---|")
    for run in args.runs:
        if json.loads((run / "config.json").read_text())["objective"] != "sft":
            for whose, (n, c, r) in pairs_by_tables(run, args.iteration, policy).items():
                print(f"| {run.name} | {whose} | {n} | {100 * c:.0f} | {100 * r:.0f} |")


if __name__ == "__main__":
    main()
