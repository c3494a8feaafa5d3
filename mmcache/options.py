"""The options of a cache, checked and typed once."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from .callbacks import CacheEvent
from .freshness import Policy, policy
from .progress import Shown, check_shown
from .schema import OnDuplicate, OnInvalid
from .sharing.decide import Rules
from .storage.trust import uids_of

if TYPE_CHECKING:
    from .sources.call import ChangedSince, Fetch, Fingerprint, Load
    from .storage.snapshot import Access, Verify

__all__ = ["EXECUTORS", "Executor", "GivenOptions", "MadeOptions", "OpenOptions", "Options", "Profile", "is_disabled"]

Executor = Literal["subprocess", "thread", "inline", "external"]
Profile = Literal["development", "staging", "production"]
EXECUTORS: Final = ("subprocess", "thread", "inline", "external")


class MadeOptions(TypedDict, total=False):
    """The keyword arguments of `mmcache.open`, which says what they mean, for what builds the file itself."""

    ttl: float | None
    profile: Profile
    refresh_at: float | None
    max_stale: float | None
    executor: Executor
    rebuild_after: float
    build_timeout: float
    wait: float
    check_interval: float
    slow_after: float | None
    fallback_on_slow: bool
    verify: Verify
    access: Access
    cluster_by: str | Mapping[str, str] | None
    metadata: Mapping[str, object] | None
    label: str
    rollout: float
    trust: str | int | Iterable[str | int]
    on_event: Callable[[CacheEvent], object] | None
    on_invalid: OnInvalid | None
    max_invalid: int | None
    on_duplicate: OnDuplicate | None
    progress: Shown


class OpenOptions(MadeOptions, total=False):
    """Those for a source that is there."""

    build: bool | None
    follow: str | None
    follow_every: float


class GivenOptions(OpenOptions, total=False):
    """All of them but `schema` and `model`."""

    load: Load | str | None
    fetch: Fetch | str | Mapping[str, Fetch | str] | None
    changed_since: ChangedSince | str | None
    fingerprint: Fingerprint | str | None


@dataclass(frozen=True, slots=True)
class Options:
    """As `OpenOptions`, with defaults. Raises ValueError for what does not fit."""

    ttl: float | None = None
    profile: Profile = "staging"
    refresh_at: float | None = None
    max_stale: float | None = None
    build: bool | None = None
    follow: str | None = None
    follow_every: float = 5.0
    executor: Executor = "subprocess"
    rebuild_after: float = 60.0
    build_timeout: float = 600.0
    wait: float = 30.0
    check_interval: float = 1.0
    slow_after: float | None = None
    fallback_on_slow: bool = False
    verify: Verify = "auto"
    access: Access = "mmap"
    cluster_by: str | Mapping[str, str] | None = None
    metadata: Mapping[str, object] | None = None
    label: str = ""
    rollout: float = 1.0
    trust: str | int | Iterable[str | int] = ()
    on_event: Callable[[CacheEvent], object] | None = None
    on_invalid: OnInvalid | None = None
    max_invalid: int | None = None
    on_duplicate: OnDuplicate | None = None
    progress: Shown = None
    policy: Policy = field(init=False)
    uids: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise ValueError(f"executor must be one of {', '.join(EXECUTORS)}, not {self.executor!r}")
        if self.follow is not None and not (isinstance(self.follow, str) and "://" in self.follow):
            raise ValueError(f"follow must be the URL of a store, such as s3://bucket/items, not {self.follow!r}")
        for name in ("build", "fallback_on_slow"):
            if (value := getattr(self, name)) not in (None, True, False):
                raise ValueError(f"{name} must be True or False, not {value!r}")
        if self.build is None:
            object.__setattr__(self, "build", self.follow is None)
        for name in ("follow_every", "rebuild_after", "build_timeout", "wait", "check_interval", "slow_after"):
            value = getattr(self, name)
            if name != "slow_after" or value is not None:
                object.__setattr__(self, name, _seconds(name, value))
        if isinstance(self.rollout, bool) or not isinstance(self.rollout, (int, float)) or not 0 <= self.rollout <= 1:
            raise ValueError(f"rollout must be a share of the processes, from 0 to 1, not {self.rollout!r}")
        if self.on_event is not None and not callable(self.on_event):
            raise TypeError(f"on_event must be callable with one CacheEvent, not {type(self.on_event).__name__}")
        check_shown(self.progress)
        object.__setattr__(self, "trust", tuple(self.trust) if isinstance(self.trust, Iterator) else self.trust)
        object.__setattr__(self, "uids", uids_of(self.trust))
        chosen = policy(self.profile, ttl=self.ttl, refresh_at=self.refresh_at, max_stale=self.max_stale)
        object.__setattr__(self, "policy", chosen)

    def given(self) -> dict[str, Any]:
        """The arguments that make these options again."""
        return {name: getattr(self, name) for name in OpenOptions.__annotations__}

    def rules(self) -> Rules:
        """For one process, which draws its jitter once."""
        return Rules(self.policy, self.rebuild_after, _random.uniform(-1.0, 1.0))


_random = random.SystemRandom()
"""From the system: a fork in C leaves the state of `random` as it was."""


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{name} must be a number of seconds, 0 or more, not {value!r}")
    return float(value)


def is_disabled() -> bool:
    """Whether MMCACHE_DISABLE sends every read to the source."""
    return os.environ.get("MMCACHE_DISABLE", "0") not in ("", "0")
