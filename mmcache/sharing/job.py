"""What a worker hands to the process that rebuilds for it: all that a build needs, as one msgpack document.

Nothing of it comes from the file, which may be gone, damaged, or of other schemas by then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack

from ..schema import Schema
from ..sources import from_spec, given_by, is_remakable
from ..sources.base import Source

__all__ = ["Job"]


class Job(NamedTuple):
    """spec, given, schemas: of the source. search: where its functions are imported from. asked_ns: wall clock; a file
    that was built from what the source held after that will do. limit: seconds until the builder gives up."""

    spec: dict[str, Any]
    given: dict[str, Any]
    search: list[str]
    schemas: list[dict[str, Any]]
    cluster_by: str | Mapping[str, str] | None
    metadata: Mapping[str, Any] | None
    asked_ns: int
    limit: float

    @classmethod
    def of(cls, source: Source, **more: Any) -> Job | None:
        """For a source that another process can make again; None for any other. more: fields that are not of it."""
        spec, given = source.spec(), given_by(source)
        if spec is None or given is None or not is_remakable(source):
            return None
        schemas = [schema.to_dict() for schema in source.schemas]
        search = [os.path.abspath(place) for place in sys.path] if given else []
        return cls(spec, given, search, schemas, **more)

    def pack(self) -> bytes:
        """Raises TypeError, ValueError or OverflowError for metadata that msgpack does not carry."""
        data: bytes = msgpack.packb(self)
        return data

    @classmethod
    def unpack(cls, data: bytes) -> Job:
        return cls(*msgpack.unpackb(data, strict_map_key=False))

    def source(self) -> Source:
        """Raises SourceError. Modules are searched for where the worker would find them."""
        sys.path[:] = [*self.search, *(place for place in sys.path if place not in self.search)]
        return from_spec(self.spec, map(Schema.from_dict, self.schemas), self.given)
