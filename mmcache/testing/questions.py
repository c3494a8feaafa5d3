"""What a source is asked: keys and queries that databases and programs take for others than they are.

A collation takes `A` for `a` and `a ` for `a`; an affinity takes the text 1 for the number; a comparison by identity
takes True for another value than 1; a pattern takes `%` for anything; one value is not looked for within a list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, Final

from ..format.keys import Key, is_key
from ..query import Excluding, Interval, Prefix, Query, Term, terms_in
from .reference import Reference, fields_of

__all__ = ["absent_keys", "asked", "queries"]

_SAMPLES: Final = 4
"""Terms of each type that are asked for."""


# --- keys -------------------------------------------------------------------------------------------------------------


def asked(one: Reference) -> Iterator[list[Key]]:
    """Lists of keys for `fetch`."""
    keys = one.keys
    near = list(islice(_near_keys(one), 40))
    yield []
    yield keys[:200]
    yield [*reversed(keys[:20]), *near, *keys[:3], *keys[:3]]
    yield from ([key] for key in (*keys[:2], *near[:8]))


def absent_keys(one: Reference, count: int) -> list[Key]:
    """Keys of the type that the collection has, and that it has not."""
    there = set(one.keys)
    width = len(one.schema.key_fields)
    first = next(iter(one.keys), "")
    made: Iterator[Key] = (_made(first, i) for i in range(2 * count + len(there)))
    if width > 1 and not isinstance(first, tuple):
        made = (tuple(f"absent-{i}" for _ in range(width)) for i in range(2 * count + len(there)))
    return list(islice((key for key in made if key not in there), count))


def _made(like: Key, number: int) -> Key:
    if isinstance(like, tuple):
        return (*like[:-1], _made(like[-1], number))  # type: ignore[arg-type]
    if isinstance(like, int):
        return 1_000_003 + number
    return f"absent-{number}".encode() if isinstance(like, bytes) else f"absent-{number}"


def _near_keys(one: Reference) -> Iterator[Key]:
    """Keys that are not there, and that something may take for one that is."""
    there = set(one.keys)
    seen: set[Key] = set()
    for key in one.keys[:5]:
        for near in _keys_like(key):
            if is_key(near) and near not in there and near not in seen:
                seen.add(near)
                yield near
    yield from absent_keys(one, 2)


def _keys_like(key: Any) -> Iterator[Any]:
    if isinstance(key, tuple):
        yield tuple(reversed(key))
        for i, part in enumerate(key):
            yield from ((*key[:i], near, *key[i + 1 :]) for near in _keys_like(part))
        return
    if isinstance(key, str):
        yield from (key.swapcase(), f"{key} ", f" {key}", f"{key}\0", key[:-1], key.encode(), f"{key}'", f"{key}%")
        if key.lstrip("-").isdigit() and key.isascii():
            yield int(key)
    elif isinstance(key, int):
        yield from (str(key), f"{key}.0", -key - 1, key + 2**32, 2**63 + 1, -(2**63), str(key).encode())
    else:
        yield from (key + b"\0", key[:-1], key.decode("latin-1"))


# --- queries ----------------------------------------------------------------------------------------------------------


def queries(one: Reference) -> Iterator[Query]:
    """Single terms, alternatives, ranges, prefixes, exclusions, of each indexed field; and two fields together."""
    chosen: dict[str, list[Term]] = {}
    for field in one.schema.index:
        terms = _terms(one, field)
        samples = chosen[field] = _samples(terms)
        near = [term for sample in samples for term in _terms_like(sample) if term not in terms]
        for term in dict.fromkeys([*samples, None, *near[:12], "absent", 2**63 + 1]):
            yield {field: (term,)}
        yield {field: (*samples[:3], None, "absent")}
        yield {field: ()}
        for predicate in _predicates(samples):
            yield {field: (predicate,)}
    fields = [field for field in chosen if chosen[field]]
    for field, other in pairwise(fields):
        yield {field: (chosen[field][0],), other: tuple(chosen[other])}
    yield {}


def _terms(one: Reference, field: str) -> dict[Term, None]:
    found: dict[Term, None] = {}
    for record in one.records:
        try:
            found.update(dict.fromkeys(terms_in(fields_of(record), field)))
        except TypeError:  # it is in no index
            continue
    return found


def _samples(terms: Iterable[Term]) -> list[Term]:
    """Some of each type; None among them, if it is there."""
    by_type: dict[type, list[Term]] = {}
    for term in terms:
        some = by_type.setdefault(type(term), [])
        if len(some) < _SAMPLES or term in (0, 1):
            some.append(term)
    return [term for some in by_type.values() for term in some]


def _terms_like(term: Any) -> Iterator[Term]:
    if isinstance(term, str):
        yield from (term.swapcase(), f"{term} ", term[:-1], f"{term}%", f"{term}'", "%", "")
        if term.lstrip("-").isdigit() and term.isascii() and abs(int(term)) < 2**63:
            yield int(term)
    elif isinstance(term, (int, float)):
        yield from (str(term), f" {term}", term + 0.5)


def _predicates(samples: Sequence[Any]) -> Iterator[Any]:
    for kind in (str, (int, float)):
        some = sorted(term for term in samples if isinstance(term, kind))
        if not some:
            continue
        low, high = some[0], some[-1]
        yield from (Interval(low, high), Interval(low, None), Interval(low, None, low_open=True))
        yield from (Interval(None, high), Interval(None, high, high_open=True))
        yield Excluding((low,))
        yield Excluding((Interval(low, None),))
        if isinstance(low, str):
            yield from map(Prefix, dict.fromkeys((low[:1], low[:1].swapcase(), low, "%", "_")))
        if isinstance(low, int):
            yield range(low, low + 5, 2)
    yield Excluding((None,))
