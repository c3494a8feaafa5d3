"""Ranges, prefixes, exclusions, order and limit: a file, a file with dirty ids, and two kinds of source say what a
plain model says, in which a record is a dict and every question is asked of all of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import operator
import sqlite3
import tracemalloc
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given, strategies as st

import mmcache
from mmcache import (
    ClosedError,
    IterableSource,
    Schema,
    Selection,
    Snapshot,
    SQLiteSource,
    above,
    at_least,
    at_most,
    below,
    between,
    excluding,
    startswith,
)
from mmcache.query import parse_query
from mmcache.storage.overlay import Overlay

FIELDS = ("x", "n", "t", "j.s", "j.l[*]", "j.l", "id")
SCHEMA = Schema("items", index=FIELDS, json=("j",))
DDL = """
    PRAGMA synchronous = OFF;
    CREATE TABLE items ({}, x, n INTEGER, t TEXT COLLATE NOCASE, j JSON{});
    CREATE INDEX ix ON items (x); CREATE INDEX i_n ON items (n); CREATE INDEX it ON items (t);
"""
KEYS: dict[str, tuple[Any, Any, str, str]] = {
    "text": ("id", lambda i: {"id": f"k{i:04}"}, "id TEXT PRIMARY KEY", ""),
    "int": ("id", lambda i: {"id": i}, "id INTEGER PRIMARY KEY", ""),
    "pair": (
        ("id", "part"),
        lambda i: {"id": i % 3, "part": f"p{i}"},
        "id INTEGER, part TEXT",
        ", PRIMARY KEY (id, part)",
    ),
}
"""Kind of key -> its fields, those of record i, and the columns of a table. Part of the key is indexed, too."""

# --- the model --------------------------------------------------------------------------------------------------------


def carried(record, field):
    """The terms of a field: a list, for a path too."""
    name, _, rest = field.partition(".")
    value = record[name]
    if rest:
        value = value.get(rest.removesuffix("[*]")) if isinstance(value, dict) else None
    values = value if isinstance(value, list) else [value]
    return [None if isinstance(one, float) and math.isnan(one) else one for one in values]


def key_of(record):
    return (record["id"], record["part"]) if "part" in record else record["id"]


def key(term):
    return (0, 0) if term is None else (2, term.encode()) if isinstance(term, str) else (1, term)


def is_int(term):
    return isinstance(term, (int, float)) and math.isfinite(term) and term == int(term)


def same_kind(term, bound):
    return term is not None and isinstance(term, str) == isinstance(bound, str)


def plain(value):
    return value, lambda terms: value in terms


def ranged(make, compare):
    def build(*bounds):
        return make(*bounds), lambda terms: any(same_kind(t, bounds[0]) and compare(t, *bounds) for t in terms)

    return build


def ints(start, stop, step):
    wanted = range(start, stop, step)
    return wanted, lambda terms: any(is_int(t) and int(t) in wanted for t in terms)


def prefixed(text):
    return startswith(text), lambda terms: any(isinstance(t, str) and t[: len(text)] == text for t in terms)


def either(alternatives):
    return [one for one, _ in alternatives], lambda terms: any(holds(terms) for _, holds in alternatives)


def without(alternative):
    what, holds = alternative
    return excluding(what), lambda terms: not holds(terms)


def in_order(records, field, descending):
    best = max if descending else min
    some = [record for record in records if carried(record, field)]
    some.sort(key=lambda record: best(map(key, carried(record, field))), reverse=descending)
    return some + [record for record in records if not carried(record, field)]


# --- what is asked, of what -------------------------------------------------------------------------------------------

texts = st.sampled_from(
    ["", "a", "A", "ab", "aB", "b", "é", "z\U0010ffff", "\ud7ff", "5", "05", " 7", "-1x", "a\0b", "k0002"]
)
whole = st.sampled_from([0, 1, 2, 3, 5, 7, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)])
parts = st.sampled_from([0.5, 2.5, -0.0, 5.0, 2.0**53, 2.0**63, 2.0**64, 1e300, math.inf, -math.inf])
numbers = whole | parts
scalars = st.none() | numbers | texts
in_json = st.none() | st.booleans() | whole | st.sampled_from([0.5, 2.5, -0.0, 5.0, 2**63, 2.0**63, 1e300]) | texts

documents = st.none() | st.fixed_dictionaries({}, optional={"s": in_json, "l": in_json | st.lists(in_json, max_size=3)})
rows = st.fixed_dictionaries(
    {
        "x": scalars,
        "n": st.none() | whole | st.sampled_from([0.5, 2.5, "abc", "", "A"]),
        "t": st.none() | texts,
        "j": documents,
    }
)
WHOLE = {"x": 1, "n": 1, "t": "a", "j": {"s": "a", "l": ["a", 1]}}
"""A record with all fields, without which a path would be taken for misspelt."""

bounds = st.one_of(st.tuples(numbers, numbers), st.tuples(texts, texts))
one_bound = numbers | texts | st.sampled_from([2**70, -(2**70), 10**400, 2**63, True])
ranges = st.one_of(
    bounds.map(lambda pair: ranged(between, lambda t, low, high: low <= t <= high)(*pair)),
    one_bound.map(ranged(above, operator.gt)),
    one_bound.map(ranged(at_least, operator.ge)),
    one_bound.map(ranged(below, operator.lt)),
    one_bound.map(ranged(at_most, operator.le)),
    st.builds(ints, st.integers(-3, 6), st.integers(-3, 9) | st.just(2**70), st.sampled_from([1, 1, 2, 3, -1, -2])),
    st.sampled_from(["", "a", "A", "é", "z", "5", "a\0", "\ud7ff", "\U0010ffff"]).map(prefixed),
)
alternatives = ranges | (st.none() | numbers | texts | st.booleans()).map(plain)
wanted = alternatives | st.lists(alternatives, max_size=3).map(either)
wanted |= wanted.map(without)
questions = st.dictionaries(st.sampled_from(FIELDS), wanted, max_size=2)
orders = st.none() | st.tuples(st.sampled_from(FIELDS), st.booleans())
cuts = st.none() | st.integers(0, 8)


@st.composite
def changes(draw):
    """The kind of keys; records of the file, and those of the source now: some changed, gone or new; with the keys that
    differ."""
    kind = draw(st.sampled_from([*KEYS]))
    keyed = KEYS[kind][1]
    before = [WHOLE, *draw(st.lists(rows, max_size=12))]
    old = [{**keyed(i), **row} for i, row in enumerate(before)]
    now: list[Any] = list(old)
    dirty = set()
    for i in draw(st.lists(st.integers(1, max(1, len(old) - 1)), unique=True, max_size=3)):
        if i < len(old):
            dirty.add(key_of(old[i]))
            row = draw(st.none() | rows)
            now[i] = None if row is None else {**keyed(i), **row}
    new = [{**keyed(1000 + i), **row} for i, row in enumerate(draw(st.lists(rows, max_size=2)))]
    return kind, old, [record for record in now if record is not None] + new, dirty | set(map(key_of, new))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A function that gives a new path."""
    directory = tmp_path_factory.mktemp("ranges")
    counter = itertools.count()
    return lambda end: directory / f"{next(counter)}{end}"


def database(path, kind, records):
    _, _, columns, constraint = KEYS[kind]
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript(DDL.format(columns, constraint))
        given = [{**r, "j": None if r["j"] is None else json.dumps(r["j"])} for r in records]
        for record in given:
            marks = ", ".join("?" * len(record))
            db.execute(f"INSERT INTO items ({', '.join(record)}) VALUES ({marks})", list(record.values()))
    return SQLiteSource(path, SCHEMA)


def answer(records, question, order, cut):
    """By the model."""
    found = [r for r in records if all(holds(carried(r, field)) for field, (_, holds) in question.items())]
    if order is not None:
        found = in_order(found, *order)
    return found if cut is None else found[:cut]


def ask(find, question, order, cut):
    """The same of a tier."""
    found = find(parse_query(SCHEMA, {field: what for field, (what, _) in question.items()}, {}))
    assert len(found) == len(found.ids)
    if order is not None:
        found = found.order_by(order[0], descending=order[1])
    return found if cut is None else found.limit(cut)


def overlaid(old, now, dirty):
    """The records of a file with dirty ids: changed ones at their old place."""
    latest = {key_of(record): record for record in now}
    known = set(map(key_of, old))
    held = [latest.get(key_of(r)) if key_of(r) in dirty else r for r in old]
    return [r for r in held if r is not None] + [r for r in now if key_of(r) not in known]


def from_source(source):
    return lambda query: Selection.from_source(source.find("items", query), SCHEMA)


@given(changes(), st.lists(st.tuples(questions, orders, cuts), min_size=3, max_size=6))
def test_every_tier_answers_as_the_model_does(fresh, changed, asked):
    kind, old, now, dirty = changed
    schema = replace(SCHEMA, key=KEYS[kind][0])
    with contextlib.closing(database(fresh(".db"), kind, now)) as source:
        assert source.schemas == (schema,)
        path = fresh(".mmc")
        mmcache.build(path, IterableSource(old, schema))
        with Snapshot.open(path) as snapshot:
            snapshot.verify(deep=True)
            overlay = Overlay(snapshot.default, dirty, filter(None, source.fetch("items", sorted(dirty))))
            listed = IterableSource(now, schema)
            tiers = {
                "file": (snapshot.default.find, old),
                "dirty": (overlay.find, overlaid(old, now, dirty)),
                "sqlite": (from_source(source), now),
                "list": (from_source(listed), now),
            }
            for name, (find, records) in tiers.items():
                found = []
                for question, order, cut in asked:
                    ids = [key_of(record) for record in answer(records, question, order, cut)]
                    chosen = ask(find, question, order, cut)
                    assert chosen.ids == ids, (name, question, order, cut)
                    assert [record.id for record in chosen[1:3]] == ids[1:3]
                    found.append((chosen, ids, order))
                combine(found, [key_of(record) for record in records], is_file=name in ("file", "dirty"))
                for field in FIELDS:
                    if name in {"file", "dirty"}:
                        held = snapshot.default if name == "file" else overlay
                        counts: dict[Any, int] = {}
                        for record in records:
                            for term in dict.fromkeys(carried(record, field)):
                                counts[term] = counts.get(term, 0) + 1
                        assert list(held.terms(field).items()) == sorted(counts.items(), key=lambda one: key(one[0]))


def combine(found, everything, *, is_file):
    """Set operations go by key; what was ordered on the left keeps its order."""
    for (a, mine, order), (b, theirs, _) in itertools.pairwise(found):
        both = {
            operator.or_: mine + [one for one in theirs if one not in mine],
            operator.and_: [one for one in mine if one in theirs],
            operator.sub: [one for one in mine if one not in theirs],
        }
        for operation, ids in both.items():
            result = operation(a, b)
            if is_file and order is None:
                ids = sorted(ids, key=everything.index)
            if order is None or mine:
                assert result.ids == ids, (operation, mine, theirs)


# --- many records, of which each way to put them into order has its share ---------------------------------------------

MANY = 6000
MANY_SCHEMA = Schema("items", index=("unique", "year", "tags", "kind", "run"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Records of a file, and a file with some dirty ids; their models."""
    random = Random(7)

    def record(i):
        tags = random.choices([*range(40), "a", "b", 2.5], k=random.randrange(4))
        kind = "rare" if i % 500 == 0 else random.choice("xyz")
        fields = {"unique": random.randrange(10**6), "year": random.randrange(60), "tags": tags, "kind": kind}
        return {"id": f"k{i:05}", "run": i // 300, **fields}

    old = [record(i) for i in range(MANY)]
    dirty = {f"k{i:05}" for i in random.sample(range(MANY), 40)}
    now = [record(int(r["id"][1:])) if r["id"] in dirty else r for r in old if r["id"] != min(dirty)]
    now += [record(MANY + i) for i in range(5)]
    dirty |= {r["id"] for r in now[-5:]}
    path = tmp_path_factory.mktemp("many") / "i.mmc"
    mmcache.build(path, old, MANY_SCHEMA)
    with Snapshot.open(path) as snapshot:
        given = IterableSource(now, MANY_SCHEMA).fetch("items", sorted(dirty))
        overlay = Overlay(snapshot.default, dirty, filter(None, given))
        yield [(snapshot.default, old), (overlay, overlaid(old, now, dirty))]


@pytest.mark.parametrize("field", MANY_SCHEMA.index)
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    "question",
    [
        {},
        {"kind": plain("rare")},
        {"kind": plain("x")},
        {"tags": without(plain("a"))},
        {"year": ranged(between, lambda t, low, high: low <= t <= high)(10, 30)},
        {"tags": ranged(at_least, operator.ge)(30), "year": ints(0, 50, 1)},
        {"run": ranged(above, operator.gt)(14), "kind": without(plain("y"))},
        {"unique": ranged(below, operator.lt)(9000)},
    ],
    ids=["all", "rare", "third", "without", "range", "two ranges", "run", "few"],
)
def test_the_first_of_many_records_are_those_of_the_model(many, question, field, descending):
    query = parse_query(MANY_SCHEMA, {name: what for name, (what, _) in question.items()}, {})
    for tier, records in many:
        found = tier.find(query)
        expected = [r["id"] for r in answer(records, question, (field, descending), None)]
        assert len(found) == len(expected)
        for cut in (0, 1, 10, 33, 700, 1100, None):
            ordered = found.order_by(field, descending=descending)
            assert (ordered if cut is None else ordered.limit(cut)).ids == expected[:cut], cut
        assert found.order_by(field, descending=descending)[5:25].ids == expected[5:25]
        part = in_order(answer(records, question, None, None)[10:40], field, descending=False)
        assert found[10:40][::-1].order_by(field).ids == [r["id"] for r in part]


# --- whatever is dirty ------------------------------------------------------------------------------------------------

SOME = 1500
SOME_SCHEMA = Schema("items", index=("rank", "year", "tags", "kind"))
RANGES: dict[str, Any] = {
    "all": {},
    "range": {"rank": ranged(between, lambda t, low, high: low <= t <= high)(100, 1450)},
    "years": {"year": ranged(at_least, operator.ge)(5)},
    "texts": {"tags": prefixed("t")},
    "short": {"rank": ranged(between, lambda t, low, high: low <= t <= high)(3, 30)},
    "kind": {"kind": plain("b")},
}


def one_of_some(i, rank, random):
    tags = random.choices([3, None, *(f"t{n}" for n in range(9))], k=random.randrange(3))
    return {"id": f"k{i:04}", "rank": rank, "year": rank % 21, "tags": tags, "kind": random.choice("ab")}


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    """Records, and the snapshot of their file. Of rank and year each one has one, of tags some have none or several."""
    random = Random(11)
    records = [one_of_some(i, rank, random) for i, rank in enumerate(random.sample(range(SOME), SOME))]
    path = tmp_path_factory.mktemp("some") / "i.mmc"
    mmcache.build(path, records, SOME_SCHEMA)
    with Snapshot.open(path) as snapshot:
        yield records, snapshot.default


def changed(records, dirty):
    """The records of the file, of the source, and the dirty keys: one of the numbers of `DIRTY` tells what is dirty."""
    random = Random(dirty)
    by_rank = sorted(records, key=lambda one: one["rank"])
    chosen = {
        "new": [],
        "first": by_rank[:1],
        "ends": by_rank[:40] + by_rank[-40:],
        "range": by_rank[90:130],
        "many": random.sample(records, 700),
        "all": records,
    }[dirty.partition(", ")[0]]
    keys = {one["id"] for one in chosen}
    now = {one["id"]: one for one in records}
    for i, one in enumerate(chosen):
        if dirty.endswith("gone") or i % 3 == 2:
            del now[one["id"]]
        else:  # of the ranks of others, so that there are ties
            now[one["id"]] = one_of_some(int(one["id"][1:]), random.randrange(SOME), random)
    if not dirty.endswith("gone"):
        more = [one_of_some(SOME + i, i * 180 + 2, random) for i in range(8)]
        now |= {one["id"]: one for one in more}
        keys |= {one["id"] for one in more}
    return list(now.values()), keys


@pytest.mark.parametrize(
    "dirty", ["new", "first", "first, gone", "ends", "ends, gone", "range", "many", "all", "all, gone"]
)
def test_the_first_records_are_those_of_the_model_whatever_is_dirty(some, dirty):
    records, file = some
    now, keys = changed(records, dirty)
    overlay = Overlay(file, keys, filter(None, IterableSource(now, SOME_SCHEMA).fetch("items", sorted(keys))))
    held = overlaid(records, now, keys)
    for name, question in RANGES.items():
        query = parse_query(SOME_SCHEMA, {field: what for field, (what, _) in question.items()}, {})
        expected = answer(held, question, None, None)
        for field, descending in itertools.product(("rank", "year", "tags"), (False, True)):
            ids = [one["id"] for one in in_order(expected, field, descending=descending)]
            for cut in (0, 1, 10, 16, 100, 1100, SOME + 10):
                found = overlay.find(query).order_by(field, descending=descending).limit(cut)
                assert found.ids == ids[:cut], (name, field, descending, cut)
            whole = overlay.find(query).order_by(field, descending=descending)
            assert len(whole) == len(ids)
            assert whole.ids == ids, (name, field, descending)
            assert [record.asdict() for record in whole[3:6]] == [now_of(held, one) for one in ids[3:6]]
        assert overlay.find(query).ids == [one["id"] for one in expected]


def now_of(records, key):
    return next(one for one in records if one["id"] == key)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("count", [1, 100, 2000])
@pytest.mark.parametrize("terms", [{}, {"n": between(1000, 90_000)}], ids=["all", "range"])
def test_a_page_of_a_large_answer_takes_memory_for_few_rows(large, count, terms, descending):
    """The rows of an answer are 4 bytes each, and a mask of all rows takes a byte for each."""
    file, overlays = large
    overlay, query = overlays[count], parse_query(file.schema, terms, {})

    def page():
        return overlay.find(query).order_by("n", descending=descending).limit(10)

    first = page()
    tracemalloc.start()
    try:
        again = page()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(first.ids) == 10
    assert again.ids == first.ids
    assert peak < LARGE // 4 + 100 * count


LARGE = 200_000


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "i.mmc"
    mmcache.build(path, ({"id": i, "n": i * 7919 % 100_003} for i in range(LARGE)), Schema("items", index=("n",)))
    with Snapshot.open(path) as snapshot:
        overlays = {}
        for count in (1, 100, 2000):
            keys = range(0, LARGE, LARGE // count)
            given = [mmcache.SourceRecord(("id", "n"), [i, i % 100_003], None) for i in keys]
            overlays[count] = Overlay(snapshot.default, keys, given)
        yield snapshot.default, overlays


def test_a_range_that_was_not_counted_is_refused_after_its_file_is_closed(tmp_path):
    mmcache.build(tmp_path / "i.mmc", [{"id": i, "n": i} for i in range(50)], Schema("items", index=("n",)))
    snapshot = Snapshot.open(tmp_path / "i.mmc")
    overlay = Overlay(snapshot.default, [3], [])
    query = parse_query(snapshot.schema, {"n": between(2, 40)}, {})
    counted = overlay.find(query)
    assert len(counted) == 38
    lazy = snapshot.where(n=between(2, 40))
    remembered = overlay.find(parse_query(snapshot.schema, {"n": between(2, 41)}, {}))
    snapshot.close()
    assert len(counted) == 38
    assert len(remembered) == len(remembered.rows) == 39
    from_the_file = [lambda one: one.ids, lambda one: one.order_by("n").limit(3)]
    for one, asked in ((lazy, [len, lambda one: one.rows, *from_the_file]), (remembered, from_the_file)):
        for ask_for in asked:
            with pytest.raises(ClosedError):
                ask_for(one)


# --- what cannot be asked ---------------------------------------------------------------------------------------------


NONE: Any = None
BYTES: Any = b"x"
NUMBER: Any = 5
LONG: Any = range(10**6)


@pytest.mark.parametrize(
    ("ask_for", "error", "reason"),
    [
        (lambda: between(1, "b"), TypeError, "a range is one of numbers or one of texts"),
        (lambda: between(NONE, 5), TypeError, "leave a range open by above, at_least, below or at_most"),
        (lambda: above(NONE), TypeError, "ask for None by itself"),
        (lambda: at_least(math.nan), ValueError, "NaN cannot bound a range"),
        (lambda: above(Decimal(5)), TypeError, r"Decimal\('5'\) cannot bound a range: records hold a Decimal as text"),  # type: ignore[arg-type]
        (lambda: between(timedelta(1), timedelta(2)), TypeError, "hold a timedelta as text"),  # type: ignore[arg-type]
        (lambda: between(1, math.nan), ValueError, "NaN cannot bound a range, as no number"),
        (lambda: below(BYTES), TypeError, "a bound is a number or a text, not b'x' of type bytes"),
        (lambda: startswith(NUMBER), TypeError, "takes a text, not 5"),
        (lambda: excluding(excluding(1)), TypeError, "ask for the values themselves"),
        (lambda: excluding({"a": 1}), TypeError, "an indexed value is"),
        (lambda: excluding([[LONG]]), TypeError, "is of type list; an indexed value is"),
        (lambda: above(LONG), TypeError, "a bound is a number or a text, not range"),
        (lambda: startswith(LONG), TypeError, "takes a text, not range"),
    ],
)
def test_a_range_that_says_nothing_is_refused_with_what_to_do(ask_for, error, reason):
    with pytest.raises(error, match=reason):
        ask_for()


def test_a_range_where_none_may_stand_is_not_walked_through():
    for ask_for in (lambda: excluding([[LONG]]), lambda: above(LONG), lambda: startswith(LONG)):
        tracemalloc.start()
        try:
            with pytest.raises(TypeError):
                ask_for()
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


@pytest.fixture
def file(tmp_path):
    records = [{"id": f"k{i:03}", "n": i % 7, "tags": ["a", i], "deep": {"n": i}, "e": None} for i in range(300)]
    mmcache.build(tmp_path / "i.mmc", records, Schema("items", index=("n", "tags", "e")))
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        yield snapshot


def test_an_order_by_a_field_without_an_index_reads_the_records(file):
    assert file.where(n=3).order_by("deep.n", descending=True).limit(2).ids == ["k297", "k290"]
    with pytest.raises(ValueError, match="no record has a field 'nope' to be ordered by; there are: n, tags, e, id"):
        file.where(n=3).order_by("nope")


def test_a_limit_is_a_number_that_is_not_negative(file):
    with pytest.raises(ValueError, match="0 or more"):
        file.where(n=3).limit(-1)
    with pytest.raises(TypeError):
        file.where(n=3).limit("2")
    assert len(file.where(n=3).limit(10**30)) == 43
    assert file.where(n=3).order_by("n").limit(0).ids == []


def test_predicates_are_values(file):
    import pickle

    for one in (between(1, 2), above(1), at_least("a"), below(2.5), at_most(3), startswith("x"), excluding([1, "a"])):
        assert pickle.loads(pickle.dumps(one)) == one
        assert len({one, pickle.loads(pickle.dumps(one))}) == 1
        assert eval(repr(one)) == one
    assert file.where({"n": above(5)}).ids == file.where(n=[6, above(6)]).ids


def test_of_several_ranges_and_many_rows_each_row_comes_once(file):
    found = file.where(tags=[range(250), "a", at_least(200)])
    assert len(found) == 300
    assert found.ids == list(file)
    assert file.where(tags=range(0, 300, 100)).ids == ["k000", "k100", "k200"]
    assert [record["n"] for record in file.where().order_by("n")] == sorted(i % 7 for i in range(300))
    assert file.where().order_by("n", descending=True).ids[:2] == ["k006", "k013"]
    assert file.where(e=excluding(None)).ids == []
