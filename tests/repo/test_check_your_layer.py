"""docs/check-your-layer.md: every example runs and prints the lines that the page shows."""

import contextlib
import importlib.util
import io
import re

import pytest

from paths import ROOT

PAGE = (ROOT / "docs" / "check-your-layer.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


def shown(line):
    """A line of the page as a pattern: ... stands for the rest of a line."""
    return ".*".join(map(re.escape, line.split("...")))


def test_every_section_has_an_example():
    assert [title for title, *_ in EXAMPLES] == re.findall(r"^## (.+)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("title", "code", "output"), EXAMPLES, ids=[title for title, *_ in EXAMPLES])
def test_the_code_prints_what_the_page_shows(title, code, output):
    for library in ("torch", "jax"):
        if f"import {library}\n" in code and importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {"__name__": "example"})
    lines = iter(printed.getvalue().splitlines())
    for line in output.splitlines():
        if line.strip() != "...":
            assert any(re.fullmatch(shown(line), found) for found in lines), (
                f"{line!r} is not in, or not in order:\n{printed.getvalue()}"
            )
