"""Make a cache file anew from the source that it names, with the same schemas, clustering and metadata.

Needs nothing but FILE; where FILE is damaged or gone, its backup says how. If the content is the same, the published
file stays. Readers are not disturbed: they move to the new file when they next look.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..errors import SourceError
from .options import FILE_COMPLETION, OK, file_argument, seconds, setting
from .output import Output
from .words import bytes_of, plural, printable, span

if TYPE_CHECKING:
    from ..storage.publish import BuildReport, Progress

__all__ = ["add_arguments", "add_timeout", "report", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)
    source = parser.add_argument(
        "--source", metavar="PATH", help="where the source is now, if it moved; the new file names this one"
    )
    source.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    add_timeout(parser)


def add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=seconds, metavar="SECONDS", help="how long to wait for another build of it (default: 600)"
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    timeout: float = setting(arguments, "timeout")
    with output.progress() as progress:
        if arguments.source is None:
            from ..storage.publish import rebuild

            done = rebuild(arguments.file, progress=progress, timeout=timeout)
        else:
            done = _rebuild_from(arguments.file, os.path.abspath(arguments.source), progress, timeout)
    report(done, arguments.file, output)
    return OK


def _rebuild_from(path: str, source: str, progress: Progress, timeout: float) -> BuildReport:
    """What `publish.rebuild` does, with the source in another place."""
    from ..sources import from_spec
    from ..storage.publish import build
    from .files import described

    layout = described(path)
    if layout.source is None:
        raise SourceError("was built from records in memory and names no source: build it again", path=path)
    return build(
        path,
        from_spec({**layout.source, "path": source}, [c.schema for c in layout.collections.values()]),
        cluster_by={name: c.cluster_by for name, c in layout.collections.items() if c.cluster_by is not None},
        metadata=layout.metadata,
        progress=progress,
        timeout=timeout,
    )


def report(done: BuildReport, path: str, output: Output) -> None:
    """What is published now."""
    if output.json:
        output.document(asdict(done))
        return
    held = ", ".join(f"{printable(name)}: {plural(n, 'record')}" for name, n in done.records.items())
    what = f"generation {done.generation}" if done.changed else f"unchanged, generation {done.generation} stays"
    output.say(f"{printable(path)}: {what} ({held}, {bytes_of(done.size)}, {span(done.seconds)})")
