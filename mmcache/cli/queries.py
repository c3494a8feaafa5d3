"""`field=value` on a command line as what `where` takes.

section=games            the text "games"; where no record has that text, but one has what it spells as an int,
                         null, true or false, then that: size=5 finds 5 and "5", whichever the index holds
section:=5               JSON, taken at its word
tags=a tags=b            a field given twice: either of them (OR); different fields: both of them (AND)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .options import UsageError

if TYPE_CHECKING:
    from ..schema import Term
    from ..storage.snapshot import Collection

__all__ = ["parse_terms"]

_WORDS: dict[str, Term] = {"null": None, "true": True, "false": False}


def parse_terms(collection: Collection, words: Iterable[str]) -> dict[str, list[Term]]:
    """Raises UsageError for what is not field=value, or for a field without an index."""
    terms: dict[str, list[Term]] = {}
    for word in words:
        field, value, is_json = _split(word, collection.schema.index)
        if field not in collection.schema.index:
            known = ", ".join(collection.schema.index) or "none"
            raise UsageError(f"{field!r} is not indexed in {collection.name!r}; indexed fields: {known}")
        terms.setdefault(field, []).append(_json(value) if is_json else _typed(collection, field, value))
    return terms


def _split(word: str, fields: Sequence[str]) -> tuple[str, str, bool]:
    """Field, value, and whether the value is JSON. A field's own name may have "=" and ":" in it."""
    for field in sorted(fields, key=len, reverse=True):
        for operator in ("=", ":="):
            if word.startswith(field + operator):
                return field, word[len(field) + len(operator) :], operator == ":="
    field, equals, value = word.partition("=")
    if not equals:
        raise UsageError(f"expected FIELD=VALUE, found {word!r}")
    return field.removesuffix(":"), value, field.endswith(":")


def _json(text: str) -> Term:
    try:
        value: object = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{text!r} after := is not JSON ({error})") from None
    if value is None or isinstance(value, (str, int)):
        return value
    raise UsageError(f"{text!r} after := must be a text, an int, true, false or null")


def _typed(collection: Collection, field: str, text: str) -> Term:
    other: Term = text
    if text in _WORDS:
        other = _WORDS[text]
    elif text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 20 and text == str(int(text)):
        other = int(text)
    if other is text or len(collection.where({field: text})):
        return text
    try:
        return other if len(collection.where({field: other})) else text
    except TypeError:  # an int beyond 64 bits, which no index holds
        return text
