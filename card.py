"""The model card, README.md, of an adapter or of a model that it was merged into.

It says what the base model is, how a run trained the adapter, what it scores, and the command. Its head is
what the Hugging Face hub reads.
"""

from __future__ import annotations

import json
from pathlib import Path

from compare_runs import share
from run_folder import read_json
from settings import command
from verifier import __version__

HEAD = """---
base_model: {base}
library_name: {library}
pipeline_tag: text-generation
tags:
- lora
- codelutra
---

# {name}

{what}.
"""
LOSSES = {
    "dual": "DPO and SFT together, equation 6 of the paper",
    "dpo": "DPO without SFT",
    "sft": "SFT on the chosen answers alone",
}
QUANTISED = """
It was trained on a quantised copy of the base model, a GGUF file, with its weights unpacked. On other copies
of the base model its scores can differ.
"""
EX = "EX, execution accuracy, is the share of questions whose query gives the gold query's result"
PASS = "pass@1 is the share of problems whose program passes its test"


def card(adapter: Path, base: str, merged: bool = False) -> str:
    """The card of the adapter in this folder, or of `base` with it merged in.

    base: hub id or folder. Where the adapter lies in the folder of a run, the card says how it was made and
    what it scores.
    """
    folder = adapter.resolve().parent
    text = HEAD.format(
        base=json.dumps(base),
        library="transformers" if merged else "peft",
        name=f"{folder.parent.name}, {folder.name}",
        what=f"{base} with a LoRA adapter merged in" if merged else f"A LoRA adapter for {base}",
    )
    if not (folder.parent / "config.json").is_file() or not (folder / "scores.json").is_file():
        return text
    config = read_json(folder.parent / "config.json")
    language = "Python" if config["data"] == "ds1000" else "SQL"
    text += (
        f"\nIt answers questions of the data set `{config['data']}` with {language}. codelutra {__version__}"
        f" made it, an implementation of CodeLutra (https://arxiv.org/abs/2411.05199). {method(config)}\n"
    )
    if config["model"] in ("smollm2", "coder") or config["model"].endswith(".gguf"):
        text += QUANTISED
    return f"{text}\n{table(folder, language)}\nThe command:\n\n```\n{command(config)}\n```\n"


def method(config: dict) -> str:
    """How a run with these settings trains, in a sentence."""
    loss = LOSSES[config["objective"]]
    if (config["gold"], config["objective"]) == ("only", "sft"):
        return "It was trained on the gold code (SFT)."
    right = "gives the gold code's result" if config["criterion"] == "match" else "runs"
    return (
        f"In every iteration the model wrote {config['answers']} answers to each training question, execution"
        f" said which are right (the answer {right}), and pairs of a right (chosen) and a wrong (rejected)"
        f" answer trained it: {loss}."
    )


def table(folder: Path, language: str) -> str:
    """What an iteration's policy scores on the held-out questions, beside π_0."""
    measure, meaning = ("pass@1", PASS) if language == "Python" else ("EX", EX)
    rows = [f"| policy | {measure} | 95 % interval | executable | questions |", "|---|---|---|---|---|"]
    for name, path in (("before training", folder.parent / "iter_0"), ("this one", folder)):
        if scores := read_json(path / "scores.json").get("dev"):
            n, executable = scores["n"], f"{scores['executable']:.1%}"
            ex = share(round(scores["ex"] * n), n)
            interval = f"{ex['low']:.1%} to {ex['high']:.1%}"
            rows.append(f"| {name} | {ex['ex']:.1%} | {interval} | {executable} | {n} |")
    if len(rows) == 2:
        return "It was scored on no held-out question.\n"
    notes = (
        f"{meaning}; executable is the share that runs at all. The questions are held out; the intervals are"
        " Wilson's."
    )
    return "\n".join([*rows, "", notes]) + "\n"
