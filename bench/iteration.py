"""One whole iteration, ours against the stack: sample, execute, pair, reference, train.

    python bench/iteration.py --spider FOLDER --bird FOLDER [--questions 16] [--quick]
    python bench/iteration.py --spider FOLDER --sampler vllm --peer-python .venv-peers/bin/python

The stack: an engine of bench/peers.py that draws (transformers' generate where none is named; loaded before,
what a new adapter costs it counts), a new process per query, TRL's DPOTrainer with PEFT (reference
log-probabilities precomputed, sigmoid + SFT). Both sides train on the same pairs, ours, so that only the time
differs. Questions per minute of the whole, seconds of each stage.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from common import report
from datasets import Dataset
from peers import ENGINES
from peft import LoraConfig
from sampling import loading, peer_of
from training import PreTokenized
from transformers import AutoModelForCausalLM
from trl import DPOConfig
from verification import ONE_QUERY, new_process

import data
import data_sets
import lora
from batches import batches
from codelutra import draw
from judging import usable
from pairs import make_pairs
from policy import from_source, load_policy, locate
from prompts import extract_code
from refine import reference_logps, refine
from settings import Config
from stages import Run
from verify import Verifier


def timed(seconds, name, run):
    """The result of `run`; prints its seconds at once (memory may run out later) and keeps them as `name`."""
    started = time.time()
    result = run()
    seconds[name] = time.time() - started
    print(f"{name}: {seconds[name]:.1f} s", flush=True)
    return result


def ours(args, config, questions, folder):
    seconds, run = {}, Run(folder)
    policy = load_policy(args.model, args.precision)
    lora.inject(policy.model)
    by_index = {q.index: q for q in questions}
    with Verifier(args.workers) as verifier:
        drawn = timed(
            seconds, "sample and execute", lambda: draw(config, policy, questions, verifier, run, 1)
        )
    make = partial(make_pairs, config, policy.tokenizer, questions, *drawn, 1)
    pairs = timed(seconds, "pairs", lambda: run.pairs(1, make))
    prompts = [policy.prompt_ids(by_index[p.question]) for p in pairs]
    make = partial(reference_logps, config, policy, prompts, pairs)
    reference = timed(seconds, "reference", lambda: run.reference(1, pairs, make))
    steps = batches(config, pairs, [by_index[p.question].db_id for p in pairs], 1)
    train = partial(refine, config, policy, prompts, pairs, reference, steps, run.checkpoint(1), 1)
    timed(seconds, "train", train)
    return seconds, policy, drawn[0], pairs


def theirs(args, config, questions, policy, answers, pairs):
    seconds = {}
    prompts = {q.index: policy.prompt_ids(q) for q in questions}
    drawn = [prompts[q.index] for q in questions]
    model = from_source(AutoModelForCausalLM, args.model, f"weights-{args.precision}", dtype=policy.dtype)
    settings = {"questions": args.their_batch} if args.sampler == "generate" else None
    with tempfile.TemporaryDirectory() as folder, peer_of(args.sampler, args, settings) as peer:
        write = partial(model.save_pretrained, folder)  # as a merged adapter is
        write()
        load = loading(peer, args, folder, policy, drawn, config.answers, config.max_new)
        draw = partial(
            peer.ask, answers=config.answers, new=config.max_new, end=list(policy.end_ids), fixed=False
        )
        load()
        draw(prompts=[drawn[0][::-1]])  # warm-up
        timed(seconds, "their new weights", lambda: (write(), load()))
        timed(seconds, "their sample", partial(draw, prompts=drawn))
    del model
    by_index = {q.index: q for q in questions}
    asked = [(by_index[a.question], extract_code(a.text)) for a in answers]
    commands = [[sys.executable, "-I", "-c", ONE_QUERY, q.database, code, q.gold] for q, code in asked]
    with ThreadPoolExecutor(args.workers) as pool:
        timed(
            seconds, "their execute", lambda: list(pool.map(lambda c: _bounded(c, config.timeout), commands))
        )

    rows = [
        {
            "prompt_ids": prompts[p.question],
            "chosen_ids": list(p.answers[c]),
            "rejected_ids": list(p.answers[r]),
        }
        for p in pairs
        for c, r in p.pairs
    ]
    source, extra = locate(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=policy.dtype, attn_implementation="sdpa", **extra
    )
    model.is_quantized, model.hf_quantizer = False, None
    trl = DPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=args.their_pairs,
        loss_type=["sigmoid", "sft"], gradient_accumulation_steps=config.batch_size // args.their_pairs,
        loss_weights=[1.0, config.lam], beta=config.beta, max_length=None, report_to=[],
        learning_rate=config.lr, use_cpu=policy.device.type == "cpu", bf16=policy.dtype == torch.bfloat16,
        gradient_checkpointing=False, precompute_ref_log_probs=True, num_train_epochs=1, disable_tqdm=True,
        save_strategy="no", logging_steps=1000,
    )  # fmt: skip
    peft = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    make = lambda: PreTokenized(  # noqa: E731
        model,
        args=trl,
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        peft_config=peft,
    )
    trainer = timed(seconds, "their reference", make)
    timed(seconds, "their train", trainer.train)
    return seconds


def _bounded(command, timeout):
    try:
        return new_process(command, timeout=timeout)
    except Exception:  # a query that never ends: its process was killed at the timeout
        return False


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spider", help="Spider's folder")
    parser.add_argument("--bird", help="BIRD's folder")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--workers", type=int, default=2, help="processes that execute, on both sides")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--sampler", default="generate", choices=list(ENGINES), help="the stack's")
    parser.add_argument("--peer-python", help="the Python of llama.cpp and vLLM (requirements-peers.txt)")
    parser.add_argument("--their-batch", type=int, default=4, help="questions that generate gets at once")
    parser.add_argument(
        "--their-pairs",
        type=int,
        default=1,
        help="pairs that DPOTrainer gets at once: 2 need more than 24 GB",
    )
    parser.add_argument(
        "--quick", action="store_true", help="2 questions of the first data set, 4 answers of 32 tokens"
    )
    args = parser.parse_args()
    sets = [(name, folder) for name, folder in (("spider", args.spider), ("bird", args.bird)) if folder]
    if not sets:
        parser.error("--spider or --bird is needed")
    rows, stages = [], {}
    for name, folder in sets[:1] if args.quick else sets:
        config = Config(data=name, data_dir=folder, **data_sets.DATA_SETS[name].preset)
        count = args.questions
        if args.quick:
            config, count = dataclasses.replace(config, answers=4, pairs=2, batch_size=4, max_new=32), 2
        questions = data.subset(data.load(name, folder, "train")[0], 4 * count, 0)
        with Verifier(args.workers) as verifier:
            questions = usable(questions, verifier, config.timeout)[0][:count]
        with tempfile.TemporaryDirectory() as run:
            mine, policy, answers, pairs = ours(args, config, questions, Path(run))
        stack = theirs(args, config, questions, policy, answers, pairs)
        speeds = [60 * count / sum(side.values()) for side in (mine, stack)]
        rows.append((f"{name}: {count} questions", *speeds, "questions/min"))
        stages[name] = {
            "ours": {k: round(v, 1) for k, v in mine.items()},
            "theirs": {k: round(v, 1) for k, v in stack.items()},
        }
        print(name, stages[name])
    report(
        f"one iteration, the stack with {args.sampler}",
        rows,
        {"model": args.model, "precision": args.precision, "stages": stages},
    )


if __name__ == "__main__":
    main()
