"""Tests of the hints: the kind of each known-wrong layer's mistake is named, and nothing is said of a true gradient."""

import tomllib
from pathlib import Path

from tensorlite.testing.bugs import BUGS

KINDS = tomllib.loads((Path(__file__).parent / "mistake_kinds.toml").read_text())
UNLISTED = ("other", "none")


def kind(bug):
    return KINDS[bug.op][bug.name]


def is_listed(bug):
    """Whether the gradient as a whole is wrong in a way that has a name."""
    return kind(bug)["kind"] not in UNLISTED and "inside" not in kind(bug)


def test_the_table_has_every_known_wrong_layer():
    assert {(op, name) for op, names in KINDS.items() for name in names} == {(bug.op, bug.name) for bug in BUGS}
    assert all((kind(bug)["kind"] == "none") == (bug.wrong == ("y",)) for bug in BUGS)
    assert sum(map(is_listed, BUGS)) >= 36
