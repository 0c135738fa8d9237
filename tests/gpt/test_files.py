"""File systems that cannot flush, that fail, or that refuse to rename for a moment or for good."""

import contextlib
import errno
import os

import pytest

from failing import failing, failing_first
from gpt import files
from gpt.errors import CheckpointError
from gpt.training import checkpoint, run_dir
from trainers import trainer


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_a_file_system_without_fsync_is_noted(number, corpus, tmp_path, monkeypatch, notes):
    monkeypatch.setattr(os, "fsync", failing(OSError(number, os.strerror(number))))
    assert trainer(corpus, tmp_path / "a").run() is None
    (said,) = notes
    assert "cannot be flushed to the disk" in said
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "a")).step == 12


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_ends_the_run_with_one_line(number, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(OSError(number, os.strerror(number))))
    with pytest.raises(CheckpointError, match=os.strerror(number)):
        trainer(corpus, tmp_path / "a").run()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EBUSY, errno.EPERM])
def test_a_rename_that_is_refused_for_a_moment_is_waited_for(number, corpus, tmp_path, monkeypatch, notes):
    """Three times at each place: the log, the checkpoint, its second name, the earlier run."""
    monkeypatch.setattr(files, "RETRY_DELAYS_S", (0.001,) * 4)
    real, refusals = os.replace, {}

    def refused(source, target):
        refusals[target] = refusals.get(target, 0) + 1
        if refusals[target] % 4:
            raise OSError(number, os.strerror(number))
        real(source, target)

    monkeypatch.setattr(os, "replace", refused)
    assert trainer(corpus, tmp_path / "a").run() is None
    assert run_dir.archive_previous(tmp_path / "a") == tmp_path / "a" / "earlier-1"
    assert {target.name for target in refusals} >= {"metrics.jsonl", "best.safetensors", "last.safetensors"}
    assert not notes


def test_a_rename_is_waited_for_for_three_seconds(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(files.time, "sleep", slept.append)
    monkeypatch.setattr(os, "replace", failing(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(PermissionError):
        files.replace(tmp_path / "a", tmp_path / "b")
    assert sum(slept) == pytest.approx(3.17)


def test_a_rename_that_is_refused_for_good_is_one_line(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RETRY_DELAYS_S", (0.001,))
    monkeypatch.setattr(os, "replace", failing(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(CheckpointError, match="cannot be written: Permission denied"):
        trainer(corpus, tmp_path / "a").run()


def test_a_rename_is_tried_once_more_after_the_last_delay(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RETRY_DELAYS_S", (0.0, 0.0))
    for refusals, renamed in ((2, True), (3, False)):
        (tmp_path / "new").write_text("new")
        (tmp_path / "old").write_text("old")
        with monkeypatch.context() as patch, contextlib.nullcontext() if renamed else pytest.raises(PermissionError):
            failing_first(patch, os, "replace", PermissionError(errno.EACCES, "Permission denied"), refusals)
            files.replace(tmp_path / "new", tmp_path / "old")
        assert (tmp_path / "old").read_text() == ("new" if renamed else "old")
