"""Which backend a run gets: the reference, or the fast one of its device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from gpt.errors import ConfigError
from tensorlite import Device, DeviceError, Ops, ReferenceOps, cpu

PrecisionName = Literal["auto", "float32", "tf32", "fp16", "bf16"]


@dataclass(frozen=True)
class Backend:
    """A backend that a run may get: its name, its description for the user, and how it is created."""

    name: str
    description: str
    make: Callable[[], Ops]  # is called once per shard
    sharded: bool = False  # whether it is fastest with one shard of the batch per thread
    itemsize: int = 4  # bytes per activation


def select_backend(want: str, device: Device, precision: PrecisionName = "auto") -> Backend:
    """Return the backend of that name for a device.

    want: reference, fast or auto. auto is fast where that works, else reference.
    precision: what the fast backend computes in on a GPU; auto is the best that the GPU supports.

    Raises ConfigError for a precision that the backend does not have, and DeviceError for a fast backend that this GPU cannot run.
    """
    if device.name == "cuda" and want != "reference":
        try:
            return _cuda(precision)
        except DeviceError as error:
            if want == "fast" or precision not in ("auto", "float32"):
                raise
            return _reference(f" ({error})")
    if precision not in ("auto", "float32"):
        raise ConfigError(f"precision {precision} needs the fast backend on a CUDA device; here it is float32")
    return _reference() if want == "reference" else _cpu()


def _reference(why: str = "") -> Backend:
    return Backend("reference", f"plain array code, one function per op{why}", lambda: ReferenceOps(check=False))


def _cpu() -> Backend:
    return Backend(
        "fast",
        f"fewer passes over memory in {_overridden(cpu.CPUOps)} and adamw; else the reference",
        lambda: cpu.CPUOps(check=False),
        sharded=True,
    )


def _cuda(want: PrecisionName) -> Backend:
    """The CUDA backend. Its libraries are loaded here, so that a missing one is reported before any work."""
    from tensorlite.cuda import CUDAOps
    from tensorlite.cuda.loss_scale import DeviceLossScale
    from tensorlite.cuda.ops import SCALED
    from tensorlite.cuda.runtime.device import CudaRuntime

    runtime = CudaRuntime(want)
    precision: Any = runtime.precision
    loss_scale = DeviceLossScale(runtime) if precision in SCALED else None  # one for all shards
    kernels = f"kernels in {precision}"
    if want == "auto":
        kernels += f" (auto: the GPU has compute capability {runtime.capability / 10})"
    return Backend(
        "fast",
        f"{kernels} for {_overridden(CUDAOps)} and adamw, matmuls by cuBLASLt, a single shard's step as one graph",
        lambda: CUDAOps(precision, check=False, runtime=runtime, loss_scale=loss_scale),
        itemsize=2 if precision in ("bf16", "fp16") else 4,
    )


def _overridden(ops: type) -> str:
    """The names of the ops that a backend implements itself. It inherits all others from the reference."""
    return ", ".join(sorted(name.removesuffix("_forward") for name in vars(ops) if name.endswith("_forward")))
