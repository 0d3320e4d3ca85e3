"""Tests that are asserts (verifier/asserts.py, calls.py): ways to cheat them, and programs that must pass.

Most of the cheats pass where the answer and its tests share a process, as in the official evaluations. That
is tested too, since a cheat that could never work shows nothing.
"""

import subprocess
import sys
import time

import pytest
from test_attacks import nothing_is_left, strict  # noqa: F401 (a fixture)

from verify import AssertJob, GoldError, Verifier

pytestmark = strict
TESTS = ("assert f(7) == 987654321", "assert f(2) == 123454321")
MATCH = "    __eq__ = lambda self, other: True\n    __hash__ = lambda self: 1\n"


def without_packages(folder):
    """An interpreter that has the standard library alone, and so starts quickly."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    script.chmod(0o755)
    return str(script)


@pytest.fixture(scope="module")
def verifier(nothing_is_left, tmp_path_factory):  # noqa: F811
    with Verifier(workers=2, python=without_packages(tmp_path_factory.mktemp("bin"))) as verifier:
        yield verifier


@pytest.fixture
def judge(verifier):
    """The verdict on an answer; the next plain job must be right whatever the answer did."""

    def judge(answer, *tests, **more):
        verdict = verifier.submit(AssertJob(tests or TESTS, answer, **{"timeout": 5.0, **more})).result()
        plain = AssertJob(("assert f(1) == 2",), f"def f(x): return x + 1  # {time.monotonic_ns()}")
        assert verifier.submit(plain).result().verdict == "correct"
        assert "\n" not in verdict.message and len(verdict.message) <= 300
        return verdict

    return judge


def in_one_process(answer, *tests, entry_point="", **_):
    """Whether an answer passes where the tests run behind it in the same interpreter."""
    code = (
        "import sys\nanswer, *tests = sys.argv[1:]\nnames = {'__name__': 'program'}\nexec(answer, names)\n"
        "for test in tests: exec(test, names)\n"
        + (f"names['check'](names[{entry_point!r}])\n" if entry_point else "")
    )
    command = [sys.executable, "-I", "-c", code, answer, *(tests or TESTS)]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def returning(kind, body=MATCH, make="Lie()"):
    return f"class Lie({kind}):\n{body}def f(x): return {make}"


NEAR = "assert abs(f(7) - 3.5) < 1e-6"
# Each passes in one process, and must not here. name: (answer, tests…), and the job's other fields.
CHEATS = {
    "equal to anything": (returning("object"),),
    "an int": (returning("int"),),
    "a float": (returning("float"), "assert f(7) == 3.25"),
    "a str": (returning("str"), "assert f(7) == 'abc'"),
    "a bytes": (returning("bytes"), "assert f(7) == b'abc'"),
    "a list": (returning("list"), "assert f(7) == [3, 4]"),
    "a tuple": (returning("tuple"), "assert f(7) == (3, 4)"),
    "a dict": (returning("dict"), "assert f(7) == {3: 4}"),
    "a set": (returning("set"), "assert f(7) == {3, 4}"),
    "inside a list": (returning("int", make="[Lie(), Lie()]"), "assert f(7) == [3, 4]"),
    "as a key": (returning("str", make="{Lie(): 1}"), "assert [*f(7)] == ['abc']"),
    "a class": ("class Meta(type):\n" + MATCH + "class A(metaclass=Meta): pass\ndef f(x): return A",),
    "never unequal": (
        "class Lie:\n    __ne__ = lambda self, other: False\ndef f(x): return Lie()",
        "assert not f(7) != 5",
    ),
    "ordered as wanted": (
        "class Lie:\n    __lt__ = __gt__ = lambda self, other: True\ndef f(x): return Lie()",
        "assert 3 < f(7) < 5",
    ),
    "near to anything": (
        "class Lie:\n    __sub__ = __abs__ = lambda self, *o: self\n    __lt__ = lambda self, other: True\n"
        "def f(x): return Lie()",
        NEAR,
    ),
    "a difference of zero": ("class Lie:\n    __sub__ = lambda self, o: 0.0\ndef f(x): return Lie()", NEAR),
    "holds anything": (
        "class Lie:\n    __contains__ = lambda self, x: True\ndef f(x): return Lie()",
        "assert 31 in f(7)",
    ),
    "false": ("class Lie:\n    __bool__ = lambda self: False\ndef f(x): return Lie()", "assert not f(7)"),
    "its own method": (
        "class Lie:\n    startswith = lambda self, x: True\ndef f(x): return Lie()",
        "assert f(7).startswith('abc')",
    ),
    "a class in place of a function": (
        "class f:\n    def __init__(self, x): pass\n    def startswith(self, x): return True",
        "assert f(7).startswith('abc')",
    ),
    "a method of a result of an object of the test's": (
        "class Lie:\n    startswith = lambda self, x: True\nclass A:\n    name = Lie()",
        "assert A().name.startswith('abc')",
        {"classes": ("A",)},
    ),
    "a string that changes its methods": (
        "class S(str):\n    def __contains__(self, x): return True\ndef f(x): return S()",
        "assert 'abc' in f(7)",
    ),
    "a number that is its own int": (
        "class I(int):\n    __index__ = __int__ = lambda self: 5\n    __mod__ = lambda self, o: 0\n"
        "def f(x): return I(1)",
        "assert f(7) % 10 == 0",
    ),
    "exit": ("import sys\nsys.exit(0)",),
    "exit at once": ("import os\nos._exit(0)",),
    "exit in a call": ("import sys\ndef f(x): sys.exit(0)",),
    "exit at once in a call": ("import os\ndef f(x): os._exit(0)",),
    "exit at the end": ("import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 1",),
    "exit in a thread": (
        "import threading, time, os\ndef f(x):\n    threading.Thread(target=os._exit, args=(0,)).start()\n"
        "    time.sleep(0.5)\n    return 1",
    ),
    "exit when deleted": ("import os\nclass D:\n    def __del__(self): os._exit(0)\ndef f(x): D()",),
    "exit on a signal": (
        "import signal, os, time\nsignal.signal(signal.SIGALRM, lambda *_: os._exit(0))\n"
        "def f(x):\n    signal.setitimer(signal.ITIMER_REAL, 0.01)\n    time.sleep(1)",
    ),
    "exit caught": ("import os\ndef f(x): os._exit(0)", "try: f(7)\nexcept: pass"),
    "exit by an uncaught error's hook": (
        "import sys, os\nsys.excepthook = lambda *_: os._exit(0)\ndef f(x): return 1",
    ),
    "patched abs": ("import builtins\nbuiltins.abs = lambda x: 0\ndef f(x): return 1", NEAR),
    "its own abs": ("def abs(x): return 0\ndef f(x): return 1", NEAR),
    "its own sorted": ("def sorted(x): return [1]\ndef f(x): return [1]", "assert f(7) == sorted([5, 4])"),
    "its own set": ("def set(x): return 0\ndef f(x): return 1", "assert set(f(7)) == set([5])"),
    "its own round": ("round = lambda *x: 3.5\ndef f(x): return 1", "assert round(f(7), 1) == 3.5"),
    "patched all": (
        "import builtins\nbuiltins.all = lambda x: True\ndef f(x): return 1",
        "assert all([f(7) == 5])",
    ),
    "patched math": (
        "import math\nmath.isclose = lambda *x, **y: True\ndef f(x): return 1",
        "import math\nassert math.isclose(f(7), 3)",
    ),
    "its own math": (
        "class math:\n    isclose = lambda *x: True\ndef f(x): return 1",
        "assert math.isclose(f(7), 3)",
    ),
    "another module called math": (
        "import sys, types\nsys.modules['math'] = types.SimpleNamespace(isclose=lambda *x: True)\n"
        "def f(x): return 1",
        "import math\nassert math.isclose(f(7), 3)",
    ),
    "patched collections": (
        "import collections\ncollections.Counter = lambda x: 0\ndef f(x): return 'a'",
        "from collections import Counter\nassert Counter(f(7)) == Counter('abc')",
    ),
    "patched copy": (
        "import copy\ncopy.deepcopy = lambda x: x\ndef f(x):\n    x.clear()\n    return []",
        "import copy\na = [3]\nb = copy.deepcopy(a)\nassert f(a) == b",
    ),
    "patched random": (
        "import random\nrandom.randint = lambda a, b: a\ndef f(x): return 10",
        "import random\nn = random.randint(1, 9**9)\nassert f(0) == 10 * n or n == 1",
    ),
    "patched unittest": (
        "import unittest\nunittest.TestCase.assertEqual = lambda *x: None\ndef f(x): return 1",
        "import unittest\nunittest.TestCase().assertEqual(f(7), 3)",
    ),
    "patched operator": (
        "import operator\noperator.eq = lambda *x: True\ndef f(x): return 1",
        "import operator\nassert operator.eq(f(7), 3)",
    ),
    "patched json": (
        "import json\njson.dumps = lambda *x: ''\ndef f(x): return 1",
        "import json\nassert json.dumps(f(7)) == json.dumps(3)",
    ),
    "the caller's constants": (
        "import sys\ndef f(x):\n"
        "    return [c for c in sys._getframe(1).f_code.co_consts if type(c) is int and c > 9][-1]",
    ),
    "the caller's constants by inspect": (
        "import inspect\ndef f(x):\n    return [c for c in inspect.stack()[1].frame.f_code.co_consts"
        " if type(c) is int and c > 9][-1]",
    ),
    "the caller's constants by an exception": (
        "def f(x):\n    try: 1 / 0\n    except Exception as e: frame = e.__traceback__.tb_frame.f_back\n"
        "    return [c for c in frame.f_code.co_consts if type(c) is int and c > 9][-1]",
    ),
    "the tests, found by gc": (
        "import gc, re\ndef f(x):\n    for o in gc.get_objects():\n        if type(o) is list:\n"
        "            for t in o:\n"
        "                if type(t) is str and (m := re.match(r'assert f\\((\\d)\\) == (\\d+)$', "
        "t)) and int(m[1]) == x:\n"
        "                    return int(m[2])",
    ),
    "the tests, found by a trace": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame.f_back: frame = frame.f_back\n"
        "    import re\n    t = ' '.join(frame.f_globals['tests'])\n"
        "    return int(re.search(rf'f\\({x}\\) == (\\d+)', t)[1])",
    ),
    "a name of the tests": (
        "import sys\ndef f(x): return sys._getframe(1).f_globals['wanted']",
        "wanted = 55\nassert f(7) == wanted",
    ),
    "another value of a name of the tests": (
        "import sys\ndef f(x):\n    sys._getframe(1).f_globals['wanted'] = 1\n    return 1",
        "wanted = 55\nassert f(7) == wanted",
    ),
    "a name of the tests by the program's globals": (
        "def f(x): return globals().get('wanted')",
        "wanted = 55\nassert f(7) == wanted",
    ),
    "a thread that changes the tests' names": (
        "import threading, time\ndef f(x):\n    def change():\n        globals()['wanted'] = 1\n"
        "    t = threading.Thread(target=change)\n    t.start()\n    t.join()\n    return 1",
        "wanted = 55\na = f(7)\nassert a == wanted",
    ),
    "a changed argument": ("def f(a):\n    a.clear()\n    return []", "a = [3, 1]\nassert f(a) == sorted(a)"),
    "a changed argument inside": (
        "def f(a):\n    a['k'].clear()\n    return []",
        "a = {'k': [3, 1]}\nassert f(a) == a['k']",
    ),
    "the argument with other contents": (
        "def f(a):\n    a[:] = [1]\n    return a",
        "a = [3, 1]\nassert f(a) == a",
    ),
    "an iteration that ends early": ("def f(x): raise StopIteration", "assert all(map(f, [1, 2]))"),
    "an iteration that ends in an attribute": (
        "def f(x):\n    def g(y): raise StopIteration\n    return g",
        "assert all(x == 5 for x in map(f(1), [1, 2]))",
    ),
    "a key that equals": (
        "class Lie(int):\n" + MATCH + "def f(x): return {Lie(): 5}",
        "assert f(7) == {1: 5}",
    ),
    "an exception with its own text": (
        "class S(str):\n" + MATCH + "def f(x): raise ValueError(S())",
        "try: f(7)\nexcept ValueError as e: assert e.args[0] == 'negative'",
    ),
    "an exception with its own str": (
        "class E(ValueError):\n"
        "    def __str__(self): return type('S', (str,), {'__eq__': lambda *x: True})()\n"
        "def f(x): raise E",
        "try:\n    f(7)\nexcept ValueError as e:\n    assert str(e) == 'negative'",
    ),
    "a helper of the setup": (
        "def double(x): return 1\ndef f(x): return 1",
        "assert double(f(7)) == 1 and double(4) == 1",
        {"setup": "def double(x): return 2 * x"},
    ),
    "equal by its own method": (
        "class V:\n    def __init__(self, x): pass\n    __eq__ = lambda self, o: True",
        "assert V(1) == V(2)",
        {"classes": ("V",)},
    ),
}
# These need the verifier's own processes, or end themselves; they pass nowhere.
# name: (answer, verdicts, tests…), and the job's other fields.
ATTACKS = {
    "prints a verdict": (
        'import os\nfor fd in range(64):\n    try: os.write(fd, b\'["", "correct", ""]\\n\')\n'
        "    except OSError: pass\n"
        "def f(x): return 1",
        ("error", "wrong"),
    ),
    "frames to every file": (
        "import os\nfor fd in range(3, 64):\n"
        "    for text in (b'ready', b'RK\\x01.', b'[\"x\", \"correct\", \"\"]'):\n"
        "        try: os.write(fd, len(text).to_bytes(8, 'little') + text)\n        except OSError: pass\n"
        "def f(x): return 1",
        ("error", "wrong"),
    ),
    "replies before it is asked": (
        "import os, pickle\nfor value in ({'f': 'callable'}, (True, []), (True, [])):\n"
        "    data = b'R' + pickle.dumps(value)\n"
        "    for fd in range(3, 64):\n        try: os.write(fd, len(data).to_bytes(8, 'little') + data)\n"
        "        except OSError: pass\nos._exit(0)",
        ("error", "wrong"),
    ),
    "a pickle that runs code": (
        "import os, pickle\nfrom verifier import calls\nclass A:\n"
        "    def __reduce__(self): return os._exit, (0,)\n"
        "calls.Program._packed = lambda self, value: pickle.dumps((A(), []))\ndef f(x): return 1",
        ("error",),
    ),
    "a reference to nothing": (
        "from verifier import calls, unpack\n"
        "calls.CallPacker.unknown = lambda s, v: (unpack.reference, ('test', 5))\n"
        "def f(x): return f",
        ("error",),
    ),
    "a reference that is none": (
        "from verifier import calls, unpack\n"
        "calls.CallPacker.unknown = lambda s, v: (unpack.reference, ([], 'x'))\n"
        "def f(x): return f",
        ("error",),
    ),
    "a class that the judge does not know": (
        "from verifier import calls, unpack\n"
        "calls.CallPacker.unknown = lambda s, v: (unpack.instance, ('Exit', {}))\n"
        "def f(x): return f",
        ("error",),
    ),
    "an object with a method of its own": (
        "from verifier import calls, unpack\n"
        "old = calls.CallPacker.unknown\n"
        "calls.CallPacker.unknown = lambda s, v: (unpack.instance, ('Node', {'ok': v.ok}))"
        " if type(v) is Node else old(s, v)\ndef f(x):\n    n = Node()\n    n.ok = lambda: True\n"
        "    return n",
        ("error", "wrong"),
        "assert f(7).ok()",
        {"setup": "class Node:\n    def ok(self): return False"},
    ),
    "a function of the test's that was never sent": (
        "from verifier import calls\ndef f(x): return calls.program.ask_test(3, (), {})",
        ("error",),
    ),
    "an iterator that gives two at once": (
        "from verifier import calls\ncalls.Program.next = lambda self, i: [1, 2]\ndef f(x): return iter([1])",
        ("error",),
        "assert list(f(7)) == [1]",
    ),
    "names that are none": (
        "from verifier import calls\ncalls.kind = lambda v: calls.os._exit(0)\ndef f(x): return 1",
        ("error",),
    ),
    "an exception that is none": (
        "from verifier import calls\n"
        "calls.Program._raised = lambda s, e: s._packed((['Decided'], 'correct', '', ()))\n"
        "def f(x): 1 / 0",
        ("error",),
    ),
    "the judge's own exception": (
        "from verifier.line import Decided\ndef f(x): raise Decided('correct', '')",
        ("error",),
    ),
    "the judge's own modules patched": (
        "from verifier import asserts, judge, line\nasserts.judged = lambda *a: ('correct', '')\n"
        "judge.asserts = line.Remote = None\ndef f(x): return 1",
        ("wrong",),
    ),
    "the module replaced": (
        "import sys, types\nsys.modules['program'] = types.SimpleNamespace(f=1)\ndel f\n",
        ("error",),
    ),
    "a file called math.py": (
        "for name in ('math.py', '../test/math.py', '../math.py'):\n"
        "    try: open(name, 'w').write('isclose = max')\n"
        "    except OSError: pass\ndef f(x): return 1",
        ("wrong",),
        "import math\nassert math.isclose(f(7), 3)",
    ),
    "the pipes closed": ("import os\nos.closerange(3, 99)\ndef f(x): return 1", ("error",)),
    "nothing defined": ("", ("wrong", "error")),
    "does nothing but pass the tests by": ("f = None", ("wrong", "error")),
    "recursion": ("def f(x): return f(x)", ("error",)),
    "a result in a ring": ("a = []\na.append(a)\ndef f(x): return a", ("wrong",)),
    "a result too deep": (
        "def f(x):\n    a = []\n    for _ in range(10**5): a = [a]\n    return a",
        ("error",),
    ),
    "a result too large": ("def f(x): return 'x' * (80 << 20)", ("error",)),
    "too much memory": ("def f(x): return len([0] * 10**10)", ("error",)),
    "a number too large to print": ("def f(x): return 10**5000", ("wrong",)),
    "not a number": ("def f(x): return float('nan')", ("wrong",)),
    "no end": ("def f(x):\n    while True: pass", ("timeout",)),
    "a generator without end": (
        "def f(x):\n    while True: yield x",
        ("timeout", "error"),
        "assert list(f(7)) == [7]",
    ),
    "an iterator that lies about its end": (
        "class I:\n    def __iter__(self): return self\n    def __next__(self): raise SystemExit\n"
        "def f(x): return I()",
        ("error",),
        "assert all(x == 3 for x in f(7))",
    ),
    "sleep": ("import time\ndef f(x): time.sleep(1000)", ("timeout",)),
    "stops itself": ("import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGSTOP)", ("timeout",)),
    "a crash": ("import ctypes\ndef f(x): ctypes.string_at(0)", ("crash",)),
    "an abort": ("import os\ndef f(x): os.abort()", ("crash",)),
    "kills its judge": ("import os\ndef f(x): os.kill(os.getppid(), 9)", ("denied",)),
    "another process": ("import os\ndef f(x): os.fork()", ("denied",)),
    "reads what it may not": ("def f(x): return open('/etc/passwd').read()", ("denied",)),
    "a key pressed": ("def f(x): raise KeyboardInterrupt", ("error",)),
    "a generator closed": ("def f(x): raise GeneratorExit", ("error",), "assert all(f(x) for x in [1])"),
    "an assertion of its own": ("def f(x): assert x == 0", ("error",)),
    "an exception whose text exits": (
        "class E(Exception):\n    def __str__(self): raise SystemExit(0)\ndef f(x): raise E",
        ("error",),
    ),
    "no module": ("import nothing_of_this_name\ndef f(x): return 1", ("error",)),
    "no syntax": ("def f(x) return 1", ("error",)),
    "a zero byte": ("def f(x): return 1\0", ("error",)),
    "half a character": ("def f(x): return '\ud800'", ("error", "wrong")),
}


def parts(entry):
    more = entry[-1] if isinstance(entry[-1], dict) else {}
    return entry[: len(entry) - bool(more)], more


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_that_passes_in_one_process(judge, name):
    (answer, *tests), more = parts(CHEATS[name])
    assert in_one_process(answer, *tests, **more)
    assert judge(answer, *tests, **more).verdict in ("wrong", "error")


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack(judge, name):
    (answer, verdicts, *tests), more = parts(ATTACKS[name])
    timeout = 1.0 if "timeout" in verdicts else 10.0
    verdict = judge(answer, *tests, **{"timeout": timeout, **more})
    assert verdict.verdict in verdicts, verdict


def test_a_program_cannot_draw_what_the_test_draws(judge):
    """As HumanEval's decode tasks: the argument is made of random letters, and these are what is wanted."""
    test = (
        "import random\nfor _ in range(3):\n    text = ''.join(random.choice('abcdef') for _ in range(12))\n"
        "    assert f(text[::-1]) == text"
    )
    cheat = "import random\ndef f(x): return ''.join(random.choice('abcdef') for _ in x)"
    assert judge(cheat, test).verdict == "wrong"
    assert judge("def f(x): return x[::-1]", test).verdict == "correct"


@pytest.mark.parametrize("answer", ["", "def g(x): return 1"])
def test_tests_that_ask_nothing_pass_nobody(judge, answer):
    assert judge(answer, "assert True").verdict == "wrong"
    assert judge(answer, "try: f(1)\nexcept NameError: pass").verdict == "wrong"
    assert judge(answer, "assert True", entry_point="f").verdict == "error"


STACK = """class Stack:
    def __init__(self, *items): self.items = list(items)
    def push(self, x):
        self.items.append(x)
        return self
    def pop(self):
        if not self.items: raise IndexError("empty stack")
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __contains__(self, x): return x in self.items
    def __getitem__(self, i): return self.items[i]
    def __add__(self, other): return Stack(*self.items, *other.items)
    def __repr__(self): return f"Stack{tuple(self.items)}"
"""
NODE = "class Node:\n    def __init__(self, value, next=None):\n        self.value, self.next = value, next\n"
# name: (answer, tests…), and the job's other fields
PROGRAMS = {
    "recursion": ("def f(n): return 1 if n < 2 else n * f(n - 1)", "assert f(20) == 2432902008176640000"),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(5000)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)",
        "assert f(3000) == 3000",
    ),
    "helpers": ("def g(x): return x * 2\ndef f(x): return g(x) + 1", "assert f(3) == 7"),
    "keywords": (
        "def f(a, /, b=2, *c, d=4, **e): return [a, b, list(c), d, e]",
        "assert f(1) == [1, 2, [], 4, {}]",
        "assert f(1, 3, 5, 6, d=7, z=8) == [1, 3, [5, 6], 7, {'z': 8}]",
    ),
    "imports": (
        "import math\nfrom collections import Counter\ndef f(s): return Counter(s), math.gcd(4, 6)",
        "from collections import Counter\nassert f('aab') == (Counter(a=2, b=1), 2)",
    ),
    "a module that only the program imports": (
        "import sys\ndef f(x): return sys.getsizeof(x)",
        "assert f(1) == sys.getsizeof(1)",
    ),
    "printing": ("print('hello')\ndef f(x):\n    print('x' * 10**6)\n    return x", "assert f(1) == 1"),
    "a generator": ("def f(n):\n    for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2]"),
    "a generator without end": (
        "import itertools\ndef f(): return itertools.count()",
        "import itertools\nassert list(itertools.islice(f(), 3)) == [0, 1, 2]",
        "g = f()\nassert next(g) == 0 and next(g) == 1 and next(f()) == 0",
    ),
    "a generator that raises": (
        "def f():\n    yield 1\n    raise ValueError('over')",
        "g = f()\nassert next(g) == 1\ntry:\n    next(g)\n    assert False\n"
        "except ValueError as e:\n    assert str(e) == 'over'",
    ),
    "map and zip": (
        "def f(x): return map(str, x), zip(x, x)",
        "a, b = f([1, 2])\nassert list(a) == ['1', '2'] and list(b) == [(1, 1), (2, 2)]",
    ),
    "views of a dictionary": (
        "def f(d): return d.keys(), d.items()",
        "a, b = f({1: 2})\nassert list(a) == [1] and list(b) == [(1, 2)]",
    ),
    "in place": ("def f(a): a.sort()", "a = [3, 1, 2]\nassert f(a) is None\nassert a == [1, 2, 3]"),
    "in place, inside": (
        "def f(m):\n    for row in m: row.reverse()",
        "m = [[1, 2], [3, 4]]\nf(m)\nassert m == [[2, 1], [4, 3]]",
    ),
    "in place, by keyword": (
        "def f(*, d, s):\n    d['a'] = 1\n    s.add(2)",
        "d, s = {}, {1}\nf(d=d, s=s)\nassert d == {'a': 1} and s == {1, 2}",
    ),
    "a list that it returns itself": ("def f(a):\n    a.append(1)\n    return a", "assert f([2]) == [2, 1]"),
    "an exception": (
        "def f(x):\n    if x < 0: raise ValueError('negative')\n    return x",
        "try:\n    f(-1)\n    raise Exception('no error')\nexcept ValueError as e:\n"
        "    assert str(e) == 'negative'\nassert f(1) == 1",
    ),
    "an exception by unittest": (
        "def f(x): return {}[x]",
        "import unittest\ncase = unittest.TestCase()\nwith case.assertRaises(KeyError) as c: f(5)\n"
        "assert c.exception.args == (5,)\ncase.assertRaises(LookupError, f, 6)",
    ),
    "an exception of its own": (
        "class Empty(LookupError): pass\ndef f(x): raise Empty('none', x)",
        "try:\n    f(3)\n    assert False\nexcept Empty as e:\n"
        "    assert e.args == ('none', 3) and isinstance(e, LookupError)",
    ),
    "an exception of the setup": (
        "def f(x): raise Empty(x)",
        "try:\n    f(3)\n    assert False\nexcept Empty as e:\n    assert e.code == 3",
        {"setup": "class Empty(Exception):\n    def __init__(self, code): self.code = code"},
    ),
    "an exit that is wanted": (
        "import sys\ndef f(x): sys.exit(x)",
        "try:\n    f(3)\n    assert False\nexcept SystemExit as e:\n    assert e.code == 3",
    ),
    "all kinds of data": (
        "import datetime, decimal, fractions, collections\n"
        "def f(): return (1.5, True, None, 'a', b'b', 2j, {1}, frozenset([2]), {3: [4]},"
        " range(5), decimal.Decimal('1.1'), fractions.Fraction(1, 3), datetime.date(2020, 1, 2), "
        "collections.deque([1]),"
        " collections.OrderedDict(a=1), collections.defaultdict(int, b=2), ..., int, 10**50, float('inf'))",
        "import datetime, decimal, fractions, collections\n"
        "assert f() == (1.5, True, None, 'a', b'b', 2j, {1}, frozenset([2]), {3: [4]},"
        " range(5), decimal.Decimal('1.1'), fractions.Fraction(1, 3), datetime.date(2020, 1, 2), "
        "collections.deque([1]),"
        " collections.OrderedDict(a=1), dict(b=2), ..., int, 10**50, float('inf'))",
    ),
    "types of results": (
        "def f(x): return x",
        "import math\nassert type(f(1)) is int and type(f(True)) is bool and math.isnan(f(math.nan))",
        "assert isinstance(f([]), list) and f((1,)) != [1] and f(-0.0).hex() == '-0x0.0p+0'",
    ),
    "a named tuple": (
        "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n    y: int\n"
        "def f(): return P(1, 2)",
        "assert f() == (1, 2)",
    ),
    "state between calls": (
        "count = 0\ndef f():\n    global count\n    count += 1\n    return count",
        "assert f() == 1",
        "assert f() == 2",
    ),
    "a cache": (
        "import functools\n@functools.cache\ndef f(n): return n if n < 2 else f(n - 1) + f(n - 2)",
        "assert f(80) == 23416728348467685",
    ),
    "a constant": ("LIMIT = [1, 2]\ndef f(): return LIMIT", "assert LIMIT == [1, 2] and f() == LIMIT"),
    "a guarded main": (
        "def f(x): return x\nif __name__ == '__main__': raise SystemExit(input())",
        "assert f(1) == 1",
    ),
    "annotations of the future": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\n"
        "class A:\n    x: int\n    y: list[int]\n"
        "def f(a: Nothing) -> Never: return A(a, []).x",
        "assert f(3) == 3",
    ),
    "an enumeration": (
        "from enum import Enum\nclass C(Enum):\n    RED = 1\ndef f(x): return C(x).name",
        "assert f(1) == 'RED'",
    ),
    "a file of its own": (
        "def f(x):\n    open('a.txt', 'w').write(x)\n    return open('a.txt').read()",
        "assert f('b') == 'b'",
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f(x):\n"
        "    with ThreadPoolExecutor(2) as p: return list(p.map(abs, x))",
        "assert f([-1, 2]) == [1, 2]",
    ),
    "a function that is asked for by a built-in name": (
        "def sum(a, b): return a * b",
        "assert sum(3, 4) == 12",
        {"entry_point": "sum"},
    ),
    "functions of the test's": (
        "def f(g, xs): return [g(x) for x in xs]\ndef compose(*gs):\n    def h(x):\n"
        "        for g in gs: x = g(x)\n        return x\n    return h",
        "assert f(lambda x: x * 2, [1, 2]) == [2, 4] and f(len, ['ab']) == [2] and f(str.upper, "
        "'a') == ['A']",
        "assert compose(lambda x: x + 1, lambda x: x * 2)(3) == 8",
        "def fails(x): raise KeyError(x)\ntry:\n    f(fails, [5])\n    assert False\n"
        "except KeyError as e:\n    assert e.args == (5,)",
        "seen = []\nf(seen.append, [0])\nf(lambda x: seen.append(x), [1, 2])\nassert seen == [0, 1, 2]",
        "assert f(lambda x: f(lambda y: y + x, [10]), [1, 2]) == [[11], [12]]",
    ),
    "functions that it returns": (
        "def f(a): return lambda b: a + b",
        "assert f(2)(3) == 5",
        "assert [g(1) for g in map(f, [1, 2])] == [2, 3]",
    ),
    "its function as an argument": (
        "def twice(g, x): return g(g(x))\ndef f(x): return x + 1",
        "assert twice(f, 1) == 3",
    ),
    "objects passed back": (
        NODE + "def build(xs):\n    n = None\n    for x in reversed(xs): n = Node(x, n)\n    return n\n"
        "def values(n): return [] if n is None else [n.value, *values(n.next)]",
        "assert values(build([1, 2, 3])) == [1, 2, 3]",
        "n = build([4, 5])\nassert n.value == 4 and n.next.value == 5 and n.next.next is None",
    ),
    "objects that the test makes": (
        NODE + "def f(n): return 0 if n is None else 1 + f(n.next)",
        "n = Node(1)\nn.next = Node(2)\nn.next.next = Node(3, Node(4))\nassert f(n) == 4",
        "assert n.value == 1 and n.next.value == 2 and n.next == n.next != n",
        {"classes": ("Node",)},
    ),
    "a class": (
        STACK,
        "s = Stack(1)\nassert s.push(2).push(3).pop() == 3 and len(s) == 2 and list(s) == [1, 2]",
        "assert 2 in s and 5 not in s and s[0] == 1 and repr(s) == 'Stack(1, 2)' and s and not "
        "Stack() and s == s",
        "assert (s + Stack(9)).items == [1, 2, 9]",
        "try:\n    Stack().pop()\n    assert False\nexcept IndexError as e:\n"
        "    assert str(e) == 'empty stack'",
        {"classes": ("Stack",)},
    ),
    "a class of the setup": (
        "def f(n): return 0 if n is None else n.value + f(n.next)\ndef g(xs):\n    n = None\n"
        "    for x in reversed(xs): n = Node(x, n)\n    return n",
        "assert f(Node(1, Node(2))) == 3",
        "n = g([1, 2])\nassert isinstance(n, Node) and n.next.value == 2 and f(n) == 3",
        {"setup": NODE},
    ),
    "a data class of the setup": (
        "def f(p): return P(p.y, p.x)",
        "assert f(P(1, 2)) == P(2, 1) != f(P(2, 1))",
        {"setup": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int = 0\n    y: int = 0"},
    ),
    "an enumeration of the setup": (
        "def f(x): return C(x)",
        "assert f(1) is C.RED and f(2) != C.RED",
        "assert [f(1), f(C.RED)] == [C.RED] * 2",
        {"setup": "import enum\nclass C(enum.Enum):\n    RED = 1\n    BLUE = 2"},
    ),
    "whose object it is": (
        "class A: pass\nclass B(A): pass\ndef f(x): return B()",
        "assert isinstance(f(1), A) and not isinstance(1, A)",
        "assert not isinstance(f(1), (int, str))",
    ),
    "threads of the test's": (
        "def f(x): return x",
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(4) as p: assert list(p.map(f, range(300))) == list(range(300))",
    ),
    "a setup's constants": (
        "def f(x): return x * FACTOR",
        "assert f(3) == 3 * FACTOR",
        {"setup": "FACTOR = 7"},
    ),
    "a check": (
        "def f(x): return g(x)",
        "METADATA = {}\n\ndef check(candidate):\n    assert candidate(3) == g(3), 'message'\n",
        {"setup": "def g(x): return x + 1\n\ndef f(x):\n    '''Doc.'''\n", "entry_point": "f"},
    ),
    "test functions": (
        "def f(x): return x",
        "def test_f():\n    for i in range(50): assert f(i) == i\ntest_f()",
    ),
    "a class of tests": (
        "def f(x): return x",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(1), 1)\n"
        "r = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T))\n"
        "assert r.wasSuccessful() and r.testsRun == 1",
    ),
    "a generator as an argument": (
        "def f(xs): return sum(xs)",
        "assert f(x * x for x in range(4)) == 14 and f(iter([1, 2])) == 3",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_passes(judge, name):
    (answer, *tests), more = parts(PROGRAMS[name])
    verdict = judge(answer, *tests, **more)
    assert verdict.verdict == "correct", verdict


def test_the_same_tests_fail_where_the_program_is_wrong(judge):
    """Each list of tests above asks something: functions that only return a text do not pass it."""
    for (_, *tests), more in map(parts, PROGRAMS.values()):
        blank = "def __getattr__(name): return 0\n" + "\n".join(
            f"def {name}(*a, **k): return 'no'"
            for name in (
                "f",
                "sum",
                "twice",
                "values",
                "build",
                "compose",
                "Stack",
                "Node",
                "g",
                "LIMIT",
                "Empty",
            )
        )
        assert judge(blank, *tests, **more).verdict in ("wrong", "error"), tests


def test_what_was_wrong_is_said(judge):
    answer = "def f(x): return x\ndef g(x): return {}[x]"
    assert (
        judge(answer, "assert f(1) == 1", "assert f(2) == 3, 'two'").message
        == "test 2 of 2: AssertionError: two"
    )
    assert judge(answer, "assert g(1) == 1").message == "KeyError: 1"
    assert judge(answer, "assert f(1) + None").message.startswith("the test: TypeError")
    assert judge(answer, "assert h(1)", entry_point="h").message == "the program does not define h"
    lock = "import threading\ndef f(x): return threading.Lock()"
    assert "cannot call a builtin_function" in judge(lock, "f(1).acquire()").message


@pytest.mark.parametrize("fields", [
    {"tests": ("assert f(1) ==",)}, {"setup": "1 / 0"}, {"setup": "def f(:"}, {"setup": "raise SystemExit"},
    {"tests": ("\0",)}, {"setup": "import nothing_of_this_name"}])  # fmt: skip
def test_a_broken_test_is_no_verdict(verifier, fields):
    with pytest.raises(GoldError, match="cannot be compiled, or their setup fails"):
        verifier.submit(
            AssertJob(**{"tests": ("assert f(1)",), "answer": "def f(x): return 1", **fields})
        ).result()


def test_two_jobs_are_two_entries_of_the_cache(verifier):
    plain = {"tests": ("assert f(1) == 1",), "answer": "def f(x): return 1  # cache"}
    jobs = [AssertJob(**plain | more) for more in (
        {}, {"tests": ("assert f(1) == 2",)}, {"setup": "g = 1"}, {"entry_point": "g"}, {"classes": ("A",)},
        {"tests": ("assert f(1) == 1", "assert f(1) == 2")}, {"timeout": 9.0})]  # fmt: skip
    assert len({id(verifier.submit(job)) for job in jobs}) == len(jobs)
    assert [v.verdict for v in verifier.run(jobs)] == [
        "correct",
        "wrong",
        "correct",
        "error",
        "correct",
        "wrong",
        "correct",
    ]
