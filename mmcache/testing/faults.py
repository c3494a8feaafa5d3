"""What is wrong with an answer, in sentences that name the rule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..format.keys import Key
from ..query import Query, follow, place_of
from ..schema import Schema
from ..sources.base import Invalid, Source, SourceRecord, flat
from .reference import Reference, fields_of, form, is_record

__all__ = ["about_answers", "about_matches", "about_rows", "about_schemas"]

_METHODS = "read", "fetch", "find", "fingerprint", "spec"


def about_schemas(source: Any) -> Iterator[str]:
    """That it has all that a source must have."""
    if lacking := [name for name in _METHODS if not callable(getattr(source, name, None))]:
        yield f"it has no method {', '.join(lacking)}; see mmcache.Source, or derive it from mmcache.BaseSource"
        return
    if not isinstance(source, Source):
        yield "it has no attribute schemas, a tuple of Schema; see mmcache.Source"
        return
    schemas: Any = source.schemas
    if not isinstance(schemas, tuple) or not schemas or not all(isinstance(one, Schema) for one in schemas):
        yield f"schemas is {schemas!r:.200}; expected a tuple of one Schema or more"
        return
    names = [schema.name for schema in schemas]
    if len(set(names)) < len(names):
        yield f"schemas names a collection twice: {', '.join(names)}"
    if unresolved := [schema.name for schema in schemas if schema.key is None]:
        yield f"the schema of {unresolved[0]!r} has no key; give it as schema.resolved('id')"


def about_rows(one: Reference) -> Iterator[str]:
    """What a read gives."""
    name, key = one.schema.name, one.schema.key
    for row in one.rows:
        if not isinstance(row, (SourceRecord, Invalid)):
            yield f"records({name!r}) gave a {type(row).__name__}; expected SourceRecord, or Invalid for a bad row"
            return
        if isinstance(row, Invalid):
            continue
        if len(row.names) != len(row.values) or not row.names:
            sizes = f"{len(row.names)} names and {len(row.values)} values"
            yield f"records({name!r}) gave a record of {sizes}; each field has one of both"
            return
        if row.names[0] != key:
            yield f"records({name!r}) gave a record that begins with {row.names[0]!r}; the key, {key!r}, comes first"
            return
        if both := set(flat(row.names)) & set(one.schema.embeddings):
            yield f"records({name!r}) gave {both.pop()!r} as a field; an embedding goes into `vector` alone"
            return
    if one.keyed is None:
        yield f"records({name!r}) gave a record whose key is none: a str, int of 64 bits, bytes, or tuple of these"
        return
    keys = [row.values[0] for row in one.rows if isinstance(row, SourceRecord)]
    is_once = len(set(keys)) == len(keys)
    if not is_once and one.schema.on_duplicate == "raise":
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        yield f"records({name!r}) gave the key {twice!r} twice; each record comes once"
    if one.count is not None and is_once and len(keys) == len(one.rows) and one.count != len(keys):
        yield f"count({name!r}) is {one.count!r}, and records() gave {len(keys)}; None, if only reading them would tell"


def about_answers(one: Reference, ids: Sequence[Key], answers: Sequence[Any], since: str = "") -> Iterator[str]:
    """The answers of `fetch` for some ids."""
    what = f"{since}fetch({one.schema.name!r}, ...)"
    if len(answers) != len(ids):
        yield f"{what} gave {len(answers)} answers for {len(ids)} ids; None stands where there is no record"
        return
    assert one.keyed is not None
    for key, found, expected in zip(ids, answers, one.keyed.fetch(ids), strict=True):
        if fault := _about_answer(key, found, expected, stale=bool(since)):
            yield f"{what} {fault}"
            return


def _about_answer(key: Key, found: Any, expected: Any, *, stale: bool) -> str:
    if expected is None:
        if found is None:
            return ""
        there = _key_of(found)
        if stale and there == key:
            return f"gave a record for {key!r}, which read() does not have any more: it is stale"
        return (
            f"gave the record {there!r} for {key!r}, which no record has: None is right, as keys are equal only if "
            "their types and all their characters are"
        )
    if found is None:
        why = "it is stale, or looks in another place" if stale else "it must give every record that a read gives"
        return f"gave None for {key!r}, which read() has: {why}"
    if not isinstance(found, Invalid) and not is_record(found):
        return f"gave a {type(found).__name__} for {key!r}; expected SourceRecord or None"
    if isinstance(found, Invalid) or isinstance(expected, Invalid):
        return (
            "" if type(found) is type(expected) else f"gave a {type(found).__name__} for {key!r}, and read() the other"
        )
    if _key_of(found) != key:
        return f"gave the record {_key_of(found)!r} for {key!r}: the answers are in the order of the ids"
    return _about_content(key, found, expected, stale=stale)


def _about_content(key: Key, found: SourceRecord, expected: SourceRecord, *, stale: bool = False) -> str:
    if form(found) == form(expected):
        return ""
    ours, theirs = fields_of(expected), fields_of(found)
    differ = [
        name for name in {**ours, **theirs} if repr(ours.get(name, "no such field")) != repr(theirs.get(name, ""))
    ]
    if not differ:
        return f"gave another embedding for {key!r} than read()"
    name = differ[0]
    given, right = (fields.get(name, "nothing") for fields in (theirs, ours))
    how = ": it is stale" if stale else "; types count"
    return f"gave {given!r:.80} as {name!r} of {key!r}, and read() {right!r:.80}{how}"


def about_matches(one: Reference, query: Query, records: Sequence[Any], since: str = "") -> Iterator[str]:
    """The answer of `find`."""
    what = f"{since}find({one.schema.name!r}, {_shown(query)})"
    if wrong := [row for row in records if not is_record(row)]:
        yield f"{what} gave a {type(wrong[0]).__name__}; expected records alone, without bad rows"
        return
    expected = one.found(query)
    found, right = [row.values[0] for row in records], [row.values[0] for row in expected]
    by_key = {row.values[0]: row for row in (*records, *expected)}
    if lacking := [key for key in right if key not in set(found)]:
        yield f"{what} lacks {lacking[0]!r}{_why(query, by_key[lacking[0]])}"
    elif extra := [key for key in found if key not in set(right)]:
        yield f"{what} gave {extra[0]!r}{_why(query, by_key[extra[0]])}"
    elif len(found) > len(right):
        yield f"{what} gave a record twice"
    elif found != right:
        yield f"{what} gave {found[:6]!r}, and read() has them as {right[:6]!r}: the order is that of records()"
    else:
        for row, other in zip(records, expected, strict=True):
            if fault := _about_content(other.values[0], row, other, stale=bool(since)):
                yield f"{what} {fault}"
                return


def _why(query: Query, record: SourceRecord) -> str:
    """What the record has in the fields that were asked for, and the rule that counts there."""
    said: list[str] = []
    for field, wanted in query.items():
        place = place_of(field, record.names)
        value = follow(record.values[place[0]], place[1]) if place is not None else None
        said.append(f"{field!r} is {value!r:.80}" if place is not None else f"has no {field!r}")
        said += _rules(value, wanted)
    return f", which {'; '.join(said)}" if said else ""


def _rules(value: Any, wanted: Iterable[Any]) -> Iterator[str]:
    if isinstance(value, (list, tuple)):
        yield "a list is found by each of its values, and an empty one by none"
    elif value is None or value != value:  # noqa: PLR0124 (NaN)
        yield "what lacks the field, or has None or NaN there, is found by None alone, and excluding() does not drop it"
    elif isinstance(value, (bool, int, float)):
        yield "True == 1 == 1.0 are one value, and text is never equal to a number"
    elif any(isinstance(each, (int, float)) for each in wanted):
        yield "text is never equal to a number"
    else:
        yield "texts are equal if all their characters are, and their order is that of their UTF-8 bytes"


def _shown(query: Query) -> str:
    return ", ".join(f"{field}={list(wanted)!r}" for field, wanted in query.items()) or "everything"


def _key_of(row: Any) -> Any:
    return row.key if isinstance(row, Invalid) else row.values[0]
