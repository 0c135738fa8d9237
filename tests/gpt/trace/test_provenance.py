"""What a formula says it read is what its line read: a NaN in one source reaches the elements that read it, and no other."""

import ast
import functools
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt.trace.formula import evaluate, merge_axes
from traces import SHORT_AND_LONG, calls_with_formulas, recorded


def line_runner(call, made, names):
    """Return a function that runs the source line with another array for one of its names, and returns what it makes."""
    space = other_names(call) | names
    code = compile(ast.fix_missing_locations(ast.Module([assignment(call, made)], [])), "line", "exec")
    in_place = made.target.name if made.statement.in_place else None

    def run(name, array):
        local = {**space, name: array}
        local["params"] = local  # head_weight reads a tree of parameters
        if in_place:
            local[in_place] = local[in_place].copy()
        with np.errstate(invalid="ignore"):
            exec(code, local)
        return np.ravel(local[made.target.name])

    return run


def assignment(call, made):
    """The statement; a return becomes an assignment to the name that the returned value has in the trace."""
    statement = tree_of(call, made)
    if not isinstance(statement, ast.Return):
        return statement
    values = statement.value.elts if isinstance(statement.value, ast.Tuple) else [statement.value]
    place = made.statement.targets.index(made.target)
    return ast.Assign([ast.Name(made.target.name, ast.Store())], values[place])


@functools.cache
def lines_of(file):
    return Path(file).read_text(encoding="utf-8").splitlines()


def tree_of(call, made):
    lines = lines_of(call.code.co_filename)[made.statement.first - 1 : made.statement.last]
    return ast.parse("".join(line.strip() for line in lines)).body[0]


def other_names(call):
    """What a line may name besides arrays and numbers: its module, xp, and values that say that dropout is off."""
    module = next(m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == call.code.co_filename)
    off = {"dropout_cache": None, "cache": None, "has_bias": True, "p": 0.0, "key": None}
    return {**vars(module), **off, "xp": np}


@pytest.mark.parametrize("variant", SHORT_AND_LONG)
def test_a_nan_reaches_the_elements_whose_formula_read_it_and_no_other(variant):
    state = recorded(variant)
    n_sources = 0
    for call, made, _, parsed in calls_with_formulas(state):
        names = state.trace.environment(call, made)
        readers = readers_of(parsed, names, state.trace.arrays[made.array])
        run = line_runner(call, made, names)
        for name in names_read(call, made):
            if not is_float_array(names.get(name)):
                continue
            for element in range(names[name].size):
                poisoned = names[name].copy()
                poisoned.flat[element] = np.nan
                found = np.isnan(run(name, poisoned))
                where = f"{call.function} {made.target.name}: NaN in {name}[{element}]"
                assert set(np.flatnonzero(found).tolist()) == readers.get((name, element), set()), where
                n_sources += 1
    assert n_sources > 50


def readers_of(parsed, names, made):
    """For each element that a formula reads, the elements of the result that read it."""
    readers = {}
    array = merge_axes(made, len(parsed.indices))
    for place, index in enumerate(np.ndindex(array.shape)):
        reads = []
        evaluate(parsed.tree, dict(zip(parsed.indices, index, strict=True)), names, reads)
        for source in reads:
            readers.setdefault(source, set()).add(place)
    return readers


def is_float_array(value):
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def names_read(call, made):
    """The names that the line reads, and the keys of a tree of parameters."""
    nodes = list(ast.walk(assignment(call, made)))
    return {n.id for n in nodes if isinstance(n, ast.Name)} | {n.value for n in nodes if isinstance(n, ast.Constant)}
