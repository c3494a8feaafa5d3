"""The gapped table: hash -> ordinal, probed in place, built wholly in numpy.

Entries lie in hash order. An entry's home is the number that the top `bits` bits of its hash make, so placing sorted
entries at `max(home, previous + 1)` gives a linear-probing table whose hashes never
decrease from slot to slot. An empty slot repeats the next entry, so a probe needs no emptiness test:
walk up while the hash is smaller, compare while it is equal, stop when it is greater. Slots after the last
entry hold hash 2^64-1 and ordinal `EMPTY`.

Deterministic: the same hashes in the same order give the same bytes. `max_probe`, the greatest distance of
an entry from its home, bounds every walk. Hashes are xxh3_64 under a seed that the builder picks so that
`max_probe` stays in bounds whatever the keys are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .layout import MAX_PROBE

if TYPE_CHECKING:
    from numpy.typing import NDArray

EMPTY = 2**32 - 1
SEEDS = range(8)


class Slots(NamedTuple):
    """hash: u64[slots], ascending. ordinal: u32[slots]. bits: of a hash that are its home. max_probe: see above."""

    hash: NDArray[np.uint64]
    ordinal: NDArray[np.uint32]
    bits: int
    max_probe: int


def build_slots(hashes: NDArray[np.uint64]) -> Slots:
    """The table that maps hashes[i] to i. O(n log n); some 60 bytes a key while it runs."""
    n = len(hashes)
    order = np.argsort(hashes, kind="stable").astype(np.uint32)
    ascending = hashes[order]
    bits = max(1, (3 * n // 2).bit_length())  # a third to two thirds of the slots are used: 18 to 36 bytes a key
    home = ascending >> np.uint64(64 - bits)
    position = home.astype(np.int64)
    position -= np.arange(n)
    np.maximum.accumulate(position, out=position)
    position += np.arange(n)
    max_probe = int((position - home.astype(np.int64)).max(initial=0))
    used = int(position[-1]) + 1 if n else 0
    total = -(-(max(1 << bits, used) + 1) // 8) * 8
    repeats = np.append(np.diff(position, prepend=-1), total - used)  # an entry fills the gap before it, too
    del home, position
    return Slots(
        hash=np.repeat(np.append(ascending, np.uint64(2**64 - 1)), repeats),
        ordinal=np.repeat(np.append(order, np.uint32(EMPTY)), repeats),
        bits=bits,
        max_probe=max_probe,
    )


def seeded_slots(hashes: Callable[[int], Any]) -> tuple[Slots, int]:
    """The table under the first seed that keeps every probe short; `hashes(seed)` gives one u64 a key.

    Keys chosen to collide under one seed do not under the next. Raises ValueError when no seed helps.
    """
    for seed in SEEDS:
        slots = build_slots(np.asarray(hashes(seed), dtype=np.uint64))
        if slots.max_probe <= MAX_PROBE:
            return slots, seed
    raise ValueError(f"the keys collide under all of {len(SEEDS)} hash seeds, which does not happen by chance")


def equal_hashes(hashes: NDArray[np.uint64]) -> list[list[int]]:
    """The ordinals that share each hash that occurs more than once, ascending: where a duplicate key would be."""
    order = np.argsort(hashes, kind="stable")
    sorted_hashes = hashes[order]
    same = np.flatnonzero(sorted_hashes[1:] == sorted_hashes[:-1])
    runs = np.split(same, np.flatnonzero(np.diff(same) > 1) + 1)
    return [order[run[0] : run[-1] + 2].tolist() for run in runs if len(run)]
