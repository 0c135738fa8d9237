"""The loss curve: any name can be its title, and a plot that fails never ends the run."""

import contextlib
import subprocess
import sys

import pytest

from failing import failing
from gpt.training import checkpoint, run_dir
from gpt.training.plots import loss_curve
from paths import ROOT
from trainers import RECORD, trainer


@pytest.mark.parametrize("title", ["a$^$b", "r_\udcff", "$\\frac{", "\x00\x01", "%", "", "日本"])
def test_any_name_is_a_title(title, tmp_path):
    with pytest.warns(UserWarning, match="Glyph") if title in ("日本", "\x00\x01") else contextlib.nullcontext():
        loss_curve(tmp_path / "loss.png", [RECORD, RECORD | {"step": 5}], title)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "error", [ValueError("Key backend: 'x' is no backend"), OSError(28, "No space left"), ImportError(""), KeyError(3)]
)
def test_whatever_drawing_raises_is_one_note(error, corpus, tmp_path, monkeypatch, notes, capsys):
    monkeypatch.setattr("gpt.training.checkpoint_writer.loss_curve", failing(error))
    run = trainer(corpus, tmp_path / "a")
    assert run.run() is None
    (said,) = notes
    assert said.startswith(f"the loss curve cannot be drawn ({type(error).__name__}: ")
    assert capsys.readouterr().out.count("the loss curve") == 1
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "a")).step == 12


@pytest.mark.program
def test_drawing_leaves_another_programs_matplotlib_alone(tmp_path):
    """In a process of its own: the backend, the settings and the figures of whoever uses matplotlib beside a run."""
    script = """
import sys
import matplotlib
matplotlib.use("svg")
import matplotlib.pyplot as plt
plt.rcParams["lines.linewidth"] = 7
figure = plt.figure()
before = dict(matplotlib.rcParams)
from pathlib import Path
from gpt.training.plots import loss_curve
loss_curve(Path(sys.argv[1]), [dict(step=0, train_loss=1.0, val_loss=2.0)], "t")
assert dict(matplotlib.rcParams) == before and matplotlib.get_backend() == "svg" and plt.get_fignums() == [figure.number]
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "p.png"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
