"""Hints in the report of a gradient check: for wrong gradients and for those of a wrong shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite.arrays import array_namespace, to_numpy
from tensorlite.testing.argument_check import ArgumentCheck, Settings
from tensorlite.testing.contract import Trial, misshapen_gradients
from tensorlite.testing.hints.explain import explain, hint_from_entries
from tensorlite.testing.numerical import Derivative
from tensorlite.testing.report import FAIL, GradReport
from tensorlite.testing.trees import flatten, is_array


@dataclass
class Truths:
    """The true gradients by path, from numerical derivatives of every entry, and the largest error of each."""

    values: dict[str, np.ndarray]
    errors: dict[str, float]

    def add(self, path: str, shape: tuple[int, ...], derivatives: Sequence[Derivative]) -> None:
        """Add a gradient, given as the derivatives by its entries."""
        self.values[path] = np.array([d.value for d in derivatives]).reshape(shape)
        self.errors[path] = max((d.error for d in derivatives), default=0.0)


def add_hints(report: GradReport, trial: Trial, checks: Sequence[ArgumentCheck], settings: Settings) -> None:
    """Write a hint into every argument that failed, and after every complaint about a shape, where there is one.

    checks: those whose results are the arguments of the report.
    """
    wrong = {check.name: to_numpy(check.grad) for check in checks}
    truths = Truths({}, {})
    for check in checks:
        if check.derivatives:
            truths.add(check.name, check.x.shape, check.derivatives)
    misshapen = misshapen_gradients(trial)
    for path, g in misshapen.items():
        wrong[path] = to_numpy(g)
        x = trial.layer.leaves[path]
        if x.size <= settings.elementwise:
            zeros = array_namespace(x).zeros_like(x)
            probe = ArgumentCheck(trial.layer, path, trial.dy, zeros, settings, np.random.default_rng(0))
            truths.add(path, x.shape, probe.numerical_gradient())

    setting: dict[str, Any] = {
        "inputs": {path: to_numpy(leaf) if is_array(leaf) else leaf for path, leaf in trial.layer.leaves.items()},
        "y": arrays(trial.forward_calls.y),
        "dy": arrays(trial.dy),
    }
    for argument in report.arguments:
        if argument.status == FAIL:
            hint = explain(argument.name, wrong, truths.values, truths.errors, **setting)
            if hint:
                argument.hint = hint.text
            elif argument.name not in truths.values:
                argument.hint = hint_from_entries(argument.name, argument.entries, **setting)
    for path in misshapen:
        hint = explain(path, wrong, truths.values, truths.errors, **setting)
        report.contract_violations = [
            f"{violation}. {hint.text}" if hint and violation.startswith(f"d{path} is (") else violation
            for violation in report.contract_violations
        ]


def arrays(tree: Any) -> list[np.ndarray]:
    """Return the leaves as NumPy arrays; a loss may be a float."""
    return [to_numpy(leaf) if is_array(leaf) else np.asarray(leaf) for leaf in flatten(tree).values()]
