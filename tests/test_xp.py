"""Devices, array libraries, and what importing tensorlite needs."""

import subprocess
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fake_cupy
from cases import CASES, every_backend
from tensorlite import (
    DeviceError,
    GradcheckError,
    Reference,
    cross_entropy,
    device_failure,
    embedding,
    gradcheck,
    namespace,
    pick_device,
    to_numpy,
)


@pytest.fixture
def cupy(monkeypatch):
    module = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_errors_of_the_device_itself():
    """CuPy's in the middle of a run; all others are nobody's to explain away."""
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
print(sorted({m.partition(".")[0] for m in sys.modules} & {"scipy", "cupy", "hypothesis", "matplotlib", "torch", "tyro"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_namespace_tells_the_library(cupy):
    assert namespace(np.ones(2), None, np.float64(1.0)) is np
    assert namespace(cupy.asarray([1.0])) is cupy
    with pytest.raises(TypeError, match="one library"):
        namespace(np.ones(2), cupy.asarray([1.0]))
    with pytest.raises(TypeError, match="list"):
        namespace([1.0])
    with pytest.raises(TypeError, match="none"):
        namespace(None)
    np.testing.assert_array_equal(to_numpy(cupy.asarray([1.0, 2.0])), [1.0, 2.0])


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=20)
@given(data=st.data())
def test_ops_on_cupy_arrays_give_the_same_numbers(name, data):
    """The same code on another array library: every op asks `namespace`, none falls back on NumPy."""
    inputs, (forward, backward) = data.draw(CASES[name].inputs), CASES[name].on(Reference())
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
    """Each array in turn, dy included, is the only one on the other side."""
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
    """The checker too: only scalars leave the device."""
    ops, r = Reference(), np.random.default_rng(0).standard_normal
    inputs = {"x": cupy.asarray(r((3, 5))), "w": cupy.asarray(r(5)), "b": cupy.asarray(r(5))}
    for method in ("fd", "complex"):
        assert gradcheck(ops.layernorm_forward, ops.layernorm_backward, inputs, method=method).ok

    def wrong(dy, cache):
        dx, dw, db = ops.layernorm_backward(dy, cache)
        return dx, dw, -db

    report = gradcheck(ops.layernorm_forward, wrong, inputs, raise_on_fail=False)
    assert [a.status for a in report.arguments] == ["pass", "pass", "fail"]
    with pytest.raises(GradcheckError, match="db is"):
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
    ops = Reference()
    with pytest.raises(IndexError, match=r"\[0, 3\)"):
        ops.embedding_forward(to(bad), to(np.ones((3, 2))))
    with pytest.raises(IndexError, match=r"\[0, 3\)"):
        ops.cross_entropy_forward(to(np.ones((2, 3))), to(bad))
    for kind in (bool, float):
        with pytest.raises(TypeError, match="embedding: ids must be integers"):
            ops.embedding_forward(to(bad.astype(kind)), to(np.ones((3, 2))))
        with pytest.raises(TypeError, match="cross_entropy: targets must be integers"):
            ops.cross_entropy_forward(to(np.ones((2, 3))), to(bad.astype(kind)))


def test_the_functions_look_at_the_range_unless_told_not_to():
    bad, table = np.array([-1, 2, 7]), np.ones((8, 2))
    with pytest.raises(IndexError, match=r"embedding: ids must be in \[0, 8\), got -1 to 7"):
        embedding.embedding_forward(bad, table)
    with pytest.raises(IndexError, match=r"cross_entropy: targets must be in \[0, 8\), got -1 to 7"):
        cross_entropy.cross_entropy_forward(np.ones((3, 8)), bad)
    assert embedding.embedding_forward(bad, table, check=False)[0].shape == (3, 2)
    assert Reference(check=False).embedding_forward(bad, table)[0].shape == (3, 2)


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


class Runtime:
    """cupy.cuda.runtime of a machine with `count` devices, or with a broken driver."""

    def __init__(self, count):
        self.count = count

    def getDeviceCount(self):
        if self.count is None:
            raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
        return self.count

    def getDeviceProperties(self, _):
        return {"name": b"Imaginary GPU"}


@pytest.mark.parametrize(("count", "words"), [(None, "insufficient"), (0, "no device")])
def test_device_with_cupy_and_no_gpu(count, words, cupy):
    cupy.cuda = types.SimpleNamespace(runtime=Runtime(count), Device=lambda: types.SimpleNamespace(id=0))
    assert words in pick_device("auto").reason
    with pytest.raises(DeviceError, match=words):
        pick_device("cuda")


def test_device_that_cannot_compute(cupy, monkeypatch):
    """A driver and no toolkit: the count is right, the first kernel fails."""
    cupy.cuda = types.SimpleNamespace(runtime=Runtime(1), Device=lambda: types.SimpleNamespace(id=0))
    cupy.ones = lambda *_: (_ for _ in ()).throw(RuntimeError("libnvrtc.so not found"))
    assert "cannot compute (libnvrtc" in pick_device("auto").reason
    with pytest.raises(DeviceError, match="cuda13x"):
        pick_device("cuda")


def test_device_with_a_gpu(cupy):
    cupy.cuda = types.SimpleNamespace(runtime=Runtime(1), Device=lambda: types.SimpleNamespace(id=0))
    device = pick_device("auto")
    assert (device.name, device.xp, device.description) == ("cuda", cupy, "Imaginary GPU")
