"""Whole runs with the CUDA backend, its kernels on the CPU: the trainer, and what the command lines say of a GPU."""

import dataclasses
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import tensorlite.cuda.runtime.device
from fake_cupy import Gpus, StandIn
from gpt import train
from gpt.analysis import dry_run, gpus
from gpt.analysis.cost import estimate_cost
from gpt.config import PRESETS, Preset, TrainConfig
from gpt.errors import ConfigError, TrainingError
from gpt.models import MODELS
from gpt.training import backends, checkpoint, run_dir, run_setup
from gpt.training.backends import select_backend
from gpt.training.data_parallel import Workers
from gpt.training.distributed import SingleProcess
from gpt.training.trainer import Trainer
from shim.host import HostRuntime, require_compiler
from small import PANGRAMS, config_of
from tensorlite import Device, DeviceError, ReferenceOps
from tensorlite.cache_dir import cache_folder, write_whole
from tensorlite.cuda import CUDAOps
from tensorlite.cuda.op_info import OP_INFO
from tensorlite.cuda.runtime import nvrtc
from tensorlite.cuda.runtime.device import CudaRuntime
from tensorlite.meta import cache_bytes

require_compiler()

TRAIN = TrainConfig(batch_size=4, max_iters=12, learning_rate=0.01, min_lr=0.001, eval_interval=6, eval_batches=1, grad_clip=1.0)
GPU = Device("cuda", np, "a GPU of the tests")


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "text").write_text(PANGRAMS)
    return tmp_path / "text"


def trainer(corpus, out, ops=None, resume=False):
    if resume:
        p = run_setup.resume(out, {}, {}, corpus)
    else:
        preset = Preset(config_of("gpt", dropout=0.2, block_size=8, n_layer=1), TRAIN, "")
        p = run_setup.new_run(preset, {}, {}, out, corpus, seed=1)
    out.mkdir(exist_ok=True)
    return Trainer.of(p, Workers.of(ops or CUDAOps("float32", check=False, runtime=HostRuntime())), np)


def losses(run):
    return [(r["step"], r["train_loss"], r["val_loss"]) for r in run.records]


def test_a_run_follows_the_reference_and_leaves_its_losses_unread(corpus, tmp_path):
    """12 steps, 6 between evaluations: fewer than the backend may leave unread, so they are read at the evaluations alone."""
    run, reads = trainer(corpus, tmp_path / "a"), []
    read = run.read
    run.read = lambda: reads.append(len(run.unread)) or read()
    assert run.run() is None
    assert reads == [6, 6]
    reference = trainer(corpus, tmp_path / "b", ReferenceOps(check=False))
    reference.run()
    np.testing.assert_allclose(losses(run), losses(reference), rtol=1e-5)


def test_resume_equals_a_straight_run(corpus, tmp_path):
    """Bit for bit, though the straight run's graph was captured at another step."""
    straight = trainer(corpus, tmp_path / "a")
    straight.run()
    first = trainer(corpus, tmp_path / "b")
    step = first.step
    first.step = lambda *args: (os.kill(os.getpid(), signal.SIGINT) if first.state.step == 7 else None) or step(*args)
    assert first.run() == signal.SIGINT
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "b")).step == 8
    second = trainer(corpus, tmp_path / "b", resume=True)
    second.run()
    np.testing.assert_array_equal(second.state.params, straight.state.params)
    assert losses(second) == losses(straight)


def test_timed_steps_leave_no_trace(corpus, tmp_path):
    run, twin = trainer(corpus, tmp_path / "a"), trainer(corpus, tmp_path / "b")
    with run.undone():
        for _ in range(3):  # one that compiles, one that is captured, one that is launched again
            run.make_step()
            run.read()
        assert run.state.step == 3
    assert run.state.step == 0
    run.run(), twin.run()
    np.testing.assert_array_equal(run.state.params, twin.state.params)


def test_a_loss_that_is_no_number_is_noticed_at_the_next_reading(corpus, tmp_path):
    run = trainer(corpus, tmp_path / "a")
    step = run.step

    def poisoned(*args):
        if run.state.step == 8:
            run.state.params[:] = np.nan
        return step(*args)

    run.step = poisoned
    with pytest.raises(TrainingError, match=r"^step 9: the loss is nan"):
        run.run()
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "a")).step == 6


# ---- the choice of a backend ----


def fake_cuda(monkeypatch, error=None):
    def make():
        if error:
            raise DeviceError(error)
        return HostRuntime()

    monkeypatch.setattr(tensorlite.cuda.runtime.device, "CudaRuntime", make)


def test_a_gpu_gets_the_kernels_in_bf16(monkeypatch):
    fake_cuda(monkeypatch)
    backend = select_backend("auto", GPU)
    assert (backend.name, backend.make().precision, backend.itemsize) == ("fast", "bf16", 2)
    assert select_backend("fast", GPU, "tf32").make().precision == "tf32"
    assert select_backend("reference", GPU).make().name == "reference"
    assert "attention" in backend.description


def test_a_gpu_that_cannot_run_them(monkeypatch):
    """auto falls back to the reference and says why; whoever asked for the kernels gets the reason as an error."""
    fake_cuda(monkeypatch, "Tesla T4 has compute capability 7.5")
    backend = select_backend("auto", GPU)
    assert backend.name == "reference"
    assert "Tesla T4" in backend.description
    for want, precision in (("fast", "auto"), ("auto", "bf16"), ("auto", "tf32")):
        with pytest.raises(DeviceError, match="Tesla T4"):
            select_backend(want, GPU, precision)


@pytest.mark.parametrize("want", ["auto", "fast", "reference"])
def test_a_cpu_has_float32_alone(want):
    cpu = Device("cpu", np, "")
    assert select_backend(want, cpu, "float32").itemsize == 4
    with pytest.raises(ConfigError, match="precision bf16 is of the fast backend on a CUDA device"):
        select_backend(want, cpu, "bf16")


def test_own_ops_are_told():
    assert {"attention", "mlp", "linear_cross_entropy", "layernorm"} <= set(backends._own(CUDAOps))
    assert "softmax" not in backends._own(CUDAOps)


class Lt:
    """cuBLASLt that knows so many ways to compute a product, and takes its pointers without a word."""

    def __init__(self, ways=1):
        self.ways = ways

    def create(self):
        return None

    def version(self):
        return 130000

    def new(self, what, *_):
        return what

    def set(self, *_):
        pass

    def call(self, name, *arguments, about=None):
        if name == "MatmulAlgoGetHeuristic":
            arguments[-1]._obj.value = self.ways


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Puts a stand-in of CuPy and cuBLASLt in the place of the real ones. Kernels are compiled to nothing."""

    def make(ways=1, **options):
        gpus = Gpus(**options)
        monkeypatch.setitem(sys.modules, "cupy", gpus.cupy)
        monkeypatch.setattr(tensorlite.cuda.runtime.device, "Library", lambda: Lt(ways))
        return gpus

    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(nvrtc, "architectures", lambda: (80, 90))
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "compile_file", lambda *_: (b"code", ""))
    return make


def refuse(code):
    raise RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")


def test_a_backend_that_is_chosen_has_run_a_kernel_and_a_matmul(gpu):
    gpus = gpu(count=2)
    gpus.current = 1
    assert select_backend("auto", GPU).name == "fast"
    assert [what for what, _ in gpus.used] == ["ones", "alloc", "spin", "synchronize"]
    assert {number for _, number in gpus.used} == {1}  # the device of a rank stays the current one


@pytest.mark.parametrize(
    ("ways", "load", "words"),
    [
        (1, refuse, r"driver cannot load code of CUDA 13\.0 .*UNSUPPORTED.*update the driver, or install CuPy"),
        (0, lambda code: None, "cuBLASLt 130000 has no way to compute .*bf16"),
    ],
)
def test_auto_falls_back_where_a_kernel_or_a_matmul_fails(ways, load, words, gpu):
    gpu(ways=ways, load=load)
    backend = select_backend("auto", GPU)
    assert backend.name == "reference"
    assert re.search(words, backend.description)
    with pytest.raises(DeviceError, match=words):
        select_backend("fast", GPU)


def test_auto_falls_back_where_a_launch_fails(gpu):
    """CuPy's own errors too; but a GPU whose memory is taken is no reason to try it another way."""
    gpus = gpu()
    error = RuntimeError("cudaErrorNoKernelImageForDevice")

    def fail():
        raise error

    gpus.cupy.cuda.Device = lambda: StandIn("cupy.cuda.Device", id=0, compute_capability="90", synchronize=fail)
    assert "Imaginary GPU 0 cannot run the fast backend (cudaErrorNoKernel" in select_backend("auto", GPU).description
    error = MemoryError("taken")
    with pytest.raises(MemoryError):
        select_backend("auto", GPU)


def test_heads_too_large_for_shared_memory(gpu):
    gpu()
    runtime = CudaRuntime()
    assert runtime._load("attention.cu", "attention_forward", {"D": 64}, 0)
    most = 99 << 10
    for shared in (123136, most, most - 8):
        with pytest.raises(DeviceError, match=f"needs {shared} bytes of shared memory, .* has {most}; use smaller heads"):
            runtime._load("attention.cu", "attention_forward", {"D": 384}, shared)


def test_a_choice_is_of_the_kernels_that_it_was_made_with(gpu, monkeypatch):
    gpu()
    first = CudaRuntime().choices.path
    assert CudaRuntime().choices.path == first
    monkeypatch.setattr(nvrtc, "KERNELS", changed_kernels(first.parent))
    assert CudaRuntime().choices.path != first


def changed_kernels(folder):
    """A copy of the kernel files in which one says something else."""
    shutil.copytree(nvrtc.KERNELS, folder / "kernels-of-tomorrow")
    (folder / "kernels-of-tomorrow" / "reduce.cu").write_text("// other")
    return folder / "kernels-of-tomorrow"


# ---- the cache ----


@pytest.mark.parametrize("damage", ["empty", "cut short", "garbage", "a bit", "of an older version", "a folder"])
def test_damaged_code_is_compiled_anew(damage, gpu, monkeypatch):
    """Once: the file is whole again afterwards. What no driver was asked about can do no harm either."""
    code, made = bytes(range(256)) * 10, []
    monkeypatch.setattr(nvrtc, "compile_file", lambda *_: made.append(1) or (code, ""))
    assert nvrtc.cubin("spin.cu", 90, {}) == code
    (path,) = (cache_folder() / "kernels").iterdir()
    whole = path.read_bytes()
    if damage == "a folder":
        path.unlink(), path.mkdir()
    else:
        flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
        path.write_bytes(
            {"empty": b"", "cut short": whole[:-1], "garbage": b"x" * 5000, "a bit": flipped, "of an older version": code}[damage]
        )
    for _ in range(2):
        assert nvrtc.cubin("spin.cu", 90, {}) == code
    assert len(made) == (3 if damage == "a folder" else 2)
    assert damage == "a folder" or path.read_bytes() == whole


def test_two_writers_of_one_number_do_not_meet(tmp_path, monkeypatch):
    """Two hosts with one home folder: each has its own partial file, though their processes have the same number."""
    partial, replace = [], Path.replace
    monkeypatch.setattr(os, "getpid", lambda: 7)
    monkeypatch.setattr(Path, "replace", lambda self, target: partial.append(self.name) or replace(self, target))
    for data in (b"one", b"two"):
        write_whole(tmp_path / "file", data)
    assert len(set(partial)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        write_whole(tmp_path / "file", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ---- the plan of a step ----


def test_a_plan_counts_what_the_backend_launches(monkeypatch):
    """As many launches and products as a real step makes, and the FLOPs that the op table counts, but for what attention adds."""
    config, train = config_of("gpt", dropout=0.2, n_embd=48, block_size=16), dataclasses.replace(TRAIN, grad_clip=0.0)
    counting = dry_run.DryRunRuntime()
    dry_run.trace_step(CUDAOps(check=False, runtime=counting), config, train, 300)
    made = []

    class Counted(HostRuntime):
        def launch(self, file, name, *args, **kwargs):
            made.append(name)
            super().launch(file, name, *args, **kwargs)

        def gemm(self, *args, **kwargs):
            made.append("product")
            super().gemm(*args, **kwargs)

    ops = CUDAOps(check=False, runtime=Counted())
    table = dry_run.ParamTable(MODELS["gpt"].init(config))
    state = dry_run.TrainState.start(table, table.init_params(0), np)
    ops.compile(dry_run.train_step)(ops, MODELS["gpt"], state, np.zeros(300, np.uint16), config, train, 0)
    planned = {name.split()[0]: 0 for _, name in counting.rows}
    for (_, name), row in counting.rows.items():
        planned[name.split()[0]] += row.calls
    assert planned == {name: made.count(name) for name in made}


def test_a_plan_of_the_full_model():
    shakespeare = PRESETS["shakespeare"]
    text = dry_run.step_plan(shakespeare.model, shakespeare.train, "bf16", 1_000_000, "NVIDIA H200")
    assert "one H200 in bf16" in text
    assert "attention: tensor cores" in text
    total = float(text.splitlines()[-2].split()[-1])
    assert 1500 < total < 2500  # microseconds: the floor of the design, 1.97 to 2.2 ms, is at measured ceilings
    flops = float(text.splitlines()[-2].split()[3]) * 1e9
    counted = estimate_cost(shakespeare.model, shakespeare.train, OP_INFO, itemsize=2)
    assert flops == pytest.approx(counted.flops, rel=0.05)


@pytest.mark.parametrize(
    ("said", "meant"),
    {
        "nvidia l40s": "L40S",
        "NVIDIA L40": "L40",
        "NVIDIA L4": "L4",
        "NVIDIA H200": "H200",
        "NVIDIA GH200 480GB": "GH200",
        "NVIDIA A10": "A10",
        "NVIDIA A10G": None,
        "NVIDIA A100-SXM4-80GB": "A100",
        "NVIDIA H100 80GB HBM3": "H100",
        "Tesla T4": "T4",
        "Tesla V100-SXM2-16GB": "V100",
        "NVIDIA RTX A6000": "RTX A6000",
        "rtx4090": "RTX 4090",
        "NVIDIA GeForce RTX 4070": "RTX 4070",
        "NVIDIA GeForce RTX 4070 Ti": "RTX 4070 Ti",
        "rtx 4070ti": "RTX 4070 Ti",
        "NVIDIA GeForce RTX 4070 Ti SUPER": None,
        "NVIDIA GeForce RTX 4070 SUPER": None,
        "NVIDIA GeForce RTX 4070 Laptop GPU": None,
        "NVIDIA GeForce RTX 4090 D": None,
        "NVIDIA RTX A1000": None,
        "NVIDIA RTX 4000 Ada Generation": None,
        "GTX 970": None,
    }.items(),
)
def test_a_name_means_one_card_or_none(said, meant, capsys):
    """One that is asked for must be known; for one that is here and is not, other figures are taken, and that is said."""
    here = Device("cuda", np, said)
    if meant:
        assert gpus.lookup_gpu(said) == gpus.figures_for(said, GPU) == gpus.figures_for(None, here) == meant
        assert capsys.readouterr().out == ""
    else:
        with pytest.raises(ConfigError, match=f"gpu '{said}' is not known; one of A100, H100"):
            gpus.figures_for(said, here)
        assert gpus.figures_for(None, here) == "H200"
        assert capsys.readouterr().out.startswith(f"note     no datasheet figures are known here of {said}: these are an H200's")


def test_figures_without_any_gpu():
    assert gpus.figures_for(None, Device("cpu", np, "")) == "H200"


def test_every_card_has_a_plan(monkeypatch):
    """Without any package that only a GPU's user has; on cards that the kernels do not run on, in float32, and marked."""
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    config = config_of("gpt", n_embd=48, block_size=16)
    for name, gpu in gpus.GPUS.items():
        text = dry_run.step_plan(config, TRAIN, "auto", 300, name)
        assert f"a step on one {name} in {'bf16' if gpu.bf16 else 'float32'}: " in text
        assert ("compute capability 8.0" in text) == (name in ("T4", "V100"))
    for precision in ("bf16", "tf32"):
        with pytest.raises(ConfigError, match=f"precision {precision}: the tensor cores of the T4 do not know it; --pr"):
            dry_run.step_plan(config, TRAIN, precision, 300, "Tesla T4")


def test_train_takes_the_device_of_its_rank_and_plans_for_any_card(monkeypatch, capsys, corpus):
    asked = []

    def pick(*arguments):
        asked.append(arguments)
        return Device("cuda", np, "NVIDIA GeForce RTX 4070 Laptop GPU")

    ranks = SingleProcess()
    ranks.local_rank = 3
    monkeypatch.setattr(train, "pick_device", pick)
    assert train.run(train.Args(dry_run=True, preset="layernorm", data=((corpus,),)), ranks) == 0
    assert asked == [("auto", 3)]
    assert "a step on one H200 in bf16" in capsys.readouterr().out


def test_the_estimated_cache_is_the_real_one():
    """Bytes kept for backward, counted on shapes, against those of a forward pass: statistics are float32 in bf16 too."""
    config = config_of("gpt", dropout=0.2, n_embd=48, block_size=16)
    for precision, itemsize in (("float32", 4), ("bf16", 2)):
        ops = CUDAOps(precision, check=False, runtime=dry_run.DryRunRuntime())
        table = dry_run.ParamTable(MODELS["gpt"].init(config))
        params = ops.compute_params(table.init_params(0))
        idx = np.zeros((4, 16), np.uint16)
        _, cache = MODELS["gpt"].forward(ops, table.tree(params), idx, idx.copy(), config, ops.step_key(0, 0))
        counted = estimate_cost(config, TRAIN, OP_INFO, itemsize=itemsize).cache_bytes
        assert cache_bytes(cache, [params]) == pytest.approx(counted, rel=0.15)


@pytest.mark.parametrize(("precision", "itemsize"), [("bf16", 2), ("float32", 4)])
@pytest.mark.parametrize(("T", "B"), [(256, 64), (2048, 8), (4096, 8), (8192, 4)])
def test_the_estimate_counts_what_this_backend_stores(T, B, precision, itemsize):
    """No scores of attention, so a long context is not refused where it fits: what a step reserves, and a little more."""
    shakespeare = PRESETS["shakespeare"]
    config = dataclasses.replace(shakespeare.model, block_size=T, vocab_size=65)
    train = dataclasses.replace(shakespeare.train, batch_size=B)
    counted = estimate_cost(config, train, OP_INFO, itemsize=itemsize)
    reserved = dry_run.trace_step(CUDAOps(precision, check=False, runtime=dry_run.DryRunRuntime()), config, train, 1_000_000)
    reserved += 16 * counted.n_params  # parameters, gradients and moments
    assert reserved < counted.peak_bytes < 1.3 * reserved
    scores = 4 * 8 * B * config.n_head * T * T
    assert estimate_cost(config, train).scratch_bytes >= scores  # the reference does store them
