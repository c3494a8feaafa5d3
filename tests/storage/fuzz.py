"""Random damage, re-sealed: every checksum right again, so that only the checks of structure are asked.

    python -m tests.storage.fuzz --seconds 3600        # MMCACHE_PURE=1 for the other implementation

A file gives a value or a MmcacheError, whatever is in it. Each round is drawn from the seed and its number alone, so
that one that crashed the process can be done again: `--seed S --first N --rounds 1`.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

import mmcache
from mmcache import Schema
from tests.storage.helpers import SMALL, build_bytes, reseal, reseal_records, small_items, table_rows
from tests.storage.hostile_child import exercise

__all__ = ["Fuzzed", "extents", "fuzz", "mutate", "numbers", "small_file", "tried"]

SECONDS = 5.0
"""That one file may take in all, with everything asked of it several times: minutes would be a hang."""

INTERESTING = bytes.fromhex("00010203070810 7f808190a0c0c1c4c6cfd9dcdddffeff")
"""Bytes with which msgpack's objects begin, and edges."""


class Fuzzed(NamedTuple):
    """rounds: files that were exercised. refused: those of which anything was."""

    rounds: int
    refused: int


def small_file(path: Path) -> bytes:
    """Two collections, of all kinds of sections."""
    notes = [{"name": f"n{i}", "text": i} for i in range(2)]
    return build_bytes(path, {"items": small_items(), "notes": notes}, SMALL, Schema("notes", key="name"))


def extents(data: bytes) -> dict[str, tuple[int, int]]:
    return {row[0].rstrip(b"\0").decode(): (row[3], row[4]) for row in table_rows(data)}


def numbers(bits: int, value: int, size: int) -> list[int]:
    """Values at every edge of an unsigned field, around what it holds, and around the file's size."""
    top = 2**bits
    edges = {0, 1, 2, 7, 63, 64, 65, 255, 256, 4095, 4096, 4097, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**32}
    edges |= {2**63 - 1, 2**63, top - 1, top - 64, top - 4096, top // 2, size, size - 1, size + 1, size - 8, 2**40}
    edges |= {value - 1, value + 1, value - 64, value + 64, value * 2, value // 2, value + 4096, value ^ 1, top - value}
    return sorted(number for number in edges if 0 <= number < top and number != value)


def tried(data: bytes | bytearray, what: object) -> bool:
    """Exercise a file and say what it was if anything but a value or a MmcacheError came of it."""
    begun = time.process_time()
    try:
        refused = exercise(bytes(data))
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert time.process_time() - begun < SECONDS, what
    return refused


def mutate(data: bytearray, chance: random.Random) -> None:
    """One change of a kind that means something: a number at an edge, bytes moved, copied, cleared or interesting."""
    rows = table_rows(data)
    spans = [(0, 256), (256, 96 * len(rows)), *((row[3], row[4]) for row in rows)]
    begin, length = chance.choice(spans)
    if not length or begin + length > len(data):
        begin, length = 0, len(data)
    at = begin + chance.randrange(length)
    kind = chance.randrange(7)
    if kind == 0:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        data[at] = chance.choice(INTERESTING)
    elif kind in (2, 3):
        width = chance.choice([2, 4, 8])
        at -= at % width
        if at + width <= len(data):
            value = int.from_bytes(data[at : at + width], "little")
            data[at : at + width] = chance.choice(numbers(8 * width, value, len(data))).to_bytes(width, "little")
    elif kind == 4:
        size = min(chance.choice([1, 4, 8, 24, 32, 64, 128]), len(data) - at)
        source = begin + chance.randrange(length)
        size = min(size, len(data) - source)
        data[at : at + size] = data[source : source + size]
    elif kind == 5:
        size = min(chance.choice([4, 8, 24, 64, 200]), len(data) - at)
        data[at : at + size] = chance.choice([b"\0", b"\xff"]) * size
    else:
        data[at : at + 4] = chance.randbytes(len(data[at : at + 4]))


def damage(whole: bytes, chance: random.Random) -> bytearray:
    """The file with one to six changes, nearly always sealed again, often with the checksums of its records."""
    data = bytearray(whole)
    for _ in range(chance.choice([1, 1, 2, 3, 6])):
        mutate(data, chance)
    if chance.random() < 0.7:
        reseal_records(data)
    if chance.random() < 0.9:
        data[:4] = whole[:4]
        data[8:10] = whole[8:10]
        reseal(data, size=chance.random() < 0.9)
    return data


def fuzz(
    whole: bytes,
    seed: int,
    *,
    first: int = 0,
    rounds: int | None = None,
    seconds: float = float("inf"),
    told: Callable[[Fuzzed], object] = lambda _: None,
) -> Fuzzed:
    """Damage a file and exercise it, so many rounds, or for so long. told: called now and then, with what was done."""
    begun, done, refused = time.monotonic(), 0, 0
    for done, round_ in enumerate(count(first)):
        if done == rounds or time.monotonic() - begun >= seconds:
            break
        refused += tried(damage(whole, random.Random(f"{seed} {round_}")), (seed, round_))
        if done % 1_000 == 999:
            told(Fuzzed(done + 1, refused))
    return Fuzzed(done, refused)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--first", type=int, default=0, metavar="ROUND", help="the round to begin with")
    given = parser.parse_args()
    faulthandler.enable()
    print(f"{mmcache.implementation}, seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        whole = small_file(Path(directory) / "small.mmc")
    begun = time.monotonic()

    def told(found: Fuzzed) -> None:
        print(f"{found.rounds:,} files, {found.refused:,} refused, {time.monotonic() - begun:,.0f} s", flush=True)

    told(fuzz(whole, given.seed, first=given.first, rounds=given.rounds, seconds=given.seconds, told=told))


if __name__ == "__main__":
    main()
