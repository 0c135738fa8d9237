"""benchmarks/gpu.py without a GPU: what it does when things fail, its tables, its contenders, and where it looks at kernels."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
from gpu_sections import contenders, gradients, kernels, machine, products, race, steps, stopwatch, subject, tests, training
from gpu_sections.report import Report, Section, shown

from fake_cupy import Gpus, existing
from gpt.config import TrainConfig
from paths import ROOT
from shim.host import HostRuntime, require_compiler
from small import PANGRAMS, config_of
from tensorlite import DeviceError, pick_device
from tensorlite.cuda import CUDAOps
from tensorlite.cuda.runtime.dry_run import Row

SMALL = config_of("gpt", dropout=0.2, n_embd=48, block_size=16)
TRAIN = TrainConfig(batch_size=3)


@pytest.fixture
def without_a_gpu():
    try:
        pick_device("cuda")
    except DeviceError:
        return
    pytest.skip("a GPU is here")


def section_of(folder, name="steps", limit=100.0):
    return Section(name, Report(folder / "gpu.json"), gpu.Args(out=folder, limit=limit))


def read(folder):
    return json.loads((folder / "gpu.json").read_text())


# ---- failures ----


@pytest.mark.program
def test_without_a_gpu_it_ends_with_one_line(without_a_gpu, tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    for flags, words in (
        (["--out", tmp_path], "error: no CUDA: "),
        (["--only", "nothing"], "error: only nothing: the sections are"),
    ):
        done = subprocess.run([*command, *map(str, flags)], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(words)
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.program
def test_a_section_that_fails_is_noted(without_a_gpu, tmp_path, capfd):
    """A real process: it finds no GPU, says so and ends well."""
    assert gpu.run_section("machine", gpu.Args(out=tmp_path), 60.0) == ""
    found = read(tmp_path)["machine"]
    assert "DeviceError: no CUDA" in found["failures"]["all of it"]
    assert "Traceback" in found["tracebacks"]["all of it"]
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err


@pytest.mark.program
def test_a_section_is_ended_at_its_limit_with_all_that_it_started(tmp_path, monkeypatch, capfd):
    """It starts a process of its own and sleeps; what it had found stays."""
    program = (
        "import json, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    (tmp_path / "sleeper.py").write_text(program)
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "sleeper.py"))
    Report(tmp_path / "gpu.json").put("steps", {"rows": {"a": {}}})
    began = time.monotonic()
    monkeypatch.setattr(gpu, "GRACE", 0.0)
    assert gpu.run_section("steps", gpu.Args(out=tmp_path), 1.0) == "ended after 1 s, its limit"
    assert time.monotonic() - began < 60  # of the 600 that it sleeps
    assert read(tmp_path) == {"steps": {"rows": {"a": {}}}}
    assert ended(int(capfd.readouterr().out))
    (tmp_path / "sleeper.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert gpu.run_section("steps", gpu.Args(out=tmp_path), 20.0) == "ended with status -11"


@pytest.mark.program
def test_a_section_is_ended_where_there_are_no_process_groups(tmp_path, monkeypatch):
    """On Windows: what the section started is ended by a program of the system's."""
    (tmp_path / "sleeper.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "sleeper.py"))
    monkeypatch.setattr(gpu, "WINDOWS", True)
    monkeypatch.setattr(gpu, "GRACE", 0.0)
    monkeypatch.delattr(os, "killpg")
    called = []
    monkeypatch.setattr(gpu.subprocess, "run", lambda command, **_: called.append(command))
    assert gpu.run_section("steps", gpu.Args(out=tmp_path), 0.5) == "ended after 0 s, its limit"
    ((*command, pid),) = called
    assert command == ["taskkill", "/F", "/T", "/PID"]
    assert ended(int(pid))


@pytest.mark.program
def test_no_process_that_waits_for_others_touches_the_gpu(without_a_gpu, tmp_path, monkeypatch, capfd):
    """Neither the conductor, whose check is made by a child (which finds no GPU), nor the section that runs train.py."""
    gpus = Gpus()
    monkeypatch.setitem(sys.modules, "cupy", gpus.cupy)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out")])
    assert gpu.main() == 2
    assert capfd.readouterr().err.startswith("error: no CUDA: ")
    (tmp_path / "train.py").write_text("import sys; sys.exit('its last words')")
    monkeypatch.setattr(training, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match="status 1: its last words"):
        training.training(section_of(tmp_path, "run"), "bf16", tmp_path / "run")
    assert gpus.used == []


@pytest.mark.parametrize(("says", "used"), [("1234\n", 1234 << 20), ("[N/A]\n", math.nan), (None, math.nan)])
def test_the_memory_that_is_used_by_nvidia_smi(says, used, monkeypatch):
    asked = []
    monkeypatch.setattr(machine, "first_line", lambda command: asked.append(command) or (says or "").strip())
    np.testing.assert_equal(machine.memory_used("0000:3B:00.0"), used)
    assert asked[0][:2] == ["nvidia-smi", "--id=0000:3B:00.0"]


def ended(pid, seconds=5.0):
    """Whether a process is gone, or soon will be; one whose parent has not asked for its status is."""
    for _ in range(int(10 * seconds)):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_all_sections_run_whatever_happens_to_some(tmp_path, monkeypatch, capsys):
    """A crash, a section that cannot show what it found, one that no time is left for."""
    clock = iter([0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 500.0, 501.0])
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: next(clock), strftime=time.strftime))

    def run_section(name, args, limit):
        Report(args.out / "gpu.json").put(name, {"counts": {"passed": 3, "seconds": 2.0}} if name == "tests" else {})
        return "ended with status -11" if name == "machine" else ""

    monkeypatch.setattr(gpu, "run_section", run_section)
    args = gpu.Args(out=tmp_path, only=("machine", "tests", "steps"), minutes=8.5)
    assert gpu.conduct(args) == 1
    found = read(tmp_path)
    assert found["machine"]["failures"] == {"the process": "ended with status -11"}
    assert found["tests"]["counts"] == {"passed": 3, "seconds": 2.0}
    assert found["steps"]["failures"] == {"all of it": "left out: 10 s were left"}
    out = capsys.readouterr().out
    assert "3 passed in 2 s" in out
    assert "steps (0 s): (not all of it was found" in out


def test_an_attempt_that_fails_leaves_the_rest(tmp_path):
    section = section_of(tmp_path)
    section.row("before", x=1)
    with section.attempt("a product"):
        raise MemoryError("all 80 GB\nare taken")
    section.row("after", x=2)
    found = read(tmp_path)["steps"]
    assert found["failures"] == {"a product": "MemoryError: all 80 GB are taken"}
    assert list(found["rows"]) == ["before", "after"]
    with pytest.raises(KeyboardInterrupt), section.attempt("an end"):
        raise KeyboardInterrupt
    Report(tmp_path / "gpu.json").fail("steps", "later", "no time")
    assert set(read(tmp_path)["steps"]["failures"]) == {"a product", "later"}


# ---- contenders ----

PROGRAM = """
import sys, time; sys.path.insert(0, {folder!r}); import gpu
from gpu_sections import contenders
def contender(name):
    print("a library's word on stdout")
    if name == "cannot be made":
        raise MemoryError("no")
    def work(n):
        if name == "falls over" and n == 7:
            import os; os.write(2, b"its last words"); os._exit(9)
        time.sleep(600 if name == "hangs" else 0.001 * n)
        return 2.5
    return work, lambda: {{"reserved": 5}}
contenders.contender = contender
sys.exit(contenders.serve(sys.argv[2]))
"""


@pytest.fixture
def served(tmp_path, monkeypatch):
    (tmp_path / "contender.py").write_text(PROGRAM.format(folder=str(ROOT / "benchmarks")))
    monkeypatch.setattr(race, "SCRIPT", tmp_path / "contender.py")
    return tmp_path


@pytest.mark.program
def test_contenders_take_turns_and_one_that_fails_drops_out(served):
    section = section_of(served)
    names = ["one", "cannot be made", "falls over", "two"]
    race.race(section, names, rounds=3, each=7)
    rows = read(served)["steps"]["rows"]
    for name in ("one", "two"):
        assert len(rows[name]["seconds"]) == 6
        assert np.median(rows[name]["seconds"]) >= 0.001
        assert rows[name]["memory"] == {"reserved": 5}
        assert rows[name]["last"] == 2.5
    assert rows["cannot be made"]["error"] == "MemoryError: no"
    assert rows["falls over"]["error"] == "ended with status 9: its last words"
    assert set(read(served)["steps"]["failures"]) == {"cannot be made", "falls over"}
    assert "two" in steps.show_steps(section.found)


@pytest.mark.long
@pytest.mark.program
def test_a_contender_that_hangs_is_ended(served):
    section = section_of(served)
    began = time.monotonic()
    race.race(section, ["hangs", "one"], rounds=1, each=5, patience=5.0)
    assert time.monotonic() - began < 300
    rows = read(served)["steps"]["rows"]
    assert rows["hangs"]["error"] == "no answer in 5 s"
    assert len(rows["one"]["seconds"]) == 2


@pytest.mark.program
def test_a_race_that_has_no_time_left_says_so(served, monkeypatch):
    section = section_of(served)
    monkeypatch.setattr(race, "RESERVED", -60.0)
    section.end = time.monotonic() + 5
    race.race(section, ["one"], rounds=3, each=5)
    assert "no time was left" in read(served)["steps"]["failures"]["rounds"]


def test_a_turn():
    made = []
    answer = contenders.turn(lambda n: made.append(n) or 1.5, {"warm": 2, "blocks": 3, "each": 5})
    assert made == [2, 5, 5, 5]
    assert len(answer["seconds"]) == 3
    assert answer["last"] == 1.5


@pytest.mark.long
@pytest.mark.parametrize("captured", [False, True])
def test_our_contender_trains_and_writes(captured, monkeypatch):
    """On the host, in the sizes of a test; CuPy is NumPy."""
    require_compiler()
    monkeypatch.setattr(subject, "CONFIG", SMALL)
    monkeypatch.setattr(contenders, "CONFIG", SMALL)
    monkeypatch.setattr(contenders, "TRAIN", TRAIN)
    monkeypatch.setattr(contenders, "fast", lambda precision: CUDAOps(precision, check=False, runtime=HostRuntime()))
    cupy = OnHost()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for name, precision in (("fast bf16" if captured else "fast bf16, op by op", "bf16"), ("reference", None)):
        work, memory = contenders.contender(name)
        first, last = work(1), work(4)
        assert math.isfinite(first)
        assert last != first
        assert memory() == {"reserved": 77}
        write, _ = contenders.contender(f"write: {name.partition(',')[0]}")
        assert 0 <= write(5) < SMALL.vocab_size
        assert contenders.precision_of(name) == precision


class OnHost:
    """NumPy under the names of CuPy."""

    def __init__(self):
        self.cuda = self

    def __getattr__(self, name):
        existing("cupy", name)
        return getattr(np, name)

    def Device(self):
        return self

    def synchronize(self):
        pass

    def get_default_memory_pool(self):
        return self

    def total_bytes(self):
        return 77


@pytest.mark.long
def test_pytorchs_contenders():
    """Its names are those of torch_baseline.py; on a CPU the plain one trains as on a GPU."""
    torch = pytest.importorskip("torch")
    import torch_baseline as baseline

    assert tuple(baseline.CUDA) == contenders.TORCH
    assert set(contenders.FAIR) < set(contenders.TORCH)
    torch.manual_seed(0)
    data = torch.from_numpy(np.random.default_rng(0).integers(0, 3, 500))
    train = TrainConfig(batch_size=8, learning_rate=3e-3, grad_clip=1.0)
    work = baseline.steps_on_cuda(baseline.GPT(SMALL), data, SMALL, train, "PyTorch eager")
    first, last = work(1), work(60)
    assert first > 2.2
    assert last < 1.4  # ln 3 is 1.1


# ---- kernels ----


@pytest.mark.long
@pytest.mark.parametrize(("precision", "separate"), [("bf16", False), ("bf16", True), ("float32", False)])
def test_a_stopwatch_sees_the_kernels_that_are_counted(precision, separate):
    """By the same keys, whichever way a product's epilogue is made."""
    require_compiler()
    data = np.random.default_rng(0).integers(0, SMALL.vocab_size, 300).astype(np.uint16)
    watch = stopwatch.Stopwatch(HostRuntime(separate=separate), time.perf_counter, lambda a, b: b - a)
    covered = []
    seconds, host = stopwatch.timed_steps(watch, precision, SMALL, TRAIN, data, 2, covered.append)
    rows = kernels.counted(precision, SMALL, TRAIN, len(data))
    assert set(seconds) == set(rows) - {("", "end_step")}  # which a captured step has alone
    assert all(s > 0 for s in seconds.values())
    assert 0.3 * host < sum(seconds.values()) < host * 2  # the rest is Python's
    assert covered[:2] == [0.0, 0.0]
    assert all(c > 0 for c in covered[2:])


def test_a_roofline_is_the_larger_of_two_times():
    ceilings = {"bf16": 100.0, "tf32": 50.0, "float32": 10.0, "copy": 50.0}
    row = Row(flops=1000.0, bytes=100.0)
    for kernel, precision, expected in (
        ("product 1 x 2 x 3", "bf16", 10.0),
        ("product 1 x 2 x 3", "tf32", 20.0),
        ("attention_forward", "bf16", 10.0),
        ("attention_forward", "tf32", 100.0),
        ("adamw", "bf16", 100.0),
    ):
        assert kernels.roofline(kernel, row, ceilings, precision) == expected
    row.flops = 0.0
    assert kernels.roofline("adamw", row, ceilings, "bf16") == 2.0


# ---- what is read off others ----


def test_counts_of_pytest():
    whole = "tests/cuda/test_gpu.py::a PASSED [ 50%]\n==== 1 failed, 40 passed, 2 skipped, 1 warning in 61.25s (0:01:01) ====\n"
    assert tests.counts(whole) == {"failed": 1, "passed": 40, "skipped": 2, "seconds": 61.25}
    cut = "\n".join(f"tests/cuda/test_gpu.py::{end}" for end in ("a[b c] PASSED [ 2%]", "b FAILED [ 4%]", "c PASSED [ 6%]", "d"))
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
    "products": {
        "rows": {
            "fc dx": SHAPES | {"epilogue": "none", "plain": 2.2e-5, "backend": 2.3e-5, "of_ceiling": 0.83},
            "fc dw": SHAPES
            | {"epilogue": "bias_grad", "plain": 3e-5, "backend": 3.6e-5, "of_ceiling": 0.81, "apart": 3.6e-5, "fused": None}
            | {"chosen": "apart"},
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
        "products (0 s): 81 to 83 % of the ceiling, epilogues inside faster in 0 of 0",
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
    assert "16384 x 384 x 1536" in products.show_products(FOUND["products"])
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
