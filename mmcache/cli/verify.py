"""`mmcache verify`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, Final

from ..errors import UnusableFileError
from ..text import bytes_of, plural, printable, span
from .files import opened
from .options import OK, file_argument
from .output import Output, Step

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Check every byte of a cache file against its checksums, padding included; with --deep, use every record too.

Exit code 5: the file is damaged, and the message says where.

  mmcache verify items.mmc
  mmcache verify items.mmc --deep --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)
    parser.add_argument(
        "--deep", action="store_true", help="also decode every record, find it by its key, and check every index"
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    path: str = arguments.file
    begun = time.perf_counter()
    try:
        with output.progress() as progress:
            found = _deep(path, progress) if arguments.deep else _bytes(path, progress)
    except UnusableFileError as error:
        if output.json:
            told = {name: getattr(error, name, None) for name in ("section", "kind", "expected", "found")}
            output.document({"path": path, "ok": False, "state": error.cause, **told, "error": error.message})
        raise
    seconds = time.perf_counter() - begun
    if output.json:
        output.document({"path": path, "ok": True, **found, "deep": arguments.deep, "seconds": seconds})
    else:
        checked = "every byte and every record" if arguments.deep else "every byte"
        output.say(
            f"{printable(path)}: ok, {checked} checked (generation {found['generation']}, "
            f"{plural(sum(found['records'].values()), 'record')}, {bytes_of(found['size'])}, {span(seconds)})"
        )
    return OK


def _bytes(path: str, progress: Step) -> dict[str, Any]:
    from ..storage.verify import verify_bytes

    with opened(path) as file:
        layout = verify_bytes(_counted(file.read, file.size, progress), file.size)
    records = {name: collection.n for name, collection in layout.collections.items()}
    return {"generation": layout.header.generation, "records": records, "size": layout.header.file_size}


def _counted(read: Callable[[int, int], bytes], total: int, progress: Step) -> Callable[[int, int], bytes]:
    """`read`, and progress with every call."""
    done = 0

    def counted(offset: int, length: int) -> bytes:
        nonlocal done
        data = read(offset, length)
        done += len(data)
        progress("verify", min(done, total), total)
        return data

    return counted


def _deep(path: str, progress: Step) -> dict[str, Any]:
    from ..storage.snapshot import Snapshot

    _bytes(path, progress)  # what follows checks them too, but cannot say how far it is
    with Snapshot.open(path, verify="lazy") as snapshot:
        progress("every record", 0, None)
        snapshot.verify(deep=True)
        records = {name: len(collection) for name, collection in snapshot.collections.items()}
        return {"generation": snapshot.generation, "records": records, "size": snapshot.header.file_size}
