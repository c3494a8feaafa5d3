"""`np`: numpy, imported when it is used first. What reads without arrays does not pay for it.

A module like numpy's own, whose names are found in numpy when they are asked for first, and kept. It is a plain
module, since Python finds the attributes of one in the quickest way. A `Cache` has threads, and an import in one of
them leaves a lock in a child that is forked meanwhile: its modules import numpy, and `logging`, at once.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["np"]

if TYPE_CHECKING:
    import numpy as np
else:
    np = ModuleType("numpy", "numpy, imported when it is used first.")


def _found(name: str) -> Any:
    import numpy  # noqa: ICN001 (np is what stands for it)

    value = vars(np)[name] = getattr(numpy, name)
    return value


vars(np)["__getattr__"] = _found
