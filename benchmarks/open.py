"""Does opening a store depend on how many records are in it?

Every store is opened, asked for one record where it says so, and closed again, in the page cache, over and over in one
process; a new random id every time. Sizes take turns too, so that the ratio of two sizes is of one run. Who has nothing
to look into has to decode everything, which is then what opening costs. Servers are left out: they are open already.
"""

from __future__ import annotations

import gc
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import lmdb

import mmcache

from .common import (
    Noise,
    Range,
    Report,
    Samples,
    Settings,
    Turn,
    Work,
    dim_of,
    interleave,
    parser,
    ratio_text,
    repeated,
    settings_of,
    time_text,
)
from .data import DataSet
from .peers import Peer, load
from .peers.lmdb_msgpack import Lmdb
from .peers.mmcache_file import Mmcache
from .peers.msgpack_blob import MsgpackBlob
from .processes import size_of, stored

QUESTION = "Does opening a store depend on how many records are in it?"
QUICK, FULL = "1_000,10_000", "1_000,100_000"

FLAT = 1.5
"""Goal: a lazy open of the largest file over that of the smallest."""
OVER_LMDB, OVER_DECODING = 1.5, 0.02
"""Goals: a lazy open over `lmdb.open`, and over decoding one msgpack map of all records."""

OPEN, FIRST_GET = "open", "open, first get"
LMDB_OPEN = "lmdb.open"

Action = Callable[[], object]


class MmcacheAuto(Mmcache):
    name = "mmcache, auto"
    how = "the default: full up to 64 MB, then ids and indexes"
    store = Mmcache


class MmcacheLazy(Mmcache):
    name = "mmcache, lazy"
    how = "each block checked when first touched"
    store = Mmcache

    def __init__(self, address: str) -> None:
        self.snapshot = mmcache.Snapshot.open(address, verify="lazy")


class MmcacheFull(Mmcache):
    name = "mmcache, full"
    how = "every byte checked"
    store = Mmcache

    def __init__(self, address: str) -> None:
        self.snapshot = mmcache.Snapshot.open(address, verify="full")


# --- measuring --------------------------------------------------------------------------------------------------------


def opening(peer: type[Peer], address: str) -> None:
    peer(address).close()


def first_get(peer: type[Peer], address: str, ids: Iterator[str]) -> None:
    reader = peer(address)
    assert reader.get([next(ids)])
    reader.close()


def lmdb_open(path: str) -> None:
    lmdb.open(path, readonly=True, max_dbs=4).close()


class Opens:
    """Seconds of each action: of slow ones from a few turns, in which all take part, of the others from turns without
    them. A ratio is of turns in which both took part."""

    _TURN, _SLOW, _FEW = 0.005, 0.05, 3

    def __init__(self, actions: Mapping[str, Action], repetitions: int, noise: Noise) -> None:
        self._slow = {name for name, action in actions.items() if _seconds(action) > self._SLOW}
        work = {name: self._work(name, action) for name, action in actions.items()}
        gc.collect()
        gc.freeze()
        quick = {name: work[name] for name in work if name not in self._slow}
        self._quick = interleave(quick, repetitions, noise, primed=True)
        self._all = interleave(work, min(repetitions, self._FEW), noise) if self._slow else self._quick

    def _work(self, name: str, action: Action) -> Work:
        return partial(_once, action) if name in self._slow else repeated(action, self._TURN)

    def _samples(self, *names: str) -> Samples:
        return self._quick if self._slow.isdisjoint(names) else self._all

    def range(self, name: str) -> Range:
        return self._samples(name).range(name)

    def ratio(self, name: str, other: str) -> Range:
        return self._samples(name, other).ratio(name, other)


def _seconds(action: Action) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _once(action: Action, _: int) -> Turn:
    return action, 1


def key(operation: str, contender: str, n: int) -> str:
    return f"{operation}: {contender}, {n}"


def shuffled(ids: Sequence[str]) -> Iterator[str]:
    return itertools.cycle(random.Random("opens").sample(ids, min(len(ids), 20_000)))


# --- telling ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """hows: by contender. sizes: of its store, in bytes, by n; of those that could be opened at that n."""

    hows: dict[str, str]
    sizes: dict[str, dict[int, int]]
    actions: dict[str, Action]


def prepare(settings: Settings, report: Report) -> Stored:
    peers: list[type[Peer]] = [MmcacheLazy, MmcacheAuto, MmcacheFull]
    peers += [peer for peer in load(report.note) if peer is not Mmcache]
    made = Stored({}, {}, {})

    def add(operation: str, name: str, n: int, action: Action) -> None:
        made.actions[key(operation, name, n)] = action

    for n in settings.sizes:
        data = DataSet(n, dim_of(n), settings.data)
        paths = stored(peers, data, report.note)
        ids = shuffled(data.ids())
        for peer, path in paths.items():
            made.hows[peer.name] = peer.how
            made.sizes.setdefault(peer.name, {})[n] = size_of(path)
            add(OPEN, peer.name, n, partial(opening, peer, path))
            if "get" in peer.operations:
                add(FIRST_GET, peer.name, n, partial(first_get, peer, path, ids))
        made.sizes.setdefault(LMDB_OPEN, {})[n] = size_of(paths[Lmdb])
        add(OPEN, LMDB_OPEN, n, partial(lmdb_open, paths[Lmdb]))
    made.hows[LMDB_OPEN] = "no database in it, no transaction"
    return made


def measure(settings: Settings, report: Report) -> None:
    made = prepare(settings, report)
    repetitions = settings.repeat(21)
    opens = Opens(made.actions, repetitions, report.noise)
    smallest, largest = min(settings.sizes), max(settings.sizes)
    for operation in (OPEN, FIRST_GET):
        rows = []
        for name, how in made.hows.items():
            times, growth, over = {}, "", ""
            own = [n for n in settings.sizes if key(operation, name, n) in made.actions]
            for n in own:
                seconds = opens.range(key(operation, name, n))
                grown = opens.ratio(key(operation, name, n), key(operation, name, own[0]))
                ratio = opens.ratio(key(operation, name, n), key(operation, MmcacheLazy.name, n))
                values = {"seconds": seconds, "over_smallest": grown, "over_lazy": ratio, "size": made.sizes[name][n]}
                report.result(n=n, dim=dim_of(n), operation=operation, contender=name, **values)
                times[n] = time_text(seconds.median)
                growth = ratio_text(grown) if n == largest != smallest else ""
                over = ratio_text(ratio) if n == largest else ""
            if own:
                rows.append([name, how, *(times.get(n, "") for n in settings.sizes), growth, over])
        header = [f"{operation}, close", "", *(f"{n:,}" for n in settings.sizes)]
        header += [f"{largest:,} / {smallest:,}", f"/ {MmcacheLazy.name}, {largest:,}"]
        report.table(f"{repetitions} repetitions, fewer of what takes long", header, rows)
    goals(opens, settings.sizes, report)


def goals(opens: Opens, sizes: Sequence[int], report: Report) -> None:
    """All of them are of a lazy open."""
    lazy = MmcacheLazy.name
    smallest, largest = min(sizes), max(sizes)
    judged = [("lazy open over lmdb.open", n, key(OPEN, LMDB_OPEN, n), OVER_LMDB) for n in sizes]
    judged += [
        ("lazy open over decoding a msgpack map", n, key(OPEN, MsgpackBlob.name, n), OVER_DECODING) for n in sizes
    ]
    if largest != smallest:
        judged.insert(0, (f"lazy open over that of {smallest:,} records", largest, key(OPEN, lazy, smallest), FLAT))
    rows = []
    for what, n, other, limit in judged:
        ratio = opens.ratio(key(OPEN, lazy, n), other)
        rows.append([what, f"{n:,}", ratio_text(ratio), report.goal(what, n, ratio.median, limit)])
    report.table("Goals, all of a lazy open", ("", "records", "ratio", "goal"), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser(QUESTION).parse_args(arguments)
    given.sizes = given.sizes or (QUICK if given.quick else FULL)
    settings = settings_of(given)
    report = Report("open", QUESTION, settings)
    measure(settings, report)
    report.note(
        "lazy checks header, table and meta, and every 64 KiB when first touched; full checks every byte; auto, the "
        "default, is full up to 64 MB, and above it checks ids, rows and indexes. What is checked at open takes its "
        "time, and goals are of lazy only: an open with auto does depend on the size. LMDB checks nothing."
    )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
