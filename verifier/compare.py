"""Are two results of queries equal? The official evaluators are reimplemented here, not copied.

A comparison is one row of COMPARISONS: how the queries are written before they run, when the order of rows
counts, and so on. Deviations from the official code, on purpose: 1 and 1.0 are equal beside any other column;
text that is not UTF-8 is compared byte by byte; columns are matched by refinement, not by trying all
permutations.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from verifier.sql_text import orders, outermost_orders, spider_query


def never(gold: str) -> bool:
    return False


def unchanged(query: str) -> str:
    return query


@dataclass(frozen=True)
class Comparison:
    prepare: Callable[[str], str] = unchanged  # how both queries are written before they run
    ordered: Callable[[str], bool] = never  # the gold query -> whether the order of its rows counts
    repeats: bool = True  # whether it counts how often a row is there
    in_place: bool = True  # whether columns must stand in the gold's order
    empty_alike: bool = True  # whether two results without rows are equal, however many columns they have


COMPARISONS = {
    # Spider's test-suite evaluator (Zhong et al. 2020); by default it takes DISTINCT out of both queries
    "spider": Comparison(partial(spider_query, keep_distinct=False), orders, in_place=False),
    "spider_keep_distinct": Comparison(partial(spider_query, keep_distinct=True), orders, in_place=False),
    # BIRD's evaluation.py: set(answer) == set(gold)
    "bird": Comparison(repeats=False),
    "strict": Comparison(ordered=outermost_orders, empty_alike=False),
}


def difference(
    gold: Sequence[tuple] | set[tuple],
    answer: Sequence[tuple] | set[tuple],
    gold_width: int,
    width: int,
    comparison: Comparison,
    ordered: bool,
) -> str:
    """What is different, in a few words; an empty text where the results are equal.

    gold, answer: the rows; sets of rows where repeats do not count.
    gold_width, width: how many columns they have.
    ordered: whether the order of the rows counts, by `comparison.ordered`.
    """
    if comparison.empty_alike and not gold and not answer:
        return ""
    if width != gold_width:
        return f"{width} columns, not {gold_width}"
    if len(answer) > len(gold):
        return f"more than {len(gold)} rows"
    if len(answer) < len(gold):
        return f"{len(answer)} rows, not {len(gold)}"
    if answer == gold:
        return ""
    if not comparison.repeats:
        return "other rows"
    same_rows = Counter(answer) == Counter(gold)
    if same_rows and not ordered:
        return ""
    if comparison.in_place:
        return "other order" if same_rows else "other rows"
    if ordered:  # the rows are in place, so each column must be found as it is, whichever place it has
        return "" if Counter(zip(*answer)) == Counter(zip(*gold)) else "other rows or order"
    return "" if match_columns(list(gold), list(answer)) else "other rows"


def match_columns(gold: Sequence[tuple], answer: Sequence[tuple]) -> bool:
    """Whether some order of the columns makes the two multisets of rows equal.

    Equal columns are one column here, coloured by how many there are: whatever order fits sends equal columns
    to equal columns. Colour refinement: columns that hold different values get different colours, rows with
    different values in the columns of one colour get different colours, then columns again, until nothing
    changes. Columns that still share a colour are tried in turn, and refined again. The answer is exact. Each
    refinement takes at most (columns) passes over the table. The number of tries is 1 in practice. No
    polynomial bound is known for any exact method (the problem contains graph isomorphism); the
    worker's time limit ends the rest.
    """
    # Every value becomes a small integer, so that 1 and 1.0 are one value and numbers can stand beside text.
    number: dict = {}
    counted = [
        Counter(tuple(number.setdefault(value, len(number)) for value in column) for column in zip(*rows))
        for rows in (gold, answer)
    ]
    tables = [list(columns) for columns in counted]
    # The tries that are left at each depth. A search that calls itself could go deeper than Python allows.
    tries = [iter([[list(columns.values()) for columns in counted]])]
    while tries:
        colours = next(tries[-1], None)
        if colours is None:
            tries.pop()
        elif refined := refine(tables, colours):
            if all(len(set(own)) == len(own) for own in refined):
                # One way is left; colours are sums of hashes, so only looking at the rows proves it.
                if rows_by_colour(tables[0], refined[0]) == rows_by_colour(tables[1], refined[1]):
                    return True
            else:
                tries.append(choices(*refined))
    return False


def choices(ours: list[int], theirs: list[int]) -> Iterator[list[list[int]]]:
    """Both tables' colours for each way to pair one column that shares its colour: both get a new one."""
    shared = next(colour for colour, count in Counter(ours).items() if count > 1)
    first, fresh = ours.index(shared), len(ours)
    for column, colour in enumerate(theirs):
        if colour == shared:
            yield [with_colour(ours, first, fresh), with_colour(theirs, column, fresh)]


def rows_by_colour(table: list[tuple[int, ...]], colours: list[int]) -> Counter:
    """How often each row occurs, where columns stand in the order of their colours."""
    return Counter(zip(*(table[column] for column in sorted(range(len(table)), key=colours.__getitem__))))


def refine(tables: list[list[tuple[int, ...]]], colours: list[list[int]]) -> list[list[int]] | None:
    """The colours of the columns of both tables, as fine as they get; None where the tables clearly differ.

    A table is a list of columns. Colours are small integers with the same meaning in both tables.
    """
    while True:
        finer = [column_colours(table, own, row_colours(table, own)) for table, own in zip(tables, colours)]
        # These are sums over all rows: other rows show here as well.
        if Counter(finer[0]) != Counter(finer[1]):
            return None
        names = {colour: name for name, colour in enumerate(sorted(set(finer[0])))}
        before, colours = colours, [[names[colour] for colour in own] for own in finer]
        if len(names) == len(set(before[0])):
            return colours


def row_colours(table: list[tuple[int, ...]], colours: list[int]) -> list[int]:
    """A colour for each row, the same where the columns of each colour hold the same values in any order."""
    hashes = ([hash((colour, value, 1)) for value in column] for colour, column in zip(colours, table))
    return [sum(cells) for cells in zip(*hashes)]


def column_colours(
    table: list[tuple[int, ...]], colours: list[int], rows: list[int]
) -> list[tuple[int, int]]:
    """A colour for each column, the same where it was the same and equal rows hold equal values."""
    return [
        (colour, sum(hash((row, value, 2)) for row, value in zip(rows, column)))
        for colour, column in zip(colours, table)
    ]


def with_colour(colours: list[int], column: int, colour: int) -> list[int]:
    return colours[:column] + [colour] + colours[column + 1 :]
