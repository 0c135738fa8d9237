"""The CPU backend: the reference's mathematics in fewer passes over memory. `cpu.CPUOps()` goes where `ReferenceOps()` goes."""

from tensorlite.cpu.ops import CPUOps

__all__ = ["CPUOps"]
