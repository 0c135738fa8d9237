"""from_jax: JAX functions under our checker, and mistakes that JAX's own checker lets pass."""

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest

from tensorlite import GradcheckError, gradcheck
from tensorlite.testing import from_jax

jax = pytest.importorskip("jax", reason="JAX is not installed")
jnp = jax.numpy
jax.config.update("jax_platforms", "cpu")
RANDOM = np.random.default_rng(0).standard_normal


def custom(function, forward_rule, backward_rule):
    """A function with a derivative of its own."""
    f = jax.custom_vjp(function)
    f.defvjp(forward_rule, backward_rule)
    return f


def linear(mistake=lambda g: g, of_dy=lambda dy: dy):
    """A linear layer, with a mistake in dw or in what becomes of dy."""

    def backward(saved, dy):
        x, w = saved
        dy = of_dy(dy)
        return dy @ w.T, mistake(x.T @ dy)

    return custom(lambda x, w: x @ w, lambda x, w: (x @ w, (x, w)), backward)


LINEAR = {"x": RANDOM((4, 3)), "w": RANDOM((3, 5))}


# ---- right functions pass ----


def test_a_custom_vjp_and_a_function_without_one():
    for function in (linear(), lambda x, w: x @ w, jax.jit(linear())):
        report = gradcheck(*from_jax(function), LINEAR)
        assert [a.name for a in report.arguments] == ["x", "w"]


def test_inputs_are_passed_by_name_where_the_names_are_known_and_in_order_otherwise():
    assert gradcheck(*from_jax(linear()), {"w": LINEAR["w"], "x": LINEAR["x"]}).ok
    assert gradcheck(*from_jax(linear()), {"b": LINEAR["x"], "a": LINEAR["w"]}).ok


class Block(NamedTuple):
    w: np.ndarray
    power: int


def test_trees_integers_options_and_several_outputs():
    @partial(jax.custom_vjp, nondiff_argnums=(2,))
    def scaled(x, ids, mode):
        assert mode == "rows"
        return x[ids] * 2.0

    scaled.defvjp(
        lambda x, ids, mode: (scaled(x, ids, mode), (x, ids)),
        lambda mode, saved, dy: (jnp.zeros_like(saved[0]).at[saved[1]].add(2.0 * dy), None),
    )

    def network(x, params, ids, mode):
        for block in params["blocks"]:
            x = jnp.tanh(x @ block.w) ** block.power
        return {"rows": scaled(x, ids, mode), "sum": x.sum(), "largest": x.argmax()}

    inputs = {
        "x": RANDOM((2, 3)),
        "params": {"blocks": [Block(RANDOM((3, 4)), 2), Block(RANDOM((4, 2)), 1)]},
        "ids": np.array([1, 1, 0]),
        "mode": "rows",
    }
    report = gradcheck(*from_jax(network), inputs)
    assert [a.name for a in report.arguments] == ["x", 'params["blocks"][0].w', 'params["blocks"][1].w']


def test_low_precision_against_a_twin():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    twin = (lambda x, w: (x @ w, (x, w))), (lambda dy, c: (dy @ c[1].T, c[0].T @ dy))
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        inputs = {name: a.astype(dtype) for name, a in LINEAR.items()}
        assert gradcheck(*from_jax(linear()), inputs, twin=twin).ok
        assert not gradcheck(*from_jax(linear(lambda g: g * 1.05)), inputs, twin=twin, raise_on_fail=False).ok


def test_64_bits_are_enabled_for_the_call_alone():
    seen = []

    def function(x):
        seen.append(x.dtype)
        return x * 2.0

    assert gradcheck(*from_jax(function), {"x": RANDOM(3)}).ok
    assert set(seen) == {np.dtype(np.float64)}
    assert jnp.ones(3).dtype == (np.float64 if jax.config.jax_enable_x64 else np.float32)


# ---- mistakes that jax.test_util.check_grads lets pass ----


def layernorm(eps_of_rule):
    """The forward rule has an eps of its own."""

    def value(x, eps):
        centered = x - x.mean(-1, keepdims=True)
        return centered / jnp.sqrt((centered * centered).mean(-1, keepdims=True) + eps)

    def backward(saved, dy):
        _, pull = jax.vjp(partial(value, eps=1e-5), *saved)
        return pull(dy)

    return custom(partial(value, eps=1e-5), lambda x: (value(x, eps_of_rule), (x,)), backward)


def one_entry(g):
    return g.at[1, 2].multiply(1.0001)


def in_float32(g):
    return g.astype(jnp.float32).astype(jnp.float64)


def small_mean():
    return custom(
        lambda x: 1e-6 * x.mean(), lambda x: (1e-6 * x.mean(), x), lambda x, dy: (-1e-6 * dy * jnp.ones_like(x) / x.size,)
    )


WRONG = {
    "a factor of 1.000005": (linear(lambda g: g * 1.000005), LINEAR, "dw"),
    "one entry off by 0.01 %": (linear(one_entry), {"x": RANDOM((4, 30)), "w": RANDOM((30, 20))}, r"dw\[1, 2\]"),
    "computed in float32": (linear(in_float32), LINEAR, "not linear in dy: dw"),
    "dy is clipped at 3": (linear(of_dy=lambda dy: dy.clip(-3.0, 3.0)), LINEAR, "not linear in dy"),
    "a wrong sign of a small gradient": (small_mean(), {"x": RANDOM(6)}, "dx"),
}


def jax_lets_pass(function, inputs):
    from jax.test_util import check_grads

    with jax.enable_x64(True):
        check_grads(function, tuple(map(jnp.asarray, inputs.values())), order=1, modes=["rev"])
    return True


@pytest.mark.long
@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_that_jaxs_checker_lets_pass(mistake):
    function, inputs, words = WRONG[mistake]
    assert jax_lets_pass(function, inputs)
    with pytest.raises(GradcheckError, match=words):
        gradcheck(*from_jax(function), inputs)


def test_a_forward_rule_with_another_value():
    inputs = {"x": RANDOM((3, 4))}
    assert gradcheck(*from_jax(layernorm(1e-5)), inputs).ok
    assert jax_lets_pass(layernorm(8e-6), inputs)
    with pytest.raises(ValueError, match="the forward rule of the custom_vjp returns another value"):
        gradcheck(*from_jax(layernorm(8e-6)), inputs)


# ---- errors in words ----


def test_what_cannot_be_checked_is_said_in_words():
    with pytest.raises(ValueError, match=r"hands a traced value to NumPy; use jax\.numpy"):
        gradcheck(*from_jax(lambda x: jnp.asarray(np.sin(np.asarray(x)))), {"x": RANDOM(3)})
    with pytest.raises(ValueError, match="no output of the function is a float array"):
        gradcheck(*from_jax(lambda x: x.argmax()), {"x": RANDOM(3)})


def test_a_gradient_that_is_stopped_is_wrong():
    report = gradcheck(*from_jax(lambda x, w: x * jax.lax.stop_gradient(w)), {"x": RANDOM(3), "w": RANDOM(3)}, raise_on_fail=False)
    assert [a.status for a in report.arguments] == ["pass", "fail"]


def test_without_jax_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jax", None)
    with pytest.raises(ImportError, match=r'pip install "jax\[cpu\]"'):
        from_jax(lambda x: x)
