"""On a real GPU: eager and captured steps of the CUDA backend, generation, and the stored choice of algorithms."""

import numpy as np
import pytest

from gpt.config import TrainConfig
from gpt.generate import Sampling, generate
from gpt.models import MODELS
from gpt.training.data_parallel import Workers
from gpt.training.evaluate import split_loss
from gpt.training.step import Task, TrainState, train_step
from on_gpu import on_host
from small import config_of, start
from tensorlite import ReferenceOps, device_failure, to_numpy
from tensorlite.cuda import CUDAOps
from tensorlite.cuda.loss_scale import DeviceLossScale
from tensorlite.cuda.ops import PRECISIONS
from tensorlite.loss_scale import LossScale

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # CuPy's own warnings do not fail a test
every_precision = pytest.mark.parametrize("precision", PRECISIONS)
CONFIG = config_of("gpt", dropout=0.2, n_embd=48, n_head=3, block_size=32)  # heads of 16: on tensor cores
TRAIN = TrainConfig(batch_size=4, max_iters=12, learning_rate=0.01, min_lr=0.001, warmup_iters=3, grad_clip=1.0)
DATA = np.random.default_rng(0).integers(0, CONFIG.vocab_size, 500).astype(np.uint16)


def fresh(xp, dtype=np.float32):
    made = start(CONFIG, std=0.1, dtype=np.float32)
    return TrainState.start(made.table, made.params.astype(dtype), xp)


def task_on(xp, train=TRAIN):
    return Task(MODELS["gpt"], CONFIG, train, xp.asarray(DATA), seed=5)


def curve(ops, xp, captured, between=lambda state: None, dtype=np.float32, train=TRAIN):
    """Run twelve steps. Return the losses and norms, which are read at the end, and the bytes of the state."""
    state, task = fresh(xp, dtype), task_on(xp, train)
    step, seen = ops.compile(train_step) if captured else train_step, []
    for _ in range(12):
        seen += step(ops, task, state)
        between(state)
    return [float(x) for x in seen], [to_numpy(a) for a in (state.params, state.grads, state.m, state.v)]


def test_a_captured_run_that_overflows_is_the_run(gpu, cupy):
    """In fp16, from a loss scale that is too large, the same updates are skipped, and all values are bitwise identical."""
    results = []
    for captured in (False, True):
        ops = CUDAOps("fp16", check=False, runtime=gpu, loss_scale=DeviceLossScale(gpu, LossScale(2.0**24)))
        seen, state = curve(ops, cupy, captured)
        results.append([seen, *state, to_numpy(ops.loss_scale.array)])
    for eager, replayed in zip(*results, strict=True):
        np.testing.assert_array_equal(eager, replayed)
    skipped_steps = results[0][-1][2]
    assert 0 < skipped_steps < 12


@every_precision
def test_a_captured_step_is_the_step(precision, gpu, cupy):
    """They are bitwise identical: with evaluations and other uses of memory in between, a second time, and with micro-batches."""
    ops = CUDAOps(precision, check=False, runtime=gpu)

    def disturb(state):
        params = state.table.tree(ops.compute_params(state.params))
        split_loss(Workers.of(ops), task_on(cupy), params, cupy.asarray(DATA))
        cupy.get_default_memory_pool().free_all_blocks()
        for n in range(1, 40):
            cupy.full(997 * n, np.nan, np.float32)

    losses, state = curve(ops, cupy, captured=False)
    for between in (lambda _: None, disturb):
        again, same = curve(ops, cupy, True, between)
        assert again == losses
        for a, b in zip(same, state, strict=True):
            np.testing.assert_array_equal(a, b)
    expected, _ = curve(ReferenceOps(check=False), np, False, dtype=np.float64)
    np.testing.assert_allclose(losses[::2], expected[::2], rtol=1e-4 if precision == "float32" else 0.05)
    twice = TrainConfig(batch_size=2, gradient_accumulation_steps=2, max_iters=12, learning_rate=0.01, min_lr=0.001)
    np.testing.assert_array_equal(curve(ops, cupy, True, train=twice)[1][0], curve(ops, cupy, False, train=twice)[1][0])


def test_a_state_put_back_is_gone_on_from(gpu, cupy):
    """train.py does this after it has timed some steps: the device counts from another step, in the same graph."""
    ops, state, task = CUDAOps(gpu.precision, check=False, runtime=gpu), fresh(cupy), task_on(cupy)
    step, saved, runs = ops.compile(train_step), state.copy(), []
    for _ in range(3):
        for buffer, values in zip(state.buffers(), saved.buffers(), strict=True):
            buffer[...] = values
        state.step = saved.step
        losses = [step(ops, task, state)[0] for _ in range(6)]
        runs.append([float(loss) for loss in losses])
    assert runs[0] == runs[1] == runs[2]


@every_precision
def test_generation(precision, gpu, cupy):
    """The likeliest tokens are the reference's in float32, and in all precisions those of a second run."""
    state = fresh(np)
    prompt, sampling = DATA[:3], Sampling(temperature=0.0)

    def write(ops, xp, dtype):
        params = state.table.tree(ops.compute_params(xp.asarray(state.params.astype(dtype))))
        return list(generate(ops, MODELS["gpt"], params, xp.asarray(prompt), 40, CONFIG, sampling))  # beyond the context, too

    ops = CUDAOps(precision, check=False, runtime=gpu)
    found = write(ops, cupy, np.float32)
    assert found == write(ops, cupy, np.float32)
    if precision == "float32":
        assert found == write(ReferenceOps(check=False), np, np.float64)


def test_a_choice_is_made_once(gpu, cupy, monkeypatch):
    """Another runtime, as in another process, reads the choice, so its results are bitwise identical."""
    from tensorlite.cuda.runtime.device import CudaRuntime

    r, results = np.random.default_rng(0), []
    x, w, b = (cupy.asarray(r.standard_normal(shape).astype(np.float32)) for shape in ((2048, 2048), (2048, 2048), (2048,)))
    results.append(on_host(CUDAOps("float32", runtime=gpu).linear_forward(x, w, b)[0]))
    if not gpu.autotune_cache.path.exists():
        pytest.skip(f"{gpu.autotune_cache.path} cannot be written")
    other = CudaRuntime()
    monkeypatch.setattr(other, "time_call", lambda work: pytest.fail("it was timed again"))
    results.append(on_host(CUDAOps("float32", runtime=other).linear_forward(x, w, b)[0]))
    np.testing.assert_array_equal(*results)


def test_memory_that_is_not_there(gpu):
    with pytest.raises(MemoryError) as caught:
        gpu.empty((1 << 44,), np.dtype(np.float32))
    assert isinstance(device_failure(caught.value), MemoryError)
