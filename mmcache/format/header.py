"""The fixed header and the section table.

    0 header, 256 bytes | 256 section table, 96 bytes a row | sections ... | end == header.file_size

The header says how long the file is, the table covers every byte of it, and the build id is a hash of the
table: header -> table -> sections is a chain of checksums without a gap. `parse_header` and `parse_table`
check in the order cheapest and most telling first, and name what was expected and what was found.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from ..errors import CorruptFileError, IncompatibleFormatError, wrong_checksum

MAGIC: Final = b"\x89MMC\r\n\x1a\n"
"""As PNG's: a high bit, CR LF, end-of-file and LF, so that a text-mode transfer or a 7-bit channel shows at once."""

VERSION: Final = (2, 0, 0)
"""Of the format, not of the package. Another major: refused. A newer minor: read."""

HEADER_SIZE: Final = 256
TABLE_ROW_SIZE: Final = 96
ALIGN: Final = 64
"""Of every section: a cache line, and what numpy and SIMD loads like best."""
PAGE: Final = 4096
"""Of records and embeddings, so that the kernel can be advised about them apart from the rest."""
BLOCK: Final = 65_536
"""Bytes under one checksum of the `blocks` section."""
LEAF: Final = 131_072
"""Bytes under one SHA-256 of the `chunks` section, counted from the start of each section."""
DIGEST: Final = 32
"""Bytes of a SHA-256."""
MAX_SECTIONS: Final = 4096

MAX_GENERATION: Final = 2**63 - 1

PARTLY: Final = b"\xff" * 8
"""The end of a fingerprint of several sources of which one cannot tell whether it has changed."""

REQUIRED: Final = 1
"""Section flag: a reader that does not know this kind must refuse the file."""
DERIVED: Final = 2
"""Section flag: the section can be made again from the others."""

META, IDS, ROWS, RECORDS, INDEX, EMBEDDINGS, NORMS, PRESENCE, BLOCKS = range(1, 10)
CHUNKS, SKETCH = 11, 12  # 10 is not used
KINDS: Final = {
    META: "meta",
    IDS: "ids",
    ROWS: "rows",
    RECORDS: "records",
    INDEX: "index",
    EMBEDDINGS: "embeddings",
    NORMS: "norms",
    PRESENCE: "presence",
    BLOCKS: "blocks",
    CHUNKS: "chunks",
    SKETCH: "sketch",
}
ALIGNMENT: Final = {RECORDS: PAGE, EMBEDDINGS: PAGE}
OPTIONAL: Final = frozenset({NORMS, SKETCH})
"""Kinds that a reader need not understand."""
MADE_AGAIN: Final = frozenset({IDS, INDEX, NORMS, BLOCKS, CHUNKS, SKETCH})
"""Kinds that follow from the other sections."""

_HEADER = struct.Struct("<8s 3H2x II 5Q 16s 32s 32s 4Q 72x Q")
_ROW = struct.Struct("<32s II 5Q 16s")
_CHECKED = HEADER_SIZE - 8
_RESERVED = 176
assert _HEADER.size == HEADER_SIZE
assert _ROW.size == TABLE_ROW_SIZE


def align(offset: int, alignment: int = ALIGN) -> int:
    """The first multiple of `alignment` (a power of two) that is not below `offset`."""
    return (offset + alignment - 1) & -alignment


def flags_of(kind: int) -> int:
    """The flags of a section of a known kind."""
    return (0 if kind in OPTIONAL else REQUIRED) | (DERIVED if kind in MADE_AGAIN else 0)


class Tokens(NamedTuple):
    """The control page's state when a builder captured it: the header's `soft`, `hard`, `ring` and `page`."""

    soft: int = 0
    hard: int = 0
    ring: int = 0
    page: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """The first 256 bytes.

    generation: grows by one per publish. created_ns: wall clock when the source was about to be read, so that
    the file holds everything committed before it. elapsed_ns: how long the build took. build_id: xxh3_128 of the
    section table; equal for equal content. sha256: of the section table and the `chunks` section. fingerprint: the
    source's, zeros if it has none. soft, hard, ring, page: what the control page said before the source was read, and
    which page that was; 0 where there was none.
    """

    file_size: int
    section_count: int
    generation: int
    created_ns: int
    elapsed_ns: int
    build_id: bytes
    sha256: bytes
    fingerprint: bytes = bytes(32)
    soft: int = 0
    hard: int = 0
    ring: int = 0
    page: int = 0
    version: tuple[int, int, int] = VERSION

    @property
    def table_size(self) -> int:
        return self.section_count * TABLE_ROW_SIZE

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.soft, self.hard, self.ring, self.page)

    def pack(self) -> bytes:
        """256 bytes, checksum included."""
        body = _HEADER.pack(
            MAGIC,
            *self.version,
            0,
            self.section_count,
            HEADER_SIZE,
            self.file_size,
            self.generation,
            self.created_ns,
            self.elapsed_ns,
            self.build_id,
            self.sha256,
            self.fingerprint,
            self.soft,
            self.hard,
            self.ring,
            self.page,
            0,
        )[:_CHECKED]
        return body + struct.pack("<Q", xxh3_64_intdigest(body))


def parse_header(data: bytes, actual_size: int, *, older: bool = False) -> Header:
    """Check and unpack the first 256 bytes of a file of `actual_size` bytes."""
    if not MAGIC.startswith(data[: len(MAGIC)]):
        raise _corrupt("header", f"not an mmcache file: expected magic {MAGIC!r}, found {data[: len(MAGIC)]!r}")
    if len(data) < HEADER_SIZE:
        raise _corrupt("header", f"expected at least {HEADER_SIZE} bytes, found {len(data)}")
    data = data[:HEADER_SIZE]
    _, major, minor, patch, flags, section_count, table_offset, file_size, *others, checksum = _HEADER.unpack(data)
    header = Header(*[file_size, section_count, *others, (major, minor, patch)])  # in the order of its fields
    if major > VERSION[0] or (major < VERSION[0] and not older):
        raise IncompatibleFormatError(
            f"format {major}.{minor}.{patch}, and this version reads {VERSION[0]}.x: "
            "rebuild the file with it, or upgrade mmcache",
            found=f"{major}.{minor}.{patch}",
            supported=".".join(map(str, VERSION)),
        )
    if (found := xxh3_64_intdigest(data[:_CHECKED])) != checksum:
        raise wrong_checksum("header", checksum, found)
    if flags:
        raise IncompatibleFormatError(
            f"features {flags:#x} that a reader must understand are unknown to this version: upgrade mmcache",
            found=f"{major}.{minor}.{patch} with flags {flags:#x}",
            supported=".".join(map(str, VERSION)),
        )
    if file_size != actual_size:
        raise _corrupt("header", f"expected a file of {file_size} bytes, found {actual_size}: truncated or extended")
    if table_offset != HEADER_SIZE:
        raise _corrupt("header", f"expected the section table at {HEADER_SIZE}, found {table_offset}")
    if not 1 <= section_count <= MAX_SECTIONS:
        raise _corrupt("header", f"expected 1 to {MAX_SECTIONS} sections, found {section_count}")
    if HEADER_SIZE + section_count * TABLE_ROW_SIZE > file_size:
        raise _corrupt("header", f"the section table of {section_count} rows does not fit into {file_size} bytes")
    if not 0 < header.generation <= MAX_GENERATION:
        raise _corrupt("header", f"generation {header.generation} was never published")
    if major == VERSION[0] and minor <= VERSION[1] and (data[14:16] != b"\0\0" or any(data[_RESERVED:_CHECKED])):
        raise _corrupt("header", "reserved bytes are not zero")
    return header


@dataclass(frozen=True, slots=True)
class Section:
    """One row of the section table: a named extent of the file.

    offset: absolute. payload: where, from `offset`, the first array of a msgpack-framed section begins; else 0.
    count: slots, rows, terms or blocks, by kind. checksum: xxh3_64 of the `length` bytes.
    """

    name: str
    kind: int
    flags: int
    offset: int
    length: int
    payload: int
    count: int
    checksum: int

    @property
    def end(self) -> int:
        return self.offset + self.length

    def pack(self) -> bytes:
        return _ROW.pack(
            self.name.encode(),
            self.kind,
            self.flags,
            self.offset,
            self.length,
            self.payload,
            self.count,
            self.checksum,
            b"",
        )


def build_id_of(table: bytes) -> bytes:
    """The build id: xxh3_128 of the section table, and so of every section's name, place, length and digest."""
    return xxh3_128_digest(table)


def sha256_of(table: bytes, chunks: bytes) -> bytes:
    """The header's SHA-256: of the section table and of the digests of all sections, and so of the whole content."""
    from hashlib import sha256  # which a reader does not need

    return sha256(table + chunks).digest()


def parse_table(header: Header, data: bytes) -> dict[str, Section]:
    """Check and unpack the section table; the sections by name, in file order.

    Sections are sorted, aligned, do not overlap, and cover the file up to padding of less than a page; the
    last one ends where the file ends.
    """
    if len(data) != header.table_size:
        raise _corrupt("table", f"expected {header.table_size} bytes, found {len(data)}")
    if (found := build_id_of(data)) != header.build_id:
        raise wrong_checksum("table", header.build_id, found)
    sections: dict[str, Section] = {}
    end = HEADER_SIZE + len(data)
    is_ours = header.version[:2] <= VERSION[:2]
    for raw_name, kind, flags, offset, length, payload, count, checksum, reserved in _ROW.iter_unpack(data):
        try:
            name = raw_name.rstrip(b"\0").decode()
        except UnicodeDecodeError:
            raise _corrupt("table", f"section name {raw_name!r} is not UTF-8") from None
        if not name or name in sections:
            raise _corrupt("table", f"section name {name!r} is empty or stands twice")
        if kind not in KINDS and flags & REQUIRED:
            raise IncompatibleFormatError(
                f"section {name!r} is of kind {kind}, which a reader must understand "
                "and this version does not: upgrade mmcache",
                found=".".join(map(str, header.version)),
                supported=".".join(map(str, VERSION)),
            )
        if is_ours and (any(reserved) or (kind in KINDS and flags != flags_of(kind))):
            raise _corrupt("table", f"section {name!r}: flags {flags:#x} or reserved bytes are none of a writer's")
        if offset % ALIGNMENT.get(kind, ALIGN):
            raise _corrupt(name, f"offset {offset} is not aligned to {ALIGNMENT.get(kind, ALIGN)}")
        if not end <= offset < end + PAGE:
            raise _corrupt(name, f"expected to begin within {PAGE} bytes after {end}, found {offset}")
        if length > header.file_size - offset or payload > length:
            raise _corrupt(name, f"{length} bytes from {offset} reach beyond the file's {header.file_size}")
        end = offset + length
        sections[name] = Section(name, kind, flags, offset, length, payload, count, checksum)
    if end != header.file_size:
        raise _corrupt("table", f"the sections end at {end}, the file at {header.file_size}")
    return sections


def _corrupt(section: str, reason: str) -> CorruptFileError:
    return CorruptFileError(f"section {section!r}: {reason}", section=section)


def is_telling(fingerprint: bytes) -> bool:
    """Whether a source that has this fingerprint again has not changed. Not one of zeros, which is always the same."""
    return any(fingerprint) and not fingerprint.endswith(PARTLY)


def wrong_block(block: int, expected: int, found: int) -> CorruptFileError:
    """For 64 KiB that do not match their checksum."""
    text = f"the 64 KiB from {block * BLOCK} on do not match their checksum"
    return wrong_checksum("blocks", expected, found, text)
