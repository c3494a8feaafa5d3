"""`mmcache measure`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from ..errors import MmcacheError
from ..format.curves import WHOLE
from ..text import number, printable
from .get import add_reading, collection_of, open_snapshot
from .nearest import array_of_npy
from .options import FILE_COMPLETION, OK, UsageError, count, file_argument
from .output import Output

if TYPE_CHECKING:
    from ..search.comparing import Comparison

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Measure what a search with a recall finds of an exact one, and in which share of its time, on queries of your own.

  mmcache measure packages.mmc --queries queries.npy
  mmcache measure packages.mmc --queries queries.npy -k 50 --json

The queries are the rows of an array of numpy, (queries, dim); some hundred are enough. Each is searched for exactly,
and among as many candidates as each point of the file's curve has. The file promises what it found of its own rows,
less two standard errors. Queries that are unlike all records may find less: then ask for a higher recall.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)
    queries = parser.add_argument("--queries", required=True, metavar="FILE", help="the queries: .npy, (queries, dim)")
    queries.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument("-k", type=count, default=10, metavar="K", help="how many nearest are meant (default: 10)")
    parser.add_argument("--embedding", metavar="FIELD", help="which embedding, of several (default: the first)")
    add_reading(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..search.comparing import compared

    with open_snapshot(arguments) as snapshot:
        collection = collection_of(snapshot, arguments.collection)
        try:
            queries = array_of_npy(arguments.queries, most=_MOST)
            found = compared(collection, queries, arguments.k, arguments.embedding)
        except MmcacheError:
            raise
        except OSError as error:
            raise UsageError(f"--queries {arguments.queries}: {error.strerror or error}") from None
        except (TypeError, ValueError) as error:
            raise UsageError(f"--queries {arguments.queries}: {error}") from None
        if output.json:
            output.document(_to_json(collection.name, found, arguments))
        else:
            _print(found, arguments, output)
    return OK


_MOST: Final = 2**28
"""Numbers of all queries, at most: 1 GB of float32."""


def _to_json(collection: str, found: Comparison, arguments: argparse.Namespace) -> dict[str, Any]:
    points = [
        {
            "candidates": one.point.candidates,
            "promised": None if one.promised is None else one.promised / WHOLE,
            "recall": one.point.recall / WHOLE,
            "least": one.point.least / WHOLE,
            "time": round(one.time, 4),
        }
        for one in found.points
    ]
    return {
        "path": arguments.file,
        "collection": collection,
        "embedding": found.field,
        "metric": found.metric,
        "k": arguments.k,
        "queries": found.queries,
        "exact_seconds": found.exact_seconds,
        "points": points,
    }


def _print(found: Comparison, arguments: argparse.Namespace, output: Output) -> None:
    queries = (
        f"{number(found.queries)} queries, the {arguments.k} nearest by {found.metric} of {printable(found.field)}"
    )
    output.heading(f"{queries}: an exact search takes {found.exact_seconds * 1000:.2f} ms")
    rows = [
        [
            str(one.point.candidates),
            "" if one.promised is None else f"{one.promised / WHOLE:.4f}",
            f"{one.point.recall / WHOLE:.4f}",
            f"{one.point.least / WHOLE:.4f}",
            f"{one.time:.2f}",
        ]
        for one in found.points
    ]
    if rows:
        columns = ("candidates", "promised", "recall", "less two errors", "time / exact")
        output.table(columns, rows, right=(0, 1, 2, 3, 4))
    else:
        output.note("the records are too few: every search is exact")
