"""D_t → π_t: one epoch of the dual loss (equation 6) with LoRA, starting from π_{t−1}, which is also the
reference.

Pairs are laid out as trees: a question's prompt is computed once for all of its answers, each distinct answer
once for all of its pairs, and a schema once for all of its questions that share a forward pass. Nothing here
knows about files: `refine` gets a checkpoint that can save and load.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from functools import partial

import torch

import lora
import ranks
from batches import Pair, Prompts, Used, micro_batches, trees
from cli import UserError
from loss import dpo_loss, dpo_margin, dual_loss, sft_loss
from pairs import QuestionPairs
from policy import Policy, empty_pass, halving, release_memory
from settings import Config
from tree import Tree, answer_logps

Reference = list[torch.Tensor]  # log π_{t−1} of each entry's answers, (answers,)


def reference_logps(
    config: Config, policy: Policy, prompts: Prompts, pairs: list[QuestionPairs]
) -> Reference:
    """log π_{t−1} of every distinct answer, computed once, before the first step."""
    # sorted, so that prompts that begin alike meet in one pass
    order = sorted(range(len(pairs)), key=prompts.__getitem__)
    tokens = [sum(map(len, p.answers)) for p in pairs]

    def score(batch: list[int]) -> list[torch.Tensor]:
        tree = Tree([prompts[at] for at in batch], [pairs[at].answers for at in batch], policy.device)
        with torch.no_grad(), policy.autocast():
            logps = answer_logps(policy.model, tree).cpu()
        return list(logps.split([len(pairs[at].answers) for at in batch]))

    def score_all(batches: list[list[int]]) -> list[list[torch.Tensor]]:
        return [halving(score, batch) for batch in ranks.bar(batches, desc="reference", unit="batch")]

    batches = list(micro_batches(order, prompts, tokens, config.train_tokens))
    scored = ranks.share_work(batches, score_all, partial(empty_pass, policy))
    logps = dict(zip(order, (values for batch in scored for values in batch)))
    return [logps[at] for at in range(len(pairs))]


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Linear warm-up over the first `warmup` share of the steps, then cosine down to a tenth."""
    warm = max(1, round(config.warmup * steps))
    if step < warm:
        return config.lr * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return config.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def refine(
    config: Config,
    policy: Policy,
    prompts: Prompts,
    pairs: list[QuestionPairs],
    reference: Reference,
    steps: list[list[Pair]],
    checkpoint,
    t: int,
):
    """π_t = argmin of equation 6: the policy's adapter is trained in place, one step for each of `steps`.

    checkpoint: stages.Checkpoint; training goes on from it where it holds something.
    """
    parameters = lora.parameters(policy.model)
    optimizer = torch.optim.AdamW(parameters, config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay)
    scaler = torch.amp.GradScaler(policy.device.type, enabled=policy.dtype == torch.float16)
    if config.checkpointing:
        policy.model.activation_checkpointing_enable({"use_reentrant": False})
        # transformers checkpoints in training mode alone; load_policy has switched dropout off
        policy.model.train()
    log = checkpoint.load(partial(restore, parameters, optimizer, scaler))
    saved = time.time()
    started = saved - (log[-1]["seconds"] if log else 0)
    bar = ranks.bar(steps, desc=f"training π_{t}", unit="step", initial=len(log))
    between_steps = True  # the adapter and the optimizer are those after len(log) steps
    try:
        for step in range(len(log), len(steps)):
            rate, where = learning_rate(config, step, len(steps)), f"step {step} of iteration {t}"
            for group in optimizer.param_groups:
                group["lr"] = rate
            means = add_gradients(config, policy, prompts, pairs, reference, steps[step], scaler, where)
            between_steps = False
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip).item()
            if not (math.isfinite(norm) or scaler.is_enabled()):
                raise UserError(f"the gradient is {norm} at {where}: lower --lr.")
            if step == 0 and "dpo" in means:
                check_first_step(means["dpo"], config.beta, policy.dtype)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            seconds = round(time.time() - started, 2)
            log.append(means | {"step": step, "lr": rate, "grad_norm": norm, "seconds": seconds})
            between_steps = True
            checkpoint.step(log[-1])
            if time.time() - saved > config.save_every:
                checkpoint.save(state(parameters, optimizer, scaler), log)
                saved = time.time()
            bar.set_postfix_str(
                f"loss {means['loss']:.3f}, chosen {means['chosen_logp_per_token']:.2f} a token",
                refresh=False,
            )
            bar.update()
    except KeyboardInterrupt:
        if between_steps and log:  # nothing of the steps that are done is lost
            checkpoint.save(state(parameters, optimizer, scaler), log)
        raise
    bar.close()
    policy.model.eval()
    release_memory()


def state(parameters: list, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> dict:
    """What the rest of the epoch depends on."""
    adapter = [p.detach() for p in parameters]
    return {"adapter": adapter, "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}


def restore(parameters: list, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, saved: dict):
    """Put back what `state` has returned."""
    with torch.no_grad():
        for p, value in zip(parameters, saved["adapter"], strict=True):
            p.copy_(value)
    optimizer.load_state_dict(saved["optimizer"])
    scaler.load_state_dict(saved["scaler"])


def check_first_step(dpo: float, beta: float, dtype: torch.dtype):
    """Before the first update the policy is the reference: every margin is 0 and DPO is ln 2, up to rounding.

    dpo: its mean over the first step's pairs. A margin's rounding enters it by up to β / 2.
    """
    tolerance = max(1.0, beta / 0.1) * (1e-4 if dtype == torch.float32 else 0.05)
    if abs(dpo - math.log(2)) > tolerance:
        raise AssertionError(f"DPO loss at step 0 is {dpo:.6f}, not ln 2: the reference is another policy")


def add_gradients(
    config: Config,
    policy: Policy,
    prompts: Prompts,
    pairs: list[QuestionPairs],
    reference: Reference,
    batch: list[Pair],
    scaler: torch.amp.GradScaler,
    where: str,
) -> dict[str, float]:
    """Add the gradient of a batch's mean loss to the adapter's; returns the means that are logged."""
    parameters, totals = lora.parameters(policy.model), Counter()

    def add(micro_batch: list[Used]) -> list[dict[str, float]]:
        loss, sums = batch_loss(config, policy, prompts, pairs, reference, micro_batch)
        if not math.isfinite(sums["loss"]):
            numbers = ", ".join(str(pairs[used.at].question) for used in micro_batch)
            raise UserError(f"the loss is {sums['loss']} at {where}, question {numbers}: lower --lr.")
        # all gradients at once: a pass that runs out of memory has added none, and `halving` can begin again
        gradients = torch.autograd.grad(scaler.scale(loss / len(batch)), parameters)
        for p, gradient in zip(parameters, gradients):
            p.grad = gradient if p.grad is None else p.grad.add_(gradient)
        return [sums]

    # GradScaler is initialised by its first scale(); a rank without micro-batches must call it too
    scaler.scale(torch.zeros((), device=policy.device))
    every = list(trees(batch, prompts, pairs, config.train_tokens))
    for micro_batch in every[ranks.rank() :: ranks.world_size()]:
        for sums in halving(add, micro_batch):
            totals.update(sums)
    ranks.catch_up(partial(empty_pass, policy, parameters))
    ranks.all_reduce_gradients(parameters)
    whole: Counter = Counter()
    for part in ranks.all_gather(totals):
        whole.update(part)
    return {key: value / len(batch) for key, value in whole.items()}


def batch_loss(
    config: Config,
    policy: Policy,
    prompts: Prompts,
    pairs: list[QuestionPairs],
    reference: Reference,
    micro_batch: list[Used],
) -> tuple[torch.Tensor, dict[str, float]]:
    """Sum of the pairs' losses, shape (), and the sums that are logged. Each answer is computed once."""
    answers = [[pairs[used.at].answers[a] for a in used.answers] for used in micro_batch]
    with policy.autocast():
        tree = Tree([prompts[used.at] for used in micro_batch], answers, policy.device)
        logps = answer_logps(policy.model, tree)  # (answers of the pass,)
    lengths = torch.tensor([len(ids) for group in answers for ids in group], device=policy.device)
    # where each pair's chosen and rejected answer stand among the answers of the pass
    place = {key: n for n, key in enumerate((used.at, a) for used in micro_batch for a in used.answers)}
    members = [pair for used in micro_batch for pair in used.pairs]
    c = torch.tensor([place[pair.at, pair.chosen] for pair in members], device=policy.device)  # (B,)
    loss = sft = sft_loss(logps[c], lengths[c], config.sft_reduction)
    logged = {"sft": sft, "chosen_logp": logps[c], "chosen_logp_per_token": logps[c] / lengths[c]}
    if config.objective != "sft":
        r = torch.tensor([place[pair.at, pair.rejected] for pair in members], device=policy.device)  # (B,)
        before = torch.cat([reference[used.at][used.answers] for used in micro_batch]).to(policy.device)
        margin = dpo_margin(logps[c], logps[r], before[c], before[r])
        dpo = dpo_loss(margin, config.beta)
        loss = dpo if config.objective == "dpo" else dual_loss(dpo, sft, config.lam)
        logged |= {"dpo": dpo, "margin": margin, "preferred": (margin > 0).float()}
        logged |= {"rejected_logp": logps[r], "rejected_logp_per_token": logps[r] / lengths[r]}
        # against the reference: each step has other questions, so log-probabilities alone are noise
        logged |= {"chosen_logratio": logps[c] - before[c], "rejected_logratio": logps[r] - before[r]}
    logged["loss"] = loss
    sums = torch.stack([value.detach().sum() for value in logged.values()]).tolist()  # one transfer
    return loss.sum(), dict(zip(logged, sums))
