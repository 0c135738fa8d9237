"""The checker on layers as people write them: trees, targets without gradients, buffers, caches, losses, domains, precision."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse

from tensorlite import GradcheckError, gradcheck
from tensorlite.testing.trees import flatten

RANDOM = np.random.default_rng(0).standard_normal


def check(forward, backward, inputs, **options):
    return gradcheck(forward, backward, inputs, raise_on_fail=False, **options)


def complaint(forward, backward, inputs, **options):
    """Return what the report says beside its verdict, which must be a fail without any ratio."""
    report = check(forward, backward, inputs, **options)
    assert report.status == "fail"
    assert "ratio" not in str(report)
    return "; ".join(report.contract_violations)


# ---- trees of inputs and gradients ----


class Weights(NamedTuple):
    w: object
    b: object


PARAMS = {
    "blocks": [{"w": RANDOM((4, 2)), "heads": 3}, {"w": RANDOM((2, 2)), "b": None}],
    "last": Weights(RANDOM((2, 3)), RANDOM(3)),
}


def mlp_forward(x, params):
    first, second, last = (*(block["w"] for block in params["blocks"]), params["last"])
    h = np.tanh(x @ first)
    g = h @ second
    return g @ last.w + last.b, (x, h, g, params)


def mlp_gradients(dy, cache):
    x, h, g, params = cache
    dlast = Weights(g.T @ dy, dy.sum(axis=0))
    dg = dy @ params["last"].w.T
    dfirst = x.T @ (dg @ params["blocks"][1]["w"].T * (1 - h * h))
    dx = dg @ params["blocks"][1]["w"].T * (1 - h * h) @ params["blocks"][0]["w"].T
    return dx, dfirst, h.T @ dg, dlast


def nested(dx, dfirst, dsecond, dlast):
    return dx, {"blocks": [{"w": dfirst, "heads": None}, {"w": dsecond, "b": None}], "last": dlast}


RETURNED = {
    "as nested as the inputs": nested,
    "without what has no gradient": lambda dx, d1, d2, dl: (dx, {"blocks": ({"w": d1}, {"w": d2}), "last": tuple(dl)}),
    "a list": lambda *g: list(nested(*g)),
    "a dict": lambda *g: dict(zip(("x", "params"), nested(*g), strict=True)),
    "a dict in another order, keys with a d": lambda *g: dict(zip(("dparams", "dx"), nested(*g)[::-1], strict=True)),
    "a flat dict": lambda *g: {"x": g[0], **nested(*g)[1]},
    "flat, leaf by leaf": lambda dx, d1, d2, dl: (dx, d1, d2, *dl),
}


@pytest.mark.parametrize("form", RETURNED)
def test_gradients_come_back_in_any_of_these_forms(form):
    inputs = {"x": RANDOM((3, 4)), "params": PARAMS}
    report = gradcheck(mlp_forward, lambda dy, c: RETURNED[form](*mlp_gradients(dy, c)), inputs)
    assert [a.name for a in report.arguments] == [
        "x",
        'params["blocks"][0]["w"]',
        'params["blocks"][1]["w"]',
        'params["last"].w',
        'params["last"].b',
    ]


@pytest.mark.parametrize("form", RETURNED)
def test_a_wrong_entry_is_reported_by_its_path(form):
    def backward(dy, cache):
        dx, dfirst, dsecond, dlast = mlp_gradients(dy, cache)
        dfirst[3, 1] *= 2
        return RETURNED[form](dx, dfirst, dsecond, dlast)

    report = check(mlp_forward, backward, {"x": RANDOM((3, 4)), "params": PARAMS})
    assert [a.name for a in report.arguments if a.status != "pass"] == ['params["blocks"][0]["w"]']
    assert 'dparams["blocks"][0]["w"][3, 1] backward' in str(report)
    assert "ratio 2\n" in str(report)


def test_a_single_tree_and_its_gradient():
    def forward(params):
        return params["a"] * params["b"], params

    for returned in (dict, lambda d: [d["a"], d["b"]], lambda d: {"params": d}, lambda d: (d,)):
        assert check(
            forward, lambda dy, p, f=returned: f({"a": dy * p["b"], "b": dy * p["a"]}), {"params": {"a": RANDOM(3), "b": RANDOM(3)}}
        ).ok
    pair = {"ab": (RANDOM(3), RANDOM(3))}
    assert check(lambda ab: (ab[0] * ab[1], ab), lambda dy, ab: (dy * ab[1], dy * ab[0]), pair).ok
    assert not check(lambda ab: (ab[0] * ab[1], ab), lambda dy, ab: (dy * ab[0], dy * ab[1]), pair).ok


def test_names_count_for_more_than_an_order():
    """A dict with swapped keys is a mistake, even if its values would fit in the order in which they come."""
    inputs = {"x": RANDOM((2, 4)), "params": {"w": RANDOM((4, 3)), "b": RANDOM(3)}}
    text = complaint(
        lambda x, params: (x @ params["w"] + params["b"], (x, params)),
        lambda dy, c: (dy @ c[1]["w"].T, {"b": c[0].T @ dy, "w": dy.sum(axis=0)}),
        inputs,
    )
    assert 'dparams["w"] is (3,) float64, params["w"] is (4, 3) float64' in text


def test_several_outputs_may_be_a_dict():
    def forward(a, b):
        return {"sum": a + b, "products": [a * b, 2.0 * b]}, (a, b)

    def backward(dy, cache):
        (a, b), (d1, d2) = cache, dy["products"]
        return dy["sum"] + d1 * b, dy["sum"] + d1 * a + 2.0 * d2

    assert gradcheck(forward, backward, {"a": RANDOM(3), "b": RANDOM(3)}).ok


# ---- wrt ----


def squares(p, t):
    return ((p - t) ** 2).sum(), (p, t)


def dp_of_squares(dy, cache):
    p, t = cache
    return 2 * dy * (p - t)


@pytest.mark.parametrize(
    "returned",
    [
        lambda g: g,
        lambda g: (g,),
        lambda g: (g, None),
        lambda g: [g, 17.0 * g],
        lambda g: (g, "no gradient"),
        lambda g: {"p": g},
        lambda g: {"p": g, "t": None},
        lambda g: {"dp": g, "dt": g.sum()},
    ],
)
def test_an_input_outside_wrt_needs_no_gradient(returned):
    inputs = {"p": RANDOM(3), "t": RANDOM(3)}
    report = gradcheck(squares, lambda dy, c: returned(dp_of_squares(dy, c)), inputs, wrt=["p"])
    assert [a.name for a in report.arguments] == ["p"]
    wrong = check(squares, lambda dy, c: returned(2 * dp_of_squares(dy, c)), inputs, wrt=["p"])
    assert wrong.arguments[0].entries[0].ratio == pytest.approx(2)


def test_the_checked_input_need_not_be_the_first():
    for returned in (lambda g: g, lambda g: (None, g), lambda g: (g, g)):
        inputs = {"t": RANDOM(3), "p": RANDOM(3)}
        assert check(lambda t, p: squares(p, t), lambda dy, c, f=returned: f(dp_of_squares(dy, c)), inputs, wrt=["p"]).ok


def test_trees_in_the_order_of_wrt_alone():
    inputs = {"t": RANDOM(3), "a": {"w": RANDOM(3)}, "b": {"w": RANDOM(3)}}
    report = gradcheck(
        lambda t, a, b: (t * a["w"] * b["w"], (t, a["w"], b["w"])),
        lambda dy, c: ({"w": dy * c[0] * c[2]}, {"w": dy * c[0] * c[1]}),
        inputs,
        wrt=["a", "b"],
    )
    assert [argument.name for argument in report.arguments] == ['a["w"]', 'b["w"]']


def test_a_float32_target_outside_wrt_is_no_question():
    inputs = {"p": RANDOM(3), "t": RANDOM(3).astype(np.float32)}
    assert check(squares, dp_of_squares, inputs, wrt=["p"]).ok
    with pytest.raises(ValueError, match="input 't' is float32"):
        check(squares, dp_of_squares, inputs)


def test_without_wrt_the_report_says_that_a_gradient_is_missing_and_the_way_out():
    text = complaint(squares, dp_of_squares, {"p": RANDOM(3), "t": RANDOM(3)})
    assert "returns 1 gradient for the 2 inputs ['p', 't']: an array (3,) float64" in text
    assert "name all the others in wrt=[...]" in text
    text = complaint(squares, lambda dy, c: (dp_of_squares(dy, c), None), {"p": RANDOM(3), "t": RANDOM(3)})
    assert "dt is None or missing for an input that is an array" in text
    assert "wrt=[...]" in text


@pytest.mark.parametrize("none", [True, False])
def test_integers_and_strings_may_have_none_or_be_left_out(none):
    def backward(dy, cache):
        x, n, w = cache
        dx, dw = dy * n * x ** (n - 1) * w, dy * x**n
        return (None, dx, None, dw) if none else (dx, dw)

    inputs = {"mode": "power", "x": RANDOM(3), "n": 3, "w": RANDOM(3)}
    assert gradcheck(lambda mode, x, n, w: (x**n * w, (x, n, w)), backward, inputs).ok


@pytest.mark.parametrize(
    ("wrt", "expected"),
    [
        (["params"], ['params["blocks"][0]["w"]', 'params["blocks"][1]["w"]', 'params["last"].w', 'params["last"].b']),
        (["params['blocks']"], ['params["blocks"][0]["w"]', 'params["blocks"][1]["w"]']),
        (['params["last"].b', "x"], ["x", 'params["last"].b']),
        (['params["blocks"][1]'], ['params["blocks"][1]["w"]']),
        (['params["last"]'], ['params["last"].w', 'params["last"].b']),
    ],
)
def test_wrt_takes_names_and_paths(wrt, expected):
    inputs = {"x": RANDOM((3, 4)), "params": PARAMS}
    report = gradcheck(mlp_forward, lambda dy, c: nested(*mlp_gradients(dy, c)), inputs, wrt=wrt)
    assert [a.name for a in report.arguments] == expected


def test_wrt_refuses_what_is_no_float_array():
    for name in ("param", 'params["block"]', 'params["blocks"][0]["heads"]', "params.last"):
        with pytest.raises(ValueError, match="which is no float array among the inputs"):
            check(mlp_forward, lambda dy, c: nested(*mlp_gradients(dy, c)), {"x": RANDOM((3, 4)), "params": PARAMS}, wrt=[name])


def test_what_fits_no_reading_is_said_in_words():
    inputs = {"x": RANDOM(3), "w": RANDOM(3)}
    text = complaint(lambda x, w: (x * w, (x, w)), lambda dy, c: (dy, dy, dy), inputs)
    assert "returns 3 gradients for the 2 inputs ['x', 'w']: a tuple (an array (3,) float64, " in text
    assert "Return one per input, in this order or as a dict by their names" in text
    text = complaint(lambda x, w: (x * w, (x, w)), lambda dy, c: {"x": dy * c[1], "v": dy * c[0]}, inputs)
    assert "dw is None or missing" in text
    assert "a gradient for 'v', which is no input" in text


# ---- losses, and what forward returns ----


@pytest.mark.parametrize("loss", [float, np.float64, np.asarray, lambda y: y, lambda y: np.asarray(y).reshape(1)])
def test_a_loss_may_be_a_float_of_any_kind(loss):
    def forward(x):
        return loss((x**2).sum()), x

    assert gradcheck(forward, lambda dy, x: 2 * dy * x, {"x": RANDOM(3)}).ok
    assert check(forward, lambda dy, x: 3 * dy * x, {"x": RANDOM(3)}).arguments[0].entries[0].ratio == pytest.approx(1.5)


def test_the_gradient_of_a_scalar_may_be_a_float():
    inputs = {"x": RANDOM(3), "b": np.array(0.5)}
    assert gradcheck(lambda x, b: (x * b, (x, b)), lambda dy, c: (dy * c[1], float((dy * c[0]).sum())), inputs).ok


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (2,), (1, 2, 3)])
def test_a_forward_that_returns_y_alone_is_told_what_to_write(shape):
    """Also an array with two rows, which would unpack as a pair."""
    with pytest.raises(ValueError, match=r"alone. forward must return a pair: `return y, cache`, where the cache may be None"):
        check(lambda x: 3 * x, lambda dy, c: 3 * dy, {"x": RANDOM(shape)})


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda x: None, "Is its return statement missing"),
        (lambda x: float(x.sum()), "forward returned a float alone"),
        (lambda x: {"y": x}, "forward returned a dict .* alone"),
        (lambda x: (x, x, x), "forward returned 3 values"),
        (lambda x: (None, x), "forward returned None for it"),
        (lambda x: ("text", x), "forward returned a str for it"),
        (lambda x: (x > 0, x), r"forward returned an array \(3,\) bool for it"),
        (lambda x: ((), x), r"forward returned a tuple \(\) for it"),
        (lambda y: (y, None), "the call is forward.*'x'.* but forward takes"),
    ],
)
def test_other_returns_of_forward_are_told_what_to_write(forward, words):
    with pytest.raises(ValueError, match=words):
        check(forward, lambda dy, c: dy, {"x": RANDOM(3)})


def test_a_backward_with_other_arguments_is_told_how_it_is_called():
    with pytest.raises(ValueError, match=r"the call is backward\(dy, cache\), but backward takes \(dy\)"):
        check(lambda x: (x, None), lambda dy: dy, {"x": RANDOM(3)})


def test_a_type_error_inside_the_layer_is_its_own():
    with pytest.raises(TypeError, match="takes no keyword"):
        check(lambda x: ({}.get(z=1), None), lambda dy, c: dy, {"x": RANDOM(3)})


# ---- buffers ----


class Tanh:
    """A layer that writes its gradient into a buffer that it keeps."""

    def forward(self, x):
        self.y = np.tanh(x)
        return self.y, None

    def backward(self, dy, _):
        if not hasattr(self, "dx"):
            self.dx = np.zeros_like(dy)
        return self.write(dy * (1 - self.y**2))

    def write(self, dx):
        self.dx[...] = dx
        return self.dx


def test_a_buffer_that_is_used_again_is_no_mistake():
    layer = Tanh()
    assert gradcheck(layer.forward, layer.backward, {"x": RANDOM(4)}).ok


def test_an_output_buffer_that_is_used_again_is_no_mistake():
    buffer = np.empty(4)

    def forward(x):
        np.multiply(x, 2, out=buffer)
        return buffer, None

    assert gradcheck(forward, lambda dy, _: 2 * dy, {"x": RANDOM(4)}, method="fd").ok


def test_an_output_buffer_does_not_hide_that_two_calls_differ():
    buffer, random = np.empty(4), np.random.default_rng(1)

    def forward(x):
        np.multiply(x, random.random(), out=buffer)
        return buffer, None

    assert "forward is not repeatable" in complaint(forward, lambda dy, _: dy, {"x": RANDOM(4)})


class Adding(Tanh):
    def write(self, dx):
        self.dx += dx
        return self.dx


class AddingAnew(Tanh):
    def write(self, dx):
        self.dx = self.dx + dx
        return {"x": self.dx}


@pytest.mark.parametrize("kind", [Adding, AddingAnew])
def test_a_backward_that_adds_up_is_named(kind):
    for earlier_calls in (0, 2):
        layer = kind()
        for _ in range(earlier_calls):
            layer.forward(np.ones(4))
            layer.backward(np.ones(4), None)
        text = complaint(layer.forward, layer.backward, {"x": RANDOM(4)})
        assert "backward adds to a buffer it keeps: the second call returned the sum of both" in text


@pytest.mark.parametrize(
    ("backward", "written"),
    [
        (lambda dy, c: np.multiply(dy, c[0], out=dy), "dy"),
        (lambda dy, c: np.multiply(dy, c[0], out=c[0]), "its cache"),
        (lambda dy, c: np.multiply(dy, c[0], out=c[1]["memo"]), "its cache"),
        (lambda dy, c: dy * c[2].pop(), "its cache"),
    ],
)
def test_what_backward_overwrites_is_named_and_later_rules_start_anew(backward, written):
    """The gradient itself is right, so no other rule and no number may speak against it."""

    def forward(x):
        a = np.full_like(x, 3.0)
        return 3.0 * x, (a, {"memo": np.zeros_like(x)}, [a])

    report = check(forward, backward, {"x": RANDOM(4)})
    assert report.contract_violations == [f"backward writes into {written}"]
    assert [a.status for a in report.arguments] == ["pass"]


def test_an_input_that_backward_overwrites_is_named():
    report = check(lambda x: (x * x, x), lambda dy, x: np.multiply(2 * dy, x, out=x), {"x": RANDOM(4)})
    assert report.contract_violations == ["backward writes into its cache", "backward writes into the inputs"]
    assert report.arguments[0].status == "pass"


def test_a_memo_in_the_cache_is_no_mistake():
    def backward(dy, cache):
        cache["dy"] = dy
        return 2.0 * dy

    assert gradcheck(lambda x: (2.0 * x, {}), backward, {"x": RANDOM(3)}).ok


# ---- bits ----


def test_repeatable_means_the_same_bits():
    signs = iter([1.0, -1.0] * 100)
    assert "forward is not repeatable" in complaint(lambda x: (x * 0 * next(signs), x), lambda dy, x: dy * 0, {"x": np.ones(3)})
    text = complaint(lambda x: (x * 0, x), lambda dy, x: x * 0 * next(signs), {"x": np.ones(3)})
    assert "backward is not repeatable" in text


def test_other_shapes_and_types_at_the_second_call_are_violations():
    lengths = iter([3, 3, 4] * 100)
    text = complaint(lambda x: (np.ones(next(lengths)) * x.sum(), x), lambda dy, x: dy.sum() * np.ones_like(x), {"x": RANDOM(3)})
    assert "forward is not repeatable" in text
    shapes = iter([(3,), (1, 3)] * 100)
    assert "backward is not repeatable" in complaint(lambda x: (x, None), lambda dy, _: dy.reshape(next(shapes)), {"x": RANDOM(3)})


# ---- caches and inputs that cannot be compared ----


class Opaque:
    """An object that refuses to be compared or copied."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        raise TypeError("not comparable")

    def __deepcopy__(self, memo):
        raise TypeError("not copyable")


def contains_itself(value):
    cache = [value]
    cache.append(cache)
    return cache


CACHES = {
    "a sparse matrix": (lambda a: scipy.sparse.csr_array(a), lambda c: c.toarray()),
    "a sparse matrix in a list": (lambda a: [scipy.sparse.coo_matrix(a)], lambda c: c[0].toarray()),
    "an object": (Opaque, lambda c: c.value),
    "objects in an array": (lambda a: np.array([Opaque(a), None]), lambda c: c[0].value),
    "a generator": (lambda a: (part for part in [a]), next),
    "a closure": (lambda a: lambda: a, lambda c: c()),
    "a cache that contains itself": (contains_itself, lambda c: c[0]),
    "a set and bytes": (lambda a: {a.tobytes()}, lambda c: np.frombuffer(next(iter(c)))),
    "a masked array": (lambda a: np.ma.masked_array(a), lambda c: c.data),
    "a record": (lambda a: np.array([(1, "a")], dtype=[("n", int), ("s", "U1")]), lambda c: 3.0),
}


@pytest.mark.parametrize("kind", CACHES)
def test_a_cache_of_any_kind_is_left_alone(kind):
    store, load = CACHES[kind]
    forward, inputs = lambda x: (3.0 * x, store(np.full((1, 3), 3.0))), {"x": RANDOM((1, 3))}
    assert gradcheck(forward, lambda dy, c: dy * load(c), inputs).ok
    assert not check(forward, lambda dy, c: dy * load(c) * 2, inputs).ok


def test_inputs_of_any_kind_are_left_alone(tmp_path):
    a = scipy.sparse.random_array((4, 3), density=0.5, rng=1).tocsr()
    with (tmp_path / "log").open("w") as log:
        inputs = {"a": a, "x": RANDOM(3), "options": Opaque(2.0), "log": log, "names": {"set"}}
        report = gradcheck(lambda a, x, options, log, names: (a @ x, a), lambda dy, a: a.T @ dy, inputs)
    assert [argument.name for argument in report.arguments] == ["x"]


# ---- values that are infinite or not a number at a probe ----

with np.errstate(all="ignore"):
    UNDEFINED_NEARBY = {
        "log reaches 0": (np.log, lambda x: 1 / x, [0.05, 0.049, 1e-3, 1e-6]),
        "log below 0": (np.log, lambda x: 1 / x, [0.04, 0.001]),
        "sqrt of a negative": (np.sqrt, lambda x: 0.5 / np.sqrt(x), [0.05, 0.02, 1e-4]),
        "a pole": (lambda x: 1 / x, lambda x: -1 / x**2, [0.05, -0.05, 0.0125]),
        "overflow": (lambda x: np.exp(x) * 1e-300, lambda x: np.exp(x) * 1e-300, [709.75, 709.0]),
        "overflow to a finite value": (lambda x: 1 / (1 + np.exp(x)), lambda x: -1 / (2 + np.exp(x) + np.exp(-x)), [0.3, -2.0]),
        "arctanh": (np.arctanh, lambda x: 1 / (1 - x * x), [0.95, -0.96, 0.9999]),
        "a loss by math.log": (
            lambda x: sum(map(math.log, x)) if np.isrealobj(x) else np.log(x).sum(),
            lambda x: 1 / x,
            [0.05, 0.01],
        ),
    }


@pytest.mark.parametrize("name", UNDEFINED_NEARBY)
def test_an_undefined_value_at_a_probe_spoils_nothing(name):
    f, derivative, x = UNDEFINED_NEARBY[name]
    for values in ([v] for v in x):
        inputs = {"x": np.array(values)}
        assert check(lambda x: (f(x), x), lambda dy, x: dy * derivative(x), inputs).ok
        assert check(lambda x: (f(x), x), lambda dy, x: dy * derivative(x) * 1.001, inputs).status == "fail"


def test_an_undefined_value_at_the_inputs_themselves_is_named():
    with np.errstate(all="ignore"):
        report = check(lambda x: (np.log(x), x), lambda dy, x: dy / x, {"x": np.array([-1.0])})
    assert report.status == "inconclusive"
    assert "forward returns nan or inf at these inputs" in str(report)


# ---- precision ----


def test_an_output_in_float32_is_named():
    text = complaint(lambda x: (x.astype(np.float32) ** 2, x), lambda dy, x: 2 * dy * x, {"x": RANDOM(3)})
    assert "y is rounded to float32" in text
    assert "cast less inside forward, or check with twin=" in text


ROUNDED = {
    "the input": lambda x: (x.astype(np.float32).astype(np.float64) ** 2, x),
    "the output": lambda x: ((x**2).astype(np.float32).astype(np.float64), x),
    "a loss": lambda x: (float(np.float32((x**2).sum())), x),
    "a step in the middle": lambda x: (np.exp(np.log(x * x).astype(np.float32).astype(np.float64)), x),
}


@pytest.mark.long
@pytest.mark.parametrize("size", [1, 3, 300])
@pytest.mark.parametrize("where", ROUNDED)
def test_float32_inside_is_named_in_place_of_ratios(where, size):
    x = np.random.default_rng(size).uniform(1.0, 3.0, size)  # where no rounding error is 0 by chance
    report = check(ROUNDED[where], lambda dy, x: 2 * dy * x, {"x": x})
    assert report.status == "inconclusive"
    assert "as by float32 inside forward: cast less, or check with twin=" in str(report)
    assert "ratio" not in str(report)
    assert check(ROUNDED[where], lambda dy, x: -2 * dy * x, {"x": x}).status != "pass"


@pytest.mark.parametrize("where", ROUNDED)
def test_float32_inside_excuses_no_large_mistake(where):
    report = check(ROUNDED[where], lambda dy, x: 2000 * dy * x, {"x": np.array([2.1, 3.3])})
    assert report.status == "fail"


def test_the_arguments_beside_a_rounded_one_are_excused_too():
    """dx is computed from the exact w, and forward from the rounded one: 1.7e-7 apart, which is no mistake of backward."""

    def forward(x, w):
        return x @ w.astype(np.float32).astype(np.float64), (x, w)

    random = np.random.default_rng(0)
    inputs = {"x": random.standard_normal((3, 4)), "w": random.standard_normal((4, 2))}
    report = check(forward, lambda dy, c: (dy @ c[1].T, c[0].T @ dy), inputs, rtol=1e-9)
    assert report.status == "inconclusive"
    assert str(report).count("float32 inside forward") == 2


def test_a_wrong_backward_beside_kinks_or_large_values_is_no_rounding():
    """What is blamed on forward must be noise: of one size at all steps, and coarser than that of float64."""
    x = np.array([0.0, 0.0, 0.0, 1.3, -0.4, 0.6, -1.1, 0.9])  # a slope of ReLU is wrong where x is above 0 alone
    for f, g in (
        (lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0001),
        (lambda x: 1e6 + x * x, lambda x: 2.0001 * x),
        (lambda x: np.exp(3 * x), lambda x: 3.0001 * np.exp(3 * x)),
    ):
        report = check(lambda x, f=f: (f(x), x), lambda dy, x, g=g: dy * g(x), {"x": x})
        assert report.status == "fail"
        assert "float32" not in str(report)


# ---- tolerances ----


def test_tolerances_of_zero_divide_nothing_by_zero():
    report = check(lambda x: (x * x, x), lambda dy, x: 2 * dy * x, {"x": RANDOM(3)}, rtol=0, atol=0)
    assert report.status == "inconclusive"
    assert check(lambda x: (x * 0, x), lambda dy, x: dy * 0, {"x": RANDOM(3)}, rtol=0, atol=0).ok
    assert check(lambda x: (x * 0, x), lambda dy, x: dy * 0, {"x": RANDOM(3)}, atol=0).ok


def test_large_gradients_are_not_waved_through():
    """Their squares overflow, and a tolerance of inf would pass anything."""
    with pytest.raises(GradcheckError, match=r"ratio 1\.5"):
        gradcheck(lambda x: (x * 1e200, x), lambda dy, x: dy * 1.5e200, {"x": RANDOM(3)})


def test_no_input_of_the_caller_changes():
    params = {"w": RANDOM(3), "list": [RANDOM(2)]}
    before = {path: a.copy() for path, a in flatten(params).items()}

    def forward(params):
        params["list"][0] *= 2.0
        return params["w"] * 1.0, None

    assert "forward writes into its inputs" in complaint(forward, lambda dy, _: {"w": dy}, {"params": params}, wrt=["params['w']"])
    assert all((a == before[path]).all() for path, a in flatten(params).items())
