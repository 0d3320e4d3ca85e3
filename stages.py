"""The stages of a run: what each one makes, and the files that it is written to and read from.

Two things are kept while they are made: answers are appended batch by batch (AnswerFile), and training writes
a checkpoint every few minutes (Checkpoint).
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize

import lora
import ranks
from card import card
from cli import UserError, first_line
from data import Answer
from eval import Evaluation, PolicyScores
from events import Events
from pairs import QuestionPairs
from policy import Policy, hub_id
from run_folder import (
    commit,
    indented,
    lines,
    missing,
    part,
    read_json,
    read_lines,
    read_seconds,
    stage,
    text,
    timed,
    whole,
    write,
)
from verify import Verdict

BATCH_END = '{"unit": "complete"}\n'  # the line behind the answers that were drawn together


def read_answers(path: Path) -> list[Answer]:
    rows = read_lines(
        path, lambda row: None if "unit" in row else Answer(**{**row, "ids": tuple(row["ids"])})
    )
    return [answer for answer in rows if answer]


def read_verdicts(path: Path) -> list[Verdict]:
    return read_lines(path, lambda row: Verdict(**row))


def read_pairs(path: Path) -> list[QuestionPairs]:
    def pairs(row: dict) -> QuestionPairs:
        return QuestionPairs(
            row["question"], *(tuple(map(tuple, row[name])) for name in ("answers", "pairs"))
        )

    return read_lines(path, pairs)


class Run:
    """A run's folder; iteration t's files lie in iter_t. Each method but `timed` is (part of) a stage."""

    def __init__(self, folder: Path, events: Events | None = None):
        self.folder, self.events = folder, events or Events(folder, False)

    def iteration(self, t: int) -> Path:
        return self.folder / f"iter_{t}"

    def timed(self, t: int, name: str) -> AbstractContextManager:
        return timed(self.iteration(t), name)

    def undrawn(self, t: int) -> AnswerFile | None:
        """The file of iteration t's answers; None where all are drawn and have their verdicts."""
        folder = self.iteration(t)
        complete = not missing(folder / "verdicts.jsonl") and not missing(folder / "answers.jsonl")
        return None if complete else AnswerFile(folder)

    def drawn(self, t: int, expected: int) -> tuple[list[Answer], list[Verdict]]:
        """Iteration t's answers and their verdicts; raises UserError where they are not `expected` each."""
        paths = [self.iteration(t) / name for name in ("answers.jsonl", "verdicts.jsonl")]
        answers, verdicts = read_answers(paths[0]), read_verdicts(paths[1])
        for path, count in zip(paths, (len(answers), len(verdicts))):
            with whole(path):
                if count != expected:
                    raise ValueError(f"{count} of {expected}")
        return answers, verdicts

    def pairs(self, t: int, make: Callable[[], tuple[list[QuestionPairs], Counter]]) -> list[QuestionPairs]:
        """D_t → pairs.jsonl; how many of each case → pairs_summary.json. Raises UserError without pairs."""
        folder, make = self.iteration(t), cache(make)
        path = folder / "pairs_summary.json"
        counts = stage(path, lambda: make()[1], text(indented), read_json)
        with whole(path):
            expected = counts["pairs"]
        ranks.say(
            f"pairs of iteration {t}: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in counts.items())
        )
        path = folder / "pairs.jsonl"
        pairs = stage(path, lambda: make()[0], text(lines), read_pairs)
        with whole(path):
            if sum(len(p.pairs) for p in pairs) != expected:
                raise ValueError(f"not {expected} pairs")
        if not pairs:
            raise UserError(f"iteration {t} has no pairs: no question had both a right and a wrong answer.")
        return pairs

    def reference(
        self, t: int, pairs: list[QuestionPairs], make: Callable[[], list[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """log π_{t−1} of D_t's distinct answers, one (answers,) tensor a question → reference.safetensors."""

        def save(path: Path, logps: list[torch.Tensor]):
            path.write_bytes(serialize({"logps": torch.cat(logps)}))

        def read(path: Path) -> list[torch.Tensor]:
            return list(load_file(path)["logps"].split([len(p.answers) for p in pairs]))

        path = self.iteration(t) / "reference.safetensors"
        return stage(path, make, save, read, SafetensorError, RuntimeError, seconds="reference")

    def checkpoint(self, t: int) -> Checkpoint:
        return Checkpoint(self.iteration(t), self.events)

    def adapter(self, t: int, policy: Policy, make: Callable[[], object]):
        """π_t → adapter/. `make` trains the policy; from the folder the policy gets the same adapter."""

        def save(path: Path, _):
            shutil.rmtree(path, ignore_errors=True)
            lora.save(policy.model, path, hub_id(policy.name))

        if not missing(self.iteration(t) / "adapter") and (self.iteration(t) / "train.jsonl").exists():
            for row in read_lines(self.iteration(t) / "train.jsonl"):
                self.events.step(row)
        stage(
            self.iteration(t) / "adapter",
            make,
            save,
            lambda path: lora.load(policy.model, path),
            seconds="train",
        )
        for name in ("checkpoint.pt", "checkpoint.part"):
            (self.iteration(t) / name).unlink(missing_ok=True)

    def scores(self, t: int, scored: Collection[str], make: Callable[[], list[Evaluation]]) -> PolicyScores:
        """π_t's scores → scores.json; its greedy answers with their verdicts → validation.jsonl, dev.jsonl.

        scored: the names of the splits that the run scores.
        """

        def save(path: Path, evaluations: list[Evaluation]):
            for evaluation in evaluations:
                answers = path.with_name(f"{evaluation.split}.jsonl")
                part(answers).write_text(lines(evaluation.rows()), encoding="utf-8")
                commit(part(answers), answers)
            scores = {evaluation.split: dataclasses.asdict(evaluation.scores) for evaluation in evaluations}
            path.write_text(indented(scores), encoding="utf-8")

        path = self.iteration(t) / "scores.json"
        scores = stage(
            path, make, save, lambda path: PolicyScores.of(read_json(path), scored), seconds="score"
        )
        self.events.scores(t, scores.plain())
        return scores

    def card(self, t: int, model: str):
        """π_t's model card, once it has scores → adapter/README.md."""
        adapter = self.iteration(t) / "adapter"
        write(adapter / "README.md", card(adapter, hub_id(model)))

    def table(self, history: list[PolicyScores]) -> str:
        """The scores of π_0, π_1, … beside what was drawn for them and how long it took."""
        rows = [
            "iteration  answers right  answers run   pairs  validation EX  held-out EX  executable  minutes"
        ]
        for t, scores in enumerate(history):
            right = ran = pairs = ""
            if (self.iteration(t) / "pairs_summary.json").exists():
                counts = read_json(self.iteration(t) / "pairs_summary.json")
                pairs = counts["pairs"]
                if counts["answers"]:
                    verdicts = read_verdicts(self.iteration(t) / "verdicts.jsonl")
                    right = f"{counts.get('answers_right', 0) / counts['answers']:.1%}"
                    ran = f"{sum(v.ran for v in verdicts) / len(verdicts):.1%}"
            minutes = sum(read_seconds(self.iteration(t)).values()) / 60
            ex = [f"{split.ex:.1%}" if split else "" for split in (scores.validation, scores.dev)]
            executable = f"{scores.dev.executable:.1%}" if scores.dev else ""
            rows.append(
                f"{t:<8} {right:>13} {ran:>11} {pairs:>7}"
                f" {ex[0]:>14} {ex[1]:>12} {executable:>11} {minutes:>8.1f}"
            )
        rows.append(
            "(answers of iteration t are drawn from π_{t-1}; EX and executable after them are π_t's, greedy)"
        )
        return "\n".join(rows)


class AnswerFile:
    """Answers, appended batch by batch → answers.part; in the end answers.jsonl and verdicts.jsonl.

    The batch that was in flight when a run was stopped is cut off and drawn again, whole.
    """

    def __init__(self, folder: Path):
        self.folder, self.path, self.batches = folder, folder / "answers.part", 0
        if ranks.rank() == 0:
            if (folder / "answers.jsonl").exists():  # stopped between the two files
                os.replace(folder / "answers.jsonl", self.path)
            self.batches = self._whole_batches()
        self.batches = ranks.all_gather(self.batches)[0]
        self.answers = read_answers(self.path) if self.batches else []

    def _whole_batches(self) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return 0
        raw, mark = self.path.read_bytes(), BATCH_END.encode()
        end = raw.rfind(mark)
        os.truncate(self.path, end + len(mark) if end >= 0 else 0)
        return raw.count(mark)

    def append(self, answers: list[Answer]):
        """Answers that were drawn together; on disk when it returns."""
        self.answers += answers
        if ranks.rank() == 0:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(lines(answers) + BATCH_END)
                file.flush()
                os.fsync(file.fileno())

    def complete(self, verdicts: list[Verdict]):
        """All answers are drawn; verdicts: one for each."""
        if ranks.rank() == 0:
            self.path.touch()
            os.replace(self.path, self.folder / "answers.jsonl")
        write(self.folder / "verdicts.jsonl", lines(verdicts))


def step_line(row: dict[str, float]) -> str:
    """A step's line in train.jsonl."""
    return json.dumps(row) + "\n"


class Checkpoint:
    """What the rest of an epoch depends on → checkpoint.pt; a line for every step → train.jsonl."""

    def __init__(self, folder: Path, events: Events):
        self.path, self.log, self.events = folder / "checkpoint.pt", folder / "train.jsonl", events

    def save(self, state: dict[str, Any], log: list[dict]):
        """state: what torch.save can write. log: the steps until then."""
        if ranks.rank() == 0:
            buffer, temporary = io.BytesIO(), self.path.with_suffix(".part")
            torch.save(state | {"log": [step_line(row) for row in log]}, buffer)
            temporary.write_bytes(buffer.getbuffer())  # torch itself would hide what a full disk says
            commit(temporary, self.path)

    def load(self, apply: Callable[[dict[str, Any]], object]) -> list[dict]:
        """`apply` the saved state; returns the log until then, which train.jsonl becomes; empty: none."""
        log = self._load(apply) if self.path.exists() else []
        write(self.log, "".join(map(step_line, log)))
        for row in log:
            self.events.step(row)
        return log

    def _load(self, apply: Callable[[dict[str, Any]], object]) -> list[dict]:
        file = io.BytesIO(self.path.read_bytes())
        try:
            state = torch.load(file, weights_only=True, map_location="cpu")
            apply(state)
            return [json.loads(line) for line in state["log"]]
        except (MemoryError, torch.OutOfMemoryError):  # that is not the file's fault
            raise
        except Exception as error:  # half a file, another file: torch has an exception for each
            raise UserError(
                f"{self.path} is damaged ({first_line(error)}): delete it, and this iteration's training"
                " begins again."
            )

    def step(self, row: dict):
        """Append a step to train.jsonl."""
        if ranks.rank() == 0:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(step_line(row))
            self.events.step(row)
