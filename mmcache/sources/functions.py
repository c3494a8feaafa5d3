"""Functions by name: what a message and a spec call one, and whether a new process finds it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ..values import Unimported

__all__ = ["described", "is_findable"]


def described(function: Callable[..., Any]) -> str:
    """The function as "module:name", whether it can be imported by that or not."""
    if isinstance(function, Unimported):
        return function.name
    named: Any = function if hasattr(function, "__qualname__") else getattr(function, "func", type(function))
    return f"{getattr(named, '__module__', None) or '?'}:{getattr(named, '__qualname__', type(named).__name__)}"


def is_findable(name: str | None) -> bool:
    """Whether a new process that searches where this one does imports the same module by a name "module:function".

    Not one that was loaded from elsewhere, or made at run time.
    """
    if name is None:
        return False
    module = name.partition(":")[0]
    loaded = getattr(sys.modules.get(module), "__spec__", None)
    if loaded is None:
        return False
    found, path, steps = None, None, module.split(".")
    for i in range(len(steps)):
        found = _spec_of(".".join(steps[: i + 1]), path)
        if found is None:
            return False
        path = found.submodule_search_locations
    return found is not None and found.origin == loaded.origin


def _spec_of(module: str, path: Any) -> Any:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is not None and (found := find(module, path)) is not None:
            return found
    return None
