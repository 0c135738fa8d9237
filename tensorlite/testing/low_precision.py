"""A layer in float32, float16 or bfloat16 against a float64 twin, within bounds from random rounding.

Finite differences say nothing in these precisions: their error is that of rounding divided by the step. But the inputs of the layer
are exact values of float64 too, so a twin in float64 has the true result at the same point, and the error of every entry can be
measured. What is left to decide is how large an error rounding explains.

The derivation of the bounds:
  1. A right implementation computes what the twin computes, and rounds its intermediate arrays to the format. So run the twin on
     arrays that round at random after every operation (`random_rounding.py`), 16 times. The root mean square sigma_i of the changes
     of entry i of the result is the error to expect there. It includes how the layer amplifies errors (its condition), cancellation
     between intermediate values, and the length of sums. A sum may be added in the format itself if it has at most 64 terms, and in
     float32 always. A longer sum in float16 or bfloat16 needs a wider accumulator.
  2. An entry may be off by K sqrt(sigma_i^2 + mean of sigma^2). The mean is there because the same operations in another order
     distribute their errors over the entries in another way. In float16 and bfloat16 K is 8: with 16 samples an error of that
     distribution exceeds 8 sigma once in two million. In float32 K is 32, because an implementation may need several operations for
     one of the twin's, and a mistake of 1 % is still thousands of times larger.
  3. An error common to all entries has a tighter bound, because errors of rounding average out. The factor of the whole gradient,
     1 + c with c = <found - true, true> / <true, true> over several dy, may differ from 1 by K' times the root mean square of the c
     of the samples, plus eps/2 for one constant that is rounded. K' is 5, and 32 in float32. The eps/2 amounts to several of these
     root mean squares where there are many entries; where there are few, c has few roundings and no long tails.
A twin that does not compute with the arrays it is given (it converts them, or is no NumPy code) shows the effect of rounding its
inputs, dy and saved arrays only. The bounds are then 4 times wider, for the rounding inside.

What this finds: a gradient that is wrong by a factor of 1.01, in float32 and float16 at any size and in bfloat16, whose eps is
0.8 %, in most layers from about 64 entries on; single entries that are wrong by some eps times the largest entry.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tensorlite.testing.contract import RULES, Trial, backward_is_linear, check_contract, forward_is_float64
from tensorlite.testing.layer import Layer, random_like
from tensorlite.testing.random_rounding import FORMATS
from tensorlite.testing.report import FAIL, INCONCLUSIVE, PASS, Argument, Entry, GradReport
from tensorlite.testing.returned import read_gradients
from tensorlite.testing.trees import copy_tree, flatten, is_array, is_float_array, map_pairs
from tensorlite.testing.twin import Arrays, Pair, Results, Twin, plain

SAMPLES = 16  # runs of the twin with random rounding
COTANGENTS = 4  # random dy
ENTRY_SIGMAS = {"float32": 32.0, "float16": 8.0, "bfloat16": 8.0}
FACTOR_SIGMAS = {"float32": 32.0, "float16": 5.0, "bfloat16": 5.0}
UNSEEN = 4.0  # how much wider the bounds are for a twin that hides its intermediate values
LOW_RULES = tuple(rule for rule in RULES if rule not in (forward_is_float64, backward_is_linear))  # the twin shows nonlinearity too


def has_low_precision(layer: Layer) -> bool:
    """Whether an input is a float array of a precision below float64."""
    return any(is_float_array(leaf) and leaf.dtype.name in FORMATS for leaf in layer.leaves.values())


def check_twin(layer: Layer, twin: Pair | Callable, *, rng: int = 0, max_report: int = 5) -> GradReport:
    """Check a layer in low precision against its twin. `gradcheck(..., twin=...)` calls this.

    layer: with inputs in float32, float16 or bfloat16, NumPy or CuPy. Mixtures are judged by the coarsest.
    twin: (forward, backward) for float64 NumPy arrays, or a forward alone, whose derivative is then taken numerically.
    rng: seed of the dy.
    max_report: number of wrong entries to name per argument.

    y must agree with the twin's too, each gradient must have the dtype of its input, and the rules of the contract hold but for
    linearity in dy, which the twin shows.
    """
    if not has_low_precision(layer):
        raise ValueError("twin= is for inputs in float32, float16 or bfloat16, and none of the inputs is")
    random = np.random.default_rng(rng)
    y, _ = layer.call_forward(copy_tree(layer.inputs))
    dys = [map_pairs(_in_dtype_of, random_like(random, y), y) for _ in range(COTANGENTS)]
    found = Results(plain(flatten(y)), [])
    for dy in dys:
        _, cache = layer.call_forward(copy_tree(layer.inputs))
        gradients = read_gradients(layer.call_backward(copy_tree(dy), cache), layer)
        found.gradients.append(plain(gradients.by_path))

    trial = Trial(layer, dys[0], other_dy=dys[1], atol=0.0)
    report = GradReport(contract_violations=[*check_contract(trial, LOW_RULES), *_promotions(layer, y)])
    expected = Expected(Twin.of(twin, layer, dys))
    report.contract_violations += expected.violations(found.y)
    for path in layer.checked:
        if all(path in gradients for gradients in found.gradients):
            report.arguments.append(expected.verdict(layer, path, found, max_report))
    return report


# ---- what rounding explains ----


class Comparison(NamedTuple):
    """One result, for each dy, beside what the twin says of it."""

    found: np.ndarray  # (dys, *shape)
    true: np.ndarray
    error: np.ndarray
    bound: np.ndarray
    factor: float  # by how much of itself the whole result is too large
    factor_bound: float

    @property
    def worst(self) -> float:
        """Return the largest error in units of its bound."""
        ratios = np.where(self.error > 0, self.error / np.maximum(self.bound, np.finfo(float).tiny), 0.0)
        return max(float(ratios.max(initial=0.0)), abs(self.factor) / self.factor_bound)

    def in_eps(self, eps: float) -> str:
        """Return the worst error and its bound in units of eps times the largest entry."""
        if not self.error.size:
            return "no entries"
        at = np.unravel_index(np.argmax(self.error / np.maximum(self.bound, np.finfo(float).tiny)), self.error.shape)
        unit = eps * (float(np.abs(self.true).max()) or 1.0)
        return f"worst error {self.error[at] / unit:.2g} eps, bound {self.bound[at] / unit:.2g}"


class Expected:
    """The true results, and samples of them with random rounding."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        self.true = twin.exact()
        samples = [twin.sample(seed) for seed in range(SAMPLES)]
        self.samples = [results for results, _ in samples]
        seen = all(rounds for _, rounds in samples)
        wider = 1.0 if seen else UNSEEN
        self.entry_sigmas = ENTRY_SIGMAS[twin.format.name] * wider
        self.factor_sigmas = FACTOR_SIGMAS[twin.format.name] * wider
        self.uncertainty = twin.uncertainty()

    def compare(self, found: list[np.ndarray], true: list[np.ndarray], samples: list[list[np.ndarray]], dtype: Any) -> Comparison:
        """Compare the results for each dy with the twin's, with bounds for the format of dtype."""
        a, b = np.stack(found), np.stack(true)
        own = FORMATS.get(np.dtype(dtype).name)
        square = np.zeros_like(b)
        factors = []
        with np.errstate(all="ignore"):
            for seed, sample in enumerate(samples):
                change = np.nan_to_num((np.stack(sample) if own is None else own.rounded(np.stack(sample), ~seed)) - b)
                square += change * change / len(samples)
                factors.append(_factor(change, b))
            pooled = square.reshape(len(b), -1).mean(axis=1).reshape(-1, *[1] * (b.ndim - 1)) if b.size else square
            smallest = self.twin.format.smallest
            bound = self.entry_sigmas * np.sqrt(square + pooled) + smallest
            error = np.where(a == b, 0.0, np.abs(a - b))
        error = np.where(np.isnan(error), math.inf, error)
        usual = math.sqrt(float(np.square(factors).mean()))
        return Comparison(
            found=a,
            true=b,
            error=error,
            bound=bound,
            factor=_factor(a - b, b) if np.isfinite(error).all() else math.inf,
            factor_bound=self.factor_sigmas * usual + self.twin.format.eps / 2,
        )

    def violations(self, y: Arrays) -> list[str]:
        """Say which outputs differ from the twin's by more than rounding."""
        if y.keys() != self.true.y.keys() or any(y[path].shape != self.true.y[path].shape for path in y):
            shapes, twins = ({path: a.shape for path, a in arrays.items()} for arrays in (y, self.true.y))
            raise ValueError(f"forward returns {shapes} and its twin {twins}")
        violations = []
        for path, found in y.items():
            comparison = self.compare([found], [self.true.y[path]], [[s.y[path]] for s in self.samples], np.float64)
            if not comparison.worst <= 1.0:
                size = comparison.in_eps(self.twin.format.eps)
                violations.append(f"y{path} differs from its twin's: {size} of {self.twin.format.name}")
        return violations

    def verdict(self, layer: Layer, path: str, found: Results, max_report: int) -> Argument:
        """Compare the gradient of the input at `path` for all dy."""
        x = layer.leaves[path]
        true = [gradients[path] for gradients in self.true.gradients]
        samples = [[gradients[path] for gradients in sample.gradients] for sample in self.samples]
        c = self.compare([gradients[path] for gradients in found.gradients], true, samples, x.dtype)
        eps = FORMATS[x.dtype.name].eps if x.dtype.name in FORMATS else self.twin.format.eps
        status = PASS if c.worst <= 1.0 else FAIL
        note = f"{c.in_eps(eps)} of {x.dtype}"
        if abs(c.factor) > c.factor_bound:
            note += f"; the whole gradient is {1 + c.factor:.6g} times the twin's, and rounding explains {c.factor_bound:.1g}"
        if self.uncertainty is not None and c.error.size:
            uncertain = np.stack([gradients[path] for gradients in self.uncertainty])
            if (uncertain > c.bound / 4).any() and not (c.error > c.bound + 10 * uncertain).any():
                status, note = INCONCLUSIVE, "the twin's numerical derivative is too poor to decide; give its backward too"
        return Argument(
            name=path,
            shape=x.shape,
            method=f"{x.dtype} against float64",
            checked="every entry",
            tolerance=float(c.bound.max(initial=0.0)),
            status=status,
            worst=c.worst,
            bad=int((c.error > c.bound).any(axis=0).sum()) if status == FAIL else 0,
            entries=_wrong_entries(c, max_report) if status == FAIL else [],
            note=note,
        )


def _factor(change: np.ndarray, true: np.ndarray) -> float:
    """Return c such that c * true is the part of the change that is proportional to it."""
    norm = float((true * true).sum())
    return float((change * true).sum()) / norm if norm > 0 and math.isfinite(norm) else 0.0


def _wrong_entries(c: Comparison, most: int) -> list[Entry]:
    """Describe the entries that are farthest out of bounds, each at the dy where it is worst."""
    ratios = np.where(c.error > 0, c.error / np.maximum(c.bound, np.finfo(float).tiny), 0.0)
    dy_of = ratios.argmax(axis=0)
    worst = np.take_along_axis(ratios, dy_of[None], axis=0)[0]
    entries = []
    for flat in np.argsort(-worst, axis=None)[:most]:
        index = tuple(int(k) for k in np.unravel_index(flat, worst.shape))
        if not worst[index] > 1.0:
            break
        at = (int(dy_of[index]), *index)
        entries.append(Entry(index=index, analytical=float(c.found[at]), numerical=float(c.true[at]), error=float(c.bound[at])))
    return entries


# ---- helpers ----


def _promotions(layer: Layer, y: Any) -> list[str]:
    """Say which outputs are float64 although no input is."""
    inputs = {a.dtype.name for a in layer.leaves.values() if is_float_array(a)}
    wide = [path for path, a in flatten(y).items() if is_array(a) and a.dtype == np.float64]
    return [f"y{path} is float64, and the inputs are {sorted(inputs)}" for path in wide] if "float64" not in inputs else []


def _in_dtype_of(dy: Any, y: Any) -> Any:
    """Return a leaf of dy in the dtype of that of y; a float stays one."""
    return dy.astype(y.dtype) if is_array(y) else dy
