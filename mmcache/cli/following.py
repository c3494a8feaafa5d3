"""What a node follows, for JSON and for people."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..text import ago, printable, span

if TYPE_CHECKING:
    from ..sharing.following import Following

__all__ = ["line_of", "to_json"]


def to_json(said: Following) -> dict[str, Any]:
    """For JSON."""
    now = time.time()
    return {
        "url": said.url,
        "release": said.release,
        "target": said.target,
        "newest": said.newest,
        "pinned": said.pinned,
        "generation": said.generation,
        "lag": said.lag,
        "lag_seconds": round(said.lag_seconds(now), 3),
        "polled_seconds": round(max(0.0, now - said.polled), 3) if said.polled else None,
        "error": said.error or None,
    }


def line_of(said: Following) -> str:
    """For people."""
    now = time.time()
    parts = [f"{'none' if said.release is None else said.release} of {printable(said.url)}"]
    if said.pinned is not None:
        parts.append(f"pinned to {said.pinned}")
    if said.newest is not None and said.newest != said.release:
        parts.append(f"the newest is {said.newest}")
    if said.behind:
        parts.append(f"not of release {said.target} for {span(said.lag_seconds(now))}")
    parts.append(f"polled {ago(max(0.0, now - said.polled))}" if said.polled else "never polled")
    if said.error:
        parts.append(printable(said.error))
    return ", ".join(parts)
