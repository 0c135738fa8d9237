"""GEMMs by NVIDIA's cuBLASLt, called through ctypes.

It allocates nothing and takes the stream as an argument, so calls can be captured in a CUDA graph.

cuBLAS matrices are column-major, and a C-contiguous (M, K) array read column by column is its transpose, (K, M). So for out = a b
we ask for out^T = b^T a^T: cuBLAS's A is our b, its B is our a, and its (m, n, k) are our (N, M, K). Nothing is copied. Where an
array is itself the transpose of a C-contiguous one, the attribute TRANSA or TRANSB undoes it.

    library = Library()
    handle = library.create()
    plan = MatmulPlan(library, MatmulProblem(M, N, K, False, False, "bfloat16", "bfloat16", "bf16", "bias", alignment=16))
    algo = plan.candidates(handle)[0]
    plan.run(handle, algo, a.data.ptr, b.data.ptr, out.data.ptr, (bias.data.ptr,), workspace=..., workspace_bytes=..., stream=...)

Two things must happen before a graph is captured. The candidates must be known, because some versions refuse to list them during a
capture; and the chosen algorithm must have run once, because its kernel is loaded at the first launch. The constants have their
names in cublasLt.h, cublas_api.h and library_types.h; CUDA 12 and 13 agree on their values.
"""

import ctypes
import weakref
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p, sizeof
from dataclasses import dataclass
from typing import Any, NamedTuple

from tensorlite.arrays import INSTALL_CUDA, DeviceError

CUBLAS_STATUS_SUCCESS, CUBLAS_STATUS_NOT_INITIALIZED = 0, 1
CUBLAS_STATUS_INVALID_VALUE, CUBLAS_STATUS_NOT_SUPPORTED = 7, 15
CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 77
CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF = 0, 2, 14

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

DTYPES = {"float32": CUDA_R_32F, "float16": CUDA_R_16F, "bfloat16": CUDA_R_16BF}
COMPUTE = {  # (operands, compute); sums are float32 in all of them
    ("float32", "float32"): CUBLAS_COMPUTE_32F,
    ("float32", "tf32"): CUBLAS_COMPUTE_32F_FAST_TF32,
    ("float16", "fp16"): CUBLAS_COMPUTE_32F,
    ("bfloat16", "bf16"): CUBLAS_COMPUTE_32F,
}
BIAS = CUBLASLT_MATMUL_DESC_BIAS_POINTER
AUX = CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER


class Epilogue(NamedTuple):
    """What a GEMM does with its result before it stores it."""

    constant: int
    pointers: tuple[int, ...]  # attributes for the arrays it uses besides, in the order of `extra`; cuBLASLt gives them out's dtype


EPILOGUES = {
    "none": Epilogue(CUBLASLT_EPILOGUE_DEFAULT, ()),
    "bias": Epilogue(CUBLASLT_EPILOGUE_BIAS, (BIAS,)),  # out = a b + bias; bias: (N,)
    "gelu": Epilogue(CUBLASLT_EPILOGUE_GELU_AUX, (AUX,)),  # aux = a b, out = gelu(aux), the one with tanh; aux: (M, N)
    "gelu_bias": Epilogue(CUBLASLT_EPILOGUE_GELU_AUX_BIAS, (BIAS, AUX)),  # aux = a b + bias, out = gelu(aux)
    "dgelu": Epilogue(CUBLASLT_EPILOGUE_DGELU, (AUX,)),  # out = (a b) gelu'(aux)
    "bias_grad": Epilogue(CUBLASLT_EPILOGUE_BGRADA, (BIAS,)),  # out = a b, sums: (N,) = 1^T b, which is db beside dw = x^T dy
}
WORKSPACE_BYTES = 32 << 20
ALIGNMENT = 128  # bytes: every parameter is aligned to this, in bf16, too; new arrays are aligned to more


class CublasError(DeviceError):
    """A call that cuBLASLt refused. The message has its name, the status as a name and a number, and the matmul."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class MatmulProblem:
    """The problem out = epilogue(a b), for a: (M, K), b: (K, N) and out: (M, N), which is C-contiguous.

    a_t, b_t: whether that operand is the transpose (.T) of a C-contiguous array; otherwise it is C-contiguous itself.
    operands: the dtype of a and b, one of DTYPES.
    out: the dtype of out, one of DTYPES.
    compute: "float32", "tf32", "fp16" or "bf16".
    epilogue: one of EPILOGUES.
    alignment: bytes of which all addresses are multiples, those of the epilogue included: a power of two, at most ALIGNMENT.
        cuBLASLt reads the leading dimensions, which also decide what an algorithm can load at once, from the layouts.

    str() is different for different problems, so it is the key under which the choice of an algorithm is stored.
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
    alignment: int = ALIGNMENT

    def __post_init__(self) -> None:
        if (self.operands, self.compute) not in COMPUTE or self.out not in DTYPES or self.epilogue not in EPILOGUES:
            raise ValueError(
                f"{self}: (operands, compute) is one of {[*COMPUTE]}, out one of {[*DTYPES]}, epilogue one of {[*EPILOGUES]}"
            )

    @property
    def flops(self) -> float:
        """Floating-point operations of the matmul without its epilogue."""
        return 2.0 * self.M * self.N * self.K

    @property
    def fusible(self) -> bool:
        """Whether we ask cuBLASLt to fuse this epilogue."""
        if self.epilogue == "bias_grad" and self.b_t:
            return False  # BGRADA needs an A that is not transposed
        if AUX in EPILOGUES[self.epilogue].pointers:
            if self.N % 8:
                return False  # AUX_LD must be a multiple of 8
            return self.operands != "float32"  # the precision of the library's tanh is undocumented; our own GELU is exact
        return True

    def __str__(self) -> str:
        a = f"({self.K}, {self.M}).T" if self.a_t else f"({self.M}, {self.K})"
        b = f"({self.N}, {self.K}).T" if self.b_t else f"({self.K}, {self.N})"
        words = f"{a} @ {b}, {self.operands} to {self.out}, compute {self.compute}, epilogue {self.epilogue}"
        return f"{words}, aligned to {self.alignment} bytes"


@dataclass(frozen=True)
class Algo:
    """One algorithm for a matmul. data: a cublasLtMatmulAlgo_t. name: the same in hexadecimal."""

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


_SET_ATTRIBUTE = (c_void_p, c_int, c_void_p, c_size_t)  # the object, the attribute, its value, the size of the value
STATUS_FUNCTIONS = {  # functions that return a status: the name after "cublasLt", and the types of the arguments
    "Create": (c_void_p,),
    "Destroy": (c_void_p,),
    "MatmulDescCreate": (c_void_p, c_int, c_int),
    "MatmulDescDestroy": (c_void_p,),
    "MatmulDescSetAttribute": _SET_ATTRIBUTE,
    "MatrixLayoutCreate": (c_void_p, c_int, c_uint64, c_uint64, c_int64),
    "MatrixLayoutDestroy": (c_void_p,),
    "MatmulPreferenceCreate": (c_void_p,),
    "MatmulPreferenceDestroy": (c_void_p,),
    "MatmulPreferenceSetAttribute": _SET_ATTRIBUTE,
    "MatmulAlgoGetHeuristic": (*[c_void_p] * 7, c_int, c_void_p, c_void_p),
    "Matmul": (*[c_void_p] * 14, c_size_t, c_void_p),
}


class Owned(c_void_p):
    """A handle or a descriptor. When this object is garbage-collected, the library destroys it."""


class Library:
    """cuBLASLt, loaded. Everything but a handle works without a GPU.

    Raises ImportError, with the line to install it, where the library is not found.
    """

    def __init__(self) -> None:
        try:
            from cuda.pathfinder import load_nvidia_dynamic_lib  # type: ignore

            self.lib = ctypes.CDLL(load_nvidia_dynamic_lib("cublasLt").abs_path)
        except (ImportError, RuntimeError, OSError, AttributeError) as error:  # no pathfinder, not found, not loadable, a Mac
            raise ImportError(f"no cuBLASLt: {error}; {INSTALL_CUDA}") from error
        self.lib.cublasLtGetVersion.restype = c_size_t
        self.lib.cublasLtGetStatusName.restype = c_char_p
        for name, arguments in STATUS_FUNCTIONS.items():
            getattr(self.lib, f"cublasLt{name}").argtypes = arguments

    def version(self) -> int:
        return int(self.lib.cublasLtGetVersion())

    def call(self, name: str, *arguments: Any, about: object = None) -> None:
        """Call cublasLt<name>. Raises CublasError unless it succeeds. about: the matmul, for the message."""
        status = getattr(self.lib, f"cublasLt{name}")(*arguments)
        if status != CUBLAS_STATUS_SUCCESS:
            words = f"cublasLt{name}: {self.lib.cublasLtGetStatusName(status).decode()} ({status})"
            raise CublasError(f"{words}, for {about}" if about else words, status)

    def new(self, what: str, *arguments: Any) -> Owned:
        """Create a handle (what = "") or a descriptor (what = "MatmulDesc" and the like)."""
        owned = Owned()
        self.call(f"{what}Create", byref(owned), *arguments)
        weakref.finalize(owned, getattr(self.lib, f"cublasLt{what}Destroy"), owned.value)
        return owned

    def set(self, what: str, owned: Owned, attribute: int, value: Any) -> None:
        """Set an attribute to a ctypes value, whose size cuBLASLt compares with its own."""
        self.call(f"{what}SetAttribute", owned, attribute, byref(value), sizeof(value))

    def create(self) -> Owned:
        """Create a handle for the current device. Raises CublasError where there is no device.

        Make it once: to destroy a handle waits for the device.
        """
        try:
            return self.new("")
        except CublasError as error:
            if error.status != CUBLAS_STATUS_NOT_INITIALIZED:
                raise
            hint = "no CUDA device answers; check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES"
            raise CublasError(f"{error}: {hint}", error.status) from error


class MatmulPlan:
    """The descriptors of one matmul. Each run stores the pointers of its epilogue in them, so a plan serves one thread only."""

    def __init__(self, library: Library, problem: MatmulProblem) -> None:
        self.library = library
        self.problem = p = problem
        self.epilogue = EPILOGUES[p.epilogue]
        self.desc = library.new("MatmulDesc", COMPUTE[p.operands, p.compute], CUDA_R_32F)
        self._set(CUBLASLT_MATMUL_DESC_TRANSA, c_int32(CUBLAS_OP_T if p.b_t else CUBLAS_OP_N))
        self._set(CUBLASLT_MATMUL_DESC_TRANSB, c_int32(CUBLAS_OP_T if p.a_t else CUBLAS_OP_N))
        self._set(CUBLASLT_MATMUL_DESC_EPILOGUE, c_uint32(self.epilogue.constant))
        if AUX in self.epilogue.pointers:
            self._set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, c_int64(p.N))
        a_in_memory = (p.K, p.M) if p.a_t else (p.M, p.K)
        b_in_memory = (p.N, p.K) if p.b_t else (p.K, p.N)
        self.A = self._layout(p.operands, b_in_memory)
        self.B = self._layout(p.operands, a_in_memory)
        self.D = self._layout(p.out, (p.M, p.N))

    def candidates(self, handle: Owned, workspace_bytes: int = WORKSPACE_BYTES, count: int = 16) -> list[Algo]:
        """Return at most `count` algorithms, the fastest first by cuBLASLt's own estimate; none where it supports none.

        Split-K is allowed only with a reduction out of place, in the workspace, of parts that are not rounded to 16 bits. This
        makes results bitwise reproducible. A reduction in place takes turns in the output, but no document says in which order.
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
            self.library.set("MatmulPreference", preference, attribute, c_uint32(p.alignment))
        self._point([p.alignment] * len(self.epilogue.pointers))  # the heuristic reads only the alignment of these pointers
        results = (HeuristicResult * count)()
        found = c_int()
        layouts = (self.A, self.B, self.D, self.D)  # of A, B, C and D
        try:
            self._call("MatmulAlgoGetHeuristic", handle, self.desc, *layouts, preference, count, results, byref(found))
        except CublasError as error:
            if error.status in (CUBLAS_STATUS_NOT_SUPPORTED, CUBLAS_STATUS_INVALID_VALUE):  # older versions return the latter
                return []
            raise
        return [
            Algo(bytes(result.algo), result.workspaceSize)
            for result in results[: found.value]
            if result.state == CUBLAS_STATUS_SUCCESS and result.workspaceSize <= workspace_bytes
        ]

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
        """Launch out = epilogue(a b).

        a, b, out: addresses on the device.
        extra: the addresses that go with the epilogue, in the order of `Epilogue.pointers`.
        workspace, workspace_bytes: memory on the device that the algorithm may use.
        stream: the address of the CUDA stream.
        """
        self._point(extra)
        one, zero = byref(c_float(1.0)), byref(c_float(0.0))
        matrix_a = (b, self.A)  # cuBLAS computes D = 1 A B + 0 C; it does not read C
        matrix_b = (a, self.B)
        matrix_d = (out, self.D)
        operands = (one, *matrix_a, *matrix_b, zero, *matrix_d, *matrix_d)
        self._call("Matmul", handle, self.desc, *operands, algo.data, workspace, workspace_bytes, stream)

    def _point(self, pointers: Sequence[int]) -> None:
        for attribute, pointer in zip(self.epilogue.pointers, pointers, strict=True):
            self._set(attribute, c_void_p(pointer))

    def _layout(self, dtype: str, shape: tuple[int, int]) -> Owned:
        """Describe a C-contiguous array to cuBLAS, which sees its transpose, with a leading dimension of `columns`."""
        rows, columns = shape
        return self.library.new("MatrixLayout", DTYPES[dtype], columns, rows, columns)

    def _set(self, attribute: int, value: Any) -> None:
        self.library.set("MatmulDesc", self.desc, attribute, value)

    def _call(self, name: str, *arguments: Any) -> None:
        self.library.call(name, *arguments, about=self.problem)
