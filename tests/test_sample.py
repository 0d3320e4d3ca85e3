"""Draws follow the model's own distribution, and what is drawn depends on the position alone."""

import io
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import plain_logps
from tqdm import tqdm

import data
import decode
import prompts
import sample as sampling
from batches import sampling_batches
from cli import UserError
from decode import Decoding, invert, pick
from policy import load_policy, locate, settle_device
from sample import SamplingParams, sample
from tree import Tree, answer_logps


@pytest.fixture(scope="module")
def questions(spider):
    return data.load("spider", spider, "dev")[0]


def ids_of(policy, questions):
    return [prompts.prompt_ids(q, policy.tokenizer) for q in questions]


def drawn(policy, questions, **settings):
    """{(question, sample): Answer}."""
    params = SamplingParams(**settings)
    return {(a.question, a.sample): a for batch in sample(policy, questions, params) for a in batch}


def tokens(answers):
    return {key: a.ids for key, a in answers.items()}


def until_end(ids, ends):
    stop = next((n for n, token in enumerate(ids, 1) if token in ends), len(ids))
    return ids[:stop]


# ---- the distribution --------------------------------------------------------------------------------------


def chi_square(counts, probabilities, draws):
    """(statistic, degrees of freedom); outcomes expected fewer than 8 times are taken together."""
    rare_count, rare_p, statistic, bins = draws, 1.0, 0.0, 0
    for outcome, p in probabilities.items():
        if p * draws >= 8:
            statistic += (counts[outcome] - p * draws) ** 2 / (p * draws)
            rare_count, rare_p, bins = rare_count - counts[outcome], rare_p - p, bins + 1
    if rare_p * draws >= 8:
        statistic, bins = statistic + (rare_count - rare_p * draws) ** 2 / (rare_p * draws), bins + 1
    return statistic, bins - 1


def assert_fits(counts, probabilities, draws):
    statistic, freedom = chi_square(counts, probabilities, draws)
    assert freedom >= 5
    # Wilson–Hilferty: (χ²/k)^⅓ is close to normal; 4 standard deviations
    assert (statistic / freedom) ** (1 / 3) < 1 - 2 / (9 * freedom) + 4 * math.sqrt(2 / (9 * freedom))


def total(table, key):
    """The values of `table` summed over the entries with one key."""
    sums = Counter()
    for entry, value in table.items():
        sums[key(entry)] += value
    return sums


def exact_pairs(reference, prompt, temperature=1.0, top_p=1.0):
    """{(first, second): probability} by plain forward passes over the whole vocabulary, in float64."""

    def distribution(logits):
        p = torch.softmax(logits.double() / temperature, -1)
        ordered, index = p.sort(-1, descending=True)
        before = torch.cat([torch.zeros_like(ordered[..., :1]), ordered.cumsum(-1)[..., :-1]], -1)
        kept = torch.where(before < top_p, ordered, torch.zeros_like(ordered))
        kept = kept / kept.sum(-1, keepdim=True)
        return torch.zeros_like(p).scatter(-1, index, kept)

    size = reference.config.vocab_size
    with torch.no_grad():
        first = distribution(reference(input_ids=torch.tensor([prompt])).logits[0, -1])
        rows = torch.tensor([[*prompt, token] for token in range(size)])
        second = torch.cat([distribution(reference(input_ids=part).logits[:, -1]) for part in rows.split(64)])
    return {(a, b): (first[a] * second[a, b]).item() for a in range(size) for b in range(size)}


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_first_and_second_tokens_follow_the_exact_softmax(policy, reference, questions, temperature, top_p):
    draws, prompt = 6000, prompts.prompt_ids(questions[0], policy.tokenizer)
    policy.end_ids = ()
    answers = drawn(policy, questions[:1], answers=draws, max_new=2, temperature=temperature, top_p=top_p)
    exact = exact_pairs(reference, prompt, temperature, top_p)
    pairs = Counter(a.ids for a in answers.values())
    cut = {ids[0] for ids in pairs if len(ids) == 1}  # the code ended at the first token, `;`
    assert_fits(total(pairs, lambda ids: ids[0]), total(exact, lambda ids: ids[0]), draws)
    assert_fits(
        *(total(table, lambda ids: ids[:1] if ids[0] in cut else ids) for table in (pairs, exact)), draws
    )
    outside = [ids for ids in pairs if len(ids) == 2 and exact[ids] == 0]
    assert not outside, "a token outside the top-p set was drawn"
    statistic, freedom = chi_square(pairs, exact_pairs(reference, prompt, 1.3 * temperature, top_p), draws)
    assert statistic > 2 * freedom, "the test would not notice another temperature"


def test_pick_keeps_the_smallest_set_that_reaches_top_p():
    logits = torch.tensor([0.125, 0.5, 0.25, 0.125]).log()
    # 0.5 alone reaches 0.5; 0.6 needs 0.25 as well; 0.75 is reached by these two; 0.76 needs one of the 0.125
    for top_p, allowed in ((0.4, {1}), (0.5, {1}), (0.6, {1, 2}), (0.74, {1, 2}), (0.8, {0, 1, 2})):
        u = torch.linspace(0, 1 - 1e-9, 400, dtype=torch.float64)
        found = pick(logits.expand(400, -1), u, 1.0, top_p)[0].tolist()
        assert set(found) == allowed or (top_p == 0.8 and set(found) == {1, 2, 3}), top_p


def test_pick_reports_the_logp_at_temperature_one():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    for temperature, top_p in ((0, 1.0), (0.3, 1.0), (1.0, 0.5)):
        token, logp = pick(logits, torch.tensor([0.2], dtype=torch.float64), temperature, top_p)
        assert logp.item() == pytest.approx(torch.log_softmax(logits, -1)[0, token].item(), abs=1e-6)


def test_pick_at_zero_temperature_takes_the_most_likely():
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    assert pick(logits, torch.rand(20), 0, 1.0)[0].equal(logits.argmax(-1))


@pytest.mark.parametrize("block", [2, 3, 256])
def test_invert_is_exact_on_weights_made_by_hand(block):
    weights = torch.tensor([0.0, 1.0, 0.0, 0.0, 2.0, 1.0, 0.0])  # cumulative 0 1 1 1 3 4 4; all sums exact
    below_one = 1 - 2**-53
    cases = {0.0: 1, 0.25 - 2**-54: 1, 0.25: 4, 0.5: 4, 0.75 - 2**-53: 4, 0.75: 5, below_one: 5}
    u = torch.tensor(list(cases), dtype=torch.float64)
    assert invert(weights.expand(len(u), -1), u, block).tolist() == list(cases.values())


def test_invert_agrees_with_the_plain_cumulative_sum():
    generator = torch.Generator().manual_seed(0)
    # integers: sums are exact in any order
    weights = torch.randint(0, 4, (500, 700), generator=generator).float()
    u = torch.rand(500, generator=generator, dtype=torch.float64)
    total = weights.double().cumsum(-1)
    expected = (total <= (u * total[:, -1])[:, None]).sum(-1)
    assert invert(weights, u).equal(expected)


def test_invert_never_returns_a_token_without_weight():
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(2000, 300, generator=generator) ** 20  # sums that round
    weights[torch.rand(2000, 300, generator=generator) < 0.9] = 0
    weights[:, 7] += 1e-30
    for u in (0.0, 0.5, 1 - 2**-53):
        found = invert(weights, torch.full((2000,), u, dtype=torch.float64))
        assert (weights.gather(1, found[:, None]) > 0).all()


def test_uniforms_depend_on_every_part_of_the_position_and_on_nothing_else():
    base = sampling.uniforms(1, 2, 3, 4, 8)
    assert np.array_equal(base, sampling.uniforms(1, 2, 3, 4, 8))
    # a longer limit draws the same beginning
    assert np.array_equal(base[:5], sampling.uniforms(1, 2, 3, 4, 5))
    others = [
        sampling.uniforms(*place, 8) for place in ((0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0))
    ]
    assert len({tuple(x) for x in [base, *others]}) == 5
    assert ((base >= 0) & (base < 1)).all()


# ---- decoding ----------------------------------------------------------------------------------------------


def test_greedy_is_transformers_generate_token_for_token(policy, reference, questions):
    mine = drawn(policy, questions, answers=1, max_new=24, temperature=0)
    compared = 0
    for q, prompt in zip(questions, ids_of(policy, questions)):
        theirs = reference.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False,
            max_new_tokens=24, pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
        ids = list(mine[q.index, 0].ids)
        assert ids == theirs[: len(ids)]
        assert len(ids) == len(theirs) or prompts.code_ended(policy.tokenizer.decode(ids))
        compared += len(ids)
    assert compared > 60


def test_logp_is_that_of_the_tree_and_of_plain_sequences(policy, reference, questions):
    answers = drawn(policy, questions, answers=3, max_new=10, temperature=1.4)
    prompts = ids_of(policy, questions)
    nested = [[list(answers[q.index, m].ids) for m in range(3)] for q in questions]
    with torch.no_grad():
        tree = answer_logps(policy.model, Tree(prompts, nested)).tolist()
        plain = [plain_logps(reference, p, a).sum().item() for p, of in zip(prompts, nested) for a in of]
    mine = [answers[q.index, m].logp for q in questions for m in range(3)]
    assert mine == pytest.approx(tree, abs=1e-3) and mine == pytest.approx(plain, abs=1e-3)


def test_questions_drawn_together_alone_or_in_another_order_give_the_same_answers(policy, questions):
    settings = {"answers": 4, "max_new": 12, "seed": 3}
    together = drawn(policy, questions, **settings)
    alone = {k: a for q in questions for k, a in drawn(policy, [q], **settings).items()}
    split = drawn(policy, questions[::-1], batch_tokens=400, **settings)
    assert len(together) == 24
    assert tokens(together) == tokens(alone) == tokens(split)
    assert len(set(tokens(together).values())) > 12


def test_more_answers_leave_the_first_ones_as_they_were(policy, questions):
    few, many = (drawn(policy, questions[:2], answers=m, max_new=8) for m in (2, 5))
    assert tokens(few).items() <= tokens(many).items()


def test_seed_and_iteration_move_the_draws(policy, questions):
    first = tokens(drawn(policy, questions[:1], answers=4, max_new=8, seed=0, iteration=1))
    assert first != tokens(drawn(policy, questions[:1], answers=4, max_new=8, seed=1, iteration=1))
    assert first != tokens(drawn(policy, questions[:1], answers=4, max_new=8, seed=0, iteration=2))


def test_answers_that_leave_the_batch_do_not_change_the_others(policy, questions, monkeypatch):
    settings = {"answers": 5, "max_new": 20, "seed": 2}
    policy.end_ids = ()
    endless = drawn(policy, questions, **settings)
    policy.end_ids = tuple(range(0, 352, 9))  # about every ninth token ends: answers leave all the time
    kept, keep = [], Decoding.keep
    monkeypatch.setattr(Decoding, "keep", lambda self, rows: (kept.append(len(rows)), keep(self, rows))[1])
    ending = drawn(policy, questions, **settings)
    assert len(kept) >= 4 and kept == sorted(kept, reverse=True)
    assert tokens(ending) == {key: until_end(a.ids, policy.end_ids) for key, a in endless.items()}
    assert len({len(a.ids) for a in ending.values()}) > 5


@pytest.mark.parametrize("ends", [(), tuple(range(0, 352, 9))])
def test_steps_of_fixed_shapes_draw_the_same(policy, questions, ends, monkeypatch):
    policy.end_ids = ends
    growing = drawn(policy, questions, answers=5, max_new=20, seed=2)
    asked = []
    monkeypatch.setattr(decode, "fixed_shapes", lambda device: asked.append(device) or True)  # as on a GPU
    assert tokens(drawn(policy, questions, answers=5, max_new=20, seed=2)) == tokens(growing) and asked


def test_finished_tells_an_end_token_from_the_length_limit(policy, questions):
    policy.end_ids = tuple(range(0, 352, 9))
    answers = drawn(policy, questions, answers=8, max_new=6)
    for a in answers.values():
        assert 1 <= len(a.ids) <= 6
        assert not any(token in policy.end_ids for token in a.ids[:-1])
        ended = a.ids[-1] in policy.end_ids or prompts.code_ended(policy.tokenizer.decode(a.ids))
        assert a.finished == ended and (ended or len(a.ids) == 6)
    assert {a.finished for a in answers.values()} == {True, False}


def test_the_end_token_is_kept_in_the_ids_and_left_out_of_the_text(policy, questions):
    end = policy.tokenizer.eos_token_id
    assert policy.end_ids == (end,)
    found = [
        a for a in drawn(policy, questions, answers=60, max_new=25, temperature=2.0).values() if end in a.ids
    ]
    assert len(found) >= 5
    for a in found:
        assert a.ids[-1] == end and a.finished and "<|endoftext|>" not in a.text


def test_only_the_end_token_is_left_out_of_the_text(policy):
    """Special tokens inside an answer are judged with it, since it is trained on with them."""
    end, select = policy.tokenizer.eos_token_id, policy.tokenizer("SELECT 1")["input_ids"]
    policy.tokenizer.add_special_tokens({"additional_special_tokens": ["<|junk|>"]})
    junk = policy.tokenizer.convert_tokens_to_ids("<|junk|>")
    assert sampling.text_of(policy, [*select, end]) == sampling.text_of(policy, select) == "SELECT 1"
    assert sampling.text_of(policy, [junk, *select, junk, end]) == "<|junk|>SELECT 1<|junk|>"
    policy.end_ids = (junk,)  # an end token that the tokenizer does not name
    assert sampling.text_of(policy, [*select, end, junk]) == f"SELECT 1{policy.tokenizer.decode([end])}"


def test_ended_code_stops_and_keeps_the_sampled_ids(policy, questions, monkeypatch):
    settings = {"answers": 60, "max_new": 25, "temperature": 2.0}
    policy.end_ids = ()
    monkeypatch.setattr("sample.code_ended", lambda text, language: False)
    free = drawn(policy, questions, **settings)
    assert {(len(a.ids), a.finished) for a in free.values()} == {(25, False)}
    monkeypatch.setattr("sample.code_ended", lambda text, language: ";" in text)
    stopped = drawn(policy, questions, **settings)
    assert sum(a.finished for a in stopped.values()) > 5
    for key, longer in free.items():
        texts = [policy.tokenizer.decode(longer.ids[:n]) for n in range(1, 26)]
        length = next((n for n, text in enumerate(texts, 1) if ";" in text), 25)
        assert stopped[key].ids == longer.ids[:length] and stopped[key].text == texts[length - 1]
        assert stopped[key].finished == (";" in stopped[key].text)


def test_code_is_asked_whether_it_ended_only_after_a_token_that_can_end_it(policy, questions, monkeypatch):
    monkeypatch.setattr("sample.code_ended", lambda text, language: language == "sql")
    policy.end_ids = ()
    answers = drawn(policy, questions, answers=20, max_new=20, temperature=2.0)
    assert all(a.ids == until_end(a.ids, policy.stop_tokens) for a in answers.values())
    assert all(a.finished == (a.ids[-1] in policy.stop_tokens) for a in answers.values())


def test_answers_come_ordered_by_question_and_sample_and_skip_leaves_out_whole_batches(policy, questions):
    params = SamplingParams(answers=3, max_new=4, batch_tokens=150)
    every = list(sample(policy, questions, params))
    assert len(every) > 2
    for batch in every:
        assert [a.sample for a in batch] == [0, 1, 2] * (len(batch) // 3)
    assert list(sample(policy, questions, params, skip=2)) == every[2:]


def test_the_bar_goes_forward_where_a_batch_does_not_fit_the_memory(policy, questions, monkeypatch):
    """The batch begins anew in halves, and its answers count once."""
    whole, shown, bars = sampling.draw_batch, [], []

    def draw_batch(policy, asked, prompts, params, progress):
        def show(*state):
            progress(*state)
            shown.append(bars[0].n)

        if len(asked) > 1:
            show(1, 10, 7)  # it gets so far
            raise torch.OutOfMemoryError
        return whole(policy, asked, prompts, params, show)

    def bar(**options):
        bars.append(tqdm(**options | {"disable": False}, file=io.StringIO()))
        return bars[0]

    monkeypatch.setattr(sampling, "draw_batch", draw_batch)
    monkeypatch.setattr(sampling.ranks, "bar", bar)
    params = SamplingParams(answers=4, max_new=6)
    for count, batch in enumerate(sample(policy, questions[:3], params, progress="sampling"), 1):
        assert len(batch) == 12 and count == 1
    # the third question, after two of 4 answers each
    assert shown == sorted(shown) and shown[0] == 1 and shown[-1] >= 8
    assert bars[0].n == 12


def test_batches_hold_every_question_once_within_the_limit():
    prompts = [[n % 3] * (10 + n) for n in range(20)]
    found = sampling_batches(prompts, answers=4, max_new=5, batch_tokens=100)
    assert sorted(i for batch in found for i in batch) == list(range(20))
    for batch in found:  # tokens held in the cache: a shared prefix once
        tree = Tree([prompts[i] for i in batch])
        assert tree.ids.shape[1] + 20 * len(batch) <= 100
    # too large: alone
    assert sampling_batches([[1] * 500, [2]], answers=1, max_new=1, batch_tokens=50) == [[1], [0]]
    # like lengths meet, so that little is padded; within them, one schema's questions
    assert sampling_batches([[5] * 300, [7] * 20, [6] * 300, [5] * 299 + [9]], 1, 1, 1000) == [[1, 0, 3, 2]]


def test_every_token_that_can_end_code_is_a_stop_token(policy):
    # what an end is made of: `;`, a fence, a blank line, </code>, END SOLUTION
    for i in range(len(policy.tokenizer)):
        if any(c in policy.tokenizer.decode([i]) for c in ";`\n>N"):
            assert i in policy.stop_tokens
    assert len(policy.stop_tokens) < 40


# ---- loading -----------------------------------------------------------------------------------------------


def test_a_tokenizer_without_an_end_token_is_refused(folder, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="end token"):
        load_policy(str(tmp_path))


def test_a_model_that_adds_a_bias_to_its_attention_is_refused(tokenizer, tmp_path):
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=352, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.5)
    tokenizer.save_pretrained(tmp_path)
    for seed in range(5):  # whatever its weights: in bfloat16 the scores of some are near enough
        torch.manual_seed(seed)
        BloomForCausalLM(config).save_pretrained(tmp_path)
        with pytest.raises(UserError, match="tree can serve"):
            load_policy(str(tmp_path), "bfloat16", "cpu")


@pytest.mark.parametrize(
    "device", ["hpu", "privateuseone", "meta", "xla", "mtia", "fpga", "nothing", "", "cuda:99", "cpu:-1"]
)
def test_a_device_that_cannot_be_used_is_a_user_error(device):
    with pytest.raises(UserError) as error:
        settle_device(device, "auto")
    assert str(error.value).startswith(f"device {device} cannot be used: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nothing", "./nothing", "a/b/c", "/nothing.gguf"])
def test_a_name_that_is_no_model_is_a_user_error(name):
    with pytest.raises(UserError):
        locate(name)


def test_a_hub_that_cannot_be_reached_is_a_user_error_that_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match="neither in the local cache nor reachable.*hf download meta-llama/Meta-Llama-3-8B"
    ):
        locate("meta-llama/Meta-Llama-3-8B")


def test_a_folder_without_a_model_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="config.json"):
        locate(str(tmp_path))


def test_the_policy_is_frozen_float32_and_without_dropout(policy):
    assert policy.dtype == torch.float32 and policy.max_positions == 512
    assert not policy.model.training and not any(p.requires_grad for p in policy.model.parameters())


def test_a_chat_template_is_used_where_there_is_one(policy, questions):
    plain = policy.tokenizer.decode(prompts.prompt_ids(questions[0], policy.tokenizer))
    assert plain.endswith("\nSQL:\n")
    policy.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<reply>{% endif %}"
    )
    question = replace(questions[0], evidence="old means more than 5 years")
    chat = policy.tokenizer.decode(prompts.prompt_ids(question, policy.tokenizer))
    assert chat == f"<user>{prompts.prompt(question)}<reply>"
    assert "Hint: old means more than 5 years\nQuestion: " in chat
