"""`mmcache enable`."""

from __future__ import annotations

import argparse
from typing import Final

from .options import OK, file_argument
from .output import Output

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Let a file that was disabled answer again, in all workers, from their next get on.

  mmcache enable items.mmc
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..sharing.operate import enable

    path: str = arguments.file
    output.change(path, "enabled", is_changed=enable(path), done="the file answers again", unchanged="was not disabled")
    return OK
