"""A finite difference beside every gradient: forward runs again with one element moved by h.

A parameter is moved in the flat buffer. A value inside a function is moved while the function runs, at the moment its line has made
it, so what is measured is how the loss depends on that very value. An argument of an op is moved for the length of that call alone,
because the same array may be used by other calls, and moved for good where the gradient is a sum over all uses.

A difference whose step passes the kink of ReLU measures neither slope: there it disagrees with backward, which is right.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np

from gpt.trace import tape
from gpt.trace.recorder import Call, Listener, Made, Trace, listening
from gpt.trace.statements import Statement

H = 2e-4  # the step: the largest error of the example is smallest here, see benchmarks/RESULTS.md

Loss = Callable[[], float]


@dataclass(frozen=True)
class Place:
    """A value of the forward pass whose gradient backward returns."""

    call: int
    name: str
    made: Statement | None  # the statement that makes it; None: it is an argument
    stays: bool  # moved for good, not for the length of the call alone


def places(trace: Trace, pairs: Mapping[int, int]) -> dict[int, Place]:
    """Return, for the array of every gradient that a line makes, the value that it is the gradient of."""
    found: dict[int, Place] = {}
    for call, made, of in gradients(trace):
        forward = trace.calls[pairs[call.number]]
        sets_it = [m for m in forward.made if m.target.name == of]
        is_argument = of in forward.arguments
        found.setdefault(made.array, Place(forward.number, of, None if is_argument else sets_it[-1].statement, not is_argument))
    for call in trace.calls:
        if call.function == "add":  # b is the gradient of the branch, which came first, so all uses come after its start
            first = found.get(call.arguments["b"]) or found[call.arguments["a"]]  # of a tied table, the lookup came first
            found[call.made[-1].array] = Place(first.call, first.name, first.made, stays=True)
    return found


def gradients(trace: Trace) -> Iterator[tuple[Call, Made, str]]:
    """Yield every line that makes a gradient, with the name of the value in forward."""
    for call in trace.calls:
        for made in call.made:
            formula = tape.formula_of(call, made)
            if formula and formula[0].gradient_of:
                yield call, made, formula[0].gradient_of


class Mover(Listener):
    """Moves one element of one value by h, while the call that has it runs."""

    def __init__(self, place: Place, element: int, h: float) -> None:
        self.place = place
        self.element = element
        self.h = h
        self._restore: tuple[np.ndarray, float] | None = None

    def called(self, frame: FrameType) -> None:
        if self.place.made is None:
            self._move(frame.f_locals[self.place.name])

    def made(self, statement: Statement, values: list[Any]) -> None:
        if statement == self.place.made:
            names = [target.name for target in statement.targets]
            self._move(values[names.index(self.place.name)])

    def returned(self) -> None:
        if self._restore and not self.place.stays:
            array, before = self._restore
            array.flat[self.element] = before

    def _move(self, array: np.ndarray) -> None:
        self._restore = array, array.flat[self.element]
        array.flat[self.element] += self.h


def at_place(loss: Loss, place: Place, size: int) -> np.ndarray:
    """Return a finite difference of the loss for every element of a value inside forward: (size,)."""

    def moved(element: int, h: float) -> float:
        with listening(Mover(place, element, h), only=place.call):
            return loss()

    return np.array([difference(moved, element) for element in range(size)])


def of_parameter(loss: Loss, parameter: np.ndarray) -> np.ndarray:
    """Return the same for every element of a parameter. The array is changed while this runs, and restored."""

    def moved(element: int, h: float) -> float:
        before = parameter.flat[element]
        parameter.flat[element] = before + h
        try:
            return loss()
        finally:
            parameter.flat[element] = before

    return np.array([difference(moved, element) for element in range(parameter.size)])


def difference(moved: Callable[[int, float], float], element: int) -> float:
    """Return a finite difference of the loss, with an error of order H^4. moved: the loss with an element moved by h."""
    near = moved(element, H) - moved(element, -H)
    far = moved(element, 2 * H) - moved(element, -2 * H)
    return (8 * near - far) / (12 * H)


def differences(
    trace: Trace, pairs: Mapping[int, int], loss: Loss, parameters: Sequence[np.ndarray], leaves: Sequence[int]
) -> dict[int, np.ndarray]:
    """Return a difference for every element of every gradient of the trace, flat, by the gradient's array.

    loss: runs forward once more, from the parameters as they are then, and returns its loss.
    parameters, leaves: the parameters, and the array of each one's gradient.
    """
    found = {array: of_parameter(loss, p) for p, array in zip(parameters, leaves, strict=True)}
    for array, place in places(trace, pairs).items():
        if array not in found:
            found[array] = at_place(loss, place, trace.arrays[array].size)
    return found
