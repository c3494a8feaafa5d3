"""Watching: facts are collected, `decide` says what follows, and the view that reads use is replaced as a whole.

A get compares the page's mapped word with the one that was heard last, and the clock with the time of the next poll. If
the word differs, it hears: it reads the new events, under a lock that is held for microseconds. If a poll is due,
threads poll, and the get waits a few milliseconds at most. A file that another process published and this machine has
verified is opened at once, by the get that heard of it. No foreign code, source or log handler, runs under our locks.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable
from typing import Any, Final

from .callbacks import CacheEvent
from .counting import Counting
from .errors import SourceError, UnusableFileError
from .filetier import DAMAGED, FileTier, is_ours_to_mend
from .forks import Lock, on_fork, renew_if_forked
from .format.keys import Key
from .format.layout import left_out_of
from .hits import Watched
from .known import Known, closed
from .lines import Lines
from .logs import DEBUG, INFO, WARNING, log
from .options import Options
from .owner import Within
from .poller import Poller
from .rebuild import Rebuilder
from .remote.keeper import keeper_of
from .sharing import invalidation, metrics
from .sharing.asking import ask
from .sharing.decide import SourceFacts, decide
from .sharing.hearing import Hearing
from .sharing.page import MovedError, Page
from .sources.base import Source
from .storage.publish import BuildReport
from .storage.snapshot import Snapshot, UnverifiedError
from .switches import Switches
from .view import NOTHING, View

__all__ = ["Watch"]

_NO_WORD: Final = memoryview(bytes(8)).cast("Q")

_RETRY: Final = 1.0
"""Seconds after which a cache without a file looks whether there is one by now, at most."""

_TRIES: Final = 5
"""Times that a thread opens the announced file while others move to files before it."""

_FOREVER: Final = 3600.0
"""Seconds to wait for a thread of ours that opens a file, where the caller asked for the result."""


class Watch(Watched):
    """What the collections of one cache share.

    word, seen, due, view: what a get looks at. They are read without a lock, and replaced as a whole.
    """

    def __init__(self, path: str, source: Source | None, options: Options) -> None:
        self.options = options
        self.word: Any = _NO_WORD
        self.seen: int | None = None
        self.due = 0.0
        self.view: View = NOTHING
        self.files = FileTier(path, source, options)
        lines = Lines(path, options.on_event)
        switches = Switches(path, options, lines, has_source=source is not None)
        self.hearing = Hearing(path, None, lines.heard, switches.heard)
        self.counting = Counting(
            slow_after=options.slow_after, opens_circuit=options.fallback_on_slow and source is not None
        )
        self.rebuilder = Rebuilder(self.files, source, options, self.counting)
        keeper = keeper_of(self.files, source, options)
        follows = () if keeper is None else (keeper.part,)
        self._poller = Poller(path, self._poll_files, self._poll_source, *follows, after=lines.write)
        self._known = Known(options.rules(), lines, switches, keeper=keeper)
        self._lock = Lock()
        on_fork(self)

    def begin_process(self) -> None:
        """A snapshot and a page are shared with the parent, and stay; what is due is looked at anew."""
        if self._known.is_closed:
            return
        self.due = 0.0
        self._known.rules = self.options.rules()
        self._known.attaching = set()
        self._known.lines.clear()

    @property
    def path(self) -> str:
        return self.files.path

    @property
    def source(self) -> Source | None:
        return self.rebuilder.source

    @property
    def is_closed(self) -> bool:
        return self._known.is_closed

    # --- what reads call

    def current(self) -> View:
        """Which tier answers now; the file is opened, or built, if there is none yet.

        Raises the file's UnusableFileError where there is no source to answer in its place.
        """
        now = time.monotonic()
        if now >= self.due or self.word[0] != self.seen:
            self.catch_up(now)
        view = self.view
        return self._attached() if view.snapshot is None else view

    def catch_up(self, now: float) -> None:
        """Find out what is new: what was said, and once in `check_interval` everything else."""
        renew_if_forked()
        known = self._known
        if known.is_closed:
            return
        if now >= self.due:
            every = self.options.check_interval
            self.due = now + (min(every, _RETRY) if self.view.snapshot is None else every)
            if self.view is not NOTHING:  # else the file is about to be opened, which polls
                self._poller.poll()
            elif known.switches.read():
                self.counting.note_gauges(self.path, self.options.label, 0, [])
        before = self.view.decision.rebuild
        if self.word[0] != self.seen:
            self._hear()
        why = self.view.decision.rebuild
        if why and self.options.executor == "inline":
            self._start_rebuild()
        elif why and not before and not self.rebuilder.running:
            self._poller.poll(0.0)  # which starts it
        self._known.lines.write()

    def sample(self, begun: float, hits: int) -> None:
        """A hit whose number is due for it is timed."""
        if self.counting.sample(begun, hits):
            with self._lock:
                self._decide()
            text = "%s: lookups in the file are slower than %g s: the source answers for a while"
            self._known.lines.note(WARNING, "circuit_opened", text, self.path, self.options.slow_after)
            self._known.lines.write()

    def damaged(self, error: UnusableFileError) -> str:
        """Damage met while reading: count it and name the cause of the fallback; raise it where there is none."""
        self.files.repair = DAMAGED
        if self.counting.add_damage(self.files.generation, error.message):
            self.due = 0.0
            log.warning("%s", str(error), extra={"event": "corruption", "path": self.path})
        if self.source is None:
            raise error
        return "record"

    def refresh(self) -> bool:
        """Look now, at everything; whether there was another file to move to."""
        renew_if_forked()
        old = self.files.snapshot
        if old is None:
            self._known.is_polled = False
            found = self.current().snapshot is not None
            if not found and self.hearing.page is not None:
                self._poller.poll(None)  # which writes what was counted
            return found
        if self._known.is_closed:
            return False
        self.due = time.monotonic() + self.options.check_interval
        self._poller.poll(None)
        self.catch_up(time.monotonic())
        return self.files.snapshot is not old

    # --- hearing

    def _hear(self) -> None:
        with self._lock:
            woken = self.word[0]
            if woken == self.seen or self.hearing.page is None:
                return
            is_explained = self._take_in(woken)
            self._decide()
            announced = self.hearing.announced
            # Case: it cannot be read, because the next one is being stored.
            is_new = announced is None or announced.generation != self.files.generation
            at_once = is_new and self.files.snapshot is not None
            if is_explained and not at_once:
                self.seen = woken  # Case: not later, when the first file may be open that was there before
        if is_new and self._known.is_polled and not at_once:
            self._poller.poll()
        elif at_once and self._adopt_announced() and is_explained:
            with self._lock:  # Case: another thread has moved to that file, and not replaced the view yet
                self.seen = woken

    def _take_in(self, woken: int) -> bool:
        """Under the lock. Whether what was heard explains the word."""
        try:
            return self.hearing.hear(woken)
        except MovedError:
            self._renew_page()
            return False

    def _renew_page(self) -> None:
        """Under the lock: use the page that is at its path now."""
        if self._known.is_closed:
            return
        before = self.hearing.page
        try:
            if not self.hearing.renew():
                return
        except MovedError:
            return  # it was replaced again; the next poll tries again
        finally:
            page = self.hearing.page
            if page is not None and self.word is not page.word:
                self.word, self.seen = page.word, None
        assert page is not None
        if before is not None:
            self._known.lines.note(WARNING, "page_replaced", "%s: the control page was replaced", self.path)
        if page.problem is not None and (before is None or before.problem != page.problem):
            text = "%s: no control page (%s): changes by other processes are noticed every %g s only"
            every = self.options.check_interval
            self._known.lines.note(WARNING, "degraded", text, self.path, page.problem, every)

    def _decide(self) -> None:
        """Under the lock: replace the view by what follows from the facts."""
        if self._known.is_closed:
            return
        known = self._known
        facts = known.facts(self.hearing, self.files, self.counting, building=self.rebuilder.waits)
        decision = decide(facts if self.source is not None else facts._replace(source=None), known.rules)
        self.view = View(decision, self.files.snapshot, facts.baseline.fingerprint if facts.baseline else b"")
        self.counting.note_state(decision.state)

    # --- polling: in a thread, or where none can run in a read

    def _poll_files(self) -> None:
        if self._known.is_closed:
            return
        with self._lock:
            self._known.switches.read()
            self._renew_page()
            if self.hearing.page is not None:
                if (snapshot := self.files.snapshot) is not None and not self.hearing.is_based_on(snapshot.header):
                    self._rebase(snapshot)  # Case: an exception, or a fork, came while this process moved to it
                self._take_in(self.word[0])  # a writer that was killed may not have stored the word
            page = self.hearing.page
        self.rebuilder.reap(page)
        if self.files.snapshot is not None or self._known.is_polled:
            self._adopt(0.0 if self.files.snapshot is None else _FOREVER)
        with self._lock:
            self._decide()
        self.hearing.settle()
        self.counting.note_gauges(self.path, self.options.label, self.files.generation, self.files.pinned())

    def _poll_source(self) -> None:
        if self._known.is_closed:
            return
        begun = time.monotonic()
        asked = SourceFacts() if self.source is None else ask(self.source, self.hearing.baseline)
        if asked.error:
            self._known.lines.note(DEBUG, "source_unreadable", "%s: %s", self.path, asked.error)
        with self._lock:
            if begun >= self._known.asked_at:  # Case: a question that hung is answered after a later one
                self._known.asked, self._known.asked_at = asked, begun
            self._decide()
        if self.options.executor != "inline":
            self._start_rebuild()

    def _start_rebuild(self) -> None:
        page, why, options = self.hearing.page, self.view.decision.rebuild, self.options
        if not why or page is None or not options.build or options.executor == "external":
            return
        if self.rebuilder.start(why, page, self.hearing.last_build) and why == self.files.lacking:
            self.files.widen()
        if options.executor == "inline":
            self._poller.poll(None)

    # --- the file

    def _adopt_announced(self) -> bool:
        """Move to a file that was announced and that this machine has verified: opening it takes a few reads; whether
        there is no other one. Takes no lock, so that no thread which begins a read now waits for another, or goes on
        with the file before."""
        has_polled = False
        for _ in range(_TRIES):
            old = self.files.snapshot
            try:
                new = self.files.other(self.hearing.page, known=True)
            except UnverifiedError:
                if has_polled:
                    return False
                self._poller.poll()  # which opens it, whatever that takes; unless a poll is under way that saw none
                has_polled = True
                continue
            except UnusableFileError as error:
                self._refuse(error)
                return True
            if new is None:
                return True
            if self._take(new, old):
                self._poller.poll(0.0)  # the source has not been asked about this file
                return True
        return False

    def _adopt(self, patience: float) -> None:
        """Move to the file that is at the path now, if it is another one, or there was none. One that is not right is
        refused, and ours is kept."""
        files, old = self.files, self.files.snapshot
        with files.lock.turn(patience) as is_ours:
            if not is_ours:
                return
            try:
                new = files.other(self.hearing.page)
            except UnusableFileError as error:
                self._refuse(error)
            else:
                if new is not None:
                    self._take(new, old)

    def _take(self, snapshot: Snapshot, old: Snapshot | None = None) -> bool:
        """Answer from this snapshot, unless another thread has moved on from the old one meanwhile."""
        with self._lock:
            if self._known.is_closed or self.files.snapshot is not old:
                return False
            self.files.take(snapshot)
            left_out = left_out_of(snapshot.layout)
            self.counting.add_opening(snapshot.opened_in, sum(one.invalid for one in left_out.values()))
            self.hearing.forget_own(snapshot.created)
            self._rebase(snapshot)
            self._decide()
        for name, rows in left_out.items():
            if rows.invalid:
                text, what = "%s: generation %d leaves out rows of collection %r: %s", (name, str(rows))
                self._known.lines.note(WARNING, "left_out", text, self.path, snapshot.generation, *what)
        if old is None:
            return True
        self.counting.add(metrics.ADOPTIONS)
        lines, change = self._known.lines, (self.path, old.generation, snapshot.generation)
        if snapshot.generation < old.generation:
            lines.note(WARNING, "generation_went_back", "%s: went back from generation %d to %d", *change)
        lines.tell(CacheEvent("adopted", self.path, snapshot.generation))
        lines.note(INFO, "adopted", "%s: generation %d adopted", self.path, snapshot.generation)
        return True

    def _rebase(self, snapshot: Snapshot) -> None:
        page = self.hearing.page
        if page is None:  # Case: as in `page_now`
            return
        self.word, self.seen = page.word, None  # a newer one may have been published since this one was opened
        for _ in range(3):
            try:
                self.hearing.rebase(snapshot.header)
                return
            except MovedError:
                self._renew_page()

    def _refuse(self, error: UnusableFileError) -> None:
        is_new = self.files.refuse(error)
        if error.cause == "corrupt":
            with self._lock:
                self.files.drop_if_spoilt()
            is_new = self.counting.add_damage(self.files.there(), error.message)
        if is_new:
            self.counting.add(metrics.REFUSALS)
            self._known.lines.note(WARNING, "file_refused", "%s", str(error), cause=error.cause)
            self._known.lines.tell(CacheEvent("refused", self.path, error=error))

    def _attached(self) -> View:
        """There is no snapshot: open the file, or build it, or leave it to the source."""
        renew_if_forked()
        files, known = self.files, self._known
        if known.is_closed:
            raise closed(self.path)
        if known.switches.disabled or (self.view is NOTHING and known.switches.read()):
            if self.view is NOTHING:
                self._poller.poll(0.0)  # which lets others see this worker
            with self._lock:
                self._decide()
            if self.source is None:
                raise SourceError(f"{known.switches.disabled}, and there is none", path=self.path)
            return self.view
        if known.is_polled:
            return self.view
        # Case: a source, or a handler of log lines, reads the cache that is built for it. Case: a thread builds it.
        is_under_way, is_opened = threading.get_ident() in known.attaching, False
        with files.lock.turn(0.0 if is_under_way else self.options.wait) as is_ours:
            if is_under_way or not is_ours:
                return View(self.view.decision._replace(cause="building"))
            with Within(known.attaching):
                if files.snapshot is None and not known.is_polled:
                    self._attach()
                    is_opened = files.snapshot is not None
                elif self.view is NOTHING and files.snapshot is not None:  # Case: as in `_poll_files`
                    with self._lock:
                        self._rebase(files.snapshot)
                        self._decide()
        known.lines.write()
        if is_opened:
            self.due = time.monotonic() + self.options.check_interval
            self._poller.poll()
        # Case: another thread has opened it, and not heard yet of a file that was announced before this read began.
        if files.snapshot is not None and self.word[0] != self.seen:
            self._hear()
        if files.snapshot is None and self.source is None and files.error is not None:
            raise files.error
        return self.view

    def _attach(self) -> None:
        """Open the file, or build it; or remember why neither was possible, and leave it to polls."""
        with self._lock:
            if self.hearing.page is None:
                self._renew_page()
        try:
            self._take(self.files.open(self.hearing.page))
        except UnusableFileError as error:
            self._refuse(error)
            with self._lock:
                self._decide()
            is_ours = not self.files.conflict or self.view.decision.rebuild
            if self._known.keeper is not None and is_ours_to_mend(error):
                self._known.keeper.first(self._take_first)
            may_build = self.options.build and self.source is not None and not self._known.switches.held
            if self.files.snapshot is None and may_build and is_ours_to_mend(error) and is_ours:
                self.rebuilder.build_first(self.hearing.page, self._take_first, self._known.lines)
        if self.files.snapshot is None:
            with self._lock:
                self._decide()
        self._known.is_polled = self.source is not None

    def _take_first(self) -> bool:
        """Whether the file is there by now."""
        with contextlib.suppress(UnusableFileError):
            return self._take(self.files.open(self.hearing.page))
        return False

    def build(self, *, timeout: float, asked_ns: int, exact: bool) -> BuildReport:
        """Build and publish from the source, if no other process did."""
        if self._known.is_closed:
            raise closed(self.path)
        with self._lock:
            if self.hearing.page is None:
                self._renew_page()
        return self.rebuilder.build(self.hearing.page, timeout=timeout, asked_ns=asked_ns, exact=exact)

    # --- telling the others

    def invalidate(
        self, collection: str | None, ids: Iterable[Key] | None, *, reason: invalidation.Reason, hard: bool | None
    ) -> invalidation.Kind:
        if self._known.is_closed:
            raise closed(self.path)
        try:
            return invalidation.invalidate(
                self.path, self.page_now, collection, ids, reason=reason, hard=hard, counting=self.counting.counters
            )
        finally:
            self.catch_up(time.monotonic())

    def page_now(self) -> Page:
        """The page that is shared now, to be written to. Raises ClosedError."""
        if self._known.is_closed:
            raise closed(self.path)
        renew_if_forked()
        with self._lock:
            self._renew_page()
            if self.hearing.page is None:  # Case: another thread has closed the cache since this one looked
                raise closed(self.path)
            return self.hearing.page

    # --- the end

    def close(self) -> None:
        """A poll that hangs in the source ends by itself, and changes nothing any more."""
        if self._known.is_ended:  # Case: a close that was interrupted is finished by the next
            return
        with self._lock:
            self._known.is_closed = True
            page = self.hearing.page
        self._poller.end()
        self.rebuilder.reap(page)
        if self._known.keeper is not None:
            self._known.keeper.close()
        with self._lock:
            self.files.snapshot = self.hearing.page = None
            self.view = View(self.view.decision._replace(serves=False))
            self.word, self.seen, self.due = _NO_WORD, 0, float("inf")
        self.counting.close()
        self._known.is_ended = True
        self._known.lines.write()
