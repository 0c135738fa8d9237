"""The CPU backend: the reference's mathematics in fewer passes over memory. `cpu.Ops()` goes where `Reference()` goes."""

from tensorlite.cpu.ops import Ops

__all__ = ["Ops"]
