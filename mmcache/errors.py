"""Every exception of mmcache, arranged by what a caller does about it.

`UnusableFileError` and what is below it mean "this file cannot answer": a cache that has a source answers
from there. Everything else reaches the caller. A missing id is a plain `KeyError`, an argument of the wrong
type a plain `TypeError`.

All of them pickle, fields included, so that they survive a process boundary.
"""

from __future__ import annotations

from typing import Literal

from .shown import internal

__all__ = [
    "BuildError",
    "ClosedError",
    "CorruptFileError",
    "GenerationGoneError",
    "IncompatibleFormatError",
    "LockTimeoutError",
    "MissingFileError",
    "MmcacheError",
    "ModelError",
    "PublishError",
    "RecallError",
    "ReleaseError",
    "SearchTimeoutError",
    "SourceError",
    "StoreError",
    "UntrustedPathError",
    "UnusableFileError",
]


class MmcacheError(Exception):
    """Base of every error that mmcache raises on its own account.

    `path` is the file it is about, or None. Subclasses may add fields; all are keyword arguments with a
    default, which is what makes them pickle.

    >>> try:
    ...     mmcache.open("nowhere.mmc")["a"]
    ... except mmcache.MmcacheError as error:
    ...     type(error).__name__, os.path.basename(error.path), error.message
    ('MissingFileError', 'nowhere.mmc', '...')
    """

    def __init__(self, message: str = "", *, path: str | None = None, **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.__dict__.update(fields)

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class UnusableFileError(MmcacheError):
    """The file cannot answer (unreadable, an I/O error, or one of the subclasses).

    `cause` is one word, as `Status.state` and counters have it.

    >>> try:
    ...     mmcache.Snapshot.open("broken.mmc")
    ... except mmcache.UnusableFileError as error:
    ...     error.cause
    'corrupt'
    """

    cause = "unreadable"


class MissingFileError(UnusableFileError, FileNotFoundError):
    """There is no file at the path.

    >>> mmcache.Snapshot.open("nowhere.mmc")
    Traceback (most recent call last):
    mmcache.errors.MissingFileError: nowhere.mmc: ...
    """

    cause = "missing"


class CorruptFileError(UnusableFileError, ValueError):
    """The bytes are not what a writer wrote. `section` names the part, where it is known.

    Of a checksum that does not match, `expected` is what the file has and `found` what its bytes give, hexadecimal.
    Both are None where the structure is wrong: then the checksums were right, or were not reached.

    >>> try:
    ...     mmcache.Snapshot.open("broken.mmc")
    ... except mmcache.CorruptFileError as error:
    ...     error.section, error.kind, error.message
    ('table', 'checksum', "section 'table': checksum does not match: expected ..., found ...")
    """

    cause = "corrupt"
    section: str | None = None
    expected: str | None = None
    found: str | None = None

    @property
    def kind(self) -> Literal["checksum", "structure"]:
        """What is wrong."""
        return "structure" if self.expected is None else "checksum"


class IncompatibleFormatError(UnusableFileError, ValueError):
    """A whole file of another major format version, or with features this version does not know.

    `found` and `supported` are version strings.

    >>> try:
    ...     mmcache.Snapshot.open("later.mmc")
    ... except mmcache.IncompatibleFormatError as error:
    ...     error.found, error.supported, error.is_older
    ('3.0.0', '2.0.0', False)
    """

    cause = "incompatible"
    found: str | None = None
    supported: str | None = None

    @property
    def is_older(self) -> bool:
        """Whether its format is of an older major version, and not of a newer one or one with unknown features."""
        if self.found is None or self.supported is None:
            return False
        return int(self.found.split(".")[0]) < int(self.supported.split(".")[0])


class UntrustedPathError(UnusableFileError, PermissionError):
    """A symlink, a special file, a foreign owner or a directory that anyone may write.

    >>> os.symlink("cache.mmc", "link.mmc")
    >>> mmcache.Snapshot.open("link.mmc")
    Traceback (most recent call last):
    mmcache.errors.UntrustedPathError: link.mmc: ...
    """

    cause = "untrusted"


@internal("of")
class BuildError(MmcacheError, ValueError):
    """The input cannot become a file. `collection`, `key` and `reason` say where and why.

    >>> try:
    ...     mmcache.build("items.mmc", [{"id": "a", "price": object()}], Schema("items"))
    ... except mmcache.BuildError as error:
    ...     error.collection, error.key, error.reason
    ('items', 'a', "record 0: field 'price': a record cannot hold a value of type object; ...")
    """

    collection: str | None = None
    key: str | None = None
    reason: str | None = None

    @classmethod
    def of(cls, collection: str, key: object, reason: str) -> BuildError:
        where = f"collection {collection!r}" + ("" if key is None else f", key {key!r}")
        return cls(
            f"{where}: {reason}",
            collection=collection,
            key=key if isinstance(key, str) else None if key is None else repr(key),
            reason=reason,
        )


class ModelError(MmcacheError, ValueError):
    """A record is not what `Schema(model=...)` declares. `collection`, `key` and `field` say where; `expected` and
    `found`, in words, why.

    >>> mmcache.build("items.mmc", [{"id": "a", "kind": None, "size": 1}], Schema("items")).generation
    1
    >>> try:
    ...     mmcache.open("items.mmc", model=Item)["a"]
    ... except mmcache.ModelError as error:
    ...     error.key, error.field, error.expected, error.found
    ('a', 'kind', 'str', '...')
    """

    collection: str | None = None
    key: object = None
    field: str | None = None
    expected: str | None = None
    found: str | None = None


class PublishError(MmcacheError, OSError):
    """The system refused a call that writing the file needs. The published file is as it was. `errno` says why.

    >>> try:
    ...     mmcache.build("items.jsonl/items.mmc", records, Schema("items"))  # below what is no directory
    ... except mmcache.PublishError as error:
    ...     error.errno == errno.ENOTDIR
    True
    """

    errno: int | None = None  # plain, where OSError's own would not survive pickling


class SourceError(MmcacheError):
    """The source failed while it was the only tier left, or there is no source to ask.

    >>> mmcache.open("cache.mmc").rebuild()
    Traceback (most recent call last):
    mmcache.errors.SourceError: ...cache.mmc: a cache without a source cannot be rebuilt...
    """


class StoreError(MmcacheError):
    """The object store failed, refused, or lacks what was asked for. `path` is its URL. What it holds is as it was.

    >>> mmcache.releases("ftp://host/items")
    Traceback (most recent call last):
    mmcache.errors.StoreError: ...
    """


class ReleaseError(MmcacheError, ValueError):
    """A file may not become a release. `rule` names the validator that refused it; nothing was announced.

    >>> try:
    ...     mmcache.publish("cache.mmc", "memory://checked/items", checks=[lambda snapshot: len(snapshot) > 100])
    ... except mmcache.ReleaseError as error:
    ...     error.rule
    '...'
    """

    rule: str | None = None


class LockTimeoutError(MmcacheError, TimeoutError):
    """Another process held the build lock for longer than we were told to wait.

    try:
        cache.rebuild(timeout=0)
    except mmcache.LockTimeoutError as error:
        print(error)  # which process builds, and since when
    """


class SearchTimeoutError(MmcacheError, TimeoutError):
    """A search has not looked at all records before its deadline.

    >>> cache.nearest([1.0, 0.0], deadline=1e-9)
    Traceback (most recent call last):
    mmcache.errors.SearchTimeoutError: ...
    """


class RecallError(MmcacheError, ValueError):
    """A search asks for a `recall` that the file does not promise: of no sketch, another metric, or above its curve.

    >>> cache.nearest([1.0, 0.0], recall=0.9)
    Traceback (most recent call last):
    mmcache.errors.RecallError: ...
    """


class GenerationGoneError(MmcacheError):
    """What was sent here belongs to a generation that is neither the published file nor its backup any more.

    >>> ref = pickle.dumps(cache.embedding_ref("a"))
    >>> for generation in (2, 3):
    ...     _ = mmcache.build("cache.mmc", [{"id": generation}], Schema("items"))
    >>> pickle.loads(ref).embedding
    Traceback (most recent call last):
    mmcache.errors.GenerationGoneError: ...cache.mmc: expected generation 1, found generation 3...
    """


class ClosedError(MmcacheError, ValueError):
    """The snapshot or cache was closed.

    >>> cache.close()
    >>> cache["a"]
    Traceback (most recent call last):
    mmcache.errors.ClosedError: ...
    """


def wrong_checksum(section: str, expected: int | bytes, found: int | bytes, what: str = "") -> CorruptFileError:
    """For bytes that do not match their checksum. what: other words than that the section's does not match."""
    sums = {"expected": _digits(expected), "found": _digits(found)}
    text = what or "section {!r}: checksum does not match: expected {expected}, found {found}".format(section, **sums)
    return CorruptFileError(text, section=section, **sums)


def _digits(checksum: int | bytes) -> str:
    return checksum.hex() if isinstance(checksum, bytes) else f"{checksum:016x}"
