"""The names of the files beside a cache file, every one of them; no I/O.

A name is of the cache file's own name, or of its path: each function takes either and gives the same. What begins with
a dot and ends with `.tmp` is a temporary file of one writer, which the next writer removes.
"""

from __future__ import annotations

import os

__all__ = [
    "backup_name",
    "control_name",
    "disabled_name",
    "follow_name",
    "hold_name",
    "is_leftover",
    "lock_name",
    "resumed_name",
    "temp_name",
    "wake_name",
]

_TEMP_SUFFIX = ".tmp"
_HEX = frozenset("0123456789abcdef")


def lock_name(name: str) -> str:
    return f"{name}.lock"


def control_name(name: str) -> str:
    return f"{name}.ctl"


def backup_name(name: str) -> str:
    return f"{name}.bak"


def hold_name(name: str) -> str:
    return f"{name}.hold"


def resumed_name(name: str) -> str:
    return f"{name}.resumed"


def disabled_name(name: str) -> str:
    return f"{name}.disabled"


def follow_name(name: str) -> str:
    return f"{name}.follow"


def wake_name(name: str, number: int) -> str:
    """Of the word of a control page. name: without a directory. number: the nonce of the page that names it."""
    return f".{name}.{number:016x}.wake"


def temp_name(name: str) -> str:
    """One that no file has had before. name: without a directory."""
    return f".{name}.{os.urandom(8).hex()}{_TEMP_SUFFIX}"


def is_leftover(candidate: str, name: str) -> bool:
    """Whether this is the name of a temporary file of a writer of `name`, which may be dead."""
    if candidate == f"{backup_name(name)}.new":
        return True
    token = candidate[-len(_TEMP_SUFFIX) - 16 : -len(_TEMP_SUFFIX)]
    owners = (name, control_name(name), *_own_page_names(candidate, name))
    return _HEX.issuperset(token) and any(candidate == f".{owner}.{token}{_TEMP_SUFFIX}" for owner in owners)


def _own_page_names(candidate: str, name: str) -> tuple[str, ...]:
    """The page of one boot that this may be a temporary file of: see `sharing.attach`."""
    begin = f"..{name}."
    tag = candidate[len(begin) : len(begin) + 4]
    return (f".{name}.{tag}.ctl",) if candidate.startswith(begin) and _HEX.issuperset(tag) else ()
