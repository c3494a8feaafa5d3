"""`mmcache resume`."""

from __future__ import annotations

import argparse
from typing import Final

from .options import OK, file_argument
from .output import Output

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Let a file that was rolled back be built again, as its age and its source ask for.

The first rebuild begins soon, since the file is not what the source holds; until it has landed the file answers on.
`mmcache rebuild` ends a rollback too, and builds at once.

  mmcache resume items.mmc
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..sharing.operate import resume

    path: str = arguments.file
    output.change(
        path, "resumed", is_changed=resume(path), done="goes on as its age and source ask for", unchanged="was not held"
    )
    return OK
