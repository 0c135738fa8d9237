"""On a real GPU: the reference on CuPy arrays, against NumPy in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import CASES
from gpt.config import TrainConfig
from gpt.generate import generate
from gpt.models import MODELS
from gpt.training.data_parallel import Workers
from gpt.training.evaluate import split_loss
from gpt.training.step import Task, TrainState, train_step
from small import config_of, start
from tensorlite import ReferenceOps, gradcheck, to_numpy
from tensorlite.random import keep_mask, step_key
from tensorlite.testing.properties import EPS32

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # CuPy's own warnings do not fail a test


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", CASES)
def test_ops_on_the_gpu(name, dtype, cupy):
    """Values and gradients agree to 1e-12 in float64 and to 64 rounding errors in float32. No result changes its dtype."""
    forward, backward = CASES[name].on(ReferenceOps())

    def rounded(a):
        """Both sides start from the same values."""
        return a.astype(dtype).astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a

    @settings(max_examples=10, deadline=None)
    @given(data=st.data())
    def check(data):
        inputs = {k: rounded(v) for k, v in data.draw(CASES[name].inputs).items()}
        y, cache = forward(**inputs)
        dy = rounded(np.asarray(np.random.default_rng(0).standard_normal(y.shape)))
        expected = (y, *as_tuple(backward(dy, cache)))
        moved = {
            k: cupy.asarray(v.astype(dtype) if v.dtype.kind == "f" else v) if isinstance(v, np.ndarray) else v
            for k, v in inputs.items()
        }
        y, cache = forward(**moved)
        found = (y, *as_tuple(backward(cupy.asarray(dy.astype(dtype)), cache)))
        for a, b in zip(expected, found, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert b.dtype == dtype
                bound = (1e-12 if dtype == np.float64 else 64 * EPS32) * max(1.0, float(np.abs(a).max(initial=0.0)))
                assert np.abs(a - to_numpy(b)).max(initial=0.0) <= bound

    check()


def test_gradcheck_on_the_gpu(cupy):
    ops, r = ReferenceOps(), np.random.default_rng(0).standard_normal
    inputs = {"x": cupy.asarray(r((3, 5))), "w": cupy.asarray(r(5)), "b": cupy.asarray(r(5))}
    assert gradcheck(ops.layernorm_forward, ops.layernorm_backward, inputs).ok

    def wrong(dy, cache):
        dx, dw, db = ops.layernorm_backward(dy, cache)
        return dx, dw, -db

    report = gradcheck(ops.layernorm_forward, wrong, inputs, raise_on_fail=False)
    assert [a.status for a in report.arguments] == ["pass", "pass", "fail"]


def test_masks_are_the_same_bits(cupy):
    key = step_key(3, 4, row0=5)
    np.testing.assert_array_equal(to_numpy(keep_mask(cupy, key, (7, 3, 5), 0.2)), keep_mask(np, key, (7, 3, 5), 0.2))


def test_training_evaluation_and_generation(cupy):
    """Ten steps with dropout and clipping agree with the CPU in losses and tokens. A second run is bitwise identical."""
    config = config_of("gpt", dropout=0.2)
    train = TrainConfig(batch_size=4, max_iters=10, learning_rate=0.01, min_lr=0.001, grad_clip=1.0)
    data, results = np.random.default_rng(0).integers(0, config.vocab_size, 300), []
    for xp in (np, cupy, cupy):
        state, ops = TrainState.start(start(config).table, start(config, std=0.3).params, xp), ReferenceOps(check=False)
        task = Task(MODELS["gpt"], config, train, xp.asarray(data), seed=0)
        losses = [float(train_step(ops, task, state)[0]) for _ in range(10)]
        params = state.table.tree(state.params)
        losses.append(split_loss(Workers.of(ops), task, params, task.data))
        tokens = list(generate(ops, MODELS["gpt"], params, xp.asarray(data[:2]), 12, config))
        results.append((losses, tokens, to_numpy(state.params)))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-9)
    assert results[0][1] == results[1][1] == results[2][1]
    np.testing.assert_array_equal(results[1][2], results[2][2])
