"""Others read what we write: PEFT loads the adapters, transformers the merged model, the hub the model cards.

TRL reads the exported pairs: test_export_pairs.py.
"""

import json
import shlex
import shutil

import peft
import pytest
import torch
from conftest import plain_logps
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

import lora
from compare_runs import wilson
from policy import from_source, hub_id, load_policy, settled
from settings import command, parse
from tree import Tree, answer_logps

PROMPT, ANSWERS = [5, 6, 7, 8, 9], [[10, 11, 12], [13, 14]]


def trained(folder):
    """A policy whose adapter is far from zero, and its log-probabilities of ANSWERS."""
    policy = load_policy(folder, "float32", "cpu")
    generator = torch.Generator().manual_seed(0)
    for p in lora.inject(policy.model, 4, 8):
        p.data.normal_(0, 0.1, generator=generator)
    with torch.no_grad():
        return policy, answer_logps(policy.model, Tree([PROMPT], [ANSWERS]))


def alone(model):
    return torch.stack([plain_logps(model, PROMPT, answer).sum() for answer in ANSWERS])


def test_peft_loads_an_adapter_with_the_same_logits(folder, tmp_path):
    policy, logps = trained(folder)
    lora.save(policy.model, tmp_path / "adapter", folder)
    base = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    without = alone(base)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(alone(model), logps, rtol=1e-5, atol=1e-4)
        assert (without - logps).abs().max() > 0.1  # the adapter does something


def test_transformers_loads_a_merged_model_with_the_same_logits(folder, tmp_path):
    policy, logps = trained(folder)
    lora.merge(policy.model)
    policy.model.save_pretrained(tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(alone(model), logps, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("names", ["last parts", "whole names, as older versions wrote them"])
def test_autopeft_finds_the_base_model_and_its_layers_by_itself(folder, tmp_path, names):
    policy, logps = trained(folder)
    lora.save(policy.model, tmp_path, hub_id(folder))
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    theirs = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), peft.LoraConfig(target_modules=config["target_modules"])
    )
    assert set(theirs.targeted_module_names) == set(lora.layers(policy.model))
    if names != "last parts":
        path.write_text(json.dumps(config | {"target_modules": sorted(lora.layers(policy.model))}))
    model = peft.AutoPeftModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(alone(model), logps, rtol=1e-5, atol=1e-4)
    lora.load(load_policy(folder, "float32", "cpu").model, tmp_path)


def test_the_two_bundled_models_are_known_by_their_hub_ids():
    assert hub_id("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert hub_id("coder") == "Qwen/Qwen2.5-Coder-0.5B-Instruct"
    assert hub_id("org/name") == "org/name" and hub_id("some/folder/x.gguf") == "some/folder/x.gguf"


class Unpacked:
    """What a GGUF file is unpacked to, as AutoModelForCausalLM does it, but at once."""

    unpacked = 0

    def __init__(self, source):
        self.source = source

    @classmethod
    def from_pretrained(cls, source, gguf_file=None):
        cls.unpacked += gguf_file is not None
        return cls(source)

    def save_pretrained(self, folder):
        folder.mkdir(parents=True)


def test_a_gguf_file_is_unpacked_once_wherever_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = [tmp_path / place / "model.gguf" for place in ("one", "two", "changed")]
    for file, content in zip(files, (b"weights", b"weights", b"others!")):
        file.parent.mkdir()
        file.write_bytes(content)
    counts = []
    for file in [files[0], *files]:
        from_source(Unpacked, str(file), "weights-float32")
        counts.append(Unpacked.unpacked)
    assert counts == [1, 1, 1, 2]


# ---- model cards ---------------------------------------------------------------------------------


def test_the_card_of_a_runs_adapter_says_what_it_is_and_what_it_scores(finished, folders):
    for t in (1, 2):
        card = ModelCard.load(finished / f"iter_{t}" / "adapter" / "README.md")
        assert (card.data.base_model, card.data.library_name) == (folders["gpt2"], "peft")
        assert f"A LoRA adapter for {folders['gpt2']}." in card.text
        for name, place in (("before training", 0), ("this one", t)):
            dev = json.loads((finished / f"iter_{place}" / "scores.json").read_text())["dev"]
            low, high = wilson(round(dev["ex"] * dev["n"]), dev["n"])
            row = f"| {name} | {dev['ex']:.1%} | {low:.1%} to {high:.1%} | {dev['executable']:.1%} | 6 |"
            assert row in card.text
        told = card.text.split("```")[1].strip()
        config = json.loads((finished / "config.json").read_text())
        assert told == command(config)
        again = vars(settled(parse(shlex.split(told)[2:])))
        assert again == {name: value for name, value in config.items() if name in again}
        assert "4 answers to each training question" in card.text and "DPO and SFT together" in card.text


def test_the_card_of_a_merged_model_and_of_an_adapter_without_a_run(finished, folders, tmp_path):
    shutil.copytree(finished / "iter_2" / "adapter", tmp_path / "other" / "adapter")
    flags = ["merge", "--model", folders["gpt2"], "--precision", "float32"]
    found = []
    for name, adapter in (("a", finished / "iter_2" / "adapter"), ("b", tmp_path / "other" / "adapter")):
        lora.main([*flags, "--adapter", str(adapter), "--out", str(tmp_path / name)])
        found.append(ModelCard.load(tmp_path / name / "README.md"))
        assert (found[-1].data.base_model, found[-1].data.library_name) == (folders["gpt2"], "transformers")
        assert f"{folders['gpt2']} with a LoRA adapter merged in." in found[-1].text
    assert "| this one |" in found[0].text and "| this one |" not in found[1].text
