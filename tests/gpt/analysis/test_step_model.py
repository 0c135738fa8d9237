"""The model of a step counts what kernels execute, finds what bounds them, and never promises more than the datasheet."""

import dataclasses
import shutil

import numpy as np
import pytest

from gpt.analysis import assumptions, dry_run, gpus, launch_count, machine_code, pipes, step_model
from gpt.analysis.machine_code import Instruction
from gpt.config import PRESETS, TrainConfig
from paths import ROOT
from small import config_of
from tensorlite import DeviceError
from tensorlite.cuda import CUDAOps
from tensorlite.cuda.runtime import nvrtc, signature
from tensorlite.cuda.runtime.dry_run import DryRunRuntime, Gemm, Launch

H200 = gpus.GPUS["H200"]
T4 = gpus.GPUS["T4"]
HALVES = ("bf16", "fp16")
OF_OTHER_PRECISIONS = (("H200", "float32"), ("H200", "fp16"), ("T4", "fp16"), ("T4", "float32"), ("P100", "float32"))
ARCHITECTURES = (90, *(pytest.param(architecture, marks=pytest.mark.long) for architecture in (75, 80, 89, 100, 120)))


@pytest.fixture(scope="module")
def compiler():
    """NVRTC and nvdisasm, or the test is skipped."""
    try:
        nvrtc.library()
        machine_code.disassembler()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    for header in nvrtc.KERNELS.glob("*.cuh"):
        shutil.copy(header, folder)
    shutil.copy(ROOT / "tests" / "support" / "tiny.cu", folder)
    return folder


@pytest.fixture(scope="module")
def tiny_code(compiler, tiny_folder):
    """Return the machine code of tiny.cu for an architecture."""
    made = {}

    def code(architecture):
        if architecture not in nvrtc.architectures():
            pytest.skip(f"this NVRTC knows {nvrtc.architectures()}")
        if architecture not in made:
            cubin, _ = nvrtc.compile_file("tiny.cu", architecture, {"scalar_t": "bf16"}, tiny_folder)
            made[architecture] = machine_code.disassemble(cubin)
        return made[architecture]

    return code


@pytest.fixture
def tiny(tiny_code, tiny_folder, monkeypatch, tmp_path):
    """Return a function that counts a launch of tiny.cu."""
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path))
    monkeypatch.setattr(signature, "KERNELS", tiny_folder)

    def walkers(file, defines, architecture):
        return {name: launch_count.Walker(code) for name, code in tiny_code(architecture).items()}

    monkeypatch.setattr(launch_count, "walkers", walkers)

    def count(kernel, grid, block, *arguments, gpu=H200):
        launch = Launch("tiny.cu", kernel, grid, block, 0, (), arguments, 0.0, 0.0)
        return launch_count.count(launch, gpu, gpu.bf16 or gpu.fp16)

    return count


def card(architecture):
    return next(gpu for gpu in gpus.GPUS.values() if gpu.capability == architecture)


def stores(counted, gpu):
    """Return how many single words a warp stores."""
    return counted.clocks[pipes.LOAD_STORE] / (32 / gpu.sm.load_store)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_trips_of_loops_are_counted_in_the_machine_code(architecture, tiny):
    """Loops over 64-bit counters, their unrolled forms, a division, and a branch that a null pointer decides."""
    gpu = card(architecture)
    for n in (1, 3 * 4 * 128, 17 * 4 * 128):
        counted = tiny("fill", (4,), 128, 1 << 33, n, gpu=gpu)
        assert stores(counted, gpu) == (n // (4 * 128) or 1 / 16)  # n = 1: one of the 16 warps has an element
        assert not counted.undecided
    for n, d, rows in ((100, 7, 3), (10**12, 10**11, 0), (6, 7, 5)):
        assert stores(tiny("divide", (1,), 32, 0, 1 << 33, n, d, np.int32(rows), gpu=gpu), gpu) == n // d
        with_x = tiny("divide", (1,), 32, 1 << 34, 1 << 33, n, d, np.int32(rows), gpu=gpu)
        assert stores(with_x, gpu) == n // d + 3 * rows  # two loads and a store per row
        assert with_x.load_rounds == rows


def test_a_loop_that_memory_ends_is_reported(tiny):
    assert tiny("search", (1,), 32, 1 << 33, 1 << 34).undecided


def test_masks_bound_what_draws_them(tiny):
    """Of a loop like attention's, the ALU is the bound, and most of its instructions draw dropout masks."""
    counted = tiny("masked", (1000,), 128, 1 << 33, 1 << 34, np.int32(10), *(np.uint32(7),) * 2)
    launch = Launch("tiny.cu", "masked", (1000,), 128, 0, (), (), 0.0, bytes=1e6)
    needs = step_model.launch_seconds(launch, counted, blocks_per_sm=16, gpu=H200)
    assert max(needs, key=needs.get) == pipes.ALU
    assert 0.8 < counted.mask_share <= 1.0
    mma_clocks = 4096 / (989e12 / 132 / H200.clock)
    assert counted.clocks[pipes.TENSOR] == pytest.approx(10 * mma_clocks)
    assert step_model.launch_seconds(launch, counted, 16, H200)[pipes.TENSOR] == pytest.approx(
        4 * 8 * 10 * mma_clocks / (0.62 * 0.9 * H200.clock)
    )


def test_clocks_of_instructions():
    """By hand: 32 lanes over the lanes of the pipe."""

    def clocks(opcode, gpu=H200):
        return pipes.clocks(Instruction("", opcode, ()), gpu, gpu.bf16 or gpu.fp16)

    assert [
        clocks(x) for x in ("FFMA", "IMAD.IADD", "LOP3.LUT", "MUFU.EX2", "LDG.E.128", "LDS", "LDSM.16.M88.4", "BAR.SYNC", "UMOV")
    ] == [
        *(0.25, 0.5, 0.5, 2.0, 4.0, 1.0, 4.0),
        *(0.0, 0.0),
    ]
    assert [clocks(x, T4) for x in ("FFMA", "LDG.E", "DFMA")] == [0.5, 2.0, 16.0]
    assert clocks("HMMA.16816.F32.BF16") == 2 * clocks("HMMA.1688.F32.BF16")
    assert clocks("HMMA.1688.F32", T4) == pytest.approx(2048 / (65e12 / (40 * T4.clock)))


@pytest.mark.parametrize(
    ("registers", "shared", "block", "name", "blocks"),
    [
        (127, 27776, 128, "H200", 4),  # 128 registers: 16 warps
        (132, 27776, 128, "H200", 3),  # 136 registers: 3 warps in each quarter of the SM
        (32, 0, 256, "H200", 8),  # 2048 threads
        (16, 0, 32, "H200", 32),  # 32 blocks
        (132, 0, 32, "H200", 12),
        (32, 55500, 128, "A100", 2),  # 164 KiB, of which a block takes 56576 bytes with those that the system owns
        (32, 56524, 128, "H200", 4),  # 228 KiB; code for 9.0 counts the system's bytes itself
        (64, 0, 256, "T4", 4),  # 1024 threads
        (255, 0, 1024, "T4", 1),  # it could not run; the model needs one block
    ],
)
def test_resident_blocks_by_hand(registers, shared, block, name, blocks):
    assert step_model.resident_blocks(registers, shared, block, gpus.GPUS[name]) == blocks


def test_gemms_by_hand():
    """One tile per SM takes as long as one tile; one tile more takes twice as long. A short and wide output is split over K."""
    per_tile = 2 * 128 * 128 * (384 + 150) / (0.75 * 989e12 / 132)
    for tiles, waves in ((1, 1), (132, 1), (133, 2)):
        problem = Gemm(128 * tiles, 128, 384, 2, (), bytes=0.0)
        assert step_model._tile_seconds(problem, 1, H200, "bf16") == pytest.approx(waves * per_tile)
    deep = Gemm(384, 384, 16384, 4, (), bytes=0.0)
    assert step_model.gemm_seconds(deep, H200, "bf16")[0] < step_model._tile_seconds(deep, 1, H200, "bf16") / 4
    with_sum = dataclasses.replace(deep, epilogues=("bias_grad",))
    more = step_model.gemm_seconds(with_sum, H200, "bf16")[0] - step_model.gemm_seconds(deep, H200, "bf16")[0]
    assert more == pytest.approx(2 * 16384 * 384 / (128 * 132 * 0.9 * H200.clock))
    assert step_model.gemm_seconds(Gemm(8192, 8192, 8192, 2, (), bytes=1e12), H200, "bf16")[1] == "bytes"


def test_the_datasheets_clock():
    assert gpus.GPUS["T4"].clock == pytest.approx(1590e6, rel=0.01)
    assert gpus.GPUS["A100"].clock == pytest.approx(1410e6, rel=0.01)
    assert gpus.GPUS["RTX 4090"].clock == pytest.approx(2520e6, rel=0.01)
    assert {gpu.capability for gpu in gpus.GPUS.values()} == set(gpus.MULTIPROCESSORS)


def traced(preset="shakespeare", precision="bf16"):
    runtime = DryRunRuntime()
    config, train = PRESETS[preset].model, PRESETS[preset].train
    ops = CUDAOps(precision, check=False, runtime=runtime)
    dry_run.trace_step(ops, config, train, 1_000_000)
    return runtime


def check_estimates(runtime, estimates, gpu, precision, exempt=()):
    """Each kernel has an estimate above its roofline. exempt: how the names of kernels begin for which the bytes alone count."""
    calls = [((entry.op, entry.kernel), entry.calls) for entry in estimates]
    assert calls == [(key, cost.calls) for key, cost in runtime.costs.items()]
    for entry in estimates:
        cost = runtime.costs[entry.op, entry.kernel]
        if entry.kernel.startswith(exempt):
            cost = dataclasses.replace(cost, flops=0.0)
        least_us, _ = dry_run.roofline(entry.kernel, cost, gpu, precision, on_cores=precision in HALVES)
        assert entry.seconds * 1e6 > least_us, entry


@pytest.mark.parametrize(("name", "precision"), [("H200", "bf16"), ("T4", "fp16"), ("T4", "float32"), ("RTX 4090", "tf32")])
def test_every_kernel_has_an_estimate_above_its_roofline(name, precision, monkeypatch):
    """Even where no instruction is counted."""
    nothing = launch_count.LaunchCount(dict.fromkeys(pipes.PIPES, 0.0), registers=32)
    monkeypatch.setattr(step_model, "count", lambda *_: nothing)
    runtime = traced(precision=precision)
    estimates = step_model.estimate(runtime.launches, gpus.GPUS[name], precision)
    check_estimates(runtime, estimates, gpus.GPUS[name], precision, exempt=("attention",))
    gaps = sum(cost.calls for cost in runtime.costs.values()) * assumptions.GAP
    assert step_model.step_seconds(estimates) == pytest.approx(sum(entry.seconds for entry in estimates) + gaps)


def test_launches_that_differ_in_addresses_are_counted_once(monkeypatch):
    counted = []
    nothing = launch_count.LaunchCount(dict.fromkeys(pipes.PIPES, 0.0), registers=32)
    monkeypatch.setattr(step_model, "count", lambda launch, *_: counted.append(launch.kernel) or nothing)
    step_model.estimate(traced().launches, H200, "bf16")
    assert counted.count("attention_forward") == 1
    assert counted.count("layernorm_forward") == 2  # with a residual sum and without


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "bf16") for name in ("H200", "A100", "RTX 4090", "B200", "RTX 5090")), *OF_OTHER_PRECISIONS],
)
def test_every_kernel_of_a_run_is_counted(name, precision, compiler):
    """All loops of all kernels end, and attention executes whole tiles on the tensor cores."""
    gpu = gpus.GPUS[name]
    runtime = traced(precision=precision)
    estimates = step_model.estimate(runtime.launches, gpu, precision)
    check_estimates(runtime, estimates, gpu, precision)
    assert not [entry.kernel for entry in estimates if entry.undecided]
    if precision in HALVES:
        forward = next(x for _, x in runtime.launches if isinstance(x, Launch) and x.kernel == "attention_forward")
        counted = launch_count.count(forward, gpu, gpu.fp16)
        per_pair = 2 * 2 * 64 * 64 * 64 / 4  # FLOPs of a warp for a pair of tiles, of which a block has 2.5 on average
        clocks = 2.5 * per_pair / (gpu.fp16 * 1e12 / gpu.sms / gpu.clock)
        assert counted.clocks[pipes.TENSOR] == pytest.approx(clocks)


def test_the_table_without_a_disassembler_is_the_roofline(monkeypatch):
    def missing(*_):
        raise machine_code.DisassemblerError("nvdisasm is not installed; pip install nvidia-cuda-nvdisasm")

    monkeypatch.setattr(dry_run, "estimate", missing)
    text = dry_run.step_table(config_of("gpt", n_embd=48, block_size=16), TrainConfig(batch_size=4), "bf16", 300, "H200")
    assert "counted" not in text.splitlines()[1]
    assert (
        'note     nothing is counted (nvdisasm is not installed; pip install nvidia-cuda-nvdisasm); pip install -e ".[kernels]"'
        in text
    )


def test_the_table_of_counted_times(monkeypatch):
    def few(launches, gpu, precision):
        return [step_model.KernelEstimate(op, kernel, 2, 3e-6, "alu", 32, 0.5, 0.4, True) for op, kernel in dict(launches)]

    monkeypatch.setattr(dry_run, "estimate", few)
    train = TrainConfig(batch_size=4, max_iters=100_000)
    text = dry_run.step_table(config_of("gpt", n_embd=48, block_size=16), train, "bf16", 300, "H200")
    kernels = text.count("alu         32        50%    40%")
    assert kernels > 30
    seconds = kernels * (3e-6 + 2 * assumptions.GAP)
    assert f"counted, not measured: {seconds * 1e3:.2f} ms per step, 100000 steps in {1e5 * seconds:.0f} s;" in text
    assert "dropout's integer arithmetic bounds convert" in text
    assert "a loop whose end is unknown counts once in convert" in text


def test_predictions_have_the_names_that_a_run_measures(monkeypatch):
    nothing = launch_count.LaunchCount(dict.fromkeys(pipes.PIPES, 0.0), registers=32)
    monkeypatch.setattr(step_model, "count", lambda *_: nothing)
    runtime = traced()
    predicted = step_model.estimate(runtime.launches, H200, "bf16")
    assert [(entry.op, entry.kernel) for entry in predicted] == list(runtime.costs)
