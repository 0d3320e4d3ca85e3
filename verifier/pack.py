"""In the candidate: its result as bytes, each part described by one builder of unpack.py and plain data.

Nothing here is trusted. An honest program's result arrives as it was (numpy, pandas, scipy.sparse, PyTorch,
TensorFlow, the standard library); a subclass arrives as the type it derives from, and what cannot be
described as its type's name.
"""

import collections
import datetime
import decimal
import fractions
import io
import pickle
import sys
import types
from collections.abc import Callable
from types import ModuleType
from typing import Any

from verifier import unpack

Description = tuple[Callable, tuple]  # a builder of unpack.py and its arguments


def pack(result: Any) -> bytes:
    stream = io.BytesIO()
    Packer(stream, protocol=5).dump(result)
    return stream.getvalue()


class Packer(pickle.Pickler):
    """Every object that is not plain data is described by one builder and plain data."""

    def reducer_override(self, value: Any) -> Any:
        if unpack.BUILDERS.get(getattr(value, "__name__", None)) is value:
            return NotImplemented  # the builders themselves go by name
        for describe in (describe_standard, describe_numpy, describe_pandas, describe_sparse, describe_torch,
                         describe_tensorflow, describe_subclass):  # fmt: skip
            if (description := describe(value, type(value))) is not None:
                return description
        return self.unknown(value)

    def unknown(self, value: Any) -> Description:
        """What none of the above can describe."""
        return unpack.opaque, (f"{type(value).__module__}.{type(value).__qualname__}",)


def loaded(name: str) -> Any:
    """A module, if the program has imported it."""
    return sys.modules.get(name)


def zone_name(tz: Any) -> str | int | None:
    if tz is None:
        return None
    if type(tz).__module__.startswith("dateutil.") and isinstance(getattr(tz, "_filename", None), str):
        return f"dateutil/{tz._filename}"  # as pandas calls it
    name = getattr(tz, "zone", None) or getattr(tz, "key", None)
    if isinstance(name, str):
        return name
    offset = tz.utcoffset(None)
    return str(tz) if offset is None else int(offset.total_seconds())


def describe_standard(value: Any, kind: type) -> Description | None:
    if kind is datetime.datetime:
        tz = None if value.tzinfo is None else zone_name(value.tzinfo)
        if isinstance(tz, str):
            return None
        tail = () if tz is None else (datetime.timezone(datetime.timedelta(seconds=tz)),)
        return unpack.standard, ("datetime", *value.timetuple()[:6], value.microsecond, *tail)
    if kind is datetime.timezone:
        return unpack.standard, ("zone", int(value.utcoffset(None).total_seconds()))
    if kind is datetime.date:
        return unpack.standard, ("date", value.year, value.month, value.day)
    if kind is datetime.time and value.tzinfo is None:
        return unpack.standard, ("time", value.hour, value.minute, value.second, value.microsecond)
    if kind is datetime.timedelta:
        return unpack.standard, ("timedelta", value.days, value.seconds, value.microseconds)
    if kind is decimal.Decimal:
        return unpack.standard, ("Decimal", str(value))
    if kind is fractions.Fraction:
        return unpack.standard, ("Fraction", value.numerator, value.denominator)
    if kind is range or kind is slice:
        return unpack.standard, (kind.__name__, value.start, value.stop, value.step)
    if kind is complex:
        return unpack.standard, ("complex", value.real, value.imag)
    if kind is collections.OrderedDict or kind is collections.Counter:
        return unpack.standard, (kind.__name__, dict(value))
    if kind is collections.deque:
        return unpack.standard, ("deque", list(value), value.maxlen)
    if kind is type({}.keys()) or kind is type({}.values()) or kind is type({}.items()):
        if kind is type({}.keys()):
            return unpack.standard, ("dict_keys", dict.fromkeys(value))
        items = dict(value) if kind is type({}.items()) else dict(enumerate(value))
        return unpack.standard, (kind.__name__, items)
    iterators = (map, zip, filter, enumerate, reversed, type(iter([])))
    if isinstance(value, types.GeneratorType) or kind in iterators:
        return unpack.standard, ("iterator", list(value))
    if value is ...:
        return unpack.standard, ("ellipsis",)
    if kind is type:
        return unpack.type_named, (value.__module__, value.__qualname__)
    return None


def describe_numpy(value: Any, kind: type) -> Description | None:
    if (np := loaded("numpy")) is None:
        return None
    if kind is np.ndarray or isinstance(value, np.generic):
        if value.dtype.kind == "O":
            return unpack.array, ("|O", value.shape, value.reshape(-1).tolist())
        if value.dtype.hasobject:  # a record that holds objects
            return None
        fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        descr = np.lib.format.dtype_to_descr(value.dtype)
        whole = unpack.array, (descr, value.shape, value.tobytes(), fortran)
        return whole if kind is np.ndarray else (unpack.scalar, (np.asarray(value),))
    if isinstance(value, np.dtype):
        objects = value.hasobject and value.kind != "O"
        return None if objects else (unpack.dtype, (np.lib.format.dtype_to_descr(value),))
    if isinstance(value, np.ma.MaskedArray):
        return unpack.masked, (np.asarray(value.data), np.ma.getmaskarray(value), value.fill_value)
    if isinstance(value, np.matrix):
        return unpack.matrix, (np.asarray(value),)
    if isinstance(value, np.recarray):
        return unpack.records, (value.view(np.ndarray).astype(np.dtype(value.dtype.descr)),)
    if isinstance(value, np.ndarray):  # another subclass: its contents
        return describe_numpy(np.array(value, subok=False), np.ndarray)
    return None


def describe_pandas(value: Any, kind: type) -> Description | None:
    if (pd := loaded("pandas")) is None:
        return None
    if isinstance(value, pd.DataFrame):
        columns = [value.iloc[:, place] for place in range(value.shape[1])]
        return unpack.frame, (value.columns, value.index, [plain(column.array) for column in columns])
    if isinstance(value, pd.Series):
        return unpack.series, (plain(value.array), value.index, value.name)
    if isinstance(value, pd.RangeIndex):
        return unpack.index, ((value.start, value.stop, value.step), value.name, "RangeIndex", None)
    if isinstance(value, pd.MultiIndex):
        parts = list(value.levels), [codes.copy() for codes in map(plain, value.codes)]
        return unpack.index, (parts, list(value.names), "MultiIndex", None)
    if isinstance(value, pd.Index):
        times = isinstance(value, (pd.DatetimeIndex, pd.TimedeltaIndex))
        freq = getattr(value, "freqstr", None) if times else None
        return unpack.index, (plain(value.array), value.name, "Index", freq)
    if isinstance(value, pd.api.extensions.ExtensionArray):
        return describe_extension(pd, value, kind.__name__)
    if value is pd.NaT or value is pd.NA:
        return unpack.pandas_scalar, ("NaT" if value is pd.NaT else "NA",)
    if isinstance(value, pd.Timestamp):
        return unpack.pandas_scalar, ("Timestamp", value.to_datetime64(), zone_name(value.tz))
    if isinstance(value, pd.Timedelta):
        return unpack.pandas_scalar, ("Timedelta", value.to_timedelta64())
    if isinstance(value, pd.Period):
        return unpack.pandas_scalar, ("Period", value.ordinal, value.freqstr)
    if isinstance(value, pd.Interval):
        return unpack.pandas_scalar, ("Interval", value.left, value.right, value.closed)
    if kind is pd.CategoricalDtype and value.categories is not None:
        return unpack.category_dtype, (value.categories, bool(value.ordered))
    if isinstance(value, pd.api.extensions.ExtensionDtype):
        text_of_pandas_3 = isinstance(getattr(value, "na_value", None), float)
        return unpack.pandas_dtype, ("str" if text_of_pandas_3 else str(value),)
    return None


def plain(values: Any) -> Any:
    """A numpy array where pandas only wraps one."""
    wrapper = type(values).__name__ in ("PandasArray", "NumpyExtensionArray")
    return values.to_numpy() if wrapper else values


def describe_extension(pd: ModuleType, value: Any, name: str) -> Description | None:
    if name == "Categorical":
        return unpack.categories, (value.codes.copy(), value.categories, bool(value.ordered))
    if name == "DatetimeArray" and value.tz is not None:
        return unpack.zoned, (value.tz_convert("UTC").tz_localize(None).to_numpy(), zone_name(value.tz))
    if name in ("DatetimeArray", "TimedeltaArray"):
        return unpack.extension, (name, value.to_numpy(), None)
    if name == "PeriodArray":
        return unpack.period, (value.asi8, value.freqstr)
    if name == "IntervalArray":
        return unpack.intervals, (value.left, value.right, value.closed)
    if name in ("IntegerArray", "BooleanArray", "FloatingArray"):
        return unpack.extension, (name, value._data, value._mask)
    if name == "SparseArray":
        return unpack.extension, (name, value.to_dense(), value.fill_value)
    if isinstance(value.dtype, pd.StringDtype):
        missing = getattr(value.dtype, "na_value", pd.NA)
        return unpack.extension, (value.dtype.storage, value.to_numpy(object), isinstance(missing, float))
    return None


def describe_sparse(value: Any, kind: type) -> Description | None:
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
    return unpack.sparse, (name, parts, tuple(map(int, value.shape)))


def describe_torch(value: Any, kind: type) -> Description | None:
    if (torch := loaded("torch")) is None:
        return None
    if isinstance(value, torch.Tensor):
        name, dense = str(value.dtype).removeprefix("torch."), value.detach()
        if value.layout == torch.sparse_coo:
            dense = dense.coalesce()
            parts = (dense.indices(), tuple(value.shape))
            return unpack.torch_tensor, (dense.values(), name, False, False, *parts)
        if value.layout != torch.strided:
            return None
        dense = dense.resolve_conj().resolve_neg()
        dense = dense.float() if value.dtype == torch.bfloat16 else dense
        parameter = isinstance(value, torch.nn.Parameter)
        return unpack.torch_tensor, (dense.numpy(), name, value.requires_grad, parameter)
    if isinstance(value, torch.Size):
        return unpack.torch_other, ("Size", list(value))
    if isinstance(value, torch.dtype):
        return unpack.torch_other, ("dtype", str(value).removeprefix("torch."))
    if isinstance(value, torch.optim.Optimizer):
        return unpack.optimizer, (dict(value.defaults), [dict(group) for group in value.param_groups])
    return None


def describe_tensorflow(value: Any, kind: type) -> Description | None:
    if (tf := loaded("tensorflow")) is None or not kind.__module__.startswith("tensorflow"):
        return None
    if isinstance(value, tf.Variable):
        return unpack.tensorflow, ("Variable", value.numpy(), value.dtype.name)
    if isinstance(value, tf.Tensor) and hasattr(value, "numpy"):
        return unpack.tensorflow, ("Tensor", value.numpy(), value.dtype.name)
    if isinstance(value, tf.DType):
        return unpack.tensorflow, ("DType", None, value.name)
    return None


def describe_subclass(value: Any, kind: type) -> Description | None:
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


def _copy(value: Any) -> Description:
    return unpack.copied, (value,)
