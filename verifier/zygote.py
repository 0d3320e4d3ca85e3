"""Process 1, the zygote: imports the libraries of DS-1000 once, and then only forks.

It is a second interpreter (--python) that the main process starts (interpreter.py). Importing pandas, PyTorch
and the others takes seconds, a fork takes milliseconds. It forks one supervisor per worker and waits for
their end.
"""

import contextlib
import gc
import os
import signal
import sys
import time

from verifier import walls
from verifier.child import die_with_parent, dying, remove
from verifier.libraries import LIBRARIES, PARTS, Hidden, load, warm_up
from verifier.supervisor import supervise, threads


def main(sockets: list[int], temporary: str, strict: bool) -> None:
    """The whole life of the zygote.

    sockets: the descriptors of the supervisors' lines to the main process, one each.
    temporary: a folder for all that programs write; it is removed at the end.
    strict: no program runs without all walls.
    """
    sys.path[:] = [path for path in sys.path if path]
    os.environ["MPLCONFIGDIR"] = os.environ["HOME"] = temporary
    # Some tests load a data set by name: `make ds1000` puts them here.
    share = os.path.join(sys.prefix, "share")
    os.environ["SEABORN_DATA"] = os.path.join(share, "seaborn-data")
    os.environ["SCIKIT_LEARN_DATA"] = os.path.join(share, "scikit-learn-data")
    missing = [name for name in LIBRARIES if not load(name)]
    sys.meta_path.insert(0, Hidden(PARTS))
    warm_up()
    walls.readable_paths()  # computed once, for all forks
    hello = {"missing": missing, "threads": threads(os.getpid())}
    gc.collect()
    gc.freeze()  # the children would otherwise copy every page that the collector touches
    supervisors = [fork_supervisor(own, sockets, hello, temporary, strict) for own in sockets]
    for fd in sockets:
        os.close(fd)
    os.wait()  # they end together, when the main process closes its ends or dies
    for pid in supervisors:
        end = time.monotonic() + 3
        while time.monotonic() < end and not finished(pid):
            time.sleep(0.005)
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    remove(temporary)


def fork_supervisor(own: int, sockets: list[int], hello: dict, temporary: str, strict: bool) -> int:
    """The process id of a new supervisor, which has no socket but its own."""
    zygote = os.getpid()
    pid = os.fork()
    if pid == 0:
        with dying():
            for other in sockets:
                if other != own:
                    os.close(other)
            die_with_parent(zygote)
            supervise(own, hello, temporary, strict)
    return pid


def finished(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
