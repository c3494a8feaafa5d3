"""One embedding, in whatever form a source holds it, as little-endian float32 bytes.

Every source decodes through `vector_bytes`, so that an embedding is accepted or refused for the same reasons
wherever it comes from. What all embeddings of a collection must have in common beyond their length (NaN policy,
one dimension) is the builder's to check. numpy is imported only for values that are arrays or float64 BLOBs.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, Literal

__all__ = ["VectorDecoder", "float32_bytes", "vector_bytes"]

Dtype = Literal["f4", "f8"]

_SAMPLE_PAIRS = 64
_MIN_PAIRS = 8


def vector_bytes(value: object, *, dim: int | None, dtype: Dtype) -> bytes | None:
    """The embedding as `4 * dim` bytes, or None for none.

    value: None, a BLOB (bytes, bytearray, memoryview of bytes) of `dtype` numbers, JSON text of a list, a sequence
        of numbers, or a 1-D array of any integer or floating dtype. `bytes` that need no conversion are returned
        as they are, without a copy.
    dim: how many numbers there must be; with None any number, and a float32 BLOB is then also looked at for being
        float64 (see `_looks_like_f8`).

    Raises ValueError with the reason alone; the caller adds collection and key.
    """
    if type(value) is bytes and dtype == "f4" and dim is not None and len(value) == 4 * dim:
        return value
    if value is None:
        return None
    if isinstance(value, memoryview) and value.format not in ("B", "b", "c"):
        value = value.tolist()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _from_blob(bytes(value), dim, dtype)
    if isinstance(value, str):
        value = _from_json(value)
        if value is None:
            return None
    if hasattr(value, "__array__"):
        return _from_array(value, dim)
    if isinstance(value, Sequence):
        return _from_numbers(value, dim)
    raise ValueError(
        f"the embedding is of type {type(value).__name__}; it must be a BLOB, JSON text of a list, "
        "a sequence of numbers, a 1-D array or None"
    )


class VectorDecoder:
    """`vector_bytes` for the embeddings of one collection in turn: without `dim`, the first one sets it."""

    __slots__ = ("dim", "dtype")

    def __init__(self, dim: int | None, dtype: Dtype) -> None:
        self.dim = dim
        self.dtype = dtype

    def __call__(self, value: object) -> bytes | None:
        vector = vector_bytes(value, dim=self.dim, dtype=self.dtype)
        if self.dim is None and vector is not None:
            self.dim = len(vector) // 4
        return vector


def _check_count(count: int, dim: int | None) -> None:
    if count == 0:
        raise ValueError("the embedding is empty; use NULL (None) for a record without one")
    if dim is not None and count != dim:
        raise ValueError(f"the embedding has {count} numbers, expected dim={dim}")


def _from_blob(blob: bytes, dim: int | None, dtype: Dtype) -> bytes:
    size, width = len(blob), 4 if dtype == "f4" else 8
    other: Dtype = "f8" if dtype == "f4" else "f4"
    if dim is not None and size and size != width * dim:
        if size == (12 - width) * dim:
            raise ValueError(
                f"the embedding BLOB has {size} bytes, which is dim={dim} numbers of float{8 * (12 - width)}, "
                f"expected float{8 * width}; to read them, set dtype={other!r} in the Schema"
            )
        raise ValueError(f"the embedding BLOB has {size} bytes, expected {width * dim} (dim={dim} of {dtype})")
    if size % width:
        raise ValueError(f"the embedding BLOB has {size} bytes, which is not a multiple of {width} (dtype={dtype!r})")
    _check_count(size // width, dim)
    if dtype == "f8":
        import numpy as np

        return float32_bytes(np.frombuffer(blob, "<f8"))
    if dim is None and _looks_like_f8(blob):
        raise ValueError(
            f"the embedding BLOB of {size} bytes makes no sense as float32 and does as {size // 8} numbers of float64; "
            f"set dtype='f8' in the Schema to convert it, or dim={size // 4} if it is float32"
        )
    return blob


def _looks_like_f8(blob: bytes) -> bool:
    """Whether a BLOB that is to be float32 is float64.

    A float64 read as two float32 gives the low half of its mantissa first, which is noise and spread over all
    magnitudes from 1e-38 to 1e38 (or, of a number that was once a float32, +-0, +-2, +-1e-19 and +-4e19), and then its
    sign, exponent and top bits: for 1e-12 < |x| < 1e12 a float32 in 0.05 .. 72. So the answer is yes when in every pair
    (but those of two zeros, which say nothing) the second number is in that band, and in a quarter of them the first is
    not zero and outside 2**-40 .. 2**40. Real float32 would need that pattern with period two. Undecided, and so no:
    fewer than 8 pairs; numbers such as 0.5 whose low half is all zero.
    """
    pairs = min(len(blob) // 8, _SAMPLE_PAIRS)
    if len(blob) % 8 or pairs < _MIN_PAIRS:
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
            wild += not 127 - 40 <= (low >> 23 & 0xFF) < 127 + 40
    return telling >= _MIN_PAIRS and 4 * wild >= telling


def _from_json(text: str) -> list[Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the embedding is text but not JSON ({error}); expected a list of numbers") from None
    if value is not None and not isinstance(value, list):
        raise ValueError(f"the embedding is JSON of type {type(value).__name__}, expected a list of numbers")
    return value


def _from_numbers(values: Sequence[Any], dim: int | None) -> bytes:
    _check_count(len(values), dim)
    if not set(map(type, values)) <= {float, int}:
        for index, item in enumerate(values):
            if isinstance(item, (bool, str, bytes)) or not hasattr(item, "__float__"):
                raise ValueError(f"the embedding holds {item!r} at position {index}, expected a number")
    try:
        return struct.pack(f"<{len(values)}f", *values)
    except (OverflowError, struct.error, TypeError, ValueError):
        index = next(i for i, item in enumerate(values) if not _fits(item))
        raise ValueError(f"the embedding holds {values[index]!r} at position {index}, which float32 cannot") from None


def _fits(item: Any) -> bool:
    try:
        struct.pack("<f", item)
    except (OverflowError, struct.error, TypeError, ValueError):
        return False
    return True


def _from_array(value: Any, dim: int | None) -> bytes:
    import numpy as np

    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the embedding, a {type(value).__name__}, is not an array of numbers: {error}") from error
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise ValueError(
            f"the embedding is an array of shape {array.shape} and dtype {array.dtype}, "
            "expected one dimension of an integer or floating dtype"
        )
    _check_count(len(array), dim)
    return float32_bytes(array)


def float32_bytes(array: Any) -> bytes:
    """The array as C-order little-endian float32 bytes. Refuses a finite number that would become infinite."""
    import numpy as np

    if array.dtype == np.dtype("<f4"):
        return array.tobytes()  # type: ignore[no-any-return]
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype("<f4")
    if array.dtype.itemsize > 4 or array.dtype.kind != "f":
        lost = np.isinf(converted) & np.isfinite(array)
        if lost.any():
            index = int(np.flatnonzero(lost)[0])
            raise ValueError(
                f"the embedding holds {array.flat[index]!s} at position {index % array.shape[-1]}, which float32 cannot"
            )
    return converted.tobytes()  # type: ignore[no-any-return]
