"""The log of a store: what is the newest entry, and committing the next one.

Numbers are dense: an entry is created under the number after the newest, and a number that another committer won is
read before the next one is tried. So a committer has seen every entry before its own.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from .. import wallclock
from ..errors import MissingFileError, StoreError, UnusableFileError
from ..logs import log
from ..store import Store
from .entries import FORMAT, LONGEST_ENTRY, Entry, entry_path, number_of, parse, successor

__all__ = ["LIST_EVERY", "ReleaseLog", "target_of"]

_MARK: Final = "mmcache.json"
_HINT: Final = "newest.json"
LIST_EVERY: Final = 60.0
"""Seconds for which a poll may look for the next entry alone, which costs a tenth of a list, or less."""
_ABSENT: Final = 3
"""Numbers in a row that a server which cannot list lacks, before its log is taken to end."""


class ReleaseLog:
    """store: where the log is."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._listed = -math.inf

    # --- reading

    def at(self, number: int) -> Entry | None:
        """None where there is none. Raises CorruptFileError and IncompatibleFormatError for what is no entry."""
        path = entry_path(number)
        data = self.store.get(path, LONGEST_ENTRY)
        return None if data is None else parse(data, number, f"{self.store.url}/{path}")

    def release(self, number: int) -> Entry:
        """The entry of a release. Raises MissingFileError."""
        entry = self.at(number)
        if entry is None or entry.file is None:
            raise MissingFileError(f"there is no release {number}: see mmcache releases", path=self.store.url)
        return entry

    def newest(self, known: Entry | None = None) -> Entry | None:
        """The newest entry; None in an empty store. known: one that was read before; where it is the newest still, that
        costs one request."""
        number = self._last(0 if known is None else known.number)
        if known is not None and not number and self.at(known.number) is None:
            # Case: the store was emptied, and perhaps begun anew. No prune removes the newest entry.
            return self.newest()
        if known is not None and number <= known.number:
            return known
        return None if not number else self._read(number)

    def polled(self, known: Entry | None) -> Entry | None:
        """As `newest`, for one that asks again and again: where the entry after the known one is absent, that is the
        newest. But a prune may have removed that entry and left a later one: so a list is asked for every LIST_EVERY
        seconds."""
        is_due = time.monotonic() - self._listed >= LIST_EVERY
        if known is None or is_due or not self.store.can_list:
            begun = time.monotonic()
            found = self.newest(known)
            self._listed = begun
            return found
        return known if self.store.stat(entry_path(known.number + 1)) is None else self.newest(known)

    def numbers(self) -> list[int]:
        """Of all entries, ascending."""
        if not self.store.can_list:
            last = self._last(0)
            newest = self.at(last) if last else None
            return [] if newest is None else [n for n in range(newest.oldest, last + 1) if self.at(n) is not None]
        listed = (number_of(one.name) for one in self.store.listed("generations"))
        return [number for number in listed if number is not None]

    def releases(self, down_from: int | None = None) -> Iterator[Entry]:
        """Entries that add a release, the newest first. down_from: below that number."""
        newest = self.newest()
        if newest is None:
            return
        kept = {newest.current, newest.newest, newest.pinned}
        for number in reversed(self.numbers()):
            is_there = number >= newest.oldest or number in kept
            if is_there and (down_from is None or number < down_from):
                entry = self._readable(number)
                if entry is not None and entry.file is not None:
                    yield entry

    def _readable(self, number: int) -> Entry | None:
        """None, too, for an entry that is damaged or of a later format: it must not keep the others from being used."""
        try:
            return self.at(number)
        except UnusableFileError as error:
            log.warning("left out: %s", error, extra={"event": "entry_unusable", "path": self.store.url})
            return None

    def _last(self, after: int) -> int:
        """The number of the newest entry, from `after` on; 0 where a list has none. A request for each page of it."""
        if self.store.can_list:
            listed = self.store.listed("generations", entry_path(after - 1) if after else "")
            return max((n for one in listed if (n := number_of(one.name)) is not None), default=0)
        after = max(after, self._hinted())
        while step := next((n for n in range(1, _ABSENT + 1) if self.store.stat(entry_path(after + n)) is not None), 0):
            after += step
        return after

    def _hinted(self) -> int:
        try:
            number = json.loads(self.store.get(_HINT, 4096) or b"0")
        except ValueError:
            return 0
        return number if type(number) is int and 0 < number < 2**53 else 0

    def _read(self, number: int) -> Entry:
        entry = self.at(number)
        if entry is None:  # Case: a prune has removed it since it was listed, or a list shows what a read does not yet
            raise StoreError(f"entry {number} is listed and cannot be read: try again", path=self.store.url)
        return entry

    # --- committing

    def check_creates(self) -> None:
        """Raises StoreError where the store lets one create what is there. Costs a request, or two in a new store."""
        mark = json.dumps({"format": FORMAT}).encode()
        if self.store.create(_MARK, mark) and self.store.create(_MARK, mark):
            raise StoreError(
                "the store overwrites what must be created once (it ignores If-None-Match), so that releases could be "
                "lost: use another store; mmcache doctor URL says more",
                path=self.store.url,
            )

    def commit(self, make: Callable[[Entry | None], dict[str, Any] | None]) -> tuple[Entry | None, bool]:
        """Create the next entry, and whether that was needed.

        make: the fields of the entry, by the newest one; called again after each number that another committer won.
        None ends it: what was to be committed is so already. It may raise.
        """
        self.check_creates()
        newest = self.newest()
        while True:
            fields = make(newest)
            if fields is None:
                return newest, False
            entry = self._entry(newest, fields)
            is_created = self.store.create(entry_path(entry.number), entry.pack())
            there = entry if is_created else self._read(entry.number)
            if there.nonce != entry.nonce:  # else ours was created by an attempt whose answer was lost
                newest = there
                continue
            last = self.newest(entry)
            if last is not None and last.oldest <= entry.number:
                self.store.hint(_HINT, json.dumps(entry.number).encode())
                return entry, True
            # Case: this committer stood still while others went on and a prune removed the number again.
            self.store.remove(entry_path(entry.number))
            raise StoreError(
                "others went on and a prune removed what this one began with: try again", path=self.store.url
            )

    def _entry(self, before: Entry | None, fields: dict[str, Any]) -> Entry:
        made = {"at_ns": wallclock.now_ns(), "host": socket.gethostname(), "nonce": os.urandom(8).hex()}
        return Entry(**successor(before, **made, **fields))


def target_of(releases: ReleaseLog, newest: Entry, number: int) -> Entry:
    """The entry of a release, by the newest one. Raises MissingFileError where it is gone."""
    return newest if number == newest.number and newest.file is not None else releases.release(number)
