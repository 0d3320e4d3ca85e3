"""A run's preference pairs as JSON lines for TRL's DPOTrainer: `python report.py RUN --pairs FILE`.

DPOTrainer tokenises texts itself. To plain strings it adds what we do not train on: a second BOS token where
the prompt has one, and an end token to every answer, also to one that ran into the length limit and has none.
To messages it adds nothing but what the chat template says. So a pair is written as messages, with a chat
template of its own that only puts them one after the other:

    {"prompt": [{"role": "user", "content": …}], "chosen": [{"role": "assistant", "content": …}],
     "rejected": [{"role": "assistant", "content": …}], "chat_template_kwargs": {"chat_template": …}}

The contents hold everything as text: BOS token, the model's own chat template, and the end token where there
is one. We train on an answer in the tokens in which it was drawn. Where its text has other tokens, the pair
cannot be written for TRL: it is left out and counted. So everything in the file has exactly the tokens of
training.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import prompts
from cli import UserError
from data import Question
from run_folder import read_lines

JOIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"  # the chat template of every pair


def export(folder: Path, path: Path) -> str:
    """Write the pairs of all iterations to `path`; returns the line to print.

    A pair without a rejected answer (objective sft) has none in the file either.
    """
    from policy import load_tokenizer

    config = read_config(folder)
    rows = [row for t in range(1, last_iteration(folder) + 1) for row in read_pairs(folder, t)]
    questions = train_questions(folder, config)
    if unknown := {row["question"] for row in rows} - questions.keys():
        raise UserError(f"{folder} has pairs of questions that its data do not have: {min(unknown)}.")
    tokenizer = load_tokenizer(config["model"])
    lines, left_out = [], 0
    for row in rows:
        prompt_ids = prompts.prompt_ids(questions[row["question"]], tokenizer, config.get("day"))
        prompt, answers = as_messages(tokenizer, prompt_ids, row["answers"])
        for chosen, rejected in row["pairs"]:
            pair = {"prompt": prompt, "chosen": answers[chosen]}
            if rejected is not None:
                pair["rejected"] = answers[rejected]
            if None in pair.values():
                left_out += 1
                continue
            pair["chat_template_kwargs"] = {"chat_template": JOIN}
            lines.append(json.dumps(pair, ensure_ascii=False) + "\n")
    reason = "as text they have other tokens than those that were trained on"
    if not lines:
        raise UserError(f"none of the {left_out} pairs of {folder} can be exported: {reason}.")
    path.write_text("".join(lines), encoding="utf-8")
    return f"{path}: {len(lines)} pairs" + (f"; {left_out} left out: {reason}" if left_out else "")


def as_messages(tokenizer, prompt_ids: list[int], answers: list[list[int]]) -> tuple[list | None, list]:
    """The prompt and each answer as a list of one message; None in place of what has other tokens as text."""
    prefix, prompt = decode(tokenizer, prompt_ids), None
    # a SentencePiece tokenizer may put a space after BOS that it would not have put there for this text
    for text in (prefix, decode(tokenizer, prompt_ids[:1]) + decode(tokenizer, prompt_ids[1:])):
        if prompt is None and trl_ids(tokenizer, message("user", text)) == prompt_ids:
            prompt = message("user", text)
    found = []
    for ids in answers:
        # an answer's text depends on what stands before it, such as the space before its first word
        text = decode(tokenizer, prompt_ids + ids)
        answer = message("assistant", text[len(prefix) :]) if text.startswith(prefix) else None
        same = prompt and answer and trl_ids(tokenizer, prompt + answer) == prompt_ids + ids
        found.append(answer if same else None)
    return prompt, found


def message(role: str, content: str) -> list[dict]:
    return [{"role": role, "content": content}]


def decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def trl_ids(tokenizer, messages: list[dict]) -> list[int]:
    """The call that tokenises messages in TRL 1.16: `_tokenize` in trl/data_utils.py, used by DPOTrainer.

    DPOTrainer tokenises the prompt alone and the prompt with each answer; what comes after the tokens that
    they have in common is the answer. So it gets our prompt and our answer where both texts have our tokens.
    """
    made = tokenizer.apply_chat_template(messages, chat_template=JOIN, tokenize=True, return_dict=True)
    return made["input_ids"]


# ---- what the run holds ----


def read_config(folder: Path) -> dict:
    try:
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        config["model"], config["data"], config["data_dir"]  # noqa: B018 (a KeyError where one is missing)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not the folder of a run: {error}")
    return config


def last_iteration(folder: Path) -> int:
    """The last iteration that has pairs or an adapter; where it has an adapter alone, its pairs are lost."""
    paths = [*folder.glob("iter_*/pairs.jsonl"), *folder.glob("iter_*/adapter")]
    numbers = [path.parent.name.removeprefix("iter_") for path in paths]
    last = max((int(t) for t in numbers if t.isdecimal()), default=0)
    if not last:
        raise UserError(f"{folder} has no pairs yet.")
    return last


def read_pairs(folder: Path, t: int) -> list[dict]:
    path = folder / f"iter_{t}" / "pairs.jsonl"
    return read_lines(path, lambda row: {key: row[key] for key in ("question", "answers", "pairs")})


def train_questions(folder: Path, config: dict) -> dict[int, Question]:
    """Question.index → question, of all that the run could train on.

    Raises UserError where the data have changed since: the prompts would be others.
    """
    import questions
    from settings import Config

    fields = {f.name for f in dataclasses.fields(Config)}
    splits, _ = questions.load(Config(**{k: v for k, v in config.items() if k in fields}))
    questions.check(folder, splits)
    return {q.index: q for q in splits.train}
