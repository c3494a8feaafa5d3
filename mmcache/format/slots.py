"""The gapped table: hash -> ordinal, found in place, built wholly in numpy.

Entries lie in the order of (hash, bytes). An entry's home is the number that the top `bits` bits of its hash make, and
it lies at `max(home, previous + 1)`, so hashes never decrease from slot to slot. An empty slot repeats the next
entry, so a look-up needs no emptiness test. Slots after the last entry hold hash 2^64-1 and ordinal `EMPTY`.

A look-up takes some steps from its home, which is where nearly every entry is found, and bisects what is left. Equal
hashes are bisected by the bytes of the keys. So a look-up costs O(log n) whatever keys were chosen, and no choice of
them can make a build fail.

Deterministic: the same keys in the same order give the same bytes.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..arrays import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

EMPTY = 2**32 - 1
_LAST = 2**64 - 1
STEPS = 8
"""Slots that a look-up tries from its home on, before it bisects."""


class Slots(NamedTuple):
    """hash: u64[slots], ascending. ordinal: u32[slots]. bits: of a hash that are its home."""

    hash: NDArray[np.uint64]
    ordinal: NDArray[np.uint32]
    bits: int


def in_order(
    hashes: NDArray[np.uint64], raw: Callable[[int], bytes], twice: Callable[[int, int], None] | None = None
) -> NDArray[np.uint32]:
    """The ordinals by ascending (hash, bytes, ordinal). raw: the bytes of one; asked where hashes are equal. twice: is
    called for two that have equal bytes."""
    order = np.argsort(hashes, kind="stable").astype(np.uint32)
    for begin, end in equal_runs(hashes[order]):
        run = order[begin:end].tolist()
        keys = dict(zip(run, map(raw, run), strict=True))
        run.sort(key=keys.__getitem__)
        order[begin:end] = run
        if twice is not None:
            for one, other in itertools.pairwise(run):
                if keys[one] == keys[other]:
                    twice(one, other)
    return order


def equal_runs(ascending: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Where runs of two or more equal values begin and end."""
    same = np.flatnonzero(ascending[1:] == ascending[:-1])
    if not len(same):
        return []
    breaks = np.flatnonzero(np.diff(same) > 1)
    begins, ends = same[np.append(0, breaks + 1)], same[np.append(breaks, len(same) - 1)] + 2
    return list(zip(begins.tolist(), ends.tolist(), strict=True))


def build_slots(hashes: NDArray[np.uint64], order: NDArray[np.uint32]) -> Slots:
    """The table that maps hashes[i] to i. order: as `in_order` gives it. O(n); some 60 bytes a key while it runs."""
    n = len(hashes)
    ascending = hashes[order]
    bits = max(1, (3 * n // 2).bit_length())  # a third to two thirds of the slots are used: 18 to 36 bytes a key
    position = (ascending >> np.uint64(64 - bits)).astype(np.int64)
    position -= np.arange(n)
    np.maximum.accumulate(position, out=position)
    position += np.arange(n)
    used = int(position[-1]) + 1 if n else 0
    total = -(-(max(1 << bits, used) + 1) // 8) * 8
    repeats = np.append(np.diff(position, prepend=-1), total - used)  # an entry fills the gap before it, too
    del position
    return Slots(
        hash=np.repeat(np.append(ascending, np.uint64(2**64 - 1)), repeats),
        ordinal=np.repeat(np.append(order, np.uint32(EMPTY)), repeats),
        bits=bits,
    )


def find_ordinal(
    hashes: Sequence[int], ordinals: Sequence[int], bits: int, hashed: int, *, raw: bytes, key: Callable[[int], bytes]
) -> int | None:
    """The ordinal of an entry, or None. key: the bytes of an ordinal, compared at most some log2(n) times.

    Reads only what it compares: a caller whose sequences verify what is read may believe a None. Raises IndexError for
    a table that is not one.
    """
    slot = hashed >> (64 - bits)
    for _ in range(STEPS):
        found = hashes[slot]
        if found >= hashed:
            break
        slot += 1
    else:
        slot = bisect_left(hashes, hashed, slot)
        found = hashes[slot]
    if found != hashed:
        return None
    ordinal = ordinals[slot]
    if ordinal == EMPTY:
        return None
    first = key(ordinal)
    if first == raw:
        return ordinal
    if first > raw or hashes[slot + 1] != hashed:
        return None
    end = bisect_right(hashes, hashed, slot + 1)
    if hashed == _LAST:  # the hash of the empty slots, too, which come after
        end = bisect_left(ordinals, 1, slot + 1, end, key=lambda ordinal: ordinal == EMPTY)
    slot = bisect_left(ordinals, raw, slot + 1, end, key=key)
    if slot < end and key(ordinals[slot]) == raw:
        return ordinals[slot]
    return None
