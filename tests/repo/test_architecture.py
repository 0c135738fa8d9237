"""docs/architecture.md agrees with the files, and packages import only those below them. The package lists every folder."""

import sys
import tomllib

import pytest

from paths import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import draw_architecture as architecture

SOURCES = [p for folder in architecture.PACKAGES for p in (ROOT / folder).rglob("*") if p.suffix in architecture.SUFFIXES]


def test_the_page_is_what_the_files_say():
    assert architecture.page() == architecture.PAGE.read_text(encoding="utf-8"), "run python docs/draw_architecture.py"


def test_a_file_says_in_a_short_sentence_what_it_is():
    found = {path.relative_to(ROOT).as_posix(): len(architecture.first_sentence(path)) for path in SOURCES}
    assert not {name: length for name, length in found.items() if not 10 <= length <= architecture.LONGEST}


LAYERS = {  # a package may import those named, and itself
    "tensorlite": {"tensorlite/reference", "tensorlite/testing", "tensorlite/testing/exercises"},
    "tensorlite/reference": {"tensorlite"},
    "tensorlite/reference/longhand": {"tensorlite"},  # not the fused form that it is compared with
    "tensorlite/cpu": {"tensorlite", "tensorlite/reference"},
    "tensorlite/cuda/runtime": {"tensorlite"},
    "tensorlite/cuda": {"tensorlite", "tensorlite/reference", "tensorlite/cuda/runtime"},
    "tensorlite/testing": {"tensorlite", "tensorlite/testing/hints"},
    "tensorlite/testing/hints": {"tensorlite", "tensorlite/testing"},
    "tensorlite/testing/adapters": {"tensorlite", "tensorlite/testing"},
    "tensorlite/testing/bugs": {"tensorlite", "tensorlite/reference"},
    "tensorlite/testing/exercises": {"tensorlite", "tensorlite/testing", "tensorlite/testing/bugs"},
    "gpt/models": {"gpt", "tensorlite"},  # of tensorlite the types of their arguments alone
    "gpt/trace": {"gpt", "gpt/models", "gpt/training", "tensorlite", "tensorlite/reference"},
}


@pytest.mark.parametrize("package", LAYERS)
def test_imports_go_one_way(package):
    assert set(architecture.imports()[package]) <= LAYERS[package]


def test_nothing_below_imports_what_is_above():
    found = architecture.imports()
    assert not {
        other for package, others in found.items() if package.startswith("tensorlite") for other in others if "gpt" in other
    }
    assert "gpt/analysis" not in found["gpt/training"]
    assert not [package for package, others in found.items() if "gpt/trace" in others and package != "gpt/trace"]


def test_the_places_that_the_picture_names_exist():
    for *_, where in architecture.BOXES.values():
        for name in where.split(", "):
            if name.endswith(".py"):
                assert (ROOT / name).is_file()


def test_the_package_has_every_folder():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {p.parent.relative_to(ROOT).as_posix().replace("/", ".") for p in SOURCES if p.name == "__init__.py"}
    assert set(settings["packages"]) == folders
    data = settings["package-data"]
    files = {
        p for package, patterns in data.items() for pattern in patterns for p in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    page = set((ROOT / "gpt" / "trace" / "web").iterdir())
    assert files == {p for p in SOURCES if p.suffix != ".py"} | page | {ROOT / "tensorlite" / "py.typed"}
