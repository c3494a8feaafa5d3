"""Print a completion script for a shell.

  bash: mmcache completion bash > ~/.local/share/bash-completion/completions/mmcache
  zsh:  mmcache completion zsh  > a directory of $fpath, as _mmcache

Needs the cli extra: pip install 'mmcache[cli]'.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from .options import ERROR, OK
from .output import Output

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="which shell")


def run(arguments: argparse.Namespace, output: Output) -> int:
    if find_spec("shtab") is None:
        output.error("mmcache completion: shtab is not installed. Next: pip install 'mmcache[cli]'")
        return ERROR
    import shtab

    from .main import make_parser

    print(shtab.complete(make_parser(), arguments.shell))
    return OK
