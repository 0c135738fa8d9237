"""Whole runs of the trainer with the CUDA backend, whose kernels run on the CPU, with and without a loss scale."""

import dataclasses
import json
import math
import signal

import numpy as np
import pytest

from gpt.config import Preset, TrainConfig
from gpt.errors import TrainingError
from gpt.training import checkpoint, run_dir, run_setup
from gpt.training.data_parallel import Workers
from gpt.training.trainer import Trainer
from half_range import scaled_ops, value_on
from shim.host import HostRuntime, require_compiler
from small import PANGRAMS, config_of
from tensorlite import ReferenceOps, loss_scale
from tensorlite.cuda import CUDAOps
from tensorlite.cuda.loss_scale import DeviceLossScale
from tensorlite.loss_scale import LossScale

require_compiler()

TRAIN = TrainConfig(batch_size=4, max_iters=12, learning_rate=0.01, min_lr=0.001, eval_interval=6, eval_batches=1, grad_clip=1.0)


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "text").write_text(PANGRAMS)
    return tmp_path / "text"


def trainer(corpus, out, ops=None, resume=False, shards=1):
    """Return a trainer whose log is a list."""
    if resume:
        p = run_setup.resume(out, {}, {}, corpus)
    else:
        preset = Preset(config_of("gpt", dropout=0.2, block_size=8, n_layer=1), TRAIN, "")
        p = run_setup.new_run(preset, {}, {}, out, corpus, seed=1)
    out.mkdir(exist_ok=True)
    ops = ops or CUDAOps("float32", check=False, runtime=HostRuntime())
    run = Trainer(p, Workers(lambda: ops, shards=shards), np)
    run.logged = []
    run.log = run.logged.append
    return run


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


def test_two_shards_on_one_gpu(corpus, tmp_path):
    """Their losses are read in every step, so they are floats when the trainer reads them."""
    one, two = trainer(corpus, tmp_path / "a"), trainer(corpus, tmp_path / "b", shards=2)
    one.run(), two.run()
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)


def check_resume(corpus, folder, ops):
    """Compare an interrupted and resumed run with an uninterrupted one, which captured its graph at another step."""
    straight = trainer(corpus, folder / "a", ops())
    straight.run()
    first = trainer(corpus, folder / "b", ops())
    step = first.workers.train_step
    first.workers.train_step = lambda *args: (signal.raise_signal(signal.SIGINT) if first.state.step == 7 else None) or step(*args)
    assert first.run() == signal.SIGINT
    assert checkpoint.load(run_dir.last_checkpoint(folder / "b")).step == 8
    second = trainer(corpus, folder / "b", ops(), resume=True)
    second.run()
    np.testing.assert_array_equal(second.state.params, straight.state.params)
    assert losses(second) == losses(straight)
    assert first.logged + second.logged == straight.logged
    return straight, second


def test_resume_equals_a_straight_run(corpus, tmp_path):
    check_resume(corpus, tmp_path, lambda: CUDAOps("float32", check=False, runtime=HostRuntime()))


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


# ---- with a loss scale ----


@pytest.fixture
def quick_growth(monkeypatch):
    """The loss scale grows after three steps. No loss curve is drawn, which would take most of the time."""
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 3)
    monkeypatch.setattr("gpt.training.checkpoint_writer.loss_curve", lambda *_, **__: None)


def check_scaled_resume(corpus, folder):
    """Updates are skipped before and after the interruption, and at the same steps as in an uninterrupted run."""
    straight, second = check_resume(corpus, folder, scaled_ops)
    for run in (straight, second):
        assert value_on(run.workers.ops.loss_scale) == run.loss_scale == LossScale(2.0**21, 1, 5)


def test_resume_with_a_loss_scale_equals_a_straight_run(corpus, tmp_path, quick_growth):
    check_scaled_resume(corpus, tmp_path)


def test_skipped_updates_are_logged_and_recorded(corpus, tmp_path, quick_growth):
    run = trainer(corpus, tmp_path, scaled_ops())
    run.run()
    skipped = "the gradient overflowed in fp16; update skipped, loss scale"
    assert run.logged[1:4] == [
        f"step 1: {skipped} 16777216 -> 8388608",
        f"step 2: {skipped} 8388608 -> 4194304",
        f"step 3: {skipped} 4194304 -> 2097152",
    ]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["loss_scale"], r["skipped_steps"]) for r in records] == [
        (0, 2.0**24, 0),
        (6, 2.0**22, 3),
        (12, 2.0**21, 5),
    ]
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path)).loss_scale == run.loss_scale


def check_timed_steps(corpus, folder):
    run = trainer(corpus, folder, scaled_ops())
    with run.rolled_back():
        for _ in range(3):
            run.train_step()
            run.sync()
        assert run.loss_scale == LossScale(2.0**21, 0, 3)
    assert value_on(run.workers.ops.loss_scale) == run.loss_scale == LossScale(2.0**24)
    assert run.logged == []


def test_timed_steps_leave_the_loss_scale_and_the_log_as_they_were(corpus, tmp_path):
    check_timed_steps(corpus, tmp_path)


def test_an_overflow_at_the_smallest_scale_ends_the_run(corpus, tmp_path, monkeypatch):
    """The parameters are those of the last checkpoint, and the error names the first tensor whose gradient overflowed."""
    monkeypatch.setattr("half_range.LARGEST", 1e-6)
    run = trainer(corpus, tmp_path, scaled_ops(scale=4.0))
    before = run.state.params.copy()
    with pytest.raises(
        TrainingError, match=r"^step 3: the loss is \d\S+, the gradient's norm (nan|inf), first bad gradient wte; lower"
    ):
        run.run()
    np.testing.assert_array_equal(run.state.params, before)
    assert [line[:6] for line in run.logged] == ["step 0", "step 1", "step 2"]


def test_a_run_may_change_between_precisions_with_and_without_a_loss_scale(corpus, tmp_path):
    """The loss scale begins anew where the checkpoint has none, and is left out where the precision has none."""
    run = trainer(corpus, tmp_path, scaled_ops(scale=512.0))
    run.train_step(), run.sync(), run.save(math.nan), run.writer.wait()
    last = run_dir.last_checkpoint(tmp_path)
    assert checkpoint.load(last).loss_scale == LossScale(512.0, 1)
    assert trainer(corpus, tmp_path, scaled_ops(scale=2.0), resume=True).loss_scale == LossScale(512.0, 1)
    plain = trainer(corpus, tmp_path, resume=True)
    assert plain.loss_scale is None
    plain.save(math.nan), plain.writer.wait()
    assert checkpoint.load(last).loss_scale is None
    assert trainer(corpus, tmp_path, scaled_ops(scale=2.0), resume=True).loss_scale == LossScale(2.0)


def lost_at_saving(monkeypatch):
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda path, saved: save(path, dataclasses.replace(saved, loss_scale=None)))


def lost_at_resuming(monkeypatch):
    monkeypatch.setattr(Trainer, "_set_loss_scale", lambda *_: None)


def skipped_steps_lost(monkeypatch):
    """The bug: AdamW's t is wrong after a resumption."""
    write = DeviceLossScale.set
    monkeypatch.setattr(DeviceLossScale, "set", lambda scale, value: write(scale, dataclasses.replace(value, skipped_steps=0)))


@pytest.mark.parametrize(
    ("mistake", "check"),
    [
        *(
            pytest.param(mistake, check_scaled_resume, marks=pytest.mark.long)
            for mistake in (lost_at_saving, lost_at_resuming, skipped_steps_lost)
        ),
        (lost_at_resuming, check_timed_steps),
    ],
)
def test_a_planted_mistake_is_noticed(mistake, check, corpus, tmp_path, quick_growth):
    with pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        with pytest.raises(AssertionError):
            check(corpus, tmp_path)
