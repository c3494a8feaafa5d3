"""What a function says of the state of a source, as a fingerprint of 32 bytes, and back.

A token of up to 31 bytes, as msgpack, stands in the fingerprint itself, so that a later process can ask what was
written since. It ends in its length, which is never 0: all zeros are of a source that cannot tell.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final

import msgpack

from ..errors import SourceError
from ..values import Values

__all__ = ["fingerprint_of_token", "token_in"]

_SIZE: Final = 31

_TEXTS: Final[dict[int, tuple[type, Callable[[Any], str], Callable[[str], Any]]]] = {
    1: (dt.datetime, dt.datetime.isoformat, dt.datetime.fromisoformat),  # without a zone
    2: (dt.date, dt.date.isoformat, dt.date.fromisoformat),
    3: (Decimal, str, Decimal),
}
"""Types that msgpack has no form for: each as a text, by the code of an extension type."""


def fingerprint_of_token(token: Any, *, exact: bool) -> bytes:
    """32 bytes that differ as the tokens do; zeros for None, which says nothing.

    exact: whether `token_in` is to give it back. Raises SourceError for a token that is no plain value, or too long.
    """
    if token is None:
        return bytes(32)
    try:
        packed: bytes = msgpack.packb(token, default=_packed, datetime=True, strict_types=True)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise SourceError(
            f"fingerprint= gave {token!r:.80}, expected a number, text, bytes, datetime, or a tuple of these: {error}"
        ) from error
    if len(packed) <= _SIZE:
        return packed.rjust(_SIZE, b"\0") + bytes([len(packed)])
    if exact:
        raise SourceError(
            f"fingerprint= gave {token!r:.80}, which takes {len(packed)} bytes; with changed_since= at most {_SIZE}, "
            "such as a datetime and a number"
        )
    return blake2b(packed, digest_size=_SIZE).digest() + b"\xff"


def token_in(fingerprint: bytes) -> Any:
    """The token of a fingerprint; None where it holds none, as that of another source."""
    size = fingerprint[-1] if len(fingerprint) == _SIZE + 1 else 0
    if not 0 < size <= _SIZE or any(fingerprint[: _SIZE - size]):
        return None
    try:
        return msgpack.unpackb(fingerprint[_SIZE - size : _SIZE], timestamp=3, ext_hook=_unpacked, use_list=False)
    except (ValueError, ArithmeticError, msgpack.UnpackException):
        return None


def _packed(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, dt.datetime) and value.tzinfo is not None:
        return dt.datetime.fromisoformat(value.isoformat())  # of pandas
    for code, (kind, text, _) in _TEXTS.items():
        if isinstance(value, kind):
            return msgpack.ExtType(code, text(value).encode())
    return Values()(value)


def _unpacked(code: int, data: bytes) -> Any:
    if code not in _TEXTS:
        raise ValueError(f"extension type {code}")
    return _TEXTS[code][2](data.decode())
