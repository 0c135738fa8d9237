"""Write docs/course/course.ipynb from the chapters of the course, and docs/course/full-model.ipynb.

    python docs/write_notebooks.py

A notebook shows a chapter's question, prediction, numbers by hand, code and exercise. For the derivation it links the chapter.
Cells that belong to no chapter stand in docs/notebooks, after lines such as `# %% [markdown]`. The notebooks have no outputs.
"""

import hashlib
import json
import re
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tensorlite.testing.bugs import true_pair
from tensorlite.testing.exercises.sources import imports_for, source
from tensorlite.testing.exercises.write import hole
from tensorlite.version import __version__

ROOT = Path(__file__).parents[1]
COURSE = ROOT / "docs" / "course"
PARTS = ROOT / "docs" / "notebooks"
COURSE_NOTEBOOK, FULL_MODEL = COURSE / "course.ipynb", COURSE / "full-model.ipynb"
N_CHAPTERS = 14
WHOLE_SECTIONS = ("Predict", "By hand", "Code")  # those that are copied
CHAPTER_ONLY = ("Find the mistake", "In the trace", "Milestone")  # those that are left to the chapter; of the others, the code
MAIN = 'if __name__ == "__main__":\n'


# ---- notebooks ----


@dataclass(frozen=True)
class Cell:
    """A cell. Its id depends on its place and not on its text, so that a corrected cell is the same cell."""

    kind: str  # "markdown" or "code"
    text: str
    place: str  # the file that it comes from, the section, and its number there
    tags: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the cell in the form of nbformat 4.5."""
        found = {
            "cell_type": self.kind,
            "id": hashlib.sha256(self.place.encode()).hexdigest()[:8],
            "metadata": {"tags": list(self.tags)} if self.tags else {},
            "source": self.text.splitlines(keepends=True),
        }
        if self.kind == "code":
            found |= {"execution_count": None, "outputs": []}
        return found


def notebook(cells: list[Cell]) -> str:
    """Return the text of a notebook file."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {
        "cells": [cell.as_json() for cell in cells],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


class Section:
    """Collects the cells of one section."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.cells: list[Cell] = []

    def add(self, kind: str, text: str, *tags: str) -> None:
        """Append a cell, unless it is empty. Text after text continues its cell."""
        text = text.strip("\n")
        if kind == "markdown" and self.cells and self.cells[-1].kind == kind:
            text = f"{self.cells.pop().text}\n\n{text}".strip("\n")
        if text:
            self.cells.append(Cell(kind, text, f"{self.place}/{len(self.cells)}", tags))


def own_cells(name: str, **words: str) -> list[Cell]:
    """Return the cells of a file in docs/notebooks. `words` are filled in: run="a" replaces @run@."""
    text = (PARTS / f"{name}.py").read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    found = []
    for number, (header, body) in enumerate(re.findall(r"^# %%(.*)\n((?:(?!# %%).*\n)*)", text, re.MULTILINE)):
        labels = re.findall(r"\w+", header)
        if labels == ["markdown"]:
            found.append(Cell("markdown", re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE), f"{name}/{number}"))
        else:
            found.append(Cell("code", body.strip(), f"{name}/{number}", tuple(labels)))
    return found


# ---- a chapter ----


@dataclass
class Piece:
    """A stretch of a section: text with the fenced blocks that do not run, or one block that runs, or a <details>.

    text: what is shown. A <details> stays folded, without the code that runs in it.
    codes: the Python code that runs, one in a block, any number in a <details>.
    summary: of a <details>, else "".
    """

    text: str = ""
    codes: list[str] = field(default_factory=list)
    summary: str = ""


def sections(text: str) -> dict[str, str]:
    """Return the sections of a page by their headings. The first, without a heading of its own, is what stands above them."""
    found = {"": ""}
    fenced = False
    heading = ""
    for line in text.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if line.startswith("## ") and not fenced:
            heading = line[3:].strip()
            found[heading] = ""
        else:
            found[heading] += line
    return found


RUNS = re.compile(r"(?<!-->\n)^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)  # a quote has a comment above it
DETAILS = re.compile(r"^<details><summary>(.*?)</summary>\n(.*?)^</details>\n", re.MULTILINE | re.DOTALL)


def pieces(text: str) -> list[Piece]:
    """Return the pieces of a section in order."""
    text = re.sub(r"^<!-- (hole|check|cell [^>]*) -->\n", "", text, flags=re.MULTILINE)
    found: list[Piece] = []
    end = 0
    for details in DETAILS.finditer(text):
        found += text_and_code(text[end : details.start()])
        without_code = re.sub(r"\n{3,}", "\n\n", RUNS.sub("", details[0]))
        found.append(Piece(without_code, RUNS.findall(details[0]), summary=details[1]))
        end = details.end()
    return found + text_and_code(text[end:])


def text_and_code(text: str) -> list[Piece]:
    """Return the pieces of a text without <details>."""
    found = []
    for number, part in enumerate(RUNS.split(text)):
        is_code = number % 2 == 1
        found.append(Piece(codes=[part]) if is_code else Piece(text=part))
    return found


def for_jupyter(text: str, page: str) -> str:
    """Return text of a chapter for a notebook: its mathematics, links and headings as Jupyter has them."""
    text = re.sub(r"^<!-- .*? -->\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^```math\n(.*?)^```$", r"$$\n\1$$", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\$`(.*?)`\$", r"$\1$", text)
    text = text.replace("](#", f"]({page}#")
    return re.sub(r"^### ", "#### ", text, flags=re.MULTILINE)


class Chapter:
    """Makes the cells of a chapter."""

    def __init__(self, path: Path) -> None:
        self.page = path.name
        self.sections = sections(path.read_text(encoding="utf-8"))

    def markdown(self, text: str) -> str:
        """Return text of this chapter for a notebook."""
        return for_jupyter(text, self.page)

    def cells(self) -> Iterator[Cell]:
        """Return all of them: the question, and then the sections in order."""
        yield from self.beginning().cells
        for heading, text in list(self.sections.items())[1:]:
            section = Section(f"{self.page}/{heading}")
            if heading == "Write it":
                self.exercise(section, text)
            elif heading.startswith(WHOLE_SECTIONS):
                self.whole(section, heading, text)
            elif not heading.startswith(CHAPTER_ONLY):
                self.code_alone(section, heading, text)
            yield from section.cells

    def beginning(self) -> Section:
        """Return the title, what the chapter needs and teaches, and its first section up to the paragraph that asks a question."""
        section = Section(self.page)
        title, _, head = self.sections[""].strip().partition("\n")
        number = int(self.page[:2])
        paragraphs = next(text for heading, text in self.sections.items() if heading).strip().split("\n\n")
        n_shown = next(i for i, paragraph in enumerate(paragraphs, 1) if "?" in paragraph)
        question = "\n\n".join(paragraphs[:n_shown])
        read = f"**Read first: [chapter {number}]({self.page}).**"
        section.add("markdown", self.markdown(f"#{title}\n\n{head.strip()}\n\n{read}\n\n{question}"))
        return section

    def whole(self, section: Section, heading: str, text: str) -> None:
        """Add a section with its text. Code in a <details> follows it."""
        section.add("markdown", f"### {heading}")
        for piece in pieces(text):
            section.add("markdown", self.markdown(piece.text))
            for code in piece.codes:
                section.add("code", code)

    def code_alone(self, section: Section, heading: str, text: str) -> None:
        """Add the code of a section whose text the notebook leaves out."""
        codes = [code for piece in pieces(text) for code in piece.codes]
        if codes:
            section.add("markdown", f"### From the section *{heading}*")
        for code in codes:
            section.add("code", code)

    def exercise(self, section: Section, text: str) -> None:
        """Add the hole, its check and its hints: of ops of the library, or of the chapter's own function."""
        section.add("markdown", "### Write it")
        found = pieces(text)
        starts = [i for i, piece in enumerate(found) if "--write" in piece.text]
        if starts:
            for start, end in pairwise([0, *starts[1:], len(found)]):
                self.op_exercise(section, found[start:end])
        else:
            self.own_exercise(section, found)

    def op_exercise(self, section: Section, found: list[Piece]) -> None:
        """Add the exercise of an op: what `--write OP` puts into a file, and the call that does what `--try` does."""
        text = next(piece.text for piece in found if "--write" in piece.text)
        op = re.findall(r"--write (\w+)", text)[0]
        without_commands = re.sub(r"^```sh\n.*?^```\n", "", text, flags=re.MULTILINE | re.DOTALL)
        section.add("markdown", self.markdown(without_commands.replace(f"--write {op}", f"{op}_backward")))
        section.add("code", op_with_hole(op), "hole")
        section.add("code", f"{IMPORT}check\n\ncheck({op}_forward, {op}_backward)", "check")
        self.hints(section, found)

    def own_exercise(self, section: Section, found: list[Piece]) -> None:
        """Add the exercise of a function of the chapter's own: the block with the hole, and the other blocks as its check."""
        place = next(i for i, piece in enumerate(found) if "raise NotImplementedError" in "".join(piece.codes))
        function, _, main = found[place].codes[0].partition(MAIN)
        after = [piece for piece in found[place + 1 :] if piece.summary != "Solution"]
        checks = [textwrap.dedent(main), *(code for piece in after for code in piece.codes)]
        body = textwrap.indent("\n".join(filter(None, checks)), "    ")

        folded = next(i for i, piece in enumerate(after) if piece.summary)
        for piece in found[:place]:
            section.add("markdown", self.markdown(piece.text))
        section.add("code", function, "hole")
        for piece in after[:folded]:
            section.add("markdown", self.markdown(piece.text))
        section.add("code", f"{IMPORT}checking\n\nwith checking({name_of_hole(function)}):\n{body}", "check")
        self.hints(section, found)
        for piece in after[folded:]:
            section.add("markdown", "" if piece.summary else self.markdown(piece.text))

    def hints(self, section: Section, found: list[Piece]) -> None:
        """Add the folded hints, and where the solution is."""
        for piece in found:
            if piece.summary.startswith("Hint"):
                section.add("markdown", self.markdown(piece.text))
        section.add("markdown", f"The solution is folded at the end of [the chapter's exercise]({self.page}#write-it).")


IMPORT = "from tensorlite.testing.exercises.notebook import "


def name_of_hole(code: str) -> str:
    """Return the name of the function that raises NotImplementedError: the last that is defined above."""
    above, _, _ = code.partition("raise NotImplementedError")
    return re.findall(r"^def (\w+)", above, re.MULTILINE)[-1]


def op_with_hole(op: str) -> str:
    """Return the imports and the forward of an op, and its backward with a hole."""
    forward, backward = true_pair(op)
    imports = {"import numpy as np", *imports_for(forward, backward)}
    ours = {line for line in imports if "tensorlite" in line}
    lines = [*sorted(imports - ours), "", *sorted(ours)]
    return "\n\n\n".join(["\n".join(lines), source(forward), hole(backward, op)])


# ---- the two notebooks ----


def project() -> dict[str, Any]:
    """Return the table `project` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def start() -> list[Cell]:
    """Return the cell that finds the repository."""
    needs = [*project()["dependencies"], *project()["optional-dependencies"]["check"]]
    packages = [need for need in needs if ";" not in need]  # the cell that reads them knows no conditions
    return own_cells("start", version=__version__, packages='",\n    "'.join(packages))


def chapters() -> list[Chapter]:
    """Return the chapters in order. A page with a higher number is no chapter."""
    pages = sorted(COURSE.glob("[0-9][0-9]-*.md"))
    return [Chapter(page) for page in pages[:N_CHAPTERS]]


def course_notebook() -> str:
    """Return the text of docs/course/course.ipynb."""
    beginning, *end = own_cells("course")
    cells = [beginning, *start()]
    for chapter in chapters():
        cells += chapter.cells()
    return notebook([*cells, *end, *own_cells("training", run="course")])


def full_model_notebook() -> str:
    """Return the text of docs/course/full-model.ipynb."""
    extras = project()["optional-dependencies"]
    words = {name: '", "'.join(extras[name]) for name in ("cuda12x", "cuda13x")}
    beginning, parameters, *rest = own_cells("full_model", **words)
    return notebook([beginning, parameters, *start(), *rest, *own_cells("training", run="full-model")])


if __name__ == "__main__":
    COURSE_NOTEBOOK.write_text(course_notebook(), encoding="utf-8", newline="\n")
    FULL_MODEL.write_text(full_model_notebook(), encoding="utf-8", newline="\n")
