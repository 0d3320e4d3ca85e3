"""The dual loss of CodeLutra (equation 6) as pure functions of log-probabilities.

`logps` are sums of log π(y|x) over the answer's own tokens, one float32 entry a pair, shape (B,).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def dpo_margin(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor
) -> Tensor:
    """log π_θ(y_c|x)/π_ref(y_c|x) − log π_θ(y_r|x)/π_ref(y_r|x), shape (B,); π_ref drew the answers."""
    return (chosen - reference_chosen) - (rejected - reference_rejected)


def dpo_loss(margin: Tensor, beta: float) -> Tensor:
    """−log σ(β · margin), shape (B,): the first term of equation 6 (Rafailov et al. 2023, equation 7)."""
    return -F.logsigmoid(beta * margin)


def sft_loss(chosen: Tensor, chosen_lengths: Tensor, reduction: str = "mean") -> Tensor:
    """−log π_θ(y_c|x), shape (B,): the second term of equation 6.

    `mean` divides by the answer's own number of tokens (see the README, differences from the paper); `sum` is
    the equation read literally.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be mean or sum, not {reduction!r}")
    return -chosen / chosen_lengths if reduction == "mean" else -chosen


def dual_loss(dpo: Tensor, sft: Tensor, lam: float) -> Tensor:
    """DPO + λ · SFT, shape (B,): equation 6 before its mean over pairs."""
    return dpo + lam * sft
