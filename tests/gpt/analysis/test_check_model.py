"""What the gradient check of a model draws and passes on."""

from types import SimpleNamespace

import numpy as np
import pytest

from gpt.analysis.check_model import check_model
from gpt.models import MODELS
from gpt.params import Param
from small import config_of
from tensorlite import Key, ReferenceOps

CONFIG = config_of("gpt")


class Watched:
    """A model of a few parameters, whose loss is a polynomial of them. It saves what forward is given."""

    params = (
        Param("wte", (40, 50)),
        Param("wpe", (20, 50)),
        Param("w", (400, 6)),
        Param("b", (300,)),
        Param("gain", (300,), fill=2.0),
        Param("sixteen", (16,)),
        Param("seventeen", (17,)),
    )

    def __init__(self):
        self.seen = []

    def init(self, config):
        assert config is CONFIG
        return list(self.params)

    def forward(self, ops, params, idx, targets, config, key):
        assert config is CONFIG
        self.seen.append(SimpleNamespace(ops=ops, params=params, idx=idx, targets=targets, key=key))
        return sum((x**2).sum() for x in params.values()) / 1000, params

    def backward(self, ops, dloss, cache):
        assert ops is self.seen[0].ops
        return {name: dloss * x / 500 for name, x in cache.items()}


def seen_by_model(**options):
    model = Watched()
    report = check_model(model, CONFIG, **options)
    return report, model.seen[0]


def test_the_text_and_the_options_reach_the_model():
    key, ops = Key(1, 2), ReferenceOps()
    _, seen = seen_by_model(rows=3, key=key, ops=ops)
    assert seen.key is key
    assert seen.ops is ops
    assert seen.idx.shape == seen.targets.shape == (3, CONFIG.block_size)
    assert (seen.idx != seen.targets).any()
    _, seen = seen_by_model()
    assert seen.key is None
    assert isinstance(seen.ops, ReferenceOps)
    assert seen.idx.shape == (2, CONFIG.block_size)
    _, seen = seen_by_model(rows=100)
    assert set(np.unique([seen.idx, seen.targets])) == set(range(CONFIG.vocab_size))


def test_weights_are_of_order_1():
    """An embedding is of order 1 as it is, a matrix once it has summed its inputs. Gains are spread about their own value."""
    _, seen = seen_by_model()
    assert np.std(seen.params["wte"]) == pytest.approx(1, rel=0.1)
    assert np.std(seen.params["wpe"]) == pytest.approx(1, rel=0.1)
    assert np.std(seen.params["b"]) == pytest.approx(1, rel=0.15)
    assert np.std(seen.params["w"]) == pytest.approx(1 / 20, rel=0.1)
    gain = seen.params["gain"]
    assert 1 <= gain.min() < 1.1
    assert 2.9 < gain.max() <= 3
    assert all(abs(np.mean(x)) < 0.2 for name, x in seen.params.items() if len(x) >= 20 and name != "gain")


def test_a_seed_draws_everything():
    (report, one), (same, again), (other, two) = (seen_by_model(**options) for options in ({}, {"seed": 0}, {"seed": 1}))
    assert str(report) == str(same) != str(other)
    np.testing.assert_array_equal(one.idx, again.idx)
    assert (one.idx != two.idx).any()
    for name, values in one.params.items():
        np.testing.assert_array_equal(values, again.params[name])
        assert (values != two.params[name]).all()


def test_large_parameters_are_checked_in_directions():
    def checked(**options):
        report = check_model(MODELS["bigram"], config_of("bigram"), **options)
        return [argument.checked for argument in report.arguments]

    assert checked() == ["2 directions"]
    assert checked(directions=4) == ["4 directions"]
    assert checked(elementwise=11 * 11) == ["every entry"]
    assert checked(elementwise=11 * 11 - 1) == ["2 directions"]
    report, _ = seen_by_model()
    assert [a.name for a in report.arguments if a.checked == "every entry"] == ["sixteen"]
    assert [a.name for a in report.arguments if a.checked == "2 directions"] == ["wte", "wpe", "w", "b", "gain", "seventeen"]
