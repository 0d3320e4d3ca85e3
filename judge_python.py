"""Python programs -> verdicts: DS-1000's official test, with the program in a process that cannot see the test.

The official program is `code_context`, then `test_execution(answer)`, then `test_string(answer)` where there is one; no
exception means a pass. That is what runs here, unchanged, in the judge. Only the `exec` that the context calls is
another one: it sends the code and the test input to the candidate and brings back `result`. So the reference answer,
which `generate_test_case` computes, is never in the candidate's memory.

    verify.py --socket--> zygote: imports the libraries once, then forks one supervisor per worker
                          supervisor: per program an empty folder, the deadline, the kill; it never reads the test
                          judge: forked per program; forks the candidate, and only then reads the test
                          candidate: forked before the test was read, behind the walls (walls.py)

Only data travels from the candidate to the judge (transport.py). The judge stands behind the same walls.

Some tests look at the state of the process instead of `result`: all of Matplotlib's, which ask for the current figure.
Those, and inputs that cannot be sent, run whole in one process behind the walls. That is weaker: a hostile program can
reach the test's objects there. The verdict's message then begins with "in one process".

This file runs under the interpreter given by --python and needs nothing but the standard library.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import pickle
import random
import resource
import select
import signal
import sys
import tempfile
import time

import sandbox
import transport
import walls

# Imported once, by the zygote. What is missing is missed by the programs that need it. scikit-learn's parts are not
# here: `import sklearn` alone must not make `sklearn.cluster` appear, as it does not in a fresh interpreter.
LIBRARIES = ("numpy", "pandas", "scipy.sparse", "scipy.stats", "scipy.optimize", "scipy.spatial", "scipy.interpolate",
             "scipy.integrate", "scipy.signal", "scipy.ndimage", "matplotlib.pyplot", "seaborn", "PIL.Image", "sklearn",
             "torch")  # fmt: skip
LARGE = ("tensorflow",)  # imported by a supervisor when the first program asks for it
VERDICTS = ("correct", "wrong", "error", "denied", "timeout", "crash", "killed", "infrastructure")
MAX_RESULT = 64 << 20  # bytes of a packed result
MAX_FOLDER = 256 << 20  # bytes in a program's folder, counted from outside
MAX_FILES, MAX_PATH, MAX_THREADS = 2000, 2000, 128
READY = b"ready"
TICK = 0.05  # seconds between looks at a program's folder and threads


class Rejected(BaseException):
    """A verdict other than correct; no `except Exception` and no bare return of the test's own may catch it twice."""


# --- messages: 8 bytes of length, then the bytes ----------------------------------------------------------------------


def send(fd: int, data: bytes) -> None:
    view = memoryview(len(data).to_bytes(8, "little") + data)
    while view:
        view = view[os.write(fd, view):]


def receive(fd: int, limit: int | None = None, deadline: float | None = None) -> bytes | None:
    """None at the end of the pipe; ValueError where more than `limit` bytes are announced."""
    head = sandbox._read_exactly(fd, 8, deadline)
    if head is None:
        return None
    size = int.from_bytes(head, "little")
    if limit is not None and size > limit:
        raise ValueError(f"a message of {size} bytes")
    return sandbox._read_exactly(fd, size, deadline) if size else b""


# --- the zygote and its supervisors -----------------------------------------------------------------------------------


def zygote(sockets: list[int], temporary: str, strict: bool) -> None:
    """The whole life of the zygote: import, fork a supervisor per socket, and clean up when the first one ends."""
    sys.path[:] = [path for path in sys.path if path and path != sandbox.HERE]
    os.environ["MPLCONFIGDIR"] = os.environ["HOME"] = temporary
    share = os.path.join(sys.prefix, "share")  # some tests load a data set by name: `make ds1000` puts them here
    os.environ["SEABORN_DATA"] = os.path.join(share, "seaborn-data")
    os.environ["SCIKIT_LEARN_DATA"] = os.path.join(share, "scikit-learn-data")
    missing = [name for name in LIBRARIES if not load(name)]
    warm_up()
    walls.readable_paths()
    hello = {"missing": missing, "tier": walls.tier(), "threads": threads(os.getpid())}
    gc.collect()
    gc.freeze()  # the children would otherwise copy every page that the collector touches
    parent, children = os.getpid(), []
    for own in sockets:
        child = os.fork()
        if child == 0:
            for other in sockets:
                if other != own:
                    os.close(other)
            with dying():
                sandbox.die_with_parent(parent)
                supervise(own, hello, temporary, strict)
        children.append(child)
    for fd in sockets:
        os.close(fd)
    os.wait()  # they end together, when the verifier closes or dies
    for child in children:
        end = time.monotonic() + 3
        while time.monotonic() < end and not finished(child):
            time.sleep(0.005)
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
    sandbox.remove(temporary)


@contextlib.contextmanager
def dying():
    """A forked child never returns into its parent's code."""
    status = 1
    try:
        yield
        status = 0
    finally:
        os._exit(status)


def finished(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def load(name: str) -> bool:
    try:
        importlib.import_module(name)
        if name == "torch":
            sys.modules["torch"].set_num_threads(1)
        return True
    except Exception:
        return False


def warm_up() -> None:
    """What libraries do once per process, done once for all: the first picture searches the fonts."""
    with contextlib.suppress(Exception):
        plt = sys.modules["matplotlib.pyplot"]
        plt.figure().gca().set_title("$x$")
        plt.savefig(io.BytesIO(), format="png", bbox_inches="tight")
        plt.close("all")
    with contextlib.suppress(Exception):
        torch = sys.modules["torch"]
        torch.testing.assert_close(torch.ones(1), torch.ones(1))
        torch.optim.SGD([torch.ones(1)], lr=0.1)


def threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def supervise(fd: int, hello: dict, temporary: str, strict: bool) -> None:
    """One program after another, until the verifier closes its end."""
    walls.LIBC.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: a candidate whose judge has died becomes its child
    send(fd, json.dumps(hello).encode())
    while (head := receive(fd)) is not None:
        head = json.loads(head)
        for name in LARGE:
            if any(module.split(".")[0] == name for module in head["imports"]) and name not in sys.modules:
                load(name)
        folder = os.path.join(temporary, f"{os.getpid()}-{time.monotonic_ns()}")
        os.mkdir(folder, 0o700)
        try:
            verdict = run_one(fd, head, folder, strict)
        finally:
            sandbox.remove(folder)
        send(fd, json.dumps(verdict).encode())


def run_one(fd: int, head: dict, folder: str, strict: bool) -> tuple[str, str, float]:
    """Fork the judge, wait for its report until the deadline, and leave nothing behind."""
    started = time.monotonic()
    nonce = os.urandom(16).hex()
    reader, writer = os.pipe()
    parent, judge = os.getpid(), os.fork()
    if judge == 0:
        with dying():
            sandbox.die_with_parent(parent)
            os.close(reader)
            run_judge(fd, writer, nonce, head, folder, strict)
    os.close(writer)
    pids = [judge]
    try:
        verdict, message = watch(reader, fd, nonce, pids, started + head["timeout"], folder)
    finally:
        os.close(reader)
        for pid in pids:  # the judge first: nobody else collects the candidate before this process can
            os.kill(pid, signal.SIGKILL)
        used = max(memory_of(pid) for pid in pids)
    if verdict == "killed":  # not by this process: by the machine, for lack of memory
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        verdict, message = "infrastructure", "killed from outside (is the machine out of memory?)"
        if used - own > walls.MEMORY >> 13:  # and rightly so: more than an eighth of what a program may have
            verdict, message = "error", "out of memory"
    if verdict == "timeout":
        message = message or f"longer than {head['timeout']:g} s"
    return verdict, message, time.monotonic() - started


def memory_of(pid: int) -> int:
    """Wait for the end of a child: the most memory that it had, in kilobytes."""
    with contextlib.suppress(ChildProcessError):
        return os.wait4(pid, 0)[2].ru_maxrss
    return 0


def watch(reader: int, verifier: int, nonce: str, pids: list[int], deadline: float, folder: str) -> tuple[str, str]:
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    poll.register(verifier, select.POLLRDHUP)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return "timeout", ""
        events = dict(poll.poll(min(left, TICK) * 1000))
        if verifier in events:
            os.kill(pids[0], signal.SIGKILL)
            raise SystemExit  # the verifier is gone, and so is this supervisor after cleaning up
        if reader in events:
            try:
                report = receive(reader, 10_000, deadline)
                who, what, *message = json.loads(report or b"[0, 0, 0]")
            except (TimeoutError, ValueError):
                return "error", "the program disturbed its judge"  # only where both are one process
            if report is None:
                return judge_died(pids[0])
            if len(pids) == 1:  # the first report comes before the judge has read the test
                pids.append(what)
            elif who == nonce and what in VERDICTS:
                return what, message[0]
        elif complaint := excess(pids, folder):
            return "error", complaint


def judge_died(pid: int) -> tuple[str, str]:
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    if status.si_code == os.CLD_EXITED:
        return "error", "the program ended the process before it was judged"
    if status.si_status == signal.SIGKILL:
        return "killed", ""
    return "crash", f"signal {status.si_status}"


def excess(pids: list[int], folder: str) -> str:
    """What a program has too much of; files that it has deleted and still holds open count too."""
    size = count = 0
    stack = [folder]
    while stack and count < MAX_FILES:
        with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                count += 1
                with contextlib.suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if len(entry.path) > MAX_PATH:  # past the kernel's 4096 nothing could be counted
                        return "folders too deep"
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
    for pid in pids:
        if threads(pid) > MAX_THREADS:
            return f"more than {MAX_THREADS} threads"
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    status = os.stat(f"/proc/{pid}/fd/{name}")
                    size += status.st_blocks * 512 if status.st_nlink == 0 else 0
    if count >= MAX_FILES:
        return f"more than {MAX_FILES} files"
    return "" if size <= MAX_FOLDER else f"more than {MAX_FOLDER >> 20} MB of files"


# --- the judge --------------------------------------------------------------------------------------------------------


def run_judge(verifier: int, report: int, nonce: str, head: dict, folder: str, strict: bool) -> None:
    """Fork the candidate, read the test, run it, report. Ends by `os._exit`, in `dying`."""
    os.chdir(folder)
    os.environ["HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = folder
    for name in head["imports"]:  # what the context will have imported when the official program runs the answer
        if name.split(".")[0] in sys.modules or name.split(".")[0] not in LARGE:
            load(name)
    down, up = os.pipe(), os.pipe()
    parent, candidate = os.getpid(), os.fork()
    if candidate == 0:
        with dying():
            sandbox.die_with_parent(parent)
            run_candidate(down[0], up[1], head, folder, strict)
    os.close(down[0])
    os.close(up[1])
    send(report, json.dumps(["candidate", candidate]).encode())
    context, answer = json.loads(receive(verifier))
    keep_only(report, down[1], up[0])
    try:
        enclose(folder, head["timeout"], strict)
        if (hello := receive(up[0])) != READY:  # sent before the candidate has read a line of the program
            raise Rejected("infrastructure", (hello or b"the candidate did not start").decode())
        remote = Remote(down[1], up[0], candidate)
        verdict, message = official(context, answer, remote.execute)
    except Rejected as rejected:
        verdict, message = rejected.args
    except MemoryError:
        verdict, message = "error", "out of memory"
    except BaseException as error:
        verdict, message = "infrastructure", f"the judge failed: {type(error).__name__}: {error}"
    message = " ".join(str(message).encode("utf-8", "replace").decode().split())[:300]
    send(report, json.dumps([nonce, verdict, message]).encode())


def enclose(folder: str, seconds: float, strict: bool) -> None:
    try:
        walls.enclose(folder, seconds)
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


def official(context: str, answer: str, execute) -> tuple[str, str]:
    """The official program: the context, `test_execution`, `test_string`."""
    stage = Stage(execute)
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
        where = {"context": "the test itself fails", "generate": "the test itself fails"}.get(stage.name)
        if where:
            raise Rejected("infrastructure", f"{where}: {type(error).__name__}: {error}") from None
        what = "the text of the answer" if stage.name == "string" else "the result"
        return stage.here(("wrong", f"{what}: {type(error).__name__}: {describe(error)}"))
    return stage.here(("correct", ""))


def needs_one_process(context: str) -> bool:
    """Whether the test looks at more than `result`: at the current figure, at a file that the program wrote."""
    return "plt.gcf(" in context or "plt.gca(" in context or "output.png" in context


class Stage:
    """Where the official program is, to tell a broken test from a wrong answer."""

    def __init__(self, execute):
        self.name, self.remote, self.local = "context", execute, False

    def generate(self, function, number):
        self.name = "generate"
        return function(number)

    def execute(self, code, names, *rest):
        if "test_input" not in names:  # the test's own use of exec
            return exec(code, names, *rest)
        self.name = "answer"
        self.local = self.local or not self.remote(code, names)
        if self.local:
            try:
                exec(code, names)
            except BaseException as error:  # whatever it is, it is the program's
                raise Rejected(*self.here(classify(error))) from None
            if "result" not in names:
                raise Rejected(*self.here(("error", "no result")))
        self.name = "compare"

    def here(self, verdict: tuple[str, str]) -> tuple[str, str]:
        return (verdict[0], " ".join(["in one process:", verdict[1]]).strip(": ")) if self.local else verdict


class Remote:
    """The judge's line to the candidate."""

    def __init__(self, down: int, up: int, pid: int):
        self.down, self.up, self.pid = down, up, pid

    def execute(self, code: str, names: dict) -> bool:
        """Run the code there and fetch its `result`; False where the test input cannot be sent."""
        try:
            request = transport.pack_input((code, names["test_input"], random_states()))
        except Exception:
            return False
        try:
            send(self.down, request)
            reply = receive(self.up, MAX_RESULT + 1)
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
            if verdict not in ("error", "wrong", "denied") or type(message) is not str:
                verdict, message = "error", "not a result"
            raise Rejected(verdict, message)
        try:
            names["result"] = transport.unpack(reply[1:] if reply[:1] == b"R" else b"")
        except MemoryError:
            raise
        except Exception as error:
            raise Rejected("error", f"not a result: {type(error).__name__}: {error}") from None
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


def random_states() -> dict:
    """Tests seed the generators and answers draw from them: the official program is one process."""
    states = {"random": random.getstate()}
    if numpy := sys.modules.get("numpy"):
        states["numpy"] = numpy.random.get_state()
    if torch := sys.modules.get("torch"):
        states["torch"] = torch.get_rng_state()
    return states


# --- the candidate ----------------------------------------------------------------------------------------------------


def run_candidate(down: int, up: int, head: dict, folder: str, strict: bool) -> None:
    """Run code for the judge until the judge is gone."""
    keep_only(down, up)
    sys.argv = [""]
    try:
        enclose(folder, head["timeout"], strict)
    except Rejected as rejected:
        return send(up, rejected.args[1].encode())
    send(up, READY)
    while (request := receive(down)) is not None:
        code, test_input, states = pickle.loads(request)
        random.setstate(states["random"])
        if "numpy" in states:
            sys.modules["numpy"].random.set_state(states["numpy"])
        if "torch" in states:
            sys.modules["torch"].set_rng_state(states["torch"])
        send(up, reply_to(code, test_input))


def reply_to(code: str, test_input) -> bytes:
    names = {"test_input": test_input}
    try:
        exec(code, names)
        if "result" not in names:
            return b"E" + json.dumps(["error", "no result"]).encode()
        data = transport.pack(names["result"])
        if len(data) > MAX_RESULT:
            return b"E" + json.dumps(["error", f"a result of {len(data)} bytes"]).encode()
        return b"R" + data
    except BaseException as error:
        return b"E" + json.dumps(classify(error)).encode()


def classify(error: BaseException) -> tuple[str, str]:
    """An exception of the program: did a wall cause it?"""
    cause, verdict = error, "error"
    for _ in range(10):
        if isinstance(cause, PermissionError):
            verdict = "denied"
        cause = cause.__cause__ or cause.__context__
        if cause is None:
            break
    if verdict == "error" and type(error) is AssertionError:
        verdict = "wrong"  # some contexts assert beside the answer
    return verdict, f"{type(error).__name__}: {describe(error)}"


def describe(error: BaseException) -> str:
    try:
        text = str(error)
        return text[:300].encode("utf-8", "replace").decode() if type(text) is str else ""
    except BaseException:  # its __str__ may do anything
        return ""
