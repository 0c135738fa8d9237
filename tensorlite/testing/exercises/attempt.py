"""Check the backward that a reader wrote into an exercise file, and report in terms of that file."""

import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tensorlite.testing.bugs import CHAPTERS, true_pair
from tensorlite.testing.exercises import inputs
from tensorlite.testing.exercises.compare import PACKED, agree, gradient_names, named_gradients, random_dy
from tensorlite.testing.exercises.sources import derivation, formula
from tensorlite.testing.exercises.words import WORDS
from tensorlite.testing.gradcheck import gradcheck
from tensorlite.testing.report import GradReport

MODULE = "exercise"  # the name that the file is run under; its test waits for __main__
LEVELS = (1, 2, 3)  # of hints
Names = dict[str, Any]


@dataclass
class Outcome:
    """What the check of a file says, and whether it passed."""

    text: str
    ok: bool


class AttemptError(Exception):
    """The file cannot be checked as it stands. The message begins with its name and, where there is one, the line."""


def try_file(path: Path, level: int = 1) -> Outcome:
    """Check the forward and the backward of a file.

    path: a file that defines OP_forward and OP_backward, for one op.
    level: 1 for the report, 2 for what the wrong gradients look like and the way to the right ones in words, 3 for the derivation.
    Returns the text to print, and whether the backward passed. Raises OSError when the file cannot be read, and ImportError when
    SciPy is missing.
    """
    text = path.read_bytes()
    try:
        names = load(path, text)
        op = find_op(path, names)
        forward = names[f"{op}_forward"]
        require_forward(path, op, forward)
        return check(path, op, forward, names[f"{op}_backward"], level)
    except AttemptError as problem:
        return Outcome(str(problem), ok=False)


def load(path: Path, text: bytes) -> Names:
    """Run the file and return the names that it defines. Raises AttemptError where Python cannot read it, or where it fails."""
    try:
        code = compile(text, str(path), "exec")
    except SyntaxError as error:
        place = f"{path}:{error.lineno}" if error.lineno else str(path)
        line = f"\n    {error.text.strip()}" if error.text else ""
        raise AttemptError(f"{place}: {type(error).__name__}: {error.msg}{line}") from None
    except ValueError as error:  # a zero byte
        raise AttemptError(f"{path}: {error}") from None
    names = {"__name__": MODULE, "__file__": str(path)}
    call(path, lambda: exec(code, names))
    return names


def find_op(path: Path, names: Names) -> str:
    """Return the op whose forward the file defines. Raises AttemptError unless there is one, with its backward."""
    own = [op for op in CHAPTERS if getattr(names.get(f"{op}_forward"), "__module__", None) == MODULE]
    if not own:
        raise AttemptError(f"{path} defines no forward of an op, such as linear_forward; --write NAME writes a file that does")
    if len(own) > 1:
        raise AttemptError(f"{path} defines the forwards of {' and '.join(own)}; keep one op per file")
    if not callable(names.get(f"{own[0]}_backward")):
        raise AttemptError(f"{path} defines {own[0]}_forward, but no function {own[0]}_backward(dy, cache)")
    return own[0]


def call(path: Path, function: Callable[[], Any]) -> Any:
    """Return what the function returns. Raises AttemptError, with the reader's line, for an error in the reader's code."""
    try:
        return function()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        if not frames and isinstance(error, ImportError):
            raise
        raise AttemptError(problem(path, error, frames[-1] if frames else None)) from None


def problem(path: Path, error: BaseException, frame: traceback.FrameSummary | None) -> str:
    """Return the error in one line, and below it the line of the file that it comes from."""
    if frame is None:
        return f"{path}: {error}"
    if isinstance(error, NotImplementedError):
        return f"{path}:{frame.lineno}: the hole in {frame.name} is still open: {error}"
    text = traceback.format_exception_only(error)[-1].strip()
    return f"{path}:{frame.lineno}, in {frame.name}: {text}\n    {frame.line}"


def require_forward(path: Path, op: str, forward: Callable) -> None:
    """Raise AttemptError unless the forward of the file returns the y of the op."""
    given = draw_inputs(op)
    y, _ = true_pair(op).forward(**given)
    found = call(path, lambda: forward(**given))
    if not isinstance(found, tuple) or len(found) != 2 or not agree(found[0], y):
        way_out = f"--write {op} in another folder writes it again"
        raise AttemptError(f"{path}: {op}_forward was changed and no longer returns the y of {op}; {way_out}")


def draw_inputs(op: str) -> dict:
    """Return the same inputs at every call."""
    return getattr(inputs, op)(np.random.default_rng(0))


def check(path: Path, op: str, forward: Callable, backward: Callable, level: int) -> Outcome:
    """Check the two functions of the reader. An error in them gets the hints for every gradient."""
    try:
        report = call(path, lambda: gradcheck(forward, backward, draw_inputs(op), raise_on_fail=False))
        if report.ok:
            return Outcome(f"{report}\n{op}_backward is right.", ok=True)
        wrong = call(path, lambda: wrong_gradients(op, forward, backward))
        lines = [str(report if level > 1 else without_hints(report))]
    except AttemptError as problem:
        wrong = list(gradient_names(op))
        lines = [str(problem)]
    else:
        if op in PACKED and wrong:
            lines.append(f"The last axis is [{' | '.join(PACKED[op])}]. Wrong: {', '.join(wrong)}.")
    return Outcome("\n".join([*lines, *hints(op, wrong, level)]), ok=False)


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
    return replace(report, arguments=arguments)


def hints(op: str, wrong: list[str], level: int) -> list[str]:
    """Return what the level adds to the report, as lines, and how to ask for more."""
    lines = []
    if level >= 2:
        lines += [textwrap.fill(f"{name}: {WORDS[op][name]}", 100, subsequent_indent="    ") for name in wrong]
    if level >= 3:
        backward = true_pair(op).backward
        lines += ["", formula(backward), "", derivation(backward)]
    if level < max(LEVELS):
        lines.append(f"More: --hint {level + 1}")
    return lines
