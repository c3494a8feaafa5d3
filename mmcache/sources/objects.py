"""Files of records in an object store: found by a URL as files are by a path, known by their tags, read by ranges.

A URL names an object, all objects below a prefix, or those that match a pattern. A list gives name, size and tag (the
ETag) of each. Every range that is read later must be of an object with that tag. So what is read is what was listed, in
whichever process, or an error says that it was replaced; it is never a mixture.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from ..errors import SourceError, StoreError
from ..store import Found, Store, without_secrets
from .fingerprint import once_only
from .parts import COMPRESSED, Part, typed

__all__ = ["Objects", "fingerprint_of_objects", "is_object_url", "pattern_of", "raw_of"]

_URL = re.compile(r"(s3|s3a|gs|az|azure|abfs|abfss|adl|https?)://", re.IGNORECASE)
_MAGIC = re.compile(r"[*\[]")
_WILD = re.compile(r"(\*+|\[!?[^\]]+\])")
_BUFFER = 1 << 20
_SETTLED = 60.0
"""Seconds after which another write shows in the time of an object without a tag, whosever clock gave that."""


def is_object_url(path: str) -> bool:
    """Whether it names objects of a store, and no file."""
    return _URL.match(path) is not None


class Objects:
    """Where the objects of a source are. Safe in threads; pickles to its URL; not usable in a process that was forked
    from one that has used it: see `store`."""

    def __init__(self, url: str) -> None:
        """Connects to nothing. Raises SourceError for a URL with what may be secret, which a file would name."""
        if "?" in url or without_secrets(url) != url:
            raise SourceError(
                "a URL of a source has no user, password, ? or #; credentials come from the environment, as "
                "AWS_ACCESS_KEY_ID",
                path=without_secrets(url),
            )
        self.url = url
        scheme, _, rest = url.partition("://")
        bucket, _, key = rest.partition("/")
        fixed, slash, last = _MAGIC.split(key, maxsplit=1)[0].rpartition("/")
        self.base = f"{scheme}://{bucket}{'/' * bool(slash)}{fixed}"
        self.name = key[len(fixed + slash) :] if slash else key
        self._is_pattern = _MAGIC.search(key) is not None
        self._is_only_last = bool(last)
        self._store: Store | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_store": None}

    def parts(self, suffixes: tuple[str, ...]) -> list[Part]:
        """The objects, one or more, in the order of their names. suffixes: what names below a prefix end with,
        compressed or not; none: all. One list, or one look. Raises SourceError, also where there is none."""
        try:
            return self._parts(suffixes)
        except StoreError as error:
            raise SourceError(error.message, path=self.url) from error

    def _parts(self, suffixes: tuple[str, ...]) -> list[Part]:
        store = self._opened()
        if self.name and not self._is_pattern:
            found = store.stat(self.name)
            if found is not None:
                return [Part(self.url, found=found)]
            if not store.can_list:
                raise SourceError("there is no file at this URL; check it", path=self.url)
        if not store.can_list:
            raise SourceError("a server of HTTP lists no files; name each by a URL of its own", path=self.url)
        prefix = "" if self._is_pattern else self.name
        listed = [one for one in store.listed(prefix) if one.size or not one.name.endswith("/")]
        if self._is_pattern:
            matches = pattern_of(self.name)
            names = [one for one in listed if matches.fullmatch(one.name)]
            what = "no object matches the pattern"
        else:
            below = f"{prefix}/" if prefix else ""
            names = [one for one in listed if _is_data(one.name.removeprefix(below), suffixes)]
            what = f"no object *{' or *'.join(suffixes)} is below this URL" if suffixes else "no object is below it"
        if not names:
            raise SourceError(f"{what}; check the URL", path=self.url)
        base = f"{self.base.rstrip('/')}/"
        found_fields = typed([one.name for one in names])
        return [Part(base + one.name, fields, found=one) for one, fields in zip(names, found_fields, strict=True)]

    def steps(self) -> frozenset[str]:
        """What the names of all objects below the prefix begin with, as the names in a directory; none of a pattern, of
        one object, and of a server that cannot list. Raises SourceError."""
        try:
            store = self._opened()
            if self._is_pattern or not store.can_list:
                return frozenset()
            below = f"{self.name}/" if self.name else ""
            return frozenset(one.name.removeprefix(below).split("/")[0] for one in store.listed(self.name))
        except StoreError as error:
            raise SourceError(error.message, path=self.url) from error

    def open(self, part: Part) -> io.BufferedReader:
        """One of `parts`, seekable. Raises OSError; so does reading it, where it was replaced since."""
        assert part.found is not None
        try:
            return io.BufferedReader(_Object(self._opened(), part.found), _BUFFER)
        except StoreError as error:
            raise OSError(error.message) from error

    def _opened(self) -> Store:
        if self._store is None:
            self._store = Store(self.base)
        self._store.check_process()
        return self._store


class _Object(io.RawIOBase):
    """The bytes of one object. A read gives all that was asked for, unless it ends before."""

    def __init__(self, store: Store, found: Found) -> None:
        self._store = store
        self._found = found
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._at + len(view), self._found.size)
        begin = self._at
        try:
            for data in self._store.pieces(self._found.name, begin, end, self._found):
                view[self._at - begin : self._at - begin + len(data)] = data
                self._at += len(data)
        except StoreError as error:
            raise OSError(error.message) from error
        return self._at - begin

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._found.size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at


def raw_of(file: io.BufferedReader) -> Any:
    """For a reader that asks for just the ranges that it needs: an object without a buffer; of a file the file."""
    return file.raw if isinstance(file.raw, _Object) else file


def fingerprint_of_objects(parts: list[Part]) -> bytes:
    """32 bytes from names, sizes and tags. Where an object has no tag, its time counts; where that is of just now, what
    is returned is never given again."""
    digest = blake2b(digest_size=32)
    is_young = False
    for part in parts:
        found = part.found
        assert found is not None
        modified = found.modified.timestamp()
        mark = found.tag or f"of {modified}"
        is_young |= found.tag is None and abs(time.time() - modified) < _SETTLED
        digest.update(f"{len(part.path)}:{part.path}{found.size}:{len(mark)}:{mark}".encode())
    return once_only(digest.digest()) if is_young else digest.digest()


def _is_data(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether an object below the prefix counts; by the rule for files below a directory."""
    endings = (*suffixes, *(suffix + ending for suffix in suffixes for ending in COMPRESSED))
    is_hidden = any(step.startswith((".", "_")) for step in name.split("/"))
    return not is_hidden and (not endings or name.lower().endswith(endings))


def pattern_of(text: str) -> re.Pattern[str]:
    """As `glob` has it for paths: * within a step, ** for any steps, a leading dot only where it is asked for."""
    return re.compile("".join(_steps(text.split("/"))))


def _steps(steps: list[str]) -> Iterator[str]:
    for i, step in enumerate(steps):
        is_last = i + 1 == len(steps)
        if step == "**":
            yield r"(?:[^/.][^/]*/)*" + (r"[^/.][^/]*" if is_last else "")
        else:
            yield ("" if step.startswith(".") else r"(?!\.)") + "".join(map(_piece, _WILD.split(step)))
            yield "/" * (not is_last)


def _piece(text: str) -> str:
    if text.startswith("*"):
        return "[^/]*"
    if _WILD.fullmatch(text):
        inner = text[1:-1].replace("\\", r"\\")
        return f"(?!/)[{'^' + inner[1:] if inner.startswith('!') else inner}]"
    return re.escape(text)
