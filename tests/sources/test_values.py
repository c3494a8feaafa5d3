"""The rule for values: what stands in a record for each value of Python, alike in both tiers, or why none can."""

from __future__ import annotations

import array
import collections
import contextlib
import dataclasses
import datetime as dt
import enum
import fractions
import itertools
import sqlite3
import subprocess
import sys
import types
import uuid
import zoneinfo
from decimal import Decimal
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, strategies as st

import mmcache
from mmcache import BuildError, IterableSource, Schema, Snapshot, SourceError
from mmcache.values import MAX_DEPTH, PLAIN, Values

plain = Values()
ZURICH = zoneinfo.ZoneInfo("Europe/Zurich")
DAY = dt.datetime.fromisoformat("2026-01-31 23:59:59")


class Colour(enum.Enum):
    RED = "red"
    DAY = dt.date(2026, 1, 31)


class Number(enum.IntEnum):
    ONE = 1


class Word(str):
    __slots__ = ()


@dataclasses.dataclass
class Point:
    x: int
    at: dt.date | None = None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (DAY, "2026-01-31 23:59:59"),
        (DAY.replace(microsecond=5), "2026-01-31 23:59:59.000005"),
        (DAY.replace(tzinfo=dt.UTC), "2026-01-31 23:59:59+00:00"),
        (DAY.replace(tzinfo=ZURICH), "2026-01-31 23:59:59+01:00"),
        (dt.datetime(1800, 1, 1, tzinfo=ZURICH), "1799-12-31 23:25:52+00:00"),
        (DAY.replace(tzinfo=dt.timezone(dt.timedelta(hours=20))), "2026-01-31 03:59:59+00:00"),
        (DAY.date(), "2026-01-31"),
        (DAY.time(), "23:59:59"),
        (dt.time(1, tzinfo=dt.timezone(dt.timedelta(hours=-3))), "01:00:00-03:00"),
        (dt.timedelta(0), "PT0S"),
        (dt.timedelta(days=1, hours=12, microseconds=5), "P1DT12H0.000005S"),
        (dt.timedelta(seconds=-1), "-PT1S"),
        (Decimal("1.10"), "1.10"),
        (Decimal("0E-8"), "0.00000000"),
        (Decimal("1E+3"), "1E+3"),
        (Decimal("1E-1000000"), "1E-1000000"),
        (Decimal(5), "5"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        (Colour.DAY, "2026-01-31"),
        (Number.ONE, 1),
        (Word("word"), "word"),
        (bytearray(b"a"), b"a"),
        (memoryview(b"abc")[1:], b"bc"),
        ((1, (2,)), [1, [2]]),
        (collections.deque([1]), [1]),
        (range(3), [0, 1, 2]),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        ({None, 1, "a"}, [None, 1, "a"]),
        ({Colour.DAY, Colour.RED}, ["2026-01-31", "red"]),
        (collections.OrderedDict(a=DAY.date()), {"a": "2026-01-31"}),
        ({DAY.date(): Colour.RED, 1: 2}, {"2026-01-31": "red", 1: 2}),
        (Point(1, DAY.date()), {"x": 1, "at": "2026-01-31"}),
        ([{"a": [DAY.date()]}], [{"a": ["2026-01-31"]}]),
        (np.int8(1), 1),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float32(0.1), 0.10000000149011612),
        (np.float64(0.1), 0.1),
        (np.longdouble(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("text"), "text"),
        (np.bytes_(b"a"), b"a"),
        (np.array([[1, 2], [3, 4]], "i1"), [[1, 2], [3, 4]]),
        (np.array(["2026-01-31", "NaT"], "M8[D]"), ["2026-01-31", None]),
        (np.datetime64("2026-01-31T23:59:59.000000001"), "2026-01-31 23:59:59.000000001"),
        (np.datetime64("2026"), "2026-01-01"),
        (np.timedelta64(90, "m"), "PT1H30M"),
        (np.timedelta64(-5, "M"), "P-5M"),
        (np.ma.array([1, 2], mask=[False, True]), [1, None]),
        (np.array([Decimal("1.0"), DAY.date()], object), ["1.0", "2026-01-31"]),
        (msgpack.Timestamp(5, 6), msgpack.Timestamp(5, 6)),
    ],
)
def test_each_value_has_one_form(value, expected):
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)
    assert plain([{"a": value}]) == [{"a": expected}]


def test_missing_values_of_pandas_are_null():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    assert plain([pandas.NaT, pandas.NA]) == [None, None]
    assert plain(pandas.Timestamp(1, unit="ns", tz="UTC")) == "1970-01-01 00:00:00.000000001+00:00"
    assert plain(pandas.Timedelta(-1, unit="ns")) == "-PT0.000000001S"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (object(), "a record cannot hold a value of type object; convert it"),
        (object, "a value of type type"),
        (1j, "a value of type complex"),
        (fractions.Fraction(1, 2), "fractions.Fraction"),
        (iter([]), "list_iterator"),
        (np.complex64(1), "a numpy value of dtype complex64"),
        (np.longdouble("0.1"), "a float128 that float64 cannot represent exactly"),
        (np.datetime64("12000-01-01"), "beyond the years 1 to 9999"),
        (np.datetime64(1, "ps"), r"a datetime64\[ps\], with more digits than nanoseconds"),
        (dt.time(1, tzinfo=ZURICH), "a zone whose offset depends on the date"),
        (dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=20))), "has no date in UTC"),
        (memoryview(array.array("d", [0.0])), "a memoryview of format 'd'"),
        (memoryview(array.array("b", [-1])), "a memoryview of format 'b'"),
        ({(1, 2): 3}, r"a map has the key \(1, 2\)"),
        ({Colour.RED: 1, "red": 2}, "two keys of a map become one"),
    ],
)
def test_a_value_without_an_exact_form_is_refused(value, reason):
    for wrapped in (value, [value], {"a": (value,)}):
        with pytest.raises(ValueError, match=reason):
            plain(wrapped)


def nested(levels):
    value: object = 1
    for i in range(levels):
        value = [value] if i % 2 else {"a": value}
    return value


def test_a_record_nests_at_most_100_levels(tmp_path):
    """Itself is the first of them."""
    mmcache.build(tmp_path / "i.mmc", [{"id": "a", "x": nested(MAX_DEPTH - 1)}], Schema("items"))
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        assert snapshot["a"]["x"] == nested(MAX_DEPTH - 1)
    endless: list[object] = []
    endless.append(endless)
    for value in (nested(MAX_DEPTH), nested(5000), endless):
        with pytest.raises(BuildError, match="key 'a': record 0: field 'x': lists and maps nest more than 100 levels"):
            mmcache.build(tmp_path / "i.mmc", [{"id": "a", "x": value}], Schema("items"))


def test_plain_values_are_not_copied():
    values = ("a", 1, 0.5, None, True, b"x")
    assert plain.row(("id", *"abcde"), values) is values
    value = {"a": [1, {"b": "c"}]}
    source = IterableSource([{"id": "a", "x": value}], Schema("items"))
    (record,) = source.records("items")
    assert record.values[1] is value


# --- records that are no dicts


def rows_of_sqlite():
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.row_factory = sqlite3.Row
        return db.execute("SELECT 'a' AS id, 1 AS n UNION ALL SELECT 'b', 2").fetchall()


@dataclasses.dataclass
class Item:
    id: str
    n: int


@pytest.mark.parametrize(
    "records",
    [
        rows_of_sqlite,
        lambda: [Item("a", 1), Item("b", 2)],
        lambda: [types.MappingProxyType({"id": "a", "n": 1}), {"n": np.int64(2), "id": np.str_("b")}],
    ],
    ids=["sqlite3.Row", "dataclass", "mappings"],
)
def test_records_are_mappings_rows_and_dataclasses(records):
    source = IterableSource(records(), Schema("items"))
    assert [dict(zip(one.names, one.values, strict=True)) for one in source.records("items")] == [
        {"id": "a", "n": 1},
        {"id": "b", "n": 2},
    ]


# --- default=


def text_of(value):
    return {"as": str(value)} if isinstance(value, fractions.Fraction) else NotImplemented


def test_a_default_makes_values_of_others():
    records = [{"id": "a", "x": [fractions.Fraction(1, 2)]}]
    for default, expected in ((text_of, {"as": "1/2"}), ("builtins:str", "1/2")):
        (record,) = IterableSource(records, Schema("items"), default=default).records("items")
        assert record.values == ("a", [expected])


def test_a_default_makes_mappings_of_records():
    records: Any = [5j]
    source = IterableSource(records, Schema("items"), default=lambda number: {"id": str(number)})
    (record,) = source.records("items")
    assert record.values == ("5j",)


def failing(value):
    raise KeyError(value)


@pytest.mark.parametrize(
    ("default", "reason"),
    [
        (failing, "default= of a complex raised KeyError: 1j"),
        (lambda value: value, "a value of type complex, and default= gives nothing else for it"),
        (lambda _: object(), "a value of type object, and default= gives nothing else for it"),
    ],
)
def test_a_default_that_does_not_help_is_an_error_of_the_record(default, reason):
    source = IterableSource([{"id": "a", "x": 1j}], Schema("items"), default=default)
    with pytest.raises(BuildError, match=f"key 'a': record 0: field 'x': .*{reason}"):
        list(source.records("items"))


@pytest.mark.parametrize("default", ["", "nowhere", "nowhere:f", "json:nothing", "json:__name__", ":f"])
def test_a_name_that_leads_nowhere_is_refused_at_once(default):
    with pytest.raises(ValueError, match="default="):
        IterableSource([], Schema("items"), default=default)


HOOK = """
import sys
print("imported", file=sys.stderr)

def text(scalar):
    return f"day {scalar.value}"
"""


def run(directory, *args):
    done = subprocess.run(
        [sys.executable, "-m", "mmcache", *args], cwd=directory, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_file_never_has_the_function_imported_that_it_names(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="the arrow extra is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the arrow extra is not installed")
    (tmp_path / "hook.py").write_text(HOOK)
    parquet.write_table(pa.table({"id": ["a"], "x": pa.array([2**31 - 1], pa.date32())}), tmp_path / "t.parquet")
    assert run(tmp_path, "build", "t.parquet", "--default", "hook:text", "-o", "i.mmc")[0] == 0
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        assert snapshot["a"]["x"] == "day 2147483647"
    code, said = run(tmp_path, "rebuild", "i.mmc")
    assert code == 1
    assert "use `mmcache rebuild FILE --default hook:text`" in said
    assert "imported\n" not in said
    assert run(tmp_path, "rebuild", "i.mmc", "--default", "hook:text")[0] == 0
    assert run(tmp_path, "build", "t.parquet", "--default", "hook:nothing", "-o", "i.mmc")[0] == 2


# --- both tiers

keys = st.text(max_size=3).filter(lambda text: text.isascii())
numbers = st.integers(-(2**63), 2**64 - 1)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.floats(),
    keys,
    st.binary(max_size=3),
    st.dates(),
    st.datetimes(timezones=st.none() | st.sampled_from([dt.UTC, ZURICH])),
    st.times(),
    st.timedeltas(),
    st.decimals(),
    st.uuids(),
    st.sampled_from(
        [*Colour, *Number, Word("a"), np.float32(0.1), np.int64(5), np.str_("s"), np.datetime64("NaT", "s")]
    ),
    st.builds(bytearray, st.binary(max_size=3)),
)


def can_be_hashed(value: object) -> bool:
    """A signaling NaN is none."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


hashable = scalars.filter(can_be_hashed)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(hashable, max_size=3),
        st.dictionaries(keys, inner, max_size=3),
        st.builds(Point, inner),
        st.lists(numbers.filter(lambda n: n < 2**63), max_size=3).map(lambda some: np.array(some, "i8")),
    ),
    max_leaves=6,
)


def same(one, other):
    """Equal, with NaN, -0.0 and types told apart."""
    return repr(one) == repr(other)


def is_plain(value):
    if type(value) is dict:
        return all(type(key) in PLAIN and is_plain(item) for key, item in value.items())
    return all(map(is_plain, value)) if type(value) is list else type(value) in PLAIN


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    directory, counter = tmp_path_factory.mktemp("values"), itertools.count()
    return lambda: directory / f"{next(counter)}.mmc"


@given(st.lists(st.dictionaries(st.sampled_from("xyz"), values, max_size=3), max_size=4))
def test_file_and_source_give_equal_records(fresh, found):
    path = fresh()
    records = [{"id": str(i), **fields} for i, fields in enumerate(found)]
    source = IterableSource(records, Schema("items"))
    mmcache.build(path, source)
    with Snapshot.open(path) as snapshot, mmcache.open(fresh(), source, build=False) as cache:
        for record in records:
            one, other = snapshot[record["id"]].asdict(), cache[record["id"]].asdict()
            assert same(one, other)
            assert all(map(is_plain, one.values()))


@given(st.lists(st.dates() | st.datetimes() | st.uuids() | st.sampled_from(Colour) | st.frozensets(keys), max_size=6))
def test_file_and_source_find_the_same_by_converted_values(fresh, found):
    path = fresh()
    source = IterableSource(
        [{"id": str(i), "x": value} for i, value in enumerate(found)], Schema("items", index=("x",))
    )
    mmcache.build(path, source)
    with Snapshot.open(path) as snapshot:
        for value in found:
            wanted = plain(value)
            ids = [
                record.values[0]
                for record in source.find("items", {"x": tuple(wanted) if type(wanted) is list else (wanted,)})
            ]
            assert ids == snapshot.where(x=wanted).ids


@given(st.datetimes(timezones=st.none() | st.timezones()))
def test_sqlite_and_python_read_moments_as_they_were_meant(moment):
    text = plain(moment)
    read = dt.datetime.fromisoformat(text)
    assert read.tzinfo is None if moment.tzinfo is None else read == moment.astimezone(dt.UTC)
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        (seen,) = db.execute("SELECT datetime(?)", (text,)).fetchone()
    utc = read if read.tzinfo is None else read.astimezone(dt.UTC).replace(tzinfo=None)
    assert seen == utc.isoformat(" ", "seconds") or abs(dt.datetime.fromisoformat(seen) - utc) < dt.timedelta(seconds=1)


@given(st.decimals())
def test_decimals_come_back_as_they_were(value):
    found = Decimal(plain(value))
    assert found.as_tuple() == value.as_tuple()


def test_lookups_of_a_source_refuse_what_a_build_does():
    source = IterableSource([{"id": "a", "x": 1j}], Schema("items"))
    with pytest.raises(SourceError, match="a record cannot hold a value of type complex"):
        source.fetch("items", ["a"])
