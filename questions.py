"""Which questions a run uses: the splits, and who is left out of them, with the reason.

A question is left out where its gold code fails or, in training, gives no rows or only NULL, or where it is
too long. The choice is made once and kept in questions.json, so that a run that is resumed has the same
questions and the same prompts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import data
import data_sets
import ranks
from cli import UserError
from data import Question
from database import schema
from judging import named, usable, with_rows
from policy import Policy
from prompts import answer_text, code_ids, normal_form
from run_folder import indented, read_json, stage, text, whole
from settings import Config
from verify import Verifier


@dataclass(frozen=True)
class Splits:
    """The questions of a run."""

    train: list[Question]
    validation: list[Question]  # training questions held back: they decide when to stop and which is best
    dev: list[Question]  # held out: reported alone

    def __iter__(self) -> Iterator[tuple[str, list[Question]]]:
        return iter((f.name, getattr(self, f.name)) for f in fields(self))

    def scored(self) -> list[str]:
        """The names of the splits that every policy is scored on, where they have questions."""
        return [name for name, questions in self if name != "train" and questions]


def load(config: Config) -> tuple[Splits, list[str]]:
    """All questions that a run may use, and a note for each reason that left some out; no model is needed."""
    this = data_sets.data_set(config.data, config.data_dir)
    questions, train_notes = data.load(config.data, config.data_dir, "train")
    held_out, dev_notes = [], []
    if not this.is_own or "dev" in this.splits:  # a user's own set needs none
        held_out, dev_notes = data.load(config.data, config.data_dir, "dev")
    # a file that cannot be read is noticed now; one file may serve both splits
    unread = dict.fromkeys(
        note for split in ("train", "dev") for note in data.tables(config.data, config.data_dir, split)[1]
    )
    if config.validation >= len(questions):
        raise UserError(
            f"--validation {config.validation} leaves none of the {len(questions)} questions for training."
        )
    # validation first, so that it is the same slice for every --limit
    held_back = (
        {q.index for q in data.subset(questions, config.validation, config.seed)}
        if config.validation
        else set()
    )
    splits = Splits(
        train=data.subset([q for q in questions if q.index not in held_back], config.limit, config.seed),
        validation=[q for q in questions if q.index in held_back],
        dev=data.subset(held_out, config.eval_limit, config.seed),
    )
    notes = [f"train: {note}" for note in train_notes] + [f"dev: {note}" for note in dev_notes]
    return splits, notes + list(unread)


def repeated(splits: Splits) -> list[str]:
    """A sentence for each scored split that has questions of the training split, in the same words."""
    words = {(q.db_id, q.text): q.index for q in splits.train}
    found = []
    for name in splits.scored():
        again = [q for q in getattr(splits, name) if (q.db_id, q.text) in words]
        if again:
            q = again[0]
            rows = f"row {q.index} is row {words[q.db_id, q.text]} of the training questions"
            found.append(f"{len(again)} {name} questions are trained on as well: {rows} (counted from 0)")
    return found


def digest(splits: Splits) -> str:
    """A hash of the questions to choose from: texts, gold code, schemas, and sizes of the databases."""
    rows = []
    for _, questions in splits:
        for q in questions:
            database = (schema(q.database), os.path.getsize(q.database)) if q.database else ()
            tests = (q.tests, q.setup, q.entry_point, q.classes) if q.tests else ()
            rows.append((q.index, q.text, q.evidence, q.gold, q.context, *tests, *database))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def check(run: Path, splits: Splits):
    """Raises UserError where a run that is resumed finds other questions than it was begun with."""
    path = run / "questions.json"
    if path.exists():
        with whole(path):
            known = read_json(path).get("digest")
        if known not in (None, digest(splits)):  # None: begun by a version that did not keep it
            raise UserError(
                f"the data have changed since {run} was begun: name another --out, or delete the folder."
            )


def choose(
    config: Config, policy: Policy, splits: Splits, notes: list[str], run: Path, verifier: Verifier
) -> Splits:
    """The questions in use → questions.json. Raises UserError where the run's prompts have changed."""
    stored = stage(
        run / "questions.json",
        lambda: fitting(config, policy, splits, notes, verifier),
        text(indented),
        read_json,
    )
    with whole(run / "questions.json"):
        kept = [set(indices) for indices in stored["kept"]]
        chosen = Splits(
            *(
                [q for q in questions if q.index in use]
                for (_, questions), use in zip(splits, kept, strict=True)
            )
        )
        left_out = [str(note) for note in stored["left out"]]
        known = stored.get("prompts")
    if known not in (None, prompts_digest(policy, chosen)):  # None: begun by a version that did not keep it
        raise UserError(
            f"the prompts of {run} have changed since it was begun (another tokenizer, chat template or"
            " version of the code): name another --out, or delete the folder."
        )
    for note in left_out:
        ranks.say(f"left out: {note}")
    return chosen


def fitting(config: Config, policy: Policy, splits: Splits, notes: list[str], verifier: Verifier) -> dict:
    """What questions.json holds. Raises UserError where no training question is left.

    Scoring keeps the long ones of the dev split, since a question that the model cannot read is one it does
    not answer, and those without rows, as officially. By the criterion `executable` no gold code of a
    training question is run.
    """
    if ranks.rank():  # the first process alone executes gold code, and writes
        return {}
    room, used, notes = min(config.max_length, policy.max_positions), [], list(notes)
    for name, questions in splits:
        if name != "train" or config.criterion == "match":
            questions, failing = usable(questions, verifier, config.timeout, f"gold code of {name}")
            notes += [f"{name}: {note}" for note in failing]
        if name != "dev" and config.criterion == "match" and not config.keep_empty:
            full = with_rows(questions, verifier, config.timeout)
            if len(full) < len(questions):
                cause = "their gold query gives no rows, or only NULL (--keep-empty)"
                empty = sorted({q.index for q in questions} - {q.index for q in full})
                which = ", ".join(map(str, empty[:10])) + ", …" * (len(empty) > 10)
                notes.append(f"{name}: {len(empty)} questions: {cause}: {which} (counted from 0)")
            questions = full
        if name != "dev":
            fits = [q for q in questions if longest(config, policy, q) <= room]
            if len(fits) < len(questions):
                notes.append(
                    f"{name}: {len(questions) - len(fits)} questions: longer than {room} tokens with their"
                    " answer"
                )
            questions = fits
        if name == "train" and config.gold != "never":
            told = [gold_is_told(q, policy) for q in questions]
            for q, same in zip(questions, told):
                if not same:
                    notes.append(f"train: {named(q)}: its gold code is not what its tokens say")
            questions = [q for q, same in zip(questions, told) if same]
        if name == "train" and not questions:
            raise UserError(f"no training question is left; the last ones left out: {'; '.join(notes[-3:])}.")
        used.append(questions)
    kept = [[q.index for q in questions] for questions in used]
    prompts = prompts_digest(policy, Splits(*used))
    return {"kept": kept, "left out": notes, "digest": digest(splits), "prompts": prompts}


def prompts_digest(policy: Policy, splits: Splits) -> str:
    """A hash of the prompts' token ids: a reference belongs to the prompts that it was computed with."""
    ids = [policy.prompt_ids(q) for _, questions in splits for q in questions]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def longest(config: Config, policy: Policy, question: Question) -> int:
    """The most tokens that the prompt with an answer can have."""
    gold = len(code_ids(question.gold, policy.tokenizer))
    return len(policy.prompt_ids(question)) + max(config.max_new, gold)


def gold_is_told(question: Question, policy: Policy) -> bool:
    """Whether the gold code's tokens are the same code: a tokenizer that normalises letters changes some."""
    text = answer_text(code_ids(question.gold, policy.tokenizer)[:-1], policy.tokenizer)
    return normal_form(text, question.language) == normal_form(question.gold, question.language)
