"""The former home of `tests.support.faults`, for tests that are being rewritten; goes with the last of them."""

from tests.support.faults import COUNTED, Ends, Fail, FailName, Kill, Short, faults
from tests.support.processes import in_child

__all__ = ["COUNTED", "Ends", "Fail", "FailName", "Kill", "Short", "faults", "in_child"]
