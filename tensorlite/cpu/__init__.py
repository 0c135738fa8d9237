"""The CPU backend: the same ops in fewer passes over memory. Use `cpu.CPUOps()` in the place of `ReferenceOps()`."""

from tensorlite.cpu.ops import CPUOps

__all__ = ["CPUOps"]
