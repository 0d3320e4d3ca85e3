"""The packed tree gives what single sequences give in transformers' own attention: values and gradients."""

import math
import random
from types import SimpleNamespace

import pytest
import torch
from conftest import plain_logps

import lora
from attention import TreeAttention, attention
from decode import Decoding
from tree import MIN_SHARED, TokenLogps, Tree, answer_logps, share_prefixes

RNG = random.Random(0)


def draw(length):
    return [RNG.randrange(300) for _ in range(length)]


SCHEMA, OTHER = draw(40), draw(30)
PROMPTS = [SCHEMA + draw(9), OTHER + draw(3), SCHEMA + draw(1), draw(5), SCHEMA + draw(14), OTHER + draw(8)]
TWIN = draw(25)
CASES = {
    "one prompt, one answer": ([draw(7)], [[draw(5)]]),
    "one prompt of one token, answers of one token": ([draw(1)], [[draw(1), draw(1)]]),
    "many answers, unequal lengths": ([draw(20)], [[draw(n) for n in (1, 9, 3, 17, 1, 6)]]),
    "questions on two schemas and one alone": (
        PROMPTS,
        [[draw(n) for n in (4, 1, 11)[: k % 4]] for k in range(1, 7)],
    ),
    "identical prompts": ([TWIN, TWIN, TWIN], [[draw(3)], [draw(8), draw(2)], [draw(1)]]),
    "a prompt that begins another": (
        [TWIN, TWIN + draw(6), TWIN[:20]],
        [[draw(3)], [draw(4)], [draw(5), draw(2)]],
    ),
    "a question without answers among others": (PROMPTS[:3], [[draw(4)], [], [draw(2), draw(6)]]),
}


@pytest.mark.parametrize("case", CASES)
def test_logps_are_those_of_one_by_one_sequences(case, policy, reference):
    prompts, answers = CASES[case]
    with torch.no_grad():
        packed = answer_logps(policy.model, Tree(prompts, answers))
        alone = [plain_logps(reference, p, a).sum() for p, of in zip(prompts, answers) for a in of]
    torch.testing.assert_close(packed, torch.stack(alone), atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_lora_gradients_are_those_of_one_by_one_sequences(case, policy, reference):
    prompts, answers = CASES[case]
    for model in (policy.model, reference):
        generator = torch.Generator().manual_seed(5)
        for p in lora.inject(model, rank=4, alpha=8, seed=3):
            p.data.add_(0.05 * torch.randn(p.shape, generator=generator))  # with B = 0, A has no gradient
    weights = torch.linspace(-1, 2, sum(map(len, answers)))
    (weights * answer_logps(policy.model, Tree(prompts, answers))).sum().backward()
    alone = [plain_logps(reference, p, a).sum() for p, of in zip(prompts, answers) for a in of]
    (weights * torch.stack(alone)).sum().backward()
    largest = max(p.grad.norm() for p in lora.parameters(reference))
    for (name, mine), theirs in zip(lora.layers(policy.model).items(), lora.layers(reference).values()):
        for key in ("lora_A", "lora_B"):
            got, expected = getattr(mine, key).grad, getattr(theirs, key).grad
            # a sequence of one token attends to itself alone: its query's gradient is a true 0
            assert (got - expected).norm() < 1e-4 * expected.norm() + 1e-6 * largest, f"{name}.{key}"


def test_tokens_of_an_answer_are_blind_to_the_other_answers(policy):
    prompt, mine = draw(20), draw(6)
    with torch.no_grad():
        first = answer_logps(policy.model, Tree([prompt], [[mine, draw(4)]]))[0]
        second = answer_logps(policy.model, Tree([prompt], [[mine, draw(9)]]))[0]
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_without_answers_the_logits_are_those_after_each_prompt(policy, reference):
    tree = Tree(PROMPTS)
    with torch.no_grad():
        logits = policy.model(
            input_ids=tree.ids,
            position_ids=tree.positions,
            layout=tree,
            logits_to_keep=tree.keep,
            use_cache=False,
        ).logits[0]
        expected = torch.stack([reference(input_ids=torch.tensor([p])).logits[0, -1] for p in PROMPTS])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_a_shared_schema_is_laid_out_once():
    tree = Tree(PROMPTS)
    assert tree.ids.shape[1] == sum(map(len, PROMPTS)) - 2 * len(SCHEMA) - len(OTHER)
    for prompt, path in zip(PROMPTS, tree.paths):
        assert tree.ids[0, path].tolist() == prompt
        assert tree.positions[0, path].tolist() == list(range(len(prompt)))


def test_answers_begin_where_their_prompt_ends():
    prompts, answers = [[1, 2, 3]], [[[4, 5], [6]]]
    tree = Tree(prompts, answers)
    assert tree.ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert tree.positions.tolist() == [[0, 1, 2, 3, 4, 3]]
    # token 4 and token 6 are predicted by the prompt's last token, token 5 by token 4
    assert tree.keep[tree.source].tolist() == [2, 2, 3]
    assert tree.target.tolist() == [4, 6, 5] and tree.owner.tolist() == [0, 1, 0]


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("biased", [False, True])
def test_chunked_projection_is_log_softmax_with_its_gradient(chunk, biased):
    generator = torch.Generator().manual_seed(chunk)
    hidden = torch.randn(7, 5, generator=generator, requires_grad=True)
    weight, bias = torch.randn(11, 5, generator=generator), torch.randn(11)
    bias = bias if biased else None
    # 1, 4 and 5 predict nothing
    source, target = torch.tensor([0, 0, 0, 2, 3, 6, 6]), torch.tensor([1, 4, 4, 10, 0, 3, 2])
    scale = torch.randn(7, generator=generator)
    logps = TokenLogps.apply(hidden, weight, bias, source, target, chunk)
    expected = torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1)[source, target]
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=0)
    (mine,) = torch.autograd.grad((logps * scale).sum(), hidden)
    (theirs,) = torch.autograd.grad((expected * scale).sum(), hidden)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_share_prefixes_of_no_prompt_and_of_one():
    assert share_prefixes([]) == []
    assert share_prefixes([[7] * 50]) == [(0, [0])]


def test_identical_prompts_keep_one_token_each():
    assert share_prefixes([TWIN, TWIN]) == [(len(TWIN) - 1, [0, 1])]


def test_a_prompt_that_begins_another_keeps_its_last_token():
    assert share_prefixes([TWIN + [1, 2], TWIN]) == [(len(TWIN) - 1, [1, 0])]


def test_a_common_prefix_below_the_minimum_is_not_shared():
    head = list(range(MIN_SHARED))
    assert share_prefixes([head[:-1] + [900, 1], head[:-1] + [901, 1]]) == [(0, [0]), (0, [1])]
    assert share_prefixes([head + [900, 1], head + [901, 1]]) == [(MIN_SHARED, [0, 1])]


def test_prompts_that_share_less_than_half_stand_alone():
    head = list(range(20))
    assert share_prefixes([head + [30] * 21, head + [31] * 21]) == [(0, [0]), (0, [1])]
    assert share_prefixes([head + [30] * 20, head + [31] * 21]) == [(20, [0, 1])]


def test_every_group_shares_its_prefix_and_every_prompt_is_in_one_group():
    rng = random.Random(3)
    for _ in range(200):
        stems = [[rng.randrange(4) for _ in range(rng.randrange(40))] for _ in range(3)]
        prompts = [
            rng.choice(stems) + [rng.randrange(4) for _ in range(rng.randrange(1, 20))] for _ in range(9)
        ]
        groups = share_prefixes(prompts)
        assert sorted(i for _, members in groups for i in members) == list(range(9))
        for prefix, members in groups:
            assert len({tuple(prompts[i][:prefix]) for i in members}) == 1
            assert all(len(prompts[i]) > prefix for i in members)
            assert prefix == 0 or len(members) > 1


def test_a_model_in_tree_attention_refuses_a_call_without_layout(policy):
    with pytest.raises(RuntimeError, match="layout"):
        policy.model(input_ids=torch.tensor([[1, 2]]))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_in_parts_is_plain_attention_over_everything_above(kv_heads):
    generator = torch.Generator().manual_seed(0)
    # two share a prefix, one stands alone
    prompts = [[*range(40), 50, 51, 52], [*range(40), 60], [7, 8, 9, 10]]
    tree = Tree(prompts, [[[1, 2, 3], [4]], [[5, 6]], [[1], [2, 3, 4, 5]]])
    count = tree.ids.shape[1]
    query, key, value = (torch.randn(count, h, 8, generator=generator).requires_grad_()
                         for h in (4, kv_heads, kv_heads))  # fmt: skip
    sees = torch.zeros(count, count, dtype=torch.bool)
    for s in tree.siblings:
        for segment in torch.arange(count)[s.own].unflatten(0, (s.count, -1)):
            segment = segment.unique()
            sees[segment[:, None], s.above] = True
            sees[segment[:, None], segment] = segment[:, None] >= segment
    repeat = 4 // kv_heads
    scores = torch.einsum("nhd,mhd->hnm", query, key.repeat_interleave(repeat, 1)) / 8**0.5
    plain = torch.einsum(
        "hnm,mhd->nhd", scores.masked_fill(~sees, -math.inf).softmax(-1), value.repeat_interleave(repeat, 1)
    )
    weight = torch.randn(plain.shape, generator=generator)
    expected = torch.autograd.grad((plain * weight).sum(), (query, key, value))
    parts = TreeAttention.apply(query, key, value, tree.siblings, 8**-0.5)
    torch.testing.assert_close(parts, plain, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(torch.autograd.grad((parts * weight).sum(), (query, key, value)), expected):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_queries_and_keys_that_are_normalised_in_float32_are_attended_to_in_the_values_type():
    tree = Tree(PROMPTS[:3], keep_cache=True)
    count, generator = tree.ids.shape[1], torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, h, count, 12, generator=generator) for h in (4, 2, 2))
    value = value.bfloat16()
    module, out = SimpleNamespace(layer_idx=0), []
    for q, k, layout in (
        (query, key, tree),
        (query.bfloat16(), key.bfloat16(), Tree(PROMPTS[:3], keep_cache=True)),
    ):
        with torch.no_grad():
            out.append(attention(module, q, k, value, layout=layout)[0])
    assert torch.equal(*out) and out[0].dtype == torch.bfloat16 and out[0].shape == (1, count, 4, 12)
    decoding = Decoding(tree, 2, 4)  # what it takes from the cache has the values' type as well
    rows = [torch.randn(1, h, 6, 12, generator=generator) for h in (4, 2)]
    assert attention(module, *rows, value[:, :, :6], layout=decoding)[0].dtype == torch.bfloat16
