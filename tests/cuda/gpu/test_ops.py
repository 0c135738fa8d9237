"""On a real GPU: the CUDA backend, op by op.

The checks are those of the tests in the folder above, which run them on a CPU: here they get a machine that is a GPU. What a
CPU cannot show is here alone: cuBLASLt's GEMMs, tensor cores, and the full model's sizes.
"""

import numpy as np
import pytest

import cuda_machines
import cuda_op_checks as op_checks
import cuda_step_checks as step_checks
from cuda_bounds import BF16, close
from on_gpu import FUSED_BY_CUBLASLT, ForcedEpilogues, Machine, on_host, require
from simple_kernels import AGAINST_REFERENCE, SimpleOps
from tensorlite import DeviceError, Key, ReferenceOps, to_numpy
from tensorlite.cuda import CUDAOps
from tensorlite.cuda.ops import PRECISIONS
from tensorlite.cuda.runtime.autotune import AutotuneCache

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # CuPy's own warnings do not fail a test
SLACK = 4  # times the bounds: a tensor core truncates where a CPU rounds, and sums have another order
ROUNDINGS = {
    "float32": 64,
    "tf32": 16,
    "fp16": 8,
    "bf16": 8,
}  # of a whole array at the full model's size, whose sums have 16384 terms
ONE = {"float32": 2.0**-24, "tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8}  # one rounding, relative to the value
every_precision = pytest.mark.parametrize("precision", PRECISIONS)
every_path = pytest.mark.parametrize("precision", cuda_machines.PRECISIONS)


@pytest.fixture
def machine(gpu, cupy, monkeypatch, request):
    """Return a function that makes a Machine of a precision. During the test, checks copy, read and compare arrays of the GPU."""

    def make(precision, separate=False):
        require(gpu, precision)
        runtime = request.getfixturevalue("gpu_sm75") if precision == cuda_machines.SM75 else gpu
        return Machine(precision, ForcedEpilogues(runtime, fused=False) if separate else runtime, cupy)

    monkeypatch.setattr(cuda_machines, "guarded", lambda ops, a: cupy.array(a))
    monkeypatch.setattr(cuda_machines, "as_bytes", lambda a: np.frombuffer(b"" if a is None else on_host(a).tobytes(), np.uint8))
    monkeypatch.setattr(
        cuda_machines, "close", lambda found, expected, dtype, off=0.0: close(found, expected, dtype, SLACK * np.asarray(off))
    )
    return make


@pytest.fixture(scope="module")
def fused(cupy, gpu, tmp_path_factory):
    """Return a runtime that uses only cuBLASLt's epilogues. Its choices are stored in another file than those of normal use."""
    from tensorlite.cuda.runtime.device import CudaRuntime

    runtime = CudaRuntime()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORLITE_CACHE", str(tmp_path_factory.mktemp("choices")))
        runtime.autotune_cache = AutotuneCache("of the tests")
    return ForcedEpilogues(runtime, fused=True)


@every_path
@pytest.mark.parametrize("name", [name for name in op_checks.CHECKS if name not in op_checks.UNFUSED])
def test_an_op_and_its_gradients(name, precision, machine):
    op_checks.check_all(name, machine(precision))


@pytest.mark.parametrize("name", AGAINST_REFERENCE)
def test_the_simple_kernels(name, machine):
    simple = machine("float32")
    simple.ops = SimpleOps(simple.ops.runtime)
    op_checks.check_all(name, simple, AGAINST_REFERENCE)


@every_path
@pytest.mark.parametrize("name", op_checks.UNFUSED)
def test_epilogues_by_separate_kernels(name, precision, machine):
    op_checks.check_all(name, machine(precision, separate=True))


@pytest.mark.parametrize(("name", "precision"), FUSED_BY_CUBLASLT)
def test_epilogues_by_the_library(name, precision, machine, fused, cupy):
    """Test the epilogues that cuBLASLt has. For some sizes it has none, and then the backend runs unfused kernels."""
    function, shapes = op_checks.CHECKS[name]
    refused = []
    for shape in shapes:
        try:
            function(Machine(precision, fused, cupy, unfused=False), **shape)
        except DeviceError as error:
            if "has no way to compute" not in str(error):
                raise
            refused.append(shape)
    assert len(refused) < len(shapes)


@pytest.mark.parametrize("name", ["linear", "embedding"])
def test_gemms_in_tf32(name, machine):
    """GEMMs of values that tf32 can hold are exact, so the bounds are those of float32."""
    op_checks.check_all(name, machine("tf32"))


@pytest.mark.parametrize("precision", ["bf16", "fp16", cuda_machines.SM75])
@pytest.mark.parametrize("D", [16, 32, 64, 128])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_attention_on_tensor_cores(D, p, precision, machine):
    for T in (1, 4, 63, 64, 65, 128, 200):
        if p == 0 or T % 4 == 0:
            op_checks.attention(machine(precision), B=1, T=T, H=2, D=D, p=p)


@every_path
def test_masks_and_keys_are_numpys(precision, machine):
    for shape, row0 in step_checks.MASKED:
        step_checks.masks_of_dropout_and_residual(machine(precision), shape, row0, 0.2)
    for C, row0 in ((32, 0), (33, 5)):
        step_checks.masks_of_dropout_add_layernorm(machine(precision), C, row0)
    for T, D, row0 in ((16, 16, 3), (13, 16, 0), (72, 128, 0)):
        step_checks.masks_of_attention(machine(precision), T, D, row0)
    for seed, step in ((0, 0), (2**40 + 5, 2**33 + 1)):
        step_checks.device_key(machine(precision), seed, step)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_batches_are_numpys(dtype, machine):
    for rows, T, row0, counted in ((5, 9, 0, None), (3, 300, 2**32 - 2, None), (4, 32, 8, 2**33 + 1)):
        step_checks.batch(machine("float32"), dtype, rows, T, row0, counted)


@pytest.mark.parametrize("counted", [False, True])
def test_the_optimizers_end_of_a_step(counted, machine):
    step_checks.adamw(machine("float32"), counted=counted)
    step_checks.cosine_lr(machine("float32"), 0.02, 0.003, 4, 7)
    step_checks.end_of_step(machine("float32"))
    step_checks.squares_of_a_step(machine("float32"))
    for n, max_norm in ((1, 0.0), (1003, 1.0), (10_800_000, 1.0)):
        step_checks.clipped(machine("float32"), n, max_norm)


# ---- the full model's sizes ----

B, T, C, H, V = 64, 256, 384, 6, 65
OF_THE_MODEL = {  # the shapes of inputs and dy, and the options
    "linear": (((B, T, C), (C, 3 * C), (3 * C,)), (B, T, 3 * C), {}),
    "layernorm": (((B, T, C), (C,), (C,)), (B, T, C), {}),
    "dropout_add_layernorm": (((B, T, C), (B, T, C), (C,), (C,)), ((B, T, C), (B, T, C)), {"p": 0.2, "key": Key(5, 6)}),
    "residual": (((B, T, C), (B, T, C)), (B, T, C), {"p": 0.2, "key": Key(5, 6)}),
    "attention": (((B, T, 3 * C),), (B, T, C), {"n_head": H, "p": 0.2, "key": Key(5, 6)}),
    "mlp": (((B, T, C), (C, 4 * C), (4 * C,), (4 * C, C), (C,)), (B, T, C), {}),
    "linear_cross_entropy": (((B, T, C), (C, V), (V,), V), 0.7 * 2**16, {}),  # a loss scale, or fp16 loses the small gradients
    "embedding": ((V, (V, C)), (B, T, C), {}),
    "position_embedding": (((B, T, C), (T, C)), (B, T, C), {}),
    "token_position_embedding": ((V, (V, C), (T, C)), (B, T, C), {}),
}


@every_precision
@pytest.mark.parametrize("name", OF_THE_MODEL)
def test_at_the_models_size(name, precision, gpu, cupy):
    """Bound each array's relative distance from the float64 reference on the GPU. A second run is bitwise identical."""
    shapes, dy_shape, options = OF_THE_MODEL[name]
    r = np.random.default_rng(0)

    def drawn(shape):
        if isinstance(shape, int):  # the ids are below it
            return cupy.asarray(r.integers(0, shape, (B, T)))
        scale = 1 / np.sqrt(shape[0]) if len(shape) == 2 and shape[0] >= C else 1.0  # so that a matmul keeps the size of its input
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
        return cuda_machines.as_arrays((y, getattr(ops, f"{name}_backward")(dy, cache)))

    ops = CUDAOps(precision, runtime=gpu)
    expected, found, again = results(ReferenceOps(), wide(inputs), wide(dy)), results(ops, inputs, dy), results(ops, inputs, dy)
    for a, b, c in zip(expected, found, again, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            a, b, c = to_numpy(a), on_host(b), on_host(c)
            assert b.tobytes() == c.tobytes()
            away = np.linalg.norm(b.astype(np.float64) - a) / np.linalg.norm(a)
            assert away <= ROUNDINGS[precision] * ONE[precision], f"{away / ONE[precision]:.1f} roundings"
