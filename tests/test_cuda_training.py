"""Whole runs with the CUDA backend, its kernels on the CPU: the trainer, and what the command lines say of a GPU."""

import dataclasses
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest

import tensorlite.cuda.runtime
from gpt import backends, checkpoint, dry_run, folder, plan
from gpt.backends import choose
from gpt.config import PRESETS, Preset, TrainConfig
from gpt.errors import ConfigError, TrainingError
from gpt.estimate import count, seconds_of
from gpt.parallel import Workers
from gpt.stages import MODELS
from gpt.trainer import Trainer
from shim.host import HostRuntime, require_compiler
from small import PANGRAMS, config_of
from tensorlite import Device, DeviceError, Reference
from tensorlite.cuda import Ops, nvrtc
from tensorlite.cuda.runtime import Cuda
from tensorlite.cuda.table import ROWS
from tensorlite.shapes import cache_bytes

require_compiler()

TRAIN = TrainConfig(batch_size=4, max_iters=12, learning_rate=0.01, min_lr=0.001, eval_interval=6, eval_batches=1, grad_clip=1.0)
GPU = Device("cuda", np, "a GPU of the tests")


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "text").write_text(PANGRAMS)
    return tmp_path / "text"


def trainer(corpus, out, ops=None, resume=False):
    if resume:
        p = plan.resume(out, {}, {}, corpus)
    else:
        preset = Preset(config_of("gpt", dropout=0.2, block_size=8, n_layer=1), TRAIN, "")
        p = plan.new_run(preset, {}, {}, out, corpus, seed=1)
    out.mkdir(exist_ok=True)
    return Trainer.of(p, Workers.of(ops or Ops("float32", check=False, runtime=HostRuntime())), np)


def losses(run):
    return [(r["step"], r["train_loss"], r["val_loss"]) for r in run.records]


def test_a_run_follows_the_reference_and_leaves_its_losses_unread(corpus, tmp_path):
    """12 steps, 6 between evaluations: fewer than the backend may leave unread, so they are read at the evaluations alone."""
    run, reads = trainer(corpus, tmp_path / "a"), []
    read = run.read
    run.read = lambda: reads.append(len(run.unread)) or read()
    assert run.run() is None
    assert reads == [6, 6]
    reference = trainer(corpus, tmp_path / "b", Reference(check=False))
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
    assert checkpoint.load(folder.last_path(tmp_path / "b")).step == 8
    second = trainer(corpus, tmp_path / "b", resume=True)
    second.run()
    np.testing.assert_array_equal(second.state.params, straight.state.params)
    assert losses(second) == losses(straight)


def test_timed_steps_leave_no_trace(corpus, tmp_path):
    run, twin = trainer(corpus, tmp_path / "a"), trainer(corpus, tmp_path / "b")
    with run.undone():
        seconds_of(lambda: (run.make_step(), run.read()), agreed=lambda _: 0.01, enough=0.03)
        assert run.state.step == 4  # as many steps whatever the machine: three and the first, which is left out
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
    assert checkpoint.load(folder.last_path(tmp_path / "a")).step == 6


# ---- the choice of a backend ----


def fake_cuda(monkeypatch, error=None):
    def make():
        if error:
            raise DeviceError(error)
        return HostRuntime()

    monkeypatch.setattr(tensorlite.cuda.runtime, "Cuda", make)


def test_a_gpu_gets_the_kernels_in_bf16(monkeypatch):
    fake_cuda(monkeypatch)
    backend = choose("auto", GPU)
    assert (backend.name, backend.make().precision, backend.itemsize) == ("fast", "bf16", 2)
    assert choose("fast", GPU, "tf32").make().precision == "tf32"
    assert choose("reference", GPU).make().name == "reference"
    assert "attention" in backend.description


def test_a_gpu_that_cannot_run_them(monkeypatch):
    """auto falls back to the reference and says why; whoever asked for the kernels gets the reason as an error."""
    fake_cuda(monkeypatch, "Tesla T4 has compute capability 7.5")
    backend = choose("auto", GPU)
    assert backend.name == "reference"
    assert "Tesla T4" in backend.description
    for want, precision in (("fast", "auto"), ("auto", "bf16"), ("auto", "tf32")):
        with pytest.raises(DeviceError, match="Tesla T4"):
            choose(want, GPU, precision)


@pytest.mark.parametrize("want", ["auto", "fast", "reference"])
def test_a_cpu_has_float32_alone(want):
    cpu = Device("cpu", np, "")
    assert choose(want, cpu, "float32").itemsize == 4
    with pytest.raises(ConfigError, match="precision bf16 is of the fast backend on a CUDA device"):
        choose(want, cpu, "bf16")


def test_own_ops_are_told():
    assert {"attention", "mlp", "head_loss", "layernorm"} <= set(backends._own(Ops))
    assert "softmax" not in backends._own(Ops)


def loading(monkeypatch, error=None):
    """A Cuda that is about to load its first kernel, on a driver that answers so."""

    class Module:
        def load(self, code):
            if error:
                raise RuntimeError(error)

        def get_function(self, name):
            return name

    runtime = Cuda.__new__(Cuda)
    runtime.name, runtime.architecture, runtime.shared_memory, runtime._modules = "a GPU", 90, 99 << 10, {}
    runtime.xp = SimpleNamespace(cuda=SimpleNamespace(function=SimpleNamespace(Module=Module)))
    monkeypatch.setattr(nvrtc, "architectures", lambda: (80, 90))
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "cubin", lambda *_: b"")
    return runtime


def test_a_driver_older_than_the_compiler(monkeypatch):
    runtime = loading(monkeypatch, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION")
    with pytest.raises(
        DeviceError, match=r"driver cannot load code of CUDA 13\.0 .*UNSUPPORTED.*update the driver, or install CuPy"
    ):
        runtime._load("layernorm.cu", "layernorm_forward", {"C": 8}, 0)


def test_heads_too_large_for_shared_memory(monkeypatch):
    runtime = loading(monkeypatch)
    assert runtime._load("attention.cu", "attention_forward", {"D": 64}, 0) == "attention_forward"
    with pytest.raises(DeviceError, match="needs 123136 bytes of shared memory, a GPU has 101376; use smaller heads"):
        runtime._load("attention.cu", "attention_forward", {"D": 384}, 123136)


# ---- the plan of a step ----


def test_a_plan_counts_what_the_backend_launches(monkeypatch):
    """As many launches and products as a real step makes, and the FLOPs that the op table counts, but for what attention adds."""
    config, train = config_of("gpt", dropout=0.2, n_embd=48, block_size=16), dataclasses.replace(TRAIN, grad_clip=0.0)
    counting = dry_run.Counting()
    dry_run.count(Ops(check=False, runtime=counting), config, train, 300)
    made = []

    class Counted(HostRuntime):
        def launch(self, file, name, *args, **kwargs):
            made.append(name)
            super().launch(file, name, *args, **kwargs)

        def gemm(self, *args, **kwargs):
            made.append("product")
            super().gemm(*args, **kwargs)

    ops = Ops(check=False, runtime=Counted())
    table = dry_run.ParamTable(MODELS["gpt"].init(config))
    state = dry_run.TrainState.start(table, table.initial(0), np)
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
    counted = count(shakespeare.model, shakespeare.train, ROWS, itemsize=2)
    assert flops == pytest.approx(counted.flops, rel=0.05)
    with pytest.raises(ConfigError, match="gpu 'GTX 970' is not known; one of A100, H100"):
        dry_run.named("GTX 970")
    assert [dry_run.named(gpu) for gpu in ("nvidia l40s", "NVIDIA H200", "rtx4090")] == ["L40S", "H200", "RTX 4090"]
    for other in ("NVIDIA L40", "NVIDIA RTX A1000", "NVIDIA GH200 480GB"):
        with pytest.raises(ConfigError, match="is not known"):
            dry_run.named(other)


def test_the_estimated_cache_is_the_real_one():
    """Bytes kept for backward, counted on shapes, against those of a forward pass: statistics are float32 in bf16 too."""
    config = config_of("gpt", dropout=0.2, n_embd=48, block_size=16)
    for precision, itemsize in (("float32", 4), ("bf16", 2)):
        ops = Ops(precision, check=False, runtime=dry_run.Counting())
        table = dry_run.ParamTable(MODELS["gpt"].init(config))
        params = ops.working(table.initial(0))
        idx = np.zeros((4, 16), np.uint16)
        _, cache = MODELS["gpt"].forward(ops, table.tree(params), idx, idx.copy(), config, ops.key(0, 0))
        counted = count(config, TRAIN, ROWS, itemsize=itemsize).cache_bytes
        assert cache_bytes(cache, [params]) == pytest.approx(counted, rel=0.15)
