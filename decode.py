"""One cached decoding step: one new token for each unfinished answer, all of them packed in one row.

A token's attention is joined from parts: over the one copy of its schema's keys, over that of its question's,
and over its own answer's. On a GPU a step is captured as one CUDA graph and replayed.

Letters in shapes: R unfinished answers, B nodes (schemas or questions), W places a node has for its answers,
P keys a node has, T steps; H query heads, Hkv key heads, G = H / Hkv, D a head's size, V tokens of the
vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

import ranks
from attention import fused
from tree import Tree

Cache = dict[int, tuple[torch.Tensor, torch.Tensor]]  # layer → keys and values, each (N, Hkv, D)


class SharedKeys:
    """Keys and values that several unfinished answers share: those of schemas or questions of like size.

    They are held once per node, (B, Hkv, P, D), and never copied per answer: an attention step lays the
    queries out as (node, rank of the answer within its node), a rectangle of B · W places, some of them
    empty.
    """

    def __init__(self, cache: Cache, nodes: list[tuple[list[int], list[int]]], device: torch.device | str):
        """nodes: (the row positions of its tokens in the prefilled tree, the answers below it)."""
        # one copy of each node's keys; shorter nodes are padded, and the padding is masked
        width = max(len(path) for path, _ in nodes)
        aligned = -(-width // 16) * 16  # a GPU's kernel wants the mask's rows to begin there
        gather = torch.tensor([path + path[:1] * (width - len(path)) for path, _ in nodes], device=device)
        lengths = torch.tensor([len(path) for path, _ in nodes], device=device)
        padding = torch.arange(aligned, device=device) >= lengths[:, None]
        self.cache = {
            i: tuple(x[gather].transpose(1, 2).contiguous() for x in pair) for i, pair in cache.items()
        }
        dtype = next(iter(cache.values()))[0].dtype
        self.mask = torch.zeros(padding.shape, dtype=dtype, device=device).masked_fill_(
            padding, float("-inf")
        )[:, None, None]
        self.rows = torch.tensor([row for _, rows in nodes for row in rows], device=device)
        self._arrange(torch.tensor([n for n, (_, rows) in enumerate(nodes) for _ in rows], device=device))

    def _arrange(self, node: torch.Tensor):
        """Give each answer a place among those of its node. node: the node of each of `rows`."""
        self.node = node
        same = torch.nn.functional.one_hot(node, len(self.mask))
        rank = (same.cumsum(0) - 1).gather(1, node[:, None])[:, 0]
        self.width = int(rank.max()) + 1
        slot = node * self.width + rank  # place in the rectangle of each of `rows`, in order
        self.slot = None if len(slot) == len(self.mask) * self.width else slot  # None: no place is empty
        self.ordered = bool((self.rows.diff() > 0).all())

    def keep(self, new: torch.Tensor) -> bool:
        """Keep some answers alone: new (R,): an answer's next row, -1 where it ended. False: none is left."""
        going = new[self.rows] >= 0
        self.rows = new[self.rows][going]
        if not len(self.rows):
            return False
        # nodes without answers lose their keys
        alive, node = self.node[going].unique(return_inverse=True)
        if len(alive) < len(self.mask):
            self.cache = {i: (k[alive], v[alive]) for i, (k, v) in self.cache.items()}
            self.mask = self.mask[alive]
        self._arrange(node)
        return True

    def attend(self, layer: int, query: torch.Tensor, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
        """query (R, Hkv, G, D) → the output over these keys, same shape, and its log-sum-exp (R, Hkv, G, 1).

        Answers that have no node here get an output of 0 and a log-sum-exp of -inf.
        """
        everyone = self.ordered and len(self.rows) == len(query)  # no answer of the batch is elsewhere
        # from answers to the rectangle of places, so that a node's keys are read once for all of its answers
        places = query if everyone else query[self.rows]
        if self.slot is not None:
            places = query.new_zeros(len(self.mask) * self.width, *query.shape[1:]).index_copy_(
                0, self.slot, places
            )
        nodes = places.unflatten(0, (-1, self.width)).transpose(1, 2).flatten(2, 3)  # (B, Hkv, W·G, D)
        keys, values = self.cache[layer]
        parts = list(partial_attention(nodes, keys, values, scaling, self.mask))
        # and back
        parts = [x.unflatten(2, (self.width, -1)).transpose(1, 2).flatten(0, 1) for x in parts]
        if self.slot is not None:
            parts = [x[self.slot] for x in parts]
        out, lse = parts
        if everyone:
            return out, lse
        nothing = lse.new_full((*query.shape[:3], 1), float("-inf"))
        return torch.zeros_like(query).index_copy_(0, self.rows, out), nothing.index_copy_(0, self.rows, lse)


def partial_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over some of the keys, to be merged with that over the others by their log-sum-exps.

    query (B, H, L, D), keys and values (B, H, P, D), mask (B, 1, 1, P or more) added → (B, H, L, D), (B, H,
    L, 1) float32.
    """
    mask = None if mask is None else mask[..., : keys.shape[2]]
    out, lse = fused(query, keys, values, False, scaling, mask)
    return out, lse[..., None]


class Decoding:
    """The layout of one decoding step (see attention.attention): R unfinished answers, one new token each.

    An answer attends to its schema (where questions share one), its question, and its own past, (R, Hkv, T,
    D). On a GPU a step is hundreds of kernels that take less time than their launch, so it is captured as one
    CUDA graph and replayed. Its shapes must not change for that: all T places of an answer's own keys are
    attended to, masked to those there are.
    """

    def __init__(self, tree: Tree, answers: int, steps: int):
        """tree: the prefilled prompts, which keep their cache. answers: of each question. steps: T."""
        # the answers (rows) below each question and below each schema
        questions = [list(range(i * answers, (i + 1) * answers)) for i in range(len(tree.paths))]
        schemas: list[list[int]] = [[] for _ in tree.roots]
        for group, rows in zip(tree.group, questions):
            schemas[group] += rows
        # nodes of like size make one rectangle that wastes little
        alike: dict[tuple, list] = {}
        for path, rows in [*zip(tree.roots, schemas), *zip(tree.tails, questions)]:
            if path:
                alike.setdefault((len(rows).bit_length(), int(2 * math.log2(len(path)))), []).append(
                    (path, rows)
                )
        self.shared = [SharedKeys(tree.cache, nodes, tree.device) for nodes in alike.values()]
        self.first = torch.tensor(
            [len(path) for path in tree.paths for _ in range(answers)], device=tree.device
        )
        self.steps, self.step = steps, 0
        self.own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.place = torch.zeros_like(self.first[:1])  # (1,) the step, where a graph finds it
        self.fixed, self.mask, self.replay = fixed_shapes(tree.device), None, None
        if self.fixed:
            keys, _ = next(iter(tree.cache.values()))
            self.mask = keys.new_full((1, 1, 1, -(-steps // 16) * 16), -math.inf)
            self.replay = Replay() if keys.is_cuda and not ranks.sharded() else None

    def feed(self, model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (R,), one for every answer → the logits after it (R, V); the next call overwrites them."""
        self.place.fill_(self.step)
        if self.fixed:
            self.mask[..., self.step] = 0
        run = partial(self._forward, model)
        logits = self.replay(run, tokens) if self.replay else run(tokens)
        self.step += 1
        return logits

    def _forward(self, model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        positions = self.first + self.place
        return model(
            input_ids=tokens[None], position_ids=positions[None], layout=self, use_cache=False
        ).logits[0]

    def keep(self, rows: torch.Tensor):
        """Keep these answers alone, which copies their caches and, on a GPU, makes a new graph necessary."""
        new = torch.full_like(self.first, -1)
        new[rows] = torch.arange(len(rows), device=rows.device)
        self.shared = [shared for shared in self.shared if shared.keep(new)]
        for layer, pair in self.own.items():
            keys, values = (self._places(x, len(rows)) for x in pair)
            for fresh, old in zip((keys, values), pair):
                fresh[:, :, : self.step] = old[rows, :, : self.step]
            self.own[layer] = keys, values
        self.first, self.replay = self.first[rows], Replay() if self.replay else None

    def _places(self, like: torch.Tensor, rows: int) -> torch.Tensor:
        """Room for T keys or values of each row: zeros where empty ones are attended to, though masked."""
        make = like.new_zeros if self.fixed else like.new_empty
        return make(rows, like.shape[1], self.steps, like.shape[-1])

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """query (R, H, D), key and value (R, Hkv, D) → (R, H, D)."""
        rows, heads, size = query.shape
        kv_heads = key.shape[1]
        # the new token's key and value join the answer's own
        if layer not in self.own:
            self.own[layer] = self._places(key, rows), self._places(value, rows)
        for stored, new in zip(self.own[layer], (key, value)):
            stored.index_copy_(2, self.place, new[:, :, None])
        keys, values = (
            stored[:, :, : self.steps if self.fixed else self.step + 1] for stored in self.own[layer]
        )
        # attention over each part, joined: softmax over all keys is each part weighted by its share exp(lse)
        query = query.reshape(rows, kv_heads, -1, size)  # (R, Hkv, G, D)
        parts = [shared.attend(layer, query, scaling) for shared in self.shared]
        parts.append(partial_attention(query, keys, values, scaling, self.mask))
        weights = torch.stack([lse for _, lse in parts]).softmax(0)
        out = sum(weight * part for weight, (part, _) in zip(weights, parts)).to(value.dtype)
        return out.reshape(rows, heads, size)


def fixed_shapes(device: torch.device | str) -> bool:
    """Whether every decoding step has the shapes of the one before, as a CUDA graph needs."""
    return torch.device(device).type == "cuda"


class Replay:
    """Runs a function of one tensor on a GPU: its second call becomes one CUDA graph, which is replayed.

    Every call must have the first one's shapes, and the function find whatever else changes in tensors that
    stay. A function that waits for the GPU, as some families' forward does, is never captured. One graph at a
    time: a graph's end also clears the work space of its stream, on which the others were captured too.
    """

    def __init__(self):
        self.graph, self.calls, self.waits = None, 0, False

    def __call__(self, run: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 1:  # it also loads and tunes the kernels
            torch.cuda.set_sync_debug_mode("error")
            try:
                return run(given)
            except RuntimeError as error:
                if "synchroniz" not in str(error):
                    raise
                self.waits = True
            finally:
                torch.cuda.set_sync_debug_mode("default")
        if self.waits:
            return run(given)
        if self.graph is None:
            self.graph, self.given = torch.cuda.CUDAGraph(), given.clone()
            with torch.cuda.graph(self.graph):
                self.result = run(self.given)
        self.given.copy_(given)
        self.graph.replay()
        return self.result


def pick(
    logits: torch.Tensor, u: torch.Tensor, temperature: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row, by inverting the cumulative distribution at u; temperature 0: the most likely one.

    logits (R, V), u (R,) → tokens (R,), log-probabilities of the tokens at temperature 1 (R,), both from
    float32.
    """
    tokens, logps = [], []
    some = len(u) if logits.is_cuda else 8  # a few rows at a time stay in a processor's cache
    for part, v in zip(logits.split(some), u.split(some)):
        part = part.float()
        part = part - part.amax(-1, keepdim=True)
        weights = part.exp()
        total = weights.sum(-1).log()
        if temperature == 0:
            token = part.argmax(-1)
        else:
            weights = weights if temperature == 1 else (part / temperature).exp_()
            if top_p < 1:  # the smallest set of most likely tokens whose mass reaches top_p
                ordered, index = weights.sort(-1, descending=True)
                outside = ordered.cumsum(-1) - ordered >= top_p * ordered.sum(-1, keepdim=True)
                outside[:, 0] = False  # however small top_p is
                weights = torch.zeros_like(weights).scatter(-1, index, ordered.masked_fill(outside, 0))
            token = invert(weights, v)
        tokens.append(token)
        logps.append(part.gather(-1, token[:, None])[:, 0] - total)
    return torch.cat(tokens), torch.cat(logps)


def invert(weights: torch.Tensor, u: torch.Tensor, block: int = 256) -> torch.Tensor:
    """The first index at which the cumulative weight exceeds u · total: weights (R, V), u (R,) → (R,).

    In two levels, blocks and then tokens of one block: short sums are quick, and more exact than one over all
    of V.
    """
    pad = -weights.shape[-1] % block
    blocks = torch.nn.functional.pad(weights, (0, pad)).unflatten(-1, (-1, block))  # (R, V/b, b)
    mass = blocks.sum(-1).double().cumsum(-1)  # (R, V/b)
    goal = u.double() * mass[:, -1]
    which = (mass <= goal[:, None]).sum(-1).clamp(max=mass.shape[-1] - 1)
    rows = torch.arange(len(u), device=u.device)
    rest = goal - torch.where(which > 0, mass[rows, which - 1], torch.zeros_like(goal))
    inside = blocks[rows, which].double().cumsum(-1)  # (R, b)
    # rounding may leave `rest` at the block's very end: stay on the last token that has weight at all
    last = block - 1 - (blocks[rows, which] > 0).flip(-1).long().argmax(-1)
    return which * block + torch.minimum((inside <= rest[:, None]).sum(-1), last)
