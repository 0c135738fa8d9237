"""Files that are written while training goes on: their content, and when an error is reported."""

import threading

import numpy as np
import pytest

from failing import failing, failing_first
from gpt.errors import CheckpointError
from gpt.training import checkpoint, run_dir, run_setup
from gpt.training.checkpoint_writer import CheckpointWriter
from tensorlite.loss_scale import LossScale
from trainers import RECORD, preset


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn, in the place of drawing it."""
    curves = []
    monkeypatch.setattr("gpt.training.checkpoint_writer.loss_curve", lambda *args, **options: curves.append((args, options)))
    return curves


@pytest.fixture
def setup(corpus, tmp_path):
    setup = run_setup.new_run(preset(), {}, {}, tmp_path / "run", corpus, seed=3)
    setup.out.mkdir()
    return setup


@pytest.fixture
def state(setup):
    state = setup.state(np)
    state.step = 5
    for shift, buffer in enumerate((state.params, state.m, state.v), 1):
        for view in state.table.views(buffer):
            view += shift
    return state


def save(writer, state, history=(), val_loss=1.5, best_val=1.25, **options):
    writer.save_async(state, list(history), val_loss=val_loss, best_val=best_val, **options)


@pytest.mark.parametrize("loss_scale", [None, LossScale(8.0, 2, 3)])
def test_a_checkpoint_has_the_loss_scale(loss_scale, setup, state, drawn):
    writer = CheckpointWriter(setup)
    save(writer, state, loss_scale=loss_scale)
    writer.wait()
    assert checkpoint.load(run_dir.last_checkpoint(setup.out)).loss_scale == loss_scale


def test_a_checkpoint_has_the_state_as_it_was(setup, state, drawn, monkeypatch):
    """Training goes on while the file is written."""
    goes_on = threading.Event()
    write = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *args: goes_on.wait(10) and write(*args))
    before, history = state.copy(), [RECORD]
    writer = CheckpointWriter(setup)
    writer.save_async(state, history, val_loss=1.5, best_val=1.25)
    state.step += 1
    for buffer in state.buffers():
        buffer += 1
    history.append(RECORD | {"step": 6})
    goes_on.set()
    writer.wait()
    saved = checkpoint.load(run_dir.last_checkpoint(setup.out))
    for name in checkpoint.BUFFERS:
        np.testing.assert_array_equal(getattr(saved, name), getattr(before, name))
    assert (saved.step, saved.val_loss, saved.best_val) == (5, 1.5, 1.25)
    assert (saved.model, saved.train, saved.seed, saved.drop_unknown) == (setup.model, setup.train, 3, False)
    assert (saved.vocabulary, saved.data_sha256) == (setup.corpus.tokenizer.vocabulary, setup.corpus.sha256)
    assert drawn == [((setup.out / "loss.png", [RECORD]), {"title": "run"})]


def test_the_best_checkpoint_is_the_last_as_well(setup, state, drawn):
    best, last = run_dir.best_checkpoint(setup.out), run_dir.last_checkpoint(setup.out)
    writer = CheckpointWriter(setup)
    save(writer, state)
    writer.wait()
    assert last.exists()
    assert not best.exists()
    state.step = 6
    save(writer, state, is_best=True)
    writer.wait()
    assert checkpoint.load(best).step == checkpoint.load(last).step == 6
    state.step = 7
    save(writer, state, is_best=False)
    writer.wait()
    assert (checkpoint.load(best).step, checkpoint.load(last).step) == (6, 7)
    assert drawn == []  # no evaluation, no curve


def test_a_save_that_failed_is_noted_and_the_next_one_is_made(setup, state, drawn, monkeypatch, notes):
    failing_first(monkeypatch, checkpoint, "save", CheckpointError("no space"), 1)
    writer = CheckpointWriter(setup)
    save(writer, state)
    state.step = 6
    save(writer, state)
    assert notes == {"no space; trying again, with step 6"}
    assert checkpoint.load(run_dir.last_checkpoint(setup.out)).step == 6
    writer.wait()


def test_two_saves_that_fail_in_a_row_are_an_error_once(setup, state, drawn, monkeypatch, notes):
    failing_first(monkeypatch, checkpoint, "save", CheckpointError("no space"), 3)
    writer = CheckpointWriter(setup)
    save(writer, state)
    with pytest.raises(CheckpointError, match="no space"):
        save(writer, state)
    save(writer, state)
    with pytest.raises(CheckpointError, match="no space"):
        writer.wait()
    writer.wait()
    save(writer, state)
    writer.wait()
    assert checkpoint.load(run_dir.last_checkpoint(setup.out)).step == 5


def finish(writer, state, error=None, metrics=False):
    """A run in short: it writes the metrics, perhaps, and a checkpoint, and perhaps an error ends it."""
    with writer.finished():
        if metrics:
            writer.write_metrics([RECORD])
        save(writer, state)
        if error:
            raise error


def test_a_save_is_finished_however_the_run_ends(setup, state, drawn, monkeypatch):
    """An error of the run comes before one of the save, and one of the save before that of the metrics."""
    last = run_dir.last_checkpoint(setup.out)
    writer = CheckpointWriter(setup)
    finish(writer, state)
    last.unlink()
    with pytest.raises(KeyError):
        finish(writer, state, KeyError())
    assert last.exists()
    failing_first(monkeypatch, checkpoint, "save", CheckpointError("no space"), 2)
    with pytest.raises(KeyError):
        finish(writer, state, KeyError())
    monkeypatch.setattr(run_dir, "write_metrics", failing(CheckpointError("no metrics"), 2))
    with pytest.raises(CheckpointError, match="no space"):
        finish(writer, state, metrics=True)
    with pytest.raises(CheckpointError, match="no metrics"):
        finish(writer, state, metrics=True)
    finish(writer, state, metrics=True)  # the third time both succeed


@pytest.mark.parametrize(
    ("error", "what"),
    [(ValueError("  no font\nat all"), "ValueError: no font"), (ImportError(""), "ImportError: ImportError")],
)
def test_why_there_is_no_curve_is_one_line(error, what, setup, state, monkeypatch, notes):
    monkeypatch.setattr("gpt.training.checkpoint_writer.loss_curve", failing(error))
    writer = CheckpointWriter(setup)
    save(writer, state, [RECORD])
    writer.wait()
    assert notes == {f"the loss curve cannot be drawn ({what}); all it would show is in metrics.jsonl"}
