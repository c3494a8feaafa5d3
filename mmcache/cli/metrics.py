"""`mmcache metrics`."""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from typing import Final

from .options import ERROR, FILE_COMPLETION, OK, UsageError
from .output import Output

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Print what all workers of a cache file have counted, as Prometheus reads it, or as JSON.

  mmcache metrics FILE > /var/lib/node_exporter/textfile/mmcache.prom
  mmcache metrics --rules > mmcache-rules.yml
  mmcache metrics --dashboard > mmcache-dashboard.json

Prometheus's format needs the prometheus extra: pip install 'mmcache[prometheus]'. The others do not.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    action = parser.add_argument("file", metavar="FILE", nargs="?", help="the cache file")
    action.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--rules", action="store_true", help="print alert rules for Prometheus instead")
    instead.add_argument("--dashboard", action="store_true", help="print a Grafana dashboard instead")


def run(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.rules or arguments.dashboard:
        if arguments.file is not None:
            raise UsageError("--rules and --dashboard are the same for every FILE: give none")
        from ..integrations import monitoring

        if arguments.rules:
            print(monitoring.rules(), end="")
        else:
            print(json.dumps(monitoring.dashboard(), indent=2))
        return OK
    if arguments.file is None:
        raise UsageError("expected FILE, --rules or --dashboard")
    path: str = arguments.file
    if output.json:
        return _print_json(path, output)
    if find_spec("prometheus_client") is None:
        output.error(
            "mmcache metrics: prometheus_client is not installed. Next: pip install 'mmcache[prometheus]', or --json"
        )
        return ERROR
    from ..integrations.prometheus import text_of

    _check_exists(path)
    print(text_of(path), end="")
    return OK


def _check_exists(path: str) -> None:
    """A fleet without workers is no error; a wrong path is."""
    from ..errors import MissingFileError
    from ..sharing.counters import read_fleet
    from ..storage.fs import identity_of

    if identity_of(path) is None:
        fleet = read_fleet(path)
        if not fleet.workers and not fleet.since:
            raise MissingFileError("there is no such file: build it, or check the path", path=path)


def _print_json(path: str, output: Output) -> int:
    from ..sharing.alerts import WINDOW
    from ..sharing.counters import read_fleet
    from ..sharing.following import following_now
    from .fleet import to_json
    from .following import to_json as following_to_json

    _check_exists(path)
    said = following_now(path)
    releases = None if said is None else following_to_json(said)
    output.document({"path": path, **to_json(read_fleet(path), WINDOW), "following": releases})
    return OK
