"""The exercises as a reader uses them."""

import subprocess
import sys

import pytest

from tensorlite.testing import exercises
from tensorlite.testing.bugs import BUGS

PAIR = next(i for i, m in enumerate(BUGS, 1) if m.name == "no causal mask")


def run(*arguments):
    """Run the module in a process of its own, without a terminal."""
    command = [sys.executable, "-m", "tensorlite.exercises", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.program
def test_the_list_has_every_number():
    done = run()
    assert done.returncode == 0
    rows = [line.split() for line in done.stdout.splitlines()[2:] if line.split()[1:2] and line.split()[1].isdecimal()]
    assert [int(n) for row in rows for n in row[1:]] == list(range(1, len(BUGS) + 1))


@pytest.mark.program
def test_an_exercise_shows_the_code_and_does_not_wait():
    done = run("1")
    assert done.returncode == 0
    assert "def backward(dy" in done.stdout
    assert "Which of y, dx, dw, db" in done.stdout
    assert BUGS[0].how_it_happens not in done.stdout


@pytest.mark.program
def test_check_and_explain():
    done = run("1", "--check", "--explain")
    assert done.returncode == 0
    assert "gradcheck: fail" in done.stdout
    assert "fail         dx" in done.stdout
    assert "test_gradients_by_finite_differences" in done.stdout


@pytest.mark.parametrize("arguments", [["0"], ["999"], ["-1"], ["one"], ["--check"]])
def test_a_bad_number_is_one_clear_line(arguments, capsys):
    assert exercises.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.program
def test_a_bad_number_ends_with_status_2():
    done = run("999")
    assert (done.returncode, done.stderr) == (2, f"error: there is no exercise 999; they are numbered 1 to {len(BUGS)}\n")


def test_scipy_missing_is_one_clear_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "scipy.differentiate", None)
    assert exercises.main(["1", "--check"]) == 2
    assert capsys.readouterr().err == 'error: gradcheck needs SciPy: pip install "tensorlite[check]"\n'


def test_finite_differences_pass_a_pair_and_the_reader_is_told():
    text = exercises.check(BUGS[PAIR - 1])
    assert "gradcheck: pass" in text
    assert "cannot say" in text


@pytest.mark.parametrize("m", BUGS, ids=lambda m: f"{m.op}: {m.name}")
def test_the_code_does_not_give_the_answer_away(m):
    text = exercises.code(m)
    assert text.count("def ") == 2
    assert '"""' not in text
    assert "noqa" not in text
    assert m.how_it_happens not in text
    assert m.name not in text
    assert m.explanation in exercises.answer(m).replace("\n  ", " ")
    assert set(m.wrong) <= set(exercises.choices(m))


@pytest.mark.parametrize(
    ("reply", "verdict"), [("dx", "Yes."), ("dw", "No."), ("dx, dw", "No."), ("", "No."), (EOFError, "See also")]
)
def test_a_reply_is_judged(reply, verdict, monkeypatch, capsys):
    def answer(question):
        if reply is EOFError:
            raise EOFError
        return reply

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    exercises.ask(1, BUGS[0])
    out = capsys.readouterr().out
    assert verdict in out
    assert reply is not EOFError or ("Yes." not in out and "No." not in out)
