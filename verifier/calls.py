"""Process 4 for tests that are asserts: runs the program, then calls its functions as the judge asks.

The tests stay in the judge (asserts.py). What a call returns is sent as data (pack.py); what is no data (an
object of the program's own classes, a function, an iterator) stays here, and its number is sent. Nothing here
is trusted: a program may change all of it, and the judge believes no more than that the program gave some
value.
"""

import collections.abc
import enum
import io
import os
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

from verifier import pack, unpack
from verifier.candidate import MAX_RESULT, classify
from verifier.child import receive, send

MODULE = "program"  # the name of the module that the setup and the program are run in, on both sides
CHANGEABLE = (list, dict, set)  # of arguments of these types the judge learns how a call has changed them


def serve(down: int, up: int) -> None:
    """Do what the judge asks until it is gone. down, up: the pipes from and to the judge."""
    global program
    program = Program(down, up)
    program.serve()


class Program:
    """The program and what of it has been spoken of. Its public methods but `serve` are what a judge asks."""

    def __init__(self, down: int, up: int):
        self.down, self.up = down, up
        self.module = types.ModuleType(MODULE)
        self.setup_classes: list[type] = []  # the judge has classes of these names too
        self.objects: list[Any] = []  # by their numbers
        self.numbers: dict[int, int] = {}  # by id

    def serve(self) -> Any:
        """Reply to requests until the end, or until a reply comes to what the program asks the test."""
        while (request := receive(self.down)) is not None:
            try:
                operation, *arguments = pickle.loads(request)
                if operation == "reply":
                    return arguments
                reply = b"R" + self._packed(getattr(self, operation)(*arguments))
                if len(reply) > MAX_RESULT:
                    raise ValueError(f"a result of {len(reply)} bytes")
            except BaseException as error:
                reply = b"X" + self._raised(error)
            send(self.up, reply)
        os._exit(0)

    def run(self, setup: str, code: str) -> dict[str, Any]:
        """The setup, then the program. By name: module, value, callable, or an exception's bases."""
        names = vars(self.module)
        sys.modules[MODULE] = self.module
        exec(compile(setup, "<setup>", "exec", dont_inherit=True), names)
        self.setup_classes = [v for v in names.values() if isinstance(v, type) and v.__module__ == MODULE]
        exec(compile(code, "<program>", "exec", dont_inherit=True), names)
        return {name: kind(value) for name, value in names.items()}

    def call(self, function: Callable, arguments: list, named: dict[str, Any]) -> tuple[Any, list]:
        """What the function returns; where that is None, also the arguments as they are afterwards."""
        result = function(*arguments, **named)
        after = [*arguments, *named.values()] if result is None else []
        return result, [value if type(value) in CHANGEABLE else None for value in after]

    def value(self, name: str) -> Any:
        return vars(self.module)[name]

    def get(self, value: Any, name: str) -> Any:
        return getattr(value, name)

    def set(self, value: Any, name: str, content: Any) -> None:
        setattr(value, name, content)

    def next(self, iterator: Any) -> list:
        """A list of the next item, or an empty one."""
        for item in iterator:
            return [item]
        return []

    def ask_test(self, number: int, arguments: tuple, named: dict[str, Any]) -> Any:
        """Call a function of the test's, which the test has passed to the program."""
        send(self.up, b"C" + self._packed((number, arguments, named)))
        result, error = self.serve()
        if error is not None:
            raise error
        return result

    def _packed(self, value: Any) -> bytes:
        stream = io.BytesIO()
        CallPacker(stream, self).dump(value)
        return stream.getvalue()

    def _raised(self, error: BaseException) -> bytes:
        """(the names of its class and its bases, verdict and message if no test expects it, arguments)."""
        bases, said = [base.__name__ for base in type(error).__mro__], classify(error)
        try:
            return self._packed((bases, *said, tuple(error.args)))
        except BaseException:
            return self._packed((bases, *said, ()))


class CallPacker(pack.Packer):
    """Leaves here what cannot travel, and describes it by its number."""

    def __init__(self, stream: Any, program: Program):
        super().__init__(stream, protocol=5)
        self.program = program

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, collections.abc.Iterator):
            return self._reference("iterator", value)
        return super().reducer_override(value)

    def unknown(self, value: Any) -> Any:
        if type(value) is TestFunction:
            return unpack.reference, ("test", value.number)
        if type(value) in self.program.setup_classes and type(value).__dictoffset__:
            state = value.name if isinstance(value, enum.Enum) else dict(vars(value))
            return unpack.instance, (type(value).__name__, state)
        return self._reference(f"{type(value).__name__} object", value)

    def _reference(self, kind: str, value: Any) -> Any:
        numbers, objects = self.program.numbers, self.program.objects
        if id(value) not in numbers:
            numbers[id(value)] = len(objects)
            objects.append(value)
        return unpack.reference, (kind, numbers[id(value)])


class TestFunction:
    """In place of a function of the test's that was passed to the program."""

    def __init__(self, number: int):
        self.number = number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return program.ask_test(self.number, arguments, named)


program: Program


def held(where: int | str) -> Any:
    """What the judge means by a number, or by a name of the program's."""
    return program.objects[where] if isinstance(where, int) else vars(program.module)[where]


def kind(value: Any) -> Any:
    if isinstance(value, types.ModuleType):
        return "module"
    if isinstance(value, type) and issubclass(value, BaseException):
        return [base.__name__ for base in value.__mro__]
    return "callable" if callable(value) else "value"
