"""Nodes that poll a store and bring its releases, simulated: when each has a release, and what it costs.

All that the model knows of mmcache are `Figures`, which `benchmarks.fleet` measures. The rest are `Parameters`: how
many nodes, how often they poll, how fast networks are, and what a provider asks for.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmcache.remote.log import LIST_EVERY

__all__ = [
    "WAYS",
    "Adoption",
    "Bill",
    "Figures",
    "Parameters",
    "Requests",
    "adopt",
    "bill",
    "busiest_second",
    "transfers",
]

WAYS = ("blob", "delta")
"""How a node gets a release: the whole file, or what makes it of the one before."""

_DAY = 86_400.0
_MONTH = 30 * _DAY
_JITTER = 0.2
"""Share of the time between two polls by which it is drawn shorter or longer, as followers do."""


@dataclass(frozen=True)
class Requests:
    """By what a provider bills. lists: with puts. gets: with heads. received: bytes of answers."""

    lists: float = 0.0
    gets: float = 0.0
    received: float = 0.0

    def __add__(self, other: Requests) -> Requests:
        return Requests(self.lists + other.lists, self.gets + other.gets, self.received + other.received)

    def times(self, factor: float) -> Requests:
        return Requests(self.lists * factor, self.gets * factor, self.received * factor)


@dataclass(frozen=True)
class Figures:
    """What was measured. file: bytes. look: of a poll that finds nothing new. list: of one that asks for a list, as one
    does every LIST_EVERY seconds. bring: of a node that adopts a release, by
    way. seconds: of work on the node for that, the network apart, by way."""

    file: int
    look: Requests
    list: Requests
    bring: Mapping[str, Requests]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Parameters:
    """every: seconds between polls. node_bytes, store_bytes: a second, of a node and of the store for all. lists_price,
    gets_price: of 1,000 requests. egress_price: of 10^9 bytes. Prices are in one currency."""

    nodes: int
    every: float = 5.0
    releases_a_day: float = 24.0
    node_bytes: float = 1.25e8
    store_bytes: float = 1.25e10
    lists_price: float = 0.005
    gets_price: float = 0.0004
    egress_price: float = 0.0


@dataclass(frozen=True)
class Adoption:
    """Seconds from a release to when each node answers by it, ascending. waits: of these, until its poll, ascending.
    most: nodes that transfer at one moment."""

    seconds: Sequence[float]
    waits: Sequence[float]
    most: int

    def at(self, share: float) -> float:
        return self.seconds[min(int(share * len(self.seconds)), len(self.seconds) - 1)]


@dataclass(frozen=True)
class Bill:
    """For a month of 30 days. polls, releases: requests for them. egress: for the bytes of releases."""

    polls: float
    releases: float
    egress: float
    received: float

    @property
    def total(self) -> float:
        return self.polls + self.releases + self.egress


def adopt(parameters: Parameters, figures: Figures, way: str, seed: int = 1) -> Adoption:
    """One release. Nodes that transfer at one moment share what the store gives, and each takes what it can at most."""
    draw = random.Random(seed)
    waits = sorted(_wait(draw, parameters.every) for _ in range(parameters.nodes))
    ends, most = transfers(waits, figures.bring[way].received, parameters)
    return Adoption(sorted(end + figures.seconds[way] for end in ends), waits, most)


def _wait(draw: random.Random, every: float) -> float:
    """From a random moment of a node that has polled for long, until its next poll."""
    at, moment = 0.0, draw.uniform(20 * every, 40 * every)
    while at < moment:
        at += every * draw.uniform(1 - _JITTER, 1 + _JITTER)
    return at - moment


def transfers(begins: Sequence[float], size: float, parameters: Parameters) -> tuple[list[float], int]:
    """When each transfer ends, and how many there were at one moment at most. All have one size and one rate, so they
    end in the order in which they began: each when the work done for any one has grown by its size since."""
    waiting, active = deque(begins), deque[float]()
    now, done, most = 0.0, 0.0, 0
    ends: list[float] = []
    while waiting or active:
        rate = min(parameters.node_bytes, parameters.store_bytes / max(1, len(active)))
        begin = waiting[0] if waiting else float("inf")
        end = now + (active[0] - done) / rate if active else float("inf")
        if begin <= end:
            done += rate * (begin - now) if active else 0.0
            now = begin
            waiting.popleft()
            active.append(done + size)
            most = max(most, len(active))
        else:
            now, done = end, active.popleft()
            ends.append(now)
    return ends, most


def busiest_second(parameters: Parameters, figures: Figures, *, together: bool, seed: int = 1) -> float:
    """Requests in the busiest second of the tenth minute. together: all nodes were started at one moment."""
    draw = random.Random(seed)
    counts = [0] * 60
    each = figures.look.lists + figures.look.gets
    for _ in range(parameters.nodes):
        at = 0.0 if together else draw.uniform(0.0, parameters.every)
        while at < 600.0:
            if at >= 540.0:
                counts[int(at - 540.0)] += 1
            at += parameters.every * draw.uniform(1 - _JITTER, 1 + _JITTER)
    return max(counts) * each


def bill(parameters: Parameters, figures: Figures, way: str) -> Bill:
    """Of all nodes."""
    listed = 1 / max(parameters.every, LIST_EVERY)
    looked = 1 / parameters.every - listed
    polls = (figures.list.times(listed) + figures.look.times(looked)).times(parameters.nodes * _MONTH)
    brought = figures.bring[way].times(parameters.nodes * parameters.releases_a_day * _MONTH / _DAY)

    def price(requests: Requests) -> float:
        return (requests.lists * parameters.lists_price + requests.gets * parameters.gets_price) / 1000

    received = polls.received + brought.received
    return Bill(price(polls), price(brought), received * parameters.egress_price / 1e9, received)
