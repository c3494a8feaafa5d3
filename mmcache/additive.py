"""What versions of a program that share a file agree on: the union of their schemas, and what each of them sees of it.

Two schemas of a collection are *additive* if they differ in indexes, sketches and columns alone, or in what is tracked.
Two sets of schemas are additive if those of each collection that both know are. Then one file serves both versions,
while a deploy rolls: a builder keeps what the file has, and adds what it needs itself. What becomes of bad rows is each
builder's own choice. A file in which some were left out answers only for those that chose so. A schema that leaves
its key to a source which cannot be asked now agrees with any key. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .schema import Schema

__all__ = ["covers", "missing_in", "seen_in", "union"]

Schemas = tuple[Schema, ...]


def union(found: Iterable[Schema], ours: Iterable[Schema]) -> Schemas | None:
    """The schemas of a file that serves both; None where they are not additive.

    In the order of `found`, which is that of the published file, so that a build by either gives the same bytes.
    """
    there, asked = _by_name(found), _by_name(ours)
    if not all(_is_alike(there[name], schema) for name, schema in asked.items() if name in there):
        return None
    return (
        *(_wider(schema, asked[name]) if name in asked else schema for name, schema in there.items()),
        *(schema for name, schema in asked.items() if name not in there),
    )


def covers(found: Iterable[Schema], ours: Iterable[Schema]) -> bool:
    """Whether a file with the schemas `found` may answer for `ours`: each collection is there, alike, with its columns.

    A missing index is no obstacle: that field is looked up in the source. Nor is a sketch: a search is exact without.
    """
    there = _by_name(found)
    return all(
        schema.name in there
        and _is_alike(there[schema.name], schema)
        and _has_columns(there[schema.name], schema)
        and there[schema.name].on_invalid in ("raise", schema.on_invalid)
        and there[schema.name].on_duplicate in ("raise", schema.on_duplicate)
        for schema in ours
    )


def missing_in(found: Iterable[Schema], ours: Iterable[Schema]) -> list[str]:
    """The indexes that a file lacks, as collection.field, and the sketches, as collection: sketch."""
    there = _by_name(found)
    missing = []
    for schema in ours:
        if (known := there.get(schema.name)) is not None:
            missing += [f"{schema.name}.{field}" for field in schema.index if field not in known.index]
            missing += [f"{schema.name}: sketch"] if schema.sketch and not known.sketch else []
    return missing


def seen_in(found: Schema, ours: Schema) -> Schema:
    """What a worker with the schema `ours` is shown of a collection of a file: what it asked for and the file has."""
    return replace(ours, key=found.key, index=tuple(field for field in ours.index if field in found.index))


def _by_name(schemas: Iterable[Schema]) -> dict[str, Schema]:
    return {schema.name: schema for schema in schemas}


def _is_alike(one: Schema, other: Schema) -> bool:
    if one.key is None or other.key is None:
        one, other = replace(one, key=None), replace(other, key=None)
    return _without_fields(one) == _without_fields(other)


def _without_fields(schema: Schema) -> Schema:
    table = None if schema.query is not None else schema.table or schema.name
    return replace(
        schema,
        index=(),
        sketch=False,
        columns=None,
        table=table,
        on_invalid="raise",
        max_invalid=None,
        on_duplicate="raise",
        tracks=(),
    )


def _wider(found: Schema, ours: Schema) -> Schema:
    columns = None
    if found.columns is not None and ours.columns is not None:
        columns = tuple(dict.fromkeys((*found.columns, *ours.columns)))
    return replace(
        found,
        key=found.key or ours.key,
        index=tuple(dict.fromkeys((*found.index, *ours.index))),
        columns=columns,
        sketch=found.sketch or ours.sketch,
        on_invalid=ours.on_invalid,
        max_invalid=ours.max_invalid,
        on_duplicate=ours.on_duplicate,
        tracks=ours.tracks or found.tracks,
    )


def _has_columns(found: Schema, ours: Schema) -> bool:
    if found.columns is None or ours.columns is None:
        return found.columns is None
    return set(found.columns).issuperset(ours.columns)
