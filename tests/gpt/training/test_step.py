"""A training step equals its parts, and gradient accumulation equals a larger batch.

Another array library gives the same values.
"""

import dataclasses
import itertools
import math

import numpy as np
import pytest

import fake_cupy
from gpt.config import TrainConfig
from gpt.generate import generate
from gpt.models import MODELS
from gpt.training.data_parallel import Workers
from gpt.training.evaluate import split_loss
from gpt.training.step import Task, TrainState, learning_rate, loss_and_gradients, train_step, update
from small import config_of, start
from tensorlite import ReferenceOps, to_numpy
from trainers import TRAIN

OPS = ReferenceOps()


def test_a_step_is_its_parts():
    """Batch, key, loss, gradient, clipping, schedule, decay groups, Adam's count: each argument where it belongs."""
    config = config_of("gpt", dropout=0.3)
    train = dataclasses.replace(TRAIN, learning_rate=0.02, warmup_iters=2, weight_decay=0.3, beta1=0.8, beta2=0.9, grad_clip=0.1)
    data = np.random.default_rng(0).integers(0, config.vocab_size, 300)
    task = Task(MODELS["gpt"], config, train, data, seed=3)
    state, twin = start(config, std=0.3), start(config, std=0.3)
    for n in range(6):
        loss, norm = train_step(OPS, task, state)
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


def test_a_task_is_equal_to_itself_alone():
    """A comparison of the texts would be an array, and slow: what is captured for a task is valid for that very object."""
    task = Task(MODELS["gpt"], config_of("gpt"), TRAIN, np.arange(10), seed=3)
    assert task == task
    assert task != dataclasses.replace(task)
    assert len({task, dataclasses.replace(task)}) == 2


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_accumulation_is_a_larger_batch(dropout):
    """2 x 3 rows and 3 x 2 rows are the same 6 rows, masks included: the same loss and gradient to rounding."""
    config = config_of("gpt", dropout=dropout)
    data = np.random.default_rng(0).integers(0, config.vocab_size, 500)
    found = []
    for rows, steps in ((6, 1), (3, 2), (2, 3)):
        state = start(config, std=0.3)
        train = dataclasses.replace(TRAIN, batch_size=rows, gradient_accumulation_steps=steps)
        loss = loss_and_gradients(OPS, Task(MODELS["gpt"], config, train, data, seed=3), state)
        found.append((float(loss), state.grads))
    for loss, grads in found[1:]:
        assert math.isclose(loss, found[0][0], rel_tol=1e-12)
        np.testing.assert_allclose(grads, found[0][1], rtol=1e-9, atol=1e-13)


def test_training_and_generation_on_another_array_library(monkeypatch):
    """Three steps, an evaluation and a text with CuPy's manners, and NumPy's numbers."""
    cupy = fake_cupy.module()
    monkeypatch.setitem(__import__("sys").modules, "cupy", cupy)
    config = config_of("gpt", dropout=0.2)
    data, results = np.random.default_rng(0).integers(0, config.vocab_size, 300), []
    for xp in (np, cupy):
        state = TrainState.start(start(config).table, start(config).params, xp)
        task = Task(MODELS["gpt"], config, TRAIN, xp.asarray(data), seed=0)
        losses = [float(train_step(ReferenceOps(check=False), task, state)[0]) for _ in range(3)]
        params = state.table.tree(state.params)
        losses.append(split_loss(Workers.of(OPS), task, params, task.data))
        tokens = list(generate(OPS, MODELS["gpt"], params, xp.asarray(data[:2]), 12, config))
        results.append((losses, tokens, to_numpy(state.params)))
    assert results[0][:2] == results[1][:2]
    np.testing.assert_array_equal(results[0][2], results[1][2])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_rows_of_a_batch_have_their_share_of_it(dropout):
    """The shares of loss and gradient add up to the whole, in whatever buffers they are, and with whatever was in them."""
    config = config_of("gpt", dropout=dropout)
    data = np.random.default_rng(0).integers(0, config.vocab_size, 500)
    train = dataclasses.replace(TRAIN, batch_size=5, gradient_accumulation_steps=2)
    task, state, shards = Task(MODELS["gpt"], config, train, data, seed=3), start(config, std=0.3), []
    state.step = 7
    whole = float(loss_and_gradients(OPS, task, state))
    expected = state.grads.copy()
    state.grads[:] = np.nan
    for rows in (range(2), range(2, 5)):
        grads = np.zeros_like(state.grads)
        for view in state.table.views(grads):  # not the gaps between them
            view[:] = np.inf
        shards.append((float(loss_and_gradients(OPS, task, state, rows, grads)), grads))
    assert np.isnan(state.grads).all()
    assert math.isclose(sum(loss for loss, _ in shards), whole, rel_tol=1e-12)
    np.testing.assert_allclose(sum(grads for _, grads in shards), expected, rtol=1e-9, atol=1e-13)


def test_an_update_of_slices_is_an_update_of_all():
    """Weight decay ends where it ends for the whole: within a slice, or before or behind it."""
    config = config_of("gpt")
    train = dataclasses.replace(TRAIN, weight_decay=10.0)
    task = Task(MODELS["gpt"], config, train, np.arange(10), seed=3)
    whole, sliced = start(config, std=0.3), start(config, std=0.3)
    for state in (whole, sliced):
        state.step = 5
        for buffer in state.buffers():
            buffer[:] = np.random.default_rng(1).uniform(0.1, 1, len(buffer))
    update(OPS, task, whole)
    n, size = whole.table.n_decay, whole.table.size
    for a, b in itertools.pairwise([0, n // 2, n - 1, n + 2, n + 3, size]):
        update(OPS, task, sliced, slice(a, b))
    for a, b in zip(whole.buffers(), sliced.buffers(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert whole.step == 5


def test_a_run_starts_from_the_parameters_that_it_is_given():
    params = np.linspace(-1, 1, 12)
    state = TrainState.start(None, params, np)
    assert (state.params is not params, state.params.tolist()) == (True, params.tolist())
    assert not np.any([state.grads, state.m, state.v])


def test_a_copied_state_goes_on_alone():
    state = start(config_of("gpt"), std=0.3)
    for i, buffer in enumerate(state.buffers()):
        buffer[:] = i
    state.step = 3
    copy = state.copy()
    assert (copy.table, copy.step) == (state.table, 3)
    for i, (buffer, own) in enumerate(zip(state.buffers(), copy.buffers(), strict=True)):
        np.testing.assert_array_equal(own, buffer)
        own[:] = 9
        assert (buffer == i).all()


def test_the_learning_rate_follows_the_schedule_of_the_run():
    train = TrainConfig(max_iters=20, warmup_iters=4, learning_rate=0.5, min_lr=0.1)
    rates = [learning_rate(OPS, train, step) for step in range(21)]
    assert rates[:5] == [0.1, 0.2, pytest.approx(0.3), 0.4, 0.5]
    assert rates[12] == pytest.approx(0.3)
    assert rates[20] == 0.1
