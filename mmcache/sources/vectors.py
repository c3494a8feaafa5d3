"""One embedding, in whatever form a source holds it, as little-endian float32 bytes.

Every source decodes through `vector_bytes`, so that an embedding is accepted or refused for the same reasons
wherever it comes from. What all embeddings of a collection must have in common beyond their length (NaN policy,
one dimension) is the builder's to check. numpy is imported only for values that are arrays or BLOBs to convert.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from copy import copy
from operator import itemgetter
from typing import Any, NamedTuple, TypeGuard

from ..schema import DTYPES, Dtype, Schema
from .blobs import WIDTHS, described, foreign, prefixed, probable, scattered, sensible, text

__all__ = [
    "MAX_DOUBTS",
    "NOTHING_LEARNED",
    "Decoders",
    "Learned",
    "Vector",
    "VectorDecoder",
    "any_doubtful",
    "float32_bytes",
    "is_doubtful",
    "is_finite",
    "vector_bytes",
]

Vector = bytes | tuple[bytes | None, ...] | None
"""What a `SourceRecord` holds as `vector`: a tuple where the schema has several embeddings."""

_NPY = b"\x93NUMPY"
_PRINTED = re.compile(r"\[\s*[-+.\deE]+(\s+([-+.\deE]+|\.\.\.))+\s*\]")
MAX_DOUBTS = 16
"""So many embeddings are looked at for what their bytes are, before they count as float32."""


def is_doubtful(blob: bytes) -> bool:
    """Whether bytes of the right length may be no float32 all the same, but text, or a .npy file. Quick, as numbers
    that are not all of a few digits have bytes that are no ASCII."""
    return blob.isascii() or blob.startswith(_NPY)


def any_doubtful(blobs: Sequence[bytes]) -> bool:
    """`is_doubtful` of many, in C."""
    return any(map(bytes.isascii, blobs)) or _NPY in map(_FIRST, blobs)


_FIRST = itemgetter(slice(len(_NPY)))


def vector_bytes(value: object, *, dim: int | None, dtype: Dtype | None) -> bytes | None:
    """The embedding as `4 * dim` bytes, or None for none.

    value: None, a BLOB (bytes, bytearray, memoryview of format B or c) of `dtype` numbers, or of a .npy file, or of
        JSON; JSON text of a list, as pgvector's text is; a sequence of numbers, or a 1-D array of any integer or
        floating dtype. `bytes` that need no conversion are returned as they are, without a copy.
    dim: how many numbers there must be; with None any number.
    dtype: of a BLOB's numbers. Where it or `dim` is not given, see `read_as`.

    Raises ValueError with the reason alone; the caller adds collection and key.
    """
    if type(value) is bytes and dtype == "f4" and dim is not None and len(value) == 4 * dim and not is_doubtful(value):
        return value
    if value is None:
        return None
    if _is_blob(value):
        return _from_blob(bytes(value), dim, dtype)
    if isinstance(value, memoryview):
        return _from_array(value, dim)
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
    """`vector_bytes` for the embeddings of one field in turn: what the first leave no doubt of holds for the rest.

    dim: as the first one has it where the schema says nothing. dtype: what BLOBs are read as; None before the first.
    size: bytes of a BLOB that is taken as it is, unless it `is_doubtful`; or -1. allow_nan: an embedding with NaN or
    infinite numbers is one; else it says nothing of the others, as the build refuses it.
    """

    __slots__ = ("_allow_nan", "_doubts", "_given", "dim", "dtype", "size")

    def __init__(self, dim: int | None, dtype: Dtype | None, *, allow_nan: bool = False) -> None:
        self.dim = dim
        self.dtype = dtype
        self._allow_nan = allow_nan
        self._given = dim, dtype
        self._doubts = MAX_DOUBTS if dim is None or dtype is None else 0
        self.size = -1
        self._settle()

    def __call__(self, value: object) -> bytes | None:
        if self._doubts and _is_blob(value):
            self._learn_from(bytes(value))
        vector = vector_bytes(value, dim=self.dim, dtype=self.dtype)
        if vector is not None and self.size < 0:
            if self.dim is None and (self._allow_nan or is_finite(vector)):
                self.dim = len(vector) // 4
            self._settle()
        return vector

    @property
    def taken_as(self) -> Dtype | None:
        """What BLOBs are read as, or were where only few told little; None before the first."""
        return self.dtype or ("f4" if 0 < self._doubts < MAX_DOUBTS else None)

    @property
    def is_settled(self) -> bool:
        """Whether dim and dtype are known."""
        return self.dim is not None and self.dtype is not None and not self._doubts

    def _settle(self) -> None:
        if self.dim and self.dtype == "f4" and not self._doubts:
            self.size = 4 * self.dim

    def _learn_from(self, blob: bytes) -> None:
        """By what the schema says, not by what was learned from embeddings that left doubts. Raises ValueError."""
        if describes_itself(blob):
            return
        if probable(blob) is not None:
            self.dtype = read_as(blob, *self._given)
            self._doubts = 0
        elif any(blob):
            self._doubts -= 1
            self.dtype = self.dtype or (None if self._doubts else "f4")


class Learned(NamedTuple):
    """What a read has learned from its rows, those among them that no record is made of, and their records do not say.

    dims, dtypes: embedding -> how many numbers it has; what its bytes were read as, where some were bytes. orders:
    fields -> in which order every mapping with these gives them.
    """

    dims: Mapping[str, int]
    dtypes: Mapping[str, str]
    orders: Mapping[frozenset[Any], tuple[Any, ...]]


NOTHING_LEARNED = Learned({}, {}, {})


class Decoders:
    """The embeddings of one collection, whichever the form of its records; and what else is learned as they are read.

    orders: see `Learned`.
    """

    __slots__ = ("fields", "of", "orders")

    def __init__(self, schema: Schema) -> None:
        self.fields = schema.embeddings
        self.orders: dict[frozenset[Any], tuple[Any, ...]] = {}
        self.of = tuple(
            VectorDecoder(schema.dim_of(field), schema.dtype_of(field), allow_nan=schema.allow_nan)
            for field in self.fields
        )

    def __call__(self, values: Sequence[Any]) -> Vector:
        """The vector of a `SourceRecord` from the values of these fields. Raises ValueError."""
        if len(self.of) == 1:
            return self.of[0](values[0])
        return tuple(map(self._one, self.fields, self.of, values))

    def _one(self, field: str, decode: VectorDecoder, value: object) -> bytes | None:
        try:
            return decode(value)
        except ValueError as error:
            raise ValueError(f"{field!r}: {error}") from error

    def like(self) -> Decoders:
        """Others, which know what these have learned."""
        others = copy(self)
        others.of = tuple(map(copy, self.of))
        return others

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to be learned."""
        return all(decode.is_settled for decode in self.of)

    @property
    def size(self) -> int:
        """Bytes of a BLOB that is the vector as it is, or -1 where there is none such, or more than one embedding."""
        return self.of[0].size if len(self.of) == 1 else -1

    @property
    def learned(self) -> Learned:
        """So far."""
        dims = {field: decode.dim for field, decode in zip(self.fields, self.of, strict=True) if decode.dim}
        return Learned(dims, self.dtypes, dict(self.orders))

    @property
    def dtypes(self) -> dict[str, str]:
        """What the BLOBs of each field were read as; only of fields that had some."""
        return {field: decode.taken_as for field, decode in zip(self.fields, self.of, strict=True) if decode.taken_as}


def is_finite(vector: bytes) -> bool:
    """Whether all numbers of float32 are."""
    return all(map(math.isfinite, struct.unpack(f"<{len(vector) // 4}f", vector)))


def _is_blob(value: object) -> TypeGuard[bytes | bytearray | memoryview]:
    """Bytes; not the buffer of an array, of which the format says what its numbers are."""
    if isinstance(value, memoryview):
        return value.format in ("B", "c") and value.ndim == 1
    return isinstance(value, (bytes, bytearray))


def _check_count(count: int, dim: int | None) -> None:
    if count == 0:
        raise ValueError("the embedding is empty; use NULL (None) for a record without one")
    if dim is not None and count != dim:
        raise ValueError(f"the embedding has {count} numbers, expected dim={dim}")


def describes_itself(blob: bytes) -> bool:
    """Whether the bytes say what they are: those of a .npy file, or JSON text, blanks around it or not."""
    if blob.startswith(_NPY):
        return True
    text = blob.strip()
    return text[:1] == b"[" and text[-1:] == b"]" and text.isascii()


def _from_blob(blob: bytes, dim: int | None, dtype: Dtype | None) -> bytes | None:
    if blob.startswith(_NPY):
        return _from_array(_npy(blob), dim)
    if describes_itself(blob):
        return vector_bytes(blob.decode(), dim=dim, dtype=dtype)
    if dim is not None and dtype is None and not any(blob) and len(blob) in (2 * dim, 4 * dim, 8 * dim):
        return bytes(4 * dim)  # zeros, as whichever numbers
    return _converted(blob, read_as(blob, dim, dtype), dim)


def read_as(blob: bytes, dim: int | None, dtype: Dtype | None) -> Dtype:
    """What numbers to read the bytes as. Raises ValueError where they are not `dim` ones of `dtype`, or, where one of
    these is not given, where they are probably others."""
    size = len(blob)
    _check_count(size, None)
    if dim is None:
        return _without_dim(blob, dtype or "f4")
    likely = probable(blob) if dtype is None else None
    if likely is not None and size == WIDTHS[likely] * dim:
        return likely
    kind: Dtype = dtype or "f4"
    expected = (dim + 7) // 8 if kind == "bits" else WIDTHS[kind] * dim
    if size == expected:
        if WIDTHS.get(kind, 1) >= 4 and (found := text(blob, kind)):
            raise ValueError(
                f"the embedding BLOB of {size} bytes is no dim={dim} numbers of {DTYPES[kind]}: it is {found}"
            )
        if likely is not None and likely != kind:
            raise ValueError(_is_other(blob, kind, likely, "dtype='f4'"))
        if dtype is None and scattered(blob):
            raise ValueError(
                f"the embedding BLOB of {size} bytes makes no sense as dim={dim} numbers of float32, as those of "
                "integers or an archive make none; set dtype= in the Schema to what they are, 'f4' if they are float32"
            )
        return kind
    found = described(blob, dim)
    raise ValueError(
        f"the embedding BLOB has {size} bytes{found}{';' if found else ','} expected {expected} "
        f"(dim={dim} of {kind}, {DTYPES[kind]})"
    )


def _without_dim(blob: bytes, kind: Dtype) -> Dtype:
    size, width = len(blob), WIDTHS.get(kind, 1)
    found = foreign(blob) or prefixed(blob) or (text(blob, kind) if width > 1 else None)
    if found is not None:
        raise ValueError(f"the embedding BLOB of {size} bytes is not plain numbers of {DTYPES[kind]}: it is {found}")
    if size % width:
        raise ValueError(
            f"the embedding BLOB has {size} bytes{described(blob, None)}, which is not a multiple of {width} "
            f"(dtype={kind!r})"
        )
    likely = probable(blob)
    ours = f"dim={8 * size if kind == 'bits' else size // width}"
    if likely is not None and likely != kind and (kind == "f4" or not sensible(blob, kind)):
        raise ValueError(_is_other(blob, kind, likely, ours))
    if kind == "f4" and scattered(blob):
        raise ValueError(
            f"the embedding BLOB of {size} bytes makes no sense as float32; set dtype= in the Schema to 'i1' (int8), "
            f"'u1' (uint8) or 'bits' if it is that, or {ours} if it is float32"
        )
    return kind


def _is_other(blob: bytes, kind: Dtype, likely: Dtype, ours: str) -> str:
    return (
        f"the embedding BLOB of {len(blob)} bytes makes no sense as {DTYPES[kind]} and does as "
        f"{len(blob) // WIDTHS[likely]} numbers of {DTYPES[likely]}; set dtype={likely!r} in the Schema to convert it, "
        f"or {ours} if it is {DTYPES[kind]}"
    )


def _converted(blob: bytes, kind: Dtype, dim: int | None) -> bytes:
    if kind == "f4":
        return blob
    import numpy as np

    if kind == "bits":
        numbers = np.unpackbits(np.frombuffer(blob, np.uint8))
        if dim is not None and numbers[dim:].any():
            raise ValueError(f"the embedding has bits beyond dim={dim}; expected zeros to the end of the last byte")
        return float32_bytes(numbers[:dim])
    if kind in ("bf2", ">bf2"):
        halves = np.frombuffer(blob, f"{'>' if kind[0] == '>' else '<'}u2").astype("<u4")
        return (halves << 16).tobytes()
    return float32_bytes(np.frombuffer(blob, kind if kind[0] == ">" else f"<{kind}"))


def _npy(blob: bytes) -> Any:
    """The array of a .npy file. Nothing is allocated for what its header promises and does not hold."""
    import io

    import numpy as np
    from numpy.lib import format as npy

    file = io.BytesIO(blob)
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(blob) - file.tell():
            raise ValueError(f"its header promises {shape} numbers of {dtype}")
        return np.frombuffer(blob, dtype, offset=file.tell()).reshape(shape)
    except (ValueError, TypeError, SyntaxError, OverflowError) as error:
        raise ValueError(f"the embedding begins as a .npy file, which cannot be read: {error}") from error


def _from_json(text: str) -> list[Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        printed = "; it looks like a printed array, whose digits are cut" if _PRINTED.fullmatch(text) else ""
        raise ValueError(f"the embedding is text but not JSON ({error}){printed}; expected a list of numbers") from None
    if value is not None and not isinstance(value, list):
        raise ValueError(f"the embedding is JSON of type {type(value).__name__}, expected a list of numbers")
    return value


def _from_numbers(values: Sequence[Any], dim: int | None) -> bytes:
    _check_count(len(values), dim)
    if not set(map(type, values)) <= {float, int}:
        for index, item in enumerate(values):
            if not _is_real(item):
                raise ValueError(f"the embedding holds {item!r} at position {index}, expected a number")
    try:
        return struct.pack(f"<{len(values)}f", *values)
    except _NO_FLOAT:
        index = next(i for i, item in enumerate(values) if not _fits(item))
        raise ValueError(f"the embedding holds {values[index]!r} at position {index}, which float32 cannot") from None


def _fits(item: Any) -> bool:
    try:
        struct.pack("<f", item)
    except _NO_FLOAT:
        return False
    return True


_NO_FLOAT = OverflowError, struct.error, TypeError, ValueError, RuntimeError
"""What packing raises, the last from a tensor that has no value."""


def _is_real(item: Any) -> bool:
    """Whether it is a number. numpy makes a float of a truth value, of a complex number and of what is masked, too."""
    if isinstance(item, (bool, str, bytes)) or not hasattr(item, "__float__"):
        return False
    return getattr(getattr(item, "dtype", None), "kind", "f") not in _NO_REAL and not hasattr(item, "mask")


_NO_REAL = frozenset("bcmMOSU")
"""Kinds of numpy's that are none; that of a bfloat16 is V."""


def _from_array(value: Any, dim: int | None) -> bytes:
    import numpy as np

    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the embedding, a {type(value).__name__}, is not an array of numbers: {error}") from error
    if array.dtype.name == "bfloat16":  # of ml_dtypes
        array = array.astype("f4")
    if np.ma.is_masked(value):
        raise ValueError("the embedding is an array of which some numbers are masked, and have no value")
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
