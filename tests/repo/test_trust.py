"""What SECURITY.md promises about the source: no content of a file can run as code."""

import ast

import pytest

from paths import ROOT

SOURCES = [
    ROOT / "train.py",
    ROOT / "sample.py",
    *sorted((ROOT / "tensorlite").rglob("*.py")),
    *sorted((ROOT / "gpt").rglob("*.py")),
]
MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "torch"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {"eval", "exec", "__import__", "system", "popen"}
FLAGS = {"allow_pickle", "shell"}


def dangers(source: str) -> list[str]:
    """What in a source could run, or load objects from, what it is given."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + (
                [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            )
            found += [f"imports {name}" for name in names if name.split(".")[0] in MODULES]
        if isinstance(node, ast.Name) and node.id in BUILTINS:
            found.append(f"uses {node.id}")
        if isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            found.append(f"uses {node.attr}")
        if isinstance(node, ast.keyword) and node.arg in FLAGS:
            found.append(f"gives {node.arg}")
    return found


ADAPTER = ROOT / "tensorlite" / "testing" / "adapters" / "from_torch.py"  # for users who bring PyTorch
ATTEMPT = ROOT / "tensorlite" / "testing" / "exercises" / "attempt.py"  # runs the reader's own exercise, as SECURITY.md says
ALLOWED = {ADAPTER: {"imports torch"}, ATTEMPT: {"uses exec", "uses compile"}}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_a_file_holds(path):
    assert set(dangers(path.read_text(encoding="utf-8"))) == ALLOWED.get(path, set())


@pytest.mark.parametrize(
    ("module", "user"),
    [("attempt", ATTEMPT.with_name("command.py")), ("command", ROOT / "tensorlite" / "exercises.py")],
)
def test_only_the_command_of_the_exercises_runs_one(module, user):
    name = f"tensorlite.testing.exercises.{module} import"
    assert [path for path in SOURCES if name in path.read_text(encoding="utf-8")] == [user]


def test_the_adapter_of_pytorch_loads_no_file():
    names = {node.attr for node in ast.walk(ast.parse(ADAPTER.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)}
    assert not names & {"load", "jit", "hub", "package", "compile"}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import numpy, marshal",
        "x = eval('1')",
        "f = exec",
        "builtins.exec(text)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "__import__('pickle')",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert dangers(source)
