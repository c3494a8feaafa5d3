"""The former home of `tests.support.bank`, for tests that are being rewritten; goes with the last of them."""

from tests.support.bank import ITEMS, NOTES, insert_item, make_bank, source_of, truth

__all__ = ["ITEMS", "NOTES", "insert_item", "make_bank", "source_of", "truth"]
