"""The tape: the calls of one recorded step, each with a lasting name, each backward beside its forward.

A call's name is its function's, such as `attention_backward`. Where a function is called several times, the parameter that the call
takes tells the calls apart, as in `linear_backward.qkv`, or else their number, as in `residual_forward.2`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from gpt.trace.formula import Parsed, parse
from gpt.trace.formulas import FORMULAS, Formula
from gpt.trace.recorder import Call, Made, Trace


@dataclass
class Row:
    """One op: its forward call and the calls that take its gradient, as numbers of calls."""

    forward: int
    backward: list[int] = field(default_factory=list)


def formula_of(call: Call, made: Made) -> tuple[Formula, Parsed] | None:
    """Return the formula of a value, or None for a value that the line only received from elsewhere."""
    of_name = [f for f in FORMULAS.get(call.function, ()) if parse(f.text).name == made.target.name]
    if made.target.version >= len(of_name):
        return None
    formula = of_name[made.target.version]
    return formula, parse(formula.text)


def has_formulas(call: Call) -> bool:
    """Whether a reader can stop at this call."""
    return any(formula_of(call, made) for made in call.made)


def pair_calls(trace: Trace) -> dict[int, int]:
    """Return, for each backward call at which a reader can stop, its forward call.

    Backward goes back through the ops in reverse, so a call belongs to the last forward of its op that has no backward yet.
    """
    pairs: dict[int, int] = {}
    waiting: dict[str, list[int]] = {}
    for call in filter(has_formulas, trace.calls):
        op, _, direction = call.function.rpartition("_")
        if direction == "forward":
            waiting.setdefault(op, []).append(call.number)
        elif direction == "backward":
            pairs[call.number] = waiting[op].pop()
    return pairs


def rows(trace: Trace, pairs: Mapping[int, int]) -> list[Row]:
    """Return the ops of the step, top to bottom as forward ran them. An add stands beside the op whose gradient it adds."""
    stops = [call for call in trace.calls if has_formulas(call)]
    by_forward = {call.number: Row(call.number) for call in stops if call.number not in pairs and call.function != "add"}
    latest: Row | None = None
    for call in stops:
        if call.number in pairs:
            latest = by_forward[pairs[call.number]]
            latest.backward.append(call.number)
        elif call.function == "add" and latest:
            latest.backward.append(call.number)
    return list(by_forward.values())


def names(trace: Trace, pairs: Mapping[int, int], parameters: Mapping[int, str]) -> dict[int, str]:
    """Return the name of every call. parameters: the name of each parameter, such as "blocks.0.qkv_w", by its array."""
    hints = _hints(trace, pairs, parameters)
    n_calls = Counter(call.function for call in trace.calls)
    n_hinted = Counter((call.function, hints[call.number]) for call in trace.calls)
    seen: Counter[str] = Counter()
    endings = {}
    for call in trace.calls:
        hint = hints[call.number]
        seen[call.function] += 1
        if n_calls[call.function] == 1:
            endings[call.number] = ""
        elif hint and n_hinted[call.function, hint] == 1:
            endings[call.number] = f".{hint}"
        else:
            endings[call.number] = f".{seen[call.function]}"
    for backward, forward in pairs.items():
        endings[backward] = endings[forward]
    return {call.number: call.function + endings[call.number] for call in trace.calls}


def _hints(trace: Trace, pairs: Mapping[int, int], parameters: Mapping[int, str]) -> dict[int, str]:
    """Return the parameter that each call takes, or that its forward took; for an add, of the backward before it; else ""."""
    several_blocks = any(name.startswith("blocks.1.") for name in parameters.values())
    hints = {}
    latest = ""
    for call in trace.calls:
        taken = [parameters[array] for array in call.arguments.values() if array in parameters]
        hints[call.number] = _hint(taken[0], several_blocks) if taken else ""
        if call.number in pairs:
            hints[call.number] = latest = hints[pairs[call.number]]
        elif call.function == "add":
            hints[call.number] = latest
    return hints


def _hint(parameter: str, several_blocks: bool) -> str:
    """Return `qkv` for "blocks.0.qkv_w", and `0.qkv` where there are several blocks."""
    name = parameter.removesuffix("_w").removesuffix("_b")
    return name.removeprefix("blocks.") if several_blocks else name.removeprefix("blocks.0.")
