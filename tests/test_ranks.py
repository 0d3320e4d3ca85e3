"""Two processes make one's run: the same answers, verdicts and pairs, the same adapter up to rounding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import command
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent


def torchrun(count, arguments, program="codelutra.py"):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*launch, program, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("sharded", [[], ["--shard"], ["--shard", "--checkpointing"]], ids=" ".join)
def test_two_processes_make_the_run_of_one(folders, spider, finished, tmp_path, sharded):
    run = tmp_path / "two"
    done = torchrun(2, [*command(folders, spider, run), *sharded])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("best on validation") == 1  # the first process alone speaks
    for t in (1, 2):
        for name in ("answers.jsonl", "pairs.jsonl"):
            mine, theirs = ((r / f"iter_{t}" / name).read_bytes() for r in (run, finished))
            assert mine == theirs, (t, name)
        mine, theirs = (load_file(r / f"iter_{t}/adapter/adapter_model.safetensors") for r in (run, finished))
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(mine[key], value, rtol=0, atol=1e-5)
    assert not list(run.rglob("*.part"))


@pytest.mark.parametrize("sharded", [[], ["--shard"]], ids=" ".join)
def test_a_process_that_fails_ends_the_run_and_one_goes_on(folders, spider, finished, tmp_path, sharded):
    run = tmp_path / "run"
    # no finite loss after the first step
    broken = torchrun(2, [*command(folders, spider, run), "--lr", "1e30", *sharded])
    assert broken.returncode != 0 and "lower --lr" in broken.stderr
    alone = [sys.executable, "codelutra.py", *command(folders, spider, run)]
    one = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True)
    # nothing of it is lost: the settings are refused by name
    assert one.returncode == 2 and "was made with lr" in one.stderr
    assert (run / "iter_1" / "pairs.jsonl").read_bytes() == (finished / "iter_1" / "pairs.jsonl").read_bytes()


def test_in_float16_a_process_may_have_no_micro_batch(folders, spider, tmp_path):
    # a step is one micro-batch
    flags = ["--precision", "float16", "--iterations", "1", "--train-tokens", "4096"]
    done = torchrun(2, [*command(folders, spider, tmp_path / "run"), *flags])
    assert done.returncode == 0 and (tmp_path / "run" / "iter_1" / "adapter").exists(), done.stderr[-3000:]


HELD = """
import sys, torch, policy, ranks

# the model is gone before the processes part, as in codelutra.main: else torch may abort at its exit
def share():
    model = policy.load_policy(sys.argv[1], "float32", "cpu", shard=True).model
    weights = [p for name, p in model.named_parameters() if ".layers." in name]
    return sum(p.to_local().numel() for p in weights) / sum(p.numel() for p in weights)

ranks.start(torch.device("cpu"))
ranks.say(str(share()))
ranks.end()
"""


def test_a_process_of_two_keeps_half_of_the_layers(folders, tmp_path):
    program = tmp_path / "held.py"
    program.write_text(HELD)
    done = torchrun(2, [folders["llama"]], str(program))
    assert done.returncode == 0 and float(done.stdout) == pytest.approx(0.5, abs=0.01), done.stderr[-3000:]
