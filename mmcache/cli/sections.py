"""What one section of a file holds, as numbers that fit on a screen."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from xxhash import xxh3_64_intdigest

from ..errors import wrong_checksum
from ..format import header as h
from .files import opened

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..format.keys import Key
    from ..format.layout import CollectionLayout, Layout
    from ..storage.snapshot import FileCollection, Snapshot

__all__ = ["part_of", "summary"]

_ROW = np.dtype([("offset", "<u8"), ("length", "<u4"), ("key_length", "<u2"), ("shape", "<u2"), ("checksum", "<u8")])


def summary(snapshot: Snapshot, name: str, top: int) -> dict[str, Any]:
    """Raises CorruptFileError where the section's bytes do not match its checksum."""
    section = snapshot.layout.sections[name]
    plain: dict[str, Any] = {
        "name": name,
        "of": part_of(snapshot.layout, name),
        "kind": h.KINDS.get(section.kind, str(section.kind)),
        "offset": section.offset,
        "length": section.length,
    }
    if section.kind == h.META:
        return plain | _meta(snapshot)
    if section.kind == h.BLOCKS:
        return plain | {"blocks": section.count, "bytes_a_block": h.BLOCK}
    if section.kind == h.CHUNKS:
        return plain | {"digests": section.count, "bytes_a_digest": h.LEAF}
    found = _owner(snapshot.layout, name)
    if found is None:
        return plain
    layout, part = found
    field = part.partition(".")[2]
    collection = snapshot.collection(layout.schema.name)
    if section.kind == h.IDS:
        slots = {"slots": section.count, "filled": layout.n, "load": round(layout.n / section.count, 4)}
        return plain | slots | {"bits": layout.ids.bits}
    if section.kind == h.ROWS:
        return plain | _rows(snapshot, name)
    if section.kind == h.RECORDS:
        return plain | {"records": layout.n, "first_ids": _first_ids(collection, top)}
    if section.kind == h.INDEX:
        return plain | _index(collection, field, top)
    if section.kind == h.PRESENCE:
        return plain | {"records": layout.n, "with_embedding": int(collection.has_embedding_of(field).sum())}
    if section.kind == h.SKETCH:
        return plain | _sketch(layout, field)
    if section.kind in (h.EMBEDDINGS, h.NORMS):
        dim, missing = layout.embeddings[field]
        shape = {"records": layout.n, "dim": dim, "without_embedding": missing}
        norms = collection.norms_of(field)[collection.has_embedding_of(field)]
        return plain | shape | {"norms": _spread(norms)}
    return plain


def _sketch(layout: CollectionLayout, field: str) -> dict[str, int]:
    sketch = layout.sketches.get(field)
    queries = 0 if sketch is None else sketch.queries
    return {"records": layout.n, "bits": layout.embeddings[field].dim, "queries": queries}


def part_of(layout: Layout, name: str) -> str:
    """The name of a section with those of collection and field in place of their ordinals; "" for one of none."""
    found = _owner(layout, name)
    return "" if found is None else f"{found[0].schema.name}/{found[1]}"


def _owner(layout: Layout, name: str) -> tuple[CollectionLayout, str] | None:
    """The collection that a section belongs to, and which part of it the section is."""
    for collection in layout.collections.values():
        for part, section in collection.sections.items():
            if section.name == name:
                return collection, part
    return None


def _meta(snapshot: Snapshot) -> dict[str, Any]:
    layout = snapshot.layout
    collections = {
        name: {
            "schema": c.schema.to_dict(),
            "key_types": c.key_types,
            "embeddings": {field: {"dim": e.dim, "missing": e.missing} for field, e in c.embeddings.items()},
            "shapes": [shape.to_plain() for shape in c.shapes],
        }
        for name, c in layout.collections.items()
    }
    return {
        "writer": layout.writer,
        "source": layout.source,
        "metadata": layout.metadata,
        "collections": collections,
    }


def _rows(snapshot: Snapshot, name: str) -> dict[str, Any]:
    section = snapshot.layout.sections[name]
    with opened(snapshot.path) as file:
        raw = file.read(section.offset, section.length)
    if (found := xxh3_64_intdigest(raw)) != section.checksum:
        error = wrong_checksum(name, section.checksum, found)
        error.path = snapshot.path
        raise error
    rows = np.frombuffer(raw, _ROW)
    shapes, uses = np.unique(rows["shape"], return_counts=True)
    return {
        "records": len(rows),
        "record_bytes": _spread(rows["length"]),
        "key_bytes": _spread(rows["key_length"]),
        "uses_of_shapes": dict(zip(map(str, shapes.tolist()), uses.tolist(), strict=True)),
    }


def _index(collection: FileCollection, field: str, top: int) -> dict[str, Any]:
    terms = collection.terms(field)
    types = Counter(type(term).__name__ for term in terms)
    frequent = sorted(terms.items(), key=lambda item: -item[1])[:top]
    return {
        "values": len(terms),
        "postings": sum(terms.values()),
        "types": dict(types),
        "records_a_value": _spread(np.fromiter(terms.values(), np.int64, len(terms))),
        "first": list(islice(terms, top)),
        "last": list(islice(terms, max(0, len(terms) - top), None)),
        "top": [{"value": term, "records": n} for term, n in frequent],
    }


def _first_ids(collection: FileCollection, top: int) -> list[Key]:
    return collection.ids_at(np.arange(min(top, len(collection)), dtype=np.uint32))


def _spread(values: NDArray[Any]) -> dict[str, float] | None:
    if not len(values):
        return None
    found = {
        "min": values.min(),
        "median": np.median(values),
        "mean": values.mean(dtype=np.float64),
        "max": values.max(),
    }
    return {name: round(float(value), 6) for name, value in found.items()}
