"""Others read what we write: PEFT loads the adapters, transformers the merged model, TRL the exported pairs."""

import json

import pytest
import torch
from conftest import plain_logps
from transformers import AutoModelForCausalLM

import lora
import report
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
    peft = pytest.importorskip("peft")
    policy, logps = trained(folder)
    lora.save(policy.model, tmp_path / "adapter", folder)
    base = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    without = alone(base)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(alone(model), logps, rtol=1e-5, atol=1e-4)
        assert (without - logps).abs().max() > 0.1  # the adapter does something


def test_transformers_loads_a_merged_model_with_the_same_logits(folder, tmp_path):
    policy, logps = trained(folder)
    lora.merge(policy.model)
    policy.model.save_pretrained(tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(alone(model), logps, rtol=1e-5, atol=1e-4)


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    report.main([str(finished), "--pairs", str(path)])
    return path


def test_pairs_are_exported_as_text(exported, finished):
    rows = [json.loads(line) for line in open(exported, encoding="utf-8")]
    expected = sum(json.loads((finished / f"iter_{t}/pairs_summary.json").read_text())["pairs"] for t in (1, 2))
    assert len(rows) == expected > 0
    assert all(set(row) == {"prompt", "chosen", "rejected"} and "CREATE TABLE" in row["prompt"] for row in rows)
    assert "SELECT count(*) FROM pet" in {row["chosen"] for row in rows}  # the gold code, as nothing else is right


def test_trl_reads_the_exported_pairs(exported, folders, tmp_path):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    from transformers import AutoTokenizer

    rows = datasets.load_dataset("json", data_files=str(exported), split="train", cache_dir=str(tmp_path / "cache"))
    settings = trl.DPOConfig(output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=2, use_cpu=True,
                             report_to=[], save_strategy="no", disable_tqdm=True)  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folders["gpt2"])
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folders["gpt2"])
    result = trl.DPOTrainer(model, args=settings, train_dataset=rows, processing_class=tokenizer).train()
    assert result.training_loss == pytest.approx(0.6931, abs=1e-3)  # ln 2: its reference is the model itself
