"""Many answers sharing one prompt, laid out as ONE sequence.

A question's M answers share its prompt, and the prompts of one database share its schema. Stacked as full
sequences the same tokens would be computed over and over; here they are a tree, and the tree is packed into
one row

    [ schema | question 1 | question 2 | … | answer 1 | answer 2 | … ]

in which a token sees its own segment's past and the whole of the segments above it, and positions go on from
the parent segment's end. Every linear layer then runs once per distinct token; only attention knows about the
tree. The result is that of one-by-one sequences up to rounding (tests/test_tree.py).

Letters in shapes: N tokens of the row; H query heads, Hkv key heads, G = H / Hkv, D a head's size; U segments
with one parent, L the longest one's tokens, n their tokens, A their ancestors' tokens; d the hidden size, V
the vocabulary.

Transformers calls `attention` below in place of its own (its `AttentionInterface`); the layout travels as a
keyword argument of the model's forward, so there is no global state and no mask is ever built for the whole
row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

aten = torch.ops.aten
Segments = Sequence[Sequence[int]]  # token ids of several prompts, or of several answers
MIN_SHARED = 16  # tokens: a shorter common prefix is not worth a level of its own


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: object = None,
    scaling: float | None = None,
    layout: Tree | None = None,
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
    # token by token is how the projections leave them in memory: the layouts pick tokens without copying the
    # rest
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
    own: (
        slice | torch.Tensor
    )  # (U·L,) row positions of the segments' tokens, short segments padded by repeating their last
    real: slice | torch.Tensor  # (n,)   which of the U·L are not padding
    rows: slice  # (n,)   row positions of the segments' tokens, own[real]
    count: int  # U
    size: int  # n
    root: bool  # A is 0


class Tree:
    """The packed layout of `prompts` (token id lists) and of `answers[i]`, the token id lists that answer
    prompt i.

    ids, positions  (1, N)
    roots, group    the row positions of every shared prefix (none where a prompt stands alone); each prompt's prefix
    tails, paths    for every prompt the row positions of its own tokens; the same with the shared prefix's before them
    keep            (R,)  the row positions whose logits are needed: each prompt's last token (one projection predicts
                    the first token of all its answers) and every answer token but the last; without answers, each
                    prompt's last token in the order of `prompts`
    source, target, owner  (n,)  for every answer token, sorted by source: its predictor as an index into
    `keep`, its id,
                    its answer (numbered in the order given)
    cache           with `keep_cache`, {layer: (key, value)}, each (N, Hkv, D)
    """

    def __init__(
        self,
        prompts: Sequence[list[int]],
        answers: Sequence[Segments] | None = None,
        device: torch.device | str = "cpu",
        keep_cache: bool = False,
    ):
        self.device, self.cache = device, {} if keep_cache else None
        self._ids, self._positions = [], []
        self.siblings: list[Siblings] = []
        self.roots: list[list[int]] = []
        self.tails: list[list[int]] = [[] for _ in prompts]
        self.group = [0] * len(prompts)
        for prefix, members in share_prefixes(prompts):
            root = self._add([], [prompts[members[0]][:prefix]])[0] if prefix else []
            for i, tail in zip(members, self._add(root, [prompts[i][prefix:] for i in members])):
                self.tails[i], self.group[i] = tail, len(self.roots)
            self.roots.append(root)
        self.paths = [self.roots[g] + tail for g, tail in zip(self.group, self.tails)]
        keep, source, target, owner = [], [], [], []
        self.answers = 0
        for i, path in enumerate(self.paths):
            first = len(keep)
            keep.append(path[-1])
            if not answers or not answers[i]:
                continue
            for answer, row in zip(answers[i], self._add(path, answers[i])):
                source += [first, *range(len(keep), len(keep) + len(row) - 1)]
                keep += row[:-1]
                target += answer
                owner += [self.answers] * len(answer)
                self.answers += 1
        self.ids, self.positions = self._tensor(self._ids)[None], self._tensor(self._positions)[None]
        order = sorted(range(len(source)), key=source.__getitem__)
        source, target, owner = ([values[i] for i in order] for values in (source, target, owner))
        self.keep, self.source, self.target, self.owner = map(self._tensor, (keep, source, target, owner))

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _add(self, above: list[int], segments: Segments) -> list[list[int]]:
        """Append sibling segments below the tokens `above`; returns the row positions of each."""
        rows = []
        for tokens in segments:
            rows.append(list(range(len(self._ids), len(self._ids) + len(tokens))))
            self._ids += tokens
            self._positions += range(len(above), len(above) + len(tokens))
        length = max(map(len, rows))
        # a pad lies after its segment's last token, so causality already hides it from real tokens
        own = [position for row in rows for position in row + row[-1:] * (length - len(row))]
        real = [u * length + j for u, row in enumerate(rows) for j in range(len(row))]
        together = slice(rows[0][0], len(self._ids))
        self.siblings.append(
            Siblings(
                self._index(above),
                self._index(own),
                self._index(real),
                together,
                len(rows),
                len(real),
                root=not above,
            )
        )
        return rows

    def _index(self, positions: list[int]) -> slice | torch.Tensor:
        start = positions[0] if positions else 0
        together = slice(start, start + len(positions))
        return (
            together if positions == list(range(together.start, together.stop)) else self._tensor(positions)
        )

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """query (N, H, D), key and value (N, Hkv, D) → (N, H, D)."""
        if self.cache is not None:
            self.cache[layer] = (key, value)
        dtype = query.dtype
        # the CPU's backward pass is slow in bfloat16; the reference pass as in training
        if query.device.type == "cpu" and (torch.is_grad_enabled() or self.cache is None):
            query, key, value = query.float(), key.float(), value.float()
        return TreeAttention.apply(query, key, value, self.siblings, scaling).to(dtype)


class TreeAttention(torch.autograd.Function):
    """A tree's attention in two parts per segment, over its ancestors' keys and over its own, joined by their
    log-sum-exps.

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
            part, part_lse = (
                x.transpose(1, 2).flatten(0, 1)[s.real] for x in (part, part_lse)
            )  # (n, H, D), (n, H)
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
        grad_query, grad_key, grad_value = (
            torch.zeros_like(query),
            torch.zeros_like(key),
            torch.zeros_like(value),
        )
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
    """The gradients of query, key, value: a part's share, where `out` and `lse` are those of attention over
    more keys.
    """
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
    """All of the group's tokens as one segment (1, Hkv, n·G, D), and their ancestors' keys and values (1,
    Hkv, A, D).
    """
    return [_by_head(query[s.rows], key.shape[1]), *(x[s.above].transpose(0, 1)[None] for x in (key, value))]


def _by_head(x, kv_heads):  # (n, H, ·) → (1, Hkv, n·G, ·)
    return x.unflatten(1, (kv_heads, -1)).transpose(0, 1).flatten(1, 2)[None]


def _by_token(x, count):  # (1, Hkv, n·G, ·) → (n, H, ·)
    return x[0].unflatten(1, (count, -1)).transpose(0, 1).flatten(1, 2)


def shared(prompt: list[int], other: list[int]) -> int:
    """Length of the prefix that two prompts would share in a tree: 0 where it is not worth a level of its
    own.

    It must be MIN_SHARED tokens and half of the shorter prompt; at least one token of each prompt stays
    outside.
    """
    limit = min(len(prompt), len(other)) - 1
    length = next((n for n in range(limit) if prompt[n] != other[n]), max(limit, 0))
    return length if length >= MIN_SHARED and 2 * length >= min(len(prompt), len(other)) else 0


def share_prefixes(prompts: Sequence[list[int]]) -> list[tuple[int, list[int]]]:
    """Group prompts that begin alike: [(length of the common prefix, [indices]), …]; 0 where a prompt stands
    alone.

    Neighbours in sorted order join while each shares enough (see `shared`) with the group's common prefix.
    """
    groups: list[tuple[int, list[int]]] = []
    for i in sorted(range(len(prompts)), key=lambda i: prompts[i]):
        if groups:
            prefix, members = groups[-1]
            head = prompts[members[0]]
            common = shared(prompts[i], head)
            common = min(common, prefix) if len(members) > 1 else common
            if common and 2 * common >= min(len(prompts[i]), len(head)):
                groups[-1] = (common, [*members, i])
                continue
        groups.append((0, [i]))
    return groups


class TokenLogps(torch.autograd.Function):
    """log softmax(hidden Wᵀ)[token], without ever holding the logits of more than `chunk` positions.

    The gradient with respect to a position's hidden state is Σ g_i (W[token_i] − Σ_v p_v W_v) over the tokens
    it predicts, so the forward pass keeps the expectation Σ_v p_v W_v, (R, d), in place of the logits, (R,
    V). W is frozen.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, source, target, chunk):
        """hidden (R, d), weight (V, d), source (n,) sorted, target (n,) → (n,) float32."""
        logps = torch.empty(len(target), device=hidden.device)
        expectation = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        starts = list(range(0, len(hidden), chunk))
        bounds = torch.searchsorted(
            source, torch.tensor([*starts, len(hidden)], device=source.device)
        ).tolist()
        for start, first, last in zip(starts, bounds, bounds[1:]):
            rows = slice(start, start + chunk)
            logits = F.linear(hidden[rows], weight, bias).float()  # (chunk, V): float32 before the softmax
            logits -= logits.amax(
                -1, keepdim=True
            )  # in place from here on: a copy of the logits is what costs time
            tokens = slice(first, last)
            picked = logits[source[tokens] - start, target[tokens]]
            total = logits.exp_().sum(-1)
            logps[tokens] = picked - total.log()[source[tokens] - start]
            if expectation is not None:
                expectation[rows] = (logits.to(weight.dtype) @ weight).div_(total[:, None])
        ctx.save_for_backward(expectation, weight, source, target)
        return logps

    @staticmethod
    def backward(ctx, grad):  # (n,)
        expectation, weight, source, target = ctx.saved_tensors
        out = torch.zeros(expectation.shape, device=grad.device)
        out.index_add_(0, source, grad[:, None] * weight[target])
        out -= torch.zeros(len(out), device=grad.device).index_add_(0, source, grad)[:, None] * expectation
        return out.to(expectation.dtype), None, None, None, None, None


def answer_logps(model: torch.nn.Module, tree: Tree, chunk: int = 512) -> torch.Tensor:
    """Log-probability of every answer of the tree: (answers,), a float32 sum over its own tokens.

    A bfloat16 sum above 128 would be spaced by 1.0.
    """
    states = model.base_model(
        input_ids=tree.ids, position_ids=tree.positions, layout=tree, use_cache=False
    ).last_hidden_state[0]  # (N, d)
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    token_logps = TokenLogps.apply(
        states[tree.keep], head.weight, bias, tree.source, tree.target, chunk
    )  # (n,)
    return torch.zeros(tree.answers, device=token_logps.device).index_add(0, tree.owner, token_logps)
