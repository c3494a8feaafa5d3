"""The bytes of a source's file: opened, read from a pipe, decompressed.

What compressed a file is known by its first bytes, not by its name. What can be read once only, such as standard input,
is copied to a temporary file without a name when it is first needed, so that it is read like any other file; its
memory does not grow. Raises OSError, with a reason that says what is wrong.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import os
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable
from typing import IO, Any

__all__ = ["STDIN", "compression_of", "decompressed", "encoding_of", "is_pipe", "open_file"]

STDIN = "-"
"""The path that stands for standard input."""

_BUFFER = 1 << 18
_FIRST = 8
_GIVEN = 1 << 10
"""Bytes of a zst file that are decompressed at once: at most 32 MiB come of them, 128 KiB of each four."""
_MAGIC = ((b"\x1f\x8b", "gz"), (b"BZh", "bz2"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "zst"))
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_copies: dict[tuple[int, int], int] = {}
"""Device and inode of a pipe that was read -> the descriptor of its copy, kept as long as the process."""


def is_pipe(path: str) -> bool:
    """Whether it can be read once only: standard input, a named pipe, a process substitution of a shell."""
    if path == STDIN:
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and path in ("/dev/stdin", "/dev/fd/0"))


def open_file(path: str) -> io.BufferedReader:
    """The file, seekable. Raises OSError."""
    if is_pipe(path):
        return io.BufferedReader(_Copy(_copy_of(path)), _BUFFER)
    return open(path, "rb")


def _copy_of(path: str) -> int:
    standard: Any = getattr(sys.stdin, "buffer", None) if path == STDIN else None
    if path == STDIN and standard is None:
        raise OSError("standard input is closed, or is text in memory")
    found = os.stat(path) if standard is None else os.fstat(standard.fileno())
    identity = found.st_dev, found.st_ino
    if identity not in _copies:  # else to open a pipe without a writer would wait for one
        with contextlib.nullcontext(standard) if standard is not None else open(path, "rb") as pipe:
            if pipe.isatty():
                raise OSError("standard input is a terminal; give a file, or pipe into it")
            with tempfile.TemporaryFile() as copy:
                shutil.copyfileobj(pipe, copy, _BUFFER)
                copy.flush()
                _copies[identity] = os.dup(copy.fileno())
    return _copies[identity]


class _Copy(io.RawIOBase):
    """A descriptor that several read, each from a place of its own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._at = 0

    def fileno(self) -> int:
        return self._descriptor

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._descriptor, len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._descriptor).st_size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at


def compression_of(head: bytes) -> str | None:
    """How a file with these first bytes is compressed: gz, bz2, xz, zst, or not."""
    return next((name for magic, name in _MAGIC if head.startswith(magic)), None)


def decompressed(file: io.BufferedReader) -> io.BufferedReader:
    """The content of a file, from its beginning on; the file itself if it is not compressed. Raises OSError."""
    file.seek(0)
    name = compression_of(file.read(_FIRST))
    file.seek(0)
    if name is None:
        return file
    return io.BufferedReader(_Decompressing(name, file), _BUFFER)


class _Decompressing(io.RawIOBase):
    """Whatever is wrong with the compressed bytes is an OSError that names what compressed them."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self._name = name
        self._inner: Any = _reader(name, file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._inner.readinto(buffer))
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise self._error(error) from error
        except Exception as error:
            if type(error).__name__ == "ZstdError":  # of either package
                raise self._error(error) from error
            raise

    def _error(self, error: Exception) -> OSError:
        return OSError(f"it is compressed as {self._name}, and cannot be decompressed: {error}; it may be cut off")


def _reader(name: str, file: IO[bytes]) -> Any:
    if name == "gz":
        return gzip.GzipFile(fileobj=file, mode="rb")
    if name == "bz2":
        return bz2.BZ2File(file, "rb")
    if name == "xz":
        return lzma.LZMAFile(file, "rb")
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]  # Python 3.14
    except ImportError:
        pass
    else:
        return zstd.ZstdFile(file, "rb")
    try:
        import zstandard
    except ImportError as error:
        way = "zstandard, or Python 3.14: pip install 'mmcache[zstd]'"
        raise OSError(f"it is compressed as zst, which needs {way} ({error})") from error
    return _Frames(file, lambda: zstandard.ZstdDecompressor().decompressobj())


class _Frames:
    """The frames of a zst file, one after another. The reader of `zstandard` takes a file that is cut off for one that
    ends there; this one raises EOFError, as those of the standard library do."""

    def __init__(self, file: IO[bytes], begin: Callable[[], Any]) -> None:
        self._file = file
        self._begin = begin
        self._frame: Any = None
        self._given = b""
        self._ready = memoryview(b"")

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._given or self._file.read(_GIVEN)
            if not data:
                if self._frame is not None:
                    raise EOFError("its last frame does not end")
                return 0
            self._given = b""
            self._frame = self._frame or self._begin()
            self._ready = memoryview(self._frame.decompress(data))
            if self._frame.eof:
                self._given, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


def encoding_of(head: bytes) -> str | None:
    """What the mark at the beginning of a text says of its encoding, if there is one."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), None)
