"""The two command lines as a user types them, each in a process of its own."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from gpt.training import checkpoint
from paths import ROOT

pytestmark = pytest.mark.program
SHELL = ["cmd", "/c"] if os.name == "nt" else ["sh", "-c"]

WARNINGS = "error,ignore::DeprecationWarning:matplotlib._fontconfig_pattern,ignore::DeprecationWarning:matplotlib._mathtext"
TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n" * 30
SIZE = ["--preset", "layernorm", "--n-layer", "2", "--n-embd", "8", "--n-head", "2", "--batch-size", "4"]
TINY = [*SIZE, "--max-iters", "20", "--eval-interval", "10", "--eval-batches", "2"]


def run(command, cwd, check=True):
    """Run a command; it must end without a traceback whatever happens."""
    script, *rest = command
    command = [sys.executable, str(ROOT / script), *map(str, rest)]
    environment = {**os.environ, "PYTHONWARNINGS": WARNINGS, "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text.txt").write_text(TEXT, newline="\n")
    odd = {
        "nul.txt": b"abc\0def",
        "latin.txt": "sch\u00f6n ".encode("latin-1") * 9,
        "empty.txt": b"",
        "another.txt": TEXT[::-1].encode(),
        "damaged.safetensors": b"\xff" * 99,
    }
    for name, content in odd.items():
        (folder / name).write_bytes(content)
    done = run(["train.py", *TINY, "--data", "text.txt", "--out", "run"], folder)
    return folder, done.stdout


def test_a_run_says_what_the_user_wants_to_know(trained):
    folder, out = trained
    lines = out.splitlines()
    heads = [line.split()[0] for line in lines[:6]]
    assert heads == ["device", "backend", "model", "text", "memory", "time"]
    assert "parameters" in lines[2]
    assert [line.split(":")[0] for line in lines if line.startswith("step ")] == ["step 0", "step 10", "step 20"]
    assert "train loss" in out
    assert lines[-1].startswith("done: step 20 | train ")
    assert {"metrics.jsonl", "loss.png", "best.safetensors", "last.safetensors"} <= set(os.listdir(folder / "run"))
    assert len((folder / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_both_spellings_of_a_flag(trained):
    folder, _ = trained
    for flag in ("--max-iters", "--max_iters"):
        out = run(["train.py", *TINY, flag, "5", "--data", "text.txt", "--out", f"run{flag}"], folder).stdout
        assert "done: step 5 |" in out


def test_resume_goes_on(trained):
    folder, _ = trained
    arguments = [*TINY, "--data", "text.txt", "--out", "again"]
    run(["train.py", *arguments], folder)
    out = run(["train.py", "--data", "text.txt", "--out", "again", "--resume", "--max-iters", "30"], folder).stdout
    assert "step 30:" in out
    assert "step 10:" not in out
    steps = [json.loads(line)["step"] for line in (folder / "again" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 10, 20, 30]
    done = run(["train.py", "--data", "text.txt", "--out", "again", "--resume", "--n-embd", "16"], folder, check=False)
    assert done.returncode == 2
    assert "error: n_embd is 8 in the checkpoint" in done.stderr


def test_an_earlier_run_is_not_overwritten(trained):
    folder, _ = trained
    arguments = [*TINY, "--max-iters", "3", "--data", "text.txt", "--out", "twice"]
    run(["train.py", *arguments], folder)
    first = (folder / "twice" / "best.safetensors").read_bytes()
    assert "earlier-1" in run(["train.py", *arguments], folder).stdout
    assert (folder / "twice" / "earlier-1" / "best.safetensors").read_bytes() == first


def test_fine_tuning(trained):
    folder, _ = trained
    (folder / "other.txt").write_text(TEXT.upper())
    command = ["train.py", "--init-from", "run", "--data", "other.txt", "--out", "tuned", "--max-iters", "5"]
    done = run(command, folder, check=False)
    assert done.returncode == 2
    assert "characters that the vocabulary lacks" in done.stderr
    assert "'E' x" in done.stderr
    assert "--drop-unknown" in done.stderr
    out = run([*command, "--drop-unknown"], folder).stdout
    assert "dropped" in out
    assert "done: step 5" in out
    resumed = run(["train.py", "--resume", "--data", "other.txt", "--out", "tuned", "--max-iters", "6"], folder).stdout
    assert "dropped" in resumed
    assert "done: step 6" in resumed


def test_a_reader_that_goes_away_does_not_look_like_success(trained):
    folder, _ = trained
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "--data", "text.txt", "--out", "piped"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) not in (0, 1)
    assert "Traceback" not in stderr


def test_nearly_everything_may_be_dropped(trained):
    folder, _ = trained
    run(["train.py", *TINY, "--dropout", "0.999999", "--data", "text.txt", "--out", "dropped"], folder)


def test_sampling(trained):
    folder, _ = trained
    command = ["sample.py", "--checkpoint", "run", "--max-new-tokens", "40"]
    one, two, other = (run([*command, "--seed", s], folder).stdout for s in ("1", "1", "2"))
    assert one == two != other
    assert len(one) == 41
    out = run([*command, "--prompt", "Speak", "--num-samples", "2", "--temperature", "0"], folder).stdout
    assert out.count("Speak") >= 2
    assert "--- sample 2 of 2 ---" in out
    (folder / "prompt.txt").write_text("All:\n" * 20)
    assert run([*command, "--prompt-file", "prompt.txt", "--top-k", "3", "--top-p", "0.9"], folder).stdout.startswith(
        "All:\nAll:\n"
    )
    named = run(["sample.py", "--checkpoint", "run/last.safetensors", "--max-new-tokens", "5"], folder).stdout
    assert len(named) == 6


def test_the_newest_run_is_the_default(trained):
    folder, _ = trained
    done = run(["sample.py"], folder, check=False)
    assert (done.returncode, "python -m gpt.train" in done.stderr) == (2, True)
    (folder / "runs").mkdir()
    (folder / "run").rename(folder / "runs" / "mine")
    try:
        assert len(run(["sample.py", "--max_new_tokens", "5"], folder).stdout) == 6
    finally:
        (folder / "runs" / "mine").rename(folder / "run")
        (folder / "runs").rmdir()


USER_ERRORS = {
    "train.py --data none.txt": "none.txt: no such file",
    "train.py --data text.txt --block-size 5000": "lower --block-size",
    "train.py --data text.txt --n-embd 10 --n-head 3": "n_embd must be divisible by n_head 3",
    "train.py --data text.txt --dropout 1.0": "dropout must be in",
    "train.py --data text.txt --seed -1": "seed must be in",
    "train.py --data text.txt --preset multihead --n-layer 6": "n_layer must be 1",
    "train.py --data text.txt --n-embd 2000000": "lower --n-embd",
    "train.py --data text.txt --resume --out run --seed 7": "seed is 1337 in the checkpoint",
    "train.py --data text.txt --resume --out run --preset residual": "model is gpt in the checkpoint",
    "train.py --data text.txt --resume --out run --preset laptop": "in the checkpoint and cannot become",
    "train.py --data text.txt --resume --out run --max-iters 5": "max_iters 5 is behind the checkpoint",
    "train.py --resume --out run --data another.txt": "another text",
    "train.py --data text.txt --learning-rate nan": "learning_rate",
    "train.py --data text.txt --batch-size 0": "batch_size",
    "train.py --data text.txt --batch-size 100000000": "lower --batch-size",
    "train.py --data text.txt --device cuda": "no CUDA",
    "train.py --data text.txt --device cpu --precision bf16": "precision bf16 needs the fast backend on a CUDA device",
    "train.py --data text.txt --dry-run --gpu Voodoo2": "gpu 'Voodoo2' is not known; --gpu takes one of A100",
    "train.py --data": "data needs a file, or - for standard input",
    "train.py --data text.txt --val-data none.txt": "none.txt: no such file",
    "train.py --data - --val-data -": "standard input can be read only once",
    "train.py --data nul.txt": "nul.txt has 1 NUL characters, the first at byte 3",
    "train.py --data latin.txt": "iconv -f WINDOWS-1252 -t UTF-8 latin.txt",
    "train.py --data empty.txt": "empty.txt is empty",
    "train.py --data text.txt --val-chars -1": "val_chars must be a whole number of at least 0",
    "train.py --data text.txt --beta2 1": "beta2 must be in [0, 1)",
    "train.py --data text.txt --grad-clip inf": "grad_clip must be 0 or more",
    "train.py --data text.txt --min-lr 1": "min_lr must not exceed learning_rate",
    "train.py --data text.txt --eval-interval 0": "eval_interval must be a whole number",
    "train.py --data text.txt --tied True --preset bigram": "tied must be False",
    "train.py --data text.txt --init-std -1": "init_std must be 0 or more",
    "train.py --data text.txt --init-from run --n-layer 3": "n_layer is 2 in the checkpoint",
    "train.py --data text.txt --shards 13 --batch-size 12": "shards must not exceed batch_size 12",
    "train.py --data text.txt --shards 0": "shards must be a whole number",
    "train.py --data text.txt --threads 0": "threads",
    "train.py --data text.txt --out text.txt": "text.txt",
    "train.py --data text.txt --eval-batches 99999999999999999999": "eval_batches must not exceed",
    "train.py --data text.txt --n-layer 99999999999": "n_layer must not exceed 10,000",
    f"train.py --data {'a' * 300}": "cannot be read: ",
    f"train.py --resume --data text.txt --out {'a' * 300}": "cannot be read: ",
    f"sample.py --checkpoint {'a' * 300}": "cannot be read: ",
    "train.py --resume --out nowhere": "no checkpoint at nowhere",
    "train.py --resume --init-from run": "exclude",
    "train.py --init-from text.txt": "text.txt",
    "train.py --drop-unknown": "drop-unknown",
    "sample.py --checkpoint missing": "no checkpoint at missing",
    "sample.py --checkpoint text.txt": "text.txt cannot be read",
    "sample.py --checkpoint damaged.safetensors": "damaged.safetensors cannot be read",
    "sample.py --checkpoint run --stop Z": "stop 'Z' has 1 characters",
    "sample.py --checkpoint run --prompt Ünß": "'Ü' x1",
    "sample.py --checkpoint run --prompt-file none": "no such file",
    "sample.py --checkpoint run --prompt a --prompt-file b": "exclude",
    "sample.py --checkpoint run --top-p 2": "top_p",
    "sample.py --checkpoint run --temperature -1": "temperature",
    "sample.py --checkpoint run --num-samples 0": "num_samples",
    "sample.py --checkpoint run --max-new-tokens -5": "max_new_tokens",
}


def run_here(command, cwd, monkeypatch, capsys):
    """As `run`, without the second that a process of its own takes to start."""
    script, *rest = command
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", [script, *rest])
    for stream in ("stdout", "stderr"):  # which a command line wraps
        monkeypatch.setattr(sys, stream, getattr(sys, stream))
    try:
        status = importlib.import_module(script.removesuffix(".py")).main()
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr().err


@pytest.mark.parametrize("own_process", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("command", USER_ERRORS, ids=lambda command: command[:80])
def test_a_mistake_is_one_clear_line(trained, command, own_process, monkeypatch, capsys):
    folder, _ = trained
    if "--device cuda" in command and shutil.which("nvidia-smi"):
        pytest.skip("a GPU may be here, so --device cuda is no mistake")
    words = command.split(" ")
    if own_process:
        done = run(words, folder, check=False)
        status, stderr = done.returncode, done.stderr
    else:
        status, stderr = run_here(words, folder, monkeypatch, capsys)
    assert status == 2
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    assert USER_ERRORS[command] in line
    assert not (folder / "runs").exists() or not (folder / "runs" / "laptop").exists()  # refused before any work


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_help(script, tmp_path):
    out = run([script, "--help"], tmp_path).stdout
    assert "--seed INT" in out
    assert "--device" in out
    assert run([script, "--nonsense"], tmp_path, check=False).returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to another process")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_and_the_advice_can_be_pasted(trained, name):
    """In a folder whose name a shell would take apart; and what the run was told is still in force."""
    folder, _ = trained
    out, number = f"it's a 'stopped' run $HOME {name}", getattr(signal, name, None)
    if number is None:
        pytest.skip(f"this system has no {name}")
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, as under nohup, and so it is in every program that a test starts")
    process = start_long_run(folder, out, "--seed", "7", "--threads", "1")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr
    step = int(stdout.split("stopped at step ")[1].split(";")[0])
    advice = stdout.splitlines()[-1].split("go on with: ")[1]
    done = subprocess.run([*SHELL, f"{advice} --max-iters {step + 1}"], cwd=folder, capture_output=True, text=True, check=False)
    assert f"done: step {step + 1} |" in done.stdout, done.stderr
    assert "--data text.txt" in advice
    assert "--threads 1" in advice
    assert checkpoint.load(folder / out / "last.safetensors").seed == 7


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to another process")
def test_the_programs_are_modules_too(tmp_path):
    """From an empty folder: both have a --help, and what an interrupted run says to go on with names the module."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": True}
    for module in ("gpt.train", "gpt.sample"):
        assert "--seed INT" in subprocess.run([sys.executable, "-m", module, "--help"], **started).stdout
    (tmp_path / "text.txt").write_text(TEXT)
    process = start_long_run(tmp_path, "run", program=("-m", "gpt.train"), env=environment)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, stderr
    step = int(stdout.split("stopped at step ")[1].split(";")[0])
    advice = stdout.splitlines()[-1].split("go on with: ")[1]
    assert " -m gpt.train --resume --out run " in advice
    assert f"done: step {step + 1} |" in subprocess.run([*SHELL, f"{advice} --max-iters {step + 1}"], **started).stdout
    sample = [sys.executable, "-m", "gpt.sample", "--checkpoint", "run", "--max-new-tokens", "5"]
    assert len(subprocess.run(sample, **started).stdout) == 6


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_what_is_not_installed_is_named(script, tmp_path):
    """-S leaves Python without the installed packages."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-S", ROOT / script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: No module named '\w+'; install what {script} needs: python -m pip install -e \.\n", done.stderr)


def start_long_run(folder, out, *flags, before=(), program=(str(ROOT / "train.py"),), env=None):
    """A run of 100,000 steps, which has begun and has a checkpoint."""
    command = [*before, sys.executable, *program, *TINY, "--max-iters", "100000", "--data", "text.txt", "--out", out, *flags]
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while not (folder / out / "last.safetensors").exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    return process


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_nohup_is_respected(trained):
    """A terminal that closes does not end a run that was started to outlive it."""
    folder, _ = trained
    process = start_long_run(folder, "nohup", before=["sh", "-c", 'trap "" HUP; exec "$@"', "sh"])
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


def test_resume_finds_the_newest_run(trained):
    folder, _ = trained
    here = folder / "elsewhere"
    here.mkdir()
    arguments = [*TINY, "--max-iters", "3", "--data", "../text.txt"]
    run(["train.py", *arguments, "--out", "runs/old"], here)
    run(["train.py", *arguments, "--out", "runs/new"], here)
    out = run(["train.py", "--resume", "--data", "../text.txt", "--max-iters", "4"], here).stdout
    assert "resuming the newest run, runs/new" in out.replace(os.sep, "/")
    assert "done: step 4 |" in out
