"""Which array library the arguments belong to, and which device a run uses.

Every op is written once. `array_namespace` looks at its arguments and returns `numpy` or `cupy`, whose functions have the same
names. CuPy is imported only when a CUDA device is requested; `import tensorlite` needs NumPy alone.
"""

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # a numpy.ndarray or a cupy.ndarray

INSTALL_CUDA = 'install CuPy for your CUDA version: pip install -e ".[cuda13x]" (or ".[cuda12x]")'


class DeviceError(RuntimeError):
    """The requested device cannot be used; the message says why and what to install."""


def array_namespace(*arrays: Array) -> Any:
    """Return the module, `numpy` or `cupy`, that all of `arrays` belong to. Every op asks; None is skipped.

    Raises TypeError if the two libraries are mixed or an argument is no array.
    """
    for a in arrays:
        if a is not None and type(a) is not np.ndarray:
            break
    else:
        if arrays and arrays[0] is not None:
            return np  # the usual case, kept fast
    libraries = {_library(a) for a in arrays if a is not None}
    if len(libraries) != 1:
        raise TypeError(f"arrays of one library are needed, got {sorted(libraries) or 'none'}; move them to one device first")
    return sys.modules[libraries.pop()]


def _library(a: Array) -> str:
    if isinstance(a, np.ndarray | np.generic):
        return "numpy"
    library = type(a).__module__.partition(".")[0]
    if library != "cupy":
        raise TypeError(f"expected a NumPy or CuPy array, got {type(a).__name__}")
    return library


def to_numpy(a: Array) -> np.ndarray:
    """Return `a` as a NumPy array; a CuPy array is copied off the GPU."""
    return np.asarray(a) if array_namespace(a) is np else a.get()


@dataclass(frozen=True)
class Device:
    """A place to compute: the array module to allocate with, a printable description, and why it was chosen."""

    name: str  # "cpu" or "cuda"
    xp: Any  # the module numpy or cupy
    description: str
    reason: str = ""  # why "auto" fell back to the CPU, in the words of CUDA


def pick_device(want: str = "auto", ordinal: int | None = None) -> Device:
    """Choose the device of a run.

    want: "cpu", "cuda" or "auto": CUDA if it works, otherwise the CPU, with the reason in `Device.reason`.
    ordinal: index of the CUDA device to make current, modulo their number; None leaves the current one. No other device is
      touched, because the first touch takes hundreds of MiB of its memory.
    Raises DeviceError if "cuda" was requested and cannot be used.
    """
    if want not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device must be auto, cpu or cuda, not {want!r}")
    if want == "cpu":
        return Device("cpu", np, _cpu_description())
    try:
        cupy = _import_cupy(ordinal)
    except DeviceError as error:
        if want == "cuda":
            raise
        return Device("cpu", np, _cpu_description(), reason=str(error))
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return Device("cuda", cupy, properties["name"].decode())


def _import_cupy(ordinal: int | None) -> ModuleType:
    """Import CuPy and make sure that the device computes; `import cupy` alone succeeds on a machine without a GPU."""
    try:
        import cupy
    except ImportError as error:
        what = "is not installed" if error.name == "cupy" else f"cannot be imported ({error})"
        raise DeviceError(f"no CUDA: CuPy {what}; {INSTALL_CUDA}") from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()  # raises with the message of CUDA, which is_available() would hide
    except Exception as error:
        raise DeviceError(f"no CUDA: {error}; check the driver with nvidia-smi, then {INSTALL_CUDA}") from error
    if count == 0:
        raise DeviceError("no CUDA: the driver lists no device; check nvidia-smi and CUDA_VISIBLE_DEVICES")
    try:
        _check_compiler(cupy.cuda.nvrtc.getVersion()[0], cupy.cuda.runtime.driverGetVersion() // 1000)
        if ordinal is not None:
            cupy.cuda.Device(ordinal % count).use()
        a = cupy.ones((2, 2), np.float32)
        float((a @ a).sum())  # needs cuBLAS and the run-time compiler, which are separate libraries
    except DeviceError:
        raise
    except Exception as error:
        raise DeviceError(f"no CUDA: there is a device, but it cannot compute ({error}); {INSTALL_CUDA}") from error
    return cupy


def _check_compiler(compiler: int, driver: int) -> None:
    """Raise DeviceError if the run-time compiler is from a newer CUDA than the driver, which could not load its code."""
    if compiler > driver:
        raise DeviceError(
            f"no CUDA: the run-time compiler is from CUDA {compiler}, and the driver, from CUDA {driver}, cannot load its code; "
            f'pip uninstall nvidia-cuda-nvrtc, then pip install -e ".[cuda{driver}x]", or update the driver'
        )


def device_failure(error: Exception) -> Exception | None:
    """Translate an error of CuPy or CUDA itself, in the middle of a run, into MemoryError or DeviceError; None for any other."""
    if not type(error).__module__.startswith("cupy"):
        return None
    if isinstance(error, MemoryError) or "MemoryAllocation" in str(error):
        return MemoryError(str(error))
    return DeviceError(f"the GPU failed ({error}); check it with nvidia-smi, or use --backend reference")


def _cpu_description() -> str:
    return f"NumPy {np.__version__}"
