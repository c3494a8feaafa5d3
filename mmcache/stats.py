"""`Stats`: what one process has seen of a cache, as `Cache.stats` gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .sharing.fleet import State

__all__ = ["Stats"]


@dataclass(frozen=True, slots=True)
class Stats:
    """What this process has seen of one cache.

    hits: the file answered. misses: no tier had the id. fallbacks: the source answered, by cause: "absent" (an id that
    the file lacks), "invalidated", "expired", "record" (damage in what was read), "slow", "building" (another process
    is), "disabled", or why there is no file: "missing", "corrupt", "incompatible", "unreadable", "untrusted".
    stale_served: answers of a file that was due to be built again, or had expired while the source failed.
    corruptions: damage met, in a file or in a record. opens: files opened; adoptions: those in the place of another;
    refusals: files that were not right. load_seconds: how long the last opening took. fallback_seconds: spent in the
    source, all together. rebuilds, build_failures: builds that this cache ran itself, in a get or a thread.
    invalidations: said here. slow_lookups: beyond `slow_after`. invalid: rows that the file left out, as they could not
    be taken. generation: of the file; None while there is none.
    state: as in `Status`; "starting" before the first read. counters: each counter by its name in the table of metrics.

    >>> cache["a"]["kind"], cache.get("nope")
    ('tool', None)
    >>> stats = cache.stats()
    >>> stats.hits, stats.misses, stats.hit_rate, stats.state, stats.generation
    (1, 1, 0.5, 'fresh', 1)
    """

    hits: int
    misses: int
    fallbacks: Mapping[str, int]
    stale_served: int
    corruptions: int
    opens: int
    adoptions: int
    refusals: int
    rebuilds: int
    build_failures: int
    invalidations: int
    slow_lookups: int
    invalid: int
    load_seconds: float
    fallback_seconds: float
    generation: int | None
    state: State
    counters: Mapping[str, int] = field(default_factory=dict, repr=False)

    @property
    def hit_rate(self) -> float:
        """Answers from the file over all answers; 1.0 before the first."""
        total = self.hits + self.misses + sum(self.fallbacks.values())
        return self.hits / total if total else 1.0
