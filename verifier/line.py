"""In the judge: its line to the candidate, which it forks, asks, and believes nothing."""

import gc
import io
import json
import os
import pickle
import random
import signal
import sys
from collections.abc import Callable
from typing import Any

from verifier import candidate, unpack, walls
from verifier.child import die_with_parent, dying, receive, send


class Decided(BaseException):
    """Ends the test with a verdict that is not `correct`; carries the verdict and the message.

    A BaseException, so that no `except Exception` of the test's own catches it.
    """


def fork_candidate(serve: Callable, timeout: float, folder: str, tests: str, strict: bool) -> "Remote":
    """Start the candidate, which works in `folder` and may read the folder of the test.

    serve: what it does behind the walls, `candidate.serve` or `calls.serve`.
    """
    down, up = os.pipe(), os.pipe()
    judge, pid = os.getpid(), os.fork()
    if pid == 0:
        with dying():
            die_with_parent(judge)
            walls.move_to(folder)
            candidate.main(serve, down[0], up[1], timeout, folder, tests, strict)
    os.close(down[0])
    os.close(up[1])
    return Remote(down[1], up[0], pid)


class Remote:
    """The judge's line to the candidate."""

    def __init__(self, down: int, up: int, pid: int):
        self.down, self.up, self.pid = down, up, pid
        self.torch = False  # whether the test names torch, so that it may have moved torch's generator
        self.decided: Decided | None = None  # what the last request has ended with, if not with a reply

    def ask(self, request: bytes) -> bytes:
        """The reply, at least one byte. Raises Decided where there is none.

        A test may catch even that by a bare `except`, so it is kept in `decided`.
        """
        try:
            send(self.down, request)
            reply = receive(self.up, candidate.MAX_RESULT + 1)
        except MemoryError:
            raise self.decide("error", "out of memory") from None
        except ValueError as error:
            raise self.decide("error", f"the result is too large: {error}") from None
        except OSError:
            reply = None
        if not reply:
            raise self.decide(*self.ended())
        return reply

    def decide(self, verdict: str, message: str) -> Decided:
        self.decided = Decided(verdict, message)
        return self.decided

    def execute(self, code: str, names: dict) -> bool:
        """Run the code there and fetch its `result`; False where the test input cannot be sent."""
        try:
            request = packed_input((code, names["test_input"], random_states(self.torch), files_here()))
        except MemoryError:  # an earlier result may have used it up
            raise Decided("error", "out of memory") from None
        except Exception:
            return False
        reply = self.ask(request)
        if reply[:1] == b"E":
            try:
                verdict, message = json.loads(reply[1:])
            except Exception:  # not JSON, not two things, too deep, too large
                verdict, message = None, None
            # What else it says, it may not say.
            if verdict not in ("error", "denied") or type(message) is not str:
                verdict, message = "error", "not a result"
            raise Decided(verdict, message)
        try:
            names["result"] = unpack.unpack(reply[1:] if reply[:1] == b"R" else b"")
        except MemoryError:
            raise Decided("error", "out of memory") from None
        except Exception as error:
            raise Decided("error", f"not a result: {type(error).__name__}: {error}") from None
        del reply, request
        gc.collect()  # what a forged result left in a loop
        return True

    def ended(self) -> tuple[str, str]:
        """The candidate ended without a result: how?"""
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        if status.si_code == os.CLD_EXITED:
            return "error", f"the program ended itself (exit status {status.si_status})"
        if status.si_status == signal.SIGXCPU:
            return "timeout", "too much processor time"
        if status.si_status == signal.SIGSYS:
            return "denied", "a system call that is not allowed"
        if status.si_status == signal.SIGKILL:
            return "killed", ""
        return "crash", f"signal {status.si_status}"


class InputPickler(pickle.Pickler):
    """For the way to the candidate, which may trust the judge: any pickle.

    Only numpy's own types are sent by name. An unpickled array has a dtype that is equal to numpy's `object`
    but is another object, and then pandas 1.5's `astype(str)` writes into the original: a program would
    behave differently than in the official process.
    """

    def reducer_override(self, value: Any) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy and isinstance(value, numpy.dtype) and numpy.dtype(value.str) is value:
            return numpy.dtype, (value.str,)
        return NotImplemented


def packed_input(value: tuple) -> bytes:
    stream = io.BytesIO()
    InputPickler(stream, protocol=5).dump(value)
    return stream.getvalue()


def random_states(with_torch: bool) -> dict[str, Any]:
    """Tests seed the generators and answers draw from them: the official program is one process.

    torch's is touched only where it may have moved: in a forked process that alone takes 5 ms.
    """
    states, modules = {"random": random.getstate()}, sys.modules
    if "numpy" in modules:
        states["numpy"] = modules["numpy"].random.get_state()
    if with_torch and "torch" in modules:
        states["torch"] = modules["torch"].get_rng_state()
    return states


def files_here() -> dict[str, bytes | None]:
    """{path: contents, or None for a folder} of the files of the test."""
    found: dict[str, bytes | None] = {}
    for folder, folders, files in os.walk("."):
        found |= dict.fromkeys(os.path.join(folder, name) for name in folders)
        for name in files:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[path] = file.read()
    return found
