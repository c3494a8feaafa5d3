"""Records and embeddings for `torch.utils.data.DataLoader`, and embeddings as tensors without a copy. Needs the extra
`torch`.

    dataset = MmcacheDataset(snapshot.where(domain="api"), columns=("embedding", "type"))
    for vectors, types in DataLoader(dataset, batch_size=64, shuffle=True, num_workers=4): ...

    bank = as_tensor(snapshot.embeddings)
    scores, rows = torch.topk(bank @ query, 10)

What a dataset gives is memory of its own, gathered once for a batch: it may be written to, and a worker that sends it
sends no more than its batch. What `as_tensor` gives is the file itself, which all processes have in common and which is
mapped read-only. Torch has no such thing as a read-only tensor, and one write would be the end of the process, by
SIGSEGV; a `ReadOnlyTensor` raises in its place, and so does every view of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from operator import index
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

import numpy as np
import torch
from torch.utils.data import Dataset
from torch.utils.dlpack import from_dlpack

from ..cache import Cache
from ..errors import SourceError
from ..storage.record import Record
from ..storage.selection import Selection
from ..storage.snapshot import CollectionRef, FileCollection, Snapshot

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MmcacheDataset", "ReadOnlyTensor", "as_tensor"]


class MmcacheDataset(Dataset[Any]):
    """Records of one generation as a map-style dataset; item i is that of the i-th row.

    It keeps to the generation that it was made from, whatever is published or invalidated meanwhile, so that what a
    sampler counted stays as it was. For a newer one make a dataset anew, and a DataLoader of it, between two epochs.

    A forked worker inherits the map. Any other gets the path, what tells the generation, and the rows, 4 bytes each.
    It maps it at its first item, from the path or from the backup; GenerationGoneError if it is neither by then.
    Nothing is held for a record but its row, so that the memory of workers does not grow from epoch to epoch.

    >>> from mmcache.integrations.torch import MmcacheDataset
    >>> dataset = MmcacheDataset(snapshot.where(kind="tool"), columns=("vector", "size"))
    >>> len(dataset), dataset.rows.tolist(), dataset[1]
    (2, [0, 1], (tensor([0., 1.]), 2))
    """

    def __init__(
        self,
        of: Cache | Snapshot | FileCollection | Selection,
        *,
        columns: str | Iterable[str] | None = None,
        transform: Callable[[Record, Any], Any] | None = None,
        drop_missing: bool = False,
    ) -> None:
        """of: what `where` found in a file, or all of a collection; of a cache or a snapshot, of its first.
        columns: what an item is. One name: that field, or the embedding, a float32 tensor (dim,). More: a tuple of
            them, with None for a field that the record lacks. By default the embedding alone.
        transform: makes the item, of the record and its embedding, a tensor, None in a collection without. In place of
            columns; where workers are not forked it must pickle.
        drop_missing: leave out records without an embedding; else they are an error, where embeddings are asked for.

        Raises ValueError for a column that there is not, or a record without an embedding; UnusableFileError for a
        cache without a file; and SourceError for a selection with records of the source, as only a file has rows.
        """
        if columns is not None and transform is not None:
            raise TypeError("give columns= or transform=, not both: a transform gets the whole record")
        collection, rows = _rows_of(of)
        schema, layout = collection.schema, collection.layout
        embedding = schema.first_embedding if collection.dim else None
        if columns is None and transform is None:
            if embedding is None:
                raise ValueError(f"collection {schema.name!r} has no embeddings: give columns= or transform=")
            columns = embedding
        names = () if columns is None else (columns,) if isinstance(columns, str) else tuple(columns)
        if transform is None and not names:
            raise ValueError("give at least one column")
        there = list(dict.fromkeys(name for shape in layout.shapes for name in shape.names))
        if embedding is not None:
            there.append(embedding)
        if unknown := [name for name in names if name not in there]:
            raise ValueError(f"no column {unknown[0]!r}; there are: {', '.join(there)}")
        if layout.missing and (transform is not None or embedding in names or drop_missing):
            has = collection.has_embedding[rows]
            if not drop_missing and not has.all():
                first = collection.ids_at(rows[~has][:1])[0]
                raise ValueError(
                    f"{len(rows) - int(has.sum())} of {len(rows)} records have no embedding, such as {first!r}: "
                    "leave them out with drop_missing=True"
                )
            rows = rows[has]
        self._at: FileCollection | CollectionRef = collection
        self._rows = rows
        self._names = names
        self._fields = {name for name in names if name != embedding}
        self._is_one = isinstance(columns, str)
        self._embedding = embedding if transform is not None or embedding in names else None
        self._transform = transform

    @property
    def rows(self) -> NDArray[np.uint32]:
        """uint32, (len,): the row of each item in its collection. Read-only."""
        view = self._rows.view()
        view.flags.writeable = False
        return view

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item: SupportsIndex) -> Any:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[SupportsIndex]) -> list[Any]:
        """The items of a batch, in this order: one gather, one decode. A DataLoader asks for them so."""
        rows = self._rows.take(np.fromiter(map(index, items), np.int64, len(items)))
        collection = self._collection()
        tensors: Sequence[torch.Tensor | None] = [None] * len(rows)
        if self._embedding is not None:
            # Rows that follow each other are a view of the file, which must not leave.
            tensors = torch.from_numpy(np.require(collection.embeddings_at(rows), requirements="W")).unbind()
        if self._transform is not None:
            return list(map(self._transform, _records_at(collection, rows), tensors))
        records = _records_at(collection, rows) if self._fields else []
        columns = [
            [record.get(name) for record in records] if name in self._fields else tensors for name in self._names
        ]
        return list(columns[0]) if self._is_one else list(zip(*columns, strict=True))

    def _collection(self) -> FileCollection:
        if isinstance(self._at, CollectionRef):
            self._at = self._at.collection()
        return self._at

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_at": self._at.ref()}

    def __repr__(self) -> str:
        ref = self._at.ref()
        return f"<MmcacheDataset {ref.path!r}, generation {ref.generation}, {len(self)} of {ref.name!r}>"


def _rows_of(of: Cache | Snapshot | FileCollection | Selection) -> tuple[FileCollection, NDArray[np.uint32]]:
    if isinstance(of, Cache):
        with of.pinned() as snapshot:
            return _rows_of(snapshot)
    if isinstance(of, Snapshot):
        of = of.default
    if isinstance(of, FileCollection):
        return of, np.arange(len(of), dtype=np.uint32)
    if isinstance(of, Selection):
        collection = of._collection
        if not of.complete or not isinstance(collection, FileCollection | CollectionRef):
            raise SourceError(
                f"{len(of) - len(of.rows)} of {len(of)} records are the source's answer, and only a file has rows: "
                "pin a snapshot, or use where(..., snapshot=True)"
            )
        return collection if isinstance(collection, FileCollection) else collection.collection(), of.rows
    raise TypeError(
        f"a dataset is of a Cache, a Snapshot, a FileCollection or a Selection, not of {type(of).__name__}: "
        "for another collection of a cache there is cache.snapshot.collection(name)"
    )


def _records_at(collection: FileCollection, rows: NDArray[np.uint32]) -> list[Record]:
    """The records of rows, which may be in any order, and there more than once."""
    found = collection.get_many(collection.ids_at(rows))
    records = [record for record in found if record is not None]
    if len(records) < len(rows):
        raise collection.corrupt("ids", "the key of a row does not lead to it")
    return records


# --- without a copy ---------------------------------------------------------------------------------------------------


def as_tensor(array: NDArray[Any]) -> ReadOnlyTensor:
    """The memory of an array that mmcache handed out, as a tensor: no copy, and no warning.

    Keeps the file mapped while it or a view of it is referenced.

    >>> import torch
    >>> from mmcache.integrations.torch import as_tensor
    >>> bank = as_tensor(cache.embeddings)
    >>> (bank @ torch.tensor([1.0, 2.0])).tolist()
    [1.0, 2.0, 3.0]
    """
    return _guarded(from_dlpack(array))


class ReadOnlyTensor(torch.Tensor):
    """A tensor over memory that is never written to. Made by `as_tensor`.

    What is computed from it is an ordinary tensor, and so is `clone()`; a view of it is read-only too. Whatever writes
    in place, `out=` and optimizers included, raises RuntimeError, and nothing is written. Pickled or saved it is an
    ordinary tensor of just the numbers that it shows, where torch would send all that a view is a view of; a deep copy
    is the tensor itself.

    Each operation is checked as torch dispatches it. That takes some ten microseconds; the first in a process loads
    more of torch, which takes a second. A write without an operation is not seen, and does end in SIGSEGV: one of an
    extension that takes the address (`data_ptr()`, the storage), or one after `other.data = tensor`, which makes
    `other` an ordinary tensor over the same memory.

    >>> from mmcache.integrations.torch import as_tensor
    >>> bank = as_tensor(cache.embeddings)
    >>> bank.mul_(2)
    Traceback (most recent call last):
    RuntimeError: aten.mul_.Tensor writes to a tensor over memory that is mapped read-only...
    """

    _plain: torch.Tensor

    # Functions of Python arrive as the operations that they consist of.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for position, name in _written(operation):
            value = args[position] if position < len(args) else kwargs.get(name)
            for one in value if isinstance(value, list | tuple) else (value,):
                if isinstance(one, ReadOnlyTensor):
                    _refuse(str(operation))
        memory: set[int] = set()

        def plain(value: Any) -> Any:
            if isinstance(value, ReadOnlyTensor):
                memory.add(value._plain.untyped_storage().data_ptr())
                return value._plain
            return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value

        def guarded(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(map(guarded, value))
            if type(value) is torch.Tensor and value.layout is torch.strided:
                return _guarded(value) if value.untyped_storage().data_ptr() in memory else value
            return value

        return guarded(operation(*plain(args), **{name: plain(value) for name, value in kwargs.items()}))

    def numpy(self, *, force: bool = False) -> NDArray[Any]:
        """The same memory as a read-only array."""
        array: NDArray[Any] = self._plain.numpy(force=force)
        array.flags.writeable = False
        return array

    def __array__(self, dtype: Any = None, *, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.numpy(), dtype, copy=copy)

    def tolist(self) -> Any:
        return self._plain.tolist()

    def apply_(self, *_: object) -> NoReturn:
        _refuse("apply_")

    def __dlpack__(self, **_: object) -> NoReturn:
        raise BufferError("a consumer may not know that this memory is read-only: export tensor.numpy() or a clone()")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._plain.clone(memory_format=torch.contiguous_format).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadOnlyTensor:
        memo[id(self)] = self
        return self


def _guarded(plain: torch.Tensor) -> ReadOnlyTensor:
    tensor = plain.as_subclass(ReadOnlyTensor)
    tensor._plain = plain
    return tensor


def _refuse(operation: str) -> NoReturn:
    raise RuntimeError(
        f"{operation} writes to a tensor over memory that is mapped read-only and shared with other processes: "
        "use tensor.clone(), or the operation that gives a new tensor"
    )


@cache
def _written(operation: Any) -> tuple[tuple[int, str], ...]:
    """Places and names of the arguments that an operation writes to; for `set_`, of what it hands on unguarded, too."""
    schema = operation._schema
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(schema.arguments)
        if (argument.alias_info is not None and argument.alias_info.is_write) or schema.name == "aten::set_"
    )
