"""Every script of docs/examples runs, shows what it says, and leaves nothing behind."""

import runpy
import sys

import pytest

from paths import ROOT

EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture
def example(tmp_path, monkeypatch, capsys):
    """Run a script in an empty folder, which stays empty; return its names and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        before = set(tmp_path.iterdir())
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        names = runpy.run_path(str(EXAMPLES / name))
        assert set(tmp_path.iterdir()) == before
        return names, capsys.readouterr().out

    return run


def test_gradcheck_your_layer(example):
    names, printed = example("gradcheck_your_layer.py")
    assert names["right"].ok
    assert names["wrong"].status == "fail"
    assert {argument.name: argument.bad for argument in names["wrong"].arguments} == {"x": 18, "a": 3}
    last_step = names["inputs"]["x"].shape[1] - 1
    assert all(entry.index[1] != last_step for entry in names["wrong"].arguments[0].entries)
    assert "dx is wrong in 18 of 24 entries" in printed


def test_add_an_op(example):
    names, printed = example("add_an_op.py")
    assert printed.count("gradcheck: pass") == 2
    assert "every property holds" in printed
    assert issubclass(names["MyOps"], names["ReferenceOps"])


def test_property_test(example):
    names, printed = example("property_test.py")
    assert names["right"].examples == 50
    assert "not checked: rows (skipped)" in printed
    assert printed.endswith("the windows are where they should be\n")
    wrong = names["wrong"]
    assert wrong.example.letters == {"B": 1, "T": 1, "K": 2, "C": 1}
    assert wrong.snippet in printed
    with pytest.raises(names["CheckLayerError"].__base__, match=r"dx\[0, 1, 0\]"):
        exec(wrong.snippet, names)


def test_train_on_your_text(example):
    names, printed = example("train_on_your_text.py")
    losses = [float(words.split("val loss ")[1]) for words in printed.splitlines() if "val loss" in words]
    assert losses[-1] < 0.5 * losses[0]
    assert names["written"].startswith("A small ")
    assert len(names["written"]) == 128


def test_train_on_a_file(example, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("one two three four five six\n" * 30, encoding="utf-8")
    names, _ = example("train_on_your_text.py", text)
    assert set(names["written"]) <= set("one two three four five six\n")


def test_every_example_has_a_test():
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"} == {
        "gradcheck_your_layer.py",
        "add_an_op.py",
        "property_test.py",
        "train_on_your_text.py",
    }
