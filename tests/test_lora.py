"""LoRA against W + (alpha / r) B A written out, and the promises of its files."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import lora
from cli import UserError

IDS = torch.tensor([[5, 9, 200, 31, 7]])


def fresh(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def shake(model, seed=0):
    """Give A and B values as after training."""
    generator = torch.Generator().manual_seed(seed)
    for p in lora.parameters(model):
        p.data.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def adapter(model):
    return {key: value.clone() for key, value in lora.state(model).items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture
def saved(folder, tmp_path):
    model = fresh(folder)
    lora.inject(model, rank=3, alpha=12, seed=1)
    lora.save(shake(model), tmp_path / "adapter", "some/model")
    return model, tmp_path / "adapter"


def test_the_start_is_the_identity(folder):
    model, expected = fresh(folder), logits(fresh(folder))
    lora.inject(model)
    assert torch.equal(logits(model), expected)


def test_every_linear_layer_but_the_head_gets_lora(folder):
    plain, model = fresh(folder), fresh(folder)
    lora.inject(model)
    linear = {n for n, m in plain.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    assert set(lora.layers(model)) == linear - {"lm_head"}
    # two layers of: GPT-2 c_attn, c_proj, c_fc, c_proj; Llama q, k, v, o, gate, up, down
    assert len(lora.layers(model)) == 2 * (4 if "gpt2" in folder else 7)


def test_only_a_and_b_are_trained(folder):
    model = fresh(folder)
    returned = lora.inject(model)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all(n.endswith((".lora_A", ".lora_B")) for n in trained)
    assert {id(p) for p in returned} == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("transposed", [False, True])
def test_forward_is_w_plus_scaled_b_a(transposed):
    torch.manual_seed(0)
    base = Conv1D(4, 6) if transposed else nn.Linear(6, 4)
    layer = lora.LoRALinear(base, rank=2, alpha=3, generator=torch.Generator().manual_seed(0))
    layer.lora_B.data.normal_()
    x, weight = torch.randn(5, 6), base.weight.T if transposed else base.weight  # (out, in)
    update = 1.5 * layer.lora_B @ layer.lora_A  # alpha / r = 1.5
    torch.testing.assert_close(layer(x), x @ (weight + update).T + base.bias)
    torch.testing.assert_close(layer.delta(), update.T if transposed else update)


def test_the_start_depends_on_the_seed_alone(folder):
    first, again, other = fresh(folder), fresh(folder), fresh(folder)
    lora.inject(first, seed=4)
    torch.manual_seed(99)  # no global stream matters
    lora.inject(again, seed=4)
    lora.inject(other, seed=5)
    assert same(adapter(first), adapter(again))
    assert not same(adapter(first), adapter(other))


def test_a_second_injection_is_refused(folder):
    model = fresh(folder)
    lora.inject(model)
    with pytest.raises(ValueError, match="already"):
        lora.inject(model)


def test_save_and_load_are_exact(folder, saved):
    model, path = saved
    other = fresh(folder)
    lora.load(other, path)  # injects
    assert same(adapter(model), adapter(other)) and torch.equal(logits(model), logits(other))
    third = fresh(folder)
    lora.inject(third, rank=3, alpha=12, seed=77)
    lora.load(third, path)  # overwrites
    assert torch.equal(logits(model), logits(third))


def test_load_takes_the_adapters_own_alpha(folder, saved):
    model, path = saved
    other = fresh(folder)
    lora.inject(other, rank=3, alpha=5)
    lora.load(other, path)
    assert torch.equal(logits(model), logits(other))


def test_the_file_holds_only_lora_tensors_in_float32(folder, saved):
    model, path = saved
    tensors = load_file(path / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(lora.layers(model))
    assert all(
        k.startswith("base_model.model.") and k.endswith((".lora_A.weight", ".lora_B.weight"))
        for k in tensors
    )
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    config = json.loads((path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (3, 12, "LORA")
    llama = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert config["target_modules"] == (["c_attn", "c_fc", "c_proj"] if "gpt2" in folder else llama)
    assert config["fan_in_fan_out"] == ("gpt2" in folder)


def test_target_modules_are_whole_names_where_another_module_has_the_same_last_part():
    def model(head):
        parts = {name: nn.ModuleDict({"proj": nn.Linear(3, 3)}) for name in ("a", "b", "c")}
        made = nn.ModuleDict(parts | {"head": nn.Linear(3, 3)})
        made.get_output_embeddings = lambda: made.get_submodule(head)
        lora.inject(made, 2)
        return made

    assert lora.targets(model("head")) == ["proj"]
    assert lora.targets(model("a.proj")) == ["b.proj", "c.proj", "head"]


def test_lora_stays_float32_on_half_precision_weights(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in lora.inject(model)} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16


def test_an_adapter_of_another_model_is_refused(folder, folders, saved):
    other = fresh(next(f for f in folders.values() if f != folder))
    with pytest.raises(UserError, match="another model"):
        lora.load(other, saved[1])


def test_an_adapter_of_another_rank_is_refused(folder, saved):
    model = fresh(folder)
    lora.inject(model, rank=8)
    with pytest.raises(UserError, match="rank"):
        lora.load(model, saved[1])


@pytest.mark.parametrize(
    "damage", ["no folder", "no weights", "torn weights", "no rank", "not JSON", "a list"]
)
def test_a_broken_adapter_is_a_user_error(folder, saved, damage):
    path = saved[1]
    config, weights = path / "adapter_config.json", path / "adapter_model.safetensors"
    if damage == "no folder":
        path = path / "nothing"
    elif damage == "no weights":
        weights.unlink()
    elif damage == "torn weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        config.write_text({"no rank": "{}", "not JSON": "{", "a list": "[]"}[damage])
    with pytest.raises(UserError, match="adapter"):
        lora.load(fresh(folder), path)


def test_merge_gives_the_same_logits_without_lora(folder, saved):
    model, _ = saved
    expected = logits(model)
    assert (expected - logits(fresh(folder))).abs().max() > 0.1  # the adapter does something
    lora.merge(model)
    assert not lora.layers(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)


def test_the_merge_command_writes_a_plain_model(folder, saved, tmp_path, monkeypatch):
    model, path = saved
    out = tmp_path / "merged"
    argv = ["lora.py", "merge", "--model", folder, "--adapter", str(path), "--out", str(out)]
    argv += ["--precision", "float32"]
    monkeypatch.setattr("sys.argv", argv)
    lora.main()
    torch.testing.assert_close(logits(fresh(str(out))), logits(model), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="exists"):
        lora.main()
