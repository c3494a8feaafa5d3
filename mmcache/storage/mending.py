"""What a selection of a cache does where the file turns out to be damaged: the source answers its query anew.

A selection reads the file when it is asked for something, so damage may show long after the look-up. Then, once for all
that it is asked, another selection takes its place: what the source gives for the query, after the same operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, wraps
from itertools import compress, count, islice
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast

from ..errors import UnusableFileError

if TYPE_CHECKING:
    from .selection import Selection

__all__ = ["Instead", "after", "falls_back", "going_on"]

T = TypeVar("T")
_Method = TypeVar("_Method", bound=Callable[..., Any])


Instead = Union[Callable[[UnusableFileError], "Selection[Any]"], "Selection[Any]", None]
"""Of a selection: what is asked for another one where the file is damaged, and may raise instead; after that the other
one; None where the damage is an error."""


def falls_back(method: _Method) -> _Method:
    """Of a selection, whether it reads the file or makes another selection, which falls back by the same method."""

    @wraps(method)
    def call(self: Selection[Any], *given: Any, **named: Any) -> Any:
        if not given and not named and (self._instead is None or callable(self._instead)):
            try:
                return method(self)
            except UnusableFileError as error:
                return method(after(error, self))
        parents = tuple(map(_now, (self, *given)))
        try:
            made = method(*parents, **named)
        except UnusableFileError as error:
            if not any(map(_instead, parents)):
                raise
            return _anew(method, *parents, error, **named)
        is_new = getattr(made, "_instead", parents) is None and not any(made is one for one in parents)
        if is_new and any(map(_instead, parents)):
            made._instead = partial(_anew, method, *parents, **named)
        return made

    return cast("_Method", call)


def _instead(one: Any) -> Instead:
    return getattr(one, "_instead", None)


def _now(one: Any) -> Any:
    """What is there, or has taken its place."""
    instead = _instead(one)
    return one if instead is None or callable(instead) else instead


def after(error: UnusableFileError, one: Selection[Any]) -> Selection[Any]:
    """What takes its place from now on. Of threads at once each may ask."""
    instead = one._instead
    if instead is None:
        raise error
    if callable(instead):
        one._instead = instead = instead(error)
    return instead


def _anew(method: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """What a method gives of what takes the place of those selections that have something. The error comes last."""
    *parents, error = given
    return method(*(one if _instead(one) is None else after(error, one) for one in parents), **named)


def going_on(
    read: Callable[[], Iterator[T]],
    key_of: Callable[[T], object],
    others: Callable[[UnusableFileError], Iterator[T]],
) -> Iterator[T]:
    """What is read; from where the file is damaged on, those of the others whose keys were not given yet.

    read: begins anew at each call. key_of: of what it gives.
    """
    numbers = count(1)
    try:
        yield from compress(read(), numbers)  # which takes a number for each that is given
    except UnusableFileError as error:
        rest = others(error)
    else:
        return
    given = set(map(key_of, islice(read(), next(numbers) - 1)))
    yield from (one for one in rest if key_of(one) not in given)
