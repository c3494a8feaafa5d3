"""What does it cost to stay true, and how soon does a worker hear what another says?

    the check      of a get: what `Cache.get` does before it asks the file. Timed against the same method with that part
                   taken out of its syntax tree, in turns, and as a share of a whole get with one field read
    the counters   likewise
    to be heard    from the store that tells of an invalidation, or of a published file, until another process, which
                   does nothing but read, has judged anew what it may answer ("heard"), and until it has the new
                   answer in its hands ("answered", for which it asks SQLite); "stored after": from call to store

Beside it, what others would do once a get to find out whether anything is new: ask SQLite for its `data_version`, ask
the file system for a file's times; and a whole get of diskcache.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import importlib.util
import inspect
import mmap
import multiprocessing
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mmcache
from mmcache import cache as cache_module
from mmcache.storage.pagefile import Wake

from .common import (
    Report,
    Settings,
    Turn,
    Work,
    dim_of,
    interleave,
    parser,
    repeated,
    settings_of,
    time_text,
)
from .data import DataSet, record_of
from .peers.mmcache_file import Mmcache

QUESTION = "What does it cost to stay true, and how soon does a worker hear what another says?"

IDS = 400
NEVER = 1e6
"""Seconds between two looks at what is not notified: none falls into a measurement."""

ITEMS = mmcache.Schema("items")


# --- what a get pays --------------------------------------------------------------------------------------------------


class _WithoutCheck(ast.NodeTransformer):
    """No clock is read, nothing compared, and so none polls."""

    def visit_If(self, node: ast.If) -> ast.If | None:
        return None if _calls(node, "catch_up") else node

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        if _calls(node, "_clock"):
            node.value = ast.Constant(0.0)
        return node


class _WithoutCounters(ast.NodeTransformer):
    """An answer of the file is returned, and nothing stored."""

    def visit_Try(self, node: ast.Try) -> ast.Try:
        node.orelse = [line for line in node.orelse if isinstance(line, ast.Return)]
        return node


def _calls(node: ast.AST, name: str) -> bool:
    called = (inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call))
    return any(getattr(func, "attr", getattr(func, "id", None)) == name for func in called)


def without(*transformers: ast.NodeTransformer) -> type[mmcache.Cache]:
    """`Cache` with a `__getitem__` from which something was taken. Fails where that changes nothing."""
    method = mmcache.Cache.__getitem__
    tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    for transformer in transformers:
        before = ast.dump(tree)
        transformer.visit(tree)
        assert ast.dump(tree) != before, f"{type(transformer).__name__} found nothing in {method.__qualname__}"
    names: dict[str, Any] = {}
    exec(compile(ast.fix_missing_locations(tree), method.__qualname__, "exec"), vars(cache_module), names)
    return type("Variant", (mmcache.Cache,), {"__getitem__": names["__getitem__"]})


def gets(mapping: Any, ids: Sequence[str]) -> Work:
    def work(repetition: int) -> Turn:
        chosen = random.Random(repetition).choices(ids, k=IDS)

        def action() -> None:
            for id_ in chosen:
                mapping[id_]["domain"]

        return action, IDS

    return work


def cost_compiled(data: DataSet, settings: Settings, report: Report) -> None:
    """Of a compiled get, nothing can be left out but the samples: it is compared with that of a snapshot."""
    ids = data.ids()
    with contextlib.ExitStack() as stack:
        snapshot = stack.enter_context(mmcache.Snapshot.open(data.store(Mmcache)))
        cache, unsampled = (
            stack.enter_context(mmcache.Cache(data.store(Mmcache), check_interval=NEVER)) for _ in range(2)
        )
        assert cache.get_many(ids) == unsampled.get_many(ids) == snapshot.get_many(ids)
        unsampled._counting.mask = 2**62 - 1
        contenders = {
            "Snapshot": gets(snapshot, ids),
            "Cache": gets(cache, ids),
            "without samples": gets(unsampled, ids),
        }
        gc.freeze()
        samples = interleave(contenders, settings.repeat(301), report.noise, primed=True)
        gc.unfreeze()
    ratio, share = samples.ratio("Cache", "Snapshot"), 1 - samples.ratio("without samples", "Cache").median
    rows = [[name, "", time_text(samples.range(name).median), ""] for name in contenders]
    rows.append(
        ["Cache / Snapshot", "", f"{ratio.median:.3f}", report.goal("Cache / Snapshot", data.n, ratio.median, 1.15)]
    )
    rows.append(["the samples", "", f"{share:.1%}", report.goal("the samples, share of a get", data.n, share, 0.03)])
    report.result(n=data.n, dim=data.dim, operation="get, compiled", ratio=ratio, samples=share)
    report.table(f"get and a field read, {data.n:,} records, the compiled core", ("", "", "measured", "goal"), rows)


def cost_per_get(data: DataSet, settings: Settings, report: Report) -> None:
    repetitions = settings.repeat(301)
    variants: dict[str, type[mmcache.Cache]] = {
        "Cache": mmcache.Cache,
        "without the check": without(_WithoutCheck()),
        "without the counters": without(_WithoutCounters()),
        "without both": without(_WithoutCheck(), _WithoutCounters()),
    }
    ids = data.ids()
    with contextlib.ExitStack() as stack:
        snapshot = stack.enter_context(mmcache.Snapshot.open(data.store(Mmcache)))
        caches = {
            name: stack.enter_context(kind(data.store(Mmcache), check_interval=NEVER))
            for name, kind in variants.items()
        }
        for cache in caches.values():
            assert cache.get_many(ids) == snapshot.get_many(ids)
        contenders = {"Snapshot": gets(snapshot, ids)} | {name: gets(cache, ids) for name, cache in caches.items()}
        gc.freeze()  # what is collected before every turn is then little
        samples = interleave(contenders, repetitions, report.noise, primed=True)
        gc.unfreeze()
    whole = samples.range("Cache").median
    rows = []
    for name in contenders:
        ratio = samples.ratio(name, "Cache")
        report.result(n=data.n, dim=data.dim, operation="get", contender=name, seconds=samples.range(name), ratio=ratio)
        rows.append([name, "", time_text(samples.range(name).median), f"{ratio.median:.3f}"])
    title = f"get and a field read, {data.n:,} records, {repetitions} repetitions"
    report.table(title, ("", "", "get", "of Cache"), rows)
    rows = []
    for part, limit in ("check", 0.08), ("counters", 0.05):
        shares = samples.ratio(f"without the {part}", "Cache")
        share = 1 - shares.median
        verdict = report.goal(f"the {part}, share of a get", data.n, share, limit)
        report.result(n=data.n, operation=part, share=share, seconds=share * whole)
        rows.append([f"the {part}", "", f"{share:.1%}", verdict])
        if part == "check":
            ns = share * whole * 1e9
            rows.append(["", "", f"{ns:.0f} ns", report.goal("the check, ns", data.n, ns, 60)])
    report.table("what they cost", ("", "", "measured", "goal"), rows)


# --- how soon others hear ---------------------------------------------------------------------------------------------

TARGET, SEEN, HEARD, ANSWERED, STOP = range(5)
"""Words that writer and reader share: which item to read, its number as last read, when, and whether to end."""


class Hearing:
    """A database of numbered items, a writer, and a process that reads one of them over and over.

    `perf_counter_ns` is one clock for all processes of a machine.
    """

    def __init__(self, directory: str, items: int) -> None:
        self.bank, self.path = os.path.join(directory, "bank.db"), os.path.join(directory, "items.mmc")
        self.db = sqlite3.connect(self.bank, isolation_level=None)
        self.db.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; CREATE TABLE items (id TEXT PRIMARY KEY, n)"
        )
        self.db.executemany("INSERT INTO items VALUES (?, 0)", [(f"item-{i}",) for i in range(items)])
        self.words = memoryview(mmap.mmap(-1, 4096)).cast("Q")
        self.cache = self._open()
        self.reader = multiprocessing.get_context("fork").Process(target=self._read)
        self.reader.start()

    def _open(self) -> mmcache.Cache:
        source = mmcache.SQLiteSource(self.bank, ITEMS)
        return mmcache.open(self.path, source, executor="external", check_interval=NEVER, ttl=NEVER)

    def _read(self) -> None:
        cache, words, clock = self._open(), self.words, time.perf_counter_ns
        watch = cache._watch
        catch_up = watch.catch_up

        def caught_up(now: float) -> None:
            catch_up(now)
            words[HEARD] = clock()

        watch.catch_up = caught_up  # type: ignore[method-assign]
        while not words[STOP]:
            value = cache[f"item-{words[TARGET]}"]["n"]
            if value != words[SEEN]:
                words[ANSWERED] = clock()
                words[SEEN] = value

    def round(
        self, item: int, number: int, say: Callable[[], object], stored: Callable[[], int]
    ) -> tuple[float, float, float]:
        """Seconds from the call until it was stored; and from there until it was heard, and until it was answered."""
        self.words[TARGET] = item
        self.db.execute("UPDATE items SET n = ? WHERE id = ?", (number, f"item-{item}"))
        time.sleep(random.uniform(0.025, 0.03))  # the reader reads what the file has; and the database's times settle
        begun = time.perf_counter_ns()
        say()
        deadline = time.monotonic() + 20
        while self.words[SEEN] != number:
            time.sleep(0.0002)
            assert time.monotonic() < deadline, "the reader does not hear"
        moments = begun, stored(), self.words[HEARD], self.words[ANSWERED]
        return (moments[1] - begun) / 1e9, (moments[2] - moments[1]) / 1e9, (moments[3] - moments[1]) / 1e9

    def close(self) -> None:
        self.words[STOP] = 1
        self.reader.join(20)
        self.cache.close()
        self.db.close()


@contextlib.contextmanager
def hearing(items: int) -> Iterator[Hearing]:
    with tempfile.TemporaryDirectory() as directory:
        made = Hearing(directory, items)
        try:
            yield made
        finally:
            made.close()


@contextlib.contextmanager
def stamped() -> Iterator[Callable[[], int]]:
    """Gives when this process last stored what makes the others look; in ns."""
    stamp, store = [0], Wake.store

    def noted(self: Wake, value: int) -> None:
        stamp[0] = time.perf_counter_ns()
        store(self, value)

    Wake.store = noted  # type: ignore[method-assign]
    try:
        yield lambda: stamp[0]
    finally:
        Wake.store = store  # type: ignore[method-assign]


def time_to_hear(settings: Settings, report: Report, *, quick: bool) -> None:
    rounds = settings.repeat(60 if quick else 500)
    found: dict[str, list[tuple[float, float, float]]] = {}
    with hearing(rounds) as told, stamped() as stored:
        cache, key = told.cache, ""
        sayings: dict[str, Callable[[], object]] = {
            "invalidate([id])": lambda: cache.invalidate([key]),
            "invalidate(hard=True)": lambda: cache.invalidate(hard=True),
            "publish": cache.rebuild,
        }
        for i in range(rounds):
            report.noise.probe()
            key = f"item-{i}"
            for number, (name, say) in enumerate(sayings.items(), 3 * i + 1):
                found.setdefault(name, []).append(told.round(i, number, say, stored))
                cache.rebuild()
    rows = []
    for name, times in found.items():
        before, heard, answered = zip(*times, strict=True)
        p50 = statistics.median(heard)
        report.result(
            operation=name, rounds=rounds, stored=_spread(before), heard=_spread(heard), answered=_spread(answered)
        )
        verdict = report.goal(f"{name}: heard, us (p50)", rounds, p50 * 1e6, 50)
        told_times = (statistics.median(before), p50, _p99(heard), statistics.median(answered), _p99(answered))
        rows.append([name, "" if name != "publish" else "a rebuild", *map(time_text, told_times), verdict])
    header = ("said", "", "stored after", "heard, p50", "p99", "answered, p50", "p99", "goal, us")
    report.table(f"from one process to another that reads without a pause, {rounds} times each", header, rows)


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"p50": statistics.median(values), "p99": _p99(values), "max": max(values)}


# --- what others do ---------------------------------------------------------------------------------------------------


def beside(data: DataSet, settings: Settings, report: Report, *, quick: bool) -> None:
    ids = data.ids()[:1_000]
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        db = stack.enter_context(contextlib.closing(sqlite3.connect(f"file:{data.bank}?mode=ro", uri=True)))
        cache = stack.enter_context(mmcache.Cache(data.store(Mmcache), check_interval=NEVER))
        contenders: dict[str, Work] = {
            "mmcache: get": gets(cache, ids),
            "PRAGMA data_version": repeated(lambda: db.execute("PRAGMA data_version").fetchone()),
            "os.stat": repeated(lambda: os.stat(data.bank)),
        }
        if importlib.util.find_spec("diskcache") is None:
            report.note("diskcache is not installed, and is left out: pip install diskcache")
        else:
            import diskcache

            disk = stack.enter_context(diskcache.Cache(os.path.join(directory, "diskcache")))
            for row in db.execute("SELECT id, type, domain, framework, content, metadata FROM patterns LIMIT 1000"):
                disk[row[0]] = record_of(row)
            contenders["diskcache: get"] = gets(disk, ids)
        samples = interleave(contenders, settings.repeat(21 if quick else 61), report.noise, primed=True)
    rows = []
    for name in contenders:
        ratio = samples.ratio(name, "mmcache: get")
        report.result(n=data.n, operation="beside", contender=name, seconds=samples.range(name), ratio=ratio)
        rows.append([name, "", time_text(samples.range(name).median), f"{ratio.median:.2f}"])
    report.table("beside it", ("", "", "median", "of an mmcache get"), rows)


def main() -> int:
    made: argparse.ArgumentParser = parser(QUESTION)
    arguments = made.parse_args()
    settings = settings_of(arguments)
    report = Report("freshness", QUESTION, settings)
    small = DataSet(settings.sizes[0], dim_of(settings.sizes[0]), settings.data)
    (cost_compiled if mmcache.implementation == "compiled" else cost_per_get)(small, settings, report)
    time_to_hear(settings, report, quick=arguments.quick)
    beside(small, settings, report, quick=arguments.quick)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
