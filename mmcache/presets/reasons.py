"""The names that a bank of patterns has for reasons of an invalidation."""

from __future__ import annotations

from typing import Final

__all__ = ["ALIASES"]

ALIASES: Final = {"pattern_stored": "record_stored", "pattern_deleted": "record_deleted"}
"""Name -> the reason that it is another name of."""
