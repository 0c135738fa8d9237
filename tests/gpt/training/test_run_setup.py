"""New, resumed and fine-tuning runs: what may change, and what is refused."""

import numpy as np
import pytest

from gpt.errors import CheckpointError, ConfigError, DataError
from gpt.training import checkpoint, run_setup
from gpt.training.data_parallel import Workers
from gpt.training.trainer import Trainer
from small import PANGRAMS
from tensorlite import ReferenceOps
from trainers import preset, trainer

OPS = ReferenceOps()


def test_resume_refuses_another_model_and_another_text(corpus, tmp_path):
    trainer(corpus, tmp_path / "a").run()
    with pytest.raises(ConfigError, match="n_layer is 2 in the checkpoint and cannot become 3"):
        run_setup.resume(tmp_path / "a", {"n_layer": 3}, {}, corpus)
    assert run_setup.resume(tmp_path / "a", {"n_layer": 2}, {"max_iters": 20}, corpus).train.max_iters == 20
    corpus.write_text(PANGRAMS[::-1])
    with pytest.raises(DataError, match="another text"):
        run_setup.resume(tmp_path / "a", {}, {}, corpus)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        run_setup.resume(tmp_path / "b", {}, {}, corpus)


def test_fine_tuning_keeps_the_vocabulary(corpus, tmp_path):
    trainer(corpus, tmp_path / "a").run()
    corpus.write_text(PANGRAMS.replace("fox", "dog") * 2)
    tuned = run_setup.fine_tune(tmp_path / "a", None, {"dropout": 0.0}, {"max_iters": 3}, tmp_path / "b", corpus, False, 5)
    np.testing.assert_array_equal(tuned.params(), checkpoint.load(tmp_path / "a").params)
    assert tuned.corpus.tokenizer.vocabulary == "".join(sorted(set(PANGRAMS)))
    assert (tuned.model.dropout, tuned.train.max_iters, tuned.seed) == (0.0, 3, 5)
    with pytest.raises(ConfigError, match="n_embd"):
        run_setup.fine_tune(tmp_path / "a", None, {"n_embd": 12}, {}, tmp_path / "b", corpus, False, 5)


def test_training_leaves_the_setups_own_arrays_alone(corpus, tmp_path):
    trainer(corpus, tmp_path / "a").run()
    tuned = run_setup.fine_tune(tmp_path / "a", None, {}, {"max_iters": 3}, tmp_path / "b", corpus, False, 5)
    before = tuned.params().copy()
    (tmp_path / "b").mkdir()
    Trainer(tuned, Workers.of(OPS), np).run()
    np.testing.assert_array_equal(tuned.params(), before)


def test_a_new_learning_rate_takes_its_floor_along(corpus, tmp_path):
    assert run_setup.new_run(preset(), {}, {"learning_rate": 0.1}, tmp_path, corpus, 1).train.min_lr == pytest.approx(0.01)
    assert run_setup.new_run(preset(), {}, {"learning_rate": 0.1, "min_lr": 0.05}, tmp_path, corpus, 1).train.min_lr == 0.05
