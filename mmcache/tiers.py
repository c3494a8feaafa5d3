"""Who answers: the file, the source, or for some ids the one and for the rest the other.

`Tiers` is what the collections of one cache share. A get looks at two things: whether the control page's wake word is
the one that we saw last, and whether it is time for the look that is due once in `check_interval`. If neither, it takes
no lock and reads one attribute. Else `look` finds out what is new, and replaces the `View`, in this order: view first,
then the word that was seen. So another thread reads the new view, or finds the word different and waits for us.

Nothing here blocks a get on a build: a rebuild in the background is another process, or a thread while it lasts.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Set as AbstractSet
from typing import Any, Final, NamedTuple

from .errors import (
    ClosedError,
    IncompatibleFormatError,
    LockTimeoutError,
    MissingFileError,
    SourceError,
    UnusableFileError,
)
from .format.layout import Layout
from .freshness import Freshness, may_answer
from .sharing import invalidation, metrics
from .sharing.control import RING_SIZE, WAKE, ControlPage, attach, entry_of
from .sharing.metrics import FALLBACK, HITS, LOAD, LOOKUP, Slot
from .sharing.publishing import build_once
from .sharing.staleness import Basis, Doubt, basis_of, doubt_about, freshness_of
from .sources.base import Source, TrackedSource
from .storage import shared
from .storage.fs import Identity, identity_of, lock_name
from .storage.publish import BuildReport
from .storage.snapshot import Snapshot

__all__ = ["Tiers", "View", "is_disabled"]

log = logging.getLogger("mmcache")

EXECUTORS: Final = ("subprocess", "thread", "inline", "external")

TOLD: Final = 15
"""After so many answers of the file, and one, their number is told: as many are not counted when we are killed."""

TIMED: Final = 255
"""One look-up in so many, and one, is timed."""

_RETRY = 1.0
"""Seconds after which a cache without a file looks whether there is one by now."""

_SLOW_RUN: Final = 3
"""Slow look-ups one after the other that open the circuit."""

_LOCKED: Final = 75
"""Exit status of a rebuild in the background that found another at work."""

_COOL_DOWN: Final = 30.0
"""Seconds for which an open circuit sends reads to the source."""

_DAMAGED: Final = "a record of the file is damaged"

_NOTHING: Final[AbstractSet[int]] = frozenset()
_NO_WORDS: Final = memoryview(bytes(8 * 16)).cast("Q")


class View(NamedTuple):
    """Who answers, as of the last look.

    snapshot: the file; None where the source has to answer everything, because of `cause`.
    dirty: entries of ids, and of whole collections, that only the source may answer.
    """

    snapshot: Snapshot | None
    cause: str
    dirty: AbstractSet[int]


class Tiers:
    """What the collections of one cache share: snapshot, source, control page, counters.

    answering: the snapshot, where it may answer every id; else None, and `view` tells. `words`, `seen`, `due`: what a
    get looks at first. `counts`, `bump`, `mask`: what it counts with. All of these are read without a lock and replaced
    as a whole; everything else changes under `lock`.
    """

    def __init__(self, path: str, source: Source | None, options: dict[str, Any]) -> None:
        self.path = path
        self.source = source
        self.options = options
        self.policy = options["policy"]
        self.closed = False
        self.snapshot: Snapshot | None = None
        self.answering: Snapshot | None = None
        self.page: ControlPage | None = None
        self.words: memoryview = _NO_WORDS
        self.seen: int | None = None
        self.basis: Basis | None = None
        self.freshness: Freshness | None = None
        self.doubt: Doubt | None = None
        self.error: UnusableFileError | None = None
        self.mask = TOLD if options["slow_after"] is None else 0
        self._view = View(None, "missing", _NOTHING)
        self._problem: str | None = None
        self._refused: Identity | None = None
        self._fingerprint: bytes | None = None
        self._compared: bytes | None = None
        self._changed: AbstractSet[int] | None = _NOTHING  # entries of ids; None: unknown ones
        self._dirty: set[int] = set()
        self._dirty_from: tuple[int, int] | None = None
        self._dirty_until = 0
        self._mend: str | None = None
        self._opened: list[weakref.ref[Snapshot]] = []  # a mapping has no hash
        self._slow_run = 0
        self._slow_until = 0.0
        self._next_try = 0.0
        self._waited = False
        self.begin_process()
        _alive.add(self)

    def begin_process(self) -> None:
        """What belongs to one process: at the start, and in a forked child.

        A snapshot and a page that are mapped are shared with the parent, and stay. A lock that another thread held
        would never be released; a slot is its writer's alone.
        """
        self.lock = threading.RLock()
        self.opening = threading.Lock()
        self.slot = Slot.private()
        self.counts = self.slot.words
        self.bump = itertools.count(1).__next__
        self.due = 0.0
        self.draw = random.uniform(-1.0, 1.0)  # noqa: S311
        self._looks = 0
        self._hits = 0
        self._has_slot = False
        self._building = False
        self._child: tuple[subprocess.Popen[bytes], float, tuple[int, float] | None] | None = None

    # --- counting

    def count(self, word: int, n: int = 1) -> None:
        self.slot.add(word, n)

    def count_fallback(self, cause: str, n: int, seconds: float) -> None:
        self.slot.add(metrics.FALLBACK_NS, int(seconds * 1e9))
        self.slot.observe(FALLBACK, seconds)
        if n:
            self.slot.add(_FALLBACKS[cause], n)

    def settle_hits(self) -> None:
        """Make the count of hits exact. `next` of a C iterator cannot be interrupted, so each number is given once; two
        threads may store theirs in the wrong order, which this mends. A look takes a number, too, and is taken off."""
        with self.lock:
            self._looks += 1
            self.slot.set(metrics.LOOKS, self._looks)
            self.slot.set(HITS, self.bump())

    def sample(self, begun: float, hits: int) -> None:
        """Tell how many look-ups the file has answered; time some of them. With `slow_after`, this is every one."""
        seconds = time.monotonic() - begun
        slow_after = self.options["slow_after"]
        self.counts[HITS] = hits
        if hits & TIMED and slow_after is None:
            return
        with self.lock:
            self.slot.observe(LOOKUP, seconds)
            if slow_after is None:
                return
            if seconds <= slow_after:
                self._slow_run = 0
                return
            self.slot.add(metrics.SLOW_LOOKUPS)
            self._slow_run += 1
            if self._slow_run < _SLOW_RUN or not self.options["fallback_on_slow"] or self.source is None:
                return
            self._slow_run = 0
            self._slow_until = time.monotonic() + _COOL_DOWN
            self._judge()
        log.warning(
            "%s: %d look-ups in a row took longer than %g s; the source answers for %g s",
            self.path,
            _SLOW_RUN,
            slow_after,
            _COOL_DOWN,
            extra={"event": "circuit_opened", "path": self.path},
        )

    # --- looking

    def view(self) -> View:
        """Who answers now; the file is opened, or built, if there is none yet.

        Raises the file's UnusableFileError where there is no source to answer in its place.
        """
        now = time.monotonic()
        if now >= self.due or self.words[WAKE] != self.seen:
            self.look(now)
        if self.snapshot is None:
            return self._attached()
        return self._view

    def look(self, now: float) -> None:
        """Find out what is new since the last look."""
        if self.closed:
            return
        with self.lock:
            polls = now >= self.due
            if polls:
                self.due = now + self.options["check_interval"]
                self._look_around()
            woken = self.words[WAKE]
            if woken != self.seen and self.snapshot is not None:
                assert self.page is not None
                if self.page.generation != self.snapshot.generation:
                    self._adopt()
            self._judge()
            if self.source is not None and self.basis is not None and self.basis.fingerprint != self._compared:
                self._ask_source()  # a rebuild found the file unchanged
                self._judge()
            self.seen = woken
            why = self._why_rebuild()
        if polls:
            self.slot.flush()
            self.slot.flush_events()
        if why is not None:
            self._start_build(why)

    def _look_around(self) -> None:
        """What is looked at once in `check_interval`."""
        if not self._has_slot:
            self._take_slot()
        self._renew_page()
        self._reap()
        if self.snapshot is not None:
            if identity_of(self.path) != self.snapshot.identity:
                self._adopt()
            elif self._mend != _DAMAGED:  # ours is there again
                self._mend = self._refused = None
        self._ask_source()
        self._tell_gauges()

    def _take_slot(self) -> None:
        """Count where others can see it, on from what we have."""
        self._has_slot = True
        self.slot.share(self.path, label=self.options["label"])

    def _renew_page(self) -> None:
        """Use the page that is at its path now."""
        old = self.page
        if old is not None and old.writable and old.is_current():
            return
        new = attach(self.path)
        if old is not None and not old.shared and not new.shared:
            old.problem, new = new.problem, old  # what was said here, and to us alone, is still so
        if old is not None and old.shared and new.shared:
            self._carry_over(old, new)
        self.page, self.words, self.seen = new, new.words, None
        if new.problem != self._problem:
            self._problem = new.problem
            if new.problem is not None:
                log.warning(
                    "%s: no control page (%s): what other processes do is noticed every %g s only",
                    self.path,
                    new.problem,
                    self.options["check_interval"],
                    extra={"event": "degraded", "path": self.path},
                )

    def _carry_over(self, old: ControlPage, new: ControlPage) -> None:
        """The page went missing and was made again: what was invalidated on the old one must not be forgotten."""
        if self.snapshot is None or not new.writable:
            return
        doubt = doubt_about(basis_of(self.snapshot.header, old), old, None)
        if (doubt.hard or doubt.since != doubt.until) and old.nonce == new.nonce:
            new.invalidate("manual", hard=True)  # an old copy was put back: files are not told apart by its nonce
        elif doubt.hard or doubt.since != doubt.until:
            new.distrust()
        elif doubt.soft:
            new.invalidate("manual", hard=False)
        log.warning("%s: the control page was replaced", self.path, extra={"event": "page_replaced", "path": self.path})

    def _ask_source(self) -> None:
        """Whether somebody wrote to the source without telling us."""
        if self.source is None or self.page is None:
            return
        built = None if self.snapshot is None else basis_of(self.snapshot.header, self.page).fingerprint
        self._compared = built
        try:
            self._fingerprint = self.source.fingerprint()
            self._changed = _NOTHING if built is None else self._changes(built)
        except Exception as error:  # noqa: BLE001 (a source of the user's own; whatever it is, reads must go on)
            self._fingerprint, self._changed = None, _NOTHING
            log.debug("%s: %s", self.path, str(error), extra={"event": "source_unreadable", "path": self.path})

    def _changes(self, built: bytes) -> AbstractSet[int] | None:
        """The entries of what changed in the source since this fingerprint; None where only that something did."""
        source: object = self.source
        if self._fingerprint == built or not any(built):
            return _NOTHING
        changes = source.changes(built) if isinstance(source, TrackedSource) else None
        if changes is None:
            return None
        return frozenset(entry_of(name, key) for name, keys in changes.keys.items() for key in keys)

    def _tell_gauges(self) -> None:
        slot = self.slot
        slot.set(metrics.SEEN_NS, time.time_ns())
        slot.set(metrics.GENERATION, 0 if self.snapshot is None else self.snapshot.generation)
        self._opened = [opened for opened in self._opened if opened() is not None]
        pinned = [snapshot for opened in self._opened if (snapshot := opened()) is not None]
        slot.set(metrics.PINNED, len(pinned))
        slot.set(metrics.MAPPED_BYTES, sum(snapshot.header.file_size for snapshot in pinned))
        slot.set(metrics.PRIVATE_BYTES, shared.private_bytes())

    # --- judging

    def _judge(self) -> None:
        """Decide who answers, from what is known."""
        snapshot, page = self.snapshot, self.page
        if snapshot is None or page is None:
            return
        self.basis = basis = basis_of(snapshot.header, page)
        self.doubt = doubt = doubt_about(basis, page, self._fingerprint)
        self.freshness = fresh = freshness_of(basis, self.policy, time.time(), self.draw)
        dirty = self._dirty_ids(basis, doubt, page)
        state: str = fresh.state
        if self.source is None:
            view = View(snapshot, "", _NOTHING)
        elif doubt.hard or dirty is None:
            view, state = View(None, "invalidated", _NOTHING), "invalidated"
        elif fresh.state == "expired":
            view = View(None, "expired", dirty)
        elif time.monotonic() < self._slow_until:
            view, state = View(None, "slow", dirty), "slow"
        else:
            stale = doubt.soft or dirty or self._changed is None or fresh.state == "stale"
            view, state = View(snapshot, "invalidated", dirty), "stale" if stale else "fresh"
        self._view = view
        self.answering = view.snapshot if not view.dirty else None
        self._count_stale(state)

    def _count_stale(self, state: str) -> None:
        """Set the state, and count what was answered since the last look by a file that was stale then."""
        self.settle_hits()
        slot, counts = self.slot, self.slot.counters()
        hits = counts["hits"] + counts["batch_hits"]
        if slot.words[metrics.STATE] == metrics.STATES.index("stale") and hits > self._hits:
            slot.add(metrics.STALE_SERVED, hits - self._hits)
        self._hits = hits
        slot.set(metrics.STATE, metrics.STATES.index(state))

    def _dirty_ids(self, basis: Basis, doubt: Doubt, page: ControlPage) -> AbstractSet[int] | None:
        """The entries that the source has to answer; None for all. Reads of the ring what it has not read yet."""
        begin = page.nonce, doubt.since
        if self._dirty_from != begin:
            self._dirty, self._dirty_from, self._dirty_until = set(), begin, doubt.since
        if self._dirty_until != doubt.until and not doubt.hard:
            entries = page.entries(self._dirty_until, doubt.until)
            if entries is None:
                self._dirty_from = None
                return None
            self._dirty.update(entries)
            self._dirty_until = doubt.until
        changed = self._changed
        if not changed or self._fingerprint == basis.fingerprint:
            return self._dirty
        return self._dirty | changed

    def _why_rebuild(self) -> str | None:
        """Why the file should be built again now, by us, if it should."""
        options = self.options
        if self.source is None or self.snapshot is None or not options["build"] or options["executor"] == "external":
            return None
        page, doubt, fresh = self.page, self.doubt, self.freshness
        if self._building or page is None or self.basis is None or doubt is None or fresh is None:
            return None
        failure = page.failure
        if failure is not None and time.monotonic() < failure.until:
            return None
        if self._mend is not None:
            return self._mend
        basis = self.basis
        rested = time.time() - basis.built - basis.took
        lost = self._view.snapshot is None and self._view.cause == "invalidated"
        if (doubt.soft or lost) and not 0 <= rested < basis.took:
            return doubt.why or "ids were invalidated, and it is not known which"
        if fresh.state != "fresh":
            return fresh.reason
        changed = (
            "the source has changed" if self._changed is None else "ids were invalidated" if self._view.dirty else ""
        )
        settled = not 0 <= time.time() - basis.built < options["rebuild_after"]
        if changed and (settled or len(self._view.dirty) > RING_SIZE // 2):
            return changed
        return None

    # --- the file

    def _attached(self) -> View:
        """There is no snapshot: open the file, or build it, or leave it to the source."""
        if self.closed:
            raise ClosedError("the cache was closed: open it again with mmcache.open(path, source)", path=self.path)
        if is_disabled():
            self.slot.set(metrics.STATE, metrics.STATES.index("disabled"))
            if self.source is None:
                raise SourceError("MMCACHE_DISABLE sends every read to the source, and there is none", path=self.path)
            return View(None, "disabled", _NOTHING)
        if not self.opening.acquire(timeout=self.options["wait"]):  # a thread of ours is building
            return View(None, "building", _NOTHING)
        try:
            if self.snapshot is None and time.monotonic() >= self._next_try:
                self._attach()
        finally:
            self.opening.release()
        if self.snapshot is None:
            if self.source is None and self.error is not None:
                raise self.error
            self.slot.set(metrics.STATE, metrics.STATES.index("no file"))
        return self._view

    def _attach(self) -> None:
        """Open the file, or build it; or remember why neither was possible, and when to look again."""
        try:
            self._take(self._open())
        except UnusableFileError as error:
            self._refuse(error)
            if self.options["build"] and self.source is not None and _is_ours_to_mend(error):
                self._build_first()
        if self.snapshot is None:
            self._next_try = time.monotonic() + (_RETRY if self.source is not None else 0.0)

    def _take(self, snapshot: Snapshot) -> None:
        """Answer from this snapshot. A reader that took the old one before finishes with it; it is unmapped with its
        last user."""
        with self.lock:
            self.snapshot = snapshot
            self._opened.append(weakref.ref(snapshot))
            self._mend = self._refused = self.error = None
            self._changed = _NOTHING
            self._forget_own_page(snapshot.created)
            self._ask_source()
            self._judge()
            self.seen = None  # a newer one may have been published since this one was opened
            self.slot.set(metrics.GENERATION, snapshot.generation)
        self.slot.flush()

    def _forget_own_page(self, built: float) -> None:
        """What was said on a page of our own is covered by any file that was built after it was said."""
        page = self.page
        if page is None or page.shared:
            return
        said = [notice.at for kind in ("ids", "soft", "hard") if (notice := page.last(kind)) is not None]
        if said and max(said) < built:
            self.page = ControlPage(None, page.problem)
            self.words, self.seen = self.page.words, None

    def _open(self) -> Snapshot:
        begun = time.perf_counter()
        snapshot = Snapshot.attach(self.path, self.options["verify"], self.options["access"], self.page)
        if not self.has_our_schemas(snapshot.layout):
            raise IncompatibleFormatError(
                "was built with other schemas than the source has now: rebuild it", path=self.path
            )
        seconds = time.perf_counter() - begun
        with self.lock:
            self.slot.set(metrics.LOAD_NS, int(seconds * 1e9))
            self.slot.observe(LOAD, seconds)
            self.slot.add(metrics.OPENS)
        return snapshot

    def has_our_schemas(self, layout: Layout | None) -> bool:
        if layout is None:
            return False
        if self.source is None:
            return True
        return self.source.schemas == tuple(collection.schema for collection in layout.collections.values())

    def _refuse(self, error: UnusableFileError) -> None:
        with self.lock:
            self.error = error.with_traceback(None)  # whose frames would keep the file before it mapped
            if self.snapshot is None:
                self._view = View(None, error.cause, _NOTHING)
            if error.cause == "corrupt":
                self._count_damage()
            if not isinstance(error, MissingFileError):
                self.slot.add(metrics.REFUSALS)
                log.warning("%s", str(error), extra={"event": "file_refused", "cause": error.cause, "path": self.path})

    def _count_damage(self) -> None:
        self.slot.add(metrics.CORRUPTIONS)
        self.slot.note_event("corruption")

    def _adopt(self) -> None:
        """Move to the file that is at the path now. One that is not right is refused, once, and ours is kept."""
        old = self.snapshot
        assert old is not None
        identity = identity_of(self.path)
        if identity is None:
            self._mend = "the file is missing"
        if identity in (None, old.identity, self._refused):
            return
        try:
            new = self._open()
        except UnusableFileError as error:
            self._refuse(error)
            self._refused = identity
            if _is_ours_to_mend(error):
                self._mend = f"the file is {error.cause}"
            return
        if new.generation < old.generation:
            log.warning(
                "%s: went back from generation %d to %d",
                self.path,
                old.generation,
                new.generation,
                extra={"event": "generation_went_back", "path": self.path},
            )
        self.slot.add(metrics.ADOPTIONS)
        log.info(
            "%s: generation %d adopted",
            self.path,
            new.generation,
            extra={"event": "adopted", "path": self.path, "generation": new.generation},
        )
        self._take(new)

    def refresh(self) -> bool:
        """Look now, at everything; whether there was another file to move to."""
        old = self.snapshot
        if old is None:
            self._next_try = self.due = 0.0
            try:
                return self.view().snapshot is not None
            finally:
                self.slot.flush()
        self.due = 0.0
        self.look(time.monotonic())
        return self.snapshot is not old

    def damaged(self, error: UnusableFileError) -> str:
        """Damage met while reading: count it and name the cause of the fallback; raise it where there is none."""
        with self.lock:
            self._count_damage()
            self._mend = _DAMAGED
            self.due = 0.0
        log.warning("%s", str(error), extra={"event": "corruption", "path": self.path})
        if self.source is None:
            raise error
        return "record"

    def stand_in(self, cause: str) -> View | None:
        """The file that may answer although it is not its turn, because the source has failed."""
        snapshot, fresh = self.snapshot, self.freshness
        if snapshot is None or fresh is None:
            return None
        if cause == "slow" or (cause == "expired" and may_answer(self.policy, fresh.age)):
            return View(snapshot, cause, self._view.dirty)
        return None

    # --- telling the others

    def invalidate(
        self, collection: str | None, ids: Iterable[str] | None, *, reason: str, hard: bool | None
    ) -> invalidation.Kind:
        if self.closed:
            raise ClosedError("the cache was closed: open it again with mmcache.open(path, source)", path=self.path)
        try:
            return invalidation.invalidate(
                self.path, self._page_now, collection, ids, reason=reason, hard=hard, count=self.count
            )
        finally:
            self.look(time.monotonic())
            self.slot.flush()

    def _page_now(self) -> ControlPage:
        with self.lock:
            self._renew_page()
            assert self.page is not None
            return self.page

    # --- building

    def build(
        self, *, timeout: float, asked_ns: int | None = None, first: bool = False, since: float | None = None
    ) -> BuildReport:
        """Build and publish from the source, if nobody else did: see `sharing.publishing.build_once`."""
        assert self.source is not None
        if self.page is None:
            with self.lock:
                self._renew_page()
        try:
            return build_once(
                self.path,
                self.source,
                control=self.page,
                slot=self.slot,
                cluster_by=self.options["cluster_by"],
                metadata=self.options["metadata"],
                timeout=timeout,
                serves=self.has_our_schemas if first else None,
                asked_ns=asked_ns,
                since=since,
            )
        finally:
            self.slot.flush()

    def _build_first(self) -> None:
        """One process builds; the others wait until its file is there, take over if it dies, and give up in time.

        Nobody waits on the lock: that would let in one after the other. A build that fails is not tried again by those
        who waited for it, nor by anybody for a while.
        """
        begun = time.monotonic()
        deadline = begun + (0.0 if self._waited else self.options["wait"])
        pause = 0.001
        while self.snapshot is None:
            failure = self.page.failure if self.page is not None else None
            if failure is not None and (failure.at > begun or begun < failure.until):
                log.warning("%s: %s", self.path, str(failure.error), extra={"event": "build_failed", "path": self.path})
                return
            try:
                self.build(timeout=0.0, first=True, since=begun)
            except LockTimeoutError:
                self._view = View(None, "building", _NOTHING)
                if time.monotonic() >= deadline:
                    self._waited = True  # once; a builder that was stopped must not hold up every read
                    return
                time.sleep(pause)
                pause = min(2 * pause, 0.02)
            except Exception:  # noqa: BLE001 (counted, logged, and told to everybody)
                return
            with contextlib.suppress(UnusableFileError):
                self._take(self._open())

    def _start_build(self, why: str) -> None:
        """Have the file built in the background, unless somebody builds it already."""
        page, source = self.page, self.source
        assert page is not None
        assert source is not None
        with self.lock:
            if self._building or shared.is_held(lock_name(self.path)):
                return
            if self.words[WAKE] != self.seen or not page.claim():  # a rebuild may have landed since we judged
                return
            if shared.is_held(lock_name(self.path)):  # taken since we looked, and whoever did so ended his claim
                return
            self._building = True
        log.info("%s: rebuilding, because %s", self.path, why, extra={"event": "rebuild_started", "path": self.path})
        executor = self.options["executor"]
        if executor == "subprocess" and (self.snapshot is None or not self._can_be_built_elsewhere(self.snapshot)):
            executor = "thread"
        if executor == "inline":
            self._build_here()
        elif executor == "thread" or not self._spawn():
            threading.Thread(target=self._build_here, name="mmcache-rebuild", daemon=True).start()

    def _can_be_built_elsewhere(self, snapshot: Snapshot) -> bool:
        """Whether the file says of itself how to build it, and this interpreter can be started again."""
        spec = self.source.spec() if self.source is not None else None
        is_python = "python" in os.path.basename(sys.executable or "").lower()
        return is_python and spec is not None and snapshot.layout.source == spec

    def _build_here(self) -> None:
        try:
            self.build(timeout=1.0, asked_ns=time.time_ns())
            self._mend = None
        except LockTimeoutError:
            self.count(metrics.REBUILDS_LOST_RACE)
        except Exception:  # noqa: BLE001, S110 (counted, logged, and told to everybody)
            pass
        finally:
            self._building = False
            self.due = 0.0

    def _spawn(self) -> bool:
        """Start a process that rebuilds from what the file says; False if the system does not let us."""
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        limit = self.options["build_timeout"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
        command = [sys.executable, "-P", "-m", "mmcache.sharing.background", self.path, str(time.time_ns()), str(limit)]
        try:
            child = subprocess.Popen(  # noqa: S603
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            log.warning(
                "%s: no process could be started (%s): rebuilding in a thread",
                self.path,
                str(error),
                extra={"event": "spawn_failed", "path": self.path},
            )
            return False
        _children.add(child)
        self._child = child, time.monotonic() + limit, self._last_build()
        return True

    def _last_build(self) -> tuple[int, float] | None:
        """What differs after any rebuild; None where the page is nobody else's."""
        if self.page is None or not self.page.shared or self.snapshot is None:
            return None
        return self.page.generation, basis_of(self.snapshot.header, self.page).built

    def _reap(self) -> None:
        """See what became of the process that rebuilds."""
        for child in list(_children):
            if child.poll() is not None:
                _children.discard(child)
        if self._child is None:
            return
        child, deadline, before = self._child
        if child.returncode is None and time.monotonic() > deadline:
            child.kill()  # it ends itself in time, unless it was stopped
            child.wait()
        if child.returncode is None:
            return
        self._child = None
        self._building = False
        page, limit, code = self.page, self.options["build_timeout"], child.returncode
        # Where somebody else waited for it, the host's handler of SIGCHLD for one, the status is 0 whatever it was.
        is_built = code == 0 and (before is None or before != self._last_build())
        if is_built:
            self._mend = None
        if is_built or code == _LOCKED or page is None:
            return
        # One that was killed, or could not start, or had no page to tell it by, has told nobody.
        if page.failure is None or page.failure.at < deadline - limit:
            how = f"was killed by signal {-code}; its limit is {limit:g} s" if code < 0 else f"ended with status {code}"
            how = how if code else "ended, nobody knows how, and built nothing"
            error = SourceError(f"the rebuild in the background {how}")
            page.failed(error)
            self.slot.add(metrics.REBUILDS_FAILED)
            log.warning("%s: %s", self.path, str(error), extra={"event": "build_failed", "path": self.path})

    def close(self) -> None:
        with self.lock:
            if self.closed:
                return
            self._reap()
            self.settle_hits()
            self.closed = True
            self.snapshot = self.answering = self.page = None
            self._view = View(None, "missing", _NOTHING)
            self.words, self.seen, self.due = _NO_WORDS, 0, float("inf")
            self.slot.close()


def _is_ours_to_mend(error: UnusableFileError) -> bool:
    """A missing or damaged file, or one with other schemas. A file of another major version belongs to workers
    of that version, and what we may not read or trust we do not replace."""
    return error.cause in ("missing", "corrupt") or (isinstance(error, IncompatibleFormatError) and error.found is None)


def is_disabled() -> bool:
    return os.environ.get("MMCACHE_DISABLE", "0") not in ("", "0")


_FALLBACKS = {cause: metrics.FALLBACK_ABSENT + i for i, cause in enumerate(metrics.CAUSES)}

_alive: weakref.WeakSet[Tiers] = weakref.WeakSet()
_children: set[subprocess.Popen[bytes]] = set()


def _after_fork() -> None:
    """What the parent started is the parent's."""
    _let_go()
    for tiers in list(_alive):
        tiers.begin_process()


def _let_go() -> None:
    """Rebuilds go on without us; the interpreter must not complain that nobody waits for them."""
    for child in _children:
        if child.returncode is None:
            child.returncode = 0
    _children.clear()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_let_go)
