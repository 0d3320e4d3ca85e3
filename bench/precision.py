"""Mixed precision: log-probabilities in bfloat16 (or float16) against float32, same weights and answers.

    python bench/precision.py [--device cuda] [--precision bfloat16]
    python bench/precision.py --make-llama3-8b FOLDER    Llama-3-8B's shape, random weights, for bench/gpu.sh

Prints the difference per token and per answer, and the DPO loss at a step 0 whose reference was computed in
other passes.
"""

import argparse
import math

import torch
from common import prompts, report

from loss import dpo_loss, dpo_margin
from policy import load_policy, load_tokenizer
from tree import Tree, answer_logps


def scores(model, precision, device, prompt_length, length):
    policy = load_policy(model, precision, device)
    generator = torch.Generator().manual_seed(0)
    batch = prompts(policy.tokenizer, prompt_length, 4)
    answers = [torch.randint(1000, 20000, (8, length), generator=generator).tolist() for _ in batch]
    with torch.no_grad(), policy.autocast():
        together = answer_logps(policy.model, Tree(batch, answers, policy.device)).cpu()
        apart = torch.cat(
            [answer_logps(policy.model, Tree([p], [a], policy.device)).cpu() for p, a in zip(batch, answers)]
        )
    return together, apart


def make_llama3_8b(folder):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192, rope_theta=500000.0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer("smollm2").save_pretrained(folder)  # any tokenizer whose ids fit


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--length", type=int, default=40, help="tokens an answer")
    parser.add_argument("--quick", action="store_true", help="shorter prompts")
    parser.add_argument("--make-llama3-8b", metavar="FOLDER")
    args = parser.parse_args()
    if args.make_llama3_8b:
        make_llama3_8b(args.make_llama3_8b)
        return
    prompt_length = 100 if args.quick else 300
    exact, _ = scores(args.model, "float32", args.device, prompt_length, args.length)
    half, apart = scores(args.model, args.precision, args.device, prompt_length, args.length)
    difference = (half - exact).abs()
    dpo = dpo_loss(dpo_margin(half[:16], half[16:], apart[:16], apart[16:]), 0.1).mean().item()
    print(f"float32: mean {exact.mean():.3f} an answer of {args.length} tokens")
    print(
        f"{args.precision}: differs by {difference.mean() / args.length:.5f} a token, "
        f"{difference.mean():.3f} an answer,"
    )
    print(
        f"    at most {difference.max():.3f}; "
        f"same answers in other passes: at most {(half - apart).abs().max():.3f}"
    )
    print(f"DPO at step 0: {dpo:.5f}, ln 2 is {math.log(2):.5f}")
    rows = [("difference per token, nats", (difference.mean() / args.length).item(), 1.0, "nats (of 1)")]
    report("mixed precision", rows, {"model": args.model, "precision": args.precision, "dpo_at_step_0": dpo})


if __name__ == "__main__":
    main()
