"""A backend whose arrays are only shapes: it runs a model without computing anything.

It proves that a model is built from op calls alone, because its arrays refuse arithmetic. It also counts what a step costs before
the first one runs: the bytes of the caches, and the FLOPs of forward and backward.
"""

import inspect
from collections.abc import Mapping
from math import prod
from types import SimpleNamespace
from typing import Any

from tensorlite import op_info
from tensorlite.reference.ops import ReferenceOps

ITEMSIZES = {"bool": 1, "uint32": 4}  # of saved arrays; a "float" has the item size of the activations


class MetaArray:
    """An array with a shape and an item size but no data. Views share the `base` that owns the bytes."""

    def __init__(self, shape: tuple[int, ...], itemsize: int = 4, base: "MetaArray | None" = None) -> None:
        self.shape = tuple(shape)
        self.itemsize = itemsize
        self.base = base or self

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    @property
    def T(self) -> "MetaArray":
        return MetaArray(self.shape[::-1], self.itemsize, self.base)

    def __repr__(self) -> str:
        return f"MetaArray{self.shape}"


class MetaOps(ReferenceOps):
    """ReferenceOps with every primitive replaced by its row in the op table.

    op_table: the table of the backend whose caches are counted. That of the CPU backend is tensorlite/cpu/op_info.py.
    flops: FLOPs so far, by name of the op ("linear_forward", ...).
    largest: number of elements of the largest array that an op has returned or saved for backward.
    """

    name = "meta"

    def __init__(self, op_table: Mapping[str, op_info.OpInfo] = op_info.OP_INFO) -> None:
        super().__init__(check=False)
        self.op_table = op_table
        self.flops: dict[str, float] = {}
        self.largest = 0

    def add_flops(self, name: str, flops: float) -> None:
        self.flops[name] = self.flops.get(name, 0.0) + flops

    @staticmethod
    def add(a: MetaArray, b: MetaArray) -> MetaArray:
        if a.shape != b.shape:
            raise ValueError(f"add: {a.shape} and {b.shape} differ")
        return MetaArray(a.shape, a.itemsize)


def _forward(name: str) -> Any:
    signature = _as_method(inspect.signature(getattr(ReferenceOps, f"{name}_forward")))

    def forward(self: MetaOps, *args: Any, **kwargs: Any) -> tuple[MetaArray, Any]:
        op = self.op_table[name]
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        a = SimpleNamespace(**bound.arguments)
        itemsize = getattr(a, op.inputs[0]).itemsize
        y = MetaArray(op.output(a), itemsize)
        self.add_flops(f"{name}_forward", op.flops(a))
        refs = [y if x == "y" else getattr(a, x) for x in op.saved_refs]
        saved = [MetaArray(shape, ITEMSIZES.get(dtype, itemsize)) for shape, dtype in op.saved_new(a)]
        self.largest = max(self.largest, y.size, *(array.size for array in saved))
        if name == "attention" and a.kv_cache is not None:
            a.kv_cache.length += a.qkv.shape[1]
        return y, (SimpleNamespace(arguments=a, y=y), refs, saved)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    return forward


def _as_method(signature: inspect.Signature) -> inspect.Signature:
    """Return the signature with a first parameter `self`, which static methods of ReferenceOps lack."""
    self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    others = [p for p in signature.parameters.values() if p.name != "self"]
    return signature.replace(parameters=[self_parameter, *others])


def _backward(name: str) -> Any:
    def backward(self: MetaOps, dy: Any, cache: Any) -> Any:
        op = self.op_table[name]
        call, *_ = cache
        a = call.arguments
        y = call.y
        if y.shape and dy.shape != y.shape:
            raise ValueError(f"{name}_backward: dy {dy.shape} does not fit y {y.shape}")
        self.add_flops(f"{name}_backward", op.backward_flops(a))
        inputs = [getattr(a, x) for x in op.inputs]
        grads = tuple(None if x is None else MetaArray(x.shape, x.itemsize) for x in inputs)
        return grads if len(grads) > 1 else grads[0]

    backward.__signature__ = _as_method(inspect.signature(getattr(ReferenceOps, f"{name}_backward")))  # type: ignore[attr-defined]
    return backward


for _name in op_info.OP_INFO:
    setattr(MetaOps, f"{_name}_forward", _forward(_name))
    setattr(MetaOps, f"{_name}_backward", _backward(_name))


def cache_bytes(cache: Any, params: Any = ()) -> int:
    """Return the bytes of the distinct arrays that a cache refers to, except those in `params`. Works for real arrays too."""
    owned = {id(_owner(a)) for a in _arrays(params)}
    found = {id(_owner(a)): _owner(a).nbytes for a in _arrays(cache)}
    return sum(n for key, n in found.items() if key not in owned)


def _owner(a: Any) -> Any:
    """Return the array that owns the memory of `a`. Its own base may be a pooled block, which is no array."""
    while hasattr(getattr(a, "base", None), "nbytes") and a.base is not a:
        a = a.base
    return a


def _arrays(tree: Any) -> list[Any]:
    if hasattr(tree, "nbytes"):
        return [tree] if tree.shape else []
    if isinstance(tree, dict):
        return _arrays(list(tree.values()))
    if isinstance(tree, list | tuple):
        return [a for item in tree for a in _arrays(item)]
    return []  # an option, or the SimpleNamespace from which MetaOps knows the shapes of its gradients
