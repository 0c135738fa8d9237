"""Property tests in three lines: `check_layer` draws inputs from a shape specification and checks all.

    check_layer(forward, backward, "x: B T C, w: C D, b: D")   # in the body of a test, in a script or in a notebook

    @check_layer("x: B T C, w: C D, b: D")                     # a test that pytest collects
    def test_linear():
        return linear_forward, linear_backward

The notation is explained in `shapes.py`. The examples are the same on every run. It needs SciPy, but neither pytest nor Hypothesis.
"""

import functools
import inspect
import sys
import traceback
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, overload

from tensorlite.testing import properties
from tensorlite.testing.gradcheck import gradcheck
from tensorlite.testing.layer import require_call
from tensorlite.testing.report import INCONCLUSIVE, GradcheckError
from tensorlite.testing.shapes import LEADING, Example, Specification, parse

MOST_DOUBTFUL = 0.1  # share of the examples at which a right layer may fail in a doubtful way, see Failure.is_doubtful
ELEMENTWISE = 32  # see `gradcheck`: most arrays are checked along random directions, because there are many examples
EQUAL = 3  # the length of all axes in one of the examples
ROUNDING = 1e-9  # relative difference allowed between two ways to compute the same in float64
PER_ROUNDING = 64.0  # see `properties.check_float32`
PROPERTIES = ("gradients", "rows", "leading", "read_only", "non_contiguous", "float32", "float_errors", "empty_batch")
_parameters = inspect.signature(gradcheck).parameters.values()
GRADCHECK_OPTIONS = {p.name for p in _parameters if p.kind is p.KEYWORD_ONLY} - {"raise_on_fail", "twin"}


@dataclass
class LayerReport:
    """What was checked on a layer that passed."""

    examples: int
    checked: tuple[str, ...]
    not_checked: dict[str, str]  # the reason by name of the property
    doubtful: dict[str, int]  # number of examples at which a property was in doubt, as gradients are at a kink

    def __str__(self) -> str:
        lines = [f"check_layer: pass, {self.examples} examples: {', '.join(self.checked)}"]
        lines += [f"not checked: {name} ({reason})" for name, reason in self.not_checked.items()]
        lines += [f"in doubt: {name} at {n} of {self.examples} examples" for name, n in self.doubtful.items()]
        return "\n".join(lines)

    __repr__ = __str__  # what a notebook shows


class CheckLayerError(AssertionError):
    """A layer does not have a property.

    property: its name, as `skip` takes it.
    example: the smallest example found.
    snippet: Python code that repeats the failing call.
    """

    def __init__(self, message: str, property: str, example: Example, snippet: str) -> None:
        super().__init__(message)
        self.property = property
        self.example = example
        self.snippet = snippet


@overload
def check_layer(forward: Callable, backward: Callable, specification: str, /, **options: Any) -> LayerReport: ...


@overload
def check_layer(specification: str, /, **options: Any) -> Callable[[Callable], Callable]: ...


def check_layer(
    *layer_and_specification: Any,
    batch: str | None = "B",
    mean: bool = False,
    skip: Collection[str] = (),
    examples: int = 50,
    **options: Any,
) -> Any:
    """Check the gradients and the properties of a layer at drawn inputs.

    forward: `forward(**inputs) -> (y, cache)`.
    backward: `backward(dy, cache)` returns the gradients, as for `gradcheck`.
    specification: the inputs, such as "x: B T C, w: C D, b: D?".
    batch: the letter of the batch axis. None: rows are not independent. Without that letter in the specification, the first
      leading axis is the batch.
    mean: y is a loss, a mean over the rows of the batch.
    skip: names of properties that the layer is not meant to have, such as ("rows", "empty_batch") for a batch normalisation.
    examples: how many inputs are drawn.
    options: further options of `gradcheck`, such as rtol.

    Called with a specification alone, it returns a decorator for a function that returns the pair (forward, backward). The
    result is a test function, which takes the same arguments, so that fixtures and parameters work.

    The properties, each a function of `properties.py`:
      gradients: `gradcheck` passes.
      rows: the rows of the batch do not mix (`check_batch`).
      leading: leading axes are only a shape (`check_leading`), where the specification has "...".
      read_only, non_contiguous: any memory of inputs and dy is accepted.
      float32: results for float32 inputs are float32 and follow those in float64.
      float_errors: no overflow, division by zero or invalid operation occurs.
      empty_batch: a batch without rows is accepted.

    Returns a report of what was checked. Raises CheckLayerError with the smallest failing example as code to paste, and
    ValueError for a specification or option that cannot be read.
    """
    *pair, text = layer_and_specification or (None,)
    if len(pair) not in (0, 2) or not isinstance(text, str):
        raise ValueError('write check_layer(forward, backward, "x: B T C"), or @check_layer("x: B T C") above a test')
    for name in [skip] if isinstance(skip, str) else skip:
        if name not in PROPERTIES or isinstance(skip, str):
            raise ValueError(f"skip is a collection of names among {', '.join(PROPERTIES)}, not {skip!r}")
    if examples < 1:
        raise ValueError(f"examples is at least 1, not {examples}")
    if "twin" in options:
        raise TypeError("check_layer draws float64 inputs; for a layer in lower precision, call gradcheck(..., twin=...)")
    for name in options.keys() - GRADCHECK_OPTIONS:
        raise TypeError(f"check_layer has no option {name}; of gradcheck it takes {', '.join(sorted(GRADCHECK_OPTIONS))}")
    specification = parse(text)
    plan = _Plan(specification, batch, mean, frozenset(skip), options)
    if pair:
        __tracebackhide__ = True  # pytest shows the caller's line
        return _Search(pair[0], pair[1], plan, examples).run()

    def decorator(returns_pair: Callable) -> Callable:
        @functools.wraps(returns_pair)
        def test(*args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            forward, backward = returns_pair(*args, **kwargs)
            _Search(forward, backward, plan, examples).run()

        return test

    return decorator


@dataclass(frozen=True)
class Check:
    """The call of one property at one example."""

    property: str
    function: Callable
    options: Mapping[str, Any]

    def run(self, forward: Callable, backward: Callable, example: Example) -> None:
        complete = getattr(forward, "with_parameters", dict)  # the forward of an object brings the object's parameters
        self.function(forward, backward, complete(example.inputs()), **self.options)

    def snippet(self, forward: Callable, backward: Callable, example: Example) -> str:
        """Return code that repeats the call, complete but for functions that cannot be imported."""
        imports = ["import numpy as np", f"from tensorlite.testing import {self.function.__name__}"]
        names = []
        for role, function in (("forward", forward), ("backward", backward)):
            module = _module_with(function)
            names.append(function.__name__ if module else role)
            if module and module != "__main__" and module.replace(".", "").isidentifier():  # runpy calls a script "<run_path>"
                imports.append(f"from {module} import {function.__name__}")
        if {"forward", "backward"} & set(names):
            imports.append("# forward and backward: the layer under test")
        arguments = ", ".join([*names, "inputs", *(f"{name}={value!r}" for name, value in self.options.items())])
        lines = [*imports, "", example.code()]
        if hasattr(forward, "with_parameters"):
            lines.append(f"inputs = {names[0]}.with_parameters(inputs)")
        return "\n".join([*lines, f"{self.function.__name__}({arguments})"])


def _module_with(function: Any) -> str | None:
    """Return the module in which the function has its own name, None for lambdas, methods and the like."""
    name, module = getattr(function, "__name__", ""), getattr(function, "__module__", None)
    found = vars(sys.modules.get(module or "", types.ModuleType(""))).get(name)
    return module if found is function else None


@dataclass(frozen=True)
class _Plan:
    """Which properties a layer of this specification is checked for."""

    specification: Specification
    batch: str | None
    mean: bool
    skip: frozenset[str]
    gradcheck_options: dict[str, Any]

    @property
    def batch_letter(self) -> str | None:
        """The axis that is the batch: a letter, LEADING for the first leading axis, or None."""
        if self.batch is None:
            return None
        inputs = self.specification.inputs
        if any(i.axis_of(self.batch, 0) is not None for i in inputs):
            return self.batch
        if self.batch != "B":
            raise ValueError(f"no input has the batch axis {self.batch!r}: {self.specification.text!r}")
        return LEADING if self.specification.has_leading else None

    def not_checked(self) -> dict[str, str]:
        """Return the reason for each property that is not checked."""
        reasons = {}
        if self.batch_letter is None:
            reasons = dict.fromkeys(("rows", "empty_batch"), "the specification has no batch axis B, and batch= names no other")
        if self.mean:
            reasons["empty_batch"] = "a mean over no rows has no value"
        if not self.specification.has_leading:
            reasons["leading"] = "the specification has no leading axes '...'"
        return reasons | dict.fromkeys(self.skip, "skipped")

    def checks(self, example: Example) -> list[Check]:
        """Return the calls that apply to an example."""
        batched = example.axes_of(self.batch_letter) if self.batch_letter else {}
        leading = {i.name: i.axis_of(LEADING, 0) for i in self.specification.inputs if i.name not in example.absent}
        leading = {name: axis for name, axis in leading.items() if axis is not None}
        mean = {"mean": True} if self.mean else {}
        checks = [
            Check("gradients", gradcheck, {"elementwise": ELEMENTWISE} | self.gradcheck_options),
            Check("leading", properties.check_leading, {"leading": leading, "n_axes": len(example.leading), "rtol": ROUNDING}),
            Check("read_only", properties.check_read_only, {}),
            Check("non_contiguous", properties.check_non_contiguous, {"rtol": ROUNDING}),
            Check("float32", properties.check_float32, {"per_rounding": PER_ROUNDING}),
            Check("float_errors", properties.check_float_errors, {}),
        ]
        if batched:
            checks.append(Check("rows", properties.check_batch, {"batched": batched, "rtol": ROUNDING} | mean))
            checks.append(Check("empty_batch", properties.check_empty_batch, {"batched": batched}))
        left_out = self.not_checked()
        return [check for check in checks if check.property not in left_out]


@dataclass
class Failure:
    """A check that failed at an example."""

    check: Check
    example: Example
    error: Exception

    @property
    def is_doubtful(self) -> bool:
        """Whether a right layer may fail so now and then: at a kink, and in float32 where it is ill-conditioned."""
        inconclusive = isinstance(self.error, GradcheckError) and self.error.report.status == INCONCLUSIVE
        return inconclusive or isinstance(self.error, properties.InexactFloat32Error)

    @property
    def is_of_layer(self) -> bool:
        """Whether the error comes from the layer's own code, and not from a comparison made here."""
        *_, (frame, _) = traceback.walk_tb(self.error.__traceback__)
        is_ours = frame.f_globals["__name__"].startswith(("tensorlite.testing", "numpy.testing"))
        return not (isinstance(self.error, AssertionError) and is_ours)


@dataclass
class _Search:
    """The search for the smallest failing example."""

    forward: Callable
    backward: Callable
    plan: _Plan
    examples: int

    def run(self) -> LayerReport:
        """Return the report, or raise the error for the smallest failing example."""
        __tracebackhide__ = True
        draw, specification = Random(0).randint, self.plan.specification
        corners = [specification.equal_lengths(length) for length in (1, EQUAL)]
        require_call(self.forward, f"forward(**inputs), with the inputs {list(corners[0].inputs())}", (), corners[0].inputs())
        found: dict[str, list[Failure]] = {name: [] for name in PROPERTIES}
        for i in range(self.examples):
            for failure in self.failures(specification.example(draw) if i >= len(corners) else corners[i]):
                found[failure.check.property].append(failure)
            if any(not failure.is_doubtful for failure in found["gradients"]):
                break  # the other properties matter once the gradients are right
        refused = [name for name, failures in found.items() if self.is_refused(failures)]
        if refused:
            raise self.error(found[refused[0]], refused)
        not_checked = self.plan.not_checked()
        checked = tuple(name for name in PROPERTIES if name not in not_checked)
        doubtful = {name: len(failures) for name, failures in found.items() if failures}
        return LayerReport(self.examples, checked, not_checked, doubtful)

    def is_refused(self, failures: list[Failure]) -> bool:
        """Whether a property failed for certain, or is in doubt at too many examples."""
        return any(not failure.is_doubtful for failure in failures) or len(failures) > MOST_DOUBTFUL * self.examples

    def failures(self, example: Example, only: Collection[str] = PROPERTIES) -> Iterator[Failure]:
        """Yield the checks that fail at this example, of the properties named."""
        for check in self.plan.checks(example):
            if check.property in only:
                try:
                    check.run(self.forward, self.backward, example)
                except Exception as error:  # a layer that cannot take an input may say so in any way
                    yield Failure(check, example, error)

    def smallest(self, failure: Failure) -> Failure:
        """Make the example smaller as long as the same property fails in the same way."""
        while (smaller := next(self.smaller(failure), None)) is not None:
            failure = smaller
        return failure

    def smaller(self, failure: Failure) -> Iterator[Failure]:
        """Yield the failures of the property at examples that are one step smaller."""
        for example in failure.example.smaller():
            for found in self.failures(example, only=[failure.check.property]):
                if found.is_doubtful == failure.is_doubtful:
                    yield found

    def error(self, failures: list[Failure], refused: list[str]) -> CheckLayerError:
        """Return the error to raise for the smallest example of a property: what failed, where, and how to repeat it.

        refused: the names of all properties that the layer lacks.
        """
        failure = self.smallest(min(failures, key=lambda failure: failure.is_doubtful))
        check, example, error = failure.check, failure.example, failure.error
        how_often = f", as at {len(failures)} of {self.examples} examples" if failure.is_doubtful else ""
        what = f"{type(error).__name__}: {error}" if failure.is_of_layer else str(error).strip()
        snippet = check.snippet(self.forward, self.backward, example)
        parts = [f"{check.property} at {example}{how_often}", what, f"To repeat it:\n\n{snippet}"]
        if refused[1:]:
            parts.append(f"Also refused: {', '.join(refused[1:])}")
        if check.property != "gradients":
            names = ", ".join(f'"{name}"' for name in refused) + ("," if len(refused) == 1 else "")
            parts.append(f"If the layer is not meant to have this: skip=({names})")
        raised = CheckLayerError("\n\n".join(parts), check.property, example, snippet)
        raised.__cause__ = error if failure.is_of_layer else None
        return raised
