"""A stand-in for CuPy where there is no GPU: it computes with NumPy and has CuPy's interface.

Like CuPy's, its arrays refuse to become NumPy arrays unasked, do not mix with them, and reduce to 0-d arrays, not to scalars. It
shows that array-agnostic code calls the right library everywhere; it says nothing about kernels or speed.

No stand-in knows a name that CuPy does not: what the real modules and classes have is listed in golden/cupy_names.json, which was
made from an installed CuPy.
"""

import json
import operator
import types
from pathlib import Path

import numpy as np

NAMES = {
    part: set(str(names).split())
    for part, names in json.loads(Path(__file__).with_name("golden").joinpath("cupy_names.json").read_text()).items()
}


class StandIn(types.ModuleType):
    """A module of CuPy, or an object of one of its classes, with the attributes that it is given.

    Raises AttributeError for one that the real thing lacks, whether it is set or read.
    """

    def __init__(self, part, **attributes):
        super().__init__(part)
        self.__path__ = []  # a package: its submodules exist once they are imported
        for name, value in attributes.items():
            setattr(self, name, value)

    def __setattr__(self, name, value):
        if not name.startswith("__"):
            existing(self.__name__, name)
        super().__setattr__(name, value)


def existing(part, name):
    if name not in NAMES[part]:
        raise AttributeError(f"module {part!r} has no attribute {name!r}")


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


def stack(arrays, axis=0):
    """np.stack, which CuPy's is but for numbers: it refuses them."""
    if any(isinstance(a, int | float) for a in arrays):
        raise TypeError("Argument 'a' has incorrect type (expected cupy._core.core._ndarray_base, got float)")
    return np.stack(arrays, axis)


def module() -> StandIn:
    """A module to put into sys.modules as `cupy`: the functions that both libraries have, and no device."""

    def asarray(a, dtype=None):
        return a if isinstance(a, ndarray) and dtype is None else ndarray(np.array(a._a if isinstance(a, ndarray) else a, dtype))

    def lookup(name):
        existing("cupy", name)
        found = stack if name == "stack" else getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found

        def function(*args, **kwargs):
            return wrap(found(*map(unwrap, args), **{k: unwrap(v) for k, v in kwargs.items()}))

        return function

    def array(a, dtype=None):
        return ndarray(np.array(a._a if isinstance(a, ndarray) else a, dtype))

    return StandIn("cupy", ndarray=ndarray, asarray=asarray, array=array, __getattr__=lookup)


class Gpus:
    """A machine's devices, as `cupy` sees them: `Gpus(2).cupy`. `used` notes which device each thing that makes a context was on.

    count: how many CUDA lists. pci: their numbers on the machine's bus. driver, compiler: major versions of CUDA. load: what
    happens to the driver when it is given code. capability: the compute capability of all of them, 90 for 9.0.
    """

    def __init__(self, count=1, pci=None, driver=13, compiler=13, load=lambda code: None, capability=90):
        self.current, self.used, self.pci, self.load, self.capability = 0, [], pci or range(count), load, capability
        self.cupy = module()
        self.cupy.ones = self.ones
        self.cupy.empty = lambda shape, dtype: StandIn("cupy.ndarray", data=self.pointer(), shape=shape)
        self.cupy.cuda = StandIn(
            "cupy.cuda",
            Device=self.device,
            alloc=lambda nbytes: self.note("alloc") or self.pointer(),
            get_current_stream=lambda: StandIn("cupy.cuda.Stream", ptr=0),
            function=StandIn("cupy.cuda.function", Module=self.module),
            nvrtc=StandIn("cupy.cuda.nvrtc", getVersion=lambda: (compiler, 0)),
            runtime=StandIn(
                "cupy.cuda.runtime",
                getDeviceCount=lambda: count,
                getDeviceProperties=lambda i: {"name": f"Imaginary GPU {i}".encode(), "sharedMemPerBlockOptin": 99 << 10},
                driverGetVersion=lambda: 1000 * driver + 10,
                runtimeGetVersion=lambda: 1000 * compiler,
            ),
        )

    def note(self, what):
        self.used.append((what, self.current))

    def ones(self, shape, dtype):
        self.note("ones")
        return wrap(np.ones(shape, dtype))

    def device(self, number=None):
        own = self.current if number is None else number

        def use():
            self.current = own
            self.note("use")

        return StandIn(
            "cupy.cuda.Device",
            id=own,
            use=use,
            synchronize=lambda: self.note("synchronize"),
            compute_capability=str(self.capability),
            pci_bus_id=f"0000:{self.pci[own]:02X}:00.0",
        )

    def module(self):
        def get_function(name):
            return lambda grid, block, args, shared_mem=0: self.note(name)

        return StandIn("cupy.cuda.function.Module", load=self.load, get_function=get_function)

    @staticmethod
    def pointer():
        return StandIn("cupy.cuda.MemoryPointer", ptr=256)
