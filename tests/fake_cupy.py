"""A stand-in for CuPy where there is no GPU: NumPy inside, CuPy's manners outside.

Like CuPy's, its arrays refuse to become NumPy arrays unasked, do not mix with them, and reduce to 0-d arrays, not to scalars. It
shows that array-agnostic code calls the right library everywhere; it says nothing about kernels or speed.
"""

import operator
import types

import numpy as np


def unwrap(value):
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, tuple | list):
        return type(value)(unwrap(v) for v in value)
    return value


def wrap(value):
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    return tuple(wrap(v) for v in value) if isinstance(value, tuple) else value


class ndarray:  # noqa: N801  (CuPy's name)
    __array_ufunc__ = None  # numpy_array + ours comes to our __radd__, which refuses
    __module__ = "cupy"

    def __init__(self, a):
        self._a = a

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct one explicitly.")

    shape = property(lambda self: self._a.shape)
    dtype = property(lambda self: self._a.dtype)
    size = property(lambda self: self._a.size)
    ndim = property(lambda self: self._a.ndim)
    nbytes = property(lambda self: self._a.nbytes)
    T = property(lambda self: wrap(self._a.T))
    base = property(lambda self: None if self._a.base is None else wrap(self._a.base))

    def get(self):
        return self._a.copy()

    def __len__(self):
        return len(self._a)

    def __iter__(self):
        return (wrap(row) for row in self._a)

    def __float__(self):
        return float(self._a)

    def __int__(self):
        return int(self._a)

    def __bool__(self):
        return bool(self._a)

    def __getitem__(self, index):
        return wrap(self._a[unwrap(index)])

    def __setitem__(self, index, value):
        self._a[unwrap(index)] = unwrap(value)


def _method(name):
    def method(self, *args, **kwargs):
        return wrap(getattr(self._a, name)(*map(unwrap, args), **{k: unwrap(v) for k, v in kwargs.items()}))

    return method


for _name in [
    "reshape",
    "transpose",
    "sum",
    "mean",
    "max",
    "min",
    "astype",
    "view",
    "copy",
    "any",
    "all",
    "__neg__",
    "__abs__",
]:
    setattr(ndarray, _name, _method(_name))


def _operator(function, swap=False):
    def method(self, other):
        a, b = self._a, unwrap(other)
        return wrap(function(b, a) if swap else function(a, b))

    return method


def _in_place(function):
    def method(self, other):
        self._a = function(self._a, unwrap(other))
        return self

    return method


for _name in [
    "add",
    "sub",
    "mul",
    "truediv",
    "pow",
    "matmul",
    "lshift",
    "rshift",
    "or_",
    "and_",
    "xor",
    "mod",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
]:
    _dunder = _name.rstrip("_")
    setattr(ndarray, f"__{_dunder}__", _operator(getattr(operator, _name)))
    if _name not in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(ndarray, f"__r{_dunder}__", _operator(getattr(operator, _name), swap=True))
        setattr(ndarray, f"__i{_dunder}__", _in_place(getattr(operator, f"i{_dunder}")))


def module() -> types.ModuleType:
    """A module to put into sys.modules as `cupy`."""
    cupy = types.ModuleType("cupy")
    cupy.ndarray = ndarray

    def asarray(a, dtype=None):
        return a if isinstance(a, ndarray) and dtype is None else ndarray(np.array(a._a if isinstance(a, ndarray) else a, dtype))

    def lookup(name):
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found

        def function(*args, **kwargs):
            return wrap(found(*map(unwrap, args), **{k: unwrap(v) for k, v in kwargs.items()}))

        return function

    cupy.asarray = asarray
    cupy.array = lambda a, dtype=None: ndarray(np.array(a._a if isinstance(a, ndarray) else a, dtype))
    cupy.__getattr__ = lookup
    return cupy
