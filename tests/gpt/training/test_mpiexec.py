"""train.py under mpiexec: it prints and writes once, and what goes wrong on one rank ends all."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt.training import checkpoint
from paths import ROOT
from processes import children, ended, running
from small import PANGRAMS

pytestmark = pytest.mark.long

SMALL = ["--preset", "layernorm", "--n-layer", "2", "--n-embd", "8", "--n-head", "2", "--batch-size", "4", "--eval-batches", "2"]
TRAIN = [ROOT / "train.py", *SMALL, "--max-iters", "20", "--eval-interval", "10", "--out", "run"]


def test_train_on_two_ranks_prints_and_writes_once_and_resumes(mpiexec, tmp_path):
    (tmp_path / "text.txt").write_text(PANGRAMS)
    done = ended(mpiexec(tmp_path, [*TRAIN, "--data", "text.txt"]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 10: train loss") == 1
    assert done.stdout.count("done: step 20") == 1
    assert "over 2 ranks" in done.stdout
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if p.name[0] != ".") == [
        "best.safetensors",
        "last.safetensors",
        "loss.png",
        "metrics.jsonl",
    ]
    done = ended(mpiexec(tmp_path, [*TRAIN, "--data", "text.txt", "--resume", "--max-iters", "30"]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: step 30") == 1


def test_an_error_on_one_rank_ends_all(mpiexec, tmp_path):
    """The second rank has another text's name wrong; the first would wait for it for ever."""
    (tmp_path / "text.txt").write_text(PANGRAMS)
    done = ended(mpiexec(tmp_path, [*TRAIN, "--data", "text.txt"], [*TRAIN, "--data", "missing.txt"]))
    assert done.returncode != 0
    assert "error: missing.txt: no such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_to_one_rank_stops_all_at_the_same_step(mpiexec, tmp_path):
    """What it had is saved, and a resumed run goes on from it."""
    (tmp_path / "text.txt").write_text(PANGRAMS)
    process = mpiexec(tmp_path, [*TRAIN, "--data", "text.txt", "--max-iters", "100000"])
    deadline = time.time() + 60
    while not (tmp_path / "run" / "last.safetensors").exists() and time.time() < deadline:
        time.sleep(0.05)
    os.kill(int((tmp_path / "run" / ".lock").read_text()), signal.SIGINT)  # the first rank's number
    done = ended(process)
    assert done.returncode != 0
    assert "go on with: mpiexec -n 2 " in done.stdout
    assert "Traceback" not in done.stderr
    stopped = checkpoint.load(tmp_path / "run" / "last.safetensors").step
    assert f"stopped at step {stopped}" in done.stdout
    process = mpiexec(tmp_path, [*TRAIN, "--data", "text.txt", "--resume", "--max-iters", str(stopped + 5)])
    assert f"done: step {stopped + 5}" in ended(process).stdout


def test_a_mistake_that_all_ranks_make_is_said_once(mpiexec, tmp_path):
    done = ended(mpiexec(tmp_path, [*TRAIN, "--data", "missing.txt"]))
    assert done.returncode != 0
    assert done.stderr.count("error: missing.txt: no such file") == 1


OTHERS = {
    "rank 1 has the text": ["--data", "b.txt"],
    "rank 1 has seed 5, rank 0 1337": ["--seed", "5"],
    "rank 1 has max_iters 21, rank 0 20": ["--max-iters", "21"],
    "rank 1 has n_embd 16, rank 0 8": ["--n-embd", "16"],
    "rank 1 has backend reference": ["--backend", "reference"],
    "rank 1 has --profile True, rank 0 False": ["--profile"],
    "rank 1 cannot read its command line": ["--nonsense"],
}


DEFAULT = ("rank 1 has the text", "rank 1 cannot read its command line")


@pytest.mark.parametrize("words", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.long) for name in OTHERS])
def test_ranks_that_differ_say_in_what_before_the_first_step(words, mpiexec, tmp_path):
    """All ranks end, and nothing has been written."""
    for name, text in (("a", PANGRAMS), ("b", PANGRAMS.upper())):
        (tmp_path / f"{name}.txt").write_text(text)
    done = ended(mpiexec(tmp_path, [*TRAIN, "--data", "a.txt"], [*TRAIN, "--data", "a.txt", *OTHERS[words]]))
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_text_that_can_be_read_only_once_is_refused(mpiexec, tmp_path):
    """Each rank would read a part of it, or wait for ever."""
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    for data in ("-", "pipe") if hasattr(os, "mkfifo") else ("-",):
        done = ended(mpiexec(tmp_path, [*TRAIN, "--data", data]))
        assert done.returncode != 0
        assert f"error: data {data} can be read only once" in done.stderr


@pytest.mark.long
def test_ranks_with_different_checkpoints_say_so(mpiexec, tmp_path):
    """Two folders of the same name, as on two machines: one is a run, the other its copy of some steps before."""
    for name, steps in (("a", "20"), ("b", "10")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(PANGRAMS)
        alone = [sys.executable, *map(str, TRAIN), "--data", "text.txt", "--max-iters", steps, "--shards", "2"]
        subprocess.run(alone, cwd=tmp_path / name, check=True, capture_output=True)
    command = "import os, sys; os.chdir(sys.argv[1]); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    resume = [TRAIN[0], "--resume", "--data", "text.txt", "--out", "run", "--max-iters", "30"]
    done = ended(mpiexec(tmp_path, *(["-c", command, name, *resume] for name in ("a", "b"))))
    assert done.returncode != 0
    assert "rank 1 has the checkpoint" in done.stderr
    assert "at step 10, rank 0" in done.stderr


@pytest.mark.long
def test_only_the_first_rank_needs_the_log(mpiexec, tmp_path):
    """As on two machines without a common disk: the second one has the checkpoint, and no metrics.jsonl."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(PANGRAMS)
    alone = [sys.executable, *map(str, TRAIN), "--data", "text.txt", "--shards", "2"]
    subprocess.run(alone, cwd=tmp_path / "a", check=True, capture_output=True)
    (tmp_path / "b" / "run").mkdir()
    shutil.copy(tmp_path / "a" / "run" / "last.safetensors", tmp_path / "b" / "run")
    command = "import os, sys; os.chdir(sys.argv[1]); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    resume = [TRAIN[0], "--resume", "--data", "text.txt", "--out", "run", "--max-iters", "30"]
    done = ended(mpiexec(tmp_path, *(["-c", command, name, *resume] for name in ("a", "b"))))
    assert done.returncode == 0, done.stderr
    assert "done: step 30" in done.stdout


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not list a process's children")
@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.long)])
def test_a_rank_that_waits_for_one_that_hangs_is_ended_by_signals(name, mpiexec, tmp_path):
    """Rank 1 is stopped in its tracks; rank 0, which waits for it, notes the first signal and obeys the second."""
    (tmp_path / "text.txt").write_text(PANGRAMS)
    started = time.time()
    process = mpiexec(tmp_path, [*TRAIN, "--data", "text.txt", "--max-iters", "1000000"])
    while not (tmp_path / "run" / "last.safetensors").exists() and time.time() < started + 60:
        time.sleep(0.05)
    first = int((tmp_path / "run" / ".lock").read_text())
    (other,) = [pid for pid in children(process.pid) if pid != first]
    os.kill(other, signal.SIGSTOP)
    try:
        for _ in range(2):
            time.sleep(0.5)
            os.kill(first, getattr(signal, name))
        deadline = time.time() + 10
        while running(first) and time.time() < deadline:
            time.sleep(0.05)
        assert not running(first)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(other, signal.SIGKILL)
        ended(process)
