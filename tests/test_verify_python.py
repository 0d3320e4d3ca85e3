"""The Python verifier against programs that cheat, hang, grow, escape or break, and results that look equal.

Attacks on the verifier are numbered through all its tests; a name begins with its number. Contexts have
DS-1000's shape and need numpy alone; tests of pandas, Matplotlib and scikit-learn are skipped where the
interpreter does not have them. DS1000_PYTHON names another interpreter to test with, for example
.venv-ds1000/bin/python.
"""

import collections
import hashlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import verify  # noqa: E402
from verifier import emptiness, pack, supervisor, unpack, walls  # noqa: E402
from verifier.child import delay_seconds, processor_seconds, receive, send  # noqa: E402
from verifier.interpreter import WALL, Interpreter  # noqa: E402
from verify import GoldError, InfrastructureError, PythonJob, Verifier  # noqa: E402

PYTHON = os.environ.get("DS1000_PYTHON", sys.executable)
pytestmark = pytest.mark.skipif(
    not walls.is_strict(), reason=f"not all walls on this machine: {walls.tier()}"
)

SECRET = 987654321012345  # the expected value where an attack must not find it by chance


def context(
    expected="x * 2",
    value="7",
    check="assert result == ans",
    cases=1,
    before="x = test_input",
    after="",
    imports="import copy",
    string="",
):
    """A tiny test in the official shape."""
    return f'''
{imports}

def generate_test_case(test_case_id):
    def define_test_input(test_case_id):
        return {value}

    def generate_ans(data):
        x = data
        return {expected}

    test_input = define_test_input(test_case_id)
    expected_result = generate_ans(copy.deepcopy(test_input))
    return test_input, expected_result


def exec_test(result, ans):
    {check}
    return 1


exec_context = r"""
{before}
[insert]
{after}
"""


def test_execution(solution: str):
    code = exec_context.replace("[insert]", solution)
    for i in range({cases}):
        test_input, expected_result = generate_test_case(i + 1)
        test_env = {{"test_input": test_input}}
        exec(code, test_env)
        assert exec_test(test_env["result"], expected_result)
{string}
'''


PLAIN = context()
HIDDEN = context(expected=f"{SECRET} + x", imports="import copy\nimport numpy as np")
NUMPY = context(
    expected="np.arange(4) * x",
    imports="import copy\nimport numpy as np",
    check="np.testing.assert_array_equal(result, ans)",
    before="import numpy as np\nx = test_input",
)
FRAME = context(
    expected="pd.DataFrame({'a': [x, 2]})",
    imports="import copy\nimport pandas as pd",
    check="pd.testing.assert_frame_equal(result, ans, check_dtype=False)",
    before="import pandas as pd\nx = test_input",
)


def has(module):
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
    return subprocess.run([PYTHON, "-s", "-c", code], cwd="/").returncode == 0


def needs(module):
    return pytest.mark.skipif(not has(module), reason=f"{module} is not installed")


@pytest.fixture(scope="module")
def verifier(nothing_is_left):
    with Verifier(workers=2, python=PYTHON) as verifier:
        yield verifier


@pytest.fixture
def judge(verifier):
    def judge(answer, test=PLAIN, timeout=30.0):
        return verifier.run([PythonJob(test, answer, timeout)])[0]

    return judge


def processes():
    """Processes of any supervisor, judge or candidate of this run: all descend from this one, or none."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[int(stat.parent.name)] = (int(fields[1]), fields[0])
    mine, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, (parent, state) in found.items() if parent in mine and state != "Z"} - mine
        mine, grown = mine | more, bool(more)
    return mine - {os.getpid()}


def folders():
    return {path.name for path in Path(tempfile.gettempdir()).glob("codelutra-*")}


# --- right and wrong ----------------------------------------------------------------------------------------


def test_right_and_wrong(judge):
    assert judge("result = x * 2").verdict == "correct"
    assert judge("result = x * 3").verdict == "wrong"
    assert judge("result = x +").verdict == "error"
    assert judge("result = 1 / 0").message.startswith("ZeroDivisionError")
    assert judge("def f():\n    return y\nresult = f()").verdict == "error"


def test_every_case_of_a_test_counts(judge):
    test = context(expected="x * 2", value="test_case_id", cases=3)
    assert judge("result = x * 2", test).verdict == "correct"
    assert judge("result = 2 * x if x < 3 else 0", test).verdict == "wrong"


def test_text_of_the_answer_is_tested(judge):
    string = '\n\ndef test_string(solution: str):\n    assert "while" not in solution\n'
    assert judge("result = x * 2", context(string=string)).verdict == "correct"
    verdict = judge("result = x * 2  # while", context(string=string))
    assert verdict.verdict == "wrong" and "text" in verdict.message


def test_a_broken_test_is_no_verdict_and_no_fault_of_the_machine(judge):
    for test in (
        context(expected="1 / 0"),
        context(imports="import copy\nimport no_such_library"),
        "this is no test",
        "x = 1",
    ):
        with pytest.raises(GoldError, match="test itself"):
            judge("result = x * 2", test)
    assert judge("result = x * 2").verdict == "correct"


def test_a_broken_test_names_the_libraries_that_the_interpreter_lacks(tmp_path):
    bare = tmp_path / "python"  # without site-packages
    bare.write_text(f'#!/bin/sh\nexec "{PYTHON}" -S "$@"\n')
    bare.chmod(0o755)
    with Verifier(workers=1, python=str(bare)) as verifier:
        assert verifier.run([PythonJob(PLAIN, "result = x * 2")])[0].verdict == "correct"
        with pytest.raises(
            InfrastructureError, match="'numpy'.*/python lacks numpy, pandas, .*torch.*make ds1000"
        ):
            verifier.run([PythonJob(NUMPY, "result = x * 2")])


def test_random_numbers_continue_as_in_one_process(judge):
    test = context(
        value="np.random.seed(5)",
        expected="np.random.RandomState(5).rand(3)",
        before="import numpy as np",
        imports="import copy\nimport numpy as np",
        check="np.testing.assert_array_equal(result, ans)",
    )
    assert judge("result = np.random.rand(3)", test).verdict == "correct"
    assert judge("np.random.seed(6)\nresult = np.random.rand(3)", test).verdict == "wrong"


def test_a_program_that_draws_without_a_seed_gets_the_same_verdict_from_every_pool():
    test = context(
        imports="import copy\nimport random\nimport numpy as np", check="raise AssertionError(result)"
    )
    answer = "import random\nimport numpy as np\nresult = [random.random(), float(np.random.rand())]"
    seen = set()
    for _ in range(2):
        with Verifier(1, python=PYTHON) as verifier:
            seen.add(verifier.run([PythonJob(test, answer)])[0].message)
    assert len(seen) == 1 and "[0.13436424411240122, 0.417022004702574]" in seen.pop()


def test_torchs_random_numbers_continue_as_in_one_process(judge):
    test = context(
        value="[torch.manual_seed(7)] and 1",
        expected="[torch.manual_seed(5), torch.rand(3).tolist(), torch.manual_seed(5)][1]",
        before="import torch",
        imports="import copy\nimport torch",
        check="assert result == ans",
    )
    assert judge("result = torch.rand(3).tolist()", test).verdict == "correct"


def test_answers_are_remembered_and_faults_are_not(verifier):
    first = verifier.submit(PythonJob(PLAIN, "result = x * 2  # once"))
    first.result()
    assert verifier.submit(PythonJob(PLAIN, "result = x * 2  # once")) is first
    broken = PythonJob(context(expected="1 / 0 # fault"), "result = 1")
    with pytest.raises(GoldError):
        verifier.submit(broken).result()
    assert verifier.submit(broken) is not verifier.submit(PythonJob(PLAIN, "result = 1"))


def test_a_module_is_not_there_before_it_is_imported(judge):
    """The zygote imports many libraries; a program must not notice."""
    assert judge("result = x * 2 if 'numpy' not in globals() else 0").verdict == "correct"
    assert judge("result = np.int64(x * 2)").message.startswith("NameError")


def test_types_that_tests_compare(judge):
    np = pytest.importorskip("numpy")
    values = [
        "{1, 2}", "frozenset([1])", "2 + 3j", "range(3)", "[None, ..., b'x']", "10 ** 40",
        "{'a': {'b': (1, [2])}}", "np.datetime64('2020-01-01')", "np.float32(2.5)", "np.dtype('f4')",
        "np.float64", "slice(1, 2)", "__import__('datetime').datetime(2020, 1, 2, 3)",
        "__import__('decimal').Decimal('1.5')", "__import__('collections').Counter('aab')",
        "__import__('fractions').Fraction(1, 3)",
    ]  # fmt: skip
    for value in values:
        test = context(
            expected=value,
            imports="import copy\nimport numpy as np",
            before="import numpy as np",
            check="assert type(result) == type(ans) and result == ans",
        )
        assert judge(f"result = {value}", test).verdict == "correct", value
        assert judge("result = 'something else'", test).verdict == "wrong", value
    assert np is not None


# --- 37 to 45: pretending to be right -----------------------------------------------------------------------

CHEATS = {
    "37 exit before": "import sys\nsys.exit(0)\nresult = x * 2",
    "37 exit after": "result = x * 2\nimport sys\nsys.exit(0)",
    "37 quit": "result = x * 2\nraise SystemExit",
    "38 os._exit": "import os\nos._exit(0)",
    "38 os._exit after": "import os\nresult = x * 2\nos._exit(0)",
    "39 always equal": "class Equal:\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n"
                       "result = Equal()",
    "39 always equal number": "class Equal(int):\n    __eq__ = lambda s, o: True\nresult = Equal(3)",
    "39 always equal text": "class Equal(str):\n    __eq__ = lambda s, o: True\nresult = Equal('3')",
    "39 always equal list": "class Equal(list):\n    __eq__ = lambda s, o: True\nresult = Equal([3])",
    "39 class": "class M(type):\n    __eq__ = lambda s, o: True\nclass E(metaclass=M): pass\nresult = E",
    "41 patched builtins": "import builtins\nbuiltins.abs = lambda v: 0\nbuiltins.AssertionError = None\n"
                           "result = 1",
    "41 patched int": "import ctypes\nint_eq = lambda s, o: True\nint.__eq__ = int_eq\nresult = 1",
    "42 frames": "import sys\nframe = sys._getframe()\nwhile frame:\n"
                 "    for v in list(frame.f_locals.values()):\n"
                 f"        if v == {SECRET + 7}: result = v\n    frame = frame.f_back",
    "42 traceback": "try:\n    1 / 0\nexcept Exception as e:\n    f = e.__traceback__.tb_frame\n"
                    "    while f:\n"
                    "        if 'expected_result' in f.f_locals: result = f.f_locals['expected_result']\n"
                    "        f = f.f_back",
    "43 gc": "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict) and 'expected_result' in o:\n"
             "        result = o['expected_result']\n"
             "    if isinstance(o, dict) and 'generate_test_case' in o:\n"
             "        result = o['generate_test_case'](1)[1]",
    "44 reduce": "import os\nclass R:\n"
                 "    def __reduce__(self): return (os.system, ('touch /tmp/codelutra_reduced',))\n"
                 "result = R()",
    "45 every fd": "import os\nfor fd in range(256):\n    try: os.write(fd, b'PASS\\n' * 3)\n"
                   "    except OSError: pass",
    "45 forged reply": "import os\nfor fd in range(3, 30):\n"
                       "    try: os.write(fd, (9).to_bytes(8, 'little') + b'RPASS1234')\n"
                       "    except OSError: pass",
    "70 no result": "y = x * 2",
    "79 the judge's own exception": "from verifier import judge\nraise judge.Decided('correct', '')",
    "79 patched judge": "from verifier import candidate, judge\n"
                        "candidate.classify = lambda e: ('correct', '')\n"
                        "judge.official = None\n1 / 0",
}  # fmt: skip


@pytest.mark.parametrize("name", CHEATS)
def test_a_wrong_answer_does_not_pass(judge, name):
    verdict = judge(CHEATS[name], HIDDEN if name[:2] in ("42", "43") else PLAIN)
    assert verdict.verdict in ("wrong", "error", "denied"), verdict
    assert not Path("/tmp/codelutra_reduced").exists()


def test_41_patched_numpy_does_not_reach_the_judge(judge):
    answer = (
        "np.testing.assert_array_equal = np.allclose = np.array_equal = lambda *a, **k: True\n"
        "result = np.zeros(4)"
    )
    assert judge(answer, NUMPY).verdict == "wrong"
    assert judge("result = np.arange(4) * x", NUMPY).verdict == "correct"


def test_39_array_subclass_arrives_as_a_plain_array(judge):
    answer = (
        "class Equal(np.ndarray):\n    def __eq__(self, other): return np.ones(4, bool)\n"
        "    def __array_function__(self, *a, **k): return True\nresult = np.{}.view(Equal)"
    )
    assert judge(answer.format("zeros(4)"), NUMPY).verdict == "wrong"
    # what it holds is right, officially too
    right = answer.format("arange(4) * x").replace("np.arange(4) * x.view", "(np.arange(4) * x).view")
    assert judge(right, NUMPY).verdict == "correct"


@needs("pandas")
def test_40_frame_subclass_with_its_own_comparison(judge):
    answer = (
        "class Equal(pd.DataFrame):\n    __eq__ = lambda s, o: True\n    def equals(self, o): return True\n"
        "result = Equal({'a': [1, 1]})"
    )
    assert judge(answer, FRAME).verdict == "wrong"
    assert (
        judge("pd.testing.assert_frame_equal = lambda *a, **k: None\nresult = pd.DataFrame()", FRAME).verdict
        == "wrong"
    )
    assert judge("result = pd.DataFrame({'a': [x, 2]})", FRAME).verdict == "correct"


@needs("pandas")
def test_pandas_results_arrive_as_they_were(judge):
    frames = [
        "pd.DataFrame({'a': [1, None], 'b': ['x', None], 'c': pd.to_datetime(['2020', '2021'])})",
        "pd.DataFrame([[1, 2]], columns=['a', 'a'])",
        "pd.DataFrame(index=range(3))",
        "pd.DataFrame({'t': pd.date_range('2020', periods=2, tz='US/Eastern')}, "
        "index=pd.period_range('2020', periods=2, freq='M'))",
        "pd.DataFrame({'c': pd.Categorical(['u', 'v'])}, "
        "index=pd.MultiIndex.from_tuples([('a', 1), ('b', 2)], names=['k', None]))",
        "pd.DataFrame({'i': pd.array([1, None], dtype='Int64'), 's': pd.array(['a', None], dtype='string')})",
        "pd.cut(pd.Series([1, 2, 3]), 2).value_counts().to_frame()",
        "pd.DataFrame({'a': [1, 2]}, index=pd.date_range('2020', periods=2))",
    ]
    for value in frames:
        test = context(
            expected=value,
            imports="import copy\nimport pandas as pd",
            before="import pandas as pd",
            check="pd.testing.assert_frame_equal(result, ans)",
        )
        verdict = judge(f"result = {value}", test)
        assert verdict.verdict == "correct", (value, verdict)


@needs("dateutil")
@needs("pandas")
@pytest.mark.parametrize(
    "value",
    [
        "pd.Timestamp('2020-07-01', tz='dateutil/Europe/Paris')",
        "pd.Timestamp('2020-07-01', tz=tz.tzutc())",
        "pd.DatetimeIndex(['2020-01-01', '2020-07-01'], tz='dateutil/Europe/Paris')",
        "pd.DataFrame({'a': pd.date_range('2020', periods=2, tz=tz.gettz('America/New_York'))})",
        "pd.Timestamp('2020-07-01', tz=tz.tzoffset(None, 3600))",
    ],
)
def test_time_zones_of_dateutil_arrive(judge, value):
    imports = "import copy\nimport numpy as np\nimport pandas as pd\nfrom dateutil import tz"
    check = "assert np.all(result == ans) and str(result) == str(ans)"
    test = context(expected=value, imports=imports, before="import pandas as pd", check=check)
    assert judge(f"from dateutil import tz\nresult = {value}", test).verdict == "correct"
    assert judge("from dateutil import tz\nresult = pd.Timestamp('2021')", test).verdict == "wrong"
    # One of no name goes where a test does not look at it.
    odd = (
        "class Odd(datetime.tzinfo):\n"
        "    def utcoffset(self, at): return at and datetime.timedelta(hours=1)\n"
    )
    found = judge(
        f"import datetime\n{odd}result = datetime.datetime(2020, 1, 1, tzinfo=Odd())",
        context(check="assert ans"),
    )
    assert found.verdict == "correct"


@needs("pandas")
def test_input_behaves_as_in_one_process(judge):
    """pandas 1.5 writes into an unpickled object column in `astype(str)`; officially nothing is unpickled."""
    test = context(
        value="pd.DataFrame({'a': [1.5, 2, 'and']})",
        expected="[1.5, 'and']",
        imports="import copy\nimport pandas as pd",
    )
    assert judge("result = x.loc[~x['a'].astype(str).str.isdigit(), 'a'].tolist()", test).verdict == "correct"


# --- results without elements -------------------------------------------------------------------------------

NOTHING = [
    "[]", "()", "{}", "set()", "frozenset()", "range(0)", "iter([])", "map(int, [])", "{}.keys()",
    "{}.values()", "collections.deque()", "[[]]", "[(), {}]", "np.array([])", "np.empty((0, 1, 1, 1))",
    "np.empty((3, 0))", "np.empty(0, object)", "np.array([], 'U3')", "np.zeros(3, [('a', 'f8', (0,))])",
    "np.matrix([[]])", "np.ma.array([])", "[np.array([])]", "np.array([[], None], object)[:1]",
    "pd.Series([], dtype=float)", "pd.Series([[], []])", "pd.DataFrame()", "pd.DataFrame({'a': []})",
    "pd.DataFrame(index=range(2))", "pd.DataFrame({'a': [[], ()]})", "pd.Index([])", "pd.RangeIndex(0)",
    "pd.MultiIndex.from_tuples([], names=['a', 'b'])", "pd.Categorical([])", "pd.array([], dtype='Int64')",
    "pd.date_range('2020', periods=0)", "torch.empty(0)", "torch.empty(2, 0, 3)", "torch.Size([])",
]  # fmt: skip
SOMETHING = [
    "5", "None", "''", "'a'", "float('nan')", "[0]", "(None,)", "{'a': 1}", "{1}", "range(2)", "np.arange(3)",
    "np.float64(5)", "np.str_('')", "np.array([''])", "np.array(5)", "np.zeros((1, 1))",
    "np.array([[], [1]], object)", "[[], [1]]", "pd.Series([1])", "pd.DataFrame({'a': [[], 1]})",
    "pd.Index(['a'])", "pd.Timestamp('2020')", "pd.NA", "torch.ones(1)", "torch.tensor(5)",
]  # fmt: skip
PLACES = {
    "alone": "v", "in a list": "[1, v]", "in a tuple": "(v, 1)", "in a dictionary": "{'k': v, 'l': 1}",
    "deep": "[{'k': (v,)}]", "in a deque": "collections.deque([v])", "in an iterator": "iter([v])",
    "in a slice": "slice(1, v)", "in an object array": "cells([v, 1])",
    "in a matrix": "np.asmatrix(cells([v, 1]))", "in a series": "pd.Series(cells([v, 1]))",
    "in a column": "pd.DataFrame({'a': [1, 2], 'b': cells([1, v])})",
    "in all cells": "pd.DataFrame({'a': cells([v, v]), 'b': cells([v, v])})",
    "as a label": "pd.Index(cells([v]), dtype=object)",
    "as a row's name": "pd.DataFrame({'a': [1]}, index=pd.Index(cells([v]), dtype=object))",
    "as a column's name": "pd.DataFrame([[1]], columns=pd.Index(cells([v]), dtype=object))",
    "as a name in a series": "pd.Series([1], index=pd.Index(cells([v]), dtype=object))",
}  # fmt: skip


def value_of(place, value):
    import numpy as np
    import pandas as pd
    import torch

    def cells(values):
        array = np.empty(len(values), object)
        for at, one in enumerate(values):
            array[at] = one
        return array

    names = {"np": np, "pd": pd, "torch": torch, "collections": collections, "cells": cells}
    return eval(PLACES[place], names | {"v": eval(value, names)})


def sent(place, value):
    """As it arrives in the judge."""
    return unpack.unpack(pack.pack(value_of(place, value)))


@pytest.mark.parametrize("place", PLACES)
def test_what_has_no_elements_is_like_nothing_that_has_some(place):
    ours, theirs = ({value: sent(place, value) for value in NOTHING + SOMETHING} for _ in range(2))
    for value in NOTHING:
        for other in SOMETHING:
            assert emptiness.differs(ours[value], theirs[other]), (value, other)
            assert emptiness.differs(ours[other], theirs[value]), (other, value)
        for other in NOTHING:
            assert not emptiness.differs(ours[value], theirs[other]), (value, other)
    for value in SOMETHING:
        assert not emptiness.differs(ours[value], theirs[value]), value


def test_what_has_no_elements_in_libraries_that_are_not_here(monkeypatch):
    np, sparse = pytest.importorskip("numpy"), types.ModuleType("scipy.sparse")

    class Tensor:  # of TensorFlow, for example
        def __init__(self, *shape):
            self.shape = shape

    class Sparse(Tensor):
        def __init__(self, cell, *shape):
            self.shape, self.dtype, self.data = shape, np.dtype(object), [cell, 1]

        def tocoo(self):
            return self

    sparse.issparse = lambda value: isinstance(value, Sparse)
    monkeypatch.setitem(sys.modules, "scipy.sparse", sparse)
    for nothing, something in (
        (Tensor(0), Tensor(2)),
        (Tensor(2, 0), Tensor()),
        (Sparse(1, 0, 3), Sparse(1, 3, 3)),
        (Sparse([], 3, 3), Sparse(0, 3, 3)),
        (Sparse(np.array([]), 1, 1), Sparse(5, 1, 1)),
    ):
        for place in (lambda v: v, lambda v: [v], lambda v: {"k": (1, v)}):
            assert emptiness.differs(place(nothing), place(something))
            assert emptiness.differs(place(something), place(nothing))
            assert not emptiness.differs(place(nothing), place(nothing))
            assert not emptiness.differs(place(something), place(something))


def test_results_that_hold_both_are_like_themselves():
    alike = [([[], [1]], [[], [1]]), ({"a": [], "b": 1}, {"b": 1, "a": []}), ([(), {1, ()}], [(), {(), 1}])]
    unlike = [
        ([[], [1]], [[1], []]),
        ({"a": [], "b": 1}, {"a": 1, "b": []}),
        ([[], []], [[], [1]]),
        ({()}, {1}),
    ]
    assert not any(emptiness.differs(*pair) for pair in alike) and all(
        emptiness.differs(*pair) for pair in unlike
    )


TEXTLESS = ["''", "b''", "bytearray()", "np.str_('')", "np.bytes_(b'')"]
COLLECTIONS = [
    "[1]", "(None,)", "{'a': 1}", "{1}", "['a']", "range(2)", "np.arange(3)", "np.array(['a'])", "iter([1])",
    "np.zeros((2, 2))", "pd.Series([1])", "pd.DataFrame({'a': [1]})", "pd.Index(['a'])", "torch.ones(1)",
    "pd.array([1], dtype='Int64')", "torch.Size([1])", "collections.deque([1])", "[['']]",
]  # fmt: skip
NO_COLLECTIONS = [
    "'a'", "''", "b'a'", "5", "None", "float('nan')", "np.float64(5)", "np.str_('a')", "torch.tensor(5)",
]  # fmt: skip


@pytest.mark.parametrize(
    "place", ["alone", "deep", "in an iterator", "in a series", "in all cells", "as a label"]
)
def test_an_empty_text_is_like_no_collection_that_has_elements(place):
    """A test that goes through both side by side would see no difference."""
    ours, theirs = (
        {value: sent(place, value) for value in TEXTLESS + COLLECTIONS + NO_COLLECTIONS} for _ in range(2)
    )
    for text in TEXTLESS:
        for other in COLLECTIONS:
            assert emptiness.differs(ours[text], theirs[other]), (text, other)
            assert emptiness.differs(ours[other], theirs[text]), (other, text)
        for other in NO_COLLECTIONS:  # the test itself compares these
            assert not emptiness.differs(ours[text], theirs[other]), (text, other)
            assert not emptiness.differs(ours[other], theirs[text]), (other, text)


def test_empty_texts_in_results_that_are_built_in_another_way():
    np, pd = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    unlike = [
        (["", ""], [[1], [2]]), ([""], [[1], [2]]), ({""}, {(1,)}), (["", ""], np.ones((2, 2))),
        ({"": 1}, [[1], [2]]), (np.array(["", ""]), [[1], [2]]), (np.array([b"", b""]), [[1], [2]]),
        (pd.Series(["", ""]), [[1], [2]]), (pd.DataFrame({"a": ["", ""]}), [[1], [2]]),
        ((("", ""), ("", "")), np.ones((2, 2, 2))),
    ]  # fmt: skip
    texts = np.array([["", "a"], ["b", "c"]])
    alike = [(["", "a"], ["b", "c"]), (["", "a"], np.array(["", "a"])), (pd.Series(["", "a"]), ["", "a"]),
             (texts, texts.copy()), (pd.DataFrame(texts), pd.DataFrame(texts.copy())),
             (["", 5], None), ({"a": ""}, 5), (texts, texts.tolist()),
             (pd.DataFrame(texts), texts.tolist()), ({"a": ""}, {"a": None})]  # fmt: skip
    for one, other in unlike:
        assert emptiness.differs(one, other) and emptiness.differs(other, one), (one, other)
    for one, other in alike:
        assert not emptiness.differs(one, other) and not emptiness.differs(other, one), (one, other)


@pytest.mark.parametrize("answer", ["''", "b''", "['', '']", "('', b'')", "{'': 1, ' ': 2}"])
def test_an_empty_text_does_not_pass_a_test_that_goes_through_both(judge, answer):
    check = "assert all(c == d for a, b in zip(result, ans) for c, d in zip(a, b))"
    test = context(expected="[[1], [2]]", check=check)
    assert judge("result = [[1], [2]]", test).verdict == "correct"
    assert judge(f"result = {answer}", test).verdict == "wrong"


def test_large_deep_and_looping_results_are_looked_through_in_no_time():
    deep, doubled, loop = [], [], [[]]
    for _ in range(5000):
        deep, doubled = [deep], [doubled, doubled]
    loop.append(loop)
    started = time.monotonic()
    for nothing in (deep, doubled, loop):
        assert (
            not emptiness.differs(nothing, nothing)
            and emptiness.differs(nothing, 5)
            and emptiness.differs(5, nothing)
        )
    for something in ([0] * 300_000 + [[]], [[1, 2, 3] for _ in range(5000)], [deep, doubled, loop, 1]):
        assert not emptiness.differs(something, something) and emptiness.differs(something, [])
    assert time.monotonic() - started < 20  # 0.5 s where nothing else runs


EMPTY_CELLS = [
    "np.array([])", "np.empty((0, 1, 1, 1))", "[]", "pd.Series([], dtype=object)", "np.empty(0, object)",
    "[np.array([])]",
]  # fmt: skip


@needs("pandas")
@pytest.mark.parametrize("cell", EMPTY_CELLS)
def test_a_frame_of_cells_without_elements_is_not_right(judge, cell):
    for which in ("[0, 1]", "[1]"):  # in every cell, in one
        code = (
            "import numpy as np\na = np.empty((2, 1), object)\na[:, 0] = [x, 2]\n"
            f"for i in {which}: a[i, 0] = {cell}\n"
            "result = pd.DataFrame(a, columns=['a'])"
        )
        assert judge(code, FRAME).verdict == "wrong"


@pytest.mark.parametrize(
    "check",
    [
        "np.testing.assert_array_equal(result, ans)",
        "np.testing.assert_allclose(result, ans)",
        "assert np.all(np.asarray(result) == ans)",
        "assert all(a == ans for a in result)",
        "np.testing.assert_equal(np.asarray(result), ans)",
        "return 1",
    ],
)
@pytest.mark.parametrize(
    "answer", ["np.array([])", "[]", "np.empty((0, 1, 1, 1))", "iter([])", "{}.keys()", "range(0)"]
)
def test_a_result_without_elements_says_nothing(judge, check, answer):
    test = context(
        expected="x * 2.0",
        imports="import copy\nimport numpy as np",
        before="import numpy as np",
        check=check,
    )
    assert judge(f"result = {answer}", test).verdict == "wrong"
    both = context(
        expected="np.array([])",
        imports="import copy\nimport numpy as np",
        before="import numpy as np",
        check="assert len(list(result)) == 0",
    )
    assert judge(f"result = {answer}", both).verdict == "correct"


def test_every_case_is_looked_at_for_elements(judge):
    test = context(
        expected="[[], [1]][x - 1]", value="test_case_id", cases=2, check="assert all(a == 1 for a in result)"
    )
    assert judge("result = [1] * (x - 1)", test).verdict == "correct"
    assert judge("result = []", test).verdict == "wrong"
    assert judge("result = [1]", test).verdict == "wrong"


# --- 46 to 57, 64 to 72: hanging, growing, crashing ---------------------------------------------------------

HANGS = {
    "46 loop": "while True: pass",
    "47 power": "result = 9 ** 9 ** 8",
    "48 catches all": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "48 ignores signals": "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
                          "    except (OSError, ValueError): pass\nwhile True: pass",
    "72 regex": "import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')\nresult = x * 2",
}  # fmt: skip
WAITS = {
    "49 stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nresult = x * 2",
    "80 sleeps": "import time\ntime.sleep(1000)\nresult = x * 2",
    "80 deadlock": "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()\n"
                   "result = x * 2",
    "80 waits for a thread": "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
                             "threading.Event().wait()\nresult = x * 2",
    "80 sleeps in pickling": "import time\nclass Slow(list):\n    def __iter__(self):\n"
                             "        time.sleep(60)\n"
                             "        return iter([])\nresult = Slow()",
    "80 half a reply": "import os, time\nfor fd in range(3, 30):\n"
                       "    try: os.write(fd, (100).to_bytes(8, 'little') + b'R')\n"
                       "    except OSError: pass\ntime.sleep(60)",
}  # fmt: skip


def most(timeout):
    """The most seconds by the clock to a verdict: 2 * WALL times the deadline, more for a busy machine."""
    return 2 * WALL * timeout + 2.5


@pytest.mark.parametrize("name", HANGS)
def test_it_ends_at_the_deadline(judge, name):
    started = time.monotonic()
    verdict = judge(HANGS[name], timeout=0.5)
    assert verdict.verdict == "timeout", verdict  # by its use; on a very busy machine by the clock
    assert time.monotonic() - started < most(0.5)


@pytest.mark.parametrize(
    "name, test",
    [
        *((name, PLAIN) for name in WAITS),
        ("49 stops itself", PLAIN + "# plt.gcf("),  # this and the next in the judge's process
        ("80 sleeps", PLAIN + "# plt.gcf("),
    ],
)
def test_what_waits_for_ever_ends_by_the_clock(judge, name, test):
    started = time.monotonic()
    verdict = judge(WAITS[name], test, timeout=0.2)
    assert verdict.verdict == "timeout" and "longer than 0.8 s" in verdict.message, verdict
    assert time.monotonic() - started < most(0.2)


@pytest.mark.parametrize(
    "test", [PLAIN, PLAIN + "# plt.gcf("], ids=["beside its judge", "in its judge's process"]
)
def test_waiting_does_not_count_as_use(judge, test):
    """On a busy machine a program waits for a processor, here it waits for the time to pass."""
    assert judge("import time\ntime.sleep(1.2)\nresult = x * 2", test, timeout=0.8).verdict == "correct"


BURN = """import hashlib, threading, time
def burn(seconds):
    while time.thread_time() < seconds: hashlib.sha256(bytes(100_000))
def burn_in_thread(seconds):
    threads.append(threading.Thread(target=burn, args=(seconds,)))
    threads[-1].start()
threads = []
"""


@pytest.mark.parametrize("name, answer, expected", [
    ("one thread", "burn_in_thread(0.3)\nthreads[0].join()", "correct"),
    ("two at once", "burn_in_thread(0.6)\nburn_in_thread(0.6)\nfor t in threads: t.join()", "timeout"),
    ("two one after the other", "burn_in_thread(0.6)\nthreads[0].join()\nburn_in_thread(0.6)\n"
                                "threads[1].join()", "timeout"),
    ("after its main thread has ended", "burn_in_thread(9)\nimport ctypes\n"
                                        "ctypes.CDLL(None).syscall(60, 0)", "timeout"),
], ids=lambda value: value if " " in value and len(value) < 40 else "")  # fmt: skip
def test_the_time_of_all_threads_is_added_up(judge, name, answer, expected):
    if os.uname().machine != "x86_64" and "main thread" in name:
        return
    assert judge(f"{BURN}{answer}\nresult = x * 2", timeout=0.9).verdict == expected


def test_the_judges_own_work_counts(judge):
    burn = f"exec({BURN + 'burn(time.thread_time() + 2)'!r}, {{}})"
    verdict = judge("result = x * 2", context(check=f"{burn}; assert result == ans"), timeout=0.5)
    assert verdict.verdict == "timeout"


def test_processor_time_of_a_process_its_threads_and_its_children():
    before = processor_seconds(os.getpid())
    names = {}
    exec(BURN + "burn_in_thread(0.3)\nthreads[0].join()", names)
    child = [sys.executable, "-c", BURN + "burn(0.3)\nprint(flush=True)\ninput()"]
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.read(1)
        assert 0.25 < processor_seconds(process.pid) < 2
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert processor_seconds(process.pid) > 0.25  # dead and not yet collected
    assert 0.5 < processor_seconds(os.getpid()) - before < 4
    assert processor_seconds(2**30) == 0


def test_only_what_is_ready_to_run_waits_for_a_processor():
    """Two programs that compute on one processor, one that sleeps and one that was stopped."""
    one = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n"
    codes = [
        one + BURN + "burn(60)",
        one + BURN + "burn(60)",
        one + "import time; time.sleep(60)",
        BURN + "burn(60)",
    ]
    running = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
    try:
        time.sleep(1)
        running[3].send_signal(signal.SIGSTOP)
        before = [delay_seconds(process.pid) for process in running]
        time.sleep(2)
        more = [delay_seconds(process.pid) - b for process, b in zip(running, before)]
        assert more[0] > 0.3 and more[1] > 0.3 and max(more[2:]) < 0.2, more
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert delay_seconds(2**30) == 0


@pytest.mark.parametrize("name", ["49 stops itself", "80 sleeps", "80 deadlock"])
def test_what_sleeps_is_not_tried_again(verifier, monkeypatch, name):
    asked, ask = [], verifier.python.ask
    monkeypatch.setattr(verifier.python, "ask", lambda *request: asked.append(request) or ask(*request))
    verdict = verifier.submit(PythonJob(PLAIN + "# once", WAITS[name], 0.5)).result()
    assert verdict.verdict == "timeout" and len(asked) == 1
    assert verdict.seconds < 0.5  # of processor time; it took 2 by the clock


def test_seconds_are_of_processor_time(judge):
    assert judge("import time\ntime.sleep(1.5)\nresult = x * 2").seconds < 1
    assert 0.5 < judge(BURN + "burn(time.thread_time() + 0.6)\nresult = x * 2").seconds < 1.5


def test_where_the_kernel_does_not_say_who_waited_all_the_time_counts(monkeypatch):
    program = supervisor.Program(0, {"timeout": 1.0}, "")
    program.pids = [os.getpid()]
    assert program.delay(1e6) < 1e6
    monkeypatch.setattr(supervisor, "delay_seconds", lambda pid: None)
    assert program.delay(1e6) == 1e6


class Replies:
    """In place of the other interpreter: each program has its replies; how many run at a time is recorded."""

    def __init__(self, replies):
        self.replies, self.lock, self.running, self.seen = replies, threading.Lock(), [], []

    def ask(self, kind, job, timeout):
        answer = job[1]
        with self.lock:
            reply = self.replies[answer].pop(0)
            self.running.append(answer)
            self.seen.append((answer, sorted(self.running)))
        time.sleep(0.1)
        with self.lock:
            self.running.remove(answer)
            self.seen[:] = [
                (name, sorted({*beside, answer})) if name in self.running else (name, beside)
                for name, beside in self.seen
            ]
        return reply

    def stop(self):
        pass


def test_a_timeout_that_may_be_the_machines_fault_is_tried_once_more_alone():
    right = ["correct", "", 0.1, 0.0]
    waited, busy = ["timeout", "waited", 0.2, 3.6], ["timeout", "busy", 1.0, 0.7]
    used, slept = ["timeout", "used", 1.05, 0.1], ["timeout", "slept", 0.1, 0.9]
    replies = {"good": [waited, right], "late": [busy, right], "hangs": [waited, waited]}
    replies |= {"loops": [used], "sleeps": [slept]}
    replies |= {f"other {i}": [right] for i in range(12)}
    with Verifier(workers=4) as verifier:
        fake = verifier.python = Replies(replies)
        verdicts = verifier.run([PythonJob(PLAIN, name, 1.0) for name in list(replies)])
    found = [(v.verdict, v.message) for v in verdicts[:5]]
    assert found == [("correct", "")] * 2 + [("timeout", "waited"), ("timeout", "used"), ("timeout", "slept")]
    assert not any(left for left in replies.values())  # each was asked as often as it had replies
    for name in ("good", "late", "hangs"):
        assert [beside for who, beside in fake.seen if who == name][-1] == [name], fake.seen
    assert max(len(beside) for _, beside in fake.seen) > 1  # the others ran side by side


def test_turns_do_not_stay_taken_by_what_fails():
    turns = verify.Turns()
    for turn in (turns.alone, turns.together, turns.alone):
        with pytest.raises(ZeroDivisionError), turn():
            _ = 1 / 0
    with turns.together(), turns.together():
        pass


def test_a_result_that_is_slow_to_compare_ends_too(judge):
    """The judge's own work counts: a list that contains itself twice, forty times over."""
    test = context(check="assert sorted(map(str, [result])) == ans")
    answer = "a = [0]\nfor _ in range(40): a = [a, a]\nresult = a"
    started = time.monotonic()
    assert judge(answer, test, timeout=0.5).verdict in ("timeout", "error", "wrong")
    assert time.monotonic() - started < most(0.5)


def test_54_memory(judge):
    assert judge("import numpy as np\na = np.ones(10 ** 9)\nresult = x * 2").verdict == "error"
    assert judge("a = []\nwhile True: a.append(bytearray(50 << 20))").message.startswith("MemoryError")
    assert judge("b = bytearray(8 << 30)\nresult = x * 2").verdict == "error"


def test_53_threads(judge):
    bomb = (
        "import threading, time\n{}while True:\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    )
    assert judge(bomb.format(""), timeout=10).verdict == "error"
    assert judge(bomb.format("threading.stack_size(32768)\n"), timeout=10).verdict == "error"


def test_55_much_output_is_no_fault(judge):
    answer = "s = 'x' * (1 << 20)\nfor _ in range(3000): print(s)\nresult = x * 2"
    assert judge(answer, timeout=60).verdict == "correct"


def test_56_large_result(judge):
    assert judge("result = bytes(80 << 20)").verdict == "error"
    assert judge("import numpy as np\nresult = np.zeros(10 << 20)").verdict == "error"


def test_57_disk(judge):
    one = "f = open('big', 'wb')\nfor _ in range(10000): f.write(b'x' * (1 << 20))\nf.close()\nresult = x * 2"
    assert judge(one, timeout=20).verdict == "error"
    many = (
        "for i in range(1000):\n    with open(str(i), 'wb') as f: f.write(b'x' * (20 << 20))\n"
        "import time\ntime.sleep(20)\nresult = x * 2"
    )
    assert judge(many, timeout=30).message.startswith("more than")
    unlinked = (
        "import os, time\nopened = []\nfor i in range(200):\n    f = open('a', 'wb')\n"
        "    f.write(b'x' * (20 << 20))\n"
        "    os.remove('a')\n    opened.append(f)\ntime.sleep(20)\nresult = x * 2"
    )
    assert judge(unlinked, timeout=30).message.startswith("more than")
    files = "for i in range(10 ** 6): open(str(i), 'w').close()\nresult = x * 2"
    assert judge(files, timeout=30).message.startswith("more than")


def test_65_66_67_68_69_crashes_and_odd_texts(judge):
    assert judge("def f(): return f()\nresult = f()").message.startswith("RecursionError")
    deep = judge(
        "import sys\nsys.setrecursionlimit(10 ** 9)\nf = lambda n: f(n + 1)\nresult = f(0)", timeout=3
    )
    assert deep.verdict in ("error", "crash", "timeout")
    assert judge("import ctypes\nctypes.string_at(0)").verdict == "crash"
    assert judge("import os\nos.abort()").verdict == "crash"
    exits = "import os\nclass E(Exception):\n    def __str__(self): os._exit(0)\nraise E"
    assert judge(exits).verdict == "error"
    assert judge("class E(BaseException):\n    def __str__(self): raise self\nraise E").verdict == "error"
    assert judge("result = x * 2\0").verdict == "error"
    assert judge("result = len('\ud800')").verdict == "error"
    assert judge("result = input()").message.startswith("EOFError")
    assert judge("result = x * 2").verdict == "correct"


def test_71_changing_the_input_does_not_change_the_test(judge):
    test = context(value="[1, 2, 3]", expected="[1, 2, 3]")
    assert judge("x.append(4)\nresult = x", test).verdict == "wrong"
    assert judge("result = x[:]\nx.clear()", test).verdict == "correct"


# --- 50 to 52, 58 to 64: reaching out -----------------------------------------------------------------------

DENIED = {
    "50 kill parent": "import os\nos.kill(os.getppid(), 9)",
    "50 kill all": "import os\nos.kill(-1, 9)",
    "50 kill group": "import os\nos.killpg(0, 9)",
    "50 signal zero": "import os\nos.kill(1, 0)",
    "51 fork": "import os\nwhile True: os.fork()",
    "51 forkpty": "import os\nos.forkpty()",
    "52 subprocess": "import subprocess\nsubprocess.run(['true'])",
    "52 os.posix_spawn": "import os\nos.posix_spawn('/bin/true', ['true'], {})",
    "52 exec": "import os\nos.execv('/bin/true', ['true'])",
    "58 outside": "open('/tmp/codelutra_outside', 'w')",
    "58 parent folder": "open('../codelutra_outside', 'w')",
    "58 shared memory": "open('/dev/shm/codelutra_outside', 'w')",
    "58 home": "import os; open(os.path.expanduser('~root') + '/codelutra_outside', 'w')",
    "58 symbolic link": "import os\nos.symlink('/etc/passwd', 'link')",
    "58 hard link": "import os\nos.link('/etc/hostname', 'link')",
    "58 rename away": "import os\nopen('a', 'w').close()\nos.rename('a', '/tmp/codelutra_outside')",
    "59 package": "import json\nopen(json.__file__, 'a')",
    "59 package emptied": "import os, json\nos.truncate(json.__file__, 0)",
    "59 emptied by reading": "import os, json\nos.open(json.__file__, os.O_RDONLY | os.O_TRUNC)",
    "59 package deleted": "import os, json\nos.remove(json.__file__)",
    "61 memory of parent": "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb')",
    "61 environment of parent": "import os\nopen(f'/proc/{os.getppid()}/environ', 'rb')",
    "61 arguments of init": "open('/proc/1/cmdline').read()",
    "61 other processes": "import os\nresult = os.listdir('/proc')",
    "63 tcp": "import socket\nsocket.create_connection(('127.0.0.1', 80))",
    "63 udp": "import socket\n"
              "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53))",
    "63 unix": "import socket\nsocket.socket(socket.AF_UNIX)",
    "63 pair": "import socket\nsocket.socketpair()",
    "63 urllib": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1')",
    "76 chown": "import os, json\nos.chown(json.__file__, 1, 1)",
    "77 prlimit parent": "import os, resource\n"
                         "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (1, 1))",
    "77 priority of parent": "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "77 processors of parent": "import os\nos.sched_setaffinity(os.getppid(), {0})",
    "77 fcntl owner": "import fcntl, os\nfcntl.fcntl(3, fcntl.F_SETOWN, os.getppid())",
    "77 fcntl signal": "import fcntl\nfcntl.fcntl(3, 10, 9)",
    "78 chroot": "import os\nos.chroot('.')",
    "78 host name": "import socket\nsocket.sethostname('codelutra')",
    "78 clock": "import time\ntime.clock_settime(time.CLOCK_REALTIME, 0)",
    "78 session": "import os\nos.setsid()",
    "78 user": "import os\nos.setuid(1)",
    "78 device": "import os, stat\nos.mknod('disk', 0o600 | stat.S_IFBLK, os.makedev(8, 0))",
    "78 fifo": "import os\nos.mkfifo('fifo')",
    "78 memfd": "import os\nos.memfd_create('x')",
}  # fmt: skip


@pytest.mark.parametrize("name", DENIED)
def test_the_walls_stand(judge, name):
    verdict = judge(DENIED[name] + "\nresult = x * 2")
    assert verdict.verdict == "denied", verdict
    assert not any(
        Path(folder, "codelutra_outside").exists() for folder in ("/tmp", "/root", "/dev/shm", "/")
    )


# System calls without a function in Python: name, number on x86-64 and on 64-bit ARM, arguments.
RAW = {
    "fork": (57, None), "vfork": (58, None), "clone": (56, 220, 17), "clone3": (435, 435, 0, 88),
    "ptrace": (101, 117, 16, "parent"), "process_vm_readv": (310, 270, "parent"),
    "process_vm_writev": (311, 271, "parent"), "mount": (165, 40), "umount2": (166, 39),
    "unshare": (272, 97, 0x10000000), "setns": (308, 268), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425, 8),
    "pidfd_open": (434, 434, "parent"), "rt_sigqueueinfo": (129, 138, "parent", 9),
    "tkill": (200, 130, "parent", 9), "tgkill": (234, 131, "parent", "parent", 9), "sethostname": (170, 161),
    "clock_settime": (227, 112), "shmget": (29, 194, 0, 4096, 0o1600), "add_key": (248, 217),
    "open_by_handle_at": (304, 265), "kcmp": (312, 272, "parent", "parent"),
    "personality": (135, 92, 0x0040000), "init_module": (175, 105), "reboot": (169, 142),
    "swapon": (167, 224), "quotactl": (179, 60), "acct": (163, 89), "seccomp": (317, 277, 1),
    "landlock_create_ruleset": (444, 444, 0, 0, 1), "execveat": (322, 281),
    "prctl PDEATHSIG": (157, 167, 1, 0), "prctl DUMPABLE": (157, 167, 4, 1),
    "ioctl TIOCSTI": (16, 29, 0, 0x5412), "x32 getpid": (0x40000027, None), "x32 fork": (0x40000039, None),
    "openat2": (437, 437, 0, 0, 0, 24),
}  # fmt: skip


def test_51_62_system_calls_that_fail(judge):
    column = 0 if os.uname().machine == "x86_64" else 1
    calls = {
        name: (numbers[column], *numbers[2:]) for name, numbers in RAW.items() if numbers[column] is not None
    }
    answer = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
done = []
for name, (number, *arguments) in {calls!r}.items():
    arguments = [os.getppid() if a == "parent" else ctypes.c_long(a) for a in arguments]
    ctypes.set_errno(0)
    value = libc.syscall(ctypes.c_long(number), *arguments)
    if value != -1 or ctypes.get_errno() not in (1, 38):
        done.append((name, value, ctypes.get_errno()))
if libc.fork() != -1: done.append("libc fork")
assert not done, done
result = x * 2
"""
    verdict = judge(answer)
    assert verdict.verdict == "correct", verdict


def test_modes_times_and_attributes_do_not_change(judge):
    """Landlock does not cover them. They seem to work, as programs that copy a file need, and do nothing."""
    where = [PYTHON, "-s", "-c", "import json; print(json.__file__)"]
    shown = subprocess.run(where, cwd="/", text=True, capture_output=True, check=True).stdout
    file = Path(shown.strip())
    before = file.stat()
    for call in ("os.chmod(f, 0o777)", "os.chmod(os.open(f, os.O_RDONLY), 0o777)", "os.utime(f, (1, 1))"):
        assert judge(f"import json, os\nf = json.__file__\n{call}\nresult = x * 2").verdict == "correct"
    assert (
        judge("import json, os\nos.setxattr(json.__file__, 'user.x', b'1')\nresult = x * 2").verdict
        == "error"
    )
    after = file.stat()
    for field in ("st_mode", "st_mtime_ns", "st_ctime_ns"):
        assert getattr(before, field) == getattr(after, field), field
    copy = (
        "import shutil\nopen('a', 'w').write('b')\nshutil.copy2('a', 'c')\n"
        "result = x * len(open('c').read() * 2)"
    )
    assert judge(copy).verdict == "correct"


def test_its_limits_stay(judge):
    for limits in ("(-1, -1)", "(1 << 40, 1 << 40)", "resource.getrlimit(resource.RLIMIT_AS)"):
        answer = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, {limits})\nresult = x * 2"
        assert judge(answer).verdict == "error", limits


def test_60_no_file_of_the_project_the_home_or_the_data_is_read(judge, tmp_path):
    secret = tmp_path / "ds1000.jsonl"
    secret.write_text("the reference")
    paths = [
        secret,
        ROOT / "verify.py",
        ROOT / "verifier" / "judge.py",
        ROOT / "tests" / "test_verify_python.py",
        "/etc/passwd",
        "/etc/shadow",
        Path.home() / ".bashrc",
        ROOT / ".git" / "config",
    ]
    for path in paths:
        assert judge(f"open({str(path)!r}).read()\nresult = x * 2").verdict in ("denied", "error"), path
    assert judge(f"import os\nos.listdir({str(ROOT)!r})\nresult = x * 2").verdict == "denied"
    assert (
        judge(f"import sys\nsys.path.append({str(ROOT)!r})\nimport exact_match\nresult = x * 2").verdict
        != "correct"
    )


def test_64_no_secret_in_the_environment(monkeypatch):
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hf_secret_value")
    answer = (
        "import os\nassert not any('secret' in v for v in os.environ.values()), 'seen'\n"
        "libc = __import__('ctypes').CDLL(None)\nlibc.getenv.restype = __import__('ctypes').c_char_p\n"
        "assert libc.getenv(b'HF_TOKEN') is None\nresult = x * 2"
    )
    with Verifier(workers=1, python=PYTHON) as verifier:
        assert verifier.run([PythonJob(PLAIN, answer)])[0].verdict == "correct"


def test_only_its_own_files_are_open(judge):
    answer = (
        "import os\nopened = []\nfor fd in range(256):\n    try: os.fstat(fd)\n    except OSError: continue\n"
        "    opened.append(fd)\nassert len(opened) <= 10, opened\n"
        "assert not [fd for fd in opened if __import__('stat').S_ISSOCK(os.fstat(fd).st_mode)]\n"
        "result = x * 2"
    )
    assert judge(answer).verdict == "correct"


def test_one_program_leaves_nothing_for_the_next(judge):
    assert (
        judge("open('left', 'w').write('1')\nimport numpy\nnumpy.left = 1\nresult = x * 2").verdict
        == "correct"
    )
    answer = (
        "import os, numpy\nassert not os.listdir('.') and not hasattr(numpy, 'left')\nresult = x * 2  # next"
    )
    assert judge(answer).verdict == "correct"


# --- what must pass -----------------------------------------------------------------------------------------


def test_73_74_75_harmless_habits(judge):
    thread = (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon={}).start()\n"
        "result = x * 2"
    )
    started = time.monotonic()
    assert judge(thread.format(True)).verdict == "correct"
    assert judge(thread.format(False)).verdict == "correct"
    assert time.monotonic() - started < 8
    habits = (
        "print('hello')\nimport xml.dom.minidom, zoneinfo, tempfile, os, json\n"
        "open('a.txt', 'w').write('b')\n"
        "os.makedirs('d/e')\nos.rename('a.txt', 'd/b.txt')\n"
        "with tempfile.TemporaryDirectory() as t: open(t + '/f', 'w').write('x')\n"
        "with tempfile.TemporaryFile() as f: f.write(b'x')\nassert zoneinfo.ZoneInfo('UTC')\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "result = list(ThreadPoolExecutor(4).map(lambda v: v * 2, [x]))[0]"
    )
    assert judge(habits).verdict == "correct"


@needs("matplotlib")
def test_74_savefig_in_its_folder(judge):
    answer = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.savefig('a.png')\nresult = x * 2"
    assert judge(answer).verdict == "correct"


@needs("sklearn")
def test_75_n_jobs(judge):
    answer = (
        "from sklearn.ensemble import RandomForestClassifier as F\n"
        "from sklearn.model_selection import cross_val_score\n"
        "X = [[i] for i in range(20)]\ny = [i % 2 for i in range(20)]\n"
        "cross_val_score(F(4, n_jobs=-1), X, y, cv=2, n_jobs=-1)\nresult = x * 2"
    )
    assert judge(answer).verdict == "correct"


@needs("joblib")
def test_75_joblib(judge):
    for jobs in (-1, 1, 4):
        answer = (
            "from joblib import Parallel, delayed\n"
            f"result = sum(Parallel(n_jobs={jobs})(delayed(abs)(v) for v in (x, x)))"
        )
        assert judge(answer).verdict == "correct"


FIGURE = context(
    value="None",
    expected="None",
    imports="import copy\nimport matplotlib.pyplot as plt",
    before="import matplotlib.pyplot as plt",
    after="plt.savefig('output.png')\nresult = None",
    check="assert plt.gca().get_title() == 'right'",
)


@needs("matplotlib")
def test_figures_are_judged_in_one_process_and_say_so(judge):
    right = judge("plt.plot([1])\nplt.title('right')", FIGURE)
    assert right.verdict == "correct" and right.message.startswith("in one process")
    assert judge("plt.title('left')", FIGURE).verdict == "wrong"
    assert judge("1 / 0", FIGURE).verdict == "error"
    assert judge("import sys\nsys.exit(0)", FIGURE).verdict == "error"
    assert judge("import os\nos._exit(0)", FIGURE).verdict == "error"
    assert judge("import os\nos.fork()", FIGURE).verdict == "denied"
    assert judge("open('/tmp/codelutra_outside', 'w')", FIGURE).verdict == "denied"
    assert judge("while True: pass", FIGURE, timeout=0.5).verdict == "timeout"
    assert judge("from verifier import judge\nraise judge.Decided('correct', '')", FIGURE).verdict == "error"
    report = (
        "import os, json, signal\nfor fd in range(3, 99):\n    data = json.dumps(['candidate', 1]).encode()\n"
        "    try: os.write(fd, len(data).to_bytes(8, 'little') + data)\n    except OSError: pass\n"
    )
    assert judge(report, FIGURE).verdict in ("error", "wrong")


def test_an_input_that_cannot_be_sent_is_judged_in_one_process(judge):
    test = context(value="(lambda v: v + 1)", expected="x(1)")
    right = judge("result = x(1)", test)
    assert right.verdict == "correct" and right.message.startswith("in one process")
    assert judge("result = x(2)", test).verdict == "wrong"


# --- the way of a result ------------------------------------------------------------------------------------


def test_no_pickle_runs_code():
    """Hand-made pickles: what is not plain data is refused before anything happens."""
    refused = [
        pickle.dumps(os.system), pickle.dumps(Path("x")), pickle.dumps(slice(1)),
        b"cos\nsystem\n(S'true'\ntR.", b"c__builtin__\neval\n(S'1'\ntR.", b"(S'true'\nios\nsystem\n.",
        b"\x80\x04P1\n.", b"\x82\x01.", pickle.dumps(verify.Verdict("correct")),
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.", b"", b"garbage",
    ]  # fmt: skip
    for data in refused:
        with pytest.raises(Exception):  # noqa: B017 (of whatever kind: nothing is returned)
            print(unpack.unpack(data))


def build(*parts):
    return b"\x80\x05" + b"".join(parts) + b"."


def named(name):
    return b"\x8c\x0fverifier.unpack" + bytes([0x8C, len(name)]) + name.encode() + b"\x93"


def test_a_result_cannot_patch_what_is_shared():
    """BUILD (b) sets attributes, on classes and builders too; SETITEMS and APPENDS call what they find."""
    before = {name: (id(f), f.__defaults__) for name, f in unpack.BUILDERS.items()}
    builtin = named("type_named") + b"\x8c\x08builtins\x8c\x03int\x86R"
    attacks = [
        build(named("opaque"), b"}\x8c\x0c__defaults__K\x01sb"),
        build(named("opaque"), b"N}\x8c\x0c__defaults__)s\x86b"), build(builtin, b"}\x8c\x01aK\x01sb"),
        build(builtin, b"(K\x01e"), build(builtin, b"K\x01a"), build(builtin, b"\x8c\x01aK\x01s"),
        build(builtin, b"(K\x01K\x02u"), build(builtin, b"(K\x01\x90"), build(builtin, b")R"),
        build(builtin, b")\x81"), build(b"\x8c\x01xK\x01\x85R"), build(named("opaque"), b"K\x01R"),
        build(named("find_class")), build(named("Opaque")),
    ]  # fmt: skip
    for data in attacks:
        with pytest.raises(Exception):  # noqa: B017
            unpack.unpack(data)
    assert before == {name: (id(f), f.__defaults__) for name, f in unpack.BUILDERS.items()}
    assert unpack.unpack(build(builtin)) is int  # the parts were written down correctly


def test_hostile_arrays():
    np = pytest.importorskip("numpy")
    for arguments in (
        ("<f8", (10,), b"123"),
        ("|O", (2,), [1]),
        ("<f8", (2**62,), b"x" * 8),
        ("<f8", (-1,), b"x" * 8),
        ([("a", "|O")], (1,), b"x" * 8),
        ("<f8", [1], b"x" * 8),
        ("<f8", (1,), bytearray(8)),
    ):
        with pytest.raises(Exception):  # noqa: B017
            unpack.array(*arguments)
    assert unpack.array("<i4", (2,), b"\1\0\0\0\2\0\0\0").tolist() == [1, 2]
    assert unpack.unpack(pack.pack(np.arange(6).reshape(2, 3).T)).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_failing_test_says_that_a_result_was_not_carried(judge):
    """A fitted estimator, for example: only its type's name arrives."""
    test = context(check="assert result.predict([[1]]) == ans")
    verdict = judge("class Model:\n    def predict(self, X): return 14\nresult = Model()", test)
    assert verdict.verdict == "wrong" and "Model is not carried from a program to its test" in verdict.message
    for check in ("return 1", "assert type(copy.deepcopy([result])[0]) is type(result)"):
        assert judge("class Model: pass\nresult = Model()", context(check=check)).verdict == "correct"


def test_a_forged_result_is_only_data(judge):
    """The candidate may write to the pipe itself; a class made there does not exist here."""
    answer = (
        "from verifier import pack\nclass Fake: pass\n"
        "pack.pack = lambda r: b'\\x80\\x04\\x8c\\x02os\\x8c\\x06system\\x93'"
        "+ b'\\x8c\\x04true\\x85R.'\nresult = 1"
    )
    verdict = judge(answer)
    assert verdict.verdict == "error" and "not allowed" in verdict.message


# --- messages -----------------------------------------------------------------------------------------------


def test_messages_of_any_size():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for data in (b"", b"x", os.urandom(3_000_000)):
            thread = threading.Thread(target=send, args=(ours.fileno(), data))
            thread.start()
            assert receive(theirs.fileno(), len(data), time.monotonic() + 10) == data
            thread.join()
        send(ours.fileno(), b"1234")
        with pytest.raises(ValueError, match="4 bytes"):
            receive(theirs.fileno(), 3)
        ours.close()
        theirs.recv(4)
        assert receive(theirs.fileno()) is None


def test_a_message_meets_its_deadline_in_both_directions():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            receive(ours.fileno(), deadline=started + 0.2)
        with pytest.raises(TimeoutError):  # nobody reads it
            send(ours.fileno(), bytes(10_000_000), started + 0.4)
        assert Interpreter._exchange(ours, ({}, ["x" * 10_000_000]), 0.2) is None
        assert time.monotonic() - started < 5


# --- faults and the end -------------------------------------------------------------------------------------


def test_killed_workers_are_replaced(verifier, judge):
    assert judge("result = x * 2  # before").verdict == "correct"
    os.killpg(verifier.python.process.pid, signal.SIGKILL)
    assert judge("result = x * 2  # after").verdict == "correct"
    before = verifier.python.process.pid
    victim = [pid for pid in processes() if pid != before]
    os.kill(victim[0], signal.SIGKILL)  # one supervisor: the others end with it, and all are replaced
    end = time.monotonic() + 20
    while verifier.python.process.pid == before and time.monotonic() < end:
        assert judge(f"result = x * 2  # after that, {time.monotonic()}").verdict == "correct"
    assert verifier.python.process.pid != before


def test_jobs_in_flight_survive_a_killed_zygote():
    # a verifier of its own: the shared one may still be replacing a worker that an earlier test killed, and
    # two kills in a row are a fault
    with Verifier(2, python=PYTHON) as own:
        assert own.run([PythonJob(PLAIN, "result = x * 2  # up")])[0].verdict == "correct"
        jobs = [PythonJob(PLAIN, f"import time\ntime.sleep(0.5)\nresult = x * 2  # {i}") for i in range(4)]
        futures = [own.submit(job) for job in jobs]
        time.sleep(0.3)
        os.killpg(own.python.process.pid, signal.SIGKILL)
        assert [future.result().verdict for future in futures] == ["correct"] * 4


def test_an_interpreter_that_is_none():
    with (
        Verifier(workers=1, python="/no/such/python") as verifier,
        pytest.raises(InfrastructureError, match="/no/such"),
    ):
        verifier.run([PythonJob(PLAIN, "result = x * 2")])
    with (
        Verifier(workers=1, python="/bin/false") as verifier,
        pytest.raises(InfrastructureError, match="did not start"),
    ):
        verifier.run([PythonJob(PLAIN, "result = x * 2")])


def test_without_walls_the_judge_refuses(monkeypatch):
    monkeypatch.setattr(walls, "landlock_abi", lambda: 0)
    assert walls.tier().startswith("weak")
    with Verifier(workers=1, python=PYTHON) as verifier:
        with pytest.raises(InfrastructureError, match="--allow-unsandboxed"):
            verifier.run([PythonJob(PLAIN, "result = x * 2")])
        assert verifier.python.process is None
    with Verifier(workers=1, python=PYTHON, allow_unsandboxed=True) as verifier:
        assert verifier.run([PythonJob(PLAIN, "result = x * 2")])[0].verdict == "correct"


@pytest.mark.parametrize("landlock, seccomp", [(7, True), (7, False), (0, True), (0, False)])
def test_strict_means_that_all_walls_stand_whatever_is_said_of_them(monkeypatch, landlock, seccomp):
    monkeypatch.setattr(walls, "landlock_abi", lambda: landlock)
    monkeypatch.setattr(walls, "has_seccomp", lambda: seccomp)
    assert walls.tier().startswith("strict: " if landlock and seccomp else "weak: ")
    assert ("landlock 7" in walls.tier(), "seccomp" in walls.tier()) == (landlock == 7, seccomp)
    monkeypatch.setattr(walls, "tier", lambda: "other words")
    assert walls.is_strict() is bool(landlock and seccomp)


def test_closing_in_the_middle_leaves_nothing():
    before, temporary = processes(), folders()
    verifier = Verifier(workers=2, python=PYTHON)
    futures = [
        verifier.submit(PythonJob(PLAIN, f"open('f', 'w')\nwhile True: pass  # {i}", 60)) for i in range(4)
    ]
    while len(processes() - before) < 7:  # a zygote, two supervisors, two judges, two candidates
        assert not any(future.done() for future in futures)
        time.sleep(0.05)
    verifier.close()
    assert all(
        future.cancelled() or isinstance(future.exception(), InfrastructureError) for future in futures
    )
    assert processes() <= before and folders() <= temporary


def test_a_killed_parent_leaves_nothing(tmp_path):
    temporary, marker = folders(), f"marker{os.getpid()}"
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom verify import *\n"
        f"v = Verifier(1, python={PYTHON!r})\nf = v.submit(PythonJob({PLAIN!r}, 'while True: pass', 60))\n"
        "import time\nwhile v.python.process is None or not v.python.sockets: time.sleep(0.05)\n"
        "time.sleep(1)\nprint(v.python.process.pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, marker], stdout=subprocess.PIPE, text=True)
    zygote = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    end = time.monotonic() + 60  # on a busy machine it is still importing its libraries
    while Path(f"/proc/{zygote}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{zygote}").exists()
    assert folders() <= temporary


def test_folders_of_any_depth_and_rights_are_removed(judge, verifier):
    root = Path(verifier.python.folder)
    deep = "import os\nfor i in range(1500):\n    os.mkdir('d' * 50)\n    os.chdir('d' * 50)\nresult = x * 2"
    judge(deep)
    judge(
        "import os\nos.mkdir('closed')\nopen('closed/f', 'w').close()\nos.umask(0o777)\nos.mkdir('closed/no')"
    )
    assert not [path for path in root.iterdir() if path.name[0].isdigit()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_normal_user_has_the_same_walls(tmp_path):
    os.chown(tmp_path, 65534, 65534)
    for folder in tmp_path.parents:
        if folder.name.startswith(("pytest-", "popen-")):
            folder.chmod(0o755)
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import os, tempfile
from verifier import walls
outside = "/tmp/codelutra_outside"
assert not os.path.exists(outside) and walls.readable_paths()
os.setgroups([]); os.setgid(65534); os.setuid(65534)
folder = tempfile.mkdtemp(dir={str(tmp_path)!r}); os.chdir(folder)
walls.enclose(folder, 10)
for attempt in (os.fork, lambda: open("/etc/passwd"), lambda: open(outside, "w"), lambda: os.kill(1, 0)):
    try: attempt()
    except PermissionError: continue
    os._exit(1)
open("inside", "w").write("x")
os.remove("inside")
os._exit(0 if os.getuid() == 65534 else 2)
"""
    assert subprocess.run([sys.executable, "-I", "-c", code]).returncode == 0


def test_many_at_once_from_many_threads(verifier):
    found = {}

    def ask(number):
        found[number] = verifier.run([PythonJob(PLAIN, f"result = x * {number}")])[0].verdict

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: "correct" if number == 2 else "wrong" for number in range(1, 13)}


def digest_of_packages():
    """All files that the interpreter could load, by name, size and time (not *.pyc), as one digest."""
    code = (
        "import site, sysconfig, os\nfor top in [*site.getsitepackages(), sysconfig.get_paths()['stdlib']]:\n"
        "    for folder, _, names in os.walk(top):\n        for name in names:\n"
        "            s = os.lstat(os.path.join(folder, name))\n"
        "            if not name.endswith('.pyc'): print(folder, name, s.st_size, s.st_mtime_ns, s.st_mode)"
    )
    return hashlib.sha256(
        subprocess.run([PYTHON, "-s", "-c", code], capture_output=True, check=True).stdout
    ).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(tmp_path_factory):
    """After all of the above: no process, no folder, no changed package, the same host name."""
    own, outer = str(tmp_path_factory.mktemp("tmp")), (tempfile.tempdir, os.environ.get("TMPDIR"))
    tempfile.tempdir = os.environ["TMPDIR"] = own  # other verifiers on this machine have folders of their own
    before = processes(), folders(), digest_of_packages(), socket.gethostname()
    yield
    tempfile.tempdir = outer[0]
    os.environ.pop("TMPDIR")
    if outer[1]:
        os.environ["TMPDIR"] = outer[1]
    end = time.monotonic() + 5
    while processes() - before[0] and time.monotonic() < end:
        time.sleep(0.1)
    assert processes() <= before[0]
    assert not list(Path(own).iterdir())
    assert (digest_of_packages(), socket.gethostname()) == before[2:]


def test_hidden_modules_are_out_of_sight_until_imported_and_run_once(tmp_path):
    package = tmp_path / "pkg"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(
        "import pkg\npkg.runs = getattr(pkg, 'runs', 0) + 1\nfrom . import b\nfrom .deep import d\n"
    )
    (package / "b.py").write_text("import colorsys\nvalue = 5\n")
    (package / "c.py").write_text("value = 7\n")
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "d.py").write_text("from ..b import value\nfrom importlib import import_module\n")
    program = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]
import pkg
from verifier.libraries import Hidden
sys.meta_path.insert(0, Hidden(["pkg.a", "pkg.c", "pkg.missing"]))
seen = lambda: sorted(name for name in sys.modules if name.startswith("pkg") or name == "colorsys")
assert seen() == ["pkg"] and not hasattr(pkg, "a") and not hasattr(pkg, "deep"), seen()
import pkg.deep
assert seen() == ["pkg", "pkg.deep"] and not hasattr(pkg.deep, "d"), seen()
import pkg.a
assert seen() == ["colorsys", "pkg", "pkg.a", "pkg.b", "pkg.deep", "pkg.deep.d"], seen()
assert pkg.a.b is pkg.b and pkg.deep.d.value == pkg.b.value == 5 and pkg.runs == 1
assert pkg.b.__spec__.origin.endswith("b.py") and not hasattr(pkg, "c")
from pkg.c import value
assert value == 7
try:
    import pkg.missing
except ModuleNotFoundError:
    print("good")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "good\n", done.stderr
