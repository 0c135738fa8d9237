"""The arguments of a launch by name, checked against the kernel's C++ signature by every runtime."""

import numpy as np
import pytest

from shim.host import HostRuntime
from tensorlite.cuda.runtime.device import CudaRuntime
from tensorlite.cuda.runtime.dry_run import DryRunRuntime
from tensorlite.cuda.runtime.nvrtc import KERNELS
from tensorlite.cuda.runtime.signature import kernel_signature, read_signatures

SOURCE = """
// extern "C" __global__ void in_a_comment(int n) {}
struct Pair { int n; float x; };
extern "C" __global__ void __launch_bounds__(32 * WARPS, D > 64 ? 1 : 3)
many(const scalar_t* x,  // the input
     unsigned long long  *y, Pair pair, float f,
     bool b, /* two counts */ int n, long long rows) {
    f(n, rows);
}
__device__ inline void helper(int n) {}
extern "C" __global__ void none() {}
"""
RIGHT = {"grads": None, "norm": None, "max_norm": 1.0, "n": 0}


def without(name):
    return {key: value for key, value in RIGHT.items() if key != name}


@pytest.fixture(params=["cuda", "dry run", "shim"])
def runtime(request, fake_gpu):
    if request.param == "cuda":
        fake_gpu()
        return CudaRuntime()
    return DryRunRuntime() if request.param == "dry run" else HostRuntime()


def test_parameters_are_read_from_the_source():
    signatures = read_signatures("a.cu", SOURCE)
    assert list(signatures) == ["many", "none"]
    assert signatures["none"].types == {}
    assert signatures["many"].types == {
        "x": "const scalar_t*",
        "y": "unsigned long long *",
        "pair": "Pair",
        "f": "float",
        "b": "bool",
        "n": "int",
        "rows": "long long",
    }


def test_every_kernel_has_a_signature():
    for path in KERNELS.rglob("*.cu"):
        source = path.read_text()
        assert len(read_signatures(path.name, source)) == source.count('extern "C" __global__'), path


def test_arguments_come_in_the_order_and_types_of_the_signature():
    x, pair = np.zeros(3, np.float32), np.zeros((), [("n", "i4"), ("x", "f4")])
    signature = read_signatures("a.cu", SOURCE)["many"]
    values = signature.arguments({"rows": np.int32(5), "n": 4, "b": True, "f": 0.5, "pair": pair, "y": None, "x": x}, {})
    assert [type(value) for value in values] == [np.ndarray, type(None), np.ndarray, np.float32, np.bool_, np.int32, int]
    assert values[0] is x
    assert values[2:] == [pair, 0.5, True, 4, 5]


@pytest.mark.parametrize(
    ("args", "defines", "message"),
    [
        (without("norm"), {}, "optim.cu: clip needs the argument norm; its parameters are grads, norm, max_norm, n"),
        (RIGHT | {"more": 1}, {}, "optim.cu: clip has no parameter more; its parameters are grads, norm, max_norm, n"),
        (without("norm") | {"nrom": None}, {}, "optim.cu: clip has no parameter nrom and needs the argument norm; "),
        (RIGHT, {"n": 3}, "optim.cu: clip has a parameter that is also defined at compile time, n; "),
        (RIGHT | {"n": 1.0}, {}, "optim.cu: clip: argument n: got float, but the parameter is long long"),
        (RIGHT | {"n": True}, {}, "optim.cu: clip: argument n: got bool, but the parameter is long long"),
        (RIGHT | {"n": None}, {}, "optim.cu: clip: argument n: got NoneType, but the parameter is long long"),
        (RIGHT | {"max_norm": 1}, {}, "optim.cu: clip: argument max_norm: got int, but the parameter is float"),
        (RIGHT | {"norm": 1.0}, {}, r"optim.cu: clip: argument norm: got float, but the parameter is const float\*"),
        (RIGHT | {"grads": np.zeros((), [("n", "i4")])}, {}, r"argument grads: got a struct, but the parameter is float\*"),
    ],
)
def test_wrong_arguments_are_refused_before_the_launch(runtime, args, defines, message, monkeypatch):
    monkeypatch.setattr(HostRuntime, "_kernel", None)  # nothing is compiled
    monkeypatch.setattr(CudaRuntime, "_load", None)
    with pytest.raises(TypeError, match=message):
        runtime.launch("optim.cu", "clip", 1, 1, defines=defines, **args)


@pytest.mark.parametrize(
    ("type_", "value", "message"),
    [
        ("int", 2**31, "Python integer 2147483648 out of bounds for int32, but the parameter is int"),
        ("bool", 1, "got int, but the parameter is bool"),
        ("Pair", 1, "got int, but the parameter is Pair"),
        ("Pair", np.zeros(3, np.float32), "got ndarray, but the parameter is Pair"),
    ],
)
def test_a_value_must_fit_its_type(type_, value, message):
    signature = read_signatures("a.cu", f'extern "C" __global__ void k({type_} p) {{}}')["k"]
    with pytest.raises(TypeError, match=f"a.cu: k: argument p: {message}"):
        signature.arguments({"p": value}, {})


def test_a_parameter_without_a_name_is_refused():
    with pytest.raises(ValueError, match="'int' is not a type and a name"):
        read_signatures("a.cu", 'extern "C" __global__ void k(int) {}')


def test_a_kernel_that_does_not_exist_is_named():
    with pytest.raises(TypeError, match=r"spin\.cu has no kernel spun; its kernels are spin"):
        kernel_signature("spin.cu", "spun")


def test_a_signature_is_read_once():
    assert kernel_signature("spin.cu", "spin") is kernel_signature("spin.cu", "spin")
