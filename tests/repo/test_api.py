"""docs/api.md agrees with the docstrings and has every public name. Docstrings look as they are meant to."""

import ast
import re
import sys

import pytest

import tensorlite
from paths import ROOT
from tensorlite.op_info import OP_INFO
from tensorlite.testing import properties

sys.path.insert(0, str(ROOT / "docs"))
import write_api as api

PAGE = api.PAGE.read_text(encoding="utf-8")
HEADINGS = re.findall(r"^#{2,4} (.+)$", PAGE, re.MULTILINE)


def test_the_page_is_what_the_docstrings_say():
    assert api.page() == PAGE, "run python docs/write_api.py"


def test_every_public_name_is_there():
    checks = [f"tensorlite.testing.{name}" for name in vars(properties) if name.startswith("check_")]
    ops = [f"{op}_{direction}" for op in OP_INFO for direction in ("forward", "backward")]
    assert {*tensorlite.__all__, *ops, *checks} <= set(HEADINGS)
    assert len(checks) > 5


def test_a_name_has_one_entry():
    assert len(HEADINGS) == len(set(HEADINGS))


def test_links_within_the_page_lead_somewhere():
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in HEADINGS}
    targets = re.findall(r"\]\(#([^)]+)\)", PAGE)
    assert len(targets) > 5
    assert set(targets) <= anchors


def test_signatures_are_python():
    for block in re.findall(r"```python\n(.*?)\n```", PAGE, re.DOTALL):
        ast.parse(block)


def test_lines_of_prose_are_short():
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL).splitlines()
    assert not [line for line in prose if len(line) > api.COLUMNS and not line.startswith("[")]


DOCSTRING = """\
y = x * w, with w = *args and a <b> of __init__ over `<c>`.

x: (..., C) float.
w, b: (C,) or
  None.
Returns y: (..., C).

Derivation, for one row:
  1. y_i = x_i w_i:  dx_i = dy_i w_i.
  2. And so on.
The rest is prose, which is long enough to be broken into two lines because one line holds too many
- characters and not more."""

MARKDOWN = """\
y = x * w, with w = \\*args and a \\<b> of \\__init__ over `<c>`.

- x: (..., C) float.
- w, b: (C,) or None.
- Returns y: (..., C).

Derivation, for one row:

```text
1. y_i = x_i w_i:  dx_i = dy_i w_i.
2. And so on.
```

The rest is prose, which is long enough to be broken into two lines because one line holds too many
\\- characters and not more."""


def test_a_docstring_becomes_markdown():
    assert api.markdown(DOCSTRING) == MARKDOWN


STEPS = "Derivation: 1. this,\n            2. that."


@pytest.mark.parametrize(
    ("docstring", "shown"),
    [
        ("", ""),
        ("One line.", "One line."),
        ("A name: first of the page.", "A name: first of the page."),
        (f"dx = dy\n\n{STEPS}", f"dx = dy\n\n```text\n{STEPS}\n```"),
        ("A summary\nof two lines.\nx: (C,).", "A summary of two lines.\n\n- x: (C,)."),
        ("A summary is\nenough: it says it.", "A summary is enough: it says it."),
        ("One.\n\nSo one dy is\nenough: it meets all.\nx: (C,).", "One.\n\nSo one dy is enough: it meets all.\n\n- x: (C,)."),
        ("One.\n\nx: of a shape that is\nreal: (C,).\ny: (C,).", "One.\n\n- x: of a shape that is real: (C,).\n- y: (C,)."),
    ],
)
def test_short_docstrings(docstring, shown):
    assert api.markdown(docstring) == shown


def test_a_name_that_is_gone_is_named():
    with pytest.raises(SystemExit, match=r"linear\.py has no lineal_forward"):
        api.entry("lineal_forward", api.module("tensorlite/reference/linear"), "lineal_forward")
