"""What the bytes of an embedding are: by their first bytes, by their length, and by the exponents of their numbers.

Bytes do not say what they are, and those of float16, read as float32, are numbers too: half as many, and wrong. The
numbers of an embedding, though, have exponents within a narrow band, whichever model made them, and bytes that are read
with a wrong width or order do not: what is mantissa then counts as exponent. `probable` looks for that. It decides only
what leaves no doubt; a vector of zeros, a one-hot one, or one of a few numbers it leaves alone. Without numpy.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..schema import DTYPES, Dtype

__all__ = ["WIDTHS", "described", "foreign", "prefixed", "probable", "scattered", "sensible", "text"]

WIDTHS: dict[Dtype, int] = {
    "f4": 4,
    "f8": 8,
    "f2": 2,
    "bf2": 2,
    ">f4": 4,
    ">f8": 8,
    ">f2": 2,
    ">bf2": 2,
    "i1": 1,
    "u1": 1,
}
"""Bytes of a number; `bits` has none."""

_SAMPLE = 2048
_MIN_NUMBERS = 8
_MIN_NARROW = 16
_BAND = 12
"""Binary orders of magnitude within which 95 % of the numbers of a vector lie; of a normal distribution they take 7."""
_REACH = 40
"""A vector of float32 has its numbers between 2**-40 and 2**40."""
_MIN_DISTINCT = 8
_TOP_SHARE = 0.6
"""So many of a vector's numbers are in the upper four orders: each order has about twice those of the one below."""

_PAIRS = 64
_SHORTEST = 64
"""Bytes of 8 numbers of 8, 16 of 4, or 32 of 2: what `sensible` needs at least of each kind."""


class _Float(NamedTuple):
    """How to take a number apart. code: of struct. classes: places in a blob that a wider number would tell apart.
    orders: that a vector has at least; 8 orders of a bfloat16 look like one of a float16.
    """

    code: str
    mantissa: int
    exponent: int
    bias: int
    classes: int
    orders: int


_FLOATS: dict[Dtype, _Float] = {
    "f4": _Float("<I", 23, 0xFF, 127, 2, 0),
    "f8": _Float("<Q", 52, 0x7FF, 1023, 1, 2),
    "f2": _Float("<H", 10, 0x1F, 15, 2, 4),
    "bf2": _Float("<H", 7, 0xFF, 127, 2, 2),
    ">f4": _Float(">I", 23, 0xFF, 127, 2, 0),
    ">f8": _Float(">Q", 52, 0x7FF, 1023, 1, 2),
    ">f2": _Float(">H", 10, 0x1F, 15, 2, 4),
    ">bf2": _Float(">H", 7, 0xFF, 127, 2, 2),
}

_MAGIC = (
    (b"PK\x03\x04", "a zip archive, as torch.save and numpy.savez make"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"\x04\x22\x4d\x18", "compressed by lz4"),
    (b"\x89HDF", "HDF5"),
    (b"ARROW1", "an Arrow file"),
    (b"PAR1", "a Parquet file"),
    (b"\xff\xff\xff\xff", "an Arrow message"),
)


def foreign(blob: bytes) -> str | None:
    """What the bytes are by their first ones, if that is no plain array of numbers."""
    if blob[:1] == b"\x80" and blob[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and blob[-1:] == b".":
        return "a pickle"
    for magic, name in _MAGIC:
        if blob.startswith(magic):
            return name
    if blob[8:10] == b'{"' and int.from_bytes(blob[:8], "little") < len(blob):
        return "safetensors"
    return None


def text(blob: bytes, dtype: Dtype | None = None) -> str | None:
    """What the bytes are if all are those of printed text, which numbers of 2 bytes or more hardly ever are. dtype:
    that they should be: numbers of 4 bytes or more that are all of a usual size are no text; 0.7 is `333?`."""
    is_text = len(blob) >= _TEXT and not blob.translate(None, _PRINTED)
    if is_text and dtype is not None and WIDTHS.get(dtype, 1) >= 4:
        kind = _FLOATS[dtype]
        exponents = [word >> kind.mantissa & kind.exponent for word in _words(blob, kind.code)]
        is_text = not all(kind.bias - _SMALL <= one <= kind.bias + _LARGE for one in exponents)
    return "text, such as JSON or CSV; give a JSON list of numbers, as text" if is_text else None


_TEXT = 16
_PRINTED = bytes([*b"\t\n\r", *range(0x20, 0x7F)])
_SMALL, _LARGE = 11, 16
"""Text whose numbers of 4 bytes lie between 2**-11 and 2**17 has one of `:;<=>?@ABCDEFG` in every fourth place."""


def prefixed(blob: bytes) -> str | None:
    """What the bytes are if they begin with how many numbers follow."""
    size = len(blob)
    for length, count, name in (
        (4, int.from_bytes(blob[:4], "little"), "4 bytes"),
        (8, int.from_bytes(blob[:8], "little"), "8 bytes"),
        (4, int.from_bytes(blob[:2], "big") if blob[2:4] == bytes(2) else 0, "pgvector's binary form, 4 bytes"),
    ):
        for width in (4, 8, 2):
            if count > 1 and size == length + width * count:
                return (
                    f"{count} numbers of {width} bytes each behind their count ({name}); take them without it, as "
                    f"substr(x, {length + 1}) does in a query="
                )
    return None


def sensible(blob: bytes, dtype: Dtype, *, strictly: bool = True) -> bool:
    """Whether the bytes, read as numbers of this kind, have the exponents of an embedding in every place.

    strictly: and no others; else those alone that such a kind cannot have are refused.
    """
    kind = _FLOATS.get(dtype)
    if kind is None:
        return False
    words = _words(blob, kind.code)
    few = _MIN_NUMBERS if WIDTHS[dtype] > 2 else _MIN_NARROW
    return all(_is_band(words[place :: kind.classes], kind, few, strictly=strictly) for place in range(kind.classes))


def _words(blob: bytes, code: str) -> list[int]:
    width = struct.calcsize(code)
    count = min(len(blob), _SAMPLE) // width
    return list(struct.unpack_from(f"{code[0]}{count}{code[1]}", blob))


def _is_band(words: list[int], kind: _Float, few: int, *, strictly: bool) -> bool:
    magnitudes = [word & ((kind.exponent << kind.mantissa) | ((1 << kind.mantissa) - 1)) for word in words]
    exponents = sorted(magnitude >> kind.mantissa for magnitude in magnitudes if magnitude)
    if len(exponents) < few or exponents[-1] == kind.exponent or len(set(magnitudes)) < _MIN_DISTINCT:
        return False
    trim = len(exponents) // 40
    low, high = exponents[trim], exponents[-1 - trim]
    if high - low > _BAND or low < kind.bias - min(_REACH, kind.bias - 1) or high > kind.bias + _REACH:
        return False
    if not strictly:
        return True
    if high - low < kind.orders:
        return False
    return sum(one > high - 4 for one in exponents) > _TOP_SHARE * len(exponents)


def probable(blob: bytes) -> Dtype | None:
    """The one kind of floats that the bytes leave no doubt of; None where they leave some."""
    if len(blob) < _SHORTEST:
        return None
    if looks_like_f8(blob) or _is_whole_f8(blob):
        return "f8"
    # Two numbers of bfloat16 are one good float32, of which two bfloat16 are not: half of them is mantissa.
    order: tuple[Dtype, ...] = ("bf2", "f4", "f8", "f2", ">bf2", ">f4", ">f8", ">f2")
    found = next((dtype for dtype in order if len(blob) % WIDTHS[dtype] == 0 and sensible(blob, dtype)), None)
    return None if found is not None and _is_in_doubt(blob, found) else found


def _is_in_doubt(blob: bytes, found: Dtype) -> bool:
    """Whether what counts as mantissa then, has the exponents of numbers of half the width."""
    if found in ("f4", ">f4"):
        return sensible(blob, "bf2" if found == "f4" else ">bf2", strictly=False)
    if found in ("f8", ">f8"):
        half = _FLOATS["f4" if found == "f8" else ">f4"]
        return _is_band(_words(blob, half.code)[found == ">f8" :: 2], half, _MIN_NUMBERS, strictly=False)
    return False


def scattered(blob: bytes) -> bool:
    """Whether the bytes, read as float32, are numbers such as no vector has: all over the range, or all at its ends.

    So are those of int8, uint8, bits, int32, of anything compressed, and noise.
    """
    exponents = sorted(word >> 23 & 0xFF for word in _words(blob, "<I") if word & 0x7FFF_FFFF)
    if len(exponents) < _MIN_NUMBERS:
        return False
    quarter = len(exponents) // 4
    middle = exponents[-1 - quarter] - exponents[quarter]
    wild = sum(not 127 - 60 <= one <= 127 + 60 for one in exponents)
    return middle > _REACH or 5 * wild > 4 * len(exponents)


def looks_like_f8(blob: bytes) -> bool:
    """Whether a BLOB that is to be float32 is float64, zeros left aside.

    A float64 read as two float32 gives the low half of its mantissa first, which is noise and spread over all
    magnitudes from 1e-38 to 1e38 (or, of a number that was once a float32, +-0, +-2, +-1e-19 and +-4e19), and then its
    sign, exponent and top bits: for 1e-12 < |x| < 1e12 a float32 in 0.05 .. 72. So the answer is yes when in every pair
    (but those of two zeros, which say nothing) the second number is in that band, and in a quarter of them the first is
    not zero and outside 2**-40 .. 2**40. Real float32 would need that pattern with period two. Undecided, and so no:
    fewer than 8 pairs; numbers such as 0.5 whose low half is all zero.
    """
    pairs = min(len(blob) // 8, _PAIRS)
    if len(blob) % 8 or pairs < _MIN_NUMBERS:
        return False
    words = struct.unpack_from(f"<{2 * pairs}I", blob)
    telling = wild = 0
    for low, high in zip(words[::2], words[1::2], strict=True):
        magnitude = high & 0x7FFF_FFFF
        if magnitude == 0 and low == 0:
            continue
        if not 0x3D50_0000 <= magnitude < 0x4290_0000:
            return False
        telling += 1
        if low & 0x7FFF_FFFF:
            wild += not 127 - _REACH <= (low >> 23 & 0xFF) < 127 + _REACH
    return telling >= _MIN_NUMBERS and 4 * wild >= telling


def _is_whole_f8(blob: bytes) -> bool:
    """Whether they are whole numbers of float64, ones among them, whose low halves are zero: float32 would have to be
    zero in every other place, and 1.875 in some."""
    if len(blob) % 8:
        return False
    count = min(len(blob), _SAMPLE) // 8
    numbers = [number for number in struct.unpack_from(f"<{count}d", blob) if number]
    return len(numbers) >= _MIN_NARROW and all(number.is_integer() for number in numbers) and 1.0 in map(abs, numbers)


def described(blob: bytes, dim: int | None) -> str:
    """What bytes probably are that are not what they should be, to follow their size; "" for no idea."""
    size = len(blob)
    found = foreign(blob) or prefixed(blob) or text(blob)
    if found is not None:
        return f"; it is {found}"
    likely = probable(blob)
    if likely is not None and size // WIDTHS[likely] != dim:
        count = size // WIDTHS[likely]
        apart = "; embeddings of another length need a field or collection of their own" if dim else ""
        return f"; it looks like {count} numbers of {DTYPES[likely]} (dtype={likely!r}, dim={count}){apart}"
    if dim is None:
        return ""
    fits: list[Dtype] = [dtype for dtype, width in WIDTHS.items() if width * dim == size and dtype[0] != ">"]
    if size == (dim + 7) // 8:
        fits.append("bits")
    if likely is not None:
        fits = [likely]
    if not fits:
        return ""
    kinds = " or ".join(dtype if dtype == "bits" else DTYPES[dtype] for dtype in fits)
    ways = " or ".join(f"dtype={dtype!r}" for dtype in fits)
    return f", which is dim={dim} numbers of {kinds}; to read them, set {ways} in the Schema"
