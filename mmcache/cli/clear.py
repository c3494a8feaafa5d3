"""`mmcache clear`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Final

from ..text import printable
from .options import ERROR, OK, UsageError, file_argument, setting
from .output import Output
from .rebuild import add_timeout, report

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Remove a cache file, its backup, its metrics and the temporary files of builds that died.

Asks first, on a terminal; elsewhere it needs --yes. Waits for a build that is running. Only what mmcache wrote is
removed; the lock file and the control page stay, because other processes may be waiting on the one and listening to
the other. Processes that have the file open keep it, and count on.

  mmcache clear items.mmc --dry-run
  mmcache clear items.mmc --yes --rebuild
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--rebuild", action="store_true", help="build it anew, as the file says of itself")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be removed")
    add_timeout(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..sharing.publishing import clear, clear_and_rebuild

    path: str = arguments.file
    timeout: float = setting(arguments, "timeout")
    if not (arguments.yes or arguments.dry_run):
        if sys.stdin is None or not sys.stdin.isatty():
            raise UsageError("there is no terminal to ask on: say --yes, or --dry-run to see what would go")
        found = clear(path, timeout=timeout, dry_run=True)
        if found and not _agreed(found):
            output.note("nothing removed")
            return ERROR
    done = None
    if arguments.rebuild and not arguments.dry_run:
        with output.progress() as progress:
            removed, done = clear_and_rebuild(path, progress=progress, timeout=timeout)
    else:
        removed = clear(path, timeout=timeout, dry_run=arguments.dry_run)
    if output.json:
        built = {} if done is None else {"built": asdict(done)}
        output.document({"path": path, "dry_run": arguments.dry_run, "removed": removed, **built})
        return OK
    for name in removed:
        output.say(f"{'would remove' if arguments.dry_run else 'removed'} {printable(name)}")
    if not removed:
        output.note(f"{path}: nothing to remove")
    if done is not None:
        report(done, path, output)
    return OK


def _agreed(found: list[str]) -> bool:
    for name in found:
        print(f"  {printable(name)}", file=sys.stderr)
    print("Remove? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
