"""What `find` is asked on a command line, as what `where` takes.

section=games            the text "games"; where no record has that text, but one has what it spells as a number,
                         null, true or false, then that: size=5 finds 5 and "5", whichever the index holds
section:=5               JSON, taken at its word
section!=games           records that carry no such value
year:2008..2010          from 2008 to 2010, both included; year:2008.. and year:..2010 have one end
year:>2008               and >=, <, <=: quote it in a shell
name:abc*                texts that begin with abc
tags=a tags=b            a field given twice: either of them (OR), of !=: neither; different fields: both of them (AND)

Bounds that spell numbers are numbers where a record has a number in that field, else text; "2008" in quotes is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..query import Alternative, Interval, Term, above, at_least, at_most, below, excluding, startswith
from .options import UsageError

if TYPE_CHECKING:
    from ..storage.selection import Selection
    from ..storage.snapshot import FileCollection

__all__ = ["selected"]

_WORDS: dict[str, Term] = {"null": None, "true": True, "false": False}
_OPERATORS = ("!=", ":=", "=", ":")
_COMPARED = {">=": at_least, "<=": at_most, ">": above, "<": below}
_FLOAT = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")


def selected(collection: FileCollection, words: Iterable[str]) -> Selection:
    """What the words ask for. Raises UsageError for what cannot be meant so, or for a field without an index."""
    wanted: dict[str, list[Alternative]] = {}
    excluded: dict[str, list[Term]] = {}
    for word in words:
        field, operator, value = _split(word, collection.schema.index)
        if field not in collection.schema.index:
            known = ", ".join(collection.schema.index) or "none"
            raise UsageError(f"{field!r} is not indexed in {collection.name!r}; indexed fields: {known}")
        if operator == "!=":
            excluded.setdefault(field, []).append(_typed(collection, field, value))
        else:
            wanted.setdefault(field, []).append(_alternative(collection, field, operator, value))
    found = collection.where(wanted)
    if excluded:
        found &= collection.where({field: excluding(values) for field, values in excluded.items()})
    return found


def _alternative(collection: FileCollection, field: str, operator: str, value: str) -> Alternative:
    if operator == ":=":
        return _json(value)
    return _typed(collection, field, value) if operator == "=" else _range(collection, field, value)


def _split(word: str, fields: Sequence[str]) -> tuple[str, str, str]:
    """Field, operator and value. A field's own name may have "=" and ":" in it."""
    for field in sorted(fields, key=len, reverse=True):
        for operator in _OPERATORS:
            if word.startswith(field + operator):
                return field, operator, word[len(field) + len(operator) :]
    found = re.match(r"(.*?)(!=|:=|=|:)(.*)", word, re.DOTALL)
    if not found:
        raise UsageError(f"expected FIELD=VALUE, found {word!r}")
    field, operator, value = found.groups()
    return field, operator, value


def _json(text: str) -> Term:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{text!r} after := is not JSON ({error})") from None
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise UsageError(f"{text!r} after := must be a text, a number, true, false or null")


def _typed(collection: FileCollection, field: str, text: str) -> Term:
    other = _WORDS[text] if text in _WORDS else _number(text)
    if (other is None and text != "null") or len(collection.where({field: text})):
        return text
    try:
        return other if len(collection.where({field: other})) else text
    except TypeError:  # an int beyond 64 bits, which no index holds
        return text


def _number(text: str) -> int | float | None:
    """What a text spells; None for no number, or an int that is spelt in another way than it is printed."""
    if text.isascii() and text.removeprefix("-").isdigit():
        return int(text) if len(text) <= 20 and text == str(int(text)) else None
    return float(text) if text.isascii() and _FLOAT.fullmatch(text) else None


def _range(collection: FileCollection, field: str, text: str) -> Alternative:
    low, dots, high = text.partition("..")
    operator = next((one for one in _COMPARED if text.startswith(one)), None)
    if operator is not None:
        (bound,) = _bounds(collection, field, [text.removeprefix(operator)])
        return _COMPARED[operator](bound)
    if dots and (low or high):
        ends = iter(_bounds(collection, field, [end for end in (low, high) if end]))
        return Interval(next(ends) if low else None, next(ends) if high else None)
    if text.endswith("*"):
        return startswith(text[:-1])
    raise UsageError(
        f"{field}:{text} is no range; write {field}:LOW..HIGH, {field}:LOW.., {field}:..HIGH, '{field}:>VALUE' "
        f"(>=, <, <=), or '{field}:TEXT*'"
    )


def _bounds(collection: FileCollection, field: str, texts: Sequence[str]) -> list[Any]:
    """All of them numbers, or all of them text."""
    numbers = [_number(text) for text in texts]
    if None not in numbers and len(collection.where({field: [below(0), at_least(0)]})):
        return numbers
    return [_text(text) for text in texts]


def _text(text: str) -> str:
    if len(text) >= 2 and text.startswith('"') and text.endswith('"'):
        value: object = _json(text)
        assert isinstance(value, str)
        return value
    return text
