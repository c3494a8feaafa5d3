"""The end of every publication: a file that is whole but for its header takes the place of the published one.

    header  fsync  verify  (the caller keeps the file that is there)  rename  fsync dir
                                                                      ^ commit  ^ durable

For a builder (`publish`) and for an operator who goes back (`levers`). Both hold the build lock.
"""

from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ..errors import MissingFileError, MmcacheError, PublishError, UntrustedPathError, UnusableFileError
from ..format.header import HEADER_SIZE, MAGIC, VERSION, Header, Tokens, parse_header
from ..format.layout import Layout, left_out_of
from ..format.leftout import LeftOut
from ..logs import log
from ..shown import internal
from . import fs
from .names import backup_name
from .verify import verify_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "MODE",
    "BuildReport",
    "Control",
    "EmbeddingReport",
    "Published",
    "check_replaceable",
    "commit",
    "next_generation",
    "report",
]

MODE = 0o444
"""Of a published file: a stray in-place write, which would pull the pages from under every reader, fails."""


@internal("of")
@dataclass(frozen=True, slots=True)
class EmbeddingReport:
    """What a build took for the embeddings of one field: whether they were read right shows in their lengths.

    dim: numbers in each. dtype: what their bytes were read as; None for lists, arrays, text and .npy files, which say
    so themselves. records: that have one. shortest, longest: of their Euclidean lengths, if finite; None without any.

    >>> vectors = np.array([[3, 4], [0, 1], [0, 2]], "f4")
    >>> report = mmcache.build("items.mmc", records, Schema("items", embedding="v"), embeddings=vectors)
    >>> found = report.embeddings["items"]["v"]
    >>> found.dim, found.records, found.shortest, found.longest
    (2, 3, 1.0, 5.0)
    """

    dim: int
    dtype: str | None
    records: int
    shortest: float | None
    longest: float | None

    @classmethod
    def of(cls, dim: int, norms: NDArray[np.float32], missing: Sequence[int], dtype: str | None) -> EmbeddingReport:
        """norms: of all rows. missing: rows without an embedding."""
        import numpy as np

        there = np.isfinite(norms)
        there[list(missing)] = False
        known = norms[there].tolist()
        records = len(norms) - len(missing) if dim else 0
        return cls(dim, dtype, records, min(known, default=None), max(known, default=None))


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What is published now, and what this build did about it.

    records: per collection. size: of the file, bytes. build_id, sha256: of the content, hexadecimal.
    seconds: that this call took. changed: whether the published file is another than before; False when the content
    was the same, or when someone else had just built it. durable: False if the file system could not promise that
    the new name survives a power cut. format: the version of the file's format. embeddings: of each collection that has
    some, by field; empty where another process had built the file. left_out: of each collection of which rows were left
    out, how many, and the first ones.

    >>> report = mmcache.build("items.mmc", records, Schema("items"))
    >>> report.generation, dict(report.records), report.changed, report.durable, len(report.sha256)
    (1, {'items': 3}, True, True, 64)
    """

    path: str
    generation: int
    records: Mapping[str, int]
    size: int
    build_id: str
    sha256: str
    seconds: float
    changed: bool
    durable: bool = True
    format: str = ".".join(map(str, VERSION))
    embeddings: Mapping[str, Mapping[str, EmbeddingReport]] = field(default_factory=dict)
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)


class Control(Protocol):
    """What publishing asks of a control page, and tells it."""

    @property
    def generation(self) -> int:
        """The last that was announced; 0 for none."""
        ...

    def tokens(self) -> Tokens: ...
    def tokens_as_of(self, read_ns: int, current: Header | None) -> Tokens: ...
    def begin(self) -> None: ...
    def end(self) -> None: ...
    def failed(self, error: BaseException) -> None: ...
    def noticed(self, header: Header) -> None: ...
    def verified(self, header: Header, identity: fs.Identity, *, keep: fs.Identity | None) -> None: ...
    def published(self, layout: Layout, before: Layout | None) -> None: ...
    def revalidated(
        self, header: Header, tokens: Tokens, checked_ns: int, elapsed_ns: int, fingerprint: bytes
    ) -> bool: ...


def commit(
    directory: fs.Directory,
    file: fs.WriteFile,
    header: Header,
    *,
    control: Control | None,
    before: Layout | None,
    keeping: AbstractContextManager[None],
    begun: float,
) -> BuildReport:
    """Publish a file that lacks only its header.

    before: what the control page is to compare it with. keeping: is entered once the new file is verified and left
    once it has its name; it keeps what has the name until then. begun: by time.monotonic().
    Raises PublishError, and what `keeping` raises; then the published file is as it was.
    """
    file.write(0, header.pack())
    file.seal(MODE)
    layout = _read_back(directory, file, header)
    if control is not None:  # a reader may open it from the moment on at which it has its name
        control.verified(header, file.identity(), keep=fs.identity_of(directory.path))
    with keeping:
        directory.rename(file.name or "", directory.name)
        file.published()
    durable = _sync(directory)
    if control is not None:
        control.published(layout, before)
    return report(directory, layout, begun, changed=True, durable=durable)


def _read_back(directory: fs.Directory, file: fs.WriteFile, header: Header) -> Layout:
    """Open the new file as a reader would and verify all of it: what is published is known to be readable."""
    try:
        written = directory.read(file.name or "")
        try:
            layout = verify_bytes(written.read, written.size, digests=False)
        finally:
            written.close()
    except MmcacheError as error:
        raise PublishError(
            f"the new file did not read back as written ({error}); the published file is unchanged", path=directory.path
        ) from None
    if layout.header != header:
        raise PublishError(
            "another file stood in the place of the new one; the published file is unchanged", path=directory.path
        )
    return layout


def _sync(directory: fs.Directory) -> bool:
    """Make the rename durable. It cannot be taken back, so a failure is told, not raised."""
    try:
        directory.sync()
    except PublishError as error:
        log.warning("published, but not known to be durable: %s", error, extra={"event": "not_durable"})
        return False
    return True


def report(
    directory: fs.Directory, layout: Layout, begun: float, *, changed: bool, durable: bool = True
) -> BuildReport:
    return BuildReport(
        path=directory.path,
        generation=layout.header.generation,
        records={name: collection.n for name, collection in layout.collections.items()},
        size=layout.header.file_size,
        build_id=layout.header.build_id.hex(),
        sha256=layout.header.sha256.hex(),
        seconds=time.monotonic() - begun,
        changed=changed,
        durable=durable,
        format=".".join(map(str, layout.header.version)),
        left_out=left_out_of(layout),
    )


def check_replaceable(directory: fs.Directory, name: str) -> bool:
    """Whether there is a file, which is a cache file: a mistyped path replaces no database.

    A file that is empty, begins with zeros or has up to two wrong bytes in its magic may be one that was damaged.
    Raises UntrustedPathError for any other.
    """
    try:
        file = directory.read(name)
    except MissingFileError:
        return False
    with contextlib.closing(file):
        head = file.read(0, len(MAGIC))
    if any(head) and sum(map(operator.eq, head, MAGIC)) < len(MAGIC) - 2:
        raise UntrustedPathError(
            f"is not an mmcache file (it begins with {head!r}), and is left alone: use another path, or remove it",
            path=file.path,
        )
    return True


class Published(NamedTuple):
    """The published file as it was found. layout: None unless every byte of it passes its checksum."""

    layout: Layout | None
    identity: fs.Identity | None

    @classmethod
    def of(cls, directory: fs.Directory) -> Published:
        """O(file): it is read once."""
        try:
            file = directory.read(directory.name)
            try:
                return cls(verify_bytes(file.read, file.size, digests=False), file.identity)
            finally:
                file.close()
        except UnusableFileError:
            return cls(None, fs.identity_of(directory.path))

    def is_there(self, directory: fs.Directory) -> bool:
        """Whether it was not written since."""
        return fs.identity_of(directory.path) == self.identity


_FURTHEST: Final = 2**20
"""Generations that a page may be ahead of file and backup: one that claims more is wrong."""


def next_generation(directory: fs.Directory, announced: int) -> int:
    """One more than any generation that a reader can have seen."""
    found = _next_of_files(directory)
    return max(found, announced + 1) if announced < found + _FURTHEST else found


def _next_of_files(directory: fs.Directory) -> int:
    """One more than the published generation.

    The header alone tells, even of a file that is damaged behind it. Where not even that can be read, the backup is
    of the generation before the lost one. A file that is there and that the system does not let us read now could be
    of any generation: raises PublishError.
    """
    for name, step in ((directory.name, 1), (backup_name(directory.name), 2)):
        try:
            file = directory.read(name)
            try:
                return parse_header(file.read(0, HEADER_SIZE), file.size, older=True).generation + step
            finally:
                file.close()
        except UnusableFileError as error:
            if error.cause == UnusableFileError.cause:
                raise PublishError(
                    f"{name!r} {error.message}, so its generation is unknown; the published file is unchanged",
                    path=directory.path,
                ) from None
    return 1
