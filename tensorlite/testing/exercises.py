"""Find the mistake: every layer of `bugs` is an exercise.

python -m tensorlite.exercises               what there is
python -m tensorlite.exercises 7             read number 7 and say what is wrong in it
python -m tensorlite.exercises 7 --check     what finite differences say
python -m tensorlite.exercises 7 --explain   the answer
"""

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Sequence

from tensorlite.op_info import OP_INFO
from tensorlite.testing.bugs import BUGS, Bug, example
from tensorlite.testing.gradcheck import gradcheck


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tensorlite.exercises", description="Find the mistake in a backward pass.")
    parser.add_argument("number", nargs="?", help="number of the exercise; without it all are listed")
    parser.add_argument("--check", action="store_true", help="compare with finite differences (needs SciPy)")
    parser.add_argument("--explain", action="store_true", help="show the answer")
    options = parser.parse_args(arguments)
    if options.number is None:
        if options.check or options.explain:
            return refuse("--check and --explain need the number of an exercise")
        print(contents())
        return 0
    if not options.number.isdecimal() or not 1 <= int(options.number) <= len(BUGS):
        return refuse(f"there is no exercise {options.number}; they are numbered 1 to {len(BUGS)}")
    number = int(options.number)
    bug = BUGS[number - 1]
    print(code(bug))
    if options.check:
        try:
            print("\n" + check(bug))
        except ImportError:
            return refuse('gradcheck needs SciPy: pip install "tensorlite[check]"')
    if options.explain:
        print("\n" + answer(bug))
    if not options.check and not options.explain:
        ask(number, bug)
    return 0


def refuse(why: str) -> int:
    """Print on stderr, in one line, why nothing is done; return the exit status."""
    print(f"error: {why}", file=sys.stderr)
    return 2


def contents() -> str:
    """Return the exercise numbers per op, without the names, which would give the mistakes away."""
    lines = [f"{len(BUGS)} layers, each with one mistake:", ""]
    for op in OP_INFO:
        numbers = [str(i) for i, bug in enumerate(BUGS, 1) if bug.op == op]
        lines.append(f"{op:18s} {' '.join(numbers)}")
    return "\n".join([*lines, "", "python -m tensorlite.exercises NUMBER   shows one and asks what is wrong in it"])


def code(bug: Bug) -> str:
    """Return the source of forward and backward without docstrings; which of the two is wrong is the question."""
    forward = source(bug.forward, "forward")
    backward = source(bug.backward, "backward")
    return f"# a forward and a backward of {bug.op}\n\n{forward}\n\n\n{backward}"


def source(function: Callable, name: str) -> str:
    """Return the source of a function from its def on, under a name that gives nothing away."""
    text = re.sub(r'\n +""".*?"""', "", textwrap.dedent(inspect.getsource(function)), flags=re.DOTALL)
    definition = re.search(r"^def \w+", text, re.MULTILINE)
    assert definition
    return f"def {name}{text[definition.end() :]}".rstrip()


def choices(bug: Bug) -> list[str]:
    """Return what can be wrong in a layer of this op: the value y, or a gradient."""
    if bug.op == "attention":
        return ["y", "dq", "dk", "dv"]
    return ["y"] + [f"d{name}" for name in OP_INFO[bug.op].inputs]


def ask(number: int, bug: Bug) -> None:
    """Ask what is wrong and judge the reply; without a terminal, only ask."""
    question = f"\nWhich of {', '.join(choices(bug))} are wrong? "
    reply = None
    if sys.stdin is not None and sys.stdin.isatty():
        try:
            reply = set(re.findall(r"\w+", input(question)))
        except (EOFError, KeyboardInterrupt):
            print()
    else:
        print(question)
    if reply is not None:
        print("Yes." if reply == set(bug.wrong) else "No.")
    print(f"See also: python -m tensorlite.exercises {number} --check   and   --explain")


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


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader of the output, such as `head`, has exited
        sys.stderr.close()
        sys.exit(141)
