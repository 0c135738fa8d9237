"""A run outlives its surroundings: pictures, locks, flushing, renames, a damaged log, no home. What is lost is said, once."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from gpt import console, files
from gpt.advice import resume_command, shell_word
from gpt.errors import CheckpointError, TrainingError
from gpt.training import checkpoint, evaluate, interrupts, run_dir
from gpt.training.plots import loss_curve
from paths import ROOT
from small import PANGRAMS
from tensorlite.cache_dir import cache_folder, write_whole
from tests.gpt.training.test_trainer import trainer, without_time

RECORD = {"step": 0, "train_loss": 1.5, "val_loss": 1.25, "lr": 0.1, "tokens_per_s": 5.0, "elapsed_s": 2.5}


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "text").write_text(PANGRAMS)
    return tmp_path / "text"


@pytest.fixture(autouse=True)
def notes(monkeypatch):
    """What was noted."""
    monkeypatch.setattr(console, "_noted", set())
    return console._noted


def failing(error, times=10**9):
    """A function that raises so many times, and does nothing from then on."""
    left = [times]

    def fail(*_args, **_options):
        left[0] -= 1
        if left[0] >= 0:
            raise error

    return fail


def failing_first(monkeypatch, module, name, error, times):
    """Let a function fail so many times before it does its work."""
    real, fail = getattr(module, name), failing(error, times)
    monkeypatch.setattr(module, name, lambda *args, **options: fail() or real(*args, **options))


# ---- pictures ----


@pytest.mark.parametrize("title", ["a$^$b", "r_\udcff", "$\\frac{", "\x00\x01", "%", "", "日本"])
def test_any_name_is_a_title(title, tmp_path):
    with pytest.warns(UserWarning, match="Glyph") if title in ("日本", "\x00\x01") else contextlib.nullcontext():
        loss_curve(tmp_path / "loss.png", [RECORD, RECORD | {"step": 5}], title)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "error", [ValueError("Key backend: 'x' is no backend"), OSError(28, "No space left"), ImportError(""), KeyError(3)]
)
def test_whatever_drawing_raises_is_one_note(error, corpus, tmp_path, monkeypatch, notes, capsys):
    monkeypatch.setattr("gpt.training.trainer.loss_curve", failing(error))
    run = trainer(corpus, tmp_path / "a")
    assert run.run() is None
    (said,) = notes
    assert said.startswith(f"the loss curve cannot be drawn ({type(error).__name__}: ")
    assert capsys.readouterr().out.count("the loss curve") == 1
    assert checkpoint.load(run_dir.last_checkpoint(tmp_path / "a")).step == 12


@pytest.mark.program
def test_drawing_leaves_another_programs_matplotlib_alone(tmp_path):
    """In a process of its own: the backend, the settings and the figures of whoever uses matplotlib beside a run."""
    script = """
import sys
import matplotlib
matplotlib.use("svg")
import matplotlib.pyplot as plt
plt.rcParams["lines.linewidth"] = 7
figure = plt.figure()
before = dict(matplotlib.rcParams)
from pathlib import Path
from gpt.training.plots import loss_curve
loss_curve(Path(sys.argv[1]), [dict(step=0, train_loss=1.0, val_loss=2.0)], "t")
assert dict(matplotlib.rcParams) == before and matplotlib.get_backend() == "svg" and plt.get_fignums() == [figure.number]
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "p.png"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- file systems ----


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
    monkeypatch.setattr(files, "WAITS", (0.001,) * 4)
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


def test_a_rename_that_is_refused_for_good_is_one_line(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WAITS", (0.001,))
    monkeypatch.setattr(os, "replace", failing(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(CheckpointError, match="cannot be written: Permission denied"):
        trainer(corpus, tmp_path / "a").run()


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
    assert [r["step"] for r in resumed.records] == [12, 16]
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
    for name in (run_dir.METRICS, run_dir.PICTURE):
        (tmp_path / "a" / name).unlink()
        os.mkfifo(tmp_path / "a" / name)
    resumed = trainer(corpus, tmp_path / "a", {"max_iters": 16}, resume=True)
    assert resumed.run() is None
    assert [r["step"] for r in run_dir.read_metrics(tmp_path / "a", 99)] == [12, 16]
    assert (tmp_path / "a" / run_dir.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_a_best_checkpoint_that_is_gone_is_replaced_by_the_next(corpus, tmp_path, notes):
    trainer(corpus, tmp_path / "a").run()
    run_dir.best_checkpoint(tmp_path / "a").unlink()
    resumed = trainer(corpus, tmp_path / "a", {"max_iters": 16, "learning_rate": 1e-12}, resume=True)
    assert resumed.run() is None
    assert checkpoint.load(run_dir.best_checkpoint(tmp_path / "a")).step == 16
    assert any("is missing" in said for said in notes)


def test_no_home_folder(monkeypatch, tmp_path):
    for name in ("TENSORLITE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", failing(RuntimeError("Could not determine home directory.")))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    where = cache_folder()
    assert tmp_path in where.parents
    write_whole(where / "x", b"1")
    assert cache_folder() == where
    if os.name == "posix":
        assert where.stat().st_mode & 0o077 == 0  # nobody else may put anything there
    monkeypatch.setattr("tempfile.gettempdir", failing(FileNotFoundError("No usable temporary directory found")))
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.ENOTDIR))):  # which every caller passes over
        write_whole(cache_folder() / "x", b"1")


# ---- signals ----


def test_an_evaluation_that_is_interrupted_is_done_again(corpus, tmp_path, monkeypatch):
    """The resumed run equals a straight one, bit for bit, its log included."""
    straight = trainer(corpus, tmp_path / "a")
    straight.run()
    for at in (0, 8):
        run = trainer(corpus, tmp_path / f"b{at}")
        real = evaluate.split_loss

        def interrupted(workers, *args, real=real, run=run, at=at):
            if run.state.step == at:
                os.kill(os.getpid(), signal.SIGINT)
            return real(workers, *args)

        monkeypatch.setattr("gpt.training.trainer.split_loss", interrupted)
        assert run.run() == signal.SIGINT
        assert [r["step"] for r in run.records] == list(range(0, at, 4))
        monkeypatch.setattr("gpt.training.trainer.split_loss", real)
        resumed = trainer(corpus, tmp_path / f"b{at}", resume=True)
        assert resumed.run() is None
        assert without_time(resumed.records) == without_time(straight.records)
        np.testing.assert_array_equal(resumed.state.params, straight.state.params)


def test_a_long_evaluation_answers_a_signal_soon(corpus, tmp_path, monkeypatch):
    """Each of its pieces may take a moment; those that have not begun are left."""
    run = trainer(corpus, tmp_path / "a")
    forward, seen = run.model.forward, []

    def slow(*args, **options):
        seen.append(1)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(*args, **options)

    monkeypatch.setattr(run.model, "forward", slow)
    assert run.run() == signal.SIGINT
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_second_signal_acts_at_once_and_ignored_hangups_stay_ignored(name):
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip(f"this system has no {name}")
    before = signal.getsignal(number)
    for handler in (signal.SIG_DFL, signal.SIG_IGN, before):
        signal.signal(number, handler)
        try:
            with interrupts.noted() as caught:
                if name == "SIGHUP" and handler == signal.SIG_IGN:
                    os.kill(os.getpid(), number)
                    assert caught == []
                    continue
                os.kill(os.getpid(), number)
                assert caught == [number]
                assert signal.getsignal(number) not in (signal.SIG_IGN, None)
            assert signal.getsignal(number) == handler
        finally:
            signal.signal(number, before)


def test_in_a_thread_signals_stay_the_main_threads():
    found = []

    def inside():
        with interrupts.noted() as caught:
            found.append(caught)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [[]]


# ---- advice ----


@pytest.mark.program
@pytest.mark.parametrize("name", ["plain", "with space", "it's", "$HOME", "a;b", "-dash", "\udcff", "tab\t", "日本", "\\x41"])
def test_a_command_to_paste_names_any_folder(name):
    """As bash reads it: the very bytes come out again."""
    word = shell_word(name)
    try:
        done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no bash on this machine")
    assert done.stdout == os.fsencode(name)


def test_the_command_that_resumes(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--batch-size", "3"])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-u", "train.py", "--batch-size", "3"])
    assert resume_command(Path("a b"), ["--data", "t"]) == "python3 -u train.py --resume --out 'a b' --data t"
    assert resume_command(Path("r"), [], ranks=4) == "mpiexec -n 4 python3 -u train.py --resume --out r"
    monkeypatch.setattr(sys, "platform", "win32")
    assert resume_command(Path("a b"), []) == 'python3 -u train.py --resume --out "a b"'
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "something"])
    assert resume_command(Path("r"), []) == "python train.py --resume --out r"
