"""Random rounding: float64 code run as if its intermediate arrays were rounded to a low precision.

`Format.rounded(a, seed)` moves each value by up to half a unit in the last place (ulp) that it has in the format. The move is a
random function of the value and the seed. So equal values move equally, as in true rounding, and the errors of a hundred equal rows
do not average out. A `Rounded` array does this to the result of every operation: running a layer on such arrays with several seeds
samples the errors that a right implementation in the format has. Source: Parker 1997, Monte Carlo arithmetic.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite.testing.trees import as_tuple, map_arrays

EXACT = {"negative", "positive", "absolute", "fabs", "conjugate", "sign", "maximum", "minimum", "fmax", "fmin", "copysign"}
SUMS = {"dot", "vdot", "inner", "tensordot", "einsum"}  # the functions of NumPy that add and are no ufuncs


@dataclass(frozen=True)
class Format:
    """A floating-point format, and how long a sum may be that is added in it."""

    name: str
    eps: float  # the distance from 1 to the next value
    smallest: float  # the smallest positive value
    added_terms: float  # sums of up to this many terms may be added in the format, longer ones need a higher precision

    def ulp(self, a: np.ndarray) -> np.ndarray:
        """Return the distance between neighbouring values of the format at the values of a; 0 at 0, which it holds exactly."""
        _, exponent = np.frexp(a)
        return np.where(a == 0, 0.0, np.maximum(np.ldexp(self.eps, exponent - 1), self.smallest))

    def rounded(self, a: np.ndarray, seed: int, size: np.ndarray | None = None) -> np.ndarray:
        """Return a, each value moved by at most half an ulp of it, or of `size`."""
        return a + _uniform(a, seed) * self.ulp(a if size is None else size)

    def holds(self, a: np.ndarray) -> bool:
        """Whether all values of a are values of the format."""
        return bool((np.remainder(a, np.maximum(self.ulp(a), self.smallest)) == 0).all())


FORMATS = {
    f.name: f
    for f in (
        Format("float32", 2.0**-23, 2.0**-149, np.inf),
        Format("float16", 2.0**-10, 2.0**-24, 64),
        Format("bfloat16", 2.0**-7, 2.0**-133, 64),
    )
}


def _uniform(a: np.ndarray, seed: int) -> np.ndarray:
    """Return a value in [-1/2, 1/2) that is a random function of each float64 value and the seed (the mixer of SplitMix64)."""
    bits = np.array(a, np.float64, order="C").view(np.uint64)
    with np.errstate(over="ignore"):
        z = (bits ^ np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53 - 0.5


@dataclass
class Rounding:
    """How the arrays of one run round, and how many operations have done so."""

    format: Format
    seed: int
    operations: int = 0

    def of(self, a: Any) -> Any:
        """Return a float64 array as one whose operations round; anything else as it is."""
        if not (isinstance(a, np.ndarray | np.generic) and a.dtype == np.float64):
            return a
        view = np.asarray(a).view(Rounded)
        view.rounding = self
        return view

    def result(self, a: Any, size: np.ndarray | None = None) -> Any:
        """Return the result of an operation: rounded, if it is an array of float64."""
        if not (isinstance(a, np.ndarray | np.generic) and a.dtype == np.float64):
            return a
        self.operations += 1
        return self.of(self.format.rounded(np.asarray(a), self.seed, size))

    def operand(self, a: Any) -> Any:
        """Return an operand as a plain array. A constant that the format cannot hold is rounded, as it is in low precision."""
        if isinstance(a, Rounded):
            return a.view(np.ndarray)
        if isinstance(a, float) or (isinstance(a, np.ndarray | np.generic) and a.dtype == np.float64):
            a = np.asarray(a)
            return a if self.format.holds(a) else self.format.rounded(a, self.seed)
        return a

    def size_of_sum(self, add: Callable[[Callable], Any], total: np.ndarray) -> np.ndarray:
        """Return the size of value whose rounding has the error of a sum.

        add(f): the sum with f applied to its operands.

        The partial sums of n random terms of root mean square s have sizes up to s sqrt(n). The n roundings of such values add up,
        as random values do, to about sqrt(n) / 2 roundings of the largest. Equal signs give the same with the total in its place.
        """
        terms = add(np.ones_like)
        partial = np.maximum(np.abs(total), np.sqrt(add(np.square)))
        grown = partial * np.maximum(1.0, np.sqrt(terms) / 2)
        return np.where(terms <= self.format.added_terms, grown, np.abs(total))


class Rounded(np.ndarray):
    """A float64 array whose operations round their results at random."""

    rounding: Rounding

    def __array_finalize__(self, parent: Any) -> None:
        if isinstance(parent, Rounded):
            self.rounding = parent.rounding

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        """Apply a ufunc to plain arrays and round its result."""
        rounding = next(a for a in (*inputs, *(out or ())) if isinstance(a, Rounded)).rounding
        if method == "at":  # the target is written, so it must stay itself
            target, indices, *values = inputs
            return ufunc.at(np.asarray(target), indices, *map(rounding.operand, values))
        plain = [rounding.operand(a) for a in inputs]
        options = {name: np.asarray(a) if isinstance(a, Rounded) else a for name, a in options.items()}

        def call(*arrays: Any) -> Any:
            return getattr(ufunc, method)(*arrays, **options)

        with np.errstate(all="ignore"):
            results = call(*plain)
            if ufunc.__name__ in EXACT:
                return _into(out, tuple(map(rounding.of, as_tuple(results))))
            size = None
            if ufunc is np.matmul or (ufunc is np.add and method in ("reduce", "accumulate")):
                arrays = plain[: ufunc.nin if method == "__call__" else 1]
                rest = plain[len(arrays) :]
                size = rounding.size_of_sum(lambda f: call(*map(f, arrays), *rest), results)
            return _into(out, tuple(rounding.result(a, size) for a in as_tuple(results)))

    def __array_function__(self, function: Callable, types: Any, args: Any, options: Any) -> Any:
        """Round the functions of NumPy that add and are no ufuncs. The others keep values, or are made of ufuncs."""
        if function.__name__ not in SUMS:
            result = super().__array_function__(function, types, args, options)
            return map_arrays(self.rounding.of, result) if isinstance(result, np.ndarray | list | tuple) else result
        options = {name: a for name, a in options.items() if name not in ("out", "optimize")}

        def call(f: Callable) -> Any:
            return function(*(f(a) if isinstance(a, np.ndarray) else a for a in args), **options)

        plain = call(np.asarray)
        with np.errstate(all="ignore"):
            size = self.rounding.size_of_sum(lambda f: call(lambda a: f(np.asarray(a))), plain)
            return self.rounding.result(plain, size)

    def dot(self, other: Any, out: Any = None) -> Any:
        """Call np.dot, because the method of arrays does not ask __array_function__."""
        return np.dot(self, other) if out is None else _into((out,), (np.dot(self, other),))


def _into(out: tuple | None, results: tuple) -> Any:
    """Return the results, written into the arrays of `out` where these are given."""
    for target, result in zip(out or (), results, strict=False):
        if target is not None:
            np.asarray(target)[...] = np.asarray(result)
    chosen = tuple(
        result if target is None else target for target, result in zip(out or (None,) * len(results), results, strict=True)
    )
    return chosen if len(chosen) > 1 else chosen[0]
