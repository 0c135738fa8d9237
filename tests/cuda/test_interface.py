"""The interface of the CUDA backend: signatures, precisions, and the arguments that it refuses."""

import inspect
import sys

import numpy as np
import pytest

import fake_cupy
from cuda_runs import QUICK, Run, every_precision, ops_of
from shim.host import HostRuntime
from tensorlite import ReferenceOps, cuda
from tensorlite.cuda.ops import PRECISIONS
from tensorlite.random import step_key

pytestmark = pytest.mark.usefixtures("compiler")


def test_signatures_equal_the_references():
    """They are compared on objects, as a model sees them. A backend may add methods, but not change or remove one."""
    ops = ops_of()
    for name, member in inspect.getmembers(ReferenceOps(), callable):
        if not name.startswith("_"):
            theirs, ours = (inspect.signature(function).parameters.values() for function in (getattr(ops, name), member))
            assert [(p.name, p.kind, p.default) for p in theirs] == [(p.name, p.kind, p.default) for p in ours], name


def test_every_override_has_its_pair():
    own = {name for name in vars(cuda.CUDAOps) if name.endswith(("_forward", "_backward"))}
    assert {name.replace("_forward", "_backward") for name in own} <= own
    assert {name.replace("_backward", "_forward") for name in own} <= own


def test_precisions():
    assert PRECISIONS == ("float32", "tf32", "fp16", "bf16")
    assert [str(ops_of(precision).dtype) for precision in PRECISIONS] == ["float32", "float32", "float16", "bfloat16"]
    for bad in ("fp8", "float64", None):
        with pytest.raises(ValueError, match=f"precision must be one of float32, tf32, fp16, bf16, not {bad!r}"):
            ops_of(bad)


def test_tf32_differs_in_its_gemms_alone():
    """The runtime receives the precision; on the CPU the GEMMs are float32 GEMMs."""
    told = []

    class Told(HostRuntime):
        def gemm(self, *args, compute, **options):
            told.append(compute)
            super().gemm(*args, compute=compute, **options)

    runs = [Run(cuda.CUDAOps(precision, check=False, runtime=Told()), "small", QUICK) for precision in ("float32", "tf32")]
    assert runs[0].steps(2) == runs[1].steps(2)
    assert told == ["float32"] * (len(told) // 2) + ["tf32"] * (len(told) // 2)


def zeros(*shape):
    return np.zeros(shape, np.float32)


IDS = np.zeros(3, np.int64)
ARGUMENTS = {  # float arrays and ids for each op that has kernels
    "linear": (zeros(3, 4), zeros(4, 5), zeros(5)),
    "embedding": (IDS, zeros(7, 4)),
    "position_embedding": (zeros(3, 4), zeros(5, 4)),
    "layernorm": (zeros(3, 32), zeros(32), zeros(32)),
    "gelu": (zeros(3, 4),),
    "relu": (zeros(3, 4),),
    "attention": (zeros(1, 3, 48), 1),
    "dropout": (zeros(3, 4), 0.5, step_key(1, 2)),
    "residual": (zeros(3, 4), zeros(3, 4), 0.5, step_key(1, 2)),
    "cross_entropy": (zeros(3, 4), IDS),
    "token_position_embedding": (IDS, zeros(7, 4), zeros(5, 4)),
    "mlp": (zeros(3, 4), zeros(4, 8), zeros(8), zeros(8, 4), zeros(4)),
    "dropout_add_layernorm": (zeros(3, 32), zeros(3, 32), zeros(32), zeros(32)),
    "linear_cross_entropy": (zeros(3, 4), zeros(4, 5), zeros(5), IDS),
    "self_attention": (zeros(1, 3, 16), zeros(16, 48), zeros(48), zeros(16, 16), zeros(16), 1),
}
every_op = pytest.mark.parametrize("name", ARGUMENTS)


def test_every_op_is_asked():
    assert {f"{name}_forward" for name in ARGUMENTS} == {name for name in vars(ReferenceOps) if name.endswith("_forward")} - {
        "softmax_forward",  # inside attention
        "activation_forward",
    }


def with_each(arguments, change):
    """Yield the arguments with one float array changed, for each array in turn."""
    for i, a in enumerate(arguments):
        if isinstance(a, np.ndarray) and a.dtype == np.float32:
            yield (*arguments[:i], change(a), *arguments[i + 1 :])


@every_precision
@every_op
def test_float64_is_refused(name, precision):
    ops = ops_of(precision)
    forward = getattr(ops, f"{name}_forward")
    for arguments in with_each(ARGUMENTS[name], lambda a: a.astype(np.float64)):
        with pytest.raises(TypeError, match="the CUDA backend computes in float32, float16 and bfloat16, not float64; use Ref"):
            forward(*arguments)


@pytest.mark.parametrize("name", ["add", "pack_grads", "global_norm", "clip_grad_norm_", "adamw_", "cross_entropy_backward"])
def test_float64_is_refused_where_no_op_is(name):
    """The backend refuses it, because a kernel would misread its bytes."""
    ops, a, b = ops_of(), zeros(8), np.zeros(8)
    _, cache = ops.cross_entropy_forward(zeros(3, 4), IDS)
    calls = {
        "add": [(a, b), (b, a), (b, b)],
        "pack_grads": [([b], [a]), ([a], [b])],
        "global_norm": [(b,)],
        "clip_grad_norm_": [(b, 1.0)],
        "adamw_": [(*(b if i == j else a for j in range(4)), 1, 0.1) for i in range(4)],
        "cross_entropy_backward": [(np.asarray(0.7), cache)],
    }[name]
    for arguments in calls:
        with pytest.raises(TypeError, match="the CUDA backend computes in float32"):
            getattr(ops, name)(*arguments)


@every_op
def test_a_list_is_refused(name):
    forward = getattr(ops_of(), f"{name}_forward")
    for arguments in with_each(ARGUMENTS[name], lambda a: a.tolist()):
        with pytest.raises(TypeError, match="list"):
            forward(*arguments)


@pytest.mark.parametrize("name", [name for name, a in ARGUMENTS.items() if sum(isinstance(x, np.ndarray) for x in a) > 1])
def test_arrays_of_two_libraries_are_refused(name, monkeypatch):
    module = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    forward = getattr(ops_of(), f"{name}_forward")
    for arguments in with_each(ARGUMENTS[name], module.asarray):
        with pytest.raises(TypeError, match="one library"):
            forward(*arguments)


@every_op
def test_what_the_reference_refuses_is_refused_in_its_words(name):
    """Each array in turn loses its last column, loses its last axis, or gains an axis."""
    arguments = ARGUMENTS[name]
    for i, a in enumerate(arguments):
        for wrong in (lambda a: a[..., :-1], lambda a: a[..., 0], lambda a: a[None]) if isinstance(a, np.ndarray) else ():
            changed = (*arguments[:i], wrong(a), *arguments[i + 1 :])
            said = []
            for ops in (ReferenceOps(), cuda.CUDAOps("float32", runtime=HostRuntime())):
                try:
                    getattr(ops, f"{name}_forward")(*changed)
                    said.append(None)
                except (TypeError, ValueError, IndexError) as error:
                    said.append((type(error), str(error)))
            if said[0] is not None and not said[0][1].startswith("cross_entropy: logits"):  # a head has no logits to name yet
                assert said[0] == said[1], i
            assert (said[0] is None) >= (said[1] is None), (i, said)


def test_ids_out_of_range_are_refused_where_they_are_looked_at():
    ops, table, logits = cuda.CUDAOps("float32", runtime=HostRuntime()), zeros(7, 4), zeros(3, 4)
    for bad in (-1, 7):
        with pytest.raises(IndexError, match=r"embedding: ids must be in \[0, 7\)"):
            ops.embedding_forward(IDS + bad, table)
    for call in (
        lambda ids: ops.cross_entropy_forward(logits, ids),
        lambda ids: ops.linear_cross_entropy_forward(logits, zeros(4, 4), None, ids),
    ):
        with pytest.raises(IndexError, match=r"targets must be in \[0, 4\)"):
            call(IDS + 4)
    for kind in (np.float32, np.bool_, np.uint64):
        with pytest.raises(TypeError, match="must be integers"):
            ops.embedding_forward(IDS.astype(kind), table)


def test_arrays_of_two_shapes_are_not_added():
    with pytest.raises(ValueError, match="differ"):
        ops_of().add(zeros(3), zeros(4))
