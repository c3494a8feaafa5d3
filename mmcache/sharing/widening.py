"""What a build makes where several versions of a program share a path: see `additive`.

A builder keeps what the published file has for other versions, so far as the source still has it; also the clustering
and metadata about which its caller said nothing. It does so under the build lock, when it knows what is published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..additive import missing_in, union
from ..errors import SourceError
from ..format.layout import Layout
from ..logs import log
from ..schema import Schema
from ..sources import available, with_schemas
from ..sources.base import Source

if TYPE_CHECKING:  # else it would take numpy to ask for a status
    from ..storage.publish import Order

__all__ = ["as_found", "promised_by", "schemas_of", "still_there", "widened"]


def schemas_of(layout: Layout) -> tuple[Schema, ...]:
    """Of a file, the default collection first."""
    return tuple(collection.schema for collection in layout.collections.values())


def promised_by(layout: Layout) -> tuple[Schema, ...]:
    """The same as readers need to compare them: where no row was left out, any choice of what to leave out is met."""
    return tuple(
        replace(
            one.schema,
            on_invalid=one.schema.on_invalid if one.left_out.invalid else "raise",
            max_invalid=None,
            on_duplicate=one.schema.on_duplicate if one.left_out.duplicates else "raise",
        )
        for one in layout.collections.values()
    )


def widened(order: Order, found: Layout | None) -> Order:
    """What to build so that it serves the versions for which the published file was built, too."""
    source = order.source
    schemas = None if found is None else union(schemas_of(found), source.schemas)
    if found is None or schemas is None:
        return order
    there = available(source, schemas)
    if lost := missing_in(there, schemas):
        text = "the source has no %s any more: built without"
        log.warning(text, ", ".join(lost), extra={"event": "index_dropped"})
    source = with_schemas(source, there)
    return as_found(order._replace(source=source), found)


def as_found(order: Order, found: Layout) -> Order:
    """With the clustering and the metadata of a file, where nothing was said about them."""
    cluster_by: str | Mapping[str, str] | None = order.cluster_by
    if cluster_by is None:
        indexed = {schema.name: schema.index for schema in order.source.schemas}
        clusters = {name: one.cluster_by for name, one in found.collections.items()}
        cluster_by = {name: field for name, field in clusters.items() if field and field in indexed.get(name, ())}
    metadata: Mapping[str, Any] | None = found.metadata if order.metadata is None else order.metadata
    return order._replace(cluster_by=cluster_by, metadata=metadata)


def still_there(source: Source) -> tuple[Schema, ...]:
    """The source's own schemas without what it no longer has; as they are, where it cannot be asked."""
    try:
        return available(source, source.schemas)
    except SourceError:
        return source.schemas
