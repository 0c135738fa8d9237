"""Consoles of every kind: for any standard output and error, the run completes and its exit status is right."""

import errno
import io
import json
import os
import subprocess
import sys

import pytest

from gpt import console
from paths import ROOT

program = pytest.mark.program
TINY = ["--preset", "bigram", "--max-iters", "20", "--eval-interval", "10", "--eval-batches", "2", "--batch-size", "4"]
TINY += ["--device", "cpu", "--data", "text.txt"]
POSIX = pytest.mark.skipif(os.name != "posix", reason="the redirections are a POSIX shell's")
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("console")
    (folder / "text.txt").write_text("Ünï \u201cquoted\u201d \U0001f600 and the quick brown fox\n" * 30, encoding="utf-8")
    subprocess.run([sys.executable, ROOT / "train.py", *TINY, "--out", "made"], cwd=folder, check=True, capture_output=True)
    return folder


def shell(here, redirections, *words, **environment):
    """Run a command line under a shell's redirections. It must not print a traceback."""
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    line = 'exec "$@" ' + redirections
    done = subprocess.run(
        ["sh", "-c", line, "sh", *command], cwd=here, capture_output=True, env={**os.environ, **environment}, check=False
    )
    assert b"Traceback" not in done.stdout + done.stderr, done.stderr.decode()
    return done


def train(here, redirections="", out="run", **environment):
    done = shell(here, redirections, "train.py", *TINY, "--out", out, **environment)
    assert len((here / out / "metrics.jsonl").read_text().splitlines()) == 3  # the run went to its end
    return done


@program
@POSIX
@pytest.mark.parametrize(
    "encoding",
    ["cp1252", *(pytest.param(name, marks=pytest.mark.long) for name in ("ascii", "latin-1", "cp437", "utf-16", "koi8-r"))],
)
def test_any_encoding(here, encoding):
    """Characters that the console's encoding has are printed, and the others are escaped."""
    done = train(here, PYTHONIOENCODING=encoding)
    assert done.returncode == 0
    assert "done: step 20 |" in done.stdout.decode(encoding)
    prompt = "Ünï \u201c\U0001f600"
    done = shell(here, "", "sample.py", "--checkpoint", "made", "--prompt", prompt, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0
    assert done.stdout.decode(encoding).startswith(prompt.encode(encoding, "backslashreplace").decode(encoding))


@program
@POSIX
@pytest.mark.parametrize(
    "closed", ["<&- 2>&-", pytest.param("2>&-", marks=pytest.mark.long), pytest.param("<&-", marks=pytest.mark.long)]
)
def test_a_closed_console_costs_nothing(here, closed):
    done = train(here, closed)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith(b"done: step 20 |")


@program
@POSIX
@pytest.mark.parametrize("closed", ["<&- >&-", pytest.param(">&-", marks=pytest.mark.long)])
def test_what_a_closed_standard_output_loses_goes_to_standard_error(here, closed):
    done = train(here, closed)
    assert done.returncode == 0
    assert b"done: step 20 |" in done.stderr


@program
@POSIX
def test_nothing_is_printed_into_a_file_of_the_run(here):
    """If the standard descriptors are closed, the next files would get them."""
    assert train(here, "<&- >&- 2>&-", out="closed").returncode == 0
    assert (here / "closed" / "best.safetensors").read_bytes()[8:9] == b"{"
    assert [json.loads(line)["step"] for line in (here / "closed" / "metrics.jsonl").read_text().splitlines()] == [0, 10, 20]


@program
@POSIX
@needs_full
def test_a_full_standard_output_is_said_and_shows_in_the_status(here):
    done = train(here, "> /dev/full")
    assert done.returncode == 1
    *_, last, why = done.stderr.decode().splitlines()
    assert last.startswith("done: step 20 |")
    assert why.startswith("error: standard output cannot be written: No space left")
    assert shell(here, "> /dev/full", "sample.py", "--checkpoint", "made").returncode == 1


@program
@POSIX
@needs_full
def test_a_full_standard_error_costs_nothing(here):
    done = train(here, "2> /dev/full")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith(b"done: step 20 |")


@pytest.mark.long
@program
@POSIX
@needs_full
def test_with_both_full_the_status_is_all_there_is(here):
    assert train(here, "> /dev/full 2> /dev/full").returncode == 1
    assert shell(here, "2> /dev/full", "train.py", *TINY, "--data", "none.txt").returncode == 2


@pytest.mark.parametrize(
    ("system", "number", "expected"),
    [("posix", errno.EPIPE, True), ("posix", errno.EINVAL, False), ("nt", errno.EINVAL, True), ("nt", errno.ENOSPC, False)],
)
def test_a_reader_that_has_gone_is_another_error_on_windows(system, number, expected, monkeypatch):
    outlet = console.Outlet(None)
    outlet.error = OSError(number, "a write failed")
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", system)
        patch.setattr(sys, "stdout", outlet)
        gone = console.reader_gone()
    assert gone == expected


@program
def test_a_reader_that_has_gone_stops_a_run_which_saves(here):
    """As Ctrl-C would: the step is finished, the work saved, and the status is that of a broken pipe."""
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "--max-iters", "1000000", "--out", "piped"]
    process = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    try:
        stderr = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()
    assert process.returncode == console.READER_GONE, stderr
    assert "Traceback" not in stderr
    assert "stopped at step" in stderr
    assert "go on with: " in stderr
    assert (here / "piped" / "last.safetensors").exists()


def test_a_bug_of_ours_is_one_line():
    def broken():
        return {}["missing"]

    try:
        broken()
    except KeyError as error:
        line, status = console.explain(error, "")
    assert status == 1
    assert line.startswith("error: this is a bug in tensorlite: KeyError: 'missing' (at test_console.py:")
    assert "\n" not in line


def test_a_system_without_threads_is_one_line():
    assert console.explain(RuntimeError("can't start new thread"), "")[0].endswith("lower --threads")
    assert console.explain(MemoryError("3 GiB"), "out of memory ({}); lower it") == ("error: out of memory (3 GiB); lower it", 2)


def test_a_write_that_fails_is_remembered_and_the_next_is_tried():
    class Full(io.StringIO):
        full = True

        def write(self, text):
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream = Full()
    outlet = console.Outlet(stream)
    print("lost", file=outlet)
    stream.full = False
    print("found", file=outlet)
    assert (outlet.error.errno, stream.getvalue(), outlet.last_line) == (28, "found\n", "found")
