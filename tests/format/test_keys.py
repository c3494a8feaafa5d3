"""Keys: which values are keys, and that bytes and keys are one to one."""

from __future__ import annotations

import enum
import subprocess
import sys
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import example, given, strategies as st
from xxhash import xxh3_64_intdigest

from mmcache.format.keys import check_key, hash_key, pack_key, unpack_key

TEXTS = st.text(st.characters(exclude_categories=()))  # with lone surrogates
SCALARS = TEXTS | st.integers(-(2**63), 2**64 - 1) | st.binary()
KEYS = SCALARS | st.lists(SCALARS, min_size=2, max_size=8).map(tuple)
EDGES = [0, 127, 128, -32, -33, 2**32, -(2**63), 2**64 - 1, "", "é\ud800", "\ud800\udc00", b"", b"\xff" * 256]


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 3


class Code(NamedTuple):
    authority: str
    number: int


class Loud(bytes):
    def __bytes__(self) -> bytes:
        return b"other"


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "key", [*EDGES, "a" * 70_000, tuple(EDGES[:8]), ("EPSG", 4326)], ids=lambda key: f"{key!a:.20}"
)
def test_a_key_comes_back_from_its_bytes(key):
    assert check_key(key) == key
    assert unpack_key(pack_key(key)) == key


@given(KEYS)
def test_any_key_comes_back_from_its_bytes(key):
    found = unpack_key(pack_key(key))
    assert (found, type(found)) == (key, type(key))


@given(KEYS, KEYS)
def test_keys_are_equal_exactly_when_their_bytes_are(one, other):
    assert (one == other) == (pack_key(one) == pack_key(other))


@given(KEYS)
def test_the_stock_library_reads_the_bytes_of_a_key(key):
    assert msgpack.unpackb(pack_key(key), use_list=False, unicode_errors="surrogatepass") == key


@pytest.mark.parametrize(
    ("key", "packed"),
    [
        ("a", "a161"),
        (7, "07"),
        (-1, "ff"),
        (200, "ccc8"),
        (-200, "d1ff38"),
        (2**64 - 1, "cfffffffffffffffff"),
        (b"a", "c40161"),
        ("\ud800", "a3eda080"),
        (("a", 1), "92a16101"),
    ],
)
def test_the_bytes_of_a_key_are_msgpack_in_its_shortest_form(key, packed):
    assert pack_key(key).hex() == packed


@given(TEXTS)
def test_the_hash_of_text_leaves_the_header_out(text):
    assert hash_key(text) == xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


@given(KEYS.filter(lambda key: not isinstance(key, str)))
def test_the_hash_of_any_other_key_is_over_all_its_bytes(key):
    assert hash_key(key) == xxh3_64_intdigest(pack_key(key))


@pytest.mark.parametrize(
    ("value", "plain"),
    [(Colour.RED, "red"), (Level.LOW, 3), (Code("EPSG", 4326), ("EPSG", 4326)), (Loud(b"a"), b"a")],
)
def test_a_value_of_a_subclass_becomes_the_plain_value(value, plain):
    found: Any = check_key(value)
    assert (found, type(found)) == (plain, type(plain))
    assert pack_key(value) == pack_key(plain)
    assert hash_key(value) == hash_key(plain)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (True, "True of type bool"),
        (None, "None of type NoneType"),
        (1.0, "1.0 of type float"),
        (["a", 1], r"\['a', 1\] of type list"),
        (("a",), r"\('a',\), a tuple of length 1"),
        ((), r"\(\), a tuple of length 0"),
        (tuple("abcdefghi"), "a tuple of length 9"),
        (("a", None), "hold None of type NoneType"),
        (("a", False), "hold False of type bool"),
        (("a", ("b", 1)), r"hold \('b', 1\) of type tuple"),
        (2**64, "18446744073709551616 of 65 bits"),
        (-(2**63) - 1, "the int -9223372036854775809 of 64 bits"),
        (10**5000, "the int of 16610 bits"),
        ([10**5000], "a value of type list"),
        (Unprintable(), "of type Unprintable"),
        (msgpack.ExtType(5, b"a"), "of type ExtType"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_key_is_refused_with_its_type_and_what_may_be(value, named):
    for function in (check_key, pack_key, hash_key):
        with pytest.raises(
            TypeError, match=rf"{named}.*; it is a str, an int .*, bytes, or a tuple of 2 to 8 of these$"
        ):
            function(value)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "c0",  # nil
        "c3",  # true
        "cb3ff0000000000000",  # a float
        "90",
        "91a161",
        "99010101010101010101",
        "92a16192a16201",  # nested
        "80",  # a map
        "8101c0",
        "c70105ff",  # extensions
        "d6ff00000000",  # a timestamp
        "cc07",  # 7, but not in its shortest form
        "d90161",
        "dc0002a16101",
        "dd0000000201",
        "a261",  # cut short
        "a16161",  # something after it
        "a1ff",  # no UTF-8
        "dbffffffff61",
        "ddffffffff01",
        "91" * 100_000,
    ],
    ids=lambda data: data[:20] or "nothing",
)
def test_bytes_that_no_key_has_are_refused(data):
    with pytest.raises(ValueError, match="bytes are not a key"):
        unpack_key(bytes.fromhex(data))


@given(st.binary(max_size=64))
@example(b"\xa3\xed\xa0\x80")
def test_any_bytes_give_a_key_of_those_bytes_or_are_refused(data):
    try:
        key = unpack_key(data)
    except ValueError:
        return
    assert pack_key(key) == data


def test_keys_need_no_numpy():
    code = "import sys, mmcache.format.keys; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
