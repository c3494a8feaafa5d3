"""Everything that a user would take instead, each in a module of its own: see `base.Peer`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection

from .base import AbsentError, Peer

__all__ = ["AbsentError", "Peer", "load"]

_MODULES = {
    "mmcache_file": ("Mmcache", "MmcacheCache"),
    "lmdb_msgpack": ("Lmdb", "LmdbNewTransaction"),
    "sqlite_tuned": ("SqliteTuned", "SqliteSingleIndexes"),
    "sqlite_json": ("SqliteJson", "SqliteBlob"),
    "diskcache_dir": ("DiskCache",),
    "shelve_dbm": ("Shelve",),
    "cdb_msgpack": ("Cdb",),
    "redis_socket": ("Redis",),
    "manager_dict": ("ManagerDict",),
    "arrow_ipc": ("ArrowIpc",),
    "safetensors_json": ("SafetensorsJson",),
    "npy_pickle": ("NpyPickle",),
    "msgpack_blob": ("MsgpackBlob",),
    "usearch_view": ("UsearchView",),
    "dict_floor": ("DictFloor",),
}
"""In the order of the tables. What comes after the manager holds an index, or everything, in every worker."""


def load(notice: Callable[[str], None], names: Collection[str] | None = None) -> list[type[Peer]]:
    """The peers of these names, or all; one whose library is not installed is left out with a notice."""
    found: list[type[Peer]] = []
    for module, classes in _MODULES.items():
        try:
            imported = importlib.import_module(f".{module}", __name__)
        except ImportError as error:
            notice(f"{', '.join(classes)} left out: {error}")
            continue
        found += [getattr(imported, name) for name in classes]
    return [peer for peer in found if names is None or peer.name in names]
