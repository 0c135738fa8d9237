"""Pieces of the source of a function: its signature, body and docstring, and the imports it needs."""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable

Paragraphs = list[str]


def source(function: Callable) -> str:
    """Return the source from `def` on, without decorators."""
    text = textwrap.dedent(inspect.getsource(function))
    return "\n".join(text.splitlines()[definition(text).lineno - 1 :])


def definition(text: str) -> ast.FunctionDef:
    """Return the syntax tree of the function that the text defines."""
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.FunctionDef)
    return node


def signature(function: Callable) -> str:
    """Return the lines of `def`."""
    text = source(function)
    return "\n".join(text.splitlines()[: definition(text).body[0].lineno - 1])


def body(function: Callable) -> str:
    """Return the lines below the docstring."""
    text = source(function)
    node = definition(text)
    first = node.body[1] if ast.get_docstring(node) else node.body[0]
    return "\n".join(text.splitlines()[first.lineno - 1 :])


def without_docstring(function: Callable, name: str) -> str:
    """Return the source without its docstring, under another name."""
    renamed = re.sub(r"^def \w+", f"def {name}", signature(function))
    return f"{renamed}\n{body(function)}"


def cache_line(function: Callable) -> str:
    """Return the line of a backward that takes the cache apart, or an empty string."""
    for node in definition(source(function)).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id == "cache":
            return ast.unparse(node).replace("(", "").replace(")", "")
    return ""


def paragraphs(function: Callable) -> Paragraphs:
    """Return the paragraphs of the docstring."""
    return inspect.cleandoc(function.__doc__ or "").split("\n\n")


def formula(function: Callable) -> str:
    """Return the formula, which is the first paragraph of the docstring."""
    return paragraphs(function)[0]


def derivation(backward: Callable) -> str:
    """Return the numbered steps of the docstring."""
    text = paragraphs(backward)
    return "\n\n".join(text[start_of_derivation(text) :])


def shapes(backward: Callable) -> str:
    """Return what the docstring says between the formula and the derivation, less the remark that two arrays are the same."""
    text = paragraphs(backward)
    between = "\n\n".join(text[1 : start_of_derivation(text)])
    return re.sub(r", the same array as \w+,?", "", between)


def start_of_derivation(text: Paragraphs) -> int:
    """Return the number of the first paragraph of the derivation."""
    starts = [paragraph.startswith("Derivation") for paragraph in text]
    return starts.index(True)


def imports_for(*functions: Callable) -> list[str]:
    """Return the import statements that some functions of one file need in another file.

    What their file imports is imported from the same place. What their file defines is imported from their file.
    """
    file = functions[0].__module__
    needed = {node.id for function in functions for node in ast.walk(ast.parse(source(function))) if isinstance(node, ast.Name)}
    statements = []
    own: list[str] = []
    for node in ast.parse(inspect.getsource(sys.modules[file])).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if alias.name in needed]
            if node.names:
                statements.append(ast.unparse(node))
        else:
            own += [name for name in defined_names(node) if name in needed]
    if own:
        statements.append(f"from {file} import {', '.join(sorted(own))}")
    return statements


def defined_names(node: ast.stmt) -> list[str]:
    """Return the names that a statement of a file defines."""
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []
