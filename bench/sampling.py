"""Sampling: ours against transformers' generate(do_sample=True, num_return_sequences=n).

    python bench/sampling.py [--quick] [--lengths 300 1000] [--questions 8]      fixed lengths: 64 new tokens for every answer
    python bench/sampling.py --spider FOLDER                                    real questions, answers end when they end

Tokens per second, peak memory, and the share of the machine's measured matmul peak.
"""

import argparse
import time
from functools import partial

import torch
from common import PeakMemory, attention_flops, forward_flops, matmul_peak, prompts, report
from transformers import AutoModelForCausalLM

import data
from sample import Policy, draw_unit, load_policy, locate, units


def theirs_model(name, dtype, device):
    source, extra = locate(name)
    return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="sdpa", **extra).to(device).eval()


@torch.no_grad()
def generate(model, policy: Policy, batch, answers, new, fixed):
    """All prompts of the batch, left-padded, `answers` sequences each; returns how many tokens were drawn."""
    width, pad = max(map(len, batch)), policy.tokenizer.pad_token_id or policy.end_ids[0]
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in batch], device=policy.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=policy.device)
    out = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=answers,
        max_new_tokens=new, min_new_tokens=new if fixed else None, pad_token_id=pad, eos_token_id=list(policy.end_ids),
    )  # fmt: skip
    drawn = out[:, width:]
    ended = torch.isin(drawn, torch.tensor(policy.end_ids, device=drawn.device)).cumsum(1)
    return int(((ended - torch.isin(drawn, torch.tensor(policy.end_ids, device=drawn.device)).long()) == 0).sum())


def timed(run):
    """(result, seconds, peak MiB). The first of two runs gives the memory, which starts trimmed; the second the time."""
    with PeakMemory() as memory:
        once(run)
    return *once(run), memory.mib


def once(run):
    started = time.time()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.time() - started


def fixed(args, policy, model):
    rows, extra = [], {}
    end, stop = policy.end_ids, policy.stop_tokens
    for length in args.lengths:
        batch = prompts(policy.tokenizer, length, args.questions)
        dummy = [data.Question(i, "", "", "", "") for i in range(len(batch))]
        policy.end_ids, policy.stop_tokens = (), frozenset()  # every answer is as long as the limit
        draw_unit(policy, dummy[:1], batch[:1], 4, 4, 1.0, 1.0, 0, 0)  # warm-up
        draw = partial(draw_unit, policy, dummy, batch, args.answers, args.new, 1.0, 1.0, 0, 0)
        answers, seconds, ours_memory = timed(draw)
        policy.end_ids, policy.stop_tokens = end, stop
        tokens = sum(len(a.ids) for a in answers)
        generate(model, policy, batch[:1], 4, 4, True)
        draw = partial(generate, model, policy, batch, args.answers, args.new, True)
        theirs_tokens, theirs_seconds, theirs_memory = timed(draw)
        rows.append((f"prompt {length}", tokens / seconds, theirs_tokens / theirs_seconds, "tokens/s"))
        rows.append((f"prompt {length}, peak memory", ours_memory, theirs_memory, "MiB"))
        flops = forward_flops(policy.model, len(batch) * length + tokens - len(answers), tokens)
        flops += attention_flops(policy.model, len(batch) * length**2 / 2 + tokens * (length + args.new / 2))
        extra[f"prompt {length}, share of the matmul peak"] = flops / seconds / matmul_peak(policy.dtype, policy.device.type)
    return rows, extra


def real(args, policy, model):
    questions = data.subset(data.load("spider", args.spider, "dev")[0], args.count, 0)
    batch = [data.prompt_ids(q, policy.tokenizer) for q in questions]
    ours_time = theirs_time = 0.0
    for unit in units(batch, args.answers, args.new, args.batch_tokens):
        mine = [questions[i] for i in unit], [batch[i] for i in unit]
        _, seconds = once(partial(draw_unit, policy, *mine, args.answers, args.new, 1.0, 1.0, 0, 0))
        ours_time += seconds
    order = sorted(range(len(batch)), key=lambda i: len(batch[i]))  # theirs: like lengths together, so little padding
    for start in range(0, len(order), args.their_batch):
        part = [batch[i] for i in order[start : start + args.their_batch]]
        _, seconds = once(partial(generate, model, policy, part, args.answers, args.new, False))
        theirs_time += seconds
    total = len(questions) * args.answers
    return [(f"{len(questions)} Spider questions", total / ours_time, total / theirs_time, "answers/s")], {}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--lengths", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--questions", type=int, default=8, help="at once")
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--spider", help="Spider's folder: real questions instead")
    parser.add_argument("--count", type=int, default=64, help="of real questions")
    parser.add_argument("--batch-tokens", type=int, default=32768)
    parser.add_argument("--their-batch", type=int, default=8, help="real questions that generate gets at once")
    parser.add_argument("--quick", action="store_true", help="2 questions, 16 new tokens")
    args = parser.parse_args()
    if args.quick:
        args.questions, args.new, args.count = 2, 16, 4
    policy = load_policy(args.model, args.precision, args.device)
    model = theirs_model(args.model, policy.dtype, policy.device)
    rows, extra = real(args, policy, model) if args.spider else fixed(args, policy, model)
    for name, share in extra.items():
        print(f"{name}: {share:.0%}")
    settings = {k: getattr(args, k) for k in ("model", "precision", "questions", "answers", "new", "quick")}
    report("sampling", rows, settings | extra)


if __name__ == "__main__":
    main()
