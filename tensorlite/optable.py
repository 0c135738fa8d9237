"""One table of the primitive ops: what goes in, what comes out, what is kept for backward, what it costs.

The shape-only backend (`shapes.py`), the memory and time estimates, and the contract tests are all read off this table; a test
fails when an op of `Reference` has no row, or when a row's claims differ from what the op does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace

from tensorlite.random import drop_threshold

Shape = tuple[int, ...]
Arguments = SimpleNamespace  # the forward's arguments by name; arrays have .shape and .size


@dataclass(frozen=True)
class Op:
    """One row. The callables take the forward's arguments as a namespace."""

    name: str
    inputs: tuple[str, ...]  # the differentiable arguments, in the order backward returns their gradients
    output: Callable[[Arguments], Shape]  # shape of y; its dtype is that of the first differentiable argument
    keeps: tuple[str, ...]  # arguments, or "y", that the cache refers to: no bytes of their own
    saves: Callable[[Arguments], list[tuple[Shape, str]]]  # arrays made for the cache: shape, and dtype ("float", "bool")
    flops: Callable[[Arguments], float]  # of forward: a multiply-add is 2, any elementwise function is 1
    backward_flops: Callable[[Arguments], float]


def _same(name: str) -> Callable[[Arguments], Shape]:
    return lambda a: getattr(a, name).shape


def _nothing(_: Arguments) -> list[tuple[Shape, str]]:
    return []


def _each(name: str, n: float) -> Callable[[Arguments], float]:
    """n operations for each element of the argument."""
    return lambda a: n * getattr(a, name).size


def _mask(a: Arguments, shape: Shape) -> list[tuple[Shape, str]]:
    return [(shape, "bool")] if a.key is not None and drop_threshold(a.p) else []


def _probs_shape(a: Arguments) -> Shape:
    B, T, _ = a.qkv.shape
    return (B, a.n_head, T, T if a.past is None else a.past.length + T)


def _attention_flops(a: Arguments) -> float:
    C3 = a.qkv.shape[-1]
    probs = _probs_shape(a)
    return 4 * prod(probs) * (C3 // 3 // a.n_head) + 6 * prod(probs)  # two products, then scale, mask and softmax


TABLE: tuple[Op, ...] = (
    Op(
        "linear",
        inputs=("x", "w", "b"),
        output=lambda a: (*a.x.shape[:-1], a.w.shape[1]),
        keeps=("x", "w"),
        saves=_nothing,
        flops=lambda a: 2 * a.x.size * a.w.shape[1],
        backward_flops=lambda a: 4 * a.x.size * a.w.shape[1],
    ),
    Op(
        "embedding",
        inputs=("table",),
        output=lambda a: (*a.ids.shape, a.table.shape[1]),
        keeps=("ids", "table"),
        saves=_nothing,
        flops=lambda _: 0,
        backward_flops=lambda a: 2 * a.ids.size * a.table.size,
    ),
    Op(
        "positions",
        inputs=("x", "wpe"),
        output=_same("x"),
        keeps=("wpe",),
        saves=_nothing,
        flops=_each("x", 1),
        backward_flops=_each("x", 1),
    ),
    Op(
        "layernorm",
        inputs=("x", "w", "b"),
        output=_same("x"),
        keeps=("x", "w"),
        saves=lambda a: [((*a.x.shape[:-1], 1), "float")] * 2,
        flops=_each("x", 7),
        backward_flops=_each("x", 13),
    ),
    Op("gelu", ("x",), _same("x"), keeps=("x",), saves=_nothing, flops=_each("x", 9), backward_flops=_each("x", 17)),
    Op("relu", ("x",), _same("x"), keeps=("y",), saves=_nothing, flops=_each("x", 1), backward_flops=_each("x", 1)),
    Op("softmax", ("x",), _same("x"), keeps=("y",), saves=_nothing, flops=_each("x", 5), backward_flops=_each("x", 4)),
    Op(
        "attention",
        inputs=("qkv",),
        output=lambda a: (*a.qkv.shape[:-1], a.qkv.shape[-1] // 3),
        keeps=("qkv",),
        saves=lambda a: [(_probs_shape(a), "float"), *_mask(a, _probs_shape(a))],
        flops=_attention_flops,
        backward_flops=lambda a: 2 * _attention_flops(a),
    ),
    Op("dropout", ("x",), _same("x"), (), lambda a: _mask(a, a.x.shape), flops=_each("x", 2), backward_flops=_each("x", 2)),
    Op("residual", ("x", "y"), _same("x"), (), lambda a: _mask(a, a.x.shape), flops=_each("x", 3), backward_flops=_each("x", 2)),
    Op(
        "cross_entropy",
        inputs=("logits",),
        output=lambda _: (),
        keeps=("logits", "targets"),
        saves=lambda a: [((a.targets.size, 1), "float")],
        flops=_each("logits", 4),
        backward_flops=_each("logits", 4),
    ),
)

ROWS: dict[str, Op] = {op.name: op for op in TABLE}
