"""The checker for the course's notebook: it judges functions that cells define."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tensorlite.testing.exercises.judge import Place, problem, try_pair
from tensorlite.testing.report import GradcheckError


class Cell(Place):
    """A cell of a notebook. A traceback gives it the name of a temporary file, which says nothing to a reader."""

    def __str__(self) -> str:
        """Return a name for the whole cell."""
        return "your cell"

    def line(self, number: int | None) -> str:
        """Return the name of one line."""
        return f"line {number} of your cell"

    def restored(self, op: str) -> str:
        """Return how the reader gets the true forward back."""
        return f"undo that, or take {op}_forward from a new copy of the notebook"

    def more(self, level: int) -> str:
        """Return how the reader gets the hints of a level."""
        return f"check(..., hint={level})"


def check(forward: Callable, backward: Callable, hint: int = 1) -> None:
    """Check the backward of an op of the library that a cell defines, and print the result. It is what --try does for a file.

    forward: OP_forward.
    backward: OP_backward.
    hint: 1 for the report, 2 for what the wrong gradients look like and the way to the right ones in words, 3 for the derivation.
    """
    op = forward.__name__.removesuffix("_forward")
    place = Cell(backward.__code__.co_filename)
    print(try_pair(place, op, forward, backward, hint).text)


@contextmanager
def checking(function: Callable) -> Iterator[None]:
    """Run the lines below `with`, which test a function of a cell. Print that it is right, or the first line that fails.

        with checking(double):
            assert double(2) == 4

    Errors are printed and end there, so that the cells after this one can run.
    """
    try:
        yield
    except GradcheckError as failure:
        print(failure)
    except Exception as error:
        print(explanation(function, error))
    else:
        print(f"{function.__name__} is right.")


def explanation(function: Callable, error: Exception) -> str:
    """Return the error in the terms of the two cells: that of the function, and that of the check."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is the line with `yield`
    inner = [frame for frame in frames if frame.filename == function.__code__.co_filename]
    if inner:
        return problem(Cell(inner[-1].filename), error, inner[-1])
    what = str(error) if isinstance(error, AssertionError) else "".join(traceback.format_exception_only(error))
    return f"{function.__name__} is not right yet. This line of the check fails:\n    {frames[0].line}\n{what.strip()}".rstrip()
