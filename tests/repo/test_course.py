"""The course: its code runs, its quotes stand, what it names exists, and chapters have one form.

Each check takes a chapter and returns what is wrong with it. At the end a small chapter, which passes them all, gets one mistake
after another, and the check that is meant for each must notice. The columns and links of all pages are in test_docs.py.
"""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import course
from course import COURSE, N_CHAPTERS, Chapter
from paths import ROOT
from tensorlite.testing.bugs import BUGS, CHAPTERS
from tensorlite.testing.exercises.attempt import try_file

PARTS = (  # the sections of a chapter after the one that asks its question, in order; a heading may go on after these words
    ("Predict",),
    ("The test that proves it", "The tests that prove it"),
    ("Find the mistake",),
    ("Write it",),
    ("In the trace",),
    ("What to remember",),
)
WITH_LONG_FORM = range(3, 11)  # the chapters of ops quote an op's long form, and its fused form
LANGUAGES = {"python", "cuda", "text", "sh", "math"}
MOST_SECONDS = 10
WORDS = range(800, 1801)
MINUTES = range(20, 71)
ALL_MINUTES = 540
COLUMNS = 100
FEWEST_ASSERTS = 5
MILESTONES = {6: ["bigram"], 9: ["head"], 10: ["multihead"], 11: ["feedforward", "residual", "layernorm"]}
IDEAS = (
    "there is one loss",
    "every use adds",
    "a shared denominator couples a row",
    "backward sums exactly the axes that forward broadcast",
)

Check = Callable[[Chapter], list[str]]
ALL = course.chapters()
LAST_PAGE = course.read(course.COURSE / "14-after.md")  # what comes after; it has no exercises
every_chapter = pytest.mark.parametrize("chapter", ALL, ids=lambda chapter: chapter.path.stem)


# ---- the form ----


def parts_are_there(chapter: Chapter) -> list[str]:
    """Every part of the form, in order, after a section that asks the question; numbers by hand, and the two forms of an op."""
    places = []
    found = []
    for names in PARTS:
        here = [i for i, section in enumerate(chapter.sections) if section.heading.startswith(names)]
        places += here[:1]
        if len(here) != 1:
            found.append(f"no section {names[0]!r}, or two of them")
    if places != sorted(places):
        found.append(f"the parts are not in this order: {', '.join(names[0] for names in PARTS)}")
    if places and min(places) == 0:
        found.append("no section with the question before the prediction")
    if "by hand" not in chapter.prose.lower():
        found.append("nothing is computed by hand")
    if chapter.number in WITH_LONG_FORM:
        quotes = [block.quote or "" for block in chapter.blocks]
        if not any(quote.startswith("tensorlite/reference/longhand/") for quote in quotes):
            found.append("no quote of the long form")
        if not any(re.fullmatch(r"tensorlite/reference/\w+\.py", quote) for quote in quotes):
            found.append("no quote of the fused form")
    return found


def title_and_time(chapter: Chapter) -> list[str]:
    """`# N. Title` with the number of the file, and a number of minutes below it."""
    found = []
    if not re.match(rf"{chapter.number}\. \S", chapter.title):
        found.append(f"the title is not '# {chapter.number}. Title': {chapter.title!r}")
    if chapter.minutes not in MINUTES:
        found.append(f"the line below the title does not say 20 to 70 minutes: {chapter.head.strip()[:60]!r}")
    return found


def length(chapter: Chapter) -> list[str]:
    """800 to 1,800 words to read in a row: without code, folded answers, tables and sources."""
    text = re.sub(
        r"<details>.*?</details>|<!--.*?-->|^\|.*?$|^Sources?: .*?(?=\n\n|\Z)", "", chapter.prose, flags=re.DOTALL | re.MULTILINE
    )
    n_words = len(text.split())
    return [] if n_words in WORDS else [f"{n_words} words, not {WORDS.start} to {WORDS.stop - 1}"]


def answers_are_folded(chapter: Chapter) -> list[str]:
    """The answers to the prediction and to the mistake are folded, and so are three hints and a solution."""
    found = []
    others = [section for section in chapter.sections if not section.heading.startswith(("Find the mistake", "Write it"))]
    if not any(section.folded for section in others):
        found.append("the answer to the prediction is not in a <details>")
    find, write = chapter.section("Find the mistake"), chapter.section("Write it")
    if find and not find.folded:
        found.append("the answer to the mistake is not in a <details>")
    if write:
        hints = [summary for summary in write.folded if summary.startswith("Hint")]
        if len(hints) != 3:
            found.append(f"{len(hints)} <summary>Hint N</summary>, not 3")
        if "Solution" not in write.folded:
            found.append("no <summary>Solution</summary>")
    return found


def few_words_at_the_end(chapter: Chapter) -> list[str]:
    """At most three sentences are to be remembered. A line of sources may follow."""
    section = chapter.section("What to remember")
    if section is None:
        return []
    prose = re.sub(r"\$?`[^`]*`\$?", "x", re.split(r"^Sources?: ", section.prose, flags=re.MULTILINE)[0])
    sentences = re.findall(r"[.!?](?=[\s*)]|$)", prose)
    return [] if 1 <= len(sentences) <= 3 else [f"{len(sentences)} sentences to remember, not 1 to 3"]


def mathematics_is_fenced(chapter: Chapter) -> list[str]:
    """Mathematics in prose is $`...`$; GitHub breaks a bare $...$."""
    prose = re.sub(r"\$`[^`]*`\$|`[^`]*`", "", chapter.prose)
    return [f"a bare $: {line.strip()}" for line in prose.splitlines() if "$" in line]


def milestones_have_the_losses(chapter: Chapter) -> list[str]:
    """A chapter that ends with a stage of the lecture has its command and the losses of the README's table."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = chapter.path.read_text(encoding="utf-8") if chapter.number in MILESTONES else ""
    found = []
    for preset in MILESTONES.get(chapter.number, []):
        row = re.search(rf"^\| `{preset}` \|.*\| ([\d.]+) \| ([\d.]+) \|$", readme, re.MULTILINE)
        assert row
        wanted = [f"python train.py --preset {preset}", *row.groups()]
        found += [f"the milestone {preset} lacks {words!r}" for words in wanted if words not in text]
    return found


# ---- the code ----


def languages_are_known(chapter: Chapter) -> list[str]:
    """A block with a misspelt language would not run and not be noticed."""
    return [f"line {b.line}: a fence of the language {b.language!r}" for b in chapter.blocks if b.language not in LANGUAGES]


def code_fits(chapter: Chapter) -> list[str]:
    """Code that is not quoted fits 100 columns."""
    lines = [(block.line + i, line) for block in chapter.blocks if block.runs for i, line in enumerate(block.body.splitlines())]
    return [f"line {number}: code of more than {COLUMNS} columns" for number, line in lines if len(line) > COLUMNS]


def code_asserts(chapter: Chapter) -> list[str]:
    """The code asserts the numbers that the text computes."""
    n_asserts = sum(block.body.count("assert ") for block in chapter.blocks if block.runs)
    return [] if n_asserts >= FEWEST_ASSERTS else [f"{n_asserts} asserts, not {FEWEST_ASSERTS} or more"]


def quotes_stand(chapter: Chapter) -> list[str]:
    """Every line of a quoted block stands in its file, in this order. Blank lines and `...` stand for anything."""
    found = []
    for block in chapter.blocks:
        if block.quote is None:
            continue
        path = ROOT / block.quote
        if not path.is_file():
            found.append(f"line {block.line}: a quote of {block.quote}, which does not exist")
            continue
        source = iter([line.strip() for line in path.read_text(encoding="utf-8").splitlines()])
        for i, line in enumerate(block.body.splitlines()):
            if line.strip() not in ("", "...") and line.strip() not in source:
                found.append(f"line {block.line + i}: not in {block.quote}, or not in this order: {line.strip()}")
                break
    return found


# ---- what it names ----


def named_tests_exist(chapter: Chapter) -> list[str]:
    """A paragraph that links test files names test functions of theirs; the part that is about the test does so."""
    found = []
    linked = False
    for section in chapter.sections:
        for paragraph in section.prose.split("\n\n"):
            files = re.findall(r"\]\(\.\./\.\./(tests/[\w/]+\.py)\)", paragraph)
            names = re.findall(r"`(test_\w+)(?:\[[^`]*)?`", re.sub(r"\[`[^`]*`\]", "", paragraph))
            if not files:
                found += [f"`{name}` is named without a link to its file" for name in names]
                continue
            linked = linked or section.heading.startswith(PARTS[1])
            defined = {name for file in files for name in functions_of(ROOT / file)}
            found += [f"no function {name} in {', '.join(files)}" for name in names if name not in defined]
            if not names:
                found.append(f"a link to {files[0]} without the name of a test function")
    if not linked:
        found.append("'The test that proves it' links no test file")
    return found


def functions_of(path: Path) -> list[str]:
    return re.findall(r"^def (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE) if path.is_file() else []


def exercises_exist(chapter: Chapter) -> list[str]:
    """Every number is that of an exercise; 'Find the mistake' has one of the chapter and names its wrong gradients."""
    text = "\n".join([chapter.prose, *(block.body for block in chapter.blocks)])
    numbers = [int(number) for number in re.findall(r"(?:tensorlite\.exercises|[Ee]xercises?) (\d+)", text)]
    found = [f"there is no exercise {number}" for number in numbers if not 1 <= number <= len(BUGS)]

    section = chapter.section("Find the mistake")
    if section is None:
        return found
    part = "\n".join([section.prose, *(block.body for block in chapter.blocks_of("Find the mistake"))])
    asked = [int(number) for number in re.findall(r"(?:tensorlite\.exercises |\*\*)(\d+)\b", part)]
    found += [f"there is no exercise {number}" for number in asked if number > len(BUGS)]
    bugs = [BUGS[number - 1] for number in asked if 1 <= number <= len(BUGS)]
    if not bugs:
        found.append("'Find the mistake' has no python -m tensorlite.exercises N, and no **N**")
    has_own = any(bug.chapter == chapter.number for bug in BUGS)
    if has_own and bugs and not any(bug.chapter == chapter.number for bug in bugs):
        found.append(f"no exercise of 'Find the mistake' belongs to chapter {chapter.number}")
    for bug in bugs:
        found += [f"the answer to {bug.op}: {bug.name} does not name `{w}`" for w in bug.wrong if not re.search(rf"\b{w}\b", part)]
    return found


def trace_links_resolve(chapter: Chapter) -> list[str]:
    """Every link into the trace page leads to a cell of the recorded example, and 'In the trace' has one."""
    found = []
    links = re.findall(r"trace\.html(?:#([^)\s]*))?\)", chapter.prose)
    for address in links:
        try:
            course.cell_of(address)
        except KeyError:
            found.append(f"the trace has no line {address}")
        except IndexError as error:
            found.append(f"the trace has no cell {address}: {error}")
    section = chapter.section("In the trace")
    if section and "(../trace.html#" not in section.prose:
        found.append("'In the trace' links no cell")
    return found


def cells_are_as_quoted(chapter: Chapter) -> list[str]:
    """A comment `<!-- cell ADDRESS = VALUE -->` notes a number of the trace that the text quotes: the cell rounds to it."""
    found = []
    for address, value in re.findall(r"<!-- cell (\S+) = (-?\d+\.\d+) -->", chapter.prose):
        half_a_digit = 0.5 * 10.0 ** -len(value.partition(".")[2])
        if abs(course.cell_of(address) - float(value)) > half_a_digit * (1 + 1e-9):
            found.append(f"{address} is {course.cell_of(address)}, not {value}")
        if not re.search(rf"(?<!= ){re.escape(value)}", chapter.prose):
            found.append(f"{value} of {address} is not quoted")
    return found


def has_a_solution(chapter: Chapter) -> list[str]:
    """'Write it' is for ops of the library, or has a hole and a check of its own; its solutions are folded Python blocks."""
    blocks = chapter.blocks_of("Write it")
    solutions = "\n".join(block.body for block in blocks if block.is_solution)
    ops = chapter.written_ops
    found = [f"--write {op}: there is no such op" for op in ops if op not in CHAPTERS]
    found += [f"no solution of {op}_backward" for op in ops if f"def {op}_backward(" not in solutions]
    holes = [block for block in blocks if block.is_hole]
    if not ops and (len(holes) != 1 or not solutions):
        found.append("'Write it' has no --write NAME, and not one hole with raise NotImplementedError and a solution")
    return found


CHECKS: tuple[Check, ...] = (
    parts_are_there,
    title_and_time,
    length,
    answers_are_folded,
    few_words_at_the_end,
    mathematics_is_fenced,
    milestones_have_the_losses,
    languages_are_known,
    code_fits,
    code_asserts,
    quotes_stand,
    named_tests_exist,
    exercises_exist,
    trace_links_resolve,
    cells_are_as_quoted,
    has_a_solution,
)


@every_chapter
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_form(chapter, check):
    assert check(chapter) == []


@pytest.mark.parametrize("check", [mathematics_is_fenced, languages_are_known, code_fits, quotes_stand, trace_links_resolve])
def test_the_form_of_the_last_page(check):
    assert check(LAST_PAGE) == []


# ---- running the code ----


class Watch:
    """Notes files that are opened for writing and connections, while it is on."""

    on = False
    seen: list[str]

    def __call__(self, event, arguments):
        if not self.on:
            return
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            path = str(arguments[0])
            if "__pycache__" not in path and not path.isdecimal():
                self.seen.append(f"writes {path}")
        if event in ("socket.connect", "socket.getaddrinfo"):
            self.seen.append("uses the network")


watch = Watch()
sys.addaudithook(watch)  # there is no way to remove one, so it can be turned off


def run_watched(chapter: Chapter, solved: bool = True) -> list[str]:
    """Run the code of a chapter; return what is wrong with how it runs."""
    watch.seen, watch.on = [], True
    start = time.thread_time()
    try:
        course.run(chapter, solved)
    finally:
        watch.on = False
    seconds = time.thread_time() - start
    return watch.seen + ([f"its code takes {seconds:.1f} s"] if seconds > MOST_SECONDS else [])


@pytest.fixture
def at_the_root(monkeypatch):
    """Code runs in the root of the repository, after what every chapter imports has been imported."""
    monkeypatch.chdir(ROOT)
    import scipy.differentiate  # noqa: F401


@pytest.mark.parametrize("page", [*ALL, LAST_PAGE], ids=lambda page: page.path.stem)
@pytest.mark.usefixtures("at_the_root")
def test_the_code_runs(page):
    assert run_watched(page) == []


def try_solution(chapter: Chapter, op: str, folder: Path) -> list[str]:
    """Return why the solution of --write OP does not pass, or nothing."""
    path = folder / f"exercise_{op}.py"
    path.write_text(course.solved_exercise(chapter, op), encoding="utf-8")
    outcome = try_file(path)
    return [] if outcome.ok else [outcome.text]


@every_chapter
@pytest.mark.usefixtures("at_the_root")
def test_the_solution_passes_and_the_hole_does_not(chapter, tmp_path):
    """The solution of a hole of the chapter's own was checked where the code ran; here it stays open."""
    for op in chapter.written_ops:
        assert try_solution(chapter, op, tmp_path) == []
    if not chapter.written_ops:
        with pytest.raises(NotImplementedError):
            course.run(chapter, solved=False)


# ---- the course as a whole ----

INDEX = COURSE / "README.md"
CHAPTER_ROW = re.compile(r"^\| (\d+) \| (?:\[([^\]]+)\]\(([^)]+)\)|([^|]+?)) \| (\d+) \|", re.MULTILINE)


def wrong_rows(text: str, found: list[Chapter]) -> list[str]:
    """Compare the table of chapters with the files. Until all chapters exist, only the rows with a link have a file."""
    rows = {int(row[1]): row for row in CHAPTER_ROW.finditer(text)}
    wrong = [] if list(rows) == list(range(N_CHAPTERS)) else [f"the rows are {list(rows)}"]
    files = {chapter.number: chapter for chapter in found}
    if len(files) != len(found):
        wrong.append("two chapters have one number")
    for number, (_, title, link, _, minutes) in ((n, row.groups()) for n, row in rows.items()):
        if link is None:
            wrong += [f"row {number} has no link"] if len(found) == N_CHAPTERS else []
        elif number not in files or files[number].path.name != link:
            wrong.append(f"row {number} links {link}")
        elif (f"{number}. {title}", int(minutes)) != (files[number].title, files[number].minutes):
            wrong.append(f"row {number} says {title!r}, {minutes}; the chapter {files[number].title!r}, {files[number].minutes}")
    total = sum(int(row[5]) for row in rows.values())
    return wrong + ([f"{total} minutes"] if total >= ALL_MINUTES else [])


def test_the_table_of_chapters_agrees_with_the_files():
    assert wrong_rows(INDEX.read_text(encoding="utf-8"), ALL) == []


def unanswered(text: str, found: list[Chapter]) -> list[str]:
    """Return the rows of the table of questions that lead nowhere. Until all chapters exist, a row may wait for its chapter."""
    table = text.partition("## Questions and where they are answered")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    wrong = [] if len(rows) == 30 else [f"{len(rows)} questions, not 30"]
    if len(found) == N_CHAPTERS:
        wrong += [f"no answer: {row}" for row in rows if not re.search(r"\]\(\d\d-[\w-]+\.md#[\w-]+\)", row)]
    return wrong


def test_every_question_has_an_answer():
    assert unanswered(INDEX.read_text(encoding="utf-8"), ALL) == []


def test_the_four_ideas_are_said():
    text = " ".join(INDEX.read_text(encoding="utf-8").split()).lower()
    assert [idea for idea in IDEAS if idea not in text] == []


# ---- every check can fail ----

GOOD = """\
# 3. A title

25 minutes. You need nothing.

## A topic

Why? WORDS

## Predict

<details><summary>Answer</summary>

The answer.

</details>

## The two forms

<!-- quote tensorlite/reference/longhand/softmax.py -->
```python
    shifted = x - x_max  # 2. (N, K)
```

<!-- quote tensorlite/reference/softmax.py -->
```python
def softmax_forward(x: Array) -> tuple[Array, Array]:
    ...
    return y, y
```

$`a_b`$ and `$PATH`.

```math
x_i
```

## By hand

```python
import numpy as np
from tensorlite.arrays import Array

assert 1 + 1 == 2
assert True
assert True
assert True
assert True
```

## The test that proves it

[`tests/reference/test_ops.py`](../../tests/reference/test_ops.py): `test_value_against_loops`.

## Find the mistake

`python -m tensorlite.exercises 1`

<details><summary>Answer</summary>

dx.

</details>

## Write it

```sh
python -m tensorlite.exercises --write linear
```

<details><summary>Hint 1</summary>

</details>

<details><summary>Hint 2</summary>

</details>

<details><summary>Hint 3</summary>

</details>

<details><summary>Solution</summary>

```python
def linear_backward(dy: Array, cache: tuple) -> tuple:
    x, w, has_bias = cache
    rows = dy.reshape(-1, w.shape[1])
    return dy @ w.T, x.reshape(-1, w.shape[0]).T @ rows, rows.sum(axis=0)
```

</details>

## In the trace

[a cell](../trace.html#60/attention_backward/dscores/h1t3s3) is -0.0408

<!-- cell 60/attention_backward/dscores/h1t3s3 = -0.0408 -->

## What to remember

One. Two `x.y`. Three.

Source: A. Author. 1998.
""".replace("WORDS", "word " * 900)

OWN_HOLE = """\
```python
def double(x):
    raise NotImplementedError
```

```python
assert double(2) == 4
```

<details><summary>Hint 1"""
WITH_OWN_HOLE = (
    GOOD.replace("```sh\npython -m tensorlite.exercises --write linear\n```\n\n<details><summary>Hint 1", OWN_HOLE)
    .replace(
        "def linear_backward(dy: Array, cache: tuple) -> tuple:", "def double(x):\n    return 2 * x\n\n\ndef unused(dy, cache):"
    )
    .replace("# 3. ", "# 2. ")
)


def chapter_of(text: str, number: int = 3) -> Chapter:
    return course.parse(Path(f"{number:02d}-name.md"), text)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_good_chapter_passes(check):
    assert check(chapter_of(GOOD)) == []
    assert check(chapter_of(WITH_OWN_HOLE, 2)) == []


MISTAKES = [  # a check, what is replaced in the good chapter, by what, and words of what the check then says
    (parts_are_there, "## Predict", "## Guess", "no section 'Predict'"),
    (parts_are_there, "## Predict", "## Write it\n\n## Predict", "'Write it', or two"),
    (parts_are_there, "## The test that proves it", "## Proof", "no section 'The test that"),
    (parts_are_there, "## The test that proves it", "## The tests that prove it", None),
    (parts_are_there, "## A topic\n", "", "no section with the question"),
    (parts_are_there, "## By hand", "## Numbers", "nothing is computed"),
    (parts_are_there, "quote tensorlite/reference/longhand/", "quote tensorlite/testing/", "no quote of the long form"),
    (parts_are_there, "quote tensorlite/reference/softmax.py", "quote README.md", "no quote of the fused form"),
    (title_and_time, "# 3. A", "# 4. A", "the title is not"),
    (title_and_time, "25 minutes", "Half an hour", "does not say"),
    (title_and_time, "25 minutes", "75 minutes", "does not say"),
    (length, "word " * 200, "", "words, not 800"),
    (length, "word " * 900, "word " * 1800, "words, not 800"),
    (length, "The answer.", "word " * 1000, None),
    (answers_are_folded, "<details><summary>Answer</summary>\n\nThe answer.\n\n</details>", "", "the prediction"),
    (answers_are_folded, "<details><summary>Answer</summary>\n\ndx.\n\n</details>", "dx.", "the mistake"),
    (answers_are_folded, "<details><summary>Hint 3</summary>", "<details><summary>More</summary>", "2 <summary>Hint"),
    (answers_are_folded, "<summary>Solution</summary>", "<summary>It</summary>", "no <summary>Solution"),
    (few_words_at_the_end, "Three.", "Three. Four.", "4 sentences"),
    (few_words_at_the_end, "One. Two `x.y`. Three.", "Nothing", "0 sentences"),
    (mathematics_is_fenced, "$`a_b`$", "$a_b$", "a bare $"),
    (languages_are_known, "```python\nimport", "```py\nimport", "the language 'py'"),
    (languages_are_known, "```math", "```", "the language ''"),
    (code_fits, "assert 1 + 1 == 2", f"assert 1 + 1 == {'2':>100}", "line 43: code of more"),
    (code_asserts, "assert 1 + 1 == 2", "print()", "4 asserts"),
    (quotes_stand, "    return y, y", "    return y", "line 28: not in"),
    (quotes_stand, "    ...\n    return y, y", "    return y, y\n    x.shape[-1] == 0", "not in"),
    (quotes_stand, "reference/softmax.py", "reference/hardmax.py", "does not exist"),
    (named_tests_exist, "`test_value_against_loops`", "`test_value_against_loop`", "no function test_value_against_loop in"),
    (named_tests_exist, ": `test_value_against_loops`", "", "without the name"),
    (named_tests_exist, "[`tests/reference/test_ops.py`](../../tests/reference/test_ops.py): ", "", "without a link to its file"),
    (named_tests_exist, "/test_ops.py)", "/test_op.py)", "no function"),
    (exercises_exist, "exercises 1`", "exercises 999`", "there is no exercise 999"),
    (exercises_exist, "The answer.", "See exercise 0.", "there is no exercise 0"),
    (exercises_exist, "`python -m tensorlite.exercises 1`", "Nothing", "has no python -m"),
    (exercises_exist, "`python -m tensorlite.exercises 1`", "- **1**: what?", None),
    (exercises_exist, "`python -m tensorlite.exercises 1`", "- **1** and **81**", "no exercise 81"),
    (exercises_exist, "exercises 1`", "exercises 8`\ndtable", "belongs to chapter 3"),
    (exercises_exist, "dx.", "dw.", "does not name `dx`"),
    (trace_links_resolve, "html#60/", "html#61/", "no line 61/"),
    (trace_links_resolve, "attention_backward/", "attention_back/", "no line"),
    (trace_links_resolve, "/dscores/", "/dscore/", "no line"),
    (trace_links_resolve, "h1t3s3", "h4t3s3", "out of bounds"),
    (trace_links_resolve, "h1t3s3", "t3h1s3", "has the indices h t s"),
    (trace_links_resolve, "/h1t3s3", "", "no cell: "),
    (trace_links_resolve, "#60/attention_backward/dscores/h1t3s3", "", "links no cell"),
    (cells_are_as_quoted, "= -0.0408", "= 0.0408", "is -0.04"),
    (cells_are_as_quoted, "= -0.0408", "= -0.0409", "is -0.04"),
    (cells_are_as_quoted, "is -0.0408", "is small", "-0.0408 of 60/"),
    (has_a_solution, "--write linear", "--write bilinear", "no such op"),
    (has_a_solution, "--write linear", "--write gelu", "no solution of gelu_backward"),
    (has_a_solution, "--write linear", "linear", "no --write NAME"),
    (has_a_solution, "```python\ndef linear_backward", "```text\ndef linear_backward", "no solution of linear"),
]


@pytest.mark.parametrize(("check", "old", "new", "says"), MISTAKES, ids=[f"{m[0].__name__}-{i}" for i, m in enumerate(MISTAKES)])
def test_a_mistake_is_noticed(check, old, new, says):
    assert old in GOOD
    found = check(chapter_of(GOOD.replace(old, new, 1)))
    if says is None:
        assert found == []
    else:
        assert any(says in line for line in found), found


def test_parts_in_another_order_are_noticed():
    text = GOOD.replace("## Predict", "## X").replace("## Write it", "## Predict").replace("## X", "## Write it")
    assert any("order" in line for line in parts_are_there(chapter_of(text)))


def test_a_hole_without_a_solution_is_noticed():
    text = WITH_OWN_HOLE.replace("```python\ndef double(x):\n    return", "```text\ndef double(x):\n    return")
    assert has_a_solution(chapter_of(text, 2)) != []


def test_a_milestone_without_its_loss_is_noticed(tmp_path):
    path = tmp_path / "06-name.md"
    for text, n_missing in (("python train.py --preset bigram: 2.5, 2.487", 0), ("python train.py --preset bigram: 2.5, 2.4", 1)):
        path.write_text(text)
        assert len(milestones_have_the_losses(course.read(path))) == n_missing


@pytest.mark.usefixtures("at_the_root")
def test_what_runs():
    assert run_watched(chapter_of(GOOD)) == []
    assert run_watched(chapter_of(WITH_OWN_HOLE, 2)) == []
    with pytest.raises(NotImplementedError):
        course.run(chapter_of(WITH_OWN_HOLE, 2), solved=False)
    with pytest.raises(AssertionError) as error:
        course.run(chapter_of(GOOD.replace("1 + 1 == 2", "1 + 1 == 3")))
    assert error.traceback[-1].lineno + 1 == GOOD.splitlines().index("assert 1 + 1 == 2") + 1  # the line of the page
    with pytest.raises(AssertionError):
        course.run(chapter_of(WITH_OWN_HOLE.replace("return 2 * x", "return x"), 2))


@pytest.mark.usefixtures("at_the_root")
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("open(FILE, 'w').close()", "writes "),
        ("import socket\nwith socket.socket() as s:\n    s.connect_ex(('127.0.0.1', 9))", "uses the network"),
        ("import time; start = time.thread_time()\nwhile time.thread_time() < start + 0.3: pass", "its code takes 0."),
    ],
)
def test_what_code_must_not_do(line, says, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "MOST_SECONDS", 0.2)
    text = GOOD.replace("assert 1 + 1 == 2", line.replace("FILE", repr(str(tmp_path / "file"))))
    assert [words for words in run_watched(chapter_of(text)) if words.startswith(says)]


def test_a_wrong_solution_is_noticed(tmp_path):
    assert try_solution(chapter_of(GOOD), "linear", tmp_path) == []
    assert "fail" in try_solution(chapter_of(GOOD.replace("rows.sum", "rows.mean")), "linear", tmp_path)[0]


def test_a_fence_without_an_end_is_an_error():
    with pytest.raises(ValueError, match=r"03-name.md:\d+: this fence is not closed"):
        chapter_of(GOOD.partition("```math")[0] + "```math\nx\n")


def test_a_wrong_table_of_chapters_is_noticed():
    one = chapter_of(GOOD)
    rows = [f"| {n} | [A title](03-name.md) | 25 |" if n == 3 else f"| {n} | Later | 30 |" for n in range(N_CHAPTERS)]
    table = "\n".join(rows)
    assert wrong_rows(table, [one]) == []
    for old, new, says in (
        ("| 25 |", "| 26 |", "row 3 says"),
        ("[A title]", "[Another]", "row 3 says"),
        ("03-name", "03-other", "row 3 links"),
        ("| 4 | Later", "| 4 | [Later](04-later.md)", "row 4 links"),
        ("| 5 | Later | 30 |\n", "", "the rows are"),
        ("| 30 |", "| 50 |", "minutes"),
    ):
        assert any(says in line for line in wrong_rows(table.replace(old, new), [one])), (old, new)
    assert "two chapters have one number" in wrong_rows(table, [one, one])
    every = [chapter_of(GOOD.replace("# 3. ", f"# {n}. "), n) for n in range(N_CHAPTERS)]
    assert "row 4 has no link" in wrong_rows(table, every)


def test_a_question_without_an_answer_is_noticed():
    head = "## Questions and where they are answered\n\n| question | answered in |\n|---|---|\n"
    rows = [f"| Why {n}? | [3](03-name.md#a-topic) |" for n in range(29)]
    assert unanswered(head + "\n".join([*rows, "| Why? | |"]), []) == []
    assert unanswered(head + "\n".join(rows), []) == ["29 questions, not 30"]
    every = [chapter_of(GOOD, n) for n in range(N_CHAPTERS)]
    assert unanswered(head + "\n".join([*rows, "| Why? | [3](03-name.md) |"]), every) == ["no answer: | Why? | [3](03-name.md) |"]
