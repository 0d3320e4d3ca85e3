"""In the judge: a result of the hostile candidate, made out of bytes that nobody trusts (pack.py sends them).

A pickle is a program. `unpack` runs only the instructions that make plain data (numbers, text, lists,
dictionaries…) and calls only the functions in BUILDERS: each makes one known type out of plain data by that
type's own constructor. There is no instruction left that imports, sets an attribute, fills anything but an
exact list, dictionary or set, or calls a class. So no code of the sender runs, no shared class is patched,
and a subclass with its own `__eq__` arrives as the plain type it derives from, with its real contents, or not
at all.

What cannot be built arrives as an Opaque: a test that never looks at the result still passes, and one that
does fails. A deliberate deviation: a masked array with any masked element arrives as an Opaque too.
numpy.testing finds a masked element equal to anything, so `np.ma.masked_all(())` passes many official tests;
no reference of DS-1000 returns one.

Builders take whatever was sent, so their parameters have no types: each checks what it gets, or its library
does.
"""

import collections
import datetime
import decimal
import fractions
import io
import pickle
import types
from collections.abc import Callable
from typing import Any

BUILDERS: dict[str, Callable] = {}
PLAIN_TYPES = {
    "bool": bool, "int": int, "float": float, "complex": complex, "str": str, "bytes": bytes, "list": list,
    "tuple": tuple, "dict": dict, "set": set, "object": object,
}  # fmt: skip


class Opaque:
    """A result of a type that is not carried; it is equal to nothing but itself."""

    __slots__ = ("kind",)

    def __init__(self, kind: str):
        self.kind = str(kind)[:100]

    def __repr__(self) -> str:
        return f"<{self.kind}>"

    def __getattr__(self, name: str) -> Any:
        # what a failing test will say; a copy in the making has not even its kind
        what = "this" if name == "kind" else f"a {self.kind}"
        raise AttributeError(f"no {name}: {what} is not carried from a program to its test")


def builder(function: Callable) -> Callable:
    BUILDERS[function.__name__] = function
    return function


def unpack(data: bytes) -> Any:
    return Unpacker(data).load()


class Unpacker(pickle._Unpickler):
    """Python's own unpickler with most of its instructions removed.

    builders: by name, the functions that it may call.
    """

    def __init__(self, data: bytes, builders: dict[str, Callable] = BUILDERS):
        super().__init__(io.BytesIO(data))
        self.builders = builders

    dispatch = {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in (
        "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT",
        "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
        "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE",
        "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "EMPTY_SET", "FROZENSET", "MEMOIZE", "BINGET",
        "LONG_BINGET", "STACK_GLOBAL")}  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if module != __name__ or name not in self.builders:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return self.builders[name]

    def load_reduce(self):
        arguments, function = self.stack.pop(), self.stack[-1]
        if type(arguments) is not tuple or not any(function is known for known in self.builders.values()):
            raise pickle.UnpicklingError("a call that is not allowed")
        self.stack[-1] = function(*arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce  # type: ignore[assignment]

    def fill(kind, instruction):  # noqa: N805 (a helper of the class body, not a method)
        original = pickle._Unpickler.dispatch[instruction[0]]
        depth = 2 + (kind is dict) if instruction in (pickle.APPEND, pickle.SETITEM) else 0

        def load(self):
            target = self.stack[-depth] if depth else self.metastack[-1][-1]
            if type(target) is not kind:
                raise pickle.UnpicklingError("filling an object that is not a plain container")
            original(self)

        return load

    for kind, instruction in ((list, pickle.APPEND), (list, pickle.APPENDS), (dict, pickle.SETITEM),
                              (dict, pickle.SETITEMS), (set, pickle.ADDITEMS)):  # fmt: skip
        dispatch[instruction[0]] = fill(kind, instruction)  # type: ignore[arg-type]
    del fill, kind, instruction


def exact(value: Any, *kinds: type) -> Any:
    """Builders take what other builders made, and only that: a wrong type ends the loading."""
    if type(value) not in kinds:
        raise pickle.UnpicklingError(f"{type(value).__name__} where {kinds[0].__name__} belongs")
    return value


def numpy_dtype(description):
    import numpy as np

    dtype = np.lib.format.descr_to_dtype(description)
    if dtype.hasobject and dtype.kind != "O":
        raise pickle.UnpicklingError("objects in a record")
    return dtype


@builder
def opaque(kind):
    return Opaque(exact(kind, str))


@builder
def reference(kind, number):
    """Of what stays in the candidate. For tests that are asserts, asserts.py has another function."""
    return opaque(kind)


@builder
def instance(name, state):
    """Of a class that the setup of such tests defines: likewise."""
    return opaque(name)


@builder
def array(description, shape, data, fortran=False):
    import numpy as np

    dtype, shape = numpy_dtype(description), exact(shape, tuple)
    if not all(type(size) is int and size >= 0 for size in shape):
        raise pickle.UnpicklingError("not a shape")
    if dtype.kind == "O":
        result = np.empty(shape, object)
        flat = result.reshape(-1)
        if len(exact(data, list)) != len(flat):
            raise pickle.UnpicklingError("an array of another size")
        for index, value in enumerate(data):
            flat[index] = value
        return result
    if exact(data, bytes) == b"":
        return np.zeros(shape, dtype)[tuple(slice(0, size) for size in shape)]
    return np.ndarray(shape, dtype, buffer=data).copy(order="F" if fortran else "C")


@builder
def scalar(values):
    import numpy as np

    return exact(values, np.ndarray)[()]


@builder
def matrix(values):
    import numpy as np

    return np.asmatrix(exact(values, np.ndarray))


@builder
def masked(values, mask, fill):
    import numpy as np

    result = np.ma.MaskedArray(exact(values, np.ndarray), mask=exact(mask, np.ndarray), fill_value=fill)
    if np.ma.getmaskarray(result).tobytes().strip(b"\0"):
        return Opaque("a masked array with masked elements")
    return result


@builder
def records(values):
    import numpy as np

    return exact(values, np.ndarray).view(np.recarray)


@builder
def dtype(description):
    return numpy_dtype(description)


@builder
def type_named(module, name):
    if module == "builtins" and name in PLAIN_TYPES:
        return PLAIN_TYPES[name]
    import numpy as np

    kind = getattr(np, name, None) if module == "numpy" else None
    if not (isinstance(kind, type) and issubclass(kind, np.generic)):
        return Opaque(f"class {name}")
    return kind


@builder
def index(values, name, kind, freq):
    import pandas as pd

    if kind == "RangeIndex":
        return pd.RangeIndex(*exact(values, tuple), name=name)
    if kind == "MultiIndex":
        levels, codes = exact(values, tuple)
        return pd.MultiIndex(levels, codes, names=name, verify_integrity=True)
    result = pd.Index(values, dtype=values.dtype, name=name, tupleize_cols=False)
    if freq is not None:
        result.freq = exact(freq, str)
    return result


@builder
def series(values, index, name):
    import pandas as pd

    return pd.Series(values, index=index, dtype=values.dtype, name=name)


@builder
def frame(columns, index, values):
    import pandas as pd

    data = {place: pd.Series(column, index=index, dtype=column.dtype) for place, column in enumerate(values)}
    result = pd.DataFrame(data, index=index)
    result.columns = columns
    return result


@builder
def categories(codes, names, ordered):
    import pandas as pd

    return pd.Categorical.from_codes(codes, names, exact(ordered, bool))


def zone(name: Any) -> datetime.timezone | str:
    if type(name) is int:
        return datetime.timezone(datetime.timedelta(seconds=name))
    return exact(name, str)


@builder
def zoned(values, tz):
    import pandas as pd

    return pd.DatetimeIndex(values).tz_localize("UTC").tz_convert(zone(tz)).array


@builder
def period(ordinals, freq):
    import pandas as pd

    return pd.arrays.PeriodArray(ordinals, dtype=pd.PeriodDtype(exact(freq, str)))


@builder
def intervals(left, right, closed):
    import pandas as pd

    return pd.arrays.IntervalArray.from_arrays(left, right, closed=exact(closed, str))


@builder
def extension(kind, values, mask):
    import pandas as pd

    if kind in ("IntegerArray", "BooleanArray", "FloatingArray"):
        return getattr(pd.arrays, kind)(values, mask)
    if kind == "SparseArray":
        return pd.arrays.SparseArray(values, fill_value=mask)
    if kind in ("DatetimeArray", "TimedeltaArray"):
        return pd.array(values)
    if kind in ("python", "pyarrow"):  # text; `mask` tells pandas 3's own kind, whose missing value is NaN
        return pd.array(values, dtype=pd.StringDtype(kind, **({"na_value": float("nan")} if mask else {})))
    return Opaque(kind)


@builder
def pandas_dtype(name):
    import pandas as pd

    return pd.api.types.pandas_dtype(exact(name, str))


@builder
def category_dtype(names, ordered):
    import pandas as pd

    return pd.CategoricalDtype(names, exact(ordered, bool))


@builder
def pandas_scalar(kind, *values):
    import pandas as pd

    if kind == "Timestamp":
        result = pd.Timestamp(values[0])
        return result if values[1] is None else result.tz_localize("UTC").tz_convert(zone(values[1]))
    if kind == "Timedelta":
        return pd.Timedelta(values[0])
    if kind == "Period":
        return pd.Period(ordinal=exact(values[0], int), freq=exact(values[1], str))
    if kind == "Interval":
        return pd.Interval(*values)
    return {"NaT": pd.NaT, "NA": pd.NA}[kind]


@builder
def sparse(kind, parts, shape):
    import scipy.sparse

    if kind not in {
        f"{layout}_{what}"
        for layout in ("csr", "csc", "coo", "bsr", "dia", "lil", "dok")
        for what in ("matrix", "array")
    }:
        return Opaque(kind)
    layout = kind[:3]
    make = getattr(scipy.sparse, kind)
    if layout in ("lil", "dok"):
        return make(parts)
    result = make(parts, shape=exact(shape, tuple))
    if layout in ("csr", "csc", "bsr"):
        result.check_format(full_check=True)  # indices outside would be read outside
    return result


@builder
def torch_tensor(values, dtype, gradient, parameter, parts=None, shape=None):
    import torch

    kind = exact(getattr(torch, exact(dtype, str)), torch.dtype)
    if parts is not None:
        indices, cells = exact(parts, torch.Tensor), exact(values, torch.Tensor)
        return torch.sparse_coo_tensor(indices, cells, exact(shape, tuple))
    result = torch.from_numpy(values.copy()).to(kind)
    return torch.nn.Parameter(result, gradient) if parameter else result.requires_grad_(exact(gradient, bool))


@builder
def torch_other(kind, value):
    import torch

    return torch.Size(value) if kind == "Size" else exact(getattr(torch, exact(value, str)), torch.dtype)


@builder
def optimizer(defaults, groups):
    """An optimizer is not rebuilt: tests read its settings."""
    return types.SimpleNamespace(defaults=exact(defaults, dict), param_groups=exact(groups, list))


@builder
def tensorflow(kind, values, dtype):
    import tensorflow as tf

    if kind == "DType":
        return tf.as_dtype(exact(dtype, str))
    result = tf.constant(values, dtype=tf.as_dtype(exact(dtype, str)))
    return tf.Variable(result) if kind == "Variable" else result


@builder
def standard(kind, *values):
    """Types of the standard library."""
    make = {"date": datetime.date, "datetime": datetime.datetime, "time": datetime.time,
            "timedelta": datetime.timedelta, "Decimal": decimal.Decimal, "Fraction": fractions.Fraction,
            "range": range, "slice": slice, "complex": complex, "OrderedDict": collections.OrderedDict,
            "Counter": collections.Counter, "deque": collections.deque,
            "dict_keys": lambda items: exact(items, dict).keys(),
            "dict_values": lambda items: exact(items, dict).values(),
            "dict_items": lambda items: exact(items, dict).items(),
            "iterator": lambda items: map(_itself, items),
            "ellipsis": lambda: ..., "zone": lambda seconds: zone(exact(seconds, int))}  # fmt: skip
    return make[kind](*values)


def _itself(value: Any) -> Any:
    return value


def behind_iterator(value: Any) -> list | None:
    """What an iterator made by `standard` will give, without taking any of it; None for anything else."""
    if type(value) is not map:
        return None
    made: Any = value.__reduce__()  # (map, (function, iterator))
    function, behind = made[1][:2]
    return list(behind.__reduce__()[1][0]) if function is _itself else None  # the list that it goes through


@builder
def copied(value):
    return value
