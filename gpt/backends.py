"""The implementations of the layers that a command line can choose from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpt.errors import ConfigError
from tensorlite import Device, Reference, cpu


@dataclass(frozen=True)
class Backend:
    """One of them, how it is made, and what is said of it."""

    name: str
    description: str
    make: Callable[[], Any]  # one object for each thread
    sharded: bool = False  # whether it wants a shard of the batch for each thread


def choose(want: str, device: Device) -> Backend:
    """reference, fast, or auto: fast where there is one. Raises ConfigError for a fast one that this device has not."""
    if want == "reference" or (want == "auto" and device.name != "cpu"):
        why = "" if want == "reference" else f" (there is no fast one for {device.name} yet)"
        return Backend("reference", f"plain array code, one function an op{why}", lambda: Reference(check=False))
    if device.name != "cpu":
        raise ConfigError(f"backend fast does not exist for {device.name} yet; use --backend reference")
    own = sorted({name.rsplit("_", 1)[0] for name in vars(cpu.Ops) if name.endswith("_forward")})
    return Backend(
        "fast",
        f"fewer passes over memory in {', '.join(own)} and adamw; else the reference",
        lambda: cpu.Ops(check=False),
        sharded=True,
    )
