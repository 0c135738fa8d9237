"""The chapters of the course as data, how their code runs, and the cells of the trace page."""

import ast
import functools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt.trace import tape
from gpt.trace.example import example
from gpt.trace.formula import merge_axes
from paths import ROOT
from tensorlite.testing.exercises.write import exercise

COURSE = ROOT / "docs" / "course"
N_CHAPTERS = 14
FENCE = re.compile(r"^ *```(\w*)")
QUOTE = re.compile(r"^ *<!-- quote (\S+) -->$")
SUMMARY = re.compile(r"<summary>(.*?)</summary>")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    quote: the file that its lines stand in, of a `<!-- quote PATH -->` above it.
    folded: the summary of the <details> around the block, or "".
    """

    language: str
    body: str
    line: int  # of the page, where the body begins
    section: str
    quote: str | None
    folded: str

    @property
    def runs(self) -> bool:
        return self.language == "python" and self.quote is None

    @property
    def is_solution(self) -> bool:
        return self.runs and self.folded.startswith("Solution")

    @property
    def is_hole(self) -> bool:
        """Whether the reader fills in a function of this block."""
        return self.runs and not self.folded and "raise NotImplementedError" in self.body


@dataclass(frozen=True)
class Section:
    """What stands below a heading of level 2; `prose` leaves the fenced blocks out, `folded` has the summaries of its <details>."""

    heading: str
    prose: str
    folded: tuple[str, ...]


@dataclass(frozen=True)
class Chapter:
    """A page `NN-name.md`."""

    path: Path
    title: str
    head: str  # the prose between the title and the first section
    sections: tuple[Section, ...]
    blocks: tuple[Block, ...]

    @property
    def number(self) -> int:
        return int(self.path.name[:2])

    @property
    def minutes(self) -> int | None:
        found = re.search(r"\b(\d+) minutes", self.head)
        return int(found[1]) if found else None

    @property
    def prose(self) -> str:
        return "\n".join([self.head, *(section.heading + "\n" + section.prose for section in self.sections)])

    @property
    def written_ops(self) -> list[str]:
        """The ops of `--write NAME`, in a chapter whose exercise is one of the library's."""
        return re.findall(r"--write (\w+)", "\n".join([self.prose, *(block.body for block in self.blocks)]))

    def section(self, start: str) -> Section | None:
        """Return the section whose heading starts like this, or None."""
        return next((s for s in self.sections if s.heading.lower().startswith(start.lower())), None)

    def blocks_of(self, start: str) -> list[Block]:
        return [block for block in self.blocks if block.section.lower().startswith(start.lower())]


def chapters() -> list[Chapter]:
    """Return the chapters that exist, in order. A page with a higher number is no chapter."""
    found = [read(path) for path in sorted(COURSE.glob("[0-9][0-9]-*.md"))]
    return [chapter for chapter in found if chapter.number < N_CHAPTERS]


def read(path: Path) -> Chapter:
    """Read a chapter from its file."""
    return parse(path, path.read_text(encoding="utf-8"))


def parse(path: Path, text: str) -> Chapter:
    """Read a chapter from its text. Raises ValueError for a fence that is never closed."""
    title, folded = "", ""
    parts: list[_Part] = [_Part("")]  # the first is the head
    blocks: list[Block] = []
    lines = text.splitlines()
    numbered = iter(enumerate(lines))
    for number, line in numbered:
        if fence := FENCE.match(line):
            quote = QUOTE.match(lines[number - 1]) if number else None
            body = []
            for _, inner in numbered:
                if inner.strip() == "```":
                    break
                body.append(inner)
            else:
                raise ValueError(f"{path.name}:{number + 1}: this fence is not closed")
            path_of_quote = quote[1] if quote else None
            blocks.append(Block(fence[1], "\n".join(body) + "\n", number + 2, parts[-1].heading, path_of_quote, folded))
        elif line.startswith("# "):
            title = line[2:]
        elif line.startswith("## "):
            parts.append(_Part(line[3:]))
        else:
            parts[-1].lines.append(line)
            if found := SUMMARY.search(line):
                folded = found[1]
                parts[-1].folded.append(folded)
            if "</details>" in line:
                folded = ""
    head, *sections = [Section(part.heading, "\n".join(part.lines), tuple(part.folded)) for part in parts]
    return Chapter(path, title, head.prose, tuple(sections), tuple(blocks))


@dataclass
class _Part:
    """A section that is being read."""

    heading: str
    lines: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)


# ---- its code ----


def run(chapter: Chapter, solved: bool = True) -> dict[str, Any]:
    """Run the Python blocks in order in one namespace, and return it. A line of an error is that of the page.

    solved: run the solutions right after a hole, in whose place they define the function. False: leave the hole open.
    """
    space: dict[str, Any] = {"__name__": "course"}
    has_hole = any(block.is_hole for block in chapter.blocks)
    solutions = [block for block in chapter.blocks if block.is_solution]
    for block in chapter.blocks:
        if block.runs and not (has_hole and block.is_solution):
            for executed in [block, *solutions] if block.is_hole and solved else [block]:
                padded = "\n" * (executed.line - 1) + executed.body
                exec(compile(padded, chapter.path.name, "exec"), space)
    return space


def solved_exercise(chapter: Chapter, op: str) -> str:
    """Return the file of `--write OP` with the chapter's solution in the place of the function that has the hole."""
    text = exercise(op)
    name = f"{op}_backward"
    hole = next(node for node in ast.parse(text).body if is_function(node, name))
    lines = text.splitlines()
    return "\n".join([*lines[: hole.lineno - 1], solution(chapter, name), *lines[hole.end_lineno :]]) + "\n"


def solution(chapter: Chapter, name: str) -> str:
    """Return the imports of the chapter's solutions and the function with this name."""
    nodes = [node for block in chapter.blocks if block.is_solution for node in ast.parse(block.body).body]
    wanted = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) or is_function(node, name)]
    return "\n".join(ast.unparse(node) for node in wanted)


def is_function(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == name


# ---- the trace page ----


@dataclass(frozen=True)
class Stop:
    """A line of the trace page at which a reader can stop: the indices of its formula, and its array as the formula indexes it."""

    indices: tuple[str, ...]
    array: np.ndarray


@functools.cache
def trace_stops() -> dict[str, Stop]:
    """Return every stop of the recorded example, by its address STEP/CALL/NAME."""
    stops = {}
    for state in example(with_differences=False):
        names = tape.names(state.trace, tape.pair_calls(state.trace), state.parameters)
        for call in state.trace.calls:
            for name, stop in stops_of(state.trace, call).items():
                stops[f"{state.step}/{names[call.number]}/{name}"] = stop
    return stops


def stops_of(trace: Any, call: Any) -> dict[str, Stop]:
    """Return the stops of a call by name. The last of a name has the name alone; those before it are NAME.1, NAME.2, ..."""
    made = [(value, tape.formula_of(call, value)) for value in call.made]
    with_formula = [(value, found[1]) for value, found in made if found]
    stops = {}
    for value, parsed in with_formula:
        same = [other for other, _ in with_formula if other.target.name == value.target.name]
        place = same.index(value)
        name = value.target.name if place == len(same) - 1 else f"{value.target.name}.{place + 1}"
        stops[name] = Stop(parsed.indices, merge_axes(trace.arrays[value.array], len(parsed.indices)))
    return stops


def cell_of(address: str) -> float:
    """Return the value at an address STEP/CALL/NAME/CELL. Raises KeyError for a wrong stop, IndexError for a wrong cell."""
    stop, _, cell = address.rpartition("/")
    if address in trace_stops():  # a scalar has no cell
        stop, cell = address, ""
    indices, array = trace_stops()[stop].indices, trace_stops()[stop].array
    found = re.findall(r"([a-z])(\d+)", cell)
    if "".join(letter + place for letter, place in found) != cell or tuple(letter for letter, _ in found) != indices:
        raise IndexError(f"{cell or 'no cell'}: {stop} has the indices {' '.join(indices) or '(none)'}")
    return float(array[tuple(int(place) for _, place in found)])
