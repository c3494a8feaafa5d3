"""For the tests of a source of one's own: `check_source` finds where it does not answer as it must."""

from .conformance import check_source

__all__ = ["check_source"]
