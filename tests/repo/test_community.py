"""The workflow, CONTRIBUTING and the changelog agree with the code."""

import importlib
import re
import tomllib

import pytest

import tensorlite
from paths import ROOT

WORKFLOW = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "docs" / "CHANGELOG.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# ---- the workflow: `make lint` checks it against GitHub's schema ----


def test_linux_runs_the_ci_script():
    assert "- run: .ci/run\n" in WORKFLOW


def test_the_other_systems_run_the_readmes_test_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"<!-- command two -->\n```sh\n(.+)\n```", readme)[1]
    assert f"- run: {command}\n        shell: bash" in WORKFLOW
    assert "os: [macos-latest, windows-latest]" in WORKFLOW


def test_pythons_begin_with_the_lowest():
    pythons = re.search(r"python: \[(.+)\]", WORKFLOW)[1].replace('"', "").split(", ")
    assert f">={pythons[0]}" == PROJECT["requires-python"]
    assert f'python-version: "{pythons[0]}"' in WORKFLOW


def test_the_workflow_may_only_read():
    assert re.findall(r"^ *\w+: (?:write|read).*$", WORKFLOW, re.MULTILINE) == ["  contents: read"]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in re.findall(r"uses: (\S+)", WORKFLOW))


def test_the_linter_checks_the_schemas():
    for name, schema in (("workflows/tests.yml", "github-workflows"), ("ISSUE_TEMPLATE/bug.yml", "github-issue-forms")):
        assert f"check_jsonschema --builtin-schema vendor.{schema} .github/{name}" in MAKEFILE
    assert any(requirement.startswith("check-jsonschema") for requirement in PROJECT["optional-dependencies"]["dev"])


@pytest.mark.parametrize("text", [WORKFLOW, CONTRIBUTING], ids=["workflow", "CONTRIBUTING"])
def test_it_says_that_it_has_never_run(text):
    assert "has never run" in text


# ---- CONTRIBUTING ----


def test_contributing_is_short():
    assert len(CONTRIBUTING.splitlines()) < 100
    assert not [line for line in CONTRIBUTING.splitlines() if len(line) > 100]


def test_contributing_names_what_exists():
    targets = re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE)
    named = re.findall(r"(?:`|^)make ([\w-]+)", CONTRIBUTING, re.MULTILINE)
    assert "check" in named
    assert set(named) <= set(targets)
    paths = re.findall(r"`(?:python )?((?:docs|tests|tensorlite|benchmarks)/[\w./]+)", CONTRIBUTING)
    assert len(paths) > 10
    assert not [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]
    links = re.findall(r"\]\(([^)]+)\)", CONTRIBUTING)
    assert not [link for link in links if not (ROOT / ".github" / link).exists()]


# ---- the changelog ----


def test_the_changelog_begins_with_what_is_unreleased_and_has_the_version():
    headings = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1] == tensorlite.__version__


def found(name):
    """Whether a dotted name, or a member of a backend as ops.NAME, exists."""
    if name.startswith("ops."):
        return hasattr(tensorlite.ReferenceOps, name.removeprefix("ops."))
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        if not module:
            return False
        return found(module) and hasattr(importlib.import_module(module), attribute)
    return True


def test_renames_lead_from_a_name_that_is_gone_to_one_that_exists():
    rows = re.findall(r"^\| (`.+) \| (`.+) \|$", CHANGELOG, re.MULTILINE)
    assert len(rows) > 30
    old, new = ([name for cell in column for name in re.findall(r"`([\w.]+)`", cell)] for column in zip(*rows, strict=True))
    assert not [name for name in old if found(name)]
    assert not [name for name in new if not found(name)]
