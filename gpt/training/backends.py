"""The implementations of the layers that a command line can choose from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from gpt.errors import ConfigError
from tensorlite import Device, DeviceError, ReferenceOps, cpu

PrecisionName = Literal["auto", "float32", "tf32", "bf16"]


@dataclass(frozen=True)
class Backend:
    """One of them, how it is made, and what is said of it."""

    name: str
    description: str
    make: Callable[[], Any]  # one object for each thread
    sharded: bool = False  # whether it wants a shard of the batch for each thread
    itemsize: int = 4  # bytes of an activation


def select_backend(want: str, device: Device, precision: PrecisionName = "auto") -> Backend:
    """reference, fast, or auto: fast where it works. precision: of the fast one on a GPU; auto: bf16.

    Raises ConfigError for a precision that the backend has not, DeviceError for a fast backend that this GPU cannot run.
    """
    if device.name == "cuda" and want != "reference":
        try:
            return _cuda("bf16" if precision == "auto" else precision)
        except DeviceError as error:
            if want == "fast" or precision not in ("auto", "float32"):
                raise
            return _reference(f" ({error})")
    if precision not in ("auto", "float32"):
        raise ConfigError(f"precision {precision} is of the fast backend on a CUDA device; here it is float32")
    return _reference() if want == "reference" else _cpu()


def _reference(why: str = "") -> Backend:
    return Backend("reference", f"plain array code, one function an op{why}", lambda: ReferenceOps(check=False))


def _cpu() -> Backend:
    return Backend(
        "fast",
        f"fewer passes over memory in {', '.join(_own(cpu.CPUOps))} and adamw; else the reference",
        lambda: cpu.CPUOps(check=False),
        sharded=True,
    )


def _cuda(precision: Any) -> Backend:
    """Its libraries are loaded here, so that a missing one is noticed before any work."""
    from tensorlite.cuda import CUDAOps
    from tensorlite.cuda.runtime.device import CudaRuntime

    runtime = CudaRuntime()
    return Backend(
        "fast",
        f"kernels in {precision} for {', '.join(_own(CUDAOps))} and adamw, matmuls by cuBLASLt, a single shard's step as one graph",
        lambda: CUDAOps(precision, check=False, runtime=runtime),
        itemsize=2 if precision == "bf16" else 4,
    )


def _own(ops: type) -> list[str]:
    """The ops that a backend does in its own way; all others are the reference's."""
    return sorted(name.removesuffix("_forward") for name in vars(ops) if name.endswith("_forward"))
