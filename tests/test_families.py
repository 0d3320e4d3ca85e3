"""Every family that the README lists, tiny, with random weights: tree scores, sampling, LoRA, a step."""

from pathlib import Path

import pytest
import torch
from conftest import plain_logps
from transformers import AutoConfig, AutoModelForCausalLM

import data
import lora
from cli import UserError
from policy import load_policy
from sample import SamplingParams, draw_batch
from tree import Tree, answer_logps

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.25,
    "tie_word_embeddings": False,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.25}
# torch's function, not its module
DROPOUT = {"residual_dropout": 0.5, "embedding_dropout": 0.5, "attention_dropout": 0.5}
# family: (model_type, settings, linear layers of a block)
FAMILIES = {
    "Llama, CodeLlama": ("llama", SMALL, 7),
    "Mistral": ("mistral", SMALL | {"sliding_window": None}, 7),
    "Gemma": ("gemma", SMALL | {"head_dim": 8, "tie_word_embeddings": True}, 7),
    "Qwen2": ("qwen2", SMALL, 7),
    "Qwen3": ("qwen3", SMALL | {"head_dim": 8}, 7),
    "Phi-3": ("phi3", SMALL | {"pad_token_id": 0}, 4),
    "StarCoder2": ("starcoder2", SMALL | {"sliding_window": None, "use_bias": True} | DROPOUT, 6),
    "StarCoder (GPTBigCode)": ("gpt_bigcode", GPT2 | {"multi_query": True}, 4),
    "GPT-2": ("gpt2", GPT2, 4),
    "GPT-NeoX": ("gpt_neox", {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}, 4),
}
OTHERS = {"heads of 12": ("llama", SMALL | {"head_dim": 12}, 7)}  # a GPU's kernels take multiples of 8 alone
REFUSED = {
    "BLOOM (ALiBi)": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "Gemma 2 (soft-capped scores)": ("gemma2", SMALL | {"head_dim": 8}),
    "MPT (ALiBi)": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
}


def save(model_type, settings, tokenizer, folder):
    torch.manual_seed(0)
    end = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings, **end)).float()
    for p in model.parameters():  # wide enough that the next token depends on the context, in every family
        if p.ndim > 1:
            torch.nn.init.normal_(p, 0, 0.25)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=[*FAMILIES, *OTHERS], ids=str)
def family(request, tokenizer, tmp_path_factory):
    model_type, settings, layers = (FAMILIES | OTHERS)[request.param]
    return save(model_type, settings, tokenizer, tmp_path_factory.mktemp(model_type)), layers


def test_scores_samples_and_trains(family, tokenizer):
    folder, layers = family
    policy = load_policy(folder, "float32", "cpu")
    plain = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(3, 300, (n,), generator=generator).tolist()  # noqa: E731
    schema = draw(20)
    prompts = [schema + draw(5), schema + draw(9), draw(12)]
    answers = [[draw(4), draw(7)], [draw(3)], [draw(1), draw(6)]]

    def tree_logps():
        return answer_logps(policy.model, Tree(prompts, answers))

    alone = torch.stack([plain_logps(plain, p, a).sum() for p, some in zip(prompts, answers) for a in some])
    with torch.no_grad():
        torch.testing.assert_close(tree_logps(), alone, rtol=1e-4, atol=1e-3)

    questions = [data.Question(i, "", "", "", "") for i in range(3)]
    policy.end_ids, policy.stop_tokens = (), frozenset()
    drawn = draw_batch(policy, questions, prompts, SamplingParams(1, 8, temperature=0))
    for answer, prompt in zip(drawn, prompts):
        expected = plain.generate(
            torch.tensor([prompt]), max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0
        )[0, len(prompt) :]
        assert list(answer.ids) == expected.tolist()

    policy.model.train()  # as checkpointing needs it: no dropout all the same
    parameters = lora.inject(policy.model)
    assert len(lora.layers(policy.model)) == 2 * layers  # all of attention and MLP, not the output projection
    before = tree_logps()
    torch.testing.assert_close(before, alone, rtol=1e-4, atol=1e-3)  # the adapter starts as the identity
    for gradient, p in zip(torch.autograd.grad(before.sum(), parameters), parameters):
        p.data += 1e-3 * gradient
    step = torch.autograd.grad(tree_logps().sum(), parameters)
    assert all(g.abs().sum() > 0 for g in step)  # from here A has a gradient as well
    assert tree_logps().sum() > before.sum()


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_tree_cannot_serve_is_refused_in_one_sentence(name, tokenizer, tmp_path):
    folder = save(*REFUSED[name], tokenizer, tmp_path)
    with pytest.raises(UserError, match="tree") as error:
        load_policy(folder, "float32", "cpu")
    assert "\n" not in str(error.value)


def test_the_families_are_those_of_the_readme():
    text = (Path(__file__).resolve().parent.parent / "README.md").read_text()
    for name in FAMILIES:
        assert all(part in text for part in name.split(", ")), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_demo_s_model_loads_in_both_precisions(precision):
    policy = load_policy("smollm2", precision, "cpu")
    assert policy.dtype == getattr(torch, precision) and policy.model.config.num_hidden_layers == 30
