"""Alerts: the rules that a cache file and its workers are held to, and which of them are broken. Pure functions.

`mmcache status --check`, `Cache.alerts` and the rules for Prometheus use the limits of `Rules`. The hit rate is that of
a recent window, so that a fleet that worked well for long is not taken for one that does.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Final

from .fleet import CAUSES_WITHOUT_FILE, Fleet
from .following import Following

__all__ = ["DAY", "HOUR", "TARGET", "WINDOW", "Alert", "Rules", "broken"]

TARGET: Final = 0.95
"""The hit rate that a cache is meant to reach; shown beside the rate, while an alert waits for `Rules.hit_rate`."""
WINDOW: Final = 600.0
"""Seconds over which the hit rate is taken: long enough that one rebuild in a busy fleet breaks no rule."""
HOUR: Final = 3_600.0
DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Rules:
    """What must hold. hit_rate: at least, of the answers of the last `window` seconds. load: seconds, the longest last
    opening of a worker. corruptions: damaged places in a day. rebuilds: in an hour. lag: seconds for which the file may
    be of another release than it should."""

    hit_rate: float = 0.90
    load: float = 0.010
    corruptions: int = 1
    rebuilds: int = 10
    window: float = WINDOW
    lag: float = 300.0

    def __post_init__(self) -> None:
        """Raises ValueError for a rule that nothing could break."""
        for name, found in asdict(self).items():
            expected, lowest, highest = _EXPECTED.get(name, _OF_OTHERS)
            if not lowest <= found <= highest:
                raise ValueError(f"{name} must be {expected}, not {found!r}")


_EXPECTED: Final = {
    "hit_rate": ("a share from 0 to 1", 0.0, 1.0),
    "window": ("seconds from 1 to 86400, a day", 1.0, DAY),
}
_OF_OTHERS: Final = "a number, 0 or more", 0.0, math.inf


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule that is broken. rule: "file" for one that cannot be used, "state" for one that may not answer, else
    "hit_rate", "load", "corruptions", "rebuilds" or "lag". text: a sentence. value, limit: found and allowed; None for
    "file" and "state".

    >>> (alert,) = cache.alerts(max_load=0.0)
    >>> alert.rule, alert.value > alert.limit, alert.text
    ('load', True, 'a worker opened the file in ... ms, expected 0 ms')
    """

    rule: str
    text: str
    value: float | None = None
    limit: float | None = None


def broken(
    state: str, why: str, fleet: Fleet, rules: Rules, now: float, *, following: Following | None = None
) -> list[Alert]:
    """state, why, following: of the file, as in `Status`. now: wall clock."""
    alerts = []
    if state in CAUSES_WITHOUT_FILE:
        alerts.append(Alert("file", f"the file is {state}: {why}"))
    elif state in ("expired", "invalidated"):
        alerts.append(Alert("state", f"the file is {state}: {why}"))
    rate = fleet.recent(rules.window, now).hit_rate
    if rate < rules.hit_rate:
        text = f"hit rate {rate:.1%} in the last {rules.window:g} s, expected at least {rules.hit_rate:.1%}"
        alerts.append(Alert("hit_rate", text, rate, rules.hit_rate))
    load = max((worker.load_seconds for worker in fleet.workers), default=0.0)
    if load > rules.load:
        text = f"a worker opened the file in {load * 1e3:.1f} ms, expected {rules.load * 1e3:g} ms"
        alerts.append(Alert("load", text, load, rules.load))
    damaged = fleet.damaged_places(DAY, now)
    if damaged > rules.corruptions:
        text = f"{damaged} corruptions in the last day, expected at most {rules.corruptions}"
        alerts.append(Alert("corruptions", text, damaged, rules.corruptions))
    rebuilds = len(fleet.events_of("rebuild", HOUR, now))
    if rebuilds > rules.rebuilds:
        text = f"{rebuilds} rebuilds in the last hour, expected at most {rules.rebuilds}"
        alerts.append(Alert("rebuilds", text, rebuilds, rules.rebuilds))
    lag = 0.0 if following is None else following.lag_seconds(now)
    if following is not None and lag > rules.lag:
        target = "any release" if following.target is None else f"release {following.target}"
        error = f": {following.error}" if following.error else ""
        text = f"the file has not been of {target} for {lag:.0f} s, expected {rules.lag:g} s at most{error}"
        alerts.append(Alert("lag", text, lag, rules.lag))
    return alerts
