"""kill -9 at any moment: the same command, started again, ends with the files of the run that nobody killed.

    MOMENTS=100 CALLS=1000 python -m pytest -s tests/test_killed.py

tries 100 random moments and every call of a checkpoint's writer.
"""

import os
import random
import signal
import sys
import time

from conftest import command

import codelutra
from stages import Checkpoint

MOMENTS, CALLS = (int(os.environ.get(name, few)) for name, few in (("MOMENTS", 3), ("CALLS", 2)))

SAME = (
    "answers.jsonl", "reference.safetensors", "pairs.jsonl", "scores.json", "dev.jsonl", "validation.jsonl",
    "adapter/adapter_model.safetensors", "../summary.json",
)  # fmt: skip
WRITES = {"open", "write", "write_record", "write_end_of_file", "flush", "fsync", "close", "replace"}


def child(arguments, seconds=None, dies_at=None):
    """Run the command in a forked process, killed after `seconds` or before call `dies_at` of its writer.

    Returns its exit status, negative the signal that ended it.
    """
    pid = os.fork()
    if pid == 0:
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            if dies_at is not None:
                die_in_the_writer(dies_at)
            codelutra.main(arguments)
            os._exit(0)
        finally:
            os._exit(1)
    if seconds is not None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return 0
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_in_the_writer(number):
    """Kill this process before the `number`-th open, write, flush or rename of the second checkpoint."""
    original, checkpoints, calls = Checkpoint.save, [], []

    def watch(_frame, event, function):
        if event == "c_call" and function.__name__ in WRITES:
            calls.append(function)
            if len(calls) > number:
                os.kill(os.getpid(), signal.SIGKILL)

    def save(*arguments):
        checkpoints.append(arguments)
        sys.setprofile(watch if len(checkpoints) == 2 else None)
        original(*arguments)
        sys.setprofile(None)

    Checkpoint.save = save


def files(run):
    found = {}
    for t in range(3):
        for name in SAME:
            path = run / f"iter_{t}" / name
            found[t, name] = path.read_bytes() if path.exists() else None
    assert any(found.values()) and not list(run.rglob("*.part")), run
    return found


def test_killed_at_random_moments_and_in_the_writer_of_checkpoints(folders, spider, tmp_path):
    run_in = lambda name: command(folders, spider, tmp_path / name, "--save-every", "1e-9")  # noqa: E731
    started = time.monotonic()
    assert child(run_in("whole")) == 0
    expected, whole = files(tmp_path / "whole"), time.monotonic() - started
    rng, killed, calls = random.Random(0), 0, 0
    # on a busy machine the first run is the slowest, and some kills come too late
    for n in range(4 * MOMENTS):
        if killed == MOMENTS:
            break
        killed += child(run_in(f"moment{n}"), seconds=rng.uniform(0, whole)) == -signal.SIGKILL
        assert child(run_in(f"moment{n}")) == 0
        assert files(tmp_path / f"moment{n}") == expected
    for number in range(CALLS):
        if child(run_in(f"call{number}"), dies_at=number) == 0:
            break  # a checkpoint takes fewer calls than that
        calls += 1
        assert child(run_in(f"call{number}")) == 0
        assert files(tmp_path / f"call{number}") == expected
    print(f"killed at {killed} random moments and before {calls} calls of the writer")
    assert killed == MOMENTS and calls >= min(CALLS, 20)
