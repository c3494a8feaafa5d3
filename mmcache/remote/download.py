"""Bringing a release's file to this machine: chunk by chunk, each proved before it is written.

    table and chunks   [seeds: dead downloads, the published file, its backup]   [delta]   ranges of what is missing

The root of the digest tree stands in the release. It proves the section table and the digests of all chunks, and these
prove each chunk, wherever it comes from. So whatever a temporary file holds is right, a download goes on where another
died, and a chunk that this machine has already is not transferred.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Final, NamedTuple, Protocol

from ..errors import CorruptFileError, MmcacheError, StoreError, UnusableFileError, wrong_checksum
from ..format.header import DIGEST, HEADER_SIZE, LEAF, Section, parse_header, parse_table, sha256_of
from ..format.layout import CHUNKS_NAME, leaf_count, validate
from ..logs import log
from ..progress import Step
from ..storage import fs
from ..storage.names import backup_name
from ..store import Store
from .delta import apply
from .entries import File, blob_path

__all__ = ["Chunk", "Transferred", "download"]

_TRIES: Final = 4
"""Attempts in a row that bring nothing new."""
_PAUSE: Final = 0.5


class Chunk(NamedTuple):
    """Up to 128 KiB of one section."""

    offset: int
    length: int
    digest: bytes


class Transferred(NamedTuple):
    """Where the bytes of a download came from: the store's blob, a delta, and this machine."""

    fetched: int
    delta: int
    local: int


class Target(Protocol):
    """What a download fills: `fs.WriteFile`."""

    def write(self, offset: int, data: bytes) -> None: ...
    def read(self, offset: int, length: int) -> bytes: ...


class _Tree(NamedTuple):
    """table, chunks: bytes of the sections that prove the others."""

    table: bytes
    sections: Mapping[str, Section]
    digests: bytes

    def chunks(self) -> Iterator[Chunk]:
        at = 0
        for section in self.sections.values():
            if section.name == CHUNKS_NAME:
                return
            for offset in range(section.offset, section.end, LEAF):
                yield Chunk(offset, min(LEAF, section.end - offset), self.digests[at : at + DIGEST])
                at += DIGEST


def download(store: Store, file: File, directory: fs.Directory, step: Step) -> tuple[fs.WriteFile, Transferred]:
    """A temporary file with all of a release's file but its header; the caller's to publish or close.

    The caller holds the build lock, where locks work; where
    they do not, another process may do the same, and each has a temporary file of its own.
    Raises StoreError where the store fails; then what is there stays for the next attempt. CorruptFileError for a blob
    that is not what the release says, PublishError for what the system refuses: then nothing stays.
    """
    tree = _tree(store, file)
    left = _leftovers(directory)
    target = directory.create()
    try:
        target.allocate(file.size)
        work = _Download(store, file, target, list(tree.chunks()), step)
        work.write_tree(tree)
        for name in left:
            work.take_same_places(directory, name)
        for name in left:
            directory.unlink(name)
        places = directory.name, backup_name(directory.name)
        work.take_delta(directory, places, tree)
        for name in places:
            work.take_equal(directory, name)
        work.fetch()
    except StoreError:
        target.leave()
        target.close()
        raise
    except BaseException:
        target.close()
        raise
    return target, work.transferred()


def _tree(store: Store, file: File) -> _Tree:
    header, name = file.header, blob_path(file.blob)
    where = f"{store.url}/{name}"
    table = _small(store, name, HEADER_SIZE, HEADER_SIZE + header.table_size)
    try:
        sections = parse_table(header, table)
        chunks = sections.get(CHUNKS_NAME)
        if chunks is None or list(sections)[-1] != CHUNKS_NAME:
            raise CorruptFileError("its last section is not the digests of the others", section=CHUNKS_NAME)
        lengths = [section.length for section in sections.values() if section is not chunks]
        if chunks.length != DIGEST * leaf_count(lengths):
            raise CorruptFileError("it has not a digest for each chunk", section=CHUNKS_NAME)
        digests = _small(store, name, chunks.offset, chunks.end)
        if (found := sha256_of(table, digests)) != header.sha256:
            text = "its digests are not those of the release"
            raise wrong_checksum(CHUNKS_NAME, header.sha256, found, text)
    except UnusableFileError as error:
        error.path = where
        raise
    return _Tree(table, sections, digests)


def _small(store: Store, name: str, begin: int, end: int) -> bytes:
    return b"".join(store.pieces(name, begin, end))


def _leftovers(directory: fs.Directory) -> list[str]:
    """Names of temporary files of dead writers, or of living ones where locks do not work."""
    names = [path.rpartition("/")[2] for path in fs.leftovers(directory.path)]
    found = []
    for name in names:
        with contextlib.suppress(MmcacheError):
            directory.check_ours(name)
            found.append(name)
    return found


class _Download:
    """One file being filled. missing: chunks that are not in it yet, in the order of the file."""

    def __init__(self, store: Store, file: File, target: Target, chunks: list[Chunk], step: Step) -> None:
        self.store = store
        self.file = file
        self.missing = chunks
        self._target = target
        self._step = step
        self._sizes = {"fetched": 0, "delta": 0, "local": 0}

    def transferred(self) -> Transferred:
        return Transferred(**self._sizes)

    def write_tree(self, tree: _Tree) -> None:
        self._target.write(HEADER_SIZE, tree.table)
        last = tree.sections[CHUNKS_NAME]
        self._target.write(last.offset, tree.digests)
        self._sizes["fetched"] += len(tree.table) + len(tree.digests)

    # --- from this machine

    def take_same_places(self, directory: fs.Directory, name: str) -> None:
        """What a dead download left, each chunk at its place."""
        with contextlib.suppress(UnusableFileError), contextlib.closing(directory.read(name)) as seed:
            self._take_local(seed, {chunk.digest: chunk.offset for chunk in self.missing})

    def take_equal(self, directory: fs.Directory, name: str) -> None:
        """Chunks of a file of this format, wherever they are in it."""
        with contextlib.suppress(UnusableFileError), contextlib.closing(directory.read(name)) as seed:
            layout = validate(seed.read, seed.size)
            tree = _Tree(b"", layout.sections, seed.read(layout.chunks.offset, layout.chunks.length))
            self._take_local(seed, {chunk.digest: chunk.offset for chunk in tree.chunks()})

    def take_delta(self, directory: fs.Directory, names: Iterable[str], tree: _Tree) -> None:
        """What a delta makes of a file that is here, where it is much smaller than what is missing."""
        wanted = sum(chunk.length for chunk in self.missing)
        offered = {delta.base: delta for delta in self.file.deltas if 2 * delta.size < wanted}
        for name in names if offered else ():
            # What cannot be had, or is no delta, costs the whole file, and no more.
            with contextlib.suppress(UnusableFileError, StoreError), contextlib.closing(directory.read(name)) as seed:
                header = parse_header(seed.read(0, HEADER_SIZE), seed.size)
                delta = offered.get(header.sha256.hex())
                if delta is not None:
                    data = _small(self.store, blob_path(delta.name), 0, delta.size)
                    self._sizes["delta"] += len(data)
                    digests = header.sha256, self.file.header.sha256
                    apply(data, seed, tree.sections, self._target, digests)
                    self._keep_proved()
                    return

    def _keep_proved(self) -> None:
        """Of the chunks that were written without proof."""
        left = []
        for chunk in self.missing:
            if sha256(self._target.read(chunk.offset, chunk.length)).digest() == chunk.digest:
                self._sizes["local"] += chunk.length
            else:
                left.append(chunk)
        self.missing = left

    def _take_local(self, seed: fs.ReadFile, places: Mapping[bytes, int]) -> None:
        """places: digest -> where such a chunk may be."""
        left = []
        for chunk in self.missing:
            offset = places.get(chunk.digest)
            data = b"" if offset is None or offset >= seed.size else seed.read(offset, chunk.length)
            if not self.put(chunk, data, "local"):
                left.append(chunk)
        self.missing = left

    def put(self, chunk: Chunk, data: bytes, origin: str) -> bool:
        """Write a chunk, if this is it."""
        if len(data) != chunk.length or sha256(data).digest() != chunk.digest:
            return False
        self._target.write(chunk.offset, data)
        self._sizes[origin] += len(data)
        self._step("download", sum(self._sizes.values()), self.file.size)
        return True

    # --- from the store

    def fetch(self) -> None:
        """What is missing, in ranges; again from where the last attempt ended."""
        failures = 0
        damaged: Chunk | None = None
        while self.missing:
            before = len(self.missing)
            try:
                found = self._fetch_run()
            except StoreError as error:
                failures = 1 if len(self.missing) < before else failures + 1
                if failures >= _TRIES:
                    raise
                log.info("%s", str(error), extra={"event": "download_interrupted", "path": self.store.url})
                time.sleep(_PAUSE * 2 ** (failures - 1))
                continue
            failures = 0
            if found is not None and found == damaged:
                raise CorruptFileError(
                    f"the {found.length} bytes from {found.offset} on are not those of the release, twice in a row",
                    path=f"{self.store.url}/{blob_path(self.file.blob)}",
                    expected=found.digest.hex(),
                )
            damaged = found

    def _fetch_run(self) -> Chunk | None:
        """The chunks that follow each other from the first missing one on; the first of them that arrived damaged."""
        run = [self.missing[0]]
        for chunk in self.missing[1:]:
            if chunk.offset - (run[-1].offset + run[-1].length) >= LEAF:
                break
            run.append(chunk)
        end = run[-1].offset + run[-1].length
        pending, at = bytearray(), run[0].offset
        pieces = self.store.pieces(blob_path(self.file.blob), at, end)
        done = 0
        try:
            for chunk in run:
                data = self._next(pieces, pending, at, chunk)
                at = chunk.offset + chunk.length
                if not self.put(chunk, data, "fetched"):
                    return chunk
                done += 1
        finally:
            del self.missing[:done]
        return None

    @staticmethod
    def _next(pieces: Iterator[bytes], pending: bytearray, at: int, chunk: Chunk) -> bytes:
        """The bytes of a chunk from a stream of which `pending`, from `at` on, is not used yet."""
        end = chunk.offset + chunk.length
        while at + len(pending) < end:
            pending += next(pieces)
        with memoryview(pending) as view:
            data = bytes(view[chunk.offset - at : end - at])
        del pending[: end - at]
        return data
