"""`ModelSelection`: a selection that gives instances of a model in the place of records. All else is the records'."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Unpack

from ..models import Model
from ..schema import R_co
from .asked import SearchOptions
from .selection import Selection

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["ModelSelection", "modelled"]


class ModelSelection(Selection[R_co]):
    """Made by `modelled`."""

    __slots__ = ("_model",)
    _model: Model[R_co]

    def __iter__(self) -> Iterator[R_co]:
        return map(self._model, self._records())

    def __getitem__(self, i: Any) -> Any:
        found: Any = super().__getitem__(i)
        return modelled(found, self._model) if isinstance(i, slice) else self._model(found)

    def order_by(self, field: str, *, descending: bool = False) -> Selection[R_co]:
        return modelled(super().order_by(field, descending=descending), self._model)

    def limit(self, n: int) -> Selection[R_co]:
        return modelled(super().limit(n), self._model)

    def nearest_many(self, matrix: ArrayLike, k: int = 10, **options: Unpack[SearchOptions]) -> list[Any]:
        return [one.of(self._model) for one in super().nearest_many(matrix, k, **options)]

    def __or__(self, other: Any) -> Any:
        return self._with(super().__or__(other))

    def __and__(self, other: Any) -> Any:
        return self._with(super().__and__(other))

    def __sub__(self, other: Any) -> Any:
        return self._with(super().__sub__(other))

    def _with(self, found: Any) -> Any:
        return found if found is NotImplemented else modelled(found, self._model)

    def __reduce__(self) -> tuple[Any, ...]:
        return modelled, (_alike(Selection, self), self._model)


def modelled(found: Selection[Any], model: Model[R_co]) -> Selection[R_co]:
    """The same records, as instances of a model."""
    made: ModelSelection[R_co] = _alike(ModelSelection, found)
    made._model = model
    return made


def _alike(kind: Any, found: Selection[Any]) -> Any:
    made = object.__new__(kind)
    for name in Selection.__slots__:
        setattr(made, name, getattr(found, name))
    return made
