"""Checkpoints: a loaded checkpoint equals the saved one, and every damaged file is refused."""

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from golden import make_checkpoint
from gpt.config import TrainConfig
from gpt.errors import CheckpointError
from gpt.training import checkpoint, run_dir, run_setup
from gpt.training.checkpoint import BUFFERS, Checkpoint
from gpt.training.data_parallel import Workers
from gpt.training.trainer import Trainer
from small import config_of, start
from tensorlite import ReferenceOps


@pytest.fixture
def saved(tmp_path):
    config = config_of("gpt", tied=True, bias=False)
    state = start(config, dtype=np.float32)
    for view in state.table.views(state.m):  # not the gaps between parameters, which a file leaves out
        view[...] = 2.0
    about = {
        "vocabulary": "abcdefghijk",
        "seed": 5,
        "step": 7,
        "val_loss": 1.5,
        "best_val": 1.25,
        "data_sha256": "00",
        "drop_unknown": True,
    }
    original = Checkpoint(config, TrainConfig(), params=state.params, m=state.m, v=state.v, **about)
    path = tmp_path / "best.safetensors"
    checkpoint.save(path, original)
    return path, original


def test_round_trip(saved):
    path, original = saved
    for where in (path, path.parent):
        loaded = checkpoint.load(where)
        for name in ("model", "train", "vocabulary", "seed", "step", "val_loss", "best_val", "data_sha256", "drop_unknown"):
            assert getattr(loaded, name) == getattr(original, name)
        for name in BUFFERS:
            np.testing.assert_array_equal(getattr(loaded, name), getattr(original, name))
    assert os.listdir(path.parent) == ["best.safetensors"]


def test_parameters_have_their_names_in_the_file(saved):
    tensors = safetensors.numpy.load_file(saved[0])
    assert tensors["params/blocks.1.qkv_w"].shape == (6, 18)
    assert "params/head_w" not in tensors


def test_every_flipped_byte_is_noticed(saved):
    """One bit in each of 400 places, header and tensors: never a checkpoint with other numbers."""
    path, _ = saved
    good = path.read_bytes()
    for i in np.linspace(0, len(good) - 1, 400).astype(int):
        path.write_bytes(good[:i] + bytes([good[i] ^ 4]) + good[i + 1 :])
        with pytest.raises(CheckpointError):
            checkpoint.load(path)


def test_every_truncation_is_noticed(saved):
    path, _ = saved
    good = path.read_bytes()
    for n in [*range(64), *np.linspace(64, len(good) - 1, 100).astype(int)]:
        path.write_bytes(good[:n])
        with pytest.raises(CheckpointError):
            checkpoint.load(path)


def test_other_files_are_refused_with_the_reason(saved, tmp_path):
    path, _ = saved
    safetensors.numpy.save_file({"w": np.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not written by this program"):
        checkpoint.load(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "missing.safetensors")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*best"):
        checkpoint.load(tmp_path)


def rewritten(path, about=None, metadata=None, tensors=None):
    """The same file with other content under the right hash: whoever can write a file can also hash it."""
    with safetensors.safe_open(path, framework="numpy") as file:
        old = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    text = json.dumps(about(json.loads(old["about"]))) if about else old["about"]
    arrays = tensors(arrays) if tensors else arrays
    new = old | {"about": text, "sha256": checkpoint._hash(arrays, text)} | (metadata or {})
    path.write_bytes(safetensors.numpy.save(arrays, new))


def model_field(name, value):
    return lambda about: about | {"model": about["model"] | {name: value}}


def train_field(name, value):
    return lambda about: about | {"train": about["train"] | {name: value}}


def field(name, value):
    return lambda about: about | {name: value}


SCALE = {"scale": 2.0, "finite_steps": 0, "skipped_steps": 0}
HOSTILE = {
    "n_layer that would take all memory": (model_field("n_layer", 10**4), "n_layer is 10000, but there are"),
    "a number that no model has": (model_field("n_layer", 10**9), "n_layer must not exceed 10,000"),
    "n_embd that would take all memory": (model_field("n_embd", 3 * 10**9), "the configuration says"),
    "a size beyond 64 bits": (model_field("block_size", 10**30), "block_size must not exceed"),
    "an unknown model": (model_field("model", "gtp"), "model must be one of"),
    "a model that is a list": (model_field("model", []), "model must be one of"),
    "a truth value for a number": (model_field("n_head", True), "n_head must be a whole number"),
    "a configuration that is a list": (field("model", [1, 2]), "no JSON object"),
    "a rate that is no number": (train_field("learning_rate", float("nan")), "learning_rate must be a number"),
    "a rate beyond all floats": (train_field("learning_rate", 10**400), "cannot be read"),
    "a rate that is text": (train_field("learning_rate", "fast"), "learning_rate must be a number"),
    "a negative step": (field("step", -1), "step must be"),
    "a step beyond the last": (field("step", 10**6), "step must be"),
    "a step that is a fraction": (field("step", 1.5), "step must be"),
    "a seed too large": (field("seed", 2**63), "seed must be"),
    "no best loss": (field("best_val", float("nan")), "best_val must be"),
    "a loss that is text": (field("val_loss", "low"), "val_loss must be"),
    "a vocabulary too short": (field("vocabulary", "abc"), "vocabulary must have 11 characters"),
    "a vocabulary with a repetition": (field("vocabulary", "aabcdefghij"), "distinct"),
    "a vocabulary with half a character": (field("vocabulary", "\ud800bcdefghijk"), "surrogate"),
    "a vocabulary that is a list": (field("vocabulary", list("abcdefghijk")), "vocabulary must be"),
    "a truth value that is text": (field("drop_unknown", "no"), "drop_unknown must be"),
    "a loss scale that is a number": (field("loss_scale", 1024.0), "the fields of its LossScale are no JSON object"),
    "a loss scale between powers": (field("loss_scale", SCALE | {"scale": 3.0}), "loss scale must be a power of two"),
    "a loss scale without a count": (field("loss_scale", {"scale": 2.0, "finite_steps": 0}), "the field skipped_steps is missing"),
    "a negative count of steps": (field("loss_scale", SCALE | {"skipped_steps": -1}), "steps of a loss scale must be"),
    "a hash that is a number": (field("data_sha256", 0), "data_sha256 must be"),
    "a field that is missing": (lambda about: {k: v for k, v in about.items() if k != "seed"}, "the field seed is missing"),
    "a field too many": (field("pickle", "x"), "the field 'pickle', which this version does not know"),
    "a field of training too many": (train_field("momentum", 0.9), "the field 'momentum', which this version does not know"),
    "depth without end": (field("seed", json.loads("[" * 900 + "]" * 900)), "too many fields"),
    "a list without end": (field("seed", [0] * 10**5), "too many fields"),
    "text that clears the screen": (field("\x1b[2J\nall is well", 1), r"\\x1b\[2J"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_strangers_description_is_checked_whatever_its_hash_says(saved, what):
    path, _ = saved
    about, message = HOSTILE[what]
    rewritten(path, about)
    with pytest.raises(CheckpointError, match=message) as raised:
        checkpoint.load(path)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 1000


WRONG_TENSORS = {
    "one missing": (lambda a: {k: v for k, v in a.items() if k != "m/wpe"}, "tensor m/wpe is missing"),
    "one too many": (lambda a: a | {"w": a["m/wpe"]}, "tensor w is none of this model"),
    "another shape": (lambda a: a | {"m/wpe": a["m/wpe"].T.copy()}, "m/wpe has shape"),
    "whole numbers": (lambda a: a | {"m/wpe": a["m/wpe"].astype(np.int32)}, "F32, I32"),
    "half precision": (lambda a: {k: v.astype(np.float16) for k, v in a.items()}, "F16"),
}


@pytest.mark.parametrize("what", WRONG_TENSORS)
def test_a_strangers_tensors_are_checked_whatever_the_hash_says(saved, what):
    path, _ = saved
    tensors, message = WRONG_TENSORS[what]
    rewritten(path, tensors=tensors)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(path)


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95",  # a pickle
        b"PK\x03\x04" + bytes(100),  # a .npz or .pt
        b"\x93NUMPY\x01\x00v\x00" + bytes(100),
        (2**63).to_bytes(8, "little") + b"{}",
        (2**64 - 1).to_bytes(8, "little"),
        (99 * 2**20).to_bytes(8, "little") + b"{}",
        header(b" " * (2**20 + 1000)),
        header(b"[" * 10**5),
        header(b'{"__metadata__":' + b'{"a":' * 10**4),
        header(b'{"w":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,16]}}') + bytes(16),
        header(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}')
        + bytes(16),
        header(b'{"w":{"dtype":"F32","shape":[],"data_offsets":[16,0]}}') + bytes(16),
        header(b'{"__metadata__":{"format":1}}'),
        header(b'{"__metadata__":{"format":"tensorlite-checkpoint-1"}}'),
        header(b'{"__metadata__":null}'),
    ],
    ids=range(16),
)
def test_a_hostile_header_is_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(tmp_path / "x")


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path):
    try:
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    except OSError as error:
        pytest.skip(f"this user may make no links: {error}")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    paths = [tmp_path / name for name in ("link", "loop", "folder", "a" * 5000, "\0", "\udcff")]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        paths += [tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")]
    for path in paths:
        with pytest.raises(CheckpointError, match=r"no checkpoint at|cannot be read"):
            checkpoint.load(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows fills a sparse file")
def test_a_file_larger_than_the_memory_is_refused(saved):
    """100 GB that take no space, behind a header that is right but for its sizes."""
    path, _ = saved
    with open(path, "r+b") as file:
        file.truncate(10**11)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(path)


def test_numbers_that_are_none_are_not_saved(saved):
    path, original = saved
    before = path.read_bytes()
    for name in BUFFERS:
        spoiled = getattr(original, name).copy()
        spoiled[0] = np.inf
        with pytest.raises(CheckpointError, match=f"at step 7, {name}/wte is not finite"):
            checkpoint.save(path, dataclasses.replace(original, **{name: spoiled}))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_failed_link_leaves_nothing_behind(saved, monkeypatch):
    path, _ = saved

    def busy(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(CheckpointError, match="Input/output error"):
        checkpoint.link_or_copy(path, run_dir.last_checkpoint(path.parent))
    assert os.listdir(path.parent) == [path.name]


# The rule for later formats: docs/reliability.md.


def test_a_file_of_format_1_is_read_for_ever(tmp_path):
    """Its numbers and fields are those of the formula that it was made by."""
    loaded, made = checkpoint.load(make_checkpoint.FILE), make_checkpoint.frozen()
    for name in BUFFERS:
        assert getattr(loaded, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(loaded, name), getattr(made, name))
    assert np.count_nonzero(loaded.params) > 200
    for name in ("model", "vocabulary", "seed", "step", "val_loss", "best_val", "data_sha256", "drop_unknown"):
        assert getattr(loaded, name) == getattr(made, name)
    of_then = make_checkpoint.FILE.read_bytes().split(b'\\"train\\": ')[1].split(b"}")[0] + b"}"
    for name, value in (json.loads(of_then.replace(b"\\", b"")) | {"val_chars": 0}).items():  # then all of the split was evaluated
        assert getattr(loaded.train, name) == value


def test_a_run_of_format_1_goes_on(tmp_path):
    (tmp_path / "text").write_bytes(make_checkpoint.TEXT.encode())
    run_dir.last_checkpoint(tmp_path).write_bytes(make_checkpoint.FILE.read_bytes())
    setup = run_setup.resume(tmp_path, {}, {}, tmp_path / "text")
    run = Trainer(setup, Workers(ReferenceOps, setup.train.shards), np)
    assert run.run() is None
    after = checkpoint.load(run_dir.last_checkpoint(tmp_path))
    assert (after.step, after.seed, after.vocabulary) == (9, 11, run.setup.corpus.tokenizer.vocabulary)
    assert not np.array_equal(after.params, setup.weights.params)


def test_a_newer_format_is_named_with_the_version_that_reads_it(saved):
    path, _ = saved
    rewritten(path, metadata={"format": "tensorlite-checkpoint-2", "version": "0.9", "more": "x"})
    with pytest.raises(CheckpointError, match=r"a tensorlite-checkpoint-2, this program reads .*-1; it needs tensorlite 0\.9"):
        checkpoint.load(path)


def test_a_field_that_was_added_later_means_in_an_older_file_what_that_meant(saved):
    """And each of the others is needed."""
    path, original = saved
    rewritten(path, lambda about: about | {"train": {k: v for k, v in about["train"].items() if k != "val_chars"}})
    assert checkpoint.load(path).train == dataclasses.replace(original.train, val_chars=0)
    rewritten(path, lambda about: about | {"train": {k: v for k, v in about["train"].items() if k != "max_iters"}})
    with pytest.raises(CheckpointError, match="the field max_iters is missing"):
        checkpoint.load(path)


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    path, original = saved
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save(path, original)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_whose_best_is_gone_names_its_last(saved):
    path, original = saved
    assert checkpoint.load(path.parent).step == original.step
    last = run_dir.last_checkpoint(path.parent)
    checkpoint.link_or_copy(path, last)
    assert checkpoint.load(path.parent).step == original.step
    path.unlink()
    with pytest.raises(CheckpointError, match=f"has no best.safetensors; name its last checkpoint: {re.escape(str(last))}"):
        checkpoint.load(path.parent)
    last.unlink()
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.load(path.parent)


@pytest.mark.parametrize("links", [True, False])
def test_a_link_is_the_same_file_and_keeps_its_content(saved, monkeypatch, links):
    """Where the system has no second names it is a copy. Saving under one name leaves the other alone."""
    path, original = saved
    other = run_dir.last_checkpoint(path.parent)
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    flushed = []
    monkeypatch.setattr(
        checkpoint.files, "flush_to_disk", lambda descriptor, path: flushed.append((path.name, os.fstat(descriptor).st_size))
    )
    checkpoint.link_or_copy(path, other)
    flushed = [(name.partition(".tmp-")[0], size) for name, size in flushed]
    assert flushed == ([] if links else [("last.safetensors", path.stat().st_size)])
    checkpoint.link_or_copy(path, other)  # again, over the earlier one
    assert other.read_bytes() == path.read_bytes()
    assert os.path.samefile(path, other) == links
    checkpoint.save(path, dataclasses.replace(original, step=8))
    assert (checkpoint.load(path).step, checkpoint.load(other).step) == (8, 7)
    assert sorted(os.listdir(path.parent)) == ["best.safetensors", "last.safetensors"]
    with pytest.raises(CheckpointError, match=r"nowhere.last\.safetensors cannot be written"):
        checkpoint.link_or_copy(path, run_dir.last_checkpoint(path.parent / "nowhere"))
