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

The row is the `layout` of the model's forward pass (attention.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from attention import Siblings, TreeAttention

Segments = Sequence[Sequence[int]]  # token ids of several prompts, or of several answers
MIN_SHARED = 16  # tokens: a shorter common prefix is not worth a level of its own


class Tree:
    """The packed layout of `prompts` and of `answers[i]`, the answers to prompt i, all as token ids.

    ids, positions  (1, N)
    roots, group    the row positions of every shared prefix, none for a lone prompt; each prompt's prefix
    tails, paths    for every prompt the row positions of its own tokens; the same behind its shared prefix's
    keep            (R,)  the row positions whose logits are needed: each prompt's last token (one projection
                    predicts the first token of all its answers) and every answer token but the last; without
                    answers, each prompt's last token in the order of `prompts`
    source, target, owner  (n,)  for every answer token, sorted by source: its predictor as an index into
                    `keep`, its id, its answer (numbered in the order given)
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


def shared(prompt: list[int], other: list[int]) -> int:
    """Length of the prefix that two prompts would share in a tree: 0 where it is not worth a level.

    It must be MIN_SHARED tokens and half of the shorter prompt; at least one token of each prompt stays
    outside.
    """
    limit = min(len(prompt), len(other)) - 1
    length = next((n for n in range(limit) if prompt[n] != other[n]), max(limit, 0))
    return length if length >= MIN_SHARED and 2 * length >= min(len(prompt), len(other)) else 0


def share_prefixes(prompts: Sequence[list[int]]) -> list[tuple[int, list[int]]]:
    """Group prompts that begin alike: [(length of the common prefix, [indices]), …]; 0: it stands alone.

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
        edges = torch.tensor([*starts, len(hidden)], device=source.device)
        bounds = torch.searchsorted(source, edges).tolist()
        for start, first, last in zip(starts, bounds, bounds[1:]):
            rows = slice(start, start + chunk)
            logits = F.linear(hidden[rows], weight, bias).float()  # (chunk, V): float32 before the softmax
            # in place from here on: a copy of the logits is what costs time
            logits -= logits.amax(-1, keepdim=True)
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
    output = model.base_model(tree.ids, position_ids=tree.positions, layout=tree, use_cache=False)
    states = output.last_hidden_state[0]  # (N, d)
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    # (n,)
    token_logps = TokenLogps.apply(states[tree.keep], head.weight, bias, tree.source, tree.target, chunk)
    return torch.zeros(tree.answers, device=token_logps.device).index_add(0, tree.owner, token_logps)
