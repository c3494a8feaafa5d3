"""`Snapshot`: one file, opened, mapped and never trusted blindly.

Opening reads header, table and meta with `pread` and checks them; after that everything is read in place through
one read-only shared map. Nothing is decoded or copied that grows with the file. `collection` says what is verified
when.

Call grammar: open (read | verify)* close. After close reads raise ClosedError, and arrays handed out stay valid.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, Protocol, Self, TypeVar, cast
from weakref import WeakValueDictionary

from xxhash import xxh3_64_intdigest

from ..additive import seen_in
from ..errors import ClosedError, CorruptFileError, GenerationGoneError, UnusableFileError, wrong_checksum
from ..format.header import IDS, INDEX, ROWS, Header
from ..format.keys import Key
from ..format.layout import CollectionLayout, Layout, validate
from ..query import Term
from ..schema import Schema
from ..shown import internal, made_here
from ..text import ago, bytes_of, html_of
from .blocks import Blocks
from .bykey import First
from .collection import FileCollection
from .fs import Identity, ReadFile
from .lookup import DirtyError
from .mapped import Mapped
from .names import backup_name
from .readable import Collection, EmbeddingRef
from .record import Record
from .selection import Selection

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from .expiring import Expired

    _Parts = tuple[ReadFile, Layout, dict[str, "FileCollection"], bytes | None]

__all__ = [
    "Collection",
    "CollectionRef",
    "DirtyError",
    "EmbeddingRef",
    "FileCollection",
    "Record",
    "Selection",
    "Snapshot",
    "UnverifiedError",
]

AUTO_FULL_BYTES = 64 * 2**20
"""verify="auto" checksums files up to this size whole at open, which takes a few ms in the page cache."""

T = TypeVar("T")
Verify = Literal["auto", "full", "lazy"]
Access = Literal["mmap", "copy"]


class UnverifiedError(Exception):
    """The file was not verified on this machine since it started, and opening it now would take a while."""


class CollectionRef(NamedTuple):
    """Which collection of which generation, for another process: there it stands in for the collection."""

    path: str
    name: str
    generation: int
    build_id: bytes

    def collection(self) -> FileCollection:
        """Mapped once in a process, while anybody uses it; the last one stays. Raises GenerationGoneError."""
        found = _arrived.get(self)
        if found is None or found.file.closed:
            found = _arrived[self] = self._open()  # two threads may, and one of the two maps is dropped
        _last[:] = [found]
        return found

    def _open(self) -> FileCollection:
        found = []
        for path in (self.path, backup_name(self.path)):
            try:
                snapshot = Snapshot.open(path, verify="lazy")
            except UnusableFileError as error:
                found.append(error.cause)
                continue
            if snapshot.header.build_id == self.build_id:
                return snapshot.collection(self.name)
            found.append(f"generation {snapshot.generation}")
            snapshot.close()
        raise GenerationGoneError(
            f"expected generation {self.generation}, found {found[0]}, as backup {found[1]}: ask again for what came "
            "from it",
            path=self.path,
        )

    def ref(self) -> CollectionRef:
        return self

    def ids_at(self, rows: NDArray[np.uint32] | bytes) -> list[Key]:
        return self.collection().ids_at(rows)

    def records_at(self, rows: NDArray[np.uint32] | bytes) -> Iterator[Record]:
        return self.collection().records_at(rows)

    def embeddings_at(self, rows: NDArray[np.uint32], field: str | None = None) -> NDArray[np.float32]:
        return self.collection().embeddings_at(rows, field)

    def table_at(self, rows: NDArray[np.uint32], columns: Iterable[str] | None) -> pa.Table:
        return self.collection().table_at(rows, columns)


_arrived: WeakValueDictionary[CollectionRef, FileCollection] = WeakValueDictionary()
_last: list[FileCollection] = []


Choose = Callable[[Layout], Sequence[Schema]]


def _narrowed(layout: Layout, schemas: Sequence[Schema]) -> dict[str, CollectionLayout]:
    """What a worker sees of a file: the collections, indexes and columns that it asked for."""
    narrowed = {}
    for ours in schemas:
        found = layout.collections[ours.name]
        seen = seen_in(found.schema, ours)
        if seen != found.schema:
            shapes = found.shapes
            if ours.columns is not None and ours.columns != found.schema.columns:
                shapes = tuple(shape.narrowed(ours.columns) for shape in shapes)
            found = replace(
                found,
                schema=seen,
                shapes=shapes,
                index={field: found.index[field] for field in seen.index},
                cluster_by=found.cluster_by if found.cluster_by in seen.index else None,
            )
        narrowed[ours.name] = found
    return narrowed


class Host(Protocol):
    """Who remembers, for all processes of a machine, which file was verified."""

    def knows(self, header: Header, identity: Identity) -> bool: ...
    def verified(self, header: Header, identity: Identity) -> None: ...


@made_here
@internal("attach", "default", "expired", "file", "identity", "layout", "opened_in")
class Snapshot(First, Collection[Record]):
    """One generation of a file, with no source, no lock and no control page; a mapping of its first collection.

    Make one with `Snapshot.open`. A context manager. Safe in threads and after a fork; does not pickle, because
    the path may hold another generation by then.

    >>> with mmcache.Snapshot.open("cache.mmc") as snapshot:
    ...     snapshot.generation, snapshot["a"]["kind"], list(snapshot.collections), snapshot.metadata, snapshot.source
    (1, 'tool', ['items'], mappingproxy({}), None)
    """

    file: ReadFile
    _layout: Layout
    _collections: dict[str, FileCollection]
    _in_memory: bytes | None

    def __init__(self, *parts: object) -> None:
        if len(parts) != 4:
            raise TypeError("a Snapshot is opened by mmcache.Snapshot.open(path)")
        self.file, self._layout, self._collections, self._in_memory = cast("_Parts", parts)
        self.default = next(iter(self._collections.values()))
        """The first collection, which the snapshot itself is a mapping of."""
        self._closed = False
        self.opened_in = 0.0
        """Seconds that opening took."""
        self.expired: dict[str, Expired] = {}
        """By collection, what was found last of records whose end has passed."""

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: Verify = "auto", access: Access = "mmap") -> Self:
        """Open a file.

        verify: what is checksummed now, beyond header, table and meta, which always are. "full": every byte. "lazy":
        nothing; a block of 64 KiB is when it is first touched. "auto": every byte of a file up to 64 MB, and of a
        larger one ids, rows and indexes, the rest when touched.
        access: "mmap" shares the pages with every process; "copy" reads the file into memory of our own, checksummed
        in full, for file systems whose files may change under a map.

        Raises MissingFileError, CorruptFileError, IncompatibleFormatError, UntrustedPathError, or their base
        UnusableFileError for a file that the system does not let us read.

        >>> snapshot = mmcache.Snapshot.open("cache.mmc", verify="full")
        >>> snapshot.path, snapshot.header.version[0], snapshot.created < time.time()
        ('cache.mmc', 2, True)
        """
        if verify not in ("auto", "full", "lazy"):
            raise ValueError(f"verify must be 'auto', 'full' or 'lazy', not {verify!r}")
        if access not in ("mmap", "copy"):
            raise ValueError(f"access must be 'mmap' or 'copy', not {access!r}")
        return cls.attach(path, verify, access, None)

    @classmethod
    def attach(
        cls,
        path: str | os.PathLike[str],
        verify: Verify,
        access: Access,
        host: Host | None,
        *,
        known: bool = False,
        choose: Choose | None = None,
    ) -> Self:
        """`open`, with a host that knows what was verified on this machine already: "auto" then checksums nothing.

        known: raises UnverifiedError where anything but header, table and meta would have to be read. choose: gives the
        schemas that are to be seen, the default first; may raise IncompatibleFormatError.
        """
        return cls._from(ReadFile(os.fspath(path)), verify, access, host, only_known=known, choose=choose)

    @classmethod
    def _from(
        cls,
        file: ReadFile,
        verify: Verify,
        access: Access,
        host: Host | None = None,
        *,
        only_known: bool = False,
        choose: Choose | None = None,
    ) -> Self:
        begun = time.perf_counter()
        try:
            layout = validate(file.read, file.size)
            seen = layout.collections if choose is None else _narrowed(layout, choose(layout))
            known = verify == "auto" and host is not None and host.knows(layout.header, file.identity)
            if only_known and not (access == "mmap" and (known or verify == "lazy")):
                raise UnverifiedError
            in_memory = _whole(file) if access == "copy" else None
            buffer: Any = file.map() if in_memory is None else in_memory
            view = memoryview(buffer)
            blocks = None if known and access == "mmap" else Blocks(view, layout)
            if blocks is not None:
                if verify == "full" or access == "copy" or (verify == "auto" and file.size <= AUTO_FULL_BYTES):
                    blocks.verify_all()
                    blocks = None
                    if host is not None:
                        host.verified(layout.header, file.identity)
                elif verify == "auto":
                    _verify_indexes(layout, view, blocks)
            ids_verified = blocks is None or verify == "auto"
            generation, build_id = layout.header.generation, layout.header.build_id
            path = os.path.abspath(file.path)
            collections = {
                name: FileCollection(
                    Mapped(file.path, buffer, view, described, blocks, ids_verified=ids_verified),
                    CollectionRef(path, name, generation, build_id),
                )
                for name, described in seen.items()
            }
        except UnverifiedError:
            file.close()
            raise
        except UnusableFileError as error:
            file.close()
            error.path = error.path or file.path
            raise
        snapshot = cls(file, layout, collections, in_memory)
        snapshot.opened_in = time.perf_counter() - begun
        return snapshot

    # --- what it is

    @property
    def path(self) -> str:
        """As it was opened."""
        return self.file.path

    @property
    def identity(self) -> Identity:
        """Device, inode, size and time of the last write (ns) of the file that was opened."""
        return self.file.identity

    @property
    def header(self) -> Header:
        """Format version, sizes, build id, SHA-256 and times, as they stand in the file."""
        return self._layout.header

    @property
    def generation(self) -> int:
        """Grows by one per publish."""
        return self._layout.header.generation

    @property
    def created(self) -> float:
        """Wall-clock time (seconds since the epoch) at which the build began to read the source."""
        return self._layout.header.created_ns / 1e9

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the build was given as metadata=."""
        return MappingProxyType(self._layout.metadata)

    @property
    def source(self) -> Mapping[str, Any] | None:
        """The source's spec, as plain data; None if the file was built from records in memory."""
        return None if self._layout.source is None else MappingProxyType(self._layout.source)

    @property
    def layout(self) -> Layout:
        """Sections and everything else that `validate` found."""
        return self._layout

    @property
    def schema(self) -> Schema:
        """Of the first collection."""
        return self.default.schema

    @property
    def collections(self) -> Mapping[str, FileCollection]:
        """Every collection by name, the default one first."""
        return MappingProxyType(self._collections)

    def collection(self, name: str) -> FileCollection:
        """A collection by name. Raises KeyError naming those that there are.

        >>> snapshot.collection("items").norms[:2].tolist()
        [1.0, 1.0]
        """
        try:
            return self._collections[name]
        except KeyError:
            raise KeyError(f"no collection {name!r}; there are: {', '.join(self._collections)}") from None

    # --- the first collection

    def __iter__(self) -> Iterator[Key]:
        return iter(self.default)

    def __len__(self) -> int:
        return len(self.default)

    def get_many(self, keys: Iterable[Key], *, embeddings: bool = False) -> list[Record | None]:
        """See `Collection.get_many`."""
        return self.default.get_many(keys, embeddings=embeddings)

    def values(self) -> ValuesView[Record]:
        return self.default.values()

    def items(self) -> ItemsView[Key, Record]:
        return self.default.items()

    def where(self, terms: Mapping[str, object] | None = None, /, **more: object) -> Selection:
        """See `Collection.where`."""
        return self.default.where(terms, **more)

    def terms(self, field: str) -> dict[Term, int]:
        """See `Collection.terms`."""
        return self.default.terms(field)

    def get_embeddings(self, keys: Iterable[Key], field: str | None = None) -> NDArray[np.float32]:
        """See `Collection.get_embeddings`."""
        return self.default.get_embeddings(keys, field)

    def embedding_ref(self, key: Key, field: str | None = None) -> EmbeddingRef:
        """See `Collection.embedding_ref`."""
        return self.default.embedding_ref(key, field)

    def to_arrow(self, columns: Iterable[str] | None = None) -> pa.Table:
        """See `Collection.to_arrow`."""
        return self.default.to_arrow(columns)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """See `Collection.__arrow_c_stream__`."""
        return self.default.__arrow_c_stream__(requested_schema)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """See `Collection.embeddings`."""
        return self.default.embeddings

    def embeddings_of(self, field: str) -> NDArray[np.float32]:
        """See `Collection.embeddings_of`."""
        return self.default.embeddings_of(field)

    @property
    def has_embedding(self) -> NDArray[np.bool_]:
        """See `Collection.has_embedding`."""
        return self.default.has_embedding

    def has_embedding_of(self, field: str) -> NDArray[np.bool_]:
        """See `Collection.has_embedding_of`."""
        return self.default.has_embedding_of(field)

    # --- verification

    def verify(self, *, deep: bool = False) -> None:
        """Recompute every checksum over every byte, padding included. O(file), with 1 MiB of memory.

        deep: also decode every record, find it by its key, and check every posting list. O(n).
        Raises CorruptFileError naming what is wrong.

        >>> snapshot.verify(deep=True)
        """
        from .deep import verify_deep  # which few readers need
        from .verify import verify_bytes

        if self._closed:
            raise ClosedError("the snapshot was closed: open it again with Snapshot.open(path)", path=self.path)
        try:
            if self._in_memory is None:
                verify_bytes(self.file.read, self.file.size)
            else:
                data = self._in_memory
                verify_bytes(lambda offset, length: data[offset : offset + length], len(data))
            if deep:
                for collection in self._collections.values():
                    verify_deep(collection)
        except UnusableFileError as error:
            error.path = error.path or self.path
            raise

    # --- lifetime

    def close(self) -> None:
        """Let go of the file. Arrays handed out stay valid, and keep it mapped, until they are dropped.

        >>> vectors = snapshot.embeddings
        >>> snapshot.close()
        >>> vectors.shape
        (3, 2)
        """
        if not self._closed:
            self._closed = True
            for collection in self._collections.values():
                collection.close()
            self.file.close()
            self._in_memory = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Snapshot does not pickle, because its path may hold another generation when it arrives: "
            f"send the path and use Snapshot.open({self.path!r}), or send a Cache"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: one line of facts, and a table of the collections."""
        facts = {
            "generation": f"{self.generation:,}",
            "built": ago(time.time() - self.created),
            "size": bytes_of(self.header.file_size),
            "format": ".".join(map(str, self.header.version)),
        }
        rows = [
            (
                collection.name,
                f"{len(collection):,}",
                str(collection.dim or "-"),
                ", ".join(collection.schema.index) or "-",
                bytes_of(sum(section.length for section in collection.layout.sections.values())),
            )
            for collection in self._collections.values()
        ]
        return html_of(self.path, facts, ("collection", "records", "dim", "indexes", "size"), rows)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}: {len(collection)}" for name, collection in self._collections.items())
        return f"<Snapshot {self.path!r}, generation {self.generation}, {counts}>"


def _whole(file: ReadFile) -> bytes:
    data = file.read(0, file.size)
    if len(data) != file.size:
        raise CorruptFileError(f"expected {file.size} bytes, found {len(data)}: it shrinks while read")
    return data


def _verify_indexes(layout: Layout, view: memoryview, blocks: Blocks) -> None:
    """Checksum the sections that look-ups go through: ids, rows and indexes."""
    for section in layout.sections.values():
        if section.kind in (IDS, ROWS, INDEX):
            if (found := xxh3_64_intdigest(view[section.offset : section.end])) != section.checksum:
                raise wrong_checksum(section.name, section.checksum, found)
            blocks.mark(section)
