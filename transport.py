"""Results of a hostile process, carried to a process that trusts nothing: packed there, checked here.

A pickle is a program. `unpack` runs only the instructions that make plain data (numbers, text, lists, dictionaries…)
and calls only the functions in BUILDERS: each makes one known type out of plain data by that type's own constructor.
There is no instruction left that imports, sets an attribute, fills anything but an exact list, dictionary or set, or
calls a class. So no code of the sender runs, no shared class is patched, and a subclass with its own `__eq__` arrives
as the plain type it derives from, with its real contents, or not at all.

What cannot be built arrives as an Opaque: a test that never looks at the result still passes, and one that does fails.

`pack` runs in the process of the candidate. Whatever it sends, it can only send data.
"""

import collections
import datetime
import decimal
import fractions
import io
import pickle
import sys
import types

BUILDERS = {}
SCALAR_TYPES = ("bool", "int", "float", "complex", "str", "bytes", "list", "tuple", "dict", "set", "object")


class Opaque:
    """A result of a type that is not carried; it is equal to nothing but itself."""

    __slots__ = ("kind",)

    def __init__(self, kind: str):
        self.kind = str(kind)[:100]

    def __repr__(self):
        return f"<{self.kind}>"


def builder(function):
    BUILDERS[function.__name__] = function
    return function


def pack(result) -> bytes:
    stream = io.BytesIO()
    Packer(stream, protocol=5).dump(result)
    return stream.getvalue()


class InputPacker(pickle.Pickler):
    """For the way to the candidate, which may trust the judge: any pickle, but numpy's own types stay one object each.

    An unpickled array has a dtype that is equal to numpy's `object` but is another object, and then pandas 1.5's
    `astype(str)` writes into the original: a program would behave differently than in the official process.
    """

    def reducer_override(self, value):
        numpy = loaded("numpy")
        if numpy and isinstance(value, numpy.dtype) and numpy.dtype(value.str) is value:
            return numpy.dtype, (value.str,)
        return NotImplemented


def pack_input(value) -> bytes:
    stream = io.BytesIO()
    InputPacker(stream, protocol=5).dump(value)
    return stream.getvalue()


def unpack(data: bytes):
    return Unpacker(io.BytesIO(data)).load()


# --- the judge's side: plain data -> objects --------------------------------------------------------------------------


class Unpacker(pickle._Unpickler):
    """Python's own unpickler with most of its instructions removed."""

    dispatch = {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in (
        "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
        "BININT2", "LONG1", "LONG4", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES",
        "BINBYTES", "BINBYTES8", "BYTEARRAY8", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
        "EMPTY_DICT", "EMPTY_SET", "FROZENSET", "MEMOIZE", "BINGET", "LONG_BINGET", "STACK_GLOBAL")}  # fmt: skip

    def find_class(self, module, name):
        if module != __name__ or name not in BUILDERS:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return BUILDERS[name]

    def load_reduce(self):
        arguments, function = self.stack.pop(), self.stack[-1]
        if type(arguments) is not tuple or not any(function is known for known in BUILDERS.values()):
            raise pickle.UnpicklingError("a call that is not allowed")
        self.stack[-1] = function(*arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

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
        dispatch[instruction[0]] = fill(kind, instruction)
    del fill, kind, instruction


def exact(value, *kinds):
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

    return np.ma.MaskedArray(exact(values, np.ndarray), mask=exact(mask, np.ndarray), fill_value=fill)


@builder
def records(values):
    import numpy as np

    return exact(values, np.ndarray).view(np.recarray)


@builder
def dtype(description):
    return numpy_dtype(description)


@builder
def type_named(module, name):
    if module == "builtins" and name in SCALAR_TYPES:
        return {"bool": bool, "int": int, "float": float, "complex": complex, "str": str, "bytes": bytes, "list": list,
                "tuple": tuple, "dict": dict, "set": set, "object": object}[name]
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


def zone(name):
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
    if kind == "python" or kind == "pyarrow":  # text; `mask` tells pandas 3's own kind, whose missing value is NaN
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

    if kind not in {f"{layout}_{what}" for layout in ("csr", "csc", "coo", "bsr", "dia", "lil", "dok")
                    for what in ("matrix", "array")}:
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
        return torch.sparse_coo_tensor(exact(parts, torch.Tensor), exact(values, torch.Tensor), exact(shape, tuple))
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
            "dict_keys": lambda items: exact(items, dict).keys(), "dict_values": lambda items: exact(items, dict).values(),
            "dict_items": lambda items: exact(items, dict).items(), "iterator": lambda items: map(_itself, items),
            "ellipsis": lambda: ..., "zone": lambda seconds: zone(exact(seconds, int))}  # fmt: skip
    return make[kind](*values)


def _itself(value):
    return value


# --- the candidate's side: objects -> plain data ----------------------------------------------------------------------


class Packer(pickle.Pickler):
    """Every object that is not plain data is described by one builder and plain data."""

    def reducer_override(self, value):
        if BUILDERS.get(getattr(value, "__name__", None)) is value:
            return NotImplemented  # the builders themselves go by name
        for describe in (describe_standard, describe_numpy, describe_pandas, describe_sparse, describe_torch,
                         describe_tensorflow, describe_subclass):  # fmt: skip
            if (description := describe(value, type(value))) is not None:
                return description
        return opaque, (f"{type(value).__module__}.{type(value).__qualname__}",)


def loaded(name):
    """A module, if the program has imported it."""
    return sys.modules.get(name)


def zone_name(tz):
    if tz is None:
        return None
    name = getattr(tz, "zone", None) or getattr(tz, "key", None)
    return name if isinstance(name, str) else int(tz.utcoffset(None).total_seconds())


def describe_standard(value, kind):
    if kind is datetime.datetime:
        tz = None if value.tzinfo is None else zone_name(value.tzinfo)
        if isinstance(tz, str):
            return None
        tail = () if tz is None else (datetime.timezone(datetime.timedelta(seconds=tz)),)
        return standard, ("datetime", *value.timetuple()[:6], value.microsecond, *tail)
    if kind is datetime.timezone:
        return standard, ("zone", int(value.utcoffset(None).total_seconds()))
    if kind is datetime.date:
        return standard, ("date", value.year, value.month, value.day)
    if kind is datetime.time and value.tzinfo is None:
        return standard, ("time", value.hour, value.minute, value.second, value.microsecond)
    if kind is datetime.timedelta:
        return standard, ("timedelta", value.days, value.seconds, value.microseconds)
    if kind is decimal.Decimal:
        return standard, ("Decimal", str(value))
    if kind is fractions.Fraction:
        return standard, ("Fraction", value.numerator, value.denominator)
    if kind is range or kind is slice:
        return standard, (kind.__name__, value.start, value.stop, value.step)
    if kind is complex:
        return standard, ("complex", value.real, value.imag)
    if kind is collections.OrderedDict or kind is collections.Counter:
        return standard, (kind.__name__, dict(value))
    if kind is collections.deque:
        return standard, ("deque", list(value), value.maxlen)
    if kind is type({}.keys()) or kind is type({}.values()) or kind is type({}.items()):
        if kind is type({}.keys()):
            return standard, ("dict_keys", dict.fromkeys(value))
        return standard, (kind.__name__, dict(value) if kind is type({}.items()) else dict(enumerate(value)))
    if isinstance(value, types.GeneratorType) or kind in (map, zip, filter, enumerate, reversed, type(iter([]))):
        return standard, ("iterator", list(value))
    if value is ...:
        return standard, ("ellipsis",)
    if kind is type:
        return type_named, (value.__module__, value.__qualname__)
    return None


def describe_numpy(value, kind):
    if (np := loaded("numpy")) is None:
        return None
    if kind is np.ndarray or isinstance(value, np.generic):
        if value.dtype.hasobject:
            return (array, ("|O", value.shape, value.reshape(-1).tolist())) if value.dtype.kind == "O" else None
        fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        whole = array, (np.lib.format.dtype_to_descr(value.dtype), value.shape, value.tobytes(), fortran)
        return whole if kind is np.ndarray else (scalar, (np.asarray(value),))
    if isinstance(value, np.dtype):
        return None if value.hasobject and value.kind != "O" else (dtype, (np.lib.format.dtype_to_descr(value),))
    if isinstance(value, np.ma.MaskedArray):
        return masked, (np.asarray(value.data), np.ma.getmaskarray(value), value.fill_value)
    if isinstance(value, np.matrix):
        return matrix, (np.asarray(value),)
    if isinstance(value, np.recarray):
        return records, (value.view(np.ndarray).astype(np.dtype(value.dtype.descr)),)
    if isinstance(value, np.ndarray):  # another subclass: its contents
        return describe_numpy(np.array(value, subok=False), np.ndarray)
    return None


def describe_pandas(value, kind):
    if (pd := loaded("pandas")) is None:
        return None
    if isinstance(value, pd.DataFrame):
        columns = [value.iloc[:, place] for place in range(value.shape[1])]
        return frame, (value.columns, value.index, [plain(column.array) for column in columns])
    if isinstance(value, pd.Series):
        return series, (plain(value.array), value.index, value.name)
    if isinstance(value, pd.RangeIndex):
        return index, ((value.start, value.stop, value.step), value.name, "RangeIndex", None)
    if isinstance(value, pd.MultiIndex):
        parts = list(value.levels), [codes.copy() for codes in map(plain, value.codes)]
        return index, (parts, list(value.names), "MultiIndex", None)
    if isinstance(value, pd.Index):
        freq = getattr(value, "freqstr", None) if isinstance(value, (pd.DatetimeIndex, pd.TimedeltaIndex)) else None
        return index, (plain(value.array), value.name, "Index", freq)
    if isinstance(value, pd.api.extensions.ExtensionArray):
        return describe_extension(pd, value, kind.__name__)
    if value is pd.NaT or value is pd.NA:
        return pandas_scalar, ("NaT" if value is pd.NaT else "NA",)
    if isinstance(value, pd.Timestamp):
        return pandas_scalar, ("Timestamp", value.to_datetime64(), zone_name(value.tz))
    if isinstance(value, pd.Timedelta):
        return pandas_scalar, ("Timedelta", value.to_timedelta64())
    if isinstance(value, pd.Period):
        return pandas_scalar, ("Period", value.ordinal, value.freqstr)
    if isinstance(value, pd.Interval):
        return pandas_scalar, ("Interval", value.left, value.right, value.closed)
    if kind is pd.CategoricalDtype and value.categories is not None:
        return category_dtype, (value.categories, bool(value.ordered))
    if isinstance(value, pd.api.extensions.ExtensionDtype):
        return pandas_dtype, ("str" if isinstance(getattr(value, "na_value", None), float) else str(value),)
    return None


def plain(values):
    """A numpy array where pandas only wraps one."""
    wrapper = type(values).__name__ in ("PandasArray", "NumpyExtensionArray")
    return values.to_numpy() if wrapper else values


def describe_extension(pd, value, name):
    if name == "Categorical":
        return categories, (value.codes.copy(), value.categories, bool(value.ordered))
    if name == "DatetimeArray" and value.tz is not None:
        return zoned, (value.tz_convert("UTC").tz_localize(None).to_numpy(), zone_name(value.tz))
    if name in ("DatetimeArray", "TimedeltaArray"):
        return extension, (name, value.to_numpy(), None)
    if name == "PeriodArray":
        return period, (value.asi8, value.freqstr)
    if name == "IntervalArray":
        return intervals, (value.left, value.right, value.closed)
    if name in ("IntegerArray", "BooleanArray", "FloatingArray"):
        return extension, (name, value._data, value._mask)
    if name == "SparseArray":
        return extension, (name, value.to_dense(), value.fill_value)
    if isinstance(value.dtype, pd.StringDtype):
        missing = getattr(value.dtype, "na_value", pd.NA)
        return extension, (value.dtype.storage, value.to_numpy(object), isinstance(missing, float))
    return None


def describe_sparse(value, kind):
    if (module := loaded("scipy.sparse")) is None or not module.issparse(value):
        return None
    layout, name = value.format, kind.__name__
    if layout in ("csr", "csc", "bsr"):
        parts = (value.data, value.indices, value.indptr)
    elif layout == "coo":
        parts = (value.data, (value.row, value.col))
    elif layout == "dia":
        parts = (value.data, value.offsets)
    else:
        parts = value.tocoo()
    return sparse, (name, parts, tuple(map(int, value.shape)))


def describe_torch(value, kind):
    if (torch := loaded("torch")) is None:
        return None
    if isinstance(value, torch.Tensor):
        name, dense = str(value.dtype).removeprefix("torch."), value.detach()
        if value.layout == torch.sparse_coo:
            dense = dense.coalesce()
            return torch_tensor, (dense.values(), name, False, False, dense.indices(), tuple(value.shape))
        if value.layout != torch.strided:
            return None
        dense = dense.resolve_conj().resolve_neg()
        dense = dense.float() if value.dtype == torch.bfloat16 else dense
        return torch_tensor, (dense.numpy(), name, value.requires_grad, isinstance(value, torch.nn.Parameter))
    if isinstance(value, torch.Size):
        return torch_other, ("Size", list(value))
    if isinstance(value, torch.dtype):
        return torch_other, ("dtype", str(value).removeprefix("torch."))
    if isinstance(value, torch.optim.Optimizer):
        return optimizer, (dict(value.defaults), [dict(group) for group in value.param_groups])
    return None


def describe_tensorflow(value, kind):
    if (tf := loaded("tensorflow")) is None or not kind.__module__.startswith("tensorflow"):
        return None
    if isinstance(value, tf.Variable):
        return tensorflow, ("Variable", value.numpy(), value.dtype.name)
    if isinstance(value, tf.Tensor) and hasattr(value, "numpy"):
        return tensorflow, ("Tensor", value.numpy(), value.dtype.name)
    if isinstance(value, tf.DType):
        return tensorflow, ("DType", None, value.name)
    return None


def describe_subclass(value, kind):
    """A named tuple, a Bunch, a defaultdict…: its contents as the plain type."""
    if issubclass(kind, tuple):
        return _copy(tuple(value))
    if issubclass(kind, list):
        return _copy(list(value))
    if issubclass(kind, dict):
        return _copy(dict(value))
    for base in (str, int, float, bytes):
        if issubclass(kind, base):
            return _copy(base(value))
    return None


@builder
def copied(value):
    return value


def _copy(value):
    return copied, (value,)
