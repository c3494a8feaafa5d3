"""What a query asks of one column, as SQL that holds for every row that answers it, and perhaps for others.

SQLite compares by affinities and collations of its own, and reads JSON in its own way; so a clause is a superset, which
the caller checks row by row. A clause may use an index: a column stands bare wherever nothing can be lost by that.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ..query import Alternative, Excluding, Interval, Prefix, Term

__all__ = ["MAX_TERMS", "Clause", "Column", "after", "clause", "storable"]

MAX_TERMS: Final = 500
"""More terms than this in one field are not put into SQL; the caller's check alone finds them."""

_EXACT: Final = 2**63
"""Integers of JSON below this are the same in SQLite as in Python."""

_LIKE_A_NUMBER: Final = re.compile(r"\s*[+-]?[.\d]")

Clause = tuple[str, list[Any]]
_ANY: Final[Clause] = ("1", [])


class Column(NamedTuple):
    """sql: the column as it is written. affinity: of a table's column; None where that is not known. is_utf8: whether
    SQLite orders text as its UTF-8 bytes are. is_json: it holds JSON text. is_path: the field is somewhere in that."""

    sql: str
    affinity: str | None
    is_utf8: bool
    is_json: bool
    is_path: bool


def clause(column: Column, wanted: Sequence[Alternative]) -> Clause | None:
    """The condition, and its parameters; None if no row can answer."""
    if any(isinstance(one, Excluding) for one in wanted):
        return _ANY
    spans = [one for one in map(_span, wanted) if one is not None]
    terms: list[Term] = [one for one in wanted if one is None or isinstance(one, (str, int, float))]
    if len(terms) > MAX_TERMS or len(spans) > MAX_TERMS:
        return _ANY
    if column.is_json:
        return _json_clause(column, terms, spans)
    clauses = [_terms_clause(column, terms), *(_span_clause(column, span) for span in spans)]
    return _either([one for one in clauses if one is not None])


def storable(text: str) -> bool:
    """Whether SQLite can hold the text: one with lone surrogates equals nothing there."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _either(clauses: Sequence[Clause]) -> Clause | None:
    if not clauses:
        return None
    return f"({' OR '.join(sql for sql, _ in clauses)})", [value for _, values in clauses for value in values]


def _span(wanted: Alternative) -> Interval | None:
    """The interval in which the terms of a predicate are; None for a term, and for an empty range."""
    if isinstance(wanted, range) and wanted:
        return Interval(min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1]))
    if isinstance(wanted, Prefix):
        return Interval(wanted.text, after(wanted.text))
    return wanted if isinstance(wanted, Interval) else None


def after(prefix: str) -> str | None:
    """The first text after all that begin like this; None if there is none."""
    for end in range(len(prefix), 0, -1):
        if prefix[end - 1] < chr(sys.maxunicode):
            following = ord(prefix[end - 1]) + 1
            return prefix[: end - 1] + chr(0xE000 if 0xD800 <= following < 0xE000 else following)
    return None


# --- plain columns ----------------------------------------------------------------------------------------------------


def _terms_clause(column: Column, terms: Sequence[Term]) -> Clause | None:
    values = [value for value in map(_bindable, terms) if value is not None]
    clauses: list[Clause] = [(f"{column.sql} IN ({_marks(values)})", values)] * bool(values)
    return _either(clauses + [(f"{column.sql} IS NULL", [])] * (None in terms))


def _bindable(term: Term) -> Term:
    """A term as SQLite holds it; None if it cannot, or for null."""
    if isinstance(term, int) and term >= 2**63:
        return float(term) if float(term) == term else None
    return None if isinstance(term, str) and not storable(term) else term


def _span_clause(column: Column, span: Interval) -> Clause | None:
    return _text_clause(column, span) if span.is_text else _number_clause(column, span)


def _number_clause(column: Column, span: Interval) -> Clause | None:
    if column.affinity == "TEXT":
        return None  # it turns numbers into text
    sql = column.sql if column.affinity is not None else f"+{column.sql}"
    bounds = [(">=", _rounded_down(span.low)), ("<=", _rounded_up(span.high))]
    parts: list[tuple[str, Any]] = [(operator, value) for operator, value in bounds if value is not None]
    # Both ends, as SQLite would rather scan than search an index for a range of one: numbers are less than any text.
    if span.low is None:
        parts.append((">=", -math.inf))
    if span.high is None:
        parts.append(("<", ""))
    return _all(sql, parts)


def _text_clause(column: Column, span: Interval) -> Clause | None:
    low = span.low if isinstance(span.low, str) and column.is_utf8 and storable(span.low) else ""
    parts: list[tuple[str, Any]] = [(">=", low)]
    if isinstance(span.high, str) and column.is_utf8 and storable(span.high):
        parts.append(("<=", span.high))
    else:
        parts.append(("<", b""))  # text is less than any BLOB
    # A bound that looks like a number would be compared as one by a column of numbers, and text is greater than any.
    is_safe = column.affinity in ("TEXT", "BLOB") or (
        column.affinity is not None
        and not any(isinstance(value, str) and _LIKE_A_NUMBER.match(value) for _, value in parts)
    )
    return _all(column.sql if is_safe else f"+{column.sql}", parts)


def _all(sql: str, parts: Sequence[tuple[str, Any]]) -> Clause:
    collate = {str: " COLLATE BINARY"}
    text = " AND ".join(f"{sql} {operator} ?{collate.get(type(value), '')}" for operator, value in parts)
    return (f"({text})", [value for _, value in parts]) if parts else _ANY


def _rounded_down(bound: Any) -> int | float | None:
    """The greatest number of SQLite's that is not greater; None if none is needed."""
    if bound is None or bound < -(2**63):
        return None if bound is None or isinstance(bound, int) else float(bound)
    if not isinstance(bound, int) or bound < 2**63:
        return bound  # type: ignore[no-any-return]
    try:
        near = float(bound)
    except OverflowError:
        return sys.float_info.max
    return math.nextafter(near, -math.inf) if near > bound else near


def _rounded_up(bound: Any) -> int | float | None:
    below = _rounded_down(None if bound is None else -bound)
    return None if below is None else -below if isinstance(below, float) or below > -(2**63) else 2.0**63


# --- columns of JSON --------------------------------------------------------------------------------------------------


def _json_clause(column: Column, terms: Sequence[Term], spans: Sequence[Interval]) -> Clause | None:
    if column.is_path and None in terms:
        return _ANY  # also where the path leads nowhere
    values = [term for term in terms if isinstance(term, (int, float)) or (term is not None and storable(term))]
    # JSON1 cuts strings at NUL and reads integers beyond 64 bits as floats: leave such terms to the caller's check.
    if any("\0" in value if isinstance(value, str) else abs(value) >= _EXACT for value in values):
        return _ANY
    items: list[Clause] = [(f"e.atom IN ({_marks(values)})", list(values))] * bool(values)
    if any(not isinstance(value, str) for value in values):
        items.append(("e.type = 'real'", []))  # which it may read as a neighbour of what Python reads
    items += [("e.type = 'null'", [])] * (None in terms)
    items += [_text_item(column, span) if span.is_text else _number_item(span) for span in spans]
    found = _either(items)
    if found is None:
        return None
    sql, parameters = found
    exists = f"EXISTS (SELECT 1 FROM {'json_tree' if column.is_path else 'json_each'}({column.sql}) AS e WHERE {sql})"
    # What is not JSON goes to the caller, who says whose it is.
    null = f"WHEN {column.sql} IS NULL THEN {int(None in terms)}"
    return f"CASE {null} WHEN json_valid({column.sql}) THEN {exists} ELSE 1 END", parameters


def _number_item(span: Interval) -> Clause:
    bounds: list[tuple[str, Any]] = [(">=", span.low), ("<=", span.high)]
    parts = [f"e.atom {operator} ?" for operator, value in bounds if value is not None and abs(value) < _EXACT]
    values = [value for _, value in bounds if value is not None and abs(value) < _EXACT]
    sql = " AND ".join(["e.type IN ('integer', 'true', 'false')", *parts])
    return f"e.type = 'real' OR {sql}", values


def _text_item(column: Column, span: Interval) -> Clause:
    bounds = [(">=", span.low), ("<=", span.high)] if column.is_utf8 else []
    kept = [
        (operator, value)
        for operator, value in bounds
        if isinstance(value, str) and storable(value) and "\0" not in value
    ]
    sql = " AND ".join(["e.type = 'text'", *(f"e.atom {operator} ?" for operator, _ in kept)])
    return sql, [value for _, value in kept]


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
