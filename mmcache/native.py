"""Which implementation of the hot path runs: the compiled core, or its twin in Python. Decided here, once, at import.

Each class that a get goes through has a base of these two implementations: `ByKey`, `Fields`, `First`, `Watched`,
`Hits` and `Front`. The core answers what it can prove; all else, errors included, is Python in both. MMCACHE_PURE=1 in
the environment selects Python. A core that is there and cannot be loaded is logged, with its cause; so is one that was
compiled for other sources, as an editable install keeps it when the sources are updated.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, Final, Literal, TypeVar

__all__ = [
    "VARIABLE",
    "Implementation",
    "bound",
    "core",
    "described",
    "implementation",
    "msgpack_implementation",
    "plain",
    "reason",
]

VARIABLE: Final = "MMCACHE_PURE"

REVISION: Final = 6
"""Of what C and Python share; core/core.h has the same number."""

Implementation = Literal["compiled", "pure"]

T = TypeVar("T")


def _loaded() -> tuple[Any, str]:
    """The core, or None, and why."""
    if os.environ.get(VARIABLE, "") not in ("", "0"):
        return None, f"{VARIABLE} is set"
    name = f"{__package__}._core"
    try:
        module: Any = import_module(name)
        found = getattr(module, "revision", 0)
        if found != REVISION:
            raise ImportError(
                f"{module.__file__} has revision {found}, and these sources need {REVISION}: install mmcache again"
            )
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            return None, "mmcache was installed without its compiled core"
        import logging  # which nothing else here needs

        text = "pure Python runs: the compiled core cannot be loaded: %s"
        logging.getLogger("mmcache").warning(text, error, extra={"event": "pure"})
        return None, f"the compiled core cannot be loaded: {error}"
    return module, ""


_found: Final = _loaded()

core: Final[Any] = _found[0]
"""The module `mmcache._core`, or None."""

reason: Final = _found[1]
"""Why pure Python runs; empty where it does not."""

implementation: Final[Implementation] = "pure" if core is None else "compiled"


def bound(value: T, name: str) -> T:
    """The value, made known to the core under this name."""
    if core is not None:
        core.bind(name, value)
    return value


def msgpack_implementation() -> Implementation:
    """Which implementation of its own the package msgpack runs."""
    import msgpack

    return "pure" if msgpack.Unpacker.__module__ == "msgpack.fallback" else "compiled"


def described() -> str:
    """For a person: "compiled core", or "pure Python (why)"; and the same of msgpack where that is pure Python."""
    ours = "compiled core" if core is not None else f"pure Python ({reason})"
    return ours if msgpack_implementation() == "compiled" else f"{ours}; of msgpack: pure Python"


def plain() -> dict[str, str | None]:
    """For a program: which runs here, why it is not the core, and which one of msgpack's own runs."""
    return {"mmcache": implementation, "reason": reason or None, "msgpack": msgpack_implementation()}
