"""The gradient checker: does this backward belong to this forward?

It needs SciPy (`pip install "tensorlite[check]"`) and float64 inputs. All it assumes of the layer under test is the convention
`forward(**inputs) -> y, cache` and `backward(dy, cache) -> gradients in the order of the inputs`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tensorlite.arrays import Array, array_namespace, to_numpy
from tensorlite.testing.numerical import Derivative, complex_step, finite_difference
from tensorlite.testing.report import FAIL, INCONCLUSIVE, PASS, Argument, Entry, GradcheckError, GradReport
from tensorlite.testing.trees import as_tuple, leaves, map_arrays, map_pairs

__all__ = ["GradReport", "GradcheckError", "gradcheck"]

CONFIRM_SHRINK = 37.0  # how much shorter the first step of a confirmation is
KINKS = 64  # entries of a large argument looked at before a search that finds only kinks gives up
LINEARITY = 1e-10  # how exactly backward must be linear in dy, relative to its size
ROUNDING = 1e-14  # and beside that, where terms of size 1 nearly cancel: this, or 1e-3 atol


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
    """Compare backward with numerical derivatives of forward, one argument at a time, and check the contract between the two.

    forward: `forward(**inputs) -> (y, cache)`; y is one float array or a tuple of them.
    backward: `backward(dy, cache)` returns one gradient per float-array input, in the order of `inputs`; an input that is
      None may take part with a gradient that is None. Integers, strings and other options have no gradient.
    inputs: the arguments by name; float arrays in float64, NumPy or CuPy (only scalars leave the GPU). Draw them at random and
      of size about 1, away from kinks: zeros and ones hide mistakes.
    wrt: names to check numerically; all float arrays otherwise.
    method: "fd" (differences), "complex" (complex step, for analytic code), "auto" (differences, and the complex step where
      they are inconclusive).
    directions: random directions tried for an argument of more than `elementwise` entries; a smaller one is checked entry by
      entry.
    rtol, atol: a derivative along a unit direction may differ by atol + rtol * s, with s the root mean square of that
      argument's gradient. Checked entry by entry that bounds each entry; over n entries at once it bounds a random combination,
      so that a single one may differ by some sqrt(n) times as much. What is smaller than atol counts as zero: scale inputs so
      that gradients are of size about 1.
    step, order: first step and order of the differences.
    rng: seed of dy and of the directions.
    max_report: how many wrong entries to name for each argument.
    raise_on_fail: raise GradcheckError unless all is well; otherwise look at `.ok` and `print(report)`.

    How. The contract first: repeatable, nothing written into, gradients of the shape, dtype and library of their inputs,
    zero for dy = 0, linear in dy. Linearity is what makes one random dy enough: a backward that is linear in dy is a matrix,
    and a random dy meets every row of it. Then, for phi(t) = sum(dy * forward(x + t u)), phi'(0) must be the inner product of
    dx and u. An estimate too poor to decide is "inconclusive", never a pass. A wrong argument is searched for the entries that
    are wrong.
    """
    if method not in ("auto", "fd", "complex"):
        raise ValueError(f"method must be auto, fd or complex, not {method!r}")
    if directions < 1 or order < 2:
        raise ValueError(f"directions must be at least 1 and order at least 2, not {directions} and {order}")
    if isinstance(wrt, str):
        raise ValueError(f"wrt is a list of names: [{wrt!r}]")
    inputs = {name: a.copy() if _is_array(a) else a for name, a in inputs.items()}  # the caller's own arrays stay untouched
    names = [name for name, a in inputs.items() if _is_float_array(a)]
    if not names:
        raise ValueError(f"no input is a float array, so nothing would be checked: {list(inputs)}")
    for name in names:
        if inputs[name].dtype != np.float64:
            raise ValueError(f"gradcheck proves gradients in float64; input {name!r} is {inputs[name].dtype}")
    if wrt is not None and not wrt:
        raise ValueError("wrt names no argument, so nothing would be checked")
    for name in wrt or ():
        if name not in names:
            raise ValueError(f"wrt names {name!r}, which is no float array among the inputs {names}")

    random = np.random.default_rng(rng)
    y, _ = forward(**{name: a.copy() if _is_array(a) else a for name, a in inputs.items()})
    bad_types = [type(a).__name__ for a in as_tuple(y) if not _is_float_array(a)]
    if bad_types:
        raise ValueError(f"forward must return a float array (of no axes for a loss) or several, got {bad_types[0]}")
    dy = map_arrays(lambda a: _normal(random, a), y)
    report = GradReport()
    grads = _contract(report, forward, backward, inputs, names, dy, random, atol)
    for name in names if wrt is None else wrt:
        if name in grads:
            check = _ArgumentCheck(forward, inputs, name, dy, grads[name], method, step, order, rtol, atol, random)
            report.arguments.append(check.run(directions, elementwise, max_report))
    if raise_on_fail and not report.ok:
        raise GradcheckError(report)
    return report


def _contract(
    report: GradReport,
    forward: Callable,
    backward: Callable,
    inputs: dict[str, Any],
    names: list[str],
    dy: Any,
    random: np.random.Generator,
    atol: float,
) -> dict[str, Array]:
    """Check the rules that hold for every layer; return the gradients by name (those that can be compared at all)."""
    violations = report.contract_violations
    before = {name: a.copy() for name, a in inputs.items() if _is_array(a)}
    dy_before = map_arrays(lambda a: a + 0.0, dy)
    y, cache = forward(**inputs)
    y_again, _ = forward(**inputs)
    if not _same_values(y, y_again):
        violations.append("forward is not repeatable: two calls differ")
    if not all(_same_values(inputs[name], a) for name, a in before.items()):
        violations.append("forward writes into its inputs")
        inputs |= {name: a.copy() for name, a in before.items()}
        y, cache = forward(**inputs)
        inputs |= {name: a.copy() for name, a in before.items()}
    cached = leaves(cache)
    cache_before = [a.copy() for a in cached]

    returned = as_tuple(backward(dy, cache))
    bad_types = [type(g).__name__ for g in returned if not (g is None or _is_float_array(g))]
    if bad_types:
        violations.append(f"backward returns a {bad_types[0]} where a float array or None belongs")
        return {}
    if not all(_same_values(a, b) for a, b in zip(cached, cache_before, strict=True)):
        violations.append("backward writes into its cache")
    if not _same_values(dy, dy_before):
        violations.append("backward writes into dy")
    if not all(_same_values(inputs[name], a) for name, a in before.items()):
        violations.append("backward writes into the inputs")
        inputs |= {name: a.copy() for name, a in before.items()}
    if not _same_values(returned, as_tuple(backward(dy, cache))):
        violations.append("backward is not repeatable: two calls on one cache differ")

    order = [name for name, a in inputs.items() if a is None or name in names]
    if len(returned) != len(order):  # an absent input, a dropout key say, need not have a gradient
        order = names
    while len(returned) > len(order) and returned[-1] is None:
        returned = returned[:-1]
    if len(returned) != len(order):
        violations.append(f"backward returns {len(returned)} gradients for the {len(order)} inputs {order}")
        return {}
    grads = {}
    for name, g in zip(order, returned, strict=True):
        x = inputs[name]
        if (x is None) != (g is None):
            violations.append(f"d{name} is {g if g is None else 'an array'} for an input that is {x if x is None else 'an array'}")
        elif x is None:
            continue
        elif array_namespace(g) is not array_namespace(x):
            violations.append(f"d{name} is a {type(g).__name__}, {name} a {type(x).__name__}")
        elif (g.shape, g.dtype) != (x.shape, x.dtype):
            violations.append(f"d{name} is {g.shape} {g.dtype}, {name} is {x.shape} {x.dtype}")
        else:
            grads[name] = g

    zero = as_tuple(backward(map_arrays(lambda a: a * 0.0, dy), cache))[: len(returned)]
    if any(g is not None and bool((g != 0).any()) for g in zero):
        violations.append("backward of dy = 0 is not exactly 0")
    other = map_arrays(lambda a: _normal(random, a), dy)
    mixed = as_tuple(backward(map_pairs(lambda a, b: 2.0 * a - 3.0 * b, dy, other), cache))[: len(returned)]
    for i, (ga, gb, gm) in enumerate(zip(returned, as_tuple(backward(other, cache))[: len(returned)], mixed, strict=True)):
        if ga is None:
            continue
        size = float(abs(ga).max() + abs(gb).max()) if ga.size else 0.0
        if ga.size and not float(abs(gm - (2.0 * ga - 3.0 * gb)).max()) <= LINEARITY * size + max(ROUNDING, 1e-3 * atol):
            violations.append(f"backward is not linear in dy: d{order[i]}(2a - 3b) != 2 d{order[i]}(a) - 3 d{order[i]}(b)")
    return grads


class _ArgumentCheck:
    """The numerical part for one argument: everything else is held fixed."""

    def __init__(
        self,
        forward: Callable,
        inputs: dict[str, Any],
        name: str,
        dy: Any,
        grad: Array,
        method: str,
        step: float,
        order: int,
        rtol: float,
        atol: float,
        random: np.random.Generator,
    ) -> None:
        self.forward, self.inputs, self.name, self.dy, self.method = forward, inputs, name, dy, method
        self.step, self.order, self.random = step, order, random
        self.x, self.grad = inputs[name], grad
        self.xp = array_namespace(self.x)
        scale = math.sqrt(float((grad * grad).sum()) / max(1, grad.size))
        self.scale, self.tolerance = scale, atol + rtol * scale
        self.used = "complex" if method == "complex" else "fd"

    def run(self, directions: int, elementwise: int, max_report: int) -> Argument:
        n = self.x.size
        small = n <= elementwise
        result = Argument(
            self.name, self.x.shape, self.used, "every entry" if small else f"{directions} directions", self.tolerance
        )
        if not bool(self.xp.isfinite(self.grad).all()):
            result.status, result.note, result.worst = FAIL, "backward returned nan or inf", math.inf
            return result
        if self.method == "complex" and n and not self.analytic_code(np.arange(n)):
            result.status, result.worst = INCONCLUSIVE, math.inf
            result.note = "the complex step disagrees with differences: is forward analytic code (no abs, conj, real)?"
            return result
        probes = [np.array([i]) for i in range(n)] if small else [np.arange(n)] * directions
        comparisons = [self.compare(index) for index in probes]
        result.worst = max((c.error_in_tolerances for c in comparisons), default=0.0)
        statuses = [c.status for c in comparisons]
        if FAIL in statuses:
            result.status = FAIL
            limit = max(max_report, KINKS)
            wrong = (
                [p[0] for p, c in zip(probes, comparisons, strict=True) if c.status == FAIL]
                if small
                else self.locate(np.arange(n), limit)
            )
            result.bad, result.more = len(wrong), not small and len(wrong) >= limit
            entries = []
            for i in sorted(wrong, key=lambda i: -self.compare(np.array([i])).error_in_tolerances):
                entries.append(self.entry(int(i)))
                if sum(e.left is None for e in entries) == max_report:  # enough mistakes to show; kinks do not count
                    break
            entries.sort(key=lambda e: (e.left is not None, -abs(e.analytical - e.numerical)))  # mistakes before kinks
            result.entries = entries[:max_report]
            if entries and all(e.left is not None for e in entries):
                result.status = INCONCLUSIVE
        elif INCONCLUSIVE in statuses:
            result.status, result.note = INCONCLUSIVE, "the numerical derivative is too poor to decide; try another step or method"
        result.method = self.used
        return result

    def compare(self, index: np.ndarray) -> "_Comparison":
        """Compare the numerical derivative with backward's, along a random unit direction on the entries `index` (+1 on one entry).

        An error estimate is no bound: a kink inside the step can fool it. So a disagreement counts only when differences with a
        much shorter step confirm it.
        """
        direction = self.direction(index)
        analytical = float((self.grad * direction).sum())
        estimate = self.decide(self.numerical(direction), analytical)
        if estimate.status != FAIL or self.method == "complex":
            return estimate
        confirmation = self.decide(self.numerical(direction, step=self.step / CONFIRM_SHRINK), analytical)
        if confirmation.status != FAIL:
            return confirmation
        agree = abs(estimate.numerical.value - confirmation.numerical.value) <= 0.1 * abs(confirmation.numerical.value - analytical)
        return confirmation if agree else confirmation._replace(status=INCONCLUSIVE)

    def direction(self, index: np.ndarray) -> Array:
        """A random unit vector on the entries `index`; +1 on a single one."""
        u = np.zeros(self.x.size)
        weights = self.random.standard_normal(len(index)) if len(index) > 1 else np.ones(1)
        u[index] = weights / np.linalg.norm(weights)
        return self.xp.asarray(u.reshape(self.x.shape))

    def analytic_code(self, index: np.ndarray) -> bool:
        """Whether the complex step agrees, loosely, with differences: code that drops the imaginary part does not."""
        direction = self.direction(index)
        exact = complex_step(lambda t: self.phi(direction, t)).value
        rough = finite_difference(lambda t: self.phi(direction, t).real, self.step, self.order, self.tolerance)
        return abs(exact - rough.value) <= 1e-4 * max(self.scale, abs(exact), abs(rough.value)) + 10 * rough.error

    def numerical(self, direction: Array, side: int = 0, step: float | None = None) -> Derivative:
        if self.method == "complex" and side == 0:
            return complex_step(lambda t: self.phi(direction, t))
        tolerance = self.tolerance / 10
        result = finite_difference(lambda t: self.phi(direction, t).real, step or self.step, self.order, tolerance, side)
        if self.method == "auto" and side == 0 and not result.error <= self.tolerance:
            try:
                exact = complex_step(lambda t: self.phi(direction, t))
            except Exception:  # code that does not take complex numbers may say so in any way
                return result
            decisive = 100 * result.error <= max(self.scale, abs(exact.value))  # good enough to tell a dropped imaginary part
            if decisive and abs(exact.value - result.value) <= 10 * result.error:
                self.used = "fd, complex"
                return exact
        return result

    def phi(self, direction: Array, t: complex) -> complex:
        """sum(dy * forward(x + t u)): one number, the only thing to leave the device."""
        moved = dict(self.inputs)
        moved[self.name] = self.x + t * direction
        y, _ = self.forward(**moved)
        pairs = zip(as_tuple(self.dy), as_tuple(y), strict=True)
        return complex(sum(_scalar((dy * yi).sum()) for dy, yi in pairs))

    def decide(self, numerical: Derivative, analytical: float) -> "_Comparison":
        """Pass, fail or inconclusive, for one estimate taken at its word."""
        difference = abs(numerical.value - analytical)
        error_in_tolerances = difference / self.tolerance
        if not math.isfinite(difference):
            return _Comparison(INCONCLUSIVE, math.inf, numerical, analytical)
        if numerical.error > self.tolerance:  # a poor estimate may still prove a failure, beyond ten times its error
            wrong = difference > 10 * numerical.error + self.tolerance
            return _Comparison(FAIL if wrong else INCONCLUSIVE, error_in_tolerances, numerical, analytical)
        return _Comparison(PASS if difference <= self.tolerance else FAIL, error_in_tolerances, numerical, analytical)

    def locate(self, index: np.ndarray, limit: int) -> list[int]:
        """Find up to `limit` wrong entries by halving: a half whose random combinations all agree is let go."""
        if all(self.compare(index).status != FAIL for _ in range(2 if len(index) > 1 else 1)):
            return []
        if len(index) == 1:
            return [int(index[0])]
        found: list[int] = []
        for half in (index[: len(index) // 2], index[len(index) // 2 :]):
            if len(found) < limit:
                found += self.locate(half, limit - len(found))
        return found

    def entry(self, i: int) -> Entry:
        """All there is to say of one wrong entry, with a look at both sides for a kink."""
        index = tuple(int(k) for k in np.unravel_index(i, self.x.shape))
        comparison = self.compare(np.array([i]))
        direction = self.xp.zeros_like(self.x)
        direction[index] = 1.0
        left, right = (self.numerical(direction, side) for side in (-1, 1))
        slack = max(left.error, right.error) * 10 + self.tolerance
        low, high = sorted((left.value, right.value))
        kink = high - low > max(slack, 1e-3 * max(abs(low), abs(high)))
        kink &= low - self.tolerance <= comparison.analytical <= high + self.tolerance  # outside of both it is wrong all the same
        sides = (left.value, right.value) if kink else (None, None)
        return Entry(index, comparison.analytical, comparison.numerical.value, comparison.numerical.error, *sides)


class _Comparison(NamedTuple):
    status: str
    error_in_tolerances: float  # the disagreement in units of the tolerance
    numerical: Derivative
    analytical: float


def _is_array(a: Any) -> bool:
    return hasattr(a, "dtype") and hasattr(a, "shape") and hasattr(a, "copy")


def _is_float_array(a: Any) -> bool:
    return _is_array(a) and a.dtype.kind in "fc"


def _normal(random: np.random.Generator, like: Array) -> Array:
    return array_namespace(like).asarray(random.standard_normal(like.shape))


def _scalar(a: Array) -> complex:
    return complex(to_numpy(a))


def _same_values(a: Any, b: Any) -> bool:
    pairs = zip(as_tuple(a), as_tuple(b), strict=False)
    return all((x is None) == (y is None) and (x is None or bool(((x == y) | ((x != x) & (y != y))).all())) for x, y in pairs)
