"""Every line that makes a value has a formula, and the formula gives every element of what the line made."""

import ast
import inspect
import re

import numpy as np
import pytest

from gpt.trace import tape
from gpt.trace.data import derivation
from gpt.trace.formula import evaluate, merge_axes, parse
from gpt.trace.formulas import FORMULAS, RETURN_NAMES
from gpt.trace.statements import statements
from traces import TEXT, VARIANTS, calls_with_formulas, recorded

EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS)
CODES = {call.function: call.code for variant in VARIANTS for call in recorded(variant).trace.calls}


@EVERY_VARIANT
@pytest.mark.parametrize("text", [TEXT, "cab"], ids=["whole context", "shorter"])
def test_a_formula_gives_every_element_of_what_its_line_made(variant, text):
    state = recorded(variant, text=text)
    for call, made, _, parsed in calls_with_formulas(state):
        names = state.trace.environment(call, made)
        array = merge_axes(state.trace.arrays[made.array], len(parsed.indices))
        for index in np.ndindex(array.shape):
            value = evaluate(parsed.tree, dict(zip(parsed.indices, index, strict=True)), names)
            where = f"{call.function} {made.target.name} {index}"
            if parsed.only_moves:
                assert value == array[index], where
            else:
                np.testing.assert_allclose(value, array[index], rtol=1e-12, atol=1e-12, err_msg=where)


@EVERY_VARIANT
def test_every_value_is_made_by_a_formula_or_was_given(variant):
    """What a line only received from a call or took from a cache is an array that a formula made, or a parameter or the text."""
    state = recorded(variant)
    given = set(state.trace.calls[0].arguments.values()) | set(state.parameters)
    explained = given | {made.array for _, made, *_ in calls_with_formulas(state)}
    unnamed = {call.arguments["b"] for call in state.trace.calls if call.function == "add" and "tied" in variant}
    assert set(range(len(state.trace.arrays))) - explained <= unnamed  # dhead_w.T, which has no line


def test_every_formula_is_of_a_line_that_runs():
    used = {(call.function, f.text) for variant in VARIANTS for call, _, f, _ in calls_with_formulas(recorded(variant))}
    assert {(function, f.text) for function, formulas in FORMULAS.items() for f in formulas} - used == {
        ("layernorm_backward", "db[c] = 0"),  # `db = None`, which `if has_bias` replaces
    }
    assert set(RETURN_NAMES) - set(CODES) == set()


@pytest.mark.parametrize("function", sorted(FORMULAS))
def test_every_step_of_a_derivation_has_its_line_and_every_such_line_a_formula(function):
    code = CODES[function]
    source = inspect.getsource(code)
    doc = ast.get_docstring(ast.parse(inspect.cleandoc("\n" + source)).body[0]) or ""
    steps = {int(number) for number, _ in derivation(doc)}
    lines = set(statements(code, RETURN_NAMES.get(function, ())).values())
    assert steps == {step for line in lines for step in line.steps}
    named = [parse(f.text).name for f in FORMULAS[function]]
    for line in lines:
        for target in (target for target in line.targets if line.steps and target.name):
            assert target.version < named.count(target.name), f"{function} has no formula for {target}"


def test_derivations_are_read_whole():
    """As many numbered steps as the docstrings have lines that begin with a number."""
    for function in FORMULAS:
        source = inspect.getsource(CODES[function])
        docstring = source.split('"""')[1] if '"""' in source else ""
        assert len(derivation(inspect.cleandoc(docstring))) == len(re.findall(r"^\s*(?:Derivation: )?\d\. ", docstring, re.M))


def test_a_step_has_its_further_lines_and_the_derivation_ends_with_it():
    source = inspect.getsource(CODES["attention_backward"])
    steps = derivation(inspect.cleandoc(source.split('"""')[1]))
    assert [number for number, _ in steps] == ["1", "2", "3", "4"]
    assert steps[2][1].endswith("the mask needs no line of its own.")
    assert "Each row" not in steps[3][1]


@EVERY_VARIANT
def test_a_softmax_row_and_its_gradient_sum_as_the_notes_say(variant):
    """The sums that the notes state: rows of probabilities to 1, rows of dscores, dlogits and layernorm's dx to 0."""
    for _, made, formula, _ in calls_with_formulas(state := recorded(variant)):
        if "row sums to" in formula.means:
            expected = int(re.search(r"row sums to (\d)", formula.means)[1])
            sums = state.trace.arrays[made.array].sum(axis=-1)
            np.testing.assert_allclose(sums, expected, atol=1e-12)


@pytest.mark.parametrize("text", ["y[t] = x[t] ** 2", "y[t] = foo(x[t])", "y[t] = x[t] if x[t] else z.w"])
def test_what_the_grammar_lacks_is_refused(text):
    with pytest.raises(ValueError, match="a formula cannot have"):
        parse(text)


def test_a_name_is_what_it_was_before_the_line():
    """In `dz = dz * (dloss / N)` the right dz is the old one; in `dy = dy.reshape(...)` too."""
    state = recorded("gpt")
    call = next(call for call in state.trace.calls if call.function == "cross_entropy_backward")
    last = [made for made in call.made if made.target.name == "dz"][-1]
    before, after = state.trace.environment(call, last)["dz"], state.trace.arrays[last.array]
    np.testing.assert_allclose(after, before * call.scalars["dloss"] / call.scalars["N"])
    assert tape.formula_of(call, last)[0].text == "dz[t,v] = dz[t,v] * (dloss / N)"
