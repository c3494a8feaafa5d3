"""Every exception of mmcache, arranged by what a caller does about it.

`UnusableFileError` and what is below it mean "this file cannot answer": a cache that has a source answers
from there. Everything else reaches the caller. A missing id is a plain `KeyError`, an argument of the wrong
type a plain `TypeError`.

All of them pickle, fields included, so that they survive a process boundary.
"""

from __future__ import annotations

from typing import Literal

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
    "wrong_checksum",
]


class MmcacheError(Exception):
    """Base of every error that mmcache raises on its own account.

    `path` is the file it is about, or None. Subclasses may add fields; all are keyword arguments with a
    default, which is what makes them pickle.
    """

    def __init__(self, message: str = "", *, path: str | None = None, **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.__dict__.update(fields)

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class UnusableFileError(MmcacheError):
    """The file cannot answer (unreadable, an I/O error, or one of the subclasses)."""

    cause = "unreadable"


class MissingFileError(UnusableFileError, FileNotFoundError):
    """There is no file at the path."""

    cause = "missing"


class CorruptFileError(UnusableFileError, ValueError):
    """The bytes are not what a writer wrote. `section` names the part, where it is known.

    Of a checksum that does not match, `expected` is what the file has and `found` what its bytes give, hexadecimal.
    Both are None where the structure is wrong: then the checksums were right, or were not reached.
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
    """A symlink, a special file, a foreign owner or a directory that anyone may write."""

    cause = "untrusted"


class BuildError(MmcacheError, ValueError):
    """The input cannot become a file. `collection`, `key` and `reason` say where and why."""

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
    `found`, in words, why."""

    collection: str | None = None
    key: object = None
    field: str | None = None
    expected: str | None = None
    found: str | None = None


class PublishError(MmcacheError, OSError):
    """The system refused a call that writing the file needs. The published file is as it was. `errno` says why."""

    errno: int | None = None  # plain, where OSError's own would not survive pickling


class SourceError(MmcacheError):
    """The source failed while it was the only tier left, or there is no source to ask."""


class StoreError(MmcacheError):
    """The object store failed, refused, or lacks what was asked for. `path` is its URL. What it holds is as it was."""


class ReleaseError(MmcacheError, ValueError):
    """A file may not become a release. `rule` names the validator that refused it; nothing was announced."""

    rule: str | None = None


class LockTimeoutError(MmcacheError, TimeoutError):
    """Another process held the build lock for longer than we were told to wait."""


class SearchTimeoutError(MmcacheError, TimeoutError):
    """A search has not looked at all records before its deadline."""


class RecallError(MmcacheError, ValueError):
    """A search asks for a `recall` that the file does not promise: of no sketch, another metric, or above its curve."""


class GenerationGoneError(MmcacheError):
    """What was sent here belongs to a generation that is neither the published file nor its backup any more."""


class ClosedError(MmcacheError, ValueError):
    """The snapshot or cache was closed."""


def wrong_checksum(section: str, expected: int | bytes, found: int | bytes, what: str = "") -> CorruptFileError:
    """For bytes that do not match their checksum. what: other words than that the section's does not match."""
    sums = {"expected": _digits(expected), "found": _digits(found)}
    text = what or "section {!r}: checksum does not match: expected {expected}, found {found}".format(section, **sums)
    return CorruptFileError(text, section=section, **sums)


def _digits(checksum: int | bytes) -> str:
    return checksum.hex() if isinstance(checksum, bytes) else f"{checksum:016x}"
