"""What a node says of the releases that it follows: one line of JSON beside the cache file, `<name>.follow`.

A follower writes it, under a new name that takes the place of the old. Any process reads it: `status`, metrics, alerts,
and the other workers of the node, which poll no store while one of them does. Without this line a follower brings the
release again, from what this machine has of it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from ..errors import MmcacheError, UnusableFileError
from ..format.header import Tokens
from ..storage import fs
from ..storage.levers import put_line
from ..storage.names import follow_name

__all__ = ["RELEASES", "Following", "Mark", "following", "following_now", "polled_at", "say_polled", "tell"]

_LONGEST: Final = 16_384
_NEVER: Final = 1e11
"""Seconds of the wall clock, in the year 5138: no time that is believed is later."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What a page said at a time of the wall clock, so that a release which was made later covers it."""

    seen_ns: int
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Following:
    """The releases that a node follows.

    release: whose content the file has; None before the first. generation: of the file then. target: the release that
    the node is to have, by the store and its pin. newest: the last that was not withdrawn. pinned: to which one, by the
    store or by this node; None if not. polled, published: wall clock: of the last poll that the store answered, and of
    the target. behind: since when the file is not of the target; 0.0 where it is. error: of the last poll; "" for none.

    >>> _ = mmcache.publish("cache.mmc", "memory://followed/items")
    >>> found = mmcache.follow("memory://followed/items", "node.mmc")
    >>> found.release, found.target, found.lag, found.lag_seconds(time.time()), found.error
    (1, 1, 0, 0.0, '')
    """

    url: str
    release: int | None = None
    generation: int = 0
    target: int | None = None
    newest: int | None = None
    pinned: int | None = None
    polled: float = 0.0
    published: float = 0.0
    behind: float = 0.0
    error: str = ""
    mark: Mark | None = None

    @property
    def lag(self) -> int | None:
        """By how many numbers the newest release is ahead; None where either is not known."""
        return None if self.release is None or self.newest is None else max(0, self.newest - self.release)

    def lag_seconds(self, now: float) -> float:
        """For how long the node has not had what it is to have. now: wall clock."""
        return max(0.0, now - self.behind) if self.behind else 0.0


RELEASES: Final[Mapping[str, tuple[str, Callable[[Following, float], float]]]] = {
    "release": ("Release that the file is of; 0 for none.", lambda said, _: said.release or 0),
    "release_target": (
        "Release that it should be of, by the store and pins; 0 for none.",
        lambda said, _: said.target or 0,
    ),
    "release_newest": ("Newest release of the store that was not withdrawn.", lambda said, _: said.newest or 0),
    "release_pinned": ("Release that the node is pinned to; 0 for none.", lambda said, _: said.pinned or 0),
    "release_lag_seconds": ("For how long the file has not been of its target.", Following.lag_seconds),
    "release_polled_seconds": ("Time since the store answered a poll.", lambda said, now: max(0.0, now - said.polled)),
}
"""Gauges of a node that follows, without their prefix: what they tell, and their value now."""


def following(path: str) -> Following | None:
    """What the node of a cache file follows; None where it follows nothing, or that cannot be read."""
    try:
        with contextlib.closing(fs.ReadFile(follow_name(path))) as file:
            plain = json.loads(file.read(0, _LONGEST))
        mark = plain.pop("mark")
        found = Following(**plain, mark=None if mark is None else Mark(mark["seen_ns"], Tokens(*mark["tokens"])))
    except (UnusableFileError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return found if _is_typed(found) else None


def _is_typed(found: Following) -> bool:
    numbers = found.release, found.target, found.newest, found.pinned
    times = found.polled, found.published, found.behind
    mark = (0,) if found.mark is None else (found.mark.seen_ns, *found.mark.tokens)
    return (
        all(_is_count(one) for one in (*(one for one in numbers if one is not None), found.generation, *mark))
        and all(type(one) in (int, float) and 0 <= one < _NEVER for one in times)
        and type(found.url) is type(found.error) is str
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**64


def tell(path: str, said: Following) -> bool:
    """Whether it could be written."""
    plain: dict[str, Any] = asdict(said)
    if said.mark is not None:
        plain["mark"] = {"seen_ns": said.mark.seen_ns, "tokens": list(said.mark.tokens)}
    try:
        with fs.Directory(path) as directory:
            put_line(directory, follow_name(directory.name), json.dumps(plain, separators=(",", ":")))
    except MmcacheError:
        return False
    return True


def say_polled(path: str) -> None:
    """That nothing is new: the file's time says so, which costs no write."""
    with contextlib.suppress(MmcacheError), fs.Directory(path) as directory:
        directory.touch(follow_name(directory.name))


def polled_at(path: str) -> float:
    """When the node polled last, or was about to; 0.0 for never. Wall clock; one `stat`."""
    identity = fs.identity_of(follow_name(os.path.abspath(path)))
    return 0.0 if identity is None else identity[3] / 1e9


def following_now(path: str) -> Following | None:
    """The same, with the time of the last poll, which may have found nothing new."""
    said = following(path)
    return said if said is None or said.error else replace(said, polled=max(said.polled, polled_at(path)))
