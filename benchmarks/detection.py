"""Measure which gradient checker notices which mistake.

    python benchmarks/detection.py [--trials 100]

The same layers, inputs and planted mistakes go through tensorlite.gradcheck (also with the layer inside a torch.autograd.Function
or a JAX custom_vjp, by from_torch and from_jax), torch.autograd.gradcheck (default and fast mode), jax.test_util.check_grads and
autograd.test_util.check_grads. Each is called as its documentation says, with its default tolerances, in float64. A checker that is
not installed is left out: pip install torch==2.13.0 jax autograd

The script writes docs/detection.md: the share of trials in which each checker refused the gradient.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from tensorlite import ReferenceOps, gradcheck
from tensorlite.testing.adapters.from_jax import from_jax
from tensorlite.testing.adapters.from_torch import from_torch

OPS = ReferenceOps()


@dataclass
class Layer:
    """A layer and its inputs: forward(*arrays) -> y, cache; backward(dy, cache) -> gradients in the order of the arrays."""

    forward: Callable
    backward: Callable
    arrays: list[np.ndarray]


def draw_layer(random: np.random.Generator) -> Layer:
    """Draw one of six layers, with a small random shape and inputs of order 1."""
    N, C, D = random.integers(2, 6, 3)
    normal = random.standard_normal
    kind = random.integers(6)
    if kind == 0:
        return Layer(OPS.linear_forward, OPS.linear_backward, [normal((N, C)), normal((C, D)), normal(D)])
    if kind == 1:
        x = normal((N, C)) + np.arange(C)
        return Layer(OPS.layernorm_forward, OPS.layernorm_backward, [x, random.uniform(0.5, 2, C), normal(C)])
    if kind == 2:
        return Layer(OPS.gelu_forward, OPS.gelu_backward, [normal((N, C))])
    if kind == 3:
        return Layer(OPS.softmax_forward, OPS.softmax_backward, [normal((N, C))])
    if kind == 4:
        return Layer(lambda qkv: OPS.attention_forward(qkv, 2), OPS.attention_backward, [normal((2, N, 12))])
    targets = random.integers(0, C, N)
    return Layer(lambda z: OPS.cross_entropy_forward(z, targets), OPS.cross_entropy_backward, [normal((N, C))])


def factor(f: float) -> Callable:
    """Return a mistake: the whole gradient is off by a factor."""
    return lambda g, at: g * f  # noqa: ARG005


def one_entry(f: float) -> Callable:
    """Return a mistake: one entry is off by a factor."""

    def wrong(g: np.ndarray, at: int) -> np.ndarray:
        here = np.arange(g.size).reshape(g.shape) == at % g.size
        return np.where(here, g * f, g)

    return wrong


def zero_sum(share: float) -> Callable:
    """Return a mistake: each entry passes a share of its value to its neighbour, so the errors sum to 0."""
    return lambda g, at: g + share * (np.roll(g, 1) - g)  # noqa: ARG005


MISTAKES: dict[str, Callable] = {
    "none (false alarms)": factor(1.0),
    "whole gradient x 1.01": factor(1.01),
    "whole gradient x 1.001": factor(1.001),
    "whole gradient x 1.00001": factor(1.00001),
    "one entry x 1.01": one_entry(1.01),
    "one entry x 1.001": one_entry(1.001),
    "zero-sum error of 0.1 %": zero_sum(0.001),
}


def plant(layer: Layer, mistake: Callable, which: int, at: int) -> Layer:
    """Return the layer with a mistake in one of its gradients. Like most real mistakes, these leave backward linear in dy."""

    def backward(dy: Any, cache: Any) -> tuple:
        grads = layer.backward(dy, cache)
        grads = list(grads) if isinstance(grads, tuple) else [grads]
        grads[which] = mistake(grads[which], at)
        return tuple(grads)

    return Layer(layer.forward, backward, layer.arrays)


# Each checker is a function that returns whether it refuses the layer's gradient.


def ours(layer: Layer) -> bool:
    """Call tensorlite.gradcheck."""
    return refused(lambda **a: layer.forward(*a.values()), layer.backward, layer)


def refused(forward: Callable, backward: Callable, layer: Layer) -> bool:
    """Whether tensorlite.gradcheck refuses the pair at the layer's inputs. Inconclusive is a refusal too."""
    inputs = {f"x{i}": a for i, a in enumerate(layer.arrays)}
    return not gradcheck(forward, backward, inputs, raise_on_fail=False).ok


def torch_function(layer: Layer) -> Any:
    """Return an autograd.Function around the layer."""
    import torch

    torch.set_num_threads(1)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:
            y, ctx.layer_cache = layer.forward(*(t.detach().numpy() for t in tensors))
            return torch.from_numpy(np.array(y))

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            return tuple(torch.from_numpy(np.array(g)) for g in layer.backward(dy.numpy(), ctx.layer_cache))

    return Function


def ours_through_torch() -> Callable[[Layer], bool]:
    """Return tensorlite.gradcheck on an autograd.Function around the layer."""
    import torch  # noqa: F401  an ImportError leaves the column out

    return lambda layer: refused(*from_torch(torch_function(layer)), layer)


def torch_checker(fast_mode: bool) -> Callable[[Layer], bool]:
    """Return torch.autograd.gradcheck on an autograd.Function around the layer."""
    import torch

    def refuses(layer: Layer) -> bool:
        tensors = [torch.tensor(a, requires_grad=True) for a in layer.arrays]
        function = torch_function(layer)
        return not torch.autograd.gradcheck(function.apply, tensors, raise_exception=False, fast_mode=fast_mode)

    return refuses


def jax_function(layer: Layer) -> Callable:
    """Return a custom_vjp around the layer."""
    import jax

    y_type = jax.ShapeDtypeStruct(np.shape(layer.forward(*layer.arrays)[0]), np.float64)
    x_types = tuple(jax.ShapeDtypeStruct(a.shape, np.float64) for a in layer.arrays)

    def value(*xs: Any) -> np.ndarray:
        return np.asarray(layer.forward(*map(np.asarray, xs))[0])

    def pull(dy: Any, *xs: Any) -> tuple:
        return tuple(np.asarray(g) for g in layer.backward(np.asarray(dy), layer.forward(*map(np.asarray, xs))[1]))

    @jax.custom_vjp
    def function(*xs: Any) -> Any:
        return jax.pure_callback(value, y_type, *xs)

    function.defvjp(lambda *xs: (function(*xs), xs), lambda xs, dy: jax.pure_callback(pull, x_types, dy, *xs))
    return function


def ours_through_jax() -> Callable[[Layer], bool]:
    """Return tensorlite.gradcheck on a custom_vjp around the layer."""
    use_jax_in_float64()
    return lambda layer: refused(*from_jax(jax_function(layer)), layer)


def jax_checker() -> Callable[[Layer], bool]:
    """Return jax.test_util.check_grads on a custom_vjp around the layer, in reverse mode."""
    use_jax_in_float64()
    from jax.test_util import check_grads

    def refuses(layer: Layer) -> bool:
        try:
            check_grads(jax_function(layer), tuple(layer.arrays), order=1, modes=["rev"])
        except AssertionError:
            return True
        return False

    return refuses


def use_jax_in_float64() -> None:
    """Enable float64 on the CPU."""
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")


def autograd_checker() -> Callable[[Layer], bool]:
    """Return autograd.test_util.check_grads on a primitive around the layer, in reverse mode."""
    from autograd.extend import defvjp, primitive
    from autograd.test_util import check_grads

    def refuses(layer: Layer) -> bool:
        function = primitive(lambda *xs: np.asarray(layer.forward(*xs)[0])[()])

        def vjp(i: int) -> Callable:
            return lambda _, *xs: lambda dy: layer.backward(np.asarray(dy), layer.forward(*xs)[1])[i]

        defvjp(function, *map(vjp, range(len(layer.arrays))))
        try:
            for i in range(len(layer.arrays)):
                check_grads(function, argnum=i, modes=["rev"], order=1)(*layer.arrays)
        except AssertionError:
            return True
        return False

    return refuses


CHECKERS: dict[str, tuple[str, Callable[[], Callable[[Layer], bool]]]] = {
    "tensorlite": ("tensorlite", lambda: ours),
    "tensorlite, from_torch": ("torch", ours_through_torch),
    "tensorlite, from_jax": ("jax", ours_through_jax),
    "torch": ("torch", lambda: torch_checker(fast_mode=False)),
    "torch, fast mode": ("torch", lambda: torch_checker(fast_mode=True)),
    "JAX": ("jax", jax_checker),
    "autograd": ("autograd", autograd_checker),
}


@dataclass
class Args:
    """Compare gradient checkers."""

    trials: int = 100
    """Number of layers drawn per mistake."""


def main() -> int:
    """Run every checker on every mistake and write the table."""
    trials = tyro.cli(Args).trials
    warnings.simplefilter("ignore")
    checkers = {}
    versions = []
    for name, (package, make) in CHECKERS.items():
        try:
            checkers[name] = make()
            versions.append(f"{package} {metadata.version(package)}")
        except ImportError as error:
            print(f"{name} is left out: {error}")
    rows = []
    for label, mistake in MISTAKES.items():
        caught = dict.fromkeys(checkers, 0)
        for trial in range(trials):
            random = np.random.default_rng(trial)
            layer = draw_layer(random)
            wrong = plant(layer, mistake, int(random.integers(len(layer.arrays))), int(random.integers(1000)))
            for name, refuses in checkers.items():
                caught[name] += refuses(wrong)
        rows.append([label, *(f"{n / trials:.2f}" for n in caught.values())])
        print(" | ".join(rows[-1]), flush=True)
    write(rows, list(checkers), versions, trials)
    return 0


def write(rows: list[list[str]], names: list[str], versions: list[str], trials: int) -> None:
    """Write docs/detection.md."""
    lines = [
        "# Detection rates of gradient checkers",
        "",
        f"Measured with `python benchmarks/detection.py --trials {trials}` on {date.today()}:",
        f"{', '.join(dict.fromkeys(versions))}.",
        "",
        f"Each entry is the share of {trials} trials in which the checker refused the gradient. A trial is a layer",
        "(linear, layernorm, GELU, softmax, attention or cross-entropy) of a random small shape in float64,",
        "with one mistake in one of its gradients. Each checker has its default tolerances. A mistake changes",
        "nothing where the true entry is 0 or has no neighbour, so 1.00 is not always possible. The columns",
        "from_torch and from_jax are tensorlite's checker on the same torch.autograd.Function and JAX",
        "custom_vjp that the checkers of PyTorch and JAX get.",
        "",
        f"| planted mistake | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    (Path(__file__).parents[1] / "docs" / "detection.md").write_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
