"""The gradient checker: does this backward belong to this forward?

It needs SciPy (`pip install "tensorlite[check]"`) and float64 inputs. The layer under test follows the convention
`forward(**inputs) -> y, cache` and `backward(dy, cache) -> gradients`; functions in the folder `adapters` turn layers of other
styles into such a pair. `layer.py` and `returned.py` read what the two functions return, the rules of the contract are in
`contract.py`, and the comparison with numerical derivatives is in `argument_check.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tensorlite.testing.argument_check import ArgumentCheck, Settings
from tensorlite.testing.contract import Trial, check_contract, comparable_gradients
from tensorlite.testing.layer import AS_ARRAY, PAIR, Layer, describe, random_like
from tensorlite.testing.poor_forward import blame_forward
from tensorlite.testing.report import FAIL, INCONCLUSIVE, PASS, Argument, GradcheckError, GradReport
from tensorlite.testing.trees import copy_leaf, copy_tree, flatten, is_float_array, map_arrays

__all__ = ["GradReport", "GradcheckError", "gradcheck"]


def gradcheck(
    forward: Callable[..., tuple[Any, Any]],
    backward: Callable[[Any, Any], Any],
    inputs: Mapping[str, Any],
    *,
    wrt: Sequence[str] | None = None,
    twin: tuple[Callable, Callable] | Callable | None = None,
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

    forward: `forward(**inputs) -> (y, cache)`, where y is a float array, a float (a loss), or a tuple, list or dict of them. The
      cache may be anything: None, arrays, an object.
    backward: `backward(dy, cache)` returns the gradients; dy has the structure and shapes of y. They may be a tuple or list in the
      order of the inputs (one gradient alone needs no tuple), or a dict by the names of the inputs. The gradient of an input that
      is a tree is a tree like it. Integers, strings and inputs that are None have no gradient: leave them out or return None.
    inputs: the arguments by name, float arrays in float64, NumPy or CuPy (only scalars leave the GPU), or trees of them: dicts,
      lists, tuples and NamedTuples, nested in any way. An array in a tree is reported by its path, `params["blocks"][0]["w"]`. Draw
      random values of size about 1, away from kinks: zeros and ones hide mistakes.
    wrt: names of the inputs whose gradients to check, or paths inside them; default: every float array. Any other input, such as a
      target or a mask, needs no gradient, and what backward returns for it is ignored.
    twin: for inputs in float32, float16 or bfloat16, which no difference can check: the same layer for float64 NumPy arrays, as a
      pair (forward, backward) or as a forward alone. The results are compared with its, within bounds that
      `tensorlite/testing/low_precision.py` derives. Of the options below only rng, max_report and raise_on_fail apply then.
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

    Returns the report. Raises ValueError, which says what to write instead, for a layer that cannot be checked: a forward that
    returns y alone, an unknown name, a float32 input, and so on.

    How it works. The contract comes first: two calls of a function return the same bits, and neither function writes into what it
    is given; gradients have the shape, dtype and library of their inputs, are zero for dy = 0 and linear in dy. Gradients are
    copied as they are returned, so a backward may reuse its memory, but not add to it from call to call. Because of linearity one
    random dy is enough: a backward that is linear in dy is a matrix, and a random dy meets every row of it. Then, for
    phi(t) = sum(dy * forward(x + t u)), phi'(0) must be the inner product of dx and u. An estimate too inaccurate to decide gives
    "inconclusive", never a pass, and so does a forward that rounds to float32 inside. A wrong argument is searched for its wrong
    entries.
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
    complete = getattr(forward, "with_parameters", dict)  # the forward of an object brings the object's parameters
    layer = Layer(forward, backward, copy_tree(complete(inputs)), wrt)  # the caller's arrays stay as they are
    if twin is not None:
        from tensorlite.testing.low_precision import check_twin  # loaded when there is a twin

        return _passed(check_twin(layer, twin, rng=rng, max_report=max_report), raise_on_fail)
    _require_float64(layer)
    random = np.random.default_rng(rng)
    y = _output(layer)
    dy = random_like(random, y)
    trial = Trial(layer, dy, other_dy=random_like(random, y), atol=atol)

    report = GradReport(contract_violations=check_contract(trial))
    gradients = comparable_gradients(trial)
    checks = [ArgumentCheck(layer, path, dy, gradients[path], settings, random) for path in layer.checked if path in gradients]
    report.arguments += [check.run() for check in checks]
    if gradients:
        report.arguments += [_not_checked(path) for path in trial.gradients.of_python_floats]
    if any(argument.status != PASS for argument in report.arguments):
        report.arguments = blame_forward(report.arguments, layer, dy, random)
    if report.status == FAIL:
        from tensorlite.testing.hints.report import add_hints  # loaded when there is something to explain

        add_hints(report, trial, checks, settings)
    return _passed(report, raise_on_fail)


def _not_checked(path: str) -> Argument:
    """Return the verdict on the gradient of a Python float."""
    return Argument(path, (), "", "not checked", tolerance=0.0, status=INCONCLUSIVE, note=AS_ARRAY)


def _passed(report: GradReport, raise_on_fail: bool) -> GradReport:
    if raise_on_fail and not report.ok:
        raise GradcheckError(report)
    return report


def _require_float64(layer: Layer) -> None:
    if not layer.checked:
        way_out = f". {AS_ARRAY}" if any(isinstance(leaf, float) for leaf in layer.leaves.values()) else ""
        raise ValueError(f"no input is a float array, so nothing would be checked: {list(layer.inputs)}{way_out}")
    for path in layer.checked:
        dtype = layer.leaves[path].dtype
        if dtype != np.float64:
            text = f"gradcheck proves gradients in float64; input {path!r} is {dtype}. Convert it, name the others in wrt=[...], or"
            text += " check the layer in this precision against its float64 version with twin=(forward64, backward64)"
            raise ValueError(text)


def _output(layer: Layer) -> Any:
    """Return y of a forward call on copies of the inputs."""
    y, _ = layer.call_forward(copy_tree(layer.inputs))
    leaves = flatten(y).values()
    if not leaves or not all(is_float_array(a) or isinstance(a, float) for a in leaves):
        raise ValueError(
            f"y must be a float array, a float (a loss), or several, and forward returned {describe(y)} for it. {PAIR}; "
            "what has no gradient, such as an array of integers, belongs in the cache"
        )
    return map_arrays(copy_leaf, y)
