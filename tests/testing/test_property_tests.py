"""check_layer passes right layers, refuses wrong ones, and prints code that repeats the failure."""

import os
import subprocess
import sys

import numpy as np
import pytest

from layers import LAYERS, OPS
from paths import ROOT
from tensorlite import ReferenceOps, testing
from tensorlite.testing import properties, property_tests
from tensorlite.testing.property_tests import PROPERTIES, CheckLayerError, check_layer
from tensorlite.testing.report import INCONCLUSIVE, Argument, GradcheckError, GradReport

by_name = {"ids": lambda layer: layer.name}
ops = ReferenceOps()


def refused(forward, backward, specification, **options):
    """Return the error for a wrong layer. Its snippet, pasted, must fail in the same way."""
    with pytest.raises(CheckLayerError) as caught:
        check_layer(forward, backward, specification, **options)
    error = caught.value
    assert error.snippet in str(error)
    names = {"forward": forward, "backward": backward, forward.__name__: forward, backward.__name__: backward}
    lines = error.snippet.splitlines()
    assert lines[-1].startswith(("gradcheck(", "check_"))
    assert hasattr(testing, lines[-1].partition("(")[0])
    with pytest.raises(Exception) as again:  # noqa: PT011 (what it is is compared below)
        exec(error.snippet, names)
    if isinstance(again.value, AssertionError):
        assert str(again.value).strip() in str(error)
    else:
        assert f"{type(again.value).__name__}: {again.value}" in str(error)
        assert isinstance(error.__cause__, type(again.value))
    return error


@pytest.mark.long
@pytest.mark.parametrize("layer", [*OPS, *LAYERS], **by_name)
def test_a_right_layer_passes(layer):
    report = check_layer(layer.forward, layer.backward, layer.specification, examples=6, **layer.options)
    assert report.examples == 6
    assert report.doubtful.keys() <= {"gradients", "float32"}
    assert {*report.checked, *report.not_checked} == set(PROPERTIES)
    assert str(report).startswith("check_layer: pass, 6 examples: gradients, ")


@pytest.mark.long
@pytest.mark.parametrize("layer", LAYERS, **by_name)
def test_a_wrong_backward_is_refused(layer):
    error = refused(layer.forward, layer.wrong, layer.specification, **layer.options)
    assert error.property == "gradients"
    assert error.example.seed == 0
    assert max(error.example.letters.values()) <= 2, "a small example fails as well"


def center_forward(x):
    return x - x.mean(axis=0), None


def center_backward(dy, _):
    return dy - dy.mean(axis=0)


def gather_forward(x):
    """Read the memory of x in its order, whatever the order of its axes."""
    return x.base.ravel()[: x.size].reshape(x.shape) if x.base is not None and x.base.size != x.size else x * 1.0, None


def twice_forward(x):
    return 2 * x, None


def twice_backward(dy, _):
    return 2 * dy


def by_axes_forward(x):
    """The factor is the number of axes."""
    return x * x.ndim, x.ndim


def by_axes_backward(dy, n):
    return dy * n


def in_float64_forward(x):
    return x * np.float64(2.0), None


def in_float16_forward(x):
    rounded = x if x.dtype == np.float64 else x.astype(np.float16).astype(np.float32)
    return 2 * rounded, None


def writing_forward(x):
    """Not a mistake to gradcheck: what is written is what was there."""
    x[...] = x
    return 2 * x, None


def dividing_forward(x):
    """Both branches of where are computed, and one of them divides by zero."""
    return np.where(x > -100, 2 * x, 1 / np.zeros_like(x)), None


def last_row_forward(x):
    return 2 * x + 0 * x[-1], None


PROPERTY_MISTAKES = {
    "rows": (center_forward, center_backward, "x: B C"),
    "leading": (by_axes_forward, by_axes_backward, "x: B T ... C"),
    "read_only": (writing_forward, twice_backward, "x: B C"),
    "non_contiguous": (gather_forward, lambda dy, _: dy * 1.0, "x: B C"),
    "float32": (in_float64_forward, twice_backward, "x: B C"),
    "float_errors": (dividing_forward, twice_backward, "x: B C"),
    "empty_batch": (last_row_forward, twice_backward, "x: B C"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", PROPERTY_MISTAKES)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_each_property_refuses_a_layer_without_it_and_can_be_skipped(name):
    forward, backward, specification = PROPERTY_MISTAKES[name]
    error = refused(forward, backward, specification)
    assert error.property == name
    skip = ("rows", "empty_batch") if name == "rows" else (name,)
    assert str(error).endswith(f"If the layer is not meant to have this: skip={skip!r}".replace("'", '"'))
    report = check_layer(forward, backward, specification, skip=skip, examples=10)
    assert report.not_checked[name] == "skipped"
    assert name not in report.checked


def test_an_empty_batch_gives_empty_results():
    def forward(x):
        return 2 * (x if len(x) else np.zeros((1, x.shape[1]))), None

    error = refused(forward, twice_backward, "x: B C")
    assert error.property == "empty_batch"
    assert "of shape (1, 1) instead of (0, 1)" in str(error)


def test_float16_inside_is_seen():
    assert refused(in_float16_forward, twice_backward, "x: B C").property == "float32"


@pytest.mark.long
def test_a_batch_axis_that_does_not_come_first_is_found():
    def forward(x):
        return x - x.mean(axis=1, keepdims=True), None

    def backward(dy, _):
        return dy - dy.mean(axis=1, keepdims=True)

    error = refused(forward, backward, "x: T B C")
    assert error.property == "rows"
    assert "Also refused: empty_batch" in str(error)
    assert refused(forward, backward, "x: C N", batch="N").property == "rows"
    assert refused(center_forward, center_backward, "x: ... C", skip=["leading"]).property == "rows"
    report = check_layer(forward, backward, "x: T B C", batch=None, examples=5)
    assert set(report.not_checked) == {"rows", "empty_batch", "leading"}
    with pytest.raises(ValueError, match="'N'"):
        check_layer(forward, backward, "x: T B C", batch="N")


def test_a_mean_has_to_be_declared():
    huber = next(layer for layer in LAYERS if layer.name == "Huber")
    error = refused(huber.forward, huber.backward, huber.specification)
    assert "mean=True" in str(error)
    sum_forward, sum_backward = (lambda x: ((x * x).sum(), x)), (lambda dy, x: 2 * dy * x)
    assert refused(sum_forward, sum_backward, "x: B C", mean=True).property == "rows"
    assert check_layer(sum_forward, sum_backward, "x: B C", skip=["rows", "empty_batch"], examples=5)


def test_a_layer_that_raises_is_shown_with_the_inputs():
    error = refused(ops.linear_forward, ops.linear_backward, "x: B C, w: D C, b: D?")
    assert "ValueError: " in str(error)
    assert {error.example.letters["C"], error.example.letters["D"]} == {1, 2}


def test_the_snippet_imports_what_can_be_imported():
    error = refused(center_forward, center_backward, "x: B C")
    assert f"from {__name__} import center_forward" in error.snippet
    namespace = {}
    with pytest.raises(AssertionError, match="halves"):
        exec(error.snippet, namespace)
    assert namespace["center_forward"] is center_forward


@pytest.mark.parametrize(("share", "passes"), [(1 / 10, True), (1 / 5, False)])
@pytest.mark.parametrize("name", ["gradients", "float32"])
def test_a_doubt_now_and_then_is_no_alarm(monkeypatch, name, share, passes):
    """Gradients are inconclusive at a kink, and an ill-conditioned layer strays in float32."""
    calls = []

    def in_doubt_at_times(forward, backward, inputs, **options):
        calls.append(inputs)
        if len(calls) % round(1 / share) == 0:
            raise GradcheckError(GradReport([Argument("x", (1,), "fd", "every entry", 1.0, status=INCONCLUSIVE)]))

    module, function = (property_tests, "gradcheck") if name == "gradients" else (properties, "check_float32")
    monkeypatch.setattr(module, function, in_doubt_at_times)
    if passes:
        report = check_layer(twice_forward, twice_backward, "x: B C")
        assert report.doubtful == {name: 5}
        assert f"in doubt: {name} at 5 of 50 examples" in str(report)
    else:
        with pytest.raises(CheckLayerError, match=f"{name} at .*, as at 10 of 50 examples"):
            check_layer(twice_forward, twice_backward, "x: B C")


def test_a_staircase_gets_no_pass():
    error = refused(lambda x: (np.floor(x * 7919) / 7919, x), lambda dy, x: dy * 1.0, "x: B C")
    assert error.property == "gradients"
    assert not check_layer(ops.relu_forward, ops.relu_backward, "x: B C").doubtful


def test_options_go_to_gradcheck():
    def slightly_wrong(dy, cache):
        return ops.gelu_backward(dy, cache) * (1 + 1e-5)

    assert refused(ops.gelu_forward, slightly_wrong, "x: B C").property == "gradients"
    check_layer(ops.gelu_forward, slightly_wrong, "x: B C", rtol=1e-3, examples=5)
    assert "rtol=1e-09" in refused(ops.gelu_forward, slightly_wrong, "x: B C", rtol=1e-9).snippet


def test_what_cannot_be_read_is_a_value_error():
    pair = ops.gelu_forward, ops.gelu_backward
    with pytest.raises(ValueError, match="'row'"):
        check_layer(*pair, "x: B C", skip=("row",))
    with pytest.raises(ValueError, match="collection"):
        check_layer(*pair, "x: B C", skip="rows")
    with pytest.raises(ValueError, match="examples"):
        check_layer(*pair, "x: B C", examples=0)
    for name in ("skp", "raise_on_fail", "inputs"):
        with pytest.raises(TypeError, match=f"no option {name}"):
            check_layer(*pair, "x: B C", **{name: False})
    for wrong in ((), (pair[0], "x: B C"), pair, (*pair, 3)):
        with pytest.raises(ValueError, match="write check_layer"):
            check_layer(*wrong)
    with pytest.raises(ValueError, match="colon"):
        check_layer("x")


# ---- as a decorator ----


@pytest.fixture
def pair():
    return ops.linear_forward, ops.linear_backward


@check_layer("x: B C, w: C D, b: D?", examples=5)
def test_a_test_that_returns_the_layer(pair):
    return pair


@pytest.mark.parametrize("name", ["gelu", "softmax"])
@check_layer("x: B ... C", examples=5)
def test_a_test_with_a_parameter(name):
    """Its docstring stays."""
    return getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")


def test_the_decorator_keeps_the_name_and_refuses():
    @check_layer("x: B C")
    def test_center(extra):
        """A docstring."""
        assert extra == 1
        return center_forward, center_backward

    assert test_center.__name__ == "test_center"
    assert test_center.__doc__ == "A docstring."
    with pytest.raises(CheckLayerError, match="rows"):
        test_center(extra=1)


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.program
def test_under_pytest_and_as_a_script(tmp_path):
    """Both show the smallest example as code; pytest hides the frames of the search."""
    text = """
from tensorlite.testing import properties, property_tests
from tensorlite.testing.property_tests import check_layer

def double_forward(x):
    return 2 * x, None

def double_backward(dy, _):
    return 3 * dy

@check_layer("x: B C")
def test_double():
    return double_forward, double_backward

def test_in_a_body():
    check_layer(double_forward, double_backward, "x: B C")

if __name__ == "__main__":
    test_in_a_body()
"""
    (tmp_path / "test_mine.py").write_text(text)
    for command, imported in (("-m pytest -q -p no:cacheprovider", True), ("", False)):
        arguments = [sys.executable, "-B", *command.split(), "test_mine.py"]
        done = subprocess.run(arguments, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        printed = done.stdout + done.stderr
        assert done.returncode == 1
        assert "gradients at B=1, C=1, seed 0" in printed
        assert "ratio 1.5" in printed
        assert "gradcheck(double_forward, double_backward, inputs" in printed
        assert ("from test_mine import double_forward" in printed) == imported
        assert not imported or "property_tests.py:" not in printed  # pytest shows the caller's line alone
    assert {path.name for path in tmp_path.iterdir()} == {"test_mine.py"}


def test_every_layer_has_a_mistake():
    assert len(LAYERS) >= 15
    assert all(layer.wrong for layer in LAYERS)
