"""`check_source`: whether a source answers as a source must, whatever it is made of.

What it should answer follows from what one read of it gives: the records by key, and those that a query asks for by the
rules of `query`. So a source is wrong if its lookups do not agree with its reads. Keys and queries are chosen for what
databases and programs take for equal and mmcache does not: see `questions`.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgpack

from ..errors import MmcacheError
from ..query import Query
from ..schema import Schema
from ..sharing.publishing import build
from ..sources import available, from_spec, is_remakable
from ..sources.base import Changes, Key, OrderedSource, Source, TrackedSource, given_by, scans
from .faults import about_answers, about_matches, about_rows, about_schemas
from .questions import absent_keys, asked, queries
from .reference import Reference, form

__all__ = ["check_source"]

_MANY: Final = 3000
"""Keys that are asked for at once: more than a statement of SQL takes in some databases."""

_SECONDS: Final = 30.0
"""For a forked child to answer."""


def check_source(source: Source, *, change: Callable[[], object] | None = None, pickles: bool = True) -> None:
    """Raises AssertionError that names what is wrong with each answer of a source, and how it should be; for tests.

    source: with some hundred records at most, as it is read many times. What the records do not have cannot be tried:
        give them None, a list, True, numbers as text, and text that differs in case alone.
    change: changes the records in the source, by the source's own means: others each time it is called. Without it,
        stale answers are not looked for.
    pickles: False for a source that is used in threads alone.

    >>> from mmcache.testing import check_source
    >>> def change():
    ...     with contextlib.closing(sqlite3.connect("items.db")) as db, db:
    ...         _ = db.execute("UPDATE items SET size = size + 1")
    >>> check_source(SQLiteSource("items.db", Schema("items", index=("kind", "size"))), change=change)
    """
    check = _Check(source)
    check.all(change, pickles=pickles)
    if check.faults:
        said = "".join(f"\n- {fault}" for fault in dict.fromkeys(check.faults))
        raise AssertionError(f"{type(source).__name__} does not answer as a source must:{said}")


class _Check:
    """faults: what was found to be wrong, a sentence each."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.faults: list[str] = []

    def all(self, change: Callable[[], object] | None, *, pickles: bool) -> None:
        """Everything, as far as what is asked first leaves sense in the rest."""
        self.faults += about_schemas(self.source)
        if self.faults:
            return
        found: Mapping[str, Reference] | None = self._read()
        if found is None or self.faults:
            return
        self._agrees(self.source, found)
        self._is_in_order(found)
        self._tells()
        self._is_named(found)
        if pickles:
            self._pickles(found)
        self._survives_threads(found)
        self._survives_a_fork(found)
        self._can_be_built()
        if change is not None and not self.faults:
            for _ in range(2):  # the second at once, within a tick of any clock
                found = self._changed(found, change, _pickled(self.source) if pickles else None)

    def _try(self, what: str, ask: Callable[[], Any]) -> Any:
        """The answer; None, and a fault, where it raises."""
        try:
            return ask()
        except Exception as error:  # noqa: BLE001 (whatever a source raises)
            self.faults.append(f"{what} raised {type(error).__name__}: {error}")
            return None

    # --- reads

    def _read(self) -> dict[str, Reference] | None:
        """Each collection, read twice, the second time within the read of all."""
        first: dict[str, Reference] | None = self._try("read()", lambda: _references(self.source))
        if first is None:
            return None
        for one in first.values():
            self.faults += about_rows(one)
        again = self._try("a second read()", lambda: _references(self.source))
        if again is not None and not self.faults:
            for name, one in first.items():
                if one.forms != again[name].forms:
                    what = "other records" if sorted(one.forms) != sorted(again[name].forms) else "another order"
                    self.faults.append(f"a second read of {name!r} gave {what}; nothing was written in between")
        return first

    # --- lookups

    def _agrees(self, source: Source, found: Mapping[str, Reference], since: str = "") -> None:
        """Every lookup gives what a read gives. since: what happened before, for the sentences."""
        for one in found.values():
            for ids in asked(one):
                self._fetches(source, one, ids, since)
            self._fetches(source, one, [*one.keys[:2], *absent_keys(one, _MANY), *one.keys[2:4]], since)
            for query in queries(one):
                self._finds(source, one, query, since)

    def _fetches(self, source: Source, one: Reference, ids: list[Key], since: str = "") -> None:
        def fetched() -> list[Any]:
            return one.plain(source, source.fetch(one.schema.name, ids))

        answers = self._try(f"{since}fetch({one.schema.name!r}, {_short(ids)})", fetched)
        if answers is not None:
            self.faults += about_answers(one, ids, answers, since)

    def _finds(self, source: Source, one: Reference, query: Query, since: str) -> None:
        def found() -> list[Any]:
            return one.plain(source, source.find(one.schema.name, query))

        records = self._try(f"{since}find({one.schema.name!r}, {query})", found)
        if records is not None:
            self.faults += about_matches(one, query, records, since)

    def _gives_the_same(self, source: Source, found: Mapping[str, Reference], since: str) -> None:
        """Some records, for copies of the source."""
        for one in found.values():
            self._fetches(source, one, one.keys[:50], since)

    def _is_in_order(self, found: Mapping[str, Reference]) -> None:
        source: object = self.source
        for name, one in found.items() if isinstance(source, OrderedSource) else ():
            ids = [*reversed(one.keys[:50]), *absent_keys(one, 2), *one.keys[:1]]
            given = self._try("in_order()", partial(self.source.in_order, name, ids))
            if given is not None and list(given) != one.keys[:50]:
                right = f"{_short(one.keys[:50])}: the keys that are there, each once, in the order of records()"
                self.faults.append(f"in_order({name!r}, {_short(ids)}) gave {_short(given)}; expected {right}")

    # --- what it says of itself

    def _tells(self) -> None:
        source = self.source
        fingerprint = self._settled()
        if fingerprint is None:
            return
        if not isinstance(fingerprint, bytes) or len(fingerprint) != 32:
            self.faults.append(f"fingerprint() gave {fingerprint!r:.80}; expected 32 bytes, such as those of a SHA-256")
        for schema in source.schemas:
            answer = self._try("scans()", partial(scans, source, schema.name))
            if answer not in (True, False):
                self.faults.append(f"scans({schema.name!r}) gave {answer!r}; expected a bool")
        there = self._try("available()", partial(available, source, source.schemas))
        if there is not None and tuple(there) != tuple(source.schemas):
            self.faults.append(f"available() of its own schemas gave {there!r:.200}; expected all of them")

    def _settled(self) -> Any:
        """The fingerprint, once it lasts: after a write, one may be given that is never given again."""
        deadline = time.monotonic() + 2.0
        while True:
            one, other = (self._try("fingerprint()", self.source.fingerprint) for _ in range(2))
            if one == other:
                return one
            if time.monotonic() > deadline:
                self.faults.append("fingerprint() gave another answer each time for 2 s, though nothing was written")
                return None
            time.sleep(0.03)

    def _is_named(self, found: Mapping[str, Reference]) -> None:
        source = self.source
        spec = self._try("spec()", source.spec)
        if spec is None:
            return
        plain = self._try("spec(), as msgpack", lambda: msgpack.unpackb(msgpack.packb(spec), strict_map_key=False))
        if not isinstance(spec, dict) or not isinstance(spec.get("kind"), str):
            self.faults.append(f"spec() gave {spec!r:.80}; expected a dict with a text as 'kind', or None")
        elif plain is not None and is_remakable(source):
            again = self._try("from_spec()", lambda: from_spec(plain, source.schemas, given_by(source)))
            if again is not None:
                self._gives_the_same(again, found, "made again by its spec: ")

    def _pickles(self, found: Mapping[str, Reference]) -> None:
        again = self._try("pickling (pickles=False, if no other process is to have it)", lambda: _pickled(self.source))
        if again is not None:
            self._gives_the_same(again, found, "pickled: ")

    # --- threads and processes

    def _survives_threads(self, found: Mapping[str, Reference]) -> None:
        def ask() -> None:
            for _ in range(3):
                self._gives_the_same(self.source, found, "in four threads at once: ")

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _survives_a_fork(self, found: Mapping[str, Reference]) -> None:
        if not hasattr(os, "fork"):
            return
        before = len(self.faults)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads that a caller may have
            pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                self._gives_the_same(self.source, found, "")
                os._exit(len(self.faults) > before)
            os._exit(1)
        deadline = time.monotonic() + _SECONDS
        done, status = os.waitpid(pid, os.WNOHANG)
        while not done and time.monotonic() < deadline:
            time.sleep(0.002)
            done, status = os.waitpid(pid, os.WNOHANG)
        if not done:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        if not done or status:
            how = "answers otherwise" if done else f"does not answer within {_SECONDS:g} s"
            self.faults.append(f"in a forked child it {how}: make connections and locks anew where os.getpid() differs")

    def _can_be_built(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            try:
                build(os.path.join(directory, "checked.mmc"), self.source)
            except MmcacheError as error:
                self.faults.append(f"a build refuses it: {error.message}")

    # --- stale answers

    def _changed(
        self, before: Mapping[str, Reference], change: Callable[[], object], copy: Source | None
    ) -> Mapping[str, Reference]:
        """What there is after a change. copy: as another process has it."""
        source = self.source
        told = self._settled()
        if copy is not None:
            self._gives_the_same(copy, before, "pickled: ")
        change()
        after: dict[str, Reference] | None = self._try("read() after change()", lambda: _references(source))
        if after is None:
            return before
        written = {name: _written(before[name], one) for name, one in after.items()}
        if not any(written.values()):
            self.faults.append("after change(), read() gives what it gave before: it is stale, or nothing was changed")
            return after
        self._agrees(source, after, "after change(): ")
        if copy is not None:
            self._gives_the_same(copy, after, "after change(), pickled before: ")
        if told is not None and any(told):
            self._notices(told, written)
        return after

    def _notices(self, told: bytes, written: Mapping[str, set[Key]]) -> None:
        if self.source.fingerprint() == told:
            self.faults.append("fingerprint() is the same after change(): a file that is out of date would be believed")
        tracked: object = self.source
        changes = self._try("changes()", lambda: tracked.changes(told)) if isinstance(tracked, TrackedSource) else None
        if changes is None:
            return
        if not isinstance(changes, Changes):
            self.faults.append(f"changes() gave a {type(changes).__name__}; expected Changes, or None")
            return
        for name, keys in written.items():
            if lacking := keys - set(changes.keys.get(name, ())):
                self.faults.append(
                    f"changes() of {name!r} lacks {_short(sorted(lacking, key=repr))}, which change() wrote: more keys "
                    "may be told than were written, and never fewer"
                )


def _references(source: Source) -> dict[str, Reference]:
    """All collections, of one read."""
    schemas: Sequence[Schema] = source.schemas
    with source.read() as reading:
        return {schema.name: Reference.of(source, schema, reading) for schema in schemas}


def _written(before: Reference, after: Reference) -> set[Key]:
    """Keys of records that are not as they were."""
    old, new = ({key: form(one.by_key[key]) for key in one.keys} for one in (before, after))
    return {key for key in {*old, *new} if old.get(key) != new.get(key)}


def _pickled(source: Source) -> Source:
    return pickle.loads(pickle.dumps(source))  # type: ignore[no-any-return]  # noqa: S301 (what we made ourselves)


def _short(keys: Iterable[Any]) -> str:
    given = list(keys)
    return repr(given) if len(given) <= 6 else f"[{', '.join(map(repr, given[:5]))}, ... {len(given)} in all]"
