"""Every byte of a file is covered: a flipped bit is found by `verify`, and no look-up gives a wrong answer.

The sweeps run over bytes in memory, which is the reader's own code on everything but `fs`; a part of them is
repeated on a real file under a real map.
"""

# mypy: disable-error-code="arg-type, type-arg"

from __future__ import annotations

import itertools
import os
import random

import pytest
from xxhash import xxh3_64_intdigest

import mmcache
from mmcache import CorruptFileError, MmcacheError, Snapshot
from mmcache.storage.verify import verify_bytes
from tests.storage.helpers import (
    SMALL,
    Bytes,
    Expected,
    build_bytes,
    damaged,
    questions,
    reseal,
    small_items,
    sweep,
    table_rows,
)
from tests.support.profile import NIGHTLY

pytestmark = pytest.mark.usefixtures("no_disk_wait")


PARTS = 31
"""Of a sweep over all bits; no divisor of 8, so that each has flips of every bit."""

SAMPLE = [0, *(pytest.param(part, marks=pytest.mark.nightly) for part in range(1, PARTS))]
"""One of them in a run that is not nightly."""


def small(path) -> tuple[bytearray, dict]:
    items = small_items(6)
    data = build_bytes(path, items, SMALL, cluster_by="kind")
    return bytearray(data), {"items": list(questions(Expected.of(SMALL, items, "kind"), absent=["", "nobody"]))}


def large(path) -> tuple[bytearray, dict]:
    """Several 64 KiB blocks, so that damage in one leaves others readable."""
    items = small_items(300)
    for i, item in enumerate(items):
        item["text"] = chr(97 + i % 26) * 900
    data = build_bytes(path, items, SMALL)
    assert len(data) > 4 * 65_536
    sample = Expected.of(SMALL, items)
    asked = list(questions(sample))
    return bytearray(data), {"items": asked}


def content(data: bytes) -> list[range]:
    """The bytes of the sections, without the padding between them."""
    return [range(offset, offset + length) for _, _, _, offset, length, *_ in table_rows(data)]


def is_refused(data: bytearray) -> bool:
    try:
        verify_bytes(Bytes(data).read, len(data))
    except MmcacheError:
        return True
    return False


def test_the_undamaged_files_answer_everything(path):
    for make in (small, large):
        data, expected = make(path)
        for verify in ("auto", "full", "lazy"):
            for access in ("mmap", "copy"):
                with damaged(data, verify, access) as snapshot:
                    assert sweep(snapshot, expected) == 0
                    snapshot.verify(deep=True)


@pytest.mark.parametrize("part", SAMPLE)
def test_verify_finds_every_flipped_bit(path, part):
    data, _ = small(path)
    assert not is_refused(data)
    missed = []
    for at in range(part, len(data), PARTS):
        for bit in range(8):
            data[at] ^= 1 << bit
            if not is_refused(data):
                missed.append((at, bit))
            data[at] ^= 1 << bit
    assert not missed


@pytest.mark.parametrize("part", SAMPLE)
def test_every_answer_after_any_flipped_bit_is_right_or_an_error(path, part):
    data, expected = small(path)
    places = [at for extent in content(data) for at in extent]
    padding = set(range(len(data))).difference(places)
    assert len(padding) + len(places) == len(data)
    flips = [(at, bit) for at in places for bit in range(8)] + [(at, at % 8) for at in sorted(padding)[::4]]
    refused = 0
    for at, bit in flips[part::PARTS]:
        data[at] ^= 1 << bit
        try:
            with damaged(data) as snapshot:
                refused += sweep(snapshot, expected) > 0
        except MmcacheError:
            refused += 1
        except AssertionError as error:
            raise AssertionError(f"bit {bit} of byte {at}: {error}") from None
        finally:
            data[at] ^= 1 << bit
    # The digests, which are last, lead to no answer.
    (blocks,) = [row for row in table_rows(data) if row[1] == 9]
    assert refused == sum(at < blocks[3] + blocks[4] for at, _ in flips[part::PARTS])


def test_flipped_bits_under_a_real_map_are_right_or_an_error(path):
    data, expected = small(path)
    os.chmod(path, 0o644)
    chance = random.Random(20)
    places = [at for extent in content(data) for at in extent]
    flips = [(chance.choice(places), chance.randrange(8)) for _ in range(300)]
    with open(path, "r+b", buffering=0) as file:
        for at, bit in flips:
            os.pwrite(file.fileno(), bytes([data[at] ^ 1 << bit]), at)
            for access in ("mmap", "copy"):
                try:
                    with Snapshot.open(path, verify="lazy", access=access) as snapshot:
                        sweep(snapshot, expected)
                        with pytest.raises(CorruptFileError):
                            snapshot.verify()
                except MmcacheError:
                    pass
            for verify in ("auto", "full"):
                with pytest.raises(MmcacheError):
                    Snapshot.open(path, verify=verify)
            os.pwrite(file.fileno(), bytes([data[at]]), at)


def check_random_damage(data: bytearray, expected: dict, rounds: int, chance: random.Random) -> None:
    """Flips anywhere in the file, one to three of them; `verify` finds them, answers are right or errors."""
    places = [at for extent in content(data) for at in extent]
    for _ in range(rounds):
        where = [
            chance.choice(places if chance.random() < 0.9 else range(len(data)))
            for _ in range(chance.choice([1, 1, 3]))
        ]
        flips = {at: 1 << chance.randrange(8) for at in where}
        for at, mask in flips.items():
            data[at] ^= mask
        try:
            assert is_refused(data), flips
            with damaged(data) as snapshot:
                sweep(snapshot, expected)
        except MmcacheError:
            pass
        except AssertionError as error:
            raise AssertionError(f"flips {flips}: {error}") from None
        finally:
            for at, mask in flips.items():
                data[at] ^= mask


def test_random_flips_in_a_file_of_several_blocks_are_right_or_an_error(path):
    data, expected = large(path)
    expected["items"] = [question for i, question in enumerate(expected["items"]) if i % 11 == 0]
    check_random_damage(data, expected, 600, random.Random(7))


@pytest.mark.nightly
def test_many_random_flips_in_a_file_of_several_blocks_are_right_or_an_error(path):
    seed = random.randrange(2**32)
    print("seed", seed)
    data, expected = large(path)
    expected["items"] = [question for i, question in enumerate(expected["items"]) if i % 7 == 0]
    check_random_damage(data, expected, 20_000, random.Random(seed))


@pytest.mark.nightly
def test_verify_finds_every_flipped_bit_of_a_64_kib_file(path):
    items = small_items(400)
    data = bytearray(build_bytes(path, items, SMALL))
    assert 40_000 < len(data) < 90_000
    for at in range(len(data)):
        for bit in range(8):
            data[at] ^= 1 << bit
            assert is_refused(data), (at, bit)
            data[at] ^= 1 << bit


def test_every_truncation_and_extension_is_refused_at_open(path):
    data, _ = small(path)
    for length in range(len(data)):
        with pytest.raises(MmcacheError):
            damaged(data[:length])
    for more in (*range(1, 65), *range(65, 4097, 61), 4096):
        for fill in (b"\0", b"\xff"):
            with pytest.raises(MmcacheError, match="truncated or extended"):
                damaged(data + fill * more)


def test_truncations_and_extensions_of_a_real_file_are_refused_at_open(path):
    data, _ = small(path)
    os.chmod(path, 0o644)
    for length in (*range(0, len(data), 97), len(data) - 1, len(data) + 1, len(data) + 4096):
        path.write_bytes((data + bytes(4096))[:length])
        for access in ("mmap", "copy"):
            with pytest.raises(mmcache.CorruptFileError):
                Snapshot.open(path, verify="lazy", access=access)


def torn(data: bytes, older: bytes, size: int, sectors: range):
    """(name, bytes) for every way in which one of these sectors may be lost or mistaken for another."""
    for at in range(sectors.start, sectors.stop, size):
        sector = data[at : at + size]
        for name, wrong in (
            ("zeroed", bytes(len(sector))),
            ("all ones", b"\xff" * len(sector)),
            ("of an older generation", older[at : at + size]),
            ("a copy of the one before", data[at - size : at]),
            ("a copy of the one after", data[at + size : at + 2 * size]),
        ):
            if wrong != sector and len(wrong) == len(sector):
                yield f"sector {at // size} {name}", data[:at] + wrong + data[at + size :]
        for other in (at + size, at + 2 * size, at + 5 * size, len(data) - size):
            if other + size <= len(data) and data[other : other + size] != sector:
                swapped = bytearray(data)
                swapped[at : at + size], swapped[other : other + size] = data[other : other + size], sector
                yield f"sectors {at // size} and {other // size} swapped", bytes(swapped)


@pytest.mark.parametrize("size", [pytest.param(24, marks=pytest.mark.nightly), 64, 512, 4096])
def test_torn_sectors_are_found_and_answers_are_right_or_an_error(path, size):
    """The embeddings are in another 64 KiB block than rows and ids, so that no check of the one covers the other."""

    def items(generation: int):
        for i, item in enumerate(small_items(26, generation)):
            yield item | {"text": chr(97 + i) * 5_000}

    older = build_bytes(path, list(items(0))[::-1], SMALL)
    data = build_bytes(path, list(items(0)), SMALL)
    assert len(older) == len(data)
    asked = list(questions(Expected.of(SMALL, list(items(0)))))
    extents = {row[0].rstrip(b"\0").decode(): range(row[3], row[3] + row[4]) for row in table_rows(data)}
    begin = extents["0/rows"].start if size == 24 else 256
    interesting = range(begin, min(extents["0/records"].start + 8192, len(data)))
    if size >= 512:
        interesting = range(len(data))
    order = random.Random(3)
    for name, wrong in itertools.islice(torn(data, older, size, interesting), 0, None, 1 if NIGHTLY else 7):
        assert is_refused(bytearray(wrong)), name
        order.shuffle(asked)  # what is asked first may leave a block verified for what follows
        try:
            with damaged(wrong) as snapshot:
                sweep(snapshot, {"items": asked})
        except MmcacheError:
            pass
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def test_damage_is_told_with_the_checksum_that_the_bytes_have(path):
    """Of each section, by a full verification, and of a record by a get; what is no checksum has neither."""
    data, _ = small(path)
    for name, _, _, offset, length, *_ in table_rows(data):
        data[offset + length // 2] ^= 1
        with pytest.raises(CorruptFileError) as caught:
            verify_bytes(Bytes(data).read, len(data))
        error = caught.value
        assert (error.kind, error.section) == ("checksum", name.rstrip(b"\0").decode())
        assert error.found == f"{xxh3_64_intdigest(bytes(data[offset : offset + length])):016x}"
        assert error.expected != error.found
        assert error.found in str(error)
        data[offset + length // 2] ^= 1
    with pytest.raises(CorruptFileError) as caught:
        verify_bytes(Bytes(data[:-1]).read, len(data) - 1)
    assert (caught.value.kind, caught.value.expected, caught.value.found) == ("structure", None, None)


# What only SHA-256 tells ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [False, True])
def test_a_changed_embedding_under_new_checksums_is_found_by_sha256(path, chunks):
    """All xxh3 are made anew, and with `chunks` the digests, too: all but the header's SHA-256."""
    data, _ = large(path)
    whole = bytes(data)
    (place,) = [row[3] + row[4] // 2 for row in table_rows(data) if row[1] == 6]
    data[place] ^= 1
    reseal(data, chunks=chunks, sha256=False)
    with damaged(data, "full") as snapshot:
        assert snapshot.default.embeddings.size
        with pytest.raises(CorruptFileError, match="SHA-256") as caught:
            snapshot.verify()
        assert caught.value.section == ("header" if chunks else "0/embeddings.0")
    with damaged(reseal(data)) as snapshot:
        snapshot.verify()
        assert snapshot.header.sha256 != damaged(bytearray(whole)).header.sha256


def test_two_files_of_one_content_have_one_sha256(path):
    first, _ = small(path)
    os.unlink(path)
    second, _ = small(path)
    with damaged(first) as one, damaged(second) as other:
        assert one.header.sha256 == other.header.sha256
        assert one.header.created_ns != other.header.created_ns
