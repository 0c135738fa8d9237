"""Training: resume equals a straight run, accumulation equals a larger batch, evaluation counts every character once."""

import dataclasses
import json
import math
import os
import signal

import numpy as np
import pytest

import fake_cupy
from gpt.analysis.cost import estimate_cost, human_bytes, human_seconds
from gpt.config import PRESETS, Preset, TrainConfig
from gpt.errors import CheckpointError, ConfigError, DataError, TrainingError
from gpt.generate import generate
from gpt.models import MODELS
from gpt.training import checkpoint, run_dir, run_setup
from gpt.training.data_parallel import Workers
from gpt.training.evaluate import split_loss, train_loss
from gpt.training.step import TrainState, loss_and_gradients, train_step
from gpt.training.trainer import Trainer
from small import PANGRAMS, config_of, start
from tensorlite import ReferenceOps, to_numpy

OPS = ReferenceOps()
TRAIN = TrainConfig(batch_size=4, max_iters=12, learning_rate=0.01, min_lr=0.001, eval_interval=4, eval_batches=3, grad_clip=1.0)


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "text").write_text(PANGRAMS)
    return tmp_path / "text"


def preset(train=TRAIN, **fields):
    return Preset(config_of("gpt", dropout=0.2, **fields), train, "")


def trainer(corpus, out, train_fields=None, resume=False, **fields):
    if resume:
        p = run_setup.resume(out, {}, train_fields or {}, corpus)
    else:
        p = run_setup.new_run(preset(**fields), {}, train_fields or {}, out, corpus, seed=1)
    out.mkdir(exist_ok=True)
    return Trainer.of(p, Workers.of(OPS), np)


def without_time(records):
    return [{k: v for k, v in r.items() if k not in ("tokens_per_s", "elapsed_s")} for r in records]


@pytest.mark.parametrize("stop", [0, 4, 6, 8])
def test_resume_equals_a_straight_run(corpus, tmp_path, stop):
    """Bit for bit, with dropout, clipping, a schedule and accumulation."""
    accumulated = dataclasses.replace(TRAIN, gradient_accumulation_steps=2)
    straight = trainer(corpus, tmp_path / "a", train=accumulated)
    assert straight.run() is None
    first = trainer(corpus, tmp_path / "b", train=accumulated)
    step = first.step

    def stop_there(*args):
        if first.state.step + 1 == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args)

    if stop:
        first.step = stop_there
    else:
        first.say = lambda _: os.kill(os.getpid(), signal.SIGINT)  # during the first evaluation
    assert first.run() == signal.SIGINT
    assert first.state.step == stop
    second = trainer(corpus, tmp_path / "b", resume=True)
    second.run()
    for name in ("params", "m", "v"):
        np.testing.assert_array_equal(getattr(second.state, name), getattr(straight.state, name))
    assert without_time(second.records) == without_time(straight.records)
    assert second.best_val == straight.best_val


def test_a_record_ahead_of_an_interrupted_checkpoint_is_not_its_evaluation(corpus, tmp_path):
    """Killed between a record and its checkpoint, then interrupted at that step before it was evaluated: it is evaluated again."""
    trainer(corpus, tmp_path / "a").run()
    last = run_dir.last_checkpoint(tmp_path / "a")
    checkpoint.save(last, dataclasses.replace(checkpoint.load(last), val_loss=math.nan, best_val=9.0))
    assert trainer(corpus, tmp_path / "a", resume=True).run() is None
    assert math.isfinite(checkpoint.load(last).val_loss)


def test_an_interrupt_between_evaluations_saves_too(corpus, tmp_path):
    run = trainer(corpus, tmp_path / "a")
    step, calls = run.step, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    run.step = interrupted
    assert run.run() == signal.SIGTERM
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "a")).step == 6
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_in_the_last_evaluation_lets_the_run_end(corpus, tmp_path):
    run = trainer(corpus, tmp_path / "a")
    run.say = lambda text: os.kill(os.getpid(), signal.SIGINT) if text.startswith("step 12:") else None
    assert run.run() is None


def test_a_resumed_run_with_nothing_left_is_evaluated_where_it_stands(corpus, tmp_path):
    run = trainer(corpus, tmp_path / "a")
    step = run.step
    run.step = lambda *args: (os.kill(os.getpid(), signal.SIGINT) if run.state.step == 5 else None) or step(*args)
    assert run.run() == signal.SIGINT
    resumed = trainer(corpus, tmp_path / "a", {"max_iters": 6}, resume=True)
    assert resumed.run() is None
    assert [r["step"] for r in resumed.records] == [0, 4, 6]
    assert resumed.summary().startswith("done: step 6 |")


def test_a_step_is_its_parts():
    """Batch, key, loss, gradient, clipping, schedule, decay groups, Adam's count: each argument where it belongs."""
    config = config_of("gpt", dropout=0.3)
    train = dataclasses.replace(TRAIN, learning_rate=0.02, warmup_iters=2, weight_decay=0.3, beta1=0.8, beta2=0.9, grad_clip=0.1)
    data = np.random.default_rng(0).integers(0, config.vocab_size, 300)
    state, twin = start(config, std=0.3), start(config, std=0.3)
    for n in range(6):
        loss, norm = train_step(OPS, MODELS["gpt"], state, data, config, train, seed=3)
        key = OPS.step_key(3, n)
        idx, targets = OPS.get_batch(data, OPS.fold_in(key, 0, "batch"), train.batch_size, config.block_size)
        twin_loss, cache = MODELS["gpt"].forward(OPS, twin.table.tree(twin.params), idx, targets, config, key)
        OPS.pack_grads(twin.table.leaves(MODELS["gpt"].backward(OPS, 1.0, cache)), twin.table.views(twin.grads))
        assert (loss, norm) == (twin_loss, OPS.clip_grad_norm_(twin.grads, 0.1))
        assert norm > 0.1
        lr = OPS.cosine_lr(n, 0.02, 0.001, 2, 12)
        groups = {"weight_decay": 0.3, "n_decay": twin.table.n_decay}
        OPS.adamw_(twin.params, twin.grads, twin.m, twin.v, t=n + 1, lr=lr, beta1=0.8, beta2=0.9, **groups)
        np.testing.assert_array_equal(state.params, twin.params)
    assert 0 < state.table.n_decay < state.table.size


def test_the_logged_losses_are_those_of_their_splits(tmp_path):
    """The two halves of the text differ, so a loss over the wrong one shows."""
    (tmp_path / "text").write_text("abcdefgh" * 100 + "hgfedcba" * 11)
    run = trainer(tmp_path / "text", tmp_path / "a")
    run.run()
    params = run.state.table.tree(run.state.params)
    train, val = run.corpus.train, run.corpus.val
    rest = (run.model_config, 3, 4, run.seed)
    assert run.records[-1]["train_loss"] == train_loss(Workers.of(OPS), run.model, params, train, *rest)
    assert run.records[-1]["val_loss"] == split_loss(Workers.of(OPS), run.model, params, val, run.model_config, 4)
    assert run.records[-1]["val_loss"] != split_loss(Workers.of(OPS), run.model, params, train, run.model_config, 4)


def test_evaluation_and_training_draw_different_batches():
    config = config_of("gpt")
    data, seen = np.arange(10_000), []

    class Spy(ReferenceOps):
        @staticmethod
        def get_batch(data, key, rows, block_size):
            idx, targets = ReferenceOps.get_batch(data, key, rows, block_size)
            seen.append(set(idx[:, 0].tolist()))
            return idx % config.vocab_size, targets % config.vocab_size

    state = start(config)
    loss_and_gradients(Spy(), MODELS["gpt"], state, data, config, TRAIN, seed=1)
    train_loss(Workers.of(Spy()), MODELS["gpt"], state.table.tree(state.params), data, config, batches=2, rows=4, seed=1)
    assert len(seen) == 2
    assert not seen[0] & seen[1]


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


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_accumulation_is_a_larger_batch(dropout):
    """2 x 3 rows and 3 x 2 rows are the same 6 rows, masks included: the same loss and gradient to rounding."""
    config = config_of("gpt", dropout=dropout)
    data = np.random.default_rng(0).integers(0, config.vocab_size, 500)
    found = []
    for rows, steps in ((6, 1), (3, 2), (2, 3)):
        state = start(config, std=0.3)
        train = dataclasses.replace(TRAIN, batch_size=rows, gradient_accumulation_steps=steps)
        loss = loss_and_gradients(OPS, MODELS["gpt"], state, data, config, train, seed=3)
        found.append((float(loss), state.grads))
    for loss, grads in found[1:]:
        assert math.isclose(loss, found[0][0], rel_tol=1e-12)
        np.testing.assert_allclose(grads, found[0][1], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("n", [2, 5, 6, 7, 31, 32, 200])
def test_validation_counts_every_character_once(n):
    """Against one window at a time, remainder included."""
    config = config_of("gpt")
    state = start(config, std=0.3)
    params = state.table.tree(state.params)
    data = np.random.default_rng(n).integers(0, config.vocab_size, n)
    T, total = config.block_size, 0.0
    for a in range(0, n - 1, T):
        idx, targets = data[None, a : min(a + T, n - 1)], data[None, a + 1 : min(a + T, n - 1) + 1]
        total += float(MODELS["gpt"].forward(OPS, params, idx, targets, config)[0]) * idx.size
    for rows in (1, 3, 1000):
        assert math.isclose(split_loss(Workers.of(OPS), MODELS["gpt"], params, data, config, rows), total / (n - 1), rel_tol=1e-12)


def test_train_loss_is_a_mean_over_the_same_batches_each_time():
    config = config_of("gpt", block_size=64, dropout=0.5)
    state = start(config, std=0.3)
    params, data = state.table.tree(state.params), np.random.default_rng(0).integers(0, config.vocab_size, 900)
    losses = [
        train_loss(Workers.of(OPS), MODELS["gpt"], params, data, config, batches=b, rows=r, seed=1)
        for b, r in ((6, 20), (6, 20), (120, 1))
    ]
    assert losses[0] == losses[1]
    assert math.isclose(losses[0], losses[2], rel_tol=1e-12)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_good_files(corpus, tmp_path):
    run = trainer(corpus, tmp_path / "a")
    step = run.step

    def poisoned(*args):
        if run.state.step == 9:
            run.state.table.tree(run.state.params)["blocks"][1]["fc_w"][0, 0] = np.nan
        return step(*args)

    run.step = poisoned
    with pytest.raises(TrainingError, match=r"^step 10: the loss is nan.*first bad gradient"), np.errstate(invalid="ignore"):
        run.run()
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "a")).step == 8


def test_what_fails_on_the_disk_ends_the_run(corpus, tmp_path, monkeypatch):
    """Files are written on a thread of their own: its errors come out, and not in the place of another that ended the run."""
    save = checkpoint.save

    def full(path, saved):
        if saved.step == 4:
            raise CheckpointError("no space")
        save(path, saved)

    monkeypatch.setattr(checkpoint, "save", full)
    run = trainer(corpus, tmp_path / "a")
    with pytest.raises(CheckpointError, match="no space"):
        run.run()
    assert run.state.step == 8  # noticed when the next one was to be written
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "a")).step == 0
    run = trainer(corpus, tmp_path / "b")
    step = run.step
    run.step = lambda *args: (1 / 0) if run.state.step == 5 else step(*args)
    with pytest.raises(ZeroDivisionError):
        run.run()


def test_resume_refuses_another_model_and_another_text(corpus, tmp_path):
    trainer(corpus, tmp_path / "a").run()
    with pytest.raises(ConfigError, match="n_layer is 2 in the checkpoint and cannot become 3"):
        run_setup.resume(tmp_path / "a", {"n_layer": 3}, {}, corpus)
    assert run_setup.resume(tmp_path / "a", {"n_layer": 2}, {"max_iters": 20}, corpus).train.max_iters == 20
    corpus.write_text(PANGRAMS[::-1])
    with pytest.raises(DataError, match="another text"):
        run_setup.resume(tmp_path / "a", {}, {}, corpus)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        run_setup.resume(tmp_path / "b", {}, {}, corpus)


def test_fine_tuning_keeps_the_vocabulary(corpus, tmp_path):
    trainer(corpus, tmp_path / "a").run()
    corpus.write_text(PANGRAMS.replace("fox", "dog") * 2)
    tuned = run_setup.fine_tune(tmp_path / "a", None, {"dropout": 0.0}, {"max_iters": 3}, tmp_path / "b", corpus, False, 5)
    np.testing.assert_array_equal(tuned.params(), checkpoint.load(tmp_path / "a").params)
    assert tuned.corpus.tokenizer.vocabulary == "".join(sorted(set(PANGRAMS)))
    assert (tuned.model.dropout, tuned.train.max_iters, tuned.seed) == (0.0, 3, 5)
    with pytest.raises(ConfigError, match="n_embd"):
        run_setup.fine_tune(tmp_path / "a", None, {"n_embd": 12}, {}, tmp_path / "b", corpus, False, 5)


def test_training_leaves_the_plans_own_arrays_alone(corpus, tmp_path):
    trainer(corpus, tmp_path / "a").run()
    tuned = run_setup.fine_tune(tmp_path / "a", None, {}, {"max_iters": 3}, tmp_path / "b", corpus, False, 5)
    before = tuned.params().copy()
    (tmp_path / "b").mkdir()
    Trainer.of(tuned, Workers.of(OPS), np).run()
    np.testing.assert_array_equal(tuned.params(), before)


def test_a_new_learning_rate_takes_its_floor_along(corpus, tmp_path):
    assert run_setup.new_run(preset(), {}, {"learning_rate": 0.1}, tmp_path, corpus, 1).train.min_lr == pytest.approx(0.01)
    assert run_setup.new_run(preset(), {}, {"learning_rate": 0.1, "min_lr": 0.05}, tmp_path, corpus, 1).train.min_lr == 0.05


def test_training_and_generation_on_another_array_library(monkeypatch):
    """Three steps, an evaluation and a text with CuPy's manners, and NumPy's numbers."""
    cupy = fake_cupy.module()
    monkeypatch.setitem(__import__("sys").modules, "cupy", cupy)
    config = config_of("gpt", dropout=0.2)
    data, results = np.random.default_rng(0).integers(0, config.vocab_size, 300), []
    for xp in (np, cupy):
        state = TrainState.start(start(config).table, start(config).params, xp)
        on_device = xp.asarray(data)
        losses = [
            float(train_step(ReferenceOps(check=False), MODELS["gpt"], state, on_device, config, TRAIN, 0)[0]) for _ in range(3)
        ]
        params = state.table.tree(state.params)
        losses.append(split_loss(Workers.of(OPS), MODELS["gpt"], params, on_device, config, 4))
        tokens = list(generate(OPS, MODELS["gpt"], params, xp.asarray(data[:2]), 12, config))
        results.append((losses, tokens, to_numpy(state.params)))
    assert results[0][:2] == results[1][:2]
    np.testing.assert_array_equal(results[0][2], results[1][2])


def test_estimates():
    cost = estimate_cost(PRESETS["shakespeare"].model, PRESETS["shakespeare"].train)
    assert cost.n_params == 10_788_929
    assert 2e9 < cost.cache_bytes < 5e9
    assert 1.1e12 < cost.flops < 1.3e12
    assert [human_bytes(n) for n in (5, 2048, 3 * 2**20, 5 * 2**30)] == ["5 B", "2 KiB", "3 MiB", "5.0 GiB"]
    assert [human_seconds(n) for n in (59, 600, 4 * 3600 + 300, 864e3)] == ["59 s", "10 min", "4 h 5 min", "10.0 days"]
