"""`Collection`: what everything that has records by key can do, whichever tier answers.

A collection of a file, of a cache, a snapshot and a cache are collections: a function that only reads takes a
`mmcache.Collection`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import ItemsView, Iterable, Mapping, ValuesView
from typing import TYPE_CHECKING, NamedTuple, TypeVar, Unpack, overload

from ..format.keys import Key, check_keys
from ..query import Term
from ..schema import R_co, Schema
from ..shown import made_here
from .asked import SearchOptions
from .rows import FileRef
from .selection import Selection

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import ArrayLike, NDArray

    from ..search.neighbours import Neighbours

__all__ = ["Collection", "EmbeddingRef", "sought"]

T = TypeVar("T")


@made_here
class EmbeddingRef(NamedTuple):
    """An embedding to be sent to another process of the machine: some hundred bytes, whatever its length.

    >>> ref = cache.embedding_ref("c")
    >>> ref.row, ref.field, pickle.loads(pickle.dumps(ref)).embedding.tolist()
    (2, None, [1.0, 1.0])
    """

    place: FileRef
    row: int
    field: str | None = None

    @property
    def embedding(self) -> NDArray[np.float32] | None:
        """float32, (dim,), read-only: a view of the file, mapped at the first use; None for a record without one.

        Raises GenerationGoneError when the generation it came from is neither the published file nor its backup.
        """
        return self.place.collection().vector(self.row, self.field)


class Collection(Mapping[Key, R_co]):
    """Records by key, read-only: of a file (`Snapshot`, `FileCollection`) or of both tiers (`Cache`,
    `CachedCollection`). Its values are of type `Record`, or of the model of its schema.

    >>> def sizes(items: mmcache.Collection) -> int:
    ...     return sum(record["size"] for record in items.where(kind="tool"))
    >>> sizes(cache), sizes(snapshot), sizes(cache.collection("items"))
    (3, 3, 3)
    """

    __slots__ = ()

    @overload
    def get(self, key: Key) -> R_co | None: ...
    @overload
    def get(self, key: Key, default: T) -> R_co | T: ...
    def get(self, key: Key, default: T | None = None) -> R_co | T | None:
        """The record, or a default where there is none. Raises TypeError for what is no key.

        >>> cache.get("a"), cache.get("nope"), cache.get("nope", 0)
        (Record({'id': 'a', 'kind': 'tool', 'size': 1}), None, 0)
        """
        try:
            return self[key]
        except KeyError:
            return default

    @abstractmethod
    def get_many(self, keys: Iterable[Key], *, embeddings: bool = False) -> list[R_co | None]:
        """The records of these keys, in their order, None where there is none. Cheaper than one by one.

        embeddings: read with the embedding of each, of several the first, which `record.embedding` then has at hand: it
        looks up nothing, and is there when the file was closed. A cache answers from its source for those that are
        damaged in the file.

        >>> [record and record.id for record in cache.get_many(["b", "nope", "a"])]
        ['b', None, 'a']
        >>> [record.embedding.tolist() for record in cache.get_many(["b", "a"], embeddings=True)]
        [[0.0, 1.0], [1.0, 0.0]]
        """

    @abstractmethod
    def values(self) -> ValuesView[R_co]:
        """The records, decoded in batches.

        >>> [record["size"] for record in cache.values()]
        [1, 2, 3]
        """

    @abstractmethod
    def items(self) -> ItemsView[Key, R_co]:
        """Keys and records, decoded in batches.

        >>> {key: record["kind"] for key, record in cache.items()}
        {'a': 'tool', 'b': 'tool', 'c': 'prompt'}
        """

    @abstractmethod
    def where(self, terms: Mapping[str, object] | None = None, /, **more: object) -> Selection[R_co]:
        """The records whose indexed fields have these values: AND over fields, a list means OR within one.

        >>> cache.where(kind="tool", size=mmcache.at_least(2)).ids
        ['b']
        """

    @abstractmethod
    def terms(self, field: str) -> dict[Term, int]:
        """The values of an indexed field and how many records have each, in the order of terms.

        >>> cache.terms("kind")
        {'prompt': 1, 'tool': 2}
        """

    @abstractmethod
    def embedding(self, key: Key, field: str | None = None) -> NDArray[np.float32] | None:
        """float32, (dim,), read-only; None for a record without one. field: of several embeddings, by default the
        first. Raises KeyError.

        >>> cache.embedding("a")
        array([1., 0.], dtype=float32)
        """

    @abstractmethod
    def get_embeddings(self, keys: Iterable[Key], field: str | None = None) -> NDArray[np.float32]:
        """float32, (number of keys, dim): the embeddings of these keys in their order, zeros where a record has none.

        >>> cache.get_embeddings(["b", "a"]).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
        """

    @abstractmethod
    def embedding_ref(self, key: Key, field: str | None = None) -> EmbeddingRef:
        """What to send to another process in place of an embedding. Raises KeyError.

        >>> cache.embedding_ref("a").embedding
        array([1., 0.], dtype=float32)
        """

    def nearest(
        self,
        vector: ArrayLike | None = None,
        k: int = 10,
        where: Mapping[str, object] | None = None,
        *,
        id: Key | None = None,  # noqa: A002 (as `Record.id`)
        **options: Unpack[SearchOptions],
    ) -> Neighbours[R_co]:
        """The k records whose embeddings are nearest to a vector, (dim,), or to that of another record.

        Exact, unless a `recall` is given.

        where: only among these: see `Collection.where`. id: the key of a record, which is none of its own neighbours.
        embedding: the field, of several; by default the first. metric: "cosine", "dot" or "euclidean"; by default the
            schema's.
        min_score: only what has this score at least. skip: keys that are no answer.
        threads: at most so many multiply. One vector, and few rows, are multiplied by the thread that calls; several
            vectors and many rows by BLAS, with as many threads as it was told, unless these are more than this.
        deadline: seconds after which SearchTimeoutError is raised.
        recall: the share of the answer that is enough, such as 0.95, by what the file measured (`Schema(sketch=True)`).
            Scores are those of an exact search. Exact all the same where a filter chooses the records, where they are
            few, and where the source answers. Raises RecallError for more than the file promises.

        A record without an embedding, or with NaN or infinite numbers in it, is never an answer. Raises ValueError for
        a vector with such numbers, of another length, or of zeros for a cosine; KeyError for an id that is not there.

        >>> cache.nearest([1.0, 0.2], k=2).ids, cache.nearest(id="a", where={"kind": "tool"}).ids
        (['a', 'c'], ['b'])
        """
        vector, told = sought(self, vector, id, options)
        return self.where(where).nearest(vector, k, **told)

    def nearest_many(
        self,
        matrix: ArrayLike,
        k: int = 10,
        where: Mapping[str, object] | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[Neighbours[R_co]]:
        """The same for each row of a matrix, (queries, dim): many times as fast, for the embeddings are read once.

        >>> [near.ids for near in cache.nearest_many([[1.0, 0.2], [0.2, 1.0]], k=1)]
        [['a'], ['b']]
        """
        return self.where(where).nearest_many(matrix, k, **options)

    @property
    @abstractmethod
    def embeddings(self) -> NDArray[np.float32]:
        """float32, (n, dim), read-only, rows without an embedding zero; of several embeddings the first.

        >>> cache.embeddings.shape
        (3, 2)
        """

    @abstractmethod
    def embeddings_of(self, field: str) -> NDArray[np.float32]:
        """The same of one of several embeddings. Raises ValueError for a field that is none.

        >>> cache.embeddings_of("vector")[2].tolist()
        [1.0, 1.0]
        """

    @property
    @abstractmethod
    def has_embedding(self) -> NDArray[np.bool_]:
        """bool, (n,): which rows of `embeddings` are those of records that have one. O(n).

        >>> cache.embeddings[cache.has_embedding].shape
        (3, 2)
        """

    @abstractmethod
    def has_embedding_of(self, field: str) -> NDArray[np.bool_]:
        """The same of one of several embeddings. Raises ValueError for a field that is none.

        >>> cache.has_embedding_of("vector").tolist()
        [True, True, True]
        """

    @abstractmethod
    def to_arrow(self, columns: Iterable[str] | None = None) -> pa.Table:
        """A pyarrow.Table of all records. Needs the extra `arrow`.

        >>> cache.to_arrow(["id", "size"]).to_pydict()
        {'id': ['a', 'b', 'c'], 'size': [1, 2, 3]}
        """

    @abstractmethod
    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The Arrow PyCapsule interface, through which pandas and DuckDB take a collection as it is."""

    @property
    @abstractmethod
    def schema(self) -> Schema:
        """Of this collection, the first one of a snapshot or cache.

        >>> cache.schema.name, cache.schema.key, cache.schema.index
        ('items', 'id', ('kind', 'size'))
        """


def sought(
    collection: Collection[object], vector: ArrayLike | None, key: Key | None, options: SearchOptions
) -> tuple[ArrayLike, SearchOptions]:
    """The vector that is searched for, and with what options: see `Collection.nearest`."""
    if (vector is None) is (key is None):
        raise TypeError("nearest() takes a vector, or id= of a record: one of the two")
    if vector is not None:
        return vector, options
    assert key is not None
    found = collection.embedding(key, options.get("embedding"))
    if found is None:
        raise ValueError(f"the record {key!r} has no embedding, and so no neighbours")
    return found, {**options, "skip": (*check_keys(options.get("skip", ())), key)}
