"""Whole runs of the trainer with the CUDA backend, whose kernels run on the CPU."""

import os
import signal

import numpy as np
import pytest

from gpt.config import Preset, TrainConfig
from gpt.errors import TrainingError
from gpt.training import checkpoint, run_dir, run_setup
from gpt.training.data_parallel import Workers
from gpt.training.trainer import Trainer
from shim.host import HostRuntime, require_compiler
from small import PANGRAMS, config_of
from tensorlite import ReferenceOps
from tensorlite.cuda import CUDAOps

require_compiler()

TRAIN = TrainConfig(batch_size=4, max_iters=12, learning_rate=0.01, min_lr=0.001, eval_interval=6, eval_batches=1, grad_clip=1.0)


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "text").write_text(PANGRAMS)
    return tmp_path / "text"


def trainer(corpus, out, ops=None, resume=False):
    if resume:
        p = run_setup.resume(out, {}, {}, corpus)
    else:
        preset = Preset(config_of("gpt", dropout=0.2, block_size=8, n_layer=1), TRAIN, "")
        p = run_setup.new_run(preset, {}, {}, out, corpus, seed=1)
    out.mkdir(exist_ok=True)
    return Trainer(p, Workers.of(ops or CUDAOps("float32", check=False, runtime=HostRuntime())), np)


def losses(run):
    return [(r["step"], r["train_loss"], r["val_loss"]) for r in run.history]


def test_a_run_follows_the_reference_and_leaves_its_losses_unread(corpus, tmp_path):
    """12 steps with 6 between evaluations are fewer than may stay unread, so losses are read only at the evaluations."""
    run, reads = trainer(corpus, tmp_path / "a"), []
    sync = run.sync
    run.sync = lambda: reads.append(len(run.pending)) or sync()
    assert run.run() is None
    assert reads == [6, 6]
    reference = trainer(corpus, tmp_path / "b", ReferenceOps(check=False))
    reference.run()
    np.testing.assert_allclose(losses(run), losses(reference), rtol=1e-5)


def test_resume_equals_a_straight_run(corpus, tmp_path):
    """The results are bitwise identical, though the uninterrupted run captured its graph at another step."""
    straight = trainer(corpus, tmp_path / "a")
    straight.run()
    first = trainer(corpus, tmp_path / "b")
    step = first.workers.train_step
    first.workers.train_step = lambda *args: (os.kill(os.getpid(), signal.SIGINT) if first.state.step == 7 else None) or step(*args)
    assert first.run() == signal.SIGINT
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "b")).step == 8
    second = trainer(corpus, tmp_path / "b", resume=True)
    second.run()
    np.testing.assert_array_equal(second.state.params, straight.state.params)
    assert losses(second) == losses(straight)


def test_timed_steps_leave_no_trace(corpus, tmp_path):
    run, twin = trainer(corpus, tmp_path / "a"), trainer(corpus, tmp_path / "b")
    with run.rolled_back():
        for _ in range(3):  # the first compiles, the second is captured, the third is replayed
            run.train_step()
            run.sync()
        assert run.state.step == 3
    assert run.state.step == 0
    run.run(), twin.run()
    np.testing.assert_array_equal(run.state.params, twin.state.params)


def test_a_loss_that_is_no_number_is_noticed_at_the_next_reading(corpus, tmp_path):
    run = trainer(corpus, tmp_path / "a")
    step = run.workers.train_step

    def poisoned(*args):
        if run.state.step == 8:
            run.state.params[:] = np.nan
        return step(*args)

    run.workers.train_step = poisoned
    with pytest.raises(TrainingError, match=r"^step 9: the loss is nan"):
        run.run()
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "a")).step == 6
