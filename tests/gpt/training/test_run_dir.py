"""A run's folder: its lock, earlier runs, damaged logs and missing checkpoints. What is lost is noted once."""

import contextlib
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from failing import failing, failing_first
from gpt.errors import CheckpointError, TrainingError
from gpt.training import checkpoint, run_dir
from trainers import RECORD, trainer


def test_a_folder_holds_one_run_at_a_time(tmp_path):
    pytest.importorskip("fcntl", reason="this system has no flock")
    with run_dir.locked(tmp_path):
        (tmp_path / "last.safetensors.tmp-1").touch()
        with pytest.raises(TrainingError, match=f"in use by process {os.getpid()}"), run_dir.locked(tmp_path):
            pass
    with run_dir.locked(tmp_path):
        assert not list(tmp_path.glob("*.tmp-*"))


def test_an_earlier_run_is_moved_aside(tmp_path):
    assert run_dir.archive_previous(tmp_path) is None
    for n in (1, 2):
        (tmp_path / "metrics.jsonl").write_text(str(n))
        assert run_dir.archive_previous(tmp_path) == tmp_path / f"earlier-{n}"
    assert (tmp_path / "earlier-1" / "metrics.jsonl").read_text() == "1"


def test_a_metrics_line_cut_short_is_left_out(tmp_path):
    records = [json.dumps({"step": step, "train_loss": 1.5, "val_loss": 2, "elapsed_s": 0.1}) for step in (0, 10, 20)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(records) + '\n{"st')
    assert [r["step"] for r in run_dir.read_metrics(tmp_path, 10)] == [0, 10]
    assert run_dir.read_metrics(tmp_path / "none", 10) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO])
def test_a_file_system_without_locks_is_noted(number, tmp_path, monkeypatch, notes):
    fcntl = pytest.importorskip("fcntl", reason="this system has no flock")
    monkeypatch.setattr(fcntl, "flock", failing(OSError(number, os.strerror(number))))
    with run_dir.locked(tmp_path):
        pass
    (said,) = notes
    assert "cannot be locked" in said


def test_a_lock_that_is_held_is_still_respected(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="this system has no flock")
    monkeypatch.setattr(fcntl, "flock", failing(BlockingIOError(errno.EWOULDBLOCK, "held")))
    with pytest.raises(TrainingError, match="in use by process"), run_dir.locked(tmp_path):
        pass


def test_a_log_that_cannot_be_written_is_tried_again(corpus, tmp_path, monkeypatch, notes):
    failing_first(monkeypatch, run_dir, "write_metrics", CheckpointError("metrics.jsonl cannot be written: No space left"), 2)
    run = trainer(corpus, tmp_path / "a")
    assert run.run() is None
    assert [r["step"] for r in run_dir.read_metrics(tmp_path / "a", 99)] == [0, 4, 8, 12]
    assert notes == {"metrics.jsonl cannot be written: No space left; the next evaluation tries again"}


def test_a_log_that_is_lost_at_the_end_is_an_error(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(run_dir, "write_metrics", failing(CheckpointError("metrics.jsonl cannot be written")))
    with pytest.raises(CheckpointError, match="metrics"):
        trainer(corpus, tmp_path / "a").run()
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "a")).step == 12


ODD_LINES = [
    "123", "null", "[]", "true", '"step"', "{}", '{"step": 4}', '{"step": "4"}', "[" * 100_000, "NaN", "\x00\x00", "é\udc80",
    json.dumps(RECORD | {"step": 1.5}), json.dumps(RECORD | {"step": True}), json.dumps(RECORD | {"val_loss": math_nan})
    if (math_nan := float("nan")) else "", json.dumps(RECORD | {"train_loss": None}), json.dumps(RECORD | {"elapsed_s": "long"}),
    json.dumps(RECORD | {"step": 0}), json.dumps(RECORD | {"val_loss": 10**400}), '{"step": 4, "train_lo',
]  # fmt: skip


@pytest.mark.parametrize("line", ODD_LINES, ids=range(len(ODD_LINES)))
def test_an_odd_line_in_the_log_is_left_out(line, tmp_path, notes):
    text = "".join(x + "\n" for x in (json.dumps(RECORD), line, "", json.dumps(RECORD | {"step": 8})))
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert [r["step"] for r in run_dir.read_metrics(tmp_path, 99)] == [0, 8]
    (said,) = notes
    assert "1 of its lines" in said
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == (tmp_path / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", os.urandom(0) + bytes(range(256)) * 9, None])
def test_a_resumed_run_takes_any_log(content, corpus, tmp_path, notes):
    """None: a folder in its place. The run goes on; what its log has lost is measured again where it stands."""
    run = trainer(corpus, tmp_path / "a")
    run.run()
    log = tmp_path / "a" / "metrics.jsonl"
    log.unlink()
    if content is None:
        log.mkdir()
    else:
        log.write_bytes(content)
    resumed = trainer(corpus, tmp_path / "a", {"max_iters": 16}, resume=True)
    with pytest.raises(CheckpointError) if content is None else contextlib.nullcontext():
        resumed.run()
    assert [r["step"] for r in resumed.history] == [12, 16]
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "a")).step == 16
    assert bool(notes) == (content != b"")


def test_a_last_checkpoint_that_is_gone_costs_the_steps_since_the_best(corpus, tmp_path, notes):
    straight = trainer(corpus, tmp_path / "a")
    straight.run()
    run_dir.last_checkpoint(tmp_path / "a").unlink()
    resumed = trainer(corpus, tmp_path / "a", resume=True)
    assert resumed.run() is None
    np.testing.assert_array_equal(resumed.state.params, straight.state.params)
    assert any("goes on from" in said for said in notes)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_pipes_in_the_place_of_files_are_not_waited_for(corpus, tmp_path, notes):
    trainer(corpus, tmp_path / "a").run()
    for name in (run_dir.METRICS, run_dir.PLOT):
        (tmp_path / "a" / name).unlink()
        os.mkfifo(tmp_path / "a" / name)
    resumed = trainer(corpus, tmp_path / "a", {"max_iters": 16}, resume=True)
    assert resumed.run() is None
    assert [r["step"] for r in run_dir.read_metrics(tmp_path / "a", 99)] == [12, 16]
    assert (tmp_path / "a" / run_dir.PLOT).read_bytes().startswith(b"\x89PNG")


def test_a_best_checkpoint_that_is_gone_is_replaced_by_the_next(corpus, tmp_path, notes):
    trainer(corpus, tmp_path / "a").run()
    run_dir.best_checkpoint(tmp_path / "a").unlink()
    resumed = trainer(corpus, tmp_path / "a", {"max_iters": 16, "learning_rate": 1e-12}, resume=True)
    assert resumed.run() is None
    assert checkpoint.load(run_dir.best_checkpoint(tmp_path / "a")).step == 16
    assert any("is missing" in said for said in notes)


def test_the_newest_run_is_the_one_written_last(tmp_path):
    assert run_dir.newest(tmp_path, run_dir.BEST) is None
    for name, seconds in (("a", 200), ("b", 300), ("c", 100)):
        (tmp_path / name).mkdir()
        run_dir.best_checkpoint(tmp_path / name).touch()
        os.utime(run_dir.best_checkpoint(tmp_path / name), (seconds, seconds))
    run_dir.last_checkpoint(tmp_path / "a").touch()
    assert run_dir.newest(tmp_path, run_dir.BEST) == run_dir.best_checkpoint(tmp_path / "b")
    assert run_dir.newest(tmp_path, run_dir.LAST) == run_dir.last_checkpoint(tmp_path / "a")


def test_a_run_that_is_moved_away_meanwhile_is_not_the_newest(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / run_dir.BEST).touch()
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: [folder / "gone" / run_dir.BEST, folder / "a" / run_dir.BEST])
    assert run_dir.newest(tmp_path, run_dir.BEST) == tmp_path / "a" / run_dir.BEST


def test_an_earlier_run_that_cannot_be_moved_is_one_line(tmp_path, monkeypatch):
    run_dir.last_checkpoint(tmp_path).touch()
    monkeypatch.setattr(os, "replace", failing(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(CheckpointError, match=r"the earlier run in .* cannot be moved: No space left; choose another --out"):
        run_dir.archive_previous(tmp_path)


def test_what_is_wrong_with_a_log_is_said(tmp_path, notes):
    log = tmp_path / "metrics.jsonl"
    log.write_text(f"{json.dumps(RECORD)}\n   \n\n")
    assert run_dir.read_metrics(tmp_path, 9) == [RECORD]
    assert not notes
    log.write_text(f"x\n{json.dumps(RECORD)}\ny\n")
    (tmp_path / "metrics.jsonl.damaged").mkdir()  # so that no copy can be made
    assert run_dir.read_metrics(tmp_path, 9) == [RECORD]
    assert notes == {f"{log}: 2 of its lines are no records of a run and are left out; metrics.jsonl.damaged is the file as it was"}


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_log_that_cannot_be_read_begins_anew(is_folder, tmp_path, monkeypatch, notes):
    log = tmp_path / "metrics.jsonl"
    if is_folder:
        log.mkdir()
    else:
        log.write_text(json.dumps(RECORD))
        monkeypatch.setattr(Path, "read_text", failing(PermissionError(13, "Permission denied")))
    assert run_dir.read_metrics(tmp_path, 9) == []
    assert notes == {f"{log} {'is no file' if is_folder else 'cannot be read (Permission denied)'}: the log begins anew"}


def test_a_log_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", failing(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be written: No space left$"):
        run_dir.write_metrics(tmp_path, [RECORD])


def test_a_full_disk_under_the_lock_is_one_line(tmp_path):
    """A limit on the length of files stands for the full disk. No part of the process's number is left for a later flush."""
    resource = pytest.importorskip("resource", reason="this system has no limits for processes")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written: File too large; free space or"), run_dir.locked(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_leftover_that_cannot_be_removed_stays(tmp_path):
    (tmp_path / "last.safetensors.tmp-1").mkdir()  # no file
    (tmp_path / "metrics.jsonl.tmp-1").touch()
    with run_dir.locked(tmp_path):
        assert [path.name for path in tmp_path.glob("*.tmp-*")] == ["last.safetensors.tmp-1"]
