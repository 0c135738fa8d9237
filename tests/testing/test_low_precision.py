"""twin=: right layers in float32, float16 and bfloat16 pass, and mistakes far below what rounding explains are refused."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

from cases import CASES
from tensorlite import GradcheckError, ReferenceOps, cpu, gradcheck
from tensorlite.testing.random_rounding import FORMATS, Format, Rounded, Rounding

OPS = ReferenceOps()
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), BFLOAT16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def low(inputs, dtype):
    return {name: a.astype(dtype) if isinstance(a, np.ndarray) and a.dtype == np.float64 else a for name, a in inputs.items()}


class ToNearest(Rounding):
    """True rounding after every operation, in the place of random rounding. NumPy has no bfloat16 arithmetic of its own."""

    def result(self, a, size=None):
        if getattr(a, "dtype", None) != np.float64:
            return a
        return self.of(np.asarray(a).astype(BFLOAT16).astype(np.float64))


def in_bfloat16(forward, backward):
    """The layer with every intermediate array rounded to bfloat16."""
    rounding = ToNearest(FORMATS["bfloat16"], 0)

    def widen(a):
        return rounding.of(np.asarray(a).astype(np.float64)) if getattr(a, "dtype", None) == BFLOAT16 else a

    def narrow(a):
        return np.asarray(a).astype(BFLOAT16) if getattr(a, "dtype", None) == np.float64 else a

    def forward_bf16(**inputs):
        y, cache = forward(**{name: widen(a) for name, a in inputs.items()})
        return narrow(y), cache

    def backward_bf16(dy, cache):
        grads = backward(widen(dy), cache)
        return tuple(map(narrow, grads)) if isinstance(grads, tuple) else narrow(grads)

    return forward_bf16, backward_bf16


def implemented(dtype, forward, backward):
    """A right implementation in the dtype, made of a layer that is written for any."""
    return in_bfloat16(forward, backward) if dtype == BFLOAT16 else (forward, backward)


def mistaken(backward, mistake, which=0):
    """The backward with a mistake in one gradient."""

    def wrong(dy, cache):
        grads = backward(dy, cache)
        grads = list(grads) if isinstance(grads, tuple) else [grads]
        g = grads[which]
        grads[which] = mistake(g.astype(np.float32)).astype(g.dtype)
        return tuple(grads)

    return wrong


# ---- right layers ----


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
@every_dtype
def test_right_ops_pass(name, dtype):
    """At drawn shapes and values, each intermediate array rounded."""

    @settings(max_examples=max(5, settings.default.max_examples // 4))
    @given(CASES[name].inputs)
    def check(inputs):
        forward, backward, arrays = CASES[name].split(OPS, inputs)
        with np.errstate(all="ignore"):  # float16 may underflow
            gradcheck(*implemented(dtype, forward, backward), low(arrays, dtype), twin=(forward, backward))

    check()


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_the_cpu_backend_passes_against_the_reference(name):
    @settings(max_examples=max(5, settings.default.max_examples // 4))
    @given(CASES[name].inputs)
    def check(inputs):
        forward, backward, arrays = CASES[name].split(cpu.CPUOps(), inputs)
        twin = CASES[name].split(OPS, inputs)[:2]
        gradcheck(forward, backward, low(arrays, np.float32), twin=twin)

    check()


GAINS = np.random.default_rng(4).uniform(0.5, 2.0, 24)
LAYERS = {
    "linear": (OPS.linear_forward, OPS.linear_backward, {"x": normal(0, 20, 12), "w": normal(1, 12, 24), "b": normal(2, 24)}),
    "layernorm": (OPS.layernorm_forward, OPS.layernorm_backward, {"x": normal(3, 20, 24), "w": GAINS, "b": normal(5, 24)}),
    "gelu": (OPS.gelu_forward, OPS.gelu_backward, {"x": normal(6, 8, 8)}),
    "softmax": (OPS.softmax_forward, OPS.softmax_backward, {"x": normal(7, 8, 8)}),
    "attention": (lambda qkv: OPS.attention_forward(qkv, 2), OPS.attention_backward, {"qkv": normal(8, 2, 5, 12)}),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.mark.long
@every_layer
@every_dtype
def test_the_twin_may_be_a_forward_alone(name, dtype):
    forward, backward, inputs = LAYERS[name]
    inputs = {name: a[:2] if name in ("x", "qkv") else a for name, a in inputs.items()}
    pair = implemented(dtype, forward, backward)
    assert gradcheck(*pair, low(inputs, dtype), twin=forward).ok
    wrong = mistaken(pair[1], lambda g: g * 1.15)
    assert not gradcheck(pair[0], wrong, low(inputs, dtype), twin=forward, raise_on_fail=False).ok


@every_layer
@every_dtype
def test_a_twin_that_hides_its_arithmetic_gives_wider_bounds(name, dtype):
    forward, backward, inputs = LAYERS[name]
    pair = implemented(dtype, forward, backward)

    def hidden(**inputs):
        return forward(**{name: np.array(a) for name, a in inputs.items()})

    twin = (hidden, lambda dy, cache: backward(np.array(dy), _plain(cache)))
    open_, closed = (gradcheck(*pair, low(inputs, dtype), twin=t) for t in ((forward, backward), twin))
    assert closed.arguments[0].tolerance > open_.arguments[0].tolerance


def _plain(cache):
    return tuple(map(_plain, cache)) if isinstance(cache, tuple) else np.asarray(cache) if isinstance(cache, np.ndarray) else cache


def test_equal_rows_round_equally():
    """The errors of equal rows do not average out, so a bound that took them for independent would be too narrow."""
    row = normal(0, 1, 8)
    inputs = {"x": np.repeat(row, 2000, axis=0)}
    for dtype in (np.float16, BFLOAT16):
        pair = implemented(dtype, OPS.gelu_forward, OPS.gelu_backward)
        assert gradcheck(*pair, low(inputs, dtype), twin=(OPS.gelu_forward, OPS.gelu_backward)).ok


def test_mixtures_are_judged_by_the_coarsest_and_keep_their_dtypes():
    inputs = {
        "x": normal(0, 6, 5).astype(np.float16),
        "w": normal(1, 5, 7).astype(np.float32),
        "b": normal(2, 7).astype(np.float32),
    }

    def backward(dy, cache):
        dx, dw, db = OPS.linear_backward(dy, cache)
        return dx.astype(np.float16), dw.astype(np.float32), db.astype(np.float32)

    report = gradcheck(OPS.linear_forward, backward, inputs, twin=(OPS.linear_forward, OPS.linear_backward))
    assert [a.method.split()[0] for a in report.arguments] == ["float16", "float32", "float32"]
    with pytest.raises(GradcheckError, match=r"dx is \(6, 5\) float32, x is \(6, 5\) float16"):
        gradcheck(OPS.linear_forward, OPS.linear_backward, inputs, twin=(OPS.linear_forward, OPS.linear_backward))


# ---- wrong ones ----


@every_layer
@every_dtype
def test_a_factor_of_one_percent_is_refused(name, dtype):
    """Also in bfloat16, where 1 % is 1.3 eps, since the errors of some dozen entries average out."""
    forward, backward, inputs = LAYERS[name]
    for which in range(len(inputs)):
        pair = implemented(dtype, forward, backward)
        wrong = mistaken(pair[1], lambda g: g * 1.01, which)
        report = gradcheck(pair[0], wrong, low(inputs, dtype), twin=(forward, backward), raise_on_fail=False)
        assert report.arguments[which].status == "fail"
        if dtype != np.float32:
            assert "the whole gradient is 1.0" in report.arguments[which].note
        assert all(a.status == "pass" for i, a in enumerate(report.arguments) if i != which)


@every_layer
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=lambda dtype: dtype.name)
def test_one_entry_off_by_one_percent_is_named(name, dtype):
    forward, backward, inputs = LAYERS[name]

    def mistake(g):
        g = g.copy()
        g.flat[5] *= 1.01 if dtype == np.float32 else 1.1
        return g

    wrong = mistaken(backward, mistake)
    with pytest.raises(GradcheckError) as caught:
        gradcheck(forward, wrong, low(inputs, dtype), twin=(forward, backward))
    argument = caught.value.report.arguments[0]
    assert [e.index for e in argument.entries] == [np.unravel_index(5, argument.shape)]
    assert "worst error" in argument.note
    assert f"of {dtype.name}" in argument.note


def bias_gradient(add):
    """x + b over many rows, with db = add(dy)."""
    return lambda x, b: (x + b, None), lambda dy, _: (dy.copy(), add(dy))


def one_after_the_other(dy):
    total = np.zeros_like(dy[0])
    for row in dy:
        total = total + row
    return total


@pytest.mark.parametrize(("dtype", "rows"), [(np.float16, 1024), (np.float16, 4096), (BFLOAT16, 1024)])
def test_a_long_sum_in_a_half_precision_is_refused(dtype, rows):
    inputs = low({"x": normal(0, rows, 6), "b": normal(1, 6)}, dtype)
    twin = bias_gradient(lambda dy: dy.sum(axis=0))
    assert gradcheck(*bias_gradient(lambda dy: dy.astype(np.float32).sum(axis=0).astype(dtype)), inputs, twin=twin).ok
    with pytest.raises(GradcheckError, match=r"fail +db"):
        gradcheck(*bias_gradient(one_after_the_other), inputs, twin=twin)


def test_a_long_sum_in_float32_is_no_mistake():
    inputs = low({"x": normal(0, 20000, 3), "b": normal(1, 3)}, np.float32)
    assert gradcheck(*bias_gradient(one_after_the_other), inputs, twin=bias_gradient(lambda dy: dy.sum(axis=0))).ok


@every_layer
def test_float16_within_a_float32_layer_is_refused(name):
    forward, backward, inputs = LAYERS[name]

    def coarse(dy, cache):
        return backward(dy.astype(np.float16).astype(np.float32), cache)

    with pytest.raises(GradcheckError):
        gradcheck(forward, coarse, low(inputs, np.float32), twin=(forward, backward))


def test_a_value_that_differs_from_the_twins_is_named():
    def shifted(x):
        y, cache = OPS.gelu_forward(x)
        return y * np.float32(1.001), cache

    with pytest.raises(GradcheckError, match=r"y differs from its twin's: worst error .* eps, bound .* of float32"):
        gradcheck(shifted, OPS.gelu_backward, {"x": normal(0, 4).astype(np.float32)}, twin=(OPS.gelu_forward, OPS.gelu_backward))


def test_promotion_nan_and_nonlinearity_are_refused():
    x = {"x": normal(0, 8).astype(np.float32)}
    twin = (lambda x: (x * 2.0, None)), (lambda dy, _: dy * 2.0)
    for forward, backward, words in (
        (lambda x: (x * np.float64(2.0), None), lambda dy, _: dy.astype(np.float32) * 2, r"y is float64.*\['float32'\]"),
        (lambda x: (x * 2, None), lambda dy, _: dy * np.float64(2.0), r"dx is \(8,\) float64, x is \(8,\) float32"),
        (lambda x: (x * 2, None), lambda dy, _: dy * np.float32(np.nan), "fail +dx"),
        (lambda x: (x * 2, None), lambda dy, _: dy.clip(-1, 1) * 2, "fail +dx"),
        (lambda x: (x * 2, None), lambda dy, _: dy * 2 + np.float32(1e-3), "dy = 0 is not exactly 0"),
    ):
        with pytest.raises(GradcheckError, match=words):
            gradcheck(forward, backward, x, twin=twin)


# ---- questions that make no sense ----


def test_low_precision_without_a_twin_is_refused_in_words():
    for dtype in DTYPES:
        with pytest.raises(ValueError, match=f"input 'x' is {dtype.name}.*twin="):
            gradcheck(OPS.gelu_forward, OPS.gelu_backward, {"x": normal(0, 3).astype(dtype)})


def test_bad_twins_are_refused_in_words():
    pair, x = (OPS.gelu_forward, OPS.gelu_backward), {"x": normal(0, 3).astype(np.float32)}
    with pytest.raises(ValueError, match="twin= is for inputs in float32, float16 or bfloat16"):
        gradcheck(*pair, {"x": normal(0, 3)}, twin=pair)
    with pytest.raises(ValueError, match="and its twin"):
        gradcheck(*pair, x, twin=(lambda x: (x.sum(), x), lambda dy, x: dy * np.ones_like(x)))
    with pytest.raises(ValueError, match=r"twin: dx is \(1,\)"):
        gradcheck(*pair, x, twin=(OPS.gelu_forward, lambda dy, x: dy[:1]))
    large = {"x": normal(0, 5000).astype(np.float32)}
    with pytest.raises(ValueError, match="too many to differentiate numerically"):
        gradcheck(*pair, large, twin=OPS.gelu_forward)


def test_a_kink_of_the_twin_is_inconclusive_without_its_backward():
    x = {"x": np.array([1.0, 0.0, -2.0], np.float32)}
    report = gradcheck(OPS.relu_forward, OPS.relu_backward, x, twin=OPS.relu_forward, raise_on_fail=False)
    assert report.status == "inconclusive"
    assert "give its backward too" in str(report)
    assert gradcheck(OPS.relu_forward, OPS.relu_backward, x, twin=(OPS.relu_forward, OPS.relu_backward)).ok


# ---- random rounding ----


@every_dtype
def test_random_rounding_moves_values_as_far_as_true_rounding(dtype):
    a, fmt = normal(0, 20000), FORMATS[dtype.name]
    true = a.astype(dtype).astype(np.float64) - a
    drawn = fmt.rounded(a, seed=1) - a
    assert np.isclose(drawn.std(), true.std(), rtol=0.02)
    assert (np.abs(drawn) <= fmt.ulp(a) / 2).all()
    assert abs(drawn.mean()) < 4 * drawn.std() / np.sqrt(a.size)
    assert fmt.holds(a.astype(dtype).astype(np.float64))
    assert not fmt.holds(a)
    info = ml_dtypes.finfo(dtype)
    assert (fmt.eps, fmt.smallest) == (float(info.eps), float(info.smallest_subnormal))


def test_random_rounding_is_a_function_of_the_value_and_the_seed():
    fmt = FORMATS["float16"]
    a = np.array([0.1, 0.3, 0.1, 0.0])
    rounded = fmt.rounded(a, seed=0)
    assert rounded[0] == rounded[2] != a[0]
    assert rounded[3] == 0.0
    assert fmt.rounded(a, seed=1)[0] != rounded[0]


OPERATIONS = {
    "x + w.T": 1,
    "x @ w": 1,
    "x.dot(w)": 1,
    "np.einsum('ij,jk->ik', x, w)": 1,
    "np.exp(x)": 1,
    "x.sum(axis=0)": 1,
    "x.mean()": 2,
    "np.add.reduce(x)": 1,
    "-x": 0,
    "abs(x)": 0,
    "np.maximum(x, 0)": 0,
    "np.where(x > 0, x, 0.0)": 0,
    "x.reshape(-1)": 0,
    "np.concatenate([x, x])": 0,
    "x.T": 0,
    "np.zeros_like(x)": 0,
    "x.max(axis=-1)": 0,
    "x.copy()": 0,
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_arithmetic_rounds_and_copies_do_not(operation):
    rounding = Rounding(FORMATS["float16"], 0)
    plain = {"x": normal(0, 3, 4), "w": normal(1, 4, 3), "np": np}
    expected = eval(operation, plain)
    found = eval(operation, plain | {name: rounding.of(plain[name]) for name in "xw"})
    assert isinstance(found, Rounded)
    assert rounding.operations == OPERATIONS[operation]
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert np.array_equal(found, expected) == (OPERATIONS[operation] == 0)


def test_in_place_operations_round_too():
    rounding = Rounding(FORMATS["float16"], 0)
    x = rounding.of(normal(0, 3))
    y = x.copy()
    y += 1.0
    np.add.at(y, [0, 0], x[:2])
    assert isinstance(y, Rounded)
    assert not np.array_equal(y[2], x[2] + 1.0)
    np.testing.assert_allclose(np.asarray(y)[0], np.asarray(x)[0] + 1.0 + np.asarray(x)[:2].sum(), atol=0.01)


def test_the_size_of_a_sum_grows_with_its_terms_up_to_those_the_format_may_add():
    rounding = Rounding(Format("test", 2.0**-10, 2.0**-24, added_terms=64), 0)

    def size(n):
        a = np.ones(n)
        return float(rounding.size_of_sum(lambda f: f(a).sum(), np.float64(n)))

    assert [size(n) for n in (1, 4, 16, 64, 65)] == [1, 4, 32, 256, 65]
