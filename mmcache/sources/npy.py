"""The rows of a .npy file as embeddings, a block at a time.

Read and not mapped: what is cut off under a map ends the process. The file may be in the order of C or of Fortran.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from ..errors import BuildError, SourceError
from ..schema import Schema
from .vectors import float32_bytes

__all__ = ["Header", "header_of", "rows_of_npy"]

_BLOCK_BYTES = 1 << 20


class Header(NamedTuple):
    """What a file says of its array. begin: of the numbers, in bytes."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]
    begin: int


def header_of(file: IO[bytes]) -> Header:
    """Raises ValueError."""
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        return Header(*read(file), file.tell())
    except (ValueError, TypeError, SyntaxError, OverflowError, EOFError) as error:
        raise ValueError(f"cannot be read as a .npy file: {error}") from error


def rows_of_npy(path: str, schema: Schema, held: ExitStack) -> Iterator[bytes]:
    """Raises SourceError for a file that cannot be read, BuildError for one that holds no embeddings."""
    try:
        file = held.enter_context(open(path, "rb", buffering=0))  # noqa: SIM115
        header = header_of(file)
        size = os.fstat(file.fileno()).st_size
    except OSError as error:
        what = "there is no file at this path" if isinstance(error, FileNotFoundError) else str(error)
        raise SourceError(f"cannot read the embeddings: {what}; check embeddings=", path=path) from error
    except ValueError as error:
        raise SourceError(f"the embeddings: {error}; write it with numpy.save", path=path) from error
    shape, dim = header.shape, schema.dim_of(schema.embeddings[0])
    if len(shape) != 2 or header.dtype.kind not in "fiu" or shape[1] != (dim or shape[1] or None):
        found = f"an array of shape {shape} and dtype {header.dtype}"
        raise _refused(schema, f"embeddings= is {found}, expected (n, {dim or 'dim'}) numbers", path)
    end = header.begin + shape[0] * shape[1] * header.dtype.itemsize
    if end > size:
        raise SourceError(f"the file is cut off: {size} bytes, expected {end}", path=path)
    return _rows(file, header, schema, path)


def _rows(file: IO[bytes], header: Header, schema: Schema, path: str) -> Iterator[bytes]:
    n, dim = header.shape
    step, width = max(_BLOCK_BYTES // (dim * header.dtype.itemsize), 1), 4 * dim
    for start in range(0, n, step):
        try:
            data = float32_bytes(_block(file, header, start, min(step, n - start)))
        except ValueError as error:
            raise _refused(schema, f"embeddings= from row {start} on: {error}", path) from error
        for place in range(0, len(data), width):
            yield data[place : place + width]


def _block(file: IO[bytes], header: Header, start: int, count: int) -> np.ndarray[Any, Any]:
    (n, dim), dtype = header.shape, header.dtype
    if not header.is_fortran:
        return _numbers(file, header.begin + start * dim * dtype.itemsize, count * dim, dtype).reshape(count, dim)
    offsets = (header.begin + (column * n + start) * dtype.itemsize for column in range(dim))
    return np.stack([_numbers(file, offset, count, dtype) for offset in offsets], axis=1)


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
