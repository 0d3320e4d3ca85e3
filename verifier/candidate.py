"""Process 4, the candidate: runs the program, behind the walls (walls.py). Forked before the test was read.

For DS-1000 it gets the program's code, the test input, the state of the random generators and the files of
the test, and sends back `result` as data (pack.py). For tests that are asserts calls.py does that part. A
program may change anything in this process, so the judge believes nothing of what it sends.
"""

import json
import os
import pickle
import random
import sys
from collections.abc import Callable
from typing import Any

from verifier import pack, walls
from verifier.child import receive, send

MAX_RESULT = 64 << 20  # bytes of a packed result
READY = b"ready"  # the first message: the walls stand


def main(serve: Callable, down: int, up: int, timeout: float, folder: str, tests: str, strict: bool) -> None:
    """Go behind the walls and run code for the judge until the judge is gone.

    serve: the loop that runs it: `serve` below, or that of calls.py.
    down, up: the pipes from and to the judge.
    tests: the folder of the test, which the program may read: an input may name a file there.
    """
    walls.keep_only(down, up)
    sys.argv = [""]
    if complaint := walls.enclose_or_say(folder, timeout, strict, tests):
        return send(up, complaint.encode())
    send(up, READY)
    serve(down, up)
    return None


def serve(down: int, up: int) -> None:
    """Runs code with a test input for each of DS-1000's cases, and sends `result`."""
    while (request := receive(down)) is not None:
        code, test_input, states, files = pickle.loads(request)
        random.setstate(states["random"])
        if "numpy" in states:
            sys.modules["numpy"].random.set_state(states["numpy"])
        if "torch" in states:
            sys.modules["torch"].set_rng_state(states["torch"])
        send(up, reply_to(code, test_input, files))


def reply_to(code: str, test_input: Any, files: dict[str, bytes | None]) -> bytes:
    """R and the packed result, or E and JSON of [verdict, message]."""
    names = {"test_input": test_input}
    try:
        for path, contents in files.items():
            if contents is None:
                os.makedirs(path, exist_ok=True)
            else:
                with open(path, "wb") as file:
                    file.write(contents)
        exec(code, names)
        if "result" not in names:
            return b"E" + json.dumps(["error", "no result"]).encode()
        data = pack.pack(names["result"])
        if len(data) > MAX_RESULT:
            return b"E" + json.dumps(["error", f"a result of {len(data)} bytes"]).encode()
        return b"R" + data
    except BaseException as error:
        return b"E" + json.dumps(classify(error)).encode()


def classify(error: BaseException) -> tuple[str, str]:
    """An exception of the program, whatever its type, is an error of the program; or a wall caused it."""
    cause, verdict = error, "error"
    for _ in range(10):
        if isinstance(cause, PermissionError):
            verdict = "denied"
        cause = cause.__cause__ or cause.__context__
        if cause is None:
            break
    return verdict, f"{type(error).__name__}: {describe(error)}"


def describe(error: BaseException) -> str:
    try:
        text = str(error)
        return text[:300].encode("utf-8", "replace").decode() if type(text) is str else ""
    except BaseException:  # its __str__ may do anything
        return ""
