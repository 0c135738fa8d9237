"""The gradient checker: does this backward belong to this forward?

It needs SciPy (`pip install "tensorlite[check]"`) and float64 inputs. The layer under test only has to follow the convention
`forward(**inputs) -> y, cache` and `backward(dy, cache) -> gradients in the order of the inputs`. The rules of that contract are
in `contract.py`, the comparison with numerical derivatives is in `argument_check.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.testing.argument_check import ArgumentCheck, Settings
from tensorlite.testing.contract import Trial, check_contract, comparable_gradients
from tensorlite.testing.layer import Layer, copy_arrays, is_float_array
from tensorlite.testing.report import GradcheckError, GradReport
from tensorlite.testing.trees import as_tuple, map_arrays

__all__ = ["GradReport", "GradcheckError", "gradcheck"]


def gradcheck(
    forward: Callable[..., tuple[Any, Any]],
    backward: Callable[[Any, Any], Any],
    inputs: Mapping[str, Any],
    *,
    wrt: Sequence[str] | None = None,
    method: str = "auto",
    directions: int = 3,
    elementwise: int = 256,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    step: float = 0.05,
    order: int = 6,
    rng: int = 0,
    max_report: int = 5,
    raise_on_fail: bool = True,
) -> GradReport:
    """Check backward against numerical derivatives of forward, one argument at a time, and the contract between the two.

    forward: `forward(**inputs) -> (y, cache)`, where y is a float array or a tuple of them.
    backward: `backward(dy, cache)` returns one gradient per float array in `inputs`, in order. An input that is None may have a
      gradient, which is None. Integers, strings and other options have none.
    inputs: the arguments by name, float arrays in float64, NumPy or CuPy (only scalars leave the GPU). Draw random values of size
      about 1, away from kinks: zeros and ones hide mistakes.
    wrt: names of the arguments to check numerically; default: all float arrays.
    method: "fd" (finite differences), "complex" (complex step, for analytic code) or "auto" (differences, and the complex step
      where they are inconclusive).
    directions: number of random directions for an argument of more than `elementwise` entries.
    elementwise: an argument of at most this many entries is checked entry by entry.
    rtol, atol: a derivative along a unit direction may be off by atol + rtol * s, where s is the root mean square of the argument's
      gradient. Checked entry by entry, this bounds each entry. With random directions over n entries it bounds a random
      combination, so one entry may be off by about sqrt(n) times the tolerance. Anything smaller than atol counts as zero: scale
      the inputs so that gradients are of size about 1.
    step: first step size of the differences.
    order: order of accuracy of the differences.
    rng: seed of dy and of the directions.
    max_report: number of wrong entries to name per argument.
    raise_on_fail: raise GradcheckError unless the report is ok. If False, look at `.ok` and `print(report)`.

    Returns the report. Raises ValueError for arguments that cannot be checked: an unknown name, a float32 input, and so on.

    How it works. The contract comes first: both functions are repeatable and write into none of their arguments; gradients have
    the shape, dtype and library of their inputs, are zero for dy = 0 and linear in dy. Because of linearity one random dy is
    enough: a backward that is linear in dy is a matrix, and a random dy meets every row of it. Then, for
    phi(t) = sum(dy * forward(x + t u)), phi'(0) must be the inner product of dx and u. An estimate too inaccurate to decide
    gives "inconclusive", never a pass. A wrong argument is searched for its wrong entries.
    """
    settings = Settings(
        method=method,
        directions=directions,
        elementwise=elementwise,
        rtol=rtol,
        atol=atol,
        step=step,
        order=order,
        max_report=max_report,
    )
    layer = Layer(forward, backward, copy_arrays(inputs))  # the caller's arrays stay as they are
    _require_float64(layer)
    chosen = _names_to_check(layer, wrt)
    random = np.random.default_rng(rng)
    y = _output(layer)
    dy = _random_like(random, y)
    trial = Trial(layer, dy, other_dy=_random_like(random, y), atol=atol)

    report = GradReport(contract_violations=check_contract(trial))
    gradients = comparable_gradients(trial)
    for name in chosen:
        if name in gradients:
            check = ArgumentCheck(layer, name, dy, gradients[name], settings, random)
            report.arguments.append(check.run())
    if raise_on_fail and not report.ok:
        raise GradcheckError(report)
    return report


def _require_float64(layer: Layer) -> None:
    names = layer.differentiable
    if not names:
        raise ValueError(f"no input is a float array, so nothing would be checked: {list(layer.inputs)}")
    for name in names:
        dtype = layer.inputs[name].dtype
        if dtype != np.float64:
            raise ValueError(f"gradcheck proves gradients in float64; input {name!r} is {dtype}")


def _names_to_check(layer: Layer, wrt: Sequence[str] | None) -> Sequence[str]:
    """Return the names in `wrt`, or all differentiable inputs."""
    names = layer.differentiable
    if wrt is None:
        return names
    if isinstance(wrt, str):
        raise ValueError(f"wrt is a list of names: [{wrt!r}]")
    if not wrt:
        raise ValueError("wrt names no argument, so nothing would be checked")
    for name in wrt:
        if name not in names:
            raise ValueError(f"wrt names {name!r}, which is no float array among the inputs {names}")
    return wrt


def _output(layer: Layer) -> Any:
    """Return y of a forward call on copies of the inputs."""
    y, _ = layer.forward(**copy_arrays(layer.inputs))
    for a in as_tuple(y):
        if not is_float_array(a):
            raise ValueError(f"forward must return a float array (of no axes for a loss) or several, got {type(a).__name__}")
    return y


def _random_like(random: np.random.Generator, y: Any) -> Any:
    """Return normal values in the shape and library of y."""

    def normal(a: Array) -> Array:
        return array_namespace(a).asarray(random.standard_normal(a.shape))

    return map_arrays(normal, y)
