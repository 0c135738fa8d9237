"""The float64 twin of a layer in low precision: its true results, and samples with random rounding."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tensorlite.arrays import to_numpy
from tensorlite.testing.layer import Layer
from tensorlite.testing.random_rounding import FORMATS, Format, Rounding
from tensorlite.testing.returned import read_gradients
from tensorlite.testing.trees import copy_tree, flatten, is_array, is_float_array, map_arrays

Pair = tuple[Callable, Callable]
Arrays = dict[str, np.ndarray]  # by path

MOST_DERIVATIVES = 2**24


@dataclass(frozen=True)
class Differences:
    """A formula for the derivative: the sum of weight_k f(x + k step) / step, to sixth order."""

    step: float
    weights: dict[int, float]


# Their errors are about 1e-13 and 1e-11 of the largest value. They disagree where a kink is at x or close by.
CENTRAL = Differences(1e-3, {-3: -1 / 60, -2: 9 / 60, -1: -45 / 60, 1: 45 / 60, 2: -9 / 60, 3: 1 / 60})
ONE_SIDED = Differences(1.25e-4, {0: -49 / 20, 1: 6.0, 2: -15 / 2, 3: 20 / 3, 4: -15 / 4, 5: 6 / 5, 6: -1 / 6})


@dataclass
class Results:
    """What a layer or its twin returned, as float64 values."""

    y: Arrays
    gradients: list[Arrays]  # one per dy


@dataclass
class Twin:
    """The twin, and the inputs and dy in float64 at which it runs."""

    layer: Layer
    dys: list[Any]
    format: Format  # that the layer computes in: the coarsest among the inputs
    derivative: "Derivative | None"  # where the twin is a forward alone

    @staticmethod
    def of(twin: Pair | Callable, layer: Layer, dys: list[Any]) -> "Twin":
        """Return the twin of a layer at its inputs, for several dy."""
        derivative = Derivative(twin) if callable(twin) else None
        forward, backward = (derivative.forward, derivative.backward) if derivative else twin  # type: ignore[misc]
        inputs = map_arrays(float64_of, layer.inputs)
        formats = [FORMATS[a.dtype.name] for a in layer.leaves.values() if is_float_array(a) and a.dtype.name in FORMATS]
        return Twin(
            layer=Layer(forward, backward, inputs, layer.wrt),
            dys=[map_arrays(float64_of, dy) for dy in dys],
            format=max(formats, key=lambda f: f.eps),
            derivative=derivative,
        )

    def exact(self) -> Results:
        """Return the results in float64."""
        return self.run()

    def uncertainty(self) -> list[Arrays] | None:
        """Return how far two kinds of differences disagree on the gradients, per dy; None where these are no differences."""
        if self.derivative is None:
            return None
        central = self.run().gradients
        self.derivative.differences = ONE_SIDED
        one_sided = self.run().gradients
        self.derivative.differences = CENTRAL
        return [{path: np.abs(a[path] - b[path]) for path in a} for a, b in zip(central, one_sided, strict=True)]

    def sample(self, seed: int) -> tuple[Results, bool]:
        """Return the results with random rounding, and whether operations of the twin were seen to round."""
        if self.derivative is None:
            rounding = Rounding(self.format, seed)
            results = self.run(rounding.of)
            if rounding.operations:
                return results, True

        def rounded(a: Any) -> Any:
            return self.format.rounded(a, seed) if is_array(a) and a.dtype == np.float64 else a

        return self.run(rounded, None if self.derivative else rounded), False

    def run(self, of_given: Callable | None = None, of_saved: Callable | None = None) -> Results:
        """Run the twin with a function applied to each array it is given, and another to each that it saves."""
        given = of_given or (lambda a: a)
        y, cache = self.layer.call_forward(map_arrays(given, copy_tree(self.layer.inputs)))
        if of_saved is not None:
            cache = map_arrays(of_saved, cache)
        results = Results(plain(flatten(y)), [])
        for dy in self.dys:
            gradients = read_gradients(self.layer.call_backward(map_arrays(given, copy_tree(dy)), cache), self.layer)
            if gradients.misfits:
                raise ValueError(f"twin: {'; '.join(gradients.misfits)}")
            results.gradients.append(plain(gradients.by_path))
        return results


@dataclass
class Derivative:
    """The pair of a forward and its derivative by differences, in the place of a backward."""

    function: Callable
    differences: Differences = CENTRAL

    def forward(self, **inputs: Any) -> tuple[Any, "Jacobian"]:
        """Return y and, as the cache, the derivatives of all its entries, which backward computes when it first needs them."""
        y, _ = Layer(self.function, self.backward, {}).call_forward(inputs)
        return y, Jacobian(self.function, inputs, self.differences)

    @staticmethod
    def backward(dy: Any, cache: "Jacobian") -> dict[str, Any]:
        """Return the gradients as a dict by the names of the inputs."""
        flat = np.concatenate([np.ravel(leaf) for leaf in flatten(dy).values()])
        return cache.gradients(flat)


@dataclass
class Jacobian:
    """The derivatives of all entries of y by all entries of each float input, at one point."""

    function: Callable
    inputs: dict[str, Any]
    differences: Differences
    columns: Arrays = field(default_factory=dict)  # by path: (entries of the input, entries of y)

    def gradients(self, dy: np.ndarray) -> dict[str, Any]:
        """Return sum(dy * dy/dx) for each float array x among the inputs."""
        layer = Layer(self.function, Derivative.backward, self.inputs)
        by_path = {}
        for path, x in layer.leaves.items():
            if is_float_array(x):
                if path not in self.columns:
                    self.columns[path] = self._by(layer, path, x, dy.size)
                by_path[path] = (self.columns[path] @ dy).reshape(x.shape)
        return by_path

    def _by(self, layer: Layer, path: str, x: np.ndarray, y_size: int) -> np.ndarray:
        if x.size * y_size > MOST_DERIVATIVES:
            text = f"{x.size} entries of {path} and {y_size} of y are too many to differentiate numerically"
            raise ValueError(f"{text}: give twin=(forward64, backward64), or a smaller example")
        columns = np.zeros((x.size, y_size))
        for i in range(x.size):
            for k, weight in self.differences.weights.items():
                columns[i] += weight * self._y(layer, path, x, i, k) / self.differences.step
        return columns

    def _y(self, layer: Layer, path: str, x: np.ndarray, i: int, steps: int) -> np.ndarray:
        moved = x.copy()
        moved.reshape(-1)[i] += steps * self.differences.step
        y, _ = layer.call_forward(copy_tree(layer.inputs_with({path: moved})))
        return np.concatenate([np.ravel(leaf) for leaf in flatten(y).values()])


def float64_of(a: Any) -> Any:
    """Return a float array as a float64 NumPy array, any other array as a NumPy array, and everything else as it is."""
    if not is_array(a):
        return a
    return to_numpy(a).astype(np.float64) if is_float_array(a) else to_numpy(a)


def plain(by_path: dict[str, Any]) -> Arrays:
    """Return the arrays as plain float64 NumPy arrays."""
    return {path: np.asarray(float64_of(a), np.float64) for path, a in by_path.items()}
