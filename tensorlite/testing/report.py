"""The result of a gradient check, as data and as text."""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"


@dataclass(frozen=True)
class Entry:
    """One entry of a gradient on which backward and the numerical derivative disagree."""

    index: tuple[int, ...]
    analytical: float  # what backward returned
    numerical: float
    error: float  # estimated error of `numerical`
    left: float | None = None  # the one-sided derivatives if they differ, as at a kink
    right: float | None = None

    @property
    def is_kink(self) -> bool:
        """Whether forward has a kink here, where any slope between the one-sided derivatives is right."""
        return self.left is not None

    @property
    def ratio(self) -> float:
        """Return analytical / numerical: -1 is a wrong sign, 2 a factor, 8/7 an n - 1 for an n. Infinite if numerical may be 0."""
        return self.analytical / self.numerical if abs(self.numerical) > self.error else math.inf

    def __str__(self) -> str:
        index = ", ".join(map(str, self.index))
        text = f"[{index}] backward {self.analytical:.9g}, numerical {self.numerical:.9g} +- {self.error:.1g}"
        if self.left is not None:
            return f"{text}: not differentiable here (left {self.left:.6g}, right {self.right:.6g})"
        return f"{text}, ratio {self.ratio:.7g}" if math.isfinite(self.ratio) else f"{text}, which may be 0"


@dataclass
class Argument:
    """The verdict on the gradient of one argument."""

    name: str
    shape: tuple[int, ...]
    method: str  # "fd" or "complex"; "" if it could not be checked
    checked: str  # "every entry", "3 directions" or "not checked"
    tolerance: float
    scale: float = 0.0  # the root mean square of the gradient
    status: str = PASS
    worst: float = 0.0  # the largest disagreement, in units of the tolerance
    bad: int = 0  # number of entries found to differ
    more: bool = False  # whether the search stopped before it had seen every entry
    entries: list[Entry] = field(default_factory=list)  # some of those that differ: mistakes before kinks, the largest first
    note: str = ""
    hint: str = ""  # what the wrong gradient looks like beside the true one, in one sentence

    def __str__(self) -> str:
        text = f"{self.status:12s} d{self.name} {self.shape}: {self.checked}"
        if self.method:
            text += f" ({self.method}), largest error {self.worst:.2g} x tolerance"
        if self.bad:
            at_least = "at least " if self.more else ""
            text += f", entries that differ: {at_least}{self.bad} of {math.prod(self.shape)}"
        if self.note:
            text += f"; {self.note}"
        lines = [text, *(f"    d{self.name}{entry}" for entry in self.entries)]
        if self.hint:
            lines.append(f"    hint: {self.hint}")
        return "\n".join(lines)


@dataclass
class GradReport:
    """The verdict on one forward/backward pair, `ok` if every argument passed and no rule of the contract is violated."""

    arguments: list[Argument] = field(default_factory=list)
    contract_violations: list[str] = field(default_factory=list)  # one sentence each

    @property
    def ok(self) -> bool:
        return not self.contract_violations and all(a.status == PASS for a in self.arguments)

    @property
    def status(self) -> str:
        if self.contract_violations or any(a.status == FAIL for a in self.arguments):
            return FAIL
        return PASS if self.ok else INCONCLUSIVE

    def __str__(self) -> str:
        lines = [f"gradcheck: {self.status}"]
        lines += [f"contract     {violation}" for violation in self.contract_violations]
        lines += [str(argument) for argument in self.arguments]
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002
        """Show the text of the report where a notebook's cell ends with it."""
        printer.text(str(self))

    def to_json(self) -> str:
        """Return the report as a JSON object, with null for a float that is not finite."""
        data = {"status": self.status, **asdict(self)}
        for argument, argument_data in zip(self.arguments, data["arguments"], strict=True):
            for entry, entry_data in zip(argument.entries, argument_data["entries"], strict=True):
                entry_data["ratio"] = entry.ratio
        return json.dumps(_null_if_not_finite(data), indent=1, allow_nan=False)


def _null_if_not_finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _null_if_not_finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_null_if_not_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


class GradcheckError(AssertionError):
    """A gradient check did not pass. Its result is in `report`."""

    def __init__(self, report: GradReport) -> None:
        super().__init__(str(report))
        self.report = report
