"""What goes in comes out: every value, every id, with and without embeddings, through every way of reading.

The oracle is `Expected`: a dict and nothing else.
"""

# mypy: disable-error-code="arg-type, index, list-item, type-arg, union-attr, var-annotated, attr-defined"
# What may be None fails the test where it is.

from __future__ import annotations

import contextlib
import enum
import os
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from xxhash import xxh3_64_intdigest

import mmcache
from mmcache import Schema, Snapshot
from mmcache.format.records import MAX_KEY_BYTES, MAX_NESTED_SHAPES, MAX_RECORD_BYTES
from mmcache.format.slots import build_slots, find_ordinal, in_order
from tests.storage import helpers
from tests.storage.helpers import Expected, build_bytes, damaged, questions, same, same_record, sweep, vector
from tests.support import inside

pytestmark = pytest.mark.usefixtures("no_disk_wait", "no_leaks")

WAYS = [(verify, access) for verify in ("auto", "full", "lazy") for access in ("mmap", "copy")]

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.sampled_from(
        [0, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**63, -1, -32, -33, -128, -129, -(2**31) - 1]
    )
    | st.floats()
    | text
    | st.binary(max_size=40)
    | st.builds(msgpack.Timestamp, st.integers(0, 2**34), st.integers(0, 10**9 - 1))
    | st.builds(msgpack.Timestamp, st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**9 - 1))
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
)
map_keys = (
    text
    | st.binary(max_size=5)
    | st.integers(-(2**63), 2**64 - 1)
    | st.none()
    | st.booleans()
    | st.floats(allow_nan=False)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(map_keys, inner, max_size=4), max_leaves=12
)
ids = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20) | st.sampled_from(
    [
        "\0",
        "a\0",
        "\N{LATIN SMALL LETTER E WITH ACUTE}",
        "e\N{COMBINING ACUTE ACCENT}",
        "\U0001f600",
        "x" * 31,
        "x" * 32,
        "x" * 255,
        "x" * 256,
        "y" * (MAX_KEY_BYTES - 3),
        "\u20ac" * (MAX_KEY_BYTES // 3 - 1),
    ]
)
terms = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers(-(2**63), 2**64 - 1)
    | st.integers(0, 3)
    | st.sampled_from("abc")
    | text
    | st.floats()
)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def embeddings(dim: int) -> SearchStrategy:
    return st.lists(floats, min_size=dim, max_size=dim)


@st.composite
def collections(draw: DrawFn, name: str = "items") -> tuple[Schema, list[dict], str | None]:
    fields = draw(st.lists(st.sampled_from(["kind", "tags", "a", "b", "", "\u00e9", "m"]), unique=True, max_size=4))
    index = tuple(draw(st.lists(st.sampled_from(["kind", "tags"]), unique=True)))
    embedding = draw(st.sampled_from([None, "v"]))
    dim = draw(st.integers(1, 5)) if embedding else None
    single = draw(st.booleans())
    items = []
    for key in draw(st.lists(ids, unique=True, max_size=8)):
        item: dict = {"id": key}
        for field in fields:
            if draw(st.integers(0, 4)) == 0:
                continue  # absent
            if field in index:
                item[field] = draw(terms if single else terms | st.lists(terms, max_size=3))
            elif field == "m":
                item[field] = draw(st.dictionaries(text, values, max_size=4))
            else:
                item[field] = draw(values)
        if embedding is not None and draw(st.integers(0, 4)):
            item["v"] = draw(embeddings(dim))
        if not items:  # or they would be taken for misspelt
            item |= dict.fromkeys([*index, *([] if embedding is None else [embedding])]) | item
        items.append(dict(draw(st.permutations(list(item.items())))))
    cluster_by = draw(st.sampled_from([None, *index])) if single else None
    schema = Schema(name, index=index, embedding=embedding, dim=draw(st.sampled_from([None, dim])))
    return schema, items, cluster_by


def check(path, parts: list[tuple[Schema, list[dict], str | None]]) -> None:
    """Build once, ask everything in every way, build again and find the same file."""
    records = {schema.name: items for schema, items, _ in parts}
    clusters = {schema.name: cluster for schema, _, cluster in parts if cluster is not None}
    schemas = [schema for schema, _, _ in parts]
    data = build_bytes(path, records, *schemas, cluster_by=clusters, metadata={"n": len(parts)})
    inode = os.stat(path).st_ino
    expected = {}
    for schema, items, cluster in parts:
        expected[schema.name] = list(questions(Expected.of(schema, items, cluster)))
    for verify, access in WAYS:
        with Snapshot.open(path, verify=verify, access=access) as snapshot:
            assert [c.name for c in snapshot.collections.values()] == [schema.name for schema in schemas]
            assert [c.schema for c in snapshot.collections.values()] == [schema.resolved() for schema in schemas]
            assert sweep(snapshot, expected) == 0
            snapshot.verify(deep=True)
    report = mmcache.build(path, records, *schemas, cluster_by=clusters, metadata={"n": len(parts)})
    assert not report.changed
    assert os.stat(path).st_ino == inode
    assert path.read_bytes() == data
    os.unlink(path)
    again = build_bytes(path, records, *schemas, cluster_by=clusters, metadata={"n": len(parts)})
    assert again[256:] == data[256:]
    assert again[64:144] == data[64:144]
    os.unlink(path)


@given(part=collections())
def test_one_collection_of_anything_round_trips(tmp_path_factory, part):
    check(tmp_path_factory.mktemp("one", numbered=True) / "items.mmc", [part])


@settings(max_examples=15)
@given(parts=st.tuples(collections("items"), collections("\u00e4 b.c"), collections("z" * 24)))
def test_several_collections_of_anything_round_trip(tmp_path_factory, parts):
    check(tmp_path_factory.mktemp("several", numbered=True) / "items.mmc", list(parts))


@given(value=values, key=ids)
def test_any_value_is_equal_in_value_and_type_when_it_comes_back(tmp_path_factory, value, key):
    path = tmp_path_factory.mktemp("value", numbered=True) / "items.mmc"
    data = build_bytes(
        path, [{"id": key, "value": value, "deep": {"list": [value], "map": {"x": value}}}], Schema("items")
    )
    for found in (damaged(data)[key], damaged(data).get_many([key] * 30)[7], next(iter(damaged(data).values()))):
        assert same(found["value"], value)
        assert same(found["deep"], {"list": [value], "map": {"x": value}})
        assert found.id == key


def test_every_edge_of_every_msgpack_type_round_trips(path):
    nested: list = []
    for _ in range(98):  # with the record around it as deep as a record nests
        nested = [nested]
    edges = [
        *(s * 2**k + d for k in (5, 7, 8, 15, 16, 31, 32, 62, 63) for s in (1, -1) for d in (-1, 0, 1)),
        *(0.0, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf"), float("nan")),
        *(
            "",
            "\0",
            "x" * 31,
            "x" * 32,
            "x" * 255,
            "x" * 256,
            "x" * 65_535,
            "x" * 65_536,
            "\U0010ffff",
            "\u0301e",
            "\ufeff",
        ),
        *(b"", b"\0", b"x" * 255, b"x" * 256, b"x" * 65_536),
        *(
            [],
            [None] * 15,
            [None] * 16,
            [True] * 65_536,
            {},
            {str(i): i for i in range(15)},
            {str(i): i for i in range(65_536)},
        ),
        *({1: 1, "1": 2, b"1": 3, None: 4, False: 5, 2.5: 6}, {"": {"": {"": ""}}}, nested),
        *(msgpack.ExtType(code, b"x" * n) for code in (0, 127) for n in (0, 1, 2, 3, 4, 8, 16, 17, 255, 256, 65_536)),
        *(
            msgpack.Timestamp(s, ns)
            for s in (0, 2**32 - 1, 2**32, 2**34 - 1, 2**34, -1, 2**63 - 1, -(2**63))
            for ns in (0, 1, 999_999_999)
        ),
        2**64 - 1,
    ]
    edges = [edge for edge in edges if not isinstance(edge, int) or -(2**63) <= edge < 2**64]
    items = [{"id": f"k{i}", "edge": edge} for i, edge in enumerate(edges)]
    mmcache.build(path, items, Schema("items"))
    with Snapshot.open(path) as snapshot:
        for i, edge in enumerate(edges):
            assert same(snapshot[f"k{i}"]["edge"], edge), (i, repr(edge)[:60])
        for found in (snapshot.values(), snapshot.get_many([f"k{i}" for i in range(len(edges))])):
            assert all(same(record["edge"], edge) for record, edge in zip(found, edges, strict=True))
        snapshot.verify(deep=True)


class Colour(str, enum.Enum):  # noqa: UP042 (StrEnum would hide what str() does to this one)
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


class Number(enum.IntEnum):
    ONE = 1


def test_subclasses_come_back_as_the_plain_value_that_they_are_equal_to(path):
    item = {
        "id": "k",
        "colour": Colour.RED,
        "number": Number.ONE,
        "map": OrderedDict(b=1, a=2),
        "point": Point(1, 2),
        "tuple": (1, (2,)),
        "float": np.float64(0.5),
        "bytes": bytearray(b"xy"),
        "view": memoryview(b"z"),
        "inner": {"colour": Colour.RED, Colour.RED: [Colour.RED]},
    }
    schema = Schema("items", index=("colour", "number"))
    mmcache.build(path, [item, {"id": "plain", "colour": "red", "number": True}], schema)
    with Snapshot.open(path) as snapshot:
        record = snapshot["k"].asdict()
        assert same(
            record,
            {
                "id": "k",
                "colour": "red",
                "number": 1,
                "map": {"b": 1, "a": 2},
                "point": [1, 2],
                "tuple": [1, [2]],
                "float": 0.5,
                "bytes": b"xy",
                "view": b"z",
                "inner": {"colour": "red", "red": ["red"]},
            },
        )
        for term in ("red", Colour.RED):
            assert snapshot.where(colour=term).ids == ["k", "plain"]
        for number in (1, True, Number.ONE):
            assert snapshot.where(number=number).ids == ["k", "plain"]
        assert snapshot.collection("items").terms("colour") == {"red": 2}
        snapshot.verify(deep=True)


def test_a_tuple_comes_back_as_a_list_however_deep_it_lies(path):
    tuples, lists = [()], [[]]
    for _ in range(96):
        tuples, lists = [tuples], [lists]
    mmcache.build(path, [{"id": "k", "deep": tuples}], Schema("items"))
    with Snapshot.open(path) as snapshot:
        assert same(snapshot["k"]["deep"], lists)


def test_ids_that_look_alike_stay_apart(path):
    composed, decomposed = unicodedata.normalize("NFC", "\u00e9"), unicodedata.normalize("NFD", "\u00e9")
    keys = [composed, decomposed, "e", "E", " e", "e ", "e\0", "\0e", "\ufeffe", "\uff45", "e\u200b"]
    mmcache.build(path, [{"id": key, "n": i} for i, key in enumerate(keys)], Schema("items"))
    with Snapshot.open(path) as snapshot:
        assert list(snapshot) == keys
        assert [snapshot[key]["n"] for key in keys] == list(range(len(keys)))
        assert all(key not in snapshot for key in ("", "ee", "\u00e8", "e\0\0", "\0"))


def test_a_key_of_another_type_is_a_miss_and_what_is_no_key_a_type_error(path):
    mmcache.build(path, [{"id": "1"}], Schema("items"))
    for verify, access in WAYS:
        with Snapshot.open(path, verify=verify, access=access) as snapshot:
            for key in (1, b"1", ("1", 1), "\ud800", -1, 2**64 - 1, ""):
                assert key not in snapshot
                assert snapshot.get(key) is None
                assert snapshot.get_many([key, "1"] * 20)[:2] == [None, {"id": "1"}]
                with pytest.raises(KeyError):
                    snapshot[key]
            none: Any
            for none in (None, True, 1.0, ["1"], {}, ("1",), ("1",) * 9, (None, "1"), 2**64):
                assert none not in snapshot
                for ask in (snapshot.get, snapshot.__getitem__, snapshot.embedding, snapshot.default.row):
                    with pytest.raises(TypeError, match="a key cannot"):
                        ask(none)
                for keys in ([none], [none, "1"] * 20):
                    with pytest.raises(TypeError, match="a key cannot"):
                        snapshot.get_many(keys)
            letters: Any
            for letters in ("1", b"1"):
                for many in (snapshot.get_many, snapshot.get_embeddings):
                    with pytest.raises(TypeError, match="expected several keys"):
                        many(letters)


def test_maps_of_many_names_that_differ_by_record_are_no_metadata(path):
    items = [{"id": i, "m": {f"user-{i}-{j:040}": j for j in range(150)}, "n": {"a": i}} for i in range(600)]
    mmcache.build(path, items, Schema("items"))
    with Snapshot.open(path) as snapshot:
        assert snapshot[7].asdict() == items[7]
        assert [shape.nested for shape in snapshot.collection("items").layout.shapes] == [{2: ("a",)}]


def test_many_shapes_and_many_fields_round_trip(path):
    def item(i: int) -> dict:
        return {
            "id": f"k{i}",
            f"f{i % 300}": i,
            "nested": {f"n{i % 500}": i, "same": None},
            "other": {f"o{i % 7}": {"deeper": {str(i): i}}} if i % 3 else i,
            **({f"wide{j}": j for j in range(i % 20)} if i % 11 == 0 else {}),
        }

    items = [item(i) for i in range(900)]
    mmcache.build(path, items, Schema("items"))
    with Snapshot.open(path) as snapshot:
        shapes = snapshot.collection("items").layout.shapes
        assert len(shapes) > MAX_NESTED_SHAPES
        assert any(shape.nested for shape in shapes)
        assert any(not shape.nested for shape in shapes)
        for i, original in enumerate(items):
            assert same(dict(snapshot[f"k{i}"]), original)
            assert list(snapshot[f"k{i}"]) == list(original)
        assert [dict(record) for record in snapshot.values()] == items
        assert [dict(record) for record in snapshot.get_many([f"k{i}" for i in range(900)])] == items
        snapshot.verify(deep=True)


@pytest.mark.parametrize("count", [14, 15, 16, 17, 300, 66_000])
def test_records_of_any_number_of_fields_give_their_keys(path, count):
    items = [{"id": "k" * n, **{f"f{i}": i for i in range(count - 1)}} for n in (1, 31, 32, 255, 256, 65_532)]
    mmcache.build(path, items, Schema("items"))
    with Snapshot.open(path) as snapshot:
        assert list(snapshot) == [item["id"] for item in items]
        assert all(len(snapshot[item["id"]]) == count for item in items)
        assert all(snapshot.collection("items").row(item["id"]) == i for i, item in enumerate(items))


def test_a_field_that_is_a_map_in_some_records_only_round_trips(path):
    kinds = [{"a": 1}, None, {"a": 2}, 3, {"b": 1, "a": 2}, [1], {1: 2}, {"a": 3}, {}, "text", {"a": {"b": {}}}]
    for order in (kinds, kinds[::-1], kinds[3:] + kinds[:3]):
        items = [{"id": f"k{i}", "m": value, "n": kinds[-i % len(kinds)]} for i, value in enumerate(order * 3)]
        data = build_bytes(path, items, Schema("items"))
        with damaged(data) as snapshot:
            for item in items:
                assert same_record(snapshot[item["id"]], item)


def test_the_largest_record_fits_and_the_next_does_not(path):
    overhead = len(msgpack.packb(["k", b""])) + 4 - 1
    mmcache.build(path, [{"id": "k", "blob": bytes(MAX_RECORD_BYTES - overhead)}], Schema("items"))
    with Snapshot.open(path, verify="lazy") as snapshot:
        assert len(snapshot["k"]["blob"]) == MAX_RECORD_BYTES - overhead
    with pytest.raises(mmcache.BuildError, match="'k': 16777217 bytes when encoded; a record may have 16777216"):
        mmcache.build(path, [{"id": "k", "blob": bytes(MAX_RECORD_BYTES - overhead + 1)}], Schema("items"))


def test_an_empty_file_answers(path):
    schemas = Schema("items", index=("kind",), embedding="v", dim=3), Schema("none"), Schema("unknown", embedding="v")
    data = build_bytes(path, {schema.name: [] for schema in schemas}, *schemas)
    for verify, access in WAYS:
        with damaged(data, verify, access) as snapshot:
            snapshot.verify(deep=True)
            for collection in snapshot.collections.values():
                assert (len(collection), list(collection), collection.get("a")) == (0, [], None)
                assert collection.get_many(["a"] * 40) == [None] * 40
                assert list(collection.values()) == []
                assert collection.embeddings.shape == (0, collection.dim)
                assert collection.norms.shape == (0,)
                assert collection.has_embedding.shape == (0,)
                assert len(collection.where({})) == 0
            assert len(snapshot.where(kind=1)) == 0
            assert snapshot.collection("items").terms("kind") == {}
            assert snapshot.collection("items").dim == 3


def test_sections_without_bytes_may_stand_on_a_block_boundary(path):
    """An empty section at the very end of the blocks lies in none of them."""
    schema = Schema("items"), Schema("last", embedding="v", dim=2, index=("kind",))
    hit = 0
    for size in range(60_500, 61_600, 8):
        data = build_bytes(path, {"items": [{"id": "k", "b": bytes(size)}], "last": []}, *schema)
        with damaged(data) as snapshot:
            hit += any(s.length == 0 and s.offset % 65_536 == 0 for s in snapshot.layout.sections.values())
            last = snapshot.collection("last")
            assert last.embeddings.shape == (0, 2)
            assert (len(last.norms), last.get("k"), list(last), list(last.values())) == (0, None, [], [])
    assert hit


# Embeddings ----------------------------------------------------------------------------------------------------------


def test_embeddings_that_are_not_finite_need_permission_and_come_back_bit_for_bit(path):
    patterns = [0x7F80_0000, 0xFF80_0000, 0x7FC0_0000, 0x7F80_0001, 0xFFC0_0001, 1, 0x8000_0000, 0x7F7F_FFFF]
    blobs = [np.array([bits, 0, bits], "<u4").tobytes() for bits in patterns]
    items = [{"id": f"k{i}", "v": blob} for i, blob in enumerate(blobs)]
    mmcache.build(path, items, Schema("items", embedding="v", dim=3, allow_nan=True))
    with Snapshot.open(path) as snapshot:
        assert [snapshot.embedding(f"k{i}").tobytes() for i in range(len(blobs))] == blobs
        assert snapshot.embeddings.tobytes() == b"".join(blobs)
        assert snapshot.collection("items").norms.shape == (len(blobs),)


def test_embeddings_may_begin_late_or_never(path):
    schema = Schema("items", embedding="v")
    late = [{"id": f"k{i}", "v": vector(i, 3) if i > 2500 else None} for i in range(2600)]
    mmcache.build(path, late, schema)
    with Snapshot.open(path) as snapshot:
        collection = snapshot.collection("items")
        assert collection.dim == 3
        assert collection.has_embedding.sum() == 99
        assert snapshot.embedding("k2") is None
        assert snapshot["k2500"].embedding is None
        assert np.array_equal(snapshot.embedding("k2599"), np.array(vector(2599, 3), np.float32))
        assert not collection.embeddings[:2501].any()
        assert collection.norms[0] == 0
    mmcache.build(path, [{"id": "a", "v": None}, {"id": "b"}], schema)
    with Snapshot.open(path) as snapshot:
        collection = snapshot.collection("items")
        assert (collection.dim, snapshot.embedding("a"), snapshot["b"].embedding) == (0, None, None)
        assert collection.embeddings.shape == (2, 0)
        assert collection.has_embedding.tolist() == [False, False]


@pytest.mark.parametrize("n", [1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 200])
def test_every_kind_of_posting_list_and_presence_at_word_boundaries(path, n):
    items = [
        {
            "id": f"k{i}",
            "range": i * 3 // n,
            "bitmap": i % 2,
            "rare": "yes" if i in (0, n - 1) else None,
            "tags": [j for j in (2, 3, 5, 7) if i % j == 0],
            "v": None if i % 5 == 1 else vector(i, 2),
        }
        for i in range(n)
    ]
    schema = Schema("items", index=("range", "bitmap", "rare", "tags"), embedding="v")
    for cluster_by in (None, "bitmap", "rare"):
        data = build_bytes(path, items, schema, cluster_by=cluster_by)
        expected = Expected.of(schema, items, cluster_by)
        with damaged(data) as snapshot:
            assert sweep(snapshot, {"items": list(questions(expected))}) == 0
            snapshot.verify(deep=True)


@settings(max_examples=30)
@given(st.data())
def test_where_is_or_within_and_and_between_fields(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("where", numbered=True) / "items.mmc"
    n = data.draw(st.integers(1, 80))
    few = st.sampled_from(["a", "b", 1, None])
    items = [
        {"id": f"k{i}", "a": data.draw(few), "b": data.draw(few | st.lists(few, max_size=3)), "c": i // 9}
        for i in range(n)
    ]
    cluster_by = data.draw(st.sampled_from([None, "a", "c"]))
    schema = Schema("items", index=("a", "b", "c"))
    raw = build_bytes(path, items, schema, cluster_by=cluster_by)
    expected = Expected.of(schema, items, cluster_by)
    with damaged(raw) as snapshot:
        for _ in range(12):
            wanted = few | st.lists(few | st.just("unknown"), max_size=3) | st.integers(0, 9)
            query = data.draw(st.dictionaries(st.sampled_from("abc"), wanted, max_size=3))
            selection = snapshot.where(query)
            ids = expected.where(query)
            assert selection.ids == ids
            assert len(selection) == len(ids)
            assert [record.id for record in selection] == ids
            assert [record.id for record in selection[::-1]] == ids[::-1]
            assert selection[1:3].ids == ids[1:3]
            if ids:
                assert selection[-1].id == ids[-1]


def test_where_refuses_a_field_without_an_index_and_a_value_that_cannot_be_one(path):
    mmcache.build(path, [{"id": "a", "x": 1, "y": 2}], Schema("items", index=("x",)))
    with Snapshot.open(path) as snapshot:
        with pytest.raises(ValueError, match="collection 'items' has no index on 'y'; indexed fields: x"):
            snapshot.where(y=2)
        for value in (b"x", {"a": 1}, object()):
            with pytest.raises(TypeError, match="indexed value"):
                snapshot.where(x=value)
        assert snapshot.where(x=[]).ids == []
        assert snapshot.where().ids == ["a"]
        assert snapshot.where(x={1, 2}).ids == ["a"]


def test_clustered_selections_are_views_and_others_copies(path):
    items = helpers.small_items(64)
    for item in items:
        item["v"] = vector(hash(item["id"]) % 97, 4)
    mmcache.build(path, items, helpers.SMALL, cluster_by="kind")
    with Snapshot.open(path) as snapshot:
        for kind in ("a", "b", None):
            selection = snapshot.where(kind=kind)
            assert selection.rows.tolist() == list(range(selection.rows[0], selection.rows[0] + len(selection)))
            assert np.shares_memory(selection.embeddings, snapshot.embeddings)
            assert not selection.embeddings.flags.writeable
        apart = snapshot.where(tags="y")
        assert not np.shares_memory(apart.embeddings, snapshot.embeddings)
        for record, embedding in zip(apart, apart.embeddings, strict=True):
            assert np.array_equal(record.embedding, embedding)


# Names and sections ---------------------------------------------------------------------------------------------------


def test_names_of_any_text_of_255_bytes(path):
    schemas = [
        Schema(name, index=(name,)) for name in ("/", "a/b", "x" * 255, "\u00e9" * 127, "meta", "blocks", "0/ids", " ")
    ]
    mmcache.build(path, {schema.name: [{"id": "a", schema.name: 1}] for schema in schemas}, *schemas)
    with Snapshot.open(path, verify="lazy") as snapshot:
        assert list(snapshot.collections) == [schema.name for schema in schemas]
        for collection in snapshot.collections.values():
            assert collection.where({collection.name: 1}).ids == ["a"]
            assert collection.terms(collection.name) == {1: 1}
        snapshot.verify(deep=True)
    for name in ("", "x" * 256, "\u00e9" * 128, "a\nb", "\0"):
        for wrong in (lambda name=name: Schema(name), lambda name=name: Schema("t", index=(name,))):
            with pytest.raises(ValueError, match="name"):
                wrong()


@pytest.mark.parametrize("count", [1010, 4090])
def test_a_table_of_sections_of_more_than_a_block(path, count):
    fields = [f"c{i}" for i in range(count)]
    mmcache.build(path, [{"id": "a"} | dict.fromkeys(fields, 5)], Schema("t", index=tuple(fields)))
    for verify in ("full", "lazy"):
        with Snapshot.open(path, verify=verify) as snapshot:
            assert snapshot.header.section_count == count + 6
            assert snapshot.header.table_size > 65_536
            assert snapshot["a"][fields[-1]] == 5
            assert snapshot.where({fields[-1]: 5}).ids == ["a"]
            assert not snapshot.where({fields[0]: 6}).ids
            snapshot.verify()


def test_more_sections_than_a_table_holds_are_refused_before_the_source_is_read(path):
    def unread():
        yield pytest.fail("the source was read")

    for schemas in (
        [Schema("t", index=tuple(f"c{i}" for i in range(4091)))],
        [Schema(f"t{i}") for i in range(1366)],
    ):
        with pytest.raises(mmcache.BuildError, match="a file has at most 4096"):
            mmcache.build(path, {schema.name: unread() for schema in schemas}, *schemas)
    assert not path.exists()


# Hashes that collide --------------------------------------------------------------------------------------------------


@pytest.fixture
def hash_by() -> Iterator[Callable[[Any], None]]:
    """Has builder and reader hash by a function."""
    with contextlib.ExitStack() as stack:
        yield lambda digest: stack.enter_context(inside.hashing(digest))


def few(values: int) -> Callable[..., int]:
    """Keys and terms hash to a few values; checksums stay."""

    def weak(data: bytes, seed: int = 0) -> int:
        is_key = len(data) < 12 and bytes(data[:1]) in (b"k", b"\xa2", b"\xa3", b"\xa4")
        digest = xxh3_64_intdigest(data, seed)
        return digest % values * (2**64 // values) if is_key else digest

    return weak


@pytest.mark.parametrize("values", [1, 3, 50])
def test_keys_and_terms_with_one_hash_are_told_apart(path, hash_by, values):
    hash_by(few(values))
    items = [{"id": f"k{i}", "kind": f"t{i % 40}", "v": vector(i, 2)} for i in range(120)]
    schema = Schema("items", index=("kind",), embedding="v")
    mmcache.build(path, items, schema)
    expected = {"items": list(questions(Expected.of(schema, items), absent=["k120", "k-1", "kk"]))}
    for verify, access in WAYS:
        with Snapshot.open(path, verify=verify, access=access) as snapshot:
            assert sweep(snapshot, expected) == 0
            assert [r and r.id for r in snapshot.get_many([f"k{i}" for i in range(110, 140)])] == [
                f"k{i}" if i < 120 else None for i in range(110, 140)
            ]


def test_a_duplicate_is_found_among_keys_with_one_hash(path, hash_by):
    hash_by(few(1))
    for keys in ("k1 k2 k1", "k1 k1 k2", "k2 k1 k3 k4 k1", "k1 k2 k3 k2 k1"):
        with pytest.raises(mmcache.BuildError, match="the key stands twice"):
            mmcache.build(path, [{"id": key} for key in keys.split()], Schema("items"))


def test_keys_of_one_hash_are_found_by_few_comparisons(path, hash_by):
    """All 100,000 have one of 16 hashes; without a weak hash, hardly a key meets another of its hash."""
    n = 100_000
    items = [{"id": f"k{i}", "t": f"t{i}"} for i in range(n)]
    begun = time.process_time()
    mmcache.build(path, items, Schema("items", index=("t",)))
    usual = time.process_time() - begun
    hash_by(few(16))
    begun = time.process_time()
    mmcache.build(path, items, Schema("items", index=("t",)))
    assert time.process_time() - begun <= 3 * usual
    for verify in ("full", "lazy"):
        with Snapshot.open(path, verify=verify) as snapshot:
            for i in range(0, n, 997):
                for ask, there in (
                    (lambda i=i, s=snapshot: s[f"k{i}"].id == f"k{i}", True),
                    (lambda i=i, s=snapshot: s.default.row(f"k{i}") == i, True),
                    (lambda i=i, s=snapshot: s.where(t=f"t{i}").rows.tolist() == [i], True),
                    (lambda i=i, s=snapshot: f"k{i}x" in s, False),
                    (lambda i=i, s=snapshot: len(s.where(t=f"t{i}x")) > 0, False),
                ):
                    with inside.compared_keys() as compared:
                        assert ask() is there
                    assert len(compared) <= 25


@given(
    hashes=st.lists(
        st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**32, 2**63, 2**64 - 1, 2**64 - 2]), max_size=60
    )
)
def test_the_gapped_table_finds_every_entry_and_no_other(hashes):
    keys = [f"key {i * 7919 % 64}".encode() for i in range(len(hashes))]
    order = in_order(np.array(hashes, np.uint64), keys.__getitem__)
    slots = build_slots(np.array(hashes, np.uint64), order)
    assert len(slots.hash) == len(slots.ordinal)
    assert len(slots.hash) % 8 == 0
    assert 1 << slots.bits < len(slots.hash)
    assert (slots.hash[1:] >= slots.hash[:-1]).all()
    entries = [(hashes[i], keys[i]) for i in order.tolist()]
    assert entries == sorted(entries)

    def find(hashed, raw):
        return find_ordinal(
            slots.hash.tolist(), slots.ordinal.tolist(), slots.bits, hashed, raw=raw, key=keys.__getitem__
        )

    for ordinal, (hashed, key) in enumerate(zip(hashes, keys, strict=True)):
        assert find(hashed, key) == ordinal
        for raw in (b"key", b"key 999", key + b"0", b""):
            assert find(hashed, raw) is None
    for hashed in (0, 1, 2**63 - 1, 2**64 - 1):
        if hashed not in hashes:
            assert find(hashed, b"key 1") is None


# Rebuilds -------------------------------------------------------------------------------------------------------------


def test_an_unchanged_rebuild_keeps_the_published_file_and_a_change_of_anything_does_not(path):
    items = helpers.small_items()
    first = mmcache.build(path, items, helpers.SMALL, metadata={"a": 1})
    inode, data = os.stat(path).st_ino, path.read_bytes()
    again = mmcache.build(path, items, helpers.SMALL, metadata={"a": 1})
    assert (again.changed, again.generation, again.build_id, again.sha256) == (False, 1, first.build_id, first.sha256)
    assert os.stat(path).st_ino == inode
    assert path.read_bytes() == data
    assert not os.path.exists(f"{path}.bak")
    changed = [
        (items, helpers.SMALL, {"a": 2}),
        (items[::-1], helpers.SMALL, {"a": 1}),
        (items[:-1], helpers.SMALL, {"a": 1}),
        ([*items[:-1], items[-1] | {"v": vector(3, 4)}], helpers.SMALL, {"a": 1}),
        (items, Schema("items", index=("kind",), embedding="v"), {"a": 1}),
    ]
    for generation, (records, schema, metadata) in enumerate(changed, 2):
        report = mmcache.build(path, records, schema, metadata=metadata)
        assert (report.changed, report.generation) == (True, generation)


def test_metadata_of_any_kind_comes_back(path):
    metadata = {"a": [1, {"b": None}], "when": msgpack.Timestamp(1, 2), "nan": float("inf"), "bin": b"\0", "": ""}
    mmcache.build(path, [], Schema("items"), metadata=metadata)
    with Snapshot.open(path) as snapshot:
        assert same(dict(snapshot.metadata), metadata)
        assert snapshot.source is None
        assert snapshot.header.version == (2, 0, 0)


@pytest.mark.parametrize("last", ["z", "\n", "a\nb", "\u00e4" * 31, "x" * 300])
@pytest.mark.parametrize("n", [3, 300, 3000])
def test_keys_of_any_length_are_listed_to_the_very_end_of_a_file(path, n, last):
    keys = ["k" * 60, *(f"{i}\u00e9"[-1 - i % 5 :] + str(i) for i in range(n)), last]
    mmcache.build(path, [{"id": key} for key in keys], Schema("items"))
    for verify in ("full", "lazy"):
        with Snapshot.open(path, verify=verify) as snapshot:
            assert list(snapshot) == keys
            assert snapshot.where().ids == keys
            assert snapshot.where()[::-7].ids == keys[::-7]
