"""An exception at a chosen instruction, as the handler of a signal raises one.

CPython handles signals after a call, at the begin of a function, and at the end of a loop's body. `Interrupt` counts
these moments in some modules. It asks `sys.monitoring` for each instruction, from CPython 3.12 on, and `sys.settrace`
before: trace functions for instructions work differently in each of 3.11, 3.12 and 3.13.
"""

from __future__ import annotations

import dis
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FrameType, ModuleType
from typing import Any

TOOL = 4
"""Of the numbers that `sys.monitoring` has for tools, one that debuggers, coverage and profilers leave free."""


class Interrupted(BaseException):
    """The exception that a signal handler raises."""


class Interrupt:
    """Raises `Interrupted` once, at the moment number `at`, counted from 1, at which these modules may be interrupted.

    Other modules, and other threads, are left alone.
    """

    def __init__(self, at: int, *modules: ModuleType) -> None:
        self.at = at
        self.seen = 0
        self._modules = modules
        self._last: dict[FrameType, str] = {}

    def run(self, action: Callable[[], object]) -> bool:
        """Whether the action was interrupted, and let the exception pass."""
        try:
            with self._watching():
                action()
        except Interrupted:
            return True
        finally:
            self._last.clear()
        return False

    def _executes(self, frame: FrameType, operation: str) -> None:
        """Called before each instruction of the modules."""
        before = self._last.get(frame, "RESUME")
        self._last[frame] = operation
        if before.startswith(("CALL", "RESUME")) or "BACKWARD" in before:
            self.seen += 1
            if self.seen == self.at:
                raise Interrupted

    if sys.version_info >= (3, 12):

        @contextmanager
        def _watching(self) -> Iterator[None]:
            thread = threading.get_ident()

            def instruction(code: CodeType, offset: int) -> None:
                if threading.get_ident() == thread:
                    here = inspect.currentframe()
                    assert here is not None
                    assert here.f_back is not None
                    self._executes(here.f_back, _operations(code)[offset])

            events = sys.monitoring.events
            codes = _codes(self._modules)
            sys.monitoring.use_tool_id(TOOL, type(self).__name__)
            try:
                sys.monitoring.register_callback(TOOL, events.INSTRUCTION, instruction)
                for code in codes:
                    sys.monitoring.set_local_events(TOOL, code, events.INSTRUCTION)
                yield
            finally:
                for code in codes:
                    sys.monitoring.set_local_events(TOOL, code, events.NO_EVENTS)
                sys.monitoring.register_callback(TOOL, events.INSTRUCTION, None)
                sys.monitoring.free_tool_id(TOOL)

    else:

        @contextmanager
        def _watching(self) -> Iterator[None]:
            before = sys.gettrace()
            sys.settrace(self._call)
            try:
                yield
            finally:
                sys.settrace(before)

        def _call(self, frame: FrameType, event: str, arg: object) -> Any:
            if frame.f_code.co_filename not in {module.__file__ for module in self._modules}:
                return None
            frame.f_trace_opcodes = True
            return self._trace

        def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
            if event == "opcode":
                self._executes(frame, _operations(frame.f_code)[frame.f_lasti])
            return self._trace


@cache
def _codes(modules: tuple[ModuleType, ...]) -> list[CodeType]:
    """The code of all functions that these modules define."""
    files = {module.__file__ for module in modules}
    found: list[CodeType] = []
    pending = [one for module in modules for one in vars(module).values()]
    while pending:
        one = pending.pop()
        if isinstance(one, CodeType):
            if one.co_filename in files:
                found.append(one)
                pending += one.co_consts
        elif isinstance(one, type):
            if one.__module__ in {module.__name__ for module in modules}:
                pending += vars(one).values()
        elif callable(one) or isinstance(one, (property, staticmethod, classmethod)):
            pending += [getattr(one, name, None) for name in ("__code__", "__wrapped__", "__func__", "fget", "fset")]
    return found


@cache
def _operations(code: CodeType) -> dict[int, str]:
    """The names of the instructions, by offset."""
    return {one.offset: one.opname for one in dis.get_instructions(code)}
