"""The exercises in finding a mistake, as a reader uses them."""

import os
import subprocess
import sys

import pytest

from tensorlite.op_info import OP_INFO
from tensorlite.testing.bugs import BUGS, CHAPTERS
from tensorlite.testing.exercises import find
from tensorlite.testing.exercises.command import main
from tensorlite.testing.exercises.compare import gradient_names

PAIR = next(i for i, m in enumerate(BUGS, 1) if m.name == "the unbiased variance")


def title(m):
    return f"{m.op}: {m.name}"


every_bug = pytest.mark.parametrize("m", BUGS, ids=title)


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
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("chapter")]
    assert [int(n) for row in rows for n in row[3:]] == list(range(1, len(BUGS) + 1))
    assert {(int(row[1]), row[2]) for row in rows} == {(m.chapter, m.op) for m in BUGS}


def test_the_exercises_follow_the_chapters():
    chapters = [m.chapter for m in BUGS]
    assert set(CHAPTERS) == set(OP_INFO)
    assert chapters == sorted(chapters)
    assert set(chapters) == {*CHAPTERS.values(), 9}
    assert {title(m) for m in BUGS if m.chapter == 9} == {title(m) for m in BUGS if m.op == "attention" and m.wrong == ("y",)}


@pytest.mark.program
def test_a_reader_that_has_left_is_no_error():
    command = [sys.executable, "-m", "tensorlite.exercises", "1"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=buffered, **pipes) as program:
        program.stdout.close()
        assert program.stderr.read() == b""
    assert program.returncode == 141


@pytest.mark.program
def test_an_exercise_shows_the_code_and_does_not_wait():
    done = run("1")
    assert done.returncode == 0
    assert "def backward(dy" in done.stdout
    assert "Which of y, dx, dw, db" in done.stdout
    assert BUGS[0].how_it_happens not in done.stdout


def test_check_and_explain(capsys):
    assert main(["1", "--check", "--explain"]) == 0
    out = capsys.readouterr().out
    assert "gradcheck: fail" in out
    assert "fail         dx" in out
    assert "test_gradients_by_finite_differences" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["0"], f"no exercise 0; they are numbered 1 to {len(BUGS)}"),
        (["999"], "no exercise 999"),
        (["-1"], "no exercise -1"),
        (["one"], "no exercise one"),
        (["--check"], "need the number of an exercise"),
        (["--hint", "1"], "--hint needs the number of an exercise, or --try FILE"),
        (["1", "--hint", "4"], "--hint 4: choose 1, 2 or 3"),
        (["1", "--write", "linear"], "NUMBER and --write are different tasks"),
        (["--write", "linear", "--try", "x.py"], "--write and --try are different tasks"),
        (["--try", "x.py", "--explain"], "--hint 3 shows the derivation"),
        (["--try", "x.py"], "--try: cannot read x.py: No such file or directory; --write NAME writes an exercise"),
        (["--write", "lstm"], "--write: there is no op 'lstm'; choose one of linear, embedding"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_flag_is_named(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--solve", "1"])
    assert end.value.code == 2
    assert "--solve" in capsys.readouterr().err


@pytest.mark.program
def test_a_bad_number_ends_with_status_2():
    done = run("999")
    assert (done.returncode, done.stderr) == (2, f"error: there is no exercise 999; they are numbered 1 to {len(BUGS)}\n")


def test_scipy_missing_is_one_clear_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "scipy.differentiate", None)
    assert main(["1", "--check"]) == 2
    assert capsys.readouterr().err == 'error: gradcheck needs SciPy: pip install "tensorlite[check]"\n'


def test_finite_differences_pass_a_pair_and_the_reader_is_told():
    text = find.check(BUGS[PAIR - 1])
    assert "gradcheck: pass" in text
    assert "cannot say" in text


@every_bug
def test_the_code_does_not_give_the_answer_away(m):
    text = find.code(m)
    assert text.count("def ") == 2
    assert '"""' not in text
    assert "noqa" not in text
    assert "self" not in text
    assert m.how_it_happens not in text
    assert m.name not in text
    assert m.explanation in find.answer(m).replace("\n  ", " ")
    assert set(m.wrong) <= set(find.choices(m))


@every_bug
def test_the_hints_say_more_from_level_to_level(m):
    which, ratios, formula = (find.hint(m, level) for level in (1, 2, 3))
    assert which == f"Wrong: {', '.join(m.wrong)}."
    assert ratios.startswith(which)
    added = ratios.removeprefix(which).strip().splitlines()
    for name in m.wrong:
        assert any(line.startswith(name) for line in added) or m.caught_by in ratios
    assert all("truth" in line for line in added) or m.caught_by in ratios
    assert formula.startswith(ratios)
    assert "The right formula:\n  " in formula
    assert "Derivation" not in formula


def test_a_ratio_of_the_hint():
    m = next(m for m in BUGS if m.name == "db averaged over rows")
    lines = find.hint(m, 2).splitlines()[1:]
    assert len(lines) == 3
    assert all(line.startswith("db[") and line.endswith("ratio 0.1111111") for line in lines)  # of 9 rows


def test_a_formula_of_the_hint():
    m = next(m for m in BUGS if m.name == "the sum forgotten")
    assert find.hint(m, 3).endswith("The right formula:\n  dx = y (dy - sum(dy y))")


def test_a_hint_in_place_of_the_question(capsys):
    assert main(["1", "--hint", "1"]) == 0
    out = capsys.readouterr().out
    assert "Wrong: dx." in out
    assert "Which of" not in out


def test_the_gradients_of_packed_attention_have_names():
    assert gradient_names("attention") == ("dq", "dk", "dv")
    assert gradient_names("residual") == ("dx", "dy")


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [("dx", "Yes."), ("dw", "No."), ("dx, dw", "No."), ("DX is wrong", "Yes."), ("", "No."), (EOFError, "See also")],
)
def test_a_reply_is_judged(reply, verdict, monkeypatch, capsys):
    def answer(question):
        if reply is EOFError:
            raise EOFError
        return reply

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert main(["1"]) == 0
    out = capsys.readouterr().out
    assert verdict in out
    assert reply is not EOFError or ("Yes." not in out and "No." not in out)


@pytest.mark.parametrize(("number", "way_out"), [("linear", "--write linear writes one"), ("a.py", "--try a.py checks a file")])
def test_another_task_in_the_place_of_a_number_is_told_its_flag(number, way_out, capsys):
    assert main([number]) == 2
    assert f"there is no exercise {number}; {way_out}" in capsys.readouterr().err


def test_an_interrupt_ends_the_question(monkeypatch):
    def answer(question):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert main(["1"]) == 130
