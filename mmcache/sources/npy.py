"""The rows of a .npy file as embeddings, a block at a time.

Read and not mapped: what is cut off under a map ends the process. The file may be in the order of C or of Fortran.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ..errors import BuildError, SourceError
from ..schema import Schema
from .vectors import float32_bytes

__all__ = ["header_of", "rows_of_npy"]

_BLOCK_BYTES = 1 << 20


def header_of(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in the order of Fortran, and dtype. Raises ValueError."""
    try:
        version = npy.read_magic(file)
        return npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    except (ValueError, TypeError, SyntaxError, OverflowError, EOFError) as error:
        raise ValueError(f"cannot be read as a .npy file: {error}") from error


def rows_of_npy(path: str, schema: Schema, held: ExitStack) -> Iterator[bytes]:
    """Raises SourceError for a file that cannot be read, BuildError for one that holds no embeddings."""
    try:
        file = held.enter_context(open(path, "rb", buffering=0))
        shape, is_fortran, dtype = header_of(file)
        begin, size = file.tell(), os.fstat(file.fileno()).st_size
    except OSError as error:
        what = "there is no file at this path" if isinstance(error, FileNotFoundError) else str(error)
        raise SourceError(f"cannot read the embeddings: {what}; check embeddings=", path=path) from error
    except ValueError as error:
        raise SourceError(f"the embeddings: {error}; write it with numpy.save", path=path) from error
    dim = schema.dim_of(schema.embeddings[0])
    if len(shape) != 2 or dtype.kind not in "fiu" or shape[1] != (dim or shape[1] or None):
        reason = f"embeddings= is an array of shape {shape} and dtype {dtype}, expected (n, {dim or 'dim'}) numbers"
        raise _refused(schema, reason, path)
    promised = shape[0] * shape[1] * dtype.itemsize
    if begin + promised > size:
        raise SourceError(f"the file is cut off: {size} bytes, expected {begin + promised}", path=path)
    return _rows(file, begin, shape[0], shape[1], dtype, is_fortran, schema, path)


def _rows(
    file: IO[bytes], begin: int, n: int, dim: int, dtype: np.dtype[Any], is_fortran: bool, schema: Schema, path: str
) -> Iterator[bytes]:
    step, width = max(_BLOCK_BYTES // (dim * dtype.itemsize), 1), 4 * dim
    for start in range(0, n, step):
        count = min(step, n - start)
        try:
            if is_fortran:
                offsets = (begin + (column * n + start) * dtype.itemsize for column in range(dim))
                block = np.stack([_numbers(file, offset, count, dtype) for offset in offsets], axis=1)
            else:
                offset = begin + start * dim * dtype.itemsize
                block = _numbers(file, offset, count * dim, dtype).reshape(count, dim)
            data = float32_bytes(block)
        except ValueError as error:
            raise _refused(schema, f"embeddings= from row {start} on: {error}", path) from error
        for place in range(0, len(data), width):
            yield data[place : place + width]


def _numbers(file: IO[bytes], offset: int, count: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    size = count * dtype.itemsize
    data = bytearray()
    while len(data) < size:
        more = os.pread(file.fileno(), size - len(data), offset + len(data))
        if not more:
            raise ValueError("the file was cut off while it was being read")
        data += more
    return np.frombuffer(data, dtype)


def _refused(schema: Schema, reason: str, path: str) -> BuildError:
    error = BuildError.of(schema.name, None, reason)
    error.path = path
    return error
