"""Checkpoints: what goes in comes out, and nothing else does."""

import dataclasses
import json
import os

import numpy as np
import pytest
import safetensors.numpy

from gpt import checkpoint, folder
from gpt.checkpoint import BUFFERS, Checkpoint
from gpt.config import TrainConfig
from gpt.errors import CheckpointError, TrainingError
from small import config_of, start


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


@pytest.mark.parametrize("links", [True, False])
def test_a_twin_is_the_same_file_and_keeps_its_content(saved, monkeypatch, links):
    """Where the system has no second names it is a copy. Saving under one name leaves the other alone."""
    path, original = saved
    other = folder.last_path(path.parent)
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    checkpoint.twin(path, other)
    checkpoint.twin(path, other)  # again, over the earlier one
    assert other.read_bytes() == path.read_bytes()
    assert os.path.samefile(path, other) == links
    checkpoint.save(path, dataclasses.replace(original, step=8))
    assert (checkpoint.load(path).step, checkpoint.load(other).step) == (8, 7)
    assert sorted(os.listdir(path.parent)) == ["best.safetensors", "last.safetensors"]
    with pytest.raises(CheckpointError, match=r"nowhere.last\.safetensors cannot be written"):
        checkpoint.twin(path, folder.last_path(path.parent / "nowhere"))


def test_a_folder_holds_one_run_at_a_time(tmp_path):
    with folder.claimed(tmp_path):
        (tmp_path / "last.safetensors.tmp-1").touch()
        with pytest.raises(TrainingError, match=f"in use by process {os.getpid()}"), folder.claimed(tmp_path):
            pass
    with folder.claimed(tmp_path):
        assert not list(tmp_path.glob("*.tmp-*"))


def test_an_earlier_run_is_moved_aside(tmp_path):
    assert folder.move_aside(tmp_path) is None
    for n in (1, 2):
        (tmp_path / "metrics.jsonl").write_text(str(n))
        assert folder.move_aside(tmp_path) == tmp_path / f"earlier-{n}"
    assert (tmp_path / "earlier-1" / "metrics.jsonl").read_text() == "1"


def test_a_metrics_line_cut_short_is_left_out(tmp_path):
    records = [json.dumps({"step": step, "train_loss": 1.5, "val_loss": 2, "elapsed_s": 0.1}) for step in (0, 10, 20)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(records) + '\n{"st')
    assert [r["step"] for r in folder.read_metrics(tmp_path, 10)] == [0, 10]
    assert folder.read_metrics(tmp_path / "none", 10) == []
