"""Records from mappings in memory, their embeddings inside or beside them."""

from __future__ import annotations

import pickle
import struct
import types
from collections import ChainMap

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mmcache.errors import BuildError, SourceError
from mmcache.schema import Schema, matches, parse_query, terms_of
from mmcache.sources import IterableSource
from mmcache.sources.base import Source, SourceRecord

ITEMS = Schema("items")
WITH_V = Schema("items", embedding="v")


def v(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def records(data, *schemas, **options):
    source = IterableSource(data, *schemas, **options)
    with source.read() as reading:
        return list(reading.records(schemas[0].name))


def test_it_is_a_source_that_cannot_be_made_again_from_a_spec():
    source = IterableSource([{"id": "a"}], ITEMS)
    assert isinstance(source, Source)
    assert source.schemas == (ITEMS.resolved(),)
    assert source.spec() is None
    assert source.fingerprint() == IterableSource([], ITEMS).fingerprint() == bytes(32)


def test_a_record_has_its_key_first_and_its_embedding_apart():
    found = records([{"n": 1, "v": [1, 2], "id": "a", "tags": ["x"]}, {"id": "b", "v": None}], WITH_V)
    assert [type(record) for record in found] == [SourceRecord] * 2
    assert found == [(("id", "n", "tags"), ("a", 1, ["x"]), v(1, 2)), (("id",), ("b",), None)]


def test_records_of_the_same_fields_share_their_names_whatever_their_order():
    found = records(
        [{"id": "a", "n": 1, "m": 2}, {"m": 3, "v": [1], "id": "b", "n": 4}, {"id": "c", "n": 5, "m": 6}], WITH_V
    )
    assert [record.values for record in found] == [("a", 1, 2), ("b", 4, 3), ("c", 5, 6)]
    assert len({id(record.names) for record in found}) == 1


def test_records_may_each_have_fields_of_their_own():
    found = records(({"id": str(i), f"f{i}": i} for i in range(10_000)), ITEMS)
    assert all(record == (("id", f"f{i}"), (str(i), i), None) for i, record in enumerate(found))


@pytest.mark.parametrize("kind", [dict, types.MappingProxyType, ChainMap])
def test_any_mapping_is_a_record(kind):
    assert records([kind({"id": "a", "n": 1})], ITEMS) == [(("id", "n"), ("a", 1), None)]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (["id", "a"], "record 1: a record must be a mapping, not list"),
        ("id", "a record must be a mapping, not str"),
        (None, "a record must be a mapping, not NoneType"),
        ({}, "no field 'id', which is the key; the record has: none"),
        ({"key": "a", "n": 1}, "no field 'id', which is the key; the record has: key, n"),
        ({"id": None}, "the key 'id': a key cannot be None"),
        ({"id": 5.0}, "the key 'id': a key cannot be 5.0"),
        ({"id": True}, "the key 'id': a key cannot be True"),
        ({"id": 2**64}, "the key 'id': a key cannot hold the int 18446744073709551616"),
        ({"id": ["a", "b"]}, "the key 'id': a key cannot be \\['a', 'b'\\]"),
        ({"id": ("a", "b")}, "the key 'id': a tuple; a key of several values has a field for each"),
        ({"id": "b", 5: 1}, "field names must be str, not 5"),
        ({"id": "b", "v": "x"}, "the embedding is text but not JSON"),
        ({"id": "b", "v": [1]}, "the embedding has 1 numbers, expected dim=2"),
        (
            {"id": "b", "v": v(1)},
            "4 bytes, which is dim=2 numbers of float16 or bfloat16; to read them, set dtype='f2' or",
        ),
    ],
)
def test_a_record_that_cannot_be_used_is_named(item, reason):
    with pytest.raises(BuildError, match=reason) as caught:
        records([{"id": "a", "v": [1, 2]}, item], WITH_V)
    assert caught.value.collection == "items"
    assert "record 1:" in str(caught.value)
    given = item.get("id") if isinstance(item, dict) and 5 not in item else None
    assert caught.value.key == (given if isinstance(given, str | None) else repr(given))


@pytest.mark.parametrize("data", [5, None])
def test_what_cannot_be_iterated_is_refused(data):
    with pytest.raises(BuildError, match=f"{type(data).__name__}, expected an iterable of mappings"):
        records(data, ITEMS)


# ---- embeddings beside the records -----------------------------------------------------------------------------------

TEN = [{"id": str(i)} for i in range(10)]


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f8", "f2", "i8", "u1"])
def test_row_i_of_the_array_is_of_record_i(dtype):
    array = np.arange(20).reshape(10, 2).astype(dtype)
    found = records(TEN, WITH_V, embeddings=array)
    assert [record.vector for record in found] == [v(2 * i, 2 * i + 1) for i in range(10)]


def test_the_array_may_be_a_view_a_list_or_longer_than_a_block():
    array = np.arange(60.0).reshape(10, 6)[:, ::3]
    assert [r.vector for r in records(TEN, WITH_V, embeddings=array)] == [v(6 * i, 6 * i + 3) for i in range(10)]
    assert [r.vector for r in records(TEN, WITH_V, embeddings=[[i, 0] for i in range(10)])] == [
        v(i, 0) for i in range(10)
    ]
    many = [{"id": str(i)} for i in range(2500)]
    found = records(many, WITH_V, embeddings=np.arange(2500.0)[:, None])
    assert [record.vector for record in found] == [v(i) for i in range(2500)]


@pytest.mark.parametrize("make", [list, iter])
def test_as_many_embeddings_as_records(make):
    with pytest.raises(BuildError, match="embeddings= has 9 rows and there are more records") as caught:
        records(make(TEN), WITH_V, embeddings=np.ones((9, 2)))
    assert caught.value.key == "9"
    with pytest.raises(BuildError, match="embeddings= has more rows than the 10 records"):
        records(make(TEN), WITH_V, embeddings=np.ones((11, 2)))
    with pytest.raises(BuildError, match="embeddings= has more rows than the 0 records"):
        records(make([]), WITH_V, embeddings=np.ones((1, 2)))
    assert records(make([]), WITH_V, embeddings=np.ones((0, 2))) == []


@pytest.mark.parametrize(
    "array",
    [
        np.ones(10),
        np.ones((10, 3)),
        np.ones((10, 2, 2)),
        np.full((10, 2), "x"),
        np.ones((10, 2), bool),
        np.ones((10, 0)),
    ],
)
def test_an_array_of_another_shape_or_dtype_is_refused(array):
    with pytest.raises(BuildError, match=r"embeddings= is an array of shape .*, expected \(n, 2\) numbers"):
        records(TEN, Schema("items", embedding="v", dim=2), embeddings=array)


def test_embeddings_that_float32_cannot_hold_are_refused():
    with pytest.raises(BuildError, match=r"embeddings= from row 0 on: .*1e\+39 at position 1"):
        records(TEN, WITH_V, embeddings=np.tile([0, 1e39], (10, 1)))


def test_embeddings_come_from_one_place():
    with pytest.raises(BuildError, match="record 0: the record holds 'v', and embeddings= is given too"):
        records([{"id": "a", "v": None}], WITH_V, embeddings=np.ones((1, 2)))
    with pytest.raises(ValueError, match="whose Schema names no embedding field"):
        IterableSource(TEN, ITEMS, embeddings=np.ones((10, 2)))


# ---- several collections ---------------------------------------------------------------------------------------------


def test_several_collections_are_a_mapping_by_name():
    source = IterableSource(
        {"b": [{"key": "x"}], "a": iter([{"id": "y"}])},
        Schema("a", embedding="v"),
        Schema("b", key="key"),
        embeddings={"a": np.ones((1, 2))},
    )
    with source.read() as reading:
        assert list(reading.records("a")) == [(("id",), ("y",), v(1, 1))]
        assert list(reading.records("b")) == [(("key",), ("x",), None)]
        assert (reading.count("a"), reading.count("b")) == (None, 1)
    assert [record and record.values for record in source.fetch("b", ["x"])] == [("x",)]


def test_one_collection_may_be_given_as_a_mapping_too():
    assert records({"items": [{"id": "a"}]}, ITEMS) == [(("id",), ("a",), None)]


@pytest.mark.parametrize(
    ("data", "schemas", "embeddings", "reason"),
    [
        ({"a": {"id": "a"}}, (ITEMS,), None, "no schema is named 'a'.*pass its values"),
        ({"items": [], "b": []}, (ITEMS,), None, "no schema is named 'b'"),
        ({"items": []}, (ITEMS, Schema("b")), None, "no records for collection b; records= has: items"),
        ([], (ITEMS, Schema("b")), None, "records= must be a mapping from collection to records for 2 schemas"),
        ({"items": [], "b": []}, (WITH_V, Schema("b")), [[1]], "embeddings= must be a mapping from collection"),
        ([], (WITH_V,), {"x": [[1]]}, "no schema is named 'x'"),
    ],
)
def test_collections_and_schemas_must_agree(data, schemas, embeddings, reason):
    with pytest.raises(ValueError, match=reason):
        IterableSource(data, *schemas, embeddings=embeddings)


def test_schemas_are_checked():
    with pytest.raises(TypeError, match="at least one Schema"):
        IterableSource([])
    with pytest.raises(ValueError, match="no collection 'x'; it has: items"):
        IterableSource([], ITEMS).fetch("x", ["a"])


# ---- reading again ---------------------------------------------------------------------------------------------------


def test_a_list_can_be_read_again():
    source = IterableSource(TEN, ITEMS)
    for _ in range(2):
        with source.read() as reading:
            assert reading.count("items") == len(list(reading.records("items"))) == 10


@pytest.mark.parametrize(
    "make", [iter, lambda data: (item for item in data), lambda data: map(dict, data)], ids=["iter", "generator", "map"]
)
def test_an_iterator_can_be_read_once_and_says_why(make):
    source = IterableSource(make(TEN), ITEMS)
    with source.read() as reading:
        assert reading.count("items") is None
        assert len(list(reading.records("items"))) == 10
        with pytest.raises(SourceError, match=r"collection 'items' are an iterator .*read once and was; give a list"):
            reading.records("items")
    for ask in (lambda: source.fetch("items", ["1"]), lambda: source.find("items", {})):
        with pytest.raises(SourceError, match="nothing can be looked up; give a list"):
            ask()


# ---- lookups ---------------------------------------------------------------------------------------------------------


def test_fetch_answers_in_the_order_asked_with_none_for_none():
    source = IterableSource([{"id": "a", "v": [1]}, {"id": "b"}], WITH_V)
    assert source.fetch("items", ["b", "no", "a", "b"]) == [
        (("id",), ("b",), None),
        None,
        (("id",), ("a",), v(1)),
        (("id",), ("b",), None),
    ]


def test_a_lookup_among_bad_records_is_a_source_error():
    source = IterableSource([{"id": "a"}, {"id": 5.5}], ITEMS)
    with pytest.raises(SourceError, match="record 1: the key 'id'"):
        source.fetch("items", ["a"])


terms = st.sampled_from(["a", "A", "5", "", 5, 1, 0, True, False, None])
fields = st.dictionaries(st.sampled_from(["x", "y"]), st.one_of(terms, st.lists(terms, max_size=3), st.just(5.0)))


@given(
    st.lists(fields, max_size=8),
    st.dictionaries(st.sampled_from(["x", "y"]), st.one_of(terms, st.lists(terms, max_size=3))),
)
def test_find_is_what_terms_of_says(data, asked):
    schema = Schema("items", index=("x", "y"))
    data = [*data, {"x": "q", "y": "q"}]
    source = IterableSource([{"id": str(i), **item} for i, item in enumerate(data)], schema)
    query = parse_query(schema, asked, {})

    def answers(item):
        try:
            return matches({field: terms_of(item.get(field)) for field in query}, query)
        except TypeError:
            return False

    expected = [str(i) for i, item in enumerate(data) if answers(item)]
    assert [record.values[0] for record in source.find("items", query)] == expected


def test_it_pickles_with_its_records_and_without_what_lookups_made():
    source = IterableSource([{"id": "a", "text": "x" * 10_000}], ITEMS)
    size = len(pickle.dumps(source))
    source.fetch("items", ["a"])
    data = pickle.dumps(source)
    assert len(data) == size
    assert pickle.loads(data).fetch("items", ["a"]) == source.fetch("items", ["a"])
