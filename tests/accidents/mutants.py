"""mmcache with a mistake in it, for the accident harness to find: each is called before a reader opens its cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmcache.filetier import FileTier
from mmcache.rebuild import Rebuilder, last_build
from mmcache.sharing import decide
from mmcache.watch import Watch
from tests.processes import mutants

MISTAKES: dict[str, str] = {}
"""Name -> what a fault says of it."""

Mistake = Callable[[], None]


def found_as(text: str) -> Callable[[Mistake], Mistake]:
    def note(mistake: Mistake) -> Mistake:
        MISTAKES[mistake.__name__] = text
        return mistake

    return note


@found_as("until all serve the newest")
def never_adopts() -> None:
    """A worker stays with the file that it has opened first."""
    really = FileTier.other

    def other(self: FileTier, *args: Any, **options: Any) -> Any:
        return None if self.snapshot is not None else really(self, *args, **options)

    FileTier.other = other  # type: ignore[method-assign]


@found_as("wrong answers")
def answers_old() -> None:
    """The file answers ids that were invalidated."""
    mutants.ids_ignored()


@found_as("builds")
def builds_in_a_loop() -> None:
    """Whatever was built or has failed, a worker builds again at each poll."""
    decide._why_rebuild = lambda *args, **options: "again"
    start = Rebuilder.start

    def at_once(self: Rebuilder, why: str, page: Any, heard: object) -> bool:
        return start(self, why, page, last_build(page))

    Rebuilder.start = at_once  # type: ignore[method-assign]
    Rebuilder._job = lambda self: None  # type: ignore[method-assign]


@found_as("died")
def dies_of_a_lost_page() -> None:
    """A page that was replaced ends its process."""
    really = Watch._renew_page

    def renew(self: Watch) -> None:
        before = self.hearing.page
        really(self)
        if before is not None and self.hearing.page is not before:
            raise SystemExit(9)

    Watch._renew_page = renew  # type: ignore[method-assign]
