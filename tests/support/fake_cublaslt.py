"""cuBLASLt without a GPU: a NumPy stand-in for cublasLtMatmul, which follows the real descriptors.

It knows only what cublasLt.h states: column-major matrices, their leading dimensions, transposes, and the epilogues. So swapped
operands or a wrong leading dimension give wrong values here as they would there. FakeLibrary needs no library at all.
"""

import ctypes
from ctypes import c_int32, c_int64, c_size_t, c_uint32, c_uint64
from typing import ClassVar

import numpy as np

from tensorlite.reference.activations import gelu_backward, gelu_forward


def get(library, what, owned, attribute, ctype):
    value, written = ctype(), c_size_t()
    function = getattr(library.lib, f"cublasLt{what}GetAttribute")
    assert function(owned, attribute, ctypes.byref(value), c_size_t(ctypes.sizeof(ctype)), ctypes.byref(written)) == 0
    assert written.value == ctypes.sizeof(ctype)  # the library has the attribute in the size that we set
    return value.value


def layout(library, owned):
    """Return CUBLASLT_MATRIX_LAYOUT_TYPE, ROWS, COLS and LD of an ORDER_COL layout."""
    assert get(library, "MatrixLayout", owned, 1, c_int32) == 0
    kinds = ((0, c_uint32), (2, c_uint64), (3, c_uint64), (4, c_int64))
    return tuple(get(library, "MatrixLayout", owned, attribute, kind) for attribute, kind in kinds)


def desc(library, plan, attribute, ctype):
    return get(library, "MatmulDesc", plan.desc, attribute, ctype)


TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}  # cudaDataType_t
IN_MEMORY = {0: np.dtype(np.float32), 2: np.dtype(np.float16), 14: np.dtype(np.uint16)}


def encode(x, type_):
    """Return float32 values as they are in memory."""
    if type_ != 14:
        return np.asarray(x, IN_MEMORY[type_])
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # to the nearest, ties to even


def decode(raw, type_):
    return (raw.astype(np.uint32) << 16).view(np.float32) if type_ == 14 else raw.astype(np.float32)


class Memory:
    """A device array: an address, a dtype, and values in C order."""

    known: ClassVar = {}  # address -> the number of its type, and its number of elements

    def __init__(self, values, dtype):
        self.type = TYPES[dtype]
        self.raw = encode(np.ascontiguousarray(values, np.float32), self.type).copy()
        self.pointer = self.raw.ctypes.data
        self.known[self.pointer] = self.type, self.raw.size

    @property
    def values(self):
        return decode(self.raw, self.type)


class Matrix:
    """Memory as cuBLAS reads it: `columns` columns of `rows` elements, `ld` elements from one column to the next."""

    def __init__(self, pointer, type_, rows, columns, ld):
        assert ld >= rows
        assert Memory.known[pointer] == (type_, (columns - 1) * ld + rows)
        self.type = type_
        size = IN_MEMORY[type_].itemsize
        memory = (ctypes.c_ubyte * (((columns - 1) * ld + rows) * size)).from_address(pointer)
        flat = np.frombuffer(memory, IN_MEMORY[type_])
        self.raw = np.lib.stride_tricks.as_strided(flat, (rows, columns), (size, ld * size))

    def read(self):
        return decode(self.raw, self.type).astype(float)

    def write(self, values):
        self.raw[...] = encode(values, self.type)


def fake_matmul(
    library, seen, handle, plan_desc, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algo, space, size, stream
):
    """Compute cublasLtMatmul in NumPy, by the descriptors. seen: receives the other arguments."""
    vars(seen).update(handle=handle, algo=algo, workspace=(space, size), stream=stream)

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
    result = alpha._obj.value * ((A.T if of(3, c_int32) else A) @ (B.T if of(4, c_int32) else B))
    assert result.shape == (m, n)

    def bias():
        return Matrix(of(8, c_uint64), type_, m, 1, m)

    def aux():
        ld = of(12, c_int64)
        assert ld % 8 == 0
        return Matrix(of(11, c_uint64), type_, m, n, ld)

    epilogue = of(7, c_uint32)
    if epilogue & 4:  # BIAS
        result = result + bias().read()
    if epilogue == 256:  # BGRADA
        assert not of(3, c_int32)
        bias().write(A.sum(axis=1, keepdims=True))
    elif epilogue & 32:  # GELU, here always with AUX
        assert epilogue & 128
        aux().write(result)
        result = gelu_forward(result)[0]
    elif epilogue == 64 | 128:  # DGELU
        result = gelu_backward(result, aux().read())
    else:
        assert epilogue in (1, 4)
    D.write(result)
    return 0


class FakeLibrary:
    """A cuBLASLt that knows `algos` algorithms for every matmul, and computes nothing."""

    def __init__(self, algos=1):
        self.algos = algos

    def create(self):
        return None

    def version(self):
        return 130000

    def new(self, what, *_):
        return what

    def set(self, *_):
        pass

    def call(self, name, *arguments, about=None):
        if name == "MatmulAlgoGetHeuristic":
            *_, results, found = arguments
            found._obj.value = self.algos
            for i in range(self.algos):
                results[i].algo[0] = i  # which makes their names differ
