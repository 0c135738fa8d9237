"""The exercises in writing a backward: each hole solved, left open, and filled with a known mistake."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT
from tensorlite.op_info import OP_INFO
from tensorlite.testing.bugs import BUGS, CHAPTERS, true_pair
from tensorlite.testing.exercises import attempt, inputs, judge, sources
from tensorlite.testing.exercises.command import main
from tensorlite.testing.exercises.compare import gradient_names
from tensorlite.testing.exercises.words import WORDS
from tensorlite.testing.exercises.write import exercise

HOLE = re.compile(r"    raise NotImplementedError\(.*\)")
MISTAKES = {  # of each op, one whose shapes fit
    "linear": "db averaged over rows",
    "embedding": "a repeated token keeps its last row only",
    "position_embedding": "the first sequence only",
    "softmax": "the sum forgotten",
    "cross_entropy": "1/N missing",
    "layernorm": "the path through the mean forgotten",
    "dropout": "the inv_keep forgotten",
    "residual": "dropout skipped on the branch",
    "gelu": "half of the product rule",
    "relu": "multiplied by the output",
    "attention": "the scale missing from dk",
}
every_op = pytest.mark.parametrize("op", CHAPTERS)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bug_named(op, name):
    return next(bug for bug in BUGS if (bug.op, bug.name) == (op, name))


def fill(op, body):
    """Write the file of an op with these lines in place of the hole."""
    text = exercise(op)
    assert len(HOLE.findall(text)) == 1
    attempt_file = f"exercise_{op}.py"
    with open(attempt_file, "w", encoding="utf-8") as file:
        file.write(HOLE.sub(lambda _: body, text))
    return attempt_file


def tried(path, capsys, *flags):
    """Return the exit status of --try and what it prints."""
    status = main(["--try", path, *flags])
    out, err = capsys.readouterr()
    assert not err
    assert "Traceback" not in out
    return status, out


# ---- the three ways ----


@every_op
def test_a_solved_hole_passes(op, capsys):
    path = fill(op, sources.body(true_pair(op).backward))
    status, out = tried(path, capsys)
    assert (status, out.splitlines()[0]) == (0, "gradcheck: pass")
    assert out.endswith(f"{op}_backward is right.\n")


@every_op
def test_an_open_hole_is_named(op, capsys):
    assert main(["--write", op]) == 0
    path = f"exercise_{op}.py"
    assert path in capsys.readouterr().out
    status, out = tried(path, capsys)
    line = next(i for i, text in enumerate(exercise(op).splitlines(), 1) if HOLE.match(text))
    returned = ", ".join(f"d{name}" for name in OP_INFO[op].inputs)
    open_hole = f"{path}:{line}: the hole in {op}_backward is still open: write me: return {returned}"
    assert (status, out) == (1, f"{open_hole}\nMore: --hint 2\n")


@every_op
def test_a_hole_filled_with_a_mistake_names_the_gradient(op, capsys):
    bug = bug_named(op, MISTAKES[op])
    status, out = tried(fill(op, sources.body(bug.backward)), capsys)
    assert status == 1
    assert out.startswith("gradcheck: fail\n")
    failed = re.findall(r"^fail +(\w+) ", out, re.MULTILINE)
    if op == "attention":
        assert failed == ["dqkv"]
        assert "The last axis is [dq | dk | dv]. Wrong: dk.\n" in out
    else:
        assert tuple(failed) == bug.wrong
    assert "ratio" in out
    assert "hint:" not in out


# ---- the file ----


@every_op
def test_the_file_has_the_real_forward_and_gives_nothing_away(op):
    forward, backward = true_pair(op)
    text = exercise(op)
    assert sources.source(forward) in text
    assert sources.signature(backward) in text
    assert "Derivation" not in text
    assert sources.formula(backward) not in text
    assert "the same array" not in text.partition(f"def {op}_backward")[2]
    solution = [line.strip() for line in sources.body(backward).splitlines()]
    given = [line for line in solution if line in text.partition(f"def {op}_backward")[2]]
    assert set(given) <= {sources.cache_line(backward), "return dx, dw, db"}  # the last is what the hole asks for


@every_op
def test_the_axes_of_an_argument_differ(op):
    assert set(vars(inputs)) >= set(CHAPTERS)
    drawn = judge.draw_inputs(op)
    shapes = [value.shape for value in drawn.values() if hasattr(value, "shape")]
    assert all(len(set(shape)) == len(shape) for shape in shapes)


def test_three_right_gradients_that_are_not_packed_are_told_so(capsys):
    body = sources.body(true_pair("attention").backward) + "\n"
    unpacked = re.sub(r"    dqkv = .*", "    return merge_heads(dq), merge_heads(dk), merge_heads(dv)\n", body, flags=re.DOTALL)
    status, out = tried(fill("attention", unpacked), capsys)
    assert status == 1
    assert "dq, dk, dv are right. Return one array: np.concatenate([dq, dk, dv], axis=-1)" in out


def test_what_a_wrong_shape_looks_like_is_a_hint_of_the_second_level(capsys):
    body = sources.body(true_pair("linear").backward).replace("return dx, dw, db", "return dx, dw.T, db")
    path = fill("linear", body)
    assert "transpose" not in tried(path, capsys)[1]
    assert main(["--try", path, "--hint", "2"]) == 1
    assert "dw equals the transpose of the truth" in capsys.readouterr().out


def test_a_file_imports_what_is_beside_it(tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "my_sums.py").write_text("def rows(a):\n    return a.reshape(-1, a.shape[-1])\n")
    path = fill("linear", sources.body(true_pair("linear").backward))
    (tmp_path / "sub" / "mine.py").write_text("from my_sums import rows\n" + Path(path).read_text())
    assert main(["--try", str(tmp_path / "sub" / "mine.py")]) == 0
    assert "linear_backward is right" in capsys.readouterr().out


@pytest.mark.program
def test_an_open_hole_run_alone_is_one_line(tmp_path):
    (tmp_path / "exercise_linear.py").write_text(exercise("linear"))
    command = [sys.executable, "exercise_linear.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "write me: return dx, dw, db\n")


def test_a_file_is_never_overwritten(capsys):
    path = fill("linear", "    return mine")
    with open(path, encoding="utf-8") as file:
        before = file.read()
    assert main(["--write", "linear"]) == 2
    err = capsys.readouterr().err
    assert err == (
        "error: --write: exercise_linear.py exists already and stays as it is; "
        "check it with --try exercise_linear.py, or rename or delete it to start again\n"
    )
    with open(path, encoding="utf-8") as file:
        assert file.read() == before


@pytest.mark.program
def test_a_file_runs_by_itself():
    path = fill("linear", sources.body(true_pair("linear").backward))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("gradcheck: pass\n")


@pytest.mark.long
@pytest.mark.program
@every_op
def test_every_file_runs_by_itself(op):
    path = fill(op, sources.body(true_pair(op).backward))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    wrong = fill(op, sources.body(bug_named(op, MISTAKES[op]).backward))
    done = subprocess.run([sys.executable, wrong], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("gradcheck: fail\n")


# ---- hints ----


def test_there_are_words_for_every_gradient():
    assert {op: tuple(words) for op, words in WORDS.items()} == {op: gradient_names(op) for op in CHAPTERS}


def test_the_words_do_not_contain_the_formula():
    assert not any(sign in sentence for words in WORDS.values() for sentence in words.values() for sign in "=^*@")


def test_the_hints_say_more_from_level_to_level(capsys):
    path = fill("linear", sources.body(bug_named("linear", "db averaged over rows").backward))
    first, second, third = (tried(path, capsys, "--hint", level)[1] for level in "123")
    assert tried(path, capsys)[1] == first
    assert "fail         db" in first
    assert "ratio 0.1666667" in first
    assert first.endswith("More: --hint 2\n")
    assert "hint: db is the truth divided by 6; 6 is the number of rows of x" in second
    assert "db: " + WORDS["linear"]["db"][:40] in second
    assert "dw: " not in second
    assert "Derivation" not in second
    assert "db_d  = sum_n dy_nd" in third
    assert "More" not in third


def test_an_open_hole_has_the_words_of_every_gradient(capsys):
    path = fill("linear", '    raise NotImplementedError("later")')
    out = tried(path, capsys, "--hint", "2")[1]
    assert re.findall(r"^(d\w+): ", out, re.MULTILINE) == ["dx", "dw", "db"]


# ---- what a reader may write ----


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("    return dx, dw, db", "exercise_linear.py:41, in linear_backward: NameError: name 'dx' is not defined"),
        ("    return dy @ w, w, w", "exercise_linear.py:41, in linear_backward: ValueError: matmul:"),
        ("    return dy @ w)", "exercise_linear.py:41: SyntaxError: unmatched ')'"),
        ("return dy", "exercise_linear.py:41: SyntaxError: 'return' outside function"),
        ("  return dy", "exercise_linear.py:41: IndentationError: "),
        ("    raise SystemExit", "exercise_linear.py:41, in linear_backward: SystemExit\n    raise SystemExit\n"),
        ("    return half(dy)\n\n\ndef half(dy):\n    return dy / two", "exercise_linear.py:45, in half: NameError: name 'two'"),
        ("    return dy", "backward returns 1 gradient for the 3 inputs"),
        ("    return None", "backward returned None. Is its return statement missing?"),
        ("    pass", "backward returned None. Is its return statement missing?"),
        ("    return 'dx', 'dw', 'db'", "backward returns a str where dx, a float array or None belongs"),
        ("    return {'x': 0.0 * x, 'w': 0.0 * w, 'b': 0.0 * dy[0, 0]}", "fail         dw"),
        ("    x *= 2\n    return x, w, dy.sum((0, 1))", "fail"),
    ],
)
def test_a_mistake_in_the_code_is_found_in_the_file(body, words, capsys):
    status, out = tried(fill("linear", body), capsys, "--hint", "3")
    assert status == 1
    assert words in out


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("def linear_backward", "def backward", "defines linear_forward, but no function linear_backward(dy, cache)"),
        ("def linear_forward", "def forward", "defines no forward of an op, such as linear_forward; --write NAME"),
        ("y = y + b ", "y = y - b ", "linear_forward was changed and no longer returns the y of linear; --write linear"),
        (", (x, w, has_bias)", "", "linear_forward was changed"),
        (", (x, w, has_bias)", ", x, w", "linear_forward was changed"),
        ("import sys", "import sys, nothing", "exercise.py:7, in <module>: ModuleNotFoundError: No module named 'nothing'"),
        ("def linear_backward(dy: Array, ", "def linear_backward(", "the call is backward(dy, cache), but backward takes"),
        ("def draw_inputs", "def gelu_forward(): ...\ndef draw_inputs", "the forwards of linear and gelu; keep one op per file"),
        ("import sys", "import sys\0", "exercise.py: "),
    ],
)
def test_a_file_that_was_changed(old, new, words, capsys):
    text = exercise("linear")
    assert old in text
    with open("exercise.py", "w", encoding="utf-8") as file:
        file.write(text.replace(old, new))
    status, out = tried("exercise.py", capsys)
    assert status == 1
    assert words in out


def test_a_file_that_older_pythons_refuse_in_another_way(monkeypatch, capsys):
    def refuse(*args):
        raise ValueError("source code string cannot contain null bytes")

    monkeypatch.setattr(attempt, "compile", refuse, raising=False)
    status, out = tried(fill("linear", "    return dy"), capsys)
    assert (status, out) == (1, "exercise_linear.py: source code string cannot contain null bytes\n")


def test_an_interrupt_ends_the_check():
    assert main(["--try", fill("linear", "    raise KeyboardInterrupt")]) == 130


def test_attention_that_returns_its_parts_apart(capsys):
    lines = sources.body(true_pair("attention").backward).splitlines()[:-2]
    status, out = tried(fill("attention", "\n".join([*lines, "    return dq, dk, dv"])), capsys)
    assert status == 1
    assert "Wrong: dq, dk, dv." in out


def test_scipy_missing_is_one_clear_line(monkeypatch, capsys):
    path = fill("gelu", sources.body(true_pair("gelu").backward))
    monkeypatch.setitem(sys.modules, "scipy.differentiate", None)
    assert main(["--try", path]) == 2
    assert capsys.readouterr().err == 'error: gradcheck needs SciPy: pip install "tensorlite[check]"\n'
