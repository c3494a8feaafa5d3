"""What do invalidated ids cost until the next build?

Caches over equal files: in one nothing is invalidated, in the others some ids are, half of them of records that were
updated, a quarter of deleted and a quarter of inserted ones. They take turns at the same look-ups of other ids, and of
what concerns all records: `where` and `len`. Nothing else moves: no cache rebuilds, looks for news or expires.

    ratio          the time with so many ids dirty / the time of the cache without, pair by pair
    0 dirty        what the measurement itself does to a ratio
    first where    how often a cache that has just been opened asks its source for the dirty records
    a dirty id     a get of it through the cache, beside the source's own fetch of one id
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mmcache
from mmcache.sources import Reading, SourceRecord

from .common import (
    Report,
    Samples,
    Settings,
    Turn,
    Work,
    dim_of,
    interleave,
    parser,
    ratio_text,
    settings_of,
    time_text,
)
from .data import DataSet

QUESTION = "What do invalidated ids cost until the next build?"

COUNTS = (0, 1, 100, 2_000)
IDS, BATCH, DOMAINS, FACETS, LENGTHS = 400, 100, 5, 40, 400
NEVER = 1e6
"""Seconds between two looks at files and source: none falls into a measurement."""

GOALS = {
    "get": 1.15,
    "embedding": 1.15,
    "in": 1.2,
    f"get_many({BATCH})": 1.2,
    "where, one field": 1.3,
    "where, three fields": 1.3,
    "len": 1.3,
}
"""How many times as long an operation may take as with nothing dirty."""


# --- the caches -------------------------------------------------------------------------------------------------------


class CountedSource(mmcache.SQLiteSource):
    """A bank that counts what it is asked, and never looks changed: only invalidations tell that it is."""

    def __init__(self, path: str, *schemas: mmcache.Schema) -> None:
        super().__init__(path, *schemas)
        self.asked: Counter[str] = Counter()

    def fetch(self, collection: str, ids: Sequence[Any]) -> list[SourceRecord | None]:
        self.asked["fetch"] += 1
        return super().fetch(collection, ids)

    def find(self, collection: str, query: dict[str, tuple[Any, ...]]) -> Iterator[SourceRecord]:
        self.asked["find"] += 1
        return super().find(collection, query)

    @contextlib.contextmanager
    def read(self) -> Iterator[Reading]:
        self.asked["read"] += 1
        with super().read() as reading:
            yield reading

    def fingerprint(self) -> bytes:
        return bytes(32)


@dataclass(frozen=True)
class Contender:
    """A cache, its source, whose bank has changed since the build, and the ids that were invalidated."""

    path: str
    source: CountedSource
    cache: mmcache.Cache
    dirty: Sequence[str]


@dataclass(frozen=True)
class Caches:
    """Open caches over equal files.

    reference: with nothing dirty. by_count: number of dirty ids -> the cache with so many; ids that are dirty in one
    are so in all with more. clean: ids that are in the files, and dirty in none. facts: domain, type and framework of
    every record of the files.
    """

    reference: mmcache.Cache
    by_count: dict[int, Contender]
    clean: Sequence[str]
    facts: Sequence[tuple[str, str, str]]


@contextlib.contextmanager
def opened(data: DataSet, counts: Sequence[int]) -> Iterator[Caches]:
    """The caches, warm, with dirty records that were asked for once. At most half of the records become dirty."""
    original, facts = data.bank, _facts(data.bank)
    ids = [id_ for id_, *_ in facts]
    random.Random("dirty").shuffle(ids)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir=data.home))

        def contender(name: str, count: int) -> Contender:
            bank, path = original, os.path.join(directory, f"{name}.mmc")
            if count:
                bank = shutil.copyfile(original, os.path.join(directory, f"{name}.db"))
            source = CountedSource(bank, data.schema)
            stack.callback(source.close)
            mmcache.build(path, source)
            cache = stack.enter_context(open_one(path, source))
            dirty = _changed(bank, ids[:count], ids[-1]) if count else []
            cache.invalidate(dirty)
            source.asked.clear()
            cache.where(domain=facts[0][1])
            cache.embedding(ids[-1])
            len(cache)
            assert count or not source.asked, "nothing is dirty, and yet the file does not answer"
            return Contender(path, source, cache, dirty)

        most = min(max(counts), data.n // 2)
        yield Caches(
            reference=contender("reference", 0).cache,
            by_count={count: contender(f"{count}-dirty", min(count, most)) for count in counts},
            clean=ids[most:],
            facts=[fact[1:] for fact in facts],
        )


def open_one(path: str, source: CountedSource) -> mmcache.Cache:
    return mmcache.open(path, source, executor="external", check_interval=NEVER, ttl=NEVER)


def _facts(bank: str) -> list[tuple[str, str, str, str]]:
    with contextlib.closing(sqlite3.connect(bank)) as db:
        return db.execute("SELECT id, domain, type, framework FROM patterns ORDER BY rowid").fetchall()


def _changed(bank: str, some: Sequence[str], like: str) -> list[str]:
    """Change as many records as `some`; their ids. Of any first ones half are updated, a quarter deleted, and a quarter
    new, but for the id like another."""
    changed = []
    with contextlib.closing(sqlite3.connect(bank)) as db, db:
        domains = [domain for (domain,) in db.execute("SELECT DISTINCT domain FROM patterns ORDER BY 1")]
        new = "SELECT ?, type, ?, framework, content, metadata, embedding FROM patterns WHERE id = ?"
        for i, id_ in enumerate(some):
            domain = domains[i // 4 % len(domains)]
            if i % 4 == 1:
                db.execute("DELETE FROM patterns WHERE id = ?", (id_,))
            elif i % 4 == 3:
                id_ = f"{id_}-new"
                db.execute(f"INSERT INTO patterns {new}", (id_, domain, like))
            else:
                db.execute("UPDATE patterns SET domain = ?, content = 'new' WHERE id = ?", (domain, id_))
            changed.append(id_)
    return changed


# --- what they do -----------------------------------------------------------------------------------------------------


def works(caches: Caches) -> dict[str, Callable[[mmcache.Cache], Work]]:
    """By operation of `GOALS`: turns of a cache at what does not concern a dirty id alone."""

    def ids(chosen: random.Random) -> list[str]:
        return chosen.choices(caches.clean, k=IDS)

    def batches(chosen: random.Random) -> list[list[str]]:
        size = min(BATCH, len(caches.clean))
        return [chosen.sample(caches.clean, size) for _ in range(IDS // BATCH)]

    def facets(count: int, chosen: random.Random) -> list[tuple[str, str, str]]:
        return chosen.choices(caches.facts, k=count)

    def turns(action: Callable[[mmcache.Cache, list[Any]], object], draw: Callable[[random.Random], list[Any]]) -> Any:
        def of(cache: mmcache.Cache) -> Work:
            def work(repetition: int) -> Turn:
                drawn = draw(random.Random(repetition))
                return partial(action, cache, drawn), len(drawn)

            return work

        return of

    return {
        "get": turns(_get, ids),
        "embedding": turns(_embedding, ids),
        "in": turns(_contains, ids),
        f"get_many({BATCH})": turns(_get_many, batches),
        "where, one field": turns(_one_field, partial(facets, DOMAINS)),
        "where, three fields": turns(_three_fields, partial(facets, FACETS)),
        "len": turns(_len, lambda _: [None] * LENGTHS),
    }


def _get(cache: mmcache.Cache, ids: Sequence[str]) -> None:
    for id_ in ids:
        cache[id_]["domain"]


def _embedding(cache: mmcache.Cache, ids: Sequence[str]) -> None:
    for id_ in ids:
        cache.embedding(id_)


def _contains(cache: mmcache.Cache, ids: Sequence[str]) -> None:
    for id_ in ids:
        assert id_ in cache


def _get_many(cache: mmcache.Cache, batches: Sequence[list[str]]) -> None:
    for ids in batches:
        cache.get_many(ids)


def _one_field(cache: mmcache.Cache, facets: Sequence[tuple[str, str, str]]) -> None:
    for domain, _, _ in facets:
        _ = cache.where(domain=domain).ids


def _three_fields(cache: mmcache.Cache, facets: Sequence[tuple[str, str, str]]) -> None:
    for domain, type_, framework in facets:
        _ = cache.where(domain=domain, type=type_, framework=framework).ids


def _len(cache: mmcache.Cache, times: Sequence[None]) -> None:
    for _ in times:
        len(cache)


# --- measuring --------------------------------------------------------------------------------------------------------


def check(caches: Caches) -> None:
    """Every cache gives what its source has."""
    clean = caches.reference.get_many(caches.clean)
    for contender in caches.by_count.values():
        cache, there = contender.cache, _facts(contender.source.path)
        assert len(cache) == len(there)
        for domain in {fact[1] for fact in there}:
            assert set(cache.where(domain=domain).ids) == {fact[0] for fact in there if fact[1] == domain}
        known = {fact[0] for fact in there}
        assert [id_ in cache for id_ in contender.dirty] == [id_ in known for id_ in contender.dirty]
        assert cache.get_many(caches.clean) == clean


def ratios(data: DataSet, caches: Caches, settings: Settings, report: Report) -> None:
    rows = []
    for name, work in works(caches).items():
        contenders = {"clean": work(caches.reference)}
        contenders |= {f"{count:,} dirty": work(each.cache) for count, each in caches.by_count.items()}
        samples = interleave(contenders, settings.repeat(61), report.noise, primed=True)
        rows += list(_told(name, samples, list(contenders), data, report))
    title = f"other ids, and all records: {data.n:,} records, embeddings of {data.dim}"
    report.table(title, ("operation", "", "median", "/ clean", "goal"), rows[:-1])


def _told(operation: str, samples: Samples, names: Sequence[str], data: DataSet, report: Report) -> Iterator[list[str]]:
    for i, name in enumerate(names):
        seconds, ratio = samples.range(name), samples.ratio(name, "clean")
        report.result(n=data.n, dim=data.dim, operation=operation, contender=name, seconds=seconds, ratio=ratio)
        verdict = report.goal(f"{operation}: {name} / clean", data.n, ratio.median, GOALS[operation]) if i else ""
        yield ["" if i else operation, name, time_text(seconds.median), ratio_text(ratio) if i else "", verdict]
    yield [""] * 5


def first_where(data: DataSet, caches: Caches, report: Report) -> None:
    """What a cache asks of its source at its first `where`, and at what comes after."""
    rows = []
    domain, type_, framework = caches.facts[0]
    for count, contender in caches.by_count.items():
        source = CountedSource(contender.source.path, *contender.source.schemas)
        with contextlib.closing(source), open_one(contender.path, source) as cache:
            source.asked.clear()
            _ = cache.where(domain=domain).ids
            first = source.asked.copy()
            source.asked.clear()
            _ = len(cache), cache.where(type=type_).ids, cache.where(domain=domain, framework=framework).ids
            later = source.asked.copy()
        verdict = "none"
        if count:
            calls = (first + later).total()
            verdict = report.goal(f"first where and later ones, {count:,} dirty: calls of the source", data.n, calls, 1)
        report.result(n=data.n, operation="first where", dirty=count, first=dict(first), later=dict(later))
        rows.append([f"{count:,} dirty", "", _calls(first), _calls(later), verdict])
    report.table("calls of the source", ("", "", "at the first where", "later", "goal"), rows)


def _calls(asked: Counter[str]) -> str:
    return ", ".join(f"{times} {name}" for name, times in sorted(asked.items())) or "none"


def a_dirty_id(data: DataSet, caches: Caches, settings: Settings, report: Report) -> None:
    """Of records that were updated, with as many ids dirty as there are in any cache."""
    most = caches.by_count[max(caches.by_count)]
    source, updated, collection = most.source, most.dirty[::2], most.source.schemas[0].name

    def fetch(ids: Sequence[str]) -> None:
        for id_ in ids:
            source.fetch(collection, [id_])

    def work(action: Callable[[Sequence[str]], None]) -> Work:
        return lambda repetition: (partial(action, random.Random(repetition).choices(updated, k=BATCH)), BATCH)

    contenders = {"cache": work(partial(_get, most.cache)), "source": work(fetch)}
    samples = interleave(contenders, settings.repeat(31), report.noise, primed=True)
    rows = []
    for contender in contenders:
        seconds, ratio = samples.range(contender), samples.ratio(contender, "source")
        report.result(n=data.n, dim=data.dim, operation="a dirty id", contender=contender, seconds=seconds, ratio=ratio)
        rows.append([contender, "", time_text(seconds.median), ratio_text(ratio)])
    report.table(f"a get of a dirty id, {data.n:,} records", ("", "", "median", "/ source.fetch"), rows)


def main() -> int:
    settings = settings_of(parser(QUESTION).parse_args())
    report = Report("dirty", QUESTION, settings)
    for n in settings.sizes:
        data = DataSet(n, dim_of(n), settings.data)
        counts = [count for count in COUNTS if count <= n // 2]
        if omitted := [f"{count:,}" for count in COUNTS if count not in counts]:
            report.note(f"{n:,} records: {', '.join(omitted)} dirty left out, more than half of them")
        with opened(data, counts) as caches:
            check(caches)
            gc.freeze()  # what is collected before every turn is then little
            ratios(data, caches, settings, report)
            first_where(data, caches, report)
            a_dirty_id(data, caches, settings, report)
            gc.unfreeze()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
