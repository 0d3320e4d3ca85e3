"""Sampling: ours against transformers' generate(do_sample=True, num_return_sequences=n).

    python bench/sampling.py [--quick] [--lengths 300 1000]      fixed lengths: 64 new tokens for every answer
    python bench/sampling.py --spider FOLDER                     real questions, answers end when they end
    python bench/sampling.py --spider FOLDER --draws 2048        the same distribution? chi-square

Tokens per second, peak memory, and the share of the machine's measured matmul peak and, on a GPU, memory
bandwidth. Ours takes as many questions at once as the sampler does by itself (`--batch-tokens`), generate
`--their-batch` (8 are no faster for it than 4 on a CPU, and its cache soon fills 24 GB).
"""

import argparse
import copy
import json
import time
from functools import partial

import torch
from common import (
    PeakMemory,
    attention_flops,
    bandwidth,
    decoding_bytes,
    forward_flops,
    matmul_peak,
    prompts,
    report,
)
from tqdm import tqdm
from transformers import AutoModelForCausalLM

import data
from batches import sampling_batches
from policy import Policy, load_policy, locate
from sample import SamplingParams, draw_batch


def theirs_model(name, dtype, device):
    source, extra = locate(name)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="sdpa", **extra)
    return model.to(device).eval()


@torch.no_grad()
def generate(model, policy: Policy, batch, answers, new, fixed):
    """All prompts of the batch, left-padded, `answers` sequences each; returns how many tokens were drawn."""
    width, pad = max(map(len, batch)), policy.tokenizer.pad_token_id or policy.end_ids[0]
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in batch], device=policy.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=policy.device)
    out = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        num_return_sequences=answers, max_new_tokens=new, min_new_tokens=new if fixed else None,
        pad_token_id=pad, eos_token_id=list(policy.end_ids),
    )  # fmt: skip
    drawn = out[:, width:]
    ended = torch.isin(drawn, torch.tensor(policy.end_ids, device=drawn.device)).cumsum(1)
    return int(
        ((ended - torch.isin(drawn, torch.tensor(policy.end_ids, device=drawn.device)).long()) == 0).sum()
    )


def timed(run):
    """(result, seconds, peak MiB). Of two runs the first, which starts trimmed, gives MiB, the other time."""
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
        together = sampling_batches(batch, args.answers, args.new, args.batch_tokens)[0]
        mine = partial(draw_batch, policy, [dummy[i] for i in together], [batch[i] for i in together])
        policy.end_ids, policy.stop_tokens = (), frozenset()  # every answer is as long as the limit
        draw_batch(policy, dummy[:1], batch[:1], SamplingParams(4, 4))  # warm-up
        _, prefill, _ = timed(partial(mine, SamplingParams(args.answers, 1)))
        answers, seconds, ours_memory = timed(partial(mine, SamplingParams(args.answers, args.new)))
        policy.end_ids, policy.stop_tokens = end, stop
        tokens = sum(len(a.ids) for a in answers)
        generate(model, policy, batch[:1], 4, 4, True)
        draw = partial(generate, model, policy, batch[: args.their_batch], args.answers, args.new, True)
        theirs_tokens, theirs_seconds, theirs_memory = timed(draw)
        name = f"prompt {length}"
        rows.append((name, tokens / seconds, theirs_tokens / theirs_seconds, "tokens/s"))
        rows.append((f"{name}, peak memory", ours_memory, theirs_memory, "MiB"))
        seen, count = len(together) * length, len(together)
        flops = [  # of all, of the prompts alone
            forward_flops(policy.model, seen + tokens - len(answers), tokens)
            + attention_flops(policy.model, seen * length / 2 + tokens * (length + args.new / 2)),
            forward_flops(policy.model, seen, count) + attention_flops(policy.model, seen * length / 2),
        ]
        peak = matmul_peak(policy.dtype, policy.device.type)
        extra[f"{name}, share of the matmul peak"] = flops[0] / seconds / peak
        extra[f"{name}, share of the matmul peak in prefill"] = flops[1] / prefill / peak
        if policy.device.type == "cuda":
            step = (seconds - prefill) / (args.new - 1)
            must = decoding_bytes(policy.model, seen + len(answers) * args.new / 2) / step
            extra[f"{name}, share of the memory bandwidth in decoding"] = must / bandwidth(policy.device)
        extra[f"{name}, questions at once, ours and theirs"] = [
            len(together),
            min(args.their_batch, len(batch)),
        ]
    return rows, extra


def real(args, policy, model):
    questions = data.subset(data.load("spider", args.spider, "dev")[0], args.count, 0)
    batch = [policy.prompt_ids(q) for q in questions]
    ours_time = theirs_time = 0.0
    for together in sampling_batches(batch, args.answers, args.new, args.batch_tokens):
        mine = [questions[i] for i in together], [batch[i] for i in together]
        _, seconds = once(partial(draw_batch, policy, *mine, SamplingParams(args.answers, args.new)))
        ours_time += seconds
    ordered, start = sorted(batch, key=len), 0  # theirs: like lengths together, so little padding
    while start < len(ordered):
        part = ordered[start : start + args.their_batch]
        while len(part) > 1 and len(part) * args.answers * (len(part[-1]) + args.new) > args.their_tokens:
            part.pop()
        start += len(part)
        _, seconds = once(partial(generate, model, policy, part, args.answers, args.new, False))
        theirs_time += seconds
        print(
            f"{start} of {len(ordered)}: generate {theirs_time:.0f} s, ours for all {ours_time:.0f} s",
            flush=True,
        )
    total = len(questions) * args.answers
    return [(f"{len(questions)} Spider questions", total / ours_time, total / theirs_time, "answers/s")], {}


@torch.no_grad()
def same_distribution(args, policy, model):
    """Chi-square test of homogeneity: the first three tokens of `--draws` answers of each, 8 real questions.

    generate gets the prompt's cache, or it would prefill the prompt for every answer. Cells with fewer than
    20 draws in sum are one. Returns {"chi-square", "degrees of freedom", "p"}.
    """
    torch.manual_seed(0)
    statistic, freedom, end = 0.0, 0, policy.end_ids
    policy.stop_tokens = frozenset()  # generate does not end an answer where its code ends
    for question in tqdm(
        data.subset(data.load("spider", args.spider, "dev")[0], 8, 0), desc="chi-square", unit="question"
    ):
        prompt, counts = policy.prompt_ids(question), {}
        ids = torch.tensor([prompt], device=policy.device)
        cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        for start in range(0, args.draws, 128):
            for a in draw_batch(policy, [question], [prompt], SamplingParams(128, 3, seed=start)):
                counts.setdefault(a.ids, [0, 0])[0] += 1
            copies = copy.deepcopy(cache)
            copies.batch_repeat_interleave(128)
            out = model.generate(
                ids.expand(128, -1), past_key_values=copies, do_sample=True, temperature=1.0, top_k=0,
                top_p=1.0, max_new_tokens=3, pad_token_id=end[0], eos_token_id=list(end),
            )  # fmt: skip
            for drawn in out[:, len(prompt) :].tolist():
                ended = next((i + 1 for i, token in enumerate(drawn) if token in end), len(drawn))
                counts.setdefault(tuple(drawn[:ended]), [0, 0])[1] += 1
        cells = [c for c in counts.values() if sum(c) >= 20]
        rest = [sum(c[side] for c in counts.values() if sum(c) < 20) for side in (0, 1)]
        cells += [rest] if sum(rest) else []
        statistic += sum((a - b) ** 2 / (a + b) for a, b in cells)  # as many draws of each side
        freedom += len(cells) - 1
    p = torch.special.gammaincc(
        torch.tensor(freedom / 2).double(), torch.tensor(statistic / 2).double()
    ).item()
    return {"chi-square": statistic, "degrees of freedom": freedom, "p": p}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--lengths", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--questions", type=int, default=24, help="prompts to take a batch from")
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--spider", help="Spider's folder: real questions instead")
    parser.add_argument("--count", type=int, default=64, help="of real questions")
    parser.add_argument("--batch-tokens", type=int, default=32768)
    parser.add_argument("--their-batch", type=int, default=8, help="questions that generate gets at once")
    parser.add_argument(
        "--their-tokens", type=int, default=65536, help="and tokens in its cache: 24 GB do not hold 128,000"
    )
    parser.add_argument(
        "--draws", type=int, help="chi-square test with as many answers of each side, a multiple of 128"
    )
    parser.add_argument("--quick", action="store_true", help="2 questions, 16 new tokens, the first length")
    args = parser.parse_args()
    if args.quick:
        args.questions, args.new, args.count, args.lengths = 2, 16, 4, args.lengths[:1]
    policy = load_policy(args.model, args.precision, args.device)
    model = theirs_model(args.model, policy.dtype, policy.device)
    if args.draws:
        found = same_distribution(args, policy, model)
        print(json.dumps({"what": "same distribution", **found, "draws": args.draws}))
        return
    rows, extra = real(args, policy, model) if args.spider else fixed(args, policy, model)
    for name, share in extra.items():
        print(f"{name}: {share:.0%}" if isinstance(share, float) else f"{name}: {share}")
    settings = {
        k: getattr(args, k)
        for k in ("model", "precision", "questions", "answers", "new", "their_batch", "quick")
    }
    report("sampling", rows, settings | extra)


if __name__ == "__main__":
    main()
