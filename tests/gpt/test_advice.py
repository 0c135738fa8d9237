"""The commands that a run prints can be pasted into a shell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt.advice import resume_command, shell_word


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
