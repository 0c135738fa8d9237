"""The parameter table: every parameter is a named view of one flat buffer.

One buffer makes the optimizer one pass, the gradient norm one reduction and a sum over machines one message. Parameters that
decay come first, so that weight decay is a prefix.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite.arrays import Array
from tensorlite.integers import round_up

Params = dict[
    str, Any
]  # a tree of arrays by name, None for a parameter that is switched off; its gradients are a tree of the same names
ALIGN = 64  # elements: every parameter starts on a 256-byte boundary, as vector loads like it; the gaps stay zero


@dataclass(frozen=True)
class Param:
    """One parameter: its dotted name, its shape (None: absent, as a bias that was switched off), and how it starts."""

    name: str
    shape: tuple[int, ...] | None
    std: float = 0.0  # drawn from N(0, std)
    fill: float = 0.0  # plus this constant

    @property
    def decays(self) -> bool:
        """Weight decay is for matrices and embeddings; biases and gains have one axis."""
        return self.shape is not None and len(self.shape) > 1


class ParamTable:
    """Names, shapes and offsets in the flat buffer. `size` counts the gaps, `n_params` does not."""

    def __init__(self, params: list[Param]) -> None:
        self.params = params
        self.slots: dict[str, slice] = {}
        self.n_decay = end = 0
        for param in sorted(params, key=lambda p: not p.decays):  # sorted keeps the order within a group
            if param.shape is not None:
                n = int(np.prod(param.shape))
                self.slots[param.name] = slice(end, end + n)
                self.n_decay = end + n if param.decays else self.n_decay
                end += round_up(n, ALIGN)
        self.size = end
        self.n_params = sum(s.stop - s.start for s in self.slots.values())

    def __getitem__(self, name: str) -> Param:
        return next(p for p in self.params if p.name == name)

    def __iter__(self) -> Iterator[Param]:
        """The parameters that exist, in the order of the model."""
        return (p for p in self.params if p.shape is not None)

    def view(self, flat: Array, param: Param) -> Array:
        return flat[self.slots[param.name]].reshape(param.shape)

    def views(self, flat: Array) -> list[Array]:
        """One view of the flat buffer per parameter, in the order of the model."""
        return [self.view(flat, p) for p in self]

    def tree(self, flat: Array) -> dict[str, Any]:
        """The views as the model takes them: {"wte": ..., "blocks": [{"ln1_w": ..., ...}, ...], ...}; absent ones are None."""
        tree: dict[str, Any] = {}
        for param in self.params:
            leaf = None if param.shape is None else self.view(flat, param)
            *path, name = param.name.split(".")
            node = tree
            if path:  # "blocks.3.qkv_w"
                blocks, i = node.setdefault(path[0], []), int(path[1])
                if i == len(blocks):
                    blocks.append({})
                node = blocks[i]
            node[name] = leaf
        return tree

    def leaves(self, tree: dict[str, Any]) -> list[Array]:
        """The arrays of such a tree, in the order of `views`."""
        return [get(tree, p.name) for p in self]

    def init_params(self, seed: int, dtype: Any = np.float32) -> np.ndarray:
        """Draw a flat buffer of starting values, on the host: the same for every device."""
        random = np.random.Generator(np.random.Philox(seed))
        flat = np.zeros(self.size, dtype)
        for param in self:
            self.view(flat, param)[...] = param.fill + param.std * random.standard_normal(param.shape)
        return flat


def get(tree: dict[str, Any], name: str) -> Any:
    """The entry of a parameter tree with a dotted name."""
    node: Any = tree
    for part in name.split("."):
        node = node[int(part)] if part.isdigit() else node[part]
    return node
