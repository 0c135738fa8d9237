"""The memory estimate agrees with real buffers, real caches and a real step. It may not be off by a factor of 2."""

import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from gpt.analysis import cost
from gpt.analysis.cost import FLOAT_BYTES, LIBRARY_BYTES, Cost, available_bytes, estimate_cost, time_call
from gpt.config import PRESETS, ModelConfig, TrainConfig, override
from gpt.models import MODELS
from gpt.training import checkpoint
from gpt.training.step import TrainState
from small import config_of, start, text
from tensorlite import ReferenceOps, cpu
from tensorlite.meta import cache_bytes

CONFIG = ModelConfig(vocab_size=65, block_size=128, n_layer=2, n_head=3, n_embd=48, dropout=0.2)  # attention is the largest op
TRAIN = TrainConfig(batch_size=8)
every_backend = pytest.mark.parametrize("backend", [ReferenceOps, cpu.CPUOps], ids=lambda backend: backend.__name__)


def estimate(backend, **options):
    return estimate_cost(CONFIG, TRAIN, backend.op_table, **options)


def state_bytes(state: TrainState) -> int:
    return sum(getattr(state, name).nbytes for name in ("params", "grads", "m", "v"))


def start_float32() -> TrainState:
    return start(CONFIG, dtype=np.float32)


def test_the_full_model():
    full = estimate_cost(PRESETS["shakespeare"].model, PRESETS["shakespeare"].train)
    assert full.n_params == 10_788_929
    assert 2e9 < full.cache_bytes < 5e9
    assert 1.1e12 < full.flops < 1.3e12


@every_backend
def test_the_cache_is_the_real_one(backend):
    """The estimate leaves out the tokens, whose size depends on the text."""
    ops, state = backend(), start_float32()
    idx, targets = text(CONFIG, TRAIN.batch_size)
    _, cache = MODELS["gpt"].forward(ops, state.table.tree(state.params), idx, targets, CONFIG, ops.step_key(0, 0))
    assert estimate(backend).cache_bytes == pytest.approx(cache_bytes(cache, [state.params]), rel=0.02)


@every_backend
@pytest.mark.parametrize("name", MODELS)
def test_the_cache_of_a_small_model_is_estimated_to_the_byte(name, backend):
    """A position counts eight bytes for its two tokens: they are int32 at most."""
    config = config_of(name, dropout=0.2)
    ops, state = backend(), start(config, dtype=np.float32)
    idx, targets = (tokens.astype(np.int32) for tokens in text(config, 4))
    _, cache = MODELS[name].forward(ops, state.table.tree(state.params), idx, targets, config, ops.step_key(0, 0))
    estimated = estimate_cost(config, override(TRAIN, {"batch_size": 4}), backend.op_table)
    assert estimated.cache_bytes == cache_bytes(cache, [state.params])


@every_backend
def test_the_state_is_the_buffers_and_their_copies(backend, tmp_path):
    """All four are copied while a step is timed. On a CPU, three are copied to be written, and become a file."""
    state = start_float32()
    timed = state_bytes(state) + state_bytes(state.copy())
    assert estimate(backend).state_bytes == timed

    written = [getattr(state, name).copy() for name in checkpoint.BUFFERS]
    saved = checkpoint.Checkpoint(
        model=CONFIG,
        train=TRAIN,
        **dict(zip(checkpoint.BUFFERS, written, strict=True)),
        step=0,
        val_loss=1.0,
        best_val=1.0,
        seed=0,
        vocabulary="".join(map(chr, range(32, 32 + CONFIG.vocab_size))),
        data_sha256="",
        drop_unknown=False,
    )
    checkpoint.save(tmp_path / "checkpoint.safetensors", saved)
    file_bytes = (tmp_path / "checkpoint.safetensors").stat().st_size
    held = state_bytes(state) + sum(buffer.nbytes for buffer in written) + file_bytes
    assert estimate(backend, on_cpu=True).state_bytes == pytest.approx(held, rel=0.02)


@every_backend
def test_each_further_shard_has_a_gradient(backend):
    one, three = (estimate_cost(CONFIG, override(TRAIN, {"shards": n}), backend.op_table) for n in (1, 3))
    assert three.state_bytes - one.state_bytes == 2 * start_float32().grads.nbytes


@every_backend
def test_the_scratch_memory_is_enough_for_a_real_step_and_less_than_twice_that(backend):
    """The real one is the peak of a first forward and backward, less the cache, which is counted on its own."""
    ops, state = backend(), start_float32()
    idx, targets = text(CONFIG, TRAIN.batch_size)
    params = state.table.tree(state.params)
    tracemalloc.start()
    try:
        _, cache = MODELS["gpt"].forward(ops, params, idx, targets, CONFIG, ops.step_key(0, 0))
        MODELS["gpt"].backward(ops, 1.0, cache)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    scratch = peak - cache_bytes(cache, [state.params])
    assert scratch < estimate(backend).scratch_bytes < 2 * scratch


def test_the_peak_is_the_sum_of_the_parts():
    parts = Cost(n_params=1, state_bytes=1, cache_bytes=20, scratch_bytes=300, flops=5.0, library_bytes=4000)
    assert parts.peak_bytes == 4321
    assert estimate(ReferenceOps).library_bytes == 0
    assert estimate(ReferenceOps, on_cpu=True).library_bytes == LIBRARY_BYTES
    assert np.dtype(np.float32).itemsize == FLOAT_BYTES


@every_backend
def test_an_evaluation_with_other_rows_takes_scratch_memory_of_its_own(backend):
    alone, beside = estimate(backend), estimate(backend, eval_rows=2 * TRAIN.batch_size)
    assert beside.scratch_bytes == 3 * alone.scratch_bytes
    assert isinstance(estimate(backend, eval_rows=3).scratch_bytes, int)  # bytes are whole


def test_a_rank_holds_the_largest_share_of_its_shards():
    """Nine rows in four shards: the largest has three. With all four shards it holds all rows, and three further gradients."""
    split = override(TRAIN, {"batch_size": 9, "shards": 4})
    one = estimate_cost(CONFIG, split, local_shards=1)
    three_rows = estimate_cost(CONFIG, override(TRAIN, {"batch_size": 3}))
    assert one == three_rows
    assert estimate_cost(CONFIG, split, local_shards=4) == estimate_cost(CONFIG, split)
    nine_rows = estimate_cost(CONFIG, override(TRAIN, {"batch_size": 9}))
    assert estimate_cost(CONFIG, split).cache_bytes == nine_rows.cache_bytes


def test_micro_batches_cost_time_and_no_memory():
    once = estimate(ReferenceOps)
    thrice = estimate_cost(CONFIG, override(TRAIN, {"gradient_accumulation_steps": 3}))
    assert thrice.flops == 3 * once.flops
    assert thrice.peak_bytes == once.peak_bytes


def test_smaller_activations_leave_the_state_as_it_is():
    single, half = estimate(ReferenceOps), estimate(ReferenceOps, itemsize=2)
    assert half.state_bytes == single.state_bytes
    assert half.scratch_bytes == single.scratch_bytes / 2
    assert single.cache_bytes / 2 <= half.cache_bytes < 0.6 * single.cache_bytes


def test_the_scratch_memory_is_enough_for_the_optimizer():
    """A model with more parameters than activations: AdamW's temporaries are then the largest arrays."""
    wide = override(CONFIG, {"block_size": 1, "dropout": 0.0})
    table_bytes = start(wide, dtype=np.float32).params.nbytes
    assert estimate_cost(wide, override(TRAIN, {"batch_size": 1})).scratch_bytes == 8 * table_bytes


def test_the_memory_of_each_device(monkeypatch):
    asked = []
    monkeypatch.setattr(cost, "available_memory", lambda threads: asked.append(threads) or 4000)
    assert available_bytes(np, threads=3) == 4000
    assert available_bytes(np) == 4000
    assert asked == [3, 0]
    runtime = SimpleNamespace(memGetInfo=lambda: (5000, 8000))
    gpu = SimpleNamespace(__name__="cupy", cuda=SimpleNamespace(runtime=runtime))
    assert available_bytes(gpu) == 5000
    monkeypatch.setattr(cost, "available_memory", lambda threads: None)
    assert available_bytes(np) is None


@pytest.mark.parametrize(
    ("seconds", "options", "calls", "median"),
    [
        ([8.0, 0.25], {}, 5, 0.25),  # the first call does not count
        ([8.0, 0.25, 0.5, 0.5], {}, 4, 0.5),
        ([8.0, 0.25, 0.5], {"budget_s": 0.5}, 3, 0.375),
        ([8.0, 4.0, 1.0], {"warm_up": 2}, 3, 1.0),
        ([0.5, 0.25], {"warm_up": 0}, 3, 0.25),
        ([0.0], {}, 100, 0.0),
        ([30.0, 0.5], {}, 1, 30.0),
        ([29.0, 31.0], {}, 2, 31.0),
        ([8.0, 0.25], {"across_ranks": lambda s: 2 * s}, 3, 0.5),  # as the slowest rank counts
        ([15.0, 0.25], {"across_ranks": lambda s: 2 * s}, 1, 30.0),
    ],
)
def test_calls_are_timed_until_the_budget_is_spent(seconds, options, calls, median, monkeypatch):
    """By a clock that each call advances by so many seconds; the last of them is also that of every later call."""
    made, now = [], [1000.0]

    def work():
        now[0] += seconds[min(len(made), len(seconds) - 1)]
        made.append(now[0])

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert time_call(work, **options) == median
    assert len(made) == calls
