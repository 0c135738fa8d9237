"""Devices, array libraries, and what importing tensorlite needs."""

import ast
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fake_cupy
from cases import CASES, every_backend
from paths import ROOT
from tensorlite import DeviceError, GradcheckError, ReferenceOps, array_namespace, device_failure, gradcheck, pick_device, to_numpy
from tensorlite.reference import cross_entropy, embedding


@pytest.fixture
def cupy(monkeypatch):
    module = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_errors_of_the_device_itself():
    """Errors of CuPy in the middle of a run are translated; all others are left alone."""
    out_of_memory = type("OutOfMemoryError", (MemoryError,), {"__module__": "cupy.cuda.memory"})
    runtime = type("CUDARuntimeError", (RuntimeError,), {"__module__": "cupy_backends.cuda.api.runtime"})
    assert isinstance(device_failure(out_of_memory("9 GB")), MemoryError)
    assert isinstance(device_failure(runtime("cudaErrorMemoryAllocation: out of memory")), MemoryError)
    failure = device_failure(runtime("cudaErrorIllegalAddress"))
    assert isinstance(failure, DeviceError)
    assert "cudaErrorIllegalAddress" in str(failure)
    assert device_failure(RuntimeError("ours")) is None


@pytest.mark.program
def test_import_needs_numpy_alone():
    code = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ("numpy", "tensorlite") and name.partition(".")[0] not in sys.stdlib_module_names:
            raise ImportError(f"import tensorlite wants {name}")
sys.meta_path.insert(0, Nothing())
import tensorlite
from tensorlite.testing import bugs, exercises, gradcheck, numerical, report, trees
from tensorlite.testing import check_layer, from_jax, from_torch, of_loss, of_object
print(sorted({m.partition(".")[0] for m in sys.modules} & {"scipy", "cupy", "hypothesis", "matplotlib", "torch", "jax", "tyro"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_array_namespace_tells_the_library(cupy):
    assert array_namespace(np.ones(2), None, np.float64(1.0)) is np
    assert array_namespace(cupy.asarray([1.0])) is cupy
    with pytest.raises(TypeError, match="one library"):
        array_namespace(np.ones(2), cupy.asarray([1.0]))
    with pytest.raises(TypeError, match="list"):
        array_namespace([1.0])
    with pytest.raises(TypeError, match="none"):
        array_namespace(None)
    np.testing.assert_array_equal(to_numpy(cupy.asarray([1.0, 2.0])), [1.0, 2.0])


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=20)
@given(data=st.data())
def test_ops_on_cupy_arrays_give_the_same_values(name, data):
    """The same code runs on another array library: every op asks `array_namespace`, and none falls back on NumPy."""
    inputs, (forward, backward) = data.draw(CASES[name].inputs), CASES[name].on(ReferenceOps())
    module = fake_cupy.module()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", module)
        y, cache = forward(**inputs)
        dy = np.asarray(np.random.default_rng(0).standard_normal(y.shape), y.dtype)
        grads = backward(dy, cache)
        moved = {k: module.asarray(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items()}
        y2, cache = forward(**moved)
        grads2 = backward(module.asarray(dy), cache)
        assert isinstance(y2, fake_cupy.ndarray)
        for a, b in zip((y, *as_tuple(grads)), (y2, *as_tuple(grads2)), strict=True):
            np.testing.assert_array_equal(a, None if b is None else b.get())


def as_tuple(grads):
    return grads if isinstance(grads, tuple) else (grads,)


@pytest.mark.parametrize("name", CASES)
@every_backend
@settings(max_examples=10)
@given(data=st.data())
def test_no_argument_may_be_of_another_library(ops, name, data):
    """Each array in turn, dy included, is the only one of the other library."""
    inputs, (forward, backward) = data.draw(CASES[name].inputs), CASES[name].on(ops)
    arrays = [k for k, v in inputs.items() if isinstance(v, np.ndarray)]
    module = fake_cupy.module()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", module)
        for k in arrays if len(arrays) > 1 else []:
            with pytest.raises(TypeError, match="one library"):
                forward(**inputs | {k: module.asarray(inputs[k])})
        y, cache = forward(**inputs)
        if not CASES[name].mean and not (name in ("dropout", "residual") and cache is None):
            with pytest.raises(TypeError, match="one library"):
                backward(module.asarray(np.ones(y.shape)), cache)


@every_backend
def test_the_optimizer_refuses_another_library(ops, cupy):
    for odd in range(4):
        buffers = [np.ones(3) for _ in range(4)]
        buffers[odd] = cupy.asarray(buffers[odd])
        with pytest.raises(TypeError, match="one library"):
            ops.adamw_(*buffers, t=1, lr=0.1)


def test_gradcheck_on_cupy_arrays(cupy):
    """The checker works on CuPy arrays too, and only scalars leave the device."""
    ops, r = ReferenceOps(), np.random.default_rng(0).standard_normal
    inputs = {"x": cupy.asarray(r((3, 5))), "w": cupy.asarray(r(5)), "b": cupy.asarray(r(5))}
    for method in ("fd", "complex"):
        assert gradcheck(ops.layernorm_forward, ops.layernorm_backward, inputs, method=method).ok

    def wrong(dy, cache):
        dx, dw, db = ops.layernorm_backward(dy, cache)
        return dx, dw, -db

    report = gradcheck(ops.layernorm_forward, wrong, inputs, raise_on_fail=False)
    assert [a.status for a in report.arguments] == ["pass", "pass", "fail"]
    with pytest.raises(GradcheckError, match="db is a numpy array, b a cupy array"):
        gradcheck(ops.layernorm_forward, lambda dy, c: (*ops.layernorm_backward(dy, c)[:2], to_numpy(dy).sum(axis=0)), inputs)


@every_backend
def test_mixed_libraries_are_refused(ops, cupy):
    with pytest.raises(TypeError, match="one library"):
        ops.linear_forward(np.ones((2, 3)), cupy.asarray(np.ones((3, 2))))
    _, cache = ops.linear_forward(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(TypeError, match="one library"):
        ops.linear_backward(cupy.asarray(np.ones((2, 2))), cache)
    with pytest.raises(TypeError, match="one library"):
        ops.add(np.ones(2), cupy.asarray(np.ones(2)))


@pytest.mark.parametrize("bad", [np.array([-1, 0]), np.array([0, 3]), np.array([0, 2**40])])
@pytest.mark.parametrize("library", ["numpy", "cupy"])
def test_indices_out_of_range_raise_on_both_libraries(bad, library, cupy):
    to = cupy.asarray if library == "cupy" else np.asarray
    ops = ReferenceOps()
    with pytest.raises(IndexError, match=r"\[0, 3\)"):
        ops.embedding_forward(to(bad), to(np.ones((3, 2))))
    with pytest.raises(IndexError, match=r"\[0, 3\)"):
        ops.cross_entropy_forward(to(np.ones((2, 3))), to(bad))
    for kind in (bool, float):
        with pytest.raises(TypeError, match="embedding: ids must be integers"):
            ops.embedding_forward(to(bad.astype(kind)), to(np.ones((3, 2))))
        with pytest.raises(TypeError, match="cross_entropy: targets must be integers"):
            ops.cross_entropy_forward(to(np.ones((2, 3))), to(bad.astype(kind)))


def test_the_functions_check_the_range_unless_told_not_to():
    bad, table = np.array([-1, 2, 7]), np.ones((8, 2))
    with pytest.raises(IndexError, match=r"embedding: ids must be in \[0, 8\), got -1 to 7"):
        embedding.embedding_forward(bad, table)
    with pytest.raises(IndexError, match=r"cross_entropy: targets must be in \[0, 8\), got -1 to 7"):
        cross_entropy.cross_entropy_forward(np.ones((3, 8)), bad)
    assert embedding.embedding_forward(bad, table, check=False)[0].shape == (3, 2)
    assert ReferenceOps(check=False).embedding_forward(bad, table)[0].shape == (3, 2)


def test_device_cpu():
    assert pick_device("cpu").xp is np
    with pytest.raises(DeviceError, match="'tpu'"):
        pick_device("tpu")


def test_device_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # import raises ImportError
    assert "not installed" in pick_device("auto").reason
    assert pick_device("auto").name == "cpu"
    with pytest.raises(DeviceError, match=r"pip install .*cuda13x"):
        pick_device("cuda")


def refusing(cupy, words):
    """Return CuPy with a driver that fails with these words."""

    def count():
        raise RuntimeError(words)

    cupy.cuda.runtime.getDeviceCount = count
    return cupy


@pytest.fixture
def install(monkeypatch):
    """Return a function that replaces CuPy by that of an imaginary machine."""
    return lambda gpus: monkeypatch.setitem(sys.modules, "cupy", gpus.cupy) or gpus


@pytest.mark.parametrize(("count", "words"), [(None, "insufficient"), (0, "no device")])
def test_device_with_cupy_and_no_gpu(count, words, install):
    gpus = install(fake_cupy.Gpus(count or 0))
    if count is None:
        refusing(gpus.cupy, "cudaErrorInsufficientDriver: CUDA driver version is insufficient")
    assert words in pick_device("auto").reason
    with pytest.raises(DeviceError, match=words):
        pick_device("cuda")


def test_device_that_cannot_compute(install):
    """With a driver and no toolkit the count is right, and the first kernel fails."""
    gpus = install(fake_cupy.Gpus())
    gpus.cupy.ones = lambda *_: (_ for _ in ()).throw(RuntimeError("libcublas.so not found"))
    assert "cannot compute (libcublas" in pick_device("auto").reason
    with pytest.raises(DeviceError, match="cuda13x"):
        pick_device("cuda")


@pytest.mark.parametrize(("driver", "compiler", "works"), [(12, 13, False), (12, 12, True), (13, 12, True), (13, 13, True)])
def test_a_compiler_newer_than_the_driver(driver, compiler, works, install):
    """Two extras for two versions of CUDA install both. The message says what to uninstall, before anything is compiled."""
    gpus = install(fake_cupy.Gpus(driver=driver, compiler=compiler))
    if works:
        assert pick_device("cuda").name == "cuda"
        return
    words = r"compiler is from CUDA 13, and the driver, from CUDA 12, .*; pip uninstall nvidia-cuda-nvrtc, then .*\[cuda12x\]"
    with pytest.raises(DeviceError, match=words):
        pick_device("cuda")
    assert gpus.used == []


def test_device_with_a_gpu(install):
    gpus = install(fake_cupy.Gpus(2))
    device = pick_device("auto")
    assert (device.name, device.xp, device.description) == ("cuda", gpus.cupy, "Imaginary GPU 0")


def test_only_the_device_of_a_rank_is_touched(install):
    """The device is the local rank modulo the number of devices; later calls leave it current."""
    gpus = install(fake_cupy.Gpus(2))
    assert pick_device("cuda", 3).description == "Imaginary GPU 1"
    assert pick_device("cuda").description == "Imaginary GPU 1"
    assert gpus.used == [("use", 1), ("ones", 1), ("ones", 1)]


def required(extra):
    """Yield the packages of an extra, including those of the extras that it consists of."""
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]:
        name, extras = re.match(r"([\w-]+)(?:\[([\w,]+)\])?", requirement).groups()
        if name == "tensorlite":
            for other in extras.split(","):
                yield from required(other)
        else:
            yield name


@pytest.mark.parametrize("extra", ["kernels", "test", "dev", "cuda12x"])
def test_no_extra_brings_libraries_of_cuda_13_where_cuda_12_is(extra):
    """If both are installed, CuPy and this library would take a compiler of CUDA 13 before one of 12."""
    libraries = [name for name in required(extra) if name != "nvidia-cuda-nvdisasm"]  # a program alone
    of_nvidia = [name for name in libraries if name.startswith(("nvidia", "cupy"))]
    assert of_nvidia
    assert all(name.endswith(("-cu12", "-cuda12x")) for name in of_nvidia)
    assert {"cupy-cuda13x", "nvidia-nccl-cu13"} <= set(required("cuda13x"))


# ---- CuPy's names ----


def test_the_fake_has_no_name_that_cupy_lacks():
    for part in (fake_cupy.module(), fake_cupy.Gpus().cupy.cuda):
        for use in (lambda part: part.nccl, lambda part: part.geterr, lambda part: setattr(part, "nccl", 1)):
            with pytest.raises(AttributeError, match=f"module '{part.__name__}' has no attribute"):
                use(part)
    assert fake_cupy.module().sqrt(4.0).get() == 2.0
    own = {name for name in vars(fake_cupy.ndarray) if not name.startswith("_")}
    assert own <= fake_cupy.NAMES["cupy.ndarray"]


def chain(node):
    """Return ["xp", "cuda", "Device", "id"] for xp.cuda.Device(0).id."""
    if isinstance(node, ast.Call):
        return chain(node.func)
    if isinstance(node, ast.Attribute):
        return [*chain(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else [""]


def used_of_cupy(path):
    """Yield (part, name) for every name of CuPy that a file uses, through xp, cupy or an import."""
    tree, roots = ast.parse(path.read_text()), {"xp": "cupy", "cupy": "cupy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("cupy", "cupy_backends"):
            for name in node.names:
                part = f"{node.module}.{name.name}"
                roots[name.name] = part
                yield (part, None) if part in fake_cupy.NAMES else (node.module, name.name)
    for node in ast.walk(tree):
        words = chain(node) if isinstance(node, ast.Attribute) else []
        candidates = {"xp", "cupy", *words[:1]}  # self.xp too, but no attribute with the name of an import
        for root in candidates & roots.keys() & set(words[:-1]):
            part = roots[root]
            for name in words[words.index(root) + 1 :]:
                if part in fake_cupy.NAMES and not name.startswith("__"):
                    yield part, name
                part = f"{part}.{name}"


def test_every_name_of_cupy_that_is_used_exists():
    files = [path for folder in ("tensorlite", "gpt", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    used = {use for path in [*files, ROOT / "train.py", ROOT / "sample.py"] for use in used_of_cupy(path)}
    assert {("cupy.cuda.runtime", "memGetInfo"), ("cupy.cuda.Device", "id"), ("cupy.cuda.nccl", None)} <= used
    assert {("cupy.cuda.nccl", "NCCL_SUM"), ("cupy_backends.cuda.api.driver", "funcSetAttribute")} <= used
    assert {(part, name) for part, name in used if name is not None and name not in fake_cupy.NAMES[part]} == set()
