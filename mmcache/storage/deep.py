"""Whether a collection is what a build makes of its records: the deep half of `Snapshot.verify`."""

from __future__ import annotations

from array import array

from ..query import Term, terms_in
from .collection import FileCollection

__all__ = ["verify_deep"]


def verify_deep(collection: FileCollection) -> None:
    """Every record decodes, is found by its key, and stands in exactly the posting lists of its terms. O(n).

    Raises CorruptFileError.
    """
    carried: dict[str, dict[Term, array[int]]] = {field: {} for field in collection.schema.index}
    for row, record in enumerate(collection.values()):
        if record.id not in collection or collection.row(record.id) != row:
            raise collection.corrupt("ids", f"key {record.id!r} does not lead to its row {row}")
        for field, lists in carried.items():
            try:
                terms = terms_in(record, field)
            except TypeError as error:
                raise collection.corrupt("records", f"record {row}, indexed field {field!r}: {error}") from None
            for term in terms:
                lists.setdefault(term, array("I")).append(row)
    for field, lists in carried.items():
        counts = collection.terms(field)
        for term, rows in lists.items():
            if counts.pop(term, 0) != len(rows) or collection.where({field: term}).rows.tolist() != rows.tolist():
                raise collection.corrupt(f"index.{field}", f"the list of term {term!r} is not that of the records")
        if counts:
            raise collection.corrupt(f"index.{field}", f"no record carries the term {next(iter(counts))!r}")
