"""New, resumed and fine-tuning runs: what may change, and what is refused."""

import dataclasses
import hashlib

import numpy as np
import pytest

from gpt.errors import CheckpointError, ConfigError, DataError, TrainingError
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.tokenizer import CharTokenizer
from gpt.training import checkpoint, run_dir, run_setup
from gpt.training.data_parallel import Workers
from gpt.training.trainer import Trainer
from small import PANGRAMS
from tensorlite import ReferenceOps
from tensorlite.loss_scale import LossScale
from tensorlite.version import __version__
from trainers import TRAIN, preset, save_checkpoint, trainer

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


def test_the_same_learning_rate_given_again_changes_nothing(corpus, tmp_path):
    train = dataclasses.replace(TRAIN, learning_rate=1e-4, min_lr=1.3e-5)
    assert run_setup.new_run(preset(train), {}, {"learning_rate": 1e-4}, tmp_path, corpus, 1).train == train
    assert 1e-4 * (1.3e-5 / 1e-4) != 1.3e-5, "scaling it would have changed it"


def test_a_fine_tuning_run_chooses_its_own_shards(corpus, tmp_path):
    trainer(corpus, tmp_path / "a", {"shards": 4}).run()
    tuned = run_setup.fine_tune(tmp_path / "a", None, {}, {"batch_size": 2}, tmp_path / "b", corpus, False, 5)
    assert (tuned.train.batch_size, tuned.train.shards) == (2, 1)


def test_a_run_that_another_process_has_continued_is_not_overwritten(corpus, tmp_path):
    """It did so between the reading of the checkpoint and the lock."""
    trainer(corpus, tmp_path / "a").run()
    setup = run_setup.resume(tmp_path / "a", {}, {}, corpus)
    run_setup.require_latest(setup)
    trainer(corpus, tmp_path / "a", {"max_iters": setup.train.max_iters + 2}, resume=True).run()
    with pytest.raises(TrainingError, match=r"step 12 was read, and another process has since saved step 14; give the same"):
        run_setup.require_latest(setup)


def test_a_folder_with_a_last_checkpoint_alone_names_it(corpus, tmp_path):
    trainer(corpus, tmp_path / "a").run()
    run_dir.best_checkpoint(tmp_path / "a").unlink()
    with pytest.raises(CheckpointError, match=r"a has no best\.safetensors; name its last checkpoint: .*last\.safetensors"):
        run_setup.fine_tune(tmp_path / "a", None, {}, {}, tmp_path / "b", corpus, False, 5)


def new(corpus, out, **options):
    return run_setup.new_run(preset(), {}, {}, out, corpus, seed=1, **options)


def test_a_resumed_run_has_all_that_was_saved(corpus, tmp_path):
    first = new(corpus, tmp_path / "a")
    saved = save_checkpoint(first, run_dir.last_checkpoint(tmp_path / "a"))
    for seed in (None, 1):
        resumed = run_setup.resume(tmp_path / "a", {}, {}, corpus, seed)
        assert (resumed.out, resumed.model, resumed.train, resumed.seed) == (tmp_path / "a", first.model, first.train, 1)
        assert (resumed.resumed, resumed.drop_unknown) == (True, False)
        state = resumed.state(np)
        assert state.step == 7
        for name in checkpoint.BUFFERS:
            np.testing.assert_array_equal(getattr(state, name), getattr(saved, name))
    with pytest.raises(ConfigError, match="seed is 1 in the checkpoint and cannot become 2; start a new run"):
        run_setup.resume(tmp_path / "a", {}, {}, corpus, 2)
    with pytest.raises(ConfigError, match=r"dropout is 0\.2 in the checkpoint and cannot become 0\.1"):
        run_setup.resume(tmp_path / "a", {"dropout": 0.1}, {}, corpus)


def test_a_resumed_run_may_end_where_it_stands_but_not_before(corpus, tmp_path):
    save_checkpoint(new(corpus, tmp_path / "a"), run_dir.last_checkpoint(tmp_path / "a"))
    assert run_setup.resume(tmp_path / "a", {}, {"max_iters": 7}, corpus).train.max_iters == 7
    with pytest.raises(ConfigError, match="max_iters 6 is behind the checkpoint, which is at step 7"):
        run_setup.resume(tmp_path / "a", {}, {"max_iters": 6}, corpus)


def test_the_best_checkpoint_stands_in_for_the_last(corpus, tmp_path, notes):
    best, last = run_dir.best_checkpoint(tmp_path / "a"), run_dir.last_checkpoint(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        run_setup.resume(tmp_path / "a", {}, {}, corpus)
    save_checkpoint(new(corpus, tmp_path / "a"), best, step=4)
    assert run_setup.resume(tmp_path / "a", {}, {}, corpus).weights.step == 4
    assert notes == {f"{last} is missing: the run goes on from {best}"}
    notes.clear()
    save_checkpoint(new(corpus, tmp_path / "a"), last, step=8)
    assert run_setup.resume(tmp_path / "a", {}, {}, corpus).weights.step == 8
    assert not notes


def test_fine_tuning_starts_anew_with_the_weights(corpus, tmp_path):
    saved = save_checkpoint(new(corpus, tmp_path / "a"), run_dir.last_checkpoint(tmp_path / "a"))
    path = run_dir.last_checkpoint(tmp_path / "a")
    tuned = run_setup.fine_tune(path, None, {}, {}, tmp_path / "b", corpus, False, 5)
    assert (tuned.out, tuned.train, tuned.seed, tuned.resumed, tuned.drop_unknown) == (tmp_path / "b", TRAIN, 5, False, False)
    state = tuned.state(np)
    assert state.step == 0
    np.testing.assert_array_equal(state.params, saved.params)
    assert not state.m.any()
    assert not state.v.any()
    base = dataclasses.replace(TRAIN, batch_size=3, learning_rate=0.2)
    tuned = run_setup.fine_tune(path, base, {}, {"max_iters": 5}, tmp_path / "b", corpus, False, 5)
    assert tuned.train == dataclasses.replace(base, max_iters=5)


def test_characters_that_the_vocabulary_lacks_are_left_out_on_request(corpus, tmp_path):
    """A run that has left them out goes on leaving them out when it is resumed."""
    path = run_dir.last_checkpoint(tmp_path / "a")
    first = new(corpus, tmp_path / "a")
    save_checkpoint(first, path)
    corpus.write_text("Z" + PANGRAMS)
    with pytest.raises(DataError, match=r"--drop-unknown leaves them out$"):
        run_setup.fine_tune(path, None, {}, {}, tmp_path / "b", corpus, False, 5)
    tuned = run_setup.fine_tune(path, None, {}, {}, tmp_path / "b", corpus, True, 5)
    assert tuned.drop_unknown
    np.testing.assert_array_equal(tuned.corpus.train, first.corpus.train)
    save_checkpoint(tuned, run_dir.last_checkpoint(tmp_path / "b"))
    resumed = run_setup.resume(tmp_path / "b", {}, {}, corpus)
    assert resumed.drop_unknown
    np.testing.assert_array_equal(resumed.corpus.train, first.corpus.train)


def test_a_validation_text_of_its_own(corpus, tmp_path):
    (tmp_path / "val").write_text("the lazy dog. " * 3)
    path = run_dir.last_checkpoint(tmp_path / "a")
    first = new(corpus, tmp_path / "a", val_data=tmp_path / "val")
    save_checkpoint(first, path)
    resumed = run_setup.resume(tmp_path / "a", {}, {}, corpus, val_data=tmp_path / "val")
    tuned = run_setup.fine_tune(path, None, {}, {}, tmp_path / "b", corpus, False, 5, val_data=tmp_path / "val")
    for setup in (first, resumed, tuned):
        assert setup.corpus.tokenizer.decode(setup.corpus.val) == "the lazy dog. " * 3


def test_a_text_must_be_longer_than_the_context_of_the_run(corpus, tmp_path):
    """The preset's context, the one that is asked for, or the checkpoint's."""
    asked = {"block_size": 1000}
    with pytest.raises(DataError, match="a context of 1000 needs"):
        run_setup.new_run(preset(), asked, {}, tmp_path / "a", corpus, seed=1)
    save_checkpoint(new(corpus, tmp_path / "a"), run_dir.last_checkpoint(tmp_path / "a"))
    corpus.write_text("the")
    with pytest.raises(DataError, match="a context of 5 needs"):
        run_setup.fine_tune(tmp_path / "a" / run_dir.LAST, None, {}, {}, tmp_path / "b", corpus, False, 5)


def test_a_task_is_the_run_on_a_device(corpus, tmp_path):
    class Library:
        asarray = staticmethod(lambda values: ["on the device", values])

    setup = run_setup.new_run(preset(), {"n_embd": 12}, {"batch_size": 2}, tmp_path, corpus, seed=3)
    assert (setup.model.n_embd, setup.train.batch_size, setup.model.vocab_size) == (12, 2, len(set(PANGRAMS)))
    task = setup.task(Library)
    assert (task.model, task.config, task.train, task.seed) == (MODELS["gpt"], setup.model, setup.train, 3)
    assert task.data[0] == "on the device"
    assert task.data[1] is setup.corpus.train


def test_ranks_compare_all_that_fixes_a_run(corpus, tmp_path):
    """Facts of two runs differ in what differs, and in nothing else."""
    setup = new(corpus, tmp_path / "a")
    saved = save_checkpoint(setup, run_dir.last_checkpoint(tmp_path / "a"))
    resumed = dataclasses.replace(setup, weights=saved, resumed=True)

    def differing(one, other):
        one, other = one.facts(), other.facts()
        return {name for name in one | other if name not in one or name not in other or one[name] != other[name]}

    def with_corpus(**fields):
        return dataclasses.replace(setup, corpus=dataclasses.replace(setup.corpus, **fields))

    assert differing(setup, new(corpus, tmp_path / "elsewhere")) == set()
    assert differing(setup, dataclasses.replace(setup, seed=2)) == {"seed"}
    assert differing(setup, dataclasses.replace(setup, drop_unknown=True)) == {"drop_unknown"}
    assert differing(setup, dataclasses.replace(setup, train=dataclasses.replace(TRAIN, beta1=0.8))) == {"beta1"}
    assert differing(setup, dataclasses.replace(setup, model=dataclasses.replace(setup.model, n_head=2))) == {"n_head"}
    assert differing(setup, with_corpus(sha256="0" * 64)) == {"the text"}
    for character in "é\ud800":  # a tokenizer takes any, and a checkpoint refuses the second
        tokenizer = CharTokenizer(setup.corpus.tokenizer.vocabulary[:-1] + character)
        assert differing(setup, with_corpus(tokenizer=tokenizer)) == {"the vocabulary"}
    assert differing(setup, resumed) == {"resume", "the checkpoint"}
    for name in checkpoint.BUFFERS:
        other = dataclasses.replace(saved, **{name: getattr(saved, name) + 1})
        assert differing(resumed, dataclasses.replace(resumed, weights=other)) == {"the checkpoint"}
    assert differing(resumed, dataclasses.replace(resumed, weights=dataclasses.replace(saved, step=8))) == {"the checkpoint"}
    scaled = dataclasses.replace(saved, loss_scale=LossScale())
    assert differing(resumed, dataclasses.replace(resumed, weights=scaled)) == {"the loss scale"}
    other = dataclasses.replace(saved, loss_scale=LossScale(8.0))
    both = (dataclasses.replace(resumed, weights=weights) for weights in (scaled, other))
    assert differing(*both) == {"the loss scale"}
    facts = resumed.facts()
    assert facts["the version"] == __version__
    assert facts["the text"] == hashlib.sha256(setup.corpus.sha256.encode()).hexdigest()[:12]
    digest = hashlib.sha256(saved.params.tobytes() + saved.m.tobytes() + saved.v.tobytes()).hexdigest()
    assert facts["the checkpoint"] == f"{digest[:12]} at step 7"


def test_a_new_run_starts_with_the_weights_of_its_seed(corpus, tmp_path):
    setup = new(corpus, tmp_path)
    table = ParamTable(MODELS["gpt"].init(setup.model))
    state = setup.state(np)
    np.testing.assert_array_equal(state.params, table.init_params(1))
    assert (state.params != table.init_params(2)).any()
    assert state.step == 0
    assert setup.weights is None
