"""The log of a store, as values and as JSON: entries that are created once and never changed. Pure: no I/O, no clock.

    <url>/mmcache.json                     {"format": 1}                              created once
    <url>/generations/<20 digits>.json     one entry: the commit and the announcement
    <url>/blobs/<sha256>-<nonce>.mmc       a whole file; no name is ever used twice
    <url>/deltas/<sha256>-<nonce>.mmd      what makes a file of another
    <url>/newest.json                      a hint for servers that cannot list: a number that was reached
    <url>/clock.json                       put by a prune, to learn the store's time

An entry that has a `file` is a release, under the entry's number. Every entry says what holds from then on: which
release followers adopt, which is pinned, which are withdrawn. So the newest entry is the whole state of a store, and
one create-only put decides between all operators and publishers at once.

The entry of a prune names the blobs that it is about to remove. An entry with a later number names none of them: a
publisher that loses a number reads the entry that won it before it tries the next one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, cast, get_args

from ..errors import CorruptFileError, IncompatibleFormatError, UnusableFileError
from ..format.header import HEADER_SIZE, Header, parse_header

__all__ = [
    "FORMAT",
    "LONGEST_ENTRY",
    "Delta",
    "Entry",
    "File",
    "Kind",
    "blob_path",
    "entry_path",
    "number_of",
    "parse",
    "successor",
]

FORMAT: Final = 1
LONGEST_ENTRY: Final = 4 * 2**20
"""Bytes of an entry that are read: what is longer is none."""
_MOST: Final = 2**53
"""Numbers and sizes stay below it, so that every JSON library reads them exactly."""
_BLOB: Final = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}\.mmc")
_DELTA: Final = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}\.mmd")
_PATH: Final = re.compile(r"generations/(\d{20})\.json")

Kind = Literal["publish", "rollback", "withdraw", "pin", "unpin", "prune"]


def entry_path(number: int) -> str:
    return f"generations/{number:020}.json"


def number_of(path: str) -> int | None:
    """The number of an entry's path; None for what is none."""
    found = _PATH.fullmatch(path)
    return int(found[1]) if found else None


def blob_path(name: str) -> str:
    """Of a blob or a delta."""
    return f"{'deltas' if name.endswith('.mmd') else 'blobs'}/{name}"


@dataclass(frozen=True, slots=True)
class Delta:
    """What makes the release's file of another one. name: of the delta in the store; base: content digest of the file
    that it is applied to, hexadecimal; size: bytes; sha256: of these."""

    name: str
    base: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class File:
    """The file of a release.

    blob: its name in the store. raw: its header, as followers are to have it but for generation and tokens; it stands
    here, not in the blob, so that files of one content share a blob. size: bytes. sha256: of the content, the root of
    the digest tree, hexadecimal. records: of each collection. deltas: instead of the blob, for followers that have the
    base of one.
    """

    blob: str
    raw: bytes
    size: int
    sha256: str
    records: Mapping[str, int]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    deltas: tuple[Delta, ...] = ()

    @property
    def header(self) -> Header:
        """Raises IncompatibleFormatError for a format that this version does not read, and CorruptFileError."""
        header = parse_header(self.raw, self.size)
        if header.sha256.hex() != self.sha256:
            raise CorruptFileError("section 'header': it is not that of the release's content", section="header")
        return header


@dataclass(frozen=True, slots=True)
class Entry:
    """One commit.

    file: of the release that this entry adds; None for an entry that only moves followers. at_ns: the committer's wall
    clock, for people. host: the committer's. nonce: drawn for each attempt, so that a committer knows its own entry.
    current: number of the release that followers adopt; None where every release was withdrawn. newest: of the last
    release that was not withdrawn; another than `current` while one is pinned. pinned: its number. withdrawn: numbers.
    barred: the contents that were withdrawn last, by their digest, and the number of the release that each was; they
    outlive its entry. oldest: entries below it may be gone. retired: blobs that this prune removes.
    """

    number: int
    kind: Kind
    at_ns: int
    host: str
    nonce: str
    current: int | None
    newest: int | None
    pinned: int | None = None
    withdrawn: frozenset[int] = frozenset()
    barred: Mapping[str, int] = field(default_factory=dict)
    oldest: int = 1
    file: File | None = None
    of: int | None = None
    reason: str = ""
    retired: frozenset[str] = frozenset()

    def pack(self) -> bytes:
        """JSON, one line."""
        plain = asdict(self)
        plain |= {"format": FORMAT, "withdrawn": sorted(self.withdrawn), "retired": sorted(self.retired)}
        if self.file is not None:
            plain["file"]["raw"] = self.file.raw.hex()
        return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


_HELD_ON: Final = ("current", "newest", "pinned", "withdrawn", "barred", "oldest")


def successor(before: Entry | None, **changes: Any) -> dict[str, Any]:
    """The fields of an entry that hold on from the one before, with changes."""
    held: dict[str, Any] = {"number": 1, "current": None, "newest": None}
    if before is not None:
        held = {name: getattr(before, name) for name in _HELD_ON}
        held["number"] = before.number + 1
    return held | changes


def parse(data: bytes, number: int, path: str) -> Entry:
    """The entry of a number. path: for errors. Raises CorruptFileError, and IncompatibleFormatError for one of a later
    version of mmcache. A release may have a file that this version does not read: see `File.header`."""
    try:
        plain = json.loads(data)
        if not isinstance(plain, dict):
            raise TypeError("not a map")
        if isinstance(plain.get("format"), int) and plain["format"] > FORMAT:
            raise IncompatibleFormatError(
                f"entry {number} has format {plain['format']}, and this version reads {FORMAT}: upgrade mmcache",
                path=path,
                found=str(plain["format"]),
                supported=str(FORMAT),
            )
        if plain["format"] != FORMAT or _number(plain["number"]) != number:
            raise ValueError("it is of another number or format")
        return _entry(plain)
    except UnusableFileError as error:
        error.path = error.path or path
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CorruptFileError(
            f"entry {number} is none of mmcache ({why}); put it back from a copy, or remove it", path=path
        ) from None


def _entry(plain: Mapping[str, Any]) -> Entry:
    if plain["kind"] not in get_args(Kind):
        raise ValueError(f"kind {plain['kind']!r} is not known")
    retired = [name for name in plain["retired"] if _BLOB.fullmatch(name) or _DELTA.fullmatch(name)]
    return Entry(
        number=_number(plain["number"]),
        kind=cast("Kind", plain["kind"]),
        at_ns=_number(plain["at_ns"], 2**63),
        host=_text(plain["host"]),
        nonce=_text(plain["nonce"]),
        current=_perhaps(plain["current"]),
        newest=_perhaps(plain["newest"]),
        pinned=_perhaps(plain["pinned"]),
        withdrawn=frozenset(map(_number, plain["withdrawn"])),
        barred={_text(digest): _number(number) for digest, number in plain["barred"].items()},
        oldest=_number(plain["oldest"]),
        file=None if plain["file"] is None else _file(plain["file"]),
        of=_perhaps(plain["of"]),
        reason=_text(plain["reason"]),
        retired=frozenset(retired),
    )


def _file(plain: Mapping[str, Any]) -> File:
    raw = bytes.fromhex(plain["raw"])
    if len(raw) != HEADER_SIZE:
        raise ValueError(f"a header of {len(raw)} bytes")
    if not _BLOB.fullmatch(plain["blob"]):
        raise ValueError(f"{plain['blob']!r} is no name of a blob")
    records = {_text(name): _number(count) for name, count in plain["records"].items()}
    metadata = plain["metadata"]
    if not isinstance(metadata, dict):
        raise TypeError("metadata is no map")
    deltas = tuple(map(_delta, plain["deltas"]))
    return File(plain["blob"], raw, _number(plain["size"]), _text(plain["sha256"]), records, metadata, deltas)


def _delta(plain: Mapping[str, Any]) -> Delta:
    if not _DELTA.fullmatch(plain["name"]):
        raise ValueError(f"{plain['name']!r} is no name of a delta")
    return Delta(plain["name"], _text(plain["base"]), _number(plain["size"]), _text(plain["sha256"]))


def _number(value: object, most: int = _MOST) -> int:
    if type(value) is not int or not 0 <= value < most:
        raise ValueError(f"{value!r:.40} is no number of an entry")
    return value


def _perhaps(value: object) -> int | None:
    return None if value is None else _number(value)


def _text(value: object) -> str:
    if type(value) is not str:
        raise TypeError(f"{value!r:.40} is no text")
    return value
