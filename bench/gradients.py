"""What a pair's gradient is made of: the lengths of its answers' gradients, and the angle between them.

    python bench/gradients.py RUN --questions 40 --out results/gradients.json

For the policy that drew iteration 1, and some questions of its pairs: the gradient of log π(y|x)
with respect to the adapter, for every distinct answer. Printed by verdict: log-probability, tokens, norm. For
pairs: the cosine between the gradients of the chosen and the rejected answer. Where it is near 1, a step that
lowers the rejected answer lowers the chosen one as much (likelihood displacement, Razin et al. 2024). DPO's
first step is β/2 (gradient of the chosen − gradient of the rejected).
"""

import argparse
import json
import random
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np
import torch
from tqdm import tqdm

import data
import lora
from policy import load_policy
from run_folder import read_json
from stages import read_answers, read_pairs, read_verdicts
from tree import Tree, answer_logps
from verify import Verdict


def kind(verdict: Verdict | None) -> str:
    """An answer's class: gold code that was not drawn, right, another result, or why it does not run."""
    if verdict is None:
        return "gold"
    if verdict.verdict == "correct":
        return "right"
    if verdict.ran:
        return "runs, another result"
    return "no such column or table" if verdict.message.startswith("no such") else "does not run otherwise"


def gradients(policy, prompt: list[int], answers: list[tuple[int, ...]]) -> tuple[list[float], torch.Tensor]:
    """log π of each answer, and its gradient with respect to the adapter: (answers, weights)."""
    parameters = lora.parameters(policy.model)
    with policy.autocast():
        logps = answer_logps(policy.model, Tree([prompt], [answers], policy.device))
    rows = []
    for logp in logps:
        parts = torch.autograd.grad(logp, parameters, retain_graph=True)
        rows.append(torch.cat([part.flatten() for part in parts]))
    return logps.tolist(), torch.stack(rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    config, folder = read_json(args.run / "config.json"), args.run / "iter_1"
    questions = {q.index: q for q in data.load(config["data"], config["data_dir"], "train")[0]}
    verdicts = {
        (answer.question, answer.ids): verdict
        for answer, verdict in zip(
            read_answers(folder / "answers.jsonl"), read_verdicts(folder / "verdicts.jsonl")
        )
    }
    policy = load_policy(config["model"], config["precision"], config["device"])
    lora.inject(policy.model, config["lora_rank"], config["lora_alpha"], config["seed"])
    policy.day = config.get("day") or policy.day
    pairs = [p for p in read_pairs(folder / "pairs.jsonl") if any(r is not None for _, r in p.pairs)]
    answers, compared = defaultdict(list), defaultdict(list)
    for p in tqdm(random.Random(0).sample(pairs, min(args.questions, len(pairs)))):
        logps, rows = gradients(policy, policy.prompt_ids(questions[p.question]), p.answers)
        norms = rows.norm(dim=1)
        kinds = [kind(verdicts.get((p.question, ids))) for ids in p.answers]
        for ids, logp, norm, name in zip(p.answers, logps, norms.tolist(), kinds):
            answers[name].append((logp, len(ids), norm))
        for chosen, rejected in set(p.pairs):
            cosine = float(rows[chosen] @ rows[rejected] / (norms[chosen] * norms[rejected]))
            # a small step on chosen − rejected adds to the chosen one, against a step on the chosen alone
            raised = 1 - cosine * float(norms[rejected] / norms[chosen])
            share = float(norms[rejected] ** 2 / (norms[chosen] ** 2 + norms[rejected] ** 2))
            compared[kinds[rejected]].append((cosine, raised, share))
    result = {"run": args.run.name, "answers": {}, "pairs": {}}
    print(f"{'answers':28}{'n':>5}{'log π':>9}{'tokens':>8}{'norm':>8}{'norm per token':>16}   (medians)")
    for name, values in sorted(answers.items()):
        logp, tokens, norm = np.median(np.array(values), 0)
        each = float(np.median([n / t for _, t, n in values]))
        result["answers"][name] = {
            "n": len(values),
            "logp": logp,
            "tokens": tokens,
            "norm": norm,
            "per_token": each,
        }
        print(f"{name:28}{len(values):5}{logp:9.1f}{tokens:8.0f}{norm:8.1f}{each:16.2f}")
    print(f"\n{'pairs, by the rejected one':28}{'n':>5}{'cosine':>9}{'raised':>9}{'share':>8}   (medians)")
    for name, values in sorted(compared.items()):
        cosine, raised, share = np.median(np.array(values), 0)
        result["pairs"][name] = {
            "n": len(values),
            "cosine": cosine,
            "raised": raised,
            "rejected_share": share,
        }
        print(f"{name:28}{len(values):5}{cosine:9.2f}{raised:9.2f}{share:8.0%}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
