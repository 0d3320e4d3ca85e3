"""The bundled data set `shop`: its files are what make_shop.py writes, and they keep its promises."""

import importlib.util
import json
import random
import re
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parent.parent / "data"
SHOP = DATA / "shop"
FILES = ("train_spider.json", "dev.json", "tables.json")


def load(name):
    return json.loads((SHOP / name).read_text(encoding="utf-8"))


def connect(db, root=SHOP):
    return closing(sqlite3.connect(f"file:{root}/database/{db}/{db}.sqlite?mode=ro", uri=True))


def words(text):
    return " ".join(re.sub(r"[^a-z0-9]+", " ", text.lower()).split())


def query_key(item):
    return item["db_id"], " ".join(item["query"].lower().split())


TRAIN, DEV, TABLES = (load(name) for name in FILES)
DBS = [entry["db_id"] for entry in TABLES]


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_shop", DATA / "make_shop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(maker, tmp_path_factory):
    roots = [tmp_path_factory.mktemp("shop") for _ in range(2)]
    return roots, maker.build(roots[0]), maker.build(roots[1])


def test_rebuild_gives_the_committed_files(built):
    roots, first, second = built
    assert first == second
    for name in FILES:
        committed = (SHOP / name).read_bytes()
        assert all((root / name).read_bytes() == committed for root in roots), name
    for db in DBS:
        dumps = []
        for root in (SHOP, *roots):
            with connect(db, root) as con:
                dumps.append(list(con.iterdump()))
        assert dumps[0] == dumps[1] == dumps[2], db


def test_layout_and_sizes():
    assert all(set(item) == {"db_id", "query", "question"} for item in TRAIN + DEV)
    assert sorted(DBS) == sorted(p.name for p in (SHOP / "database").iterdir())
    assert len(DBS) == len(set(DBS)) >= 12
    assert 320 <= len(TRAIN) <= 400 and 160 <= len(DEV) <= 200
    files = [p for p in SHOP.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 600_000
    for p in (SHOP / "database").rglob("*"):
        # and no journal left behind
        assert p.is_dir() or (p.suffix == ".sqlite" and p.stat().st_size < 30_000), p


@pytest.mark.parametrize("entry", TABLES, ids=DBS)
def test_database(entry):
    with connect(entry["db_id"]) as con:
        tables = dict(con.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
        assert 2 <= len(tables) <= 3 and entry["table_names_original"] == list(tables) == entry["table_names"]
        # a tiny model has to read it: about 50 to 150 tokens
        assert 200 <= sum(map(len, tables.values())) <= 600
        assert con.execute("PRAGMA page_size").fetchone()[0] in (1024, 4096)
        assert con.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
        assert con.execute("PRAGMA foreign_key_check").fetchall() == []
        columns, primary, foreign = [[-1, "*"]], [], set()
        for i, t in enumerate(tables):
            info = con.execute(f"PRAGMA table_info({t})").fetchall()
            assert 3 <= len(info) <= 6 and re.fullmatch("[a-z_]+", t)
            primary += [len(columns) + c[0] for c in info if c[5]]
            columns += [[i, c[1]] for c in info]
            assert all(re.fullmatch("[a-z_]+", c[1]) for c in info)
            assert 15 <= con.execute(f"SELECT COUNT(*) FROM {t}").fetchone()[0] <= 40
        for i, t in enumerate(tables):
            for _, _, parent, child_column, parent_column, *_ in con.execute(f"PRAGMA foreign_key_list({t})"):
                parent_index = columns.index([list(tables).index(parent), parent_column])
                foreign.add((columns.index([i, child_column]), parent_index))
    assert entry["column_names_original"] == columns
    assert entry["column_names"] == [[i, name.replace("_", " ")] for i, name in columns]
    assert entry["primary_keys"] == primary and len(primary) == len(tables)
    assert {tuple(pair) for pair in entry["foreign_keys"]} == foreign and len(foreign) >= len(tables) - 1
    assert len(entry["column_types"]) == len(columns) and set(entry["column_types"]) == {"text", "number"}


def test_dev_is_held_out():
    train_dbs, dev_dbs = ({item["db_id"] for item in split} for split in (TRAIN, DEV))
    new = dev_dbs - train_dbs
    assert len(new) >= 3
    assert 0.4 <= sum(item["db_id"] in new for item in DEV) / len(DEV) <= 0.6
    for key in (query_key, lambda item: words(item["question"])):
        assert not {key(item) for item in TRAIN} & {key(item) for item in DEV}
        for split in (TRAIN, DEV):
            assert len({key(item) for item in split}) == len(split)


@pytest.mark.parametrize("db", DBS)
def test_gold_answers(db):
    items = [item for item in TRAIN + DEV if item["db_id"] == db]
    assert len(items) >= 20
    with connect(db) as con:
        for item in items:
            query = item["query"]
            rows = con.execute(query).fetchall()
            assert rows and all(value is not None for row in rows for value in row), query
            assert len(set(rows)) == len(rows), query
            ordered = re.match(r"SELECT .*? FROM (.*) ORDER BY (\S+)( DESC)?(?: LIMIT (\d+))?$", query)
            if ordered:  # no ties: neither inside the answer nor where LIMIT cuts it
                body, by, desc, limit = ordered.groups()
                keys = con.execute(f"SELECT {by} FROM {body} ORDER BY {by}{desc or ''}").fetchall()
                keys = keys[: int(limit) + 1] if limit else keys
                assert len(set(keys)) == len(keys), query


def test_near_misses_are_wrong(maker):
    """A flipped comparison, another aggregate or a forgotten clause never gives the gold answer."""
    tried = 0
    for item in TRAIN + DEV:
        with connect(item["db_id"]) as con:
            gold = maker.answer(con, item["query"])
            for query in set(maker.near_misses(item["query"])) - {item["query"]}:
                tried += 1
                assert maker.answer(con, query) != gold, (item, query)
    assert tried > len(TRAIN + DEV)


def test_gold_style():
    keyword = (
        r"\b(select|from|where|join|on|group by|order by|limit|having|count|avg|sum|min|max|and|or|not|in)\b"
    )
    for item in TRAIN + DEV:
        query = item["query"]
        assert query.startswith("SELECT ") and query == " ".join(query.split())
        assert ";" not in query and '"' not in query
        plain = re.sub(r"'[^']*'", "''", query)
        assert not re.search(keyword, plain), query
        assert " AS " not in plain and not re.search(r"\bT\d", plain)
        if " JOIN " in plain:  # qualified names without aliases
            select = plain.split(" FROM ")[0]
            assert "COUNT(*)" in select or "." in select, query


def test_questions_read_like_questions():
    for item in TRAIN + DEV:
        q = item["question"]
        assert q[0].isupper() and q[-1] in "?." and "{" not in q and "  " not in q, q
        assert not re.search(r"\ba [aeio]\w+\b|\ban [^aeiou8]|_|\b(\w+) \1\b", q), q
        assert (q[-1] == "?") == bool(re.match("What|Which|How|Who", q)), q
        assert 12 <= len(q) <= 160, q


def test_difficulty_and_phrasings(built):
    _, made, _ = built
    for split in ("train", "dev"):
        share = {k: n / len(made[split]) for k, n in Counter(i["level"] for i in made[split]).items()}
        assert abs(share["easy"] - 0.45) < 0.05 and abs(share["medium"] - 0.30) < 0.05
        assert abs(share["hard"] - 0.25) < 0.05
    starts, kinds = defaultdict(set), Counter()
    for item in made["train"] + made["dev"]:
        starts[item["kind"]].add(item["question"].split()[0])
        kinds[item["kind"]] += 1
    assert len(kinds) >= 30
    for kind, n in kinds.items():
        assert n < 6 or len(starts[kind]) >= 2, kind  # several ways to ask
    assert {i["kind"] for i in made["dev"]} <= {i["kind"] for i in made["train"]}


def test_every_template_has_three_phrasings(maker):
    tables = maker.parse((DATA / "shop_domains.txt").read_text(encoding="utf-8"))["hotel"]
    r, rows_of = random.Random(0), {}
    for t in tables:
        for c in t.cols:
            c.data = maker.column_values(c, r, rows_of)
        rows_of[t.name] = [None] * t.size
    for t in tables:
        for level in (maker.easy, maker.medium, maker.hard):
            for kind, _, asks in level(t, r):
                assert len(set(asks)) >= 3, (kind, asks)


def test_learnable():
    """The words of the query should mostly be in the question: tables, numbers and names literally."""
    hit = total = 0
    for item in TRAIN + DEV:
        q = words(item["question"])
        for literal in re.findall(r"'([^']*)'|[<>=] ([\d.]+)", item["query"]):
            total += 1
            hit += words((literal[0] or literal[1]).strip("%")) in q
    assert hit / total > 0.97
