"""How old a file may get, decided from numbers alone: no clock is read here, and no die thrown.

    built                     refresh_age              ttl                    ttl + max_stale
      |---------- fresh ----------|------- stale -------|------- expired -------|--- expired ---->
              serve it             serve it, and one     the source answers, or if it fails:
                                   process rebuilds      the file               none

The words are those of RFC 5861. Times are wall-clock seconds since 1970 and may jump. Forwards, a file turns stale or
expired sooner than it had to, which costs one rebuild. Backwards, a file looks younger by the jump, and so lives longer
by no more than that; one that seems to be of the future is stale. No jump can make a file answer for ever, and one
backwards never takes a file away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

__all__ = ["PROFILES", "Freshness", "Policy", "State", "freshness", "may_answer", "policy"]

State = Literal["fresh", "stale", "expired"]

CLOCK_SKEW: Final = 60.0
"""A file may be this much ahead of our clock before it counts as one of the future: another host wrote it, or the
clock was corrected a little. It can stay fresh for as much longer than its refresh age."""

BUILDS_AHEAD: Final = 3.0
"""A refresh begins this many builds before the file expires: the next one may be slower, or fail once."""

EARLIEST: Final = 0.5
"""Share of the ttl before which no slow build pulls the refresh. At one half, a build of any length below that half
lands when the old file has not yet expired, and the new one is fresh when it lands: age counts from the start of the
build. Earlier, the file would be stale when it lands, and the builds never pause; later, there would be a gap. For
builds that take longer than half of the ttl no moment has both; they follow each other without a pause."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How long a file is good for. Times are in seconds.

    ttl: the age at which a file expires, above 0; math.inf: never.
    refresh_at: share of the ttl after which one process rebuilds in the background, above 0 and at most 1.
    max_stale: how long beyond the ttl an expired file may still answer when the source fails; 0 for not at all.
    jitter: share of the refresh age, from 0 to below 1, by which it differs between processes, so that fleets do not
    refresh together.

    Raises ValueError for anything else.
    """

    ttl: float = 3600.0
    refresh_at: float = 0.8
    max_stale: float = 86_400.0
    jitter: float = 0.05

    def __post_init__(self) -> None:
        # NaN fails every one of these comparisons.
        _check("ttl", self.ttl, "a number of seconds above 0 (math.inf: never expires)", lambda x: x > 0)
        _check("refresh_at", self.refresh_at, "a share of the ttl, above 0 and at most 1", lambda x: 0 < x <= 1)
        _check("max_stale", self.max_stale, "a number of seconds, 0 or more", lambda x: x >= 0)
        _check("jitter", self.jitter, "a share of the refresh age, from 0 to below 1", lambda x: 0 <= x < 1)


def _check(name: str, value: object, expected: str, accepts: Callable[[float], bool]) -> None:
    try:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and accepts(float(value))
    except OverflowError:  # an int that is larger than every float
        fits = False
    if not fits:
        raise ValueError(f"{name} must be {expected}, not {value!r}")


PROFILES: Final[Mapping[str, Policy]] = {
    "development": Policy(ttl=600.0),
    "staging": Policy(ttl=3600.0),
    "production": Policy(ttl=86_400.0),
}


def policy(
    profile: str = "staging",
    *,
    ttl: float | None = None,
    refresh_at: float | None = None,
    max_stale: float | None = None,
) -> Policy:
    """The policy of a profile, with what is given here in its place.

    Raises ValueError for a profile that is not in `PROFILES`, and as `Policy` does.
    """
    if not isinstance(profile, str) or profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, not {profile!r}")
    given = {"ttl": ttl, "refresh_at": refresh_at, "max_stale": max_stale}
    return replace(PROFILES[profile], **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Freshness:
    """What was decided, and why.

    age: seconds since the build began to read the source; negative for a file of the future.
    refresh_age: the age from which the file is stale, at most the ttl.
    """

    state: State
    age: float
    refresh_age: float
    ttl: float

    @property
    def reason(self) -> str:
        """For a log line or a person, without a dot at its end. Made when asked for: deciding is more frequent."""
        when = f"built {_span(self.age)} ago" if self.age >= 0 else f"built {_span(-self.age)} ahead of this clock"
        if math.isinf(self.ttl):
            return f"{when}, never expires"
        if self.state == "expired":
            return f"{when}, expired at {_span(self.ttl)}"
        if self.state == "fresh":
            return f"{when}, refreshed from {_span(self.refresh_age)} on"
        if self.age < 0:
            return f"{when}, so its age is not known"
        return f"{when}, due for a refresh since {_span(self.refresh_age)}"


def freshness(policy: Policy, *, now: float, built: float, build_seconds: float = 0.0, draw: float = 0.0) -> Freshness:
    """Whether a file is still good, `now`.

    built: when its build began to read the source; build_seconds: how long that build took.
    draw: from -1 to 1, drawn at random once by each process; it moves the refresh age by so much of the jitter.

    A file that is ahead of the clock by more than a minute was built before the clock went back. Its age is not known:
    it is stale, so it goes on answering, and the file of the rebuild has an age that is known. Where nothing depends
    on the age (ttl=math.inf), it is fresh.
    """
    age = now - built
    refresh_age = _refresh_age(policy, build_seconds, draw)
    state: State
    if math.isinf(policy.ttl):
        state = "fresh"
    elif age < -CLOCK_SKEW:
        state = "stale"
    elif age >= policy.ttl:
        state = "expired"
    else:
        state = "stale" if age >= refresh_age else "fresh"
    return Freshness(state, age, refresh_age, policy.ttl)


def may_answer(policy: Policy, age: float) -> bool:
    """Whether a file of this age may answer while the source fails: up to `max_stale` beyond its ttl."""
    return age <= policy.ttl + policy.max_stale


def _refresh_age(policy: Policy, build_seconds: float, draw: float) -> float:
    """As planned, or earlier for a slow build. A plan that is earlier than `EARLIEST` stands: it was chosen."""
    ttl = policy.ttl
    planned = policy.refresh_at * ttl * (1 + policy.jitter * draw)
    in_time = max(ttl - BUILDS_AHEAD * build_seconds, EARLIEST * ttl)
    return min(planned, in_time, ttl)  # in_time is beyond the ttl if the clock went back during the build


def _span(seconds: float) -> str:
    """A time in the largest unit that it fills twice, to three digits: "90 minutes", "1.25 seconds"."""
    seconds = round(seconds, 3)
    unit, length = next((u for u in _UNITS if seconds >= 2 * u[1]), ("second", 1))
    value = seconds / length
    text = f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"
    return f"{text} {unit}" if text == "1" else f"{text} {unit}s"


_UNITS: Final = (("day", 86_400), ("hour", 3600), ("minute", 60))
