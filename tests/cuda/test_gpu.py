"""On a real GPU: the reference on CuPy arrays, and the CUDA backend, against NumPy in float64.

The checks of the kernels are those of test_cuda_kernels.py, which runs them on a CPU: here they get a machine that is a GPU. What a
CPU cannot show is here alone: cuBLASLt's products, tensor cores, the full model's sizes, a captured graph among other work.
"""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import CASES
from cuda_bounds import BF16, UNIT, close
from gpt.config import TrainConfig
from gpt.generate import Sampling, generate
from gpt.models import MODELS
from gpt.training import checkpoint
from gpt.training.data_parallel import Workers
from gpt.training.evaluate import split_loss
from gpt.training.step import TrainState, train_step
from paths import ROOT
from small import PANGRAMS, config_of, start
from tensorlite import DeviceError, Key, ReferenceOps, device_failure, gradcheck, pick_device, to_numpy
from tensorlite.cuda import CUDAOps
from tensorlite.cuda.ops import PRECISIONS
from tensorlite.cuda.runtime.autotune import AutotuneCache
from tensorlite.random import keep_mask, step_key
from tensorlite.testing.properties import EPS32
from tests.cuda import test_cuda_kernels as kernels

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # what CuPy warns of is not ours


SLACK = 4  # times the bounds: a tensor core cuts off where a CPU rounds, and sums go in other orders
ROUNDINGS = {"float32": 64, "tf32": 16, "bf16": 8}  # of a whole array at the full model's size, whose sums have 16384 terms
ONE = {"float32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-8}  # rounding, relatively
every_precision = pytest.mark.parametrize("precision", PRECISIONS)


@pytest.fixture(scope="module")
def cupy():
    try:
        return pick_device("cuda").xp
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def gpu(cupy):
    """A runtime on the device."""
    from tensorlite.cuda.runtime.device import CudaRuntime

    try:
        return CudaRuntime()
    except DeviceError as error:
        pytest.skip(str(error))


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


# ---- the reference on CuPy arrays ----


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", CASES)
def test_ops_on_the_gpu(name, dtype, cupy):
    """Values and gradients of float64 agree to 1e-12, those of float32 to 64 rounding errors; nothing changes its dtype."""
    forward, backward = CASES[name].on(ReferenceOps())

    def rounded(a):
        """Both sides start from the same numbers."""
        return a.astype(dtype).astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a

    @settings(max_examples=10, deadline=None)
    @given(data=st.data())
    def check(data):
        inputs = {k: rounded(v) for k, v in data.draw(CASES[name].inputs).items()}
        y, cache = forward(**inputs)
        dy = rounded(np.asarray(np.random.default_rng(0).standard_normal(y.shape)))
        expected = (y, *as_tuple(backward(dy, cache)))
        moved = {
            k: cupy.asarray(v.astype(dtype) if v.dtype.kind == "f" else v) if isinstance(v, np.ndarray) else v
            for k, v in inputs.items()
        }
        y, cache = forward(**moved)
        found = (y, *as_tuple(backward(cupy.asarray(dy.astype(dtype)), cache)))
        for a, b in zip(expected, found, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert b.dtype == dtype
                bound = (1e-12 if dtype == np.float64 else 64 * EPS32) * max(1.0, float(np.abs(a).max(initial=0.0)))
                assert np.abs(a - to_numpy(b)).max(initial=0.0) <= bound

    check()


def test_gradcheck_on_the_gpu(cupy):
    ops, r = ReferenceOps(), np.random.default_rng(0).standard_normal
    inputs = {"x": cupy.asarray(r((3, 5))), "w": cupy.asarray(r(5)), "b": cupy.asarray(r(5))}
    assert gradcheck(ops.layernorm_forward, ops.layernorm_backward, inputs).ok

    def wrong(dy, cache):
        dx, dw, db = ops.layernorm_backward(dy, cache)
        return dx, dw, -db

    report = gradcheck(ops.layernorm_forward, wrong, inputs, raise_on_fail=False)
    assert [a.status for a in report.arguments] == ["pass", "pass", "fail"]


def test_masks_are_the_same_bits(cupy):
    key = step_key(3, 4, row0=5)
    np.testing.assert_array_equal(to_numpy(keep_mask(cupy, key, (7, 3, 5), 0.2)), keep_mask(np, key, (7, 3, 5), 0.2))


def test_training_evaluation_and_generation(cupy):
    """Ten steps with dropout and clipping: the CPU's losses and tokens; a second run gives the same bits."""
    config = config_of("gpt", dropout=0.2)
    train = TrainConfig(batch_size=4, max_iters=10, learning_rate=0.01, min_lr=0.001, grad_clip=1.0)
    data, results = np.random.default_rng(0).integers(0, config.vocab_size, 300), []
    for xp in (np, cupy, cupy):
        state, ops = TrainState.start(start(config).table, start(config, std=0.3).params, xp), ReferenceOps(check=False)
        on_device = xp.asarray(data)
        losses = [float(train_step(ops, MODELS["gpt"], state, on_device, config, train, 0)[0]) for _ in range(10)]
        params = state.table.tree(state.params)
        losses.append(split_loss(Workers.of(ops), MODELS["gpt"], params, on_device, config, 4))
        tokens = list(generate(ops, MODELS["gpt"], params, xp.asarray(data[:2]), 12, config))
        results.append((losses, tokens, to_numpy(state.params)))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-9)
    assert results[0][1] == results[1][1] == results[2][1]
    np.testing.assert_array_equal(results[1][2], results[2][2])


# ---- the CUDA backend, op by op ----


class Machine:
    """In the place of test_cuda_kernels.Both: what it runs, it runs twice on the GPU, for the same bits."""

    def __init__(self, precision, runtime, xp, apart=True):
        self.ops, self.xp = CUDAOps(precision, runtime=runtime), xp
        self.dtype = np.dtype(self.ops.dtype)
        self.apart = UNIT[self.dtype] if apart else 0.0  # a product may be stored before its bias is added

    def run(self, function, *arrays):
        """function(ops, *arrays), as a flat list of NumPy arrays; the arrays stay as they were."""
        results = []
        for _ in range(2):
            moved = [self.on_device(a) for a in arrays]
            results.append([None if a is None else on_host(a) for a in kernels.as_arrays(function(self.ops, *moved))])
            for a, b in zip(arrays, moved, strict=True):
                assert not isinstance(a, np.ndarray) or on_host(b).tobytes() == a.tobytes()
        for a, b in zip(*results, strict=True):
            assert a is b is None or a.tobytes() == b.tobytes(), "a second run has other bits"
        return results[0]

    def on_device(self, a):
        if not isinstance(a, np.ndarray | np.generic):
            return a
        return self.xp.asarray(a.view(np.uint16)).view(BF16) if a.dtype == BF16 else self.xp.asarray(a)

    def draw(self, random, *shape, size=1.0):
        """Normal numbers that every precision can hold."""
        return np.asarray(size * random.standard_normal(shape)).astype(BF16).astype(self.dtype)


def on_host(a):
    return to_numpy(a.view(np.uint16)).view(BF16) if a.dtype == BF16 else to_numpy(a)


@pytest.fixture
def machine(gpu, cupy, monkeypatch):
    """Makes a Machine of a precision; meanwhile test_cuda_kernels.py works on the GPU."""

    def make(precision, separate=False):
        return Machine(precision, Way(gpu, separate=True) if separate else gpu, cupy)

    monkeypatch.setattr(kernels, "both", make)
    monkeypatch.setattr(kernels, "guarded", lambda ops, a: cupy.array(a))
    monkeypatch.setattr(kernels, "as_bytes", lambda a: np.frombuffer(b"" if a is None else on_host(a).tobytes(), np.uint8))
    monkeypatch.setattr(
        kernels, "close", lambda found, expected, dtype, off=0.0: close(found, expected, dtype, SLACK * np.asarray(off))
    )
    return make


class Way:
    """A runtime that leaves no choice: epilogues by separate kernels, or by the library."""

    def __init__(self, runtime, separate):
        self.runtime, self.separate = runtime, separate

    def __getattr__(self, name):
        return getattr(self.runtime, name)

    def gemm(self, *args, apart=None, **options):
        if apart is not None and self.separate:
            apart()
        else:
            self.runtime.gemm(*args, **options)


@pytest.fixture(scope="module")
def fused(cupy, gpu, tmp_path_factory):
    """A runtime of the library's epilogues alone, whose choices are kept apart from those of use."""
    from tensorlite.cuda.runtime.device import CudaRuntime

    runtime = CudaRuntime()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORLITE_CACHE", str(tmp_path_factory.mktemp("choices")))
        runtime.choices = AutotuneCache("of the tests")
    return Way(runtime, separate=False)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", [name for name in kernels.CHECKS if name not in kernels.UNFUSED])
def test_an_op_and_its_gradients(name, precision, machine):
    kernels.check_all(name, machine(precision))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", kernels.UNFUSED)
def test_epilogues_by_separate_kernels(name, precision, machine):
    kernels.check_all(name, machine(precision, separate=True))


BY_THE_LIBRARY = [(name, precision) for name in kernels.UNFUSED for precision in ("float32", "bf16")]
BY_THE_LIBRARY.remove(("mlp", "float32"))  # a GELU in float32 it is never asked for


@pytest.mark.parametrize(("name", "precision"), BY_THE_LIBRARY)
def test_epilogues_by_the_library(name, precision, machine, fused, cupy):
    """Where it has them: of some sizes it has none, and in use those go the other way."""
    function, shapes = kernels.CHECKS[name]
    refused = []
    for shape in shapes:
        try:
            function(Machine(precision, fused, cupy, apart=False), **shape)
        except DeviceError as error:
            if "has no way to compute" not in str(error):
                raise
            refused.append(shape)
    assert len(refused) < len(shapes)


@pytest.mark.parametrize("name", ["linear", "embedding"])
def test_products_in_tf32(name, machine):
    """Of numbers that it can hold they are exact, so the bounds are those of float32."""
    kernels.check_all(name, machine("tf32"))


@pytest.mark.parametrize("D", [16, 32, 64, 128])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_attention_on_tensor_cores(D, p, machine):
    for T in (1, 4, 63, 64, 65, 128, 200):
        if p == 0 or T % 4 == 0:
            kernels.attention(machine("bf16"), B=1, T=T, H=2, D=D, p=p)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_masks_and_keys_are_numpys(precision, machine):
    for shape, row0 in kernels.MASKED:
        kernels.test_masks_of_dropout_and_residual(shape, row0, 0.2, precision)
    for C, row0 in ((32, 0), (33, 5)):
        kernels.test_masks_of_add_layernorm(C, row0, precision)
    for T, D, row0 in ((16, 16, 3), (13, 16, 0), (72, 128, 0)):
        kernels.test_masks_of_attention(precision, T, D, row0)
    for seed, step in ((0, 0), (2**40 + 5, 2**33 + 1)):
        kernels.device_key(machine(precision), seed, step)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_batches_are_numpys(dtype, machine):
    for rows, T, row0, counted in ((5, 9, 0, None), (3, 300, 2**32 - 2, None), (4, 32, 8, 2**33 + 1)):
        kernels.batch(machine("float32"), dtype, rows, T, row0, counted)


@pytest.mark.parametrize("counted", [False, True])
def test_the_optimizers_end_of_a_step(counted, machine):
    kernels.adamw(machine("float32"), counted=counted)
    kernels.cosine_lr(machine("float32"), 0.02, 0.003, 4, 7)
    kernels.end_of_step(machine("float32"))
    for n, max_norm in ((1, 0.0), (1003, 1.0), (10_800_000, 1.0)):
        kernels.clipped(machine("float32"), n, max_norm)


# ---- the full model's sizes ----

B, T, C, H, V = 64, 256, 384, 6, 65
OF_THE_MODEL = {  # inputs and dy by their shapes, and the options
    "linear": (((B, T, C), (C, 3 * C), (3 * C,)), (B, T, 3 * C), {}),
    "layernorm": (((B, T, C), (C,), (C,)), (B, T, C), {}),
    "dropout_add_layernorm": (((B, T, C), (B, T, C), (C,), (C,)), ((B, T, C), (B, T, C)), {"p": 0.2, "key": Key(5, 6)}),
    "residual": (((B, T, C), (B, T, C)), (B, T, C), {"p": 0.2, "key": Key(5, 6)}),
    "attention": (((B, T, 3 * C),), (B, T, C), {"n_head": H, "p": 0.2, "key": Key(5, 6)}),
    "mlp": (((B, T, C), (C, 4 * C), (4 * C,), (4 * C, C), (C,)), (B, T, C), {}),
    "linear_cross_entropy": (((B, T, C), (C, V), (V,), V), 0.7, {}),
    "embedding": ((V, (V, C)), (B, T, C), {}),
    "position_embedding": (((B, T, C), (T, C)), (B, T, C), {}),
}


@every_precision
@pytest.mark.parametrize("name", OF_THE_MODEL)
def test_at_the_models_size(name, precision, gpu, cupy):
    """Each array's relative distance from the reference in float64 on the GPU; a second time has the same bits."""
    shapes, dy_shape, options = OF_THE_MODEL[name]
    r = np.random.default_rng(0)

    def drawn(shape):
        if isinstance(shape, int):  # ids below it
            return cupy.asarray(r.integers(0, shape, (B, T)))
        scale = 1 / np.sqrt(shape[0]) if len(shape) == 2 and shape[0] >= C else 1.0  # a matrix keeps the size of what it is given
        return cupy.asarray((scale * r.standard_normal(shape)).astype(BF16).astype(np.float32))

    def drawn_all(shape):
        if isinstance(shape, float):
            return shape
        return tuple(map(drawn, shape)) if isinstance(shape[0], tuple) else drawn(shape)

    inputs, dy = tuple(map(drawn, shapes)), drawn_all(dy_shape)

    def wide(a):
        return (
            tuple(map(wide, a)) if isinstance(a, tuple) else a.astype(np.float64) if getattr(a, "dtype", None) == np.float32 else a
        )

    def results(ops, inputs, dy):
        y, cache = getattr(ops, f"{name}_forward")(*inputs, **options)
        return kernels.as_arrays((y, getattr(ops, f"{name}_backward")(dy, cache)))

    ops = CUDAOps(precision, runtime=gpu)
    expected, found, again = results(ReferenceOps(), wide(inputs), wide(dy)), results(ops, inputs, dy), results(ops, inputs, dy)
    for a, b, c in zip(expected, found, again, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            a, b, c = to_numpy(a), on_host(b), on_host(c)
            assert b.tobytes() == c.tobytes()
            away = np.linalg.norm(b.astype(np.float64) - a) / np.linalg.norm(a)
            assert away <= ROUNDINGS[precision] * ONE[precision], f"{away / ONE[precision]:.1f} roundings"


# ---- steps, captured and not ----

CONFIG = config_of("gpt", dropout=0.2, n_embd=48, n_head=3, block_size=32)  # heads of 16: on tensor cores
TRAIN = TrainConfig(batch_size=4, max_iters=12, learning_rate=0.01, min_lr=0.001, warmup_iters=3, grad_clip=1.0)
DATA = np.random.default_rng(0).integers(0, CONFIG.vocab_size, 500).astype(np.uint16)


def fresh(xp, dtype=np.float32):
    made = start(CONFIG, std=0.1, dtype=np.float32)
    return TrainState.start(made.table, made.params.astype(dtype), xp)


def curve(ops, xp, captured, between=lambda state: None, dtype=np.float32, train=TRAIN):
    """Twelve steps: the losses and norms, read at the end, and all bits of the state."""
    state, data = fresh(xp, dtype), xp.asarray(DATA)
    step, seen = ops.compile(train_step) if captured else train_step, []
    for _ in range(12):
        seen += step(ops, MODELS["gpt"], state, data, CONFIG, train, 5)
        between(state)
    return [float(x) for x in seen], [to_numpy(a) for a in (state.params, state.grads, state.m, state.v)]


@every_precision
def test_a_captured_step_is_the_step(precision, gpu, cupy):
    """To the bit: with evaluations and other users of memory in between, a second time, and with micro-batches."""
    ops = CUDAOps(precision, check=False, runtime=gpu)

    def disturb(state):
        split_loss(
            Workers.of(ops), MODELS["gpt"], state.table.tree(ops.compute_params(state.params)), cupy.asarray(DATA), CONFIG, 4
        )
        cupy.get_default_memory_pool().free_all_blocks()
        for n in range(1, 40):
            cupy.full(997 * n, np.nan, np.float32)

    losses, state = curve(ops, cupy, captured=False)
    for between in (lambda _: None, disturb):
        again, same = curve(ops, cupy, True, between)
        assert again == losses
        for a, b in zip(same, state, strict=True):
            np.testing.assert_array_equal(a, b)
    expected, _ = curve(ReferenceOps(check=False), np, False, dtype=np.float64)
    np.testing.assert_allclose(losses[::2], expected[::2], rtol=1e-4 if precision == "float32" else 0.05)
    twice = TrainConfig(batch_size=2, gradient_accumulation_steps=2, max_iters=12, learning_rate=0.01, min_lr=0.001)
    np.testing.assert_array_equal(curve(ops, cupy, True, train=twice)[1][0], curve(ops, cupy, False, train=twice)[1][0])


def test_a_state_put_back_is_gone_on_from(gpu, cupy):
    """As train.py does after it has timed some steps: the device counts anew, in the same graph."""
    ops, state, data = CUDAOps("bf16", check=False, runtime=gpu), fresh(cupy), cupy.asarray(DATA)
    step, saved, runs = ops.compile(train_step), state.copy(), []
    for _ in range(3):
        state.restore(saved)
        losses = [step(ops, MODELS["gpt"], state, data, CONFIG, TRAIN, 5)[0] for _ in range(6)]
        runs.append([float(loss) for loss in losses])
    assert runs[0] == runs[1] == runs[2]


@every_precision
def test_generation(precision, gpu, cupy):
    """The likeliest tokens: the reference's in float32; in all, those of a second run."""
    state = fresh(np)
    prompt, sampling = DATA[:3], Sampling(temperature=0.0)

    def write(ops, xp, dtype):
        params = state.table.tree(ops.compute_params(xp.asarray(state.params.astype(dtype))))
        return list(generate(ops, MODELS["gpt"], params, xp.asarray(prompt), 40, CONFIG, sampling))  # and on beyond the context

    ops = CUDAOps(precision, check=False, runtime=gpu)
    found = write(ops, cupy, np.float32)
    assert found == write(ops, cupy, np.float32)
    if precision == "float32":
        assert found == write(ReferenceOps(check=False), np, np.float64)


def test_a_choice_is_made_once(gpu, cupy, monkeypatch):
    """Another runtime, as in another process, finds it: so it computes the same bits."""
    from tensorlite.cuda.runtime.device import CudaRuntime

    r, results = np.random.default_rng(0), []
    x, w, b = (cupy.asarray(r.standard_normal(shape).astype(np.float32)) for shape in ((64, 48), (48, 96), (96,)))
    results.append(on_host(CUDAOps("tf32", runtime=gpu).linear_forward(x, w, b)[0]))
    if not gpu.choices.path.exists():
        pytest.skip(f"{gpu.choices.path} cannot be written")
    other = CudaRuntime()
    monkeypatch.setattr(other, "time", lambda work: pytest.fail("it was timed again"))
    results.append(on_host(CUDAOps("tf32", runtime=other).linear_forward(x, w, b)[0]))
    np.testing.assert_array_equal(*results)


def test_memory_that_is_not_there(gpu):
    with pytest.raises(MemoryError) as caught:
        gpu.empty((1 << 44,), np.dtype(np.float32))
    assert isinstance(device_failure(caught.value), MemoryError)


# ---- the command lines ----


@pytest.fixture(scope="module")
def folder(gpu, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text").write_text(PANGRAMS * 5)
    return folder


def run(folder, command):
    """A command line in a process of its own."""
    script, *rest = command.split()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *rest], cwd=folder, capture_output=True, text=True, env=environment, timeout=100
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def test_the_full_model_from_the_command_line(folder):
    """Twice, each in a process of its own: the same bits. Then it writes."""
    said = []
    for name in ("one", "two"):
        done = run(folder, f"train.py --preset shakespeare --max-iters 20 --eval-batches 1 --data text --out {name}")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "backend  fast: kernels in bf16" in done.stdout
        said.append(re.findall(r"^step .*", done.stdout, re.MULTILINE))
    assert said[0] == said[1]
    assert [line.split(":")[0] for line in said[0]] == ["step 0", "step 20"]
    one, two = (checkpoint.load(folder / name / "last.safetensors") for name in ("one", "two"))
    for buffer in checkpoint.BUFFERS:
        np.testing.assert_array_equal(getattr(one, buffer), getattr(two, buffer))
    done = run(folder, "sample.py --checkpoint one --max-new-tokens 60")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 60


@pytest.mark.parametrize("flags", ["--backend reference --max-iters 3", "--precision tf32 --profile"])
def test_other_ways_to_run_it(flags, folder):
    done = run(folder, f"train.py --preset shakespeare --eval-batches 1 --data text --out other --device cuda {flags}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("adamw_" if "profile" in flags else "done: step 3 |") in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--batch-size 10000000", "lower --batch-size and raise --gradient-accumulation-steps"),
        ("--threads 2", "a GPU takes its work from one"),
    ],
)
def test_what_a_gpu_refuses_it_says_in_a_line(flags, words, folder):
    done = run(folder, f"train.py --preset shakespeare --data text --out refused --device cuda {flags}")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
