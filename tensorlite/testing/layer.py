"""The layer that a gradient check is about: its forward, its backward and the inputs to check it at."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tensorlite.testing.trees import same_values


@dataclass
class Layer:
    """A forward and a backward, and the inputs at which they are checked, by name."""

    forward: Callable[..., tuple[Any, Any]]  # forward(**inputs) -> (y, cache)
    backward: Callable[[Any, Any], Any]  # backward(dy, cache) -> gradients in the order of the inputs
    inputs: dict[str, Any]

    @property
    def differentiable(self) -> list[str]:
        """Names of the inputs that have a gradient: the float arrays."""
        return [name for name, a in self.inputs.items() if is_float_array(a)]

    def wrote_since(self, before: Mapping[str, Any]) -> bool:
        """Whether an input array differs from its copy in `before`."""
        return not all(same_values(self.inputs[name], a) for name, a in before.items() if is_array(a))

    def restore(self, before: Mapping[str, Any]) -> None:
        """Give every input the value it has in `before`."""
        self.inputs |= copy_arrays(before)


def copy_arrays(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same inputs with every array copied."""
    return {name: a.copy() if is_array(a) else a for name, a in inputs.items()}


def is_array(a: Any) -> bool:
    """Whether `a` is an array of any library."""
    return hasattr(a, "dtype") and hasattr(a, "shape") and hasattr(a, "copy")


def is_float_array(a: Any) -> bool:
    """Whether `a` is an array of real or complex floats."""
    return is_array(a) and a.dtype.kind in "fc"
