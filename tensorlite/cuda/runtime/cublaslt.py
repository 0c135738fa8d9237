"""GEMMs by NVIDIA's cuBLASLt, called through ctypes. It allocates no memory and is given the stream, so a capture can record it.

cuBLAS reads memory column by column, and a C-contiguous (M, K) array read so is its transpose, (K, M). So for out = a b it is
asked for out^T = b^T a^T: its A is our b, its B our a, its (m, n, k) our (N, M, K), and nothing is copied. Where an array is itself
the transpose of a C-contiguous one, the op attribute turns it round.

    library = Library()
    handle = library.create()
    plan = MatmulPlan(library, MatmulProblem(M, N, K, False, False, "bfloat16", "bfloat16", "bf16", "bias"))
    algo = plan.candidates(handle)[0]
    plan.run(handle, algo, a.data.ptr, b.data.ptr, out.data.ptr, (bias.data.ptr,), workspace=..., workspace_bytes=..., stream=...)

Before a graph is captured: ask for the candidates, which some versions refuse to give during a capture, and run the chosen one
once, since a kernel is loaded at its first launch. The constants are those of cublasLt.h, cublas_api.h and library_types.h, by
their names there; CUDA 12 and 13 agree on them.
"""

import ctypes
import weakref
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p, sizeof
from dataclasses import dataclass
from typing import Any

from tensorlite.arrays import INSTALL_CUDA, DeviceError

CUBLAS_STATUS_SUCCESS, CUBLAS_STATUS_NOT_INITIALIZED = 0, 1
CUBLAS_STATUS_INVALID_VALUE, CUBLAS_STATUS_NOT_SUPPORTED = 7, 15
CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 77
CUDA_R_32F, CUDA_R_16BF = 0, 14

CUBLASLT_MATMUL_DESC_TRANSA = 3  # int32
CUBLASLT_MATMUL_DESC_TRANSB = 4  # int32
CUBLASLT_MATMUL_DESC_EPILOGUE = 7  # uint32
CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8
CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER = 11
CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD = 12  # int64

CUBLASLT_EPILOGUE_DEFAULT = 1
CUBLASLT_EPILOGUE_BIAS = 4
CUBLASLT_EPILOGUE_GELU_AUX = 32 | 128
CUBLASLT_EPILOGUE_GELU_AUX_BIAS = 32 | 128 | 4
CUBLASLT_EPILOGUE_DGELU = 64 | 128
CUBLASLT_EPILOGUE_BGRADA = 256

CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1  # uint64
CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3  # uint32
CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5  # uint32; B, C and D follow: 6, 7, 8

CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2
CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE = 4

DTYPES = {"float32": CUDA_R_32F, "bfloat16": CUDA_R_16BF}
COMPUTE = {  # (operands, compute); sums are float32 in all of them
    ("float32", "float32"): CUBLAS_COMPUTE_32F,
    ("float32", "tf32"): CUBLAS_COMPUTE_32F_FAST_TF32,
    ("bfloat16", "bf16"): CUBLAS_COMPUTE_32F,
}
BIAS, AUX = CUBLASLT_MATMUL_DESC_BIAS_POINTER, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER
EPILOGUES = {  # the constant, and the pointers that go with it, `extra`, in order; they have out's dtype, cuBLASLt's default
    "none": (CUBLASLT_EPILOGUE_DEFAULT, ()),
    "bias": (CUBLASLT_EPILOGUE_BIAS, (BIAS,)),  # out = a b + bias; bias: (N,)
    "gelu": (CUBLASLT_EPILOGUE_GELU_AUX, (AUX,)),  # aux = a b, out = gelu(aux), the one with tanh; aux: (M, N)
    "gelu_bias": (CUBLASLT_EPILOGUE_GELU_AUX_BIAS, (BIAS, AUX)),  # aux = a b + bias, out = gelu(aux)
    "dgelu": (CUBLASLT_EPILOGUE_DGELU, (AUX,)),  # out = (a b) gelu'(aux)
    "bias_grad": (CUBLASLT_EPILOGUE_BGRADA, (BIAS,)),  # out = a b, sums: (N,) = 1^T b, so db beside dw = x^T dy
}
WORKSPACE_BYTES = 32 << 20


class CublasError(DeviceError):
    """A call that cuBLASLt refused: its name, the status by name and by number, and the matmul it was about."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class MatmulProblem:
    """One problem, out (M, N) = epilogue(a b) of a (M, K) and b (K, N). str() is unique to it: the key of a choice.

    a_t, b_t: whether that operand is the transpose (.T) of a C-contiguous array, else it is C-contiguous itself, as out is.
    operands, out: "float32" or "bfloat16". compute: "float32", "tf32" or "bf16". epilogue: one of EPILOGUES.
    """

    M: int
    N: int
    K: int
    a_t: bool
    b_t: bool
    operands: str
    out: str
    compute: str
    epilogue: str = "none"

    def __post_init__(self) -> None:
        if (self.operands, self.compute) not in COMPUTE or self.out not in DTYPES or self.epilogue not in EPILOGUES:
            raise ValueError(
                f"{self}: (operands, compute) is one of {[*COMPUTE]}, out one of {[*DTYPES]}, epilogue one of {[*EPILOGUES]}"
            )

    @property
    def fusible(self) -> bool:
        """Whether the library is asked to fuse this epilogue."""
        aux = AUX in EPILOGUES[self.epilogue][1]
        if (self.epilogue == "bias_grad" and self.b_t) or (aux and self.N % 8):
            return False  # BGRADA wants its A not transposed, AUX_LD a multiple of 8
        return not (aux and self.operands == "float32")  # how the library makes its tanh, it does not say: our own GELU is exact

    def __str__(self) -> str:
        a = f"({self.K}, {self.M}).T" if self.a_t else f"({self.M}, {self.K})"
        b = f"({self.N}, {self.K}).T" if self.b_t else f"({self.K}, {self.N})"
        return f"{a} @ {b}, {self.operands} to {self.out}, compute {self.compute}, epilogue {self.epilogue}"


@dataclass(frozen=True)
class Algo:
    """One algorithm for a matmul. data: what cuBLASLt calls cublasLtMatmulAlgo_t. name: the same in hexadecimal."""

    data: bytes
    workspace_bytes: int

    @property
    def name(self) -> str:
        return self.data.hex()


class HeuristicResult(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t"""

    _fields_ = (
        ("algo", c_uint64 * 8),
        ("workspaceSize", c_size_t),
        ("state", c_int),
        ("wavesCount", c_float),
        ("reserved", c_int * 4),
    )


_SET = (c_int, c_void_p, c_int, c_void_p, c_size_t)  # status of (object, attribute, value, its size)
SIGNATURES = (  # name, result, arguments
    ("GetVersion", c_size_t),
    ("GetStatusName", c_char_p, c_int),
    ("Create", c_int, c_void_p),
    ("Destroy", c_int, c_void_p),
    ("MatmulDescCreate", c_int, c_void_p, c_int, c_int),
    ("MatmulDescDestroy", c_int, c_void_p),
    ("MatmulDescSetAttribute", *_SET),
    ("MatrixLayoutCreate", c_int, c_void_p, c_int, c_uint64, c_uint64, c_int64),
    ("MatrixLayoutDestroy", c_int, c_void_p),
    ("MatmulPreferenceCreate", c_int, c_void_p),
    ("MatmulPreferenceDestroy", c_int, c_void_p),
    ("MatmulPreferenceSetAttribute", *_SET),
    ("MatmulAlgoGetHeuristic", c_int, *[c_void_p] * 7, c_int, c_void_p, c_void_p),
    ("Matmul", c_int, *[c_void_p] * 14, c_size_t, c_void_p),
)


class Owned(c_void_p):
    """A handle or a descriptor of the library, which is destroyed with it."""


class Library:
    """cuBLASLt, loaded. Everything but a handle works without a GPU.

    Raises ImportError, with what to install, where the library is not to be found.
    """

    def __init__(self) -> None:
        try:
            from cuda.pathfinder import load_nvidia_dynamic_lib  # type: ignore

            self.lib = ctypes.CDLL(load_nvidia_dynamic_lib("cublasLt").abs_path)
        except (ImportError, RuntimeError, OSError) as error:  # no pathfinder, not found, not loadable
            raise ImportError(f"no cuBLASLt: {error}; {INSTALL_CUDA}") from error
        for name, result, *arguments in SIGNATURES:
            function = getattr(self.lib, f"cublasLt{name}")
            function.restype, function.argtypes = result, arguments

    def version(self) -> int:
        return int(self.lib.cublasLtGetVersion())

    def call(self, name: str, *arguments: Any, about: object = None) -> None:
        """Call cublasLt<name>; raises CublasError unless it succeeds."""
        status = getattr(self.lib, f"cublasLt{name}")(*arguments)
        if status != CUBLAS_STATUS_SUCCESS:
            words = f"cublasLt{name}: {self.lib.cublasLtGetStatusName(status).decode()} ({status})"
            raise CublasError(f"{words}, for {about}" if about else words, status)

    def new(self, what: str, *arguments: Any) -> Owned:
        """Create a handle ("") or a descriptor ("MatmulDesc" and the like)."""
        owned = Owned()
        self.call(f"{what}Create", byref(owned), *arguments)
        weakref.finalize(owned, getattr(self.lib, f"cublasLt{what}Destroy"), owned.value)
        return owned

    def set(self, what: str, owned: Owned, attribute: int, value: Any) -> None:
        """Set an attribute to a ctypes value, whose size cuBLASLt compares with its own."""
        self.call(f"{what}SetAttribute", owned, attribute, byref(value), sizeof(value))

    def create(self) -> Owned:
        """A handle for the current device; keep it, destroying it waits for the device. Raises CublasError where there is none."""
        try:
            return self.new("")
        except CublasError as error:
            if error.status != CUBLAS_STATUS_NOT_INITIALIZED:
                raise
            hint = "no CUDA device answers; check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES"
            raise CublasError(f"{error}: {hint}", error.status) from error


class MatmulPlan:
    """The descriptors of one matmul. The pointers in `extra` are stored in them at each run, so a plan is for one thread."""

    def __init__(self, library: Library, problem: MatmulProblem) -> None:
        self.library, self.problem = library, problem
        p = problem
        epilogue, self.extra = EPILOGUES[p.epilogue]
        self.desc = library.new("MatmulDesc", COMPUTE[p.operands, p.compute], CUDA_R_32F)
        self._set(CUBLASLT_MATMUL_DESC_TRANSA, c_int32(CUBLAS_OP_T if p.b_t else CUBLAS_OP_N))
        self._set(CUBLASLT_MATMUL_DESC_TRANSB, c_int32(CUBLAS_OP_T if p.a_t else CUBLAS_OP_N))
        self._set(CUBLASLT_MATMUL_DESC_EPILOGUE, c_uint32(epilogue))
        if AUX in self.extra:
            self._set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, c_int64(p.N))
        self.A = self._layout(p.operands, *((p.N, p.K) if p.b_t else (p.K, p.N)))
        self.B = self._layout(p.operands, *((p.K, p.M) if p.a_t else (p.M, p.K)))
        self.D = self._layout(p.out, p.M, p.N)

    def candidates(
        self, handle: Owned, workspace_bytes: int = WORKSPACE_BYTES, count: int = 16, alignment: int = 256
    ) -> list[Algo]:
        """At most `count` algorithms for it, the fastest first by cuBLASLt's own estimate; none where it supports none.

        alignment: what all pointers will be multiples of. Where K is split, the parts go to the workspace and are summed in a
        second step, so that bits repeat from run to run: in place is not allowed, nor are parts rounded to bfloat16.
        """
        p = self.problem
        if not p.fusible:
            return []
        schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
        if p.out == "float32":
            schemes |= CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE
        preference = self.library.new("MatmulPreference")
        self.library.set("MatmulPreference", preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, c_uint64(workspace_bytes))
        self.library.set("MatmulPreference", preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, c_uint32(schemes))
        for matrix in range(4):
            attribute = CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + matrix
            self.library.set("MatmulPreference", preference, attribute, c_uint32(alignment))
        self._point([alignment] * len(self.extra))  # of these pointers it reads the alignment alone
        results, found = (HeuristicResult * count)(), c_int()
        layouts = self.A, self.B, self.D, self.D
        try:
            self._call("MatmulAlgoGetHeuristic", handle, self.desc, *layouts, preference, count, results, byref(found))
        except CublasError as error:
            if error.status in (CUBLAS_STATUS_NOT_SUPPORTED, CUBLAS_STATUS_INVALID_VALUE):  # older versions say 7 for 15
                return []
            raise
        usable = [r for r in results[: found.value] if r.state == CUBLAS_STATUS_SUCCESS and r.workspaceSize <= workspace_bytes]
        return [Algo(bytes(r.algo), r.workspaceSize) for r in usable]

    def run(
        self,
        handle: Owned,
        algo: Algo,
        a: int,
        b: int,
        out: int,
        extra: Sequence[int] = (),
        workspace: int = 0,
        workspace_bytes: int = 0,
        stream: int = 0,
    ) -> None:
        """Launch out = epilogue(a b). All pointers are addresses on the device; extra: those that EPILOGUES lists."""
        self._point(extra)
        one, zero = byref(c_float(1.0)), byref(c_float(0.0))
        operands = one, b, self.A, a, self.B, zero, out, self.D, out, self.D  # D = 1 A B + 0 C, and C is not read
        self._call("Matmul", handle, self.desc, *operands, algo.data, workspace, workspace_bytes, stream)

    def _point(self, pointers: Sequence[int]) -> None:
        for attribute, pointer in zip(self.extra, pointers, strict=True):
            self._set(attribute, c_void_p(pointer))

    def _layout(self, dtype: str, rows: int, columns: int) -> Owned:
        """A C-contiguous (rows, columns) array as cuBLAS sees it: (columns, rows), the next column `columns` elements further."""
        return self.library.new("MatrixLayout", DTYPES[dtype], columns, rows, columns)

    def _set(self, attribute: int, value: Any) -> None:
        self.library.set("MatmulDesc", self.desc, attribute, value)

    def _call(self, name: str, *arguments: Any) -> None:
        self.library.call(name, *arguments, about=self.problem)
