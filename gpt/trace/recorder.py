"""The recorder: it runs unchanged functions and writes down every value that a line of them makes.

It uses `sys.settrace`, so it cannot run under a debugger or a coverage tool. Only functions of the reference ops and of the
models are recorded; everything they call runs as always.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

import gpt.models
import tensorlite.reference
from gpt.trace.formulas import RETURN_NAMES
from gpt.trace.statements import Statement, Target, statements

Scalar = int | float
FOLDERS = tuple(Path(module.__file__ or "").parent for module in (tensorlite.reference, gpt.models))
FILES = {str(path) for folder in FOLDERS for path in folder.glob("*.py")}


@dataclass(frozen=True)
class Made:
    """A value that a statement set: `array` is its place in Trace.arrays."""

    statement: Statement
    target: Target
    array: int


@dataclass
class Call:
    """One call of a recorded function."""

    number: int
    function: str
    code: CodeType
    parent: int | None
    parent_line: int | None  # the line of the parent that made the call
    arguments: dict[str, int]  # arrays by the name that the function gives them
    scalars: dict[str, Scalar] = field(default_factory=dict)  # the last value of every int and float
    made: list[Made] = field(default_factory=list)


@dataclass
class Trace:
    """All calls of one run, in the order in which they began, and a copy of every array."""

    calls: list[Call] = field(default_factory=list)
    arrays: list[np.ndarray] = field(default_factory=list)

    def environment(self, call: Call, before: Made) -> dict[str, np.ndarray | Scalar]:
        """Return what the names of a function mean when the statement of `before` begins."""
        names: dict[str, np.ndarray | Scalar] = dict(call.scalars)
        names |= {name: self.arrays[array] for name, array in call.arguments.items()}
        for made in call.made:
            if made.statement is before.statement:
                break
            names[made.target.name] = self.arrays[made.array]
        return names


class Listener:
    """What happens on the way through a recorded function. The methods do nothing here."""

    def called(self, frame: FrameType) -> None:
        """A recorded function begins; its arguments are in frame.f_locals."""

    def made(self, statement: Statement, values: list[Any]) -> None:
        """A statement has ended; `values` are what its targets are now."""

    def returned(self) -> None:
        """A recorded function ends."""


@contextmanager
def listening(listener: Listener, only: int | None = None) -> Iterator[None]:
    """Tell the listener of every recorded call made inside this block. only: the number of the one call to tell it of."""
    n_calls = 0

    def on_call(frame: FrameType, _event: str, _arg: Any) -> Callable | None:
        nonlocal n_calls
        if frame.f_code.co_filename not in FILES or not is_recorded(frame.f_code):
            return None
        n_calls += 1
        if only is not None and n_calls - 1 != only:
            return None
        return _Follower(listener, frame).on_event

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(before)


def is_recorded(code: CodeType) -> bool:
    """Whether calls of this function are recorded: an op's two functions, the functions of a model, and `add`."""
    if code.co_qualname.startswith("ReferenceOps."):  # its other methods only pass on to the ops
        return code.co_name == "add"
    return code.co_name.endswith(("forward", "backward")) or code.co_name == "head_weight"


class _Follower:
    """Follows one call from line to line, and tells the listener when a statement has ended."""

    def __init__(self, listener: Listener, frame: FrameType) -> None:
        self.listener = listener
        self.by_line = statements(frame.f_code, RETURN_NAMES.get(frame.f_code.co_name, ()))
        self.running: Statement | None = None
        listener.called(frame)

    def on_event(self, frame: FrameType, event: str, arg: Any) -> Callable:
        statement = self.by_line.get(frame.f_lineno)
        if event in ("line", "return") and statement is not self.running:
            self._ended(frame)
            self.running = statement
        if event == "return":
            if self.running and self.running.is_return:
                values = arg if isinstance(arg, tuple) else (arg,)
                self.listener.made(self.running, list(values))
            else:
                self._ended(frame)
            self.listener.returned()
        return self.on_event

    def _ended(self, frame: FrameType) -> None:
        if self.running and not self.running.is_return:
            values = [frame.f_locals.get(target.name) for target in self.running.targets]
            self.listener.made(self.running, values)


class Recorder(Listener):
    """Collects a Trace. Two names for one object share one array, so a value is found again wherever it is used."""

    def __init__(self) -> None:
        self.trace = Trace()
        self._stack: list[Call] = []
        self._array_of: dict[int, int] = {}  # id of an object to its place in trace.arrays
        self._alive: list[Any] = []  # the objects, so that no id is used twice

    def called(self, frame: FrameType) -> None:
        parent = self._stack[-1] if self._stack else None
        call = Call(
            number=len(self.trace.calls),
            function=frame.f_code.co_name,
            code=frame.f_code,
            parent=parent.number if parent else None,
            parent_line=_line_of_caller(frame) if parent else None,
            arguments={},
        )
        for name, value in frame.f_locals.items():
            self._note(call, name, value)
        constants = {name: frame.f_globals.get(name) for name in frame.f_code.co_names}
        call.scalars |= {name: value for name, value in constants.items() if isinstance(value, float)}
        self.trace.calls.append(call)
        self._stack.append(call)

    def made(self, statement: Statement, values: list[Any]) -> None:
        call = self._stack[-1]
        for target, value in zip(statement.targets, values, strict=False):
            if not target.name:
                continue
            if is_array(value):
                if statement.in_place:
                    self._array_of.pop(id(value), None)
                call.made.append(Made(statement, target, self.array(value)))
            elif isinstance(value, Scalar) and not isinstance(value, bool):
                call.scalars[target.name] = value

    def returned(self) -> None:
        self._stack.pop()

    def array(self, value: Any) -> int:
        """Return the place of an array in the trace; a new one is copied there."""
        if id(value) not in self._array_of:
            self._array_of[id(value)] = len(self.trace.arrays)
            self._alive.append(value)
            self.trace.arrays.append(np.array(value))
        return self._array_of[id(value)]

    def _note(self, call: Call, name: str, value: Any) -> None:
        """Write down an argument: an array, a number, or the arrays in a dict of parameters."""
        if is_array(value):
            call.arguments[name] = self.array(value)
        elif isinstance(value, Scalar) and not isinstance(value, bool):
            call.scalars[name] = value
        elif isinstance(value, dict):
            call.arguments |= {key: self.array(entry) for key, entry in value.items() if is_array(entry)}


def is_array(value: Any) -> bool:
    """Whether the recorder copies this value: an array, or the NumPy scalar that a mean over all axes returns."""
    return isinstance(value, np.ndarray | np.generic)


def _line_of_caller(frame: FrameType) -> int | None:
    return frame.f_back.f_lineno if frame.f_back else None
