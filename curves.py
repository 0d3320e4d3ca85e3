"""The training curves of a run: what its train.jsonl files hold, as the lines of a few charts."""

from __future__ import annotations

import math

import numpy as np

# title → the fields of train.jsonl that are drawn together, and what the page calls them
CURVES = {
    "loss": {"loss": "loss", "dpo": "DPO", "sft": "SFT"},
    "margin": {"margin": "margin"},
    "share of pairs in the right order": {"preferred": "margin above 0"},
    "log-probability per token (Fig. 2)": {
        "chosen_logp_per_token": "chosen",
        "rejected_logp_per_token": "rejected",
    },
    "log-probability, summed (Fig. 2)": {"chosen_logp": "chosen", "rejected_logp": "rejected"},
    "log-ratio to the reference": {"chosen_logratio": "chosen", "rejected_logratio": "rejected"},
    "learning rate": {"lr": "learning rate"},
    "gradient norm": {"grad_norm": "gradient norm"},
}
POINTS = 400  # of a curve in one iteration; with more steps a point is the mean of some


def curves(train: list[list[dict]]) -> dict:
    """The training curves: {"steps": x, "starts": [[first step, t], …], "charts": [{"title", "lines"}, …]}.

    train: the rows of every iteration's train.jsonl. Steps count on from iteration to iteration. A line has
    one value for every x, None where the field is missing or no finite number. A field that is missing
    everywhere has no line, and a chart without lines is left out.
    """
    steps, starts, groups, step = [], [], [], 0
    for t, rows in enumerate(train):
        if rows:
            starts.append([step, t])
        size = math.ceil(len(rows) / POINTS) or 1
        for start in range(0, len(rows), size):
            groups.append(rows[start : start + size])
            steps.append(step + start)
        step += len(rows)

    def value(rows, field):
        found = [row.get(field) for row in rows]
        found = [v for v in found if isinstance(v, int | float) and math.isfinite(v)]
        return float(f"{np.mean(found):.5g}") if found else None

    charts = []
    for title, fields in CURVES.items():
        lines = []
        for field, name in fields.items():
            values = [value(rows, field) for rows in groups]
            if any(v is not None for v in values):
                lines.append({"name": name, "values": values})
        if lines:
            charts.append({"title": title, "lines": lines})
    return {"steps": steps, "starts": starts, "charts": charts}
