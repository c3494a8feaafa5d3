"""A key on a command line, and a key as a line of text.

A word can be read as several keys: 7 as a text and as an int, 0xc0ffee as a text and as bytes, a JSON array as a text
and as a key of several values. The types of the keys that a collection holds decide:

pattern-7              a text, always, as it is
7, -7                  an int, where keys are ints
0xc0ffee               bytes, in hexadecimal, where keys are bytes
["EPSG", 4326]         a key of several values, as JSON, where keys are; of bytes in it as "0xc0ffee"
"7"                    the text 7, where some keys are texts and some are not
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from ..format.keys import MAX_PARTS, Key, Scalar, check_key

if TYPE_CHECKING:
    from ..format.layout import CollectionLayout

__all__ = ["keys_of", "text_of", "type_of", "types_in"]

_INT = re.compile(r"-?(0|[1-9][0-9]*)", re.ASCII)
_HEX = re.compile(r"0x([0-9a-fA-F]{2})*", re.ASCII)


def keys_of(word: str, types: Collection[str]) -> tuple[Key, ...]:
    """The keys that a word can mean in a collection with keys of these types, the likeliest first; never none.

    types: as `type_of` names them. Where no reading is of one of these, all are meant: the source may have such a key
    though the file has none yet.
    """
    readings = list(_readings(word))
    if len(types) > 1 and (text := _text(word)) is not None:
        return (text,)
    return tuple(key for key in readings if type_of(key) in types) or tuple(readings)


def types_in(collection: CollectionLayout) -> tuple[str, ...]:
    """The types of the keys that a collection of a file holds; none where it does not say."""
    return collection.key_types or ()


def type_of(key: Key) -> str:
    """ "str", "int", "bytes", or of a key of several values such as "(str, int)"."""
    return f"({', '.join(map(type_of, key))})" if isinstance(key, tuple) else type(key).__name__


def text_of(key: Key) -> str:
    """The word that `keys_of` reads as this key, in a collection that has such keys."""
    if isinstance(key, tuple):
        return json.dumps([_hex(part) if isinstance(part, bytes) else part for part in key], ensure_ascii=False)
    return _hex(key) if isinstance(key, bytes) else str(key)


def _readings(word: str) -> Iterator[Key]:
    if _INT.fullmatch(word) and len(word) <= 20 and -(2**63) <= (number := int(word)) < 2**64:
        yield number
    if _HEX.fullmatch(word):
        yield bytes.fromhex(word[2:])
    if word.startswith("["):
        yield from _several(word)
    yield word


def _several(word: str) -> Iterator[Key]:
    try:
        parts = json.loads(word)
        check_key(tuple(parts))
    except (ValueError, TypeError, RecursionError):
        return
    if len(parts) <= MAX_PARTS:
        yield from itertools.product(*map(_parts, parts))


def _parts(part: Scalar) -> Iterable[Scalar]:
    if isinstance(part, str) and _HEX.fullmatch(part):
        return (bytes.fromhex(part[2:]), part)
    return (part,)


def _text(word: str) -> str | None:
    """What a JSON string says; None for any other word."""
    if not word.startswith('"'):
        return None
    try:
        text = json.loads(word)
    except ValueError:
        return None
    return text if isinstance(text, str) else None


def _hex(data: bytes) -> str:
    return f"0x{data.hex()}"
