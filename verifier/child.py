"""Child processes: how one is started and asked, what it puts on itself, and the messages between processes.

What stands here needs no privilege, no container and no extra service: a fresh interpreter with a clean
environment, resource limits that the child puts on itself before it reads its first request, pipes as the
only way in and out, and a kill when an answer is late. The main process may hold a GPU and many threads, so
nothing is ever forked from it: `fork` in a process with threads copies locks that nobody will release.
"""

import contextlib
import ctypes
import marshal
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the folder that holds this package
# An interpreter starts in 0.05 s. On a machine that swaps it may take long, and that is no verdict.
START_SECONDS = 60
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH")  # needed by some builds of Python; nothing secret lives in them


class Late(Exception):
    """The child did not reply by the deadline; it has been killed."""


class Died(Exception):
    """The child ended by itself, or somebody ended it; `status` is its exit status (-9: SIGKILL)."""

    def __init__(self, status: int):
        super().__init__(f"exit status {status}")
        self.status = status


def clean_environment() -> dict[str, str]:
    """No token and no key reaches a child; the time zone is fixed, for queries that use 'localtime'."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return kept | {"LC_ALL": "C.UTF-8", "TZ": "UTC"}


def limit_resources(memory: int, file_size: int) -> None:
    """Called by the child on itself: limits in bytes that it cannot raise again."""
    limits = {resource.RLIMIT_AS: memory, resource.RLIMIT_FSIZE: file_size, resource.RLIMIT_CORE: 0}
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))
    try:  # if the machine runs out of memory, this child goes before the training run does
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


def die_with_parent(parent: int) -> None:
    """A parent that is killed leaves no child behind, not even one inside a C call (PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


@contextlib.contextmanager
def dying() -> Iterator[None]:
    """Around all that a forked process does: it ends there, and never returns into its parent's code."""
    status = 1
    try:
        yield
        status = 0
    finally:
        os._exit(status)


def serve(answer: Callable[..., tuple]) -> None:
    """The child's loop: one reply for each request, until the parent closes the pipe."""
    send(1, marshal.dumps(True))  # ready: the clock of the first request starts after the imports
    while (request := receive(0)) is not None:
        send(1, marshal.dumps(answer(*marshal.loads(request))))


class Child:
    """A fresh interpreter that runs `module.main`, which calls `serve`; started by the first request."""

    def __init__(self, module: str):
        self.module = module
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        code = f"import sys; sys.path.append({PROJECT!r}); import {self.module} as m; m.main({os.getpid()})"
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code],  # no user site, no PYTHON* variables, no site-packages
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env=clean_environment(),
            start_new_session=True,  # Ctrl-C is the parent's
        )
        try:
            self._receive(START_SECONDS)
        except Late:
            raise Died(-signal.SIGKILL) from None

    def ask(self, request: tuple, timeout: float) -> Any:
        """The reply to one request.

        Raises Late (it was killed at the deadline) or Died; the next request then starts a new child.
        """
        if self.process is None:
            self.start()
        try:
            send(self.process.stdin.fileno(), marshal.dumps(request))
        except OSError:  # it died while it was idle
            raise Died(self.stop()) from None
        return self._receive(timeout)

    def _receive(self, timeout: float) -> Any:
        try:
            reply = receive(self.process.stdout.fileno(), deadline=time.monotonic() + timeout)
        except TimeoutError:
            self.stop(kill=True)
            raise Late from None
        if reply is None:
            raise Died(self.stop())
        return marshal.loads(reply)

    def kill(self) -> None:
        """From another thread: whoever waits for this child sees it die."""
        if process := self.process:
            process.kill()

    def stop(self, kill: bool = False) -> int:
        """End the child if it still runs and return its exit status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.stdin.close()  # a healthy child leaves at the end of its input
        try:
            status = process.wait(0 if kill else 1)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        process.stdout.close()
        return status


def processor_seconds(pid: int) -> float:
    """Processor time of a process: of all its threads, ended ones too, and of its collected children."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name before it may hold anything
    except OSError:  # it has been collected
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def delay_seconds(pid: int) -> float | None:
    """How long the threads that a process has now were ready to run while no processor was free.

    What sleeps or was stopped is not ready to run. None where the kernel does not say.
    """
    if not os.path.exists("/proc/self/schedstat"):
        return None
    nanoseconds = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            path = f"/proc/{pid}/task/{thread}/schedstat"
            with contextlib.suppress(OSError), open(path, "rb") as file:  # or the thread has ended
                nanoseconds += int(file.read().split()[1])
    except OSError:  # it has been collected
        pass
    return nanoseconds / 1e9


def remove(folder: str) -> None:
    """Delete a folder of any depth and with any rights.

    What lies two levels down is moved up, so nothing recurses.
    """
    prefix, number, busy = os.urandom(8).hex(), 0, True
    while busy:  # until a round gets nothing done
        busy = False
        for name in _names(folder):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                if not os.path.isdir(path) or os.path.islink(path):
                    os.unlink(path)
                    busy = True
                    continue
                os.chmod(path, 0o700)
                for inner in _names(path):
                    inner, number = os.path.join(path, inner), number + 1
                    if not os.path.islink(inner):
                        os.chmod(inner, 0o700)  # a folder is moved only by who may write to it
                    os.rename(inner, os.path.join(folder, f"{prefix}-{number}"))
                    busy = True
                os.rmdir(path)
                busy = True
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


# --- messages: eight bytes of length, then the data ---------------------------------------------------------


def send(fd: int, data: bytes, deadline: float | None = None) -> None:
    """One message. A deadline needs a file that does not block; TimeoutError when it has passed."""
    view = memoryview(len(data).to_bytes(8, "little") + data)
    while view:
        _wait(fd, select.POLLOUT, deadline)
        view = view[os.write(fd, view) :]


def receive(fd: int, limit: int | None = None, deadline: float | None = None) -> bytes | None:
    """One message, None at the end of the pipe.

    Raises TimeoutError at the deadline, ValueError where the message has more than `limit` bytes.
    """
    head = _read_exactly(fd, 8, deadline)
    if head is None:
        return None
    size = int.from_bytes(head, "little")
    if limit is not None and size > limit:
        raise ValueError(f"a message of {size} bytes")
    return _read_exactly(fd, size, deadline)


def _read_exactly(fd: int, size: int, deadline: float | None) -> bytes | None:
    parts = []
    while size:
        _wait(fd, select.POLLIN, deadline)
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _wait(fd: int, event: int, deadline: float | None) -> None:
    if deadline is not None:
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(min(max(0.0, deadline - time.monotonic()) * 1000, 1e9)):
            raise TimeoutError
