"""The commands that a run prints can be pasted into a shell."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt.advice import resume_command, shell_word


@pytest.mark.program
@pytest.mark.skipif(os.name == "nt", reason="the advice is for cmd there")
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
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "argv", ["train.py", "--batch-size", "3"])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-u", "train.py", "--batch-size", "3"])
    assert resume_command(Path("a b"), ["--data", "t"]) == "python3 -u train.py --resume --out 'a b' --data t"
    assert resume_command(Path("r"), [], ranks=2) == "mpiexec -n 2 python3 -u train.py --resume --out r"
    assert resume_command(Path("r"), [], ranks=4) == "mpiexec -n 4 python3 -u train.py --resume --out r"
    monkeypatch.setattr(sys, "platform", "win32")
    assert resume_command(Path("a b"), []) == 'python3 -u train.py --resume --out "a b"'
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "something"])
    assert resume_command(Path("r"), []) == "python train.py --resume --out r"


@pytest.mark.parametrize(
    ("words", "module", "command"),
    [
        (["python3", "-O", "-m", "gpt.train", "--preset", "gpt"], "gpt.train", "python3 -O -m gpt.train"),
        (["tensorlite-train", "--preset", "gpt"], "gpt.train", "tensorlite-train"),  # the words do not name the module
        (["tensorlite-train"], None, "tensorlite-train"),
    ],
)
def test_the_command_is_started_as_this_one_was(words, module, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tensorlite-train", *words[-2:]])
    monkeypatch.setattr(sys, "orig_argv", words)
    main = SimpleNamespace(__spec__=module and SimpleNamespace(name=module))
    for main_module in (main, SimpleNamespace()) if module is None else (main,):
        monkeypatch.setitem(sys.modules, "__main__", main_module)
        assert resume_command(Path("r"), []) == f"{command} --resume --out r"


def test_a_name_that_is_not_utf_8_is_quoted_byte_by_byte(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    assert shell_word("a b\udcff'\\\x7f\x1f~é") == r"$'a b\xff\x27\x5c\x7f\x1f~\xc3\xa9'"
    assert shell_word("é ~") == "'é ~'"
