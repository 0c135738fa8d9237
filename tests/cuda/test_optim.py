"""The optimizer part of a step on the CUDA backend."""

import functools

import numpy as np
import pytest

from cuda_bounds import REFERENCE
from cuda_machines import both, generator, guarded
from cuda_step_checks import SCHEDULE, UPDATE, adamw, clipped, cosine_lr, end_of_step, pack_grads, squares_of_a_step
from tensorlite.cuda import optim
from tensorlite.cuda.runtime.device_key import DeviceStep


@pytest.mark.parametrize("n_decay", [None, 0, 501, 1003])
@pytest.mark.parametrize("counted", [False, True])
def test_adamw(counted, n_decay):
    worst = adamw(both("float32"), n_decay=n_decay, counted=counted)
    assert min(worst) > 1 / 5


@pytest.mark.parametrize("n", [1, 4, 6, 9000])
def test_adamw_of_any_size(n):
    adamw(both("float32"), n=n, n_decay=n // 2, steps=2)


def test_adamw_by_the_devices_count_is_that_by_the_hosts():
    machine, r = both("float32"), generator(9)
    arrays = [r.standard_normal(101).astype(np.float32) for _ in range(4)]
    arrays[3] = np.abs(arrays[3])

    def update(ops, *arrays, step, counted):
        params, grads, m, v = (guarded(ops, a) for a in arrays)
        step = DeviceStep(guarded(ops, np.array(step, np.int64))) if counted else step
        ops.adamw_(params, grads, m, v, step + 1, ops.cosine_lr(step, *SCHEDULE.values()), n_decay=50, **UPDATE)
        return params, m, v

    for step in (*range(9), 10**6, 2**40):
        on_host, on_device = (machine.run(functools.partial(update, step=step, counted=c), *arrays) for c in (False, True))
        for a, b in zip(on_host, on_device, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("schedule", [(0.02, 0.003, 0, 5), (0.02, 0.003, 4, 4), (0.02, 0.003, 6, 2), (0.1, 0.1, 0, 100)])
def test_schedules_on_the_device(schedule):
    cosine_lr(both("float32"), *schedule)


@pytest.mark.parametrize("n", [1, 6, 1003, 300_000])
@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e9])
def test_norm_and_clipping(n, max_norm):
    clipped(both("float32"), n, max_norm)


@pytest.mark.parametrize("scale", [1.0, 2.0**20])
def test_the_norm_of_packed_gradients(scale):
    squares_of_a_step(both("float32"), scale=scale)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_that_is_no_number_shows(bad):
    """A NaN norm leaves the gradients unchanged, as in the reference; an infinite norm makes them zero."""
    machine = both("float32")
    grads = np.array([1.0, 2.0, bad, 4.0, 5.0], np.float32)

    def clip(ops, grads):
        mine = guarded(ops, grads)
        return ops.clip_grad_norm_(mine, 1.0), mine

    expected = grads.copy()
    with np.errstate(invalid="ignore"):
        norm = REFERENCE.clip_grad_norm_(expected, 1.0)
    found = machine.run(clip, grads)
    np.testing.assert_array_equal(found[0], norm)
    np.testing.assert_array_equal(found[1], expected)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("count", [1, optim.COPIES, 301])
def test_pack_grads(count, add):
    pack_grads(both("float32"), add, count)


@pytest.mark.parametrize("C", [32, 33])
def test_gradients_of_layernorm_can_be_packed(C):
    """dw and db lie side by side in one array. For an odd C, db begins at an address that no vector load may have."""
    machine, r = both("float32"), generator(C)
    x, w, b, dy = machine.draw(r, 7, C), machine.draw(r, C), machine.draw(r, C), machine.draw(r, 7, C)

    def pack_grads(ops, x, w, b, dy):
        _, dw, db = ops.layernorm_backward(dy, ops.layernorm_forward(x, w, b)[1])
        slots = guarded(ops, np.zeros(C, np.float32)), guarded(ops, np.zeros(C, np.float32))
        ops.pack_grads([dw, db], slots)
        return dw, db, *slots

    dw, db, *slots = machine.run(pack_grads, x, w, b, dy)
    np.testing.assert_array_equal([dw, db], slots)


def test_weighted_sums_of_losses():
    def sum_up(ops, a, b):
        first = ops.accumulate_loss(None, a, 0.25)
        return first, ops.accumulate_loss(first, b, 0.5), ops.accumulate_loss(None, a, 1.0)

    found = both("float32").run(sum_up, np.asarray(np.float32(3.3)), np.asarray(np.float32(4.7)))
    three = np.float32(0.25) * np.float32(3.3)
    np.testing.assert_array_equal(found, [three, three + np.float32(0.5) * np.float32(4.7), np.float32(3.3)])


def test_the_end_of_a_step():
    end_of_step(both("float32"))
