"""Judge the forward and the backward that a reader wrote, in terms of the reader's file or cell."""

import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tensorlite.testing.bugs import true_pair
from tensorlite.testing.exercises import inputs
from tensorlite.testing.exercises.compare import PACKED, agree, gradient_names, named_gradients, random_dy
from tensorlite.testing.exercises.sources import derivation, formula
from tensorlite.testing.exercises.words import WORDS
from tensorlite.testing.gradcheck import gradcheck
from tensorlite.testing.report import GradReport

LEVELS = (1, 2, 3)  # of hints


@dataclass
class Outcome:
    """What the check of a file says, and whether it passed."""

    text: str
    ok: bool


class AttemptError(Exception):
    """The code cannot be checked as it stands. The message begins with its place and, where there is one, the line."""


@dataclass(frozen=True)
class Place:
    """Where the reader's code is, and the words of messages for it. These are the words for a file.

    file: its name, as tracebacks have it.
    """

    file: str

    def __str__(self) -> str:
        """Return the name of the whole."""
        return self.file

    def line(self, number: int | None) -> str:
        """Return the name of one line."""
        return f"{self.file}:{number}"

    def restored(self, op: str) -> str:
        """Return how the reader gets the true forward back."""
        return f"--write {op} in another folder writes it again"

    def more(self, level: int) -> str:
        """Return how the reader gets the hints of a level."""
        return f"--hint {level}"


def try_pair(place: Place, op: str, forward: Callable, backward: Callable, level: int) -> Outcome:
    """Check the forward and the backward of an op, as `try_file` does for those of a file."""
    try:
        require_forward(place, op, forward)
        return check(place, op, forward, backward, level)
    except AttemptError as problem:
        return Outcome(str(problem), ok=False)


def call(place: Place, function: Callable[[], Any]) -> Any:
    """Return what the function returns. Raises AttemptError, with the reader's line, for an error in the reader's code."""
    try:
        return function()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == place.file]
        if not frames and isinstance(error, ImportError):
            raise
        raise AttemptError(problem(place, error, frames[-1] if frames else None)) from None


def problem(place: Place, error: BaseException, frame: traceback.FrameSummary | None) -> str:
    """Return the error in one line, and below it the line of the file that it comes from."""
    if frame is None:
        return f"{place}: {error}"
    if isinstance(error, NotImplementedError):
        return f"{place.line(frame.lineno)}: the hole in {frame.name} is still open: {error}"
    text = traceback.format_exception_only(error)[-1].strip()
    return f"{place.line(frame.lineno)}, in {frame.name}: {text}\n    {frame.line}"


def require_forward(place: Place, op: str, forward: Callable) -> None:
    """Raise AttemptError unless the forward of the file returns the y of the op."""
    given = draw_inputs(op)
    y, _ = true_pair(op).forward(**given)
    found = call(place, lambda: forward(**given))
    if not isinstance(found, tuple) or len(found) != 2 or not agree(found[0], y):
        changed = f"{op}_forward was changed and no longer returns the y of {op}"
        raise AttemptError(f"{place}: {changed}; {place.restored(op)}")


def draw_inputs(op: str) -> dict:
    """Return the same inputs at every call."""
    return getattr(inputs, op)(np.random.default_rng(0))


def check(place: Place, op: str, forward: Callable, backward: Callable, level: int) -> Outcome:
    """Check the two functions of the reader. An error in them gets the hints for every gradient."""
    try:
        report = call(place, lambda: gradcheck(forward, backward, draw_inputs(op), raise_on_fail=False))
        if report.ok:
            return Outcome(f"{report}\n{op}_backward is right.", ok=True)
        wrong = call(place, lambda: wrong_gradients(op, forward, backward))
        lines = [str(report if level > 1 else without_hints(report))]
    except AttemptError as problem:
        wrong = list(gradient_names(op))
        lines = [str(problem)]
    else:
        if op in PACKED:
            parts = PACKED[op]
            not_packed = f"{', '.join(parts)} are right. Return one array: np.concatenate([{', '.join(parts)}], axis=-1)"
            lines.append(f"The last axis is [{' | '.join(parts)}]. Wrong: {', '.join(wrong)}." if wrong else not_packed)
    return Outcome("\n".join([*lines, *hints(place, op, wrong, level)]), ok=False)


def wrong_gradients(op: str, forward: Callable, backward: Callable) -> list[str]:
    """Return the names of the gradients that differ from those of the library."""
    true = true_pair(op)
    y, cache = true.forward(**draw_inputs(op))
    _, own_cache = forward(**draw_inputs(op))
    dy = random_dy(y)
    expected = named_gradients(op, true.backward(dy, cache))
    found = named_gradients(op, backward(dy, own_cache))
    return [name for name in gradient_names(op) if not agree(found[name], expected[name])]


def without_hints(report: GradReport) -> GradReport:
    """Return the report without what the wrong gradients look like."""
    arguments = [replace(argument, hint="") for argument in report.arguments]
    of_shapes = [violation.partition(". ")[0] if " is (" in violation else violation for violation in report.contract_violations]
    return replace(report, arguments=arguments, contract_violations=of_shapes)


def hints(place: Place, op: str, wrong: list[str], level: int) -> list[str]:
    """Return what the level adds to the report, as lines, and how to ask for more."""
    lines = []
    if level >= 2:
        lines += [textwrap.fill(f"{name}: {WORDS[op][name]}", 100, subsequent_indent="    ") for name in wrong]
    if level >= 3:
        backward = true_pair(op).backward
        lines += ["", formula(backward), "", derivation(backward)]
    if level < max(LEVELS):
        lines.append(f"More: {place.more(level + 1)}")
    return lines
