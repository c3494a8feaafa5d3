"""One immutable file of records, indexes and embeddings, mapped read-only by many worker processes.

Every public name is importable from here and is loaded when it is first used (PEP 562): `import mmcache` alone
costs no more than this file, so that a command line or a plugin can afford it in every process.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Alert",
    "ArrowSource",
    "BaseSource",
    "BuildError",
    "BuildReport",
    "CSVSource",
    "Cache",
    "CacheEvent",
    "CachedCollection",
    "CallableSource",
    "Changes",
    "ClosedError",
    "Collection",
    "CorruptFileError",
    "Difference",
    "DuckDBSource",
    "EmbeddingRef",
    "EmbeddingReport",
    "FileCollection",
    "Following",
    "GenerationGoneError",
    "IncompatibleFormatError",
    "Invalid",
    "IterableSource",
    "JSONLinesSource",
    "JSONSource",
    "LeftOut",
    "LockTimeoutError",
    "MissingFileError",
    "MmcacheError",
    "ModelError",
    "Neighbours",
    "ParquetSource",
    "Pruned",
    "PublishError",
    "Query",
    "Reading",
    "RecallError",
    "Record",
    "Release",
    "ReleaseError",
    "SQLAlchemySource",
    "SQLiteSource",
    "Schema",
    "SearchTimeoutError",
    "Selection",
    "Snapshot",
    "Source",
    "SourceError",
    "SourceRecord",
    "Sources",
    "Stats",
    "Status",
    "StoreError",
    "UntrustedPathError",
    "UnusableFileError",
    "__version__",
    "above",
    "at_least",
    "at_most",
    "below",
    "between",
    "build",
    "diff",
    "excluding",
    "follow",
    "implementation",
    "merge",
    "open",
    "pin",
    "prune",
    "publish",
    "releases",
    "rollback",
    "startswith",
    "unpin",
    "withdraw",
]

if TYPE_CHECKING:
    from .cache import Cache, Stats, open
    from .cached import CachedCollection
    from .callbacks import CacheEvent
    from .errors import (
        BuildError,
        ClosedError,
        CorruptFileError,
        GenerationGoneError,
        IncompatibleFormatError,
        LockTimeoutError,
        MissingFileError,
        MmcacheError,
        ModelError,
        PublishError,
        RecallError,
        ReleaseError,
        SearchTimeoutError,
        SourceError,
        StoreError,
        UntrustedPathError,
        UnusableFileError,
    )
    from .format.leftout import LeftOut
    from .native import implementation
    from .query import Query, above, at_least, at_most, below, between, excluding, startswith
    from .remote.difference import Difference, diff
    from .remote.follower import follow
    from .remote.operating import Pruned, pin, prune, releases, rollback, unpin, withdraw
    from .remote.publishing import Release, publish
    from .schema import Schema
    from .search.neighbours import Neighbours
    from .sharing.alerts import Alert
    from .sharing.following import Following
    from .sharing.merging import merge
    from .sharing.publishing import build
    from .sharing.status import Status
    from .sources.arrow import ArrowSource, ParquetSource
    from .sources.base import Changes, Invalid, Reading, Source, SourceRecord
    from .sources.call import CallableSource
    from .sources.csvfile import CSVSource
    from .sources.duckdbfile import DuckDBSource
    from .sources.iterable import IterableSource
    from .sources.jsonfiles import JSONLinesSource, JSONSource
    from .sources.own import BaseSource
    from .sources.several import Sources
    from .sources.sql import SQLAlchemySource
    from .sources.sqlite import SQLiteSource
    from .storage.publish import BuildReport, EmbeddingReport
    from .storage.snapshot import Collection, EmbeddingRef, FileCollection, Record, Selection, Snapshot
else:  # hidden from type checkers, which would otherwise take any misspelt name for one of ours

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'mmcache' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(home, __name__), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


_HOMES = {
    name: module
    for module, names in {
        ".cache": ("Cache", "Stats", "open"),
        ".callbacks": ("CacheEvent",),
        ".cached": ("CachedCollection",),
        ".errors": (
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
        ),
        ".query": ("Query", "above", "at_least", "at_most", "below", "between", "excluding", "startswith"),
        ".native": ("implementation",),
        ".remote.difference": ("Difference", "diff"),
        ".remote.follower": ("follow",),
        ".remote.operating": ("Pruned", "pin", "prune", "releases", "rollback", "unpin", "withdraw"),
        ".remote.publishing": ("Release", "publish"),
        ".schema": ("Schema",),
        ".search.neighbours": ("Neighbours",),
        ".sources.arrow": ("ArrowSource", "ParquetSource"),
        ".format.leftout": ("LeftOut",),
        ".sources.base": ("Changes", "Invalid", "Reading", "Source", "SourceRecord"),
        ".sources.call": ("CallableSource",),
        ".sources.csvfile": ("CSVSource",),
        ".sources.duckdbfile": ("DuckDBSource",),
        ".sources.iterable": ("IterableSource",),
        ".sources.jsonfiles": ("JSONLinesSource", "JSONSource"),
        ".sources.own": ("BaseSource",),
        ".sources.several": ("Sources",),
        ".sources.sql": ("SQLAlchemySource",),
        ".sources.sqlite": ("SQLiteSource",),
        ".sharing.alerts": ("Alert",),
        ".sharing.merging": ("merge",),
        ".sharing.following": ("Following",),
        ".sharing.publishing": ("build",),
        ".sharing.status": ("Status",),
        ".storage.publish": ("BuildReport", "EmbeddingReport"),
        ".storage.snapshot": (
            "Collection",
            "EmbeddingRef",
            "FileCollection",
            "Record",
            "Selection",
            "Snapshot",
        ),
    }.items()
    for name in names
}
