"""A result without elements is equal only to a result without elements.

`numpy.array([]) != 5` has no elements, so none of them says that the two differ, and many comparisons (of
pandas and numpy, and every loop over the result) conclude that they are equal. A frame whose every cell is an
empty array passes the official test of more than a hundred of DS-1000's problems. So the judge looks at the
result and at the expected result before the test does, side by side: wherever one has elements and the other
has none, the answer is wrong, whatever the test says.

An empty text is such a thing too: a loop over `zip(result, expected)` ends at once where the result is ''.
But a text may be empty, so it counts as one only against a collection that has elements; against a text or a
number it is compared by the test.
"""

import collections
import sys
from typing import Any

from verifier import unpack

ATOMS = {int, float, complex, bool, str, bytes, type(None)}  # looked at first: most lists hold nothing else
TEXTS = (str, bytes, bytearray)
DICT_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))
SEQUENCES = (list, tuple, set, frozenset, collections.deque, *DICT_VIEWS)


def differs(result: Any, expected: Any) -> bool:
    """Whether some part of the result has no elements where the expected result has some, or the reverse.

    Parts belong together by their place, or by their key in dictionaries. Where the two are built
    differently, so that no places belong together, it is enough that both hold something without elements, or
    neither does.
    """
    ours, theirs = all_parts(result), all_parts(expected)
    tops = part_of(ours, result), part_of(theirs, expected)
    if not any(top.holds_nothing or top.holds_empty_text for top in tops):
        return False
    pairs, seen = [(result, expected)], set()
    while pairs:
        one, other = pairs.pop()
        if (id(one), id(other)) in seen:
            continue
        seen.add((id(one), id(other)))
        one, other = part_of(ours, one), part_of(theirs, other)
        if one.nothing != other.nothing:
            return True
        if one is EMPTY_TEXT and other.is_collection or other is EMPTY_TEXT and one.is_collection:
            return True
        if one.inside == [] or other.inside == []:
            continue
        together = matched(one, other)
        if together is not None:
            pairs += together
            continue
        collections_both = one.is_collection and other.is_collection
        if one.holds_nothing != other.holds_nothing:
            return True
        if collections_both and one.holds_empty_text != other.holds_empty_text:
            return True
    return False


def all_parts(value: Any) -> dict[int, "Part"]:
    """The value and all that it holds by their identity, atoms apart; each object once, so that loops end."""
    found, waiting = {}, [(value, False)]
    while waiting:
        value, looked_through = waiting.pop()
        if looked_through:
            part = found[id(value)]
            inside = [part_of(found, one) for one in part.inside or ()]
            beside = [part_of(found, one) for one in part.labels]
            part.nothing = part.nothing and all(one.nothing for one in inside)
            part.holds_nothing = part.holds_nothing or any(one.holds_nothing for one in (*inside, *beside))
            part.holds_empty_text = any(one.holds_empty_text for one in (*inside, *beside))
        elif type(value) not in ATOMS and id(value) not in found and not isinstance(value, TEXTS):
            part = found[id(value)] = Part(value)
            waiting.append((value, True))  # after all that it holds
            waiting += [(one, False) for one in (*(part.inside or ()), *part.labels)]
    return found


def part_of(found: dict[int, "Part"], value: Any) -> "Part":
    """What `all_parts` has found of a value; texts and other atoms are not among it."""
    if isinstance(value, TEXTS):
        return SOMETHING if len(value) else EMPTY_TEXT
    return found.get(id(value), SOMETHING)


def matched(one: "Part", other: "Part") -> list | None:
    """The pairs of values that belong together; None where the two are built differently."""
    ours, theirs = one.value, other.value
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [(ours[key], theirs[key]) for key in ours] if ours.keys() == theirs.keys() else None
    if isinstance(ours, (set, frozenset)) or isinstance(theirs, (set, frozenset)):
        return None
    if (one.inside is None) != (other.inside is None) or len(one.inside or ()) != len(other.inside or ()):
        return None
    return [*zip(one.inside or (), other.inside or ()), *zip(one.labels, other.labels)]


def parts(value: Any) -> list | None:
    """What a container holds; [] where it has no elements.

    None for what is not a container, and for a container whose elements can only be numbers, times and the
    like.
    """
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, SEQUENCES):
        return list(value)
    if isinstance(value, range):
        return None if value else []
    if (behind := unpack.behind_iterator(value)) is not None:
        return behind
    if isinstance(value, slice):
        return [value.start, value.stop, value.step]
    # an optimizer, or what arrives of one
    if type(getattr(value, "param_groups", None)) is list:
        return [getattr(value, "defaults", None), value.param_groups]
    for describe in (parts_numpy, parts_pandas, parts_sparse):
        known, inside = describe(value)
        if known:
            return inside
    return [] if has_no_size(value) else None


def has_no_size(value: Any) -> bool:
    """An array, a frame or a tensor of any library."""
    try:
        return 0 in tuple(value.shape)
    except (AttributeError, TypeError, ValueError):
        return False


def parts_numpy(value: Any) -> tuple[bool, list | None]:
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, (numpy.ndarray, numpy.generic)):
        return False, None
    records_of_nothing = value.dtype.kind == "V" and value.dtype.itemsize == 0
    if value.size == 0 or records_of_nothing:
        return True, []
    if value.dtype.kind not in "OUS":  # objects and texts
        return True, None
    if value.ndim == 0:
        return True, [value[()]]
    return True, list(numpy.asarray(value))  # not list(value): a row of a matrix is a matrix again


def parts_sparse(value: Any) -> tuple[bool, list | None]:
    scipy = sys.modules.get("scipy.sparse")
    if scipy is None or not scipy.issparse(value):
        return False, None
    if has_no_size(value):
        return True, []
    return True, list(value.tocoo().data) if value.dtype.kind == "O" else None


def parts_pandas(value: Any) -> tuple[bool, list | None]:
    pandas = sys.modules.get("pandas")
    if pandas is None:
        return False, None
    if isinstance(value, pandas.DataFrame):
        return True, [value.iloc[:, place].array for place in range(value.shape[1])] if value.size else []
    if isinstance(value, pandas.MultiIndex):
        return True, [value.get_level_values(level) for level in range(value.nlevels)] if len(value) else []
    if isinstance(value, (pandas.Series, pandas.Index)):
        value = value.array
    if not isinstance(value, pandas.api.extensions.ExtensionArray):
        return False, None
    if len(value) == 0:
        return True, []
    # The kind is O for objects, and also for categories and for sparse arrays of objects.
    return True, list(value) if value.dtype.kind == "O" else None


def labels(value: Any) -> list:
    """The names beside the elements of a series or a frame."""
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, pandas.DataFrame):
        return [value.index, value.columns]
    return [value.index] if pandas is not None and isinstance(value, pandas.Series) else []


def is_collection(value: Any) -> bool:
    """Whether one can go through it: it has a length, or a shape with at least one dimension."""
    try:
        return len(value) >= 0
    except TypeError:  # no length: a number, a class, or a sparse matrix, which has a shape
        shape = getattr(value, "shape", ())
        return isinstance(shape, tuple) and len(shape) > 0


class Part:
    """One thing in a result: a number, a list, a column, a whole frame…"""

    def __init__(self, value: Any):
        self.value, self.inside, self.labels = value, parts(value), labels(value)
        # It has no element, however deep: [] and [[], []], but not 0 or None.
        self.nothing = self.inside is not None
        # It is nothing, or something in it or beside it is.
        self.holds_nothing = self.inside == []
        self.holds_empty_text = False
        self.is_collection = self.inside is not None or is_collection(value)


SOMETHING, EMPTY_TEXT = Part(0), Part(0)
EMPTY_TEXT.holds_empty_text = True
