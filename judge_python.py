"""Python programs -> verdicts: DS-1000's official test, with the program in a process that cannot see the test.

The official program is `code_context`, then `test_execution(answer)`, then `test_string(answer)` where there is one; no
exception means a pass. That is what runs here, unchanged, in the judge. Only the `exec` that the context calls is
another one: it sends the code and the test input to the candidate and brings back `result`. So the reference answer,
which `generate_test_case` computes, is never in the candidate's memory.

    verify.py --socket--> zygote (zygote.py): imports the libraries once, then forks one supervisor per worker
                          supervisor: per program two empty folders, the deadline, the kill; it never reads the test
                          judge: forked per program; forks the candidate, and only then reads the test
                          candidate: forked before the test was read, behind the walls (walls.py)

Only data travels from the candidate to the judge (transport.py). The judge stands behind the same walls. Each has
a folder of its own: files that the test writes are sent to the candidate with its input, and none comes back. A
test that reads a file reads its own, never one that a program has made to take over whoever unpickles or imports
it. For the same reason a test may not unpickle a result that is more than plain data (`refuse_unpickling`).
Before the test looks at a result, the judge compares what has no elements (emptiness.py).

An exception in the program is an `error`, AssertionError too, also where a line of the test's that stands around
the answer asserts: the program did not run to its end. An exception of the test, after that, is `wrong`. It is the
same where both share a process (below): what is raised while the program runs is the program's.

Some tests look at the state of the process instead of `result`: all of Matplotlib's, which ask for the current figure.
Those, and inputs that cannot be sent, run whole in one process behind the walls. That is weaker: a hostile program can
reach the test's objects there. The verdict's message then begins with "in one process": the judge announces it before
the program runs, and the supervisor writes it. After that, no fault of the machine is believed.

This file runs under the interpreter given by --python and needs nothing but the standard library.
"""

import contextlib
import gc
import importlib
import json
import os
import pickle
import random
import signal
import sys
import tempfile

import emptiness
import packing
import sandbox
import transport
import walls

LARGE = ("tensorflow",)  # imported by a supervisor when the first program asks for it
SEED = 1  # of random, numpy and torch where the test sets none; with 0, problems 376 and 897 fall unlike the official record
MAX_RESULT = 64 << 20  # bytes of a packed result
READY = b"ready"  # the first message of a candidate: its walls stand
NOT_FETCHED = "a data set that it fetches by name? `make ds1000`"  # the likely cause where a test meets an OSError
LOCAL = ["local", 0]  # the judge tells the supervisor that it runs the program itself


class Rejected(BaseException):
    """A verdict other than correct; no `except Exception` and no bare return of the test's own may catch it twice."""


@contextlib.contextmanager
def dying():
    """A forked child never returns into its parent's code."""
    status = 1
    try:
        yield
        status = 0
    finally:
        os._exit(status)


def load(name: str) -> bool:
    try:
        importlib.import_module(name)
        if name == "torch":
            sys.modules["torch"].set_num_threads(1)
        return True
    except Exception:
        return False


# --- the judge --------------------------------------------------------------------------------------------------------


def run_judge(verifier: int, report: int, nonce: str, head: dict, folder: str, strict: bool) -> None:
    """Fork the candidate, read the test, run it, report. Ends by `os._exit`, in `dying`."""
    own, candidates = os.path.join(folder, "test"), os.path.join(folder, "program")
    os.mkdir(candidates)
    move_to(own)
    random.seed(SEED)  # a fork draws a new one
    for name in head["imports"]:  # what the context will have imported when the official program runs the answer
        if name.split(".")[0] in sys.modules or name.split(".")[0] not in LARGE:
            load(name)
    down, up = os.pipe(), os.pipe()
    parent, candidate = os.getpid(), os.fork()
    if candidate == 0:
        with dying():
            sandbox.die_with_parent(parent)
            move_to(candidates)
            run_candidate(down[0], up[1], head["timeout"], candidates, own, strict)
    os.close(down[0])
    os.close(up[1])
    sandbox.send(report, json.dumps(["candidate", candidate]).encode())
    context, answer = json.loads(sandbox.receive(verifier))
    keep_only(report, down[1], up[0])
    try:
        enclose(own, head["timeout"], strict)
        if (hello := sandbox.receive(up[0])) != READY:  # sent before the candidate has read a line of the program
            raise Rejected("infrastructure", (hello or b"the candidate did not start").decode())
        remote = Remote(down[1], up[0], candidate, torch="torch" in context)
        announce = json.dumps(LOCAL).encode()
        verdict, message = official(context, answer, remote.execute, lambda: sandbox.send(report, announce))
    except Rejected as rejected:
        verdict, message = rejected.args
    except MemoryError:
        verdict, message = "error", "out of memory"
    except BaseException as error:
        verdict, message = "infrastructure", f"the judge failed: {type(error).__name__}: {error}"
    sandbox.send(report, json.dumps([nonce, verdict, one_line(str(message))]).encode())


def one_line(text: str) -> str:
    return " ".join(text.encode("utf-8", "replace").decode().split())[:300]


def move_to(folder: str) -> None:
    """Make it and work in it from now on."""
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    os.environ["HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = folder


def enclose(folder: str, seconds: float, strict: bool, *readable: str) -> None:
    try:
        walls.enclose(folder, seconds, *readable)
    except OSError as error:
        if strict:
            raise Rejected("infrastructure", f"a wall could not be built: {error}") from None


def keep_only(*fds: int) -> None:
    """Close every other open file; standard input, output and error lead nowhere."""
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in fds:
            with contextlib.suppress(OSError):
                os.close(int(name))


def official(context: str, answer: str, execute, announce) -> tuple[str, str]:
    """The official program: the context, `test_execution`, `test_string`."""
    stage = Stage(execute, announce)
    names = {"__name__": "__test__", "exec": stage.execute}
    try:
        exec(compile(context, "<context>", "exec"), names)
        generate, whole = names["generate_test_case"], needs_one_process(context)
        names["generate_test_case"] = lambda number: stage.generate(generate, number)
        if whole:
            stage.local = True
        names["test_execution"](answer)
        stage.name = "string"
        if "test_string" in names:
            names["test_string"](answer)
    except Rejected:
        raise
    except BaseException as error:
        if stage.name == "generate" and stage.executed:  # it deleted a file of the test, it used up the memory…
            return "error", f"the program disturbed its test: {type(error).__name__}: {describe(error)}"
        if stage.name in ("context", "generate"):
            hint = f" ({NOT_FETCHED})" if isinstance(error, OSError) else ""
            raise Rejected("broken test", f"the test itself fails: {type(error).__name__}: {error}{hint}") from None
        what = "the text of the answer" if stage.name == "string" else "the result"
        return "wrong", f"{what}: {type(error).__name__}: {describe(error)}"
    return "correct", ""


def needs_one_process(context: str) -> bool:
    """Whether the test looks at more than `result`: at the current figure or its file."""
    return "plt.gcf(" in context or "plt.gca(" in context or "output.png" in context


class Stage:
    """Where the official program is, to tell a broken test from a wrong answer."""

    def __init__(self, execute, announce):
        self.name, self.remote, self.announce = "context", execute, announce
        self.local, self.executed = False, False
        self.expected = []  # one item, the result that the test wants; none where it has another shape

    def generate(self, function, number):
        self.name = "generate"
        case = function(number)
        self.expected = [case[1]] if type(case) is tuple and len(case) == 2 else []
        return case

    def execute(self, code, names, *rest):
        if "test_input" not in names:  # the test's own use of exec
            return exec(code, names, *rest)
        self.name = "answer"
        first, self.executed = not self.executed, True
        if first and not self.local:
            refuse_unpickling(self)
        if not self.local and not self.remote(code, names):
            if not first:  # the first case decides: a program must not choose to be run beside the test
                raise Rejected("error", "an input that cannot be sent, after one that could")
            self.local = True
        if self.local:
            if first:
                self.announce()
            try:
                exec(code, names)
            except BaseException as error:  # whatever it is, it is the program's
                raise Rejected(*classify(error)) from None
            if "result" not in names:
                raise Rejected("error", "no result")
        self.name = "compare"
        if self.expected and emptiness.differs(names["result"], self.expected[0]):
            raise Rejected("wrong", "the result: no elements where the expected result has some, or the reverse")


def refuse_unpickling(stage: Stage) -> None:
    """After a program has run beside it, the test makes no object of a pickle: the program may have written it.

    Python tells its audit hooks whenever a pickle asks for a class or a function, whichever library reads it. The
    judge's own unpickler (transport.py) does not tell them, and plain data asks for none.
    """

    def hook(event: str, _):
        if event == "pickle.find_class" and stage.name in ("compare", "string") and not stage.local:
            raise Rejected("denied", "the test unpickles more than plain data, which the program may have made")

    sys.addaudithook(hook)


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


class Remote:
    """The judge's line to the candidate. `torch`: the test names it, so it may have moved its generator."""

    def __init__(self, down: int, up: int, pid: int, torch: bool):
        self.down, self.up, self.pid, self.torch = down, up, pid, torch

    def execute(self, code: str, names: dict) -> bool:
        """Run the code there and fetch its `result`; False where the test input cannot be sent."""
        try:
            request = packing.pack_input((code, names["test_input"], random_states(self.torch), files_here()))
        except MemoryError:  # an earlier result may have used it up
            raise Rejected("error", "out of memory") from None
        except Exception:
            return False
        try:
            sandbox.send(self.down, request)
            reply = sandbox.receive(self.up, MAX_RESULT + 1)
        except ValueError as error:
            raise Rejected("error", f"the result is too large: {error}") from None
        except OSError:
            reply = None
        if not reply:
            raise Rejected(*self.ended())
        if reply[:1] == b"E":
            try:
                verdict, message = json.loads(reply[1:])
            except (ValueError, RecursionError):
                verdict, message = None, None
            if verdict not in ("error", "denied") or type(message) is not str:  # no program says "wrong"
                verdict, message = "error", "not a result"
            raise Rejected(verdict, message)
        try:
            names["result"] = transport.unpack(reply[1:] if reply[:1] == b"R" else b"")
        except MemoryError:
            raise
        except Exception as error:
            raise Rejected("error", f"not a result: {type(error).__name__}: {error}") from None
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


def random_states(with_torch: bool) -> dict:
    """Tests seed the generators and answers draw from them: the official program is one process.

    torch's is touched only where it may have moved: in a forked process that alone takes 5 ms.
    """
    states, modules = {"random": random.getstate()}, sys.modules
    if "numpy" in modules:
        states["numpy"] = modules["numpy"].random.get_state()
    if with_torch and "torch" in modules:
        states["torch"] = modules["torch"].get_rng_state()
    return states


# --- the candidate ----------------------------------------------------------------------------------------------------


def run_candidate(down: int, up: int, timeout: float, folder: str, tests: str, strict: bool) -> None:
    """Run code for the judge until the judge is gone.

    It may read the folder of the test: an input may name a file there.
    """
    keep_only(down, up)
    sys.argv = [""]
    try:
        enclose(folder, timeout, strict, tests)
    except Rejected as rejected:
        return sandbox.send(up, rejected.args[1].encode())
    sandbox.send(up, READY)
    while (request := sandbox.receive(down)) is not None:
        code, test_input, states, files = pickle.loads(request)
        random.setstate(states["random"])
        if "numpy" in states:
            sys.modules["numpy"].random.set_state(states["numpy"])
        if "torch" in states:
            sys.modules["torch"].set_rng_state(states["torch"])
        sandbox.send(up, reply_to(code, test_input, files))


def reply_to(code: str, test_input, files: dict) -> bytes:
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
        data = packing.pack(names["result"])
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
