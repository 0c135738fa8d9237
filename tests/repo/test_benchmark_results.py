"""benchmarks/gpu.py reads the output of other programs and writes tables."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
from gpu_sections import gemms, gradients, kernels, steps, tests, training
from gpu_sections.report import shown

from small import PANGRAMS

# ---- what is read off others ----


def test_counts_of_pytest():
    whole = "tests/cuda/gpu/test_ops.py::a PASSED [ 50%]\n==== 1 failed, 40 passed, 2 skipped, 1 warning in 61.25s (0:01:01) ====\n"
    assert tests.counts(whole) == {"failed": 1, "passed": 40, "skipped": 2, "seconds": 61.25}
    cut = "\n".join(f"tests/cuda/gpu/test_x.py::{end}" for end in ("a[b c] PASSED [ 2%]", "b FAILED [ 4%]", "c PASSED [ 6%]", "d"))
    assert tests.counts(cut) == {"passed": 2, "failed": 1}
    assert tests.show_tests({"counts": tests.counts(cut)}) == "2 passed, 1 failed, not to the end"
    assert tests.counts("") == {}


@pytest.mark.program
def test_results_of_a_run(tmp_path):
    """Of a real one, small and on the CPU."""
    (tmp_path / "text").write_text(PANGRAMS)
    flags = "--preset layernorm --n-layer 1 --n-embd 8 --n-head 2 --max-iters 6 --eval-interval 3 --eval-batches 1 --device cpu"
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *flags.split(),
        "--data",
        str(tmp_path / "text"),
        "--out",
        str(tmp_path / "run"),
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    found = training.results(tmp_path / "run", said)
    assert found["steps"] == 6
    assert [step for step, _, _ in found["losses"]] == [0, 3, 6]
    assert found["best_val"] == min(val for _, _, val in found["losses"])
    assert found["train"] > 0
    assert len(found["sample"]) == 500
    assert found["last_line"].startswith("done: step 6")
    assert len(found["sha256"]) == 64
    json.dumps(found)


def test_numbers_that_bf16_holds():
    import ml_dtypes

    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    y = gradients.rounded(x)
    np.testing.assert_array_equal(y, y.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert np.abs(y / x - 1).max() <= 2.0**-8


# ---- tables ----

ATTENTION = {"op": "attention", "calls": 6, "flops": 1e11, "bytes": 2e9}
SHAPES = {"shape": "16384 x 384 x 1536", "flops": 1.9e10, "candidates": 16}
FOUND = {
    "machine": {
        "gpu": "NVIDIA H200",
        "capability": 9.0,
        "memory_bytes": 150 << 30,
        "torch": "",
        "seconds": 12.0,
        "ceilings": {"copy": 4.3e12, "bf16": 790e12, "tf32": 400e12, "float32": 50e12},
    },
    "tests": {"counts": {"passed": 120, "seconds": 70.0}, "status": 0},
    "gradients": {
        "rows_of_the_batch": 64,
        "rows": {
            p: {"worst": "qkv_w", "error": 3 * unit, "median": 2 * unit, "roundings": 3.0, "loss_error": 1e-4}
            for p, unit in gradients.UNIT.items()
        },
    },
    "gemms": {
        "rows": {
            "fc dx": SHAPES | {"epilogue": "none", "plain": 2.2e-5, "backend": 2.3e-5, "of_ceiling": 0.83},
            "fc dw": SHAPES
            | {"epilogue": "bias_grad", "plain": 3e-5, "backend": 3.6e-5, "of_ceiling": 0.81, "unfused": 3.6e-5, "fused": None}
            | {"chosen": "unfused"},
        }
    },
    "kernels": {
        "event": 1.5e-6,
        "rows": {
            "bf16": {
                "host": 0.004,
                "kernels": [
                    ATTENTION | {"kernel": "attention_backward_query", "seconds": 6e-4, "roofline": 5e-4},
                    ATTENTION | {"kernel": "attention_backward_key", "seconds": 6e-4, "roofline": 5e-4},
                    ATTENTION | {"kernel": "attention_forward", "seconds": 3e-4, "roofline": 2e-4},
                    {"op": "new", "kernel": "unknown", "seconds": 1e-4},
                ],
            }
        },
    },
    "sdpa": {"rows": {"dropout 0.2": {"FLASH_ATTENTION": {"forward": 5e-5, "backward": 2e-4}, "CUDNN_ATTENTION": "No kernel."}}},
    "steps": {
        "rows": {
            "fast bf16": {"seconds": [0.003, 0.0031], "memory": {"reserved": 2 << 30}},
            "PyTorch eager": {"seconds": [0.012], "memory": {"reserved": 4 << 30, "used": 3 << 30}},
            "torch.compile, CUDA graphs": {"seconds": [0.0061], "memory": {"reserved": 4 << 30}},
            "torch.compile, one graph": {"error": "RuntimeError: no"},
        },
        "failures": {"torch.compile, one graph": "RuntimeError: no"},
    },
    "run": {
        "rows": {
            "bf16": {"steps": 5000, "wall": 31.0, "train": 16.0, "tokens_per_s": 5e6, "best_val": 1.47, "memory": 3 << 30}
            | {"losses": [[5000, 1.1, 1.5]]}
        },
        "same_bits": True,
    },
    "generation": {"rows": {"write: fast bf16": {"seconds": [0.001, 0.001]}, "write: reference": {"error": "x"}}},
}


def test_the_short_table():
    text = gpu.summary(FOUND)
    assert len(text.splitlines()) < 40
    for words in (
        "machine (12 s): NVIDIA H200",
        "copies 4.30 TB/s",
        "120 passed in 70 s",
        "gemms (0 s): 81 to 83 % of the ceiling, fused epilogues faster in 0 of 0",
        "kernels (0 s): 1.60 ms, 75 % of the roofline; most: attention_backward_query 600 us",
        "sdpa (0 s): forward 50 us (PyTorch 50), backward 200 us (PyTorch 200)",
        "as fast as torch.compile, CUDA graphs",
        "failed: torch.compile, one graph: RuntimeError: no",
        "second run's parameters and losses are the first one's bits",
        "fast bf16 1,000",
    ):
        assert words in text, words


def test_every_section_shows_what_it_found():
    for name, part in gpu.SECTIONS.items():
        assert "not all of it was found" not in shown(part.show, FOUND[name]), name
        json.dumps(FOUND[name])
    table = steps.show_steps(FOUND["steps"]).splitlines()
    assert [line.split()[-1] for line in table if line.startswith(("fast", "PyTorch"))] == ["2.00", "0.51"]
    assert "16384 x 384 x 1536" in gemms.show_gemms(FOUND["gemms"])
    assert "unknown" not in kernels.show_kernels(FOUND["kernels"])


def test_tables_of_what_was_cut_short():
    """Whatever a section had found when it was ended, its table is made or said to be incomplete."""
    assert gpu.summary({}).count("\n") == 0
    for name, part in gpu.SECTIONS.items():
        for n in range(len(FOUND[name])):
            shown(part.show, dict(list(FOUND[name].items())[:n]))
        gpu.summary({name: {}})
        gpu.summary({name: {"rows": {}}, "sdpa": {}})


def test_the_fair_baseline():
    rows = FOUND["steps"]["rows"]
    assert steps.fair(rows) == ("torch.compile, CUDA graphs", 0.0061)
    assert steps.fair({"PyTorch eager": rows["PyTorch eager"]})[0] == "PyTorch eager"
    assert math.isnan(steps.fair({"fast bf16": rows["fast bf16"]})[1])
    assert training.slower({}) == 2.5
    timed = {"steps": {"rows": {"fast bf16": {"seconds": [1.0]}, "fast tf32": {"seconds": [2.0]}}}}
    assert training.slower(timed) == pytest.approx(2.4)
