"""Process 3 for tests that are asserts, as MBPP's and HumanEval's: a program that the judge runs itself.

Where the tests name something of the program's they find a Proxy: to call it sends the arguments to the
candidate (calls.py), which calls the real function and sends back what that returns, as data (unpack.py), or
which exception it raised. So a program sees the arguments of its functions, one call after another, and
nothing of what a test expects.

What is data arrives as it was. What is not is a Proxy again: equal to itself alone, and without order, so no
comparison of a test is ever made by the program. A Proxy can be passed back, called, and read for attributes
that are data. More can be done with an object that a test has made by calling one of the job's `classes`: its
methods and operators (but for comparisons) run in the candidate, since they are what is tested there.

A function that returns None may have changed its arguments: the lists, dictionaries and sets among them are
changed in the test as well. After any other call the test's arguments are as they were, so that no program
can spoil what its result is compared with.

An exception of the program that the test does not catch is an `error`; whatever else ends a test is `wrong`.
"""

import ast
import builtins
import enum
import hashlib
import importlib
import io
import operator
import pickle
import random
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from verifier import calls, unpack
from verifier.candidate import describe
from verifier.line import Decided, InputPickler, Remote


def judged(
    remote: Remote, setup: str, tests: list[str], entry_point: str, classes: list[str], answer: str
) -> tuple[str, str]:
    """The verdict and the message. The parameters are those of verify.AssertJob."""
    module = types.ModuleType(calls.MODULE)
    names = vars(module)
    sys.modules[calls.MODULE] = module
    # Not as the candidate's: it could draw what a test draws.
    secret = hashlib.sha256("\0".join(tests).encode("utf-8", "replace")).digest()
    random.seed(secret)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(list(secret))
    try:
        pieces = [compile(test, "<test>", "exec", dont_inherit=True) for test in tests]
        trees = [ast.parse(test) for test in tests]
        exec(compile(setup, "<setup>", "exec", dont_inherit=True), names)
    except BaseException as error:
        said = f"{type(error).__name__}: {describe(error)}"
        raise Decided("broken test", f"the tests cannot be compiled, or their setup fails: {said}") from None
    line = Line(remote, names, classes)
    which = "the program"
    try:
        defined = line.run(setup, answer)
        if entry_point and entry_point not in defined:
            return "error", f"the program does not define {entry_point}"
        # The setup's own functions and the built-in ones are nothing that a program may replace.
        used = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for name in defined.keys() & ({entry_point} | used - names.keys() - vars(builtins).keys()):
            names[name] = line.named(name, defined[name])
        for number, piece in enumerate(pieces, 1):
            which = f"test {number} of {len(pieces)}" if len(pieces) > 1 else "the test"
            exec(piece, names)
        own = {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
        if entry_point and "check" in own - {entry_point}:
            names["check"](names[entry_point])
    except (Decided, MemoryError):
        raise
    except BaseException as error:
        if remote.decided is None:
            said = f"{which}: {type(error).__name__}: {describe(error)}".rstrip(": ")
            return getattr(error, "of_the_program", None) or ("wrong", said)
    if remote.decided is not None:  # the test went on after it
        raise remote.decided
    return ("correct", "") if line.asked else ("wrong", "the tests asked nothing of the program")


class Proxy:
    """In a test: something of the program's."""

    __slots__ = ("_line", "_where", "_kind", "_callable", "_made")

    def __init__(self, line: "Line", where: int | str, kind: str, may_call: bool, made: bool):
        """where: its number or its name in the candidate; made: it may give objects that a test has made."""
        for slot, value in zip(Proxy.__slots__, (line, where, kind, may_call, made)):
            object.__setattr__(self, slot, value)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not self._callable:
            raise refusal(self, "call")
        return self._line.call(self, arguments, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"a test cannot ask a {self._kind} of the program's for {name}")
        return self._line.ask(self, "get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if type(self) is not Made:
            raise refusal(self, f"set {name} of")
        self._line.ask(self, "set", self, name, value)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Proxy) and self._line.call(isinstance, (value, self), {})

    def __reduce_ex__(self, _: Any) -> Any:
        raise TypeError(f"a {self._kind} of the program's cannot be copied")

    def __eq__(self, other: Any) -> bool:
        return type(other) is type(self) and other._where == self._where

    def __hash__(self) -> int:
        return hash(self._where)

    def __repr__(self) -> str:
        return f"<{self._kind}>"


class Made(Proxy):
    """An object that the test has made by calling one of the job's classes."""

    __slots__ = ()


def refusal(proxy: Proxy, what: str) -> TypeError:
    """A program that returns such a thing in place of data could answer the test's questions as it likes."""
    return TypeError(
        f"a test cannot {what} a {proxy._kind} of the program's (only objects of `classes` that it made)"
    )


def on_the_program_side(function: Callable) -> Callable:
    def method(self, *arguments: Any) -> Any:
        return self._line.call(function, (self, *arguments), {}, made=True)

    return method


for function in (len, bool, str, repr, iter):
    setattr(Made, f"__{function.__name__}__", on_the_program_side(function))
for name in ("getitem", "setitem", "delitem", "contains", "add", "sub", "mul", "truediv", "mod", "neg"):
    setattr(Made, f"__{name}__", on_the_program_side(getattr(operator, name)))


class Items(Proxy):
    """An iterator of the program's: each item is fetched when the test wants it."""

    __slots__ = ()

    def __iter__(self) -> "Items":
        return self

    def __next__(self) -> Any:
        items = self._line.ask(self, "next", self)
        if type(items) is not list or len(items) > 1:
            raise self._line.remote.decide("error", "not a result")
        if not items:
            raise StopIteration
        return items[0]


class Line:
    """What the judge asks the candidate, and what it makes of the replies.

    names: those of the test; classes: names of the program's classes whose objects a test may use.
    """

    def __init__(self, remote: Remote, names: dict[str, Any], classes: list[str]):
        self.remote, self.classes, self.asked = remote, classes, 0
        found = {name: value for name, value in names.items() if isinstance(value, type)}
        self.setup = {name: value for name, value in found.items() if value.__module__ == calls.MODULE}
        self.exceptions = {n: v for n, v in self.setup.items() if issubclass(v, BaseException)}
        self.made: set[int] = set()  # the numbers of the objects that the test has made
        self.functions: list[Callable] = []  # of the test, passed to the program
        self.lock = threading.RLock()  # a test may have threads

    def run(self, setup: str, answer: str) -> dict[str, Any]:
        """The names that the program defines, and of which kind each is (calls.kind)."""
        defined = self.ask(None, "run", setup, answer)
        if type(defined) is not dict or not all(type(name) is str for name in defined):
            raise self.remote.decide("error", "not a result")
        self.asked = 0
        return defined

    def named(self, name: str, kind: Any) -> Any:
        """What a test finds under a name of the program's."""
        if kind == "module" and name in sys.stdlib_module_names:
            return importlib.import_module(name)
        if type(kind) is list:
            base = self._builtin_exception(kind)
            self.exceptions[name] = type(name, (base,), {})
            return self.exceptions[name]
        if kind == "callable":
            return Proxy(self, name, name, True, name in self.classes)
        return self.ask(None, "value", name)

    def call(self, function: Any, arguments: tuple, named: dict[str, Any], made: bool = False) -> Any:
        """made: the function is an operator, and the object one that the test has made."""
        parent = function if type(function) is Proxy else None
        reply = self.ask(arguments[0] if made else parent, "call", function, list(arguments), named)
        if type(reply) is not tuple or len(reply) != 2 or type(reply[1]) is not list:
            raise self.remote.decide("error", "not a result")
        result, after = reply
        if parent and parent._where in self.classes and type(result) is Proxy:
            self.made.add(result._where)
            return Made(self, result._where, result._kind, True, True)
        if result is None:
            for mine, theirs in zip([*arguments, *named.values()], after):
                change(mine, theirs)
        return result

    def ask(self, parent: Proxy | None, *request: Any) -> Any:
        """One request and its reply. Raises what the program raised; Decided where there is no reply.

        parent: whose attribute is read, or who is called.
        """
        with self.lock:
            self.asked += 1
            reply = self.remote.ask(self._packed(request))
            while reply[:1] == b"C":
                reply = self.remote.ask(self._called(reply[1:]))
            content = self._unpacked(reply[1:], parent, request[0])
        if reply[:1] == b"R":
            return content
        raise self._exception(content) if reply[:1] == b"X" else self.remote.decide("error", "not a result")

    def _packed(self, request: Any) -> bytes:
        stream = io.BytesIO()
        try:
            ArgumentPickler(stream, self).dump(request)
        except MemoryError:
            raise self.remote.decide("error", "out of memory") from None
        except Exception as error:
            said = f"{type(error).__name__}: {describe(error)}"
            raise TypeError(f"what the test sends to the program cannot be sent: {said}") from None
        return stream.getvalue()

    def _unpacked(self, data: bytes, parent: Proxy | None, operation: str) -> Any:
        def reference(kind: Any, number: Any) -> Any:
            if type(kind) is not str or type(number) is not int or number < 0:
                raise pickle.UnpicklingError("not a reference")
            if kind == "test":
                return self.functions[number]
            if kind == "iterator":
                return Items(self, number, kind, False, False)
            owner = type(parent) is Made or parent is not None and parent._where in self.classes
            of_made = owner if operation == "get" else parent is not None and parent._made
            if of_made and number in self.made:
                return Made(self, number, kind, True, True)
            # The attribute of an object that the test has made may be a method, no other attribute.
            return Proxy(self, number, kind[:100], owner or operation != "get", owner and operation == "get")

        def instance(name: Any, state: Any) -> Any:
            kind: Any = self.setup[name]
            if issubclass(kind, enum.Enum):
                return kind[state]
            value = object.__new__(kind)
            for attribute, content in unpack.exact(state, dict).items():
                if callable(getattr(type(value), unpack.exact(attribute, str), None)):
                    raise pickle.UnpicklingError("an attribute in place of a method")
                vars(value)[attribute] = content
            return value

        builders = unpack.BUILDERS | {"reference": reference, "instance": instance}
        try:
            return unpack.Unpacker(data, builders).load()
        except MemoryError:
            raise self.remote.decide("error", "out of memory") from None
        except Exception as error:
            said = f"not a result: {type(error).__name__}: {describe(error)}"
            raise self.remote.decide("error", said) from None

    def _called(self, data: bytes) -> bytes:
        """The program calls a function of the test's: the reply to it."""
        try:
            number, arguments, named = self._unpacked(data, None, "call")
            function, arguments, named = self.functions[number], list(arguments), dict(named)
        except (ValueError, TypeError, IndexError):
            raise self.remote.decide("error", "not a result") from None
        try:
            return self._packed(("reply", function(*arguments, **named), None))
        except Decided:
            raise
        except Exception as error:
            try:
                return self._packed(("reply", None, error))
            except TypeError:
                return self._packed(("reply", None, RuntimeError(describe(error))))

    def _exception(self, content: Any) -> BaseException:
        """The exception that the program says it raised: a built-in one, or one that the test knows too."""
        try:
            bases, verdict, message, arguments = content
            valid = type(bases) is list and type(message) is str and type(arguments) is tuple
        except (ValueError, TypeError):
            valid = False
        if not valid or verdict not in ("error", "denied"):
            return self.remote.decide("error", "not a result")
        error: Any = None
        for name in bases:
            known = self.exceptions.get(name) if type(name) is str else None
            try:
                error = known(*arguments) if known else None
            except Exception:  # it wants other arguments
                continue
            if error is not None:
                break
        else:
            try:
                error = self._builtin_exception(bases)(*arguments)
            except Exception:
                error = RuntimeError(message)
        error.of_the_program = verdict, message
        return error

    @staticmethod
    def _builtin_exception(bases: list) -> type:
        """The first of these names that is a built-in exception's.

        One that ends an iteration becomes a RuntimeError, as inside a generator: a test's `all(map(f, …))`
        would end there, and pass.
        """
        for name in bases:
            found = vars(builtins).get(name) if type(name) is str else None
            if isinstance(found, type) and issubclass(found, BaseException):
                return RuntimeError if found in (StopIteration, StopAsyncIteration) else found
        return RuntimeError


def change(mine: Any, theirs: Any) -> None:
    """Give a list, dictionary or set of the test's the contents that it has after a call."""
    if type(mine) is not type(theirs) or type(mine) not in calls.CHANGEABLE:
        return
    if type(mine) is list:
        mine[:] = theirs
    else:
        mine.clear()
        mine.update(theirs)


def is_of_the_test(value: Any) -> bool:
    """A function that the tests or their setup define, or a method of one of their objects."""
    if isinstance(value, (types.FunctionType, types.MethodType)):
        return value.__module__ == calls.MODULE
    return isinstance(value, types.BuiltinMethodType) and not isinstance(value.__self__, types.ModuleType)


class ArgumentPickler(InputPickler):
    """What a test sends to the program: any pickle, but Proxies by their numbers, functions by calls back."""

    def __init__(self, stream: Any, line: Line):
        super().__init__(stream, protocol=5)
        self.line = line

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Proxy):
            return calls.held, (value._where,)
        if isinstance(value, types.GeneratorType):
            return iter, (list(value),)
        if is_of_the_test(value):
            self.line.functions.append(value)
            return calls.TestFunction, (len(self.line.functions) - 1,)
        return super().reducer_override(value)
