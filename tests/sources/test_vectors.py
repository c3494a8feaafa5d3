"""Embeddings in every form a source holds them, and what is refused with which reason."""

from __future__ import annotations

import io
import json
import math
import sqlite3
import struct
import subprocess
import sys
from array import array
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mmcache import BuildError, IterableSource, Schema, Snapshot, SQLiteSource, build
from mmcache.sources.blobs import prefixed, scattered
from mmcache.sources.vectors import VectorDecoder, float32_bytes, vector_bytes

EXACT = [0.0, -0.0, 1.0, -2.5, 3.0, 65504.0]
BYTES = struct.pack("<6f", *EXACT)
F8 = struct.pack("<6d", *EXACT)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


f4_numbers = st.floats(width=32, allow_nan=False)


@pytest.mark.parametrize(
    "value",
    [
        BYTES,
        bytearray(BYTES),
        memoryview(BYTES),
        memoryview(b"xx" + BYTES)[2:],
        memoryview(array("d", EXACT)),
        np.array(EXACT, ">f4").data,
        np.array(EXACT, "f2").data,
        np.array(EXACT, np.longdouble).data,
        f"\n {json.dumps(EXACT)}\n".encode(),
        json.dumps(EXACT),
        " [0, -0.0, 1, -2.5, 3e0, 65504] ",
        EXACT,
        tuple(EXACT),
        array("f", EXACT),
        array("d", EXACT),
        [np.float32(number) for number in EXACT],
        np.array(EXACT, "<f4"),
        np.array(EXACT, ">f4"),
        np.array(EXACT, "f2"),
        np.array(EXACT, "f8"),
        np.array(EXACT, np.longdouble),
        np.array([EXACT, EXACT], "f4").T[:, 0],
    ],
)
@pytest.mark.parametrize("dim", [6, None])
def test_every_form_gives_the_same_bytes(value, dim):
    assert vector_bytes(value, dim=dim, dtype="f4") == BYTES


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", ">i8", "u8"])
def test_integer_arrays_and_integers_are_numbers(dtype):
    assert vector_bytes(np.array([0, 1, 127], dtype), dim=3, dtype="f4") == struct.pack("<3f", 0, 1, 127)
    assert vector_bytes([0, 1, 127], dim=3, dtype="f4") == struct.pack("<3f", 0, 1, 127)


@pytest.mark.parametrize("value", [None, "null"])
@pytest.mark.parametrize("dim", [6, None])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_null_is_no_embedding(value, dim, dtype):
    assert vector_bytes(value, dim=dim, dtype=dtype) is None


def test_a_float32_blob_of_the_right_length_is_not_copied():
    assert vector_bytes(BYTES, dim=6, dtype="f4") is BYTES


def test_float64_blobs_are_converted_where_the_schema_says_so():
    assert vector_bytes(F8, dim=6, dtype="f8") == BYTES
    assert vector_bytes(bytearray(F8), dim=None, dtype="f8") == BYTES


def test_dtype_is_about_blobs_only():
    assert vector_bytes(EXACT, dim=6, dtype="f8") == BYTES
    assert vector_bytes(np.array(EXACT, "f4"), dim=6, dtype="f8") == BYTES
    assert vector_bytes(json.dumps(EXACT), dim=6, dtype="f8") == BYTES


@given(st.lists(f4_numbers, min_size=1, max_size=40))
def test_float32_numbers_come_through_every_form_unchanged(numbers):
    expected = struct.pack(f"<{len(numbers)}f", *numbers)
    doubles = struct.pack(f"<{len(numbers)}d", *numbers)
    for value in (numbers, np.array(numbers, "f8"), np.array(numbers, ">f4"), json.dumps(numbers), expected):
        assert vector_bytes(value, dim=len(numbers), dtype="f4") == expected
    assert vector_bytes(doubles, dim=len(numbers), dtype="f8") == expected


@given(st.lists(st.floats(-3e38, 3e38), min_size=1, max_size=40))
def test_every_form_rounds_doubles_alike(numbers):
    expected = np.array(numbers, "<f8").astype("<f4").tobytes()
    for value in (numbers, np.array(numbers), json.dumps(numbers)):
        assert vector_bytes(value, dim=None, dtype="f4") == expected
    assert vector_bytes(np.array(numbers, "<f8").tobytes(), dim=None, dtype="f8") == expected


def test_nan_and_infinity_pass_for_the_builder_to_judge():
    for value in ([math.nan, math.inf], np.array([math.nan, math.inf]), "[NaN, Infinity]"):
        assert vector_bytes(value, dim=2, dtype="f4") == struct.pack("<2f", math.nan, math.inf)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "empty"),
        ("[]", "empty"),
        ([], "empty"),
        (np.array([]), "empty"),
        (b"12345", "5 bytes, expected 24"),
        (BYTES[:-4], "20 bytes, expected 24"),
        (F8, "48 bytes, which is dim=6 numbers of float64.*set dtype='f8'"),
        ([1.0] * 5, "5 numbers, expected dim=6"),
        ("[1, 2]", "2 numbers, expected dim=6"),
        (np.ones(7), "7 numbers, expected dim=6"),
        ("", "not JSON"),
        ("1, 2", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a": 1}', "JSON of type dict"),
        ("5", "JSON of type int"),
        ('["1", 2, 3, 4, 5, 6]', "'1' at position 0"),
        ("[1, 2, null, 4, 5, 6]", "None at position 2"),
        ("[1, [2], 3, 4, 5, 6]", r"\[2\] at position 1"),
        ([1, 2, 3, 4, 5, True], "True at position 5"),
        ([1, 2, 3, 4, b"5", 6], "b'5' at position 4"),
        ([1, 2, 3, 4, 1j, 6], "1j at position 4"),
        ([1, 2, 3, 1e39, 5, 6], r"1e\+39 at position 3, which float32 cannot"),
        ([1, 2, 3, 10**400, 5, 6], "position 3, which float32 cannot"),
        (np.array([1, 2, 3, 1e39, 5, 6]), r"1e\+39 at position 3, which float32 cannot"),
        (np.ones((2, 3)), r"shape \(2, 3\)"),
        (np.float64(1.0), r"shape \(\)"),
        (np.array(["a"] * 6), "dtype <U1"),
        (np.array([True] * 6), "dtype bool"),
        (np.ones(6, complex), "dtype complex"),
        (np.ma.array([1.0] * 6, mask=[False, True] + 4 * [False]), "some numbers are masked"),
        ([1, 2, 3, 4, 5, np.bool_(True)], "True_? at position 5"),
        ([1, 2, 3, 4, np.complex64(5 + 6j), 6], r"5\+6j\)? at position 4"),
        ([1, np.ma.masked, 3, 4, 5, 6], "masked at position 1"),
        (np.ones((2, 3)).data, r"shape \(2, 3\)"),
        (np.ones(6, bool).data, "dtype bool"),
        (5, "type int"),
        (1.5, "type float"),
        ({1.0: 2}, "type dict"),
        (iter(EXACT), "iterator"),
    ],
)
def test_anything_else_is_refused_with_its_reason(value, reason):
    with pytest.raises(ValueError, match=reason):
        vector_bytes(value, dim=6, dtype="f4")


@pytest.mark.parametrize("form", [" {}", "{{{}}}", "{}\n", "[{}],"])
@pytest.mark.parametrize("spare", range(4))
def test_a_blob_of_text_is_no_number_whatever_its_length(form, spare):
    rng = np.random.default_rng(1)
    blob = form.format(",".join(map(str, rng.normal(size=384)))).encode() + b" " * spare
    with pytest.raises(ValueError, match="it is text"):
        vector_bytes(blob, dim=None, dtype=None)
    with pytest.raises(ValueError, match="it is text"):
        vector_bytes(blob, dim=384, dtype="f4")
    assert vector_bytes(blob, dim=None, dtype="u1") is not None  # numbers of one byte may well look like text


NUMBERS = np.arange(1, 65, dtype="f2")
OF_THE_LENGTH = {
    "JSON": json.dumps(NUMBERS.tolist(), separators=(",", ":")).replace(".0", "").encode(),
    "JSON after a blank": b"\n" + json.dumps([int(number) for number in NUMBERS], separators=(",", ":")).encode(),
    "npy": npy(NUMBERS),
}


@pytest.mark.parametrize("form", OF_THE_LENGTH)
@pytest.mark.parametrize("dtype", [None, "f4"])
def test_what_says_itself_what_it_is_is_that_at_the_length_of_the_numbers_too(form, dtype):
    said = OF_THE_LENGTH[form]
    blob = said if form == "npy" else said[:-1].ljust(255) + b"]"
    assert len(blob) == 4 * 64
    good, expected = struct.pack("<64f", *[0.1] * 64), NUMBERS.astype("<f4").tobytes()
    assert vector_bytes(blob, dim=64, dtype=dtype) == expected
    for dim in (64, None):
        decode = VectorDecoder(dim, dtype)
        assert [decode(good), decode(blob), decode(good)] == [good, expected, good]


def test_other_text_of_the_length_of_the_numbers_is_refused_by_name():
    text = b"hello big world!"
    pairs: list[tuple[Any, int]] = [(None, 4), ("f4", 4), ("f8", 2), (">f4", 4)]
    for dtype, dim in pairs:
        with pytest.raises(ValueError, match=rf"16 bytes is no dim={dim} numbers of .*: it is text"):
            vector_bytes(text, dim=dim, dtype=dtype)
    decode = VectorDecoder(None, None)
    decode(struct.pack("<4f", 0.1, 0.2, 0.3, 0.4))
    with pytest.raises(ValueError, match="it is text"):
        decode(text)
    assert vector_bytes(text, dim=16, dtype="i1") is not None


@pytest.mark.parametrize("dim", [4, 5, 16, 64, None])
@pytest.mark.parametrize("number", [0.7, 0.9, 2.8, 3.6, 0.175])
def test_numbers_whose_bytes_are_those_of_text_are_numbers(number, dim):
    blob = struct.pack(f"<{dim or 8}f", *[number] * (dim or 8))
    assert blob.isascii()
    assert vector_bytes(blob, dim=dim, dtype="f4") == blob
    wide = struct.pack(f"<{dim or 8}d", *[19.2] * (dim or 8))
    assert wide.isascii()
    assert vector_bytes(wide, dim=dim, dtype="f8") == struct.pack(f"<{dim or 8}f", *[19.2] * (dim or 8))


def test_in_a_run_of_rows_text_of_that_length_is_found(tmp_path):
    """Rows are made records together where they are alike, and then nothing is decoded one by one."""
    dim = 16
    good = struct.pack(f"<{dim}f", *[0.1] * dim)
    text = ("[" + ",".join(["2"] * dim)).encode().ljust(4 * dim - 1) + b"]"
    rows = [(i, text if i == 77 else good) for i in range(200)]
    with closing(sqlite3.connect(tmp_path / "t.db")) as db, db:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")
        db.executemany("INSERT INTO t VALUES (?, ?)", rows)
    schema = Schema("t", embedding="v")
    for source in (
        SQLiteSource(tmp_path / "t.db", schema),
        IterableSource([{"id": i, "v": v} for i, v in rows], schema),
    ):
        build(tmp_path / "t.mmc", source)
        with Snapshot.open(tmp_path / "t.mmc") as snapshot:
            assert snapshot.embeddings[77].tolist() == [2.0] * dim
            assert snapshot.embeddings[76].tobytes() == good


@pytest.mark.parametrize("shape", [(16,), (4, 4)])
def test_a_buffer_of_numbers_is_an_array_and_one_of_bytes_a_blob(shape):
    numbers = np.arange(-8, 8, dtype="i1").reshape(shape)
    if len(shape) > 1:
        for buffer in (numbers.data, numbers.astype("u1").data):
            with pytest.raises(ValueError, match=r"shape \(4, 4\)"):
                vector_bytes(buffer, dim=None, dtype=None)
        return
    expected = numbers.astype("<f4").tobytes()
    for dtype in (None, "f4", "i1"):
        assert vector_bytes(numbers.data, dim=16, dtype=dtype) == expected
        assert VectorDecoder(None, dtype)(numbers.data) == expected
    blob = struct.pack("<4f", 1, 2, 3, 4)
    for view in (memoryview(blob), memoryview(blob).cast("c"), memoryview(blob * 2)[:16]):
        assert vector_bytes(view, dim=4, dtype=None) == blob
    wide = np.random.default_rng(1).normal(size=64)
    assert VectorDecoder(None, None)(wide.data) == wide.astype("<f4").tobytes()  # no BLOB, so nothing to doubt


def test_a_masked_matrix_beside_the_records_is_refused(tmp_path):
    vectors = np.ma.array(np.ones((2, 3), "f4"), mask=[[False] * 3, [False, True, False]])
    source = IterableSource([{"id": 1}, {"id": 2}], Schema("items", embedding="v"), embeddings=vectors)
    with pytest.raises(BuildError, match="masked"):
        build(tmp_path / "items.mmc", source)


def test_f8_refusals():
    with pytest.raises(ValueError, match=r"24 bytes, which is dim=6 numbers of float32; to read them, set dtype='f4'"):
        vector_bytes(BYTES, dim=6, dtype="f8")
    with pytest.raises(ValueError, match="not a multiple of 8"):
        vector_bytes(b"123456789012", dim=None, dtype="f8")
    with pytest.raises(ValueError, match="1e\\+39 at position 1, which float32 cannot"):
        vector_bytes(struct.pack("<2d", 1.0, 1e39), dim=2, dtype="f8")


def test_rows_of_a_matrix_are_refused_with_the_position_in_the_row():
    with pytest.raises(ValueError, match="at position 1,"):
        float32_bytes(np.array([[1.0, 2.0, 3.0], [1.0, 1e300, 3.0]]))


# ---- float64 read as float32, when only the numbers can tell ---------------------------------------------------------

f4_vectors = st.one_of(
    st.lists(st.floats(-1, 1, width=32), min_size=8, max_size=100),
    st.lists(f4_numbers, min_size=8, max_size=100),
    st.lists(st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0, 1e-20]), min_size=8, max_size=100),
    st.lists(st.integers(-10, 300), min_size=8, max_size=100),
)


@given(f4_vectors)
def test_float32_is_not_taken_for_float64(numbers):
    blob = struct.pack(f"<{len(numbers)}f", *numbers)
    assert vector_bytes(blob, dim=len(numbers), dtype="f4") is blob
    if scattered(blob) or prefixed(blob):  # such as no embedding has, with magnitudes from 1e-45 to 1e38
        with pytest.raises(ValueError, match=r"makes no sense as float32; set|behind their count"):
            vector_bytes(blob, dim=None, dtype="f4")
    else:
        assert vector_bytes(blob, dim=None, dtype="f4") == blob


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: rng.normal(size=768) * 10.0 ** rng.uniform(-9, 9),
        lambda rng: rng.normal(size=768) * (rng.random(768) < 0.1),
        lambda rng: np.zeros(768),
        lambda rng: np.eye(1, 768, int(rng.integers(768)))[0],
        lambda rng: np.where(np.arange(768) % 2, rng.uniform(0.1, 1, 768), 0.0),
        lambda rng: np.where(np.arange(768) % 2, rng.uniform(0.1, 1, 768), 1e-9 * rng.normal(size=768)),
        lambda rng: np.exp(rng.normal(size=768) * 15).clip(0, 1e38),
        lambda rng: np.stack([np.sin(angle := rng.random(384)), np.cos(angle)], axis=1).ravel(),
        lambda rng: rng.integers(0, 256, 768),
    ],
    ids=["scaled", "sparse", "zeros", "one-hot", "zero pairs", "tiny pairs", "log-normal", "sin-cos", "bytes"],
)
def test_no_false_alarm_on_the_shapes_real_embeddings_have(make):
    rng = np.random.default_rng(0)
    for _ in range(200):
        blob = np.asarray(make(rng), "<f4").tobytes()
        assert vector_bytes(blob, dim=None, dtype="f4") == blob


@pytest.mark.parametrize("dim", [16, 64, 384, 768])
@pytest.mark.parametrize("once", ["f4", "f8"])
def test_float64_is_recognised_without_a_dim(dim, once):
    rng = np.random.default_rng(1)
    reasons = []
    for _ in range(100):
        vector = rng.normal(size=dim)
        blob = (vector / np.linalg.norm(vector)).astype(once).astype("<f8").tobytes()
        try:
            vector_bytes(blob, dim=None, dtype="f4")
        except ValueError as error:
            reasons.append(str(error))
    assert len(reasons) >= 95
    assert all(f"{dim} numbers of float64; set dtype='f8'" in reason for reason in reasons)


def test_a_dim_overrules_the_suspicion():
    blob = np.random.default_rng(1).normal(size=64).astype("<f8").tobytes()
    assert vector_bytes(blob, dim=128, dtype="f4") is blob


# ---- a collection ----------------------------------------------------------------------------------------------------


def test_the_first_embedding_sets_the_dim_for_the_rest():
    decode = VectorDecoder(None, "f4")
    assert decode(None) is None
    assert decode([1.0, 2.0]) == struct.pack("<2f", 1, 2)
    assert decode.dim == 2
    with pytest.raises(ValueError, match="3 numbers, expected dim=2"):
        decode([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="float64"):
        decode(struct.pack("<2d", 1, 2))


def test_float32_blobs_text_and_lists_do_without_numpy():
    script = (
        "import sys; from mmcache.sources.vectors import vector_bytes as v\n"
        "v(b'\\0' * 64, dim=16, dtype='f4'); v(b'\\0' * 64, dim=None, dtype='f4'); v('[1]', dim=1, dtype='f4')\n"
        "v([1, 2.0], dim=2, dtype='f4'); v(None, dim=2, dtype='f4')\n"
        "assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
