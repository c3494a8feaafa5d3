"""Publishing a release: the file is verified, passes its validators, is uploaded, and is announced by one entry.

    verify   validators   newest entry   [upload the blob]   [deltas]   entry, created once
                                                                        ^ commit and announcement

A publisher that is killed before the entry leaves a blob without a name in any entry, which a prune removes after a
day. A file whose content is in the store already is not uploaded again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final

from ..errors import MissingFileError, ReleaseError, UnusableFileError
from ..format.header import Header
from ..format.layout import Layout
from ..logs import log
from ..progress import Shown, Step, shown, unseen
from ..sharing.attach import open_existing
from ..sharing.decide import baseline_of
from ..sharing.levers import read_levers
from ..storage import fs
from ..storage.names import backup_name
from ..storage.verify import verify_bytes
from ..store import Store, public_url
from .arguments import ratio
from .entries import Delta, Entry, File, blob_path
from .log import ReleaseLog, target_of
from .validators import RATIO, Check, check_counts, check_keys, run_checks

__all__ = ["Release", "publish", "release_of"]


_LONGEST_METADATA: Final = 64 * 2**10
"""Bytes of a file's metadata, as JSON, that stand in its release."""


@dataclass(frozen=True, slots=True)
class Release:
    """A generation in an object store.

    number: dense over all entries of the store. kind: "publish", or "rollback" to the content of an earlier one, whose
    number is `of`. created, published: wall clock of the publisher: when its source was read, and when the release was
    made. sha256: of the content. records: of each collection. current: whether followers adopt it.
    changed: False where `publish` found it published already.

    >>> release = mmcache.publish("cache.mmc", "memory://releases/items", reason="first")
    >>> release.number, release.kind, dict(release.records), release.current, release.changed
    (1, 'publish', {'items': 3}, True, True)
    """

    url: str
    number: int
    kind: str
    of: int | None
    created: float
    published: float
    publisher: str
    reason: str
    generation: int
    sha256: str
    build_id: str
    size: int
    records: Mapping[str, int]
    metadata: Mapping[str, object]
    current: bool = False
    pinned: bool = False
    withdrawn: bool = False
    changed: bool = True


def release_of(url: str, entry: Entry, newest: Entry) -> Release:
    """As the newest entry of the store sees it."""
    file = entry.file
    assert file is not None
    header = None
    with contextlib.suppress(UnusableFileError):  # of a later format
        header = file.header
    return Release(
        url=url,
        number=entry.number,
        kind=entry.kind,
        of=entry.of,
        created=entry.at_ns / 1e9 if header is None else header.created_ns / 1e9,
        published=entry.at_ns / 1e9,
        publisher=entry.host,
        reason=entry.reason,
        generation=0 if header is None else header.generation,
        sha256=file.sha256,
        build_id="" if header is None else header.build_id.hex(),
        size=file.size,
        records=dict(file.records),
        metadata=dict(file.metadata),
        current=entry.number == newest.current,
        pinned=entry.number == newest.pinned,
        withdrawn=entry.number in newest.withdrawn,
    )


def publish(
    path: str | os.PathLike[str],
    url: str,
    *,
    min_records_ratio: float = RATIO,
    checks: Iterable[Check | str] = (),
    deltas: bool = True,
    reason: str = "",
    progress: Shown = None,
) -> Release:
    """Make a file a release of a store, which every follower of the store adopts.

    url: s3://bucket/items, gs://, az://, https://, file:///mnt/share/items. Credentials are those that its own tools
        find in the environment.
    min_records_ratio: each collection of the release before must be in the file, with this share of its records.
    checks: functions, or names "module:function", that are given the opened `Snapshot`; one that raises, or returns
        False or a sentence, refuses the file.
    deltas: also upload what makes this file of the ones before, where that is much smaller: see docs/fleet.md.
    reason: is shown by `mmcache releases`.

    Of several publishers at once each gets a number of its own; the same content is published once. A file that was
    found unchanged by a rebuild is published again, without its bytes, so that followers know that it is fresh.
    Raises ReleaseError for a file that a validator refuses, UnusableFileError for one that is not whole, StoreError;
    after any of them followers have what they had.

    >>> mmcache.publish("cache.mmc", "memory://shop/items").number
    1
    """
    ratio("min_records_ratio", min_records_ratio)
    public_url(url)
    name = os.path.abspath(os.fspath(path))
    if why := read_levers(name).rolled_back:
        raise ReleaseError(
            f"it is {why}, and says of older records that they are of then; rebuild it, or go back in the store with "
            "mmcache rollback URL",
            path=name,
            rule="held",
        )
    store = Store(url)
    with contextlib.closing(fs.ReadFile(name)) as file, shown(progress) as step:
        layout = _verified(file, step or unseen)
        releases = ReleaseLog(store)
        newest = releases.newest()
        before = _before(releases, newest)
        _refuse_withdrawn(releases, newest, layout.header, name)
        _validate(name, layout, before, min_records_ratio, checks)
        publication = _Publication(releases, file, layout, reason, step or unseen)
        if deltas and before is not None and before.sha256 != layout.header.sha256.hex():
            publication.offer_delta(before)
        entry, is_new = releases.commit(publication.fields)
    assert entry is not None
    entry = entry if entry.file is not None else releases.release(entry.newest or 0)
    state = releases.newest(entry) or entry
    log.info("%s: release %d of %s", name, entry.number, store.url, extra={"event": "released", "path": name})
    return replace(release_of(store.url, entry, state), changed=is_new)


def _verified(file: fs.ReadFile, step: Step) -> Layout:
    done = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal done
        data = file.read(offset, length)
        done += len(data)
        step("verify", min(done, file.size), file.size)
        return data

    try:
        return verify_bytes(read, file.size)
    except UnusableFileError as error:
        error.path = error.path or file.path
        raise


def _before(releases: ReleaseLog, newest: Entry | None) -> File | None:
    """What followers would have but for a pin."""
    if newest is None or newest.newest is None:
        return None
    with contextlib.suppress(MissingFileError):
        return target_of(releases, newest, newest.newest).file
    return None


def _refuse_withdrawn(releases: ReleaseLog, newest: Entry | None, header: Header, path: str) -> None:
    """A content that was withdrawn does not come back because a cron job publishes it again, also after a prune."""
    number = None if newest is None else newest.barred.get(header.sha256.hex())
    if number is None:
        return
    back = f"mmcache rollback URL --to {number}" if releases.at(number) is not None else "one with other metadata"
    raise ReleaseError(
        f"its content was withdrawn as release {number}: build another, or {back}", path=path, rule="withdrawn"
    )


def _validate(path: str, layout: Layout, before: File | None, ratio: float, checks: Iterable[Check | str]) -> None:
    from ..storage.snapshot import Snapshot

    if before is not None:
        check_counts({name: one.n for name, one in layout.collections.items()}, before.records, ratio, path)
    with Snapshot.open(path, verify="lazy") as snapshot:
        if snapshot.header != layout.header:
            raise MissingFileError("another file was published meanwhile: publish that one", path=path)
        check_keys(snapshot, path)
        run_checks(snapshot, checks, path)


def _header_now(path: str, layout: Layout) -> Header:
    """The file's own, with the time and the fingerprint of the last rebuild that found it unchanged."""
    page = open_existing(path)
    if page is None:
        return layout.header
    with contextlib.closing(page):
        head = page.head()
    now = baseline_of(layout.header, None if head is None else head.covered)
    if not now.revalidated or now.built * 1e9 < layout.header.created_ns:
        return layout.header
    return replace(layout.header, created_ns=int(now.built * 1e9), fingerprint=now.fingerprint)


class _Publication:
    """One file on its way into a log: uploaded once, whatever entries are won by others meanwhile."""

    def __init__(self, releases: ReleaseLog, file: fs.ReadFile, layout: Layout, reason: str, step: Step) -> None:
        self._log = releases
        self._file = file
        self._layout = layout
        self._header = _header_now(file.path, layout)
        self._reason = reason
        self._step = step
        self._blob = ""
        self._deltas: tuple[Delta, ...] = ()

    def offer_delta(self, before: File) -> None:
        """Upload what makes this file of the release before, where the backup is that, and it is much smaller."""
        from .delta import make

        path, layout = backup_name(self._file.path), self._layout
        with contextlib.suppress(UnusableFileError), contextlib.closing(fs.ReadFile(path)) as base:
            there = verify_bytes(base.read, base.size, digests=False)
            if there.header.sha256.hex() != before.sha256:
                return
            data = make(base.read, there, self._file.read, layout)
            if len(data) > layout.header.file_size // 2:
                return
            name = f"{layout.header.sha256.hex()}-{os.urandom(8).hex()}.mmd"
            self._log.store.upload(blob_path(name), [data], len(data))
            self._deltas = (Delta(name, before.sha256, len(data), sha256(data).hexdigest()),)

    def fields(self, newest: Entry | None) -> dict[str, Any] | None:
        """Of the entry after this one; None where it publishes the same already."""
        there = None if newest is None or newest.newest is None else self._release(newest, newest.newest)
        if there is not None and there.sha256 == self._header.sha256.hex() and not self._is_later(there):
            return None
        withdrawn = frozenset() if newest is None else newest.withdrawn
        blob = self._shared(newest, there)
        number = 1 if newest is None else newest.number + 1
        pinned = None if newest is None else newest.pinned
        return {
            "kind": "publish",
            "reason": self._reason,
            "file": self._described(blob),
            "newest": number,
            "current": number if pinned is None else pinned,
            "withdrawn": withdrawn,
        }

    def _release(self, newest: Entry, number: int) -> File | None:
        with contextlib.suppress(MissingFileError):
            return target_of(self._log, newest, number).file
        return None

    def _is_later(self, there: File) -> bool:
        """Whether a rebuild found the same content again after the release was made."""
        return self._header.created_ns > there.header.created_ns

    def _shared(self, newest: Entry | None, there: File | None) -> str:
        """The name of a blob with this content; another one, where an entry was read that retires it."""
        if newest is not None and self._blob in newest.retired:
            self._blob = ""
        if newest is not None and any(delta.name in newest.retired for delta in self._deltas):
            self._deltas = ()
        if there is not None and there.sha256 == self._header.sha256.hex():
            return there.blob
        if not self._blob:
            self._blob = self._upload()
        return self._blob

    def _upload(self) -> str:
        name = f"{self._header.sha256.hex()}-{os.urandom(8).hex()}.mmc"
        self._log.store.upload(blob_path(name), self._pieces(), self._file.size)
        return name

    def _pieces(self) -> Iterable[bytes]:
        done = 0
        for piece in self._file.chunks(0, self._file.size):
            yield piece
            done += len(piece)
            self._step("upload", done, self._file.size)

    def _described(self, blob: str) -> File:
        metadata = _as_json(self._layout.metadata)
        records = {name: one.n for name, one in self._layout.collections.items()}
        header = replace(self._header, soft=0, hard=0, ring=0, page=0)  # of a page of the publisher's
        return File(blob, header.pack(), header.file_size, header.sha256.hex(), records, metadata, self._deltas)


def _as_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What of it JSON carries; none of it where that is long."""
    try:
        text = json.dumps(metadata, default=str)
        plain = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return {}
    return plain if len(text) <= _LONGEST_METADATA else {}
