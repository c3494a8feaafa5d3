"""`mmcache completion`."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import Final

from .options import ERROR, OK
from .output import Output

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Print a completion script for a shell.

  bash: mmcache completion bash > ~/.local/share/bash-completion/completions/mmcache
  zsh:  mmcache completion zsh  > a directory of $fpath, as _mmcache
  fish: mmcache completion fish > ~/.config/fish/completions/mmcache.fish

Needs the cli extra: pip install 'mmcache[cli]'.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh"), help="which shell")


def run(arguments: argparse.Namespace, output: Output) -> int:
    if find_spec("shtab") is None:
        output.error("mmcache completion: shtab is not installed. Next: pip install 'mmcache[cli]'")
        return ERROR
    import shtab

    if arguments.shell not in shtab.SUPPORTED_SHELLS:
        output.error(
            f"mmcache completion: this shtab ({shtab.__version__}) knows no {arguments.shell}. "
            "Next: pip install --upgrade 'shtab>=1.9'"
        )
        return ERROR
    from .main import make_parser

    print(shtab.complete(make_parser(), arguments.shell))
    return OK
