"""Values as JSON text, also those that JSON has no form for.

bytes                      {"$base64": true, "encoded": "..."}
NaN, infinities            {"$float": "nan" | "inf" | "-inf"}
a map with keys not text   {"$map": [[key, value], ...]}
a timestamp, other types   {"$timestamp": "..."}, {"$ext": code, "encoded": "..."}
"""

from __future__ import annotations

import base64
import json
import math
import re
from typing import Any

__all__ = ["dumps", "plain"]

_UNSAFE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What may command a terminal, or has no UTF-8; JSON escapes the other control characters itself."""


def plain(value: Any) -> Any:
    """The same value in what JSON can carry."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, bytes):
        return {"$base64": True, "encoded": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: plain(item) for key, item in value.items()}
        return {"$map": [[plain(key), plain(item)] for key, item in value.items()]}
    if hasattr(value, "code") and hasattr(value, "data"):  # msgpack.ExtType, a tuple
        return {"$ext": value.code, "encoded": base64.b64encode(value.data).decode()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "to_datetime"):  # msgpack.Timestamp
        return {"$timestamp": [value.seconds, value.nanoseconds]}
    return str(value)


def dumps(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    text = json.dumps(plain(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    return text if ascii_only else _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
