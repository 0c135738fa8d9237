"""Run the exercise file that a reader filled in, and judge what it defines."""

import sys
from pathlib import Path
from typing import Any

from tensorlite.testing.bugs import CHAPTERS
from tensorlite.testing.exercises.judge import AttemptError, Outcome, Place, call, try_pair

MODULE = "exercise"  # the name that the file is run under; its test waits for __main__
Names = dict[str, Any]


def try_file(path: Path, level: int = 1) -> Outcome:
    """Check the forward and the backward of a file.

    path: a file that defines OP_forward and OP_backward, for one op.
    level: 1 for the report, 2 for what the wrong gradients look like and the way to the right ones in words, 3 for the derivation.
    Returns the text to print, and whether the backward passed. Raises OSError when the file cannot be read, and ImportError when
    SciPy is missing.
    """
    text = path.read_bytes()
    place = Place(str(path))
    folder = str(path.resolve().parent)  # from which the file may import, as when it is run alone
    try:
        sys.path.insert(0, folder)
        try:
            names = load(place, text)
        finally:
            sys.path.remove(folder)
        op = find_op(place, names)
    except AttemptError as problem:
        return Outcome(str(problem), ok=False)
    return try_pair(place, op, names[f"{op}_forward"], names[f"{op}_backward"], level)


def load(place: Place, text: bytes) -> Names:
    """Run the file and return the names that it defines. Raises AttemptError where Python cannot read it, or where it fails."""
    try:
        code = compile(text, place.file, "exec")
    except SyntaxError as error:
        where = place.line(error.lineno) if error.lineno else str(place)
        line = f"\n    {error.text.strip()}" if error.text else ""
        raise AttemptError(f"{where}: {type(error).__name__}: {error.msg}{line}") from None
    except ValueError as error:  # a zero byte
        raise AttemptError(f"{place}: {error}") from None
    names = {"__name__": MODULE, "__file__": place.file}
    call(place, lambda: exec(code, names))
    return names


def find_op(place: Place, names: Names) -> str:
    """Return the op whose forward the file defines. Raises AttemptError unless there is one, with its backward."""
    own = [op for op in CHAPTERS if getattr(names.get(f"{op}_forward"), "__module__", None) == MODULE]
    if not own:
        raise AttemptError(f"{place} defines no forward of an op, such as linear_forward; --write NAME writes a file that does")
    if len(own) > 1:
        raise AttemptError(f"{place} defines the forwards of {' and '.join(own)}; keep one op per file")
    if not callable(names.get(f"{own[0]}_backward")):
        raise AttemptError(f"{place} defines {own[0]}_forward, but no function {own[0]}_backward(dy, cache)")
    return own[0]
