"""A program as a user writes it: `mypy --strict` and pyright's strict mode pass it, and every `type: ignore` is needed.

It is checked, not run: see test_type_checkers.py.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypedDict, assert_type

import numpy as np
import pytest
from numpy.typing import NDArray

import mmcache
from mmcache import (
    ArrowSource,
    BaseSource,
    CallableSource,
    CSVSource,
    DuckDBSource,
    IterableSource,
    JSONLinesSource,
    JSONSource,
    ParquetSource,
    Reading,
    Schema,
    Sources,
    SQLAlchemySource,
    SQLiteSource,
)
from mmcache.integrations.pytest_plugin import CacheFactory
from mmcache.types import Isolate, Key, Kind, Profile, Reason, State, Term


@dataclass
class Item:
    id: str
    kind: str
    size: int = 0


class Config(TypedDict):
    id: str
    text: str


class Point(NamedTuple):
    id: int
    x: float


# --- records

cache = mmcache.open("items.mmc", SQLiteSource("items.db", Schema("items", index=("kind",), embedding="vector")))
assert_type(cache, mmcache.Cache)
assert_type(cache["a"], mmcache.Record)
assert_type(cache.get("a"), mmcache.Record | None)
assert_type(cache.get("a", 0), mmcache.Record | int)
assert_type(cache.get("a", None), mmcache.Record | None)
assert_type(cache.get_many(["a", 7, b"x", ("a", 1)]), list[mmcache.Record | None])
assert_type(list(cache.values()), list[mmcache.Record])
assert_type(dict(cache.items()), dict[Key, mmcache.Record])
assert_type(cache.where(kind="tool"), mmcache.Selection)
assert_type(cache.where({"kind": ["tool", None]}, size=mmcache.between(1, 2))[0], mmcache.Record)
assert_type(cache.where(kind="tool")[:3].order_by("size").limit(2), mmcache.Selection)
assert_type(cache.where(kind="tool") | cache.where(kind="prompt"), mmcache.Selection)
assert_type(cache.where(kind="tool").ids, list[Key])
assert_type(cache.terms("kind"), dict[Term, int])
assert_type(cache.embedding("a"), NDArray[np.float32] | None)
assert_type(cache.embeddings, NDArray[np.float32])
assert_type(cache.collection("other"), mmcache.CachedCollection)
assert_type(cache.stats().state, State)
assert_type(cache.status().state, State)
assert_type(cache.invalidate(["a"], reason="record_stored"), Kind)
assert_type(cache["a"].to(Item), Item)
assert_type(cache["a"].id, Key)
assert_type(cache["a"].asdict()["kind"] is None, bool)


def total(selection: mmcache.Selection) -> int:
    return len(selection)


def first(items: mmcache.Collection) -> mmcache.Record | None:
    return items.get("a")


def changed(of: mmcache.Cache, keys: list[Key], reason: Reason = "manual") -> None:
    of.invalidate(keys, reason=reason)


total(cache.where(kind="a"))
collection: mmcache.Collection = cache.collection("x")
first(cache)
first(cache.collection("other"))
cache.get({"id": "a"})  # type: ignore[call-overload]
cache.invalidate(["a"], reason="stored")  # type: ignore[arg-type]
mmcache.open("items.mmc", profile="prod")  # type: ignore[call-overload]
profile: Profile = "production"
mmcache.open("items.mmc", profile=profile, ttl=60)

with cache.pinned() as pinned:
    assert_type(pinned, mmcache.Snapshot)
    first(pinned)
    first(pinned.collection("other"))

snapshot = mmcache.Snapshot.open("items.mmc")
assert_type(snapshot.get("a"), mmcache.Record | None)
assert_type(snapshot["a"], mmcache.Record)
assert_type(snapshot.collection("other"), mmcache.FileCollection)
assert_type(snapshot.collection("other").get("a", 1), mmcache.Record | int)
assert_type(snapshot.collection("other").where(kind="a")[0], mmcache.Record)


# --- models

items = mmcache.open("items.mmc", SQLiteSource("items.db", Schema("items", model=Item)))
assert_type(items, mmcache.Cache[Item])
assert_type(items["a"].size, int)
assert_type(items.get("a"), Item | None)
assert_type(items.get_many(["a"]), list[Item | None])
assert_type(list(items.values()), list[Item])
assert_type(items.where(kind="tool")[0], Item)
assert_type([item.kind for item in items.where(kind="tool").limit(3)], list[str])
assert_type(items.collection("configs", Config)["c"]["text"], str)
misspelt = items["a"].sise  # type: ignore[attr-defined]

annotated: mmcache.Cache[Item] = mmcache.open("items.mmc", IterableSource([], Schema("items", model=Item)))
assert_type(mmcache.open("p.mmc", ParquetSource("p.parquet", Schema("p", model=Point)))[7].x, float)
assert_type(mmcache.open("c.mmc", JSONLinesSource("c.jsonl", Schema("c", model=Config)))["c"], Config)
assert_type(mmcache.open("items.mmc", model=Item)["a"], Item)
several = SQLiteSource("items.db", Schema("items", model=Item), Schema("configs", model=Config))
assert_type(mmcache.open("items.mmc", several)["a"], Item)
assert_type(mmcache.open("i.mmc", IterableSource({}, Schema("items", model=Item), Schema("c")))["a"], Item)
assert_type(mmcache.open("items.mmc", SQLiteSource("items.db", *[Schema("a"), Schema("b")]))["a"], mmcache.Record)

# --- every source

item = Schema("items", model=Item)
assert_type(mmcache.open("i.mmc", CSVSource("i.csv", item))["a"], Item)
assert_type(mmcache.open("i.mmc", JSONSource("i.json", item))["a"], Item)
assert_type(mmcache.open("i.mmc", ArrowSource("i.feather", item))["a"], Item)
assert_type(mmcache.open("i.mmc", DuckDBSource("i.duckdb", item))["a"], Item)
assert_type(mmcache.open("i.mmc", SQLAlchemySource("postgresql://db/shop", item, Schema("c"), timeout=3))["a"], Item)
assert_type(mmcache.open("i.mmc", SQLiteSource("items.db", item, immutable=True))["a"], Item)
both = Sources(SQLiteSource("items.db", item), CSVSource("c.csv", Schema("c", model=Config)))
assert_type(mmcache.open("i.mmc", both)["a"], Item)
assert_type(mmcache.open("i.mmc", CSVSource("i.csv", Schema("items")))["a"], mmcache.Record)


def fetch_all() -> list[dict[str, object]]:
    return [{"id": "a", "kind": "tool"}]


def fetch_some(keys: list[Key]) -> Iterator[Mapping[str, object]]:
    return (record for record in fetch_all() if record["id"] in keys)


def written_since(before: int) -> list[str]:
    return ["a"][before:]


assert_type(mmcache.open("i.mmc", CallableSource(fetch_all, item, fetch=fetch_some))["a"], Item)
assert_type(mmcache.open("i.mmc", load=fetch_all, schema=item)["a"], Item)
assert_type(mmcache.open("i.mmc", load=fetch_all, schema=Schema("items"), fetch=fetch_some)["a"], mmcache.Record)
assert_type(mmcache.open("i.mmc", load=fetch_all, schema=Schema("items"), model=Item, ttl=60)["a"], Item)
assert_type(mmcache.open("i.mmc", load="shop:rows", schema=[item, Schema("c")])["a"], mmcache.Record)
mmcache.open("i.mmc", load=fetch_all, schema=item, fingerprint=lambda: 7, changed_since=written_since)
assert_type(mmcache.open("i.mmc", "items.csv", schema=item)["a"], Item)
assert_type(mmcache.open("i.mmc", "postgresql://db/shop", schema=Schema("items"))["a"], mmcache.Record)
mmcache.build("i.mmc", "items.csv", item)
mmcache.open("i.mmc", load=7, schema=item)  # type: ignore[call-overload]


class Own(BaseSource[Item]):
    @contextmanager
    def read(self) -> Generator[Reading, None, None]:
        yield self.reading(fetch_all())


class Plain(BaseSource):
    @contextmanager
    def read(self) -> Generator[Reading, None, None]:
        yield self.reading(fetch_all())


assert_type(mmcache.open("i.mmc", Own(item))["a"], Item)
assert_type(mmcache.open("i.mmc", Plain(Schema("items")))["a"], mmcache.Record)


def sizes(of: mmcache.Collection[Item]) -> int:
    return sum(item.size for item in of.values())


sizes(items)
sizes(items.collection("more", Item))
sizes(cache)  # type: ignore[arg-type]


# --- builds and tests

vectors = np.zeros((1, 2), np.float32)
report = mmcache.build(
    "items.mmc", [{"id": "a"}], Schema("items", embedding="v", model=Item), embeddings=vectors, progress=True
)
assert_type(report, mmcache.BuildReport)
mmcache.build("items.mmc", [Item("a", "tool")], item)
mmcache.build("items.mmc", (Point(1, 2) for _ in "ab"), Schema("points", key="x"))
mmcache.build("items.mmc", sqlite3.connect("items.db").execute("SELECT 1 AS id"), item)
mmcache.build("items.mmc", [1, 2], item)  # type: ignore[list-item]
mmcache.build("items.mmc", several, progress="lines")
mmcache.build("items.mmc", several, progress=print)


@pytest.fixture(scope="session")
def bank(mmcache_factory: CacheFactory) -> mmcache.Cache:
    return mmcache_factory("bank", lambda: [{"id": "a"}], schema=Schema("items"), ttl=60)


@pytest.fixture
def typed(mmcache_factory: CacheFactory, mmcache_isolated: Isolate) -> mmcache.Cache[Item]:
    return mmcache_isolated(mmcache_factory("typed", source=SQLiteSource("items.db", Schema("items", model=Item))))
