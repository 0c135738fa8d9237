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
from gpu_sections import (
    choices,
    conductor,
    first_steps,
    gemms,
    gradients,
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
    args = conductor.Args(out=folder, limit=limit, precisions=("bf16", "tf32", "float32"))
    return Section(name, Report(folder / "gpu.json"), args)


def read(folder):
    return json.loads((folder / "gpu.json").read_text())


# ---- failures ----


@pytest.mark.program
def test_without_a_gpu_it_ends_with_one_line(without_a_gpu, tmp_path):
    """Where all packages are here: an empty CuPy comes first on the path."""
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").touch()
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    for flags, words in (
        (["--out", tmp_path], "error: "),
        (["--only", "nothing"], "error: only nothing: the sections are"),
    ):
        done = subprocess.run(
            [*command, *map(str, flags)], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
        )
        assert done.returncode == 2
        assert done.stderr.startswith(words)
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.program
def test_a_section_that_fails_is_noted(without_a_gpu, tmp_path, capfd):
    """A real process: it finds no GPU, says so and ends well."""
    assert conductor.run_section("machine", conductor.Args(out=tmp_path, precisions=("bf16",)), 60.0) == ""
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
    monkeypatch.setattr(conductor, "SCRIPT", tmp_path / "sleeper.py")
    Report(tmp_path / "gpu.json").put("steps", {"rows": {"a": {}}})
    began = time.monotonic()
    monkeypatch.setattr(conductor, "SHUTDOWN_SECONDS", 0.0)
    assert conductor.run_section("steps", conductor.Args(out=tmp_path), 5.0) == "ended after 5 s, its limit"
    assert time.monotonic() - began < 60  # of the 600 that it sleeps
    assert read(tmp_path) == {"steps": {"rows": {"a": {}}}}
    assert ended(int(capfd.readouterr().out))
    (tmp_path / "sleeper.py").write_text("import os; os._exit(11)")
    assert conductor.run_section("steps", conductor.Args(out=tmp_path), 20.0) == "ended with status 11"


@pytest.mark.program
def test_a_section_is_ended_where_there_are_no_process_groups(tmp_path, monkeypatch):
    """On Windows: what the section started is ended by a program of the system's."""
    (tmp_path / "sleeper.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(conductor, "SCRIPT", tmp_path / "sleeper.py")
    monkeypatch.setattr(conductor, "WINDOWS", True)
    monkeypatch.setattr(conductor, "SHUTDOWN_SECONDS", 0.0)
    monkeypatch.delattr(os, "killpg", raising=False)
    called = []
    monkeypatch.setattr(conductor.subprocess, "run", lambda command, **_: called.append(command))
    assert conductor.run_section("steps", conductor.Args(out=tmp_path), 0.5) == "ended after 0 s, its limit"
    ((*command, pid),) = called
    assert command == ["taskkill", "/F", "/T", "/PID"]
    assert ended(int(pid))


@pytest.mark.program
def test_no_process_that_waits_for_others_touches_the_gpu(without_a_gpu, tmp_path, monkeypatch, capfd):
    """Neither the conductor, whose check is made by a child (which finds no GPU), nor the section that runs train.py."""
    gpus = Gpus()
    monkeypatch.setitem(sys.modules, "cupy", gpus.cupy)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out")])
    assert conductor.main() == 2
    assert capfd.readouterr().err.startswith("error: no CUDA: ")
    (tmp_path / "train.py").write_text("import sys; sys.exit('its last words')")
    monkeypatch.setattr(training, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match="status 1: its last words"):
        training.training(section_of(tmp_path, "run"), "bf16", 50, tmp_path / "run")
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
    clock = iter([0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 505.0, 506.0])
    monkeypatch.setattr(conductor, "time", SimpleNamespace(monotonic=lambda: next(clock), strftime=time.strftime))

    limits = {}

    def run_section(name, args, limit):
        limits[name] = limit
        Report(args.out / "gpu.json").put(name, {"counts": {"passed": 3, "seconds": 2.0}} if name == "tests" else {})
        return "ended with status -11" if name == "machine" else ""

    monkeypatch.setattr(conductor, "run_section", run_section)
    args = conductor.Args(out=tmp_path, only=("machine", "tests", "steps"), minutes=8.5)
    assert conductor.conduct(args) == 1
    found = read(tmp_path)
    assert found["machine"]["failures"] == {"the process": "ended with status -11"}
    assert found["tests"]["counts"] == {"passed": 3, "seconds": 2.0}
    assert found["steps"]["failures"] == {"all of it": "left out: 5 s were left"}
    machine, tests, steps = (conductor.SECTIONS[name].share for name in args.only)
    whole = machine + tests + steps
    assert limits == {  # of 510 s: its share, and what the ones before left over
        "machine": pytest.approx(510 * machine / whole - 1),
        "tests": pytest.approx(510 * (machine + tests) / whole - 10),
    }
    out = capsys.readouterr().out
    assert "3 passed in 2 s" in out
    last = out.rpartition("\n\n")[2]
    assert last == (tmp_path / "gpu.md").read_text()
    assert "| GPU tests | 3 passed in 2 s |" in last
    assert last.endswith("| failed or left out | machine: the process; steps: all of it |\n")


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
import sys, time; sys.path.insert(0, {folder!r})
from gpu_sections import implementations
def implementation(name, precision):
    assert precision == sys.argv[4] == "bf16"
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
sys.exit(implementations.serve(sys.argv[2], sys.argv[4]))
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


@pytest.mark.program
def test_an_implementation_without_time_to_warm_up_is_left_out(served):
    """It is not asked a question whose time would end at once."""
    section = section_of(served)
    section.end = time.monotonic() + 12
    interleaved_timing.time_interleaved(section, ["one"], rounds=3, each=5)
    assert read(served)["steps"]["failures"]["one"].startswith("left out: ")
    assert "rows" not in read(served)["steps"]


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
        work, memory = implementations.implementation(name, "bf16")
        first, last = work(1), work(4)
        assert math.isfinite(first)
        assert last != first
        assert memory() == {"reserved": 77}
        write, _ = implementations.implementation(f"write: {name.partition(',')[0]}", "bf16")
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


class OnDevice(HostRuntime):
    """A runtime on the host with what the sections ask a device for. Its clock is the host's."""

    name, device = "NVIDIA H200", 0

    def __init__(self):
        super().__init__()
        self.xp = DeviceNames()


class DeviceNames(OnHost):
    """NumPy, and the names of CuPy's device functions."""

    runtime = SimpleNamespace(memGetInfo=lambda: (1 << 30, 1 << 30), getDeviceProperties=lambda device: {"l2CacheSize": 1000})

    def Event(self):
        event = SimpleNamespace(synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", time.perf_counter())
        return event

    def get_elapsed_time(self, start, end):
        return 1e3 * (end.at - start.at)

    def free_all_blocks(self):
        pass


@pytest.fixture
def on_device(monkeypatch):
    """Let the sections use a small model on the host."""
    require_compiler()
    device = OnDevice()
    for module in (gemms, gradients, kernel_timer, kernels):
        monkeypatch.setattr(
            module, "fast", lambda precision, runtime=None: CUDAOps(precision, check=False, runtime=runtime or device)
        )
    for module in (gemms, gradients, kernels, workload):
        monkeypatch.setattr(module, "CONFIG", SMALL)
    for module in (gemms, gradients, kernels):
        monkeypatch.setattr(module, "TRAIN", TRAIN)
    launch = device.launch
    device.launch = lambda file, *args, **options: None if file == "spin.cu" else launch(file, *args, **options)
    return device


@pytest.mark.long
@pytest.mark.program  # nvdisasm
def test_sections_on_the_host(on_device, monkeypatch, tmp_path):
    """All gradients are within their bounds. All kernels and GEMMs have rows, and their tables are made."""
    section = section_of(tmp_path, "gradients")
    gradients.gradients(section)
    assert "failures" not in section.found
    assert list(section.found["rows"]) == ["bf16", "tf32", "float32"]
    assert "worst" in gradients.show_gradients(section.found)

    section = section_of(tmp_path, "kernels")
    section.args.quick = True
    kernels.kernels(section)
    assert "failures" not in section.found
    listed = section.found["rows"]["bf16"]["kernels"]
    assert [kernel["kernel"] for kernel in listed if "seconds" not in kernel] in ([], ["end_step"])  # of captured steps alone
    assert all(kernel.get("seconds", 0) >= 0 and kernel["roofline"] > 0 for kernel in listed)
    assert "attention_forward" in kernels.show_kernels(section.found)

    def one_algorithm(ops, sets, epilogue):
        extras = gemms.EXTRAS if epilogue != "none" else ()
        return {"0x0": [lambda s=s: ops.gemm(**{k: v for k, v in s.items() if k in ("a", "b", "out", *extras)}) for s in sets]}

    monkeypatch.setattr(gemms, "candidates", one_algorithm)
    monkeypatch.setattr(gemms, "chosen", lambda ops, arrays, epilogue: str(gemms.problem_of(ops, arrays, epilogue)) and "fused")
    section = section_of(tmp_path, "gemms")
    gemms.gemms(section)
    assert "failures" not in section.found
    assert len(section.found["rows"]) == len(gemms.gemms_of_a_step("bf16", SMALL, TRAIN))
    assert "epilogue bias_grad (BGRADA)" in gemms.show_gemms(section.found)
    section.end = time.monotonic()
    gemms.gemms(section)
    assert section.found["failures"]["the rest"].startswith("left out")


@pytest.mark.long
def test_pytorchs_implementations(monkeypatch):
    """Its names are those of torch_baseline.py. On a CPU the plain one trains as on a GPU, in fp16 with a loss scale.

    The gradients that are clipped are those of the loss, not of the scaled loss.
    """
    torch = pytest.importorskip("torch")
    import torch_baseline as baseline

    assert set(baseline.CUDA) == set(implementations.TORCH)
    assert set(implementations.FAIR) < set(implementations.TORCH)
    data = torch.from_numpy(np.random.default_rng(0).integers(0, 3, 500))
    norms, clip = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args: norms.append(float(clip(*args))))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for precision, grad_clip in (("bf16", 1.0), ("fp16", 1.0), ("fp16", 0.0)):
        train = TrainConfig(batch_size=8, learning_rate=3e-3, grad_clip=grad_clip)
        torch.manual_seed(0)
        work = baseline.steps_on_cuda(baseline.GPT(SMALL), data, SMALL, train, "PyTorch eager", precision)
        first, last = work(1), work(60)
        assert first > 2.2
        assert last < 1.4  # ln 3 is 1.1
    torch.set_num_threads(threads)
    assert norms[61] == pytest.approx(norms[0], rel=0.05)


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
    costs = kernels.traced_step(precision, SMALL, TRAIN, len(data)).costs
    assert set(seconds) == set(costs) - {("", "end_step")}  # which a captured step has alone
    assert all(s > 0 for s in seconds.values())
    assert 0.3 * host < sum(seconds.values()) < host * 2  # the rest is Python's
    assert covered[:2] == [0.0, 0.0]
    assert all(c > 0 for c in covered[2:])


def test_a_roofline_is_the_larger_of_two_times():
    ceilings = {"bf16": 100.0, "fp16": 80.0, "tf32": 50.0, "float32": 10.0, "copy": 50.0}
    for kernel, precision, expected in (
        ("gemm 1 x 2 x 3", "bf16", 10.0),
        ("gemm 1 x 2 x 3", "tf32", 20.0),
        ("attention_forward", "bf16", 10.0),
        ("attention_forward", "fp16", 12.5),
        ("attention_forward", "tf32", 100.0),
        ("adamw", "bf16", 100.0),
    ):
        assert kernels.roofline({"kernel": kernel, "flops": 1000.0, "bytes": 100.0}, ceilings, precision) == expected
    assert kernels.roofline({"kernel": "adamw", "flops": 0.0, "bytes": 100.0}, ceilings, "bf16") == 2.0
    assert kernels.roofline({"kernel": "adamw", "flops": 0.0, "bytes": 100.0}, {"bf16": 1.0}, "bf16") is None  # no ceiling
    assert kernels.roofline({"kernel": "adamw"}, ceilings, "bf16") is None  # it is not counted


def test_a_step_is_compared_with_its_counted_times():
    """An event's time comes off each call. A kernel may be only measured or only counted."""
    costs = {("mlp", "gelu"): KernelCost(calls=6, flops=1.0, bytes=2.0), ("lookup", "embed"): KernelCost(calls=1)}
    seconds = {("mlp", "gelu"): 100e-6, ("new", "unknown"): 3e-6}
    counted = {("mlp", "gelu"): (60e-6, "alu"), ("lookup", "embed"): (5e-6, "bytes")}
    gelu, unknown, embed = kernels.entries(seconds, SimpleNamespace(costs=costs), counted, 1e-6)
    assert gelu["seconds"] == pytest.approx(94e-6)
    assert kernels.gap(gelu) == pytest.approx(34e-6)
    assert (gelu["bound"], gelu["calls"]) == ("alu", 6)
    assert unknown == {"op": "new", "kernel": "unknown", "seconds": pytest.approx(2e-6)}
    assert "seconds" not in embed
    assert [k["kernel"] for k in kernels.largest_gaps_first([embed, unknown, gelu])] == ["gelu", "unknown", "embed"]


def test_what_is_counted_and_why_it_is_not(tmp_path, monkeypatch):
    section = section_of(tmp_path, "kernels")

    def estimate(launches, gpu, precision):
        assert (gpu.bandwidth, precision) == (4800, "bf16")
        if launches[0][0] != ("mlp", "gelu"):
            raise RuntimeError("no nvdisasm")
        return [SimpleNamespace(seconds=10e-6 * sum(launch[1] for launch in launches), bound="alu")]

    monkeypatch.setitem(sys.modules, "gpt.analysis.step_model", SimpleNamespace(estimate=estimate))
    traced = SimpleNamespace(launches=[(("mlp", "gelu"), 2), (("mlp", "other"), 1), (("mlp", "gelu"), 4), (("head", "other"), 1)])
    counted, note = kernels.counted_times(traced, "bf16", "NVIDIA H200", section)
    assert counted == {("mlp", "gelu"): (pytest.approx(60e-6), "alu")}
    assert note == "not counted: other: RuntimeError: no nvdisasm"
    late = section_of(tmp_path, "kernels", limit=0.0)
    note = "not counted: gelu, other: TimeoutError: no time was left"
    assert kernels.counted_times(traced, "bf16", "NVIDIA H200", late) == ({}, note)
    counted, note = kernels.counted_times(traced, "bf16", "GeForce 256", section)
    assert counted == {}
    assert note.startswith("no kernel's time is counted: ConfigError: gpu 'GeForce 256' is not known")
    monkeypatch.setitem(sys.modules, "gpt.analysis.step_model", None)
    assert kernels.counted_times(traced, "bf16", "NVIDIA H200", section)[0] == {}


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_the_gemms_are_those_of_the_step(precision):
    """By the labels of the kernels' table, with each epilogue's arrays, at the model's size."""
    found = gemms.gemms_of_a_step(precision, workload.CONFIG, workload.TRAIN)
    counted = kernels.traced_step(precision, workload.CONFIG, workload.TRAIN, 1000).costs
    assert {key: (gemm.calls, gemm.flops * gemm.calls) for key, gemm in found.items()} == {
        key: (cost.calls, cost.flops) for key, cost in counted.items() if key[1].startswith("gemm")
    }
    for (_, label), gemm in found.items():
        assert ("+" in label) == (gemm.epilogue != "none")
        assert set(gemm.arrays) <= {"a", "b", "out", *gemms.EXTRAS}


# ---- a second process ----


class Cache:
    """Of the runtime's: it picks the first candidate, after timing all that it has not stored."""

    def __init__(self, stored):
        self.stored = stored

    def pick(self, key, candidates, time_call):
        if key not in self.stored:
            self.stored[key] = min(candidates, key=lambda name: time_call(candidates[name]))
        return self.stored[key]


def test_the_choices_of_a_process_are_noted():
    cache = Cache({"a": "second"})
    algorithms, autotuned = first_steps.noted_choices(cache)
    candidates = {"first": lambda: None, "second": lambda: None}
    for key in ("a", "b", "b"):
        cache.pick(key, candidates, lambda work: 1.0)
    assert algorithms == {"a": "second", "b": "first"}
    assert autotuned == {"b"}


FIRST = {"algorithms": {"a": "0x1", "b": "unfused"}, "autotuned": 2, "first": 9.0, "losses": ["0x1.0p2", "0x1.8p1"], "wall": 12.0}


@pytest.mark.parametrize(
    ("second", "differences"),
    [
        ({"autotuned": 0, "first": 2.0}, []),
        ({"autotuned": 0, "algorithms": {"a": "0x2", "b": "unfused"}}, ["takes other algorithms for 1 of 2 GEMMs, such as a"]),
        ({"autotuned": 0, "algorithms": {"a": "0x1"}}, ["takes other algorithms for 1 of 2 GEMMs, such as b"]),
        ({"autotuned": 1}, ["autotunes 1 GEMMs again"]),
        ({"autotuned": 0, "losses": ["0x1.0p2", "0x1.8000000000001p1"]}, ["has other losses in 1 of 2 steps"]),
    ],
)
def test_a_second_process_must_repeat_the_first(second, differences, tmp_path, monkeypatch):
    answers = iter([FIRST, FIRST | second])
    monkeypatch.setattr(choices, "asked", lambda section, cache: next(answers))
    section = section_of(tmp_path, "choices")
    choices.choices(section)
    assert section.found["differences"] == differences
    assert ("failures" in section.found) == bool(differences)
    assert ("bitwise equal losses" in choices.show_choices(section.found)) == (not differences)


@pytest.mark.program
def test_both_processes_get_one_empty_cache_folder(tmp_path, monkeypatch):
    """Real processes, which write into it; the second finds what the first wrote. One that fails leaves its last words."""
    program = (
        "import json, os, pathlib, sys\n"
        "folder = pathlib.Path(os.environ['TENSORLITE_CACHE'])\n"
        "known = len(list(folder.iterdir())); (folder / 'choices').touch()\n"
        "print('a library speaks'); assert sys.argv[1:] == ['--first-steps', '--precisions', 'bf16']\n"
        "print(json.dumps({'algorithms': {}, 'autotuned': 1 - known, 'first': 1.0, 'losses': ['0x1p0']}))"
    )
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(choices, "SCRIPT", tmp_path / "program.py")
    section = section_of(tmp_path, "choices")
    choices.choices(section)
    assert [row["autotuned"] for row in section.found["rows"].values()] == [1, 0]
    assert section.found["differences"] == []
    (tmp_path / "program.py").write_text("import sys; sys.exit('its last words')")
    failing = section_of(tmp_path, "choices")
    choices.choices(failing)
    assert failing.found["failures"]["first process"] == "RuntimeError: status 1: its last words"
    assert "differences" not in failing.found


@pytest.mark.long
def test_the_first_steps_of_a_process(monkeypatch):
    """On the host, twice: the losses are bitwise equal."""
    require_compiler()
    for module in (workload, first_steps):
        monkeypatch.setattr(module, "CONFIG", SMALL)
    monkeypatch.setattr(first_steps, "TRAIN", TRAIN)
    found = []
    for _ in range(2):
        runtime = HostRuntime()
        runtime.autotune_cache = Cache({})
        found.append(first_steps.first_steps(CUDAOps("bf16", check=False, runtime=runtime)))
    assert found[0]["losses"] == found[1]["losses"]
    assert len(set(found[0]["losses"])) == first_steps.STEPS
    assert found[0]["first"] > 0
