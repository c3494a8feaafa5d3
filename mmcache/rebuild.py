"""Rebuilding in the background: one rebuild, whichever process needs it.

The worker that finds the file due takes the build lock, and hands it to the process or the thread that builds. So there
is no moment in which two start, a builder that is killed frees the lock at once, and a worker only reaps."""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

from . import children, threads, wallclock
from .counting import Counting
from .errors import LockTimeoutError, MmcacheError, SourceError
from .filetier import FileTier
from .forks import on_fork
from .lines import Lines
from .logs import WARNING, log
from .options import Options
from .progress import shown
from .sharing import metrics
from .sharing.announce import Announcer
from .sharing.job import Job
from .sharing.levers import read_levers
from .sharing.page import Page
from .sharing.publishing import build_once
from .sources.base import Source
from .storage import buildlock, fs, trust
from .storage.descriptors import Descriptor
from .storage.publish import BuildReport, Order
from .text import ago

__all__ = ["Rebuilder", "last_build"]


_GRACE: Final = 10.0
"""Seconds for a process whose time is up to start, to say so, and to end."""


class _Child(NamedTuple):
    """A process that rebuilds. begun, deadline: by `time.monotonic()`. before: what the page said of the last build."""

    process: children.Child
    begun: float
    deadline: float
    before: object


class Rebuilder:
    """running: whether this process rebuilds the file, by a child or a thread. waits: whether another process builds
    the first file, which this one has waited for."""

    def __init__(self, files: FileTier, source: Source | None, options: Options, counting: Counting) -> None:
        self.files = files
        self.source = source
        self.options = options
        self._counting = counting
        self.begin_process()
        on_fork(self)

    def begin_process(self) -> None:
        """What the parent started is the parent's."""
        self.running = False
        self.waits = False
        self._has_waited = False
        self._child: _Child | None = None

    def build(
        self,
        page: Page | None,
        *,
        timeout: float,
        asked_ns: int | None = None,
        first: bool = False,
        since: float | None = None,
        lock: Descriptor | None = None,
        exact: bool = False,
    ) -> BuildReport:
        """Build and publish from the source, if no other process did: see `sharing.publishing.build_once`."""
        assert self.source is not None
        with shown(self.options.progress if first else None) as step:
            return build_once(
                self.files.path,
                Order(self.source, self.options.cluster_by, self.options.metadata),
                page=page,
                counters=self._counting.counters,
                progress=step,
                timeout=timeout,
                serves=self.files.serves if first else None,
                asked_ns=asked_ns,
                since=since,
                lock=lock,
                exact=exact,
            )

    def build_first(self, page: Page | None, take: Callable[[], bool], lines: Lines) -> None:
        """One process builds; the others wait until its file is there, take over if it dies, and give up in time.

        None waits on the lock: that would let in one after the other. A build that fails is not tried again by those
        that waited for it, nor by any process for a while. take: opens the file, and says whether it could.
        """
        begun = time.monotonic()
        deadline = begun + (0.0 if self._has_waited else self.options.wait)
        pause = 0.001
        self.waits = False
        while True:
            failure = page.failure if page is not None else None
            if failure is not None and (failure.at > begun or begun < failure.until):
                now, path = time.monotonic(), self.files.path
                text = "%s: a build failed %s, and none is tried for %.0f more seconds: %s"
                args = path, ago(now - failure.at), max(0.0, failure.until - now), str(failure.error)
                lines.note(WARNING, "build_failed", text, *args)
                return
            try:
                self.build(page, timeout=0.0, first=True, since=begun)
            except LockTimeoutError:
                if time.monotonic() >= deadline:
                    self._has_waited = self.waits = True  # once; a builder that was stopped must not hold up every read
            except Exception:  # noqa: BLE001 (counted, logged, and recorded on the page)
                return
            if take() or time.monotonic() >= deadline:
                return
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def start(self, why: str, page: Page, heard: object) -> bool:
        """Have the file built again, unless another process builds it, or did so since `heard`; whether it is.

        Raises nothing that concerns the build: what goes wrong is recorded on the page, and pauses all workers."""
        if self.running or self.source is None:
            return False
        is_started = False
        try:
            self.running = True  # in here: an exception just after it must not leave it set
            is_started = self._start(why, page, heard)
        except LockTimeoutError:
            pass
        except MmcacheError as error:
            self._record(page, error)
        finally:
            if not is_started:
                self.running = False
        return is_started

    def _start(self, why: str, page: Page, heard: object) -> bool:
        path = self.files.path
        with fs.Directory(path) as directory:
            lock: Descriptor | None = buildlock.take(directory, 0.0)
        try:
            assert lock is not None
            if last_build(page) != heard or read_levers(path).held:
                return False
            log.info("%s: rebuilding, because %s", path, why, extra={"event": "rebuild_started", "path": path})
            executor = self.options.executor
            if executor == "inline":
                handed, lock = lock, None
                self._build_here(page, handed)
                return True
            job = self._job() if executor == "subprocess" else None
            if job is not None and self._spawn(page, lock, job):
                lock = None
                return True
            handed, lock = lock, None
            if threads.why_none():
                self._build_here(page, handed)
                return True
            return self._start_thread(page, handed)
        finally:
            if lock is not None:
                buildlock.free(lock)

    def _start_thread(self, page: Page, lock: Descriptor) -> bool:
        """A thread that holds the lock from now on."""
        build = partial(self._build_here, page, lock)
        try:
            threads.start("mmcache-rebuild", build, otherwise=partial(buildlock.free, lock))
        except RuntimeError as error:
            raise SourceError(f"no thread can be started to rebuild it ({error})", path=self.files.path) from None
        return True

    def _job(self) -> bytes | None:
        """What another process needs to build; None where no other can, or this interpreter cannot be started again."""
        source, options = self.source, self.options
        if source is None or not children.can_start():
            return None
        job = Job.of(
            source,
            cluster_by=options.cluster_by,
            metadata=options.metadata,
            asked_ns=wallclock.now_ns(),
            limit=options.build_timeout,
        )
        try:
            return None if job is None else job.pack()
        except (TypeError, ValueError, OverflowError):  # a thread fails, too, and says what is wrong
            return None

    def _build_here(self, page: Page, lock: Descriptor) -> None:
        try:
            self.build(page, timeout=0.0, asked_ns=wallclock.now_ns(), lock=lock)
            self.files.repair = ""
        except LockTimeoutError:
            self._counting.add(metrics.REBUILDS_LOST_RACE)
        except Exception:  # noqa: BLE001, S110 (counted, logged, and recorded on the page)
            pass
        finally:
            self.running = False  # first, as an exception may keep the next call from its begin
            buildlock.free(lock)

    def _spawn(self, page: Page, lock: Descriptor, job: bytes) -> bool:
        """Start a process that builds, and holds the lock from now on; False if the system does not let us."""
        path, limit = self.files.path, self.options.build_timeout
        before, begun = (last_build(page) if page.shared else None), time.monotonic()
        try:
            with _as_input(job) as document:
                process = children.start(
                    "mmcache.sharing.background",
                    path,
                    str(lock.fd),
                    stdin=document.fileno(),
                    pass_fds=(lock.fd,),
                    environment=trust.environment(path),
                )
        except (OSError, subprocess.SubprocessError, MemoryError) as error:
            log.warning(
                "%s: no process could be started (%s): rebuilding in a thread",
                path,
                str(error),
                extra={"event": "spawn_failed", "path": path},
            )
            return False
        lock.close()  # and not free it: the child has it
        self._child = _Child(process, begun, begun + limit + _GRACE, before)
        return True

    def reap(self, page: Page | None) -> None:
        """See what became of the process that rebuilds."""
        children.reap()
        if self._child is None:
            return
        process, begun, deadline, before = self._child
        if process.returncode is None and time.monotonic() > deadline:
            process.kill()  # it ends itself in time, unless it was stopped
            process.wait()
        if process.returncode is None:
            return
        self._child = None
        self.running = False
        limit, code = self.options.build_timeout, process.returncode
        # Where the host waited for it, by a handler of SIGCHLD for one, the status is 0 whatever it was.
        is_built = code == 0 and (before is None or page is None or before != last_build(page))
        if is_built:
            self.files.repair = ""
            return
        if page is None:
            return
        # One that was killed, or could not start, or had no page to record it on, has told no process.
        failure = page.failure
        if failure is None or failure.at < begun:
            how = f"was killed by signal {-code}; its limit is {limit:g} s" if code < 0 else f"ended with status {code}"
            how = how if code else "ended with an unknown status, and built nothing"
            self._record(page, SourceError(f"the rebuild in the background {how}"))

    def _record(self, page: Page, error: MmcacheError) -> None:
        """Nothing was built, and no builder could say so: all workers pause."""
        path = self.files.path
        control = Announcer(path, page)
        control.failed(error)
        control.close()
        self._counting.add(metrics.REBUILDS_FAILED)
        log.warning("%s: %s", path, error.message, extra={"event": "build_failed", "path": path})


@contextlib.contextmanager
def _as_input(document: bytes) -> Iterator[socket.socket]:
    """From which a child reads a document. Raises OSError, also where the system does not take all of it at once."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        if ours.send(document) < len(document):
            raise OSError(errno.EMSGSIZE, "it does not fit into a socket")
        ours.shutdown(socket.SHUT_WR)
        yield theirs


def last_build(page: Page) -> object:
    """What differs after any build, also one that failed or found the file unchanged."""
    head = page.head()
    return None if head is None else (head.announced, head.covered, head.failure_record)
