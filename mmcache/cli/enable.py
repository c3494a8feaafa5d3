"""Let a file that was disabled answer again, in all workers, from their next get on."""

from __future__ import annotations

import argparse

from ..words import printable
from .options import OK, file_argument
from .output import Output

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..sharing.operate import enable

    path: str = arguments.file
    is_changed = enable(path)
    if output.json:
        output.document({"path": path, "enabled": is_changed})
    elif is_changed:
        output.say(f"{printable(path)}: the file answers again")
    else:
        output.note(f"{path}: was not disabled")
    return OK
