"""`mmcache inspect`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from ..errors import CorruptFileError
from ..format.curves import WHOLE
from ..format.header import KINDS
from ..text import number, plural, printable, short
from .jsontext import dumps
from .options import CORRUPT, OK, UsageError, count, file_argument
from .output import Output
from .sections import part_of, summary

if TYPE_CHECKING:
    from ..format.curves import SketchLayout
    from ..format.layout import Layout
    from ..storage.snapshot import FileCollection

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Show what a cache file is made of: sections, shapes of records, indexes and their most frequent values.

With --section NAME, what that one section holds, summed up. Damage that is met on the way is shown where it is, and
the exit code is 5.

  mmcache inspect items.mmc
  mmcache inspect items.mmc --section items/index.kind
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)
    parser.add_argument("--section", metavar="NAME", help="sum up one section, such as items/index.kind or 0/index.0")
    parser.add_argument("--top", type=count, default=5, metavar="N", help="values shown of an index (default: 5)")


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..storage.snapshot import Snapshot

    with Snapshot.open(arguments.file, verify="lazy") as snapshot:
        layout = snapshot.layout
        if arguments.section is not None:
            asked = arguments.section
            name = next((name for name in layout.sections if asked in (name, part_of(layout, name))), None)
            if name is None:
                known = ", ".join(part_of(layout, name) or name for name in layout.sections)
                raise UsageError(f"no section {asked!r}; there are: {known}")
            output.document(summary(snapshot, name, arguments.top))
            return OK
        collections = {name: _indexes(c, arguments.top) for name, c in snapshot.collections.items()}
        if output.json:
            output.document(_plain(arguments.file, layout, collections))
        else:
            _print(arguments.file, layout, collections, output)
    damaged = [index["error"] for indexes in collections.values() for index in indexes.values() if "error" in index]
    for error in damaged:
        output.error(f"mmcache inspect: {arguments.file}: {error}")
    return CORRUPT if damaged else OK


def _indexes(collection: FileCollection, top: int) -> dict[str, dict[str, Any]]:
    """Per field: how many values, how many postings, and the most frequent values."""
    found: dict[str, dict[str, Any]] = {}
    for field in collection.schema.index:
        try:
            terms = collection.terms(field)
        except CorruptFileError as error:
            found[field] = {"error": error.message}
            continue
        frequent = sorted(terms.items(), key=lambda item: -item[1])[:top]
        found[field] = {
            "values": len(terms),
            "postings": sum(terms.values()),
            "top": [{"value": term, "records": n} for term, n in frequent],
        }
    return found


def _plain(path: str, layout: Layout, indexes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    sections = [
        {
            "name": section.name,
            "of": part_of(layout, section.name),
            "kind": KINDS.get(section.kind, str(section.kind)),
            "offset": section.offset,
            "length": section.length,
            "count": section.count,
            "checksum": f"{section.checksum:016x}",
        }
        for section in layout.sections.values()
    ]
    collections = {
        name: {
            "records": c.n,
            "dim": c.dim or None,
            "key_types": c.key_types,
            "schema": c.schema.to_dict(),
            "shapes": [shape.to_plain() for shape in c.shapes],
            "indexes": indexes[name],
            "sketches": {field: _sketch(sketch) for field, sketch in c.sketches.items()},
        }
        for name, c in layout.collections.items()
    }
    header = layout.header
    return {
        "path": path,
        "generation": header.generation,
        "build_id": header.build_id.hex(),
        "size": header.file_size,
        "sections": sections,
        "collections": collections,
    }


def _sketch(sketch: SketchLayout) -> dict[str, Any]:
    """What a search finds among so many candidates, as the build measured it."""
    points = [
        {"k": k, "candidates": point.candidates, "recall": point.recall / WHOLE, "least": point.least / WHOLE}
        for k, curve in sketch.curves.items()
        for point in curve
    ]
    return {"queries": sketch.queries, "points": points}


def _print(path: str, layout: Layout, collections: dict[str, dict[str, dict[str, Any]]], output: Output) -> None:
    plain = _plain(path, layout, collections)
    output.heading(f"{printable(path)}, generation {plain['generation']}: {plural(len(plain['sections']), 'section')}")
    columns = ("name", "of", "kind", "offset", "length", "count", "checksum")
    rows = [
        [number(section[c]) if isinstance(section[c], int) else printable(section[c]) for c in columns]
        for section in plain["sections"]
    ]
    output.table(columns, rows, right=(3, 4, 5))
    for name, indexes in collections.items():
        described = layout.collections[name]
        output.heading(f"{printable(name)}: {plural(described.n, 'record')}, {plural(len(described.shapes), 'shape')}")
        for shape in described.shapes[:10]:
            output.say("  " + short(", ".join(map(_field, shape.to_plain())), 160))
        if len(described.shapes) > 10:
            output.say(f"  and {len(described.shapes) - 10} more")
        if indexes:
            output.say()
            output.table(
                ("index", "values", "postings", "most frequent"), list(map(_index_row, indexes.items())), right=(1, 2)
            )
        for field, sketch in plain["collections"][name]["sketches"].items():
            output.say()
            _print_sketch(field, sketch, output)
        output.say()


def _print_sketch(field: str, sketch: dict[str, Any], output: Output) -> None:
    if not sketch["points"]:
        output.say(f"  sketch of {printable(field)}: the records are too few, every search is exact")
        return
    output.say(f"  sketch of {printable(field)}: recall of {plural(sketch['queries'], 'row')} of the file")
    rows = [
        [str(point["k"]), number(point["candidates"]), f"{point['recall']:.4f}", f"{point['least']:.4f}"]
        for point in sketch["points"]
    ]
    output.table(("k", "candidates", "recall", "promised"), rows, right=(0, 1, 2, 3))


def _field(plain: str | list[Any]) -> str:
    """A field of a shape; of a map, its own fields too; of a key of several fields, these."""
    if isinstance(plain, str):
        return plain
    return f"{plain[0]} {{{', '.join(plain[1])}}}" if isinstance(plain[1], list) else f"({', '.join(plain)})"


def _index_row(item: tuple[str, dict[str, Any]]) -> list[str]:
    field, index = item
    if "error" in index:
        return [printable(field), "", "", "damaged"]
    top = ", ".join(f"{short(_term(entry['value']), 32)} ({number(entry['records'])})" for entry in index["top"])
    return [printable(field), number(index["values"]), number(index["postings"]), top]


def _term(term: object) -> str:
    return term if isinstance(term, str) else dumps(term)
