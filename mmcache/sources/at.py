"""The source at a path or a URL, of the class that its kind has."""

from __future__ import annotations

import os
import re
from importlib import import_module
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import SourceError
from ..schema import AnySchema
from .objects import is_object_url
from .recognize import KINDS, NAMES, is_url, kind_of
from .streams import open_file

__all__ = ["source_at"]

_REMOTE = ("gcs", "ftp", "sftp", "hdfs", "webhdfs")


def source_at(where: str | os.PathLike[str], *schemas: AnySchema, **options: Any) -> Any:
    """The source at a path, a pattern of paths, a directory, "-" for standard input, a URL of a database, or one of
    files in an object store.

    options: those of the class, such as `delimiter` of CSV. `sqlite:///shop.db` is the path `shop.db`; any other URL is
    one of SQLAlchemy. Raises SourceError for what cannot be read, ValueError or TypeError for options and schemas that
    do not fit.
    """
    where = os.fsdecode(os.fspath(where))
    if is_url(where) and not is_object_url(where):
        scheme = where.partition(":")[0].lower()
        if scheme == "file":
            where = unquote(urlsplit(where).path)
        elif scheme.startswith("sqlite"):
            where = _sqlite_path(where)
        elif scheme in _REMOTE:
            raise SourceError(
                f"{scheme}:// cannot be read; download it, and give the file, or - after a pipe", path=where
            )
        else:
            return _database(where, schemas, options)
    kind = kind_of(where)
    if kind == "npy":
        raise SourceError(
            f"this is a .npy file{_shape(where)}: embeddings, without their records; give the table whose row i has "
            f"embedding i, with embeddings={os.path.basename(where)!r}",
            path=where,
        )
    source_class = _class_of(kind, where)
    if kind != "sqlite" and len(schemas) != 1:
        raise TypeError(
            f"{where} holds one collection, and {len(schemas)} schemas were given; several are Sources(a, b)"
        )
    return source_class(where, *schemas, **options)


def _class_of(kind: str, where: str) -> Any:
    home, _, extra = KINDS[kind]
    module, _, name = home.partition(":")
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise SourceError(
            f"this is {NAMES[kind]}, which needs pip install 'mmcache[{extra}]' ({error})", path=where
        ) from error


def _database(url: str, schemas: tuple[AnySchema, ...], options: dict[str, Any]) -> Any:
    try:
        source_class: Any = import_module("mmcache.sources.sql").SQLAlchemySource
    except ImportError as error:
        shown = re.sub(r"//[^/@]*@", "//***@", url)
        raise SourceError(
            f"this is the URL of a database, which needs pip install 'mmcache[sqlalchemy]' and its driver ({error})",
            path=shown,
        ) from error
    return source_class(url, *schemas, **options)


def _sqlite_path(url: str) -> str:
    path = url.partition("://")[2].partition("?")[0]
    if not path.startswith("/") or path == "/":
        raise SourceError("expected sqlite:///relative/path.db or sqlite:////absolute/path.db", path=url)
    return unquote(path[1:])


def _shape(path: str) -> str:
    from .npy import header_of

    try:
        with open_file(path) as file:
            header = header_of(file)
    except (OSError, ValueError):
        return ""
    return f" of shape {header.shape} and dtype {header.dtype}"
