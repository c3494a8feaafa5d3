"""`Schema(model=...)`: records as instances of a class of the caller's, from either tier."""

from __future__ import annotations

import json
import pickle
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple, NewType, NotRequired, TypedDict
from uuid import UUID

import attrs
import numpy as np
import pydantic
import pytest
import typing_extensions  # which pydantic needs before Python 3.12
from numpy.typing import NDArray

import mmcache
from mmcache import IterableSource, ModelError, Record, Schema, SQLiteSource


@dataclass(frozen=True)
class Item:
    id: str
    kind: str
    size: int = 0


@dataclass(frozen=True)
class ItemOrNone:
    id: str
    kind: str
    size: int | None = None


class ItemDict(TypedDict):
    id: str
    kind: str
    size: NotRequired[int]


class ItemExtension(typing_extensions.TypedDict):
    id: str
    kind: str
    size: typing_extensions.NotRequired[int]


class ItemTuple(NamedTuple):
    id: str
    kind: str
    size: int = 0


@attrs.frozen
class ItemAttrs:
    id: str
    kind: str
    size: int = 0


class ItemModel(pydantic.BaseModel):
    id: str
    kind: str
    size: int = 0


MODELS = [Item, ItemDict, ItemExtension, ItemTuple, ItemAttrs, ItemModel]
ROWS: list[dict[str, Any]] = [
    {"id": "a", "kind": "tool", "size": 1, "more": [1]},
    {"id": "b", "kind": "tool", "size": 2},
    {"id": "c", "kind": "prompt"},
]
SCHEMA: Any = Schema("items", index=("kind", "size"))


def made(model: Any, row: dict[str, Any]) -> Any:
    return model(**{name: value for name, value in row.items() if name != "more"})


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "items.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT, size INTEGER)")
        rows = [(row["id"], row["kind"], row.get("size", 0)) for row in ROWS]
        connection.executemany("INSERT INTO items VALUES (?, ?, ?)", rows)
    connection.close()
    return path


@pytest.mark.parametrize("model", MODELS)
def test_every_way_to_read_gives_instances_of_the_model(model, path):
    source = IterableSource(ROWS, replace(SCHEMA, model=model))
    with mmcache.open(path, source, executor="inline", rebuild_after=1e6) as cache:
        expected = [made(model, row) for row in ROWS]
        for _ in ("all from the file", "one from the source", "the source answers everything"):
            assert cache["a"] == expected[0]
            assert type(cache["a"]) is type(expected[0])
            assert cache.get("b") == expected[1]
            assert cache.get("x") is None
            assert cache.get_many(["c", "x", "a"]) == [expected[2], None, expected[0]]
            assert list(cache.values()) == expected
            assert dict(cache.items()) == {row["id"]: item for row, item in zip(ROWS, expected, strict=True)}
            assert list(cache.all_records()) == expected
            found = cache.where(kind="tool")
            assert list(found) == expected[:2]
            assert found[0] == expected[0]
            assert list(found[1:]) == expected[1:2]
            assert list(found.order_by("size", descending=True)) == [expected[1], expected[0]]
            assert list(found.order_by("size").limit(1)) == [expected[0]]
            assert list(found | cache.where(kind="prompt")) == expected
            assert list(found & cache.where(size=1)) == [expected[0]]
            assert list(found - cache.where(size=1)) == [expected[1]]
            assert list(pickle.loads(pickle.dumps(found))) == expected[:2]
            assert found.ids == ["a", "b"]
            cache.invalidate(["a"] if _.startswith("all") else None, hard=None if _.startswith("all") else True)


@pytest.mark.parametrize("model", [*MODELS, None])
def test_what_is_no_matter_of_the_model_is_as_ever(model, database, path):
    schema = replace(SCHEMA, model=model)
    with mmcache.open(path, SQLiteSource(database, schema)) as cache:
        assert list(cache) == ["a", "b", "c"]
        assert "a" in cache
        assert len(cache) == 3
        assert cache.terms("kind") == {"prompt": 1, "tool": 2}
        assert cache.model is model
        assert cache.where(kind="tool").to_arrow(["size"]).to_pydict() == {"size": [1, 2]}
        with cache.pinned() as snapshot:
            assert isinstance(snapshot["a"], Record)
            assert Schema.from_dict(schema.to_dict()).model is None


def test_a_cache_with_a_model_pickles_with_it(database, path):
    with mmcache.open(path, SQLiteSource(database, replace(SCHEMA, model=Item))) as cache:
        with pickle.loads(pickle.dumps(cache)) as arrived:
            assert arrived["a"] == Item("a", "tool", 1)
        other = pickle.loads(pickle.dumps(cache.collection("items", ItemTuple)))
        assert other["a"] == ItemTuple("a", "tool", 1)


def test_a_model_can_be_given_to_open_and_to_collection(database, path):
    with mmcache.open(path, SQLiteSource(database, SCHEMA)) as cache:
        assert isinstance(cache["a"], Record)
        assert cache.collection("items", Item)["a"] == Item("a", "tool", 1)
        assert cache["a"].to(Item) == Item("a", "tool", 1)
    with mmcache.open(path, model=Item) as cache:
        assert cache["a"] == Item("a", "tool", 1)


def test_each_collection_has_the_model_of_its_schema(path):
    schemas = Schema("items", model=Item), Schema("others", model=ItemTuple)
    source = IterableSource({"items": ROWS, "others": ROWS}, *schemas)
    with mmcache.open(path, source, executor="thread") as cache:
        assert cache["a"] == Item("a", "tool", 1)
        assert cache.collection("others", ItemTuple)["a"] == ItemTuple("a", "tool", 1)
        assert cache.collection("others").get("a") == ItemTuple("a", "tool", 1), "without it, at run time"  # type: ignore[comparison-overlap]


def test_a_subclass_of_cache_gives_the_model_too(database, path):
    class Bank(mmcache.Cache[Item]):
        pass

    with Bank(path, SQLiteSource(database, replace(SCHEMA, model=Item))) as bank:
        assert bank["a"] == Item("a", "tool", 1)


def test_a_model_is_no_part_of_what_schemas_are_compared_by(database, path):
    assert replace(SCHEMA, model=Item) == SCHEMA
    assert hash(replace(SCHEMA, model=Item)) == hash(SCHEMA)
    mmcache.build(path, SQLiteSource(database, SCHEMA))
    with mmcache.open(path, SQLiteSource(database, replace(SCHEMA, model=Item)), build=False) as cache:
        assert cache["a"] == Item("a", "tool", 1)
        assert cache.stats().hits == 1


@pytest.mark.parametrize("model", [dict, str, 7, "Item", list[int], Item("a", "b")])
def test_what_is_no_model_is_refused_by_the_schema(model):
    with pytest.raises(TypeError, match="model must be a dataclass, TypedDict, NamedTuple, attrs class or pydantic"):
        Schema("items", model=model)


# --- values


class Colour(Enum):
    RED = "red"


@dataclass
class Inner:
    n: int


Name = NewType("Name", str)


@dataclass
class Everything:
    id: int
    at: datetime
    on: date
    when: time
    took: timedelta
    price: Decimal
    uuid: UUID
    colour: Colour
    tags: set[str]
    pair: tuple[int, str]
    inner: Inner
    inners: list[Inner]
    by_name: dict[str, Inner]
    name: Name
    choice: Literal["x", "y"]
    either: int | str | None
    path: Path
    ratio: float
    active: bool
    anything: Any
    missing: list[int] = field(default_factory=list)


def test_values_that_are_stored_as_text_or_numbers_become_their_types_again(path):
    item = Everything(
        id=7,
        at=datetime(2026, 1, 31, 23, 59, 59, 500000, UTC),
        on=date(2026, 1, 31),
        when=time(12, 30),
        took=timedelta(days=-1, hours=2, seconds=0.5),
        price=Decimal("1.10"),
        uuid=UUID(int=7),
        colour=Colour.RED,
        tags={"b", "a"},
        pair=(1, "x"),
        inner=Inner(1),
        inners=[Inner(2), Inner(3)],
        by_name={"x": Inner(4)},
        name=Name("n"),
        choice="y",
        either="text",
        path=Path("/tmp/x"),
        ratio=1.0,
        active=True,
        anything=[1, {"a": None}],
    )
    row = {**vars(item), "path": str(item.path), "ratio": 1, "active": 1}
    del row["missing"]
    source = IterableSource([row], Schema("all", model=Everything))
    with mmcache.open(path, source, executor="thread") as cache:
        assert cache[7] == item


@pytest.mark.parametrize("hint", [NDArray[np.float32], Any, "NDArray[np.float32] | None"])
def test_a_field_that_is_an_embedding_is_its_array(hint, path):
    @dataclass
    class Vector:
        id: str
        vector: Any

    Vector.__annotations__["vector"] = Vector.__dataclass_fields__["vector"].type = hint
    schema = Schema("items", embedding="vector", model=Vector)
    with mmcache.open(path, IterableSource([{"id": "a", "vector": [1.0, 2.0]}], schema), executor="thread") as cache:
        for _ in range(2):
            assert cache["a"].vector.tolist() == [1.0, 2.0]
            assert isinstance(cache["a"].vector, np.ndarray)
            cache.invalidate(["a"])


def test_a_field_that_is_declared_a_list_is_the_list_of_the_embedding(path):
    class Vector(pydantic.BaseModel):
        id: str
        vector: list[float] | None

    @dataclass
    class Plain:
        id: str
        vector: list[float] | None

    models: tuple[Any, ...] = Vector, Plain
    for model in models:
        schema = Schema("items", embedding="vector", model=model)
        with mmcache.open(path, IterableSource([{"id": "a", "vector": [1, 2]}, {"id": "b"}], schema)) as cache:
            assert cache["a"].vector == [1.0, 2.0]
            assert cache["b"].vector is None


def test_a_key_of_several_fields_is_given_field_by_field(path):
    @dataclass
    class Cell:
        x: int
        y: str
        value: float

    schema = Schema("cells", key=("x", "y"), model=Cell)
    with mmcache.open(path, IterableSource([{"x": 1, "y": "a", "value": 2.5}], schema)) as cache:
        assert cache[1, "a"] == Cell(1, "a", 2.5)


# --- records that do not fit

BAD: list[tuple[Any, dict[str, Any], str, str, str]] = [
    (Item, {"id": "k", "kind": 7}, "kind", "str", "int 7"),
    (Item, {"id": "k"}, "kind", "str", "no such field"),
    (ItemDict, {"id": "k", "kind": "x", "size": "1"}, "size", "int", "str '1'"),
    (ItemTuple, {"id": "k", "kind": None}, "kind", "str", "None"),
    (ItemAttrs, {"id": "k", "kind": "x", "size": True}, "size", "int", "bool True"),
    (ItemModel, {"id": "k", "kind": "x", "size": "much"}, "size", "int_parsing", "str 'much'"),
    (ItemModel, {"id": "k"}, "kind", "missing", "no such field"),
]


@pytest.mark.parametrize("bad", BAD)
def test_a_record_that_does_not_fit_names_key_field_expected_and_found(bad, path):
    model, row, field, expected, found = bad
    source = IterableSource([row], Schema("items", model=model))
    with mmcache.open(path, source, executor="thread") as cache:
        for read in (
            lambda: cache["k"],
            lambda: cache.get("k"),
            lambda: list(cache.values()),
            lambda: cache.where()[0],
        ):
            with pytest.raises(ModelError) as caught:
                read()
            error = pickle.loads(pickle.dumps(caught.value))
            assert (error.collection, error.key, error.field) == ("items", "k", field)
            assert expected in error.expected
            assert error.found == found
            assert all(word in str(error) for word in ("'items'", "'k'", repr(field), error.expected, found))
        assert list(cache) == ["k"], "what needs no instance is not stopped by it"


def test_a_bad_value_inside_of_a_field_is_named_by_its_path(path):
    @dataclass
    class Nested:
        id: str
        inners: list[Inner]

    source = IterableSource([{"id": "k", "inners": [{"n": 1}, {"n": "x"}]}], Schema("items", model=Nested))
    with mmcache.open(path, source, executor="thread") as cache, pytest.raises(ModelError, match=r"'inners\[1\]\.n'"):
        cache["k"]


def test_what_the_class_itself_refuses_is_told_too(path):
    @dataclass
    class Positive:
        id: str
        n: int

        def __post_init__(self) -> None:
            if self.n < 0:
                raise ValueError("n is below 0")

    source = IterableSource([{"id": "k", "n": -1}], Schema("items", model=Positive))
    with mmcache.open(path, source, executor="thread") as cache, pytest.raises(ModelError, match="n is below 0"):
        cache["k"]


# --- records in other libraries


@pytest.fixture
def record(path: Path) -> Record:
    mmcache.build(path, ROWS, SCHEMA)
    return mmcache.Snapshot.open(path)["a"]


def test_a_record_becomes_json_by_its_dict(record):
    assert json.loads(json.dumps(record.asdict())) == ROWS[0]


def test_a_record_validates_as_a_pydantic_model(record):
    assert ItemModel.model_validate(record) == ItemModel(id="a", kind="tool", size=1)
    assert pydantic.TypeAdapter(ItemModel).validate_python(record) == ItemModel(id="a", kind="tool", size=1)
    assert pydantic.TypeAdapter(ItemExtension).validate_python(record) == {"id": "a", "kind": "tool", "size": 1}
    assert Item(**{name: record[name] for name in ("id", "kind", "size")}) == record.to(Item)


def test_record_is_a_type_that_pydantic_knows(record):
    class Answer(pydantic.BaseModel):
        records: list[Record]

    answer = Answer(records=[record])
    assert answer.records[0] is record
    assert json.loads(answer.model_dump_json()) == {"records": [ROWS[0]]}
    assert answer.model_dump() == {"records": [ROWS[0]]}
    assert Answer.model_validate_json(answer.model_dump_json()).records == [record]
    adapter = pydantic.TypeAdapter(Record)
    assert adapter.validate_python({"id": "x"}) == {"id": "x"}
    assert adapter.json_schema()["type"] == "object"
    with pytest.raises(pydantic.ValidationError):
        adapter.validate_python(7)


async def answered(app: Any, url: str) -> tuple[int, Any]:
    """A request by the ASGI protocol, without a server or a client library."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": url,
        "raw_path": url.encode(),
        "query_string": b"",
        "headers": [],
        "root_path": "",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body)


def test_a_record_goes_through_fastapi(record):
    import asyncio

    import fastapi
    from fastapi.encoders import jsonable_encoder

    app = fastapi.FastAPI()

    def plain():
        return record

    def annotated() -> Record:
        return record

    def several() -> list[Record]:
        return [record]

    def model() -> ItemModel:
        return ItemModel.model_validate(record)

    def response():
        return record

    for name, handler in {"/plain": plain, "/annotated": annotated, "/several": several, "/model": model}.items():
        app.get(name)(handler)
    app.get("/response", response_model=ItemModel)(response)
    item = {"id": "a", "kind": "tool", "size": 1}
    assert jsonable_encoder(record) == ROWS[0]
    expected = {"/annotated": ROWS[0], "/several": [ROWS[0]], "/model": item, "/response": item, "/plain": ROWS[0]}
    for url, body in expected.items():
        assert asyncio.run(answered(app, url)) == (200, body), url
    assert "/annotated" in app.openapi()["paths"]


def test_importing_and_using_mmcache_imports_no_pydantic(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, dataclasses, mmcache\n"
        "@dataclasses.dataclass\nclass Item:\n    id: str\n"
        "source = mmcache.IterableSource([{'id': 'a'}], mmcache.Schema('items', model=Item))\n"
        "assert mmcache.open('items.mmc', source, executor='thread')['a'] == Item('a')\n"
        "print(sorted({'pydantic', 'pydantic_core', 'attr', 'typing_extensions'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- every source -----------------------------------------------------------------------------------------------------


def all_items() -> list[dict[str, Any]]:
    return [dict(row) for row in ROWS]


def some_items(keys: list[Any]) -> list[dict[str, Any]]:
    return [row for row in all_items() if row["id"] in keys]


def of_every_source(directory: Path, schema: Any) -> dict[str, Any]:
    lines = directory / "items.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    array = directory / "items.json"
    array.write_text(json.dumps(ROWS))
    text = directory / "items.csv"
    text.write_text("id,kind,size\na,tool,1\nb,tool,2\nc,prompt,\n")

    class Own(mmcache.BaseSource[Any]):
        @contextmanager
        def read(self) -> Iterator[mmcache.Reading]:
            yield self.reading(all_items())

    return {
        "load": {"load": all_items, "schema": schema},
        "load and fetch": {"load": all_items, "fetch": some_items, "schema": schema},
        "own": {"source": Own(schema)},
        "lines": {"source": str(lines), "schema": schema},
        "array": {"source": mmcache.JSONSource(array, schema)},
        "csv": {"source": mmcache.CSVSource(text, replace(schema, casts={"size": "int"}))},
    }


@pytest.mark.parametrize("name", ["load", "load and fetch", "own", "lines", "array", "csv"])
def test_a_model_is_made_of_the_records_of_every_source(tmp_path: Path, name: str) -> None:
    schema = replace(SCHEMA, model=ItemOrNone)
    options = of_every_source(tmp_path, schema)[name]
    with mmcache.open(tmp_path / "i.mmc", executor="thread", **options) as cache:
        assert cache["a"] == ItemOrNone("a", "tool", 1)
        assert cache["c"] == ItemOrNone("c", "prompt")
        cache.invalidate(["b"])
        assert cache.get_many(["b", "x"]) == [ItemOrNone("b", "tool", 2), None]
        assert [item.id for item in cache.where(kind="tool")] == ["a", "b"]
        cache.invalidate(hard=True)
        assert list(cache.values()) == [cache["a"], cache["b"], cache["c"]]


def test_a_model_of_several_sources_is_that_of_each_collection(tmp_path: Path, database: Path) -> None:
    lines = tmp_path / "more.jsonl"
    lines.write_text('{"id": "m", "kind": "more"}\n')
    first = SQLiteSource(database, Schema("items", model=Item, columns=("kind", "size")))
    source = mmcache.Sources(first, mmcache.JSONLinesSource(lines, Schema("more", model=ItemTuple)))
    with mmcache.open(tmp_path / "i.mmc", source) as cache:
        assert cache["a"] == Item("a", "tool", 1)
        more: Any = cache.collection("more")  # a type checker cannot know its model
        assert more["m"] == ItemTuple("m", "more")
        assert cache.model is Item
        assert pickle.loads(pickle.dumps(cache))["a"] == Item("a", "tool", 1)


def test_expired_records_are_no_instances_of_a_model(tmp_path: Path) -> None:
    schema = Schema("items", index=("kind",), model=ItemOrNone, expires="ends")
    rows = [*all_items(), {"id": "old", "kind": "tool", "size": 1, "ends": 1}]
    with mmcache.open(tmp_path / "i.mmc", load=lambda: rows, schema=schema, executor="thread") as cache:
        assert cache.get("old") is None
        assert [item.id for item in cache.where(kind="tool")] == [item.id for item in cache.values()][:2] == ["a", "b"]
        cache.invalidate(["a"])
        assert list(cache.where(kind="tool")) == [ItemOrNone("a", "tool", 1), ItemOrNone("b", "tool", 2)]
