"""Write a backward: the text of an exercise file, made of the source of the op."""

import inspect
import textwrap
from collections.abc import Callable

from tensorlite.op_info import OP_INFO
from tensorlite.testing.bugs import CHAPTERS, true_pair
from tensorlite.testing.exercises import inputs
from tensorlite.testing.exercises.sources import cache_line, imports_for, shapes, signature, source

HEAD = '''\
"""Exercise: write the backward of {op} (chapter {chapter} of the course).

python exercise_{op}.py                                 runs the test at the end
python -m tensorlite.exercises --try exercise_{op}.py   runs it with hints: add --hint 1, 2 or 3
"""
'''

TEST = """\
if __name__ == "__main__":
    random = np.random.default_rng(0)
    try:
        report = gradcheck({op}_forward, {op}_backward, draw_inputs(random), raise_on_fail=False)
    except NotImplementedError as hole:
        sys.exit(str(hole))
    print(report)
    sys.exit(0 if report.ok else 1)
"""


def exercise(op: str) -> str:
    """Return the text of exercise_OP.py: the forward of the op, a hole for its backward, random inputs, and the test."""
    forward, backward = true_pair(op)
    parts = [
        imports(forward, backward),
        source(forward),
        hole(backward, op),
        input_source(op),
        TEST.format(op=op),
    ]
    return HEAD.format(op=op, chapter=CHAPTERS[op]) + "\n" + "\n\n\n".join(parts)


def imports(forward: Callable, backward: Callable) -> str:
    """Return the import statements of the file. The backward's are there as well: they are the parts to build it from."""
    needed = imports_for(forward, backward)
    standard = ["import sys", *(line for line in needed if line.startswith("import "))]
    ours = ["from tensorlite import gradcheck", *(line for line in needed if line.startswith("from tensorlite"))]
    return "\n".join([*sorted(standard), "", "import numpy as np", "", *sorted(ours)])


def hole(backward: Callable, op: str) -> str:
    """Return the signature of the backward, the shapes from its docstring, the parts of its cache, and the hole."""
    gradients = ", ".join(f"d{name}" for name in OP_INFO[op].inputs)
    dy = next(iter(inspect.signature(backward).parameters))
    lines = [
        f'"""Go back through {op}_forward, from {dy} to {gradients}.',
        "",
        shapes(backward),
        '"""',
        cache_line(backward),
        f'raise NotImplementedError("write me: return {gradients}")',
    ]
    if not cache_line(backward):
        lines.pop(-2)
    return signature(backward) + "\n" + textwrap.indent("\n".join(lines), "    ")


def input_source(op: str) -> str:
    """Return the source of the function that draws the inputs of an op, under the name draw_inputs."""
    return source(getattr(inputs, op)).replace(f"def {op}(", "def draw_inputs(")
