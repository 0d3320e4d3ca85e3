"""What the benches share: peak memory, the machine's matmul peak, real prompts cut to a length, a report."""

import ctypes
import json
import platform
import sys
import threading
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data
from prompts import prompt_ids


class PeakMemory:
    """Peak MiB over that at the start: resident memory, sampled every 20 ms, or the GPU allocator's own."""

    def __enter__(self):
        self.gpu = torch.cuda.is_available()
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
            self.allocated = torch.cuda.memory_allocated()
        ctypes.CDLL(None).malloc_trim(0)  # what earlier steps freed goes back first, or growth would not show
        self.start = self.peak = resident()
        self.running = True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self):
        while self.running:
            self.peak = max(self.peak, resident())
            time.sleep(0.02)

    def __exit__(self, *_):
        self.running = False
        self.thread.join()
        self.mib = (
            (torch.cuda.max_memory_allocated() - self.allocated) / 2**20
            if self.gpu
            else self.peak - self.start
        )


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def rate(run, seconds=1.0):
    """How often `run` runs in a second, in all of a device's queue."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(3):
        run()
    wait()
    started, count = time.time(), 0
    while time.time() - started < seconds:
        for _ in range(4):
            run()
        wait()
        count += 4
    return count / (time.time() - started)


def matmul_peak(dtype=torch.float32, device="cpu"):
    """Measured FLOP/s of a large square matrix product."""
    size = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 * rate(lambda: a @ b)


def bandwidth(device):
    """Measured bytes per second of a large copy, read and written."""
    here = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    there = torch.empty_like(here)
    return 2 * here.numel() * rate(lambda: there.copy_(here))


def forward_flops(model, tokens, projected):
    """Of the linear layers: 2 · weights · tokens, and the output projection where it runs."""
    head = model.get_output_embeddings().weight.numel()
    names = ("embed_tokens", "wte", "wpe", "lm_head", "embed_in", "embed_out", "lora_")
    body = sum(
        p.numel() for n, p in model.named_parameters() if p.ndim == 2 and not any(x in n for x in names)
    )
    return 2 * (body * tokens + head * projected)


def attention_flops(model, pairs):
    """Of the attention: 4 · heads · size for each pair of a query and a key that it may see, per layer."""
    c = model.config
    return 4 * c.num_hidden_layers * c.hidden_size * pairs


def decoding_bytes(model, tokens):
    """What a decoding step must read: all weights but the input embedding, the cache of `tokens` tokens."""
    c = model.config
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    weights = [p for p in model.parameters() if tied or p is not model.get_input_embeddings().weight]
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    cache = 2 * c.num_hidden_layers * c.num_key_value_heads * head * tokens * weights[0].element_size()
    return sum(p.numel() * p.element_size() for p in weights) + cache


def prompts(tokenizer, length, count, folder=None):
    """`count` prompts of exactly `length` tokens: different questions, the schema repeated or cut to fit."""
    questions, _ = data.load("shop", folder or Path(__file__).resolve().parent.parent / "data/shop", "train")
    result = []
    for q in questions[:: max(1, len(questions) // count)][:count]:
        ids = prompt_ids(q, tokenizer)
        # a longer schema of the same kind, differing between questions as real ones do
        while len(ids) < length:
            other = questions[(q.index * 7 + len(ids)) % len(questions)]
            ids = ids[:20] + prompt_ids(other, tokenizer)[20:] + ids[20:]
        result.append(ids[:20] + ids[len(ids) - length + 20 :])
    return result


def report(what, rows, settings):
    """rows: (name, ours, theirs, unit), higher is better but for MiB and s. A table, then JSON."""
    width = max(34, *(len(name) + 1 for name, *_ in rows))
    print(f"\n{what}\n{'':{width}}{'ours':>12}{'theirs':>12}{'ratio':>8}")
    rows = [(name, a, b, b / a if unit in ("MiB", "s") else a / b, unit) for name, a, b, unit in rows]
    for name, ours, theirs, ratio, unit in rows:
        print(f"{name:{width}}{ours:12.2f}{theirs:12.2f}{ratio:8.2f}  {unit}")
    name, ours, theirs, _, _ = rows[0]
    settings |= {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    figures = {n: {"ours": o, "theirs": t, "ratio": r} for n, o, t, r, _ in rows}
    print(json.dumps({
        "what": f"{what}: {name}", "ours": ours, "theirs": theirs, "ratio": ours / theirs, "all": figures,
        "settings": settings,
    }))  # fmt: skip
