"""Events: what was said to all processes of a cache, as values and as bytes. Pure: no file, no clock, no lock.

The page keeps a log of events, a ring of bytes. An event's position is the number of bytes that were logged before it
since the page's beginning. So positions only grow, and "everything after position p" is one extent of the log. A record
carries its own position and a checksum: one that was overwritten, or stored in part, is recognised. The checksum is
seeded with that of the record before it, the chain, so a log that was put back to an earlier state and written on is
recognised, too.

    position u64 | time_ns u64 | payload length u32 | kind u16 | reason u16 | payload | xxh3_64 of that, u64 | padding

`fold` turns events into `Said`, what a file lacks that was built before them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest

from ..format.keys import Key, check_key, hash_key, pack_key

__all__ = [
    "MAX_APPEND",
    "MAX_IDS",
    "REASONS",
    "Dirty",
    "Event",
    "Extent",
    "Kind",
    "Reason",
    "Said",
    "add_dirty",
    "decode",
    "encode",
    "fold",
    "ids_events",
]

MAX_IDS: Final = 16_384
"""Ids that one invalidation may name; more of them count as everything."""

MAX_APPEND: Final = 4 * 2**20
"""Bytes that one append may log, so that an unfinished one overwrites no more than that."""

_HEAD: Final = struct.Struct("<QQIHH")
_CHECKSUM: Final = struct.Struct("<Q")
_LONGEST_KEY: Final = 1024
"""Bytes of a key that stands in an event; a longer one is told by its hash alone."""
_IDS_PER_EVENT: Final = 256
_LONGEST: Final = _IDS_PER_EVENT * (_LONGEST_KEY + 16) + 4096
"""Bytes of a payload: what claims more is not an event."""


Dirty = dict[int, tuple[Key | None, ...]]
"""Hash of a key -> the keys that have it; None stands for one that is known by its hash alone."""


class Kind(IntEnum):
    """What an event says."""

    IDS = 1
    """These ids of a collection have changed in the source: payload [collection, keys, hashes of longer keys]."""
    COLLECTION = 2
    """So has anything in a collection: payload [collection]."""
    SOFT = 3
    """The file is due to be built again, and answers meanwhile."""
    HARD = 4
    """The file may not answer until it was built again."""
    PUBLISHED = 5
    """Another file is at the path: the page's records say which."""
    COVERED = 6
    """A rebuild found the published file unchanged: the page's records say as of when."""
    FAILED = 7
    """A build has failed: the page's records say how."""
    SUSPECT = 8
    """An earlier page, which is gone, knew of something that files built with it may lack."""
    LEVER = 9
    """An operator has moved a lever: the files beside the cache file say which."""


@dataclass(frozen=True, slots=True)
class Reason:
    """What a reason of an invalidation means unless the caller says otherwise; hard: for one without ids."""

    name: str
    hard: bool


REASONS: Final = {
    reason.name: reason
    for reason in (
        Reason("manual", hard=True),
        Reason("record_stored", hard=False),
        Reason("record_deleted", hard=True),
        Reason("config_updated", hard=True),
        Reason("schema_migration", hard=True),
        Reason("ttl_expired", hard=False),
    )
}
_NUMBERS: Final = {name: number for number, name in enumerate(REASONS)}
_NAMES: Final = tuple(REASONS)


class Event(NamedTuple):
    """One thing that was said. payload: plain data, as `Kind` has it."""

    kind: Kind
    reason: str = "manual"
    payload: Any = ()


def ids_events(collection: str, keys: Iterable[Key], reason: str) -> list[Event]:
    """The events that name these ids, each once. Raises TypeError for what no key can be."""
    named: list[Key] = []
    hashed: list[int] = []
    for key in dict.fromkeys(map(check_key, keys)):
        if len(pack_key(key)) <= _LONGEST_KEY:
            named.append(key)
        else:
            hashed.append(hash_key(key))
    return [
        Event(
            Kind.IDS, reason, (collection, tuple(named[i : i + _IDS_PER_EVENT]), tuple(hashed[i : i + _IDS_PER_EVENT]))
        )
        for i in range(0, max(len(named), len(hashed)), _IDS_PER_EVENT)
    ]


def encode(events: Sequence[Event], position: int, time_ns: int, chain: int = 0) -> tuple[bytes, int]:
    """The records of these events, logged from a position on, and the chain behind them. chain: before them."""
    parts: list[bytes] = []
    for kind, reason, payload in events:
        body = msgpack.packb(payload, unicode_errors="surrogatepass")
        record = _HEAD.pack(position, time_ns, len(body), kind, _NUMBERS[reason]) + body
        chain = xxh3_64_intdigest(record, chain)
        record += _CHECKSUM.pack(chain)
        record += bytes(-len(record) % 8)
        parts.append(record)
        position += len(record)
    return b"".join(parts), chain


class Extent(NamedTuple):
    """A part of the log. times: in ns, one for each event. chain: behind it. ends: behind each event, the position and
    the chain."""

    events: list[Event]
    times: list[int]
    chain: int
    ends: list[tuple[int, int]]


def decode(data: bytes, position: int, chain: int) -> Extent | None:
    """The events of an extent of the log that begins at a position; None if any of it is not a record of that place, or
    does not continue what was logged before. chain: before it."""
    events: list[Event] = []
    times: list[int] = []
    ends: list[tuple[int, int]] = []
    at, end = 0, len(data)
    try:
        while at < end:
            said, time_ns, length, kind, reason = _HEAD.unpack_from(data, at)
            if said != position + at or length > _LONGEST:
                return None
            body = at + _HEAD.size
            (checksum,) = _CHECKSUM.unpack_from(data, body + length)
            chain = xxh3_64_intdigest(data[at : body + length], chain)
            if checksum != chain:
                return None
            payload = msgpack.unpackb(
                data[body : body + length], use_list=False, strict_map_key=False, unicode_errors="surrogatepass"
            )
            events.append(_checked(Kind(kind), _NAMES[reason], payload))
            times.append(time_ns)
            at = body + length + _CHECKSUM.size
            at += -at % 8
            ends.append((position + at, chain))
    except (ValueError, TypeError, IndexError, struct.error, msgpack.UnpackException):
        return None
    return Extent(events, times, chain, ends) if at == end else None


def _checked(kind: Kind, reason: str, payload: Any) -> Event:
    """Raises ValueError or TypeError for a payload that is not one of this kind."""
    if type(payload) is not tuple:
        raise ValueError("not a payload")
    if kind is Kind.IDS:
        collection, keys, hashes = payload
        if (type(collection), type(keys), type(hashes)) != (str, tuple, tuple):
            raise ValueError("not the ids of a collection")
        if not all(type(one) is int for one in hashes):
            raise ValueError("not the hashes of keys")
        for key in keys:
            if type(key) is not str:
                check_key(key)
    elif kind is Kind.COLLECTION:
        (collection,) = payload
        if type(collection) is not str:
            raise ValueError("not a collection")
    return Event(kind, reason, payload)


@dataclass(slots=True)
class Said:
    """What was said after a position of the log, folded. since, until: positions; chain: of the log at `until`.

    hard, soft: the reason of the last event of that kind; "" where there was none. closed: collections of which
    everything was invalidated. dirty: collection -> hash of a key -> the keys of that hash, None among them for one
    that an event names by its hash alone. The mappings only grow while `Said` lives, so a reader may test membership
    while events are folded in. ids: how many keys they name.
    lost: events were overwritten or cannot be read; then anything may have been said. suspect: as `Kind.SUSPECT`.
    """

    since: int
    until: int
    chain: int = 0
    hard: str = ""
    soft: str = ""
    closed: frozenset[str] = frozenset()
    lost: bool = False
    suspect: bool = False
    dirty: dict[str, Dirty] = field(default_factory=dict)
    ids: int = 0

    def is_open(self) -> bool:
        """Whether anything was said that only a rebuild covers."""
        return bool(self.hard or self.soft or self.closed or self.lost or self.suspect or self.dirty)


def fold(said: Said, events: Iterable[Event], until: int, chain: int) -> None:
    """Take in the events up to a position, and the chain there. Costs the new events alone."""
    for kind, reason, payload in events:
        if kind is Kind.IDS:
            collection, keys, hashes = payload
            dirty = said.dirty.setdefault(collection, {})
            for key in keys:
                said.ids += add_dirty(dirty, hash_key(key), key)
            for one in hashes:
                said.ids += add_dirty(dirty, one, None)
        elif kind is Kind.COLLECTION:
            said.closed |= {payload[0]}
        elif kind is Kind.HARD:
            said.hard = reason
        elif kind is Kind.SOFT:
            said.soft = reason
        elif kind is Kind.SUSPECT:
            said.suspect = True
    said.until, said.chain = until, chain


def add_dirty(dirty: Dirty, hashed: int, key: Key | None) -> bool:
    """Take a key in, and whether it is new; keys that share a hash stand together."""
    keys = dirty.get(hashed, ())
    if key in keys:
        return False
    dirty[hashed] = (*keys, key)
    return True
