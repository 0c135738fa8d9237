"""The pages of the repository: prose fits 100 columns, and every relative link and anchor exists.

A link into the trace page leads to a cell of it, which test_course.py checks.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

from paths import ROOT

COLUMNS = 100
FOLDERS = (".github", "benchmarks", "docs", "tests")  # the whole root may hold an environment with pages of its own
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_fences(text: str) -> list[tuple[int, str]]:
    """Return the numbered lines of a page that are in no fenced code block."""
    lines: list[tuple[int, str]] = []
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            lines.append((number, line))
    return lines


def too_long(text: str) -> list[int]:
    """Return the numbers of the prose lines that are too long. Tables are no prose, and a URL or a link's target has no width."""
    found = []
    for number, line in without_fences(text):
        visible = re.sub(r"\]\([^)\s]*\)|https?://\S+", "", line)
        if len(visible) > COLUMNS and not line.lstrip().startswith("|"):
            found.append(number)
    return found


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page; a repeated heading gets -1, -2, ..."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for _, line in without_fences(text):
        if heading := re.match(r"#{1,6} +(.*)", line):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).strip().lower()
            slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return found


def relative_links(text: str) -> list[str]:
    """Return the targets of the links and images of a page that lead into the repository."""
    prose = re.sub(r"`[^`]*`", "", "\n".join(line for _, line in without_fences(text)))
    targets = re.findall(r"\]\(\s*([^)\s]+)[^)]*\)", prose) + re.findall(r"^\[[^\]]+\]:\s*(\S+)", prose, re.MULTILINE)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def broken(page: Path) -> list[str]:
    """Return the links of a page whose file or anchor does not exist."""
    found = []
    for target in relative_links(page.read_text(encoding="utf-8")):
        if "trace.html#" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_prose_fits(page):
    assert not too_long(page.read_text(encoding="utf-8")), f"lines of {name(page)} with more than {COLUMNS} columns"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    assert not broken(page)


def test_what_is_too_long():
    fits, over = "x" * COLUMNS, "x" * (COLUMNS + 1)
    assert too_long(f"{fits}\n{over}\n\n- {fits}\n") == [2, 4]
    for excepted in (f"| {over} |", f"```\n{over}\n```", f"see https://{over}", f"[link]({over})"):
        assert too_long(f"{excepted}\n{over}\n") == [excepted.count("\n") + 2]


def test_what_is_broken(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# A topic: `x_y`, one\n\n## Twice\n\n## Twice\n\n```\n# not a heading\n```\n")
    right = "[a](other.md) [b](other.md#a-topic-x_y-one) [c](other.md#twice-1) [d](#here) [e](https://x.y/z) `[f](code)`"
    right += " [g](trace.html#0/a/b/c0)"
    page.write_text(f"# Here\n\n{right}\n")
    assert broken(page) == []
    page.write_text("[a](none.md) [b](other.md#not-a-heading) [c](other.md#twice-2) [d](#here)\n\n[e]: gone.md\n")
    assert broken(page) == ["none.md", "other.md#not-a-heading", "other.md#twice-2", "#here", "gone.md"]
