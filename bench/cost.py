"""What a whole run costs, from counted tokens: by default Llama-3-8B on all of BIRD with Table 5's settings.

    python bench/cost.py --data-dir FOLDER [--tokenizer smollm2] [--train 9428 --dev 1534]

Prompt and answer lengths are those of the questions that are there, by the tokenizer that is there; an answer
is taken to be as long as its gold code. Arithmetic: two operations a weight and token forward, two more
backward (the weights are frozen, so only inputs have gradients). Hours are arithmetic over the share of an
H100's bfloat16 peak that training reached, and for decoding weights and caches over the share of its
bandwidth that sampling reached, both measured with a random model of this shape (bench/README.md). Not
counted: attention (a few per cent at these lengths), checkpointing (half as much again in training),
scoring's decoding beyond its arithmetic.
"""

import argparse
import json

import common  # noqa: F401 (finds the project)
import numpy as np

import data
import data_sets
import prompts
from policy import load_tokenizer
from settings import Config

LLAMA3_8B = {"parameters": 8.03e9, "layers": 32, "kv": 2 * 8 * 128}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", required=True, help="BIRD's folder")
    parser.add_argument("--tokenizer", default="smollm2", help="model whose tokenizer counts")
    parser.add_argument("--train", type=int, default=9428, help="training questions of the release")
    parser.add_argument("--dev", type=int, default=1534, help="held-out questions of the release")
    parser.add_argument("--batch", type=int, default=256, help="answers that are decoded at once")
    parser.add_argument("--peak", type=float, default=800e12, help="operations per second, dense bfloat16")
    parser.add_argument("--share", type=float, default=0.35, help="of the peak, in prefill and training")
    parser.add_argument("--bandwidth", type=float, default=3.0e12, help="bytes per second")
    parser.add_argument("--bandwidth-share", type=float, default=0.25, help="of it, in decoding")
    args = parser.parse_args()
    config = Config(data="bird", **data_sets.DATA_SETS["bird"].preset)
    tokenizer, questions = load_tokenizer(args.tokenizer), data.load("bird", args.data_dir, "train")[0]
    lengths = np.array([len(prompts.prompt_ids(q, tokenizer)) for q in questions])
    answers = np.array([len(tokenizer(q.gold)["input_ids"]) + 1 for q in questions])
    fits = lengths + config.max_new <= config.max_length
    prompt, answer, n = lengths[fits].mean(), answers[fits].mean(), args.train * fits.mean()
    distinct = min(2 * config.pairs, config.answers + 1)  # of a question's pairs, at most
    m, t = LLAMA3_8B, config.iterations
    tokens = {  # of all iterations; a prompt is computed once for all of its answers
        "sampling: prompts": t * n * prompt,
        "sampling: answers": t * n * config.answers * answer,
        "reference": t * n * (prompt + distinct * answer),
        "training": t * n * (prompt + distinct * answer),
        "scoring": (t + 1) * (args.dev + config.validation) * (prompt + answer),
    }
    plain = {
        "sampling: prompts": t * n * prompt * config.answers,
        "training": t * n * 2 * config.pairs * (prompt + answer),
    }
    plain["reference"] = plain["training"]
    hours = {}
    for name, count in tokens.items():
        factor = {"training": 4}.get(name, 2)
        hours[name] = count * factor * m["parameters"] / (args.peak * args.share) / 3600
    steps = tokens["sampling: answers"] / args.batch
    # a step reads it all
    cache = 2 * m["layers"] * m["kv"] * (args.batch / config.answers * prompt + args.batch * answer / 2)
    bound = (2 * m["parameters"] + cache) / (args.bandwidth * args.bandwidth_share)
    hours["sampling: answers"] = max(hours["sampling: answers"], steps * bound / 3600)
    print(
        f"{len(questions)} questions here, {fits.mean():.0%} fit {config.max_length} tokens: "
        f"prompts {prompt:.0f} tokens, gold {answer:.0f}; M = {config.answers}, K = {config.pairs}, T = {t}"
    )
    print(f"{'':22}{'tokens, M':>12}{'without trees':>15}{'hours':>8}")
    for name, count in tokens.items():
        print(f"{name:22}{count / 1e6:12,.0f}{plain.get(name, count) / 1e6:15,.0f}{hours[name]:8.1f}")
    whole, without = (sum(of.values()) / 1e6 for of in (tokens, tokens | plain))
    print(f"{'sum':22}{whole:12,.0f}{without:15,.0f}{sum(hours.values()):8.1f}")
    settings = {k: v for k, v in vars(args).items() if k != "data_dir"}
    found = {"tokens": tokens, "without trees": tokens | plain, "hours": hours, "settings": settings}
    print(json.dumps({"what": "cost", **found}))


if __name__ == "__main__":
    main()
