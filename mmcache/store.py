"""An object store by its URL: s3, gs, az, http, file, memory. The one module that imports obstore.

Names are relative to the URL. What is absent is None or False, never an exception; everything else that goes wrong is a
`StoreError` that names the URL. No name is overwritten but that of the hint.

Calls block, and release the interpreter's lock. The library has threads of its own, which no fork copies: a forked
child of a process that has used it must not, and is told so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial
from importlib import import_module
from typing import Any, Final, NamedTuple, Self, TypeVar
from urllib.parse import unquote, urlsplit

from .errors import StoreError

__all__ = ["PIECE", "Found", "Store", "is_url", "is_usable", "public_url", "without_secrets"]

PIECE: Final = 4 * 2**20
"""Bytes of one ranged request: what a cut connection loses at most."""
_PART: Final = 8 * 2**20
_MOST_PARTS: Final = 9_000
"""An upload is of parts of one size. S3 takes 10,000 at most, and none below 5 MiB but the last."""
_SCHEMES: Final = ("file", "memory", "s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "http", "https")
_TIMEOUTS: Final = {"timeout": "60s", "connect_timeout": "5s"}
_RETRIES: Final = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}

_SECRET: Final = re.compile(r"(?<=://)[^/@\s]+@|\?\S+")
"""The user, and the query, of a URL."""

_T = TypeVar("_T")
_used_by = 0
"""The process that used the library first."""
_memories: Final[dict[str, Any]] = {}
"""URL -> the store of this process."""


class Found(NamedTuple):
    """An object. modified: by the store's clock. tag: differs between two contents of one name; None where the store
    gives none."""

    name: str
    size: int
    modified: datetime
    tag: str | None = None

    @classmethod
    def of(cls, meta: Any, name: str | None = None) -> Self:
        """From what the library says of an object. name: where another is meant than its path."""
        return cls(name or meta["path"], meta["size"], meta["last_modified"], meta["e_tag"])

    def is_still(self, now: Found) -> bool:
        """Whether the object of this name is this one still. Times of a list and of an answer differ in precision."""
        if self.tag is None or now.tag is None:
            return self.size == now.size and abs(self.modified - now.modified) < timedelta(seconds=1)
        return (self.size, self.tag) == (now.size, now.tag)


def is_usable() -> bool:
    """Whether this process may open a store: not where it was forked from one that has."""
    return _used_by in (0, os.getpid())


def is_url(text: str) -> bool:
    return "://" in text


def public_url(url: str) -> str:
    """A store's URL without what may be secret in it. Raises TypeError, and StoreError for what is none of a store."""
    if not isinstance(url, str):
        raise TypeError(f"the URL of a store must be a str such as s3://bucket/items, not {type(url).__name__}")
    shown = without_secrets(url)
    try:
        parts = urlsplit(url)
        _ = parts.port  # which raises for what is no number
    except ValueError as error:
        raise StoreError(f"is no URL ({error}); expected one such as s3://bucket/items", path=shown) from None
    if parts.scheme not in _SCHEMES:
        hint = f"file://{os.path.abspath(url)}" if not parts.scheme else ", ".join(_SCHEMES)
        raise StoreError(f"is no URL of an object store; expected {hint}", path=shown)
    if parts.scheme == "file" and (parts.query or parts.fragment or "\0" in url):
        raise StoreError("a path with ? or # is written with %3F or %23, and has no NUL", path=shown)
    if not parts.netloc and parts.scheme not in ("file", "memory"):
        raise StoreError(f"names no bucket or host; expected {parts.scheme}://NAME/items", path=shown)
    return shown


def without_secrets(url: str) -> str:
    """Any text that is given as a URL, for messages."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return _SECRET.sub("", url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


class Store:
    """url: without what may be secret in it, for messages. can_list: False for a plain HTTP server."""

    def __init__(self, url: str) -> None:
        """Opens no connection. Raises StoreError for what is no URL of a store, or without the extra."""
        global _used_by  # noqa: PLW0603 (of the process)
        self.url = public_url(url)
        scheme = urlsplit(url).scheme
        self.can_list = scheme not in ("http", "https")
        self.check_process()
        try:
            import obstore
        except ImportError:
            raise StoreError(
                "object stores need the extra remote: pip install 'mmcache[remote]'", path=self.url
            ) from None
        _used_by = os.getpid()
        self._library = obstore
        self._open = partial(_opened, url, scheme)
        self._store: Any = None
        if scheme != "file":
            self._done("open the store", self._objects)

    def _objects(self, *, make: bool = False) -> Any:
        """The library's store. A directory is made for what is written into it, so that a typo leaves none; raises
        FileNotFoundError where one is to be read that is not there."""
        if self._store is None:
            self._store = self._open(make=make)
        return self._store

    def is_there(self) -> bool:
        """False for a directory that is yet to be made; other stores are not asked."""
        return self._there("open the store", self._objects) is not None

    def check_process(self) -> None:
        """Raises StoreError in a process that was forked from one that used the library."""
        if not is_usable():
            raise StoreError(
                "the process was forked from one that used object stores, and cannot use them: start it by spawn or "
                "forkserver, or use none before",
                path=self.url,
            )

    # --- reading

    def get(self, name: str, limit: int) -> bytes | None:
        """A small object; None where there is none. Raises StoreError for one of more than `limit` bytes."""

        def get() -> bytes:
            found = self._library.get(self._objects(), name)
            if found.meta["size"] > limit:
                raise StoreError(f"{name} has {found.meta['size']} bytes; at most {limit} are read", path=self.url)
            return bytes(found.bytes())

        return self._there(f"read {name}", get)

    def pieces(self, name: str, begin: int, end: int, expected: Found | None = None) -> Iterator[bytes]:
        """The bytes of an extent, in requests of at most PIECE. expected: what the object must be still.

        Raises StoreError where there are fewer bytes, or none, and where another object has the name now."""
        while begin < end:
            until = min(begin + PIECE, end)
            stream = self._done(f"read {name}", partial(self._stream, name, begin, until, expected))
            while begin < until:
                data = bytes(self._done(f"read {name}", partial(next, stream, b"")))
                if not data:
                    raise StoreError(f"{name} ended {until - begin} bytes early", path=self.url)
                if len(data) > until - begin:
                    raise StoreError(f"{name}: the server does not answer range requests", path=self.url)
                yield data
                begin += len(data)

    def _stream(self, name: str, begin: int, end: int, expected: Found | None) -> Iterator[Any]:
        found = self._library.get(self._objects(), name, options={"range": (begin, end)})
        if expected is not None and not expected.is_still(Found.of(found.meta, name)):
            raise StoreError(f"{name} was replaced by another object while it was read; read it again", path=self.url)
        first, _ = found.range
        if first != begin:
            raise StoreError(f"{name}: the server does not answer range requests", path=self.url)
        return iter(found.stream(min_chunk_size=2**20))

    def stat(self, name: str) -> Found | None:
        """An object, without its bytes; None where there is none."""
        found = self._there(f"look at {name}", lambda: self._library.head(self._objects(), name))
        return None if found is None else Found.of(found, name)

    def listed(self, directory: str, after: str = "") -> list[Found]:
        """The objects below a directory, in the order of their names, behind one of them. directory: "" for all."""

        def listed() -> list[Found]:
            stream = self._library.list(self._objects(), directory or None, offset=after or None, chunk_size=1000)
            found = [Found.of(one) for part in stream for one in part]
            return sorted(one for one in found if one.name > after)

        return self._done(f"list {directory}", listed) if self.is_there() else []

    # --- writing

    def create(self, name: str, data: bytes) -> bool:
        """Whether it was created; False where an object has the name, which may be ours, put by an attempt whose answer
        was lost."""
        from obstore.exceptions import AlreadyExistsError

        try:
            self._done(f"create {name}", lambda: self._put(name, data, mode="create"))
        except StoreError as error:
            if isinstance(error.__cause__, AlreadyExistsError):
                return False
            raise
        return True

    def upload(self, name: str, pieces: Iterable[bytes], size: int) -> None:
        """A new object under a name of its own. Raises StoreError, too, where the store has another size afterwards."""
        part = max(_PART, -(-size // _MOST_PARTS))
        self._done(f"write {name}", lambda: self._put(name, iter(pieces), chunk_size=part))
        found = self.stat(name)
        if found is None or found.size != size:
            there = "is absent" if found is None else f"has {found.size} bytes"
            raise StoreError(f"{name} {there} after {size} bytes were written", path=self.url)

    def hint(self, name: str, data: bytes) -> None:
        """Overwrite what is no truth; may fail."""
        with contextlib.suppress(StoreError):
            self._done(f"write {name}", lambda: self._put(name, data))

    def _put(self, name: str, data: Any, **options: Any) -> None:
        self._library.put(self._objects(make=True), name, data, **options)

    def remove(self, name: str) -> None:
        """No error where it is absent."""
        self._there(f"remove {name}", lambda: self._library.delete(self._objects(), name))

    # --- errors

    def _there(self, doing: str, act: Callable[[], _T]) -> _T | None:
        try:
            return self._done(doing, act)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def _done(self, doing: str, act: Callable[[], _T]) -> _T:
        try:
            return act()
        except StoreError:
            raise
        except BaseException as error:
            if not _is_of_the_library(error):
                raise
            raise StoreError(f"could not {doing} ({_cause(error)})", path=self.url) from error


def _opened(url: str, scheme: str, *, make: bool = False) -> Any:
    stores: Any = import_module("obstore.store")
    if scheme == "memory":
        return _memories.setdefault(url.rstrip("/"), stores.MemoryStore())
    if scheme == "file":
        place = unquote(urlsplit(url).path)
        if not make and not os.path.isdir(place):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
        return stores.from_url(url, mkdir=make)
    if scheme in ("http", "https"):
        options = {**_TIMEOUTS, "allow_http": scheme == "http"}
        return stores.from_url(url, client_options=options, retry_config=_RETRIES)
    return stores.from_url(url, retry_config=_RETRIES)  # the rest is for the environment to say: AWS_TIMEOUT, ...


def _is_of_the_library(error: BaseException) -> bool:
    """Also a panic of its own, such as over a setting that it does not know, which is no Exception."""
    from obstore.exceptions import BaseError

    return isinstance(error, (BaseError, OSError, ValueError)) or type(error).__name__ == "PanicException"


def _cause(error: BaseException) -> str:
    """The library's text without its appendix, which repeats it, without the body of an answer, and without what may be
    secret in a URL."""
    text = str(error).split("\n\nDebug source", 1)[0].split(": <", 1)[0]
    text = _SECRET.sub("", " ".join(text.split()))
    return f"{type(error).__name__}: {text[:400]}"
