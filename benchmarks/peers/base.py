"""`Peer`: what a benchmark asks of a store, be it mmcache or what a user would take instead.

A peer is one module of this directory and says in its docstring how its own documentation recommends to use it: the
warm transaction, the prepared statement, the pipeline. Each operation is a loop of its own, so that nothing but the
library and the loop is timed, and returns its last answer, which `lookup` and `scan` compare with those of all others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks.data import DataSet

Facets = tuple[str, str, str]
"""domain, type, framework"""


class AbsentError(Exception):
    """A peer that cannot run here; says what is missing. It is left out with a notice."""


class Peer:
    """A store of one data set: `write` makes it, once; an instance is one process's way to it.

    name: in tables. how: of its use, half a line, for tables too. operations: the methods below that it takes part in;
    what it has no way for is not named. store: whose store it reads, for a second way of using the same; None: its own.
    slow: an operation takes so long that it is done on a few ids only.
    """

    name: ClassVar[str]
    how: ClassVar[str]
    operations: ClassVar[frozenset[str]]
    suffix: ClassVar[str] = ""
    store: ClassVar[type[Peer] | None] = None
    slow: ClassVar[bool] = False

    @classmethod
    def write(cls, data: DataSet, path: str) -> None:
        """Make the store at `path`, a file or a directory, from the bank of the data set. Raises AbsentError."""
        raise NotImplementedError

    @classmethod
    @contextlib.contextmanager
    def serving(cls, path: str) -> Iterator[str]:
        """While this lasts, the store can be opened by any process at the address given. A server starts here."""
        yield path

    def __init__(self, address: str) -> None:
        """Open it, and do nothing else: this is what `open` times. Raises AbsentError."""
        raise NotImplementedError

    def warm(self) -> None:
        """Touch everything once."""

    def close(self) -> None:
        """Let go of everything, as at the end of a worker."""

    # Each works through all that it is given and returns the last answer.

    def get(self, ids: Sequence[str]) -> Any:
        """Of each id the whole record decoded, and its domain read."""
        raise NotImplementedError

    def miss(self, ids: Sequence[str]) -> Any:
        """Of ids that are not there: None."""
        raise NotImplementedError

    def get_many(self, batches: Sequence[list[str]]) -> list[str]:
        """Of each batch all records decoded, in the order of the ids; of the last batch, the domains."""
        raise NotImplementedError

    def everything(self, batches: Sequence[list[str]]) -> list[Any]:
        """Of each batch all records decoded, each field of them read, and the first number of each embedding; of the
        last batch, what was read."""
        raise NotImplementedError

    def embedding(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """Of each id its embedding as a float32 array, without a copy where there is a way."""
        raise NotImplementedError

    def gather(self, batches: Sequence[list[str]]) -> NDArray[np.float32]:
        """Of each batch the embeddings as one float32 matrix, in the order of the ids."""
        raise NotImplementedError

    def domain(self, domains: Sequence[str]) -> list[str]:
        """Of each domain the ids of its records, in any order."""
        raise NotImplementedError

    def facets(self, facets: Sequence[Facets]) -> list[str]:
        """Of each domain, type and framework the ids of the records that have all three, in any order."""
        raise NotImplementedError

    def scan_ids(self) -> list[str]:
        """All ids, in any order."""
        raise NotImplementedError

    def scan_records(self) -> int:
        """Decode every record, read its domain; how many there were."""
        raise NotImplementedError

    def scan_embeddings(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores of all embeddings against a query: float32, (n,), in any order."""
        raise NotImplementedError
