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


def test_logits_that_are_nan_and_an_empty_prompt_are_refused():
    with pytest.raises(ConfigError, match="logits are NaN; set --precision float32"):
        sample_token(np.array([1.0, np.nan]), Sampling(), 0.5)
    config, model, params = model_of("gpt")
    with pytest.raises(ValueError, match="the prompt has no token"):
        next(generate(OPS, model, params, np.zeros(0, int), 1, config))


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


def borders(logits, sampling):
    """For each token but the last, where in [0, 1) the next one begins: found by bisection, so of tokens in order."""
    found = []
    for token in range(len(logits) - 1):
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if sample_token(logits, sampling, middle) <= token else (low, middle)
        found.append(low)
    return found


def test_each_token_has_its_share_to_the_last_digits():
    logits = np.float32([3.0, 1.0, -1.0])
    shares = lambda x: np.cumsum(np.exp(x) / np.exp(x).sum())[:-1]  # noqa: E731
    np.testing.assert_allclose(borders(logits, Sampling()), shares(logits.astype(float)), rtol=1e-12)
    np.testing.assert_allclose(borders(logits, Sampling(0.5)), shares(2 * logits.astype(float)), rtol=1e-12)
    np.testing.assert_allclose(borders(logits[:2], Sampling()), borders(logits, Sampling(top_k=2))[:1], rtol=1e-12)
    np.testing.assert_allclose(borders(logits[:2], Sampling()), borders(logits, Sampling(top_p=0.9))[:1], rtol=1e-12)


def test_a_share_begins_where_the_one_before_it_ends():
    assert [sample_token(np.zeros(2), Sampling(), u) for u in (0.0, 0.5 - 2**-53, 0.5, 1 - 2**-53)] == [0, 0, 1, 1]
    assert sample_token(np.zeros(12), Sampling(top_k=10), 1 - 2**-53) == 9  # ten tenths are a little less than 1


def test_the_border_of_top_p():
    """A token is left out as soon as those before it reach top_p."""
    tokens = lambda logits, top_p: {sample_token(logits, Sampling(top_p=top_p), (i + 0.5) / 100) for i in range(100)}  # noqa: E731
    logits = np.log([0.5, 0.3, 0.2])
    assert tokens(logits, 0.7999) == {0, 1}
    assert tokens(logits, 0.8001) == {0, 1, 2}
    assert tokens(np.zeros(2), 0.5) == {0}


def test_of_equally_likely_tokens_the_first_come_first():
    assert sample_token(np.zeros(1000), Sampling(0.0), 0.5) == 0
    assert {sample_token(np.zeros(1000), Sampling(top_k=3), u) for u in (0.1, 0.5, 0.9)} == {0, 1, 2}
    assert [sample_token(np.repeat([0.0, 1.0], 500), Sampling(0.0), u) for u in (0.1, 0.9)] == [500, 500]


class Watched:
    """A model that likes all 1000 tokens alike, and notes the texts that it is given and whether there is a cache."""

    def __init__(self):
        self.texts, self.cached = [], []

    def logits(self, ops, params, idx, config, kv_cache):
        self.texts.append(idx[0].tolist())
        self.cached.append(kv_cache is not None)
        assert idx.dtype == np.uint16
        for layer in kv_cache.layers if kv_cache else []:
            layer.extend(*np.zeros((2, 1, 1, idx.shape[1], 1)))
        return np.zeros((*idx.shape, 1000), np.float32)


def watched(prompt, n, block_size=5, **options):
    """The tokens that follow a prompt, the texts that the model was given for each, and in how many of them it had a cache."""
    model, config = Watched(), config_of("gpt", block_size=block_size)
    tokens = list(generate(OPS, model, {}, np.array(prompt, np.uint16), n, config, **options))
    return tokens, model.texts, sum(model.cached)


TOKENS = [550, 731, 570, 194, 586, 143, 435, 903, 859]  # of seed 3, sample 1


def test_the_draws_are_the_same_in_every_version():
    """Of equal logits: no rounding of any machine is in the way."""
    assert watched([1, 2], 9, seed=3, sample=1)[0] == TOKENS
    assert watched([1, 2], 9)[0] == watched([1, 2], 9, seed=0, sample=0)[0] != TOKENS


def test_with_a_cache_each_token_costs_one_position_until_the_context_is_full():
    a, b, c, d, e = TOKENS[:5]
    whole = [[1, 2], [1, 2, a], [1, 2, a, b], [1, 2, a, b, c], [2, a, b, c, d], [a, b, c, d, e]]
    assert watched([1, 2], 6, seed=3, sample=1) == (TOKENS[:6], [[1, 2], [a], [b], [c], *whole[4:]], 4)
    assert watched([1, 2], 6, seed=3, sample=1, cached=False) == (TOKENS[:6], whole, 0)
    assert watched([9, 9, 1, 2, 3, 4, 5], 2, seed=3, sample=1) == (TOKENS[:2], [[1, 2, 3, 4, 5], [2, 3, 4, 5, a]], 0)
    assert watched([1, 2, 3, 4, 5], 1) == watched([1, 2, 3, 4, 5], 1, cached=False)
    assert watched([1, 2], 3, block_size=2, seed=3, sample=1)[1] == [[1, 2], [2, a], [a, b]]
    assert watched([1, 2], 3, block_size=1, seed=3, sample=1)[1] == [[2], [a], [b]]
