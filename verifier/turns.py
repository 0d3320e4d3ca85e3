"""Main process: a timeout on a busy machine is no verdict. Whatever had to wait runs once more, alone."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from verifier.verdicts import Reply

BUSY = 1.5  # whoever took so many times its processor time by the clock had to wait


class Turns:
    """Queries and programs take their turn side by side, or one has it alone: then the others wait."""

    def __init__(self):
        self._changed = threading.Condition()
        self._running, self._taken = 0, False

    def fairly(self, ask: Callable[[], Reply]) -> Reply:
        """What `ask` returns. It is asked again, while nothing else runs, where a timeout had to wait."""
        with self.together():
            reply = ask()
        if reply.verdict == "timeout" and reply.waited:
            with self.alone():
                reply = ask()
        return reply

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken)
            self._taken = True  # nobody starts any more
            self._changed.wait_for(lambda: self._running == 0)
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()
