"""`mmcache disable`."""

from __future__ import annotations

import argparse
from typing import Final

from ..text import printable
from .options import OK, file_argument
from .output import Output
from .rollback import add_reason

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Have the source answer in place of a file, in all workers, until `mmcache enable`.

For caches that have a source; others go on with the file. Workers follow within their next get. Nothing is built
meanwhile, but what is invalidated counts. The switch is a file, FILE.disabled, and stays across reboots. One process
alone is disabled by MMCACHE_DISABLE=1 in its environment.

  mmcache disable items.mmc
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)
    add_reason(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..sharing.operate import disable

    path: str = arguments.file
    output.change(
        path,
        "disabled",
        is_changed=disable(path, reason=arguments.reason),
        done=f"answered by the source; to end that: mmcache enable {printable(path)}",
        unchanged="was disabled already",
    )
    return OK
