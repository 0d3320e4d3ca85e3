"""Attention over a tree of segments, and the function that transformers calls in place of its own.

Transformers calls `attention` through its `AttentionInterface`. The layout (tree.Tree in prefill and in
training, decode.Decoding in decoding) travels as an argument of the model's forward, so there is no global
state, and no mask is ever built for the whole row.

Letters in shapes: N tokens of the row; H query heads, Hkv key heads, G = H / Hkv, D a head's size; U segments
with one parent, L the longest one's tokens, n their tokens, A their ancestors' tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

aten = torch.ops.aten


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: object = None,
    scaling: float | None = None,
    layout: Any = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """The attention function given to transformers: `layout`, a Tree or a Decoding, decides who sees whom.

    query (1, H, N, D), key and value (1, Hkv, N, D) → (1, N, H, D).
    """
    if layout is None:
        raise RuntimeError("a model switched to tree attention must be called with layout=")
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"this model's attention uses {name}, which tree attention does not compute")
    # the projections leave them in memory token by token: a layout picks tokens and copies no others
    query, key, value = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    query, key = query.to(value.dtype), key.to(value.dtype)  # some families normalise them in float32
    size = query.shape[-1]
    if size % 8:  # a GPU's kernels take no other size
        query, key, value = (F.pad(x, (0, -size % 8)) for x in (query, key, value))
    return layout.attend(module.layer_idx, query, key, value, scaling or size**-0.5)[None, ..., :size], None


AttentionInterface.register("tree", attention)


@dataclass(frozen=True)
class Siblings:
    """Segments with one parent: they see the same ancestors and, causally, themselves.

    `above`, `own` and `real` are slices where they can be, which copies nothing, or tensors; `rows` is always
    together.
    """

    above: slice | torch.Tensor  # (A,)   row positions of the ancestors' tokens, of which there may be none
    own: slice | torch.Tensor  # (U·L,) those of the segments' tokens, short ones padded with their last one
    real: slice | torch.Tensor  # (n,)   which of the U·L are not padding
    rows: slice  # (n,)   row positions of the segments' tokens, own[real]
    count: int  # U
    size: int  # n
    root: bool  # A is 0


class TreeAttention(torch.autograd.Function):
    """Attention in two parts per segment, over its ancestors' keys and over its own, joined by log-sum-exps.

    The ancestors' part needs no mask, no copy of their keys for each segment, and no padding; the own part is
    plainly causal. Softmax over both is each part weighted by its share exp(lse) of the whole, and given the
    whole's output and log-sum-exp the fused backward of a part yields that part's share of the gradient.
    """

    @staticmethod
    def forward(ctx, query, key, value, siblings, scaling):
        """query (N, H, D), key and value (N, Hkv, D) → (N, H, D)."""
        out, lse = torch.empty_like(query), torch.empty(query.shape[:2], device=query.device)
        for s in siblings:
            part, part_lse = fused(*_own(s, query, key, value), True, scaling)  # (U, H, L, D), (U, H, L)
            # (n, H, D), (n, H)
            part, part_lse = (x.transpose(1, 2).flatten(0, 1)[s.real] for x in (part, part_lse))
            if not s.root:
                above, above_lse = fused(*_above(s, query, key, value), False, scaling)
                above, above_lse = (_by_token(x, s.size) for x in (above, above_lse[..., None]))
                total = torch.logaddexp(part_lse, above_lse[..., 0])
                part = (
                    part * (part_lse - total).exp()[..., None] + above * (above_lse - total[..., None]).exp()
                )
                part_lse = total
            out[s.rows], lse[s.rows] = part.to(out.dtype), part_lse
        ctx.siblings, ctx.scaling = siblings, scaling
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx, grad):
        query, key, value, out, lse = ctx.saved_tensors
        grad_query, grad_key, grad_value = map(torch.zeros_like, (query, key, value))
        for s in ctx.siblings:
            own_out = out[s.own]
            padded = torch.zeros_like(own_out)
            padded[s.real] = grad[s.rows]  # pads: no gradient
            up, whole_out, whole_lse = (_side_by_side(x, s.count) for x in (padded, own_out, lse[s.own]))
            dq, dk, dv = fused_backward(
                up, *_own(s, query, key, value), whole_out, whole_lse, True, ctx.scaling
            )
            grad_query[s.rows] += dq.transpose(1, 2).flatten(0, 1)[s.real]
            for total, part in ((grad_key, dk), (grad_value, dv)):  # heads of a group share their key
                part = part.transpose(1, 2).flatten(0, 1)[s.real]
                total[s.rows] += part.unflatten(1, (total.shape[1], -1)).sum(2)
            if not s.root:
                up, whole_out, whole_lse = (
                    _by_head(x[s.rows], key.shape[1]) for x in (grad, out, lse[..., None])
                )
                above = _above(s, query, key, value)
                dq, dk, dv = fused_backward(up, *above, whole_out, whole_lse[..., 0], False, ctx.scaling)
                grad_query[s.rows] += _by_token(dq, s.size)
                grad_key[s.above] += dk[0].transpose(0, 1)
                grad_value[s.above] += dv[0].transpose(0, 1)
        return grad_query, grad_key, grad_value, None, None


def flash(query: torch.Tensor) -> bool:
    """Whether a GPU's fastest kernels take such a query; the others take any, and a mask."""
    ampere = torch.cuda.get_device_capability(query.device) >= (8, 0)
    return ampere and query.dtype != torch.float32 and query.shape[-1] <= 256


def fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    causal: bool,
    scaling: float,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PyTorch's fused attention, with the log-sum-exps that its public function hides.

    query (B, H, L, D), key and value (B, H, A, D), mask (B, 1, 1, A) added → (B, H, L, D), (B, H, L) float32.
    """
    if query.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scaling
        )
    if mask is None and flash(query):
        return aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scaling)[:2]
    if mask is not None:
        mask = mask.expand(len(query), query.shape[1], query.shape[2], -1)
    out, lse = aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, True, 0.0, causal, scale=scaling
    )[:2]
    return out, lse[..., : query.shape[2]]


def fused_backward(grad, query, key, value, out, lse, causal, scaling):
    """A part's gradients of query, key, value; `out` and `lse` are those of attention over more keys."""
    arguments = grad, query, key, value
    if query.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *arguments, out, lse, 0.0, causal, scale=scaling
        )
    unused = torch.empty(0, dtype=torch.long, device=query.device)  # the state of dropout
    if flash(query):
        lengths = None, None, query.shape[2], key.shape[2]
        return aten._scaled_dot_product_flash_attention_backward(
            *arguments, out, lse.contiguous(), *lengths, 0.0, causal, unused, unused, scale=scaling
        )
    lse = F.pad(lse, (0, -query.shape[2] % 32), value=torch.inf)  # as the forward pass lays them out
    return aten._scaled_dot_product_efficient_attention_backward(
        *arguments, None, out, lse, unused, unused, 0.0, [True, True, True, False], causal, scale=scaling
    )[:3]


def _own(s, query, key, value):
    """A group's segments side by side: query, key, value each (U, H, L, D)."""
    repeat = query.shape[1] // key.shape[1]
    parts = (query[s.own], key[s.own].repeat_interleave(repeat, 1), value[s.own].repeat_interleave(repeat, 1))
    return [_side_by_side(x, s.count) for x in parts]


def _side_by_side(x, count):  # (U·L, H, ·) → (U, H, L, ·)
    return x.unflatten(0, (count, -1)).transpose(1, 2)


def _above(s, query, key, value):
    """A group's tokens as one segment (1, Hkv, n·G, D); their ancestors' keys and values (1, Hkv, A, D)."""
    return [_by_head(query[s.rows], key.shape[1]), *(x[s.above].transpose(0, 1)[None] for x in (key, value))]


def _by_head(x, kv_heads):  # (n, H, ·) → (1, Hkv, n·G, ·)
    return x.unflatten(1, (kv_heads, -1)).transpose(0, 1).flatten(1, 2)[None]


def _by_token(x, count):  # (1, Hkv, n·G, ·) → (n, H, ·)
    return x[0].unflatten(1, (count, -1)).transpose(0, 1).flatten(1, 2)
