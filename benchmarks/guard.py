"""Has anything become slower? Ratios of this run beside the recorded ones, in a minute or two.

Every operation takes turns with its like kind in another store: with a dict of msgpack bytes, which like mmcache is
Python around msgpack and numpy, and with SQLite, which like mmcache searches, opens and writes files. A machine that is
slower, or busy, slows both. The ratio fails that is a third above the recorded one in this measurement and in two more.

A cache with dirty ids takes turns with one that has none, int keys with text keys, and a range and an order with
SQLite. Their ratios fail beyond the goals of `benchmarks.dirty` and `benchmarks.keys`, which stand in the record as
they are, and are never measured anew.

    python -m benchmarks.guard             measure and judge; exit 1 where something has become slower
    python -m benchmarks.guard --record    keep what is measured now as the truth, in `guard.json`

The record is of one machine and one version of Python, and says of which. Another kind of CPU moves a ratio by some
tenths, since it is better at one side than at the other; another version of Python may. Where the guard fails for the
commit that the record is of, record anew there, on a quiet machine, and commit the file: then what a later commit
changes shows. After a deliberate change of what an operation does, or of a peer, likewise.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import random
import sqlite3
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mmcache

from . import dirty, keys
from .common import ROOT, Noise, Turn, Work, environment, interleave, table_text
from .data import DataSet
from .peers.base import Peer
from .peers.dict_floor import DictFloor
from .peers.mmcache_file import Mmcache, MmcacheCache
from .peers.sqlite_tuned import SqliteTuned

QUESTION = "Has anything become slower?"
RECORD = os.path.join(ROOT, "benchmarks", "guard.json")
SLOWER = 4 / 3
AGAIN = 2
SMALL, LARGE = (2_000, 768), (20_000, 64)

BATCH = 100
DIRTY = (1, 100, 2_000)
KEYS = 100_000
"""Records of the tables with int and with text keys."""
IDS, DOMAINS, FACETS, OPENS = 1_000, 5, 50, 20
REPETITIONS, BUILDS = 41, 9


# --- judging ----------------------------------------------------------------------------------------------------------


def limits_of(told: Mapping[str, Any]) -> dict[str, float]:
    """By operation, the ratio from which on it fails: of a record, as it stands in `guard.json`."""
    ratios: Mapping[str, float] = told["ratios"]
    goals: Mapping[str, float] = told["goals"]
    return {name: SLOWER * ratio for name, ratio in ratios.items()} | dict(goals)


def measured(limits: Mapping[str, float], measure: Callable[[str], float]) -> dict[str, list[float]]:
    """Of everything limited what was measured; again, after all others, where every time was beyond its limit."""
    found: dict[str, list[float]] = {name: [] for name in limits}
    for _ in range(1 + AGAIN):
        for name, times in found.items():
            if all(time > limits[name] for time in times):
                times.append(measure(name))
    return found


def judged(limits: Mapping[str, float], found: Mapping[str, Sequence[float]]) -> list[tuple[str, float, float, bool]]:
    """name, limit, now, whether it is beyond. Noise only adds: the least of several measurements is nearest."""
    least = {name: min(times) for name, times in found.items()}
    return [(name, limit, least[name], least[name] > limit) for name, limit in limits.items()]


# --- what is measured -------------------------------------------------------------------------------------------------

Draw = Callable[[random.Random], list[Any]]


class Lazy(Mmcache):
    def __init__(self, address: str) -> None:
        self.snapshot = mmcache.Snapshot.open(address, verify="lazy")


@dataclass(frozen=True)
class Pair:
    """mmcache, and what it takes turns with, whose kind is `other`. goal: the limit that holds whatever is recorded."""

    other: str
    works: tuple[Work, Work]
    repetitions: int = REPETITIONS
    goal: float | None = None

    def ratio(self, noise: Noise) -> float:
        contenders = dict(zip(("ours", "other"), self.works, strict=True))
        return interleave(contenders, self.repetitions, noise, primed=True).ratio("ours", "other").median


def looking(peer: Peer, operation: str, draw: Draw) -> Work:
    def work(repetition: int) -> Turn:
        drawn = draw(random.Random(repetition))
        return partial(getattr(peer, operation), drawn), len(drawn)

    return work


def opening(peer: type[Peer], path: str, draw: Draw) -> Work:
    """Open, get one record, close."""

    def work(repetition: int) -> Turn:
        drawn = draw(random.Random(repetition))[:OPENS]

        def action() -> None:
            for id_ in drawn:
                opened = peer(path)
                opened.get([id_])
                opened.close()

        return action, len(drawn)

    return work


def building(peer: type[Peer], data: DataSet, directory: str) -> Work:
    """Until the bytes are on the disk, for both."""
    numbers = itertools.count()

    def work(_: int) -> Turn:
        for name in os.listdir(directory):
            os.unlink(os.path.join(directory, name))
        path = os.path.join(directory, f"{next(numbers)}{peer.suffix}")

        def action() -> None:
            peer.write(data, path)
            with open(path, "rb") as file:
                os.fsync(file.fileno())

        return action, 1

    return work


def dirty_pairs(caches: dirty.Caches) -> dict[str, Pair]:
    """Every operation with some ids dirty, beside the same with none."""
    return {
        f"{name}, {count:,} dirty": Pair(
            "clean", (work(contender.cache), work(caches.reference)), goal=dirty.GOALS[name]
        )
        for name, work in dirty.works(caches).items()
        for count, contender in caches.by_count.items()
    }


def key_pairs(tables: Mapping[str, keys.Table]) -> dict[str, Pair]:
    """Look-ups by int keys beside the same by text keys; ranges and orders by ids beside SQLite's."""
    ints, texts = (keys.key_works(tables[kind]) for kind in ("int", keys.TEXT))
    found = {f"{name}, int keys": Pair("text", (ints[name], texts[name]), goal=keys.KEY_GOAL) for name in ints}
    for name, asked in keys.questions().items():
        if name in keys.GUARDED:
            works = keys.order_works(tables[keys.TEXT], asked)
            found[name] = Pair("SQLite", (works[keys.OURS], works[keys.PLAIN]), goal=asked.goal)
    return found


@contextlib.contextmanager
def pairs(small: DataSet, large: DataSet, records: int = KEYS) -> Iterator[dict[str, Pair]]:
    """By operation. Everything is opened once, and warm."""
    with contextlib.ExitStack() as stack:

        def opened(peer: type[Peer], data: DataSet) -> Peer:
            made = peer(data.store(peer))
            stack.callback(made.close)
            made.warm()
            return made

        ours, cache, floor = (opened(peer, small) for peer in (Mmcache, MmcacheCache, DictFloor))
        many, sqlite = opened(Mmcache, large), opened(SqliteTuned, large)
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir=small.home))
        known, facts = small.ids(), facts_of(large)

        def ids(chosen: random.Random) -> list[str]:
            return chosen.choices(known, k=IDS)

        def batches(chosen: random.Random) -> list[list[str]]:
            return [chosen.sample(known, BATCH) for _ in range(IDS // BATCH)]

        def domains(chosen: random.Random) -> list[str]:
            return [domain for domain, _, _ in chosen.choices(facts, k=DOMAINS)]

        def facets(chosen: random.Random) -> list[tuple[str, str, str]]:
            return chosen.choices(facts, k=FACETS)

        def like_a_dict(peer: Peer, operation: str, draw: Draw) -> Pair:
            return Pair("dict", (looking(peer, operation, draw), looking(floor, operation, draw)))

        def like_sqlite(operation: str, draw: Draw) -> Pair:
            return Pair("SQLite", (looking(many, operation, draw), looking(sqlite, operation, draw)))

        opens = opening(Lazy, small.store(Mmcache), ids), opening(SqliteTuned, small.store(SqliteTuned), ids)
        builds = building(Mmcache, small, directory), building(SqliteTuned, small, directory)
        caches = stack.enter_context(dirty.opened(large, DIRTY))
        tables = stack.enter_context(keys.opened(records, small.home, ("int", keys.TEXT)))
        gc.freeze()  # what is collected before every turn is then little
        stack.callback(gc.unfreeze)
        yield {
            "get": like_a_dict(ours, "get", ids),
            "Cache.get": like_a_dict(cache, "get", ids),
            f"get_many({BATCH})": like_a_dict(ours, "get_many", batches),
            "embedding": like_a_dict(ours, "embedding", ids),
            "where, one field": like_sqlite("domain", domains),
            "where, three fields": like_sqlite("facets", facets),
            "open lazily, a get": Pair("SQLite", opens),
            "build": Pair("SQLite", builds, BUILDS),
            **dirty_pairs(caches),
            **key_pairs(tables),
        }


def facts_of(data: DataSet) -> list[tuple[str, str, str]]:
    with contextlib.closing(sqlite3.connect(data.bank)) as db:
        return db.execute("SELECT domain, type, framework FROM patterns ORDER BY rowid").fetchall()


# --- the record -------------------------------------------------------------------------------------------------------


def record(found: Mapping[str, Pair], noise: Noise) -> None:
    """The medians of as many measurements as a judgement may take."""
    several: dict[str, list[float]] = {name: [] for name, pair in found.items() if pair.goal is None}
    for _ in range(1 + AGAIN):
        for name, ratios_of in several.items():
            ratios_of.append(found[name].ratio(noise))
    ratios = {name: round(statistics.median(times), 3) for name, times in several.items()}
    stamp = environment()
    versions = {name: stamp["versions"][name] for name in ("numpy", "msgpack", "xxhash", "sqlite")}
    goals = {name: pair.goal for name, pair in found.items() if pair.goal is not None}
    told = {key: stamp[key] for key in ("cpu", "cores", "python", "time")}
    told |= {"versions": versions, "ratios": ratios, "goals": goals}
    with open(RECORD, "w") as file:
        json.dump(told, file, indent=2)
        file.write("\n")
    rows = [[name, f"/ {found[name].other}", f"{ratio:.2f}"] for name, ratio in ratios.items()]
    print(table_text(("mmcache", "", "recorded"), rows))


def judge(found: Mapping[str, Pair], noise: Noise) -> bool:
    """Whether nothing is beyond its limit."""
    with open(RECORD) as file:
        told = json.load(file)
    limits = limits_of(told)
    if limits.keys() != found.keys():
        raise SystemExit("the record is of other operations: run python -m benchmarks.guard --record, and commit it")
    several = measured(limits, lambda name: found[name].ratio(noise))
    verdicts = judged(limits, several)
    rows = []
    for name, limit, now, slower in verdicts:
        verdict = "SLOWER" if slower else "ok" if len(several[name]) == 1 else "ok when measured again"
        recorded = f"{told['ratios'][name]:.2f}" if name in told["ratios"] else ""
        rows.append([name, f"/ {found[name].other}", recorded, f"{limit:.2f}", f"{now:.2f}", verdict])
    print(f"recorded with {told['python']} on {told['cpu']}; limit: {SLOWER:.2f} times what was recorded, or a goal\n")
    print(table_text(("mmcache", "", "recorded", "limit", "now", ""), rows))
    return not any(slower for *_, slower in verdicts)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = argparse.ArgumentParser(description=QUESTION)
    asked.add_argument("--record", action="store_true", help="keep what is measured now")
    asked.add_argument("--data", metavar="DIR", default=os.path.join(ROOT, "benchmarks", ".data"), help="of data sets")
    given = asked.parse_args(arguments)
    noise, home = Noise(), os.path.abspath(given.data)
    with pairs(DataSet(*SMALL, home), DataSet(*LARGE, home)) as found:
        good = True
        if given.record:
            record(found, noise)
        else:
            good = judge(found, noise)
    if warning := noise.warning():
        print(f"\nwarning: {warning}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
