"""Shape specifications: what is drawn from them, what is printed for them, and what is said of those that cannot be read."""

import subprocess
import sys
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from layers import LAYERS, OPS
from tensorlite.testing.shapes import drawn_inputs, parse


def examples(text, n=200):
    draw = Random(0).randint
    return [parse(text).example(draw) for _ in range(n)]


def drawn(text, n=200):
    return [example.inputs() for example in examples(text, n)]


def test_equal_letters_are_equal_lengths():
    for inputs in drawn("x: B T C, w: C D, b: D"):
        (_, _, C), (C_of_w, D) = inputs["x"].shape, inputs["w"].shape
        assert C_of_w == C
        assert inputs["b"].shape == (D,)


def test_most_examples_have_unequal_axes_and_some_are_square_or_of_length_1():
    kinds = Counter()
    for inputs in drawn("x: B T C D"):
        shape = inputs["x"].shape
        kinds["unequal" if len(set(shape)) == 4 else "equal"] += 1
        kinds["of length 1"] += 1 in shape
        kinds["longest"] = max(kinds["longest"], *shape)
    assert 100 < kinds["unequal"] < 190
    assert kinds["equal"] > 20
    assert kinds["of length 1"] > 20
    assert kinds["longest"] <= 8


def test_leading_axes_are_the_same_everywhere():
    counts = Counter()
    for inputs in drawn("x: B ... C, m: ... bool"):
        assert inputs["x"].shape[1:-1] == inputs["m"].shape
        counts[inputs["m"].ndim] += 1
    assert set(counts) == {0, 1, 2}
    assert min(counts.values()) > 30


def test_lengths_are_computed():
    text = "three: 3H*D, same: 3*(H D), parentheses: 3(H*D), fixed: H 7, sum: 2H+D+1, n: =H, more: =H+1"
    for inputs in drawn(text):
        H, n = inputs["n"], len(inputs["three"])
        D = n // (3 * H)
        assert len(inputs["same"]) == len(inputs["parentheses"]) == n == 3 * H * D
        assert inputs["fixed"].shape == (H, 7)
        assert len(inputs["sum"]) == 2 * H + D + 1
        assert type(inputs["n"]) is int
        assert inputs["more"] == H + 1


def test_kinds_of_values():
    text = "x: N 50, g: N 50 gain, a: N 50 0.25..0.5, minus: N -2..-1, f: 2 float, s: , q: 1..2, "
    text += "ids: N 50 int<V, table: V, m: N 50 bool"
    for inputs in drawn(text, 50):
        assert all(isinstance(a, np.ndarray) for a in inputs.values())
        assert {inputs[name].dtype for name in ("x", "g", "a", "s", "q", "f")} == {np.dtype(float)}
        assert 0.5 < inputs["x"].std() < 1.5
        assert ((np.abs(inputs["g"]) >= 0.5) & (np.abs(inputs["g"]) <= 2)).all()
        assert {-1.0, 1.0} == set(np.sign(inputs["g"]).flat)
        assert ((inputs["a"] >= 0.25) & (inputs["a"] <= 0.5)).all()
        assert ((inputs["minus"] >= -2) & (inputs["minus"] <= -1)).all()
        V = len(inputs["table"])
        assert inputs["ids"].dtype == np.int64
        assert set(inputs["ids"].flat) == set(range(V))
        assert inputs["m"].dtype == bool
        assert 0 < inputs["m"].mean() < 1
        assert inputs["s"].shape == inputs["q"].shape == ()


def test_optional_inputs_are_there_in_half_of_the_examples():
    for name in ("b", "c"):
        absent = sum(inputs[name] is None for inputs in drawn("x: B, b: B?, c: B int<3 ?"))
        assert 70 < absent < 130


def test_the_same_inputs_are_drawn_each_time():
    for example in examples("x: B C, m: B bool", 5):
        a, b = example.inputs(), example.inputs()
        assert a["x"] is not b["x"]
        np.testing.assert_array_equal(a["x"], b["x"])
    assert examples("x: B C", 5) == examples("x: B C", 5)
    seeds = {example.seed for example in examples("x: B C", 50)}
    assert len(seeds) > 40


SCALARS = "s: , g: gain, a: 0..1, m: bool, i: int<3, n: =N"


@pytest.mark.parametrize("text", [SCALARS, *(layer.specification for layer in (*OPS, *LAYERS))])
def test_the_printed_code_draws_the_same_inputs(text):
    for example in examples(text, 20):
        names = {"np": np}
        exec(example.code(), names)
        expected = example.inputs()
        assert list(names["inputs"]) == list(expected)
        for name, a in expected.items():
            assert type(names["inputs"][name]) is type(a)
            np.testing.assert_array_equal(names["inputs"][name], a)


def test_smaller_examples():
    example = next(e for e in examples("x: B ... C, b: C?") if len(e.leading) == 2 and e.leading[0] == 3 and not e.absent)
    smaller = list(example.smaller())
    assert {len(e.leading) for e in smaller} == {0, 1, 2}
    assert example not in smaller
    assert all(sum(e.letters.values()) + sum(e.leading) + e.seed - len(e.absent) < 10**5 for e in smaller)
    assert smaller[-1].seed == 0
    assert smaller[-2].absent == ("b",)
    for e in smaller:
        changed = [e.letters != example.letters, e.leading != example.leading, e.absent != example.absent, e.seed != example.seed]
        assert sum(changed) == 1
    smallest = example
    while (next_one := next(smallest.smaller(), None)) is not None:
        smallest = next_one
    assert (smallest.letters, smallest.leading, smallest.absent, smallest.seed) == ({"B": 1, "C": 1}, (), ("b",), 0)


# ---- with Hypothesis ----


@settings(max_examples=10)
@given(drawn_inputs("x: B C, w: C"), st.data())
def test_the_strategy_can_be_given(inputs, data):
    assert inputs["x"].shape[1:] == inputs["w"].shape
    assert data.draw(drawn_inputs("x: 3"))["x"].shape == (3,)


@pytest.mark.parametrize(
    ("text", "fails", "shape"),
    [
        ("x: B T C", lambda x: x.shape[1] >= 3, (1, 3, 1)),
        ("x: B T C", lambda x: True, (1, 1, 1)),
        ("x: B T C", lambda x: x.shape[0] != x.shape[2], (1, 1, 2)),
        ("x: ... C", lambda x: x.ndim > 1, (1, 1)),
    ],
)
def test_the_smallest_shape_and_seed_are_found(text, fails, shape):
    inputs = find(drawn_inputs(text), lambda inputs: fails(inputs["x"]), settings=settings(database=None))
    np.testing.assert_array_equal(inputs["x"], np.random.default_rng(0).standard_normal(shape))


@pytest.mark.program
def test_hypothesis_is_loaded_when_a_strategy_is_asked_for():
    code = """
import sys
from tensorlite.testing import property_tests, shapes
assert "hypothesis" not in sys.modules
shapes.drawn_inputs("x: B")
assert "hypothesis" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- errors ----

ERRORS = {
    "x: B T C, w: C $": ("'[$]' has no meaning", 15),
    "x B": ("colon after the input x", 2),
    ": B": ("name of an input", 0),
    "x: B, x: C": ("x is already there", 6),
    "x: B int": ("bound of the integers", 8),
    "x: B int<": ("letter or the length", 9),
    "x: B int<int": ("letter or the length", 9),
    "x: ... B ...": ("stands once", 9),
    "x: B 0": ("at least 1", 5),
    "n: B =H": ("has no axes", 6),
    "a: 2..1": ("lower bound", 3),
    "x: (H D": ("letter or the length", 7),
    "x: B C? D": ("comma before the next", 8),
    "x: B bool C": ("comma before the next", 10),
    "x: B w: C": ("comma before the next", 6),
    "x: B,,": ("name of an input", 5),
    "x: B +": ("letter or the length", 6),
    "x: B * * C": ("letter or the length", 7),
    "": ("at least one input", 0),
}


@pytest.mark.parametrize("text", ERRORS)
def test_an_error_shows_the_place(text):
    message, column = ERRORS[text]
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    line, mark = str(caught.value).splitlines()[-2:]
    assert line == f"    {text}"
    assert mark == " " * (4 + column) + "^"


def test_the_place_in_a_text_of_several_lines():
    with pytest.raises(ValueError, match="colon") as caught:
        parse("x: B T,\n  w C,\n  b: D")
    assert str(caught.value).splitlines()[1:] == ["      w C,", "        ^"]


def test_lines_and_a_comma_at_the_end():
    assert [i.name for i in parse("x: B T,\n  w: C,\n").inputs] == ["x", "w"]
