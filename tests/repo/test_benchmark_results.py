"""benchmarks/gpu.py reads the output of other programs, plans its runs and writes tables."""

import itertools
import json
import math
import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

from paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from gpu_sections import conductor, gemms, gradients, kernels, markdown, pipes, steps, tests, training
from gpu_sections.report import Report, Section, shown

from small import PANGRAMS

# ---- what is read off others ----


def test_counts_of_pytest():
    whole = "tests/cuda/gpu/test_ops.py::a PASSED [ 50%]\n==== 1 failed, 40 passed, 2 skipped, 1 warning in 61.25s (0:01:01) ====\n"
    assert tests.counts(whole) == {"failed": 1, "passed": 40, "skipped": 2, "seconds": 61.25}
    cut = "\n".join(f"tests/cuda/gpu/test_x.py::{end}" for end in ("a[b c] PASSED [ 2%]", "b FAILED [ 4%]", "c PASSED [ 6%]", "d"))
    assert tests.counts(cut) == {"passed": 2, "failed": 1}
    assert tests.show_tests({"counts": tests.counts(cut)}) == "2 passed, 1 failed, not to the end"
    assert tests.counts("") == {}
    assert tests.files()[-1] == "tests/cuda/gpu/test_command_lines.py"
    assert "tests/cuda/gpu/test_steps.py" in tests.files()


def test_without_pytest_its_section_alone_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(tests.needs, "missing", lambda needs: ["pytest>=8.2"])
    section = Section("tests", Report(tmp_path / "gpu.json"), conductor.Args(out=tmp_path))
    tests.tests(section)
    assert section.found == {"failures": {"pytest": "left out: not installed: pytest>=8.2"}}


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


NCU = """==PROF== Connected to process 17 (/usr/bin/python)
==PROF== Disconnected from process 17
"ID","Process ID","Host Name","Kernel Name","CC","sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active","{lsu}"
"","","","","","%","%"
"0","17","a-host","attention_backward_key","9.0","80.5","20"
"1","17","a-host","attention_backward_key","9.0","90.5","30"
"2","17","a-host","attention_forward","9.0","1,070.0","40"
""".replace("{lsu}", "sm__pipe_lsu_cycles_active.avg.pct_of_peak_sustained_active")


def test_the_pipes_that_ncu_counts():
    found = pipes.pipes(NCU.splitlines())
    assert found == {"attention_backward_key": {"alu": 85.5, "lsu": 25.0}, "attention_forward": {"alu": 1070.0, "lsu": 40.0}}
    assert pipes.verdict(found) == "attention_backward_key: the ALU pipe is 86 % full, above 80 %"
    found["attention_backward_key"]["alu"] = 80.0
    assert pipes.verdict(found).endswith("80 % full, not above 80 %")
    assert pipes.verdict({"attention_backward_key": {}}) == "the ALU pipe of attention_backward_key was not counted"
    for words in ("", "==ERROR== something"):
        with pytest.raises(RuntimeError, match="names no pipe"):
            pipes.pipes(words.splitlines())


@pytest.mark.program
@pytest.mark.skipif(os.name == "nt", reason="a shell script is no program there")
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (None, "ncu (Nsight Compute) is not installed"),
        ("echo '==ERROR== ERR_NVGPUCTRPERM - The user does not have permission'; exit 1", "only administrators read"),
        ("exit 3", "ncu ended with status 3"),
        ("exit 0", "its output names no pipe"),
        ('while [ "$1" != --log-file ]; do shift; done; cat {table} > "$2"', None),
    ],
)
def test_ncu_that_cannot_be_used_is_a_reason_and_no_failure(program, reason, tmp_path, monkeypatch):
    """A shell script in its place gets the arguments and writes the log."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(pipes, "NCU_PLACES", ())
    (tmp_path / "table").write_text(NCU)
    if program:
        (tmp_path / "ncu").write_text("#!/bin/sh\n" + program.format(table=tmp_path / "table"))
        (tmp_path / "ncu").chmod(0o700)
    section = Section("ncu", Report(tmp_path / "gpu.json"), conductor.Args(out=tmp_path, limit=60, precisions=("bf16",)))
    pipes.ncu(section)
    assert "failures" not in section.found
    if reason:
        assert reason in section.found["skipped"]
        assert reason in pipes.show_ncu(section.found)
    else:
        assert "attention_forward" in pipes.show_ncu(section.found)


def test_ncu_profiles_our_kernels_with_the_largest_gaps():
    assert pipes.largest_gaps(H200, "bf16") == ["attention_backward_key", "attention_forward", "unknown"]
    assert pipes.largest_gaps({}, "bf16") == []


def test_numbers_that_bf16_holds():
    import ml_dtypes

    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    y = gradients.rounded(x)
    np.testing.assert_array_equal(y, y.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert np.abs(y / x - 1).max() <= 2.0**-8
    assert np.abs(y.astype(np.float16).astype(np.float32) - y).max() <= 2.0**-25  # as many as fp16 holds


# ---- how many steps to train ----


@pytest.mark.parametrize(
    ("left", "step", "planned"),
    [
        (110, 0.0037, (5000, 5000)),  # an H200: both runs whole
        (80, 0.0037, (5000, 5000)),
        (70, 0.0037, (5000, 3500)),  # the second alone is shorter
        (60, 0.007, (2750, 500)),
        (130, 0.07, (750, 250)),  # a T4
        (92, 0.07, (250, 250)),  # the second run is not left out for a longer first one
        (75, 0.07, (250, 250)),
        (60, 0.07, (150, 150)),
        (45, 0.25, (0, 0)),
        (20, 0.0037, (0, 0)),
        (110, math.nan, (0, 0)),
    ],
)
def test_as_many_steps_as_fit(left, step, planned):
    assert training.planned(left, step, 5000) == planned
    steps = sum(planned)
    assert steps * step * training.EVALUATIONS + 30 <= left or not steps


def test_quick_runs_are_short(tmp_path, monkeypatch):
    runs, _ = run_on(tmp_path, monkeypatch, 110, {"bf16": 0.0037, "tf32": 0.0155}, quick=True)
    assert runs == [("bf16", 250), ("bf16", 250), ("tf32", 250)]


class Clock:
    """Stands in for the time that is left to a section: each run takes what its steps take."""

    def __init__(self, section, seconds):
        self.section, self.seconds, self.runs = section, seconds, []

    def training(self, section, precision, steps, out):
        self.runs.append((precision, steps))
        wall = 12.0 + 1.1 * steps * self.seconds[precision]
        self.section.end -= wall
        losses = [[step, 2.0, 2.0 - step * 1e-4] for step in range(0, steps + 1, min(steps, 250))]
        return {
            "steps": steps,
            "wall": wall,
            "train": steps * self.seconds[precision],
            "tokens_per_s": 16384 / self.seconds[precision],
            "best_val": 1.5,
            "losses": losses,
            "memory": 1 << 30,
            "sha256": str(steps),
            "last_line": "done",
        }


def run_on(tmp_path, monkeypatch, limit, seconds, timed=True, spoil=lambda clock: None, **flags):
    report = Report(tmp_path / "gpu.json")
    if timed:
        report.put("steps", {"rows": {f"fast {precision}": {"seconds": [s]} for precision, s in seconds.items()}})
    section = Section("run", report, conductor.Args(out=tmp_path, limit=limit, precisions=(*seconds, "float32"), **flags))
    clock = Clock(section, seconds)
    spoil(clock)
    monkeypatch.setattr(training, "training", clock.training)
    training.run(section)
    assert section.left > 0
    return clock.runs, section.found


def test_the_runs_on_a_fast_and_on_a_slow_card(tmp_path, monkeypatch):
    runs, found = run_on(tmp_path, monkeypatch, 150, {"bf16": 0.0037, "tf32": 0.0155})
    assert runs == [("bf16", 5000), ("bf16", 5000), ("tf32", 3250)]
    assert found["same_bits"]
    assert found["compared"] == "parameters and losses of 5,000 steps"
    runs, found = run_on(tmp_path, monkeypatch, 150, {"fp16": 0.07})
    assert runs == [("fp16", 750), ("fp16", 500)]
    assert found["compared"] == "losses of 500 steps"
    assert "750 of 5,000 steps" in training.show_run(found)


def test_a_step_that_was_not_timed_is_timed_by_a_short_run(tmp_path, monkeypatch):
    runs, _ = run_on(tmp_path, monkeypatch, 180, {"bf16": 0.0037}, timed=False)
    assert runs == [("bf16", 50), ("bf16", 5000), ("bf16", 5000)]
    runs, _ = run_on(tmp_path / "tf32", monkeypatch, 180, {"bf16": 0.0037, "tf32": 0.0037 * training.SLOWER}, timed=False)
    assert runs[3] == ("tf32", 4500)

    def fails(clock):
        clock.seconds = {}

    runs, found = run_on(tmp_path, monkeypatch, 180, {"bf16": 0.0037}, timed=False, spoil=fails)
    assert runs == [("bf16", 50)]
    assert set(found["failures"]) == {"probe", "bf16", "bf16 again"}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"sha256": "other"}, False),
        ({"losses": [[0, 4.2, 4.2], [250, 2.0, 2.0], [500, 1.9, 1.9000000000000004]]}, False),
        ({"steps": 250, "losses": [[0, 4.2, 4.2], [250, 2.0, 2.0]], "sha256": "other"}, True),  # parameters of other steps
        ({"steps": 250, "losses": [[0, 4.2, 4.2], [250, 2.0000000000000004, 2.0]]}, False),
    ],
)
def test_a_second_run_is_compared_bit_by_bit(change, same, tmp_path):
    section = Section("run", Report(tmp_path / "gpu.json"), conductor.Args(out=tmp_path))
    first = {"steps": 500, "losses": [[0, 4.2, 4.2], [250, 2.0, 2.0], [500, 1.9, 1.9]], "sha256": "one"}
    section.row("bf16", **first)
    training.compare(section, "bf16")
    assert "same_bits" not in section.found
    section.row("bf16 again", **first | change)
    training.compare(section, "bf16")
    assert section.found["same_bits"] == same
    assert ("failures" in section.found) == (not same)


# ---- tables ----

ATTENTION = {"op": "attention", "calls": 6, "flops": 1e11, "bytes": 2e9}


def report_of(gpu, capability, precisions, slower):
    """Everything that a run finds on a card, some of it failed. slower: than an H200."""
    best = precisions[0]
    gemm = {"op": "mlp", "calls": 6, "flops": 1.9e10, "candidates": 16}
    key, forward = (ATTENTION | {"kernel": f"attention_{name}", "roofline": 2e-4 * slower} for name in ("backward_key", "forward"))
    listed = [
        {"op": "mlp", "kernel": "gemm 16384 x 384 x 1536 + gelu + bias", "calls": 6, "seconds": 3e-4 * slower, "counted": 3.1e-4},
        forward | {"seconds": 3e-4 * slower, "counted": 2e-4 * slower, "bound": "alu"},
        key | {"seconds": 6e-4 * slower, "counted": 3e-4 * slower, "bound": "alu"},
        {"op": "new", "kernel": "unknown", "seconds": 1e-4},
        {"op": "old", "kernel": "fused away", "calls": 1, "flops": 1.0, "bytes": 1.0, "counted": 1e-5, "bound": "bytes"},
    ]
    listed[0] |= {"bound": "tiles", "flops": 1e11, "bytes": 1e8, "roofline": 2e-4}
    losses = [[0, 4.2, 4.2], [250, 2.0, 2.1]]
    process = {"first": 9.0, "wall": 12.0, "autotuned": 2, "algorithms": {"a": "x"}}
    return {
        "machine": {
            "gpu": gpu,
            "capability": capability,
            "precision": best,
            "memory_bytes": 150 << 30,
            "driver": "580.65",
            "cuda_of_driver": 13000,
            "cublaslt": 130002,
            "nvrtc": "13.0",
            "cupy": "14.0.1",
            "torch": "",
            "commit": "abc1234",
            "seconds": 12.0,
            "ceilings": {"copy": 4.3e12} | dict.fromkeys(precisions, 790000000000000.0 / slower),
        },
        "tests": {"counts": {"passed": 120, "seconds": 70.0}, "status": 0},
        "gradients": {
            "rows_of_the_batch": 64,
            "rows": {
                p: {"worst": "qkv_w", "error": 3 * gradients.UNIT[p], "median": 1e-4, "roundings": 3.0, "loss_error": 1e-4}
                for p in precisions
            },
        },
        "gemms": {
            "rows": {
                "mlp: fc dx": gemm | {"epilogue": "none", "plain": 2.2e-5, "backend": 2.3e-5, "of_ceiling": 0.83},
                "mlp: fc dw": gemm
                | {
                    "epilogue": "bias_grad",
                    "plain": 3e-5,
                    "backend": 3.6e-5,
                    "of_ceiling": 0.81,
                    "unfused": 3.6e-5,
                    "fused": 3.2e-5,
                }
                | {"chosen": "fused"},
                "mlp: fc": gemm
                | {"epilogue": "gelu_bias", "plain": 3e-5, "backend": 4e-5, "of_ceiling": None, "unfused": 4e-5, "fused": None}
                | {"chosen": "unfused"},
            }
        },
        "kernels": {"event": 1.5e-6, "rows": {best: {"host": 0.004, "note": "", "kernels": listed}}},
        "ncu": {"rows": {"attention_backward_key": {"alu": 85.0, "fma": 30.0}}},
        "choices": {"differences": [], "rows": {"first process": process, "second process": process}},
        "steps": {
            "rows": {
                f"fast {best}": {"seconds": [0.003 * slower, 0.0031 * slower], "memory": {"reserved": 2 << 30}},
                f"fast {best}, op by op": {"seconds": [0.006 * slower], "memory": {"reserved": 2 << 30}},
                "reference": {"seconds": [0.05 * slower], "memory": {"reserved": 9 << 30}},
                "PyTorch eager": {"seconds": [0.012 * slower], "memory": {"reserved": 4 << 30, "used": 3 << 30}},
                "torch.compile, CUDA graphs": {"seconds": [0.0061 * slower], "memory": {"reserved": 4 << 30}},
                "torch.compile, one graph": {"error": "RuntimeError: no"},
            },
            "failures": {"torch.compile, one graph": "RuntimeError: no"},
        },
        "run": {
            "rows": {
                best: {"steps": 250, "wall": 31.0, "train": 16.0, "tokens_per_s": 5e6, "best_val": 2.1, "memory": 3 << 30}
                | {"losses": losses, "skipped_steps": 2}
            },
            "same_bits": True,
            "compared": "losses of 250 steps",
        },
        "sdpa": {
            "rows": {"dropout 0.2": {"FLASH_ATTENTION": {"forward": 5e-5, "backward": 2e-4}, "CUDNN_ATTENTION": "No kernel."}}
        },
        "generation": {"rows": {f"write: fast {best}": {"seconds": [0.001, 0.001]}, "write: reference": {"error": "x"}}},
    }


H200 = report_of("NVIDIA H200", 9.0, ("bf16", "tf32", "float32"), slower=1)
T4 = report_of("Tesla T4", 7.5, ("fp16", "float32"), slower=20)
TABLE = """
| tensorlite, preset shakespeare | NVIDIA H200 |
|---|---|
| driver | 580.65, CUDA 13.0; nvrtc 13.0, cublaslt 130002, cupy 14.0.1, torch - |
| commit | abc1234 |
| precision | bf16 |
| step, one graph | 3.05 ms, 5,371,803 tokens/s |
| step, op by op | 6.00 ms |
| step, reference | 50.00 ms |
| step, PyTorch, fair | 6.10 ms (torch.compile, CUDA graphs, bf16) |
| x fair | 2.00 |
| run | 250 of 5,000 steps in 31.0 s, 16.0 s of it training |
| best validation loss | 2.1000 after 250 steps (wanted: 1.48 after all) |
| second run bitwise equal | yes: losses of 250 steps |
| same algorithms and losses in a new process | yes; first step after 9.0 s, and 9.0 s in the second process |
| GPU tests | 120 passed in 70 s |
| worst gradient | bf16 3.0 of 16 roundings (qkv_w), tf32 3.0 of 16 roundings (qkv_w), float32 3.0 of 64 roundings (qkv_w) |
| kernels of a step | 1.30 ms measured, 0.82 ms counted |
| attention per layer | forward 50 us (PyTorch 50), backward 100 us (PyTorch 200) |
| ALU pipe | attention_backward_key: the ALU pipe is 85 % full, above 80 % |
| generation, tokens/s | fast bf16 1,000 |
| gap 1 | attention: attention_backward_key: 600 us measured, 300 counted (alu), +300 |
| gap 2 | attention: attention_forward: 300 us measured, 200 counted (alu), +100 |
| gap 3 | mlp: gemm 16384 x 384 x 1536 + gelu + bias: 300 us measured, 310 counted (tiles), -10 |
| failed or left out | steps: torch.compile, one graph |
""".strip()


def test_the_last_table():
    assert markdown.markdown(H200) == TABLE
    lines = markdown.markdown(T4).splitlines()
    assert "| tensorlite, preset shakespeare | Tesla T4 |" in lines
    assert "| step, one graph | 61.00 ms, 268,590 tokens/s |" in lines
    assert "| step, PyTorch, fair | 122.00 ms (torch.compile, CUDA graphs, fp16) |" in lines
    assert "| worst gradient | fp16 3.0 of 16 roundings (qkv_w), float32 3.0 of 64 roundings (qkv_w) |" in lines
    assert not [line for line in lines if "not measured" in line]


@pytest.mark.parametrize("whole", [H200, T4])
def test_the_last_table_of_what_is_left(whole):
    """Each section may be missing, empty, or ended early; each row is then there, and says so."""
    rows = len(markdown.ROWS) + 3
    assert len([line for line in markdown.markdown({}).splitlines() if line.endswith("| not measured |")]) == len(markdown.ROWS)
    for name, own in whole.items():
        parts = [dict(itertools.islice(own.items(), n)) for n in range(len(own))]
        for part in (None, *parts, {"rows": {}}, {"failures": {"all of it": "ended after 60 s, its limit"}}):
            found = {key: value for key, value in whole.items() if key != name} | ({} if part is None else {name: part})
            lines = markdown.markdown(found).splitlines()
            assert len(lines) >= rows, name
            assert all(line.count("|") == 3 and line.endswith(" |") for line in (lines[0], *lines[2:]))
    failed = whole | {"run": {"failures": {"all of it": "no"}}, "ncu": {"skipped": "not installed"}}
    last = markdown.markdown(failed).splitlines()[-1]
    assert last == "| failed or left out | steps: torch.compile, one graph; run: all of it; ncu: all of it |"


def test_the_last_table_names_no_host_user_or_path(monkeypatch):
    """Whatever the reasons of failures and a run's words name."""
    monkeypatch.setattr(socket, "gethostname", lambda: "a-host-of-this-name")
    secret = f"/home/somebody/{socket.gethostname()}/tests.log"
    found = {name: own | {"failures": {"pytest": secret}, "tracebacks": {"x": secret}} for name, own in H200.items()}
    found["run"]["rows"]["bf16"] |= {"said": [secret], "last_line": secret, "sample": secret}
    found["ncu"] |= {"skipped": secret}
    text = markdown.markdown(found)
    assert socket.gethostname() not in text
    assert not re.search(r"/\w+/\w+", text)


def test_every_section_shows_what_it_found():
    for found in (H200, T4):
        for name, part in conductor.SECTIONS.items():
            assert "not all of it was found" not in shown(part.show, found[name]), name
            json.dumps(found[name])
    table = steps.show_steps(H200["steps"]).splitlines()
    assert [line.split()[-1] for line in table if line.startswith(("fast bf16   ", "PyTorch"))] == ["2.00", "0.51"]
    assert "2 steps skipped by the loss scale" in training.show_run(T4["run"])
    assert "same algorithms by name, bitwise equal losses" in conductor.SECTIONS["choices"].show(H200["choices"])


def test_tables_of_what_was_cut_short():
    """Whatever a section had found when it was ended, its table is made or said to be incomplete."""
    for name, part in conductor.SECTIONS.items():
        for n in range(len(H200[name])):
            shown(part.show, dict(list(H200[name].items())[:n]))


def test_whether_each_epilogue_pays():
    text = gemms.show_gemms(H200["gemms"])
    assert (
        "epilogue bias_grad (BGRADA): +12 us per step over the plain GEMM if fused, +36 us if not: fusing pays; "
        "the backend chose fused for 1 of 1"
    ) in text
    assert "epilogue gelu_bias: cuBLASLt has none for its 1 GEMMs" in text
    slow = {"epilogue": "bias", "calls": 2, "plain": 1e-5, "fused": 3e-5, "unfused": 2e-5, "chosen": "unfused"}
    (line,) = gemms.verdicts([slow])
    assert line.endswith(
        "+40 us per step over the plain GEMM if fused, +20 us if not: fusing does not pay; the backend chose fused for 0 of 1"
    )


def test_the_largest_gaps_come_first():
    table = kernels.show_kernels(H200["kernels"]).splitlines()
    assert "1.30 ms measured, 0.82 ms counted, 0.60 ms at the ceilings" in table[0]
    order = ["attention_backward_key", "attention_forward", "gemm 16384 x 384 x 1536", "unknown", "fused away"]
    assert [next(name for name in order if name in line) for line in table[2:]] == order
    assert re.search(r"attention_backward_key +6 +600.0 +300.0 +2.00 +300.0 +alu", table[2])
    noted = {"event": 0.0, "rows": {"bf16": H200["kernels"]["rows"]["bf16"] | {"note": "no kernel's time is counted: no nvdisasm"}}}
    assert kernels.show_kernels(noted).splitlines()[1] == "no kernel's time is counted: no nvdisasm"


def test_the_fair_baseline():
    rows = H200["steps"]["rows"]
    assert steps.fair(rows) == ("torch.compile, CUDA graphs", 0.0061)
    assert steps.fair({"PyTorch eager": rows["PyTorch eager"]})[0] == "PyTorch eager"
    assert math.isnan(steps.fair({"fast bf16": rows["fast bf16"]})[1])


def test_the_most_wanted_steps_come_first_where_memory_is_small(tmp_path, monkeypatch):
    """A card of 15 GiB holds three at a time. One that is left out is named."""
    groups = []
    monkeypatch.setattr(steps, "version", lambda package: "2.9")
    monkeypatch.setattr(steps, "time_interleaved", lambda section, names, rounds: groups.append(names))
    report = Report(tmp_path / "gpu.json")
    report.put("machine", {"memory_bytes": 15 << 30})
    section = Section("steps", report, conductor.Args(out=tmp_path, limit=60, precisions=("fp16", "float32")))
    steps.steps(section)
    assert groups[0] == ["fast fp16", "torch.compile, one graph", "torch.compile, CUDA graphs"]
    assert groups[1] == ["fast fp16, op by op", "PyTorch eager", "torch.compile"]
    assert groups[2] == ["reference", "fast float32", "fast float32, op by op"]
    report.put("machine", {"memory_bytes": 139 << 30})
    section = Section("steps", report, conductor.Args(out=tmp_path, limit=60, precisions=("bf16", "tf32", "float32")))
    steps.steps(section)
    assert len(groups) == 4
    assert len(groups[3]) == 11
    section.end = 0
    steps.steps(section)
    assert len(groups) == 4
    assert "fast bf16" in next(iter(section.found["failures"]))


def test_the_shares_are_the_whole_time():
    assert sum(part.share for part in conductor.SECTIONS.values()) == 100
