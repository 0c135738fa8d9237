"""class Bug, the list of all bugs, and inputs on which each of them shows."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tensorlite.arrays import Array
from tensorlite.random import Key
from tensorlite.reference.ops import ReferenceOps

CHAPTERS = {  # the chapter of the course that derives the backward of each op, in the order of the course
    "linear": 3,
    "embedding": 4,
    "position_embedding": 4,
    "softmax": 5,
    "cross_entropy": 6,
    "layernorm": 7,
    "dropout": 8,
    "residual": 8,
    "gelu": 8,
    "relu": 8,
    "attention": 10,
}
ATTENTION_FORWARD = 9  # the chapter on attention's forward


@dataclass(frozen=True)
class Bug:
    """One mistake: its code, how it happens, why it is wrong and which check catches it."""

    op: str  # a name of the op table
    name: str  # the mistake in a few words
    wrong: tuple[str, ...]  # the wrong gradients (for attention dq, dk, dv, the thirds of dqkv), or "y", the value
    how_it_happens: str  # how people come to make it
    explanation: str  # what is wrong, and why
    caught_by: str  # "gradcheck", or the test of a property
    forward: Callable[..., tuple[Array, Any]]
    backward: Callable[[Array, Any], Any]

    @property
    def chapter(self) -> int:
        """The chapter of the course that the mistake belongs to."""
        if self.op == "attention" and self.wrong == ("y",):
            return ATTENTION_FORWARD
        return CHAPTERS[self.op]


BUGS: list[Bug] = []


class Pair(NamedTuple):
    """The two functions of an op."""

    forward: Callable[..., tuple[Array, Any]]
    backward: Callable[[Array, Any], Any]


def true_pair(op: str) -> Pair:
    """Return the functions of an op as they stand in the file of `tensorlite/reference` that derives it."""
    file = sys.modules[getattr(ReferenceOps, f"{op}_backward").__module__]
    return Pair(getattr(file, f"{op}_forward"), getattr(file, f"{op}_backward"))


def bug(
    op: str,
    name: str,
    wrong: str,
    *,
    how_it_happens: str,
    explanation: str,
    forward: Callable | None = None,
    caught_by: str = "gradcheck",
) -> Callable[[Callable], Callable]:
    """Return a decorator that appends a wrong backward to BUGS, together with `forward` or else the true forward of the op."""

    def append(backward: Callable) -> Callable:
        entry = Bug(
            op=op,
            name=name,
            wrong=tuple(wrong.split()),
            how_it_happens=how_it_happens,
            explanation=explanation,
            caught_by=caught_by,
            forward=forward or true_pair(op).forward,
            backward=backward,
        )
        BUGS.append(entry)
        return backward

    return append


def example(op: str, square: bool = True) -> dict[str, Any]:
    """Return float64 inputs of the op on which each of its mistakes shows.

    square: give all axes the same length, so that every wrong shape fits and only the values can tell. Otherwise all differ.
    """
    random = np.random.default_rng(1)
    normal = random.standard_normal
    B, T, C, V, H = (3, 3, 3, 3, 3) if square else (2, 3, 4, 5, 6)
    dropout = {"p": 0.25, "key": Key(1, 2)}
    inputs: dict[str, dict[str, Any]] = {
        "linear": {"x": normal((B, T, C)), "w": normal((C, V)), "b": normal(V)},
        "embedding": {"ids": random.integers(0, V, (B, T)), "table": normal((V, C))},
        "position_embedding": {"x": normal((B, T, C)), "wpe": normal((T + 2, C)), "start": 1},
        "layernorm": {"x": normal((B, T, C)), "w": normal(C), "b": normal(C)},
        "gelu": {"x": normal((B, T, C))},
        "relu": {"x": normal((B, T, C))},
        "softmax": {"x": normal((B, T, C))},
        "attention": {"qkv": normal((B, T, 3 * H * C)), "n_head": H, **dropout},
        "dropout": {"x": normal((B, T, C)), **dropout},
        "residual": {"x": normal((B, T, C)), "y": normal((B, T, C)), **dropout},
        "cross_entropy": {"logits": normal((B, T, V)), "targets": random.integers(0, V, (B, T))},
    }
    return inputs[op]
