"""Whole models on the CUDA backend, with kernels on the CPU: the first step, logits and generation agree with the reference."""

import numpy as np
import pytest

from cuda_bounds import as_rounded
from cuda_runs import REFERENCE, VARIANTS, Run, every_precision, ops_of
from gpt.generate import Sampling, generate
from gpt.training.step import TrainState, loss_and_gradients
from tensorlite import KVCache

pytestmark = pytest.mark.usefixtures("compiler")
every_variant = pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "small"])


@every_precision
@every_variant
def test_the_first_step_follows_the_reference(variant, precision):
    """Compare the loss and every gradient before clipping. Later steps magnify earlier differences and say less."""
    run = Run(ops_of(precision), variant)
    run.state.params[...] = run.state.params.astype(run.ops.dtype)  # both start from values that the precision can hold

    def loss_and_views(ops, params):
        state = TrainState.start(run.state.table, params, np)
        with ops.step():
            loss = loss_and_gradients(ops, run.task, state)
        return [np.asarray(loss), *state.table.views(state.grads)]

    params = run.state.params.astype(np.float64)
    expected, bounds = as_rounded(lambda params: loss_and_views(REFERENCE, params), params, run.ops.dtype)
    names = ["loss", *(param.name for param in run.state.table)]
    found = loss_and_views(run.ops, run.state.params)
    errors = {name: np.abs(a - b).max() / bound for name, a, b, bound in zip(names, found, expected, bounds, strict=True)}
    assert max(errors.values()) <= 1, {name: error for name, error in errors.items() if error > 1}
    assert max(errors.values()) > 1 / 8  # the bounds are not loose


def model_in(ops, variant="gpt", **fields):
    run = Run(ops, variant, **fields)
    return run.config, run.model, run.state.table.tree(run.ops.compute_params(run.state.params))


@every_precision
@pytest.mark.parametrize("variant", ["gpt", "tied", "residual", "head", "bigram"])
def test_logits_with_a_past_follow_the_reference(variant, precision):
    """At once, and in pieces with a KV cache: 5 positions, then three times 1, then 2, in a context of 10."""
    ops = ops_of(precision)
    run = Run(ops, variant, block_size=10)
    idx = np.random.default_rng(1).integers(0, run.config.vocab_size, (2, 10))
    run.state.params[...] = run.state.params.astype(ops.dtype)

    def logits(ops, params, cuts=()):
        tree, kv_cache = run.state.table.tree(ops.compute_params(params)), KVCache(run.config.n_layer, 10) if cuts else None
        return [
            np.concatenate(
                [run.model.logits(ops, tree, part, run.config, kv_cache) for part in np.split(idx, cuts, axis=1)], axis=1
            )
        ]

    (exact,), (bound,) = as_rounded(lambda params: logits(REFERENCE, params), run.state.params.astype(np.float64), ops.dtype)
    for cuts in ((), (5, 6, 7, 8)):
        (found,) = logits(ops, run.state.params, cuts)
        assert found.dtype == ops.dtype
        assert np.abs(found.astype(np.float64) - exact).max() <= bound


@pytest.mark.parametrize("cached", [True, False])
def test_generation_writes_what_the_reference_writes(cached):
    """Generate within the context and beyond it."""
    run = Run(ops_of())
    params = run.state.table.tree(run.state.params)
    tokens = [
        list(generate(ops, run.model, params, run.data[:3].astype(np.int64), 12, run.config, Sampling(), seed=3, cached=cached))
        for ops in (run.ops, REFERENCE)
    ]
    assert tokens[0] == tokens[1]


@every_precision
def test_a_loss_without_a_cache_is_the_loss(precision):
    ops = ops_of(precision)
    config, model, params = model_in(ops)
    idx, targets = np.random.default_rng(0).integers(0, config.vocab_size, (2, 3, config.block_size))
    loss, cache = model.forward(ops, params, idx, targets, config, with_cache=False)
    assert cache == ()
    assert loss == model.forward(ops, params, idx, targets, config)[0]
