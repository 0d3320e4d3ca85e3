"""A run's training curves for TensorBoard (--tensorboard) → RUN/tensorboard: `tensorboard --logdir runs`.

Every step's line of train.jsonl is under train/, by steps counted through all iterations; every policy's
scores are under scores/, by iteration. Both are written as they are made. A run that is resumed begins the
folder anew and tells first what its files hold, so no step is there twice.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import ranks
from cli import UserError


def check_installed():
    """Raises UserError where the package that writes the events is missing."""
    if not find_spec("tensorboard"):
        raise UserError("--tensorboard needs a package: .venv/bin/pip install tensorboard")


class Events:
    """Writes the events of a run, in the first process alone; without `wanted` nothing."""

    def __init__(self, run: Path, wanted: bool):
        self.writer, self.steps = None, 0
        if wanted and ranks.rank() == 0:
            from torch.utils.tensorboard import SummaryWriter

            shutil.rmtree(run / "tensorboard", ignore_errors=True)
            self.writer = SummaryWriter(run / "tensorboard")

    def step(self, row: dict[str, float]):
        """The next step, as it is in train.jsonl."""
        if self.writer:
            for name, value in row.items():
                if name not in ("step", "seconds"):
                    self.writer.add_scalar(f"train/{name}", value, self.steps)
            self.writer.flush()
        self.steps += 1

    def scores(self, t: int, plain: dict[str, dict]):
        """π_t's scores, as they are in scores.json."""
        if self.writer:
            for split, scores in plain.items():
                for name in ("ex", "em", "executable"):
                    if scores[name] is not None:
                        self.writer.add_scalar(f"scores/{split} {name}", scores[name], t)
            self.writer.flush()
