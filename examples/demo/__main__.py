"""`python -m examples.demo`: see mmcache work, offline.

A bank of 1,000 test patterns in SQLite, one file made from it, and a fleet of four worker processes that read that file
without a pause: while it is built again, while a record is changed in SQLite, and while a builder is killed. It takes
some 10 seconds on an idle machine, up to a minute on a busy one.

Every figure is measured while you watch, on this machine. Works in a temporary directory, or in one that you name and
can play with afterwards.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmcache import MmcacheError
from mmcache.cli.output import Output
from mmcache.text import span

from .steps import WORKERS, Demo


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", metavar="DIR", help="work here, and leave the files (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")
    parser.add_argument("--verbose", action="store_true", help="print the warnings of the damage that is done, too")
    arguments = parser.parse_args()
    if os.environ.get("MMCACHE_DISABLE", "0") not in ("", "0"):
        parser.error("MMCACHE_DISABLE sends every read to SQLite, and there would be nothing to see: unset it")
    begun, output = time.perf_counter(), Output(json=arguments.json, verbose=arguments.verbose)
    try:
        with _directory(parser, arguments.dir) as directory, _quiet_log(output):
            result = Demo(directory, output).run()
    except MmcacheError as error:
        output.error(f"demo: {error}")
        return 1
    result |= {"seconds": time.perf_counter() - begun, "dir": arguments.dir}
    if output.json:
        output.document(result)
    else:
        _close(arguments.dir, result, output)
    return 0 if _passed(result) else 1


@contextmanager
def _directory(parser: argparse.ArgumentParser, wanted: str | None) -> Iterator[str]:
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix="mmcache-demo-") as directory:
            yield directory
        return
    try:
        os.makedirs(wanted, exist_ok=True)
        there = os.listdir(wanted)
    except OSError as error:
        parser.error(f"{wanted} cannot be used ({error.strerror}): choose another directory")
    if there:
        parser.error(f"{wanted} is not empty: choose another directory")
    yield wanted


@contextmanager
def _quiet_log(output: Output) -> Iterator[None]:
    """The damage is done on purpose; its warnings belong to the story only with --verbose."""
    log = logging.getLogger("mmcache")
    handler = logging.NullHandler()
    log.addHandler(handler)
    propagate, log.propagate = log.propagate, output.verbose
    try:
        yield
    finally:
        log.propagate = propagate
        log.removeHandler(handler)


def _passed(result: dict[str, Any]) -> bool:
    damage, killed = result["damage"], result["killed"]
    return (
        result["reading"]["failed"] == 0
        and result["update"]["kind"] == "ids"
        and all(len(workers) == WORKERS for workers in result["fleet"])
        and killed["left"] > 0
        and killed["swept"]
        and damage["same_answer"]
        and damage["found_by_verify"] is not None
        and damage["found_by_get"]
        and damage["verified_after"]
    )


def _close(directory: str | None, result: dict[str, Any], output: Output) -> None:
    machine = result["machine"]
    output.say()
    output.say(
        f"Measured in {span(result['seconds'])} on {machine['system']}, {machine['cpus']} CPUs, "
        f"Python {machine['python']}; other machines differ, ratios less so."
    )
    output.say()
    output.heading("Next")
    if directory is None:
        output.say("  python -m examples.demo --dir play   the same, and the files stay")
        output.say("  mmcache build --help                 a file from a database of your own")
    else:
        file = os.path.join(directory, "patterns.mmc")
        output.say(f"  mmcache get {file} pattern-7")
        output.say(f"  mmcache find {file} domain=api framework=pytest")
        output.say(f"  mmcache inspect {file}")
    output.say("  python -m benchmarks.lookup          more records, more readers, other stores")


if __name__ == "__main__":
    sys.exit(main())
