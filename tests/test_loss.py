"""Equation 6 against numbers worked out by hand, and its gradients against their closed forms."""

import math

import pytest
import torch

from analysis import preference_accuracy
from loss import dpo_loss, dpo_margin, dual_loss, sft_loss


def column(*values):
    return torch.tensor(values, dtype=torch.float32)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_margin_by_hand():
    # chosen gained −10 − (−12) = 2, rejected lost −23 − (−20) = −3: margin 5; the second pair has not moved
    margin = dpo_margin(column(-10, -7), column(-23, -9), column(-12, -7), column(-20, -9))
    assert margin.tolist() == [5, 0]


def test_dpo_by_hand():
    # β m = 0.1 · 5 = 0.5: −log σ(0.5) = log(1 + e^−0.5) = log 1.6065307 = 0.4740770
    # β m = −0.5: 0.4740770 + 0.5 = 0.9740770; β m = 0: log 2 = 0.6931472
    torch.testing.assert_close(dpo_loss(column(5, -5, 0), 0.1), column(0.4740770, 0.9740770, 0.6931472))


def test_dpo_does_not_overflow_at_large_margins():
    # −log σ(−x) = x + log(1 + e^−x) = x for large x
    assert dpo_loss(column(-1e4, 1e4), 0.5).tolist() == [5000, 0]


def test_sft_mean_and_sum_by_hand():
    chosen, lengths = column(-12, -3), torch.tensor([4, 2])
    assert sft_loss(chosen, lengths).tolist() == [3, 1.5]
    assert sft_loss(chosen, lengths, "sum").tolist() == [12, 3]


def test_sft_refuses_another_reduction():
    with pytest.raises(ValueError, match="median"):
        sft_loss(column(-1), torch.tensor([1]), "median")


def equation_6(chosen, rejected, reference_chosen, reference_rejected, lengths, beta, lam, reduction="mean"):
    margin = dpo_margin(chosen, rejected, reference_chosen, reference_rejected)
    return dual_loss(dpo_loss(margin, beta), sft_loss(chosen, lengths, reduction), lam)


def test_dual_by_hand():
    # margin 5, β 0.1: 0.4740770; SFT mean 10 / 4 = 2.5, sum 10; λ 0.5: + 1.25 or + 5
    inputs = column(-10), column(-23), column(-12), column(-20), torch.tensor([4])
    torch.testing.assert_close(equation_6(*inputs, 0.1, 0.5), column(1.7240770))
    torch.testing.assert_close(equation_6(*inputs, 0.1, 0.5, "sum"), column(5.4740770))


def test_at_the_reference_dpo_is_ln_2():
    logps = column(-31.5, -2.25), column(-17, -90)
    assert dpo_loss(dpo_margin(*logps, *logps), 0.1).tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize("reduction, share", [("mean", 1 / 4), ("sum", 1)])
@pytest.mark.parametrize("beta, lam, margin", [(0.1, 1.0, 5.0), (0.5, 0.5, -3.0), (2.0, 0.0, 0.0)])
def test_gradients_have_their_closed_form(reduction, share, beta, lam, margin):
    chosen = torch.tensor([-10.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-10.0 - margin], dtype=torch.float64, requires_grad=True)
    start = torch.tensor([-10.0], dtype=torch.float64)
    equation_6(chosen, rejected, start, start, torch.tensor([4]), beta, lam, reduction).sum().backward()
    slope = beta * sigmoid(-beta * margin)  # d/dm of −log σ(βm) is −β σ(−βm)
    assert chosen.grad.item() == pytest.approx(-slope - lam * share, rel=1e-9)
    assert rejected.grad.item() == pytest.approx(slope, rel=1e-9)


def test_the_reference_gets_no_say_in_the_sft_term():
    inputs = [column(-10), column(-23), column(-12), column(-20), torch.tensor([4])]
    plain = equation_6(*inputs, 0.0, 1.0)  # β = 0: DPO is the constant ln 2
    inputs[2:4] = column(-1), column(-2)
    assert equation_6(*inputs, 0.0, 1.0).item() == plain.item() == pytest.approx(math.log(2) + 2.5)


def test_preference_accuracy_counts_ties_one_half():
    # right, wrong, tie, right: (1 + 0 + ½ + 1) / 4
    assert preference_accuracy(column(-1, -5, -3, 0), column(-2, -4, -3, -9)).item() == 0.625
