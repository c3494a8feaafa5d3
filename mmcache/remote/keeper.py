"""Following for the workers of a node: one process polls the store, whichever worker started it.

The worker that finds no poll within some time starts a child, `python -m mmcache.remote.background`, which polls for
as long as that worker lives. The library of object stores is loaded in the child alone: its threads are copied by no
fork, and a server may fork its workers at any time. The other workers find the child's polls in a file's time, and its
files by the control page. With executor="thread" a poll runs in a thread of its own, with "inline" in the read or the
thread that finds it due; with "external" a side-car or cron follows.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, NamedTuple

import msgpack

from .. import children, threads
from ..errors import MissingFileError, MmcacheError
from ..filetier import DAMAGED, FileTier
from ..forks import on_fork
from ..logs import DEBUG, WARNING, log
from ..options import Options
from ..owner import Turn
from ..sharing.following import Following, following, polled_at, tell
from ..sharing.job import Job
from ..sources.base import Source
from ..storage import fs, trust
from ..storage.descriptors import Descriptor
from ..store import check_installed, is_usable, public_url
from .follower import SKEW, Follower, Orders

__all__ = ["Keeper", "keeper_of", "split_pin"]

_SLOWEST: Final = 60.0
"""Seconds between two attempts that fail."""
_GRACE: Final = 10.0
"""Seconds for a child to start and to say that it has polled, beyond what a poll and a pause may take."""
_ENDING: Final = 2.0
"""Seconds for a child to end when its worker closes; a download that is cut goes on where it was."""
_POLL_ENDING: Final = 0.2
"""Seconds for a thread that polls to end when its worker closes."""
_LONGEST_JOB: Final = 64 * 2**10


def split_pin(follow: str) -> tuple[str, int | None]:
    """URL@41 as (URL, 41)."""
    url, at, number = follow.rpartition("@")
    return (url, int(number)) if at and number.isascii() and number.isdigit() else (follow, None)


def keeper_of(files: FileTier, source: Source | None, options: Options) -> Keeper | None:
    """None for a cache that follows nothing."""
    return None if options.follow is None else Keeper(files, source, options, options.follow)


class _Child(NamedTuple):
    """A process that polls. line: our end of its standard input, with which it ends. polled: what the node said of its
    last poll, and heard: since when, by `time.monotonic`."""

    process: children.Child
    line: Descriptor
    polled: float
    heard: float


class _Thread(NamedTuple):
    """A thread that polls once. begun: by `time.monotonic`."""

    thread: threading.Thread
    begun: float


class Keeper:
    """Keeps the file of a cache at the release of a store.

    is_ours: whether this process polls, by a child or itself.
    """

    def __init__(self, files: FileTier, source: Source | None, options: Options, follow: str) -> None:
        """Raises StoreError for what is no URL of a store, and without the extra where this process may poll."""
        self._files = files
        self._source = source
        self._options = options
        self._store = split_pin(follow)  # its URL, and the release it stays with
        public_url(self._store[0])
        if options.executor != "external":  # what can never work is said here, not by a read that waited in vain
            check_installed(self._store[0])
        self._mended = 0
        self._child: _Child | None = None
        self._thread: _Thread | None = None
        self.begin_process()
        on_fork(self)

    def begin_process(self) -> None:
        """What the parent started is the parent's."""
        if self._child is not None:
            self._child.line.close()
        self._child = self._thread = None
        self._turn = threading.Lock()
        self._follower: Follower | None = None
        self._failures = 0
        self._not_before = 0.0
        self._has_waited = False

    @property
    def is_ours(self) -> bool:
        return self._child is not None or self._follower is not None

    def part(self) -> None:
        """Of a poller: see that the store is polled. Raises nothing."""
        with Turn(self._turn, 0.0) as is_ours:  # Case: a read waits for the first file while a poll is due
            if is_ours:
                self._start_what_is_due()

    def _start_what_is_due(self) -> None:
        self._reap()
        self._ask_to_mend()
        now = time.monotonic()
        if self._options.executor == "external" or self._child is not None or now < self._not_before:
            return
        if self._thread is not None and self._thread.thread.is_alive():
            self._note_silence(now - self._thread.begun)
            return
        every, begun = self._options.follow_every, polled_at(self._files.path)
        patience = every if self._follower is not None else 2 * every + 1.0
        if 0.0 <= time.time() - begun < patience:  # another process polls
            return
        wants_child = self._options.executor == "subprocess" or not is_usable()
        if wants_child and self._spawn():
            return
        if self._options.executor == "inline" or not self._start_thread(now):
            self._poll()

    def first(self, take: Callable[[], bool]) -> None:
        """There is no file: wait until one is brought, but not for ever, and not again. take: whether it is there."""
        begun = time.time()
        deadline = time.monotonic() + (0.0 if self._has_waited else self._options.wait)
        self._not_before = 0.0
        self.part()
        pause = 0.005
        is_brought = False
        while not take() and not is_brought and time.monotonic() < deadline and not self._has_failed(begun):
            is_brought = self._is_brought(begun)
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
            self.part()
        self._has_waited = True
        if self._files.snapshot is None and not is_brought:
            self._refuse_missing(time.time() - begun)

    def _is_brought(self, begun: float) -> bool:
        """Whether the file is of the release that the node is to have, and waiting brings no other: where it cannot be
        used, it has other schemas."""
        path, error = self._files.path, self._files.error
        if error is not None and error.cause == "incompatible":
            begun -= 2 * self._options.follow_every + 1.0  # a poll of another process tells that, too
        said = following(path)
        is_of_target = said is not None and said.release is not None and said.release == said.target
        return said is not None and is_of_target and not (said.error or said.behind) and polled_at(path) >= begun

    def _refuse_missing(self, waited: float) -> None:
        said = following(self._files.path)
        why = "" if said is None else said.error
        if not why and self.is_ours:
            why = f"the store has not answered for {waited:.0f} s"
        if why:
            self._files.refuse(MissingFileError(f"no release was brought ({why})", path=self._files.path))

    def _has_failed(self, begun: float) -> bool:
        """Whether a poll since then has ended with an error."""
        said = following(self._files.path)
        if said is not None and said.error and polled_at(self._files.path) >= begun:
            log.warning(
                "%s: %s", self._files.path, said.error, extra={"event": "not_followed", "path": self._files.path}
            )
            return True
        return False

    def _ask_to_mend(self) -> None:
        """A damaged file is of no release: what is damaged of it is brought again. Once for each generation."""
        files = self._files
        is_damaged = files.repair == DAMAGED or (files.error is not None and files.error.cause == "corrupt")
        generation = files.generation or -1
        if is_damaged and self._mended != generation:
            self._mended = generation
            said = following(files.path)
            if said is not None and said.release is not None:
                tell(files.path, replace(said, release=None))

    # --- in this process

    def _start_thread(self, now: float) -> bool:
        """Have a thread poll: a store may hang, and neither a read nor what else is polled waits for it."""
        if threads.why_none():
            return False
        try:
            self._thread = _Thread(threads.start("mmcache-follow", self._poll), now)
        except RuntimeError:
            return False
        return True

    def _note_silence(self, seconds: float) -> None:
        """A thread cannot be ended. What it waits for may come back, a network mount for one; until then it is told."""
        if seconds <= self._options.build_timeout + _GRACE:
            return
        path = self._files.path
        said = following(path)
        error = f"the store has not answered for {seconds:.0f} s"
        if said is None or not said.error:
            tell(path, replace(said or Following(public_url(self._store[0])), error=error))
            log.warning("%s: not followed: %s", path, error, extra={"event": "not_followed", "path": path})

    def _poll(self) -> None:
        options = self._options
        try:
            if self._follower is None:
                orders = Orders(self._store[1], SKEW, self._source is not None, self._source)
                self._follower = Follower(self._files.path, self._store[0], orders)
            self._follower.poll()
            self._failures, self._not_before = 0, time.monotonic() + options.follow_every
        except MmcacheError as error:
            self._note(error)
        except Exception as error:  # noqa: BLE001 (of the store's library, or of a source of a user's own)
            self._note(error)

    def _note(self, error: Exception) -> None:
        self._failures += 1
        pause = min(self._options.follow_every * 2 ** min(self._failures, 6), _SLOWEST)
        self._not_before = time.monotonic() + pause
        path = self._files.path
        level = WARNING if self._failures == 1 else DEBUG
        log.log(level, "%s: not followed: %s", path, str(error), extra={"event": "not_followed", "path": path})

    # --- in a child

    def _spawn(self) -> bool:
        """Start a process that polls; False where none can be had."""
        job = self._job()
        if job is None or not children.can_start():
            return False
        path = self._files.path
        ours, theirs = socket.socketpair()
        try:
            with ours, theirs:
                ours.settimeout(0)
                if ours.send(job) < len(job):
                    raise OSError("the description of the source does not fit into a socket")
                line = fs.copied(ours.fileno())
                child = children.start(
                    "mmcache.remote.background", path, stdin=theirs.fileno(), environment=trust.environment(path)
                )
        except (OSError, subprocess.SubprocessError, MemoryError) as error:
            self._note(error)
            return True
        now = time.monotonic()
        self._child, self._not_before = _Child(child, line, polled_at(path), now), now + self._options.follow_every
        return True

    def _job(self) -> bytes | None:
        """What a child needs, length first; without a source that it cannot make again, it goes by time alone."""
        options, source = self._options, self._source
        job = None if source is None else Job.of(source, cluster_by=None, metadata=None, asked_ns=0, limit=0.0)
        orders: list[Any] = [*self._store, options.follow_every, SKEW, source is not None]
        try:
            body: bytes = msgpack.packb([*orders, None if job is None else job.pack()])
        except (TypeError, ValueError, OverflowError):
            body = msgpack.packb([*orders, None])
        return len(body).to_bytes(4, "little") + body if len(body) < _LONGEST_JOB else None

    def _reap(self) -> None:
        if self._child is None:
            return
        process = self._child.process
        if process.poll() is None and self._is_silent(self._child):
            process.kill()  # it hangs, or was stopped; another goes on with its download
            process.wait()
        if process.poll() is not None:
            self._forget(self._child)
            if process.returncode:
                self._note(RuntimeError(f"the process that follows ended with status {process.returncode}"))

    def _is_silent(self, child: _Child) -> bool:
        """Whether its poll has not ended for longer than a download and the pause before it may take."""
        now, polled, every = time.monotonic(), polled_at(self._files.path), self._options.follow_every
        if polled != child.polled:
            self._child = child._replace(polled=polled, heard=now)
            return False
        pause = 1.2 * min(64 * every, max(_SLOWEST, every))
        return now - child.heard > self._options.build_timeout + pause + _GRACE

    def _forget(self, child: _Child) -> None:
        children.reap()
        child.line.close()
        self._child = None

    def close(self) -> None:
        """End a child of ours: another worker that follows starts one when it finds no poll."""
        if self._thread is not None and self._thread.thread is not threading.current_thread():
            self._thread.thread.join(_POLL_ENDING)
        child = self._child
        if child is None:
            return
        child.line.close()  # for whose end it waits between polls
        with contextlib.suppress(OSError):
            child.process.terminate()
        try:
            child.process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
        self._forget(child)
