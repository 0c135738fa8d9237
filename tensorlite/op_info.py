"""One table of the primitive ops: their inputs, output, saved arrays and cost.

The shape-only backend (`meta.py`), the memory and time estimates and the contract tests are all derived from this table. A test
fails if an op of `ReferenceOps` has no row, or if the claims of a row differ from what the op does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace

from tensorlite.random import drop_threshold

Shape = tuple[int, ...]
Arguments = SimpleNamespace  # the forward's arguments by name; arrays have .shape and .size


@dataclass(frozen=True)
class OpInfo:
    """The facts about one op. The callables take the forward's arguments as a namespace."""

    name: str
    inputs: tuple[str, ...]  # the differentiable arguments, in the order backward returns their gradients
    output: Callable[[Arguments], Shape]  # shape of y; its dtype is that of the first differentiable argument
    saved_refs: tuple[str, ...]  # arguments, or "y", that the cache refers to; they take no bytes of their own
    saved_new: Callable[
        [Arguments], list[tuple[Shape, str]]
    ]  # arrays allocated for the cache: shape, and "float", "bool" or "uint32"
    flops: Callable[[Arguments], float]  # of forward: a multiply-add is 2, any elementwise function is 1
    backward_flops: Callable[[Arguments], float]


def _same(name: str) -> Callable[[Arguments], Shape]:
    return lambda a: getattr(a, name).shape


def _nothing(_: Arguments) -> list[tuple[Shape, str]]:
    return []


def _each(name: str, n: float) -> Callable[[Arguments], float]:
    """Return a function that counts n operations per element of the argument."""
    return lambda a: n * getattr(a, name).size


def _mask(a: Arguments, shape: Shape) -> list[tuple[Shape, str]]:
    return [(shape, "bool")] if a.key is not None and drop_threshold(a.p) else []


def _probs_shape(a: Arguments) -> Shape:
    B, T, _ = a.qkv.shape
    return (B, a.n_head, T, T if a.kv_cache is None else a.kv_cache.length + T)


def _attention_flops(a: Arguments) -> float:
    C3 = a.qkv.shape[-1]
    probs = _probs_shape(a)
    return 4 * prod(probs) * (C3 // 3 // a.n_head) + 6 * prod(probs)  # two matmuls, then scale, mask and softmax


_TABLE = (
    OpInfo(
        "linear",
        inputs=("x", "w", "b"),
        output=lambda a: (*a.x.shape[:-1], a.w.shape[1]),
        saved_refs=("x", "w"),
        saved_new=_nothing,
        flops=lambda a: 2 * a.x.size * a.w.shape[1],
        backward_flops=lambda a: 4 * a.x.size * a.w.shape[1],
    ),
    OpInfo(
        "embedding",
        inputs=("table",),
        output=lambda a: (*a.ids.shape, a.table.shape[1]),
        saved_refs=("ids", "table"),
        saved_new=_nothing,
        flops=lambda _: 0,
        backward_flops=lambda a: 2 * a.ids.size * a.table.size,
    ),
    OpInfo(
        "position_embedding",
        inputs=("x", "wpe"),
        output=_same("x"),
        saved_refs=("wpe",),
        saved_new=_nothing,
        flops=_each("x", 1),
        backward_flops=_each("x", 1),
    ),
    OpInfo(
        "layernorm",
        inputs=("x", "w", "b"),
        output=_same("x"),
        saved_refs=("x", "w"),
        saved_new=lambda a: [((*a.x.shape[:-1], 1), "float")] * 2,
        flops=_each("x", 7),
        backward_flops=_each("x", 13),
    ),
    OpInfo(
        "gelu",
        inputs=("x",),
        output=_same("x"),
        saved_refs=("x",),
        saved_new=_nothing,
        flops=_each("x", 9),
        backward_flops=_each("x", 17),
    ),
    OpInfo(
        "relu",
        inputs=("x",),
        output=_same("x"),
        saved_refs=("y",),
        saved_new=_nothing,
        flops=_each("x", 1),
        backward_flops=_each("x", 1),
    ),
    OpInfo(
        "softmax",
        inputs=("x",),
        output=_same("x"),
        saved_refs=("y",),
        saved_new=_nothing,
        flops=_each("x", 5),
        backward_flops=_each("x", 4),
    ),
    OpInfo(
        "attention",
        inputs=("qkv",),
        output=lambda a: (*a.qkv.shape[:-1], a.qkv.shape[-1] // 3),
        saved_refs=("qkv",),
        saved_new=lambda a: [(_probs_shape(a), "float"), *_mask(a, _probs_shape(a))],
        flops=_attention_flops,
        backward_flops=lambda a: 2 * _attention_flops(a),
    ),
    OpInfo(
        "dropout",
        inputs=("x",),
        output=_same("x"),
        saved_refs=(),
        saved_new=lambda a: _mask(a, a.x.shape),
        flops=_each("x", 2),
        backward_flops=_each("x", 2),
    ),
    OpInfo(
        "residual",
        inputs=("x", "y"),
        output=_same("x"),
        saved_refs=(),
        saved_new=lambda a: _mask(a, a.x.shape),
        flops=_each("x", 3),
        backward_flops=_each("x", 2),
    ),
    OpInfo(
        "cross_entropy",
        inputs=("logits",),
        output=lambda _: (),
        saved_refs=("logits", "targets"),
        saved_new=lambda a: [((a.targets.size, 1), "float")],
        flops=_each("logits", 4),
        backward_flops=_each("logits", 4),
    ),
)

OP_INFO: dict[str, OpInfo] = {op.name: op for op in _TABLE}
