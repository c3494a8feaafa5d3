"""Terms, their order, and what a query asks of them: one definition for the builder, the file and every source.

A *term* is one value of an indexed field in canonical form: text, a number or null. A bool is the int that it equals,
and so is a float that equals an int of 64 bits; NaN is null. Any other value is the term of what a record holds in its
place (`values`): a date is text. The order is null, then numbers, compared exactly, then text by UTF-8 bytes. Bytes are
no terms.

A *predicate* is a set of terms that are not listed: an interval, a prefix, a `range` of ints; or it is `excluding`.
An indexed field is the name of a field, or a path into one: `metadata.s`, `tags[*]`, `a.b[*].c`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from datetime import date, time
    from enum import Enum
    from uuid import UUID

    import numpy as np

__all__ = [
    "Alternative",
    "Excluding",
    "Interval",
    "Prefix",
    "Query",
    "Term",
    "above",
    "at_least",
    "at_most",
    "below",
    "between",
    "canonical",
    "excluding",
    "follow",
    "holds",
    "matcher",
    "matches",
    "order_key",
    "parse_query",
    "path_of",
    "place_of",
    "reaches",
    "startswith",
    "terms_in",
    "terms_of",
]

Term = str | int | float | None
"""A value that can be looked up, in canonical form. True, 1 and 1.0 are one term, as they are one key of a dict."""

Bound = str | int | float

Asked: TypeAlias = "Bound | date | time | UUID | Enum | np.generic"
"""What bounds a range: a number, a text, or what a record holds as one of these."""

_EACH: Final = "[*]"
_ALLOWED: Final = (
    "an indexed value is a str, int, float, bool or None, or what becomes one of these in a record (a date, UUID, "
    "Decimal, enum), or a list of them"
)
_TERMS: Final = frozenset({str, int, float, bool, type(None)})


# --- terms ------------------------------------------------------------------------------------------------------------


def canonical(value: object) -> Term:
    """The term that a value is. Raises TypeError for a value that is none."""
    if value is None or type(value) is str:
        return value
    if isinstance(value, float):
        return _of_float(float(value))
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise TypeError(f"{value} is out of range: an indexed int takes 64 bits")
        return int(value)
    if isinstance(value, str):
        return str.__str__(value)  # str() of an enum gives its name
    plain = _by_rule_alone(value)
    if plain is None or isinstance(plain, (str, int, float)):
        return canonical(plain)
    raise TypeError(f"{value!r} is of type {type(value).__name__}; {_ALLOWED}")


def _by_rule_alone(value: Any) -> Any:
    """The same of what cannot be a list: one stays as it is, for a `range` in it may have any length."""
    return value if isinstance(value, (list, tuple, set, frozenset, range)) else _by_rule(value)


def _by_rule(value: Any) -> Any:
    """What a record holds in the place of a value. Raises TypeError where that is nothing."""
    if type(value) in _TERMS:
        return value
    from .values import Values  # costs what a reader of plain values need not pay

    try:
        return Values()(value)
    except ValueError as error:
        raise TypeError(f"{value!r:.80} is of type {type(value).__name__}; {_ALLOWED} ({error})") from None


def _of_float(value: float) -> Term:
    if value != value:  # noqa: PLR0124 (NaN alone differs from itself)
        return None
    return int(value) if value.is_integer() and -(2**63) <= value < 2**64 else value


def terms_of(value: object) -> tuple[Term, ...]:
    """The terms under which a field's value is indexed: one, or those of a list without repeats.

    A record that lacks the field is indexed as if it held None. Raises TypeError for any other type.
    """
    if not isinstance(value, (list, tuple)):
        value = _by_rule(value)  # an array is a list, too
        if not isinstance(value, list):
            return (canonical(value),)
    return tuple(dict.fromkeys(map(canonical, value)))


def order_key(term: Term) -> tuple[int, Any]:
    """Compares as the order of terms is. Python compares ints with floats exactly, and text as its UTF-8 bytes are."""
    if term is None:
        return 0, 0
    return (2, term) if isinstance(term, str) else (1, term)


# --- paths ------------------------------------------------------------------------------------------------------------

Steps = tuple[str | int, ...]


@lru_cache(1024)
def path_of(field: str) -> tuple[str, Steps]:
    """The field that a path begins in, and the steps from there: ("a", ("b", "[*]", "c")) for "a.b[*].c".

    Anything else is the name of a field, without steps.
    """
    steps: list[str] = []
    for part in field.split("."):
        name = part
        while name.endswith(_EACH):
            name = name.removesuffix(_EACH)
        if not name:
            return field, ()
        steps += [name, *[_EACH] * ((len(part) - len(name)) // len(_EACH))]
    return steps[0], tuple(steps[1:])


@lru_cache(4096)
def place_of(field: str, names: tuple[Any, ...]) -> tuple[int, Steps] | None:
    """Where an indexed field is in the values of a record with these names: an ordinal, and the steps from there.

    A field literally of that name wins over a path. The first name may be the tuple of a composite key's fields. None
    where the record has nothing of it.
    """
    root, steps = path_of(field)
    for name, further in ((field, ()), (root, steps)):
        if name in names:
            return names.index(name), further
        if names and isinstance(names[0], tuple) and name in names[0]:
            return 0, (names[0].index(name), *further)
    return None


def follow(value: Any, steps: Steps) -> Any:
    """The value at the end of the steps, a list of values after `[*]`; None where they lead nowhere.

    For `[*]` a value that is no list is one of itself.
    """
    for i, step in enumerate(steps):
        if step == _EACH:
            if not isinstance(value, (list, tuple)):
                continue
            found: list[Any] = []
            for item in value:
                inner = follow(item, steps[i + 1 :])
                if isinstance(inner, (list, tuple)):
                    found += inner
                else:
                    found.append(inner)
            return found
        if type(step) is int:
            value = value[step]
        elif type(value) is dict or isinstance(value, Mapping):
            value = value.get(step)
        else:
            return None
    return value


def reaches(value: Any, steps: Steps) -> bool:
    """Whether the steps lead somewhere, if only to a None or an empty list."""
    for i, step in enumerate(steps):
        if step == _EACH:
            if not isinstance(value, (list, tuple)):
                continue
            return not value or any(reaches(item, steps[i + 1 :]) for item in value)
        if type(step) is int or (isinstance(value, Mapping) and step in value):
            value = value[step]
        else:
            return False
    return True


def terms_in(record: Mapping[str, Any], field: str) -> tuple[Term, ...]:
    """The terms of an indexed field in a record. Raises TypeError for a value that is no term."""
    if field in record:
        return terms_of(record[field])
    root, steps = path_of(field)
    return terms_of(follow(record.get(root), steps)) if steps else (None,)


# --- predicates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Interval:
    """The numbers, or the texts, between two bounds, of which one may be None: no bound."""

    low: Bound | None
    high: Bound | None
    low_open: bool = False
    high_open: bool = False

    @property
    def is_text(self) -> bool:
        return isinstance(self.high if self.low is None else self.low, str)

    def contains(self, term: Any) -> bool:
        if term is None or isinstance(term, str) is not self.is_text:
            return False
        low, high = self.low, self.high
        if low is not None and not (term > low if self.low_open else term >= low):
            return False
        return high is None or bool(term < high if self.high_open else term <= high)

    def __repr__(self) -> str:
        if self.low is None:
            return f"{'below' if self.high_open else 'at_most'}({self.high!r})"
        if self.high is None:
            return f"{'above' if self.low_open else 'at_least'}({self.low!r})"
        return f"between({self.low!r}, {self.high!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Prefix:
    """The texts that begin like this."""

    text: str

    def contains(self, term: Any) -> bool:
        return isinstance(term, str) and term.startswith(self.text)

    def __repr__(self) -> str:
        return f"startswith({self.text!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Excluding:
    """Not a set of terms, but of records: those that carry none of these."""

    what: tuple[Term | Interval | Prefix | range, ...]

    def __repr__(self) -> str:
        return f"excluding({self.what[0] if len(self.what) == 1 else list(self.what)!r})"


Alternative = Term | Interval | Prefix | range | Excluding

Query = dict[str, tuple[Alternative, ...]]
"""Field -> the alternatives asked for: OR within a field, AND over fields."""


def between(low: Asked, high: Asked) -> Interval:
    """For `where`: terms from low to high, both included. Numbers or texts, which is what the bounds are; null, and
    terms of the other kind, never match. A date, UUID, enum and the like is what a record holds in its place. Raises
    TypeError for bounds of two kinds or of neither, and for a Decimal or a timedelta, whose texts are not ordered as
    they are; ValueError for NaN.

    >>> cache.where(size=mmcache.between(2, 3)).ids
    ['b', 'c']
    """
    least, most = _bound(low), _bound(high)
    if isinstance(least, str) is not isinstance(most, str):
        raise TypeError(
            f"between({least!r}, {most!r}): a range is one of numbers or one of texts; ask for both as a list"
        )
    return Interval(least, most)


def above(low: Asked) -> Interval:
    """For `where`: terms greater than this, numbers or texts as it is. See `between`.

    >>> cache.where(size=mmcache.above(2)).ids
    ['c']
    """
    return Interval(_bound(low), None, low_open=True)


def at_least(low: Asked) -> Interval:
    """For `where`: this term and those greater, numbers or texts as it is. See `between`.

    >>> cache.where(size=mmcache.at_least(2)).ids
    ['b', 'c']
    """
    return Interval(_bound(low), None)


def below(high: Asked) -> Interval:
    """For `where`: terms less than this, numbers or texts as it is. See `between`.

    >>> cache.where(size=mmcache.below(2)).ids
    ['a']
    """
    return Interval(None, _bound(high), high_open=True)


def at_most(high: Asked) -> Interval:
    """For `where`: this term and those less, numbers or texts as it is. See `between`.

    >>> cache.where(size=mmcache.at_most(2)).ids
    ['a', 'b']
    """
    return Interval(None, _bound(high))


def startswith(prefix: str) -> Prefix:
    """For `where`: texts that begin with this one. The case counts. Raises TypeError for what is no text.

    >>> cache.where(kind=mmcache.startswith("to")).ids
    ['a', 'b']
    """
    prefix = _by_rule_alone(prefix)
    if not isinstance(prefix, str):
        raise TypeError(f"startswith() takes a text, not {prefix!r}; for several give a list of startswith(...)")
    return Prefix(str.__str__(prefix))


def excluding(what: object) -> Excluding:
    """For `where`: records that carry no term of these: a value, a range, or a list of them. Records without a value
    are among them, and those with an empty list. Raises TypeError for what is none of these.

    >>> cache.where(kind=mmcache.excluding("tool")).ids, cache.where(size=mmcache.excluding([1, 2])).ids
    (['c'], ['c'])
    """
    found = _alternatives(what)
    if any(isinstance(one, Excluding) for one in found):
        raise TypeError("excluding() takes values and ranges, not excluding() again; ask for the values themselves")
    return Excluding(found)  # type: ignore[arg-type]


def _bound(value: object) -> Bound:
    plain = _by_rule_alone(value)
    if isinstance(plain, str):
        if not isinstance(value, str):
            _check_order_of_texts(value)
        return str.__str__(plain)
    if isinstance(plain, (int, float)):
        if plain != plain:  # noqa: PLR0124
            raise ValueError(
                "NaN cannot bound a range, as no number is less or greater; records with NaN count as None"
            )
        return int(plain) if isinstance(plain, int) or plain.is_integer() else float(plain)
    hint = (
        "; leave a range open by above, at_least, below or at_most, and ask for None by itself" if plain is None else ""
    )
    raise TypeError(f"a bound is a number or a text, not {value!r} of type {type(value).__name__}{hint}")


def _check_order_of_texts(value: object) -> None:
    from datetime import timedelta
    from decimal import Decimal

    if isinstance(value, (Decimal, timedelta)) or type(value).__name__ == "timedelta64":
        raise TypeError(
            f"{value!r} cannot bound a range: records hold a {type(value).__name__} as text, and '10' is before '9' "
            "among texts; index a number in its place, or give the text itself"
        )


def _alternatives(value: Any) -> tuple[Alternative, ...]:
    if isinstance(value, _PREDICATES):
        return (value,)
    if not isinstance(value, (list, tuple, set, frozenset)):
        if hasattr(value, "tolist") and not type(value).__module__.startswith("numpy"):
            value = value.tolist()  # a column of a data frame
        plain = _by_rule(value)
        if not isinstance(plain, list):
            return (canonical(value),)
        value = plain
    return tuple(dict.fromkeys(map(_alternative, value)))


def _alternative(value: Any) -> Alternative:
    return value if isinstance(value, _PREDICATES) else canonical(value)


_PREDICATES = Interval, Prefix, Excluding, range


# --- queries ----------------------------------------------------------------------------------------------------------


_INSTEAD: Final = {
    "limit": "; for the first ten write where(...).limit(10)",
    "order_by": "; to order the records write where(...).order_by(field)",
}
"""What else was meant by a name that is no indexed field."""


class Indexed(Protocol):
    """What a query needs of a schema."""

    @property
    def name(self) -> str: ...

    @property
    def index(self) -> tuple[str, ...]: ...


def parse_query(schema: Indexed, terms: Mapping[str, object] | None, more: Mapping[str, object]) -> Query:
    """Check what `where` was asked and give it one form.

    Raises ValueError for a field without an index (naming those that have one), TypeError that names the field for a
    value that cannot be a term.
    """
    if not (terms is None or isinstance(terms, Mapping)):
        raise TypeError(
            f"where() takes fields as keywords, or a mapping from fields to values, not a {type(terms).__name__}"
        )
    query: Query = {}
    for field, value in {**(terms or {}), **more}.items():
        if field not in schema.index:
            known = ", ".join(schema.index) or "none"
            hint = _INSTEAD.get(field, "")
            raise ValueError(f"collection {schema.name!r} has no index on {field!r}; indexed fields: {known}{hint}")
        try:
            query[field] = (value,) if type(value) is str else _alternatives(value)
        except TypeError as error:
            raise TypeError(f"indexed field {field!r}: {error}") from None
    return query


def holds(alternative: Alternative, carried: Sequence[Term]) -> bool:
    """Whether a record that carries these terms answers one alternative."""
    if isinstance(alternative, Excluding):
        return not any(holds(one, carried) for one in alternative.what)
    if isinstance(alternative, range):  # only an int, as a float would be compared with each
        return any(type(term) is int and term in alternative for term in carried)
    if isinstance(alternative, (Interval, Prefix)):
        return any(map(alternative.contains, carried))
    return alternative in carried


def matches(terms: Mapping[str, Sequence[Term]], query: Query) -> bool:
    """Whether a record, given as field -> its terms, answers the query."""
    return all(any(holds(one, terms[field]) for one in wanted) for field, wanted in query.items())


def matcher(query: Query) -> Callable[[tuple[Any, ...], Sequence[Any]], bool]:
    """A function that tells of names and values whether such a record answers the query.

    A record with a value that is no term in one of the fields does not: no index can hold it.
    """
    fields = [(field, *_parted(wanted)) for field, wanted in query.items()]

    def answers(names: tuple[Any, ...], values: Sequence[Any]) -> bool:
        try:
            for field, terms, predicates in fields:
                place = place_of(field, names)
                carried: tuple[Term, ...] = (None,)
                if place is not None:
                    at, steps = place
                    carried = terms_of(follow(values[at], steps) if steps else values[at])
                if terms.isdisjoint(carried) and not any(holds(one, carried) for one in predicates):
                    return False
        except TypeError:
            return False
        return True

    return answers


def _parted(wanted: Iterable[Alternative]) -> tuple[frozenset[Term], list[Alternative]]:
    predicates: list[Alternative] = [one for one in wanted if isinstance(one, _PREDICATES)]
    return frozenset(one for one in wanted if not isinstance(one, _PREDICATES)), predicates
