"""Find the mistake: every layer of `bugs` is an exercise."""

import re
import sys
import textwrap
from itertools import groupby

from tensorlite.testing.bugs import BUGS, Bug, example, true_pair
from tensorlite.testing.exercises.compare import gradient_names, largest_differences, named_gradients, random_dy
from tensorlite.testing.exercises.sources import formula, without_docstring
from tensorlite.testing.gradcheck import gradcheck


def contents() -> str:
    """Return the exercise numbers per chapter and op, without the names, which would give the mistakes away."""
    lines = [f"{len(BUGS)} layers, each with one mistake, by the chapters of the course:", ""]
    numbered = enumerate(BUGS, 1)
    for (chapter, op), group in groupby(numbered, key=lambda pair: (pair[1].chapter, pair[1].op)):
        numbers = [str(number) for number, _ in group]
        lines.append(f"chapter {chapter:2d}  {op:18s}  {' '.join(numbers)}")
    return "\n".join(lines)


def code(bug: Bug) -> str:
    """Return the source of forward and backward without docstrings; which of the two is wrong is the question."""
    forward = without_docstring(bug.forward, "forward")
    backward = without_docstring(bug.backward, "backward")
    return f"# a forward and a backward of {bug.op}\n\n{forward}\n\n\n{backward}"


def choices(bug: Bug) -> list[str]:
    """Return what can be wrong in a layer of this op: the value y, or a gradient."""
    return ["y", *gradient_names(bug.op)]


def ask(bug: Bug) -> None:
    """Ask what is wrong and judge the reply; without a terminal, only ask."""
    question = f"\nWhich of {', '.join(choices(bug))} are wrong? "
    reply = None
    if sys.stdin is not None and sys.stdin.isatty():
        try:
            words = re.findall(r"\w+", input(question).lower())
            reply = {choice for choice in choices(bug) if choice.lower() in words}
        except EOFError:
            print()
    else:
        print(question)
    if reply is not None:
        print("Yes." if reply == set(bug.wrong) else "No.")


def hint(bug: Bug, level: int) -> str:
    """Return which outputs are wrong; at level 2 also ratios of their entries to the truth, at level 3 the formula as well."""
    lines = [f"Wrong: {', '.join(bug.wrong)}."]
    if level >= 2:
        lines += wrong_values(bug) if bug.wrong == ("y",) else wrong_gradients(bug)
    if level >= 3:
        true = true_pair(bug.op)
        right = true.forward if bug.wrong == ("y",) else true.backward
        lines += ["The right formula:", textwrap.indent(formula(right), "  ")]
    return "\n".join(lines)


def wrong_gradients(bug: Bug) -> list[str]:
    """Return the entries of the wrong gradients that differ most from the truth, for the cache of the true forward."""
    true = true_pair(bug.op)
    y, cache = true.forward(**example(bug.op))
    dy = random_dy(y)
    found = named_gradients(bug.op, bug.backward(dy, cache))
    expected = named_gradients(bug.op, true.backward(dy, cache))
    return [line for name in bug.wrong for line in largest_differences(name, found[name], expected[name])]


def wrong_values(bug: Bug) -> list[str]:
    """Return the entries of y that differ most from the truth, or which test sees the difference."""
    inputs = example(bug.op)
    y, _ = bug.forward(**inputs)
    true_y, _ = true_pair(bug.op).forward(**inputs)
    differences = largest_differences("y", y, true_y)
    return differences or [f"On ordinary inputs y is right. The test that fails is {bug.caught_by}."]


def check(bug: Bug) -> str:
    """Return what gradcheck reports about the layer."""
    report = gradcheck(bug.forward, bug.backward, example(bug.op), raise_on_fail=False)
    if not report.ok:
        return str(report)
    return f"{report}\nThis backward belongs to this forward. Finite differences cannot say whether the forward is right."


def answer(bug: Bug) -> str:
    """Return what is wrong, how it happens, why it is wrong and which test catches it."""
    test = bug.caught_by.replace("gradcheck", "test_gradients_by_finite_differences, with gradcheck")
    lines = [
        f"{bug.op}: {bug.name}. Wrong: {', '.join(bug.wrong)}.",
        f"How it happens: {bug.how_it_happens}",
        f"Why it is wrong: {bug.explanation}",
        f"Caught by: {test}",
    ]
    return "\n".join(textwrap.fill(line, 100, subsequent_indent="  ") for line in lines)
