"""Draw answers from the policy: the prompt is prefilled once, and its cache is shared by all of its answers.

A batch of questions is prefilled as one tree (a schema shared by several questions is computed once); then every step
feeds one token for each unfinished answer of the whole batch, packed in one row. A token's attention is joined from parts:
over the one copy of its schema's keys, over that of its question's, and over its own answer's. Finished answers leave.

Randomness comes from position: the uniform number that picks token j of answer m to question i in iteration t is a
function of (seed, t, i, m, j) alone. Rounding depends on what is computed together, so the batch is fixed by the settings.

    python sample.py --model smollm2 --data shop --limit 4      draws and prints answers
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import cli

if __name__ == "__main__":
    cli.interruptible()

import numpy as np
import torch
from tqdm import tqdm

import data
import lora
import ranks
from data import Answer, Question
from policy import Policy, empty_pass, halving, load_policy
from tree import Tree, fused, shared


@dataclass(frozen=True)
class SamplingParams:
    """How answers are drawn. The same values draw the same answers."""

    answers: int = 16  # M, to each question
    max_new: int = 128  # longest answer, tokens
    temperature: float = 1.0  # 0: the most likely token
    top_p: float = 1.0
    seed: int = 0
    iteration: int = 0
    batch_tokens: int = 32768  # cached tokens per batch of questions


def uniforms(seed: int, iteration: int, question: int, sample: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) that depend on the position alone: (count,) float64."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, iteration, question, sample)))).random(count)


def pick(logits: torch.Tensor, u: torch.Tensor, temperature: float, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row by inverting the cumulative distribution at u; temperature 0 takes the most likely token.

    logits (R, V), u (R,) → tokens (R,), log-probabilities of the tokens at temperature 1 (R,), both from float32.
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

    In two levels, blocks and then tokens of one block: short sums are quick, and more exact than one over all of V.
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


class Shared:
    """Keys and values that several unfinished answers share: those of nodes of like size, a schema or a question each.

    They are held once per node, (B, Hkv, P, D), and never copied per answer: an attention step lays the queries out as
    (node, rank of the answer within its node), a rectangle of B · W places, some of them empty.
    """

    def __init__(self, cache, nodes: list[tuple[list[int], list[int]]], device):
        """nodes: (the row positions of its tokens in the prefilled tree, the answers below it)."""
        width = max(len(path) for path, _ in nodes)
        aligned = -(-width // 16) * 16  # a GPU's kernel wants the mask's rows to begin there
        gather = torch.tensor([path + path[:1] * (width - len(path)) for path, _ in nodes], device=device)
        lengths = torch.tensor([len(path) for path, _ in nodes], device=device)
        padding = torch.arange(aligned, device=device) >= lengths[:, None]
        self.cache = {i: tuple(x[gather].transpose(1, 2).contiguous() for x in pair) for i, pair in cache.items()}
        dtype = next(iter(cache.values()))[0].dtype
        self.mask = torch.zeros(padding.shape, dtype=dtype, device=device).masked_fill_(padding, float("-inf"))[:, None, None]
        self.rows = torch.tensor([row for _, rows in nodes for row in rows], device=device)
        self._arrange(torch.tensor([n for n, (_, rows) in enumerate(nodes) for _ in rows], device=device))

    def _arrange(self, node):
        self.node = node
        same = torch.nn.functional.one_hot(node, len(self.mask))
        rank = (same.cumsum(0) - 1).gather(1, node[:, None])[:, 0]
        self.width = int(rank.max()) + 1
        slot = node * self.width + rank  # place in the rectangle of each of `rows`, in order
        self.slot = None if len(slot) == len(self.mask) * self.width else slot  # None: no place is empty
        self.ordered = bool((self.rows.diff() > 0).all())

    def keep(self, new):
        """Only some answers go on, as rows `new` (R,) of the batch, -1 where one does not. False: none of these do."""
        going = new[self.rows] >= 0
        self.rows = new[self.rows][going]
        if not len(self.rows):
            return False
        alive, node = self.node[going].unique(return_inverse=True)
        if len(alive) < len(self.mask):
            self.cache = {i: (k[alive], v[alive]) for i, (k, v) in self.cache.items()}
            self.mask = self.mask[alive]
        self._arrange(node)
        return True

    def attend(self, layer, query, scaling):
        """query (R, Hkv, G, D) → the output over these keys, the same, and its log-sum-exp (R, Hkv, G, 1), -inf for others."""
        everyone = self.ordered and len(self.rows) == len(query)  # no answer of the batch is elsewhere
        places = query if everyone else query[self.rows]
        if self.slot is not None:
            places = query.new_zeros(len(self.mask) * self.width, *query.shape[1:]).index_copy_(0, self.slot, places)
        nodes = places.unflatten(0, (-1, self.width)).transpose(1, 2).flatten(2, 3)  # (B, Hkv, W·G, D)
        parts = partial_attention(nodes, *self.cache[layer], scaling, self.mask)
        parts = [x.unflatten(2, (self.width, -1)).transpose(1, 2).flatten(0, 1) for x in parts]
        if self.slot is not None:
            parts = [x[self.slot] for x in parts]
        if everyone:
            return parts
        whole = torch.zeros_like(query), parts[1].new_full((*query.shape[:3], 1), float("-inf"))
        return [x.index_copy_(0, self.rows, part) for x, part in zip(whole, parts)]


def partial_attention(query, keys, values, scaling, mask=None):
    """Attention over some of the keys, to be merged with that over the others by their log-sum-exps.

    query (B, H, L, D), keys and values (B, H, P, D), mask (B, 1, 1, P or more) added → (B, H, L, D), (B, H, L, 1) float32.
    """
    mask = None if mask is None else mask[..., : keys.shape[2]]
    out, lse = fused(query, keys, values, False, scaling, mask)
    return out, lse[..., None]


class Decoding:
    """The layout of one decoding step (see tree.attention): R unfinished answers, one new token each.

    An answer attends to its schema (where questions share one), its question, and its own past, (R, Hkv, T, D). On a GPU
    a step is hundreds of kernels that take less time than their launch, so it is captured as one CUDA graph and replayed.
    Its shapes must not change for that: all T places of an answer's own keys are attended to, masked to those there are.
    """

    def __init__(self, tree: Tree, answers: int, steps: int):
        below = [list(range(i * answers, (i + 1) * answers)) for i in range(len(tree.paths))]  # rows of each question
        schemas = [[row for i, rows in enumerate(below) if tree.group[i] == g for row in rows] for g in range(len(tree.roots))]
        alike: dict[tuple, list] = {}  # nodes of like size make one rectangle that wastes little
        for path, rows in [*zip(tree.roots, schemas), *zip(tree.tails, below)]:
            if path:
                alike.setdefault((len(rows).bit_length(), int(2 * math.log2(len(path)))), []).append((path, rows))
        self.shared = [Shared(tree.cache, nodes, tree.device) for nodes in alike.values()]
        self.first = torch.tensor([len(path) for path in tree.paths for _ in range(answers)], device=tree.device)
        self.steps, self.step = steps, 0
        self.own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.place = torch.zeros_like(self.first[:1])  # (1,) the step, where a graph finds it
        self.fixed, self.mask, self.replay = fixed_shapes(tree.device), None, None
        if self.fixed:
            keys, _ = next(iter(tree.cache.values()))
            self.mask = keys.new_full((1, 1, 1, -(-steps // 16) * 16), -math.inf)
            self.replay = Replay() if keys.is_cuda and not ranks.sharded() else None

    def feed(self, model, tokens):
        """tokens (R,), one for every answer → the logits after it, (R, V), which the next call may overwrite."""
        self.place.fill_(self.step)
        if self.fixed:
            self.mask[..., self.step] = 0
        run = partial(self._forward, model)
        logits = self.replay(run, tokens) if self.replay else run(tokens)
        self.step += 1
        return logits

    def _forward(self, model, tokens):
        positions = self.first + self.place
        return model(input_ids=tokens[None], position_ids=positions[None], layout=self, use_cache=False).logits[0]

    def keep(self, rows: torch.Tensor):
        """Only these answers go on."""
        new = torch.full_like(self.first, -1)
        new[rows] = torch.arange(len(rows), device=rows.device)
        self.shared = [shared for shared in self.shared if shared.keep(new)]
        for layer, pair in self.own.items():
            keys, values = (self._places(x, len(rows)) for x in pair)
            for fresh, old in zip((keys, values), pair):
                fresh[:, :, : self.step] = old[rows, :, : self.step]
            self.own[layer] = keys, values
        self.first, self.replay = self.first[rows], Replay() if self.replay else None

    def _places(self, like, rows):
        """Room for T keys or values of each row: zeros where the empty ones are attended to, though masked."""
        make = like.new_zeros if self.fixed else like.new_empty
        return make(rows, like.shape[1], self.steps, like.shape[-1])

    def attend(self, layer, query, key, value, scaling):
        """query (R, H, D), key and value (R, Hkv, D) → (R, H, D)."""
        rows, heads, size = query.shape
        kv_heads = key.shape[1]
        if layer not in self.own:
            self.own[layer] = self._places(key, rows), self._places(value, rows)
        for stored, new in zip(self.own[layer], (key, value)):
            stored.index_copy_(2, self.place, new[:, :, None])
        own = [stored[:, :, : self.steps if self.fixed else self.step + 1] for stored in self.own[layer]]
        query = query.reshape(rows, kv_heads, -1, size)  # (R, Hkv, G, D)
        parts = [shared.attend(layer, query, scaling) for shared in self.shared]
        parts.append(partial_attention(query, *own, scaling, self.mask))
        weights = torch.stack([lse for _, lse in parts]).softmax(0)  # each part's share of the whole softmax
        out = sum(weight * part for weight, (part, _) in zip(weights, parts)).to(value.dtype)
        return out.reshape(rows, heads, size)


def fixed_shapes(device) -> bool:
    """Whether every decoding step has the shapes of the one before, as a CUDA graph needs."""
    return torch.device(device).type == "cuda"


class Replay:
    """Runs a function of one tensor on a GPU: the second call captures its kernels as one CUDA graph, which is replayed.

    Every call must have the first one's shapes, and the function find whatever else changes in tensors that stay. A function
    that waits for the GPU, as some families' forward does, is never captured. One graph at a time: a graph's end also
    clears the work space of its stream, on which the others were captured too.
    """

    def __init__(self):
        self.graph, self.calls, self.waits = None, 0, False

    def __call__(self, run, given):
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


def batches(prompts: list[list[int]], answers: int, max_new: int, batch_tokens: int) -> list[list[int]]:
    """Split questions into batches of at most `batch_tokens` cached tokens: prompts of like length and one schema together."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]) // 128, prompts[i]))
    result, size, last = [], 0, []
    for i in order:
        need = len(prompts[i]) - shared(prompts[i], last) + answers * max_new  # a shared schema is cached once
        if not result or size + need > batch_tokens:
            result.append([])
            size, need = 0, len(prompts[i]) + answers * max_new
        result[-1].append(i)
        size, last = size + need, prompts[i]
    return result


@torch.no_grad()
def draw_batch(
    policy: Policy,
    questions: list[Question],
    prompts: list[list[int]],
    params: SamplingParams,
    progress: Callable[[int, int, int], object] | None = None,
) -> list[Answer]:
    """Draw `params.answers` answers to each of a batch's questions; returns them ordered by question and sample.

    progress(answers that have ended, tokens drawn, answers that go on) is called after every step.
    """
    tree, decode = Tree(prompts, device=policy.device, keep_cache=True), policy.tokenizer.decode
    answers, steps = params.answers, params.max_new
    u = np.stack(
        [uniforms(params.seed, params.iteration, q.index, m, steps) for q in questions for m in range(answers)]
    )
    u = torch.from_numpy(u).to(policy.device)  # (R, T)
    tokens = [[] for _ in range(len(u))]
    logps, finished = [0.0] * len(u), [False] * len(u)
    with policy.autocast():
        logits = policy.model(
            input_ids=tree.ids, position_ids=tree.positions, layout=tree, logits_to_keep=tree.keep, use_cache=False
        ).logits[0]  # (Q, V)
        state = Decoding(tree, answers, steps)
        tree.cache = None
        logits = logits.repeat_interleave(answers, 0)
        rows = list(range(len(u)))  # the answer that each row of the batch belongs to
        running = [True] * len(rows)
        # when so few of the rows go on, the others leave: that copies the caches and, on a GPU, makes a new graph
        few = 1 / 2 if policy.device.type == "cuda" else 7 / 8
        for step in range(steps):
            picked, logp = pick(logits, u[:, step], params.temperature, params.top_p)
            for r, (token, value) in enumerate(zip(picked.tolist(), logp.tolist())):
                if not running[r]:
                    continue
                row = rows[r]
                tokens[row].append(token)
                logps[row] += value
                if token in policy.end_ids or token in policy.stop_tokens and data.code_ended(
                    decode(tokens[row], skip_special_tokens=True), questions[row // answers].language
                ):
                    finished[row], running[r] = True, False
            alive = [r for r, on in enumerate(running) if on]
            if progress:
                progress(sum(finished), sum(map(len, tokens)), len(alive))
            if not alive or step == steps - 1:
                break
            if len(alive) <= few * len(rows):
                going = torch.tensor(alive, device=policy.device)
                state.keep(going)
                picked, u = picked[going], u[going]
                rows, running = [rows[r] for r in alive], [True] * len(alive)
            logits = state.feed(policy.model, picked)  # (R, V)
    return [
        Answer(q.index, m, tuple(tokens[r]), decode(tokens[r], skip_special_tokens=True), logps[r], finished[r])
        for r, (q, m) in enumerate((q, m) for q in questions for m in range(answers))
    ]


def sample(
    policy: Policy,
    questions: list[Question],
    params: SamplingParams,
    skip: int = 0,
    progress: str | None = None,
) -> Iterator[list[Answer]]:
    """Draw answers to all questions; yields the Answers of one batch of questions after the other.

    The batches are fixed by the arguments, so a resumed run draws the same tokens. skip: batches that are drawn already.
    progress: the name of the progress bar; None: none is shown.
    """
    prompts = [data.prompt_ids(q, policy.tokenizer) for q in questions]
    todo = batches(prompts, params.answers, params.max_new, params.batch_tokens)
    bar = tqdm(
        total=len(questions) * params.answers, desc=progress, unit="answer", disable=progress is None,
        dynamic_ncols=True, miniters=0, mininterval=1,
    )  # fmt: skip
    complete = sum(map(len, todo[:skip])) * params.answers  # answers of the batches that are done
    bar.update(complete)

    def show(finished: int, tokens: int, going: int):  # inside a batch, which may take minutes
        bar.n = complete + finished
        bar.set_postfix_str(f"{tokens} tokens of this batch, {going} answers unfinished", refresh=False)
        bar.update(0)

    def draw(batch: list[int]) -> list[Answer]:
        return draw_batch(policy, [questions[i] for i in batch], [prompts[i] for i in batch], params, show)

    drawn = ended = total = 0
    for start in range(skip, len(todo), ranks.world_size()):  # each process draws one batch, and all get all
        mine = start + ranks.rank()
        own = halving(draw, todo[mine]) if mine < len(todo) else []
        ranks.catch_up(partial(empty_pass, policy))
        for batch, answers in zip(todo[start:], ranks.all_gather(own)):
            drawn, ended = drawn + sum(len(a.ids) for a in answers), ended + sum(a.finished for a in answers)
            total += len(answers)
            elapsed = bar.format_dict["elapsed"] or 1e-9
            bar.set_postfix_str(f"{drawn / elapsed:.0f} tokens/s, {ended / total:.0%} finished")
            complete += len(batch) * params.answers
            bar.n = complete
            bar.refresh()
            yield answers
    bar.close()


def main():
    parser = cli.flags("Draw answers from a policy and print them.")
    parser.add_argument("--model", default="smollm2", help="hub id, folder, .gguf file, or smollm2")
    parser.add_argument("--adapter", help="folder of a LoRA adapter")
    parser.add_argument("--data", default="shop", choices=sorted(data.LAYOUT), help="data set")
    parser.add_argument("--data-dir", help="its folder (default data/NAME)")
    parser.add_argument("--split", default="dev", choices=("train", "dev"), help="split to take questions from")
    parser.add_argument("--limit", type=int, default=4, help="number of questions")
    parser.add_argument("--answers", type=int, default=4, help="answers to each question (M)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: the most likely token")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws and of the choice of questions")
    args = parser.parse_args()
    if args.answers < 1 or args.limit < 0 or args.seed < 0 or not 0 <= args.temperature < math.inf:
        parser.error("--answers must be at least 1; --limit, --seed and --temperature must not be negative")
    questions, _ = data.load(args.data, args.data_dir or f"data/{args.data}", args.split)
    if args.adapter:
        lora.read(args.adapter)
    policy = load_policy(args.model)
    if args.adapter:
        lora.load(policy.model, args.adapter)
    chosen = data.subset(questions, args.limit, args.seed)
    params = SamplingParams(args.answers, data.MAX_NEW[args.data], args.temperature, seed=args.seed)
    by_index = {q.index: q for q in chosen}
    for batch in sample(policy, chosen, params, progress="sampling"):
        for a in batch:
            question = by_index[a.question]
            code = data.extract_code(a.text, question.language)
            print(f"[{a.question}.{a.sample}] {question.text}\n    {code!r}  log π {a.logp:.1f}")


if __name__ == "__main__":
    cli.run(main)
