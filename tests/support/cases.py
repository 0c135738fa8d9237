"""The backends; for each op of the table how to draw inputs and what is known of it. An op without a case fails test_op_info.py."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

import references
from tensorlite import Key, ReferenceOps, cpu
from tensorlite.testing.properties import gains, leading, seeds, sizes, weights

BACKENDS = (ReferenceOps(), cpu.CPUOps())
every_backend = pytest.mark.parametrize("ops", BACKENDS, ids=lambda ops: ops.name)


@dataclass(frozen=True)
class Case:
    """One op: its inputs are drawn as a dict in the order of the forward's arguments."""

    name: str
    inputs: st.SearchStrategy[dict[str, Any]]
    batched: tuple[str, ...]  # inputs whose first axis is the batch
    reference: Callable[..., Any]
    mean: bool = False  # y is a mean over the batch
    inert: tuple[str, ...] = field(default=("key",))  # None here means an option, not an absent parameter

    def on(self, ops: ReferenceOps) -> tuple[Callable, Callable]:
        """The forward and the backward of a backend."""
        return getattr(ops, f"{self.name}_forward"), getattr(ops, f"{self.name}_backward")

    def split(self, ops: ReferenceOps, inputs: dict[str, Any]) -> tuple[Callable, Callable, dict[str, Any]]:
        """The forward with its options bound, the backward, and the arrays (and absent parameters) alone."""
        options = {k: v for k, v in inputs.items() if k in self.inert or not (v is None or isinstance(v, np.ndarray))}
        arrays = {k: v for k, v in inputs.items() if k not in options}
        forward, backward = self.on(ops)
        return (lambda **a: forward(**a, **options)), backward, arrays


def batch() -> st.SearchStrategy[tuple[int, ...]]:
    """Leading axes, at least one: the batch."""
    return st.tuples(sizes(4), leading(1, 3)).map(lambda t: (t[0], *t[1]))


@st.composite
def linear(draw):
    lead, C, D, random = draw(batch()), draw(sizes(6)), draw(sizes(5)), np.random.default_rng(draw(seeds()))
    return {
        "x": weights(random, *lead, C),
        "w": weights(random, C, D),
        "b": weights(random, D) if draw(st.booleans()) else None,
    }


@st.composite
def embedding(draw):
    lead, V, C, random = draw(batch()), draw(sizes(7)), draw(sizes(5)), np.random.default_rng(draw(seeds()))
    kind = draw(st.sampled_from([np.int64, np.uint8, np.uint16, np.int32]))
    return {"ids": random.integers(0, V, lead).astype(kind), "table": weights(random, V, C)}


@st.composite
def position_embedding(draw):
    lead, T, C, random = draw(batch()), draw(sizes(5)), draw(sizes(4)), np.random.default_rng(draw(seeds()))
    start = draw(st.integers(0, 3))
    return {"x": weights(random, *lead, T, C), "wpe": weights(random, T + start + draw(st.integers(0, 3)), C), "start": start}


@st.composite
def layernorm(draw):
    lead, C, random = draw(batch()), draw(sizes(7)), np.random.default_rng(draw(seeds()))
    eps = draw(st.sampled_from([1e-5, 1e-2, 1.0]))
    b = weights(random, C) if draw(st.booleans()) else None
    x = weights(random, *lead, C)
    if C > 1:  # rows of a spread near 1: a nearly constant row has huge derivatives, and a test of its own
        x = (x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True)
        x = x * random.uniform(0.5, 2.0, (*lead, 1)) + random.standard_normal((*lead, 1))
    return {"x": x, "w": gains(random, C), "b": b, "eps": eps}


@st.composite
def elementwise(draw):
    return {"x": weights(np.random.default_rng(draw(seeds())), *draw(batch()), draw(sizes(6)))}


@st.composite
def away_from_zero(draw):
    """For ReLU: no entry within reach of the kink."""
    x = draw(elementwise())["x"]
    return {"x": np.where(np.abs(x) < 0.01, 0.5, x)}


@st.composite
def attention(draw):
    B, T, H, D = draw(sizes(3)), draw(sizes(5)), draw(sizes(3)), draw(sizes(4))
    random = np.random.default_rng(draw(seeds()))
    return {"qkv": weights(random, B, T, 3 * H * D), "n_head": H} | draw(drops())


@st.composite
def drops(draw):
    """p and key of a dropout: often none."""
    key = draw(st.none() | st.builds(Key, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 9)))
    return {"p": draw(st.sampled_from([0.0, 0.2, 0.5, 0.9])), "key": key}


@st.composite
def dropout(draw):
    return draw(elementwise()) | draw(drops())


@st.composite
def residual(draw):
    x = draw(elementwise())["x"]
    return {"x": x, "y": weights(np.random.default_rng(draw(seeds())), *x.shape)} | draw(drops())


@st.composite
def cross_entropy(draw):
    lead, V, random = draw(batch()), draw(sizes(7)), np.random.default_rng(draw(seeds()))
    return {"logits": weights(random, *lead, V), "targets": random.integers(0, V, lead)}


CASES = {
    case.name: case
    for case in (
        Case("linear", linear(), ("x",), references.linear),
        Case("embedding", embedding(), ("ids",), references.embedding),
        Case("position_embedding", position_embedding(), ("x",), references.position_embedding),
        Case("layernorm", layernorm(), ("x",), references.layernorm),
        Case("gelu", elementwise(), ("x",), references.gelu),
        Case("relu", away_from_zero(), ("x",), references.relu),
        Case("softmax", elementwise(), ("x",), references.softmax),
        Case("attention", attention(), ("qkv",), references.attention, inert=("key", "kv_cache")),
        Case("dropout", dropout(), ("x",), references.dropout),
        Case("residual", residual(), ("x", "y"), references.residual),
        Case("cross_entropy", cross_entropy(), ("logits", "targets"), references.cross_entropy, mean=True),
    )
}
