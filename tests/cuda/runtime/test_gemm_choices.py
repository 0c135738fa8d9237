"""Which algorithm a GEMM takes: by alignment, timed or not, and what the timing of a first run adds up to."""

import json

import numpy as np
import pytest

from counted_tuning import TunedRuntime
from gpt.analysis.dry_run import trace_step
from gpt.config import PRESETS
from gpt.models import MODELS
from gpt.params import ParamTable
from tensorlite import KVCache
from tensorlite.cuda import CUDAOps
from tensorlite.cuda.runtime.cublaslt import CublasError

PRESET = PRESETS["shakespeare"]
CHARACTERS = 1_003_854  # of the training text


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path))
    return TunedRuntime()


def at(runtime, shape, offset=0):
    """Return a bf16 array that begins `offset` bytes behind a multiple of 256."""
    room = np.empty(int(np.prod(shape)) * 2 + 512, np.uint8)
    start = -room.ctypes.data % 256 + offset
    return room[start : start + int(np.prod(shape)) * 2].view(runtime.bfloat16).reshape(shape)


def test_an_algorithm_is_chosen_for_the_alignment_that_the_arrays_have(runtime):
    """In each call another array, at last the bias, is aligned to less. The call uses no plan or choice of an earlier one."""
    for which, (offset, alignment) in enumerate([(256, 128), (64, 64), (16, 16), (8, 8), (2, 2)]):
        a, b, out = (at(runtime, (2048, 2048), offset * (which == i)) for i in (1, 2, 3))
        bias = at(runtime, (2048,), offset * (which == 4))
        runtime.gemm(a, b, out, compute="bf16", bias=bias)
        plan, _ = runtime.ran[-1]
        assert plan.problem.alignment == alignment
        stored = json.loads(runtime.autotune_cache.path.read_text())
        assert len(runtime._plans) == len(stored) == which + 1
        assert f"aligned to {alignment} bytes" in " ".join(stored)


def test_a_small_matmul_takes_the_first_algorithm_that_runs(runtime, monkeypatch):
    """It is not timed, and nothing is stored. `unfused` is the last candidate."""
    a, b, out = (at(runtime, (64, 64)) for _ in range(3))
    ran, run = [], runtime._run

    def refusing(plan, algo, *arrays):
        if algo.data[0] < 2:
            raise CublasError("cublasLtMatmul: no", 15)
        run(plan, algo, *arrays)

    monkeypatch.setattr(runtime, "_run", refusing)
    runtime.gemm(a, b, out, compute="bf16", bias=out[0], unfused=lambda: ran.append("unfused"))
    assert [algo.data[0] for _, algo in runtime.ran] == [2, 2]
    runtime.library.algos = 2
    runtime.gemm(a, b.T, out, compute="bf16", bias=out[0], unfused=lambda: ran.append("unfused"))
    assert ran == ["unfused", "unfused"]
    with pytest.raises(RuntimeError, match="none of 2 candidates runs: cublasLtMatmul: no"):
        runtime.gemm(a.T, b, out, compute="bf16")
    assert runtime.timed == 0
    assert not runtime.autotune_cache.path.exists()


def test_the_first_run_tunes_for_less_than_a_second(runtime):
    """The seconds are counted, not measured. It is the full run of preset shakespeare, then texts with prompts of any length."""
    model, ops = MODELS["gpt"], CUDAOps("bf16", check=False, runtime=runtime)
    trace_step(ops, PRESET.model, PRESET.train, CHARACTERS)
    table = ParamTable(model.init(PRESET.model))
    params = table.tree(ops.compute_params(runtime.empty((table.size,), np.float32)))
    for rows, T in ((64, 256), (51, 256), (1, 179)):  # the batches of an evaluation
        ids = np.zeros((rows, T), np.int64)
        model.forward(ops, params, ids, ids, PRESET.model, with_cache=False)
    assert 200 < runtime.timed < 2000
    assert runtime.tuning_s < 1.0
    assert all("aligned to 128 bytes" in problem for problem in json.loads(runtime.autotune_cache.path.read_text()))
    timed = runtime.timed
    for length in (1, 2, 17, 100, 255, 256):
        kv_cache = KVCache(PRESET.model.n_layer, PRESET.model.block_size)
        model.logits(ops, params, np.zeros((1, length), np.int64), PRESET.model, kv_cache)
    assert runtime.timed == timed
