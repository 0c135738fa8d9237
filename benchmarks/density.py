"""How dense the code reads: syntax nodes per line of every function's body.   python benchmarks/density.py [FILE ...]

A function that does much per line must be read slowly. The measure is simple and the same for every project: the nodes of Python's
syntax tree in a function's body, its docstring left out, over the lines of that body that hold code. nanoGPT's model.py has a
median of 11.3 and a maximum of 17; tests/repo/test_density.py holds the reference tier and the model files at a median of 13.
"""

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
BOOK = [  # what a reader of the reference tier reads: ten files of ops, the model, one training step
    *(
        f"tensorlite/reference/{name}.py"
        for name in (
            "linear",
            "softmax",
            "cross_entropy",
            "embedding",
            "layernorm",
            "activations",
            "attention",
            "dropout",
            "composites",
            "optim",
        )
    ),
    "gpt/models/gpt.py",
    "gpt/training/step.py",
]
GROUPS = ("tensorlite/reference", "gpt/models", "gpt/training", "gpt", "gpt/analysis", "tensorlite/cpu", "tensorlite/cuda")
GROUPS += ("tensorlite/cuda/runtime", "tensorlite/testing", "tensorlite")


class Density(NamedTuple):
    """One function: syntax nodes per line of its body, and where it stands."""

    nodes_per_line: float
    function: str


def densities(path: Path) -> Iterator[Density]:
    """The density of every function and method of a file. Functions within a function are counted with it and alone."""
    source = path.read_text()
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                span = lines[body[0].lineno - 1 : body[-1].end_lineno]
                n_lines = sum(bool(line.strip()) and not line.strip().startswith("#") for line in span)
                n_nodes = sum(1 for statement in body for _ in ast.walk(statement))
                yield Density(n_nodes / n_lines, f"{path.stem}.{node.name}")


def summary(paths: list[Path]) -> tuple[float, Density, int]:
    """The median over all functions of some files, the densest function, and how many there are."""
    found = [density for path in paths for density in densities(path)]
    return statistics.median(density.nodes_per_line for density in found), max(found), len(found)


def book_lines() -> int:
    """Lines of the reference tier, docstrings included."""
    return sum(len((ROOT / path).read_text().splitlines()) for path in BOOK)


def main() -> None:
    """Print every function of the files that are named, or a line for each package."""
    if sys.argv[1:]:
        for density in sorted(density for name in sys.argv[1:] for density in densities(Path(name))):
            print(f"{density.nodes_per_line:5.1f}  {density.function}")
        return
    print(f"{'':24} functions  median  densest")
    for group in ("the book", *GROUPS):
        paths = [ROOT / path for path in BOOK] if group == "the book" else sorted((ROOT / group).glob("*.py"))
        median, densest, n = summary(paths)
        print(f"{group:24} {n:9}  {median:6.1f}  {densest.nodes_per_line:5.1f} {densest.function}")
    print(f"the book: {book_lines()} lines in {len(BOOK)} files")


if __name__ == "__main__":
    main()
