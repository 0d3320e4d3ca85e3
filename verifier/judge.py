"""Process 3, the judge: forks the candidate, then reads the test and runs it. Nobody else knows the test.

Tests that are asserts run in asserts.py. What follows is of DS-1000.

The official program is `code_context`, then `test_execution(answer)`, then `test_string(answer)` where there
is one; no exception means a pass. That is what runs here, unchanged. Only the `exec` that the context calls
is another one: it sends the code and the test input to the candidate (candidate.py) and brings back `result`.
So the reference answer, which `generate_test_case` computes, is never in the candidate's memory.

Only data travels from the candidate to the judge (unpack.py). The judge stands behind the same walls. Each
has a folder of its own: files that the test writes are sent to the candidate with its input, and none comes
back. A test that reads a file reads its own, never one that a program has made to take over whoever unpickles
or imports it. For the same reason a test may not unpickle a result that is more than plain data
(`refuse_unpickling`).

An exception in the program is an `error`, AssertionError too, also where the assertion is a line of the
test's that stands around the answer: the program did not run to its end. An exception of the test, after
that, is `wrong`. It is the same where both share a process (below): what is raised while the program runs is
the program's.

Some tests look at the state of the process instead of `result`: all of Matplotlib's, which ask for the
current figure. Those, and inputs that cannot be sent, run whole in the judge's process. That is weaker: a
hostile program can reach the test's objects there. The judge announces it before the program runs. The
supervisor then begins the verdict's message with "in one process", and believes no fault of the machine any
more.
"""

import functools
import json
import os
import random
import sys
from collections.abc import Callable
from typing import Any

from verifier import asserts, calls, candidate, emptiness, walls
from verifier.child import receive, send
from verifier.libraries import LARGE, SEED, load
from verifier.line import Decided, fork_candidate
from verifier.verdicts import one_line

# The likely cause where a test meets an OSError.
NOT_FETCHED = "a data set that it fetches by name? `make ds1000`"
LOCAL = ["local", 0]  # tells the supervisor that the judge runs the program itself


def main(line: int, report: int, nonce: str, head: dict, folder: str, strict: bool) -> None:
    """Fork the candidate, read the test, run it, report. Ends by `os._exit`, in `dying`.

    line: where the main process sends the test and the answer.
    report, nonce: where the supervisor listens, and what it knows the judge's report by.
    """
    own, programs = os.path.join(folder, "test"), os.path.join(folder, "program")
    os.mkdir(programs)
    walls.move_to(own)
    random.seed(SEED)  # a fork draws a new one
    # What the context will have imported when the official program runs the answer.
    for name in head["imports"]:
        if name.split(".")[0] in sys.modules or name.split(".")[0] not in LARGE:
            load(name)
    serve = calls.serve if head["kind"] == "tests" else candidate.serve
    remote = fork_candidate(serve, head["timeout"], programs, own, strict)
    send(report, json.dumps(["candidate", remote.pid]).encode())

    # Only now, with the candidate forked, does this process read the test.
    job = json.loads(receive(line))
    walls.keep_only(report, remote.down, remote.up)
    try:
        if complaint := walls.enclose_or_say(own, head["timeout"], strict):
            raise Decided("infrastructure", complaint)
        hello = receive(remote.up)  # sent before the candidate has read a line of the program
        if hello != candidate.READY:
            raise Decided("infrastructure", (hello or b"the candidate did not start").decode())
        if head["kind"] == "tests":
            verdict, message = asserts.judged(remote, *job)
        else:
            context, answer = job
            remote.torch = "torch" in context
            announcement = json.dumps(LOCAL).encode()
            stage = Stage(remote.execute, announce=lambda: send(report, announcement))
            verdict, message = official(context, answer, stage)
    except Decided as decided:
        verdict, message = decided.args
    except MemoryError:
        verdict, message = "error", "out of memory"
    except BaseException as error:
        verdict, message = "infrastructure", f"the judge failed: {type(error).__name__}: {error}"
    send(report, json.dumps([nonce, verdict, one_line(str(message), 300)]).encode())


# --- the official program -----------------------------------------------------------------------------------


class Stage:
    """Where the official program is, to tell a broken test from a wrong answer."""

    def __init__(self, remote: Callable[[str, dict], bool], announce: Callable[[], None]):
        self.remote = remote  # runs code in the candidate; False where the test input cannot be sent
        self.announce = announce  # tells the supervisor that the program runs in this process
        self.name = "context"  # then "generate", "answer", "compare" for each case, and "string" at the end
        self.local = False  # the program runs in this process
        self.executed = False  # the program has run, at least in part
        # The result that the test wants: one item, where the test has the official shape.
        self.expected: list = []

    def generate(self, function: Callable, number: int) -> Any:
        """What the test calls as `generate_test_case`."""
        self.name = "generate"
        case = function(number)
        self.expected = [case[1]] if type(case) is tuple and len(case) == 2 else []
        return case

    def execute(self, code: Any, names: dict, *rest: Any) -> None:
        """What the test calls as `exec`."""
        if "test_input" not in names:  # the test's own use of exec
            return exec(code, names, *rest)
        self.name = "answer"
        first, self.executed = not self.executed, True
        if first and not self.local:
            refuse_unpickling(self)
        if not self.local and not self.remote(code, names):
            if not first:  # the first case decides: a program must not choose to be run beside the test
                raise Decided("error", "an input that cannot be sent, after one that could")
            self.local = True
        if self.local:
            if first:
                self.announce()
            try:
                exec(code, names)
            except BaseException as error:  # whatever it is, it is the program's
                raise Decided(*candidate.classify(error)) from None
            if "result" not in names:
                raise Decided("error", "no result")
        self.name = "compare"
        if self.expected and emptiness.differs(names["result"], self.expected[0]):
            said = "no elements where the expected result has some, or the reverse"
            raise Decided("wrong", f"the result: {said}")
        return None


def official(context: str, answer: str, stage: Stage) -> tuple[str, str]:
    """The official program: the context, `test_execution`, `test_string`. Its verdict and message."""
    names: dict[str, Any] = {"__name__": "__test__", "exec": stage.execute}
    try:
        exec(compile(context, "<context>", "exec"), names)
        names["generate_test_case"] = functools.partial(stage.generate, names["generate_test_case"])
        if needs_one_process(context):
            stage.local = True
        names["test_execution"](answer)
        stage.name = "string"
        if "test_string" in names:
            names["test_string"](answer)
    except Decided:
        raise
    except BaseException as error:
        # It deleted a file of the test, it used up the memory…
        if stage.name == "generate" and stage.executed:
            said = f"{type(error).__name__}: {candidate.describe(error)}"
            return "error", f"the program disturbed its test: {said}"
        if stage.name in ("context", "generate"):
            hint = f" ({NOT_FETCHED})" if isinstance(error, OSError) else ""
            said = f"{type(error).__name__}: {error}{hint}"
            raise Decided("broken test", f"the test itself fails: {said}") from None
        what = "the text of the answer" if stage.name == "string" else "the result"
        return "wrong", f"{what}: {type(error).__name__}: {candidate.describe(error)}"
    return "correct", ""


def needs_one_process(context: str) -> bool:
    """Whether the test looks at more than `result`: at the current figure or its file."""
    return "plt.gcf(" in context or "plt.gca(" in context or "output.png" in context


def refuse_unpickling(stage: Stage) -> None:
    """After a program has run beside it, a test makes no object of a pickle: it would run the program's code.

    Python tells its audit hooks whenever a pickle asks for a class or a function, whichever library reads it.
    The judge's own unpickler (unpack.py) does not ask, and plain data needs none.
    """

    def hook(event: str, _: tuple) -> None:
        if event == "pickle.find_class" and stage.name in ("compare", "string") and not stage.local:
            said = "the test unpickles more than plain data, which the program may have made"
            raise Decided("denied", said)

    sys.addaudithook(hook)
