"""Sampling: ours against other engines that draw answers (bench/peers.py), each in a process of its own.

    python bench/sampling.py [--quick] [--lengths 300 1000]      fixed lengths: 64 new tokens for every answer
    python bench/sampling.py --spider FOLDER                     real questions, answers end when they end
    python bench/sampling.py --peer-python .venv-peers/bin/python      against llama.cpp and vLLM as well

All sides get the same prompts as token ids, draw at temperature 1 without truncation, end an answer at an end
token alone (which counts), and use as many threads. Every engine takes turns with ours: ours, theirs, ours,
theirs. Figures are of the faster of the two runs: tokens per second, loading apart.

In training the weights change with every iteration. Ours then draws with its adapter unmerged; the others
must take up new weights. The second figure is for one such iteration of 64 questions: seconds, all of that
in it.

Were the draws from the policy's distribution? For each side the mean log-probability of its tokens under
transformers' own forward pass in float32, less what it should have been at the same places (minus the
entropy): zero but for chance. A side that truncates or has other weights differs.
"""

import argparse
import copy
import json
import tempfile
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
from peers import ENGINES, IN_OUR_PYTHON, Peer
from transformers import AutoModelForCausalLM

import data
import lora
from batches import sampling_batches
from policy import load_policy, locate
from sample import SamplingParams, draw_batch

CHECKED = 8  # prompts whose answers are scored
ITERATION = 64  # questions of the second figure


class Ours:
    """Our sampler, which takes as many questions at once as it does by itself."""

    def __init__(self, policy, answers, new, batch_tokens):
        self.policy, self.answers, self.new, self.batch_tokens = policy, answers, new, batch_tokens
        self.end, policy.stop_tokens = policy.end_ids, frozenset()  # only an end token ends an answer

    def batches(self, prompts):
        return sampling_batches(prompts, self.answers, self.new, self.batch_tokens)

    def draw(self, prompts, fixed, new=None):
        """The answers' token ids, [[ids of one answer] for each answer] for each prompt."""
        self.policy.end_ids = () if fixed else self.end
        ids = [None] * len(prompts)
        for batch in self.batches(prompts):
            dummy = [data.Question(i, "", "", "", "") for i in batch]
            params = SamplingParams(self.answers, new or self.new)
            for answer in draw_batch(self.policy, dummy, [prompts[i] for i in batch], params):
                ids[answer.question] = (ids[answer.question] or []) + [list(answer.ids)]
        self.policy.end_ids = self.end
        return ids

    def timed(self, prompts, fixed, memory=False, new=None):
        """{seconds, ids, mib}, as the engines reply"""
        with PeakMemory() as peak:
            started = time.time()
            ids = self.draw(prompts, fixed, new)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = time.time() - started
        return {"seconds": seconds, "ids": ids, "mib": peak.mib if memory else None}


def turns(ours, theirs, prompts, fixed):
    """(ours, theirs, ids that ours drew, ids that theirs drew); ours, theirs: the faster run's seconds.

    Their MiB are of the first run, which starts trimmed.
    """
    runs = [(ours(prompts, fixed, memory), theirs(prompts, fixed, memory)) for memory in (True, False)]
    best = [
        {"seconds": min(run[side]["seconds"] for run in runs), "mib": runs[0][side]["mib"]} for side in (0, 1)
    ]
    return *best, runs[1][0]["ids"], runs[1][1]["ids"]


def tokens_of(ids):
    return sum(len(answer) for answers in ids for answer in answers)


@torch.no_grad()
def scored(model, prompts, ids):
    """How likely the tokens are: {mean, its standard error, surplus over the expected mean, its error}, nats.

    Under the model each token's log-probability is minus the entropy at its place on average, whatever came
    before it. So the answers' sums of the differences are independent and have mean zero, where they are the
    model's draws. The mean's own error is that of a ratio, the answers being drawn prompt by prompt.
    """
    found = []  # (log-probability, expected, tokens) of each answer, by prompt
    for prompt, answers in zip(prompts, ids):
        head = torch.tensor([prompt[:-1]], device=model.device)
        cache = model(input_ids=head, use_cache=True, logits_to_keep=1).past_key_values
        rows = []
        for start in range(0, len(answers), 4):
            part = answers[start : start + 4]
            width, copies = max(map(len, part)), copy.deepcopy(cache)
            copies.batch_repeat_interleave(len(part))
            padded = torch.tensor([a + [0] * (width - len(a)) for a in part], device=model.device)
            inputs = torch.cat([torch.tensor([prompt[-1:]] * len(part), device=model.device), padded], 1)
            logits = model(input_ids=inputs[:, :-1], past_key_values=copies, use_cache=True).logits.float()
            logps = logits.log_softmax(-1)
            drawn = logps.gather(2, padded[:, :, None])[:, :, 0].double()
            expected = (logps.exp() * logps).sum(-1).double()
            for row, answer in enumerate(part):
                n = len(answer)
                rows.append([drawn[row, :n].sum().item(), expected[row, :n].sum().item(), n])
        found.append(torch.tensor(rows, dtype=torch.double))
    logp, expected, count = torch.cat(found).T
    mean = (logp.sum() / count.sum()).item()
    residuals = [part[:, 0] - mean * part[:, 2] for part in found]
    variance = sum(len(r) * r.var() for r in residuals if len(r) > 1)
    return {
        "mean": mean,
        "error": (variance**0.5 / count.sum()).item(),
        "surplus": ((logp - expected).sum() / count.sum()).item(),
        "surplus error": ((logp - expected).square().sum().sqrt() / count.sum()).item(),
    }


def limits(ours, batch, seconds):
    """What limits ours: its share of the matmul peak, and, on a GPU, of the memory bandwidth in decoding."""
    policy, model, length = ours.policy, ours.policy.model, len(batch[0])
    prefill = min(ours.timed(batch, True, new=1)["seconds"] for _ in range(2))
    seen, count = len(batch) * length, len(batch) * ours.answers
    drawn = count * ours.new
    flops = [  # of all, of the prompts alone
        forward_flops(model, seen + drawn - count, drawn)
        + attention_flops(model, seen * length / 2 + drawn * (length + ours.new / 2)),
        forward_flops(model, seen, len(batch)) + attention_flops(model, seen * length / 2),
    ]
    peak = matmul_peak(policy.dtype, policy.device.type)
    found = {
        "share of the matmul peak": flops[0] / seconds / peak,
        "share of the matmul peak in prefill": flops[1] / prefill / peak,
    }
    if policy.device.type == "cuda":
        cached = [len(b) * (length + ours.answers * ours.new / 2) for b in ours.batches(batch)]
        must = (ours.new - 1) * sum(decoding_bytes(model, tokens) for tokens in cached)
        found["share of the memory bandwidth in decoding"] = (
            must / (seconds - prefill) / bandwidth(policy.device)
        )
    return found


def cases(args, policy):
    """(name, prompts, whether all answers have the same length) of each workload"""
    if args.spider:
        questions = data.subset(data.load("spider", args.spider, "dev")[0], args.questions, 0)
        ids = [policy.prompt_ids(q) for q in questions]
        return [(f"{len(ids)} Spider questions", ids, False)]
    return [(f"prompt {n}", prompts(policy.tokenizer, n, args.questions), True) for n in args.lengths]


def peer_of(name, args, settings=None):
    """The engine's process."""
    if name.startswith("llama.cpp") and "gguf_file" not in locate(args.model)[1]:
        raise SystemExit(f"{name} needs a GGUF file as --model")
    python = None if name in IN_OUR_PYTHON else args.peer_python
    return Peer(name, *([python] if python else []), threads=torch.get_num_threads(), settings=settings)


def loading(peer, args, folder, policy, prompts, answers, new):
    """The call by which an engine loads the policy's weights, and takes them up again."""
    source, extra = locate(args.model)
    return partial(
        peer.ask, load=folder, gguf=f"{source}/{extra.get('gguf_file')}", precision=args.precision,
        device=str(policy.device), longest=max(map(len, prompts)), answers=answers, new=new,
    )  # fmt: skip


def against(name, args, ours, work, folder, written):
    """Measure one engine: {case: (ours, theirs, ids of ours, ids of theirs)}, {seconds to load, to renew}."""
    end = list(ours.end)
    with peer_of(name, args, args.settings.get(name)) as peer:
        prompts = [p for _, batch, _ in work for p in batch]
        load = loading(peer, args, folder, ours.policy, prompts, args.answers, args.new)
        costs = {"load": load()["seconds"]}

        def theirs(prompts, fixed, memory=False):
            return peer.ask(
                prompts=prompts, answers=args.answers, new=args.new, end=end, fixed=fixed, memory=memory
            )

        theirs([p[::-1] for p in work[0][1][:1]], True)  # warm-up, on another prompt
        measured = {}
        for case, batch, fixed in work:
            mine, other, *ids = turns(ours.timed, theirs, batch, fixed)
            print(
                f"{case}, {name}: ours {mine['seconds']:.1f} s, theirs {other['seconds']:.1f} s", flush=True
            )
            counts = [tokens_of(side) for side in ids]
            checked = batch[:CHECKED]
            if fixed:  # answers of a fixed length are no draws: some engines forbid end tokens
                ids = ours.draw(checked, False), theirs(checked, False)["ids"]
            measured[case] = mine, other, counts, [side[:CHECKED] for side in ids]
        if name != "llama.cpp-packaged":  # no training gives such weights
            costs["new adapter"] = load()["seconds"] + (0 if name.startswith("llama.cpp") else written)
    return measured, costs


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--against", nargs="+", choices=list(ENGINES), help="default: all that can run")
    parser.add_argument("--peer-python", help="the Python of llama.cpp and vLLM (requirements-peers.txt)")
    parser.add_argument(
        "--settings", type=json.loads, default={}, help="""JSON, as {"vllm": {"eager": true}}"""
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--questions", type=int, default=16, help="prompts")
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--spider", help="Spider's folder: real questions instead")
    parser.add_argument("--batch-tokens", type=int, default=32768, help="that ours caches at once")
    parser.add_argument("--quick", action="store_true", help="2 questions, 16 new tokens, the first length")
    args = parser.parse_args()
    if args.quick:
        args.questions, args.new, args.lengths = 2, 16, args.lengths[:1]
    names = args.against or (list(ENGINES) if args.peer_python else list(IN_OUR_PYTHON))
    policy = load_policy(args.model, args.precision, args.device)
    ours = Ours(policy, args.answers, args.new, args.batch_tokens)
    work = cases(args, policy)
    ours.draw(work[0][1][:1], True, new=4)  # warm-up

    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        policy.model.save_pretrained(folder)  # as a merged adapter is
        written = time.time() - started
        found = {}
        for name in names:
            try:
                found[name] = against(name, args, ours, work, folder, written)
            except RuntimeError as error:  # the other engines' figures are not lost
                print(f"{name} is left out: {error}", flush=True)
        if not found:
            raise SystemExit(1)
        extra, seconds = {}, {}
        for case, batch, fixed in work:
            seconds[case] = min(measured[case][0]["seconds"] for measured, _ in found.values())
            if fixed:
                extra |= {f"{case}, {what}": v for what, v in limits(ours, batch, seconds[case]).items()}
        lora.inject(policy.model)
        adapted = {case: min(ours.timed(b, fixed)["seconds"] for _ in range(2)) for case, b, fixed in work}
        reference = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        )
        reference = reference.to(policy.device).eval()

    rows, draws = [], {}
    for case, batch, _ in work:
        speeds = []
        for name, (measured, _) in found.items():
            mine, other, counts, ids = measured[case]
            speeds.append((name, *(n / side["seconds"] for n, side in zip(counts, (mine, other)))))
            draws[f"{case}, {name}"] = scored(reference, batch[:CHECKED], ids[1])
        draws[f"{case}, ours"] = scored(reference, batch[:CHECKED], ids[0])
        # the strongest first; other weights than the policy's last
        speeds.sort(key=lambda row: (row[0] == "llama.cpp-packaged", row[1] / row[2]))
        for name, *pair in speeds:
            other = " (quantised: not the policy that is trained)" if name == "llama.cpp-packaged" else ""
            rows.append((f"{case}, {name}{other}", *pair, "tokens/s"))
        for name, *_ in speeds:
            (mine, other, *_), costs = found[name][0][case], found[name][1]
            scale = ITERATION / len(batch)
            if "new adapter" in costs:
                whole = scale * adapted[case], scale * other["seconds"] + costs["new adapter"]
                rows.append((f"{case}, {name}, an iteration", *whole, "s"))
            if other["mib"] is not None:
                rows.append((f"{case}, {name}, peak memory", mine["mib"], other["mib"], "MiB"))
    for what, value in extra.items():
        print(f"{what}: {value:.0%}")
    for name, (_, costs) in found.items():
        print(f"{name}: " + ", ".join(f"{what} {value:.1f} s" for what, value in costs.items()))
    print("log-probability a token, and less what was expected of the policy's own draws (nats):")
    for what, s in draws.items():
        print(f"{what:40}{s['mean']:8.3f} ± {s['error']:.3f}{s['surplus']:10.4f} ± {s['surplus error']:.4f}")
    settings = {k: getattr(args, k) for k in ("model", "precision", "answers", "new", "settings", "quick")}
    settings |= {
        "questions": {case: len(batch) for case, batch, _ in work},
        "costs": {name: costs for name, (_, costs) in found.items()},
        "draws": draws,
    }
    report("sampling", rows, settings | extra)


if __name__ == "__main__":
    main()
