"""cuBLASLt without a GPU: a NumPy stand-in for its one call that computes reads the real descriptors back and does what they say.

It knows only what cublasLt.h states: column-major matrices, their leading dimensions, transposes, and the epilogues. So swapped
operands or a wrong leading dimension give wrong numbers here as they would there.
"""

import ctypes
import itertools
import json
import re
import sys
import threading
import types
from ctypes import c_int32, c_int64, c_size_t, c_uint32, c_uint64
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from tensorlite.cache_dir import cache_folder
from tensorlite.cuda.runtime import autotune, cublaslt
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


def get(library, what, owned, attribute, ctype):
    value, written = ctype(), c_size_t()
    function = getattr(library.lib, f"cublasLt{what}GetAttribute")
    assert function(owned, attribute, ctypes.byref(value), c_size_t(ctypes.sizeof(ctype)), ctypes.byref(written)) == 0
    assert written.value == ctypes.sizeof(ctype)  # the size it has there is the one that is set here
    return value.value


def layout(library, owned):
    """CUBLASLT_MATRIX_LAYOUT_TYPE, ROWS, COLS and LD of an ORDER_COL layout."""
    assert get(library, "MatrixLayout", owned, 1, c_int32) == 0
    kinds = ((0, c_uint32), (2, c_uint64), (3, c_uint64), (4, c_int64))
    return tuple(get(library, "MatrixLayout", owned, attribute, kind) for attribute, kind in kinds)


def desc(library, plan, attribute, ctype):
    return get(library, "MatmulDesc", plan.desc, attribute, ctype)


# --- the stand-in


def to_bfloat16(x):
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # to the nearest, ties to even


def from_bfloat16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


class Memory:
    """A device array: an address, a dtype, and numbers in C order."""

    known: ClassVar = {}  # address -> its type's number, and how many elements are there

    def __init__(self, values, dtype):
        values = np.ascontiguousarray(values, np.float32)
        self.raw, self.dtype = (to_bfloat16(values) if dtype == "bfloat16" else values.copy()), dtype
        self.pointer = self.raw.ctypes.data
        self.known[self.pointer] = 14 if dtype == "bfloat16" else 0, self.raw.size

    @property
    def values(self):
        return from_bfloat16(self.raw) if self.dtype == "bfloat16" else self.raw


class Matrix:
    """`columns` columns of `rows` elements, `ld` elements from one to the next: what cuBLAS takes memory for."""

    def __init__(self, pointer, type_, rows, columns, ld):
        assert ld >= rows
        assert Memory.known[pointer] == (type_, (columns - 1) * ld + rows)
        self.bfloat16 = type_ == 14
        element = ctypes.c_uint16 if self.bfloat16 else ctypes.c_float
        flat = np.ctypeslib.as_array((element * ((columns - 1) * ld + rows)).from_address(pointer))
        size = ctypes.sizeof(element)
        self.raw = np.lib.stride_tricks.as_strided(flat, (rows, columns), (size, ld * size))

    def read(self):
        return from_bfloat16(self.raw).astype(float) if self.bfloat16 else self.raw.astype(float)

    def write(self, values):
        self.raw[...] = to_bfloat16(values) if self.bfloat16 else values


@pytest.fixture
def stand_in(library, monkeypatch):
    """Put the stand-in in the place of cublasLtMatmul; returns a namespace with the arguments of its last call."""
    seen = types.SimpleNamespace()

    def matmul(handle, plan_desc, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algo, space, size, stream):
        seen.__dict__.update(handle=handle, algo=algo, workspace=(space, size), stream=stream)

        def of(attribute, ctype):
            return get(library, "MatmulDesc", plan_desc, attribute, ctype)

        assert (of(1, c_int32), of(2, c_int32)) == (0, 0)  # scale type float32, alpha and beta on the host
        assert (of(22, c_int32), of(26, c_int32)) == (-1, -1)  # the types of aux and bias: that of D
        A = Matrix(a, *layout(library, a_layout)).read()
        B = Matrix(b, *layout(library, b_layout)).read()
        type_, m, n, ld = layout(library, d_layout)
        assert layout(library, c_layout) == (type_, m, n, ld)
        assert beta._obj.value == 0.0
        assert c == d
        D = Matrix(d, type_, m, n, ld)
        product = alpha._obj.value * ((A.T if of(3, c_int32) else A) @ (B.T if of(4, c_int32) else B))
        assert product.shape == (m, n)

        def bias():
            return Matrix(of(8, c_uint64), type_, m, 1, m)

        def aux():
            ld = of(12, c_int64)
            assert ld % 8 == 0
            return Matrix(of(11, c_uint64), type_, m, n, ld)

        epilogue = of(7, c_uint32)
        if epilogue & 4:  # BIAS
            product = product + bias().read()
        if epilogue == 256:  # BGRADA
            assert not of(3, c_int32)
            bias().write(A.sum(axis=1, keepdims=True))
        elif epilogue & 32:  # GELU, here always with AUX
            assert epilogue & 128
            aux().write(product)
            product = gelu_forward(product)[0]
        elif epilogue == 64 | 128:  # DGELU
            product = gelu_backward(product, aux().read())
        else:
            assert epilogue in (1, 4)
        D.write(product)
        return 0

    monkeypatch.setattr(library.lib, "cublasLtMatmul", matmul)
    return seen


def arrays(product, seed=0):
    """a and b, and memory that holds them the way the product says; small integers, which bfloat16 holds exactly."""
    rng = np.random.default_rng(seed)
    a = rng.integers(-2, 3, (product.M, product.K)).astype(np.float32)
    b = rng.integers(-2, 3, (product.K, product.N)).astype(np.float32)
    in_memory = [Memory(x.T if t else x, product.operands) for x, t in ((a, product.a_t), (b, product.b_t))]
    return a, b, *in_memory, Memory(np.full((product.M, product.N), np.nan), product.out)


def run(library, product, a, b, out, *extra, **keywords):
    pointers = (x.pointer for x in (a, b, out))
    MatmulPlan(library, product).run(Owned(), Algo(bytes(64), 0), *pointers, [x.pointer for x in extra], **keywords)


# --- products


@pytest.mark.parametrize(("a_t", "b_t"), FOUR)
@pytest.mark.parametrize("out", ["float32", "bfloat16"])
@pytest.mark.parametrize(("operands", "compute"), cublaslt.COMPUTE)
def test_the_product_is_a_b(library, stand_in, operands, compute, out, a_t, b_t):
    product = MatmulProblem(16, 24, 8, a_t, b_t, operands, out, compute)
    a, b, a_, b_, out_ = arrays(product)
    run(library, product, a_, b_, out_)
    np.testing.assert_array_equal(out_.values, a @ b)


@pytest.mark.parametrize(("a_t", "b_t"), FOUR)
@pytest.mark.parametrize("out", ["float32", "bfloat16"])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogues(library, stand_in, epilogue, out, a_t, b_t):
    b_t = b_t and epilogue != "bias_grad"  # BGRADA sums a matrix that is not transposed: candidates() offers none
    product = MatmulProblem(16, 24, 8, a_t, b_t, "bfloat16", out, "bf16", epilogue)
    a, b, a_, b_, out_ = arrays(product)
    rng = np.random.default_rng(1)
    row = Memory(rng.integers(-4, 5, product.N), out)
    aux = Memory(rng.integers(-2, 3, (product.M, product.N)), out)
    bias, before = row.values.copy(), aux.values.copy()
    run(library, product, a_, b_, out_, *{"gelu_bias": [row, aux], "none": []}.get(epilogue, [aux if "gelu" in epilogue else row]))
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
    product = replace(PLAIN, epilogue="bias")
    plan, first, second = MatmulPlan(library, product), Memory(np.ones(24), "float32"), Memory(np.full(24, 2.0), "float32")
    a, b, a_, b_, out = arrays(product)
    for bias in (first, second):  # the pointer is the one of this call
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
    """Rows, columns and leading dimension of (16, 8) @ (8, 24), by hand."""
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
    """Every constant with a name of NVIDIA's, against the headers that came with this library, of whatever CUDA version."""
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
    assert not {name for name in ours if name not in named} - {"CUDA_R_32F", "CUDA_R_16BF"}  # in a header of another package
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
    """Put one in the place of cuBLASLt's that notes what it is asked, and answers a status and [(state, workspace bytes), ...]."""
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
    product = MatmulProblem(16, 24, 8, False, False, "bfloat16", out, "bf16", "gelu_bias")
    plan = MatmulPlan(library, product)
    assert plan.candidates(Owned()) == []
    assert heuristic.preference == {1: 32 << 20, 3: mask, 5: 256, 6: 256, 7: 256, 8: 256}  # INPLACE, 1, is never in the mask
    assert heuristic.pointers == (256, 256)
    assert heuristic.layouts == (plan.A, plan.B, plan.D, plan.D)
    assert heuristic.count == 16
    plan.candidates(Owned(), workspace_bytes=1 << 20, count=3, alignment=16)
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
    for heuristic.status in (15, 7):  # older versions answer that a value is invalid
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


@pytest.mark.parametrize("wrong", [{"compute": "bf16"}, {"operands": "bfloat16"}, {"out": "float16"}, {"epilogue": "relu"}])
def test_products_that_are_none(wrong):
    with pytest.raises(ValueError, match="one of"):
        replace(PLAIN, **wrong)


def test_a_product_in_words():
    product = MatmulProblem(384, 1536, 16384, True, False, "bfloat16", "float32", "bf16", "bias_grad")
    assert str(product) == "(16384, 384).T @ (16384, 1536), bfloat16 to float32, compute bf16, epilogue bias_grad"
    others = [replace(product, **{k: v}) for k, v in {"M": 1, "N": 1, "K": 1, "a_t": False, "b_t": True}.items()]
    others += [replace(product, out="bfloat16"), replace(product, epilogue="none"), replace(PLAIN, compute="tf32"), PLAIN]
    assert len({product, *others}) == len({str(p) for p in (product, *others)}) == 10


# --- choices


class Clock:
    """`time` for a candidate that is a number: its seconds; it counts, and each call runs the candidate too."""

    def __init__(self):
        self.timed = []

    def __call__(self, run):
        seconds = run()
        self.timed.append(seconds)
        return seconds


def taking(seconds):
    return lambda: seconds


def failing():
    raise CublasError("cublasLtMatmul: no", 15)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def silent(text):
    raise AssertionError(text)


def test_fastest():
    assert autotune.fastest({"a": taking(3.0), "b": taking(1.0), "c": taking(1.0)}, Clock()) == ("b", 1.0)
    uneven = iter([0.1, 2.0, 2.0, 2.0, 0.1])  # least once, not by the median
    assert autotune.fastest({"uneven": lambda: next(uneven), "even": taking(1.5)}, Clock()) == ("even", 1.5)
    late = iter([1.0, 1.0])  # fails in its third round

    def fails_late():
        try:
            return next(late)
        except StopIteration:
            failing()

    assert autotune.fastest({"never": failing, "late": fails_late, "slow": taking(9.0)}, Clock()) == ("slow", 9.0)
    with pytest.raises(RuntimeError, match="none of 2 candidates runs: cublasLtMatmul: no"):
        autotune.fastest({"a": failing, "b": failing}, Clock())

    def mistake():
        raise TypeError("ours")

    with pytest.raises(TypeError, match="ours"):
        autotune.fastest({"a": mistake, "b": taking(1.0)}, Clock())


def test_a_choice_is_remembered(folder):
    machine = "NVIDIA H200, driver 580.65.06, cuBLASLt 131000"
    first = autotune.AutotuneCache(machine, silent)
    clock = Clock()
    assert first.pick("p", {"a": taking(2e-6), "separate kernels": taking(1.5e-6)}, clock) == "separate kernels"
    assert len(clock.timed) == 10
    assert first.path == folder / "choices-nvidia-h200-driver-580.65.06-cublaslt-131000.json"
    entry = {"algo": "separate kernels", "microseconds": 1.5, "note": "of 2 candidates"}
    assert json.loads(first.path.read_text()) == {"p": entry}
    assert {path.name for path in folder.iterdir()} <= {first.path.name, first.path.with_suffix(".lock").name}

    ran = []
    candidates = {"a": taking(1e-6), "separate kernels": lambda: ran.append(1)}  # a would win now
    assert autotune.AutotuneCache(machine, silent).pick("p", candidates, None) == "separate kernels"
    assert ran == [1]  # once, to load its kernel
    assert autotune.AutotuneCache(machine, silent).pick("p", {"a": taking(2.0), "b": taking(1.0)}, Clock()) == "b"  # it is no more
    assert autotune.AutotuneCache(machine, silent).pick("p", {"a": taking(2.0), "b": failing}, Clock()) == "a"  # it runs no more
    assert autotune.AutotuneCache("another", silent).pick("p", {"a": taking(2.0), "c": taking(1.0)}, Clock()) == "c"


def test_two_processes_keep_each_others_choices(folder):
    one, two = autotune.AutotuneCache("m", silent), autotune.AutotuneCache("m", silent)
    one.pick("p", {"a": taking(1.0)}, Clock())
    two.pick("q", {"b": taking(1.0)}, Clock())
    assert set(json.loads(one.path.read_text())) == {"p", "q"}


def test_processes_that_choose_at_once_choose_the_same(folder):
    """The ranks of a run: one times, the other waits and takes what it remembers, though it would have found another."""
    pytest.importorskip("fcntl")
    one, two = autotune.AutotuneCache("m", silent), autotune.AutotuneCache("m", silent)
    timing, second = threading.Event(), []

    def other():
        timing.wait()
        second.append(two.pick("p", {"a": taking(1.0), "b": taking(2.0)}, lambda run: pytest.fail("it was timed again")))

    def slow(run):
        timing.set()
        thread.join(0.02)
        return run()

    thread = threading.Thread(target=other)
    thread.start()
    assert one.pick("p", {"a": taking(2.0), "b": taking(1.0)}, slow) == "b"
    thread.join(10)
    assert second == ["b"]


def test_a_candidate_may_make_choices_of_its_own(folder):
    """As separate kernels do, whose plain product is chosen too."""
    choices = autotune.AutotuneCache("m", silent)

    def apart():
        assert choices.pick("plain", {"x": taking(1.0)}, Clock()) == "x"
        return 2.0

    assert choices.pick("p", {"fused": taking(3.0), "apart": apart}, Clock()) == "apart"
    assert set(json.loads(choices.path.read_text())) == {"p", "plain"}


@pytest.mark.parametrize(
    "damage", [b"[" * 100_000, b"{", b"\xff\xfe", b"[]", b"7", b"null", b'{"p": 7}', b'{"p": {"algo": 7}}', b'{"p": {}}']
)
def test_a_damaged_file(folder, damage):
    said = []
    folder.mkdir()
    (folder / "choices-m.json").write_bytes(damage)
    choices = autotune.AutotuneCache("m", said.append)
    assert choices.pick("p", {"a": taking(1.0)}, Clock()) == "a"
    assert choices.pick("q", {"b": taking(1.0)}, Clock()) == "b"
    assert len(said) == 1
    assert "cannot be read" in said[0]
    assert set(json.loads(choices.path.read_text())) == {"p", "q"}


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """A file stands where the folder would be, which stops root too."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path / "file" / "cache"))
    said = []
    choices = autotune.AutotuneCache("m", said.append)
    for key in ("p", "q", "r"):
        assert choices.pick(key, {"b": taking(2.0), "a": taking(1.0)}, Clock()) == "a"
    assert len([text for text in said if "cannot be written" in text]) == 1
    assert choices.pick("p", {"b": taking(1.0), "a": taking(1.0)}, None) == "a"  # within the run it is remembered


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("TENSORLITE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "tensorlite"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/tensorlite")
    monkeypatch.setenv("TENSORLITE_CACHE", "/y")
    assert cache_folder() == Path("/y")
