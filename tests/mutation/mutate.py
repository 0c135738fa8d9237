"""How many small mistakes in what computes, saves or decides go unnoticed by the tests?   make mutate

    python tests/mutation/mutate.py AREA [PATTERN ...]     AREA: ops or gpt; PATTERN: of mutants' names, to run these alone

An area is a table of pyproject.toml: which files are mutated, and which tests run. mutmut writes every mutant of the functions in
those files and runs the tests that reach them, the fastest first. Its own mutations are about logic; those here are about
arithmetic: a lost term, factor, transpose or minus sign, two results swapped, a result off by a thousandth. Mutations of strings
are left out, because the wording of a message is no behaviour.

A survivor must stand in `equivalent_AREA.toml` with the reason why no test could tell it from the original; any other makes this
script exit with status 1. A whole run rewrites its area's section of docs/mutation.md.
"""

import os
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

os.environ["HYPOTHESIS_PROFILE"] = "mut"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import libcst as cst
import libcst.matchers as m
from mutmut import __main__ as mutmut
from mutmut import configuration
from mutmut.mutation import mutators
from mutmut.mutation.diff_apply import get_diff_for_mutant

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORKERS = 2
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


def main(area: str, patterns: list[str]) -> int:
    """Mutate, run, compare the survivors with the list of equivalents, report."""
    use_area(area)
    kept = [pair for pair in mutators.mutation_operators if pair[1] is not mutators.operator_string]
    mutators.mutation_operators[:] = [*kept, *((kind, different(operator)) for kind, operator in NUMERIC)]
    mutmut._run(patterns, WORKERS)

    equivalent = equivalents(area)
    unused = list(equivalent)
    counts: dict[str, Counter[str]] = {}
    excused, alive = [], []
    for path in mutmut.walk_mutatable_files():
        data = mutmut.SourceFileMutationData(path=path)
        data.load()
        counts[str(path)] = Counter()
        for name, code in data.exit_code_by_key.items():
            status = mutmut.status_by_exit_code[code]
            if status in ("killed", "timeout", "caught by type check", "segfault"):
                counts[str(path)]["killed"] += 1
                continue
            function = name.rpartition("__mutmut_")[0].replace(".x_", ".")
            before, line = changed_lines(name, path)
            match = next((e for e in equivalent if re.search(e["function"], function) and excuses(e, before, line)), None)
            if match is None and patterns and status == "not checked":
                continue
            counts[str(path)]["equivalent" if match else "alive"] += 1
            (excused if match else alive).append((function, line, match["reason"] if match else f"{status}, {name}"))
            unused = [e for e in unused if e is not match]
    for function, line, what in alive:
        print(f"ALIVE {function}: {line}   ({what})")
    for entry in unused if not patterns else []:
        print(f"stale in equivalent_{area}.toml: {entry}")
    for path, count in counts.items():
        print(
            f"{path}: {count.total()} mutants, {count['killed']} killed, {count['equivalent']} equivalent, {count['alive']} alive"
        )
    if not patterns:
        report(area, counts, excused)
    return int(bool(alive))


def use_area(area: str) -> None:
    """Let mutmut read the area's table, and work in a folder of its own, where links stand for the repository's files."""
    shared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutmut"]
    configuration._config_reader = lambda: (shared | shared[area]).get
    configuration.reset_config()
    prefer(shared[area].get("tests", {}))
    folder = ROOT / "mutants" / area
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tensorlite", "gpt", "tests", "pyproject.toml", "train.py", "sample.py", "README.md"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(ROOT / name)
    os.chdir(folder)


def prefer(tests: dict[str, list[str]]) -> None:
    """Let a module's mutants be tested by the files that the table names for it, instead of by every test that reaches them."""
    collect = mutmut.collect_or_load_stats

    def collect_and_choose(*args: Any, **options: Any) -> None:
        collect(*args, **options)
        reaching = mutmut.state().tests_by_mangled_function_name
        for function, module in ((f, module) for f in reaching for module in tests if f.startswith(f"{module}.")):
            reaching[function] = {test for test in reaching[function] if test.startswith(tuple(tests[module]))}

    mutmut.collect_or_load_stats = collect_and_choose


def changed_lines(name: str, path: Path) -> tuple[str, str]:
    """The lines that a mutant changes, before and after, each in one line."""
    diff = get_diff_for_mutant(name, path=path).splitlines()
    before = " ".join(d[1:].strip() for d in diff if d.startswith("-") and not d.startswith("---"))
    after = " ".join(d[1:].strip() for d in diff if d.startswith("+") and not d.startswith("+++"))
    return before, after


def equivalents(area: str) -> list[dict]:
    """The entries of an area, one for each line and each replacement."""
    found = []
    for entry in tomllib.loads((HERE / f"equivalent_{area}.toml").read_text())["equivalent"]:
        kind = "line" if "line" in entry else "only"
        several = isinstance(entry[kind][0], list) if kind == "only" else isinstance(entry[kind], list)
        found += [entry | {kind: change} for change in (entry[kind] if several else [entry[kind]])]
    return found


def excuses(entry: dict, before: str, after: str) -> bool:
    """Whether an entry of the list of equivalents describes this change."""
    if "line" in entry:
        return entry["line"] in after
    old, new = entry["only"]
    places = [m.start() for m in re.finditer(re.escape(old), before)]
    return any(before[:i] + new + before[i + len(old) :] == after for i in places)


def report(area: str, counts: dict[str, Counter[str]], excused: list) -> None:
    """Write the area's section of docs/mutation.md."""
    page = ROOT / "docs" / "mutation.md"
    total = sum(counts.values(), Counter())
    score = 100 * total["killed"] / (total["killed"] + total["alive"])
    section = [
        f"`make mutate`, {date.today()}: {total.total()} mutants, {total['killed']} killed, {total['equivalent']} equivalent,",
        f"{total['alive']} alive. Score: {score:.1f} % of the mutants that are not equivalent.",
        "",
        "| function | the line after the change | why nothing changes |",
        "|---|---|---|",
        *(f"| `{function}` | `{line.replace('|', chr(92) + '|')}` | {reason} |" for function, line, reason in excused),
        "",
    ]
    begin, end = (f"<!-- {mark} {area} -->\n" for mark in ("begin", "end"))
    before, _, rest = page.read_text().partition(begin)
    page.write_text(before + begin + "\n".join(section) + end + rest.partition(end)[2])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
