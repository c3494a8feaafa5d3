"""`Schema(model=...)`: a record as an instance of a class of the caller's.

A model is a dataclass, a TypedDict, a NamedTuple, an attrs class or a pydantic model. It names the fields that it
wants, and gets no others. A field of the schema that is an embedding is the array, or a list where a list is declared.

What the rule of `values` stored as text or as a number becomes the declared type again: dates, times and durations,
Decimal, UUID, enums, paths, sets, tuples, and bools of a database that has none. Nothing else is converted, and a type
that this module does not know is left unchecked; pydantic goes by its own rules.

A model is given by the program, never by a file. Neither pydantic nor attrs is imported here.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import enum
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache, partial
from typing import Any, Final, Generic, Literal, NamedTuple, Protocol, TypeVar, Union, cast, get_args, get_origin
from uuid import UUID

from .errors import ModelError

__all__ = ["Model", "check_model"]

M = TypeVar("M")
Convert = Callable[[Any], Any]
"""Gives the value of a field. Raises `_MismatchError`."""

Kind = Literal["dataclass", "TypedDict", "NamedTuple", "attrs", "pydantic"]
_REQUIRED: Final = object()


class Fields(Protocol):
    """What a model is made of: a `Record`."""

    @property
    def id(self) -> Any: ...

    @property
    def embedding_fields(self) -> tuple[str, ...]: ...

    def asdict(self) -> dict[str, Any]: ...

    def embedding_of(self, field: str) -> Any: ...


class _MismatchError(Exception):
    def __init__(self, expected: str, found: str, path: str = "") -> None:
        super().__init__(expected, found, path)
        self.expected, self.found, self.path = expected, found, path

    def below(self, step: str) -> _MismatchError:
        """The same, from the point of view of what holds the value."""
        joined = f"{step}{self.path}" if self.path.startswith("[") or not self.path else f"{step}.{self.path}"
        return _MismatchError(self.expected, self.found, joined)


class _Field(NamedTuple):
    """name: in the record. argument: of the constructor. convert: None takes any value as it is."""

    name: str
    argument: str
    hint: Any
    convert: Convert | None
    is_required: bool


def check_model(model: object) -> None:
    """Raises TypeError for what is no model."""
    if not isinstance(model, type) or kind_of(model) is None:
        raise TypeError(
            f"model must be a dataclass, TypedDict, NamedTuple, attrs class or pydantic model, not {model!r:.100}"
        )


def kind_of(model: type) -> Kind | None:
    """None for a class that is no model."""
    if hasattr(model, "model_validate") and hasattr(model, "model_fields"):
        return "pydantic"
    if hasattr(model, "__attrs_attrs__"):
        return "attrs"
    if dataclasses.is_dataclass(model):
        return "dataclass"
    if issubclass(model, dict) and hasattr(model, "__required_keys__"):
        return "TypedDict"
    if issubclass(model, tuple) and hasattr(model, "_fields"):
        return "NamedTuple"
    return None


class Model(Generic[M]):
    """Makes instances of one class of the records of one collection. Pickles to its arguments.

    collection: its name, for messages. embeddings: the fields that hold them; by default those that a record names.
    """

    __slots__ = ("_arguments", "_make", "kind")

    def __init__(self, kind: type[M], collection: str | None = None, embeddings: tuple[str, ...] = ()) -> None:
        check_model(kind)
        self.kind = kind
        self._arguments = collection, embeddings
        self._make = _made(cast("Any", kind))

    def __call__(self, record: Fields) -> M:
        """The record as an instance. Raises ModelError naming key, field, and what was expected and found."""
        values = record.asdict()
        for field in self._arguments[1] or record.embedding_fields:
            values[field] = record.embedding_of(field)
        try:
            return cast("M", self._make(values))
        except _MismatchError as error:
            collection = self._arguments[0]
            where = f"key {record.id!r}" if collection is None else f"collection {collection!r}, key {record.id!r}"
            field = f", field {error.path!r}" if error.path else ""
            raise ModelError(
                f"{where}{field}: {self.kind.__name__} expects {error.expected}, and the record has {error.found}; "
                "change the record in its source, or the model",
                collection=collection,
                key=record.id,
                field=error.path or None,
                expected=error.expected,
                found=error.found,
            ) from error.__cause__

    def __reduce__(self) -> tuple[Any, ...]:
        return Model, (self.kind, *self._arguments)


# --- classes ----------------------------------------------------------------------------------------------------------


@lru_cache(256)
def _made(model: type) -> Convert:
    return _validated(model) if kind_of(model) == "pydantic" else _constructed(model)


def _make(model: type, value: Any) -> Any:
    return _made(model)(value)


def _constructed(model: type) -> Convert:
    """Makes an instance of a mapping by the constructor."""
    fields = _fields(model)
    make: Callable[..., Any] = dict if kind_of(model) == "TypedDict" else model

    def construct(values: Any) -> Any:
        if isinstance(values, model) if make is model else False:
            return values
        if not isinstance(values, Mapping):
            raise _MismatchError(f"the fields of {model.__name__}", _found(values))
        arguments = {}
        for name, argument, hint, convert, is_required in fields:
            value = values.get(name, _REQUIRED)
            if value is _REQUIRED:
                if is_required:
                    raise _MismatchError(_named(hint), "no such field", name)
                continue
            try:
                arguments[argument] = value if convert is None else convert(value)
            except _MismatchError as error:
                raise error.below(name) from error.__cause__
        try:
            return make(**arguments)
        except (TypeError, ValueError) as error:  # what the class itself checks
            raise _MismatchError("valid fields", f"{type(error).__name__}: {error}") from error

    return construct


def _validated(model: Any) -> Convert:
    """Makes an instance of a pydantic model, by its own validation."""
    hints = _hints(model)

    def validate(values: dict[str, Any]) -> Any:
        given = {name: _vector(value, hints.get(name)) for name, value in values.items()}
        try:
            return model.model_validate(given)
        except ValueError as error:
            if not hasattr(error, "errors"):
                raise
            first = error.errors(include_url=False)[0]
            path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"]).lstrip(".")
            found = "no such field" if first["type"] == "missing" else _found(first["input"])
            raise _MismatchError(f"a {first['type']}: {first['msg']}", found, path) from error

    return validate


def _fields(model: Any) -> list[_Field]:
    kind, hints = kind_of(model), _hints(model)
    found: list[tuple[str, str, bool]] = []
    if kind == "dataclass":
        for field in dataclasses.fields(model):
            has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
            if field.init:
                found.append((field.name, field.name, not has_default))
    elif kind == "attrs":
        nothing = sys.modules["attr"].NOTHING
        found = [(one.name, one.alias, one.default is nothing) for one in model.__attrs_attrs__ if one.init]
    elif kind == "NamedTuple":
        found = [(name, name, name not in model._field_defaults) for name in model._fields]
    else:
        found = [(name, name, _is_required(hint, name in model.__required_keys__)) for name, hint in hints.items()]
    return [
        _Field(name, argument, hints.get(name, Any), _converter(hints.get(name, Any)), is_required)
        for name, argument, is_required in found
    ]


def _hints(model: Any) -> dict[str, Any]:
    """Annotations by field. One that cannot be evaluated, as a name imported for type checkers only, is Any."""
    with contextlib.suppress(Exception):
        return typing.get_type_hints(model, include_extras=True)
    hints: dict[str, Any] = {}
    for kind in reversed(model.__mro__):
        names = vars(sys.modules.get(kind.__module__, typing))
        with contextlib.suppress(NameError):  # of Python 3.14, which evaluates them all
            for name, annotation in inspect.get_annotations(kind).items():
                hints[name] = Any
                with contextlib.suppress(Exception):
                    holder: Any = types.SimpleNamespace(__annotations__={name: annotation})
                    hints[name] = typing.get_type_hints(holder, names, dict(vars(kind)), include_extras=True)[name]
    return hints


def _is_required(hint: Any, otherwise: bool) -> bool:  # noqa: FBT001
    """Of a TypedDict, which in a module with postponed annotations does not know by itself."""
    name = getattr(get_origin(hint), "_name", None)
    if name == "ReadOnly":
        return _is_required(get_args(hint)[0], otherwise)
    return {"Required": True, "NotRequired": False}.get(name or "", otherwise)


# --- values -----------------------------------------------------------------------------------------------------------


def _converter(hint: Any) -> Convert | None:
    """What makes a value of the declared type of the stored one; None where any value will do."""
    hint = _bare(hint)
    if hint is Any or hint is object or isinstance(hint, (TypeVar, str, typing.ForwardRef)):
        return None
    if hint is None or hint is type(None):
        return _one_of((None,), "None")
    if isinstance(hint, type) and hint in _CONVERTERS:
        return _CONVERTERS[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _one_of(arguments, " or ".join(map(repr, arguments)))
    if origin in (Union, types.UnionType):
        return _union(hint, arguments)
    kind = hint if origin is None else origin
    if not isinstance(kind, type):
        return None
    if issubclass(kind, enum.Enum):
        return _made_by(kind, (str, int, float, bytes), kind.__name__)
    if hasattr(kind, "__fspath__"):
        return _made_by(kind, (str,), kind.__name__)
    if kind_of(kind) not in (None, "pydantic"):
        return partial(_make, kind)  # compiled at its first use, as a model may hold its like
    if kind_of(kind) == "pydantic":
        return lambda value: _make(kind, value) if isinstance(value, dict) else value
    if issubclass(kind, collections.abc.Mapping):
        return _mapping(hint, kind, arguments)
    if issubclass(kind, collections.abc.Collection) and not issubclass(kind, (str, bytes)) and not _is_array(kind):
        return _several(hint, kind, arguments)
    return _instance_of(kind, hint)


def _bare(hint: Any) -> Any:
    """Without what says nothing of the value."""
    while True:
        origin = get_origin(hint)
        if hasattr(hint, "__supertype__"):  # a NewType
            hint = hint.__supertype__
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        elif origin is typing.Annotated or getattr(origin, "_name", None) in ("Required", "NotRequired", "ReadOnly"):
            hint = get_args(hint)[0]
        else:
            return hint


def _exact(kind: type) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) is kind:
            return value
        raise _MismatchError(kind.__name__, _found(value))

    return convert


def _bool(value: Any) -> bool:
    if value is True or value is False:
        return value
    if type(value) is int and value in (0, 1):
        return value == 1
    raise _MismatchError("bool", _found(value))


def _float(value: Any) -> float:
    if type(value) in (float, int):
        return float(value)
    raise _MismatchError("float", _found(value))


def _made_by(make: Callable[[Any], Any], of: tuple[type, ...], name: str) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) in of:
            try:
                return make(value)
            except (ValueError, InvalidOperation):
                pass
        elif isinstance(make, type) and isinstance(value, make):
            return value
        raise _MismatchError(name, _found(value))

    return convert


def _duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(text)
    sign, *numbers = found.groups()
    days, hours, minutes, seconds = (float(number or 0) for number in numbers)
    return (-1 if sign else 1) * timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


_DURATION: Final = re.compile(r"(-)?P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?")

_CONVERTERS: Final[dict[type, Convert]] = {
    str: _exact(str),
    int: _exact(int),
    bytes: _exact(bytes),
    bool: _bool,
    float: _float,
    datetime: _made_by(datetime.fromisoformat, (str,), "datetime as ISO text"),
    date: _made_by(date.fromisoformat, (str,), "date as ISO text"),
    time: _made_by(time.fromisoformat, (str,), "time as ISO text"),
    timedelta: _made_by(_duration, (str,), "timedelta as ISO text"),
    Decimal: _made_by(Decimal, (str, int), "Decimal as text or int"),
    UUID: _made_by(UUID, (str,), "UUID as text"),
}


def _one_of(values: tuple[Any, ...], named: str) -> Convert:
    def convert(value: Any) -> Any:
        if any(type(value) is type(one) and value == one for one in values):
            return value
        raise _MismatchError(named, _found(value))

    return convert


def _union(hint: Any, arguments: tuple[Any, ...]) -> Convert | None:
    """The alternative that the value is of already, else the first that it can become."""
    converters = [(_bare(one), _converter(one)) for one in arguments]
    if any(convert is None for _, convert in converters):
        return None

    def convert(value: Any) -> Any:
        first = [one for kind, one in converters if (get_origin(kind) or kind) is type(value)]
        for one in (*first, *(one for _, one in converters)):
            assert one is not None
            with contextlib.suppress(_MismatchError):
                return one(value)
        raise _MismatchError(_named(hint), _found(value))

    return convert


def _several(hint: Any, kind: type, arguments: tuple[Any, ...]) -> Convert:
    """A list, and what the rule of `values` stores as one."""
    make = next((one for one in (tuple, frozenset, set) if issubclass(kind, one)), list)
    if issubclass(kind, collections.abc.Set) and make is list:
        make = frozenset
    each: list[Convert | None] | None = None
    if make is tuple and arguments and arguments[-1] is not Ellipsis:
        each = [_converter(one) for one in arguments if one != ()]
    of = _converter(arguments[0]) if arguments and each is None else None

    def convert(value: Any) -> Any:
        items = _vector(value, hint)
        if not isinstance(items, (list, tuple)):
            raise _MismatchError(_named(hint), _found(value))
        if each is not None and len(each) != len(items):
            raise _MismatchError(_named(hint), f"{len(items)} items")
        if of is not None or each is not None:
            converters: Iterable[Convert | None] = each if each is not None else [of] * len(items)
            items = [_item(i, one, item) for i, (one, item) in enumerate(zip(converters, items, strict=True))]
        return make(items)

    return convert


def _item(step: Any, convert: Convert | None, value: Any) -> Any:
    try:
        return value if convert is None else convert(value)
    except _MismatchError as error:
        raise error.below(f"[{step!r}]") from error.__cause__


def _mapping(hint: Any, kind: type, arguments: tuple[Any, ...]) -> Convert:
    key, item = map(_converter, arguments) if len(arguments) == 2 else (None, None)
    make = None if kind in (dict, collections.abc.Mapping, collections.abc.MutableMapping) else kind

    def convert(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _MismatchError(_named(hint), _found(value))
        made = {_item(name, key, name): _item(name, item, one) for name, one in value.items()}
        return made if make is None else make(made)

    return convert


def _instance_of(kind: type, hint: Any) -> Convert:
    def convert(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        raise _MismatchError(_named(hint), _found(value))

    return convert


def _is_array(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "numpy"


def _vector(value: Any, hint: Any) -> Any:
    """An embedding as the declared type wants it: an array, or a list of its numbers."""
    if not _is_array(type(value)):
        return value
    alternatives = [_bare(one) for one in get_args(hint)] if get_origin(hint) in (Union, types.UnionType) else [hint]
    kinds = [get_origin(_bare(one)) or _bare(one) for one in alternatives]
    wants_list = any(
        isinstance(kind, type) and issubclass(kind, (list, tuple, collections.abc.Sequence)) for kind in kinds
    )
    return value.tolist() if wants_list else value


# --- words ------------------------------------------------------------------------------------------------------------


def _named(hint: Any) -> str:
    hint = _bare(hint)
    if get_origin(hint) is None and isinstance(hint, type):
        return "None" if hint is type(None) else hint.__name__
    return str(hint).replace("typing.", "").replace("datetime.", "")


def _found(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__} {value!r:.80}"
