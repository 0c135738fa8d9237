"""GEMMs by cuBLASLt without a GPU: the stand-in of fake_cublaslt.py replaces the one call that computes."""

import functools
import itertools
import re
import sys
import types
from ctypes import c_int32, c_int64, c_uint32, c_uint64
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fake_cublaslt import Memory, desc, fake_matmul, get, layout
from tensorlite.cuda.runtime import cublaslt
from tensorlite.cuda.runtime.cublaslt import EPILOGUES, Algo, CublasError, Library, MatmulPlan, MatmulProblem, Owned
from tensorlite.reference.activations import gelu_backward, gelu_forward

FOUR = list(itertools.product((False, True), repeat=2))
PLAIN = MatmulProblem(16, 24, 8, False, False, "float32", "float32", "float32")


@pytest.fixture(scope="session")
def library():
    try:
        return Library()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture
def stand_in(library, monkeypatch):
    """Replace cublasLtMatmul by the stand-in. Return a namespace with the arguments of its last call."""
    seen = types.SimpleNamespace()
    monkeypatch.setattr(library.lib, "cublasLtMatmul", functools.partial(fake_matmul, library, seen))
    return seen


def arrays(problem, seed=0):
    """Return a and b, of small integers that bfloat16 holds exactly, and memory in the layout of the problem."""
    rng = np.random.default_rng(seed)
    a = rng.integers(-2, 3, (problem.M, problem.K)).astype(np.float32)
    b = rng.integers(-2, 3, (problem.K, problem.N)).astype(np.float32)
    in_memory = [Memory(x.T if t else x, problem.operands) for x, t in ((a, problem.a_t), (b, problem.b_t))]
    return a, b, *in_memory, Memory(np.full((problem.M, problem.N), np.nan), problem.out)


def run(library, problem, a, b, out, *extra, **keywords):
    pointers = (x.pointer for x in (a, b, out))
    MatmulPlan(library, problem).run(Owned(), Algo(bytes(64), 0), *pointers, [x.pointer for x in extra], **keywords)


# --- GEMMs


@pytest.mark.parametrize(("a_t", "b_t"), FOUR)
@pytest.mark.parametrize("out", cublaslt.DTYPES)
@pytest.mark.parametrize(("operands", "compute"), cublaslt.COMPUTE)
def test_the_result_is_a_b(library, stand_in, operands, compute, out, a_t, b_t):
    problem = MatmulProblem(16, 24, 8, a_t, b_t, operands, out, compute)
    a, b, a_, b_, out_ = arrays(problem)
    run(library, problem, a_, b_, out_)
    np.testing.assert_array_equal(out_.values, a @ b)


@pytest.mark.parametrize(("a_t", "b_t"), FOUR)
@pytest.mark.parametrize(
    ("operands", "compute", "out"),
    [("bfloat16", "bf16", "float32"), ("bfloat16", "bf16", "bfloat16"), ("float16", "fp16", "float16")],
)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogues(library, stand_in, epilogue, operands, compute, out, a_t, b_t):
    b_t = b_t and epilogue != "bias_grad"  # BGRADA sums a matrix that is not transposed: candidates() offers none
    problem = MatmulProblem(16, 24, 8, a_t, b_t, operands, out, compute, epilogue)
    a, b, a_, b_, out_ = arrays(problem)
    rng = np.random.default_rng(1)
    row = Memory(rng.integers(-4, 5, problem.N), out)
    aux = Memory(rng.integers(-2, 3, (problem.M, problem.N)), out)
    bias, before = row.values.copy(), aux.values.copy()
    run(library, problem, a_, b_, out_, *{"gelu_bias": [row, aux], "none": []}.get(epilogue, [aux if "gelu" in epilogue else row]))
    close = {"rtol": 1e-6 if out == "float32" else 2**-8, "atol": 1e-6}
    pre = a @ b + (bias if epilogue in ("bias", "gelu_bias") else 0)
    expected = gelu_forward(pre)[0] if epilogue in ("gelu", "gelu_bias") else pre
    if epilogue == "dgelu":
        expected = gelu_backward(pre, before)
    np.testing.assert_allclose(out_.values, expected, **close)
    np.testing.assert_array_equal(aux.values, pre if epilogue in ("gelu", "gelu_bias") else before)
    np.testing.assert_array_equal(row.values, b.sum(axis=0) if epilogue == "bias_grad" else bias)


def test_a_run_passes_its_arguments_on(library, stand_in):
    handle, algo = Owned(), Algo(bytes(range(64)), 4)
    problem = replace(PLAIN, epilogue="bias")
    plan, first, second = MatmulPlan(library, problem), Memory(np.ones(24), "float32"), Memory(np.full(24, 2.0), "float32")
    a, b, a_, b_, out = arrays(problem)
    for bias in (first, second):  # each call uses its own pointer
        plan.run(handle, algo, a_.pointer, b_.pointer, out.pointer, (bias.pointer,), workspace=256, workspace_bytes=8, stream=3)
        np.testing.assert_array_equal(out.values, a @ b + bias.values)
        assert desc(library, plan, 8, c_uint64) == bias.pointer
    assert (stand_in.handle, stand_in.algo, stand_in.workspace, stand_in.stream) == (handle, algo.data, (256, 8), 3)
    with pytest.raises(ValueError, match="zip"):
        plan.run(handle, algo, a_.pointer, b_.pointer, out.pointer)


# --- descriptors


@pytest.mark.parametrize(
    ("a_t", "b_t", "A", "B"),
    [
        (False, False, (24, 8, 24), (8, 16, 8)),
        (True, False, (24, 8, 24), (16, 8, 16)),
        (False, True, (8, 24, 8), (8, 16, 8)),
        (True, True, (8, 24, 8), (16, 8, 16)),
    ],
)
def test_layouts(library, a_t, b_t, A, B):
    """The rows, columns and leading dimensions of (16, 8) @ (8, 24) are written out by hand."""
    plan = MatmulPlan(library, MatmulProblem(16, 24, 8, a_t, b_t, "bfloat16", "float32", "bf16"))
    assert layout(library, plan.A) == (14, *A)
    assert layout(library, plan.B) == (14, *B)
    assert layout(library, plan.D) == (0, 24, 16, 24)
    assert (desc(library, plan, 3, c_int32), desc(library, plan, 4, c_int32)) == (b_t, a_t)


@pytest.mark.parametrize(("pair", "number"), cublaslt.COMPUTE.items())
def test_compute_types(library, pair, number):
    plan = MatmulPlan(library, MatmulProblem(8, 8, 8, False, False, pair[0], "float32", pair[1]))
    assert desc(library, plan, 0, c_int32) == number


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogue_attributes(library, epilogue):
    plan = MatmulPlan(library, replace(PLAIN, epilogue=epilogue))
    number = {"none": 1, "bias": 4, "gelu": 160, "gelu_bias": 164, "dgelu": 192, "bias_grad": 256}[epilogue]
    assert desc(library, plan, 7, c_uint32) == number
    assert desc(library, plan, 12, c_int64) == (24 if "gelu" in epilogue else 0)


def test_numbers_are_those_of_the_headers(library):
    """Compare every constant that has NVIDIA's name with the headers of the installed library, of any CUDA version."""
    pathfinder = pytest.importorskip("cuda.pathfinder")
    lib = Path(pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path)
    folders = {lib.parent.parent / "include", *lib.parent.parent.parent.glob("*/include")}
    texts = [p.read_text(errors="replace") for f in folders for p in f.glob("*.h") if re.match("cublas|library_types", p.name)]
    if not texts:
        pytest.skip(f"no headers beside {lib}")
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", "\n".join(texts), flags=re.S)
    named = dict(re.findall(r"\b((?:CUBLAS|CUDA_R)\w+)\s*=\s*([^,}]+)", text))

    def number(expression):
        words = re.sub(r"[A-Z]\w+", lambda word: str(number(named[word[0]])), expression.strip())
        return eval(words, {})

    ours = {name: value for name, value in vars(cublaslt).items() if re.match(r"CUBLAS(LT)?_|CUDA_R_", name)}
    known = {name: value for name, value in ours.items() if name in named}
    assert known == {name: number(named[name]) for name in known}
    assert not {name for name in ours if name not in named} - {
        "CUDA_R_32F",
        "CUDA_R_16F",
        "CUDA_R_16BF",
    }  # these are in a header of another package
    assert len(known) > 20


def test_descriptors_are_destroyed(library, monkeypatch):
    gone = []
    for name in ("MatmulDesc", "MatrixLayout"):
        original = getattr(library.lib, f"cublasLt{name}Destroy")
        monkeypatch.setattr(library.lib, f"cublasLt{name}Destroy", lambda p, f=original, n=name: gone.append((n, f(p))))
    plan = MatmulPlan(library, PLAIN)
    assert not gone
    del plan
    assert sorted(gone) == [("MatmulDesc", 0)] + 3 * [("MatrixLayout", 0)]


# --- candidates


@pytest.fixture
def heuristic(library, monkeypatch):
    """Replace cuBLASLt's heuristic by one that records its arguments, and returns a status and [(state, workspace bytes), ...]."""
    asked = types.SimpleNamespace(status=0, answers=[])

    def ask(handle, plan_desc, a, b, c, d, wanted, count, results, found):
        read = {n: get(library, "MatmulPreference", wanted, n, c_uint64 if n == 1 else c_uint32) for n in (1, 3, 5, 6, 7, 8)}
        pointers = tuple(get(library, "MatmulDesc", plan_desc, n, c_uint64) for n in (8, 11))
        asked.__dict__.update(preference=read, pointers=pointers, count=count, layouts=(a, b, c, d))
        for i, (state, size) in enumerate(asked.answers):
            results[i].algo[:] = range(i, i + 8)
            results[i].state, results[i].workspaceSize, results[i].wavesCount = state, size, 0.5
        found._obj.value = len(asked.answers)
        return asked.status

    monkeypatch.setattr(library.lib, "cublasLtMatmulAlgoGetHeuristic", ask)
    return asked


@pytest.mark.parametrize(("out", "mask"), [("bfloat16", 2), ("float32", 2 | 4)])
def test_what_candidates_are_asked_for(library, heuristic, out, mask):
    problem = MatmulProblem(16, 24, 8, False, False, "bfloat16", out, "bf16", "gelu_bias")
    plan = MatmulPlan(library, problem)
    assert plan.candidates(Owned()) == []
    assert heuristic.preference == {1: 32 << 20, 3: mask, 5: 128, 6: 128, 7: 128, 8: 128}  # INPLACE, 1, is never in the mask
    assert heuristic.pointers == (128, 128)
    assert heuristic.layouts == (plan.A, plan.B, plan.D, plan.D)
    assert heuristic.count == 16
    plan = MatmulPlan(library, replace(problem, alignment=16))
    plan.candidates(Owned(), workspace_bytes=1 << 20, count=3)
    assert heuristic.preference == {1: 1 << 20, 3: mask, 5: 16, 6: 16, 7: 16, 8: 16}
    assert heuristic.pointers == (16, 16)
    assert heuristic.count == 3


def test_candidates_that_can_run(library, heuristic):
    plan = MatmulPlan(library, PLAIN)
    heuristic.answers = [(0, 100), (15, 0), (0, 101), (0, 0)]
    first, last = plan.candidates(Owned(), workspace_bytes=100)
    assert first == Algo(np.arange(0, 8, dtype=np.uint64).tobytes(), 100)
    assert last == Algo(np.arange(3, 11, dtype=np.uint64).tobytes(), 0)
    assert bytes.fromhex(first.name) == first.data


def test_no_candidates_where_nothing_is_supported(library, heuristic):
    heuristic.answers = [(0, 0)]
    for heuristic.status in (15, 7):  # older versions return the second one, "invalid value"
        assert MatmulPlan(library, PLAIN).candidates(Owned()) == []
    heuristic.status = 0
    assert MatmulPlan(library, replace(PLAIN, epilogue="bias_grad")).candidates(Owned())
    assert MatmulPlan(library, replace(PLAIN, epilogue="bias_grad", b_t=True)).candidates(Owned()) == []
    halves = replace(PLAIN, operands="bfloat16", out="bfloat16", compute="bf16")
    assert MatmulPlan(library, replace(halves, epilogue="gelu")).candidates(Owned())
    assert MatmulPlan(library, replace(halves, epilogue="gelu", N=65)).candidates(Owned()) == []
    assert MatmulPlan(library, replace(PLAIN, epilogue="gelu")).candidates(Owned()) == []
    heuristic.status = 14
    with pytest.raises(CublasError, match=r"GetHeuristic: CUBLAS_STATUS_INTERNAL_ERROR \(14\), for \(16, 8\) @ \(8, 24\), float32"):
        MatmulPlan(library, PLAIN).candidates(Owned())


# --- what fails


def test_without_a_device(library):
    try:
        import cupy

        if cupy.cuda.runtime.getDeviceCount():
            pytest.skip("a device is here")
    except (ImportError, RuntimeError):
        pass
    with pytest.raises(CublasError, match=r"cublasLtCreate: CUBLAS_STATUS_NOT_INITIALIZED.*no CUDA device answers") as caught:
        library.create()
    assert caught.value.status == 1
    assert library.version() > 120000


@pytest.mark.parametrize("error", [ImportError("No module named 'cuda'"), RuntimeError("libcublasLt.so not found")])
def test_without_the_library(monkeypatch, error):
    def load(name):
        raise error

    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", types.SimpleNamespace(load_nvidia_dynamic_lib=load))
    with pytest.raises(ImportError, match=r"no cuBLASLt: .*; install CuPy .*cuda13x"):
        Library()


@pytest.mark.parametrize("wrong", [{"compute": "bf16"}, {"operands": "bfloat16"}, {"out": "float64"}, {"epilogue": "relu"}])
def test_problems_that_are_none(wrong):
    with pytest.raises(ValueError, match="one of"):
        replace(PLAIN, **wrong)


def test_a_problem_in_words():
    problem = MatmulProblem(384, 1536, 16384, True, False, "bfloat16", "float32", "bf16", "bias_grad")
    assert (
        str(problem)
        == "(16384, 384).T @ (16384, 1536), bfloat16 to float32, compute bf16, epilogue bias_grad, aligned to 128 bytes"
    )
    others = [replace(problem, **{k: v}) for k, v in {"M": 1, "N": 1, "K": 1, "a_t": False, "b_t": True}.items()]
    others += [replace(problem, out="bfloat16"), replace(problem, epilogue="none"), replace(PLAIN, compute="tf32"), PLAIN]
    others.append(replace(problem, alignment=16))
    assert len({problem, *others}) == len({str(p) for p in (problem, *others)}) == 11
