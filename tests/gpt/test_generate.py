"""Generation: with a cache and without, the choice of a token, and what happens past the context."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt.errors import ConfigError
from gpt.generate import Sampling, generate, sample_token, until
from gpt.models import MODELS
from small import config_of, start
from tensorlite import KVCache, ReferenceOps, cpu
from tensorlite.testing.properties import seeds

OPS = ReferenceOps()


def model_of(name, **fields):
    config = config_of(name, **fields)
    state = start(config, dtype=np.float32, std=0.5)
    return config, MODELS[name], state.table.tree(state.params)


every_backend = pytest.mark.parametrize("ops", [OPS, cpu.CPUOps()], ids=lambda ops: ops.name)


@every_backend
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prompt", [1, 3, 9])
def test_cached_tokens_are_the_uncached_ones(name, prompt, ops):
    """Up to the context and well beyond it."""
    config, model, params = model_of(name, block_size=9)
    start_text = np.arange(prompt) % config.vocab_size
    runs = [list(generate(ops, model, params, start_text, 20, config, Sampling(), seed=3, cached=c)) for c in (True, False)]
    assert runs[0] == runs[1]
    assert len(runs[0]) == 20


@every_backend
@pytest.mark.parametrize("name", MODELS)
def test_cached_logits_are_the_uncached_ones(name, ops):
    config, model, params = model_of(name, block_size=9)
    idx = np.random.default_rng(0).integers(0, config.vocab_size, (2, 9))
    whole = model.logits(ops, params, idx, config)
    kv_cache = KVCache(config.n_layer, 9)
    pieces = [model.logits(ops, params, idx[:, a:b], config, kv_cache) for a, b in ((0, 4), (4, 5), (5, 6), (6, 9))]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=1e-5, atol=1e-5)


def test_beyond_the_context_the_window_is_cropped():
    """A token depends on the last block_size tokens alone."""
    config, model, params = model_of("gpt")
    long = np.random.default_rng(0).integers(0, config.vocab_size, 20)
    other = long.copy()
    other[:-5] = 0
    assert list(generate(OPS, model, params, long, 8, config)) == list(generate(OPS, model, params, other, 8, config))


def test_a_context_of_one():
    config, model, params = model_of("gpt", block_size=1)
    assert len(list(generate(OPS, model, params, np.array([1]), 5, config))) == 5


def test_seeds_and_samples_differ_and_repeat():
    config, model, params = model_of("gpt")
    write = lambda **k: list(generate(OPS, model, params, np.array([1]), 30, config, **k))  # noqa: E731
    assert write(seed=1) == write(seed=1)
    assert write(seed=1) != write(seed=2)
    assert write(seed=1, sample=0) != write(seed=1, sample=1)


@given(seeds(), st.integers(1, 20), st.floats(0.1, 3.0))
def test_a_token_follows_the_distribution(seed, V, temperature):
    """The quantile function of softmax(logits / temperature): as u sweeps [0, 1) each token gets its share."""
    logits = np.random.default_rng(seed).standard_normal(V)
    probs = np.exp(logits / temperature)
    probs /= probs.sum()
    counts = np.bincount([sample_token(logits, Sampling(temperature), (i + 0.5) / 2000) for i in range(2000)], minlength=V)
    np.testing.assert_allclose(counts / 2000, probs, atol=1.1e-3)


def test_top_k_top_p_and_greedy():
    logits = np.log([0.1, 0.5, 0.05, 0.3, 0.05])
    us = [(i + 0.5) / 1000 for i in range(1000)]
    assert {sample_token(logits, Sampling(0.0), u) for u in us} == {1}
    assert {sample_token(logits, Sampling(top_k=1), u) for u in us} == {1}
    assert {sample_token(logits, Sampling(top_k=2), u) for u in us} == {1, 3}
    assert {sample_token(logits, Sampling(top_k=99), u) for u in us} == {0, 1, 2, 3, 4}
    assert {sample_token(logits, Sampling(top_p=0.4), u) for u in us} == {1}
    assert {sample_token(logits, Sampling(top_p=0.79), u) for u in us} == {1, 3}
    assert {sample_token(logits, Sampling(top_p=0.81), u) for u in us} == {0, 1, 3}
    assert {sample_token(logits, Sampling(top_p=1.0), u) for u in us} == {0, 1, 2, 3, 4}
    fraction = np.mean([sample_token(logits, Sampling(top_k=2), u) == 1 for u in us])
    assert abs(fraction - 5 / 8) < 2e-3
    assert sample_token(logits, Sampling(), 1.0 - 2**-53) in range(5)
    assert {sample_token(logits, Sampling(1e-310), u) for u in us} == {1}
    assert sample_token(np.array([0.0, -1e30, 1e4]), Sampling(), 0.999) == 2


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_nonsense_is_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Sampling(**bad)


@example(["b", "ab"], "cab")
@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.text("abc", max_size=12))
def test_a_stop_text_ends_a_sample_and_no_part_of_it_is_seen(stops, text):
    """What is passed on is right at every moment: no stop text, and nothing that could become the beginning of one."""
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    whole = text if not ends else text[: ends[0] - max(len(stop) for stop in stops if text[: ends[0]].endswith(stop))]
    seen, read = "", []
    for piece in until(stops, (read.append(c) or c for c in text)):
        seen += piece
        unseen = "".join(read)[len(seen) :]
        assert whole.startswith(seen)
        assert seen == whole or any(beginning.startswith(unseen) for beginning in ("", *stops))  # no more waits than must
    assert seen == whole
    assert len(read) == (ends[0] if ends else len(text))  # and nothing is drawn beyond it
