"""What a table or file holds, from a sample of its rows, and what of a collection follows from that.

A choice comes with its reason. Embeddings are recognised by name and content, JSON by content. An index is proposed
for what the database has one for, and for columns of few distinct values. All of it can be wrong: it is a sample.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ..schema import DTYPES, MAX_NAME_BYTES
from ..text import number, plural

__all__ = ["SAMPLE", "Choice", "Survey", "can_be_named", "choices", "is_unique"]

SAMPLE: Final = 1000
"""Rows that are looked at."""

_CALLED_SO: Final = re.compile(r"embedding|(^|_)(emb|vec|vector)s?(_|$)", re.IGNORECASE)
_MIN_NUMBERS: Final = 8
"""Of JSON text that is an embedding; a shorter list of numbers is a list."""
_MANY_ROWS: Final = 8
"""Fewer rows say nothing about how many distinct values there are."""
_FEW_VALUES: Final = 100
_FEW_TAGS: Final = 500
_MAX_INDEXES: Final = 16


class Survey(NamedTuple):
    """A table, view or file.

    name: of the collection. rows: the sample. size: of all its rows, if that is known. key: its fields, if it has one
    of its own; reason: why these, or why none. indexed: column -> the index of the database that begins with it. casts:
    whether its source decodes JSON by `casts`, not by `json`. is_view: which has records of tables, once more.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    size: int | None
    key: tuple[str, ...] | None
    reason: str
    indexed: Mapping[str, str] = {}
    casts: bool = False
    is_view: bool = False

    @property
    def is_on(self) -> bool:
        """Whether it becomes a collection unless a person decides otherwise."""
        return self.key is not None and not self.is_view and all(map(can_be_named, self.key))


def can_be_named(name: str) -> bool:
    """Whether a collection, or a field of a schema, may be called so."""
    return name.isprintable() and 0 < len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES


class Choice(NamedTuple):
    """An argument of `Schema`, with the reason."""

    field: str
    value: Any
    reason: str


class _Embedding(NamedTuple):
    field: str
    dim: int
    dtype: str
    reason: str


def choices(survey: Survey) -> list[Choice]:
    """Key apart. In the order in which a person reads them."""
    columns = [name for name in dict.fromkeys(name for row in survey.rows for name in row) if can_be_named(name)]
    values = {name: [row[name] for row in survey.rows if row.get(name) is not None] for name in columns}
    vectors = [found for name in columns if (found := _embedding(name, values[name])) is not None]
    apart = {*(survey.key or ()), *(found.field for found in vectors)}
    decoded = {name: _decoded(values[name]) for name in columns if name not in apart}
    texts = {name: found for name, found in decoded.items() if found is not None}
    index = {
        name: reason
        for name in columns
        if name not in apart and (reason := _index(name, texts.get(name, values[name]), survey)) is not None
    }
    chosen = [_together("index", dict(list(index.items())[:_MAX_INDEXES]))] if index else []
    if texts:
        one = _together("json", dict.fromkeys(texts, "JSON in every row of the sample"))
        chosen.append(Choice("casts", dict.fromkeys(texts, "json"), one.reason) if survey.casts else one)
    return chosen + _of_embeddings(vectors)


def _together(field: str, reasons: Mapping[str, str]) -> Choice:
    return Choice(field, list(reasons), "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))


def is_unique(keys: Sequence[Sequence[Any]]) -> bool:
    """Whether these can be keys, each of one record."""
    are_keys = all(type(part) in (str, int, bytes) for key in keys for part in key)
    return are_keys and len(set(map(tuple, keys))) == len(keys)


# --- embeddings


def _embedding(name: str, values: Sequence[Any]) -> _Embedding | None:
    from ..sources.blobs import probable
    from ..sources.vectors import VectorDecoder

    blobs = [value for value in values if isinstance(value, bytes)]
    if not values or (blobs and len(blobs) < len(values)):
        return None
    if blobs and not (_CALLED_SO.search(name) or all(probable(blob) for blob in blobs[:20])):
        return None
    if not blobs and not all(_is_list_of_numbers(value) for value in values[:20]):
        return None
    decode = VectorDecoder(None, None)
    try:
        sizes = {len(decode(value) or b"") // 4 for value in values}
    except (ValueError, TypeError):
        return None
    if len(sizes) != 1 or not (dim := sizes.pop()):
        return None
    dtype = (decode.dtype or "f4") if blobs else "f4"
    what = f"BLOBs of {number(len(blobs[0]))} bytes" if blobs else "lists"
    return _Embedding(name, dim, dtype, f"{what}, {dim} x {DTYPES[dtype]}")


def _is_list_of_numbers(value: Any) -> bool:
    if isinstance(value, str) and value.startswith("["):
        value = _parsed(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list) or len(value) < _MIN_NUMBERS:
        return False
    return all(type(item) in (int, float) for item in value) and any(type(item) is float for item in value)


def _of_embeddings(vectors: Sequence[_Embedding]) -> list[Choice]:
    if not vectors:
        return []
    names, dims, dtypes = ([getattr(found, field) for found in vectors] for field in ("field", "dim", "dtype"))
    reason = "; ".join(f"{found.field}: {found.reason}" for found in vectors)
    chosen = [Choice("embedding", _one_or_all(names), reason), Choice("dim", _one_or_all(dims, same=True), "")]
    if any(dtype != "f4" for dtype in dtypes):
        chosen.append(Choice("dtype", _one_or_all(dtypes, same=True), ""))
    return chosen


def _one_or_all(values: list[Any], *, same: bool = False) -> Any:
    return values[0] if len(values) == 1 or (same and len(set(values)) == 1) else values


# --- JSON and indexes


def _decoded(values: Sequence[Any]) -> list[Any] | None:
    """The values of JSON text, if all are objects or lists."""
    if not values or not all(isinstance(value, str) and value.lstrip()[:1] in ("{", "[") for value in values):
        return None
    found = [_parsed(value) for value in values]
    return found if all(isinstance(value, (dict, list)) for value in found) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _index(name: str, values: Sequence[Any], survey: Survey) -> str | None:
    """Why this column should be indexed, if it should."""
    terms = list(_terms(values))
    if not terms or not all(type(term) in (str, int, bool, float) for term in terms):
        return None
    if name in survey.indexed:
        return f"the database has an index ({survey.indexed[name]})"
    distinct = len(set(terms))
    few = _FEW_TAGS if any(isinstance(value, list) for value in values) else _FEW_VALUES
    if type(terms[0]) is float or len(values) < _MANY_ROWS or distinct > min(few, len(terms) // 4):
        return None
    return f"{plural(distinct, 'distinct value')}"


def _terms(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, list):
            yield from value
        else:
            yield value
