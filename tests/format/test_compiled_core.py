"""The compiled core beside what it stands for: msgpack, xxhash, and the same look-ups in Python."""

from __future__ import annotations

import gc
import itertools
import math
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

import mmcache
from mmcache import Schema, Snapshot, native
from mmcache.format import sketch
from mmcache.search import distances, metrics
from mmcache.storage.bykey import PureByKey
from tests.support import inside

if native.core is None:
    pytest.skip("there is no compiled core, or pure Python is asked for", allow_module_level=True)
core: Any = native.core

INPUTS = int(os.environ.get("MMCACHE_FUZZ_INPUTS", "100000"))
"""Of the differential fuzz test; 5,000,000 once per release."""
CHUNKS = 10

pytestmark = pytest.mark.skipif(native.core is None, reason="MMCACHE_PURE is set: the core is not bound")


# --- hashes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 0x9E3779B185EBCA87, 2**63, 2**64 - 1])
def test_a_hash_is_that_of_xxhash_at_every_length(seed):
    data = random.Random(seed).randbytes(1101)
    for length in range(1101):
        assert core.xxh3_64(data[:length], seed) == xxh3_64_intdigest(data[:length], seed), length
    large = data * 2000
    assert core.xxh3_64(large, seed) == xxh3_64_intdigest(large, seed)


# --- msgpack ----------------------------------------------------------------------------------------------------------


def outcome(unpack: Any, data: bytes) -> tuple[Any, ...]:
    """The value with its types and the bits of its floats, or the kind and words of the error."""
    try:
        return ("value", _exact(unpack(data)))
    except Exception as error:  # noqa: BLE001 (whatever it is, the other must raise the same)
        return (type(error), str(error))


def _exact(value: Any) -> Any:
    if isinstance(value, float):
        return float, struct.pack("<d", value)
    if type(value) is list:
        return list, [_exact(item) for item in value]
    if type(value) is dict:
        return dict, [(_exact(key), _exact(item)) for key, item in value.items()]
    return type(value), value


def a_value(chosen: random.Random, depth: int = 0) -> Any:
    kind = chosen.randrange(13 if depth < 4 else 9)
    if kind == 0:
        return chosen.choice([None, True, False])
    if kind == 1:
        edges = [0, 1, -1, 1 << 63, (1 << 64) - 1, -(1 << 63)]
        return chosen.choice(edges) if chosen.random() < 0.3 else chosen.randint(-40_000, 70_000)
    if kind == 2:
        return chosen.choice([0.5, -0.0, float("inf"), float("nan"), chosen.random()])
    if kind in (3, 4, 5):
        return "".join(chosen.choice("abcé€😀\0") for _ in range(chosen.choice([0, 3, 31, 32, 60, 300])))
    if kind == 6:
        return chosen.randbytes(chosen.choice([0, 4, 255, 256]))
    if kind == 7:
        return msgpack.ExtType(chosen.randrange(128), chosen.randbytes(chosen.choice([1, 2, 4, 8, 16, 3, 300])))
    if kind == 8:
        return msgpack.Timestamp(chosen.randrange(1 << 34), chosen.randrange(10**9))
    if kind in (9, 10):
        return [a_value(chosen, depth + 1) for _ in range(chosen.choice([0, 1, 5, 15, 16, 20]) if depth < 2 else 2)]
    keys = ["a", "b", "a", "é", b"raw", 7, 1.5, None] if chosen.random() < 0.2 else ["a", "b", "long " * 9]
    return {chosen.choice(keys): a_value(chosen, depth + 1) for _ in range(chosen.randrange(4))}


def inputs(chosen: random.Random, count: int) -> Iterator[bytes]:
    """Values, values of which some bytes were changed, cut, or joined, and noise that begins as msgpack does."""
    for i in range(count):
        data = bytearray(msgpack.packb(a_value(chosen), use_single_float=bool(i & 8)))
        how = i % 5
        if how == 1:
            for _ in range(chosen.randrange(1, 4)):
                data[chosen.randrange(len(data))] = chosen.randrange(256)
        elif how == 2:
            del data[chosen.randrange(len(data)) :]
        elif how == 3:
            data = bytearray(chosen.choices([*range(0x80, 256), 0, 1, 255], k=chosen.randrange(1, 24)))
        elif how == 4:
            at = chosen.randrange(len(data) + 1)
            data[at:at] = chosen.randbytes(chosen.randrange(1, 4))
        yield bytes(data)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_decode_is_that_of_msgpack_on_every_input(chunk):
    plain = 0
    for data in inputs(random.Random(chunk), INPUTS // CHUNKS):
        assert outcome(core.unpack, data) == outcome(msgpack.unpackb, data), data.hex()
        plain += core.is_plain(data)
    assert plain > INPUTS // CHUNKS // 8, "most valid inputs are decoded here, not by msgpack"


@pytest.mark.parametrize("count", [0xFFFFFFFF, 0x7FFFFFFF, 1 << 24])
@pytest.mark.parametrize("first", [b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"])
def test_a_count_beyond_the_input_asks_for_no_memory(first, count):
    data = first + count.to_bytes(4) + b"\xc0" * 8
    assert not core.is_plain(data)
    assert outcome(core.unpack, data) == outcome(msgpack.unpackb, data)


def test_a_hundred_levels_are_decoded_here_and_deeper_ones_by_msgpack():
    for levels, is_plain in ((100, True), (101, False), (500, False), (100_000, False)):
        data = b"\x91" * levels + b"\xc0"
        assert core.is_plain(data) == is_plain
        assert outcome(core.unpack, data) == outcome(msgpack.unpackb, data)


# --- look-ups ---------------------------------------------------------------------------------------------------------

SECRET = bytes.fromhex("ded46de98390 97db")  # of xxh3, from byte 16 on: with it, eight bytes after do not count
KEYS: list[list[Any]] = [
    [f"k{i}" for i in range(300)],
    ["", "é", "€" * 100, "x" * 31, "x" * 32, "x" * 255, "x" * 256, "x" * 65_000],
    [
        *range(-140, 255),
        *(sign * 2**bits + more for bits in (8, 15, 16, 31, 32, 62) for sign in (1, -1) for more in (-1, 0)),
    ],
    [-(2**63), 2**64 - 1],
    [b"", b"a", b"x" * 255, b"x" * 256, "a", 97, ""],
    [b"with one hash " + SECRET + i.to_bytes(8) for i in range(40)],
]


@pytest.mark.parametrize("keys", KEYS, ids=["short", "texts", "ints", "ends", "mixed", "colliding"])
@pytest.mark.parametrize("verify", ["full", "lazy"])
def test_both_implementations_answer_alike(tmp_path, keys, verify):
    records = [{"id": key, "n": i, "m": {"a": [i]}} for i, key in enumerate(keys)]
    mmcache.build(tmp_path / "c.mmc", records, Schema("items"))
    absent: list[Any] = ["no", 5_000, b"no", "x" * 70_000, b"with one hash " + SECRET + b"\xff" * 8, ("a", 1)]
    strange: list[Any] = [1.5, None, True, ("a",), ["a"], {}, 2**64, "\ud800"]
    with Snapshot.open(tmp_path / "c.mmc", verify=verify) as snapshot:
        collection = snapshot.default
        for key in [*keys, *absent, *strange]:
            for method in ("__getitem__", "get", "__contains__", "row", "embedding"):
                theirs = outcome_of(getattr(PureByKey, method), collection, key)
                assert outcome_of(getattr(type(collection), method), collection, key) == theirs, (method, key)
        assert collection.get_many([*keys, *absent]) == PureByKey.get_many(collection, [*keys, *absent])
        assert list(collection) == keys
        assert [record["n"] for record in collection.values()] == list(range(len(keys)))


def outcome_of(method: Any, *given: Any) -> tuple[Any, ...]:
    try:
        return ("value", method(*given))
    except Exception as error:  # noqa: BLE001 (as in `outcome`)
        return (type(error), str(error))


@pytest.mark.parametrize("verify", ["full", "lazy"])
def test_many_keys_with_one_hash_are_found_without_the_careful_way(tmp_path, verify):
    """So ids that were chosen to collide cost some comparisons each, and not a hundred times a look-up."""
    keys = [b"with one hash " + SECRET + i.to_bytes(8) for i in range(1000)]
    random.Random(1).shuffle(keys)
    mmcache.build(tmp_path / "c.mmc", [{"id": key} for key in keys], Schema("items"))
    with Snapshot.open(tmp_path / "c.mmc", verify=verify) as snapshot, inside.careful_lookups() as careful:
        assert [snapshot[key]["id"] for key in keys] == keys
        assert [record and record["id"] for record in map(snapshot.get, keys)] == keys
        if verify == "full":
            assert [snapshot.default.row(key) for key in keys] == list(range(1000))
            assert all(key in snapshot for key in keys)
        assert not careful
        absent = b"with one hash " + SECRET + (5000).to_bytes(8)
        assert snapshot.get(absent) is None
        assert careful == [absent]


def test_ids_with_one_hash_do_collide():
    first, *others = [b"\xc4" + bytes([len(key)]) + key for key in KEYS[-1]]
    assert {xxh3_64_intdigest(other) for other in others} == {xxh3_64_intdigest(first)}


def test_a_finalizer_may_close_the_snapshot_in_the_middle_of_a_look_up(tmp_path):
    """The collector runs while a record is made, and with it whatever code waits in a cycle."""
    keys = [f"k{i}" for i in range(50)]
    mmcache.build(tmp_path / "c.mmc", [{"id": key, "l": [[j] for j in range(60)]} for key in keys], Schema("items"))

    class Closing:
        def __init__(self, snapshot: Snapshot) -> None:
            self.me, self.snapshot = self, snapshot

        def __del__(self) -> None:
            self.snapshot.close()

    threshold = gc.get_threshold()
    closed = 0
    try:
        for i in range(30):
            snapshot = Snapshot.open(tmp_path / "c.mmc")
            gc.collect()
            Closing(snapshot)
            gc.set_threshold(1 + i)
            asked: list[tuple[Any, Any]] = [(snapshot.__getitem__, keys[i]), (snapshot.get_many, keys)]
            for ask, what in asked:
                try:
                    ask(what)
                except mmcache.ClosedError:
                    closed += 1
            gc.set_threshold(*threshold)
            snapshot.close()
    finally:
        gc.set_threshold(*threshold)
    assert closed >= 30


class Interrupted:
    """The word of a page that is not mapped, when Ctrl-C is pressed while it is computed."""

    def __getitem__(self, _: int) -> int:
        raise KeyboardInterrupt


def test_an_interrupt_while_a_word_is_computed_is_not_lost():
    watch = core.Watched()
    watch.word, watch.seen, watch.due = Interrupted(), 5, float("inf")
    front = inside.front_of(watch)
    with pytest.raises(KeyboardInterrupt):
        front["a"]


# --- the process ------------------------------------------------------------------------------------------------------


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


CYCLES = """
import gc, mmcache
from mmcache import IterableSource, Schema, Snapshot, _core
for _ in range(3):
    for kind in (_core.ByKey, _core.Fields, _core.First, _core.Watched, _core.Hits, _core.Front):
        class Cyclic(kind):
            pass
        one = Cyclic()
        one.me = one
        del one, Cyclic
    mmcache.build(PATH, [{"id": "a", "v": [1.0]}], Schema("t", embedding="v"))
    snapshot = Snapshot.open(PATH)
    snapshot.me, snapshot.record, snapshot.vector = snapshot, snapshot["a"], snapshot.embedding("a")
    cache = mmcache.open(PATH, IterableSource([{"id": "a", "v": [1.0]}], Schema("t", embedding="v")))
    cache.me, cache.record, cache.view_ = cache, cache["a"], cache.embedding("a")
    cache._watch.me = cache
    del snapshot, cache
    gc.collect()
left = Snapshot.open(PATH)
left.me, left.record = left, left["a"]   # and some for the end of the interpreter
print("done")
"""


SIGNALLED = """
import signal, mmcache
mmcache.build(PATH, [{"id": i} for i in range(1000)], mmcache.Schema("t"))
snapshot = mmcache.Snapshot.open(PATH)
keys = list(range(1000)) * 1000
signal.signal(signal.SIGALRM, lambda *_: snapshot.close())
signal.setitimer(signal.ITIMER_REAL, 0.02)
try:
    snapshot.default.get_many(keys)
    print("the handler ran behind the call")
except mmcache.ClosedError:
    print("the handler ran within the call")
"""


SIGNALLED_ROWS = """
import signal, mmcache, numpy
mmcache.build(PATH, [{"id": i} for i in range(1000)], mmcache.Schema("t"))
snapshot = mmcache.Snapshot.open(PATH)
table, rows = snapshot.default.file.table, numpy.arange(1000, dtype=numpy.uint32).repeat(3000)
signal.signal(signal.SIGALRM, lambda *_: snapshot.close())
signal.setitimer(signal.ITIMER_REAL, 0.01)
found = ASKED
print("the handler ran", "within" if found is None else "behind", "the call")
"""


def test_a_signal_is_handled_in_the_middle_of_a_long_batch(tmp_path):
    found = run(SIGNALLED.replace("PATH", repr(str(tmp_path / "c.mmc"))))
    assert found.stdout == "the handler ran within the call\n", found.stderr


@pytest.mark.parametrize("asked", ["table.keys(rows)", "table.records(rows, snapshot.default)"])
def test_a_signal_is_handled_in_the_middle_of_many_rows(tmp_path, asked):
    found = run(SIGNALLED_ROWS.replace("PATH", repr(str(tmp_path / "c.mmc"))).replace("ASKED", asked))
    assert found.stdout == "the handler ran within the call\n", found.stderr


def test_cycles_through_every_type_end_with_the_process(tmp_path):
    found = run(CYCLES.replace("PATH", repr(str(tmp_path / "c.mmc"))))
    assert (found.returncode, found.stdout) == (0, "done\n"), found.stderr


@pytest.mark.parametrize(("value", "implementation"), [("", "compiled"), ("0", "compiled"), ("1", "pure")])
def test_the_environment_chooses_the_implementation(value, implementation):
    found = run("import mmcache; print(mmcache.implementation)", MMCACHE_PURE=value)
    assert found.stdout == f"{implementation}\n", found.stderr


def test_a_core_that_cannot_be_loaded_is_logged_with_its_cause(tmp_path):
    code = f"""
import importlib.util, logging, sys
logging.basicConfig(format="%(message)s", stream=sys.stdout)
import mmcache
mmcache.__path__.insert(0, {str(tmp_path)!r})
from mmcache import native
print(native.implementation, "|", native.described())
"""
    (tmp_path / "_core.py").write_text("raise ImportError('made for another machine')\n")
    found = run(code)
    assert found.stdout == (
        "pure Python runs: the compiled core cannot be loaded: made for another machine\n"
        "pure | pure Python (the compiled core cannot be loaded: made for another machine)\n"
    ), found.stderr


def test_a_core_of_other_sources_is_not_loaded_and_logged(tmp_path):
    code = f"""
import logging, sys
logging.basicConfig(format="%(message)s", stream=sys.stdout)
import mmcache
mmcache.__path__.insert(0, {str(tmp_path)!r})
from mmcache import native
print(native.implementation)
import mmcache.cache
"""
    (tmp_path / "_core.py").write_text("ByKey = object  # as one from before there were revisions\n")
    found = run(code)
    assert found.stdout == (
        f"pure Python runs: the compiled core cannot be loaded: {tmp_path / '_core.py'} has revision 0, and these "
        f"sources need {native.REVISION}: install mmcache again\npure\n"
    ), found.stderr


def test_a_core_of_these_sources_has_their_revision():
    assert core.revision == native.REVISION


@pytest.mark.skipif(sys.version_info < (3, 12), reason="before, a sub-interpreter cannot import numpy either")
def test_a_sub_interpreter_is_refused():
    code = """
import _interpreters
one = _interpreters.create(OPTIONS)
print(_interpreters.exec(one, "import mmcache._core"))
"""
    if sys.version_info < (3, 13):
        code = code.replace("_interpreters.exec", "_interpreters.run_string").replace("OPTIONS", "isolated=False")
        code = code.replace("_interpreters", "_xxsubinterpreters")
    found = run(code.replace("OPTIONS", "'legacy'"))
    assert "sub-interpreters run pure Python" in found.stdout + found.stderr
    if sys.version_info >= (3, 13):  # one with a lock of its own is refused by Python
        found = run(code.replace("OPTIONS", ""))
        assert "module mmcache._core does not support loading in subinterpreters" in found.stdout


# --- signs ------------------------------------------------------------------------------------------------------------


def tiled(bits: Any, tile: int) -> Any:
    """u64, (rows, words), as a section has them."""
    return np.concatenate([bits[begin : begin + tile].T.ravel() for begin in range(0, len(bits), tile)])


def nearest_by(find: Any, bits: Any, query: Any, few: int, way: tuple[Any, int, int]) -> list[tuple[int, int]]:
    """Distance and row of the few that are found; the first row is 7000. way: which rows are wanted, the rows of a
    tile, and in how many steps."""
    wanted, tile, steps = way
    entries, size, limit = np.empty(2 * few, np.uint64), 0, 2**64 - 1
    step = tile * max(1, len(bits) // tile // steps)
    for begin in range(0, len(bits), step):
        mask = None if wanted is None else wanted[begin : begin + step]
        signs = tiled(bits[begin : begin + step], tile)
        size, limit = find(signs, query, mask, entries, (tile, 7000 + begin, size, limit))
    return sorted(divmod(entry, 2**32) for entry in entries[:size].tolist())


@pytest.mark.parametrize("words", [1, 2, 3, 13])
@pytest.mark.parametrize("rows", [1, 7, 511, 512, 513, 1300])
@pytest.mark.parametrize("few", [1, 5, 64, 650, 2000])
def test_rows_that_differ_in_the_fewest_bits_are_found_as_numpy_finds_them(words, rows, few):
    """With many ties, near and far ones first, all rows or some."""
    random = np.random.default_rng(words * rows * few)
    bits = random.integers(0, 2**64, (rows, words), np.uint64)
    bits[random.random(rows) < 0.7] = bits[0]
    query = random.integers(0, 2**64, words, np.uint64)
    bits[rows // 3], bits[-1] = ~query, query
    right = [sum((int(word) ^ int(q)).bit_count() for word, q in zip(row, query, strict=True)) for row in bits]
    near_first = np.argsort(right, kind="stable")
    for order in (np.arange(rows), near_first, near_first[::-1]):
        some = random.random(rows) < 0.5
        for way in ((None, 512, 1), (None, 64, 3), (some, 64, 1), (some, 512, 2), (None, 8192, 1)):
            expected = sorted(
                (right[row], 7000 + i) for i, row in enumerate(order.tolist()) if way[0] is None or way[0][i]
            )[:few]
            for find in (core.nearby, distances.nearby):
                assert nearest_by(find, bits[order], query, few, way) == expected


def test_distances_of_the_longest_vectors_are_counted():
    """65,536 bits, all of which differ."""
    bits = np.zeros((3, 1024), np.uint64)
    bits[1] = ~bits[1]
    for find in (core.nearby, distances.nearby):
        assert nearest_by(find, bits, ~bits[0], 3, (None, 8192, 1)) == [(0, 7001), (65_536, 7000), (65_536, 7002)]


def test_signs_that_do_not_fit_are_refused():
    signs, query, entries = np.zeros(16, np.uint64), np.zeros(2, np.uint64), np.zeros(8, np.uint64)
    given: list[Any] = [signs, query, None, entries, 8192, 0, 0, 2**64 - 1]

    def found(*given: Any) -> Any:
        return core.nearby(*given[:4], given[4:])

    assert found(*given)[0] == 4
    wrong: list[tuple[int, Any]] = [
        *((0, signs[:15]), (0, np.zeros(129, "u1")[1:]), (1, query[:0]), (1, np.zeros(3, "u1")), (4, 0), (4, -1)),
        *((5, 2**32 - 7), (5, 2**64 - 1), (2, np.ones(7, np.bool_)), (2, np.ones(9, np.bool_)), (3, entries[:0])),
        *((3, entries[:7]), (6, 9), (6, -1)),
    ]
    for place, value in wrong:
        with pytest.raises(ValueError, match="do not fit"):
            found(*given[:place], value, *given[place + 1 :])
    with pytest.raises((BufferError, ValueError, TypeError)):
        found(*given[:3], entries[::2], *given[4:])
    entries.flags.writeable = False
    with pytest.raises((BufferError, ValueError, TypeError)):
        found(*given)


def test_entries_of_any_bytes_are_bounded():
    """What another call has left, or nothing has."""
    random = np.random.default_rng(0)
    signs, query = random.integers(0, 2**64, 3 * 700, np.uint64), np.zeros(3, np.uint64)
    for size in (0, 3, 8, 10, 16):
        entries = random.integers(0, 2**64, 16, np.uint64)
        found, limit = core.nearby(signs, query, None, entries, (512, 0, size, 2**64 - 1))
        assert (found, limit <= 193) == (8, True)


@pytest.mark.parametrize("dim", [1, 3, 63, 64, 65, 127, 128, 384, 1000])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_signs_are_those_of_numpy(dim, rows):
    random = np.random.default_rng(dim)
    odd = np.array([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, -1e-45, 1, -1], np.float32)
    matrix = random.choice(odd, (rows, dim)).astype(np.float32)
    found = np.empty((rows, -(-dim // 64)), np.uint64)
    core.signs(matrix, dim, found)
    assert (found == sketch.signs_of(matrix)).all()
    bits = np.unpackbits(found.view(np.uint8), axis=1, bitorder="little")[:, :dim]
    assert (bits == (matrix > 0)).all()


def test_numbers_and_signs_that_do_not_fit_are_refused():
    matrix, out = np.zeros((4, 65), np.float32), np.zeros((4, 2), np.uint64)
    core.signs(matrix, 65, out)
    for wrong in (
        *((matrix, 64, out), (matrix, 0, out), (matrix, -65, out), (matrix[:3], 65, out), (matrix, 65, out[:3])),
        *((np.zeros(1041, np.uint8)[1:], 65, out), (matrix, 2**40, out), (matrix, 2**62, out)),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            core.signs(*wrong)
    with pytest.raises((BufferError, ValueError, TypeError)):
        core.signs(matrix[:, ::2], 65, out)


# --- sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_scores_are_those_of_numpy_to_the_last_bit(metric):
    """Of lengths that numpy adds in one way or another, and of rows in any order."""
    for dim in (*range(1, 20), 63, 100, 127, 128, 129, 136, 137, 255, 384, 768, 1000, 1025, 5000):
        random = np.random.default_rng(dim)
        matrix = (random.standard_normal((9, dim)) * 10.0 ** random.integers(-40, 38, (9, dim))).astype(np.float32)
        matrix[3] = 0
        query = random.standard_normal(dim).astype(np.float32).astype(np.float64)
        for chosen in (None, [], [0], [8, 3, 3, 0, 1], list(range(9))):
            rows = None if chosen is None else np.array(chosen, np.uint32)
            found = metrics.exact_scores(matrix, query, metric, rows)
            with inside.searched_in_python():
                expected = metrics.exact_scores(matrix, query, metric, rows)
            assert found.tobytes() == expected.tobytes(), (dim, chosen)
        terms = [(row - query) ** 2 if metric == "euclidean" else row * query for row in matrix.astype(np.float64)]
        found = metrics.exact_scores(matrix, query, metric)
        if metric != "cosine":
            right = [math.fsum(one.tolist()) for one in terms]
            bounds = [1e-12 * np.abs(one).sum() for one in terms]
            assert (np.abs((found**2 if metric == "euclidean" else found) - right) <= bounds).all()


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_scores_of_numbers_that_are_none_are_those_of_numpy(metric):
    matrix = np.array([[np.nan, 0], [np.inf, -np.inf], [np.inf, 1], [3e38, 3e38], [-0.0, 0]], np.float32)
    for repeat in (1, 20, 200):
        given = matrix.repeat(repeat, axis=1), np.array([1.0, -0.0]).repeat(repeat), metric
        found = metrics.exact_scores(*given)
        with inside.searched_in_python():
            np.testing.assert_array_equal(found, metrics.exact_scores(*given))
        assert np.signbit(found[4]) == (metric == "euclidean")


def test_rows_beyond_the_matrix_are_clipped_to_it():
    matrix, found = np.arange(6, dtype=np.float32).reshape(3, 2), np.empty(3)
    core.sums(matrix, np.array([2**32 - 1, 3, 1], np.uint32), np.ones(2), found, None, False)
    assert found.tolist() == [9, 9, 5]


def test_sums_that_do_not_fit_are_refused():
    matrix, rows, query = np.zeros((4, 3), np.float32), np.zeros(2, np.uint32), np.zeros(3)
    out, two = np.zeros(2), np.zeros(2)

    def found(*given: Any) -> None:
        core.sums(*given, False)

    wrong: Any
    found(matrix, rows, query, out, two)
    found(matrix, None, query, np.zeros(4), None)
    for wrong in (
        *((matrix, None, query, out, None), (matrix, rows[:1], query, out, None), (matrix, rows, query[:0], out, None)),
        *(
            (matrix, rows, np.zeros(5), out, None),
            (matrix[:0], rows, query, out, None),
            (matrix, rows, query, out, two[:1]),
        ),
        *((np.zeros(49, "u1")[1:], rows, query, out, None), (matrix, np.zeros(7, "u1"), query, out, None)),
        (matrix, rows, np.zeros(25, "u1")[1:], out, None),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            found(*wrong)
    for wrong in ((matrix[:, ::2], rows, query, out, None), (matrix, rows, query, out, b"1234567812345678")):
        with pytest.raises((BufferError, ValueError, TypeError)):
            found(*wrong)
    out.flags.writeable = False
    with pytest.raises((BufferError, ValueError, TypeError)):
        found(matrix, rows, query, out, None)


# --- products ---------------------------------------------------------------------------------------------------------


def test_products_are_as_near_to_the_true_ones_as_any_order_of_additions_is():
    for dim, rows in itertools.product(
        (1, 2, 15, 16, 17, 31, 32, 33, 48, 64, 100, 384, 1025, 5000), (0, 1, 2, 3, 8, 9)
    ):
        random = np.random.default_rng(dim)
        matrix = random.standard_normal((rows, dim)).astype(np.float32)
        query = random.standard_normal(dim).astype(np.float32)
        found = np.full(rows, np.nan, np.float32)
        core.products(matrix, query, found)
        wide, other = matrix.astype(np.float64), query.astype(np.float64)
        bounds = dim * 2**-24 * np.linalg.norm(wide, axis=1) * np.linalg.norm(other)
        assert (np.abs(found - wide @ other) <= 1.01 * bounds).all(), (dim, rows)


def test_products_of_numbers_that_are_none_are_none():
    matrix = np.array([[np.nan, 0], [np.inf, -np.inf], [3e38, 3e38], [1, 1]], np.float32).repeat(20, axis=1)
    found = np.empty(4, np.float32)
    core.products(matrix, np.ones(40, np.float32), found)
    assert np.isnan(found[:2]).all()
    assert found[2:].tolist() == [np.inf, 40]


def test_products_that_do_not_fit_are_refused():
    matrix, query, out = np.zeros((4, 3), np.float32), np.zeros(3, np.float32), np.zeros(4, np.float32)
    core.products(matrix, query, out)
    wrong: Any
    for wrong in (
        *((matrix, query, out[:3]), (matrix, query[:0], out), (matrix, query[:2], out), (matrix[:3], query, out)),
        *(
            (np.zeros(49, "u1")[1:], query, out),
            (matrix, np.zeros(13, "u1")[1:], out),
            (matrix, np.zeros(11, "u1"), out),
        ),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            core.products(*wrong)
    with pytest.raises((BufferError, ValueError, TypeError)):
        core.products(matrix[:, ::2], query, out)
    out.flags.writeable = False
    with pytest.raises((BufferError, ValueError, TypeError)):
        core.products(matrix, query, out)
