"""A checkpoint's file in detail: precision, folders, links that fail, and what the messages about other files say."""

import dataclasses
import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from failing import failing
from gpt.config import TrainConfig
from gpt.errors import CheckpointError
from gpt.training import checkpoint, run_dir
from gpt.training.checkpoint import BUFFERS, Checkpoint
from small import config_of, start
from tensorlite.loss_scale import LossScale


def bigram(dtype=np.float32, std=0.5, **fields) -> Checkpoint:
    config = config_of("bigram")
    state = start(config, dtype=dtype, std=std)
    about = {"vocabulary": "abcdefghijk", "seed": 5, "step": 7, "val_loss": 1.5, "best_val": 1.25, "data_sha256": "00"}
    buffers = {name: getattr(state, name) for name in BUFFERS}
    return Checkpoint(config, TrainConfig(), **(about | {"drop_unknown": True} | buffers | fields))


@pytest.fixture
def saved(tmp_path):
    path = run_dir.best_checkpoint(tmp_path)
    checkpoint.save(path, bigram())
    return path


def test_a_loss_scale_is_saved_with_the_run(tmp_path):
    """Without one its field is not in the file, so earlier versions can read that."""
    path = tmp_path / "last.safetensors"
    for loss_scale in (None, LossScale(2.0**20, 12, 3)):
        checkpoint.save(path, bigram(loss_scale=loss_scale))
        assert checkpoint.load(path).loss_scale == loss_scale
        with safetensors.safe_open(path, framework="numpy") as file:
            assert ("loss_scale" in json.loads(file.metadata()["about"])) == (loss_scale is not None)


def rewritten(path, about=None, **metadata):
    """The same tensors under another description, with the hash that goes with it."""
    with safetensors.safe_open(path, framework="numpy") as file:
        old = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    text = json.dumps(json.loads(old["about"]) | (about or {}))
    metadata = old | {"about": text, "sha256": checkpoint._hash(arrays, text)} | metadata
    path.write_bytes(safetensors.numpy.save(arrays, {name: value for name, value in metadata.items() if value is not None}))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_run_goes_on_where_it_was_in_its_own_precision(dtype, tmp_path):
    path = run_dir.last_checkpoint(tmp_path)
    original = bigram(dtype, m=np.full(128, 1 / 3, dtype), v=np.full(128, 1 / 7, dtype))
    checkpoint.save(path, original)
    state = checkpoint.load(path).state(np)
    assert state.step == 7
    assert state.params.dtype == state.grads.dtype == dtype
    for name in BUFFERS:
        for view, expected in zip(state.table.views(getattr(state, name)), state.table.views(getattr(original, name)), strict=True):
            np.testing.assert_array_equal(view, expected)
    assert not state.grads.any()
    state.params += 1
    assert not np.array_equal(state.params, checkpoint.load(path).params)


def test_training_on_a_loaded_state_leaves_the_checkpoint_alone(saved):
    loaded = checkpoint.load(saved)
    before = loaded.params.copy()
    loaded.state(np).params[...] = 1
    np.testing.assert_array_equal(loaded.params, before)


def test_the_folders_of_a_checkpoint_are_made(tmp_path):
    path = run_dir.best_checkpoint(tmp_path / "a" / "b" / "c")
    for step in (7, 8):
        checkpoint.save(path, bigram(step=step))
        assert checkpoint.load(path).step == step


def test_a_file_system_that_cannot_flush_is_named(tmp_path, monkeypatch, notes):
    monkeypatch.setattr(os, "fsync", failing(OSError(errno.EINVAL, "Invalid argument")))
    checkpoint.save(run_dir.best_checkpoint(tmp_path), bigram())
    (said,) = notes
    assert said.startswith(f"{tmp_path} cannot be flushed to the disk (Invalid argument)")


def test_a_rename_is_made_durable(tmp_path, monkeypatch):
    """The folder is flushed after each rename, and left open by none."""
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("this system does not show what is open")
    flushed, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: flushed.append(os.path.realpath(f"/proc/self/fd/{d}")) or real(d))
    opened = len(os.listdir("/proc/self/fd"))
    path = run_dir.best_checkpoint(tmp_path)
    checkpoint.save(path, bigram())
    checkpoint.link_or_copy(path, run_dir.last_checkpoint(tmp_path))
    assert flushed.count(os.path.realpath(tmp_path)) == 2
    assert len(os.listdir("/proc/self/fd")) == opened


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError(28, "No space left"), "No space left"), (OSError("no reason"), "no reason")]
)
@pytest.mark.parametrize("undone", [True, False], ids=["cleaned up", "not even that works"])
def test_what_cannot_be_written_is_one_line(error, reason, undone, saved, monkeypatch):
    if not undone:
        monkeypatch.setattr(Path, "unlink", failing(OSError(5, "Input/output error")))
    monkeypatch.setattr(os, "replace", failing(error))
    last = run_dir.last_checkpoint(saved.parent)
    for write, path in (
        (lambda: checkpoint.save(saved, bigram(step=8)), saved),
        (lambda: checkpoint.link_or_copy(saved, last), last),
    ):
        with pytest.raises(CheckpointError) as caught:
            write()
        assert str(caught.value) == f"{path} cannot be written: {reason}; free space or choose another --out"
    assert checkpoint.load(saved).step == 7


def test_a_copy_that_fails_halfway_leaves_nothing_behind(saved, monkeypatch):
    def half(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        raise OSError(28, "No space left")

    monkeypatch.setattr(os, "link", failing(OSError("no links here")))
    monkeypatch.setattr(shutil, "copyfile", half)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.link_or_copy(saved, run_dir.last_checkpoint(saved.parent))
    assert os.listdir(saved.parent) == [saved.name]


OTHER_FORMATS = {
    "of another kind": ({"format": "torch"}, r"was not written by this program \(format 'torch', not 'tensorlite-checkpoint-1'\)"),
    "of a name like ours": ({"format": "tensorlite-checkpoints"}, r"was not written by this program"),
    "of none": ({"format": None}, r"was not written by this program \(format '', not "),
    "of a long name": ({"format": "x" * 99}, f"was not written by this program .format '{'x' * 40}', not "),
    "a newer one": ({"format": "tensorlite-checkpoint-2"}, "it needs tensorlite newer than this one$"),
    "a newer one with long names": (
        {"format": "tensorlite-checkpoint-" + "2" * 99, "version": "0.123456789" * 9},
        f"it is a tensorlite-checkpoint-{'2' * 18}, this program reads .*; it needs tensorlite 0.1234567890.1234567$",
    ),
    "with a key too many": ({"more": "x"}, "its metadata has the keys about, format, more, sha256$"),
    "with a key too few": ({"sha256": None}, "its metadata has the keys about, format$"),
    "under another hash": ({"sha256": "0" * 64}, "it is damaged: its content does not match its hash; use another copy$"),
}


@pytest.mark.parametrize("what", OTHER_FORMATS)
def test_why_a_file_is_refused(what, saved):
    metadata, reason = OTHER_FORMATS[what]
    rewritten(saved, **metadata)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(saved))} cannot be read: .*{reason}"):
        checkpoint.load(saved)


def test_a_description_is_part_of_what_is_hashed(saved):
    before = saved.read_bytes()
    saved.write_bytes(before.replace(rb"step\": 7", rb"step\": 6"))
    assert saved.read_bytes() != before
    with pytest.raises(CheckpointError, match="it is damaged"):
        checkpoint.load(saved)


def test_what_a_checkpoint_cannot_hold_is_refused_before_it_is_saved():
    for fields, words in (
        ({"seed": 2**63}, "seed must be"),
        ({"step": -1}, "step must be"),
        ({"best_val": np.nan}, "best_val must"),
    ):
        with pytest.raises(ValueError, match=words):
            bigram(**fields)
    assert bigram(seed=0, step=0, best_val=np.inf).step == 0
    assert bigram(seed=2**63 - 1, step=TrainConfig().max_iters).seed == 2**63 - 1
    assert dataclasses.replace(bigram(), val_loss=np.inf).val_loss == np.inf
    for surrogate in ("\ud800", "\udfff"):
        with pytest.raises(ValueError, match=r"^vocabulary has a surrogate"):
            bigram(vocabulary=f"{surrogate}bcdefghijk")


def test_a_folder_that_cannot_be_opened_is_as_good(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", failing(PermissionError(13, "Permission denied")))
    checkpoint.save(run_dir.best_checkpoint(tmp_path), bigram())
    assert checkpoint.load(tmp_path).step == 7


@pytest.mark.parametrize(("header", "refused"), [(200, False), (201, True)])
def test_a_header_may_be_twice_its_tensors_and_a_little_more(header, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SMALL_HEADER", 100)
    (tmp_path / "x").write_bytes(header.to_bytes(8, "little") + b" " * (header + 50 - 8))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(tmp_path / "x")
    assert (f"its header claims {header} bytes, too many for a file of {header + 50}" in str(caught.value)) == refused


@pytest.mark.parametrize(
    ("beyond_small", "missing", "refused"), [(1, 1, True), (1, 0, False), (1, None, False), (0, 1, False)], ids=str
)
def test_only_a_large_file_is_compared_with_the_memory(beyond_small, missing, refused, saved, monkeypatch):
    """missing: how many bytes of memory there are too few; None: the system does not say."""
    size = saved.stat().st_size
    monkeypatch.setattr(checkpoint, "LARGE_FILE", size - beyond_small)
    monkeypatch.setattr(checkpoint, "available_memory", lambda: None if missing is None else size - missing)
    if refused:
        with pytest.raises(CheckpointError, match="cannot be read: it does not fit this machine's memory"):
            checkpoint.load(saved)
    else:
        assert checkpoint.load(saved).step == 7


def test_a_reason_takes_one_line_however_long_it_is(saved):
    rewritten(saved, {"x" * 999: 1})
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(saved)
    prefix = f"{saved} cannot be read: "
    assert str(caught.value).startswith(f"{prefix}it has the field 'xxx")
    assert len(str(caught.value)) == len(prefix) + 300
