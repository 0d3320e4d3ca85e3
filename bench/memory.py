"""Memory of one training step, counted from shapes; checked against a measurement on SmolLM2.

    python bench/memory.py                  one checkpointed step, 16 answers, at K = 8, 16 and 64 pairs
    python bench/memory.py --count-only     the table for Llama-3-8B on a 24 GB GPU

With checkpointing a step holds the weights, the adapter with its gradient and AdamW's two moments, the input
of every layer, one layer's activations while it is recomputed and differentiated, and one chunk of logits.
None of these depends on K. The last two are not alive at once, so the sum is a bound.
"""

import argparse
import itertools
import subprocess
import sys

import torch
from common import prompts, report

import lora
from batches import Pair, trees
from pairs import QuestionPairs
from policy import load_policy
from refine import batch_loss, reference_logps
from settings import Config

LLAMA3_8B = {
    "hidden": 4096, "inner": 14336, "layers": 32, "heads": 32, "kv_heads": 8, "head": 128, "vocab": 128256,
    "tied": False,
}  # fmt: skip
SMOLLM2 = {
    "hidden": 576, "inner": 1536, "layers": 30, "heads": 9, "kv_heads": 3, "head": 64, "vocab": 49152,
    "tied": True,
}  # fmt: skip


def count(s, prompt, answers, length, width, rank=8, chunk=512):
    """MiB of each part. width: bytes of a weight and an activation."""
    d, f, q, kv = s["hidden"], s["inner"], s["heads"] * s["head"], s["kv_heads"] * s["head"]
    tokens = prompt + answers * length
    weights = s["layers"] * (2 * d * q + 2 * d * kv + 3 * d * f) + s["vocab"] * d * (1 if s["tied"] else 2)
    adapter = s["layers"] * rank * (2 * (d + q) + 2 * (d + kv) + 3 * (d + f))
    seen = tokens * (q + kv)  # the keys that are attended to: the ancestors' once, and the own ones
    # of one layer: 2 norms and their inputs, q, k, v before and after rotation, attention, its output; gate,
    # up, silu, product; the low-rank products; and as much again for the gradients of the widest of them
    layer = tokens * (6 * d + 4 * q + 4 * kv + 4 * f + 7 * rank) + 2 * seen
    gradients = tokens * (2 * f + 2 * d) + 2 * seen
    rows = min(chunk, answers * length)
    return {
        "frozen weights": weights * width / 2**20,
        "adapter, gradient, two moments": adapter * 16 / 2**20,
        "inputs of the layers": s["layers"] * tokens * d * width / 2**20,
        "one layer, forward and backward": (layer + gradients) * width / 2**20,
        "one chunk of logits": rows * s["vocab"] * (4 if width == 4 else 4 + width) / 2**20,
        "expectations": answers * length * d * (width + 4) / 2**20,
    }


def show(title, parts):
    print(f"\n{title}")
    for name, mib in parts.items():
        print(f"  {name:34}{mib:10.0f} MiB")
    print(f"  {'sum':34}{sum(parts.values()):10.0f} MiB")


def measure(prompt_length, answers, length, k):
    policy = load_policy("smollm2", "float32", "cpu")
    lora.inject(policy.model)
    policy.model.activation_checkpointing_enable({"use_reentrant": False})
    policy.model.train()
    config = Config(checkpointing=True, train_tokens=1 << 20)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (answers, length), generator=generator).tolist()
    half = answers // 2  # chosen and rejected: every answer is in a pair, each pair is another one
    pairs = [(i % half, half + (i + i // half) % half) for i in range(k)]
    question = QuestionPairs(0, tuple(map(tuple, ids)), tuple(pairs))
    prompt = prompts(policy.tokenizer, prompt_length, 1)[0]
    reference = reference_logps(config, policy, [prompt], [question])
    [micro_batch] = trees([Pair(0, c, r) for c, r in pairs], [prompt], [question], config.train_tokens)
    for p in lora.parameters(policy.model):
        p.grad = None
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        loss, _ = batch_loss(config, policy, [prompt], [question], reference, micro_batch)
        loss.backward()
    # the most bytes of tensors alive at once; what the process holds is more, since the heap has gaps
    events = sorted(
        (e.start_ns(), e.nbytes()) for e in profile.kineto_results.events() if e.name() == "[memory]"
    )
    return max(itertools.accumulate(size for _, size in events)) / 2**20


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count-only", action="store_true")
    parser.add_argument("--quick", action="store_true", help="smaller prompt")
    parser.add_argument("--measure", type=int, metavar="K", help="print the measured MiB of one step alone")
    args = parser.parse_args()
    prompt, answers, length = (300, 16, 40) if args.quick else (1000, 16, 60)
    if args.measure:
        print(measure(prompt, answers, length, args.measure))
        return
    case = "Llama-3-8B in bfloat16, prompt 1500, 16 answers of 100 tokens, rank 8, checkpointed"
    show(case, count(LLAMA3_8B, 1500, 16, 100, 2))
    if args.count_only:
        return
    parts = count(SMOLLM2, prompt, answers, length, 4)
    show(
        f"SmolLM2-135M in float32, prompt {prompt}, {answers} answers of {length} tokens, checkpointed", parts
    )
    counted = sum(
        v for name, v in parts.items() if name not in ("frozen weights", "adapter, gradient, two moments")
    )
    rows = []
    for k in (8, 16, 64):  # each in a process of its own: freed memory stays with a process
        command = [sys.executable, __file__, "--measure", str(k), *(["--quick"] if args.quick else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append((f"activations at K = {k}", float(done.stdout.split()[-1]), counted, "MiB"))
    print("(ours: measured; theirs: counted, a bound)")
    report("memory", rows, {"prompt": prompt, "answers": answers, "length": length})


if __name__ == "__main__":
    main()
