"""Which array library the arguments belong to, and which device a run uses.

Every op is written once. `array_namespace` looks at the arrays it was given and returns `numpy` or `cupy`, whose functions have the
same names. CuPy is imported only when somebody asks for a CUDA device; `import tensorlite` needs NumPy alone.
"""

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # a numpy.ndarray or a cupy.ndarray

INSTALL_CUDA = 'install CuPy for your CUDA version: pip install -e ".[cuda13x]" (or ".[cuda12x]")'


class DeviceError(RuntimeError):
    """The device that was asked for cannot be used; the message says why and what to install."""


def array_namespace(*arrays: Array) -> Any:
    """Return the module, `numpy` or `cupy`, that all of `arrays` belong to (None is skipped).

    Raises TypeError when the two libraries are mixed or when an argument is no array at all.
    """
    for a in arrays:
        if a is not None and type(a) is not np.ndarray:
            break
    else:
        if arrays and arrays[0] is not None:
            return np  # the usual case, answered at once: every op asks
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
    """Return `a` as a NumPy array, copying it off the GPU where it is a CuPy one."""
    return np.asarray(a) if array_namespace(a) is np else a.get()


@dataclass(frozen=True)
class Device:
    """A place to compute: the array module to allocate with, a printable description, and why it was chosen."""

    name: str  # "cpu" or "cuda"
    xp: Any  # the module numpy or cupy
    description: str
    reason: str = ""  # for "auto" that fell back to the CPU: what CUDA said


def pick_device(want: str = "auto", ordinal: int | None = None) -> Device:
    """Choose the device: "cpu", "cuda", or "auto" (CUDA where it works, else the CPU with the reason kept).

    ordinal: which of CUDA's devices to make the current one, counted round; None leaves the current one. No other is touched, since
    a first touch takes hundreds of MiB of a GPU's memory.
    Raises DeviceError when "cuda" was asked for and cannot be used.
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
    """Import CuPy and make sure that the device answers: `import cupy` alone succeeds on a machine without any GPU."""
    try:
        import cupy
    except ImportError as error:
        what = "is not installed" if error.name == "cupy" else f"cannot be imported ({error})"
        raise DeviceError(f"no CUDA: CuPy {what}; {INSTALL_CUDA}") from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()  # raises with CUDA's own words, where is_available() would hide them
    except Exception as error:
        raise DeviceError(f"no CUDA: {error}; check the driver with nvidia-smi, then {INSTALL_CUDA}") from error
    if count == 0:
        raise DeviceError("no CUDA: the driver lists no device; check nvidia-smi and CUDA_VISIBLE_DEVICES")
    try:
        _check_compiler(cupy.cuda.nvrtc.getVersion()[0], cupy.cuda.runtime.driverGetVersion() // 1000)
        if ordinal is not None:
            cupy.cuda.Device(ordinal % count).use()
        a = cupy.ones((2, 2), np.float32)
        float((a @ a).sum())  # a matmul and a kernel: cuBLAS and the run-time compiler are libraries of their own
    except DeviceError:
        raise
    except Exception as error:
        raise DeviceError(f"no CUDA: a device is here but cannot compute ({error}); {INSTALL_CUDA}") from error
    return cupy


def _check_compiler(compiler: int, driver: int) -> None:
    """Raise DeviceError where the run-time compiler's CUDA is newer than the driver's: its code would not load."""
    if compiler > driver:
        raise DeviceError(
            f"no CUDA: the run-time compiler is of CUDA {compiler}, and the driver, of CUDA {driver}, cannot load its code; "
            f'pip uninstall nvidia-cuda-nvrtc, then pip install -e ".[cuda{driver}x]", or update the driver'
        )


def device_failure(error: Exception) -> Exception | None:
    """What an error of CuPy's or CUDA's own, met in the middle of a run, means to a user: MemoryError or DeviceError. Else None."""
    if not type(error).__module__.startswith("cupy"):
        return None
    if isinstance(error, MemoryError) or "MemoryAllocation" in str(error):
        return MemoryError(str(error))
    return DeviceError(f"the GPU failed ({error}); check it with nvidia-smi, or use --backend reference")


def _cpu_description() -> str:
    return f"NumPy {np.__version__}"
