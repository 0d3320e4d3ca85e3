"""The verifier as a reward, in TRL and in verl's form; a Verifier in forked processes, and pickled."""

import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import pytest
from test_verify_cli import CONTEXT, strict

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import rewards  # noqa: E402

from verify import PythonJob, SqlJob, Verdict, Verifier  # noqa: E402

GOLD = "SELECT count(*) FROM pet"


@pytest.fixture(scope="module")
def pets(spider):
    return str(spider / "database" / "pets" / "pets.sqlite")


@pytest.fixture(scope="module", autouse=True)
def close():
    yield
    rewards.verifier().close()


# ---- rewards -------------------------------------------------------------------------------------


def test_a_batch_of_completions_has_a_score_each(pets):
    chat = [{"role": "assistant", "content": "```sql\nSELECT count(id) FROM pet\n```"}]
    completions = [GOLD, "SELECT 3", "SELEC", None, chat, GOLD, GOLD]
    databases = [pets] * 5 + ["no/such/file.sqlite", pets]
    golds = [GOLD] * 6 + ["SELECT x FROM pet"]
    found = rewards.trl_reward(completions=completions, database=databases, gold=golds, prompts=[""] * 7)
    assert found == [1.0, 0.0, 0.0, 0.0, 1.0, None, None]


def test_verl_has_a_number_and_whether_it_is_a_verdict(pets):
    def ask(text, database=pets, gold=GOLD):
        return rewards.compute_score("pets", text, gold, {"database": database})

    assert ask(f"```sql\n{GOLD}\n```") == {"score": 1.0, "judged": True}
    assert ask("SELECT 3") == ask(None) == {"score": 0.0, "judged": True}
    assert ask(GOLD, "no/such/file.sqlite") == ask(GOLD, gold="SELEC") == {"score": 0.0, "judged": False}


def test_grpo_trains_two_steps_on_the_bundled_questions(folders, tmp_path):
    import grpo

    trainer = grpo.train(
        folders["llama"], str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2,
        num_generations=2, max_completion_length=8, use_cpu=True, bf16=False, save_strategy="no",
    )  # fmt: skip
    logged = [row for row in trainer.state.log_history if "rewards/trl_reward/mean" in row]
    assert trainer.state.global_step == 2 and len(logged) == 2
    assert all(row["rewards/trl_reward/mean"] == 0.0 for row in logged)  # random weights write no SQL
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_no_answer_is_an_error(pets):
    with Verifier(1) as verifier:
        jobs = [SqlJob(pets, GOLD, None), PythonJob(CONTEXT, None)]
        assert verifier.run(jobs) == [Verdict("error", "no answer")] * 2


# ---- other processes -----------------------------------------------------------------------------


def ask(job):
    """In a child process, with the Verifier that it was forked with."""
    return FORKED.submit(job).result(60).verdict


def test_a_verifier_works_in_processes_that_are_forked_from_its_own(pets):
    global FORKED
    right, wrong = SqlJob(pets, GOLD, GOLD), SqlJob(pets, GOLD, "SELECT 5")
    with Verifier(1) as FORKED:
        assert ask(right) == "correct"  # its worker runs, and it remembers
        process = FORKED.sql.children[0].process
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map_async(ask, [right, wrong] * 3).get(60) == ["correct", "wrong"] * 3
        # the children have ended, and the parent's worker is the one that it was
        assert ask(SqlJob(pets, GOLD, "SELECT 6")) == "wrong" and FORKED.sql.children[0].process is process


@strict
def test_a_child_that_closes_its_verifier_leaves_the_parents_programs_alone():
    right, wrong = PythonJob(CONTEXT, "result = x * 2"), PythonJob(CONTEXT, "result = x")
    with Verifier(1) as verifier:
        assert verifier.submit(right).result(60).verdict == "correct"
        process = verifier.python.process
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                found = [verifier.submit(job).result(60).verdict for job in (right, wrong)]
                verifier.close()
                status = 0 if found == ["correct", "wrong"] else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert verifier.submit(wrong).result(60).verdict == "wrong" and verifier.python.process is process


def test_a_pickled_verifier_is_a_new_one(pets):
    with Verifier(1, sys.executable, True) as verifier, pickle.loads(pickle.dumps(verifier)) as other:
        assert other.sql is not verifier.sql and other.python.allow_unsandboxed
        assert other.submit(SqlJob(pets, GOLD, GOLD)).result(60).verdict == "correct"
