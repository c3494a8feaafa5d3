"""`CachedCollection`: one collection of a cache, the file first, the source for whatever the file cannot answer.

A get takes no lock: it finds out whether anything is new (see `watch`), and asks the reader of the view, which raises
for an id that only the source may answer; then `tiers` says what answers. Readers in the middle of something finish
with the generation that they began with.

What is read as a whole (`where`, `len`, iteration, Arrow) is the file's rows without the dirty ones, and the source's
answer for those: an `Overlay`.
"""

from __future__ import annotations

import contextlib
from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from .errors import SourceError, UnusableFileError
from .format.keys import Key, check_key, check_keys, is_key
from .front import Front
from .logs import escape_paths
from .models import Model
from .options import OpenOptions, Options
from .query import Term, parse_query
from .schema import R_co, Schema
from .sharing import metrics
from .sharing.invalidation import Kind, Reason
from .shown import ABSENT, internal, made_here
from .sources.base import Source
from .storage.asked import SearchOptions, one_of
from .storage.modelled import modelled
from .storage.overlay import Overlay
from .storage.readable import sought
from .storage.record import Record, RecordItems, RecordValues
from .storage.selection import Selection
from .storage.snapshot import Collection, DirtyError, EmbeddingRef, FileCollection
from .storage.vectors import presence_of, stacked
from .tiers import NOT_HERE, Tiers
from .watch import Watch

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import ArrayLike, NDArray

    from .search.neighbours import Neighbours

__all__ = ["CachedCollection", "Reason"]

escape_paths()

T = TypeVar("T")


@made_here
@internal("all_records")
class CachedCollection(Front[R_co], Collection[R_co]):
    """One collection of a cache: a read-only mapping over both tiers. Made by `Cache.collection`.

    >>> items = cache.collection("items")
    >>> items["a"]["kind"], items.where(kind="prompt").ids, len(items)
    ('tool', ['c'], 3)

    What the file cannot answer, or may not because it was invalidated or has expired, is answered by the source.
    Raises KeyError where no tier has the key, SourceError where the source fails or is missing, ClosedError after the
    cache was closed. What is no key is a TypeError, as in `Collection`; that a key of a type was asked for which no key
    has is logged once.
    """

    def __init__(self, watch: Watch = ABSENT, name: str | None = ABSENT, model: Model[R_co] | None = None) -> None:
        if name is ABSENT:
            raise TypeError("a CachedCollection is given by a cache: cache.collection(name)")
        self._model = model
        self._watch = watch
        self._counting = watch.counting
        self._tiers = Tiers(watch, name)
        self._name = name  # None is the default collection, whatever it is called

    @property
    def model(self) -> type[R_co] | None:
        """What it gives for a record, instances of this class; None: a `Record`.

        >>> cache.model is None
        True
        """
        return None if self._model is None else self._model.kind

    # --- lookups by key: what `Front` does not find in the file

    def _instead(self, key: Key, error: Exception | None) -> R_co:
        """What a get gives where the file does not. error: one of `NOT_HERE`; None: the file may not answer at all."""
        if error is None:
            found = self._tiers.read([key])[0]
        else:
            found = self._tiers.source.fetch([key], self._tiers.why_not(error))[0]
        if found is None:
            raise KeyError(key)
        return found if self._model is None else self._model(found)  # type: ignore[return-value]

    def _embedding_instead(self, key: Key, field: str | None, error: Exception | None) -> NDArray[np.float32] | None:
        """The same of `embedding`."""
        cause = "" if error is None else self._tiers.why_not(error)
        reader = None
        if error is None:
            reader, cause = self._tiers.reader()
        if reader is not None:
            try:
                embedding = reader.embedding(key, field)
            except NOT_HERE as again:
                cause = self._tiers.why_not(again)
            else:
                self._counting.bump()
                return embedding
        if field is not None:
            self._tiers.check_embedding(field)
        record = self._tiers.source.fetch([key], cause)[0]
        if record is None:
            raise KeyError(key)
        return record.embedding if field is None else record.embedding_of(field)

    def get_many(self, keys: Iterable[Key], *, embeddings: bool = False) -> list[R_co | None]:
        """The records of these keys, in their order, None where no tier has it. embeddings: as of any `Collection`."""
        found, model = self._tiers.read(check_keys(keys), embeddings=embeddings), self._model
        if model is None:
            return found  # type: ignore[return-value]
        return [None if record is None else model(record) for record in found]

    def __contains__(self, key: object) -> bool:
        if not is_key(key):
            return False
        reader, cause = self._tiers.reader()
        if reader is not None:
            try:
                if key in reader:
                    self._counting.add(metrics.BATCH_HITS)
                    return True
                cause = "absent"
            except (DirtyError, UnusableFileError) as error:
                cause = self._tiers.why_not(error)
        plain = check_key(key)
        return self._tiers.source.takes(plain) and self._tiers.source.fetch([plain], cause)[0] is not None

    def get_embeddings(self, keys: Iterable[Key], field: str | None = None) -> NDArray[np.float32]:
        """float32, (number of keys, dim): the embeddings of these keys in their order, zeros where a record has none.

        Gathered from the file at the speed of memory, if that may answer all of them; else read one by one. field: as
        for `embedding`. Raises KeyError for a key that no tier has, SourceError for embeddings of two lengths.
        """
        wanted = check_keys(keys)
        reader, _ = self._tiers.reader()
        if reader is not None:
            with contextlib.suppress(KeyError, DirtyError, UnusableFileError):
                found = reader.get_embeddings(wanted, field)
                self._counting.add(metrics.BATCH_HITS, len(wanted))
                return found
        dim = self._tiers.check_embedding(field)
        return stacked(wanted, [self.embedding(key, field) for key in wanted], dim)

    def embedding_ref(self, key: Key, field: str | None = None) -> EmbeddingRef:
        """What to send to another process in place of an embedding. Raises KeyError; SourceError while only the source
        may answer for this id: send the embedding itself. field: as for `embedding`."""
        reader, _ = self._tiers.reader()
        try:
            if reader is not None:
                return reader.embedding_ref(key, field)
        except DirtyError:
            pass
        except UnusableFileError as error:
            self._watch.damaged(error)
        self._tiers.check_embedding(field)
        raise SourceError("the source answers now, and only a file has rows: send the embedding itself")

    # --- all of it

    def __len__(self) -> int:
        whole, cause = self._tiers.whole()
        return self._tiers.source.count(cause) if whole is None else len(whole)

    def __iter__(self) -> Iterator[Key]:
        whole, cause = self._tiers.whole()
        if whole is None:
            yield from (record.id for record in self._tiers.source.records(cause))
        else:
            yield from self._tiers.all_of(lambda: iter(whole.keys()), lambda key: key, lambda record: record.id)

    def values(self) -> ValuesView[R_co]:
        """The records, decoded in batches."""
        return RecordValues(self)

    def items(self) -> ItemsView[Key, R_co]:
        """Keys and records, decoded in batches."""
        model = self._model
        if model is None:
            return RecordItems(self)
        return RecordItems(self, lambda: ((record.id, model(record)) for record in self._records()))

    def all_records(self) -> Iterator[R_co]:
        """What `values` iterates over."""
        records = self._records()
        return records if self._model is None else map(self._model, records)  # type: ignore[return-value]

    def _records(self) -> Iterator[Record]:
        whole, cause = self._tiers.whole()
        if whole is None:
            return self._tiers.source.records(cause)
        return self._tiers.all_of(whole.all_records, lambda record: record.id, lambda record: record)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """float32, (n, dim), read-only: the file's block, as of its generation, whatever single ids were invalidated.

        A copy made from the source while the file may not answer at all. Of several embeddings the first.
        """
        return self._tiers.block(lambda whole: whole.embeddings)

    def embeddings_of(self, field: str) -> NDArray[np.float32]:
        """The same of one of several embeddings. Raises ValueError for a field that is none."""
        self._tiers.check_embedding(field)
        return self._tiers.block(lambda whole: whole.embeddings_of(field))

    @property
    def has_embedding(self) -> NDArray[np.bool_]:
        """bool, (n,): which rows of `embeddings` are those of records that have one; the others are zeros. O(n)."""
        return self._tiers.block(lambda whole: _presence(whole, None))

    def has_embedding_of(self, field: str) -> NDArray[np.bool_]:
        """The same of one of several embeddings."""
        self._tiers.check_embedding(field)
        return self._tiers.block(lambda whole: _presence(whole, field))

    def to_arrow(self, columns: Iterable[str] | None = None) -> pa.Table:
        """A pyarrow.Table of all records: see `Collection.to_arrow`.

        From the file, without a copy of the embeddings, if that may answer for every id; else a copy.
        """
        whole, cause = self._tiers.whole()
        if whole is not None:
            try:
                return (whole.everything() if isinstance(whole, Overlay) else whole).to_arrow(columns)
            except UnusableFileError as error:
                cause = self._watch.damaged(error)
        return self._tiers.source.everything(cause).to_arrow(columns)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """See `Collection.__arrow_c_stream__`."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    @property
    def schema(self) -> Schema:
        """As the source has it, or without one the file."""
        return self._tiers.schema

    # --- lookups by field

    def where(  # type: ignore[override]  # a field `snapshot` goes into `terms`
        self, terms: Mapping[str, object] | None = None, /, *, snapshot: bool = False, **more: object
    ) -> Selection[R_co]:
        """The records whose indexed fields have these values: AND over fields, a list means OR within one.

        A value may be a range: `between` and its like, `startswith`, a `range` of ints; or `excluding`. The answer can
        be ordered and cut: `where(...).order_by(field).limit(10)`.

        From the file; for ids that were invalidated, or while the file may not answer, or where it is damaged, also
        where that shows only when the answer is read, from the source. Order: file rows ascending, a dirty record that
        still matches at its old row, then records without a row in the source's order. snapshot: the answer of the
        file's generation alone, if there is a file. (A field of that name goes into `terms`.)
        """
        query = parse_query(self.schema, terms, more)
        held = self._watch.current().snapshot if snapshot else None
        whole, cause = self._tiers.indexed(query, held)
        if whole is not None:
            try:
                selection = whole.find(query)
            except UnusableFileError as error:
                cause = self._watch.damaged(error)
            else:
                self._counting.add(metrics.BATCH_HITS)
                return self._as_given(self._tiers.falling_back(selection, query))
        return self._as_given(self._tiers.source.find(query, cause))

    def nearest(
        self,
        vector: ArrayLike | None = None,
        k: int = 10,
        where: Mapping[str, object] | None = None,
        *,
        id: Key | None = None,  # noqa: A002 (as `Record.id`)
        snapshot: bool = False,
        **options: Unpack[SearchOptions],
    ) -> Neighbours[R_co]:
        """The k records whose embeddings are nearest to a vector: see `Collection.nearest`.

        As true as a get: ids that were invalidated are scored as the source has them now, and while the file may not
        answer, or where it is damaged, all of the source's records are read and scored. snapshot: as for `where`.
        """
        vector, told = sought(self, vector, id, options)
        return self.nearest_many(one_of(vector), k, where, snapshot=snapshot, **told)[0]

    def nearest_many(
        self,
        matrix: ArrayLike,
        k: int = 10,
        where: Mapping[str, object] | None = None,
        *,
        snapshot: bool = False,
        **options: Unpack[SearchOptions],
    ) -> list[Neighbours[R_co]]:
        """The same for each row of a matrix, (queries, dim): many times as fast, for the embeddings are read once."""
        query = parse_query(self.schema, where, {})
        held = self._watch.current().snapshot if snapshot else None
        found = self._tiers.nearest(query, held, matrix, k, options)
        return found if self._model is None else [one.of(self._model) for one in found]  # type: ignore[return-value]

    def _as_given(self, found: Selection) -> Selection[R_co]:
        return found if self._model is None else modelled(found, self._model)  # type: ignore[return-value]

    def terms(self, field: str) -> dict[Term, int]:
        """The values of an indexed field and how many records have each, in the order of terms: null, numbers, text.

        From the file, with the source's answer for ids that were invalidated; O(terms). While the file may not answer,
        all records of the source are read.
        """
        query = parse_query(self.schema, {field: None}, {})
        whole, cause = self._tiers.indexed(query)
        if whole is not None:
            try:
                terms = whole.terms(field)
            except UnusableFileError as error:
                cause = self._watch.damaged(error)
            else:
                self._counting.add(metrics.BATCH_HITS)
                return terms
        return self._tiers.source.terms(field, cause)

    # --- invalidation

    def invalidate(
        self,
        ids: Iterable[Key] | None = None,
        *,
        collection: str | None = None,
        reason: Reason = "manual",
        hard: bool | None = None,
    ) -> Kind:
        """Say to every process on this machine that the source has changed. When it returns, no get that begins later,
        in whatever process, gives what was before. What it became: "ids", "soft" or "hard".

        ids: exactly these, new and deleted ones too, are answered by the source until a newer generation covers them,
            also in `where`, `len` and iteration. More than 16,384 at once count as everything.
        collection: theirs; by default this one, of a cache its first. Without ids: everything in this collection.
        reason: record_stored, record_deleted, config_updated, schema_migration, ttl_expired or manual. Without ids it
            decides, unless `hard` does: soft for record_stored and ttl_expired, hard for the others. pattern_stored and
            pattern_deleted, of the preset for patterns, are other names of the first two.
        hard: True: the source answers everything until a rebuild has landed. False, soft: the file goes on answering
            while it is built again.

        Some microseconds, and a few system calls. Commit first, then invalidate. Raises PublishError where the others
        cannot be told, since nothing may be written beside the file or they would not see it: see `mmcache doctor`.
        Raises TypeError for what is no key of the collection, such as a part of one, and SourceError for ids for which
        no source is known: neither to this cache nor to its file.

        >>> cache.invalidate(["a"], reason="record_stored"), cache["a"]["size"], cache.stats().fallbacks["invalidated"]
        ('ids', 1, 1)
        """
        if collection is None:
            collection = self.schema.name if ids is not None or self._name is not None else None
        else:
            collection = self._tiers.known(collection)
        if ids is not None and not isinstance(ids, (str, bytes, int)):
            ids = self._tiers.answerable(str(collection), list(ids))
        return self._watch.invalidate(collection, ids, reason=reason, hard=hard)

    # --- itself

    def __repr__(self) -> str:
        name = "" if self._name is None else f", collection {self._name!r}"
        return f"<{type(self).__name__} {self._watch.path!r}{name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Opened again where it arrives."""
        watch = self._watch
        opened = watch.path, watch.source, watch.options.given()
        return _reopen, (type(self), opened, self._name, self._model)


def _reopen(
    kind: type[CachedCollection[Any]],
    opened: tuple[str, Source | None, OpenOptions],
    name: str | None,
    model: Model[Any] | None,
) -> CachedCollection[Any]:
    path, source, options = opened
    watch = Watch(path, source, Options(**options))
    collection = kind.__new__(kind)
    CachedCollection.__init__(collection, watch, name, model)
    return collection


def _presence(whole: FileCollection | Selection, field: str | None) -> NDArray[np.bool_]:
    if isinstance(whole, FileCollection):
        return whole.has_embedding if field is None else whole.has_embedding_of(field)
    return presence_of([record.embedding if field is None else record.embedding_of(field) for record in whole])
