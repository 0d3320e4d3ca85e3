"""Process 2, a supervisor: runs one program after another, each in a judge that it forks.

It gives each program a folder and a deadline, counts from outside what no limit of the kernel counts
(threads, files, the size of the folder), kills what is left and cleans up. It never reads a test, so no test
of an earlier program is in the memory that a later one inherits. It alone writes verdicts to the main
process.
"""

import contextlib
import gc
import json
import os
import resource
import select
import signal
import sys
import time

from verifier import judge, walls
from verifier.child import delay_seconds, die_with_parent, dying, processor_seconds, receive, remove, send
from verifier.libraries import LARGE, load
from verifier.verdicts import VERDICTS, one_line

# Never believed once program and judge share a process.
NO_VERDICTS = ("broken test", "killed", "infrastructure")
REPORTS = (*VERDICTS, *NO_VERDICTS)  # all that a judge may say
MAX_FOLDER = 256 << 20  # bytes in a program's folder, counted from outside
MAX_FILES, MAX_PATH, MAX_THREADS = 2000, 2000, 128
DISTURBED = "the program disturbed its judge"
TICK = 0.05  # seconds between looks at a program's folder, threads and time
PR_SET_CHILD_SUBREAPER = 36


def supervise(line: int, hello: dict, temporary: str, strict: bool) -> None:
    """One program after another, until the main process closes its end of the line.

    hello: the first message, what the main process is told of the interpreter.
    """
    # A candidate whose judge has died becomes this process's child.
    walls.LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    send(line, json.dumps(hello).encode())
    while (message := receive(line)) is not None:
        head = json.loads(message)
        for name in LARGE:
            if any(module.split(".")[0] == name for module in head["imports"]) and name not in sys.modules:
                load(name)
                gc.collect()
                gc.freeze()
        folder = os.path.join(temporary, f"{os.getpid()}-{time.monotonic_ns()}")
        os.mkdir(folder, 0o700)
        try:
            verdict = Program(line, head, folder).run(strict)
        finally:
            remove(folder)
        send(line, json.dumps(verdict).encode())


class Program:
    """One program, from the fork of its judge to the end of all its processes."""

    def __init__(self, line: int, head: dict, folder: str):
        self.line, self.head, self.folder = line, head, folder
        self.timeout: float = head["timeout"]
        self.nonce = os.urandom(16).hex()  # a verdict without it is not the judge's
        self.pids: list[int] = []  # the judge, then the candidate
        self.in_one_process = False  # the judge runs the program itself, so it may be the program that speaks

    def run(self, strict: bool) -> tuple[str, str, float, float]:
        """(one of REPORTS, message, seconds of processor time, seconds in which it waited for a processor).

        Nothing of the program is left afterwards.
        """
        started = time.monotonic()
        reader, writer = os.pipe()
        self.fork_judge(reader, writer, strict)
        os.close(writer)
        try:
            verdict, message = self.watch(reader)
        finally:
            os.close(reader)
            seconds, delay = sum(map(processor_seconds, self.pids)), self.delay(time.monotonic() - started)
            # The judge first: nobody else collects the candidate before this process can.
            for pid in self.pids:
                # A program in its judge's process may have collected it.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            used = max(most_memory(pid) for pid in self.pids)
        if verdict == "killed":  # not by this process: by the machine, for lack of memory
            verdict, message = "infrastructure", "killed from outside (is the machine out of memory?)"
            own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            # And rightly so: more than an eighth of what a program may have.
            if used - own > walls.MEMORY // 8:
                verdict, message = "error", "out of memory"
        if self.in_one_process and verdict != "infrastructure":
            message = f"in one process: {message}"[:300].rstrip(": ")
        return verdict, message, seconds, delay

    def delay(self, by_the_clock: float) -> float:
        """How long the program and its judge waited for a processor; where nobody knows, all the time."""
        delays = [delay_seconds(pid) for pid in self.pids]
        return by_the_clock if None in delays else sum(delays)

    def fork_judge(self, reader: int, writer: int, strict: bool) -> None:
        supervisor = os.getpid()
        pid = os.fork()
        if pid == 0:
            with dying():
                die_with_parent(supervisor)
                # Where the kernel shares the processor among sessions, its threads starve nobody else.
                os.setsid()
                os.close(reader)
                judge.main(self.line, writer, self.nonce, self.head, self.folder, strict)
        self.pids.append(pid)

    def watch(self, reader: int) -> tuple[str, str]:
        """Wait for the judge's report until the deadline: the verdict and the message."""
        end, poll = time.monotonic() + self.head["by_the_clock"], select.poll()
        poll.register(reader, select.POLLIN)
        poll.register(self.line, select.POLLRDHUP)
        while True:
            if sum(map(processor_seconds, self.pids)) >= self.timeout:
                return "timeout", f"more than {self.timeout:g} s of processor time"
            left = end - time.monotonic()
            if left <= 0:
                return "timeout", f"longer than {self.head['by_the_clock']:g} s, most of it asleep or waiting"
            events = dict(poll.poll(min(left, TICK) * 1000))
            if self.line in events:
                os.kill(self.pids[0], signal.SIGKILL)
                raise SystemExit  # the main process is gone, and so is this supervisor after cleaning up
            if reader in events:
                if verdict := self.heard(reader):
                    return verdict
            elif complaint := excess(self.pids, self.folder):
                return "error", complaint

    def heard(self, reader: int) -> tuple[str, str] | None:
        """One message of the judge's: its report, or None for what it announces before."""
        try:
            report = receive(reader, 10_000, time.monotonic() + 0.5)  # written in one go
            if report is None:
                return judge_died(self.pids[0])
            who, what, *message = json.loads(report)
            if len(self.pids) == 1:  # the first message comes before the judge has read the test
                self.pids.append(what)
                return None
            if [who, what] == judge.LOCAL and not self.in_one_process:
                self.in_one_process = True
                return None
            believed = what in VERDICTS if self.in_one_process else what in REPORTS
            if who == self.nonce and believed and type(message[0]) is str:
                return what, one_line(message[0], 300)
        except Exception:  # not JSON, not this shape, too deep, too late: only where both are one process
            pass
        return "error", DISTURBED


def judge_died(pid: int) -> tuple[str, str]:
    """The verdict where the judge has closed its pipe without a report."""
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


def most_memory(pid: int) -> int:
    """Wait for the end of a child: the most memory that it had, in bytes."""
    with contextlib.suppress(ChildProcessError):
        return os.wait4(pid, 0)[2].ru_maxrss * 1024
    return 0


def threads(pid: int) -> int:
    """How many threads a process has; 0 where it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def excess(pids: list[int], folder: str) -> str:
    """What a program has too much of, an empty text where it keeps within bounds."""
    for pid in pids:
        if threads(pid) > MAX_THREADS:
            return f"more than {MAX_THREADS} threads"
    size = count = 0
    waiting = [folder]
    while waiting and count < MAX_FILES:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                count += 1
                with contextlib.suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if len(entry.path) > MAX_PATH:  # past the kernel's 4096 nothing could be counted
                        return "folders too deep"
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    if count >= MAX_FILES:
        return f"more than {MAX_FILES} files"
    size += size_of_deleted(pids, folder)
    return "" if size <= MAX_FOLDER else f"more than {MAX_FOLDER >> 20} MB of files"


def size_of_deleted(pids: list[int], folder: str) -> int:
    """The bytes of the files that were deleted and are still held open or mapped."""
    sizes: dict[int, int] = {}  # by inode
    inside = os.path.realpath(folder).encode() + b"/"
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    status = os.stat(f"/proc/{pid}/fd/{name}")
                    if status.st_nlink == 0:
                        sizes[status.st_ino] = status.st_blocks * 512
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as lines:
            for line in lines:
                if line.endswith(b" (deleted)\n") and inside in line:  # how large it is, only root may ask
                    sizes.setdefault(int(line.split(maxsplit=5)[4]), walls.FILE_SIZE)
    return sum(sizes.values())
