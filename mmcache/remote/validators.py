"""What a file must pass before it becomes a release. Each refusal is a `ReleaseError` that names its rule.

whole        every byte is what the builder wrote, by the digest tree
duplicates   no key stands twice
records      each collection of the release before is there, with a share of its records at least
check        functions of the caller's own
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from ..errors import ReleaseError
from ..format.frame import place_arrays
from ..format.layout import ids_sizes
from ..sources.functions import described
from ..values import importable

if TYPE_CHECKING:
    from ..storage.collection import FileCollection
    from ..storage.snapshot import Snapshot

__all__ = ["RATIO", "Check", "check_counts", "check_keys", "run_checks"]

RATIO: Final = 0.5
"""Share of the records of the release before that a collection has at least."""

Check = Callable[["Snapshot"], object]
"""check(snapshot): raises, or returns False or a sentence, where the file must not be published."""


def check_counts(records: Mapping[str, int], before: Mapping[str, int], ratio: float, path: str) -> None:
    """before: records of each collection of the release that followers have."""
    for name, count in before.items():
        if name not in records and ratio:
            raise ReleaseError(
                f"collection {name!r} of the release before is missing; --min-records-ratio 0 if it is to go",
                path=path,
                rule="records",
            )
        if records.get(name, 0) < ratio * count:
            raise ReleaseError(
                f"collection {name!r} has {records[name]} records, and {count} in the release before: expected "
                f"{ratio:g} of them at least (--min-records-ratio)",
                path=path,
                rule="records",
            )


def check_keys(snapshot: Snapshot, path: str) -> None:
    """O(n), by the table of ids: its entries are in the order of their hashes, so equal keys are neighbours."""
    for name, collection in snapshot.collections.items():
        if (key := _key_twice(collection)) is not None:
            raise ReleaseError(f"collection {name!r}: key {key!r} stands twice", path=path, rule="duplicates")


def _key_twice(collection: FileCollection) -> object:
    import numpy as np

    from ..format.slots import EMPTY, equal_runs

    file, ids = collection.file, collection.file.section("ids")
    arrays = place_arrays(ids_sizes(ids.count)).offsets
    view = file.view[ids.offset : ids.end]
    hashes = np.frombuffer(view, "<u8", ids.count, arrays["hash"])
    rows = np.frombuffer(view, "<u4", ids.count, arrays["row"])
    entries = np.append(True, rows[1:] != rows[:-1]) & (rows != EMPTY)  # a slot between entries repeats the next one
    rows, hashes = rows[entries], hashes[entries]
    for begin, end in equal_runs(hashes):
        seen: set[bytes] = set()
        for row in rows[begin:end].tolist():
            raw = bytes(file.raw_key(row))
            if raw in seen:
                return collection.ids_at(np.array([row], np.uint32))[0]
            seen.add(raw)
    return None


def run_checks(snapshot: Snapshot, checks: Iterable[Check | str], path: str) -> None:
    """In their order; the first that objects ends it. One given as "module:function" is imported."""
    for check in checks:
        function, _ = importable(check, "check")
        assert function is not None
        name = check if isinstance(check, str) else described(check)
        try:
            answer = function(snapshot)
        except Exception as error:
            raise ReleaseError(
                f"check {name} failed ({type(error).__name__}: {error})", path=path, rule=name
            ) from error
        if answer is False or isinstance(answer, str):
            raise ReleaseError(f"check {name} objects" + (f": {answer}" if answer else ""), path=path, rule=name)
