"""The head of the control page: 4,096 bytes before the log of events, as values and as bytes. Pure.

    0     identity   which page this is, of which boot, in which file; and which page it took over. Never changes
    128   count      position up to which the log holds events, and the checksum of the last
    192   panic      a nonce, stored without the lock where that is stuck: everything counts as invalidated
    256   verified   the last two files that builders verified whole on this machine, 64 bytes each
    384   announced  the file that the processes were told of last
    448   covered    the last rebuild that found the published file unchanged
    640   builder    the process that recorded itself as the builder last
    768   failure    the last build, if it failed
    1984  verified   the last file that a reader verified whole

Each but `panic` carries a checksum, seeded with its place: what is stored in part, scribbled on or missing is absent. A
number that no page of ours holds is not believed either, so that nothing is computed from it that overflows.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

from xxhash import xxh3_64_intdigest

from .. import errors
from ..errors import MmcacheError, SourceError
from ..format.header import Header, Tokens

__all__ = [
    "ANNOUNCED",
    "BUILDER",
    "COUNT",
    "COVERED",
    "FAILURE",
    "FAR",
    "HEAD_SIZE",
    "PANIC",
    "TAKEN",
    "VERIFIED",
    "Announced",
    "Builder",
    "Coverage",
    "Failure",
    "Head",
    "PageIdentity",
    "pack_head",
    "pack_record",
    "parse_head",
    "proof_of",
    "text_of",
]

HEAD_SIZE: Final = 4096
FORM: Final = b"mmc-ctl\x02"
FAR: Final = 2**40
"""No position gets as far: a page that has logged a terabyte is replaced."""

IDENTITY, COUNT, PANIC, VERIFIED, ANNOUNCED, COVERED, BUILDER, TAKEN, FAILURE = (
    0,
    128,
    192,
    (256, 320, 1984),
    384,
    448,
    640,
    704,
    768,
)
_TEXT: Final = 1024
_STRUCTS: Final = {
    IDENTITY: struct.Struct("<8s11Q"),
    COUNT: struct.Struct("<2Q"),
    VERIFIED[0]: struct.Struct("<4Q16s"),
    VERIFIED[1]: struct.Struct("<4Q16s"),
    VERIFIED[2]: struct.Struct("<4Q16s"),
    ANNOUNCED: struct.Struct("<Q16s"),
    COVERED: struct.Struct("<Q16s4Q2Q32s"),
    BUILDER: struct.Struct("<3Q"),
    TAKEN: struct.Struct("<Q"),
    FAILURE: struct.Struct(f"<3Q{_TEXT}s"),
}
_LONGEST_PAUSE: Final = 75.0
"""Seconds: a failure that asks for a longer pause was recorded by another clock."""


class PageIdentity(NamedTuple):
    """Which page this is.

    boot: of the system that made it. device, inode: of the file that it was made in; wake: inode of its wake file.
    parent, taken, chain: the page whose events it took over, up to which position, and the chain there; 0 for none.
    origin: where its log begins. suspect: 1 if it was made in the place of a page that may have known something which
    is lost."""

    nonce: int
    boot: int
    created_ns: int
    device: int
    inode: int
    wake: int = 0
    parent: int = 0
    taken: int = 0
    chain: int = 0
    origin: int = 0
    suspect: int = 0


class Announced(NamedTuple):
    """A published file that the processes were told of."""

    generation: int
    build_id: bytes


class Coverage(NamedTuple):
    """A rebuild that found the published file unchanged: of which file, what was captured, from when on, how long it
    took, and the source's fingerprint."""

    generation: int
    build_id: bytes
    tokens: Tokens
    checked_ns: int
    elapsed_ns: int
    fingerprint: bytes

    def is_of(self, header: Header) -> bool:
        return (self.generation, self.build_id) == (header.generation, header.build_id)


class Builder(NamedTuple):
    """The process that recorded itself as the builder. since: time.monotonic(); takes: seconds of the last build."""

    pid: int
    since: float
    takes: float


class Failure(NamedTuple):
    """The last build that failed, until one succeeds. at, until: time.monotonic(); until: no process tries before."""

    attempts: int
    at: float
    until: float
    error: MmcacheError


class Head(NamedTuple):
    """What a head says. logged: up to which position the log holds events, and chain: the checksum of the last; None
    where that cannot be believed, and the page must be replaced. taken: time.monotonic() at which a file was published
    in the place of one with schemas that are not additive to its own; 0.0 for never."""

    identity: PageIdentity
    logged: int | None
    chain: int
    panic: int
    verified: tuple[bytes, ...]
    announced: Announced | None
    covered: Coverage | None
    builder: Builder | None
    failure_record: tuple[int, int, int, bytes] | None
    taken: float = 0.0

    def failure(self, monotonic: float) -> Failure | None:
        """As of a moment; None for one that another clock recorded."""
        if self.failure_record is None:
            return None
        attempts, at_ns, until_ns, text = self.failure_record
        at, until = at_ns / 1e9, until_ns / 1e9
        if at > monotonic or until > monotonic + _LONGEST_PAUSE:
            return None
        return Failure(attempts, at, until, error_of(text))


def parse_head(data: bytes) -> Head | None:
    """None for what is not the head of a page of this form."""
    if len(data) < HEAD_SIZE:
        return None
    identity = _record(data, IDENTITY)
    if identity is None or identity[0] != FORM:
        return None
    count, covered, builder, failure = (_record(data, at) for at in (COUNT, COVERED, BUILDER, FAILURE))
    announced, taken = _record(data, ANNOUNCED), _record(data, TAKEN)
    return Head(
        identity=PageIdentity(*identity[1:]),
        logged=None if count is None or count[0] >= FAR else count[0],
        chain=0 if count is None else count[1],
        panic=int.from_bytes(data[PANIC : PANIC + 8], "little"),
        verified=tuple(data[at : at + 48] for at in VERIFIED if _record(data, at) is not None),
        announced=None if announced is None else Announced(*announced),
        covered=None if covered is None else _coverage(*covered),
        builder=None if builder is None or not builder[0] else Builder(builder[0], builder[1] / 1e9, builder[2] / 1e9),
        failure_record=None if failure is None or not failure[0] else (*failure[:3], failure[3].rstrip(b"\0")),
        taken=0.0 if taken is None else taken[0] / 1e9,
    )


def _coverage(generation: int, build_id: bytes, *rest: Any) -> Coverage:
    return Coverage(generation, build_id, Tokens(*rest[:4]), *rest[4:])


def _record(data: bytes, at: int) -> tuple[Any, ...] | None:
    layout = _STRUCTS[at]
    end = at + layout.size
    body = data[at:end]
    if int.from_bytes(data[end : end + 8], "little") != xxh3_64_intdigest(body, at):
        return None
    return layout.unpack(body)


def pack_record(at: int, *values: Any) -> bytes:
    """The bytes of a record at its place; to be stored in one call."""
    body = _STRUCTS[at].pack(*values)
    return body + xxh3_64_intdigest(body, at).to_bytes(8, "little")


def pack_head(identity: PageIdentity, records: bytes = b"") -> bytes:
    """A whole head, whose log holds what was taken over. records: the head of that page, which is kept from `panic`
    on."""
    head = bytearray(HEAD_SIZE)
    if records:
        head[PANIC:] = records[PANIC:HEAD_SIZE]
    log = pack_record(COUNT, identity.taken, identity.chain)
    for at, record in ((IDENTITY, pack_record(IDENTITY, FORM, *identity)), (COUNT, log)):
        head[at : at + len(record)] = record
    return bytes(head)


def proof_of(header: Header, identity: tuple[int, int, int, int]) -> bytes:
    """What is recorded of a file that was verified."""
    return _STRUCTS[VERIFIED[0]].pack(*(value & (2**64 - 1) for value in identity), header.build_id)


def text_of(error: BaseException) -> bytes:
    """An error as it is recorded."""
    if isinstance(error, MmcacheError):
        text = f"{type(error).__name__}\n{error.path or ''}\n{error.message}"
    else:
        text = f"SourceError\n\n{type(error).__name__}: {error}"
    return text.encode("utf-8", "replace")[:_TEXT]


def error_of(text: bytes) -> MmcacheError:
    """The same error as another process had. Its type comes from our own table."""
    name, path, message = (*text.decode("utf-8", "replace").split("\n", 2), "", "")[:3]
    kind = getattr(errors, name) if name in errors.__all__ else SourceError
    error: MmcacheError = kind(message, path=path or None)
    return error
