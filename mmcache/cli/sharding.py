"""The options of `build` by which several processes, or the workers of a cluster, read the source."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .options import UsageError, count

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["add_shards", "shards_of"]


def add_shards(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("shards: parts of the source that are read at once, and merged")
    group.add_argument(
        "--shards", type=count, metavar="N", help="read it in N parts at most, by processes of this machine"
    )
    group.add_argument("--workers", type=count, metavar="N", help="so many processes (default: a CPU each)")
    group.add_argument("--dask", metavar="ADDRESS", help="by the workers of a Dask cluster: tcp://scheduler:8786")
    group.add_argument(
        "--segments",
        metavar="DIR|URL",
        help="where the parts wait to be merged: a directory that all workers see, or a store: s3://bucket/scratch "
        "(default: beside FILE)",
    )


@contextlib.contextmanager
def shards_of(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The keyword arguments of `mmcache.build` for them, while its workers are there. Raises UsageError."""
    if arguments.shards is None:
        given = [name for name in ("workers", "dask", "segments") if getattr(arguments, name) is not None]
        if given:
            raise UsageError(f"--{given[0]} goes with --shards")
        yield {}
        return
    if arguments.shards < 1 or arguments.workers == 0:
        raise UsageError("--shards and --workers must be 1 or more")
    if arguments.workers is not None and arguments.dask is not None:
        raise UsageError("give --workers or --dask, not both")
    with _cluster(arguments.dask) if arguments.dask is not None else _processes(arguments) as executor:
        yield {"shards": arguments.shards, "executor": executor, "segments": arguments.segments}


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client  # which comes without types
    except ImportError:
        raise UsageError("--dask needs the extra dask: pip install 'mmcache[dask]'") from None
    try:
        client: Any = Client(address, timeout=30)  # type: ignore[no-untyped-call, unused-ignore]
    except (OSError, ValueError) as error:
        raise UsageError(f"no Dask cluster answers at {address}: {error}") from None
    with client:
        yield client.get_executor(pure=False)


@contextlib.contextmanager
def _processes(arguments: argparse.Namespace) -> Iterator[Executor]:
    """New interpreters: what a forked child of this one may not use, such as connections and stores, they make anew."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    workers = min(arguments.shards, arguments.workers or _cpus())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as executor:
        yield executor


def _cpus() -> int:
    """Those that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _begin() -> None:
    """Ctrl-C reaches all processes of a terminal, and ends a worker without a word; the build says what happened."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
