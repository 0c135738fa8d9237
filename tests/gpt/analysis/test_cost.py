"""The memory estimate agrees with real buffers, real caches and a real step. It may not be off by a factor of 2."""

import tracemalloc

import numpy as np
import pytest

from gpt.analysis.cost import FLOAT_BYTES, LIBRARY_BYTES, Cost, estimate_cost
from gpt.config import PRESETS, ModelConfig, TrainConfig, override
from gpt.models import MODELS
from gpt.training import checkpoint
from gpt.training.step import TrainState
from small import start, text
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
    cost = estimate_cost(PRESETS["shakespeare"].model, PRESETS["shakespeare"].train)
    assert cost.n_params == 10_788_929
    assert 2e9 < cost.cache_bytes < 5e9
    assert 1.1e12 < cost.flops < 1.3e12


@every_backend
def test_the_cache_is_the_real_one(backend):
    """The estimate leaves out the tokens, whose size depends on the text."""
    ops, state = backend(), start_float32()
    idx, targets = text(CONFIG, TRAIN.batch_size)
    _, cache = MODELS["gpt"].forward(ops, state.table.tree(state.params), idx, targets, CONFIG, ops.step_key(0, 0))
    assert estimate(backend).cache_bytes == pytest.approx(cache_bytes(cache, [state.params]), rel=0.02)


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
    cost = Cost(n_params=1, state_bytes=1, cache_bytes=20, scratch_bytes=300, flops=5.0, library_bytes=4000)
    assert cost.peak_bytes == 4321
    assert estimate(ReferenceOps).library_bytes == 0
    assert estimate(ReferenceOps, on_cpu=True).library_bytes == LIBRARY_BYTES
    assert np.dtype(np.float32).itemsize == FLOAT_BYTES


@every_backend
def test_an_evaluation_with_other_rows_takes_scratch_memory_of_its_own(backend):
    alone, beside = estimate(backend), estimate(backend, eval_rows=2 * TRAIN.batch_size)
    assert beside.scratch_bytes == 3 * alone.scratch_bytes
