"""Training: ours against TRL's DPOTrainer with PEFT, the same batch of pairs, the same modules and loss.

    python bench/training.py [--quick] [--cases 300x40 1000x60]
    python bench/training.py --spider FOLDER --their-pairs 1 2 4

A case is PROMPTxANSWER tokens: one step on one question, 16 distinct answers, K = 10 pairs. With --spider the
steps are real: questions on one database, answers that the model draws, pairs by their execution, 16 pairs a
step as `--step-databases 1` makes it. Sigmoid + SFT loss, reference log-probabilities precomputed on both
sides, LoRA rank 8. Pairs per second of forward and backward, peak memory, and the relative difference of the
two gradients. TRL 1.16 has no padding-free batches; it gets a step's pairs sorted by length.
"""

import argparse
import math
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from common import PeakMemory, attention_flops, forward_flops, matmul_peak, prompts, report
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

import data
import data_sets
import lora
from batches import Pair, batches, trees
from codelutra import draw
from judging import usable
from pairs import QuestionPairs, make_pairs
from policy import load_policy, locate
from refine import batch_loss, reference_logps
from settings import Config
from stages import Run
from verify import Verifier


class PreTokenized(DPOTrainer):
    """TRL's trainer on token ids as they are: ours were sampled, and must not be tokenised again."""

    def _prepare_dataset(self, dataset, *_, **__):
        return dataset


def best(run, repeats):
    """(result, seconds of the fastest run, peak MiB)"""
    seconds = []
    with PeakMemory() as memory:
        for _ in range(repeats):
            started = time.time()
            result = run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.time() - started)
    return result, min(seconds), memory.mib


class Work(NamedTuple):
    name: str
    prompts: list[list[int]]
    pairs: list[QuestionPairs]  # of each prompt
    steps: list[list[Pair]]
    limit: float  # tokens that ours computes in one pass


def made(policy, prompt_length, answer_length):
    """One step of a question: 16 distinct answers in 10 pairs."""
    generator = torch.Generator().manual_seed(0)
    answers = torch.randint(1000, 20000, (16, answer_length), generator=generator).tolist()
    pairs = QuestionPairs(0, tuple(map(tuple, answers)), tuple((k % 6, 6 + k) for k in range(10)))
    prompt = prompts(policy.tokenizer, prompt_length, 1)
    step = [Pair(0, *pair) for pair in pairs.pairs]
    return Work(f"prompt {prompt_length}, 16 x {answer_length}", prompt, [pairs], [step], math.inf)


def real(args, policy):
    """Steps of Spider as a run makes them, all of one database, which has the most questions."""
    preset = data_sets.DATA_SETS["spider"].preset
    config = Config(data="spider", data_dir=args.spider, step_databases=1, **preset)
    questions, _ = data.load("spider", args.spider, "train")
    database, _ = Counter(q.db_id for q in questions).most_common(1)[0]
    questions = data.subset([q for q in questions if q.db_id == database], args.questions, 0)
    with Verifier(2) as verifier, tempfile.TemporaryDirectory() as folder:
        questions = usable(questions, verifier, config.timeout)[0]
        answers, verdicts = draw(config, policy, questions, verifier, Run(Path(folder)), 1)
    pairs, _ = make_pairs(config, policy.tokenizer, questions, answers, verdicts, 1)
    by_index = {q.index: q for q in questions}
    texts = [policy.prompt_ids(by_index[p.question]) for p in pairs]
    steps = batches(config, pairs, [database] * len(pairs), 1)
    name = f"Spider, {len(steps)} steps of {config.batch_size} pairs"
    return Work(name, texts, pairs, steps, config.train_tokens)


def share_of_peak(policy, work, seconds):
    """The FLOPs of a made step, over those that a large matrix product makes in as long."""
    prompt, answers = len(work.prompts[0]), work.pairs[0].answers
    new = sum(map(len, answers))
    seen = prompt**2 / 2 + new * (prompt + len(answers[0]) / 2)
    # backward: as much again for the frozen linear layers, twice for attention
    flops = 2 * forward_flops(policy.model, prompt + new, new) + 3 * attention_flops(policy.model, seen)
    return flops / seconds / matmul_peak(policy.dtype, policy.device.type)


def their_trainer(args, policy, config, rows):
    source, extra = locate(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=policy.dtype, attn_implementation="sdpa", **extra
    )
    # the Trainer refuses GGUF, though its weights are plain now
    model.is_quantized, model.hf_quantizer = False, None
    trl = DPOConfig(
        output_dir=tempfile.mkdtemp(), loss_type=["sigmoid", "sft"], loss_weights=[1.0, config.lam],
        beta=config.beta, max_length=None, precompute_ref_log_probs=False,  # they are in the rows
        report_to=[], bf16=policy.dtype == torch.bfloat16, use_cpu=policy.device.type == "cpu",
        gradient_checkpointing=False, disable_dropout=True,
    )  # fmt: skip
    peft = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    trainer = PreTokenized(
        model,
        args=trl,
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        peft_config=peft,
    )
    trainer.precompute_ref_logps = True
    trainer.model.train()
    return trainer


def measure(args, policy, work):
    config = Config()
    reference = reference_logps(config, policy, work.prompts, work.pairs)
    parameters, generator = lora.parameters(policy.model), torch.Generator().manual_seed(0)
    for p in parameters[1::2]:  # B is zero at the start and A then has no gradient: compare away from it
        p.data.copy_(0.02 * torch.randn(p.shape, generator=generator))
    mine = {
        f"{name}.{key}": getattr(layer, key)
        for name, layer in lora.layers(policy.model).items()
        for key in ("lora_A", "lora_B")
    }

    def ours():
        """The gradients of each step"""
        found = []
        for step in work.steps:
            for p in parameters:
                p.grad = None
            for micro_batch in trees(step, work.prompts, work.pairs, work.limit):
                loss, _ = batch_loss(config, policy, work.prompts, work.pairs, reference, micro_batch)
                (loss / len(step)).backward()
            found.append({name: p.grad for name, p in mine.items()})
        return found

    ours()
    gradients, seconds, memory = best(ours, args.repeats)
    print(f"{work.name}: ours {seconds:.1f} s", flush=True)

    def row(pair):
        ids = work.pairs[pair.at].answers
        return {
            "prompt_ids": work.prompts[pair.at],
            "chosen_ids": list(ids[pair.chosen]),
            "rejected_ids": list(ids[pair.rejected]),
            "ref_chosen_logps": reference[pair.at][pair.chosen].item(),
            "ref_rejected_logps": reference[pair.at][pair.rejected].item(),
        }

    def length(row):
        return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    steps = [sorted(map(row, step), key=length) for step in work.steps]
    trainer = their_trainer(args, policy, config, steps[0])
    named, theirs_parameters = dict(trainer.model.named_parameters()), {}
    for name, parameter in mine.items():
        theirs_parameters[name] = next(p for n, p in named.items() if n.endswith(f"{name}.default.weight"))
        theirs_parameters[name].data.copy_(parameter.data)

    def theirs(size, steps=steps):
        found = []
        for rows in steps:
            for p in theirs_parameters.values():
                p.grad = None
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                batch = {k: v.to(policy.device) for k, v in trainer.data_collator(part).items()}
                with policy.autocast():
                    loss = trainer.compute_loss(trainer.model, batch)
                (len(part) / len(rows) * loss).backward()
            found.append({name: p.grad for name, p in theirs_parameters.items()})
        return found

    theirs(1, [steps[0][:1]])  # warm-up
    runs = {}
    for size in args.their_pairs:
        runs[size] = best(partial(theirs, size), args.repeats)
        print(f"{work.name}: theirs with {size} pairs at once {runs[size][1]:.1f} s", flush=True)
    size = min(runs, key=lambda size: runs[size][1])
    theirs_gradients, theirs_seconds, theirs_memory = runs[size]
    differences = [
        sum((b[n] - g).pow(2).sum() for n, g in a.items()).sqrt()
        / sum(g.pow(2).sum() for g in a.values()).sqrt()
        for a, b in zip(gradients, theirs_gradients)
    ]
    for p in parameters[1::2]:
        p.data.zero_()
    count = sum(map(len, work.steps))
    facts = {f"{work.name}: gradients differ by (relative, at most)": max(differences).item()}
    if work.limit == math.inf:
        facts[f"{work.name}: share of the matmul peak"] = share_of_peak(policy, work, seconds)
    for tried, (_, took, mib) in runs.items():
        facts[f"{work.name}: DPOTrainer with {tried} pairs at once"] = (
            f"{count / took:.3f} pairs/s, {mib:.0f} MiB"
        )
    rows = [
        (work.name, count / seconds, count / theirs_seconds, "pairs/s"),
        (f"{work.name}, peak memory", memory, theirs_memory, "MiB"),
    ]
    return rows, facts


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cases", nargs="+", default=["300x40", "1000x60"])
    parser.add_argument("--spider", help="Spider's folder: real steps instead")
    parser.add_argument("--questions", type=int, default=8, help="of the database, with --spider")
    parser.add_argument(
        "--their-pairs", type=int, nargs="+", default=[2],
        help="pairs that DPOTrainer gets at once, the fastest counts; memory must hold them",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the first case, or 2 questions, once")
    args = parser.parse_args()
    if args.quick:
        args.cases, args.repeats, args.questions = args.cases[:1], 1, 2
    policy = load_policy(args.model, args.precision, args.device)
    lora.inject(policy.model)
    todo = (
        [real(args, policy)]
        if args.spider
        else [made(policy, *map(int, text.split("x"))) for text in args.cases]
    )
    rows, extra = [], {}
    for work in todo:
        more, facts = measure(args, policy, work)
        rows += more
        extra |= facts
    for name, value in extra.items():
        shown = value if isinstance(value, str) else f"{value:.2e}" if value < 0.01 else f"{value:.1%}"
        print(f"{name}: {shown}")
    settings = {"model": args.model, "precision": args.precision, "cases": [work.name for work in todo]}
    report("training", rows, settings | extra)


if __name__ == "__main__":
    main()
