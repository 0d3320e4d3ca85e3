"""What only a GPU runs: fused attention by other kernels, decoding steps as CUDA graphs. Else skipped."""

import math

import pytest
import torch

import attention as attention_module
import data
import decode
import lora
from attention import TreeAttention
from policy import load_policy
from sample import SamplingParams, draw_batch
from tree import Tree, answer_logps

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GENERATOR = torch.Generator().manual_seed(0)
PROMPTS = [[*range(40), 50, 51, 52], [*range(40), 60], [7, 8, 9, 10]]  # two share a prefix, one stands alone
ANSWERS = [[[1, 2, 3], [4]], [[5, 6]], [[1], [2, 3, 4, 5]]]


def draw(*shape):
    return torch.randn(*shape, generator=GENERATOR)


@pytest.mark.parametrize("size", [8, 64, 128, 320])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
)
@pytest.mark.parametrize("old", [False, True])  # a GPU before Ampere has no flash attention
def test_attention_and_its_gradient_are_the_cpus(size, kv_heads, dtype, tolerance, old, monkeypatch):
    if old:
        monkeypatch.setattr(attention_module, "flash", lambda query: False)
    here, there = Tree(PROMPTS, ANSWERS), Tree(PROMPTS, ANSWERS, "cuda")
    count = here.ids.shape[1]
    inputs = [draw(count, heads, size).to(dtype) for heads in (4, kv_heads, kv_heads)]
    weight, results = draw(count, 4, size), []
    for tree, device in ((here, "cpu"), (there, "cuda")):
        exact = torch.float32 if device == "cpu" else dtype  # the rounded inputs, in float32 on the CPU
        given = [x.to(device, exact).requires_grad_() for x in inputs]
        out = TreeAttention.apply(*given, tree.siblings, size**-0.5)
        results.append([out, *torch.autograd.grad((out.float() * weight.to(device)).sum(), given)])
    for mine, theirs in zip(results[1], results[0]):
        difference = (mine.cpu().float() - theirs).norm() / theirs.norm()
        assert difference < tolerance and mine.dtype == dtype


@pytest.mark.parametrize("checkpointing", [False, True])
def test_logps_and_lora_gradients_are_the_cpus(folder, checkpointing):
    results = []
    for device in ("cpu", "cuda"):
        policy = load_policy(folder, "float32", device)
        parameters = lora.inject(policy.model, rank=4, alpha=8, seed=3)
        generator = torch.Generator().manual_seed(5)
        for p in parameters:
            p.data.add_(0.05 * torch.randn(p.shape, generator=generator).to(device))
        if checkpointing:
            policy.model.activation_checkpointing_enable({"use_reentrant": False})
            policy.model.train()
        logps = answer_logps(policy.model, Tree(PROMPTS, ANSWERS, policy.device))
        weights = torch.linspace(-1, 2, len(logps)).to(device)
        results.append([logps, *torch.autograd.grad((weights * logps).sum(), parameters)])
    largest = max(x.norm() for x in results[0][1:])
    for mine, theirs in zip(results[1], results[0]):
        assert (mine.cpu() - theirs).norm() < 1e-4 * theirs.norm() + 1e-6 * largest


def drawn(policy, new, ends, answers=6):
    policy.end_ids, policy.stop_tokens = ends, frozenset()
    questions = [data.Question(i, "", "", "", "") for i in range(len(PROMPTS))]
    return [a.ids for a in draw_batch(policy, questions, PROMPTS, SamplingParams(answers, new))]


# about every ninth token: answers leave the batch
@pytest.mark.parametrize("ends", [(), tuple(range(0, 352, 9))])
@pytest.mark.parametrize("waits", [False, True])
def test_captured_steps_draw_what_the_cpu_draws(folder, ends, waits, monkeypatch):
    captured, graph = [], torch.cuda.graph
    monkeypatch.setattr(decode.torch.cuda, "graph", lambda g: (captured.append(g), graph(g))[1])
    here, there = (load_policy(folder, "float32", device) for device in ("cpu", "cuda"))
    if waits:  # as a family whose forward asks the GPU something
        there.model.register_forward_pre_hook(lambda *_: print(torch.ones(1, device="cuda").item()))
    assert drawn(there, 40, ends) == drawn(here, 40, ends)
    assert torch.cuda.get_sync_debug_mode() == 0
    assert len(captured) == (0 if waits else 1) or (ends and len(captured) >= 3 and not waits)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("ends", [(), tuple(range(0, 352, 9))])
def test_captured_steps_score_as_the_tree_does(folder, precision, ends):
    policy = load_policy(folder, precision, "cuda")
    for p in lora.inject(policy.model):
        p.data.add_(0.05 * draw(*p.shape).to("cuda"))
    policy.end_ids, policy.stop_tokens = ends, frozenset()
    questions = [data.Question(i, "", "", "", "") for i in range(len(PROMPTS))]
    answers = draw_batch(policy, questions, PROMPTS, SamplingParams(4, 24))
    with torch.no_grad(), policy.autocast():
        ids = [[list(a.ids) for a in answers if a.question == i] for i in range(len(PROMPTS))]
        logps = answer_logps(policy.model, Tree(PROMPTS, ids, "cuda"))
    for answer, logp in zip(answers, logps.tolist()):
        assert math.isclose(answer.logp, logp, rel_tol=0.03, abs_tol=1.0)
