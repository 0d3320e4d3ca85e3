"""Main process: starts the SQL workers (sql.py), asks them, and replaces those that die."""

import queue
import signal
import time

from verifier.child import Child, Died, Late
from verifier.turns import BUSY
from verifier.verdicts import InfrastructureError, Reply, Unreadable

# Seconds after the deadline inside SQLite until the process is killed; all these are processor time.
GRACE = 0.25
WALL = 10  # a query that waits, for the processor or the disk, is killed after this many times as long
CRASHES = {
    signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP,
    signal.SIGSYS,
}  # fmt: skip


class Workers:
    """A pool of worker processes, each of which runs one query at a time."""

    def __init__(self, count: int):
        self.closed = False
        self.children = [Child("verifier.sql") for _ in range(count)]
        self.idle: queue.LifoQueue[Child] = queue.LifoQueue()
        for child in self.children:
            self.idle.put(child)

    def ask(self, request: tuple, timeout: float) -> Reply:
        """The reply of an idle worker to a request of sql.answer, without its `kill`."""
        child = self.idle.get()
        try:
            return self._reply(child, request, timeout)
        finally:
            self.idle.put(child)

    def _reply(self, child: Child, request: tuple, timeout: float) -> Reply:
        """This worker's reply. One that dies is replaced and asked once more: what comes again is real."""
        # more for a big gold result, which travels through the pipe
        kill = timeout + GRACE + (len(request[-1]) / 20e6 if request[0] == "answer" else 0.1 * timeout)
        for _ in range(2):
            if self.closed:
                raise InfrastructureError("the verifier is closed")
            try:
                if child.process is None:
                    child.start()  # before the clock starts
                started = time.monotonic()
                verdict, message, seconds, data = child.ask((kill, *request), WALL * kill)
            except Late:
                message = f"killed after {WALL * kill:.3g} s by the wall clock"
                return Reply("timeout", message, timeout, waited=True)
            except Died as died:
                status = died.status
                if status != -signal.SIGPROF:
                    continue
                verdict, message, seconds, data = "timeout", f"longer than {timeout:g} s, killed", kill, b""
            if verdict in ("infrastructure", "unreadable"):
                raise (Unreadable if verdict == "unreadable" else InfrastructureError)(message)
            if message == "out of memory":  # what it freed may be in pieces
                child.stop()
            return Reply(verdict, message, seconds, time.monotonic() - started > BUSY * seconds, data)
        if -status in CRASHES:
            return Reply("crash", f"the worker died of signal {-status}", 0.0)
        said = f"exit status {status}; -9: the machine is out of memory"
        raise InfrastructureError(f"a SQL worker died twice ({said})")

    def kill(self) -> None:
        """End them at once. Whoever waits for one is told that the verifier is closed."""
        self.closed = True
        for child in self.children:
            child.kill()

    def stop(self) -> None:
        """Collect the processes, when nobody asks them any more."""
        for child in self.children:
            child.stop()
