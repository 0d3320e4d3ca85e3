"""CodeLutra: iterative preference-guided refinement from a model's own right and wrong code (Algorithm 1).

    python codelutra.py                                             SmolLM2-135M on the bundled set, sized for two CPU cores
    python codelutra.py --model meta-llama/Meta-Llama-3-8B --data bird

In every iteration the policy answers each question M times, execution sorts the answers into chosen and rejected, K pairs
are drawn, and one epoch of the dual loss (DPO + λ SFT, LoRA) makes the next policy. The reference is the policy that drew
the answers, not the base model. Everything is written to runs/NAME; the same command goes on where a stopped one ended.

Kept from the paper: Algorithm 1, equation 6, Table 5. Decided here, where the paper is silent: see the README's
"differences from the paper".
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import random
import shlex
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # until data.run takes over: Ctrl-C while the libraries are imported ends it, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from tqdm import tqdm

import data
import lora
import ranks
from data import Answer, Question, UserError, first_line
from eval import evaluate, job
from folder import UNIT_END, commit, complete_units, lock, missing, read_answers, read_lines, read_seconds, timed, whole, write
from loss import dpo_loss, dpo_margin, dual_loss, sft_loss
from policy import Policy, empty_pass, halving, load_policy, locate
from sample import sample
from settings import Config, check_data, check_settings, choose_questions, codes, load_questions, parse
from tree import Tree, answer_logps
from verify import GoldError, InfrastructureError, Verdict, Verifier, settled
from walls import tier


@dataclass(frozen=True)
class QuestionPairs:
    """D_t for one question: distinct answers' token ids, and pairs (chosen, rejected) of indices into them."""

    question: int  # Question.index
    answers: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[int, int | None], ...]  # None: nothing is rejected (objective sft)


START = "iter_0/adapter"  # in a run's folder: the adapter that π_0 has, where it has one (--start)


def codelutra(config: Config, policy: Policy, train: list[Question], scored: dict, run: Path, verifier) -> list[dict]:
    """Algorithm 1; returns the scores of every policy π_0 … π_T.

    scored: the questions of "validation" and of "dev", the held-out ones, where there are any.
    """
    prompts = {q.index: data.prompt_ids(q, policy.tokenizer) for q in train}
    databases = {q.index: q.db_id for q in train}
    history = [score(config, policy, scored, run / "iter_0", verifier)]
    for t in range(1, config.iterations + 1):
        if (gained := gain(config, history)) < config.min_gain:
            print(f"π_{t - 1} gained {gained:.1f} points on validation, less than --min-gain: stopping")
            break
        folder = run / f"iter_{t}"
        answers, verdicts = draw(config, policy, train, folder, t, verifier)
        pairs = make_pairs(config, policy, train, answers, verdicts, folder, t)
        refine(config, policy, prompts, databases, pairs, folder, t)
        history.append(score(config, policy, scored, folder, verifier))
        print(table(history, run))
    return history


def deciding(config, row: dict) -> float:
    """The figure, in points, that stops a run and names its best policy: EX on the training questions held back.

    Where the gold code may not be used, the executable share.
    """
    return 100 * row["validation"]["ex" if config.criterion == "match" else "executable"]


def gain(config, history) -> float:
    """How much the last policy is above the one before, in points; infinite where nothing decides (yet)."""
    if config.min_gain < 0 or len(history) < 2 or "validation" not in history[-1]:
        return math.inf
    return deciding(config, history[-1]) - deciding(config, history[-2])


# ---- the stages; each one's output is complete or absent, and a stage whose output is there is not run again ----


def draw(config, policy, questions, folder, t, verifier) -> tuple[list[Answer], list[Verdict]]:
    """M answers ŷ ~ π_{t−1}(x) to every question, executed while the next are drawn → answers.jsonl, verdicts.jsonl.

    Answers are appended unit by unit: a stopped run draws the unit in flight again, whole.
    """
    part, by_index = folder / "answers.part", {q.index: q for q in questions}
    if missing(folder / "verdicts.jsonl") or missing(folder / "answers.jsonl"):
        if ranks.rank() == 0 and (folder / "answers.jsonl").exists():  # stopped between the two files
            os.replace(folder / "answers.jsonl", part)
        done = ranks.gather(complete_units(part) if ranks.rank() == 0 else None)[0]
        answers, running = read_answers(part) if done else [], {}

        def start():  # each process executes its share
            for n in range(len(running) * ranks.count() + ranks.rank(), len(answers), ranks.count()):
                running[n] = execute(config, by_index[answers[n].question], answers[n], verifier)

        start()
        units = () if not config.answers else sample(  # fine-tuning on gold draws nothing
            policy, questions, config.answers, config.max_new, config.temperature, config.top_p, config.seed, t,
            config.batch_tokens, skip=done, progress=f"π_{t - 1} answers",
        )  # fmt: skip
        with timed(folder, "sample"), open(part if ranks.rank() == 0 else os.devnull, "a", encoding="utf-8") as file:
            for unit in units:
                for answer in unit:
                    file.write(json.dumps(dataclasses.asdict(answer), ensure_ascii=False) + "\n")
                file.write(UNIT_END)
                file.flush()
                if ranks.rank() == 0:
                    os.fsync(file.fileno())
                answers += unit
                start()
        with timed(folder, "verify"):
            bar = tqdm(running.items(), desc="executing", unit="answer", disable=not config.answers, dynamic_ncols=True)
            found = ranks.gather({n: outcome(config, future) for n, future in bar})
        verdicts = [found[n % ranks.count()][n] for n in range(len(answers))]
        if ranks.rank() == 0:
            os.replace(part, folder / "answers.jsonl")
        rows = [json.dumps(dataclasses.asdict(v), ensure_ascii=False) + "\n" for v in verdicts]
        write(folder / "verdicts.jsonl", "".join(rows))
    answers, verdicts = read_answers(folder / "answers.jsonl"), read_verdicts(folder)
    for name, found in (("answers.jsonl", answers), ("verdicts.jsonl", verdicts)):
        with whole(folder / name):
            if len(found) != config.answers * len(questions):
                raise ValueError(f"{len(found)} of {config.answers * len(questions)}")
    return answers, verdicts


def read_verdicts(folder) -> list[Verdict]:
    return read_lines(folder / "verdicts.jsonl", lambda row: Verdict(**row))


def execute(config, question, answer, verifier):
    """Have one answer executed; `outcome` waits for its verdict."""
    code = data.extract_code(answer.text, question.language)
    if config.criterion == "executable" and question.language == "sql":
        return verifier.execute(question.database, code, config.timeout)  # no gold is involved
    return verifier.submit(job(question, code, data.COMPARISON[config.data], config.timeout))


def outcome(config, future) -> Verdict:
    """The verdict of one answer. By the criterion `executable` an answer that runs at all is correct."""
    try:
        verdict = settled(future)
    except GoldError as broken:
        if config.criterion == "match":
            raise
        return Verdict("error", str(broken))  # nobody has run the gold code before; all answers alike, so no pair comes of it
    chosen = config.criterion == "executable" and verdict.ran
    return dataclasses.replace(verdict, verdict="correct") if chosen else verdict


def make_pairs(config, policy, questions, answers, verdicts, folder, t) -> list[QuestionPairs]:
    """Draw K pairs per question, with replacement where a set holds fewer than K → pairs.jsonl, pairs_summary.json."""
    path = folder / "pairs.jsonl"
    if missing(path) or missing(folder / "pairs_summary.json"):
        drawn: dict[int, list] = {q.index: [] for q in questions}
        for answer, verdict in zip(answers, verdicts, strict=True):
            drawn[answer.question].append((answer, verdict))
        counts, result = Counter(), []
        for q in questions:
            gold = data.code_ids(q.gold, policy.tokenizer)
            pairs = question_pairs(config, q, gold, drawn[q.index], t, counts)
            if pairs:
                result.append(pairs)
        counts["pairs"] = sum(len(p.pairs) for p in result)
        write(folder / "pairs_summary.json", json.dumps(counts, indent=2) + "\n")
        write(path, "".join(json.dumps(dataclasses.asdict(p)) + "\n" for p in result))
    kind = lambda r: QuestionPairs(r["question"], *(tuple(map(tuple, r[k])) for k in ("answers", "pairs")))  # noqa: E731
    with whole(folder / "pairs_summary.json"):
        summary = json.loads((folder / "pairs_summary.json").read_text())
        expected = summary["pairs"]
    print(f"pairs of iteration {t}: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in summary.items()))
    result = read_lines(path, kind)
    with whole(path):
        if sum(len(p.pairs) for p in result) != expected:
            raise ValueError(f"not {expected} pairs")
    return result


def question_pairs(config, question: Question, gold, drawn, t, counts) -> QuestionPairs | None:
    """One question's K pairs, or None where it has nothing to compare; `counts` is updated with every case.

    drawn: its (Answer, Verdict)s; gold: the token ids of its gold code with the end token.

    The same code can get two verdicts: it was correct once and too slow another time, or the gold code was
    too slow as an answer. Code that is chosen is never rejected as well, so no answer is preferred to itself.
    """
    chosen = [a.ids for a, v in drawn if v.verdict == "correct"]
    failed = [a for a, v in drawn if v.verdict != "correct" and v.judged]
    rejected = [a.ids for a in failed if not is_degenerate(a)]
    counts["questions"] += 1
    counts["answers"] += len(drawn)
    counts["answers_right"] += len(chosen)
    if unknown := len(drawn) - len(chosen) - len(failed):  # a damaged page of the database: neither right nor wrong
        counts["answers_not_judged"] += unknown
    counts["answers_degenerate"] += len(failed) - len(rejected)
    if config.gold == "always" or (config.gold == "if-empty" and not chosen):
        counts["questions_given_gold"] += 1
        chosen.append(gold)
    if config.gold == "only":
        chosen = [gold]
    # answers are the same where their code is, or, where they have none, their tokens
    content = {a.ids: data.extract_code(a.text, question.language) or a.ids for a, _ in drawn}
    content[gold] = data.extract_code(question.gold, question.language)
    right = {content[ids] for ids in chosen}
    contradicted = [ids for ids in rejected if content[ids] in right]
    if contradicted:  # no count of 0: the file stays as it was where this does not happen
        counts["answers_wrong_but_chosen"] += len(contradicted)
        rejected = [ids for ids in rejected if content[ids] not in right]
    if not chosen:
        counts["questions_without_right"] += 1
    if not rejected:
        counts["questions_without_wrong"] += 1
    if config.objective == "sft":
        rejected = [None]
    if not chosen or not rejected:
        return None
    # from position, so that no other question moves the draw
    rng = random.Random(f"pairs {config.seed} {t} {question.index}")
    k = config.pairs
    picked = [rng.sample(group, k) if len(group) >= k else rng.choices(group, k=k) for group in (chosen, rejected)]
    number: dict = {}  # answer → its index among the distinct ones
    pairs = tuple(tuple(None if ids is None else number.setdefault(ids, len(number)) for ids in pair) for pair in zip(*picked))
    return QuestionPairs(question.index, tuple(number), pairs)


def is_degenerate(answer: Answer, repeats: int = 3) -> bool:
    """The paper's "answers that contain repeated strings": it ran into the length limit while repeating itself.

    Precisely: it has no end, and its last half is one n-gram of tokens, n ≥ 1, back to back at least `repeats` times.
    """
    half = answer.ids[len(answer.ids) // 2 :]
    periods = range(1, len(half) // repeats + 1)
    return not answer.finished and any(half[n:] == half[:-n] for n in periods)


def refine(config, policy, prompts, databases, pairs, folder, t):
    """π_t = argmin of equation 6, starting from π_{t−1}, which is also the reference → reference.safetensors, adapter/."""
    adapter = folder / "adapter"
    if missing(adapter):
        if not pairs:
            raise UserError(f"iteration {t} has no pairs: no question had both a right and a wrong answer.")
        reference = []
        if config.objective != "sft":
            with timed(folder, "reference"):
                reference = reference_logps(config, policy, prompts, pairs, folder / "reference.safetensors")
        with timed(folder, "train"):
            train(config, policy, prompts, pairs, reference, batches(config, pairs, t, databases), folder, t)
        if ranks.rank() == 0:
            shutil.rmtree(folder / "adapter.part", ignore_errors=True)
            lora.save(policy.model, folder / "adapter.part", config.model)
            commit(folder / "adapter.part", adapter)
        ranks.wait()
    for name in ("checkpoint.pt", "checkpoint.part"):
        (folder / name).unlink(missing_ok=True)
    lora.load(policy.model, adapter)


def score(config, policy, scored, folder, verifier) -> dict:
    """Greedy EX on the validation slice (decides) and on the dev split (reported) → scores.json, dev.jsonl."""
    path = folder / "scores.json"
    if missing(path):
        folder.mkdir(parents=True, exist_ok=True)
        result = {}
        with timed(folder, "score"):
            for split, questions in scored.items():
                result[split] = score_split(config, policy, questions, folder, split, verifier)
        write(path, json.dumps(result, indent=2) + "\n")
    with whole(path):
        result = json.loads(path.read_text())
        return {split: result[split] for split in scored}


def score_split(config, policy, questions, folder, split, verifier) -> dict:
    """The Scores of one split as a dictionary; its answers and verdicts → validation.jsonl or dev.jsonl."""
    scores, codes, verdicts = evaluate(
        policy, questions, verifier, data.COMPARISON[config.data], config.timeout, config.max_new, config.batch_tokens,
        progress=f"π_{folder.name.removeprefix('iter_')} on {split}",
        tables=data.tables(config.data, config.data_dir, "dev" if split == "dev" else "train"),
    )  # fmt: skip
    rows = [
        {"index": q.index, "db_id": q.db_id, "question": q.text, "gold": q.gold}
        | {"answer": c, "verdict": v.verdict, "message": v.message}
        for q, c, v in zip(questions, codes, verdicts)
    ]
    write(folder / f"{split}.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return dataclasses.asdict(scores)


# ---- training ----------------------------------------------------------------------------------------------------------


def reference_logps(config, policy, prompts, pairs, path) -> list[torch.Tensor]:
    """log π_{t−1} of every distinct answer, once, before the first step: one (answers,) tensor per question."""
    if missing(path):
        order = sorted(range(len(pairs)), key=lambda i: prompts[pairs[i].question])  # similar prompts meet in one pack
        size = lambda i: len(prompts[pairs[i].question]) + sum(map(len, pairs[i].answers))  # noqa: E731

        def score_pack(pack):
            tree = Tree([prompts[pairs[i].question] for i in pack], [pairs[i].answers for i in pack], policy.device)
            with torch.no_grad(), policy.autocast():
                logps = answer_logps(policy.model, tree).cpu()
            return list(logps.split([len(pairs[i].answers) for i in pack]))

        def score_packs(own):
            return [halving(score_pack, pack) for pack in tqdm(own, desc="reference", unit="pack", dynamic_ncols=True)]

        every = list(packs(order, size, config.train_tokens))
        scored = ranks.spread(every, score_packs, partial(empty_pass, policy))
        found = dict(zip(order, (values for pack in scored for values in pack)))
        if ranks.rank() == 0:
            temporary = path.with_suffix(".part")
            temporary.write_bytes(serialize({"logps": torch.cat([found[i] for i in range(len(pairs))])}))
            commit(temporary, path)
        ranks.wait()
    with whole(path, SafetensorError, RuntimeError):
        return list(load_file(path)["logps"].split([len(p.answers) for p in pairs]))


def batches(config, pairs, t, databases) -> list[list[tuple[int, int, int]]]:
    """The epoch's optimizer steps, each a list of (question, chosen, rejected) of batch_size · accumulation pairs.

    A question's pairs stay together in groups of `pairs_per_tree`; the groups are shuffled by (seed, iteration, epoch).
    databases: Question.index → its database. With `step_databases` a step's questions come from so many databases alone,
    whose schemas its passes then share; the steps themselves are shuffled.
    """
    steps, size = [], config.batch_size * config.accumulation
    for epoch in range(config.epochs):
        groups = [
            [(i, c, r) for c, r in p.pairs[start : start + config.pairs_per_tree]]
            for i, p in enumerate(pairs)
            for start in range(0, len(p.pairs), config.pairs_per_tree)
        ]
        rng = random.Random(f"order {config.seed} {t} {epoch}")
        rng.shuffle(groups)
        order = [triple for group in groups for triple in group]
        if config.step_databases:
            names = [databases[p.question] for p in pairs]
            order = blocks_of_databases(order, names, max(1, size // config.step_databases), rng)
        epoch_steps = [order[start : start + size] for start in range(0, len(order), size)]
        if config.step_databases:
            rng.shuffle(epoch_steps)
        steps += epoch_steps
    return steps


def blocks_of_databases(order, names, size, rng):
    """The same triples in blocks of `size` from one database each, shuffled; what fills no block comes last, by database.

    names: the database of each question that the triples number.
    """
    by_database: dict[str, list] = {}
    for triple in order:
        by_database.setdefault(names[triple[0]], []).append(triple)
    blocks, rest = [], []
    for members in by_database.values():
        full = len(members) // size * size
        blocks += [members[start : start + size] for start in range(0, full, size)]
        rest += members[full:]
    rng.shuffle(blocks)
    return [triple for block in [*blocks, rest] for triple in block]


def learning_rate(config, step, steps) -> float:
    """Linear warm-up over the first `warmup` share of the steps, then cosine down to a tenth."""
    warm = max(1, round(config.warmup * steps))
    if step < warm:
        return config.lr * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return config.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(config, policy, prompts, pairs, reference, steps, folder, t):
    """`epochs` passes over the pairs → train.jsonl, a line a step; goes on from checkpoint.pt where there is one."""
    parameters = lora.parameters(policy.model)
    optimizer = torch.optim.AdamW(parameters, config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay)
    scaler = torch.amp.GradScaler(policy.device.type, enabled=policy.dtype == torch.float16)
    if config.checkpointing:
        policy.model.activation_checkpointing_enable({"use_reentrant": False})
        policy.model.train()  # transformers checkpoints in training mode alone; load_policy has switched dropout off
    log = restore(folder / "checkpoint.pt", parameters, optimizer, scaler)
    write(folder / "train.jsonl", "".join(log))
    saved = time.time()
    started = saved - (json.loads(log[-1])["seconds"] if log else 0)
    bar = tqdm(steps, desc=f"training π_{t}", unit="step", dynamic_ncols=True, initial=len(log))
    between_steps = True  # the adapter and the optimizer are those after len(log) steps
    try:
        for step in range(len(log), len(steps)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, len(steps))
            where = f"step {step} of iteration {t}"
            row = add_gradients(config, policy, prompts, pairs, reference, steps[step], scaler, where)
            between_steps = False
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip).item()
            if not (math.isfinite(norm) or scaler.is_enabled()):
                raise UserError(f"the gradient is {norm} at {where}: lower --lr.")
            if step == 0 and "dpo" in row:
                check_first_step(row["dpo"], config.beta, policy.dtype)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            row |= {"step": step, "lr": learning_rate(config, step, len(steps)), "grad_norm": norm}
            row |= {"seconds": round(time.time() - started, 2)}
            log.append(json.dumps(row) + "\n")
            between_steps = True
            if ranks.rank() == 0:
                with open(folder / "train.jsonl", "a", encoding="utf-8") as file:
                    file.write(log[-1])
            if ranks.rank() == 0 and time.time() - saved > config.save_every:
                keep(folder / "checkpoint.pt", parameters, optimizer, scaler, log)
                saved = time.time()
            bar.set_postfix_str(
                f"loss {row['loss']:.3f}, chosen {row['chosen_logp_per_token']:.2f} a token", refresh=False
            )
            bar.update()
    except KeyboardInterrupt:
        if ranks.rank() == 0 and between_steps and log:  # nothing of the steps that are done is lost
            keep(folder / "checkpoint.pt", parameters, optimizer, scaler, log)
        raise
    bar.close()
    policy.model.eval()


def add_gradients(config, policy, prompts, pairs, reference, batch, scaler, where) -> dict:
    """Add the gradient of a step's mean loss to the adapter's; returns the means that are logged."""
    parameters, totals = lora.parameters(policy.model), Counter()

    def add(pack):
        loss, sums = pack_loss(config, policy, prompts, pairs, reference, pack)
        if not math.isfinite(sums["loss"]):
            numbers = ", ".join(str(pairs[i].question) for i, *_ in pack)
            raise UserError(f"the loss is {sums['loss']} at {where}, question {numbers}: lower --lr.")
        gradients = torch.autograd.grad(scaler.scale(loss / len(batch)), parameters)  # all or, out of memory, nothing
        for p, gradient in zip(parameters, gradients):
            p.grad = gradient if p.grad is None else p.grad.add_(gradient)
        return [sums]

    every = list(microbatches(batch, prompts, pairs, config.train_tokens))
    scaler.scale(torch.zeros((), device=policy.device))  # begins it, also where this process has no pack
    for pack in every[ranks.rank() :: ranks.count()]:
        for sums in halving(add, pack):
            totals.update(sums)
    ranks.catch_up(partial(empty_pass, policy, parameters))
    ranks.add_up(parameters)
    sums = Counter()
    for part in ranks.gather(totals):
        sums.update(part)
    return {key: value / len(batch) for key, value in sums.items()}


def keep(path, parameters, optimizer, scaler, log):
    """Write what the rest of the epoch depends on, so that a killed run goes on from here."""
    state = {"adapter": [p.detach() for p in parameters], "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
    whole, temporary = io.BytesIO(), path.with_suffix(".part")
    torch.save(state | {"log": log}, whole)
    temporary.write_bytes(whole.getbuffer())  # not by torch itself, which hides what a full disk says
    commit(temporary, path)


def restore(path, parameters, optimizer, scaler) -> list[str]:
    """Load what `keep` has written; returns the lines of train.jsonl until then, one a step, none where there is no file."""
    if not path.exists():
        return []
    file = io.BytesIO(path.read_bytes())
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
        with torch.no_grad():
            for p, value in zip(parameters, state["adapter"], strict=True):
                p.copy_(value)
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        return state["log"]
    except (MemoryError, torch.OutOfMemoryError):  # that is not the file's fault
        raise
    except Exception as error:  # half a file, another file: torch has an exception for each
        raise UserError(f"{path} is damaged ({first_line(error)}): delete it, and this iteration's training begins again.")


def check_first_step(dpo: float, beta: float, dtype: torch.dtype):
    """Before the first update the policy is the reference: every margin is 0 and DPO is ln 2, up to rounding.

    dpo: its mean over the first step's pairs. A margin's rounding enters it by up to β / 2.
    """
    tolerance = max(1.0, beta / 0.1) * (1e-4 if dtype == torch.float32 else 0.05)
    if abs(dpo - math.log(2)) > tolerance:
        raise AssertionError(f"DPO loss at step 0 is {dpo:.6f}, not ln 2: the reference is not the policy that starts")


def microbatches(batch, prompts, pairs, limit):
    """A step's pairs in forward passes of at most `limit` tokens, lists of (question, its answers in use, its pairs)."""
    by_question: dict[int, list] = {}
    for i, c, r in batch:
        by_question.setdefault(i, []).append((c, r))
    used = {i: sorted({a for pair in of for a in pair if a is not None}) for i, of in by_question.items()}
    size = lambda i: len(prompts[pairs[i].question]) + sum(len(pairs[i].answers[a]) for a in used[i])  # noqa: E731
    for pack in packs(sorted(by_question), size, limit):
        yield [(i, used[i], by_question[i]) for i in pack]


def packs(items, size, limit):
    """Consecutive items in lists whose sizes sum to at most `limit`; one item above it stands alone."""
    pack, total = [], 0
    for item in items:
        if pack and total + size(item) > limit:
            yield pack
            pack, total = [], 0
        pack.append(item)
        total += size(item)
    if pack:
        yield pack


def pack_loss(config, policy, prompts, pairs, reference, pack):
    """Sum of the pairs' losses, and the sums that are logged. Each distinct answer is computed once, whatever K."""
    answers = [[pairs[i].answers[a] for a in used] for i, used, _ in pack]
    with policy.autocast():
        logps = answer_logps(policy.model, Tree([prompts[pairs[i].question] for i, *_ in pack], answers, policy.device))
    number = {answer: n for n, answer in enumerate((i, a) for i, used, _ in pack for a in used)}
    place = lambda side: torch.tensor([number[i, p[side]] for i, _, of in pack for p in of], device=policy.device)  # noqa: E731
    lengths = torch.tensor([len(ids) for of_question in answers for ids in of_question], device=policy.device)
    c = place(0)
    loss = sft = sft_loss(logps[c], lengths[c], config.sft_reduction)
    logged = {"sft": sft, "chosen_logp": logps[c], "chosen_logp_per_token": logps[c] / lengths[c]}
    if config.objective != "sft":
        r = place(1)
        before = torch.cat([reference[i][used] for i, used, _ in pack]).to(policy.device)
        margin = dpo_margin(logps[c], logps[r], before[c], before[r])
        dpo = dpo_loss(margin, config.beta)
        loss = dpo if config.objective == "dpo" else dual_loss(dpo, sft, config.lam)
        logged |= {"dpo": dpo, "margin": margin, "preferred": (margin > 0).float()}
        logged |= {"rejected_logp": logps[r], "rejected_logp_per_token": logps[r] / lengths[r]}
        # against the reference: a step's questions differ from the next one's, so log-probabilities alone are noise
        logged |= {"chosen_logratio": logps[c] - before[c], "rejected_logratio": logps[r] - before[r]}
    logged["loss"] = loss
    sums = torch.stack([value.detach().sum() for value in logged.values()]).tolist()  # one transfer
    return loss.sum(), dict(zip(logged, sums))


# ---- the run folder and the command --------------------------------------------------------------------------------------


def table(history, run) -> str:
    lines = ["iteration  answers right  answers run   pairs  validation EX  held-out EX  executable  minutes"]
    for t, row in enumerate(history):
        folder = run / f"iter_{t}"
        summary = folder / "pairs_summary.json"
        right = ran = pairs = ""
        if summary.exists():
            counts = json.loads(summary.read_text())
            drawn = read_verdicts(folder)
            if drawn:
                right = f"{counts.get('answers_right', 0) / counts['answers']:.1%}"
                ran = f"{sum(v.ran for v in drawn) / len(drawn):.1%}"
            pairs = counts["pairs"]
        minutes = sum(read_seconds(folder).values()) / 60
        ex = [f"{row[s]['ex']:.1%}" if s in row else "" for s in ("validation", "dev")]
        executable = f"{row['dev']['executable']:.1%}" if "dev" in row else ""
        lines.append(
            f"{t:<8} {right:>13} {ran:>11} {pairs:>7} {ex[0]:>14} {ex[1]:>12} {executable:>11} {minutes:>8.1f}"
        )
    lines.append("(answers of iteration t are drawn from π_{t-1}; EX and executable after them are π_t's, greedy)")
    return "\n".join(lines)


def main(argv=None):
    config = parse(argv, __doc__)
    run, problems = Path(config.out), []
    try:
        splits, notes = load_questions(config)
    except UserError as error:
        problems.append(str(error))
    try:
        locate(config.model)
        check_settings(config, run)
        if config.start and not (run / START).exists():
            rank, alpha, _ = lora.read(config.start)
            if (rank, alpha) != (config.lora_rank, config.lora_alpha):
                raise UserError(f"--start: {config.start} was made with --lora-rank {rank} --lora-alpha {alpha}.")
        if not problems:
            check_data(run, splits)
    except UserError as error:
        problems.append(str(error))
    if config.shard and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        problems.append("--shard needs several processes: torchrun --nproc-per-node N codelutra.py …")
    if problems:
        raise UserError("\nerror: ".join(problems))
    try:
        config = dataclasses.replace(config, device=str(ranks.start(torch.device(config.device))))
        run.mkdir(parents=True, exist_ok=True)
        with lock(run):
            work(config, run, splits, notes)
    except OSError as error:  # a full disk, a folder that cannot be written; what is complete stays
        raise UserError(f"{error.filename or run}: {error.strerror or error}. What is complete stays.")
    ranks.end()  # not after an error: it would wait for processes that are in the middle of a pass


def work(config, run, splits, notes):
    """The whole run, in its folder."""
    policy = load_policy(config.model, config.precision, config.device, config.shard)
    lora.inject(policy.model, config.lora_rank, config.lora_alpha, config.seed)
    write(run / "config.json", json.dumps(dataclasses.asdict(config) | {"code": codes(run)}, indent=2) + "\n")
    if config.start:
        if missing(run / START) and ranks.rank() == 0:
            shutil.copytree(config.start, run / f"{START}.part", dirs_exist_ok=True)
            commit(run / f"{START}.part", run / START)
        ranks.wait()
        lora.load(policy.model, run / START)
    isolation = tier()
    write(run / "isolation.json", json.dumps({"tier": isolation}) + "\n")
    with Verifier(config.workers, config.python or None, config.allow_unsandboxed) as verifier:
        train_questions, validation, held_out = choose_questions(config, policy, splits, notes, run, verifier)
        trained = sum(p.numel() for p in lora.parameters(policy.model))
        print(
            f"{config.model} on {policy.device} in {config.precision}, {trained:,} trained weights;"
            f" {len(train_questions)} training, {len(validation)} validation, {len(held_out)} held-out questions; {run};"
            f" isolation {isolation}"
        )
        scored = {split: of for split, of in (("validation", validation), ("dev", held_out)) if of}
        history = codelutra(config, policy, train_questions, scored, run, verifier)
    best = len(history) - 1
    if validation:  # of policies that are equal on validation the last one
        best = max(range(len(history)), key=lambda t: (deciding(config, history[t]), t))
    write(run / "summary.json", json.dumps({"best": best, "scores": history}, indent=2) + "\n")
    print(f"\n{table(history, run)}\n{'best on validation' if validation else 'last'}: π_{best}", end="")
    print(f", adapter in {run / f'iter_{best}' / 'adapter'}" if best else ", the base model")
    command = shlex.join([os.path.relpath(sys.executable), "report.py", str(run)])
    print(f"what it gets wrong, figures, every question to browse: {command}")


if __name__ == "__main__":
    data.run(main, InfrastructureError, GoldError)
