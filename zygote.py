"""A second interpreter with the libraries of DS-1000 loaded once, and what it forks for every program.

Importing pandas, PyTorch and the others takes seconds, a fork takes milliseconds. The zygote imports and then only
forks: one supervisor per worker. A supervisor gives each program an empty folder and a deadline, counts from outside
what no limit of the kernel counts (threads, files, the size of the folder), kills what is left and cleans up. It never
reads a test, so no test of an earlier program is in the memory that a later one inherits.

A deadline counts what judge and program have used of the processors, not the time on the clock: on a busy machine
a good program takes long and uses little. The time of all threads is added up, so two busy threads reach the
deadline in half the time. What sleeps, stops itself or waits for ever uses nothing; it ends at WALL times the
deadline by the clock.

Both sides are in this file: `Zygote` belongs to the main program, the rest runs under the interpreter given by --python.
If the main program dies, the supervisors see the end of their socket, kill what runs, clean up and leave.
"""

import builtins
import contextlib
import gc
import importlib.abc
import importlib.util
import io
import json
import os
import queue
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import sandbox
import walls
from judge_python import LARGE, LOCAL, SEED, dying, load, one_line, run_judge
from sandbox import InfrastructureError

# Imported once, by the zygote. What is missing is missed by the programs that need it.
LIBRARIES = ("numpy", "pandas", "scipy.sparse", "scipy.stats", "scipy.optimize", "scipy.spatial", "scipy.interpolate",
             "scipy.integrate", "scipy.signal", "scipy.ndimage", "matplotlib.pyplot", "seaborn", "PIL.Image", "sklearn",
             "torch")  # fmt: skip
# Loaded and hidden (see Hidden): `import sklearn` alone must not make `sklearn.cluster` appear, as in a fresh interpreter.
PARTS = ("sklearn.preprocessing", "sklearn.datasets", "sklearn.svm", "sklearn.feature_extraction.text", "sklearn.linear_model",
         "sklearn.model_selection", "sklearn.pipeline", "sklearn.cluster", "sklearn.decomposition", "sklearn.ensemble",
         "sklearn.feature_selection", "sklearn.metrics.pairwise", "sklearn.calibration", "sklearn.compose", "sklearn.impute",
         "sklearn.tree", "sklearn.neighbors", "scipy.cluster.hierarchy")  # fmt: skip
NO_VERDICTS = ("broken test", "killed", "infrastructure")  # never believed once the program runs in its judge's process
VERDICTS = ("correct", "wrong", "error", "denied", "timeout", "crash", *NO_VERDICTS)
MAX_FOLDER = 256 << 20  # bytes in a program's folder, counted from outside
MAX_FILES, MAX_PATH, MAX_THREADS = 2000, 2000, 128
DISTURBED = "the program disturbed its judge"
TICK = 0.05  # seconds between looks at a program's folder, threads and time
WALL = 4  # so many times its deadline a program may take by the clock
# One thread each, also in libraries that ask the machine: a process with threads cannot be forked.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
                            "LOKY_MAX_CPU_COUNT", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
ONE_THREAD["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # pandas imports pyarrow where it is installed
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": "",
         "JOBLIB_MULTIPROCESSING": "0", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "Agg",
         "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # large pages: a fork copies fewer entries


class Zygote:
    """An interpreter with the libraries loaded, which forks one supervisor per worker; started by the first request.

    If any part of it dies, all of it ends, and the next request starts it anew.
    """

    def __init__(self, workers: int, python: str, allow_unsandboxed: bool = False):
        self.workers, self.allow_unsandboxed = workers, allow_unsandboxed
        # it starts in another folder; a link is not followed, since that is how a venv's interpreter knows its libraries
        self.python = os.path.abspath(python) if os.path.dirname(python) else shutil.which(python) or python
        self.process: subprocess.Popen | None = None
        self.sockets: list[socket.socket] = []
        self.idle: queue.LifoQueue[socket.socket] = queue.LifoQueue()
        self.folder, self.closed = "", False
        self.lock = threading.Lock()
        self.missing: list[str] = []  # libraries that the interpreter does not have

    def ask(self, head: dict, body: list[str], timeout: float) -> list:
        """[one of VERDICTS, message, seconds by the clock] of a program.

        It may use `timeout` seconds of processor time. A supervisor that dies is no verdict: it is asked once more.
        """
        if not self.allow_unsandboxed and not walls.is_strict():
            raise InfrastructureError(f"this machine has not all the walls that a hostile program needs ({walls.tier()}); "
                                      "--allow-unsandboxed runs Python answers without them")
        for last in (False, True):
            try:
                process, idle = self._started()
            except InfrastructureError:
                if last or self.closed:
                    raise
                continue
            if process is None:
                break
            line = idle.get()
            reply = self._exchange(line, (head, body), WALL * timeout + sandbox.START_SECONDS)
            if reply is not None:
                idle.put(line)
                return reply
            line.close()
            self.stop(process)
        raise InfrastructureError("the verifier is closed" if self.closed else "the Python worker died twice")

    @staticmethod
    def _exchange(line, messages: tuple, timeout: float):
        """Messages out, one back; None where the other end is gone or late."""
        deadline = time.monotonic() + timeout
        try:
            for message in messages:
                sandbox.send(line.fileno(), json.dumps(message).encode(), deadline)
            reply = sandbox.receive(line.fileno(), deadline=deadline)
        except OSError:
            return None
        return json.loads(reply) if reply else None

    def _started(self):
        with self.lock:
            if self.process is None and not self.closed:
                self._start()
            return self.process, self.idle

    def _start(self) -> None:
        pairs = [socket.socketpair() for _ in range(self.workers)]
        ends = [theirs.fileno() for _, theirs in pairs]
        self.folder = tempfile.mkdtemp(prefix="codelutra-")
        code = (f"import sys; sys.path[:] = [p for p in sys.path if p] + [{sandbox.HERE!r}]; import zygote as z; "
                f"z.zygote({ends}, {self.folder!r}, {not self.allow_unsandboxed})")
        with tempfile.TemporaryFile() as errors:
            try:
                self.process = subprocess.Popen([self.python, "-s", "-c", code], stdin=subprocess.DEVNULL, cwd="/",
                                                stdout=subprocess.DEVNULL, stderr=errors, pass_fds=ends,
                                                env=sandbox.clean_environment() | ONE_THREAD | QUIET, start_new_session=True)
            except OSError as error:
                os.rmdir(self.folder)
                raise InfrastructureError(f"{self.python} cannot be started: {error}") from None
            finally:
                for _, theirs in pairs:
                    theirs.close()
            self.sockets, self.idle = [ours for ours, _ in pairs], queue.LifoQueue()
            for line in self.sockets:
                line.setblocking(False)
                hello = self._exchange(line, (), sandbox.START_SECONDS)
                if hello is None:
                    errors.seek(0)
                    last = errors.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
                    self._end()
                    raise InfrastructureError(f"{self.python} did not start the Python judge: {last or 'no reply'}")
                self.idle.put(line)
            self.missing = hello["missing"]
        if hello["threads"] > 1:
            self._end()
            raise InfrastructureError(f"{self.python}: a library starts threads when it is imported")

    def stop(self, process=None) -> None:
        """End it: for good, or only if it is still this one."""
        with self.lock:
            self.closed = self.closed or process is None
            if self.process is not None and process in (None, self.process):
                self._end()

    def _end(self) -> None:
        for line in self.sockets:  # the supervisors end what they run, clean up and leave
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(queue.Empty):
            while True:  # a line that a thread is using is closed by that thread
                self.idle.get_nowait().close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        sandbox.remove(self.folder)
        self.process, self.sockets = None, []


# --- in the other interpreter: the zygote and its supervisors ----------------------------------------------------------


def zygote(sockets: list[int], temporary: str, strict: bool) -> None:
    """The whole life of the zygote: import, fork a supervisor per socket, and clean up when the first one ends."""
    sys.path[:] = [path for path in sys.path if path and path != sandbox.HERE]
    os.environ["MPLCONFIGDIR"] = os.environ["HOME"] = temporary
    share = os.path.join(sys.prefix, "share")  # some tests load a data set by name: `make ds1000` puts them here
    os.environ["SEABORN_DATA"] = os.path.join(share, "seaborn-data")
    os.environ["SCIKIT_LEARN_DATA"] = os.path.join(share, "scikit-learn-data")
    missing = [name for name in LIBRARIES if not load(name)]
    sys.meta_path.insert(0, Hidden(PARTS))
    warm_up()
    walls.readable_paths()
    hello = {"missing": missing, "threads": threads(os.getpid())}
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


class Hidden(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules that are in memory and not yet in sight: to import one shows it, and what it imports, without running it again.

    Until then a program sees what a fresh interpreter would, and fails where that would fail. (What compiled modules import
    among themselves is not recorded: it stays out of sight until a program names it.)
    """

    def __init__(self, names):
        self.modules, self.specs, self.imports = {}, {}, {}  # by name; the names that a module has imported, in order
        visible, original = set(sys.modules), builtins.__import__

        def record(name, globals=None, locals=None, fromlist=(), level=0):
            result = original(name, globals, locals, fromlist, level)
            own = globals or {}
            if level:
                name = importlib.util.resolve_name("." * level + name, own.get("__package__"))
            parts = [f"{name}.{part}" for part in fromlist or () if f"{name}.{part}" in sys.modules]
            self.imports.setdefault(own.get("__name__"), []).extend([name, *parts])
            return result

        builtins.__import__ = record
        try:
            for name in names:
                load(name)
        finally:
            builtins.__import__ = original
        hidden = [name for name in sys.modules if name not in visible]
        self.modules = {name: sys.modules[name] for name in hidden}
        for name in hidden:
            parent, _, leaf = name.rpartition(".")
            parent = sys.modules.get(parent) or self.modules.get(parent)
            if vars(parent or self).get(leaf) is self.modules[name]:
                delattr(parent, leaf)
            self.specs[name] = getattr(self.modules[name], "__spec__", None)
            del sys.modules[name]

    def find_spec(self, name, path=None, target=None):
        if name in self.modules:
            return importlib.util.spec_from_loader(name, self, is_package=hasattr(self.modules[name], "__path__"))

    def create_module(self, spec):
        return self.modules[spec.name]

    def exec_module(self, module):
        name = module.__spec__.name
        module.__spec__ = self.specs[name]
        for other in self.imports.get(name, ()):
            with contextlib.suppress(ImportError):  # it had a way to do without
                importlib.import_module(other)


def finished(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def warm_up() -> None:
    """What libraries do once per process, done once for all: the first picture searches the fonts.

    And the generators start alike in every zygote: a program that draws without a seed gets the same verdict every time.
    """
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(SEED)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(SEED)
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
    sandbox.send(fd, json.dumps(hello).encode())
    while (head := sandbox.receive(fd)) is not None:
        head = json.loads(head)
        for name in LARGE:
            if any(module.split(".")[0] == name for module in head["imports"]) and name not in sys.modules:
                load(name)
                gc.collect()
                gc.freeze()
        folder = os.path.join(temporary, f"{os.getpid()}-{time.monotonic_ns()}")
        os.mkdir(folder, 0o700)
        try:
            verdict = run_one(fd, head, folder, strict)
        finally:
            sandbox.remove(folder)
        sandbox.send(fd, json.dumps(verdict).encode())


def run_one(fd: int, head: dict, folder: str, strict: bool) -> tuple[str, str, float]:
    """Fork the judge, wait for its report until the deadline, and leave nothing behind."""
    started = time.monotonic()
    nonce = os.urandom(16).hex()
    reader, writer = os.pipe()
    parent, judge = os.getpid(), os.fork()
    if judge == 0:
        with dying():
            sandbox.die_with_parent(parent)
            os.setsid()  # where the kernel shares the processor among sessions, its threads starve nobody else
            os.close(reader)
            run_judge(fd, writer, nonce, head, folder, strict)
    os.close(writer)
    pids, local = [judge], []
    try:
        verdict, message = watch(reader, fd, nonce, pids, local, head["timeout"], folder)
    finally:
        os.close(reader)
        for pid in pids:  # the judge first: nobody else collects the candidate before this process can
            with contextlib.suppress(ProcessLookupError):  # a program in its judge's process may have collected it
                os.kill(pid, signal.SIGKILL)
        used = max(memory_of(pid) for pid in pids)
    if verdict == "killed":  # not by this process: by the machine, for lack of memory
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        verdict, message = "infrastructure", "killed from outside (is the machine out of memory?)"
        if used - own > walls.MEMORY >> 13:  # and rightly so: more than an eighth of what a program may have
            verdict, message = "error", "out of memory"
    if local and verdict != "infrastructure":
        message = f"in one process: {message}"[:300].rstrip(": ")
    return verdict, message, time.monotonic() - started


def memory_of(pid: int) -> int:
    """Wait for the end of a child: the most memory that it had, in kilobytes."""
    with contextlib.suppress(ChildProcessError):
        return os.wait4(pid, 0)[2].ru_maxrss
    return 0


def watch(reader: int, verifier: int, nonce: str, pids: list[int], local: list, timeout: float,
          folder: str) -> tuple[str, str]:
    end, poll = time.monotonic() + WALL * timeout, select.poll()
    poll.register(reader, select.POLLIN)
    poll.register(verifier, select.POLLRDHUP)
    while True:
        if sum(map(sandbox.processor_seconds, pids)) >= timeout:
            return "timeout", f"more than {timeout:g} s of processor time"
        left = end - time.monotonic()
        if left <= 0:
            return "timeout", f"longer than {WALL * timeout:g} s, most of it asleep or waiting"
        events = dict(poll.poll(min(left, TICK) * 1000))
        if verifier in events:
            os.kill(pids[0], signal.SIGKILL)
            raise SystemExit  # the verifier is gone, and so is this supervisor after cleaning up
        if reader in events:
            try:
                report = sandbox.receive(reader, 10_000, time.monotonic() + 0.5)  # written in one go
                if report is None:
                    return judge_died(pids[0])
                who, what, *message = json.loads(report)
                if len(pids) == 1:  # the first report comes before the judge has read the test
                    pids.append(what)
                elif [who, what] == LOCAL and not local:
                    local.append(True)
                elif who == nonce and what in VERDICTS and type(message[0]) is str and not (
                        local and what in NO_VERDICTS):  # fmt: skip
                    return what, one_line(message[0])
                else:
                    return "error", DISTURBED
            except Exception:  # not JSON, not this shape, too deep, too late…: only where both are one process
                return "error", DISTURBED
        elif complaint := excess(pids, folder):
            return "error", complaint


def judge_died(pid: int) -> tuple[str, str]:
    end = time.monotonic() + 2
    while (status := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)) is None:
        if time.monotonic() > end:  # it lives on and has closed the pipe
            return "error", DISTURBED
        time.sleep(0.002)
    if status.si_code == os.CLD_EXITED:
        return "error", "the program ended the process before it was judged"
    if status.si_status == signal.SIGKILL:
        return "killed", ""
    return "crash", f"signal {status.si_status}"


def excess(pids: list[int], folder: str) -> str:
    """What a program has too much of; files that it has deleted and still holds open or mapped count too."""
    size = count = 0
    deleted, own = {}, os.path.realpath(folder).encode() + b"/"  # {inode: bytes}
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
                    if status.st_nlink == 0:
                        deleted[status.st_ino] = status.st_blocks * 512
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as lines:
            for line in lines:
                if line.endswith(b" (deleted)\n") and own in line:  # how large it is, only root may ask
                    deleted.setdefault(int(line.split(maxsplit=5)[4]), walls.FILE_SIZE)
    size += sum(deleted.values())
    if count >= MAX_FILES:
        return f"more than {MAX_FILES} files"
    return "" if size <= MAX_FOLDER else f"more than {MAX_FOLDER >> 20} MB of files"
