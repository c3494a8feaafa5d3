"""The types of arguments and results that have no class, for annotations in programs that use mmcache.

def changed(cache: mmcache.Cache[Item], key: Key, reason: Reason) -> None:
    cache.invalidate([key], reason=reason)
"""

from __future__ import annotations

from .format.keys import Key
from .integrations.pytest_caches import CacheFactory, Isolate
from .options import Executor, GivenOptions, MadeOptions, OpenOptions, Profile
from .progress import Progress, Shown
from .query import Term
from .schema import AnySchema, Cast, Dtype, Metric, OnDuplicate, OnInvalid
from .sharing.decide import State
from .sharing.invalidation import Kind, Reason
from .sources.base import SourceOf
from .sources.call import CallOptions, ChangedSince, Fetch, Fingerprint, Load
from .sources.iterable import Embeddings, Records
from .sources.opening import Connect, SQLiteOptions
from .storage.asked import SearchOptions
from .storage.snapshot import Access, Verify

__all__ = [
    "Access",
    "AnySchema",
    "CacheFactory",
    "CallOptions",
    "Cast",
    "ChangedSince",
    "Connect",
    "Dtype",
    "Embeddings",
    "Executor",
    "Fetch",
    "Fingerprint",
    "GivenOptions",
    "Isolate",
    "Key",
    "Kind",
    "Load",
    "MadeOptions",
    "Metric",
    "OnDuplicate",
    "OnInvalid",
    "OpenOptions",
    "Profile",
    "Progress",
    "Reason",
    "Records",
    "SQLiteOptions",
    "SearchOptions",
    "Shown",
    "SourceOf",
    "State",
    "Term",
    "Verify",
]
