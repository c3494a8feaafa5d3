"""An exception at any instruction of mmcache, as a signal handler may raise it.

    interrupts = Interrupts()
    places = interrupts.places(operation)      # runs it once
    interrupts.run(operation, places[0])       # runs it again, and raises there

CPython handles signals after a call, where a function begins, and where a loop goes back; `every` is stricter. Left out
are places where no handler runs and none could be survived: between the block of a `with` and the call of `__exit__`,
and where the interpreter enters and leaves an `except`, which it would take for unfinished, with all its frames.
"""

from __future__ import annotations

import contextlib
import dis
import itertools
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from types import CodeType, FrameType
from typing import Any, NamedTuple

import mmcache

_ROOT = os.path.dirname(mmcache.__file__) + os.sep


class Interrupted(BaseException):
    """No `except Exception` catches it."""


class Place(NamedTuple):
    """An instruction, and how many times it was passed before the time that is meant."""

    code: CodeType
    offset: int
    passed: int

    def __str__(self) -> str:
        line = next((line for begin, end, line in self.code.co_lines() if begin <= self.offset < end), 0)
        where = f"{os.path.relpath(self.code.co_filename, _ROOT)}:{line} {self.code.co_qualname}"
        return f"{where} at {self.offset}, after {self.passed} times"


@cache
def _before(code: CodeType) -> dict[int, str]:
    """Offset of each instruction -> the name of that before it."""
    instructions = [one for one in dis.get_instructions(code) if one.opname != "CACHE"]
    names = ["RESUME", *(one.opname for one in instructions)]
    return {one.offset: name for one, name in zip(instructions, names, strict=False)}


def _is_eligible(code: CodeType, offset: int) -> bool:
    before = _before(code).get(offset, "")
    return before.startswith(("CALL", "RESUME")) or "BACKWARD" in before


@cache
def _left_out(code: CodeType) -> frozenset[int]:
    """Offsets of the begin and end of handlers, and of the calls of `__exit__` after a block that ended well."""
    instructions = [one for one in dis.get_instructions(code) if one.opname not in ("CACHE", "PRECALL")]
    names = [one.opname for one in instructions]
    found = {
        one.offset
        for i, one in enumerate(instructions)
        if {"PUSH_EXC_INFO", "POP_EXCEPT"} & set(names[max(i - 1, 0) : i + 2])
    }
    for i, one in enumerate(instructions):
        before = instructions[max(i - 3, 0) : i]
        if one.opname == "CALL" and one.arg == 2 and all((b.opname, b.argval) == ("LOAD_CONST", None) for b in before):
            found |= {each.offset for each in before} | {one.offset, one.offset - 4}
            if i > 3 and names[i - 4] == "SWAP":  # of a `return` out of the block
                found.add(instructions[i - 4].offset)
    return frozenset(found)


_WITHOUT_EFFECT = (
    "LOAD_FAST",
    "LOAD_CONST",
    "LOAD_SMALL_INT",
    "PUSH_NULL",
    "COPY",
    "SWAP",
    "NOP",
    "KW_NAMES",
    "PRECALL",
)


@cache
def _alike(code: CodeType) -> frozenset[int]:
    """Offsets at which an exception leaves just what it leaves at the instruction before: that one only moved the
    stack, both are in the same block of the exception table, and no jump comes between."""
    instructions = [one for one in dis.get_instructions(code) if one.opname != "CACHE"]
    blocks: Any = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]

    def handlers(offset: int) -> list[int]:
        return [n for n, block in enumerate(blocks) if block.start <= offset < block.end]

    return frozenset(
        one.offset
        for before, one in itertools.pairwise(instructions)
        if before.opname.startswith(_WITHOUT_EFFECT)
        and not before.opname.startswith("LOAD_FAST_AND_CLEAR")
        and not one.is_jump_target
        and handlers(before.offset) == handlers(one.offset)
        and before.offset not in _left_out(code)
    )


class Interrupts:
    """every: at each instruction, also where CPython itself handles no signal; those that leave the same are tried
    once. Only the thread that runs the operation is interrupted."""

    def __init__(self, *, every: bool = False) -> None:
        self._every = every
        self._seen: dict[tuple[CodeType, int], int] = {}
        self._at: Place | None = None
        self._is_done = False
        self._thread = 0

    def places(self, operation: Callable[[], Any]) -> list[Place]:
        """Run it: the first and the last time of each instruction."""
        self._traced(operation, None)
        found = [Place(*instruction, 0) for instruction in self._seen]
        return found + [Place(*key, count - 1) for key, count in self._seen.items() if count > 1]

    def run(self, operation: Callable[[], Any], place: Place) -> bool:
        """Run it, and raise there; whether it came there. MmcacheErrors that follow are swallowed with it."""
        with contextlib.suppress(Interrupted, mmcache.MmcacheError):
            self._traced(operation, place)
        return self._is_done

    def _traced(self, operation: Callable[[], Any], at: Place | None) -> None:
        self._seen, self._at, self._is_done = {}, at, False
        self._thread = threading.get_ident()
        only = None if at is None else at.code
        with _monitored(self._pass, only) if sys.version_info >= (3, 12) else _settraced(self._pass, only):
            operation()

    def _pass(self, code: CodeType, offset: int) -> None:
        if threading.get_ident() != self._thread:
            return
        if not _is_eligible(code, offset) and (not self._every or offset in _left_out(code) or offset in _alike(code)):
            return
        key = code, offset
        count = self._seen.get(key, 0)
        self._seen[key] = count + 1
        at = self._at
        if at is not None and not self._is_done and at.code is code and at.offset == offset and at.passed == count:
            self._is_done = True
            raise Interrupted


class _settraced:  # noqa: N801 (a context manager)
    """CPython 3.11. only: the one function whose instructions are passed on, which the others do not wait for."""

    def __init__(self, passed: Callable[[CodeType, int], None], only: CodeType | None) -> None:
        self._passed, self._only = passed, only

    def __enter__(self) -> None:
        sys.settrace(self._call)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if code is not self._only if self._only is not None else not code.co_filename.startswith(_ROOT):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._instruction

    def _instruction(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode":
            self._passed(frame.f_code, frame.f_lasti)
        return self._instruction


class _monitored:  # noqa: N801 (a context manager)
    """CPython 3.12 and later."""

    _TOOL = 4

    def __init__(self, passed: Callable[[CodeType, int], None], only: CodeType | None) -> None:
        self._passed, self._only = passed, only

    def __enter__(self) -> None:
        monitoring: Any = sys.monitoring  # type: ignore[attr-defined, unused-ignore]
        monitoring.use_tool_id(self._TOOL, "interrupts")
        monitoring.register_callback(self._TOOL, monitoring.events.INSTRUCTION, self._instruction)
        if self._only is None:
            monitoring.set_events(self._TOOL, monitoring.events.INSTRUCTION)
        else:
            monitoring.set_local_events(self._TOOL, self._only, monitoring.events.INSTRUCTION)

    def __exit__(self, *_: object) -> None:
        monitoring: Any = sys.monitoring  # type: ignore[attr-defined, unused-ignore]
        monitoring.set_events(self._TOOL, 0)
        if self._only is not None:
            monitoring.set_local_events(self._TOOL, self._only, 0)
        monitoring.register_callback(self._TOOL, monitoring.events.INSTRUCTION, None)
        monitoring.free_tool_id(self._TOOL)
        monitoring.restart_events()

    def _instruction(self, code: CodeType, offset: int) -> Any:
        if not code.co_filename.startswith(_ROOT):
            monitoring: Any = sys.monitoring  # type: ignore[attr-defined, unused-ignore]
            return monitoring.DISABLE
        return self._passed(code, offset)
