"""What a build left out of a collection, as its entry in `meta` has it: counts, and the first rows by name."""

from __future__ import annotations

from dataclasses import dataclass

from ..shown import internal

__all__ = ["MAX_NAMED", "NOTHING_LEFT_OUT", "LeftOut", "may_have", "named"]

MAX_NAMED = 20
"""Rows that are named, the first ones; all of them are counted."""
_MAX_TEXT = 200
"""Characters of a key and of a reason."""


@internal("from_plain", "to_plain")
@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a build left out of a collection. False where that is nothing.

    invalid: rows that could not be taken. duplicates: rows whose key another row has, too. rows: the first 20 of the
    invalid ones, as (key, reason); the key as `repr` has it, or "" where it is not known.

    >>> rows = [{"id": "a"}, {"id": None}, {"id": "a"}]
    >>> report = mmcache.build("rows.mmc", rows, Schema("rows", on_invalid="skip", on_duplicate="first"))
    >>> left_out = report.left_out["rows"]
    >>> left_out.invalid, left_out.duplicates, left_out.rows[0][1]
    (1, 1, "record 1: the key 'id': a key cannot be None of type NoneType; ...")
    """

    invalid: int = 0
    duplicates: int = 0
    rows: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.invalid or self.duplicates)

    def __str__(self) -> str:
        """In one line, with the first row of all."""
        parts = [f"{self.invalid} that could not be taken"] * bool(self.invalid)
        parts += [f"{self.duplicates} with a key of another"] * bool(self.duplicates)
        first = "".join(f"; the first: {': '.join(filter(None, row))}" for row in self.rows[:1])
        return " and ".join(parts) + first

    def to_plain(self) -> list[object]:
        """As in `meta`."""
        return [self.invalid, self.duplicates, [list(row) for row in self.rows]]

    @classmethod
    def from_plain(cls, plain: object) -> LeftOut:
        """Raises TypeError for what `to_plain` does not give."""
        if not (isinstance(plain, list) and len(plain) == 3 and isinstance(plain[2], list)):
            raise TypeError(f"expected what was left out, found {plain!r:.80}")
        invalid, duplicates, rows = plain
        if not all(type(n) is int and 0 <= n < 2**63 for n in (invalid, duplicates)) or len(rows) > MAX_NAMED:
            raise TypeError(f"expected what was left out, found {plain!r:.80}")
        for row in rows:
            if not (isinstance(row, list) and len(row) == 2 and all(isinstance(text, str) for text in row)):
                raise TypeError(f"expected a key and a reason, found {row!r:.80}")
        return cls(invalid, duplicates, tuple((key, reason) for key, reason in rows))


NOTHING_LEFT_OUT = LeftOut()


def may_have(left_out: LeftOut, key: object) -> bool:
    """Whether a row with this key may be among those that could not be taken."""
    if left_out.invalid > len(left_out.rows):
        return True
    return left_out.invalid > 0 and named(key, "")[0] in {row[0] for row in left_out.rows}


def named(key: object, reason: str) -> tuple[str, str]:
    """A row as `LeftOut.rows` names it: bounded, and of valid Unicode."""
    try:
        text = "" if key is None else repr(key)
    except ValueError:  # an int of thousands of digits
        text = "a number"
    return _cut(text), _cut(reason)


def _cut(text: str) -> str:
    text = text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 3]}..."
    return text.encode("utf-8", "backslashreplace").decode()
