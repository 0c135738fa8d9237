"""The parts of a Trainer: its records, progress bar, errors and history, and what other ranks do."""

import contextlib
import dataclasses
import math
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from gpt.errors import TrainingError
from gpt.training import checkpoint, run_dir, run_setup
from gpt.training.data_parallel import Workers
from gpt.training.distributed import SingleProcess
from gpt.training.step import learning_rate
from gpt.training.trainer import PendingStep, Trainer
from tensorlite import ReferenceOps
from tensorlite.cuda.loss_scale import DeviceLossScale
from tensorlite.loss_scale import LossScale
from trainers import RECORD, preset, save_checkpoint, trainer

WAY_OUT = "; lower --learning-rate or set --grad-clip 1"


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    monkeypatch.setattr("gpt.training.checkpoint_writer.loss_curve", lambda *_, **__: None)


class Saves:
    """In the place of a CheckpointWriter: what it was told to write, in order."""

    def __init__(self):
        self.calls = []
        self.finished = contextlib.nullcontext

    def write_metrics(self, history):
        self.calls.append([record["step"] for record in history])

    def save_async(self, state, history, *, val_loss, best_val, is_best=False, loss_scale=None):
        self.calls.append((state.step, [record["step"] for record in history], val_loss, best_val, is_best))
        self.loss_scale = loss_scale


class Scaled(ReferenceOps):
    """A backend with a loss scale, as its trainer sees it."""

    def __init__(self, value):
        super().__init__()
        self.loss_scale = DeviceLossScale(SimpleNamespace(empty=np.empty, xp=np), value)


def scaled_trainer(corpus, out, value, **options):
    run = trainer(corpus, out, **options)
    run.workers.ops.loss_scale = Scaled(value).loss_scale
    run.logged = []
    run.log = run.logged.append
    return run


@pytest.fixture
def run(corpus, tmp_path):
    run = trainer(corpus, tmp_path / "a", {"warmup_iters": 6})
    run.writer = Saves()
    return run


class Bar:
    """In the place of tqdm: its options, the texts that it showed, and how often it was moved."""

    def __init__(self, **options):
        self.options = options
        self.shown, self.updates = [], 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def set_postfix_str(self, text, **_):
        self.shown.append(text)

    def update(self):
        self.updates += 1


@pytest.fixture
def bars(monkeypatch):
    made = []

    def make(**options):
        made.append(Bar(**options))
        return made[-1]

    make.write = lambda text: None
    monkeypatch.setattr("gpt.training.trainer.tqdm", make)
    return made


def test_an_evaluation_is_recorded_saved_and_logged(run):
    logged = []
    run.log = logged.append
    run.clock = SimpleNamespace(tokens_per_second=1234.5678, elapsed=7.123456)
    run.train_loss = lambda: 1.5
    for step, val_loss in ((0, 1.25), (4, 1.25), (8, 2.0), (9, 1.0)):
        run.state.step = step
        run.val_loss = lambda loss=val_loss: loss
        assert not run.is_evaluated
        run.evaluate()
        assert run.is_evaluated
    ops, train = run.workers.ops, run.task.train
    assert [record["lr"] for record in run.history] == [learning_rate(ops, train, step) for step in (0, 3, 7, 8)]
    record = {
        "step": 4,
        "train_loss": 1.5,
        "val_loss": 1.25,
        "lr": run.history[1]["lr"],
        "tokens_per_s": 1234.6,
        "elapsed_s": 7.123,
    }
    assert run.history[1] == record
    assert run.writer.calls == [
        [0],
        (0, [0], 1.25, 1.25, True),
        [0, 4],
        (4, [0, 4], 1.25, 1.25, False),  # no better than the best
        [0, 4, 8],
        (8, [0, 4, 8], 2.0, 1.25, False),
        [0, 4, 8, 9],
        (9, [0, 4, 8, 9], 1.0, 1.0, True),
    ]
    assert logged[1:3] == ["step 4: train loss 1.5000, val loss 1.2500", "step 8: train loss 1.5000, val loss 2.0000"]
    run.best_val = 0.5
    assert run.summary() == "done: step 9 | train 1.5000 | val 1.0000 | best val 0.5000 | 1235 tok/s | 7.1 s"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_is_not_recorded(loss, run):
    run.val_loss = lambda: loss
    run.state.step = 4
    with pytest.raises(TrainingError, match=f"^step 4: the validation loss is {loss}{WAY_OUT}$"):
        run.evaluate()
    assert (run.history, run.writer.calls, run.best_val, run.is_evaluated) == ([], [], math.inf, False)


def test_the_pending_steps_are_read_at_once(run):
    run.pending = [PendingStep(1, np.float64(0.5), np.float64(2.0)), PendingStep(2, np.float64(0.25), np.float64(3.0))]
    assert run.sync() == 0.25
    assert run.pending == []
    assert math.isnan(run.sync())


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (0.5, math.inf)])
def test_the_first_step_that_is_not_finite_is_named(loss, norm, run):
    good, bad = PendingStep(4, np.float64(0.5), np.float64(1.0)), PendingStep(5, np.float64(loss), np.float64(norm))
    run.pending = [good, bad, bad._replace(step=6)]
    with pytest.raises(TrainingError, match=f"^step 5: the loss is {loss}, the gradient's norm {norm}{WAY_OUT}$"):
        run.sync()


def test_the_first_bad_tensor_is_named(run):
    """Gradients before parameters, each in the order of the model."""

    def named():
        run.pending = [PendingStep(5, np.float64(math.nan), np.float64(1.0))]
        with pytest.raises(TrainingError) as raised:
            run.sync()
        return str(raised.value).removeprefix("step 5: the loss is nan, the gradient's norm 1.0").removesuffix(WAY_OUT)

    def poison(flat, name):
        run.state.table.view(flat, run.state.table[name])[...] = math.inf

    poison(run.state.params, "blocks.1.fc_w")
    assert named() == ", first bad parameter blocks.1.fc_w"
    poison(run.state.params, "blocks.0.fc_b")
    assert named() == ", first bad parameter blocks.0.fc_b"
    poison(run.state.grads, "blocks.1.fc_b")
    assert named() == ", first bad gradient blocks.1.fc_b"


def pend(run, first, *norms):
    run.pending = [PendingStep(first + i, np.float64(0.5), np.float64(norm)) for i, norm in enumerate(norms)]


def test_a_skipped_update_is_a_line_of_the_log(corpus, tmp_path):
    run = scaled_trainer(corpus, tmp_path / "a", LossScale(2.0**26, 5, 1))
    pend(run, 3, 1.0, math.inf, math.nan, 2.0)
    assert run.sync() == 0.5
    skipped = "the gradient overflowed in fp16; update skipped, loss scale"
    assert run.logged == [f"step 4: {skipped} 67108864 -> 33554432", f"step 5: {skipped} 33554432 -> 16777216"]
    assert run.loss_scale == run.workers.ops.loss_scale.value == LossScale(2.0**24, 1, 3)
    run.is_writer = False
    pend(run, 7, math.inf)
    run.sync()
    assert len(run.logged) == 2
    assert run.loss_scale == LossScale(2.0**23, 0, 4)


def test_an_overflow_at_a_loss_scale_of_1_ends_the_run(corpus, tmp_path):
    run = scaled_trainer(corpus, tmp_path / "a", LossScale(2.0))
    pend(run, 3, math.inf, 1.0, math.inf, 1.0)
    with pytest.raises(TrainingError, match=f"^step 5: the loss is 0.5, the gradient's norm inf{WAY_OUT}$"):
        run.sync()
    assert len(run.logged) == 1


def test_a_bad_loss_ends_a_run_with_a_loss_scale(corpus, tmp_path):
    run = scaled_trainer(corpus, tmp_path / "a", LossScale())
    run.pending = [PendingStep(5, np.float64(math.nan), np.float64(math.inf))]
    with pytest.raises(TrainingError, match=r"^step 5: the loss is nan"):
        run.sync()


def test_the_loss_scale_is_recorded_and_saved(corpus, tmp_path):
    run = scaled_trainer(corpus, tmp_path / "a", LossScale(8.0, 2, 3))
    run.writer = Saves()
    run.evaluate()
    assert [run.history[0][name] for name in ("loss_scale", "skipped_steps")] == [8.0, 3]
    assert run.writer.loss_scale == LossScale(8.0, 2, 3)


@pytest.mark.parametrize(
    ("saved", "own", "found"),
    [(LossScale(8.0, 2, 3), LossScale(), LossScale(8.0, 2, 3)), (None, LossScale(), LossScale()), (LossScale(), None, None)],
)
def test_a_resumed_run_goes_on_with_its_loss_scale(saved, own, found, corpus, tmp_path):
    """A run that had none begins with that of the backend, and one whose backend has none leaves it."""
    setup = trainer(corpus, tmp_path / "a").setup
    last = run_dir.last_checkpoint(tmp_path / "a")
    checkpoint.save(last, dataclasses.replace(save_checkpoint(setup, last), loss_scale=saved))
    ops = ReferenceOps() if own is None else Scaled(own)
    run = Trainer(run_setup.resume(tmp_path / "a", {}, {}, corpus), Workers.of(ops), np)
    assert run.loss_scale == found
    if found:
        assert ops.loss_scale.array.tolist() == [found.scale, found.finite_steps, found.skipped_steps, 0]


def test_timed_steps_leave_the_loss_scale_and_the_log_as_they_were(corpus, tmp_path):
    run = scaled_trainer(corpus, tmp_path / "a", LossScale(8.0, 2, 3))
    log = run.log
    with run.rolled_back():
        pend(run, 1, math.inf)
        run.sync()
        assert run.loss_scale == LossScale(4.0, 0, 4)
    assert run.loss_scale == LossScale(8.0, 2, 3)
    assert run.workers.ops.loss_scale.array.tolist() == [8, 2, 3, 0]
    assert run.logged == []
    assert run.log is log


def test_steps_that_are_timed_are_undone(run):
    run.train_step()
    before = run.state.copy()

    def time_a_step():
        with run.rolled_back():
            run.train_step()
            assert run.state.step == 2
            raise KeyError

    with pytest.raises(KeyError):
        time_a_step()
    assert run.pending == []
    assert run.state.step == 1
    for buffer, values in zip(run.state.buffers(), before.buffers(), strict=True):
        np.testing.assert_array_equal(buffer, values)


@pytest.mark.parametrize(("in_flight", "read_at"), [(1, range(3, 13)), (3, [4, 7, 8, 11, 12])])
def test_the_bar_shows_the_losses_as_they_are_read(in_flight, read_at, run, bars):
    """Before an evaluation, and when so many steps are in flight. The run begins at step 2, as a resumed one."""
    run.state.step = 2
    run.workers.ops.max_in_flight = in_flight
    run.evaluate = lambda: setattr(run, "last_eval_step", run.state.step)
    step, losses = run.workers.train_step, {}

    def noted(*args):
        assert run.state.step < 12
        loss, norm = step(*args)
        losses[run.state.step] = loss
        return loss, norm

    run.workers.train_step = noted
    assert run.run() is None
    (bar,) = bars
    expected = {"total": 12, "initial": 2, "unit": "step", "disable": None}
    assert bar.options | expected == bar.options
    assert bar.updates == 10
    assert bar.shown == [f"loss {losses[n]:.4f}" for n in read_at]


def test_an_interrupt_reads_the_steps_in_flight_before_it_saves(corpus, tmp_path):
    """A loss that is not finite is found then, and no checkpoint is written."""
    for loss in (math.nan, 0.5):
        run = trainer(corpus, tmp_path / "a")
        run.workers.ops.max_in_flight = 3
        step = run.workers.train_step

        def interrupted(*args, step=step, loss=loss):
            _, norm = step(*args)
            signal.raise_signal(signal.SIGINT)
            return np.float64(loss), norm

        run.workers.train_step = interrupted
        if math.isnan(loss):
            with pytest.raises(TrainingError, match=r"^step 1: the loss is nan"):
                run.run()
            assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "a")).step == 0
        else:
            assert run.run() == signal.SIGINT
    last, best = (checkpoint.load(file(tmp_path / "a")) for file in (run_dir.last_checkpoint, run_dir.best_checkpoint))
    assert (last.step, last.best_val) == (1, best.val_loss)
    assert math.isnan(last.val_loss)
    assert best.step == 0


def resumed(corpus, out, records=(0, 4, 7, 8, 12), **saved):
    save_checkpoint(run_setup.new_run(preset(), {}, {}, out, corpus, seed=1), run_dir.last_checkpoint(out), **saved)
    save_checkpoint(run_setup.new_run(preset(), {}, {}, out, corpus, seed=1), run_dir.best_checkpoint(out), step=4)
    run_dir.write_metrics(out, [RECORD | {"step": n, "elapsed_s": 100.0 + n} for n in records])
    return trainer(corpus, out, resume=True)


@pytest.mark.parametrize(
    ("saved", "kept"),
    [
        ({"step": 8}, [0, 4, 7, 8]),
        ({"step": 8, "val_loss": math.nan}, [0, 4, 7]),  # interrupted before the evaluation of step 8
        ({"step": 7, "val_loss": math.nan}, [0, 4]),
        ({"step": 0, "val_loss": math.nan}, []),
        ({"step": 0}, [0]),
    ],
)
def test_a_resumed_run_goes_on_after_the_last_evaluation(saved, kept, corpus, tmp_path, notes):
    run = resumed(corpus, tmp_path / "a", **saved)
    assert [record["step"] for record in run.history] == kept
    assert run.last_eval_step == (kept[-1] if kept else -1)
    assert run.is_evaluated == (saved["step"] in kept)
    assert run.clock.elapsed_before == (100 + kept[-1] if kept else 0)
    assert run.best_val == 1.25
    assert not notes


def test_a_resumed_run_without_its_best_checkpoint_looks_for_a_new_best(corpus, tmp_path, notes):
    resumed(corpus, tmp_path / "a")
    best = run_dir.best_checkpoint(tmp_path / "a")
    best.unlink()
    assert trainer(corpus, tmp_path / "a", resume=True).best_val == math.inf
    assert notes == {f"{best} is missing: the best of the evaluations from here on takes its place"}


def test_a_run_that_stopped_before_its_first_evaluation_misses_no_best(corpus, tmp_path, notes):
    resumed(corpus, tmp_path / "a", step=0, val_loss=math.nan, best_val=math.inf)
    run_dir.best_checkpoint(tmp_path / "a").unlink()
    notes.clear()
    assert trainer(corpus, tmp_path / "a", resume=True).best_val == math.inf
    assert not notes


def test_a_fine_tuning_run_has_no_history(corpus, tmp_path):
    start = resumed(corpus, tmp_path / "a").setup.out
    tuned = run_setup.fine_tune(start / run_dir.LAST, None, {}, {}, start, corpus, False, 5)
    run = Trainer(tuned, Workers.of(ReferenceOps()), np)
    assert (run.history, run.last_eval_step, run.best_val, run.state.step) == ([], -1, math.inf, 0)


class SecondOfTwo(SingleProcess):
    """Rank 1 of 2. Sums over the ranks add what rank 0 is said to have."""

    rank, size = 1, 2
    other = 0

    def all_reduce_(self, flat):
        flat += self.other


def test_another_rank_writes_and_shows_nothing(corpus, tmp_path, bars):
    setup = run_setup.new_run(preset(), {}, {"max_iters": 2}, tmp_path / "none", corpus, seed=1)
    run = Trainer(setup, Workers(ReferenceOps, shards=2, ranks=SecondOfTwo()), np)
    logged = []
    run.log = logged.append
    assert run.run() is None
    assert [record["step"] for record in run.history] == [0, 2]
    assert logged == []
    assert bars[0].options["disable"] is True
    run.save(math.nan)
    assert not setup.out.exists()


def test_another_rank_learns_of_the_history_from_rank_0(corpus, tmp_path, notes):
    setup = resumed(corpus, tmp_path / "a", step=8).setup
    run_dir.best_checkpoint(tmp_path / "a").unlink()
    ranks = SecondOfTwo()
    ranks.other = 4
    run = Trainer(setup, Workers(ReferenceOps, shards=2, ranks=ranks), np)
    assert (run.history, run.last_eval_step, run.best_val) == ([], 4, 1.25)
    assert not notes


@pytest.mark.parametrize("asked", [0, 1])
def test_a_request_to_another_rank_stops_this_one(asked, corpus, tmp_path, bars):
    """After the evaluation of step 0 the other rank is asked to stop."""
    setup = run_setup.new_run(preset(), {}, {"max_iters": 2}, tmp_path / "a", corpus, seed=1)
    ranks = SecondOfTwo()
    run = Trainer(setup, Workers(ReferenceOps, shards=2, ranks=ranks), np)
    run.workers.any = lambda flag: flag or (asked and run.is_evaluated)
    assert run.run() == (signal.SIGTERM if asked else None)
    assert run.state.step == (0 if asked else 2)
