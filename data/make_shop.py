"""Build `shop`, a small text-to-SQL data set in the layout of the Spider release, from two text files.

shop_domains.txt describes 14 little databases; the functions `easy`, `medium` and `hard` turn any such
description into questions with gold SQL. A question is kept only if its query can tell right from wrong: it
returns rows, has no NULL, no duplicate rows and no ties where order matters, and near-miss queries answer
differently.

    python data/make_shop.py [OUT]        # OUT defaults to data/shop; the same files every time
"""

import json
import random
import re
import sqlite3
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

SEED = "shop-1"
DEV_ONLY = {"airline", "football", "harbour", "music_label"}  # databases no training question touches
# (train, dev) per shared db, dev per new db
QUOTA = {"easy": (16, 4, 10), "medium": (11, 3, 7), "hard": (9, 2, 6)}


def art(word):
    """A spoken column name with its article, if it takes one."""
    return word if word.endswith("points") else ("an " if word[0] in "aeiou" else "a ") + word


def parse(text):
    """Read shop_domains.txt into {database: [table, ...]}; tables and columns are plain namespaces."""
    dbs, people, table = {}, {}, None
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if line.startswith("* "):
            people[line.split()[1]] = ", ".join(line.split()[2:])
        elif line.startswith("= "):
            tables = dbs[line[2:]] = []
        elif not line.startswith(" "):
            name, one, size = line.split()
            table = SimpleNamespace(name=name, one=one, size=int(size), cols=[], key=None, who="that")
            tables.append(table)
        else:
            spec, *says = [part.strip() for part in line.split("|")]
            name, kind, values = (spec.split(None, 2) + [""])[:3]
            name, _, spoken = name.partition(":")
            col = SimpleNamespace(name=name, kind=kind, values=values, says=says, t=table)
            col.say = (spoken or name).replace("_", " ")
            table.cols.append(col)
            if kind in ("person", "text", "mix"):
                table.key, table.who, table.its = (
                    col,
                    *(("who", "their") if kind == "person" else ("that", "its")),
                )
            if kind == "person":
                col.values = people["first"] + " x " + people["last"]
            if kind == "fk":
                col.to = next(t for t in tables if t.name == values)
                col.of, col.have, col.has = says
            if kind in ("num", "sum", "year"):
                above, below, most, least = says + [""] * (4 - len(says))
                col.above = (above or f"with {art(col.say)} above {{}}").replace("that", table.who)
                col.below = (below or f"with {art(col.say)} below {{}}").replace("that", table.who)
                col.top, col.low = ("latest", "earliest") if kind == "year" else ("highest", "lowest")
                col.most = [
                    f"the {w} {table.one}" if w else f"the {table.one} with the {e} {col.say}"
                    for w, e in ((most, col.top), (least, col.low))
                ]
    return dbs


def column_values(col, r, rows_of):
    """Invented values for one column: spread out, so that different queries give different answers."""
    n, kind = col.t.size, col.kind
    if kind == "text":
        return r.sample(col.values.split(", "), n)
    if kind in ("mix", "person"):
        left, right = (side.split(", ") for side in col.values.split(" x "))
        return r.sample([f"{a} {b}" for a, b in product(left, right)], n)
    if kind == "cat":  # earlier values are more frequent: few ties between groups
        options = col.values.split(", ")
        return r.choices(options, [len(options) + 1 - i for i in range(len(options))], k=n)
    if kind == "fk":  # some parents stay childless, a few have many children
        ids = r.sample(range(1, len(rows_of[col.to.name]) + 1), len(rows_of[col.to.name]) - 3)
        return r.choices(ids, [1 + 8 / (i + 1) for i in range(len(ids))], k=n)
    low, high, step = (float(x) for x in (col.values.split() + ["1"])[:3])
    options = [round(low + i * step, 2) for i in range(int((high - low) / step + 1.5))]
    options = [int(x) if step >= 1 else x for x in options]
    return r.sample(options, n) if len(options) >= n else r.choices(options, k=n)


def sql_type(col):
    if col.kind in ("person", "text", "mix", "cat"):
        return "TEXT"
    return "REAL" if col.kind in ("num", "sum") and "." in col.values else "INTEGER"


def make_database(path, tables, r):
    """Create the SQLite file and return an open connection to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    con = sqlite3.connect(path)
    con.execute("PRAGMA page_size = 1024")
    con.execute("PRAGMA journal_mode = DELETE")
    rows_of = {}
    for t in tables:
        cols = ["id INTEGER PRIMARY KEY"]
        for c in t.cols:
            cols.append(
                f"{c.name} {sql_type(c)}" + (f" REFERENCES {c.to.name}(id)" if c.kind == "fk" else "")
            )
        con.execute(f"CREATE TABLE {t.name} ({', '.join(cols)})")
        for c in t.cols:
            c.data = column_values(c, r, rows_of)
        rows_of[t.name] = [(i + 1, *row) for i, row in enumerate(zip(*(c.data for c in t.cols)))]
        con.executemany(
            f"INSERT INTO {t.name} VALUES ({', '.join('?' * (len(t.cols) + 1))})", rows_of[t.name]
        )
    con.commit()
    con.execute("VACUUM")
    return con


def tables_entry(db, tables):
    """One element of tables.json, with the fields Spider gives it."""
    original, types, primary, index = [[-1, "*"]], ["text"], [], {}
    for i, t in enumerate(tables):
        for name, kind in [("id", "INTEGER")] + [(c.name, sql_type(c)) for c in t.cols]:
            index[t.name, name] = len(original)
            original.append([i, name])
            types.append("text" if kind == "TEXT" else "number")
        primary.append(index[t.name, "id"])
    foreign = [
        [index[t.name, c.name], index[c.to.name, "id"]] for t in tables for c in t.cols if c.kind == "fk"
    ]
    return {
        "column_names": [[i, name.replace("_", " ")] for i, name in original],
        "column_names_original": original,
        "column_types": types,
        "db_id": db,
        "foreign_keys": foreign,
        "primary_keys": primary,
        "table_names": [t.name for t in tables],
        "table_names_original": [t.name for t in tables],
    }


# ---------------------------------------------------------------- questions: (kind, gold SQL, ways to ask)


def pl(word):
    """Plural of a spoken column name."""
    head, of, rest = word.partition(" of ")
    if of:
        return pl(head) + of + rest
    if word.endswith("s"):
        return word if word == "species" else word + "es"
    return word[:-1] + "ies" if re.search("[^aeiou]y$", word) else word + "s"


def cap(text):
    return text[0].upper() + text[1:]


def quote(value):
    return f"'{value}'" if isinstance(value, str) else str(value)


def cols_of(t, *kinds):
    return [c for c in t.cols if c.kind in kinds]


def conditions(t, r, pre=""):
    """(SQL condition, words that follow the plural noun, column) for each comparison and column of it."""
    for c in cols_of(t, "cat"):
        for v in r.sample(sorted(set(c.data)), 2):
            yield f"{pre}{c.name} = {quote(v)}", c.says[0].format(v), c
    for c in cols_of(t, "num", "sum", "year"):
        middle = sorted(set(c.data))[len(set(c.data)) // 4 : -(len(set(c.data)) // 4) or None]
        for op, say in ((">", c.above), ("<", c.below)):
            v = r.choice(middle)  # a value that occurs, so that > and >= differ
            yield f"{pre}{c.name} {op} {v}", say.format(v), c


def easy(t, r):
    """One table, one clause."""
    many, one, k, cats = t.name, t.one, t.key, cols_of(t, "cat")
    nums = cols_of(t, "num", "sum", "year")
    yield (
        "count",
        f"SELECT COUNT(*) FROM {many}",
        [
            f"How many {many} are there?",
            f"Count the {many}.",
            f"What is the total number of {many}?",
            f"Tell me how many {many} we have.",
        ],
    )
    for c in cats:
        yield (
            "distinct",
            f"SELECT DISTINCT {c.name} FROM {many}",
            [
                f"What are the different {pl(c.say)} of the {many}?",
                f"List the distinct {pl(c.say)} of {many}.",
                f"Show every {c.say} that occurs among the {many}, without repeats.",
            ],
        )
        yield (
            "count_distinct",
            f"SELECT COUNT(DISTINCT {c.name}) FROM {many}",
            [
                f"How many different {pl(c.say)} do the {many} have?",
                f"Count the distinct {pl(c.say)} of {many}.",
                f"What is the number of different {pl(c.say)} among the {many}?",
            ],
        )
    for c in nums:
        for f, w in (
            ("MAX", (c.top, "maximum")),
            ("MIN", (c.low, "minimum")),
            ("AVG", ("average", "mean")),
            ("SUM", ("total", "overall")),
        ):
            if (f != "AVG" or c.kind != "year") and (f != "SUM" or c.kind == "sum"):
                yield (
                    "aggregate",
                    f"SELECT {f}({c.name}) FROM {many}",
                    [
                        f"What is the {w[0]} {c.say} of all {many}?",
                        f"Find the {w[0]} {c.say} of the {many}.",
                        f"Give me the {w[c.kind != 'year' and f != 'SUM']} {c.say} among all {many}.",
                    ],
                )
    for where, said, _ in conditions(t, r):
        yield (
            "count_where",
            f"SELECT COUNT(*) FROM {many} WHERE {where}",
            [
                f"How many {many} {said} are there?",
                f"Count the {many} {said}.",
                f"What is the number of {many} {said}?",
                f"Tell me how many {many} {said} we have.",
            ],
        )
    if not k:
        return
    yield (
        "list",
        f"SELECT {k.name} FROM {many}",
        [
            f"What are the {pl(k.say)} of all {many}?",
            f"List the {k.say} of every {one}.",
            f"Show all {one} {pl(k.say)}.",
            f"Give me the {pl(k.say)} of all the {many}.",
        ],
    )
    for c in cats + nums:
        yield (
            "list_two",
            f"SELECT {k.name}, {c.name} FROM {many}",
            [
                f"What are the {k.say} and {c.say} of each {one}?",
                f"List the {k.say} and the {c.say} of all {many}.",
                f"Show the {k.say} and {c.say} for every {one}.",
            ],
        )
        for v in r.sample(k.data, 2):
            yield (
                "lookup",
                f"SELECT {c.name} FROM {many} WHERE {k.name} = {quote(v)}",
                [
                    f"What is the {c.say} of the {one} {v}?",
                    f"Find the {c.say} of {v}.",
                    f"Show the {c.say} of the {one} with the {k.say} {v}.",
                    f"Which {c.say} does the {one} {v} have?",
                ],
            )
    for where, said, c in list(conditions(t, r)) + list(conditions(t, r)):
        yield (
            "filter_" + ("text" if c.kind == "cat" else "number"),
            f"SELECT {k.name} FROM {many} WHERE {where}",
            [
                f"What are the {pl(k.say)} of the {many} {said}?",
                f"List the {pl(k.say)} of all {many} {said}.",
                f"Show the {k.say} of every {one} {said}."
                if t.who not in said
                else f"Find the {many} {said}.",
                f"Give me the {pl(k.say)} of {many} {said}.",
            ],
        )
    for c in nums:
        v = r.choice(sorted(set(c.data))[2:-2] or c.data)
        for op, w in ((">=", "at least"), ("<=", "at most")):
            yield (
                "filter_number",
                f"SELECT {k.name} FROM {many} WHERE {c.name} {op} {v}",
                [
                    f"Which {many} have {art(c.say)} of {w} {v}?",
                    f"Find the {many} with {art(c.say)} of {w} {v}.",
                    f"List the {pl(k.say)} of all {many} whose {c.say} is {w} {v}.",
                ],
            )
        for desc, way in (
            ("", f"from the {c.low} to the {c.top}"),
            (" DESC", f"from the {c.top} to the {c.low}"),
        ):
            yield (
                "order",
                f"SELECT {k.name} FROM {many} ORDER BY {c.name}{desc}",
                [
                    f"List the {pl(k.say)} of all {many} ordered by {c.say} {way}.",
                    f"Show the {pl(k.say)} of the {many}, sorted by {c.say} {way}.",
                    f"What are the {pl(k.say)} of the {many}, {way} {c.say}?",
                ],
            )
        for i, desc in ((0, " DESC"), (1, "")):
            yield (
                "top_one",
                f"SELECT {k.name} FROM {many} ORDER BY {c.name}{desc} LIMIT 1",
                [
                    f"What is the {k.say} of {c.most[i]}?",
                    f"Find the {k.say} of {c.most[i]}.",
                    f"Which {one} has the {(c.top, c.low)[i]} {c.say}?",
                    f"Tell me the {k.say} of {c.most[i]}.",
                ],
            )


def medium(t, r):
    """One table, grouping or two clauses."""
    many, k = t.name, t.key
    nums, by_number = cols_of(t, "num", "sum"), cols_of(t, "num", "sum", "year")
    for c in cols_of(t, "cat"):
        counts = sorted(set(map(c.data.count, c.data)))
        yield (
            "group_count",
            f"SELECT {c.name}, COUNT(*) FROM {many} GROUP BY {c.name}",
            [
                f"How many {many} are there for each {c.say}?",
                f"Show each {c.say} with its number of {many}.",
                f"For every {c.say}, count the {many}.",
            ],
        )
        for desc, w in ((" DESC", "most"), ("", "fewest")):
            yield (
                "group_top",
                f"SELECT {c.name} FROM {many} GROUP BY {c.name} ORDER BY COUNT(*){desc} LIMIT 1",
                [
                    f"Which {c.say} has the {w} {many}?",
                    f"What is the {c.say} with the {w} {many}?",
                    f"Name the {c.say} with the {w} {many}.",
                ],
            )
        for n in counts[:-1]:
            yield (
                "having",
                f"SELECT {c.name} FROM {many} GROUP BY {c.name} HAVING COUNT(*) > {n}",
                [
                    f"Which {pl(c.say)} have more than {n} {many}?",
                    f"Give me the {pl(c.say)} that have more than {n} {many}.",
                    f"List every {c.say} with more than {n} {many}.",
                ],
            )
        for g in nums:
            for f, w in (("AVG", "average"), ("MAX", g.top), ("MIN", g.low), ("SUM", "total")):
                if f != "SUM" or g.kind == "sum":
                    yield (
                        "group_" + f.lower(),
                        f"SELECT {c.name}, {f}({g.name}) FROM {many} GROUP BY {c.name}",
                        [
                            f"What is the {w} {g.say} of the {many} for each {c.say}?",
                            f"Show each {c.say} and the {w} {g.say} of its {many}.",
                            f"For every {c.say}, find the {w} {g.say} of {many}.",
                        ],
                    )
    conds = list(conditions(t, r))
    for where, said, c in conds:
        for g in nums:
            if g is not c:
                f, w = r.choice(
                    [("AVG", "average"), ("MAX", g.top), ("MIN", g.low)]
                    + ([("SUM", "total")] if g.kind == "sum" else [])
                )
                yield (
                    "aggregate_where",
                    f"SELECT {f}({g.name}) FROM {many} WHERE {where}",
                    [
                        f"What is the {w} {g.say} of the {many} {said}?",
                        f"Find the {w} {g.say} of {many} {said}.",
                        f"Give me the {w} {g.say} among {many} {said}.",
                    ],
                )
    if not k:
        return
    for (where, said, c), (where2, said2, c2) in product(conds, conds):
        if c.kind == "cat" and c2.kind != "cat":
            yield (
                "filter_and",
                f"SELECT {k.name} FROM {many} WHERE {where} AND {where2}",
                [
                    f"What are the {pl(k.say)} of the {many} {said} {said2}?",
                    f"List the {many} {said} {said2}.",
                    f"Find the {pl(k.say)} of all {many} {said} {said2}.",
                ],
            )
    for c in cols_of(t, "cat"):
        a, b = r.sample(sorted(set(c.data)), 2)
        said = c.says[0].format(f"{a} or {b}")
        yield (
            "filter_or",
            f"SELECT {k.name} FROM {many} WHERE {c.name} = {quote(a)} OR {c.name} = {quote(b)}",
            [
                f"What are the {pl(k.say)} of the {many} {said}?",
                f"List the {pl(k.say)} of all {many} {said}.",
                f"Find the {pl(k.say)} of {many} {said}.",
            ],
        )
    for letter in sorted({v[0] for v in k.data}):
        yield (
            "starts_with",
            f"SELECT {k.name} FROM {many} WHERE {k.name} LIKE '{letter}%'",
            [
                f"Which {many} have a {k.say} that starts with {letter}?",
                f"List the {pl(k.say)} of the {many} whose {k.say} begins with the letter {letter}.",
                f"Find all {t.one} {pl(k.say)} starting with {letter}.",
            ],
        )
    for c in by_number:
        values = sorted(set(c.data))
        a, b = r.choice(values[1 : len(values) // 2]), r.choice(values[len(values) // 2 : -1])
        yield (
            "between",
            f"SELECT {k.name} FROM {many} WHERE {c.name} BETWEEN {a} AND {b}",
            [
                f"Which {many} have {art(c.say)} between {a} and {b}?",
                f"List the {pl(k.say)} of the {many} whose {c.say} is between {a} and {b}.",
                f"Find the {pl(k.say)} of all {many} with {art(c.say)} from {a} to {b}.",
            ],
        )
        n = r.choice([2, 3, 4, 5])
        for desc, w in ((" DESC", c.top), ("", c.low)):
            yield (
                "top_n",
                f"SELECT {k.name} FROM {many} ORDER BY {c.name}{desc} LIMIT {n}",
                [
                    f"What are the {pl(k.say)} of the {n} {many} with the {w} {c.say}?",
                    f"List the {n} {many} with the {w} {c.say}.",
                    f"Find the {pl(k.say)} of the top {n} {many} by {w} {c.say}.",
                ],
            )
        for where, said, c2 in conds:
            if c2.kind == "cat":
                yield (
                    "filter_order",
                    f"SELECT {k.name} FROM {many} WHERE {where} ORDER BY {c.name}",
                    [
                        f"List the {pl(k.say)} of the {many} {said}, ordered by {c.say}.",
                        f"What are the {pl(k.say)} of {many} {said}, "
                        f"sorted by {c.say} from {c.low} to {c.top}?",
                        f"Show the {many} {said} in order of {c.say}.",
                    ],
                )


def hard(t, r):
    """Joins along the table's foreign keys, nested queries and a few set operations."""
    many, one, k = t.name, t.one, t.key
    for c in cols_of(t, "num", "sum") if k else []:
        for op, w in ((">", "above"), ("<", "below")):
            average = f"(SELECT AVG({c.name}) FROM {many})"
            yield (
                "above_average",
                f"SELECT {k.name} FROM {many} WHERE {c.name} {op} {average}",
                [
                    f"Which {many} have {art(c.say)} {w} the average?",
                    f"List the {pl(k.say)} of the {many} whose {c.say} is {w} the average {c.say}.",
                    f"Find the {pl(k.say)} of all {many} with {art(c.say)} {w} the average.",
                ],
            )
    for c in cols_of(t, "cat") if k else []:
        v = r.choice(k.data)
        yield (
            "same_as",
            (
                f"SELECT {k.name} FROM {many} WHERE {c.name} = "
                f"(SELECT {c.name} FROM {many} WHERE {k.name} = {quote(v)})"
            ),
            [
                f"Which {many} have the same {c.say} as {v}?",
                f"List the {pl(k.say)} of the {many} with the same {c.say} as the {one} {v}.",
                f"Find all {many} that share the {c.say} of {v}.".replace("that", t.who),
            ],
        )
        for g in cols_of(t, "num", "sum", "year"):
            values = sorted(set(g.data))
            low, high = values[len(values) // 5], values[-len(values) // 5]
            for op, w in (("INTERSECT", "both {} and {}"), ("EXCEPT", "{} but no {}")):
                both = w.format(f"{many} {g.above.format(high)}", f"{many} {g.below.format(low)}")
                yield (
                    "set_operation",
                    (
                        f"SELECT {c.name} FROM {many} WHERE {g.name} > {high} {op} "
                        f"SELECT {c.name} FROM {many} WHERE {g.name} < {low}"
                    ),
                    [
                        f"Which {pl(c.say)} have {both}?",
                        f"Find the {pl(c.say)} with {both}.",
                        f"List every {c.say} that has {both}.",
                    ],
                )
    for fk in cols_of(t, "fk"):
        yield from joins(t, fk, r)
        for fk2 in fk.to.cols:  # a chain: child -> parent -> grandparent
            if fk2.kind == "fk":
                yield from three_tables(t, fk, fk.to, fk2, r)
        for fk2 in cols_of(t, "fk"):  # a star: two parents of one child
            if fk2 is not fk:
                yield from three_tables(t, fk, t, fk2, r)


def joins(t, fk, r):
    p, many, one, k = fk.to, t.name, t.one, t.key
    pk, join = p.key.name, f"FROM {t.name} JOIN {p.name} ON {t.name}.{fk.name} = {p.name}.id"
    name, group = f"{p.name}.{pk}", f"GROUP BY {p.name}.{pk}"
    v = r.choice(p.key.data)
    own = [(f"{name} = {quote(v)}", fk.of.format(f"the {p.one} {v}"))]
    own += [(w, fk.of.format(f"{p.name} {s}")) for w, s, c in conditions(p, r, p.name + ".")]
    for where, said in own:
        if k:
            yield (
                "join_filter",
                f"SELECT {many}.{k.name} {join} WHERE {where}",
                [
                    f"What are the {pl(k.say)} of the {many} {said}?",
                    f"List the {pl(k.say)} of all {many} {said}.",
                    f"Find the {many} {said}.",
                ],
            )
        yield (
            "join_count",
            f"SELECT COUNT(*) {join} WHERE {where}",
            [
                f"How many {many} {said} are there?",
                f"Count the {many} {said}.",
                f"What is the number of {many} {said}?",
            ],
        )
        for g in cols_of(t, "num", "sum"):
            yield (
                "join_aggregate",
                f"SELECT AVG({many}.{g.name}) {join} WHERE {where}",
                [
                    f"What is the average {g.say} of the {many} {said}?",
                    f"Find the mean {g.say} of {many} {said}.",
                    f"Give me the average {g.say} among the {many} {said}.",
                ],
            )
    if k:
        yield (
            "join_list",
            f"SELECT {many}.{k.name}, {name} {join}",
            [
                f"List the {k.say} of each {one} and the {p.key.say} of {t.its} {p.one}.",
                f"Show all {one} {pl(k.say)} together with the {p.key.say} of the {p.one}.",
                f"What are the {pl(k.say)} of all {many} and of their {p.name}?",
            ],
        )
        v = r.choice(k.data)
        for c in [p.key] + cols_of(p, "cat", "num", "year"):
            yield (
                "join_lookup",
                f"SELECT {p.name}.{c.name} {join} WHERE {many}.{k.name} = {quote(v)}",
                [
                    f"What is the {c.say} of the {p.one} of the {one} {v}?",
                    f"Find the {c.say} of the {p.one} of {v}.",
                    f"Look up the {one} {v} and show the {c.say} of {t.its} {p.one}.",
                ],
            )
    yield (
        "join_group",
        f"SELECT {name}, COUNT(*) {join} {group}",
        [
            f"What is the {pk} of each {p.one} and the number of {p.its} {many}?",
            f"For each {p.one}, show the {pk} and the number of {many}.",
            f"List the {p.one} {pl(pk)} with their number of {many}.",
        ],
    )
    yield (
        "join_top",
        f"SELECT {name} {join} {group} ORDER BY COUNT(*) DESC LIMIT 1",
        [
            f"Which {p.one} {fk.has} the most {many}?",
            f"What is the {pk} of the {p.one} {p.who} {fk.has} the most {many}?",
            f"Find the {p.one} with the largest number of {many}.",
        ],
    )
    for n in (2, 3, 4):
        yield (
            "join_having",
            f"SELECT {name} {join} {group} HAVING COUNT(*) > {n}",
            [
                f"Which {p.name} {fk.have} more than {n} {many}?",
                f"List the {p.name} with more than {n} {many}.",
                f"Find the {pl(pk)} of the {p.name} {p.who} {fk.have} more than {n} {many}.",
            ],
        )
    for g in cols_of(t, "num", "sum", "year"):
        for i, desc in ((0, " DESC"), (1, "")):
            yield (
                "join_most",
                f"SELECT {name} {join} ORDER BY {many}.{g.name}{desc} LIMIT 1",
                [
                    f"Which {p.one} {fk.has} {g.most[i]}?",
                    f"What is the {pk} of the {p.one} of {g.most[i]}?",
                    f"Find the {p.one} {p.who} {fk.has} {g.most[i]}.",
                ],
            )
    yield (
        "not_in",
        f"SELECT {pk} FROM {p.name} WHERE id NOT IN (SELECT {fk.name} FROM {many})",
        [
            f"Which {p.name} do not {fk.have} any {many}?",
            f"List the {pl(pk)} of the {p.name} without {many}.",
            f"Find the {p.name} {p.who} {fk.have} no {many}.",
        ],
    )
    for where, said, _ in conditions(t, r):
        yield (
            "nested_in",
            f"SELECT {pk} FROM {p.name} WHERE id IN (SELECT {fk.name} FROM {many} WHERE {where})",
            [
                f"Which {p.name} {fk.have} {many} {said}?",
                f"List the {pl(pk)} of the {p.name} {p.who} {fk.have} {many} {said}.",
                f"Find the {pl(pk)} of all {p.name} {p.who} {fk.have} {many} {said}.",
            ],
        )


def three_tables(t, fk, owner, fk2, r):
    """Chain (owner is the parent) or star (owner is the child itself)."""
    p, g = fk.to, fk2.to
    path = (
        f"FROM {t.name} JOIN {p.name} ON {t.name}.{fk.name} = {p.name}.id "
        f"JOIN {g.name} ON {owner.name}.{fk2.name} = {g.name}.id"
    )
    for v in r.sample(g.key.data, 4):
        where = f"WHERE {g.name}.{g.key.name} = {quote(v)}"
        far = fk2.of.format(f"the {g.one} {v}")
        if owner is t:
            yield (
                "three_tables",
                f"SELECT {p.name}.{p.key.name} {path} {where}",
                [
                    f"Which {p.name} {fk.have} {t.name} {far}?",
                    f"List the {pl(p.key.say)} of the {p.name} {p.who} {fk.have} {t.name} {far}.",
                    f"Find the {p.name} with {t.name} {far}.",
                ],
            )
        else:
            said = fk.of.format(f"{p.name} {far}")
            what = f"{t.name}.{t.key.name}" if t.key else "COUNT(*)"
            asks = (
                (f"What are the {pl(t.key.say)} of the", f"List the {pl(t.key.say)} of all", "Find the")
                if t.key
                else ("What is the number of", "Count the", "Find the number of")
            )
            yield (
                "three_tables",
                f"SELECT {what} {path} {where}",
                [f"{a} {t.name} {said}" + ("?" if a.startswith("What") else ".") for a in asks],
            )


# ---------------------------------------------------------------- choosing


def normal(text):
    return " ".join(re.sub(r"[^a-z0-9]+", " ", text.lower()).split())


def near_misses(query):
    """Plausible mistakes; a good question is one where they give another answer."""
    for a, b in (
        (" DESC", ""), (" > ", " < "), (" < ", " > "), (">=", ">"), ("<=", "<"), ("MAX(", "MIN("),
        ("MIN(", "MAX("), ("AVG(", "MAX("), ("SUM(", "MAX("), ("DISTINCT ", ""), (" OR ", " AND "),
        ("INTERSECT", "UNION"), ("EXCEPT", "UNION"), ("NOT IN", "IN"),
    ):  # fmt: skip
        yield query.replace(a, b)
    yield re.sub(r" ([<>]) (\d)", r" \1= \2", query)
    yield re.sub(r" ORDER BY (\S+) LIMIT", r" ORDER BY \1 DESC LIMIT", query)
    yield re.sub(r" ORDER BY .*", "", query)
    yield re.sub(r" WHERE .*?(?= ORDER|$)", "", query)
    yield re.sub(r" AND .*", "", query)
    yield re.sub(r"WHERE \S+ \S+ \S+ AND", "WHERE", query)


def answer(con, query):
    try:
        rows = con.execute(query).fetchall()
    except sqlite3.Error:
        return None
    return rows if "ORDER BY" in query else sorted(rows)


def sound(con, query):
    rows = answer(con, query)
    if (
        not rows
        or len(set(rows)) < len(rows)
        or any(v is None for row in rows for v in row)
        or rows == [(0,)]
    ):
        return False
    if "COUNT(*) FROM" in query and " GROUP " not in query and rows[0][0] < 2:
        return False
    tie = re.match(r"SELECT .*? FROM (.*) ORDER BY (\S+?)( DESC)?(?: LIMIT (\d+))?$", query)
    if tie:
        keys = answer(con, f"SELECT {tie[2]} FROM {tie[1]} ORDER BY {tie[2]}{tie[3] or ''}")
        keys = keys[: int(tie[4] or len(keys)) + 1]
        if len(set(keys)) < len(keys):
            return False
    return not any(q != query and answer(con, q) == rows for q in near_misses(query))


def choose(tables, con, level, n, r, seen):
    """n questions of one level, going round the kinds so that none dominates."""
    pools = {}
    for t in tables:
        for kind, query, asks in {"easy": easy, "medium": medium, "hard": hard}[level](t, r):
            pools.setdefault(kind, []).append((kind, query, asks))
    for pool in pools.values():
        r.shuffle(pool)
    order, picked = r.sample(sorted(pools), len(pools)), []
    while len(picked) < n and any(pools.values()):
        for kind in order:
            while pools[kind] and len(picked) < n:
                kind, query, asks = pools[kind].pop()
                question = cap(r.choice(asks).replace("  ", " "))
                if query not in seen and normal(question) not in seen and sound(con, query):
                    seen.update((query, normal(question)))
                    picked.append({"query": query, "question": question, "kind": kind, "level": level})
                    break
    assert len(picked) == n, (tables[0].name, level, len(picked))
    r.shuffle(picked)
    return picked


def build(out):
    """Write all below `out`; return {"train": [...], "dev": [...]} with kind and level of each question."""
    splits, entries, seen = {"train": [], "dev": []}, [], set()
    for db, tables in parse((Path(__file__).parent / "shop_domains.txt").read_text(encoding="utf-8")).items():
        r = random.Random(f"{SEED} {db}")
        con = make_database(out / "database" / db / f"{db}.sqlite", tables, r)
        entries.append(tables_entry(db, tables))
        for level, (train, dev, new) in QUOTA.items():
            train, dev = (0, new) if db in DEV_ONLY else (train, dev)
            for i, item in enumerate(choose(tables, con, level, train + dev, r, seen)):
                splits["train" if i < train else "dev"].append({"db_id": db, **item})
        con.close()
    names = {"train_spider.json": splits["train"], "dev.json": splits["dev"], "tables.json": entries}
    for name, items in names.items():
        items = [{k: v for k, v in item.items() if k not in ("kind", "level")} for item in items]
        text = "[\n" + ",\n".join(json.dumps(item) for item in items) + "\n]\n"
        (out / name).write_text(text, encoding="utf-8")
    return splits


if __name__ == "__main__":
    made = build(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "shop")
    for split, items in made.items():
        levels = {level: sum(i["level"] == level for i in items) for level in QUOTA}
        print(f"{split}: {len(items)} questions on {len({i['db_id'] for i in items})} databases, {levels}")
