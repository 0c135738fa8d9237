"""Formulas read as Python expressions: their tree, their value for one element, what they read.

The tree is nested lists, because the page evaluates and draws the same tree in JavaScript:

    ["num", 0.5]                 a number
    ["name", "scale"]            an index, or a scalar of the function
    ["at", "x", [index, ...]]    an element; an index is an expression
    ["+", a, b]                  also - * / // % max < <= > == ; a comparison is 1 or 0
    ["neg", a]                   -a
    ["Sum", "c", a]              over all values of the index c; also Mean, Max
    ["exp", a]                   also log, sqrt, tanh
    ["if", condition, a, b]      only the branch that is taken is read
"""

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Tree = list[Any]
Names = Mapping[str, Any]  # what the names of a formula mean: arrays and scalars
Read = tuple[str, int]  # an element that was read: the name, and its place in the flat array

OPERATORS: dict[type, str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.Eq: "==",
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    "==": lambda a, b: a == b,
    "max": max,
}
FUNCTIONS = {"exp": math.exp, "log": math.log, "sqrt": math.sqrt, "tanh": math.tanh}
OVER_AN_INDEX: dict[str, Callable[[Sequence[float]], float]] = {
    "Sum": math.fsum,
    "Mean": lambda terms: math.fsum(terms) / len(terms),
    "Max": max,
}


@dataclass(frozen=True)
class Parsed:
    """A formula: the name it sets, the indices of one element, and the expression."""

    name: str
    indices: tuple[str, ...]
    tree: Tree

    @property
    def only_moves(self) -> bool:
        """Whether each element is one element of another array, unchanged."""
        return _only_moves(self.tree)


@cache
def parse(text: str) -> Parsed:
    """Read `name[i, j] = expression`. A scalar is `name[]`. Raises ValueError for what the grammar does not have."""
    left, right = text.split(" = ", 1)
    name, indices = left.rstrip("]").split("[")
    tree = _tree(ast.parse(right, mode="eval").body)
    return Parsed(name, tuple(index.strip() for index in indices.split(",") if index.strip()), tree)


def _tree(node: ast.expr) -> Tree:
    match node:
        case ast.Constant(value=int() | float() as value):
            return ["num", value]
        case ast.Name(id=name):
            return ["name", name]
        case ast.Subscript(value=ast.Name(id=name), slice=index):
            indices = index.elts if isinstance(index, ast.Tuple) else [index]
            return ["at", name, [_tree(i) for i in indices]]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return ["neg", _tree(operand)]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return [OPERATORS[type(op)], _tree(left), _tree(right)]
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OPERATORS:
            return [OPERATORS[type(op)], _tree(left), _tree(right)]
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return ["if", _tree(test), _tree(body), _tree(orelse)]
        case ast.Call(func=ast.Name(id=name), args=[ast.Name(id=index), body]) if name in OVER_AN_INDEX:
            return [name, index, _tree(body)]
        case ast.Call(func=ast.Name(id=name), args=[argument]) if name in FUNCTIONS:
            return [name, _tree(argument)]
        case ast.Call(func=ast.Name(id="max"), args=[left, right]):
            return ["max", _tree(left), _tree(right)]
    raise ValueError(f"a formula cannot have {ast.unparse(node)!r}")


def _only_moves(tree: Tree) -> bool:
    if tree[0] == "if":
        return _only_moves(tree[2]) and _only_moves(tree[3])
    return tree[0] == "at"


def merge_axes(array: np.ndarray, n_indices: int) -> np.ndarray:
    """Return a view with as many axes as a formula has indices: the leading axes are merged."""
    array = np.asarray(array)
    if n_indices == 0:
        return array.reshape(())
    n_merged = array.ndim - n_indices + 1
    return array.reshape(-1, *array.shape[n_merged:])


def evaluate(tree: Tree, at: Mapping[str, int], names: Names, reads: list[Read] | None = None) -> Any:
    """Return the value of an expression for one element.

    at: the value of every index.
    names: arrays and scalars by name. inf needs no entry.
    reads: every element whose value enters the result is appended here. What a condition looks at only decides.
    """
    kind = tree[0]
    if kind == "num":
        return tree[1]
    if kind == "name":
        return at[tree[1]] if tree[1] in at else math.inf if tree[1] == "inf" else names[tree[1]]
    if kind == "at":
        index = tuple(int(evaluate(i, at, names, reads)) for i in tree[2])
        array = merge_axes(names[tree[1]], len(index))
        if reads is not None:
            reads.append((tree[1], int(np.ravel_multi_index(index, array.shape))))
        return array[index].item()
    if kind == "neg":
        return -evaluate(tree[1], at, names, reads)
    if kind == "if":
        return evaluate(tree[2] if evaluate(tree[1], at, names) else tree[3], at, names, reads)
    if kind in FUNCTIONS:
        return FUNCTIONS[kind](evaluate(tree[1], at, names, reads))
    if kind in OVER_AN_INDEX:
        length = axis_length(tree[2], tree[1], names)
        return OVER_AN_INDEX[kind]([evaluate(tree[2], {**at, tree[1]: i}, names, reads) for i in range(length)])
    return BINARY[kind](evaluate(tree[1], at, names, reads), evaluate(tree[2], at, names, reads))


def axis_length(tree: Tree, index: str, names: Names) -> int:
    """Return how many values an index has: the length of an axis that it addresses alone."""
    found = _find_axis(tree, index, names)
    if found is None:
        raise ValueError(f"no array is indexed with {index} alone")
    return found


def _find_axis(tree: Tree, index: str, names: Names) -> int | None:
    if tree[0] == "at":
        for axis, i in enumerate(tree[2]):
            if i == ["name", index]:
                return merge_axes(names[tree[1]], len(tree[2])).shape[axis]
    for part in tree[1:]:
        if isinstance(part, list) and (found := _find_axis_in(part, index, names)) is not None:
            return found
    return None


def _find_axis_in(part: Tree, index: str, names: Names) -> int | None:
    """Search a tree, or the list of trees that an element's indices are."""
    if part and isinstance(part[0], str):
        return _find_axis(part, index, names)
    return next((found for tree in part if (found := _find_axis(tree, index, names)) is not None), None)
