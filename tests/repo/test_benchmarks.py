"""benchmarks/gpu.py without a GPU: failures of its parts, and the implementations that it times."""

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
from gpu_sections import (
    implementations,
    interleaved_timing,
    kernel_timer,
    kernels,
    machine,
    steps,
    training,
    workload,
)
from gpu_sections.report import Report, Section

from fake_cupy import Gpus, existing
from gpt.config import TrainConfig
from shim.host import HostRuntime, require_compiler
from small import config_of
from tensorlite import DeviceError, pick_device
from tensorlite.cuda import CUDAOps
from tensorlite.cuda.runtime.dry_run import KernelCost

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
    monkeypatch.setattr(gpu, "SHUTDOWN_SECONDS", 0.0)
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
    monkeypatch.setattr(gpu, "SHUTDOWN_SECONDS", 0.0)
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
    with section.attempt("a gemm"):
        raise MemoryError("all 80 GB\nare taken")
    section.row("after", x=2)
    found = read(tmp_path)["steps"]
    assert found["failures"] == {"a gemm": "MemoryError: all 80 GB are taken"}
    assert list(found["rows"]) == ["before", "after"]
    with pytest.raises(KeyboardInterrupt), section.attempt("an end"):
        raise KeyboardInterrupt
    Report(tmp_path / "gpu.json").fail("steps", "later", "no time")
    assert set(read(tmp_path)["steps"]["failures"]) == {"a gemm", "later"}


# ---- implementations ----

PROGRAM = """
import sys, time; sys.path.insert(0, {folder!r}); import gpu
from gpu_sections import implementations
def implementation(name):
    print("a library's word on stdout")
    if name == "cannot be made":
        raise MemoryError("no")
    def work(n):
        if name == "falls over" and n == 7:
            import os; os.write(2, b"its last words"); os._exit(9)
        time.sleep(600 if name == "hangs" else 0.001 * n)
        return 2.5
    return work, lambda: {{"reserved": 5}}
implementations.implementation = implementation
sys.exit(implementations.serve(sys.argv[2]))
"""


@pytest.fixture
def served(tmp_path, monkeypatch):
    (tmp_path / "implementation.py").write_text(PROGRAM.format(folder=str(ROOT / "benchmarks")))
    monkeypatch.setattr(interleaved_timing, "SCRIPT", tmp_path / "implementation.py")
    return tmp_path


@pytest.mark.program
def test_implementations_take_turns_and_one_that_fails_drops_out(served):
    section = section_of(served)
    names = ["one", "cannot be made", "falls over", "two"]
    interleaved_timing.time_interleaved(section, names, rounds=3, each=7)
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
def test_an_implementation_that_hangs_is_ended(served):
    section = section_of(served)
    began = time.monotonic()
    interleaved_timing.time_interleaved(section, ["hangs", "one"], rounds=1, each=5, patience=5.0)
    assert time.monotonic() - began < 300
    rows = read(served)["steps"]["rows"]
    assert rows["hangs"]["error"] == "no answer in 5 s"
    assert len(rows["one"]["seconds"]) == 2


@pytest.mark.program
def test_a_timing_that_has_no_time_left_says_so(served, monkeypatch):
    section = section_of(served)
    monkeypatch.setattr(interleaved_timing, "RESERVED", -60.0)
    section.end = time.monotonic() + 5
    interleaved_timing.time_interleaved(section, ["one"], rounds=3, each=5)
    assert "no time was left" in read(served)["steps"]["failures"]["rounds"]


def test_a_turn():
    made = []
    answer = implementations.turn(lambda n: made.append(n) or 1.5, {"warm": 2, "blocks": 3, "each": 5})
    assert made == [2, 5, 5, 5]
    assert len(answer["seconds"]) == 3
    assert answer["last"] == 1.5


@pytest.mark.long
@pytest.mark.parametrize("captured", [False, True])
def test_our_implementation_trains_and_writes(captured, monkeypatch):
    """On the host, in the sizes of a test; CuPy is NumPy."""
    require_compiler()
    monkeypatch.setattr(workload, "CONFIG", SMALL)
    monkeypatch.setattr(implementations, "CONFIG", SMALL)
    monkeypatch.setattr(implementations, "TRAIN", TRAIN)
    monkeypatch.setattr(implementations, "fast", lambda precision: CUDAOps(precision, check=False, runtime=HostRuntime()))
    cupy = OnHost()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for name, precision in (("fast bf16" if captured else "fast bf16, op by op", "bf16"), ("reference", None)):
        work, memory = implementations.implementation(name)
        first, last = work(1), work(4)
        assert math.isfinite(first)
        assert last != first
        assert memory() == {"reserved": 77}
        write, _ = implementations.implementation(f"write: {name.partition(',')[0]}")
        assert 0 <= write(5) < SMALL.vocab_size
        assert implementations.precision_of(name) == precision


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
def test_pytorchs_implementations():
    """Its names are those of torch_baseline.py; on a CPU the plain one trains as on a GPU."""
    torch = pytest.importorskip("torch")
    import torch_baseline as baseline

    assert tuple(baseline.CUDA) == implementations.TORCH
    assert set(implementations.FAIR) < set(implementations.TORCH)
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
def test_a_kernel_timer_sees_the_kernels_that_are_counted(precision, separate):
    """By the same keys, whether or not the epilogues of GEMMs are fused."""
    require_compiler()
    data = np.random.default_rng(0).integers(0, SMALL.vocab_size, 300).astype(np.uint16)
    timer = kernel_timer.KernelTimer(HostRuntime(separate=separate), time.perf_counter, lambda a, b: b - a)
    covered = []
    seconds, host = kernel_timer.timed_steps(timer, precision, SMALL, TRAIN, data, 2, covered.append)
    costs = kernels.step_costs(precision, SMALL, TRAIN, len(data))
    assert set(seconds) == set(costs) - {("", "end_step")}  # which a captured step has alone
    assert all(s > 0 for s in seconds.values())
    assert 0.3 * host < sum(seconds.values()) < host * 2  # the rest is Python's
    assert covered[:2] == [0.0, 0.0]
    assert all(c > 0 for c in covered[2:])


def test_a_roofline_is_the_larger_of_two_times():
    ceilings = {"bf16": 100.0, "tf32": 50.0, "float32": 10.0, "copy": 50.0}
    cost = KernelCost(flops=1000.0, bytes=100.0)
    for kernel, precision, expected in (
        ("gemm 1 x 2 x 3", "bf16", 10.0),
        ("gemm 1 x 2 x 3", "tf32", 20.0),
        ("attention_forward", "bf16", 10.0),
        ("attention_forward", "tf32", 100.0),
        ("adamw", "bf16", 100.0),
    ):
        assert kernels.roofline(kernel, cost, ceilings, precision) == expected
    cost.flops = 0.0
    assert kernels.roofline("adamw", cost, ceilings, "bf16") == 2.0
