"""Embeddings of every kind of numbers, one or several of a record, from every source; and what a build reports."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import sqlite3
import struct
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import BuildError, IterableSource, JSONLinesSource, Schema, Snapshot, SQLiteSource
from mmcache.sources.blobs import probable, scattered

RNG = np.random.default_rng(5)
N, DIM = 20, 96
EXACT = RNG.integers(-127, 128, (N, DIM)).astype("f4") / 64  # exact in every kind of floats but bfloat16


def bfloat(array):
    return (np.asarray(array, "<f4").view("<u4") >> 16).astype("<u2")


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


FLOATS = {
    "f4": lambda v: v.astype("<f4"),
    "f8": lambda v: v.astype("<f8"),
    "f2": lambda v: v.astype("<f2"),
    "bf2": bfloat,
    ">f4": lambda v: v.astype(">f4"),
    ">f8": lambda v: v.astype(">f8"),
    ">f2": lambda v: v.astype(">f2"),
    ">bf2": lambda v: bfloat(v).astype(">u2"),
}
INTEGERS = {"i1": lambda v: v.astype("i1"), "u1": lambda v: v.astype("u1")}
SHAPES = {
    "normal": lambda: RNG.standard_normal(DIM),
    "unit": lambda: (v := RNG.standard_normal(DIM)) / np.linalg.norm(v),
    "large": lambda: RNG.standard_normal(DIM) * 300,
    "small": lambda: RNG.standard_normal(DIM) / 64,
    "uniform": lambda: RNG.uniform(-1, 1, DIM),
    "positive": lambda: RNG.uniform(0, 1, DIM),
    "rectified": lambda: np.maximum(RNG.standard_normal(2 * DIM), 0),
}


def database(path, rows, columns="id text primary key, v blob"):
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(f"CREATE TABLE t ({columns})")
        db.executemany(f"INSERT INTO t VALUES ({', '.join('?' * len(rows[0]))})", rows)
    return path


def read(source):
    with source.read() as reading:
        return list(reading.records("t"))


def matrix(records):
    return np.array([np.frombuffer(record.vector, "<f4") for record in records])


# --- what bytes are


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_bytes_of_floats_tell_their_kind(dtype, shape):
    found = {probable(FLOATS[dtype](SHAPES[shape]()).tobytes()) for _ in range(50)}
    assert dtype in found
    assert found <= {dtype, None}


@pytest.mark.parametrize(
    "encode",
    [
        lambda v: np.clip(v * 40, -127, 127).astype("i1"),
        lambda v: np.clip(v * 40 + 128, 0, 255).astype("u1"),
        lambda v: (v * 100).astype("<i4"),
        lambda _: RNG.bytes(4 * DIM),
    ],
    ids=["int8", "uint8", "int32", "noise"],
)
def test_bytes_of_no_floats_are_told_from_float32(encode):
    blobs = [bytes(encode(RNG.standard_normal(4 * DIM))) for _ in range(50)]
    assert {probable(blob) for blob in blobs} == {None}
    assert sum(map(scattered, blobs)) > 30


def test_a_vector_that_says_little_is_not_misjudged():
    for vector in (np.zeros(DIM), np.eye(1, DIM, 5)[0], np.ones(DIM), np.sign(RNG.standard_normal(DIM))):
        for dtype, encode in FLOATS.items():
            assert probable(encode(vector).tobytes()) in {None, dtype}


# --- by dtype=


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [DIM, None])
def test_a_dtype_is_read_as_what_it_says(tmp_path, dtype, dim):
    encoded = [FLOATS[dtype](vector).tobytes() for vector in EXACT]
    schema = Schema("t", key="id", embedding="v", dtype=dtype, dim=dim)
    rows = [(f"k{i}", blob) for i, blob in enumerate(encoded)]
    expected = EXACT if "bf2" not in dtype else (bfloat(EXACT).astype("<u4") << 16).view("<f4")
    for source in (
        SQLiteSource(database(tmp_path / "t.db", rows), schema),
        IterableSource([{"id": key, "v": blob} for key, blob in rows], schema),
    ):
        assert np.array_equal(matrix(read(source)), expected)
        assert np.array_equal(matrix(source.fetch("t", ["k3"])), expected[3:4])


@pytest.mark.parametrize("dtype", INTEGERS)
def test_bytes_of_integers_are_numbers(dtype):
    numbers = RNG.integers(0, 128, (N, DIM))
    records = [{"id": str(i), "v": INTEGERS[dtype](row).tobytes()} for i, row in enumerate(numbers)]
    source = IterableSource(records, Schema("t", embedding="v", dtype=dtype, dim=DIM))
    assert np.array_equal(matrix(read(source)), numbers.astype("f4"))


def test_bits_are_zeros_and_ones_the_highest_first():
    bits = RNG.integers(0, 2, (N, 90))
    records = [{"id": str(i), "v": np.packbits(row).tobytes()} for i, row in enumerate(bits)]
    for dim, width in ((90, 90), (None, 96)):
        found = matrix(read(IterableSource(records, Schema("t", embedding="v", dtype="bits", dim=dim))))
        assert np.array_equal(found, np.pad(bits, ((0, 0), (0, width - 90))).astype("f4"))
    source = IterableSource([{"id": "a", "v": b"\xff"}], Schema("t", embedding="v", dtype="bits", dim=7))
    with pytest.raises(BuildError, match="bits beyond dim=7"):
        read(source)


def test_an_unknown_dtype_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"dtype must be one of 'f4' \(float32\), 'f8' .* not 'float16'"):
        Schema("t", embedding="v", dtype="float16")  # type: ignore[arg-type]


# --- recognised


@pytest.mark.parametrize("dtype", FLOATS)
def test_dim_and_bytes_without_a_doubt_need_no_dtype(tmp_path, dtype):
    vectors = RNG.standard_normal((N, DIM)).astype("f4")
    vectors[1], vectors[2] = 0, np.eye(1, DIM)[0]  # say nothing themselves
    encoded = [FLOATS[dtype](vector).tobytes() for vector in vectors]
    schema = Schema("t", key="id", embedding="v", dim=DIM)
    source = SQLiteSource(database(tmp_path / "t.db", [(f"k{i}", blob) for i, blob in enumerate(encoded)]), schema)
    found = matrix(read(source))
    assert np.abs(found - vectors).max() < 0.05
    for i in range(3):  # as a build reads them, whatever they say themselves
        assert np.array_equal(matrix(source.fetch("t", [f"k{i}"])), found[i : i + 1])


def test_zeros_before_the_first_telling_embedding_leave_the_question_open():
    half = FLOATS["f2"](EXACT).tolist()
    blobs = [bytes(2 * DIM), *(np.array(row, "<f2").tobytes() for row in half)]
    records = [{"id": str(i), "v": blob} for i, blob in enumerate(blobs)]
    found = matrix(read(IterableSource(records, Schema("t", embedding="v", dim=DIM))))
    assert np.array_equal(found, np.vstack([np.zeros((1, DIM)), EXACT]).astype("f4"))
    with pytest.raises(BuildError, match=rf"key '1': .*does as {DIM} numbers of float16; set dtype='f2'"):
        read(IterableSource(records, Schema("t", embedding="v")))


@pytest.mark.parametrize("dim", [DIM, None])
@pytest.mark.parametrize("dtype", [None, "f4", "f8", "i1"])
@pytest.mark.parametrize("form", ["npy", "npy of float64", "JSON in a BLOB", "JSON", "pgvector", "list", "array"])
def test_what_says_itself_what_it_is_needs_neither(form, dim, dtype):
    vector = EXACT[0]
    value = {
        "npy": npy(vector),
        "npy of float64": npy(vector.astype(">f8")),
        "JSON in a BLOB": json.dumps(vector.tolist()).encode(),
        "JSON": json.dumps(vector.tolist()),
        "pgvector": "[" + ",".join(f"{number:.9g}" for number in vector) + "]",
        "list": vector.tolist(),
        "array": vector.astype("f2"),
    }[form]
    source = IterableSource([{"id": "a", "v": value}], Schema("t", embedding="v", dim=dim, dtype=dtype))
    assert np.array_equal(matrix(read(source)), EXACT[:1])


VECTOR = RNG.standard_normal(384).astype("f4")
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "float16": (VECTOR.astype("f2").tobytes(), None, "384 numbers of float16; set dtype='f2'"),
    "bfloat16": (bfloat(VECTOR).tobytes(), None, "384 numbers of bfloat16; set dtype='bf2'"),
    "float64": (VECTOR.astype("f8").tobytes(), None, "384 numbers of float64; set dtype='f8'"),
    "whole float64": (np.round(VECTOR * 9).astype("f8").tobytes(), None, "384 numbers of float64; set dtype='f8'"),
    "big-endian": (VECTOR.astype(">f4").tobytes(), None, "384 numbers of big-endian float32; set dtype='>f4'"),
    "int8": ((VECTOR * 40).astype("i1").tobytes(), None, r"no sense as float32; set dtype= .*'i1' \(int8\)"),
    "f4 as f8": (VECTOR.tobytes(), "f8", "384 numbers of float32; set dtype='f4'"),
    "f4 as f2": (VECTOR.tobytes(), "f2", "384 numbers of float32; set dtype='f4'"),
    "f4 as i1": (VECTOR.tobytes(), "i1", "384 numbers of float32; set dtype='f4'"),
    "f4 as bits": (VECTOR.tobytes(), "bits", "384 numbers of float32; set dtype='f4'"),
    "a length": (struct.pack("<I", 384) + VECTOR.tobytes(), None, r"384 numbers of 4 bytes each behind their count"),
    "pgvector's": (struct.pack(">HH", 384, 0) + VECTOR.astype(">f4").tobytes(), None, "pgvector's binary form"),
    "pickle": (pickle.dumps(VECTOR), None, "a pickle"),
    "gzip": (b"\x1f\x8b" + bytes(42), None, "compressed by gzip"),
    "broken npy": (npy(VECTOR)[:-4], None, r"begins as a \.npy file, which cannot be read: its header promises"),
    "printed": (str(VECTOR), None, "it looks like a printed array, whose digits are cut"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_without_a_dim_what_is_not_float32_is_refused_by_name(tmp_path, kind):
    value, dtype, reason = REFUSED[kind]
    source = SQLiteSource(
        database(tmp_path / "t.db", [("k", value)]), Schema("t", key="id", embedding="v", dtype=dtype)
    )
    with pytest.raises(BuildError, match=f"key 'k': .*{reason}"):
        read(source)


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (np.tile(VECTOR, 2).astype("f2").tobytes(), "does as 768 numbers of float16; set dtype='f2' .* or dtype='f4'"),
        (VECTOR[:192].astype("f8").tobytes(), "does as 192 numbers of float64; set dtype='f8' .* or dtype='f4'"),
        ((VECTOR * 1000).astype("<i4").tobytes(), "no sense as dim=384 numbers of float32.* set dtype= .*'f4' if"),
        ((np.tile(VECTOR, 4) * 40).astype("i1").tobytes(), "no sense as dim=384 numbers of float32"),
    ],
    ids=["float16", "float64", "int32", "int8"],
)
def test_bytes_of_the_length_of_a_dim_are_float32_only_if_they_can_be(blob, reason):
    records = [{"id": "k", "v": blob}]
    with pytest.raises(BuildError, match=f"key 'k': .*{reason}"):
        read(IterableSource(records, Schema("t", embedding="v", dim=384)))
    found = matrix(read(IterableSource(records, Schema("t", embedding="v", dim=384, dtype="f4"))))
    assert found.tobytes() == blob


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (VECTOR.astype("f2").tobytes(), "768 bytes, which is dim=384 numbers of float16; to read them, set dtype='f2'"),
        (np.ones(384, "f2").tobytes(), "dim=384 numbers of float16 or bfloat16; to read them, set dtype='f2' or"),
        (bytes(range(48)), "48 bytes, which is dim=384 numbers of bits; to read them, set dtype='bits'"),
        (bytes(range(192)) * 2, "384 bytes, which is dim=384 numbers of int8 or uint8"),
        (np.tile(VECTOR, 2).tobytes(), r"768 numbers of float32 \(dtype='f4', dim=768\); embeddings of another length"),
        (struct.pack("<I", 384) + VECTOR.tobytes(), "384 numbers of 4 bytes each behind their count"),
        (pickle.dumps(VECTOR), "it is a pickle"),
    ],
)
def test_with_a_dim_the_message_says_what_the_bytes_probably_are(value, reason):
    source = IterableSource([{"id": "a", "v": value}], Schema("t", embedding="v", dim=384, dtype="f4"))
    with pytest.raises(BuildError, match=reason):
        read(source)


def test_vectors_of_two_lengths_in_one_column_are_two_fields_or_two_collections(tmp_path):
    rows = [(i, RNG.standard_normal(DIM * (1 + i % 2)).astype("<f4").tobytes()) for i in range(10)]
    path = database(tmp_path / "t.db", rows, "id integer primary key, v blob")
    with pytest.raises(BuildError, match="embeddings of another length need a field or collection of their own"):
        mmcache.build(tmp_path / "t.mmc", SQLiteSource(path, Schema("t", embedding="v")))
    fields = "SELECT id, iif(length(v) = 384, v, NULL) AS short, iif(length(v) = 768, v, NULL) AS long FROM t"
    mmcache.build(tmp_path / "t.mmc", SQLiteSource(path, Schema("t", query=fields, embedding=("short", "long"))))
    with Snapshot.open(tmp_path / "t.mmc") as snapshot:
        found = [(snapshot.embedding(i, "short"), snapshot.embedding(i, "long")) for i in range(10)]
        assert [(a is None, b is None) for a, b in found] == [(False, True), (True, False)] * 5
        assert snapshot.embeddings_of("long").shape == (10, 2 * DIM)
    schemas = [
        Schema(name, query=f"SELECT id, v FROM t WHERE length(v) = {size}", embedding="v")
        for name, size in (("short", 384), ("long", 768))
    ]
    assert mmcache.build(tmp_path / "t.mmc", SQLiteSource(path, *schemas)).records == {"short": 5, "long": 5}


# --- several


def test_one_embedding_in_a_tuple_is_that_embedding():
    assert Schema("t", embedding=("v",), dim=(3,)) == Schema("t", embedding="v", dim=3)
    assert Schema.from_dict({"name": "t", "embedding": ["a", "b"], "dim": [3, 3]}) == Schema(
        "t", embedding=("a", "b"), dim=3
    )
    assert Schema("t", embedding=()).embeddings == Schema("t").embeddings == ()


def test_each_embedding_has_its_own_dim_dtype_and_metric():
    schema = Schema("t", embedding=("a", "b"), dim=(3, None), dtype=("f2", None), metric=("dot", "cosine"))
    assert schema.embeddings == ("a", "b")
    assert [schema.dim_of(field) for field in "ab"] == [3, None]
    assert [schema.dtype_of(field) for field in "ab"] == ["f2", None]
    assert [schema.metric_of(field) for field in "ab"] == ["dot", "cosine"]
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    assert Schema("t", embedding=("a", "b"), dim=3).dim_of("b") == 3
    with pytest.raises(ValueError, match="has no embedding 'c'; there are: a, b"):
        schema.dim_of("c")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"embedding": ("a", "a")}, "listed twice"),
        ({"embedding": ("a", "id"), "key": "id"}, "'id' is the embedding, not a key"),
        ({"embedding": ("a", "b"), "index": ("b",)}, "'b' is the embedding, not a key or index too"),
        ({"embedding": ("a", 5)}, "embedding must be a field name or several, not 5"),
        ({"embedding": ("a", "b"), "dim": (1, 2, 3)}, "dim has 3 values for 2 embeddings"),
        ({"embedding": ("a", "b"), "dim": (1, 0)}, "dim must be an int"),
        ({"embedding": "a", "metric": ("dot", "dot")}, "metric has 2 values for 1 embeddings"),
    ],
)
def test_embeddings_that_cannot_be_meant_are_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        Schema("t", **arguments)


SEVERAL = Schema("t", key="id", embedding=("a", "b"), dim=(2, None), dtype=(None, "f2"))
A, B = struct.pack("<2f", 1, 2), struct.pack("<3f", 3, 4, 5)
VECTORS = {"k0": (A, B), "k1": (None, B), "k2": (A, None)}


def of_mappings(_):
    half = np.array([3, 4, 5], "<f2").tobytes()
    return IterableSource(
        [{"id": "k0", "b": half, "a": [1, 2], "n": 1}, {"id": "k1", "b": half}, {"id": "k2", "a": A}], SEVERAL
    )


def of_lines(directory):
    lines = [
        {"id": "k0", "a": [1, 2], "b": [3, 4, 5]},
        {"id": "k1", "b": [3, 4, 5], "a": None},
        {"id": "k2", "a": "[1,2]"},
    ]
    (directory / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return JSONLinesSource(directory / "t.jsonl", SEVERAL)


def of_sqlite(directory):
    half = np.array([3, 4, 5], "<f2").tobytes()
    rows = [("k0", half, "{}", A), ("k1", half, None, None), ("k2", None, "[1]", "[1, 2]")]
    return SQLiteSource(database(directory / "t.db", rows, "id text primary key, b, j, a"), SEVERAL)


def of_arrow(_):
    pa = pytest.importorskip("pyarrow", reason="the arrow extra is not installed")
    a = pa.array([[1, 2], None, [1, 2]], pa.list_(pa.float32()))
    b = pa.array([[3, 4, 5], [3, 4, 5], None], pa.list_(pa.float16(), 3))
    return IterableSource(pa.table({"id": ["k0", "k1", "k2"], "b": b, "a": a}), SEVERAL)


@pytest.mark.parametrize("make", [of_mappings, of_lines, of_sqlite, of_arrow])
def test_several_embeddings_come_from_every_source(tmp_path, make):
    source = make(tmp_path)
    records = read(source)
    assert {record.values[0]: record.vector for record in records} == VECTORS
    assert all({"a", "b"}.isdisjoint(record.names) for record in records)
    assert [record.vector for record in source.fetch("t", ["k2", "k0"])] == [VECTORS["k2"], VECTORS["k0"]]


def test_several_embeddings_beside_decoded_columns(tmp_path):
    of_sqlite(tmp_path)
    schema = Schema("t", key="id", embedding=("a", "b"), dtype=(None, "f2"), json=("j",))
    records = read(SQLiteSource(tmp_path / "t.db", schema))
    assert [(record.values[1], record.vector) for record in records] == [
        ({}, VECTORS["k0"]),
        (None, VECTORS["k1"]),
        ([1], VECTORS["k2"]),
    ]


def test_of_several_embeddings_the_message_names_which():
    records = [{"id": "k", "a": [1, 2], "b": "x"}]
    with pytest.raises(BuildError, match="key 'k': record 0: 'b': the embedding is text but not JSON"):
        read(IterableSource(records, SEVERAL))


def test_arrays_beside_the_records_may_be_several():
    matrices = {"a": np.ones((3, 2)), "b": np.zeros((3, 5), "f2")}
    records = [{"id": str(i)} for i in range(3)]
    found = read(IterableSource(records, SEVERAL, embeddings={"t": matrices}))
    assert [record.vector for record in found] == [(np.ones(2, "f4").tobytes(), bytes(20))] * 3
    with pytest.raises(BuildError, match="must give an array for each of a, b"):
        read(IterableSource(records, SEVERAL, embeddings={"t": {"a": np.ones((3, 2))}}))
    with pytest.raises(BuildError, match="arrays of different lengths"):
        read(IterableSource(records, SEVERAL, embeddings={"t": matrices | {"b": np.zeros((2, 5))}}))


# --- what a build says


def test_a_build_reports_dim_dtype_and_norms(tmp_path):
    rows = [(f"k{i}", FLOATS["f2"](EXACT[i]).tobytes()) for i in range(N)] + [("none", None)]
    source = SQLiteSource(database(tmp_path / "t.db", rows), Schema("t", key="id", embedding="v", dim=DIM))
    report = mmcache.build(tmp_path / "t.mmc", source)
    norms = np.linalg.norm(EXACT.astype("f8"), axis=1)
    found = report.embeddings["t"]["v"]
    assert (found.dim, found.dtype, found.records) == (DIM, "f2", N)
    assert (found.shortest, found.longest) == pytest.approx((norms.min(), norms.max()))
    assert mmcache.build(tmp_path / "t.mmc", source).embeddings == report.embeddings  # unchanged, and told all the same


def test_a_build_of_lists_reports_no_dtype_and_one_without_embeddings_nothing(tmp_path):
    schema = Schema("t", embedding="v", allow_nan=True)
    report = mmcache.build(tmp_path / "t.mmc", [{"id": "a", "v": [3, 4]}, {"id": "b", "v": [float("nan"), 0]}], schema)
    found = report.embeddings["t"]["v"]
    assert (found.dim, found.dtype, found.records, found.shortest, found.longest) == (2, None, 2, 5, 5)
    assert mmcache.build(tmp_path / "t.mmc", [{"id": "a", "v": None}], schema).embeddings == {}


def test_half_precision_is_stored_as_float32(tmp_path):
    blobs = [{"id": str(i), "v": FLOATS["f2"](row).tobytes()} for i, row in enumerate(EXACT)]
    mmcache.build(tmp_path / "t.mmc", blobs, Schema("t", embedding="v", dtype="f2"))
    with Snapshot.open(tmp_path / "t.mmc") as snapshot:
        assert np.array_equal(snapshot.embeddings, EXACT)
