"""The parameter table: every parameter is a named view of one flat buffer.

With one buffer the optimizer is one pass, the gradient norm is one reduction, and a sum over machines is one message. The
parameters that decay come first, so that weight decay applies to a prefix of the buffer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite.arrays import Array
from tensorlite.integers import round_up

# A tree of arrays by name, None for a parameter that is switched off. Gradients are a tree of the same names.
Params = dict[str, Any]
ALIGN = 64  # elements: every parameter starts on a 256-byte boundary, which suits vector loads; the gaps stay zero


@dataclass(frozen=True)
class Param:
    """One parameter: its name, its shape and its initial values."""

    name: str  # with dots, such as "blocks.3.qkv_w"
    shape: tuple[int, ...] | None  # None: the parameter is absent, like a bias that is switched off
    std: float = 0.0  # the initial values are drawn from N(0, std^2)
    fill: float = 0.0  # and this constant is added

    @property
    def decays(self) -> bool:
        """Whether weight decay applies: to matrices and embeddings, but not to biases and gains, which have one axis."""
        return self.shape is not None and len(self.shape) > 1


class ParamTable:
    """The names and shapes of the parameters, and their slices of the flat buffer.

    size: elements of the buffer, including the gaps.
    n_params: elements of the parameters alone.
    n_decay: elements of the prefix to which weight decay applies.
    """

    def __init__(self, params: list[Param]) -> None:
        self.params = params
        self.slots: dict[str, slice] = {}
        self.n_decay = 0
        end = 0
        for param in sorted(params, key=lambda p: not p.decays):  # sorted keeps the order within a group
            if param.shape is None:
                continue
            n = int(np.prod(param.shape))
            self.slots[param.name] = slice(end, end + n)
            if param.decays:
                self.n_decay = end + n
            end += round_up(n, ALIGN)
        self.size = end
        self.n_params = sum(s.stop - s.start for s in self.slots.values())

    def __getitem__(self, name: str) -> Param:
        return next(p for p in self.params if p.name == name)

    def __iter__(self) -> Iterator[Param]:
        """Iterate over the parameters that exist, in the order of the model."""
        return (p for p in self.params if p.shape is not None)

    def view(self, flat: Array, param: Param) -> Array:
        """Return the view of the flat buffer that is this parameter."""
        return flat[self.slots[param.name]].reshape(param.shape)

    def views(self, flat: Array) -> list[Array]:
        """Return one view of the flat buffer per parameter, in the order of the model."""
        return [self.view(flat, p) for p in self]

    def tree(self, flat: Array) -> dict[str, Any]:
        """Return the views as the model takes them: {"wte": ..., "blocks": [{"ln1_w": ..., ...}, ...], ...}.

        Absent parameters are None.
        """
        tree: dict[str, Any] = {}
        for param in self.params:
            leaf = None if param.shape is None else self.view(flat, param)
            *path, name = param.name.split(".")
            node = tree
            if path:  # "blocks.3.qkv_w"
                blocks = node.setdefault(path[0], [])
                i = int(path[1])
                if i == len(blocks):
                    blocks.append({})
                node = blocks[i]
            node[name] = leaf
        return tree

    def leaves(self, tree: dict[str, Any]) -> list[Array]:
        """Return the arrays of such a tree, in the order of `views`."""
        return [get(tree, p.name) for p in self]

    def init_params(self, seed: int, dtype: Any = np.float32) -> np.ndarray:
        """Draw the initial values of the flat buffer, on the host, so that they are the same for every device."""
        random = np.random.Generator(np.random.Philox(seed))
        flat = np.zeros(self.size, dtype)
        for param in self:
            self.view(flat, param)[...] = param.fill + param.std * random.standard_normal(param.shape)
        return flat


def get(tree: dict[str, Any], name: str) -> Any:
    """Return the entry of a parameter tree with a dotted name."""
    node: Any = tree
    for part in name.split("."):
        node = node[int(part)] if part.isdigit() else node[part]
    return node
