"""What a gradient check found, as data and as text."""

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
    numerical: float  # what the differences gave
    error: float  # how far `numerical` can be trusted
    left: float | None = None  # one-sided derivatives, where they differ: the function has a kink here
    right: float | None = None

    @property
    def is_kink(self) -> bool:
        """Whether the function has a kink here, so that either derivative would be right."""
        return self.left is not None

    @property
    def ratio(self) -> float:
        """analytical / numerical: -1 is a sign, 2 a factor, 8/7 an n - 1 for an n."""
        return self.analytical / self.numerical if self.numerical else float("inf")

    def __str__(self) -> str:
        index = ", ".join(map(str, self.index))
        text = f"[{index}] backward {self.analytical:.9g}, numerical {self.numerical:.9g} +- {self.error:.1g}"
        if self.left is not None:
            return f"{text}: not differentiable here (left {self.left:.6g}, right {self.right:.6g})"
        return f"{text}, ratio {self.ratio:.7g}"


@dataclass
class Argument:
    """The verdict on the gradient of one argument."""

    name: str
    shape: tuple[int, ...]
    method: str  # "fd" or "complex"
    checked: str  # "every entry" or "3 directions"
    tolerance: float
    status: str = PASS
    worst: float = 0.0  # the largest disagreement, in units of the tolerance
    bad: int = 0  # entries found wrong
    more: bool = False  # whether the search stopped before it had seen all
    entries: list[Entry] = field(default_factory=list)  # some of them, worst first
    note: str = ""

    def __str__(self) -> str:
        head = f"{self.status:12s} d{self.name} {self.shape}: {self.checked} ({self.method}), worst {self.worst:.2g} of tolerance"
        lines = [head + (f"; {self.note}" if self.note else "")]
        if self.bad:
            at_least = "at least " if self.more else ""
            lines[0] += f", {at_least}{self.bad} wrong"
        return "\n".join(lines + [f"    d{self.name}{entry}" for entry in self.entries])


@dataclass
class GradReport:
    """The verdict on one forward/backward pair. `ok` only when every argument passed and no rule of the contract was broken."""

    arguments: list[Argument] = field(default_factory=list)
    contract_violations: list[str] = field(default_factory=list)  # rules of the contract that do not hold

    @property
    def ok(self) -> bool:
        return not self.contract_violations and all(a.status == PASS for a in self.arguments)

    @property
    def status(self) -> str:
        if self.contract_violations or any(a.status == FAIL for a in self.arguments):
            return FAIL
        return PASS if self.ok else INCONCLUSIVE

    def __str__(self) -> str:
        return "\n".join(
            [f"gradcheck: {self.status}", *(f"contract     {rule}" for rule in self.contract_violations), *map(str, self.arguments)]
        )

    def to_json(self) -> str:
        """The report as a JSON object; what is not finite is null."""
        data = {"status": self.status, **asdict(self)}
        for argument, found in zip(data["arguments"], self.arguments, strict=True):
            for entry, original in zip(argument["entries"], found.entries, strict=True):
                entry["ratio"] = original.ratio
        return json.dumps(_finite(data), indent=1, allow_nan=False)


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


class GradcheckError(AssertionError):
    """A gradient check that did not pass; `report` holds what was found."""

    def __init__(self, report: GradReport) -> None:
        super().__init__(str(report))
        self.report = report
