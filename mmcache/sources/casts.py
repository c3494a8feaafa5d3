"""`Schema.renames` and `Schema.casts`: items of a source of mappings, by the names and types that are declared.

A cast takes what a source may have in its place and changes nothing that is of the type already; None stays None. A
value that it does not fit leaves the row without that cast, with the reason, so that the row is refused by its key.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from ..schema import Schema
from ..values import Values

__all__ = ["BOOLS", "Adapter", "adapter_of", "cast", "check_unmapped", "clash", "declared", "is_kept", "unknown_fields"]

_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?(?:inf|infinity|nan)", re.IGNORECASE)
_MAX_DIGITS = 40
BOOLS = {"true": True, "false": False}
_BOOLS = BOOLS | {"t": True, "f": False, "yes": True, "no": False, "1": True, "0": False}


class Adapter(Protocol):
    """What makes of the items of a source the mappings that the schema means."""

    def one(self, item: Any) -> tuple[Mapping[str, Any], str | None]:
        """The mapping, as far as it can be made, and why it is to be refused. Raises ValueError where nothing can."""
        ...

    def run(self, items: list[Any]) -> list[Any] | None:
        """Several at once; None where one of them is to be refused, or they are to be taken one by one."""
        ...


def adapter_of(schema: Schema, values_by: Values) -> Adapter | None:
    """None where the schema declares neither names nor types."""
    return Declared(schema, values_by) if schema.renames or schema.casts else None


def is_kept(schema: Schema, field: str) -> bool:
    """Whether a record has a field of this name, if the source does."""
    columns = schema.columns
    return columns is None or field in columns or field in schema.key_fields or field in schema.embeddings


class Declared:
    """The `Adapter` of a schema, for items that `Values.record` takes."""

    def __init__(self, schema: Schema, values_by: Values) -> None:
        self._values = values_by
        self._names = dict(schema.renames)
        self._casts = [
            (field, kind, cast(kind)) for field, kind in dict(schema.casts).items() if is_kept(schema, field)
        ]

    def one(self, item: Any) -> tuple[Mapping[str, Any], str | None]:
        names, fault = self._names, None
        if type(item) is not dict:
            item = self._values.record(item)
        record = {names.get(name, name): value for name, value in item.items()} if names else dict(item)
        if len(record) < len(item):
            raise ValueError(clash(item, names))
        for field, kind, function in self._casts:
            value = record.get(field)
            if value is not None:
                try:
                    record[field] = function(value)
                except ValueError as error:
                    fault = fault or f"field {field!r}: {error}; the Schema casts it to {kind}"
        return record, fault

    def run(self, items: list[Any]) -> list[Any] | None:
        if set(map(type, items)) != {dict}:
            return None
        records = []
        for item in items:
            record, fault = self.one(item)
            if fault is not None:
                return None
            records.append(record)
        return records


def clash(fields: Iterable[str], names: Mapping[str, str]) -> str:
    """The reason why two columns cannot be one field."""
    seen: dict[str, str] = {}
    for name in fields:
        field = names.get(name, name)
        if field in seen:
            return f"the columns {seen[field]!r} and {name!r} would both be the field {field!r}; rename one of them"
        seen[field] = name
    return "two columns would be one field"


def check_unmapped(schemas: Iterable[Schema], kind: str) -> None:
    """Raises ValueError for names and types that a query is to give instead."""
    for schema in schemas:
        for argument in ("renames", "casts"):
            if getattr(schema, argument):
                raise ValueError(
                    f"Schema {schema.name!r}: {argument}= is for files and records; {kind} says it in SQL: "
                    "query='SELECT a AS b, CAST(c AS TEXT) AS c FROM ...'"
                )


def cast(kind: str) -> Callable[[Any], Any]:
    """What makes a value, which is not None, one of the type. It raises ValueError."""
    return _CASTS[kind]


def _shown(value: Any) -> str:
    return f"{value!r:.80}"


def _to_str(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{_shown(value)} is not UTF-8 text") from None
    if isinstance(value, (list, dict)):
        raise ValueError(f"a {type(value).__name__} is no text")  # noqa: TRY004 (of the data)
    return str(value)


def _to_int(value: Any) -> int:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
    elif isinstance(value, str):
        text = value.strip()
        if len(text) <= _MAX_DIGITS and _INT.fullmatch(text):
            return int(text)
    elif hasattr(value, "__index__"):
        return int(value)
    raise ValueError(f"{_shown(value)} is no whole number")


def _to_float(value: Any) -> float:
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        number = float(value) if abs(value) < 2**64 else None
        if number is None or int(number) != value:
            raise ValueError(f"{_shown(value)} has more digits than float64")
        return number
    if isinstance(value, str):
        text = value.strip()
        if _FLOAT.fullmatch(text):
            return float(text)
    elif hasattr(value, "__float__"):
        return float(value)
    raise ValueError(f"{_shown(value)} is no number")


def _to_bool(value: Any) -> bool:
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str):
        found = _BOOLS.get(value.strip().lower())
        if found is not None:
            return found
    raise ValueError(f"{_shown(value)} is neither true nor false")


def _to_bytes(value: Any) -> bytes:
    """Text is hexadecimal after \\x, as PostgreSQL writes it, else base64."""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, str):
        try:
            return bytes.fromhex(value[2:]) if value.startswith("\\x") else base64.b64decode(value, validate=True)
        except (ValueError, binascii.Error):
            pass
    raise ValueError(f"{_shown(value)} is no bytes, and neither base64 nor hexadecimal after \\x")


def _to_json(value: Any) -> Any:
    if not isinstance(value, (str, bytes)):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{_shown(value)} is not JSON ({error})") from None


_CASTS: dict[str, Callable[[Any], Any]] = {
    "str": _to_str,
    "int": _to_int,
    "float": _to_float,
    "bool": _to_bool,
    "bytes": _to_bytes,
    "json": _to_json,
}


def declared(schema: Schema) -> dict[str, str]:
    """Field -> type, those of JSON text among them: for sources all of whose values are text."""
    return dict.fromkeys(schema.json, "json") | dict(schema.casts)


def unknown_fields(schema: Schema, fields: Collection[str]) -> str | None:
    """What the schema names and a table, with these columns, does not have; None if there is nothing."""
    for argument, names in (("renames", dict(schema.renames)), ("casts", _unnamed(schema, fields))):
        for name in names:
            if name not in fields:
                return f"{argument}: there is no column {name!r}; there are: {', '.join(fields)}"
    return None


def _unnamed(schema: Schema, fields: Collection[str]) -> list[str]:
    """The fields with a cast, as the source names them."""
    names = {field: name for name, field in dict(schema.renames).items() if name in fields}
    return [names.get(field, field) for field in dict(schema.casts)]
