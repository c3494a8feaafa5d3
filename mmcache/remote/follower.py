"""Following: which release the file of a node should be of, and making it so.

    poll   newest entry   target   [lock   download   header, local tokens   fsync   verify   .bak   rename   tell]
                                                                                                     ^ commit

What is in brackets is a build in all but where the bytes come from: the same lock, the same commit, the same word to
the control page, so every worker moves to the release within its next get. A file whose content is the release's stays,
and counts as found unchanged.

Workers, side-cars and cron jobs may all follow for one node: the lock lets one download, and the others find the file
there. Where locks do not work each downloads, and each renames a whole file.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from ..errors import (
    LockTimeoutError,
    MissingFileError,
    MmcacheError,
    PublishError,
    UnusableFileError,
)
from ..format.header import HEADER_SIZE, Header, Tokens, parse_header
from ..logs import log
from ..progress import Shown, Step, shown, unseen
from ..sharing.announce import Announcer
from ..sharing.attach import attach
from ..sharing.following import Following, following, say_polled, tell
from ..sharing.levers import read_levers
from ..sharing.operate import settle
from ..sharing.page import MovedError
from ..sources.base import Source
from ..storage import buildlock, fs
from ..storage.commit import Published, check_replaceable, commit, next_generation
from ..storage.describe import description_in
from ..storage.names import backup_name
from ..storage.publish import LOCK_TIMEOUT, backed_up
from ..storage.trust import name_owners, uids_of
from ..store import Store, public_url
from .arguments import at_least_one, seconds
from .covering import covered, marked
from .download import Transferred, download
from .entries import Entry
from .log import ReleaseLog, target_of

__all__ = ["SKEW", "Follower", "follow"]


_PATIENCE: Final = 1.0
"""Seconds to wait for the page lock, where a page has to be made."""

SKEW: Final = 60.0
"""Seconds by which the clocks of a publisher and a node may differ."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What a follower was told. pin: a release to stay with. has_source: whether workers of this node have a source;
    source: that one, where this process can ask it."""

    pin: int | None = None
    skew: float = SKEW
    has_source: bool = True
    source: Source | None = None

    def __post_init__(self) -> None:
        if self.pin is not None:
            at_least_one("pin", self.pin)
        seconds("skew", self.skew)


class Follower:
    """Follows a store for one cache file. Not safe in threads."""

    def __init__(self, path: str, url: str, orders: Orders, step: Step = unseen) -> None:
        self.path = path
        self._log = ReleaseLog(Store(url))
        self.orders = orders
        self._step = step
        self._newest: Entry | None = None
        self.transferred: Transferred | None = None
        """Of the last download."""

    def ask(self, source: Source | None) -> None:
        """Ask this source from now on."""
        self.orders = replace(self.orders, source=source)

    def poll(self, *, timeout: float | None = None) -> Following:
        """Look which release the file should be of, and bring it; what holds then.

        timeout: seconds to wait for another process that builds or downloads; None: it is left to that one. Raises what
        is wrong, after it has told the node; then the file is as it was. StoreError, MissingFileError for a release
        that is gone, CorruptFileError, IncompatibleFormatError, PublishError, UntrustedPathError, LockTimeoutError.
        """
        before = self._before()
        now = before
        try:
            now = self._polled(before, 0.0 if timeout is None else timeout)
        except LockTimeoutError:
            if timeout is not None:
                raise
            before = now = self._before()  # Case: another process brings it, and says so
        except MmcacheError as error:
            now = self._failed(error)
            raise
        finally:
            self._tell(before, now)
        return now

    def _before(self) -> Following:
        """What the node said last; nothing of another store's releases."""
        found = following(self.path)
        if found is None or found.url != self._log.store.url:
            return Following(self._log.store.url)
        return found

    def _failed(self, error: MmcacheError) -> Following:
        said = self._before()
        return replace(said, error=str(error), behind=said.behind or time.time())

    def _tell(self, before: Following, now: Following) -> None:
        if now.error == "" and replace(now, polled=before.polled) == before:
            say_polled(self.path)
        else:
            tell(self.path, now)

    def _polled(self, before: Following, timeout: float) -> Following:
        newest = self._log.polled(self._newest)
        if newest is None:
            raise MissingFileError("there are no releases here yet", path=self._log.store.url)
        pin = self.orders.pin if self.orders.pin not in newest.withdrawn else None
        if pin != self.orders.pin:
            log.warning("%s: release %s was withdrawn: the pin is void", self.path, self.orders.pin)
        number = newest.current if pin is None else pin
        seen = replace(
            before,
            target=number,
            newest=newest.newest,
            pinned=newest.pinned if pin is None else pin,
            polled=time.time(),
            error="",
            mark=marked(self.path, before.mark),
        )
        if number is None:
            self._newest = newest
            return replace(seen, error="every release was withdrawn: the file stays as it is", behind=0.0)
        levers = read_levers(self.path)
        if levers.rolled_back:  # then the file is of no release
            seen = replace(seen, release=None, behind=seen.behind or time.time())
        if levers.held:
            return replace(seen, error=f"the file is {levers.held}: mmcache resume lets it follow")
        if self._is_of(seen, number):
            self._newest = newest
            return replace(seen, behind=0.0)
        entry = target_of(self._log, newest, number)
        assert entry.file is not None
        seen = replace(seen, published=entry.at_ns / 1e9, behind=seen.behind or time.time())
        self._tell(before, seen)
        generation = self._adopt(entry, seen, timeout)
        self._newest = newest
        return replace(seen, release=number, generation=generation, behind=0.0)

    def _is_of(self, said: Following, number: int) -> bool:
        """Whether the file has the content of a release, or is one that was built here since."""
        header = _header(self.path)
        return header is not None and said.release == number and header.generation >= said.generation

    # --- bringing it

    def _adopt(self, entry: Entry, said: Following, timeout: float) -> int:
        """The generation that the file has then."""
        begun = time.monotonic()
        with fs.Directory(self.path, make=True) as directory, buildlock.hold(directory, timeout):
            done = following(self.path)
            if done is not None and done.url == said.url and self._is_of(done, entry.number):
                return done.generation  # Case: another process brought it while we waited
            for name in (directory.name, backup_name(directory.name)):
                check_replaceable(directory, name)
            control = Announcer(self.path)
            with contextlib.closing(control):
                control.begin()
                try:
                    return self._publish(entry, said, directory, control, begun)
                finally:
                    control.end()

    def _publish(self, entry: Entry, said: Following, directory: fs.Directory, control: Announcer, begun: float) -> int:
        file = entry.file
        assert file is not None
        if (current := _header(self.path)) is not None:
            control.noticed(current)  # a writer that was killed after the rename has not said that its file is there
        old, header = Published.of(directory), file.header
        tokens = self._tokens(header, said, current)
        if old.layout is not None and old.layout.header.sha256 == header.sha256:
            there = old.layout.header
            if control.revalidated(there, tokens, header.created_ns, header.elapsed_ns, header.fingerprint):
                directory.sweep()
                self._told(entry.number, there.generation, Transferred(0, 0, 0), begun)
                return there.generation
        target, self.transferred = download(self._log.store, file, directory, self._step)
        with target:
            generation = next_generation(directory, control.generation)
            header = replace(header, generation=generation, **tokens._asdict())
            done = commit(
                directory,
                target,
                header,
                control=control,
                before=old.layout or description_in(directory),
                keeping=backed_up(directory, None, there=old.layout is not None),
                begun=begun,
            )
        control.succeeded()
        self._told(entry.number, done.generation, self.transferred, begun)
        return done.generation

    def _tokens(self, header: Header, said: Following, current: Header | None) -> Tokens:
        with contextlib.closing(attach(self.path, patience=_PATIENCE)) as page:
            try:
                if not self.orders.has_source:
                    return page.tokens()
                skew_ns = int(self.orders.skew * 1e9)
                return covered(page, header, current, mark=said.mark, skew_ns=skew_ns, source=self.orders.source)
            except MovedError:
                reason = "the control page is being replaced: the next poll tries again"
                raise PublishError(reason, path=self.path) from None

    def _told(self, number: int, generation: int, what: Transferred, begun: float) -> None:
        settle(self.path)
        took = time.monotonic() - begun
        log.info(
            "%s: release %d is generation %d (%d bytes fetched, %d by a delta, %d from this machine, in %.3f s)",
            self.path,
            number,
            generation,
            what.fetched,
            what.delta,
            what.local,
            took,
            extra={"event": "followed", "path": self.path, "generation": generation, "seconds": took},
        )


def _header(path: str) -> Header | None:
    try:
        with contextlib.closing(fs.ReadFile(path)) as file:
            return parse_header(file.read(0, HEADER_SIZE), file.size)
    except UnusableFileError:
        return None


def follow(
    url: str,
    path: str | os.PathLike[str],
    *,
    pin: int | None = None,
    skew: float = SKEW,
    source: Source | None = None,
    has_source: bool = True,
    timeout: float = LOCK_TIMEOUT,
    trust: str | int | Iterable[str | int] = (),
    progress: Shown = None,
) -> Following:
    """Bring the file at `path` to the release that a store has for it, once; what the node follows then.

    pin: a release to stay with, until it is withdrawn. source: that of the node's workers, if they have one: what was
    invalidated here is covered by a release of the same fingerprint, else by one that was made more than `skew` seconds
    after it. has_source=False: no worker has a source, and every release covers everything.
    timeout: seconds to wait for another process that builds the file or brings it.

    The directory is made where it is missing. Workers that have the file open move over within their next get.
    Raises StoreError, MissingFileError where there is no such release, CorruptFileError and IncompatibleFormatError
    for one that cannot be used, PublishError, UntrustedPathError and LockTimeoutError; then the file is as it was.

    >>> mmcache.publish("cache.mmc", "memory://fleet/items").number
    1
    >>> mmcache.follow("memory://fleet/items", "node.mmc").release
    1
    """
    orders, timeout, name = Orders(pin, skew, has_source, source), seconds("timeout", timeout), fs.with_name(path)
    public_url(url)
    name_owners(name, uids_of(trust))
    fs.make_directory(os.path.dirname(name))
    with shown(progress) as step:
        return Follower(name, url, orders, step or unseen).poll(timeout=timeout)
