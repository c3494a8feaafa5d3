"""A source of one's own gives values as Python has them: file and source then answer as of an iterable of the rows."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import BuildError, Invalid, Schema, SourceError, SourceRecord
from mmcache.query import Query, matcher

SCHEMA = Schema("items", index=("day", "kind", "n", "tags"), embedding="vector", dim=2)


class Kind(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@dataclasses.dataclass
class Point:
    x: int
    y: Decimal


def item(i: int) -> dict[str, Any]:
    return {
        "id": uuid.UUID(int=i),
        "day": dt.date(2024, 1, 1 + i),
        "kind": Kind.SMALL if i % 2 else Kind.LARGE,
        "n": np.int64(i),
        "tags": {Kind.SMALL, Kind.LARGE} if i else (),
        "price": Decimal("1.10"),
        "at": [dt.datetime(2024, 1, 1, tzinfo=dt.UTC), {"t": dt.time(3)}],
        "point": Point(i, Decimal(2)),
        "share": np.float32(0.5),
        "all": np.arange(3),
        "raw": bytearray(b"\x00"),
        "vector": np.array([i, 1], "f8"),
    }


class Own:
    """Records as they are, found by a look at each."""

    def __init__(self, *items: dict[str, Any], schema: Schema = SCHEMA) -> None:
        self.schemas = (schema.resolved(),)
        self.items = items

    def given(self) -> list[Any]:
        fields = [[name for name in one if name != "vector"] for one in self.items]
        return [
            SourceRecord(tuple(names), [one[name] for name in names], one.get("vector"))
            for names, one in zip(fields, self.items, strict=True)
        ]

    @contextmanager
    def read(self) -> Iterator[Own]:
        yield self

    def count(self, _: str) -> int:
        return len(self.items)

    def records(self, _: str) -> Iterator[Any]:
        return iter(self.given())

    def fetch(self, _: str, ids: Sequence[Any]) -> list[Any]:
        found = {str(row.values[0]): row for row in self.given()}
        return [found.get(key) for key in ids]

    def find(self, collection: str, query: Query) -> Iterator[Any]:
        answers = matcher(query)
        return (row for row in self.records(collection) if answers(row.names, row.values))

    def fingerprint(self) -> bytes:
        return bytes(32)

    def spec(self) -> None:
        return None


ITEMS = [item(i) for i in range(5)]

QUESTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "date": lambda: {"day": dt.date(2024, 1, 2)},
    "datetime64": lambda: {"day": np.datetime64("2024-01-02")},
    "dates": lambda: {"day": [dt.date(2024, 1, 2), dt.date(2024, 1, 4)]},
    "array of dates": lambda: {"day": np.array(["2024-01-02", "2024-01-04"], "M8[D]")},
    "enum": lambda: {"kind": Kind.LARGE},
    "set of enums": lambda: {"tags": {Kind.LARGE}},
    "numpy": lambda: {"n": np.int8(3)},
    "from a date on": lambda: {"day": mmcache.at_least(dt.date(2024, 1, 3))},
    "between dates": lambda: {"day": mmcache.between(dt.date(2024, 1, 2), dt.date(2024, 1, 3))},
    "between numbers of numpy": lambda: {"n": mmcache.between(np.float32(1), np.int16(3))},
    "excluding": lambda: {"kind": mmcache.excluding(Kind.LARGE), "day": mmcache.excluding([dt.date(2024, 1, 2)])},
}


def test_a_file_of_an_own_source_is_that_of_an_iterable(tmp_path):
    mmcache.build(tmp_path / "own.mmc", Own(*ITEMS))
    mmcache.build(tmp_path / "iterable.mmc", ITEMS, SCHEMA)
    own, iterable = ((tmp_path / name).read_bytes()[256:] for name in ("own.mmc", "iterable.mmc"))
    assert own == iterable


def test_a_record_is_the_same_from_file_and_source(tmp_path):
    mmcache.build(tmp_path / "c.mmc", Own(*ITEMS))
    with (
        mmcache.Snapshot.open(tmp_path / "c.mmc") as file,
        mmcache.open(tmp_path / "none.mmc", Own(*ITEMS), build=False) as cache,
    ):
        assert list(cache) == list(file)
        for key, record in file.items():
            given = cache[key]
            assert (given, repr(given)) == (record, repr(record))
            assert str(cache.embedding(key)) == str(file.embedding(key))
        assert [repr(record) for record in cache.values()] == [repr(record) for record in file.values()]
        assert cache.terms("day") == file.terms("day")
        assert cache.get_many(list(file)) == list(file.values())


@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
def test_where_takes_values_by_the_rule_of_records_in_every_tier(tmp_path, ask):
    mmcache.build(tmp_path / "c.mmc", ITEMS, SCHEMA)
    sources: list[mmcache.Source] = [Own(*ITEMS), mmcache.IterableSource(ITEMS, SCHEMA)]
    with mmcache.Snapshot.open(tmp_path / "c.mmc") as snapshot:
        expected = snapshot.where(ask()).ids
    assert 0 < len(expected) < len(ITEMS)
    for i, source in enumerate(sources):
        with mmcache.open(tmp_path / f"{i}.mmc", source, build=False) as cache:
            assert cache.where(**ask()).ids == expected
        with mmcache.open(tmp_path / "c.mmc", source, executor="external") as cache:
            cache.invalidate([str(ITEMS[1]["id"])])
            assert cache.where(ask()).ids == expected


@pytest.mark.parametrize(
    "value", [b"x", {}, object(), 1j, [[1]], lambda: 1, 2**70, dt.time(1, tzinfo=dt.timezone(dt.timedelta(seconds=1)))]
)
def test_what_can_be_no_term_is_an_error_that_names_the_field(tmp_path, value):
    mmcache.build(tmp_path / "c.mmc", ITEMS, SCHEMA)
    with mmcache.open(tmp_path / "c.mmc", Own(*ITEMS), build=False) as cache, cache.pinned() as snapshot:
        for reader in (cache, snapshot):
            for asked in (value, [value], mmcache.between):
                with pytest.raises(TypeError, match="'day'"):
                    reader.where(day=asked)


def test_a_value_without_a_form_is_refused_in_both_tiers(tmp_path):
    source = Own(item(0), item(1) | {"price": object()})
    with pytest.raises(BuildError, match=r"00000001.*field 'price': a record cannot hold a value of type object"):
        mmcache.build(tmp_path / "c.mmc", source)
    with mmcache.open(tmp_path / "c.mmc", source, build=False) as cache:
        for read in (lambda: cache[str(uuid.UUID(int=1))], lambda: list(cache.values()), lambda: cache.where(n=1)):
            with pytest.raises(SourceError, match="field 'price'"):
                read()


def test_a_value_without_a_form_is_left_out_of_both_tiers(tmp_path):
    bad = item(1) | {"price": object()}
    source = Own(item(0), bad, item(2), schema=dataclasses.replace(SCHEMA, on_invalid="skip"))
    with mmcache.open(tmp_path / "c.mmc", source) as cache, mmcache.open(tmp_path / "n", source, build=False) as none:
        for reader in (cache, none):
            assert list(reader) == [str(uuid.UUID(int=0)), str(uuid.UUID(int=2))]
            assert not reader.where(n=1)
        assert cache.status().left_out["items"].invalid == 1


BAD: dict[str, dict[str, Any]] = {
    "int beyond 64 bits": {"price": 2**70},
    "such a term": {"n": 2**70},
    "no Unicode": {"price": "\ud800"},
    "map as term": {"kind": {"a": 1}},
    "bytes as term": {"kind": b"a"},
    "two keys of a map that become one": {"price": {dt.date(2024, 1, 1): 1, "2024-01-01": 2}},
    "key that is none": {"id": 1.5},
    "key that is too long": {"id": "x" * 70_000},
    "embedding of another length": {"vector": [1.0]},
    "embedding of no numbers": {"vector": "hello"},
    "NaN in an embedding": {"vector": np.array([np.nan, 1])},
    "zone without an offset": {"price": dt.time(1, tzinfo=dt.timezone(dt.timedelta(seconds=1)))},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_a_row_that_no_record_can_be_is_left_out_of_both_tiers(tmp_path, change):
    bad = item(1) | change
    with pytest.raises(BuildError):
        mmcache.build(tmp_path / "c.mmc", Own(item(0), bad))
    source = Own(item(0), bad, item(2), schema=dataclasses.replace(SCHEMA, on_invalid="skip"))
    with mmcache.open(tmp_path / "c.mmc", source) as cache, mmcache.open(tmp_path / "n", source, build=False) as none:
        for reader in (cache, none):
            assert list(reader) == [str(uuid.UUID(int=0)), str(uuid.UUID(int=2))]
            assert len(reader) == 2
            assert reader.where(day=dt.date(2024, 1, 2)).ids == []


def test_rows_without_a_record_pass_as_they_are(tmp_path):
    class Half(Own):
        def given(self) -> list[Any]:
            good, bad = super().given()
            return [good, Invalid("x", "x", "is half", bad)]

    source = Half(item(0), item(1), schema=dataclasses.replace(SCHEMA, on_invalid="skip"))
    report = mmcache.build(tmp_path / "c.mmc", source)
    assert report.left_out["items"].invalid == 1


def test_a_subclass_of_a_source_of_ours_may_give_any_values(tmp_path):
    class Stamped(mmcache.IterableSource):
        def records(self, collection: str) -> Iterator[Any]:
            for row in super().records(collection):
                yield row._replace(names=(*row.names, "at"), values=(*row.values, dt.date(2024, 1, 1)))

    mmcache.build(tmp_path / "c.mmc", Stamped([{"id": "a"}], Schema("items")))
    with mmcache.Snapshot.open(tmp_path / "c.mmc") as snapshot:
        assert snapshot["a"] == {"id": "a", "at": "2024-01-01"}
