"""Kernel signatures, read from the C++ source: a launch names its arguments.

`ops.launch(file, kernel, grid, block, x=x, rows=n)` names the parameters of the kernel. Their order and their types come from the
kernel's own parameter list. CUDA itself checks neither: it reads whatever bytes it is given.
"""

import functools
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tensorlite.cuda.runtime.nvrtc import KERNELS

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)')
PARAMETER = re.compile(r"(?P<type>.*[\s*])(?P<name>\w+)", re.DOTALL)

INTEGERS = (int, np.integer)
FLOATS = (float, np.floating)
BOOLS = (bool, np.bool_)
SCALARS = (int, float, np.generic)  # of Python and NumPy; a bool is an int


class Parameter(NamedTuple):
    """One parameter of a kernel: "const float*" and "lse"."""

    type: str
    name: str


class Signature:
    """The parameters of one kernel, in order. kernel: the file and the name of the kernel, for messages."""

    def __init__(self, kernel: str, parameters: Iterable[Parameter]) -> None:
        self.kernel = kernel
        self.types = {parameter.name: parameter.type for parameter in parameters}
        self._converters = [(name, _converter(type_)) for name, type_ in self.types.items()]

    def arguments(self, args: Mapping[str, Any], defines: Mapping[str, object]) -> list[Any]:
        """Put the arguments of a launch in order, each as a value of its parameter's C++ type.

        Arrays (pointers), None (a null pointer) and 0-d structured NumPy arrays (structs) are returned as they are.
        Raises TypeError, with the kernel and the names, where an argument is missing, unknown or of another type, or where a
        compile-time define has the name of a parameter.
        """
        if args.keys() != self.types.keys() or not self.types.keys().isdisjoint(defines):
            raise TypeError(self._mismatch(args, defines))
        values = []
        for name, convert in self._converters:
            try:
                values.append(convert(args[name]))
            except (TypeError, OverflowError) as error:
                raise TypeError(f"{self.kernel}: argument {name}: {error}, but the parameter is {self.types[name]}") from error
        return values

    def _mismatch(self, args: Mapping[str, Any], defines: Mapping[str, object]) -> str:
        problems = {
            "has no parameter": args.keys() - self.types.keys(),
            "needs the argument": self.types.keys() - args.keys(),
            "has a parameter that is also defined at compile time,": self.types.keys() & defines.keys(),
        }
        said = [f"{problem} {', '.join(sorted(names))}" for problem, names in problems.items() if names]
        return f"{self.kernel} {' and '.join(said)}; its parameters are {', '.join(self.types)}"


def read_signatures(file: str, source: str) -> dict[str, Signature]:
    """The signature of each kernel in a source text, by its name and in the order of the text. file: for messages."""
    kernels = KERNEL.findall(COMMENT.sub("", source))
    return {name: Signature(f"{file}: {name}", _read_parameters(parameters)) for name, parameters in kernels}


@functools.cache
def kernel_signature(file: str, kernel: str) -> Signature:
    """The signature of a kernel of tensorlite/cuda/kernels. Raises TypeError where the file has no such kernel."""
    signatures = read_signatures(file, (KERNELS / file).read_text())
    if kernel not in signatures:
        raise TypeError(f"{file} has no kernel {kernel}; its kernels are {', '.join(signatures)}")
    return signatures[kernel]


def _read_parameters(text: str) -> list[Parameter]:
    """The parameters in the parentheses of a kernel; none of their types has a comma in it."""
    parameters = []
    for part in filter(None, map(str.strip, text.split(","))):
        match = PARAMETER.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is not a type and a name")
        parameters.append(Parameter(" ".join(match["type"].split()), match["name"]))
    return parameters


def _converter(type_: str) -> Callable[[Any], Any]:
    """The function that converts an argument to a C++ type; a type that is no pointer and no scalar is a struct."""
    if type_.endswith("*"):
        return _pointer
    return {"int": _int32, "long long": _integer, "float": _float32, "bool": _bool}.get(type_, _struct)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, INTEGERS):
        raise TypeError(_kind(value))
    return operator.index(value)


def _int32(value: Any) -> np.int32:
    return np.int32(_integer(value))


def _float32(value: Any) -> np.float32:
    if not isinstance(value, FLOATS):
        raise TypeError(_kind(value))
    return np.float32(value)


def _bool(value: Any) -> np.bool_:
    if not isinstance(value, BOOLS):
        raise TypeError(_kind(value))
    return np.bool_(value)


def _is_struct(value: Any) -> bool:
    return type(value) is np.ndarray and value.dtype.names is not None and value.ndim == 0


def _pointer(value: Any) -> Any:
    if isinstance(value, SCALARS) or _is_struct(value):
        raise TypeError(_kind(value))
    return value


def _struct(value: Any) -> np.ndarray:
    if not _is_struct(value):
        raise TypeError(_kind(value))
    return value


def _kind(value: Any) -> str:
    """What an argument is, for a message."""
    return "got a struct" if _is_struct(value) else f"got {type(value).__name__}"
