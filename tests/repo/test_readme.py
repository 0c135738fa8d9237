"""The README and docs/training.md: their code runs, their flags exist, their line counts and commands are right."""

import re
import subprocess
import sys

import pytest

from paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.program
def test_python_blocks_run():
    texts = [README, (ROOT / "docs" / "gradients.md").read_text(encoding="utf-8")]
    for block in [re.search(r"```python\n(.*?)```", text, re.DOTALL)[1] for text in texts]:
        done = subprocess.run([sys.executable, "-W", "error", "-c", block], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("gradcheck: pass")


def test_line_counts_are_near():
    rows = re.findall(r"^\| \[(\S+\.(?:py|cu))\]\(\S+\) \| (\d+) \|", README, re.MULTILINE)
    assert len(rows) > 10
    for name, said in rows:
        lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        assert abs(lines - int(said)) <= 0.1 * lines, f"{name} has {lines} lines"


@pytest.mark.program
def test_flags_exist():
    help_text = ""
    for script in ("train.py", "sample.py"):
        help_text += subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True).stdout
    flags = set(re.findall(r"(?<![-\w])--[a-z][a-z-]*", README + TRAINING))
    assert len(flags) > 20
    for flag in flags:
        assert flag in help_text, flag


def test_ci_runs_the_readmes_own_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for name in ("one", "two"):
        assert f"readme {name}" in script
        assert README.count(f"<!-- command {name} -->") == 1
    assert "make check-all" in script
