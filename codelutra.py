"""CodeLutra: iterative preference-guided refinement from a model's own right and wrong code (Algorithm 1).

    python codelutra.py                      SmolLM2-135M on the bundled set, sized for two CPU cores
    python codelutra.py --model meta-llama/Meta-Llama-3-8B --data bird

In every iteration the policy answers each question M times, execution sorts the answers into chosen and
rejected, K pairs are drawn, and one epoch of the dual loss (DPO + λ SFT, LoRA) makes the next policy. The
reference is the policy that drew the answers, not the base model. Everything is written to runs/NAME; run the
same command again to resume.

Kept from the paper: Algorithm 1, equation 6, Table 5. Decided here, where the paper is silent: see the
README's "differences from the paper".
"""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import sys
from functools import partial
from pathlib import Path

import cli
from settings import Config, parse

if __name__ == "__main__":
    cli.begin(parse, __doc__)

import torch

import data
import data_sets
import lora
import questions
import ranks
from batches import batches
from cli import UserError
from data import Answer, Question
from eval import Evaluation, PolicyScores, evaluate
from events import Events, check_installed
from judging import Execution, check_libraries
from pairs import QuestionPairs, make_pairs
from policy import Policy, check_adapter, load_policy, locate, settled
from questions import Splits
from refine import reference_logps, refine
from run_folder import check_settings, copy, indented, lock, write, write_settings
from sample import SamplingParams, sample
from stages import Run
from verify import GoldError, InfrastructureError, Verdict, Verifier

START = "iter_0/adapter"  # in a run's folder: the adapter that π_0 has, where it has one (--start)


def codelutra(
    config: Config, policy: Policy, splits: Splits, verifier: Verifier, run: Run
) -> list[PolicyScores]:
    """Algorithm 1; returns the scores of every policy π_0 … π_T. The policy is trained in place.

    A stage of `run` makes its output once, and reads it where a stopped run has made it already.
    """
    history = [run.scores(0, splits.scored(), partial(score, config, policy, splits, verifier, 0))]
    for t in range(1, config.iterations + 1):
        if (gained := gain(config, history)) < config.min_gain:
            ranks.say(f"π_{t - 1} gained {gained:.1f} points on validation, less than --min-gain: stopping")
            break
        # M answers per question from π_{t−1}, executed while the next are drawn
        answers, verdicts = draw(config, policy, splits.train, verifier, run, t) if config.draws else ([], [])
        # D_t: K pairs (chosen, rejected) per question
        pairs = run.pairs(
            t, partial(make_pairs, config, policy.tokenizer, splits.train, answers, verdicts, t)
        )
        # equation 6 makes π_t; the reference is the policy that drew, fixed before the first step
        train(config, policy, splits.train, pairs, run, t)
        history.append(run.scores(t, splits.scored(), partial(score, config, policy, splits, verifier, t)))
        run.card(t, config.model)
        ranks.say(run.table(history))
    return history


def deciding(config: Config, scores: PolicyScores) -> float:
    """What stops a run and names its best policy, in points: EX on the training questions held back.

    Where the gold code may not be used, the executable share.
    """
    return 100 * (scores.validation.ex if config.criterion == "match" else scores.validation.executable)


def gain(config: Config, history: list[PolicyScores]) -> float:
    """How much the last policy is above the one before, in points; infinite where nothing decides (yet)."""
    if config.min_gain < 0 or len(history) < 2 or not history[-1].validation:
        return math.inf
    return deciding(config, history[-1]) - deciding(config, history[-2])


# ---- the stages of an iteration ------------------------------------------------------------------


def draw(
    config: Config, policy: Policy, train_questions: list[Question], verifier: Verifier, run: Run, t: int
) -> tuple[list[Answer], list[Verdict]]:
    """M answers ŷ ~ π_{t−1}(x) to every question, and their verdicts."""
    if file := run.undrawn(t):
        execution = Execution(config, train_questions, verifier)
        execution.start(file.answers)
        params = SamplingParams(
            config.answers, config.max_new, config.temperature, config.top_p, config.seed, t,
            config.batch_tokens,
        )  # fmt: skip
        with run.timed(t, "sample"):
            # batches that a stopped run has drawn already are skipped
            for batch in sample(policy, train_questions, params, file.batches, f"π_{t - 1} answers"):
                file.append(batch)
                execution.start(batch)
        with run.timed(t, "verify"):
            file.complete(execution.verdicts())
    return run.drawn(t, config.answers * len(train_questions))


def train(
    config: Config,
    policy: Policy,
    train_questions: list[Question],
    pairs: list[QuestionPairs],
    run: Run,
    t: int,
):
    """π_{t−1} → π_t: prompts, steps and reference, then training (refine.refine)."""
    by_index = {q.index: q for q in train_questions}
    members = [by_index[p.question] for p in pairs]
    prompts = [policy.prompt_ids(q) for q in members]
    steps = batches(config, pairs, [q.db_id for q in members], t)
    reference = []
    if config.objective != "sft":  # positives only have no use for a reference
        reference = run.reference(t, pairs, partial(reference_logps, config, policy, prompts, pairs))
    run.adapter(
        t, policy, partial(refine, config, policy, prompts, pairs, reference, steps, run.checkpoint(t), t)
    )


def score(config: Config, policy: Policy, splits: Splits, verifier: Verifier, t: int) -> list[Evaluation]:
    """π_t's greedy answers on the validation slice, which decides, and on dev, which is reported."""
    return [
        evaluate(
            policy, getattr(splits, name), verifier, name, config.timeout, config.max_new,
            config.batch_tokens, progress=f"π_{t} on {name}",
            tables=data.tables(config.data, config.data_dir, "dev" if name == "dev" else "train")[0],
        )
        for name in splits.scored()
    ]  # fmt: skip


# ---- the command ---------------------------------------------------------------------------------


def main(argv: list[str] | None = None):
    config = settled(parse(argv, __doc__))
    folder, problems = Path(config.out), []
    try:
        splits, notes = questions.load(config)
        check_libraries([*splits.train, *splits.validation, *splits.dev], config.python)
    except UserError as error:
        problems.append(str(error))
    try:
        if config.tensorboard:
            check_installed()
        locate(config.model)
        check_settings(config, folder)
        if config.start and not (folder / START).exists():
            rank, alpha, _ = lora.read(Path(config.start))
            if (rank, alpha) != (config.lora_rank, config.lora_alpha):
                raise UserError(
                    f"--start: {config.start} was made with --lora-rank {rank} --lora-alpha {alpha}."
                )
            check_adapter(config.model, config.start)
        if not problems:
            questions.check(folder, splits)
    except UserError as error:
        problems.append(str(error))
    if config.shard and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        problems.append("--shard needs several processes: torchrun --nproc-per-node N codelutra.py …")
    if problems:
        raise UserError("\nerror: ".join(problems))
    try:
        config = dataclasses.replace(config, device=str(ranks.start(torch.device(config.device))))
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder):
            work(config, folder, splits, notes)
    except OSError as error:  # a full disk, a folder that cannot be written; what is complete stays
        raise UserError(f"{error.filename or folder}: {error.strerror or error}. What is complete stays.")
    ranks.end()  # not after an error: it would wait for processes that are in the middle of a pass


def work(config: Config, folder: Path, splits: Splits, notes: list[str]):
    """The whole run, in its folder."""
    policy = load_policy(config.model, config.precision, config.device, config.shard)
    lora.inject(policy.model, config.lora_rank, config.lora_alpha, config.seed)
    policy.day = write_settings(config, folder, policy.day)  # a resumed run keeps its prompts' date
    if config.start:
        copy(Path(config.start), folder / START)
        lora.load(policy.model, folder / START)
    with Verifier(config.workers, config.python or None, config.allow_unsandboxed) as verifier:
        write(folder / "isolation.json", indented({"tier": verifier.isolation}))
        splits = questions.choose(config, policy, splits, notes, folder, verifier)
        trained = sum(p.numel() for p in lora.parameters(policy.model))
        ranks.say(
            f"{config.model} on {policy.device} in {config.precision}, {trained:,} trained weights;"
            f" {len(splits.train)} training, {len(splits.validation)} validation, {len(splits.dev)} held-out"
            f" questions; {folder}; isolation {verifier.isolation}"
        )
        if data_sets.data_set(config.data, config.data_dir).is_own:
            held = f"{len(splits.validation)} held back (--validation)"
            ranks.say(f"questions of {config.data}: {held}, {len(splits.train)} trained on")
            for sentence in questions.repeated(splits):
                ranks.say(sentence)
        if not splits.dev:
            ranks.say(f"{config.data} has no held-out questions: no policy is scored on any")
        run = Run(folder, Events(folder, config.tensorboard))
        history = codelutra(config, policy, splits, verifier, run)
    best = len(history) - 1
    if splits.validation:  # of policies that are equal on validation the last one
        best = max(range(len(history)), key=lambda t: (deciding(config, history[t]), t))
    write(folder / "summary.json", indented({"best": best, "scores": [scores.plain() for scores in history]}))
    where = f"adapter in {run.iteration(best) / 'adapter'}" if best else "the base model"
    ranks.say(f"{'best on validation' if splits.validation else 'last'}: π_{best}, {where}")
    report = Path(__file__).resolve().with_name("report.py")
    command = shlex.join([os.path.relpath(sys.executable), os.path.relpath(report), str(folder)])
    ranks.say(f"what it gets wrong, figures, every question to browse: {command}")


if __name__ == "__main__":
    cli.run(main, InfrastructureError, GoldError, interrupted="; the same command goes on")
