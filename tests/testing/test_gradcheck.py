"""The checker itself: it must pass right gradients, fail wrong ones, and say where and why."""

import json

import numpy as np
import pytest

from cases import every_backend
from tensorlite import GradcheckError, ReferenceOps, gradcheck

OPS = ReferenceOps()
RANDOM = np.random.default_rng(0).standard_normal


def scaled(factor, index=...):
    """A GELU backward that is wrong by a factor, everywhere or at one entry."""

    def backward(dy, cache):
        dx = OPS.gelu_backward(dy, cache).copy()
        dx[index] *= factor
        return dx

    return backward


@pytest.mark.parametrize("factor", [-1.0, 2.0, 8 / 7, 1.01, 1.001, 1 + 1e-5])
@pytest.mark.parametrize("shape", [(3, 4), (50, 40)])
def test_a_wrong_factor_is_found_and_its_ratio_reported(factor, shape):
    with pytest.raises(GradcheckError) as caught:
        gradcheck(OPS.gelu_forward, scaled(factor), {"x": RANDOM(shape)})
    argument = caught.value.report.arguments[0]
    assert argument.status == "fail"
    assert all(np.isclose(e.ratio, factor, rtol=1e-6) for e in argument.entries)


def test_an_entry_whose_derivative_may_be_0_has_no_ratio():
    """cos^2 + sin^2 depends on nothing. Its difference is a rounding error, and a ratio to it says nothing."""

    def forward(x):
        return np.cos(x) ** 2 + np.sin(x) ** 2, None

    report = gradcheck(forward, lambda dy, _: dy, {"x": RANDOM(3)}, raise_on_fail=False)
    assert [e.ratio for e in report.arguments[0].entries] == [np.inf] * 3
    assert str(report).count("which may be 0") == 3
    assert "ratio" not in str(report)


def test_one_wrong_entry_of_64000_is_named():
    x = RANDOM((40, 40, 40))
    x[3, 17, 31] = 0.8
    report = gradcheck(OPS.gelu_forward, scaled(1.01, (3, 17, 31)), {"x": x}, raise_on_fail=False)
    (entry,) = report.arguments[0].entries
    assert entry.index == (3, 17, 31)
    assert np.isclose(entry.ratio, 1.01, rtol=1e-6)
    assert "[3, 17, 31]" in str(report)
    assert report.arguments[0].bad == 1


def test_the_count_of_wrong_entries_is_exact_where_all_are_checked():
    report = gradcheck(OPS.gelu_forward, scaled(1.1, np.s_[:, 1]), {"x": RANDOM((6, 4)) + 1}, raise_on_fail=False)
    assert report.arguments[0].bad == 6
    assert len(report.arguments[0].entries) == 5


def test_a_kink_is_told_from_a_mistake():
    x = np.array([[1.0, 0.0, -2.0]])
    report = gradcheck(OPS.relu_forward, OPS.relu_backward, {"x": x}, raise_on_fail=False)
    assert report.status == "inconclusive"
    assert not report.ok
    (entry,) = report.arguments[0].entries
    assert entry.index == (0, 1)
    assert sorted([abs(entry.left), abs(entry.right)])[0] < 1e-9
    assert "not differentiable here" in str(report)


def test_kinks_do_not_hide_a_mistake():
    x = RANDOM(1000)
    x[[3, 50, 200, 300, 400, 600, 700]] = 0.0
    x[500] = 2.0

    def backward(dy, cache):
        dx = OPS.relu_backward(dy, cache)
        dx[500] *= 3
        return dx

    report = gradcheck(OPS.relu_forward, backward, {"x": x}, raise_on_fail=False)
    assert report.status == "fail"
    assert report.arguments[0].entries[0].index == (500,)


def test_a_kink_close_by_is_stepped_around():
    gradcheck(OPS.relu_forward, OPS.relu_backward, {"x": np.array([[1e-3, -1e-5, 0.5]])})


def test_a_jump_is_inconclusive_not_a_pass():
    """Numerical derivatives of rounding mean nothing, and the checker says so."""
    report = gradcheck(
        lambda x: (np.round(x * 1e3) / 1e3, x), lambda dy, cache: dy * 1.0, {"x": RANDOM(4) + 0.0004}, raise_on_fail=False
    )
    assert report.status != "pass"


CONTRACT = {
    "writes into its cache": (OPS.gelu_forward, lambda dy, x: np.multiply(x, dy, out=x)),
    "writes into dy": (OPS.gelu_forward, lambda dy, x: np.multiply(dy, 1.0 + 0 * x, out=dy) * 2 + dy.__imul__(2)),
    "not exactly 0": (OPS.gelu_forward, lambda dy, x: OPS.gelu_backward(dy, x) + 1e-12),
    "not linear in dy": (OPS.gelu_forward, lambda dy, x: OPS.gelu_backward(dy, x) * abs(dy)),
    r"dx is \(4,\)": (OPS.gelu_forward, lambda dy, x: OPS.gelu_backward(dy, x).sum(axis=0)),
    "float32": (OPS.gelu_forward, lambda dy, x: OPS.gelu_backward(dy, x).astype(np.float32)),
    "returns 2 gradients": (OPS.gelu_forward, lambda dy, x: (dy, dy)),
    "returns a list": (OPS.gelu_forward, lambda dy, x: (OPS.gelu_backward(dy, x).tolist(),)),
    "forward writes into its inputs": (lambda x: (np.multiply(x, 2, out=x), x), lambda dy, x: 2 * dy),
}


@pytest.mark.parametrize("rule", CONTRACT)
def test_broken_contracts_are_named(rule):
    forward, backward = CONTRACT[rule]
    with pytest.raises(GradcheckError, match=rule):
        gradcheck(forward, backward, {"x": RANDOM((3, 4))})


@every_backend
def test_rounding_is_no_broken_contract(ops):
    """In a layernorm over two channels terms of size 1 cancel to 1e-5, so their rounding is large beside the result."""
    for seed in range(150):
        x = np.random.default_rng(seed).uniform(0.5, 2.0, (4, 1)) * [1.0, -1.0]
        inputs = {"x": x, "w": RANDOM(2)}
        assert gradcheck(ops.layernorm_forward, ops.layernorm_backward, inputs, method="complex", atol=1e-13).ok


def test_unrepeatable_functions_are_named():
    noise = np.random.default_rng(1)
    with pytest.raises(GradcheckError, match="forward is not repeatable"):
        gradcheck(lambda x: (x * noise.random(), x), lambda dy, x: dy, {"x": RANDOM(3)})
    with pytest.raises(GradcheckError, match="backward is not repeatable"):
        gradcheck(lambda x: (x, x), lambda dy, x: dy * noise.random(), {"x": RANDOM(3)})


def test_nan_is_never_a_pass():
    report = gradcheck(lambda x: (x, x), lambda dy, x: dy * np.nan, {"x": RANDOM(3)}, raise_on_fail=False)
    assert report.status == "fail"
    with np.errstate(all="ignore"):
        report = gradcheck(lambda x: (np.log(x), x), lambda dy, x: dy / x, {"x": np.array([-1.0])}, raise_on_fail=False)
    assert report.status != "pass"


def test_an_in_place_forward_is_noticed_and_the_callers_arrays_survive():
    """Also where a second call changes nothing more, and for integers, which have no gradient."""
    x = RANDOM((3, 4))
    before = x.copy()
    with pytest.raises(GradcheckError, match="forward writes into its inputs"):
        gradcheck(lambda x: (np.maximum(x, 0.1, out=x) * 1.0, x), lambda dy, x: dy * (x > 0.1), {"x": x})
    np.testing.assert_array_equal(x, before)

    def counts(x, n):
        n += 1
        return x * 2.0, None

    with pytest.raises(GradcheckError, match="forward writes into its inputs"):
        gradcheck(counts, lambda dy, _: dy * 2.0, {"x": x, "n": np.arange(3)})


@pytest.mark.parametrize(
    ("forward", "method"),
    [
        (lambda x: (np.sin(x.real), x), "complex"),
        (lambda x: ((x * np.conj(x)).real, x), "complex"),
        (lambda x: (1e10 + 1e-4 * np.sin(x.real), x), "auto"),
    ],
)
def test_code_that_drops_the_imaginary_part_is_never_a_pass(forward, method):
    report = gradcheck(forward, lambda dy, x: 0.0 * dy, {"x": RANDOM(5) + 2}, method=method, raise_on_fail=False)
    assert report.status != "pass"


def test_code_that_refuses_complex_numbers_is_checked_by_differences():
    def forward(x):
        if x.dtype != np.float64:
            raise ValueError("float64 only")
        return abs(x).sum() + 1e8, x

    report = gradcheck(forward, lambda dy, x: dy * np.sign(x), {"x": RANDOM(5) + 3}, raise_on_fail=False)
    assert report.status == "inconclusive"


def test_at_a_kink_not_everything_is_excused():
    """Any slope between the left and the right one is a choice; 17 is a mistake."""
    x = np.array([[0.0, 1.0]])
    report = gradcheck(OPS.relu_forward, lambda dy, y: dy * np.where(y > 0, 1.0, 17.0), {"x": x}, raise_on_fail=False)
    assert report.status == "fail"


def test_many_kinks_do_not_hide_a_small_mistake():
    x = np.concatenate([np.zeros(70), [1.0]])

    def backward(dy, y):
        dx = OPS.relu_backward(dy, y)
        dx[70] *= 1.001
        return dx

    report = gradcheck(OPS.relu_forward, backward, {"x": x}, raise_on_fail=False)
    assert report.status == "fail"
    assert report.arguments[0].entries[0].index == (70,)


def test_absent_inputs_may_be_left_out_of_the_gradients():
    def forward(x, b=None, key=None):
        return x * 2.0, None

    assert gradcheck(forward, lambda dy, _: dy * 2.0, {"x": RANDOM(3), "b": None, "key": None}).ok
    assert gradcheck(forward, lambda dy, _: (dy * 2.0, None), {"x": RANDOM(3), "b": None, "key": None}).ok


def test_several_outputs_and_absent_inputs():
    def forward(a, b, c, power=2):
        return (a * b, a**power), (a, b, power)

    def backward(dy, cache):
        (d1, d2), (a, b, power) = dy, cache
        return d1 * b + d2 * power * a ** (power - 1), d1 * a, None

    report = gradcheck(forward, backward, {"a": RANDOM(3), "b": RANDOM(3), "c": None, "power": 3})
    assert [a.name for a in report.arguments] == ["a", "b"]
    assert gradcheck(forward, backward, {"a": RANDOM(3), "b": RANDOM(3), "c": None}, wrt=["b"]).arguments[0].name == "b"


def test_methods_agree_and_abs_is_no_analytic_code():
    for method in ("fd", "complex", "auto"):
        assert gradcheck(OPS.gelu_forward, OPS.gelu_backward, {"x": RANDOM((3, 4))}, method=method).ok
    report = gradcheck(
        lambda x: (abs(x), x), lambda dy, x: dy * np.sign(x), {"x": RANDOM(5)}, method="complex", raise_on_fail=False
    )
    assert not report.ok


@pytest.mark.parametrize(
    ("inputs", "options", "words"),
    [
        ({"x": np.ones(3, np.float32)}, {}, "float64"),
        ({"x": np.ones(3)}, {"wrt": ["z"]}, "'z'"),
        ({"x": np.ones(3)}, {"method": "magic"}, "method"),
        ({"x": np.ones(3)}, {"wrt": []}, "nothing would be checked"),
        ({"x": np.ones(3)}, {"wrt": "x"}, "list of names"),
        ({"x": np.ones(3)}, {"directions": 0}, "at least 1"),
        ({"x": np.arange(3)}, {}, "no input is a float array"),
    ],
)
def test_bad_questions_are_refused(inputs, options, words):
    with pytest.raises(ValueError, match=words):
        gradcheck(OPS.gelu_forward, OPS.gelu_backward, inputs, **options)


def test_an_output_that_has_no_gradient_is_refused():
    with pytest.raises(ValueError, match="forward returned an int for it"):
        gradcheck(lambda x: (int(x.sum()), x), lambda dy, x: dy * np.ones_like(x), {"x": RANDOM(3)})


def test_the_report_is_data():
    report = gradcheck(OPS.gelu_forward, scaled(2.0), {"x": RANDOM((2, 2))}, raise_on_fail=False)
    data = json.loads(report.to_json())
    assert data["status"] == "fail"
    assert np.isclose(data["arguments"][0]["entries"][0]["ratio"], 2.0)
    nan = gradcheck(OPS.gelu_forward, scaled(np.nan), {"x": RANDOM((2, 2))}, raise_on_fail=False)
    assert json.loads(nan.to_json())["arguments"][0]["worst"] is None
    assert gradcheck(OPS.gelu_forward, OPS.gelu_backward, {"x": RANDOM((2, 2))}).ok


@pytest.mark.parametrize("grid", [10, 100, 1e3, 1e4, 7919, 1024])
def test_a_forward_that_rounds_to_a_grid_is_never_a_pass(grid):
    """A step of 0.05 would go from grid point to grid point, along which such a function is a straight line."""
    x = np.random.default_rng(0).standard_normal((2, 3))
    report = gradcheck(lambda x: (np.floor(x * grid) / grid, None), lambda dy, _: dy * 1.0, {"x": x}, raise_on_fail=False)
    assert report.status != "pass"
