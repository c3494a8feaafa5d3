"""What a fleet costs, from 2 nodes to 10,000: requests and bytes are measured here, and the fleet is simulated by them.

    python -m benchmarks.fleet                                      measure, then simulate
    python -m benchmarks.fleet --every 60 --releases-a-day 96       another fleet
    python -m benchmarks.fleet --json out.json
    python -m benchmarks.fleet --figures out.json --nodes 500       without measuring again

Measured: a release is published to a server with the interface of S3 (moto), and a node brings it, as a whole and by a
delta, and polls. A proxy counts requests and bytes; seconds are the CPU time of the node. Simulated: polls with their
jitter, and transfers that share what the store gives. Prices and networks are parameters, not promises: the
defaults of requests are those that S3 listed in us-east-1 when this was written, and egress within a region is free.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import mmcache
from mmcache import Schema

from .common import ROOT, size_text, table_text
from .fleet_model import WAYS, Figures, Parameters, Requests, adopt, bill, busiest_second
from .fleet_store import Counted, environment, store

_POLLS = 20
_NODES = (2, 10, 100, 1_000, 10_000)


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.step:
        print(json.dumps(_step(*given.step)))
        return 0
    if given.figures:
        with open(given.figures, encoding="utf-8") as file:
            figures = _figures_of(json.load(file)["figures"])
    else:
        figures = measure(given.records, given.dim, given.changed)
    print(f"\n{measured_text(figures, given.changed)}")
    fleets = [_parameters(given, nodes) for nodes in given.nodes]
    results = [simulate(parameters, figures) for parameters in fleets]
    print(f"\n{simulated_text(fleets[0], results)}")
    if given.json:
        told = {"figures": asdict(figures), "fleet": asdict(fleets[0]), "results": results}
        Path(given.json).write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--records", type=int, default=50_000, help="of the file that is measured")
    add("--dim", type=int, default=128, help="numbers of its embeddings")
    add("--changed", type=float, default=0.01, help="share of records that the second release changes")
    add("--nodes", type=int, nargs="+", default=list(_NODES))
    add("--every", type=float, default=5.0, help="seconds between two polls of a node")
    add("--releases-a-day", type=float, default=24.0)
    add("--node-mbit", type=float, default=1_000.0, help="of a node's network")
    add("--store-gbit", type=float, default=100.0, help="that the store gives to all nodes together")
    add("--lists-price", type=float, default=0.005, help="of 1,000 LIST or PUT")
    add("--gets-price", type=float, default=0.0004, help="of 1,000 GET or HEAD")
    add("--egress-price", type=float, default=0.0, help="of a GB that leaves the store")
    add("--json", metavar="FILE")
    add("--figures", metavar="FILE", help="what --json wrote, in place of measuring")
    add("--step", nargs=3, help=argparse.SUPPRESS)
    return parser


def _parameters(given: argparse.Namespace, nodes: int) -> Parameters:
    return Parameters(
        nodes=nodes,
        every=given.every,
        releases_a_day=given.releases_a_day,
        node_bytes=given.node_mbit * 1e6 / 8,
        store_bytes=given.store_gbit * 1e9 / 8,
        lists_price=given.lists_price,
        gets_price=given.gets_price,
        egress_price=given.egress_price,
    )


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(records: int, dim: int, changed: float) -> Figures:
    """Two releases; a node that has nothing brings the first, and by a delta the second; then it polls."""
    with tempfile.TemporaryDirectory() as directory, store() as (endpoint, counted):
        os.environ |= environment(endpoint)
        url, made, node = "s3://bucket/items", Path(directory) / "made.mmc", f"{directory}/node/items.mmc"
        bring: dict[str, Requests] = {}
        seconds: dict[str, float] = {}
        size = 0
        for number, way in enumerate(WAYS):
            report = mmcache.build(made, _records(records, dim, changed * number), Schema("items", embedding="v"))
            size = report.size
            _published(counted, made, url)
            counted.reset()
            seconds[way] = _apart("follow", url, node)["cpu"]
            bring[way] = counted.requests
        counted.reset()
        _apart("poll", url, node)
        first_poll, listed = counted.requests, counted.of("LIST")
        counted.reset()
        _apart("polls", url, node)
        polls = counted.requests
    first = bring["blob"].received / size
    assert 1.0 <= first < 1.1, f"a node that has nothing received {first:.2f} times the file"
    # A process begins with a list, and a read of the newest entry that it then knows.
    look = (polls + first_poll.times(-1)).times(1 / _POLLS)
    assert look.lists == 0
    assert listed.lists == 1
    return Figures(size, look, listed, bring, seconds)


def _published(counted: Counted, made: Path, url: str) -> None:
    counted.reset()
    release = mmcache.publish(made, url)
    asked = ", ".join(f"{count} {method}" for method, count in sorted(counted.methods.items()))
    print(f"release {release.number}: {size_text(counted.sent)} sent by the publisher, {asked}", flush=True)


def _records(count: int, dim: int, changed: float) -> Any:
    rng = np.random.default_rng(1)
    vectors = rng.random((count, dim), np.float32)
    step = round(1 / changed) if changed else count + 1
    for i in range(count):
        version = 1 if i % step == 1 else 0
        text = f"{i} a record with some words of text in it, as they come; version {version}; " * 3
        yield {"id": f"item-{i:08}", "text": text, "v": vectors[i] + np.float32(version)}


def _apart(step: str, url: str, node: str) -> dict[str, float]:
    """In a process of its own, whose CPU time is the node's."""
    command = [sys.executable, "-m", "benchmarks.fleet", "--step", step, url, node]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def _step(step: str, url: str, node: str) -> dict[str, float]:
    from mmcache.remote.follower import Follower, Orders

    os.makedirs(os.path.dirname(node), exist_ok=True)
    follower = Follower(node, url, Orders())
    begun = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(_POLLS + 1 if step == "polls" else 1):
        follower.poll(timeout=60.0)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu": ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime}


def _figures_of(plain: dict[str, Any]) -> Figures:
    bring = {way: Requests(**requests) for way, requests in plain["bring"].items()}
    look, listed = (Requests(**plain[name]) for name in ("look", "list"))
    return Figures(plain["file"], look, listed, bring, plain["seconds"])


# --- telling ----------------------------------------------------------------------------------------------------------


def simulate(parameters: Parameters, figures: Figures) -> dict[str, Any]:
    """One row, by way: seconds until half, 99 of 100, and all nodes have a release, and the bill of a month."""
    row: dict[str, Any] = {"nodes": parameters.nodes}
    row["busiest"] = {
        "apart": busiest_second(parameters, figures, together=False),
        "together": busiest_second(parameters, figures, together=True),
    }
    for way in WAYS:
        adoption = adopt(parameters, figures, way)
        asked = bill(parameters, figures, way)
        row[way] = {
            "half": adoption.at(0.5),
            "most": adoption.at(0.99),
            "all": adoption.seconds[-1],
            "at once": adoption.most,
            **asdict(asked),
            "total": asked.total,
        }
    return row


def measured_text(figures: Figures, changed: float) -> str:
    asked = {
        "a poll that finds nothing new": (figures.look, 0.0),
        "a poll by a list": (figures.list, 0.0),
        "a release, as a whole": (figures.bring["blob"], figures.seconds["blob"]),
        f"a release that changes {changed:.0%}, by a delta": (figures.bring["delta"], figures.seconds["delta"]),
    }
    rows = [
        [
            what,
            f"{found.lists:.2f}",
            f"{found.gets:.2f}",
            f"{found.received / 1e3:,.1f} kB",
            f"{cpu:.2f} s" if cpu else "",
        ]
        for what, (found, cpu) in asked.items()
    ]
    header = ["measured, of one node", "LIST, PUT", "GET, HEAD", "received", "CPU"]
    return f"a file of {size_text(figures.file)}\n\n{table_text(header, rows, left=1)}"


def simulated_text(fleet: Parameters, results: Sequence[dict[str, Any]]) -> str:
    times = ["half", "99 %", "all"]
    header = ["nodes", "by", *times, "at once", "requests/s", "polls/month", "releases/month", "egress/month"]
    rows = [
        [
            f"{row['nodes']:,}",
            way,
            *(f"{row[way][share]:.1f} s" for share in ("half", "most", "all")),
            f"{row[way]['at once']:,}",
            f"{row['busiest']['apart']:,.0f}",
            *(f"{row[way][part]:,.2f}" for part in ("polls", "releases", "egress")),
        ]
        for row in results
        for way in WAYS
    ]
    told = (
        f"polls every {fleet.every:g} s, {fleet.releases_a_day:g} releases a day, "
        f"{fleet.node_bytes * 8e-6:,.0f} Mbit/s a node, {fleet.store_bytes * 8e-9:,.0f} Gbit/s of the store;\n"
        f"1,000 LIST or PUT cost {fleet.lists_price:g}, 1,000 GET {fleet.gets_price:g}, a GB that leaves the store "
        f"{fleet.egress_price:g}"
    )
    return f"{told}\n\n{table_text(header, rows)}"


if __name__ == "__main__":
    raise SystemExit(main())
