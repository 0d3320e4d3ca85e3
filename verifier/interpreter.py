"""Main process: starts and asks a second interpreter that has the libraries of DS-1000 loaded (zygote.py).

A deadline counts what judge and program have used of the processors, not the time on the clock: on a busy
machine a good program takes long and uses little. The time of all threads is added up, so two busy threads
reach the deadline in half the time. What sleeps, stops itself or waits for ever uses nothing; it ends at WALL
times the deadline by the clock.

If the main process dies, the supervisors see the end of their socket, kill what runs, clean up and leave.
"""

import ast
import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from functools import lru_cache
from typing import IO, Any

from verifier import walls
from verifier.child import PROJECT, START_SECONDS, clean_environment, receive, remove, send
from verifier.verdicts import InfrastructureError

WALL = 4  # so many times its deadline a program may take by the clock
# One thread each, also in libraries that ask the machine: a process with threads cannot be forked.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMEXPR_NUM_THREADS": "1",
    "LOKY_MAX_CPU_COUNT": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1",
    # Pyarrow's, which pandas imports where it is installed.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}  # fmt: skip
QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": "",
    "JOBLIB_MULTIPROCESSING": "0", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "Agg",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # large pages: a fork copies fewer entries
}  # fmt: skip


class Interpreter:
    """An interpreter with the libraries loaded, which forks one supervisor per worker.

    The first request starts it. If any part of it dies, all of it ends, and the next request starts it anew.
    """

    def __init__(self, workers: int, python: str, allow_unsandboxed: bool = False):
        self.workers, self.allow_unsandboxed = workers, allow_unsandboxed
        # It starts in another folder. A link is not followed: by it a venv's interpreter knows its libraries.
        self.python = os.path.abspath(python) if os.path.dirname(python) else shutil.which(python) or python
        self.process: subprocess.Popen | None = None
        self.sockets: list[socket.socket] = []
        self.idle: queue.LifoQueue[socket.socket] = queue.LifoQueue()
        self.folder, self.closed = "", False
        self.lock = threading.Lock()
        self.missing: list[str] = []  # libraries that the interpreter does not have

    def ask(self, kind: str, job: list, timeout: float) -> tuple[str, str, float, float]:
        """What supervisor.Program.run returns of a program.

        kind: python (DS-1000) or tests. job: what the judge reads, whose first item is code, a test or a
        setup: what it imports is loaded before the program runs.
        timeout: the seconds of processor time that it may use. A supervisor that dies is no verdict: it is
        asked once more.
        """
        if not self.allow_unsandboxed and not walls.is_strict():
            raise InfrastructureError(
                f"this machine has not all the walls that a hostile program needs ({walls.tier()}); "
                "--allow-unsandboxed runs Python answers without them"
            )
        head = {"kind": kind, "imports": imports_of(job[0]), "timeout": timeout}
        head["by_the_clock"] = WALL * timeout
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
            # The supervisor reads the first message alone; the judge reads the second, with the test.
            reply = self._exchange(line, (head, job), WALL * timeout + START_SECONDS)
            if reply is not None:
                idle.put(line)
                return tuple(reply)
            line.close()
            self.stop(process)
        raise InfrastructureError("the verifier is closed" if self.closed else "the Python worker died twice")

    @staticmethod
    def _exchange(line: socket.socket, messages: tuple, timeout: float) -> Any:
        """Messages out, one back; None where the other end is gone or late."""
        deadline = time.monotonic() + timeout
        try:
            for message in messages:
                send(line.fileno(), json.dumps(message).encode(), deadline)
            reply = receive(line.fileno(), deadline=deadline)
        except OSError:
            return None
        return json.loads(reply) if reply else None

    def _started(self) -> tuple[subprocess.Popen | None, queue.LifoQueue[socket.socket]]:
        with self.lock:
            if self.process is None and not self.closed:
                self._start()
            return self.process, self.idle

    def _start(self) -> None:
        pairs = [socket.socketpair() for _ in range(self.workers)]
        ends = [theirs.fileno() for _, theirs in pairs]
        self.folder = tempfile.mkdtemp(prefix="codelutra-")
        with tempfile.TemporaryFile() as errors:
            try:
                self.process = self._launch(ends, errors)
            except OSError as error:
                os.rmdir(self.folder)
                raise InfrastructureError(f"{self.python} cannot be started: {error}") from None
            finally:
                for _, theirs in pairs:
                    theirs.close()
            self.sockets, self.idle = [ours for ours, _ in pairs], queue.LifoQueue()
            for line in self.sockets:
                line.setblocking(False)
                hello = self._exchange(line, (), START_SECONDS)
                if hello is None:
                    errors.seek(0)
                    last = errors.read().decode("utf-8", "replace").strip().rpartition("\n")[2] or "no reply"
                    self._end()
                    raise InfrastructureError(f"{self.python} did not start the Python judge: {last}")
                self.idle.put(line)
            self.missing = hello["missing"]
        if hello["threads"] > 1:
            self._end()
            raise InfrastructureError(f"{self.python}: a library starts threads when it is imported")

    def _launch(self, ends: list[int], errors: IO[bytes]) -> subprocess.Popen:
        """Start the other interpreter. It finds this package by its file, so its path stays its own."""
        file = os.path.join(PROJECT, "verifier", "__init__.py")
        code = (
            "import importlib.util, sys; "
            f"spec = importlib.util.spec_from_file_location('verifier', {file!r}); "
            "sys.modules['verifier'] = importlib.util.module_from_spec(spec); "
            "from verifier import zygote; "
            f"zygote.main({ends}, {self.folder!r}, {not self.allow_unsandboxed})"
        )
        return subprocess.Popen(
            [self.python, "-s", "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=ends,
            cwd="/",
            env=clean_environment() | ONE_THREAD | QUIET,
            start_new_session=True,
        )

    def stop(self, process: subprocess.Popen | None = None) -> None:
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
        remove(self.folder)
        self.process, self.sockets = None, []


@lru_cache(maxsize=1000)
def imports_of(context: str) -> list[str]:
    """The modules that a test imports anywhere. The official program has loaded them when the answer runs."""
    try:
        tree = ast.parse(context)
    except (SyntaxError, ValueError):
        return []  # the judge will say what is wrong with it
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return list(dict.fromkeys(names))
