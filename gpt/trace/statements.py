"""The statements of a function: the names each one sets, and the step of the derivation in its comment."""

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass
from functools import cache
from types import CodeType

STEP_COMMENT = re.compile(r"# ((?:\d+\.(?:, | and )?)+)")


@dataclass(frozen=True)
class Target:
    """A name that a statement sets. `version` counts the statements of the function that set it, from 0."""

    name: str
    version: int


@dataclass(frozen=True)
class Statement:
    """One statement of a function, by its line numbers in the file."""

    first: int
    last: int
    targets: tuple[Target, ...]  # in the order of the text; of a return, one per returned value
    is_return: bool
    in_place: bool  # it changes an array that exists, as `dz[...] -= 1` does
    steps: tuple[int, ...]  # of the derivation in the docstring


@cache
def statements(code: CodeType, return_names: tuple[str, ...]) -> dict[int, Statement]:
    """Return the statement at each line of a function. return_names: what returned expressions without a name are called."""
    lines, start = inspect.getsourcelines(code)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    versions: dict[str, int] = {}
    found: dict[int, Statement] = {}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AugAssign | ast.Return)]
    for node in sorted(nodes, key=lambda node: node.lineno):
        names = _returned(node, return_names) if isinstance(node, ast.Return) else _assigned(node)
        targets = []
        for name in names:
            targets.append(Target(name, versions.get(name, 0)))
            versions[name] = versions.get(name, 0) + (name != "")
        first, last = start + node.lineno - 1, start + (node.end_lineno or node.lineno) - 1
        source = "".join(lines[node.lineno - 1 : node.end_lineno])
        comment = STEP_COMMENT.search(source)
        steps = tuple(int(n) for n in re.findall(r"\d+", comment[1])) if comment else ()
        is_return = isinstance(node, ast.Return)
        statement = Statement(first, last, tuple(targets), is_return, _is_in_place(node), steps)
        found |= dict.fromkeys(range(first, last + 1), statement)
    return found


def _assigned(node: ast.Assign | ast.AugAssign) -> list[str]:
    """Return the names that an assignment sets: `a`, `(a, b), c`, and the a of `a[i]`."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = []
    for target in targets:
        while isinstance(target, ast.Subscript):
            target = target.value
        names += [n.id for n in _leaves(target) if isinstance(n, ast.Name)]
    return names


def _leaves(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.Tuple):
        return [leaf for element in node.elts for leaf in _leaves(element)]
    return [node]


def _returned(node: ast.Return, return_names: tuple[str, ...]) -> list[str]:
    """Return one name per returned value, "" for a value that has no name of its own here."""
    if node.value is None:
        return []
    elements = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
    return [*return_names, *[""] * len(elements)][: len(elements)]


def _is_in_place(node: ast.Assign | ast.AugAssign | ast.Return) -> bool:
    if isinstance(node, ast.AugAssign):
        return True
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript)
