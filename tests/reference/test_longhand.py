"""The long form itself: its gradients by the complex step, its lines in reverse order, and on another array library."""

import ast
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import fake_cupy
from tensorlite import gradcheck
from tensorlite.reference import longhand

normal = np.random.default_rng(0).standard_normal


@dataclass(frozen=True)
class Example:
    """One function of the long form with its inputs in order, and those that it returns a gradient of."""

    function: Callable
    inputs: dict[str, Any]
    wrt: tuple[str, ...]
    y_shape: tuple[int, ...]


KEPT = np.array([2.0, 0.0, 2.0, 2.0])  # what dropout multiplies four probabilities with
EXAMPLES = [
    Example(longhand.longhand_linear, {"x": normal((3, 4)), "w": normal((4, 5)), "b": normal(5)}, ("x", "w", "b"), (3, 5)),
    Example(longhand.longhand_embedding, {"ids": np.array([2, 0, 2]), "table": normal((4, 5))}, ("table",), (3, 5)),
    Example(longhand.longhand_softmax, {"x": normal((3, 5))}, ("x",), (3, 5)),
    Example(longhand.longhand_cross_entropy, {"logits": normal((3, 5)), "targets": np.array([4, 0, 4])}, ("logits",), ()),
    Example(
        longhand.longhand_layernorm, {"x": normal((3, 5)), "w": normal(5), "b": normal(5), "eps": 0.1}, ("x", "w", "b"), (3, 5)
    ),
    Example(longhand.longhand_gelu, {"x": normal((3, 5))}, ("x",), (3, 5)),
    Example(
        longhand.longhand_query, {"q": normal(3), "k": normal((4, 3)), "v": normal((4, 3)), "dropout": KEPT}, ("q", "k", "v"), (3,)
    ),
    Example(
        longhand.longhand_attention,
        {"qkv": normal((2, 4, 18)), "n_head": 2, "dropout": KEPT * np.ones((2, 2, 4, 1))},
        ("qkv",),
        (2, 4, 6),
    ),
]
every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.function.__name__)


@every_example
def test_gradients(example):
    """Against the complex step, which knows nothing of the closed forms."""

    def forward(**inputs):
        y, *_ = example.function(*inputs.values(), np.zeros(example.y_shape))
        return y, inputs

    def backward(dy, inputs):
        _, *grads = example.function(*inputs.values(), dy)
        return dict(zip(example.wrt, grads, strict=True))

    gradcheck(forward, backward, example.inputs, wrt=example.wrt, method="complex", rtol=1e-11, atol=1e-13)


@every_example
def test_on_cupy_arrays(example, monkeypatch):
    cupy = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    dy = normal(example.y_shape)
    moved = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in example.inputs.values()]
    found = example.function(*moved, cupy.asarray(dy))
    for a, b in zip(found, example.function(*example.inputs.values(), dy), strict=True):
        np.testing.assert_array_equal(a.get(), b)


@dataclass(frozen=True)
class Line:
    """A numbered line: the name that it assigns, and the names that it reads."""

    number: int
    written: str
    read: frozenset[str]


def numbered_lines(function):
    source = inspect.getsource(function)
    comments = {number: re.search(r"# (\d+)\.", line) for number, line in enumerate(source.splitlines(), 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign | ast.AugAssign) and comments[node.lineno]:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            written = next(n.id for n in ast.walk(target) if isinstance(n, ast.Name))  # of table[ids] the table
            read = frozenset(n.id for n in ast.walk(node.value) if isinstance(n, ast.Name))
            yield Line(int(comments[node.lineno][1]), written, read)


FULLY_WRITTEN = [example for example in EXAMPLES if example.function is not longhand.longhand_attention]  # that one is loops


@pytest.mark.parametrize("example", FULLY_WRITTEN, ids=lambda example: example.function.__name__)
def test_backward_undoes_the_lines_of_forward_from_the_last_to_the_first(example):
    lines = list(numbered_lines(example.function))
    n = max(line.number for line in lines)
    forward, backward = lines[:n], lines[n:]
    assert [line.number for line in forward] == list(range(1, n + 1))
    numbers = [line.number for line in backward]
    assert numbers == sorted(numbers, reverse=True)

    differentiated = {*example.wrt, *(line.written for line in forward)}
    for line in forward:
        its_backward = [other for other in backward if other.number == line.number]
        assert {other.written for other in its_backward} == {f"d{name}" for name in line.read & differentiated}
        assert any(f"d{line.written}" in other.read for other in its_backward)
