"""A resumed, interrupted or failed run leaves the files and losses of an undisturbed run."""

import dataclasses
import json
import math
import signal

import numpy as np
import pytest

from gpt.errors import CheckpointError, TrainingError
from gpt.models import MODELS
from gpt.training import checkpoint, run_dir
from gpt.training.data_parallel import Workers
from gpt.training.evaluate import split_loss, train_loss
from gpt.training.step import Task
from tensorlite import ReferenceOps
from trainers import RECORD, TRAIN, trainer, without_time

OPS = ReferenceOps()


@pytest.mark.parametrize("stop", [0, 4, 6, 8])
def test_resume_equals_a_straight_run(corpus, tmp_path, stop):
    """Bit for bit, with dropout, clipping, a schedule and accumulation."""
    accumulated = dataclasses.replace(TRAIN, gradient_accumulation_steps=2)
    straight = trainer(corpus, tmp_path / "a", train=accumulated)
    assert straight.run() is None
    first = trainer(corpus, tmp_path / "b", train=accumulated)
    step = first.workers.train_step

    def stop_there(*args):
        if first.state.step + 1 == stop:
            signal.raise_signal(signal.SIGINT)
        return step(*args)

    if stop:
        first.workers.train_step = stop_there
    else:
        first.log = lambda _: signal.raise_signal(signal.SIGINT)  # during the first evaluation
    assert first.run() == signal.SIGINT
    assert first.state.step == stop
    second = trainer(corpus, tmp_path / "b", resume=True)
    second.run()
    for name in ("params", "m", "v"):
        np.testing.assert_array_equal(getattr(second.state, name), getattr(straight.state, name))
    assert without_time(second.history) == without_time(straight.history)
    assert second.best_val == straight.best_val


def interrupt_before_the_evaluation_of(run, step):
    """Let a signal arrive in the update that leads to this step."""
    train_step = run.workers.train_step

    def interrupted(*args):
        if run.state.step == step - 1:
            signal.raise_signal(signal.SIGINT)
        return train_step(*args)

    run.workers.train_step = interrupted


def interrupt_after_the_evaluation_of(run, step):
    run.log = lambda text: signal.raise_signal(signal.SIGINT) if text.startswith(f"step {step}:") else None


@pytest.mark.parametrize(
    ("interrupt", "step", "kept"),
    [
        (interrupt_before_the_evaluation_of, 6, [0, 4]),
        (interrupt_before_the_evaluation_of, 8, [0, 4]),
        (interrupt_after_the_evaluation_of, 8, [0, 4, 8]),
        (interrupt_after_the_evaluation_of, 0, [0]),
    ],
)
def test_a_resumed_run_keeps_the_records_of_the_evaluations_before_its_checkpoint(interrupt, step, kept, corpus, tmp_path):
    """It keeps these records as they are, drops those that are ahead of the checkpoint, and evaluates no step twice."""
    first = trainer(corpus, tmp_path / "a")
    interrupt(first, step)
    assert first.run() == signal.SIGINT
    assert first.state.step == step
    in_the_file = [RECORD | {"step": n, "tokens_per_s": n + 0.5, "elapsed_s": 1000.0 + n} for n in (0, 4, 8, 12)]
    run_dir.write_metrics(tmp_path / "a", in_the_file)

    resumed = trainer(corpus, tmp_path / "a", resume=True)
    expected = [record for record in in_the_file if record["step"] in kept]
    assert resumed.history == expected
    logged = []
    resumed.log = lambda text: logged.append(int(text.split()[1].rstrip(":")))
    assert resumed.run() is None
    assert resumed.history[: len(kept)] == expected
    assert kept + logged == [0, 4, 8, 12]
    assert run_dir.read_metrics(tmp_path / "a", 99) == resumed.history
    seconds = [record["elapsed_s"] for record in resumed.history]
    assert seconds == sorted(seconds)  # the clock of the first run goes on
    assert seconds[-1] < 1000 + kept[-1] + 600


def test_the_logged_learning_rate_is_that_of_the_last_update(corpus, tmp_path):
    """In the warmup and on the cosine, by the schedule's formula; at step 0 it is that of the first update."""
    run = trainer(corpus, tmp_path / "a", {"warmup_iters": 6})
    adamw_, rates = run.workers.ops.adamw_, []

    def noted(*buffers, lr, **options):
        rates.append(lr)
        adamw_(*buffers, lr=lr, **options)

    run.workers.ops.adamw_ = noted
    run.run()
    cosine = [0.001 + 0.009 * 0.5 * (1 + math.cos(math.pi * done)) for done in (1 / 6, 5 / 6)]
    assert [rates[0], rates[3], rates[7], rates[11]] == pytest.approx([0.01 / 7, 0.04 / 7, *cosine], rel=1e-12)
    assert [record["lr"] for record in run.history] == [rates[0], rates[3], rates[7], rates[11]]


def test_a_record_ahead_of_an_interrupted_checkpoint_is_not_its_evaluation(corpus, tmp_path):
    """Killed between a record and its checkpoint, then interrupted at that step before it was evaluated: it is evaluated again."""
    trainer(corpus, tmp_path / "a").run()
    last = run_dir.last_checkpoint(tmp_path / "a")
    checkpoint.save(last, dataclasses.replace(checkpoint.load(last), val_loss=math.nan, best_val=9.0))
    assert trainer(corpus, tmp_path / "a", resume=True).run() is None
    assert math.isfinite(checkpoint.load(last).val_loss)


def test_an_interrupt_between_evaluations_saves_too(corpus, tmp_path):
    run = trainer(corpus, tmp_path / "a")
    step, calls = run.workers.train_step, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGTERM)
        return step(*args)

    run.workers.train_step = interrupted
    assert run.run() == signal.SIGTERM
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "a")).step == 6
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_in_the_last_evaluation_lets_the_run_end(corpus, tmp_path):
    run = trainer(corpus, tmp_path / "a")
    run.log = lambda text: signal.raise_signal(signal.SIGINT) if text.startswith("step 12:") else None
    assert run.run() is None


def test_a_resumed_run_with_nothing_left_is_evaluated_where_it_stands(corpus, tmp_path):
    run = trainer(corpus, tmp_path / "a")
    step = run.workers.train_step
    run.workers.train_step = lambda *args: (signal.raise_signal(signal.SIGINT) if run.state.step == 5 else None) or step(*args)
    assert run.run() == signal.SIGINT
    resumed = trainer(corpus, tmp_path / "a", {"max_iters": 6}, resume=True)
    assert resumed.run() is None
    assert [r["step"] for r in resumed.history] == [0, 4, 6]
    assert resumed.summary().startswith("done: step 6 |")


def test_the_logged_losses_are_those_of_their_splits(tmp_path):
    """The two halves of the text differ, so a loss over the wrong one shows."""
    (tmp_path / "text").write_text("abcdefgh" * 100 + "hgfedcba" * 11)
    run = trainer(tmp_path / "text", tmp_path / "a")
    run.run()
    params = run.state.table.tree(run.state.params)
    train, val = run.setup.corpus.train, run.setup.corpus.val
    task = Task(MODELS["gpt"], run.task.config, TRAIN, train, seed=1)
    assert run.history[-1]["train_loss"] == train_loss(Workers.of(OPS), task, params)
    assert run.history[-1]["val_loss"] == split_loss(Workers.of(OPS), task, params, val)
    assert run.history[-1]["val_loss"] != split_loss(Workers.of(OPS), task, params, train)


def test_a_run_leaves_its_files(corpus, tmp_path):
    run = trainer(corpus, tmp_path / "a")
    run.run()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        "loss.png",
        "metrics.jsonl",
    ]
    records = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [0, 4, 8, 12]
    assert set(records[0]) == {"step", "train_loss", "val_loss", "lr", "tokens_per_s", "elapsed_s"}
    assert records[-1]["val_loss"] < records[0]["val_loss"]
    assert (tmp_path / "a" / "loss.png").read_bytes().startswith(b"\x89PNG")
    best = checkpoint.load(tmp_path / "a")
    assert best.val_loss == best.best_val == min(r["val_loss"] for r in records)
    assert run.summary().startswith(f"done: step 12 | train {records[-1]['train_loss']:.4f} | val ")


def test_best_and_last_are_kept_apart(corpus, tmp_path):
    """A rate that ruins the model: last is the ruin, best is from before."""
    run = trainer(corpus, tmp_path / "a", {"learning_rate": 5.0, "min_lr": 5.0})
    run.run()
    best, last = checkpoint.load(tmp_path / "a"), checkpoint.load(run_dir.last_checkpoint(tmp_path / "a"))
    assert best.step < last.step == 12
    assert best.val_loss < last.val_loss


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_good_files(corpus, tmp_path):
    run = trainer(corpus, tmp_path / "a")
    step = run.workers.train_step

    def poisoned(*args):
        if run.state.step == 9:
            run.state.table.tree(run.state.params)["blocks"][1]["fc_w"][0, 0] = np.nan
        return step(*args)

    run.workers.train_step = poisoned
    with pytest.raises(TrainingError, match=r"^step 10: the loss is nan.*first bad gradient"), np.errstate(invalid="ignore"):
        run.run()
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "a")).step == 8


def test_what_fails_on_the_disk_twice_ends_the_run(corpus, tmp_path, monkeypatch, notes):
    """Files are written on a thread of their own: its errors come out, and not in the place of another that ended the run."""
    save, fails = checkpoint.save, {4}

    def full(path, saved):
        if saved.step in fails:
            raise CheckpointError("no space")
        save(path, saved)

    monkeypatch.setattr(checkpoint, "save", full)
    run = trainer(corpus, tmp_path / "once")
    run.run()
    assert notes == {"no space; trying again, with step 8"}
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "once")).step == run.task.train.max_iters
    fails.add(8)
    run = trainer(corpus, tmp_path / "a")
    with pytest.raises(CheckpointError, match="no space"):
        run.run()
    assert run.state.step == 8
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "a")).step == 0
    run = trainer(corpus, tmp_path / "b")
    step = run.workers.train_step
    run.workers.train_step = lambda *args: (1 / 0) if run.state.step == 5 else step(*args)
    with pytest.raises(ZeroDivisionError):
        run.run()
