"""Tests of the checks: every known-wrong layer is rejected by the check it names, and the true layer passes it."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import Phase, settings

from tensorlite import ReferenceOps, gradcheck
from tensorlite.op_info import OP_INFO
from tensorlite.testing import argument_check
from tensorlite.testing.bugs import BUGS, example
from tests.reference import test_op_facts, test_ops

OPS = ReferenceOps()
SETTINGS = "_hypothesis_internal_use_settings"  # the attribute in which Hypothesis saves the settings of a test
QUICK = {"elementwise": 16, "max_report": 1, "raise_on_fail": False}
BACKWARDS = [m for m in BUGS if m.caught_by == "gradcheck"]
PAIRS = [m for m in BUGS if m.caught_by != "gradcheck"]


def title(m):
    return f"{m.op}: {m.name}"


every_backward = pytest.mark.parametrize("m", BACKWARDS, ids=title)
every_pair = pytest.mark.parametrize("m", PAIRS, ids=title)


def true(op):
    return getattr(OPS, f"{op}_forward"), getattr(OPS, f"{op}_backward")


def gradients(op, backward, inputs):
    """Return the gradients by name, for the cache of the true forward; those of attention as dq, dk and dv."""
    y, cache = true(op)[0](**inputs)
    grads = backward(np.random.default_rng(0).standard_normal(y.shape), cache)
    if op == "attention":
        return dict(zip(("dq", "dk", "dv"), np.split(grads, 3, axis=-1), strict=True))
    return dict(zip((f"d{name}" for name in OP_INFO[op].inputs), grads if isinstance(grads, tuple) else (grads,), strict=True))


@pytest.fixture(autouse=True)
def one_wrong_entry_is_enough(monkeypatch):
    """Otherwise most of the time goes into a search for more wrong entries."""
    monkeypatch.setattr(argument_check, "MIN_SEARCHED", 1)


@every_backward
def test_a_wrong_backward_fails_by_its_values(m):
    """All axes have the same length here, so a wrong transpose is no shape error."""
    assert gradcheck(m.forward, m.backward, example(m.op), **QUICK).status == "fail"


@pytest.mark.long
@every_backward
def test_a_wrong_backward_fails_where_all_axes_differ(m):
    inputs = example(m.op, square=False)
    try:
        report = gradcheck(m.forward, m.backward, inputs, **QUICK)
    except ValueError as error:
        if any(word in str(error) for word in ("shape", "mismatch", "broadcast")):  # NumPy refuses a shape that does not fit
            return
        raise
    assert report.status == "fail"


@every_backward
def test_the_gradients_named_are_the_wrong_ones(m):
    found, expected = (gradients(m.op, backward, example(m.op)) for backward in (m.backward, true(m.op)[1]))
    different = {d for d in expected if found[d].shape != expected[d].shape or not np.allclose(found[d], expected[d], 1e-7, 1e-9)}
    assert different == set(m.wrong)


@every_pair
def test_finite_differences_pass_a_wrong_pair(m):
    """This is why there are other tests."""
    assert m.wrong == ("y",)
    assert gradcheck(m.forward, m.backward, example(m.op)).ok


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("op", OP_INFO)
def test_the_true_op_passes(op, square):
    assert gradcheck(*true(op), example(op, square)).ok


def suite_test(name):
    return getattr(test_ops, name, None) or getattr(test_op_facts, name)


def put_on_trial(m, ops):
    """Run the test of the suite that the mistake names on this backend, without shrinking a failure."""
    test = suite_test(m.caught_by)
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(test, SETTINGS):
            patch.setattr(test, SETTINGS, settings(getattr(test, SETTINGS), phases=[Phase.explicit, Phase.generate]))
        # parameters that Hypothesis does not draw: the backend and the name of the op
        test(**{parameter: ops if parameter == "ops" else m.op for parameter in inspect.signature(test).parameters})


@every_pair
def test_a_wrong_pair_is_rejected_by_the_test_it_names(m):
    members = {f"{m.op}_forward": staticmethod(m.forward), f"{m.op}_backward": staticmethod(m.backward)}
    wrong = type("Wrong", (ReferenceOps,), members)()
    rejected = False
    try:
        with np.errstate(all="ignore"):  # an assertion must fail, not a warning
            put_on_trial(m, wrong)
    except* AssertionError:  # Hypothesis reports several failures as a group
        rejected = True
    assert rejected


@every_pair
def test_the_true_op_passes_the_test_that_a_pair_names(m):
    put_on_trial(m, ReferenceOps())


def test_the_collection():
    names = [title(m) for m in BUGS]
    assert len(set(names)) == len(names) >= 30
    assert {m.op for m in BACKWARDS} == set(OP_INFO)
    assert all(suite_test(m.caught_by) for m in PAIRS)


@pytest.mark.program
def test_it_costs_nothing_unless_asked_for():
    code = """if True:
        import sys, tensorlite
        assert "tensorlite.testing.bugs" not in sys.modules
        import tensorlite.testing.bugs
        assert not {"scipy", "hypothesis", "gpt"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True)
