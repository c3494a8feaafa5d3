"""Keys of every type, alone, together and of several fields; and several embeddings of a record."""

# mypy: disable-error-code="arg-type, index, call-overload, union-attr"

from __future__ import annotations

import contextlib
import enum
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mmcache import BuildError, Schema, Snapshot, SourceRecord
from mmcache.format.keys import hash_key, type_of
from mmcache.storage.publish import Order, publish
from mmcache.storage.snapshot import DirtyError
from tests.format import plain_reader

pytestmark = pytest.mark.usefixtures("no_disk_wait")

WAYS = [(verify, access) for verify in ("auto", "full", "lazy") for access in ("mmap", "copy")]

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8) | st.sampled_from(["", "x" * 31, "x" * 32])
texts |= st.sampled_from(["1", "y" * 255, "y" * 256])
long_texts = texts | st.just("z" * 65_532)
numbers = st.integers(-(2**63), 2**64 - 1) | st.integers(-40, 300) | st.sampled_from([2**16, 2**32, 2**32 - 1, -129])
binary = st.binary(max_size=8) | st.sampled_from([b"", b"1", b"b" * 255, b"b" * 256])
scalars = texts | numbers | binary
several = st.lists(scalars, min_size=2, max_size=8).map(tuple)
KINDS = {"text": long_texts, "int": numbers, "bytes": binary, "mixed": scalars}


class Held:
    """A source of records that it was given."""

    def __init__(self, schema: Schema, records: Sequence[SourceRecord]) -> None:
        self.schemas = (schema,)
        self._records = records

    @contextlib.contextmanager
    def read(self) -> Iterator[Held]:
        yield self

    def count(self, _: str) -> int:
        return len(self._records)

    def records(self, _: str) -> Iterator[SourceRecord]:
        return iter(self._records)

    def fetch(self, _: str, ids: Sequence[Any]) -> list[SourceRecord | None]:
        found = {record.values[0]: record for record in self._records}
        return [found.get(key) for key in ids]

    def find(self, _: str, query: Any) -> Iterator[SourceRecord]:
        raise NotImplementedError

    def fingerprint(self) -> bytes:
        return bytes(32)

    def spec(self) -> None:
        return None


def keyed(keys: Sequence[Any], schema: Schema) -> list[SourceRecord]:
    name = schema.resolved().key
    return [SourceRecord((name, "n", "kind"), (key, i, i % 3), None) for i, key in enumerate(keys)]


def check(path: Any, keys: Sequence[Any], schema: Schema, absent: Sequence[Any], **options: Any) -> None:
    """Every key leads to its record, in every way of asking and of opening, and no other does."""
    schema = schema.resolved()
    publish(path, Order(Held(schema, keyed(keys, schema)), **options))
    absent = [key for key in absent if key not in keys]
    for verify, access in WAYS:
        with Snapshot.open(path, verify=verify, access=access) as snapshot:
            found = list(snapshot)
            assert sorted(map(repr, found)) == sorted(map(repr, keys))
            if not options:
                assert found == list(keys)
            assert [type(key) for key in found] == [type(keys[keys.index(key)]) for key in found]
            for i, key in enumerate(keys):
                record = snapshot[key]
                assert (record.id, record["n"]) == (key, i)
                assert type(record.id) is type(key)
                assert key in snapshot
                assert found[snapshot.default.row(key)] == key
                fields = dict(zip(schema.key_fields, key if isinstance(schema.key, tuple) else (key,), strict=True))
                assert record.asdict() == {**fields, "n": i, "kind": i % 3} == dict(record)
                assert pickle.loads(pickle.dumps(record)) == record
            for key in absent:
                assert key not in snapshot
                assert snapshot.get(key) is None
            many = [*keys, *absent] * 25
            assert [record and record["n"] for record in snapshot.get_many(many)] == [
                *range(len(keys)),
                *([None] * len(absent)),
            ] * 25
            assert snapshot.default.get_embeddings(list(keys) * 25).shape == (len(keys) * 25, 0)
            around = snapshot.default.around({hash_key(key): [key] for key in [*keys[:2], *absent[:2]]})
            for key in [*keys[:2], *absent[:2]]:
                assert around.is_dirty(key)
                for ask in (
                    around.__getitem__,
                    around.row,
                    around.__contains__,
                    lambda key, around=around: around.get_many([key] * 30),
                ):
                    with pytest.raises(DirtyError):
                        ask(key)
            assert all(around[key].id == key for key in keys[2:])
            snapshot.verify(deep=True)
            assert (
                snapshot.default.key_types == tuple(sorted(set(map(type_of, keys))))
                or len(set(map(type_of, keys))) > 16
            )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(data=st.data())
def test_keys_of_one_type_and_of_all_round_trip(tmp_path_factory, kind, data):
    keys = data.draw(st.lists(KINDS[kind], unique_by=lambda key: (type(key), key), max_size=8))
    absent = data.draw(st.lists(KINDS["mixed"], max_size=8))
    path = tmp_path_factory.mktemp("keys", numbered=True) / "t.mmc"
    check(path, keys, Schema("t", index=("kind",)), [*absent, 1, "1", b"1", (1, "1"), 2**64 - 1, ""])


@settings(max_examples=15)
@given(data=st.data())
def test_keys_of_several_fields_round_trip(tmp_path_factory, data):
    count = data.draw(st.integers(2, 8))
    part = st.tuples(*[data.draw(st.sampled_from([texts, numbers, scalars])) for _ in range(count)])
    keys = data.draw(st.lists(part, unique_by=repr, max_size=8))
    schema = Schema("t", key=tuple(f"k{i}" for i in range(count)), index=("kind",))
    path = tmp_path_factory.mktemp("keys", numbered=True) / "t.mmc"
    check(path, keys, schema, ["a", 5, b"", ("a",) * count, tuple(range(count))])
    path.unlink()
    check(path, keys, schema, [], cluster_by="kind")


def test_many_keys_of_each_type_are_found_and_listed(path):
    n = 3000
    for make in (int, str, lambda i: str(i).encode(), lambda i: ("EPSG", i), lambda i: [i, str(i), b"%d" % i][i % 3]):
        keys = [make(i) for i in range(0, 10 * n, 10)]
        schema = Schema("t", key=("a", "b")) if isinstance(keys[0], tuple) else Schema("t")
        publish(path, Order(Held(schema, keyed(keys, schema))))
        for verify in ("full", "lazy"):
            with Snapshot.open(path, verify=verify) as snapshot:
                assert list(snapshot) == keys
                assert [record.id for record in snapshot.get_many(keys)] == keys
                assert [record.id for record in snapshot.values()] == keys
                assert snapshot.where()[::-7].ids == keys[::-7]
                assert snapshot.get_many([make(i) for i in range(1, 10 * n, 10)]) == [None] * n


def test_a_part_of_the_key_can_be_indexed_and_stands_in_the_key_alone(path):
    schema = Schema("t", key=("authority", "code"), index=("authority", "code"))
    records = [
        SourceRecord((("authority", "code"), "name"), ((name, code), f"{name}:{code}"), None)
        for name in ("EPSG", "ESRI")
        for code in range(20)
    ]
    publish(path, Order(Held(schema, records)))
    with Snapshot.open(path) as snapshot:
        assert snapshot["EPSG", 7].asdict() == {"authority": "EPSG", "code": 7, "name": "EPSG:7"}
        assert snapshot.where(authority="ESRI", code=[3, 5]).ids == [("ESRI", 3), ("ESRI", 5)]
        assert list(snapshot["EPSG", 7]) == ["authority", "code", "name"]
        assert snapshot.default.layout.shapes[0].to_plain() == [["authority", "code"], "name"]
        assert plain_reader.File(path.read_bytes()).collections["t"].find(("EPSG", 7)) == 7


class Number(enum.IntEnum):
    SEVEN = 7


class Name(enum.StrEnum):
    X = "x"


def test_a_key_of_a_subclass_is_the_plain_value(path):
    for schema, subclasses, plain in (
        (Schema("t"), [Number.SEVEN, Name.X], [7, "x"]),
        (Schema("t"), [Number.SEVEN], [7]),
        (Schema("t"), [Name.X], ["x"]),
        (Schema("t", key=("a", "b")), [(Name.X, Number.SEVEN)], [("x", 7)]),
    ):
        publish(path, Order(Held(schema, keyed(subclasses, schema))))
        with Snapshot.open(path) as snapshot:
            assert list(map(repr, snapshot)) == list(map(repr, plain))
            assert [snapshot[key]["n"] for key in [*plain, *subclasses]] == [*range(len(plain))] * 2


@pytest.mark.parametrize(
    "key", [None, True, 1.5, 2**64, -(2**63) - 1, (), ("a",), ("a",) * 9, ("a", None), ("a", ("b", "c")), ["a", "b"]]
)
def test_what_is_no_key_is_refused_by_name(path, key):
    schema = Schema("t")
    with pytest.raises(BuildError, match="a key cannot"):
        publish(path, Order(Held(schema, keyed(["ok", key], schema))))


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ("id", ("a", "b")),
        (("a", "b"), "a"),
        (("a", "b"), ("a", "b", "c")),
        (("a", "b", "c"), ("a", "b")),
        (("a", "b"), 5),
    ],
)
def test_a_key_has_one_value_for_each_of_its_fields(path, fields, key):
    schema = Schema("t", key=fields)
    with pytest.raises(BuildError, match=r"is not one value for each of [123] key fields"):
        publish(path, Order(Held(schema, keyed([key], schema))))


def test_a_key_that_stands_twice_is_refused_whatever_its_type(path):
    for schema, keys in (
        *((Schema("t"), ["b", key, b"b", key]) for key in ("a", 5, b"a", "")),
        (Schema("t", key=("a", "b")), [("a", 1), (1, "a"), ("a", "1"), (1, "a")]),
    ):
        with pytest.raises(BuildError, match="the key stands twice, in records 1 and 3"):
            publish(path, Order(Held(schema, keyed(keys, schema))))


# Several embeddings ---------------------------------------------------------------------------------------------------

TWO = Schema("t", index=("kind",), embedding=("title", "body", "none"))


def vectors_of(i: int) -> tuple[bytes | None, bytes | None, None]:
    title = np.array([i, 1.0, -i], "<f4").tobytes()
    body = np.array([i, 2.0], "<f4").tobytes()
    return title if i % 3 else None, body, None


def two(n: int) -> list[SourceRecord]:
    return [SourceRecord(("id", "kind"), (f"k{i}", i % 2), vectors_of(i)) for i in range(n)]


@pytest.mark.parametrize("cluster_by", [None, "kind"])
def test_several_embeddings_have_blocks_norms_and_presence_of_their_own(path, cluster_by):
    n = 50
    publish(path, Order(Held(TWO, two(n)), cluster_by=cluster_by))
    for verify, access in WAYS:
        with Snapshot.open(path, verify=verify, access=access) as snapshot:
            found = snapshot.default
            assert found.embedding_fields == ("title", "body", "none")
            for field, at, dim in (("title", 0, 3), ("body", 1, 2), ("none", 2, 0)):
                matrix = found.embeddings_of(field)
                assert matrix.shape == (n, dim)
                assert found.dim_of(field) == dim
                for key in found:
                    i = int(key[1:])
                    expected = vectors_of(i)[at]
                    one = snapshot.embedding(key, field)
                    assert (None if one is None else one.tobytes()) == expected
                    again = snapshot[key].embedding_of(field)
                    assert (None if again is None else again.tobytes()) == expected
                    assert found.has_embedding_of(field)[found.row(key)] == (expected is not None)
                    assert matrix[found.row(key)].tobytes() == (expected or bytes(4 * dim))
                assert np.allclose(found.norms_of(field), np.sqrt((matrix.astype("f8") ** 2).sum(axis=1)))
                chosen = snapshot.where(kind=1)
                assert np.array_equal(chosen.embeddings_of(field), matrix[chosen.rows])
                assert np.array_equal(snapshot.get_embeddings(["k4", "k2"] * 20, field)[:2], matrix[chosen_rows(found)])
            assert np.array_equal(found.embeddings, found.embeddings_of("title"))
            for ask in (found.embeddings_of, found.norms_of, found.has_embedding_of, snapshot["k1"].embedding_of):
                with pytest.raises(ValueError, match=r"no embedding 'other'; there are: title, body"):
                    ask("other")
            sent = pickle.loads(pickle.dumps(snapshot["k4"]))
            assert sent.embedding_of("body").tolist() == [4, 2]
            assert sent.embedding_of("none") is None
            assert sent.embedding.tolist() == [4, 1, -4]
            reference = pickle.loads(pickle.dumps(snapshot.embedding_ref("k4", "body")))
            assert reference.embedding.tolist() == [4, 2]
            snapshot.verify(deep=True)


def chosen_rows(collection: Any) -> list[int]:
    return [collection.row("k4"), collection.row("k2")]


def test_several_embeddings_are_columns_of_an_arrow_table(path):
    pytest.importorskip("pyarrow")
    publish(path, Order(Held(TWO, two(20))))
    with Snapshot.open(path) as snapshot:
        table = snapshot.to_arrow()
        assert table.column_names == ["id", "kind", "title", "body"]
        assert table["title"].null_count == 7
        assert table["body"].to_pylist()[3] == [3, 2]
        assert snapshot.where(kind=0).to_arrow(["body", "id"])["body"].to_pylist()[1] == [2, 2]


def test_an_embedding_of_another_length_is_refused_by_field_and_key(path):
    records = two(3)
    records[2] = records[2]._replace(vector=(None, bytes(12), None))
    with pytest.raises(BuildError, match=r"key 'k2': embedding 'body' of 3 numbers, expected 2"):
        publish(path, Order(Held(TWO, records)))
