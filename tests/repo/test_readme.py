"""The README and docs/training.md: their code runs, and their tables agree with the code.

Their flags exist, and their line counts and commands are right.
"""

import re
import subprocess
import sys

import pytest

from gpt.config import PRESETS
from gpt.models import MODELS
from gpt.params import ParamTable
from paths import ROOT
from tensorlite.testing.report import GradcheckError

README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
GRADIENTS = (ROOT / "docs" / "gradients.md").read_text(encoding="utf-8")


def fenced(text, language):
    """Return the code blocks of a page that are in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def checked_layer(text):
    """Return the code block of a page that calls gradcheck."""
    return next(block for block in fenced(text, "python") if "gradcheck(" in block)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.program
@pytest.mark.parametrize("page", [README, GRADIENTS], ids=["README", "gradients"])
def test_python_blocks_run(page):
    done = subprocess.run([sys.executable, "-W", "error", "-c", checked_layer(page)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gradcheck: pass")


def test_the_quoted_softmax_is_the_code():
    quote = next(block for block in fenced(README, "python") if "softmax_forward" in block)
    source = (ROOT / "tensorlite" / "reference" / "softmax.py").read_text(encoding="utf-8")
    pieces = [piece for piece in re.split(r" +\.\.\.\n|\n\n", quote) if piece.strip()]
    assert len(pieces) == 5
    positions = [source.find(piece) for piece in pieces]
    assert -1 not in positions
    assert positions == sorted(positions)


def values_and_words(report):
    """Split a report into its numbers and its words. What is only rounding noise is left out, as it depends on the machine."""
    report = re.sub(r"largest error \d\S*e-\d+ x|\+- \S+,", "", report)
    number = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"
    return [float(value) for value in re.findall(number, report)], re.sub(number, "", report)


def test_the_printed_report_is_that_of_the_wrong_layer():
    wrong = checked_layer(README).replace(".sum(", ".mean(")
    with pytest.raises(GradcheckError) as error:
        exec(wrong, {})
    printed = next(block for block in fenced(README, "text") if block.startswith("gradcheck: fail"))
    values, words = values_and_words(printed.strip())
    expected_values, expected_words = values_and_words(str(error.value))
    assert words == expected_words
    assert len(values) > 10
    assert values == pytest.approx(expected_values, rel=1e-7)


def preset_row(name):
    """Return the row that the table of presets in docs/training.md should have."""
    model, train = PRESETS[name].model, PRESETS[name].train
    n_params = ParamTable(MODELS[model.model].init(model)).n_params
    cells = [
        f"`{name}`",
        "-" if name == "bigram" else model.n_layer,
        "-" if name == "bigram" else model.n_head,
        "-" if name == "bigram" else model.n_embd,
        model.block_size,
        train.batch_size,
        model.dropout or 0,
        train.max_iters,
        f"{n_params:,}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_of_presets_is_that_of_the_configuration(name):
    assert TRAINING.count(preset_row(name)) == 1, preset_row(name)


def test_the_table_of_presets_has_all_of_them():
    assert re.findall(r"^\| `(\w+)` \|", TRAINING, re.MULTILINE) == list(PRESETS)


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
