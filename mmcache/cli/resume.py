"""Let a file that was rolled back be built again, as its age and its source ask for.

The first rebuild begins soon, since the file is not what the source holds; until it has landed the file answers on.
`mmcache rebuild` ends a rollback too, and builds at once.
"""

from __future__ import annotations

import argparse

from ..words import printable
from .options import OK, file_argument
from .output import Output

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..sharing.operate import resume

    path: str = arguments.file
    is_changed = resume(path)
    if output.json:
        output.document({"path": path, "resumed": is_changed})
    elif is_changed:
        output.say(f"{printable(path)}: goes on as its age and source ask for")
    else:
        output.note(f"{path}: was not held")
    return OK
