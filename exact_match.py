"""EM, the exact set match of Yu et al. 2018 (Spider): two queries agree clause by clause, values left out.

    exact_match("SELECT name FROM pet WHERE age > 3 AND kind = 'cat'",
                "SELECT T1.name FROM pet AS T1 WHERE T1.kind = 'dog' AND T1.age > 7", None)     # True
    hardness("SELECT count(*) FROM pet")                                                        # "easy"

The semantics are those of Spider's official evaluator, as it is run by default (no values, no DISTINCT),
written anew over sqlglot's syntax tree. Aliases become tables; columns become table.column, and columns that
foreign keys connect become one. Then SELECT, the tables of FROM, and the conditions of WHERE are compared as
multisets; the AND and OR of WHERE as a set; GROUP BY, HAVING and ORDER BY in order; LIMIT by its presence;
UNION, INTERSECT and EXCEPT recursively; of ON nothing but its keywords (or, not, in, like).

Kept from the official code, though one may wonder, because published figures have it: a query nested in a
condition or in FROM must be equal as it stands (its lists in order, its DISTINCT, its columns not merged by
foreign keys); the right side of a comparison is a value, whatever it is, unless it holds a query; two columns
that refer to the same key are one column (SourceAirport, DestAirport); ORDER BY has one direction, the last
that is written.

Different on purpose: an alias means the table that it names in its own query (officially, the last table of
that name in the whole text); SQL outside the official grammar, where the official verdict is "no match", is
compared too: `<>`, AS or no AS, INNER and outer joins, any expression, CASE, window functions, WITH, queries
in FROM.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass

import sqlglot
from sqlglot import exp

from verifier import sql_text
from verifier.sql_text import MAX_QUERY

logging.getLogger("sqlglot").setLevel(logging.CRITICAL)  # an answer that is not SQL is no news

# sqlglot is recursive, and answers are hostile: characters; parentheses inside each other, and queries of a
# set operation; units that are read
MAX_LENGTH, MAX_DEPTH, MAX_UNITS = 10_000, 40, 20_000
TOKEN = re.compile(rf"\d[\w.]*|{sql_text.TOKEN.pattern}")  # a number is one token, for it is one value
COMPARE = {"eq": "=", "neq": "!=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "in": "in", "like": "like",
           "between": "between", "is": "is", "exists": "exists", "glob": "glob"}  # fmt: skip
MIRROR = {"=": "=", "!=": "!=", ">": "<", "<": ">", ">=": "<=", "<=": ">="}
VALUE = "value"  # stands for every literal


@dataclass(frozen=True)
class Condition:
    """One comparison of WHERE, HAVING or ON."""

    negated: bool
    op: str
    unit: tuple | str  # the left side
    nested: tuple  # the queries (or expressions that hold one) on its right side; values are left out


@dataclass(frozen=True)
class Conditions:
    conditions: tuple[Condition, ...] = ()
    connectors: tuple[str, ...] = ()  # "and" or "or", in the order of the text


@dataclass(frozen=True)
class Clauses:
    """One SELECT, and what UNION, INTERSECT or EXCEPT combines it with.

    A unit is a column "table.column", "*", VALUE, another Clauses, or a tuple: an operator or function with
    its operands.
    """

    distinct: bool  # compared in nested queries alone
    select: tuple
    tables: tuple  # of FROM: names, Clauses, or (side, one of these) for an outer join
    on: Conditions
    where: Conditions
    group_by: tuple
    having: Conditions
    order_by: tuple
    direction: str  # of ORDER BY: the last one written, "" without ORDER BY
    limit: bool
    combined: tuple[str, Clauses] | None


def exact_match(gold: str, answer: str, tables: dict | None) -> bool:
    """Whether `answer` matches `gold`; False where it does not parse. `tables`: the entry of tables.json.

    Without `tables`, a column that does not name its table is known only where FROM has one table, and no
    columns are merged. A gold query that does not parse matches the answers that have its tokens, values left
    out. A text that is too long to run matches nothing but itself.
    """
    schema = Schema(tables)
    expected = clauses(gold, schema)
    if expected is None:
        return gold == answer or len(gold) <= MAX_QUERY >= len(answer) and tokens(gold) == tokens(answer)
    found = clauses(answer, schema)
    return found is not None and matches(expected, found)


def matches(a: Clauses, b: Clauses) -> bool:
    """The comparison at the top, and on both sides of a set operation; nested queries are compared by ==."""
    if (a.combined is None) != (b.combined is None):
        return False
    if a.combined and not (a.combined[0] == b.combined[0] and matches(a.combined[1], b.combined[1])):
        return False
    return (
        Counter(a.select) == Counter(b.select)
        and Counter(a.tables) == Counter(b.tables)
        and Counter(a.where.conditions) == Counter(b.where.conditions)
        and set(a.where.connectors) == set(b.where.connectors)
        and (a.group_by, a.having) == (b.group_by, b.having)
        and (a.order_by, a.direction, a.limit) == (b.order_by, b.direction, b.limit)
        and keywords(a) == keywords(b)
    )


def keywords(c: Clauses) -> set[str]:
    """or, not, in and like, wherever a condition stands. The other keywords follow from the clauses."""
    parts = (c.on, c.where, c.having)
    found = {x.op for part in parts for x in part.conditions if x.op in ("in", "like")}
    found |= {"not" for part in parts for x in part.conditions if x.negated}
    return found | {"or" for part in parts if "or" in part.connectors}


def hardness(gold: str) -> str:
    """easy, medium, hard or extra (also where the query does not parse), by what the query is made of."""
    c = clauses(gold, Schema(None))
    if c is None:
        return "extra"
    parts = (c.on, c.where, c.having)
    conditions = [x for part in parts for x in part.conditions]
    first = sum(map(bool, (c.where.conditions, c.group_by, c.order_by, c.limit))) + len(c.tables) - 1
    first += sum(part.connectors.count("or") for part in parts) + sum(x.op == "like" for x in conditions)
    nested = sum(len(x.nested) for x in conditions) + (c.combined is not None)
    # the official count of aggregates takes each NOT of a condition, and each connector of HAVING, for one
    aggregates = sum(map(has_aggregate, c.select)) + sum(
        has_aggregate(x) for unit in c.order_by for x in operands(unit)
    )
    aggregates += sum(x.negated for x in c.where.conditions + c.having.conditions) + len(c.having.connectors)
    others = (aggregates > 1) + (len(c.select) > 1) + (len(c.where.conditions) > 1) + (len(c.group_by) > 1)
    if nested == 0 and first <= 1 and others == 0:
        return "easy"
    if nested == 0 and (first <= 1 and others <= 2 or first <= 2 and others < 2):
        return "medium"
    if nested == 0 and (first <= 2 and others > 2 or first == 3 and others <= 2):
        return "hard"
    return "hard" if nested <= 1 and first <= 1 and others == 0 else "extra"


AGGREGATES = {"count", "sum", "avg", "min", "max"}


def operands(unit) -> tuple:
    return unit[1:] if isinstance(unit, tuple) and unit[0] in ("add", "sub", "mul", "div") else (unit,)


def has_aggregate(unit) -> bool:
    return isinstance(unit, tuple) and (unit[0] in AGGREGATES or any(map(has_aggregate, unit[1:])))


# --- text -> Clauses
# --------------------------------------------------------------------------------------------------


def tokens(query: str) -> list[str]:
    """The tokens in lower case; without values, white space, comments and the semicolon at the end."""
    found = [
        token.lower()
        for token in TOKEN.findall(query)
        if not token.isspace() and token[:2] not in ("--", "/*")
    ]
    found = [VALUE if token[0] in "'\"0123456789" else token for token in found]
    while found and found[-1] == ";":
        found.pop()
    return found


def clauses(query: str, schema: Schema) -> Clauses | None:
    """None where the text is not one query that can be read."""
    if len(query) > MAX_LENGTH:
        return None
    depth, schema.left = 0, MAX_UNITS
    for token in tokens(query):
        depth += (token == "(") - (token == ")")
        if depth > MAX_DEPTH:
            return None
    try:
        statements = [s for s in sqlglot.parse(re.sub(r"([<>!])\s+=", r"\1=", query), dialect="sqlite") if s]
        return read_query(statements[0], schema) if len(statements) == 1 else None
    except (
        sqlglot.errors.SqlglotError,
        RecursionError,
        ValueError,
        AttributeError,
        TypeError,
        KeyError,
        IndexError,
    ):
        return None  # sqlglot says "not SQL" in more than one way


class Schema:
    """Each table's columns; for each "table.column" the one that stands for all that foreign keys connect."""

    def __init__(self, tables: dict | None):
        self.columns: dict[str, set[str]] = {}
        self.same: dict[str, str] = {}
        self.left = MAX_UNITS
        if tables is None:
            return
        names = [name.lower() for name in tables["table_names_original"]]
        self.columns = {name: set() for name in names}
        ids = []
        for table, column in tables["column_names_original"]:
            ids.append(f"{names[table]}.{column.lower()}" if table >= 0 else "*")
            if table >= 0:
                self.columns[names[table]].add(column.lower())
        groups: list[set[int]] = []
        # as officially: a key joins the first group that it touches, and only that
        for pair in tables["foreign_keys"]:
            group = next((g for g in groups if g & set(pair)), None)
            if group is None:
                groups.append(group := set())
            group.update(pair)
        self.same = {ids[i]: ids[min(group)] for group in groups for i in group}

    def spend(self) -> None:
        """WITH and aliases are read where they are used, so a short text can be as long as it likes."""
        self.left -= 1
        if self.left < 0:
            raise ValueError("too large")


def read_query(node, schema, outer=None, ctes=None, nested=False) -> Clauses:
    """`outer`: the Scope of the query around this one; `nested` ones keep DISTINCT and their columns."""
    ctes, selects, operators = dict(ctes or {}), [], []
    stack: list[tuple] = [(node, ())]
    while stack:  # a UNION b EXCEPT c: a tree to the left in sqlglot, a chain to the right in Spider
        node, around = stack.pop()
        if isinstance(node, str):
            operators.append(node)
            continue
        if with_ := node.args.get("with_"):
            ctes |= {cte.alias.lower(): cte.this for cte in with_.expressions}
        if isinstance(node, exp.SetOperation):
            operator = node.key if node.args.get("distinct") is not False else node.key + " all"
            stack += [(node.expression, (*around, node)), (operator, ()), (node.this, ())]
        elif isinstance(node, exp.Select):
            selects.append((node, around))
        elif isinstance(node, exp.Subquery):
            stack.append((node.this, (*around, node)))
        else:
            raise ValueError(f"cannot read {node.key}")
        if len(selects) > MAX_DEPTH:
            raise ValueError("too many queries")
    scopes = []
    for select, _ in selects:
        scopes.append(Scope(select, schema, outer, ctes, nested, scopes[0].merged if scopes else None))
    result = None
    for scope, (select, around) in reversed(list(zip(scopes, selects))):
        result = scope.read(select, around, (operators.pop(), result) if result else None)
    return result


class Scope:
    """What the names of one SELECT mean."""

    def __init__(self, select, schema, outer, ctes, nested, merged):
        schema.spend()
        self.schema, self.outer, self.ctes, self.nested = schema, outer, ctes, nested
        self.sources: dict[str, str] = {}  # name or alias -> table, "" for a query
        self.tables, self.on = [], []
        self.aliases = {x.alias.lower(): x.this for x in select.expressions if isinstance(x, exp.Alias)}
        self.select = select.expressions
        if from_ := select.args.get("from_"):
            self.add(from_.this)
        self.add_joins(select)
        # official: columns merge where their table is in FROM, that of the first SELECT of a set operation
        self.merged = set(self.sources.values()) if merged is None else merged

    def add(self, node, side="") -> None:
        """A member of FROM: into `tables`, and what its columns are called by into `sources`."""
        name = node.name.lower()
        # parentheses around a join
        if isinstance(node, exp.Subquery) and not isinstance(node.this, exp.Query):
            self.add(node.this, side)
        elif isinstance(node, exp.Table) and isinstance(node.this, exp.Identifier) and name not in self.ctes:
            self.sources.setdefault(name, name)
            if node.alias:
                self.sources[node.alias.lower()] = name
            self.tables.append((side, name) if side else name)
        else:
            # WITH RECURSIVE: its own name is a table
            others = {k: v for k, v in self.ctes.items() if k != name}
            if isinstance(node, exp.Table) and name in self.ctes:
                table = read_query(self.ctes[name], self.schema, None, others, True)
            elif isinstance(node, exp.Subquery):
                table = read_query(node.this, self.schema, self.outer, self.ctes, True)
            else:
                table = self.unit(node)
            self.sources[(node.alias or name).lower()] = ""
            self.tables.append((side, table) if side else table)
        self.add_joins(node)

    def add_joins(self, node) -> None:
        for join in node.args.get("joins") or []:
            self.on += [join.args["on"]] if join.args.get("on") else []
            self.add(join.this, join.side.lower())

    def read(self, select, around, combined) -> Clauses:
        """`around`: set operations that end with this SELECT; their ORDER BY and LIMIT stand behind it."""

        def only(name):
            return [found.this] if (found := select.args.get(name)) else []

        def last(name):
            return next((found for node in (*around, select) if (found := node.args.get(name))), None)

        group, order = select.args.get("group"), last("order")
        ordered = order.expressions if order else []
        directions = [x.args["desc"] for x in ordered if x.args.get("desc") is not None] or [False]
        return Clauses(
            distinct=select.args.get("distinct") is not None,
            select=tuple(self.unit(x) for x in select.expressions),
            tables=tuple(self.tables),
            on=self.conditions(self.on),
            where=self.conditions(only("where")),
            group_by=tuple(self.named(x) for x in (group.expressions if group else [])),
            having=self.conditions(only("having")),
            order_by=tuple(self.named(x.this) for x in ordered),
            direction=("desc" if directions[-1] else "asc") if ordered else "",
            limit=last("limit") is not None,
            combined=combined,
        )

    def column(self, node) -> str:
        name, table = node.name.lower(), node.table.lower()
        if isinstance(node.this, exp.Star):
            name = "*"
        scope, found = self, None
        while scope is not None and found is None:
            if table:
                found = scope.sources.get(table)
            else:  # the first table of FROM that has it
                has = [t for t in scope.sources.values() if name in scope.schema.columns.get(t, ())]
                known = not has and len(set(scope.sources.values())) == 1 and scope.schema.columns == {}
                found = next(iter(has or (scope.sources.values() if known else ())), None)
            scope = scope.outer
        if (
            found is None
            and not table
            and node.this.quoted
            and self.schema.columns
            and "" not in self.sources.values()
        ):
            return VALUE  # "text" in double quotes
        full = f"{table if found is None else found}.{name}"
        return full if self.nested or found not in self.merged else self.schema.same.get(full, full)

    def named(self, node):
        """A unit of GROUP BY or ORDER BY, which may be the alias or the number of a selected one."""
        if isinstance(node, exp.Column) and not node.table and node.name.lower() in self.aliases:
            return self.unit(self.aliases[node.name.lower()])
        places = {str(i): x for i, x in enumerate(self.select, 1)}
        return self.unit(places.get(node.name, node) if isinstance(node, exp.Literal) else node)

    def unit(self, node):
        """An expression as nested tuples that are equal where the expressions are."""
        self.schema.spend()
        if isinstance(node, (exp.Paren, exp.Alias)):
            return self.unit(node.this)
        if isinstance(node, exp.Query):
            return read_query(node, self.schema, self, self.ctes, True)
        if isinstance(node, exp.Column):
            return self.column(node)
        if isinstance(node, exp.Star):
            return "*"
        if isinstance(node, (exp.Literal, exp.Null, exp.Boolean)):
            return VALUE
        if isinstance(node, exp.Neg) and isinstance(node.this, exp.Literal):
            return VALUE
        if isinstance(node, exp.Distinct) and not self.nested and len(node.expressions) == 1:
            return self.unit(node.expressions[0])
        if isinstance(node, exp.Expression):
            return (
                node.key,
                *(self.unit(x) for x in node.args.values() if x or isinstance(x, exp.Expression)),
            )
        if isinstance(node, list):
            return ("list", *map(self.unit, node))
        return node.lower() if isinstance(node, str) else str(node)

    def conditions(self, nodes) -> Conditions:
        """AND and OR taken apart, in the text's order; several nodes (of several ON) joined by AND."""
        found, connectors = [], []
        stack = [x for node in reversed(nodes) for x in (node, "and")][:-1]
        while stack:
            node = stack.pop()
            if isinstance(node, str):
                connectors.append(node)
            elif isinstance(node, (exp.And, exp.Or)):
                stack += [node.expression, node.key, node.this]
            elif isinstance(node, exp.Paren):
                stack.append(node.this)
            else:
                found.append(self.condition(node))
        return Conditions(tuple(found), tuple(connectors))

    def condition(self, node) -> Condition:
        negated = False
        while isinstance(node, (exp.Not, exp.Paren, exp.Escape)):
            negated ^= isinstance(node, exp.Not)
            node = node.this
        op = COMPARE.get(node.key)
        if op is None:
            return Condition(negated, "", self.unit(node), ())
        negated ^= bool(node.args.get("negate"))
        left = node.this
        right = [
            x
            for k, v in node.args.items()
            if k not in ("this", "negate")
            for x in (v if type(v) is list else [v])
        ]
        if isinstance(left, exp.Query) and op == "exists":
            left, right = exp.Star(), [left]
        elif op in MIRROR and isinstance(left, exp.Literal) and not isinstance(right[0], exp.Literal):
            op, left, right = MIRROR[op], right[0], [left]
        right = [x for x in right if isinstance(x, exp.Expression) and x.find(exp.Query)]
        return Condition(negated, op, self.unit(left), tuple(map(self.unit, right)))
