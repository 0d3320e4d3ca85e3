"""Others read what we write: PEFT loads the adapters, transformers the merged model.

TRL reads the exported pairs: test_export_pairs.py.
"""

import peft
import torch
from conftest import plain_logps
from transformers import AutoModelForCausalLM

import lora
from policy import load_policy
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
