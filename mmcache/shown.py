"""What a public class does not show: names for other modules of this package, and a constructor that no caller calls.

An underscore makes a name private to its module, and Python has no word for "of this package". A class names them here,
and makes no promise of them: `dir()` of its instances, `help()` and the pages of the API leave them out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from inspect import Signature

__all__ = ["ABSENT", "internal", "internals_of", "made_here"]

T = TypeVar("T", bound=type)

ABSENT: Final[Any] = object()
"""The default of what only this package gives to a constructor, so that a call by hand gets a message of its own."""


def internal(*names: str) -> Callable[[T], T]:
    """A decorator: these names of the class, and of those derived from it, are for this package.

    @internal("attach", "layout")
    class Snapshot: ...
    """

    def mark(kind: T) -> T:
        kind.__internal__ = (*vars(kind).get("__internal__", ()), *names)  # type: ignore[attr-defined]
        kind.__dir__ = _shown  # type: ignore[assignment]
        return kind

    return mark


def internals_of(kind: type) -> set[str]:
    """The names that a class and its bases gave to `internal`."""
    return {name for base in kind.__mro__ for name in vars(base).get("__internal__", ())}


def _shown(self: object) -> list[str]:
    hidden = internals_of(type(self))
    return [name for name in object.__dir__(self) if name not in hidden]


def made_here(kind: T) -> T:
    """A decorator: no caller constructs this class, so its signature says nothing."""
    kind.__signature__ = _Nothing(kind)  # type: ignore[attr-defined]
    return kind


class _Nothing:
    """A signature without parameters; of a derived class, its own."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def __get__(self, _: object, kind: type[Any]) -> Signature:
        if kind is not self._kind:
            raise AttributeError("__signature__")
        from inspect import Signature  # which readers need not load

        return Signature()
