"""Training: ours against TRL's DPOTrainer with PEFT, the same batch of pairs, the same modules and loss.

    python bench/training.py [--quick] [--cases 300x40 1000x60]

A case is PROMPTxANSWER tokens: one question, 16 distinct answers, K = 10 pairs, sigmoid + SFT loss, reference
log-probabilities precomputed on both sides, LoRA rank 8. Pairs per second of forward and backward, peak
memory, and the relative difference of the two gradients.
"""

import argparse
import math
import tempfile
import time

import torch
from common import PeakMemory, attention_flops, forward_flops, matmul_peak, prompts, report
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

import lora
from batches import Pair, trees
from pairs import QuestionPairs
from policy import load_policy, locate
from refine import batch_loss, reference_logps
from settings import Config


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


def case(args, policy, prompt_length, answer_length):
    config = Config(pairs_per_tree=10, train_tokens=1 << 20)
    generator = torch.Generator().manual_seed(0)
    prompt = prompts(policy.tokenizer, prompt_length, 1)[0]
    answers = torch.randint(1000, 20000, (16, answer_length), generator=generator).tolist()
    pairs = [(k % 6, 6 + k) for k in range(10)]  # 16 distinct answers in 10 pairs
    question = QuestionPairs(0, tuple(map(tuple, answers)), tuple(pairs))
    reference = reference_logps(config, policy, [prompt], [question])
    parameters = lora.parameters(policy.model)
    for p in parameters[1::2]:  # B is zero at the start and A then has no gradient: compare away from it
        p.data.copy_(0.02 * torch.randn(p.shape, generator=generator))

    [micro_batch] = trees([Pair(0, c, r) for c, r in pairs], [prompt], [question], math.inf)

    def ours():
        for p in parameters:
            p.grad = None
        loss, _ = batch_loss(config, policy, [prompt], [question], reference, micro_batch)
        (loss / len(pairs)).backward()

    ours()
    _, seconds, memory = best(ours, args.repeats)
    gradients = {
        f"{name}.{key}": getattr(layer, key).grad.clone()
        for name, layer in lora.layers(policy.model).items()
        for key in ("lora_A", "lora_B")
    }
    tokens = prompt_length + 16 * answer_length
    seen = prompt_length**2 / 2 + 16 * answer_length * (prompt_length + answer_length / 2)
    # backward: as much again for the frozen linear layers, twice for attention
    flops = 2 * forward_flops(policy.model, tokens, 16 * answer_length) + 3 * attention_flops(
        policy.model, seen
    )
    share = flops / seconds / matmul_peak(policy.dtype, policy.device.type)

    source, extra = locate(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=policy.dtype, attn_implementation="sdpa", **extra
    )
    # the Trainer refuses GGUF, though its weights are plain now
    model.is_quantized, model.hf_quantizer = False, None
    trl = DPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=len(pairs), loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, 1.0], beta=config.beta, max_length=None, precompute_ref_log_probs=True,
        report_to=[], bf16=policy.dtype == torch.bfloat16, use_cpu=policy.device.type == "cpu",
        gradient_checkpointing=False, disable_dropout=True,
    )  # fmt: skip
    peft = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    rows = [
        {
            "prompt_ids": prompt, "chosen_ids": answers[c], "rejected_ids": answers[r],
            "ref_chosen_logps": reference[0][c].item(), "ref_rejected_logps": reference[0][r].item(),
        }
        for c, r in pairs
    ]  # fmt: skip
    trl.precompute_ref_log_probs = False  # they are in the rows
    trainer = PreTokenized(
        model,
        args=trl,
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        peft_config=peft,
    )
    trainer.precompute_ref_logps = True
    parts = [rows[i : i + args.their_pairs] for i in range(0, len(rows), args.their_pairs)]
    parts = [
        (len(p) / len(rows), {k: v.to(policy.device) for k, v in trainer.data_collator(p).items()})
        for p in parts
    ]
    mine = lora.layers(policy.model)
    named = dict(trainer.model.named_parameters())
    theirs_gradients = {}
    for name, layer in mine.items():
        for key in ("lora_A", "lora_B"):
            parameter = next(p for n, p in named.items() if n.endswith(f"{name}.{key}.default.weight"))
            parameter.data.copy_(getattr(layer, key).data)
            theirs_gradients[f"{name}.{key}"] = parameter
    trainer.model.train()

    def theirs():
        for p in theirs_gradients.values():
            p.grad = None
        for share_of_pairs, batch in parts:
            with policy.autocast():
                loss = trainer.compute_loss(trainer.model, dict(batch))
            (share_of_pairs * loss).backward()

    theirs()
    _, theirs_seconds, theirs_memory = best(theirs, args.repeats)
    difference = sum((theirs_gradients[n].grad - g).pow(2).sum() for n, g in gradients.items()).sqrt()
    difference = (difference / sum(g.pow(2).sum() for g in gradients.values()).sqrt()).item()
    for p in parameters[1::2]:
        p.data.zero_()
    name = f"prompt {prompt_length}, 16 x {answer_length}"
    rows = [
        (name, len(pairs) / seconds, len(pairs) / theirs_seconds, "pairs/s"),
        (f"{name}, peak memory", memory, theirs_memory, "MiB"),
    ]
    return rows, {
        f"{name}: gradients differ by (relative)": difference,
        f"{name}: share of the matmul peak": share,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cases", nargs="+", default=["300x40", "1000x60"])
    parser.add_argument(
        "--their-pairs", type=int, default=2, help="pairs that DPOTrainer gets at once: what memory holds"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the first case, once")
    args = parser.parse_args()
    if args.quick:
        args.cases, args.repeats = args.cases[:1], 1
    policy = load_policy(args.model, args.precision, args.device)
    lora.inject(policy.model)
    rows, extra = [], {}
    for text in args.cases:
        more, facts = case(args, policy, *map(int, text.split("x")))
        rows += more
        extra |= facts
    for name, value in extra.items():
        print(f"{name}: {value:.2e}" if value < 0.01 else f"{name}: {value:.1%}")
    report("training", rows, {"model": args.model, "precision": args.precision, "cases": args.cases} | extra)


if __name__ == "__main__":
    main()
