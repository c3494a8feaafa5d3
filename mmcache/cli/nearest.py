"""`mmcache nearest`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import TYPE_CHECKING, Any, Final

from ..errors import MmcacheError
from ..schema import MAX_DIM
from ..text import plural, short
from .find import cell_of
from .get import add_reading, collection_of, fields_of, found_of, open_snapshot
from .options import ERROR, FILE_COMPLETION, OK, UsageError, count, file_argument
from .output import Output

if TYPE_CHECKING:
    from ..search.neighbours import Neighbours
    from ..storage.snapshot import FileCollection

__all__ = ["HELP", "add_arguments", "array_of_npy", "run"]

HELP: Final = """\
Print the records whose embeddings are nearest to a vector, or to that of a record, the nearest first.

  mmcache nearest packages.mmc --id nethack -k 5
  mmcache nearest packages.mmc --vector query.npy --where section=games --where tags=role::program
  echo '[0.1, 0.2, 0.3]' | mmcache nearest items.mmc --vector - --metric dot --min-score 0.5
  mmcache nearest items.mmc --id sku-7 --json

All of them are compared, so that none is missed; unless --recall asks for less, of a file with a sketch. --where takes
what `mmcache find` takes, and counts before the search.
A score is higher for what is nearer: the cosine, the product, or of euclidean the distance with a minus.
On a terminal the records are a table, elsewhere one JSON document a line, {"score": ..., "record": {...}}; with --json,
one list of these.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--id", metavar="ID", help="the neighbours of this record, without itself")
    vector = what.add_argument(
        "--vector", metavar="FILE", help="a list of numbers as JSON, or .npy; -: JSON from stdin"
    )
    vector.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument("-k", type=count, default=10, metavar="K", help="how many (default: 10)")
    parser.add_argument(
        "--where", action="append", default=[], metavar="FIELD=VALUE", help="only among these, as for `mmcache find`"
    )
    parser.add_argument("--embedding", metavar="FIELD", help="which embedding, of several (default: the first)")
    parser.add_argument("--metric", metavar="M", help="cosine, dot or euclidean (default: that of the file)")
    parser.add_argument("--min-score", type=float, metavar="S", help="only what has this score at least")
    parser.add_argument(
        "--recall", type=float, metavar="R", help="so much of the answer is enough, such as 0.95 (default: all of it)"
    )
    parser.add_argument("--ids", action="store_true", help="print ids only, one a line")
    add_reading(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from .queries import selected

    with open_snapshot(arguments) as snapshot:
        collection = collection_of(snapshot, arguments.collection)
        chosen = selected(collection, arguments.where)
        options: dict[str, Any] = {"metric": arguments.metric, "min_score": arguments.min_score}
        options |= {"embedding": arguments.embedding, "recall": arguments.recall}
        try:
            if arguments.vector is not None:
                found = chosen.nearest(_vector(arguments.vector), arguments.k, **options)
            else:
                record = found_of(collection, arguments.id)
                if record is None:
                    output.error(
                        f"mmcache nearest: {arguments.file}: no {arguments.id!r} in collection {collection.name!r}"
                    )
                    return ERROR
                vector = collection.embedding(record.id, arguments.embedding)
                if vector is None:
                    raise UsageError(f"the record {arguments.id!r} has no embedding, and so no neighbours")
                found = chosen.nearest(vector, arguments.k, skip=[record.id], **options)
        except MmcacheError:
            raise
        except (TypeError, ValueError) as error:
            raise UsageError(str(error)) from None
        _print(collection, found, arguments, output)
    return OK


def _vector(path: str) -> Any:
    """Raises UsageError for what cannot be read. What numbers there are, the search looks at."""
    try:
        if path.endswith(".npy"):
            return array_of_npy(path, most=MAX_DIM)
        if path == "-":
            return json.load(sys.stdin)
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise UsageError(f"--vector {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--vector {path}: is no list of numbers ({error})") from None


def array_of_npy(path: str, *, most: int) -> Any:
    """An array of one or two dimensions. most: numbers in it. Raises OSError, and ValueError for what is none."""
    import numpy as np

    from ..sources.npy import header_of

    with open(path, "rb") as file:
        header = header_of(file)
        if header.dtype.kind not in "fiu" or len(header.shape) not in (1, 2) or math.prod(header.shape) > most:
            raise ValueError(f"an array of shape {header.shape} and dtype {header.dtype}, expected (dim,)")
        size = math.prod(header.shape) * header.dtype.itemsize
        data = file.read(size)
        if len(data) < size:
            raise ValueError(f"cut off: {len(data)} bytes of numbers, expected {size}")
        return np.frombuffer(data, header.dtype).reshape(header.shape)


def _print(collection: FileCollection, found: Neighbours, arguments: argparse.Namespace, output: Output) -> None:
    if arguments.ids:
        from .keys import text_of

        if output.json:
            output.document(found.ids)
        for key in () if output.json else found.ids:
            output.text(text_of(key))
        return
    pairs = [
        {"score": score, "record": fields_of(collection, record, embedding=False)} for record, score in found.pairs()
    ]
    if output.json:
        output.document(pairs)
    elif output.is_terminal:
        schema = collection.schema
        columns = list(dict.fromkeys((*schema.key_fields, *schema.index)))
        rows = [[f"{score:.4f}", *(cell_of(record, field) for field in columns)] for record, score in found.pairs()]
        if rows:
            output.table(["score", *(short(column, 24) for column in columns)], rows, right=(0,))
        output.note(plural(len(found), "record"))
    else:
        for pair in pairs:
            output.row(pair)
