"""Draw answers from the policy: the prompt is prefilled once, and its cache is shared by all of its answers.

A batch of questions is prefilled as one tree (a schema shared by several questions is computed once); then
every step (decode.py) feeds one token for each unfinished answer of the whole batch. Finished answers leave.

Randomness comes from position: the uniform number that picks token j of answer m to question i in iteration t
is a function of (seed, t, i, m, j) alone. Rounding depends on what is computed together, so the batch is
fixed by the settings.

    python sample.py --model smollm2 --data shop --limit 4      draws and prints answers
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import cli
import flags

if __name__ == "__main__":
    cli.begin(flags.sampling, __doc__)

import numpy as np
import torch

import data
import data_sets
import lora
import ranks
from batches import sampling_batches
from data import Answer, Question
from decode import Decoding, pick
from policy import Policy, check_adapter, empty_pass, halving, load_policy, release_memory
from prompts import answer_text, code_ended, extract_code
from tree import Tree


@dataclass(frozen=True)
class SamplingParams:
    """How answers are drawn. The same values draw the same answers."""

    answers: int = 16  # M, to each question
    max_new: int = 128  # longest answer, tokens
    temperature: float = 1.0  # 0: the most likely token
    top_p: float = 1.0
    seed: int = 0
    iteration: int = 0
    batch_tokens: int = 32768  # cached tokens per batch of questions


def uniforms(seed: int, iteration: int, question: int, sample: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) that depend on the position alone: (count,) float64."""
    position = np.random.SeedSequence((seed, iteration, question, sample))
    return np.random.Generator(np.random.Philox(position)).random(count)


@torch.no_grad()
def draw_batch(
    policy: Policy,
    questions: list[Question],
    prompts: list[list[int]],
    params: SamplingParams,
    progress: Callable[[int, int, int], object] | None = None,
) -> list[Answer]:
    """Draw `params.answers` answers to each question of a batch; they come by question and sample.

    progress(answers that have ended, tokens drawn, answers that go on) is called after every step.
    """
    answers, steps = params.answers, params.max_new
    # (question, sample) of each of the R answers
    members = [(q, m) for q in questions for m in range(answers)]
    uniform = np.stack([uniforms(params.seed, params.iteration, q.index, m, steps) for q, m in members])
    u = torch.from_numpy(uniform).to(policy.device)  # (R, T)
    tokens: list[list[int]] = [[] for _ in members]
    logps, finished = [0.0] * len(members), [False] * len(members)
    with policy.autocast():
        # prefill: every prompt once, and a schema that questions share once for all of them
        tree = Tree(prompts, device=policy.device, keep_cache=True)
        logits = policy.model(
            tree.ids, position_ids=tree.positions, layout=tree, logits_to_keep=tree.keep, use_cache=False
        ).logits[0]  # (questions, V)
        state = Decoding(tree, answers, steps)
        tree.cache = None  # Decoding has its own copy
        logits = logits.repeat_interleave(answers, 0)
        owner = list(range(len(members)))  # the answer that each row belongs to
        # Compact once this share of rows is left: it copies the caches and, on a GPU, forces a new graph.
        compact_at = 1 / 2 if policy.device.type == "cuda" else 7 / 8
        for step in range(steps):
            picked, logp = pick(logits, u[:, step], params.temperature, params.top_p)
            # rows whose answer has ended compute on until the next compaction; what they draw is dropped
            for n, token, value in zip(owner, picked.tolist(), logp.tolist()):
                if not finished[n]:
                    tokens[n].append(token)
                    logps[n] += value
                    finished[n] = ended(policy, members[n][0], tokens[n])
            alive = [row for row, n in enumerate(owner) if not finished[n]]
            if progress:
                progress(sum(finished), sum(map(len, tokens)), len(alive))
            if not alive or step == steps - 1:
                break
            if len(alive) <= compact_at * len(owner):
                kept = torch.tensor(alive, device=policy.device)
                state.keep(kept)
                picked, u, owner = picked[kept], u[kept], [owner[row] for row in alive]
            logits = state.feed(policy.model, picked)  # (rows, V)
    return [
        Answer(q.index, m, tuple(tokens[n]), text_of(policy, tokens[n]), logps[n], finished[n])
        for n, (q, m) in enumerate(members)
    ]


def ended(policy: Policy, question: Question, ids: list[int]) -> bool:
    """Whether an answer is complete: at an end token, or where nothing that follows could change its code."""
    if ids[-1] in policy.end_ids:
        return True
    return ids[-1] in policy.stop_tokens and code_ended(text_of(policy, ids), question.form)


def text_of(policy: Policy, ids: list[int]) -> str:
    """An answer's text without its end token; other special tokens stay: they are judged and trained on."""
    return answer_text(ids[:-1] if ids[-1] in policy.end_ids else ids, policy.tokenizer)


def sample(
    policy: Policy,
    questions: list[Question],
    params: SamplingParams,
    skip: int = 0,
    progress: str | None = None,
) -> Iterator[list[Answer]]:
    """Draw answers to all questions; yields the Answers of one batch of questions after the other.

    The batches are fixed by the arguments, so a resumed run draws the same tokens. skip: batches that are
    drawn already. progress: the name of the progress bar; None: none is shown.
    """
    prompts = [policy.prompt_ids(q) for q in questions]
    todo = sampling_batches(prompts, params.answers, params.max_new, params.batch_tokens)
    bar = ranks.bar(
        total=len(questions) * params.answers, desc=progress, unit="answer", disable=progress is None,
        miniters=0, mininterval=1,
    )  # fmt: skip
    complete = sum(map(len, todo[:skip])) * params.answers  # answers of the batches that are done
    parts = 0  # answers of this batch that are done, where `halving` has split it
    bar.update(complete)

    def show(ended: int, tokens: int, going: int):  # inside a batch, which may take minutes
        bar.n = max(bar.n, complete + parts + ended)  # where a batch did not fit, it began anew
        bar.set_postfix_str(f"{tokens} tokens of this batch, {going} answers unfinished", refresh=False)
        bar.update(0)

    def draw(batch: list[int]) -> list[Answer]:
        nonlocal parts
        answers = draw_batch(policy, [questions[i] for i in batch], [prompts[i] for i in batch], params, show)
        parts += len(answers)
        return answers

    drawn = finished = total = 0
    for start in range(skip, len(todo), ranks.world_size()):  # each process draws one batch, and all get all
        mine, parts = start + ranks.rank(), 0
        own = halving(draw, todo[mine]) if mine < len(todo) else []
        ranks.catch_up(partial(empty_pass, policy))
        for batch, answers in zip(todo[start:], ranks.all_gather(own)):
            drawn += sum(len(a.ids) for a in answers)
            finished += sum(a.finished for a in answers)
            total += len(answers)
            elapsed = bar.format_dict["elapsed"] or 1e-9
            bar.set_postfix_str(f"{drawn / elapsed:.0f} tokens/s, {finished / total:.0%} finished")
            complete += len(batch) * params.answers
            bar.n = complete
            bar.refresh()
            yield answers
    bar.close()
    release_memory()


def main(argv: list[str] | None = None):
    args = flags.sampling(argv, __doc__)
    questions, _ = data.load(args.data, args.data_dir, args.split)
    if args.adapter:
        check_adapter(args.model, args.adapter)
    policy = load_policy(args.model)
    if args.adapter:
        lora.load(policy.model, args.adapter)
    chosen = data.subset(questions, args.limit, args.seed)
    params = SamplingParams(
        args.answers, data_sets.data_set(args.data, args.data_dir).max_new, args.temperature, seed=args.seed
    )
    by_index = {q.index: q for q in chosen}
    for batch in sample(policy, chosen, params, progress="sampling"):
        for a in batch:
            question = by_index[a.question]
            code = extract_code(a.text, question.form)
            print(f"[{a.question}.{a.sample}] {question.text}\n    {code!r}  log π {a.logp:.1f}")


if __name__ == "__main__":
    cli.run(main)
