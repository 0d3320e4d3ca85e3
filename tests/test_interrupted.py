"""A full disk, a read-only folder, Ctrl-C: one sentence, the right exit code, the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import command

import codelutra
from cli import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def disk(tmp_path):
    """`disk(options)` mounts a file system of its own there, or changes it; skips where that is forbidden."""
    place = tmp_path / "disk"
    place.mkdir()

    def disk(options, *flags):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", *flags, "-o", options, "none", place], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"cannot mount: {done.stderr.strip()}")
        return place

    yield disk
    subprocess.run(["umount", "--lazy", place], capture_output=True)


@pytest.mark.parametrize("kib, save_every", [(16, 300), (64, 300), (80, 300), (128, 1e-9)])
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(again, disk, kib, save_every):
    again.run = disk(f"size={kib}k") / "run"
    with pytest.raises(UserError, match="No space left on device.*What is complete stays"):
        again("--save-every", str(save_every))
    disk("size=64m,remount")
    again()
    assert again.same()


def test_a_folder_that_cannot_be_written_is_one_sentence(again, disk):
    again.run = disk("size=64m") / "run"
    again("--iterations", "1")
    disk("ro,remount")
    with pytest.raises(UserError, match="Read-only file system"):
        again()
    disk("rw,remount")
    again()
    assert again.same()


def interrupted(arguments, moment):
    """Ctrl-C after `moment` seconds or once the run has printed it; (exit code as in a shell, stderr)."""
    argv = [sys.executable, "-u", "codelutra.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as many threads as the run it is compared with
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}

    def heard():  # the tests' own shell may ignore it
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(argv, cwd=ROOT, start_new_session=True, preexec_fn=heard, **pipes) as process:
        if isinstance(moment, str):
            assert any(moment in line for line in process.stdout)
        else:
            time.sleep(moment)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does: all of its processes get the signal
        _, errors = process.communicate(timeout=60)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode, errors


@pytest.mark.parametrize("moment", [0.5, "held-out questions", "pairs of iteration 2"])
def test_ctrl_c_is_exit_code_130_and_no_traceback(again, folders, spider, moment):
    code, errors = interrupted(command(folders, spider, again.run), moment)
    assert code == 130 and "Traceback" not in errors, errors
    if isinstance(moment, str):
        assert "interrupted" in errors
    again()
    assert again.same()


def test_a_process_alone_cannot_shard(folders, spider, tmp_path):
    with pytest.raises(UserError, match="torchrun"):
        codelutra.main([*command(folders, spider, tmp_path / "run"), "--shard"])
    assert not (tmp_path / "run").exists()
