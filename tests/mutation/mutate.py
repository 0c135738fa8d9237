"""How many small mistakes in the ops and the optimizer go unnoticed by the tests?   make mutate

mutmut writes every mutant of the functions below and runs the tests that reach them. Its own mutations are about logic; those here
are about arithmetic: a lost term, factor, transpose or minus sign, two gradients swapped, a result off by a thousandth. Those of
strings are left out: the wording of a message is no behaviour.

A survivor must stand in `equivalent.toml` with the reason why no test could tell it from the original; any other makes this script
exit with status 1. Writes docs/mutation.md.
"""

import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path

os.environ["HYPOTHESIS_PROFILE"] = "mut"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import libcst as cst
import libcst.matchers as m
from mutmut import __main__ as mutmut
from mutmut.mutation import mutators
from mutmut.mutation.diff_apply import find_mutant, get_diff_for_mutant

HERE = Path(__file__).parent
OPPOSITE = {"sum": "mean", "mean": "sum", "max": "min", "min": "max", "maximum": "minimum", "minimum": "maximum"}


def drop_an_operand(node: cst.BinaryOperation) -> Iterable[cst.BaseExpression]:
    """a + b -> a or b;  a * b -> a or b;  a / b -> a;  a @ b -> b @ a."""
    if isinstance(node.operator, cst.Add | cst.Subtract | cst.Multiply | cst.Divide):
        yield node.left
    if isinstance(node.operator, cst.Add | cst.Multiply):
        yield node.right
    if isinstance(node.operator, cst.MatrixMultiply):
        yield node.with_changes(left=node.right, right=node.left)


def drop_a_transpose(node: cst.Attribute) -> Iterable[cst.BaseExpression]:
    """x.T -> x"""
    if node.attr.value == "T":
        yield node.value


def drop_a_method(node: cst.Call) -> Iterable[cst.BaseExpression]:
    """x.transpose(...) -> x, likewise copy and reshape;  sum <-> mean, max <-> min."""
    if not isinstance(node.func, cst.Attribute):
        return
    name = node.func.attr.value
    if name in ("transpose", "copy", "reshape"):
        yield node.func.value
    if name in OPPOSITE:
        yield node.with_changes(func=node.func.with_changes(attr=cst.Name(OPPOSITE[name])))


def distort_a_result(node: cst.Assign) -> Iterable[cst.Assign]:
    """y = e -> y = -(e), y = (e) * 1.001;  y = y + e -> y += e, which writes into whatever y is an alias of."""
    value, target = node.value, node.targets[0].target
    if not isinstance(value, cst.BinaryOperation | cst.Call) or not isinstance(target, cst.Name):
        return
    inner = value.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(value=cst.UnaryOperation(cst.Minus(), inner))
    yield node.with_changes(value=cst.BinaryOperation(inner, cst.Multiply(), cst.Float("1.001")))
    if isinstance(value, cst.BinaryOperation) and value.left.deep_equals(target):
        augmented = {cst.Add: cst.AddAssign, cst.Subtract: cst.SubtractAssign, cst.Multiply: cst.MultiplyAssign}
        if type(value.operator) in augmented:
            yield cst.AugAssign(target, augmented[type(value.operator)](), value.right)


def swap_results(node: cst.Return) -> Iterable[cst.Return]:
    """return a, b, c -> return b, a, c and a, c, b."""
    if isinstance(node.value, cst.Tuple):
        elements = list(node.value.elements)
        for i in range(len(elements) - 1):
            values = [e.value for e in elements]
            values[i], values[i + 1] = values[i + 1], values[i]
            yield node.with_changes(value=node.value.with_changes(elements=[cst.Element(v) for v in values]))


def distort_a_return(node: cst.Return) -> Iterable[cst.Return]:
    """return e -> return -(e)"""
    if isinstance(node.value, cst.BinaryOperation | cst.Call) and not m.matches(node.value, m.Call(func=m.Name())):
        inner = node.value.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.with_changes(value=cst.UnaryOperation(cst.Minus(), inner))


def different(operator: Callable) -> Callable:
    """The operator without the mutants that read like the original: `y @ y` swapped, say."""
    code = cst.Module([]).code_for_node
    return lambda node: (mutant for mutant in operator(node) if code(mutant).split() != code(node).split())


NUMERIC = [
    (cst.BinaryOperation, drop_an_operand),
    (cst.Attribute, drop_a_transpose),
    (cst.Call, drop_a_method),
    (cst.Assign, distort_a_result),
    (cst.Return, swap_results),
    (cst.Return, distort_a_return),
]


def main() -> int:
    """Mutate, run, compare the survivors with the list of equivalents, report."""
    kept = [pair for pair in mutators.mutation_operators if pair[1] is not mutators.operator_string]
    mutators.mutation_operators[:] = [*kept, *((kind, different(operator)) for kind, operator in NUMERIC)]
    mutmut._run(sys.argv[1:], None)

    equivalent = tomllib.loads((HERE / "equivalent.toml").read_text())["equivalent"]
    unused = list(equivalent)
    killed, excused, alive = 0, [], []
    for path in mutmut.walk_mutatable_files():
        data = mutmut.SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            status = mutmut.status_by_exit_code[code]
            if status in ("killed", "timeout", "caught by type check", "segfault"):
                killed += 1
                continue
            function = name.rpartition("__mutmut_")[0].replace(".x_", ".")
            diff = get_diff_for_mutant(name, path=find_mutant(name).path).splitlines()
            before = " ".join(d[1:].strip() for d in diff if d.startswith("-") and not d.startswith("---"))
            line = " ".join(d[1:].strip() for d in diff if d.startswith("+") and not d.startswith("+++"))
            match = next((e for e in equivalent if re.search(e["function"], function) and excuses(e, before, line)), None)
            (excused if match else alive).append((function, line, match["reason"] if match else f"{status}, {name}"))
            unused = [e for e in unused if e is not match]
    total = killed + len(excused) + len(alive)
    print(f"{total} mutants: {killed} killed, {len(excused)} equivalent, {len(alive)} alive")
    for function, line, what in alive:
        print(f"ALIVE {function}: {line}   ({what})")
    for entry in unused:
        print(f"stale in equivalent.toml: {entry}")
    if not sys.argv[1:]:
        report(total, killed, excused, alive)
    return int(bool(alive))


def excuses(entry: dict, before: str, after: str) -> bool:
    """Whether an entry of equivalent.toml describes this change."""
    if "line" in entry:
        return entry["line"] in after
    old, new = entry["only"]
    places = [m.start() for m in re.finditer(re.escape(old), before)]
    return any(before[:i] + new + before[i + len(old) :] == after for i in places)


def report(total: int, killed: int, excused: list, alive: list) -> None:
    """Write docs/mutation.md."""
    lines = [
        "# Mutation score",
        "",
        f"`make mutate`, {date.today()}: {total} mutants of the ops and the optimizer, {killed} killed, {len(excused)} equivalent, "
        f"{len(alive)} alive. Score: {100 * killed / (total - len(excused)):.1f} % of those that are not equivalent.",
        "",
        "A mutant is one small change to one line: mutmut's own (a constant, an operator, an argument, an assignment) and ours for",
        "arithmetic (a term, a factor, a transpose or a sign lost, a result off by a thousandth, two gradients swapped). Those of",
        "strings are left out. The following are equivalent: nothing a caller can see changes.",
        "",
        "| function | the line after the change | why nothing changes |",
        "|---|---|---|",
        *(f"| `{function}` | `{line.replace('|', chr(92) + '|')}` | {reason} |" for function, line, reason in excused),
        "",
    ]
    (HERE.parents[1] / "docs" / "mutation.md").write_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
