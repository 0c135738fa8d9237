"""Evaluation: every character counts once, and every evaluation uses the same batches.

For a large text these are windows spread evenly over it.
"""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from gpt.config import PRESETS, TrainConfig
from gpt.errors import ConfigError
from gpt.models import MODELS
from gpt.training.data_parallel import Workers
from gpt.training.evaluate import evaluated_chars, split_loss, train_loss
from gpt.training.run_setup import new_run
from gpt.training.step import Task, loss_and_gradients
from gpt.training.trainer import Trainer
from small import PANGRAMS, config_of, start
from tensorlite import ReferenceOps
from trainers import TRAIN

OPS = ReferenceOps()
CONFIG = config_of("gpt")
T = CONFIG.block_size
STATE = start(CONFIG, std=0.3)


def test_evaluation_and_training_draw_different_batches():
    config = config_of("gpt")
    data, seen = np.arange(10_000), []

    class Spy(ReferenceOps):
        @staticmethod
        def get_batch(data, key, rows, block_size):
            idx, targets = ReferenceOps.get_batch(data, key, rows, block_size)
            seen.append(set(idx[:, 0].tolist()))
            return idx % config.vocab_size, targets % config.vocab_size

    state = start(config)
    task = Task(MODELS["gpt"], config, TRAIN, data, seed=1)
    loss_and_gradients(Spy(), task, state)
    train_loss(Workers.of(Spy()), task, state.table.tree(state.params))
    assert len(seen) == 2
    assert not seen[0] & seen[1]


@pytest.mark.parametrize("n", [2, 5, 6, 7, 31, 32, 200])
def test_validation_counts_every_character_once(n):
    """Against one window at a time, remainder included."""
    config = config_of("gpt")
    state = start(config, std=0.3)
    params = state.table.tree(state.params)
    data = np.random.default_rng(n).integers(0, config.vocab_size, n)
    T, total = config.block_size, 0.0
    for a in range(0, n - 1, T):
        idx, targets = data[None, a : min(a + T, n - 1)], data[None, a + 1 : min(a + T, n - 1) + 1]
        total += float(MODELS["gpt"].forward(OPS, params, idx, targets, config)[0]) * idx.size
    for rows in (1, 3, 1000):
        task = Task(MODELS["gpt"], config, TrainConfig(batch_size=rows, val_chars=0), data, seed=1)
        assert math.isclose(split_loss(Workers.of(OPS), task, params, data), total / (n - 1), rel_tol=1e-12)


def test_train_loss_is_a_mean_over_the_same_batches_each_time():
    config = config_of("gpt", block_size=64, dropout=0.5)
    state = start(config, std=0.3)
    params, data = state.table.tree(state.params), np.random.default_rng(0).integers(0, config.vocab_size, 900)
    losses = []
    for batches, rows in ((6, 20), (6, 20), (120, 1)):
        train = TrainConfig(eval_batches=batches, batch_size=rows)
        losses.append(train_loss(Workers.of(OPS), Task(MODELS["gpt"], config, train, data, seed=1), params))
    assert losses[0] == losses[1]
    assert math.isclose(losses[0], losses[2], rel_tol=1e-12)


class Seen(ReferenceOps):
    """Notes what the model is given."""

    def __init__(self):
        super().__init__()
        self.windows = []

    def cross_entropy_forward(self, logits, targets, *rest):
        self.windows += targets.tolist()
        return super().cross_entropy_forward(logits, targets, *rest)


def loss(data, chars, rows=3, ops=None):
    params = STATE.table.tree(STATE.params)
    task = Task(MODELS["gpt"], CONFIG, TrainConfig(batch_size=rows, val_chars=chars), data, seed=1)
    return split_loss(Workers.of(ops or ReferenceOps()), task, params, data)


@pytest.mark.parametrize("n", [100, 103, 997])
@pytest.mark.parametrize("chars", [1, 5, 7, 50, 98])
def test_a_bounded_loss_is_over_evenly_spread_windows(n, chars):
    data = np.random.default_rng(n).integers(0, CONFIG.vocab_size, n)
    k = max(1, chars // T)
    starts = [i * (n - 1) // k for i in range(k)]
    assert starts[-1] + T <= n - 1
    assert {b - a for a, b in itertools.pairwise(starts)} <= {(n - 1) // k, (n - 1) // k + 1}
    ops = Seen()
    bounded = loss(data, chars, ops=ops)
    assert ops.windows == [data[a + 1 : a + 1 + T].tolist() for a in starts]
    one_by_one = [loss(data[a : a + T + 1], 0) for a in starts]
    assert math.isclose(bounded, sum(one_by_one) / k, rel_tol=1e-12)
    assert bounded == loss(data, chars)
    assert math.isclose(bounded, loss(data, chars, rows=1), rel_tol=1e-12)
    assert evaluated_chars(n, T, chars) == k * T


def test_a_split_that_is_short_enough_is_evaluated_whole():
    data = np.random.default_rng(0).integers(0, CONFIG.vocab_size, 98)
    whole = loss(data, 0)
    for chars in (97, 98, 2**18):
        assert loss(data, chars) == whole
        assert evaluated_chars(98, T, chars) == 97
    assert loss(data, 96) != whole


@pytest.mark.parametrize("n", range(2, T + 2))
def test_a_split_shorter_than_a_window_is_evaluated_whole(n):
    data = np.random.default_rng(n).integers(0, CONFIG.vocab_size, n)
    assert loss(data, 1) == loss(data, 0)
    assert evaluated_chars(n, T, 1) == n - 1


def test_the_lectures_corpus_is_evaluated_whole_and_a_large_one_is_not():
    for preset in PRESETS.values():
        T, chars = preset.model.block_size, preset.train.val_chars
        assert evaluated_chars(111_540, T, chars) == 111_539
        assert evaluated_chars(10_700_000, T, chars) == 2**18


def test_a_run_evaluates_what_it_says(tmp_path):
    (tmp_path / "text").write_text(PANGRAMS)
    losses = []
    for chars in (80, 0):
        setup = new_run(PRESETS["bigram"], {}, {"val_chars": chars}, tmp_path / "run", tmp_path / "text", 1)
        run = Trainer(setup, Workers.of(ReferenceOps()), np)
        losses.append(run.val_loss())
        train = dataclasses.replace(PRESETS["bigram"].train, val_chars=chars)
        task = Task(run.task.model, setup.model, train, setup.corpus.train, seed=1)
        assert losses[-1] == split_loss(Workers.of(ReferenceOps()), task, run.params(), setup.corpus.val)
    assert losses[0] != losses[1]


def test_checkpoints_from_before_it_was_bounded_have_the_default():
    fields = dataclasses.asdict(TrainConfig())
    del fields["val_chars"]
    assert TrainConfig(**fields).val_chars == 2**18
    for bad in (-1, 1.5, True):
        with pytest.raises(ConfigError, match="val_chars must be a whole number of at least 0"):
            TrainConfig(val_chars=bad)


@pytest.mark.parametrize(
    ("batch_size", "shards", "rows"), [(900, 1, 900), (900, 4, 225), (901, 4, 226), (900, 5, 204), (816, 4, 204), (3, 1, 204)]
)
def test_a_pass_has_the_rows_of_a_shard_or_a_thousand_tokens(batch_size, shards, rows):
    """As much as training needs memory for, and no less than keeps the processor busy. The last pass has what is left."""
    config, passes = config_of("bigram"), []

    class Passes(ReferenceOps):
        def cross_entropy_forward(self, logits, targets):
            passes.append(targets.shape)
            return super().cross_entropy_forward(logits, targets)

    state, total = start(config), 2 * batch_size
    params = state.table.tree(state.params)
    train = TrainConfig(batch_size=batch_size, shards=shards, eval_batches=2, val_chars=0)
    data = np.random.default_rng(0).integers(0, config.vocab_size, total * T + 3)
    task, workers = Task(MODELS["bigram"], config, train, data, seed=1), Workers(Passes, shards)
    expected = [(rows, T)] * (total // rows) + [(total % rows, T)] * (total % rows > 0)
    train_loss(workers, task, params)
    assert sorted(passes) == sorted(expected)
    passes.clear()
    split_loss(workers, task, params, data)
    assert sorted(passes) == sorted([*expected, (1, 2)])


def test_an_evaluation_saves_nothing_for_a_backward_pass():
    caches = []

    def forward(*args, **options):
        loss, cache = MODELS["gpt"].forward(*args, **options)
        caches.append(cache)
        return loss, cache

    data, params = np.arange(100) % CONFIG.vocab_size, STATE.table.tree(STATE.params)
    task = Task(SimpleNamespace(forward=forward), CONFIG, TRAIN, data, seed=1)
    train_loss(Workers.of(OPS), task, params)
    split_loss(Workers.of(OPS), task, params, data)
    assert caches
    assert not any(caches)


def test_train_loss_is_that_of_its_rows_one_at_a_time():
    """Row i of an evaluation is drawn with the key of step 0 and row i, at the site "evaluation"."""
    data, params = np.random.default_rng(0).integers(0, CONFIG.vocab_size, 500), STATE.table.tree(STATE.params)
    train, losses = TrainConfig(batch_size=110, eval_batches=2), []  # 220 rows: more than one pass
    for row in range(220):
        key = OPS.fold_in(OPS.step_key(7, 0, row), 0, "evaluation")
        losses.append(float(MODELS["gpt"].forward(OPS, params, *OPS.get_batch(data, key, 1, T), CONFIG)[0]))
    task = Task(MODELS["gpt"], CONFIG, train, data, seed=7)
    assert math.isclose(train_loss(Workers.of(OPS), task, params), sum(losses) / 220, rel_tol=1e-12)
