"""The data of the page: the functions with their formulas, the calls, and the numbers of the steps."""

import ast
import base64
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np

from gpt.trace import tape
from gpt.trace.axes import Axes, axes_of
from gpt.trace.differences import places
from gpt.trace.formula import merge_axes, parse
from gpt.trace.formulas import FORMULAS
from gpt.trace.recorder import Call, Trace
from gpt.trace.state import State

STEP = re.compile(r"^\s*(\d+)\. (.*)$")
ROOT = Path(__file__).parents[2]


def page_data(model: Mapping[str, Any], vocabulary: str, text: str, states: Sequence[State]) -> dict[str, Any]:
    """Return the data of the page. The states are runs of one model on one text, so they differ in their numbers alone."""
    trace, parameters = states[0].trace, states[0].parameters
    pairs = tape.pair_calls(trace)
    names = tape.names(trace, pairs, parameters)
    stored = stored_arrays(trace)
    axes = axes_of(trace, parameters)
    codes = {call.function: call.code for call in trace.calls if tape.has_formulas(call)}
    return {
        "model": dict(model),
        "vocabulary": vocabulary,
        "text": text,
        "functions": {name: function_data(code) for name, code in codes.items()},
        "arrays": [array_data(array, axes.get(i, ()), stored.get(i)) for i, array in enumerate(trace.arrays)],
        "parameters": {str(array): name for array, name in parameters.items()},
        "gradient_of": gradients_by_array(trace, pairs),
        "calls": [call_data(call, names[call.number], pairs) for call in trace.calls],
        "rows": [{"forward": row.forward, "backward": row.backward} for row in tape.rows(trace, pairs)],
        "states": [state_data(state, stored) for state in states],
        "differences": list(states[0].differences),
    }


def stored_arrays(trace: Trace) -> dict[int, int]:
    """Return where each array begins in the buffer of numbers. Arrays that only move values are not in it: the page moves them."""
    moved = {made.array for call in trace.calls for made in call.made if moves(call, made.array)}
    at, end = {}, 0
    for i, array in enumerate(trace.arrays):
        if i not in moved:
            at[i] = end
            end += array.size
    return at


def moves(call: Call, array: int) -> bool:
    """Whether this call makes the array out of another one's elements, unchanged, and did not have it before."""
    if array in call.arguments.values():
        return False
    for made in call.made:
        if made.array == array:
            found = tape.formula_of(call, made)
            return found is not None and found[1].only_moves
    return False


def function_data(code: CodeType) -> dict[str, Any]:
    """Return a function's source without its docstring, the steps of its derivation, and its formulas."""
    lines, first = inspect.getsourcelines(code)
    function = ast.parse(textwrap.dedent("".join(lines))).body[0]
    assert isinstance(function, ast.FunctionDef)
    doc = ast.get_docstring(function) or ""
    hidden = range(function.body[0].lineno - 1, function.body[0].end_lineno or 0) if doc else range(0)
    indent = len(lines[0]) - len(lines[0].lstrip())
    return {
        "file": Path(code.co_filename).relative_to(ROOT).as_posix(),
        "source": [[first + i, line[indent:].rstrip()] for i, line in enumerate(lines) if i not in hidden],
        "says": doc.split("\n\n")[0],
        "derivation": derivation(doc),
        "formulas": [
            {"text": f.text, "means": f.means, "name": p.name, "indices": p.indices, "tree": p.tree, "moves": p.only_moves}
            for f, p in ((f, parse(f.text)) for f in FORMULAS[code.co_name])
        ],
    }


def derivation(doc: str) -> list[list[str]]:
    """Return the numbered steps of a docstring as [number, text], with the indented lines below a step in its text."""
    steps: list[list[str]] = []
    inside = False
    for line in doc.splitlines():
        if line.startswith("Derivation"):
            inside = True
            line = line.partition(": ")[2] if STEP.match(line.partition(": ")[2]) else ""
        elif inside and line and not line.startswith(" "):
            inside = False
        if inside and (found := STEP.match(line)):
            steps.append([found[1], found[2].strip()])
        elif inside and line.strip() and steps:
            steps[-1][1] += "\n" + line.strip()
    return steps


def array_data(array: np.ndarray, axes: Axes, at: int | None) -> dict[str, Any]:
    """Return an array's shape as formulas index it, what its axes count, and where it begins in the buffer, if it is there."""
    return {"shape": merge_axes(array, len(axes)).shape, "axes": axes, "at": at}


def gradients_by_array(trace: Trace, pairs: Mapping[int, int]) -> dict[str, int]:
    """Return, by the array of each gradient, the array of the value that it belongs to."""
    found = {}
    for array, place in places(trace, pairs).items():
        forward = trace.calls[place.call]
        made = {m.target.name: m.array for m in forward.made}
        found[str(array)] = made[place.name] if place.made else forward.arguments[place.name]
    return found


def call_data(call: Call, name: str, pairs: Mapping[int, int]) -> dict[str, Any]:
    """Return a call, with every value that its lines set and the formula of those that a line makes."""
    formulas = {}
    for place, made in enumerate(call.made):
        found = tape.formula_of(call, made)
        if found:
            formulas[place] = FORMULAS[call.function].index(found[0])
    return {
        "function": call.function,
        "name": name,
        "parent": call.parent,
        "parent_line": call.parent_line,
        "pair": pairs.get(call.number),
        "arguments": call.arguments,
        "scalars": call.scalars,
        "made": [
            {
                "name": made.target.name,
                "array": made.array,
                "line": made.statement.first,
                "last": made.statement.last,
                "steps": made.statement.steps,
                "formula": formulas.get(place),
            }
            for place, made in enumerate(call.made)
        ],
    }


def state_data(state: State, stored: Mapping[int, int]) -> dict[str, Any]:
    """Return the numbers of a state: every stored array one after another, and the differences of its gradients.

    The numbers are kept to 13 digits, and how far a difference is from its gradient to one, for the size of the page.
    """
    numbers = [np.ravel(state.trace.arrays[i]).astype("<f8") for i in stored]
    errors = [np.ravel(difference) - np.ravel(state.trace.arrays[array]) for array, difference in state.differences.items()]
    return {
        "step": state.step,
        "loss": state.loss,
        "numbers": encode(rounded(np.concatenate(numbers), 8)),
        "errors": encode(rounded(np.concatenate(errors or [np.zeros(0)]).astype("<f4"), 20)),
    }


def rounded(array: np.ndarray, n_bits: int) -> np.ndarray:
    """Return the values rounded so that the lowest bits of each are zero, which compress to nothing."""
    as_integers = array.view(f"u{array.itemsize}")
    unit = as_integers.dtype.type(1) << n_bits
    return ((as_integers + unit // 2) // unit * unit).view(array.dtype)


def encode(array: np.ndarray) -> str:
    """Return base64 of the first byte of every value, then of every second byte, and so on: bytes of one kind compress better."""
    planes = array.view(np.uint8).reshape(-1, array.itemsize).T
    return base64.b64encode(planes.tobytes()).decode("ascii")


def decode(text: str, dtype: str) -> np.ndarray:
    """Return the array that `encode` was given. dtype: "<f8" for `numbers`, "<f4" for `errors`."""
    packed = np.frombuffer(base64.b64decode(text), np.uint8)
    planes = packed.reshape(np.dtype(dtype).itemsize, -1)
    return np.ascontiguousarray(planes.T).view(dtype).ravel()
