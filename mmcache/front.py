"""`Front`: the look-ups by key of a collection of a cache, as far as the file answers them; the base of it.

A get looks whether anything is new, asks the reader of the view, and counts the hit. The compiled core has a twin,
which reads the clock, the word and the count in place, without a call.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from .counting import Counting
from .format.keys import Key
from .models import Model
from .native import bound, core
from .schema import R_co
from .tiers import NOT_HERE
from .watch import Watch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Front", "PureFront"]

T = TypeVar("T")

bound(NOT_HERE, "NOT_HERE")


class PureFront(Generic[R_co]):
    """_name: of the collection; None is the default one, whatever it is called. _model: what makes of a record what is
    given for it; None: nothing does."""

    _counting: Counting
    _model: Model[R_co] | None
    _name: str | None
    _watch: Watch

    # `__getitem__` and `embedding` repeat the path of a hit: a function that both call makes each hit 2 % slower.

    def __getitem__(self, key: Key) -> R_co:
        watch = self._watch
        begun = time.monotonic()
        if begun >= watch.due or watch.word[0] != watch.seen:
            watch.catch_up(begun)
        reader = watch.view.readers.get(self._name)
        if reader is not None:
            try:
                record = reader[key]
            except NOT_HERE as error:
                answer = error
            else:
                counting = self._counting
                hits = counting.bump()
                if not hits & counting.mask:
                    watch.sample(begun, hits)
                return record if self._model is None else self._model(record)  # type: ignore[return-value]
            return self._instead(key, answer)
        return self._instead(key, None)

    @overload
    def get(self, key: Key) -> R_co | None: ...
    @overload
    def get(self, key: Key, default: T) -> R_co | T: ...
    def get(self, key: Key, default: T | None = None) -> R_co | T | None:
        """The record, or a default where no tier has it."""
        try:
            return self[key]
        except KeyError:
            return default

    def embedding(self, key: Key, field: str | None = None) -> NDArray[np.float32] | None:
        """float32, (dim,), read-only: a view of the file, or the source's; None for a record without one.

        field: which, of several embeddings; by default the first. Raises ValueError for a field that is none.
        """
        watch = self._watch
        begun = time.monotonic()
        if begun >= watch.due or watch.word[0] != watch.seen:
            watch.catch_up(begun)
        reader = watch.view.readers.get(self._name)
        if reader is not None:
            try:
                embedding = reader.embedding(key, field)
            except NOT_HERE as error:
                answer = error
            else:
                counting = self._counting
                hits = counting.bump()
                if not hits & counting.mask:
                    watch.sample(begun, hits)
                return embedding
            return self._embedding_instead(key, field, answer)
        return self._embedding_instead(key, field, None)

    # --- what the file does not answer

    def _instead(self, key: Key, error: Exception | None) -> R_co:
        raise NotImplementedError

    def _embedding_instead(self, key: Key, field: str | None, error: Exception | None) -> NDArray[np.float32] | None:
        raise NotImplementedError


class _Compiled:
    """Subscripted as its twin is."""

    def __getitem__(self, _: object) -> Any:
        return core.Front


if TYPE_CHECKING or core is None:  # noqa: SIM108 (type checkers want a class)
    Front = PureFront
else:
    Front = _Compiled()
