"""Texts on the two command lines: standard input, several files, a validation text, stop texts, hints. In one process."""

import dataclasses
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tyro

from gpt import sample, train
from gpt.config import PRESETS
from gpt.errors import ConfigError, DataError
from gpt.training import checkpoint, run_setup
from gpt.training.data_parallel import Workers
from tensorlite import ReferenceOps, pick_device

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n" * 30
SMALL = ["--device", "cpu", "--threads", "1", "--preset", "bigram", "--batch-size", "4", "--max-iters", "2", "--eval-batches", "2"]


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Run a program's main as a user would; returns the status, what it printed, and its errors."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)

    def run(program, *arguments, stdin=None):
        monkeypatch.setattr(sys, "argv", [f"{program.__name__}.py", *map(str, arguments)])
        if stdin is not None:
            (tmp_path / "stdin").write_bytes(stdin)
            monkeypatch.setattr(sys, "stdin", open(tmp_path / "stdin"))  # noqa: SIM115  (closed with the test's process)
        try:
            status = program.main()
        except SystemExit as end:
            status = end.code
        if stdin is not None:
            sys.stdin.close()
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *SMALL, "--data", str(folder / "text.txt"), "--out", str(folder / "run")])
        assert train.main() == 0
    return folder / "run"


@pytest.fixture
def trained(cli, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    return cli


def corpus_of(*flags):
    """What a run with these flags would learn."""
    return train.make_setup(tyro.cli(train.Args, args=[*SMALL, *flags]), pick_device("cpu")).corpus


def test_one_text_in_many_ways(trained, monkeypatch):
    Path("a").write_text(TEXT[:1000])
    Path("b").write_text(TEXT[1000:])
    one = corpus_of("--data", "text.txt")
    ways = (["a", "b"], ["a", "--data", "b"], ["-"], ["a", "-"])
    for flags in ways:
        with open("b" if "a" in flags else "text.txt") as file:
            monkeypatch.setattr(sys, "stdin", file)
            other = corpus_of("--data", *flags)
        assert (other.sha256, other.tokenizer.vocabulary) == (one.sha256, one.tokenizer.vocabulary)
        assert other.train.tolist() == one.train.tolist()
        assert other.val.tolist() == one.val.tolist()
    arguments = ("--resume", "--out", "run", "--max-iters", "3", "--data", "a", "-")
    status, out, err = trained(train, *arguments, stdin=TEXT[1000:].encode())
    assert (status, err) == (0, "")
    assert f"text     {len(TEXT):,} characters (2,187 train; 243 val, all evaluated), 30 symbols\n" in out


def test_notes_are_printed(cli):
    Path("odd").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    status, out, _ = cli(train, *SMALL, "--data", "odd", "--out", "run")
    assert status == 0
    notes = [line for line in out.splitlines() if line.startswith("note ")]
    assert notes == [
        "note     odd begins with a byte-order mark, which was skipped",
        "note     odd ends lines with 150 CR LF and 0 lone CR, which became line feeds",
    ]
    assert checkpoint.load(Path("run")).data_sha256 == corpus_of("--data", "text.txt").sha256


def test_a_validation_text(cli):
    Path("val").write_text(TEXT[:200] + "é", encoding="utf-8")
    status, out, _ = cli(train, *SMALL, "--data", "text.txt", "--val-data", "val", "--val-chars", "100", "--out", "run")
    assert status == 0
    assert f"({len(TEXT):,} train; 201 val, 96 evaluated in evenly spread windows), 31 symbols\n" in out
    assert checkpoint.load(Path("run")).train.val_chars == 100
    again = ["--resume", "--out", "run", "--max-iters", "3", "--data", "text.txt"]
    with pytest.raises(DataError, match="another text"):
        corpus_of(*again)
    for flag in ("--val-data", "--val_data"):
        assert corpus_of(*again, flag, "val").val.size == 201


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--data", "data needs a file, or - for standard input"),
        ("--data text.txt --val-data", "val_data needs a file, or - for standard input"),
        ("--data - --val-data -", "standard input can be read only once"),
        ("--data text.txt none.txt", "none.txt: no such file"),
        ("--data text.txt --val-data .", ". is a directory; name a text file"),
        ("--data text.txt --val-chars -1", "val_chars must be a whole number of at least 0, not -1"),
    ],
)
def test_mistakes(cli, flags, words):
    status, _, err = cli(train, *SMALL, *flags.split(), "--out", "run", stdin=b"")
    assert status == 2
    assert words in err
    assert len(err.splitlines()) == 1
    assert not Path("run").exists()


WRITE = ("--checkpoint", "run", "--device", "cpu", "--max-new-tokens", "60")


def test_prompts(trained):
    _, out, _ = trained(sample, *WRITE, "--prompt", "All:\n")
    assert out.startswith("All:\n")
    assert len(out) == 66
    Path("prompt").write_bytes(b"\xef\xbb\xbfAll:\r\n")
    for flags in (["--prompt", "-"], ["--prompt-file", "prompt"], ["--prompt-file", "-"]):
        status, same, err = trained(sample, *WRITE, *flags, stdin=Path("prompt").read_bytes())
        assert (status, same) == (0, out)
        assert [line.split(" ", 1)[0] for line in err.splitlines()] == ["note", "note"]
    assert trained(sample, *WRITE, "--prompt", "-", stdin=b"")[:2] == trained(sample, *WRITE)[:2]
    saved = checkpoint.load(Path("run"))
    checkpoint.save(Path("old"), dataclasses.replace(saved, vocabulary=saved.vocabulary.replace("k", "\r")))  # of an old run
    status, _, err = trained(sample, "--checkpoint", "old", "--device", "cpu", "--prompt-file", "prompt")
    assert (status, err) == (0, "note     prompt begins with a byte-order mark, which was skipped\n")
    status, _, err = trained(sample, *WRITE, "--prompt", "-", stdin=b"All\0")
    assert (status, "standard input has 1 NUL characters" in err) == (2, True)


def test_hints(trained):
    for flags, hint in (
        (["--prompt", "-x"], "--prompt=-x"),
        (["--stop", "--x"], "--stop=--x"),
        (["--prompt", "--seed", "3"], None),
    ):
        status, _, err = trained(sample, *WRITE, *flags)
        hints = [line for line in err.splitlines() if line.startswith("hint: ")]
        assert status == 2
        taken = "characters that the vocabulary lacks" in err  # the first version of tyro takes it as the text it is
        assert hints == ([f"hint: write a text that begins with a dash as {hint}"] if hint and not taken else [])
    assert trained(sample, *WRITE, "--prompt=-x")[2].startswith("error: the prompt has 2 characters that the vocabulary lacks: '-'")
    (status, _, err) = trained(sample, *WRITE, "--prompt", "text.txt")
    assert (status, len(err.splitlines())) == (2, 1)
    assert err.endswith("; the prompt is also the name of a file; --prompt-file text.txt continues the text in it\n")
    Path("All").write_text("x")
    status, _, err = trained(sample, *WRITE, "--prompt", "All")
    assert (status, err) == (0, "note     the prompt is also the name of a file; --prompt-file All continues the text in it\n")
    assert "--prompt-file FILE takes a text with line breaks" in trained(sample, *WRITE, "--prompt", r"All:\n")[2]


def test_stop_texts(trained):
    _, whole, _ = trained(sample, *WRITE, "--prompt", "All")
    new = whole[3:-1]
    stop, other = new[20:23], new[10]
    status, out, _ = trained(sample, *WRITE, "--prompt", "All", "--stop", stop)
    assert (status, out) == (0, "All" + new[: new.index(stop)] + "\n")
    assert trained(sample, *WRITE, "--prompt", "All", "--stop", stop, "--stop", other)[1] == "All" + new[: new.index(other)] + "\n"
    assert trained(sample, *WRITE, "--prompt", "All", "--stop", "Speak, speak.\n\nAll")[1] == whole
    for bad, words in (
        ("é", "stop 'é' has 1 characters that the vocabulary lacks: 'é' x1"),
        ("", "stop must have at least one character"),
    ):
        status, out, err = trained(sample, *WRITE, "--stop", bad)
        assert (status, out) == (2, "")
        assert words in err


def test_a_folder_without_its_best(trained):
    Path("run/best.safetensors").unlink()
    status, _, err = trained(sample, *WRITE)
    assert status == 2
    (named,) = re.findall(r"name its last checkpoint: (\S+)", err)
    assert trained(sample, "--checkpoint", named, "--device", "cpu")[0] == 0
    Path(named).unlink()
    assert "error: no checkpoint at run/best.safetensors" in trained(sample, *WRITE)[2].replace("\\", "/")


def test_a_text_on_the_command_line_is_utf8_where_the_locale_could_not_read_it():
    """Prompts and stop texts alike. A locale of Latin-1 has read its é; one of ASCII leaves the bytes."""
    assert sample.as_utf8("\u00e9") == "\u00e9"
    assert sample.as_utf8("\udcc3\udca9") == "\u00e9"


def test_a_batch_has_a_row_for_each_rank(cli, tmp_path):
    setup = run_setup.new_run(PRESETS["bigram"], {}, {"batch_size": 2}, tmp_path, tmp_path / "text.txt", 1)
    train.require_row_per_rank(setup, SimpleNamespace(size=2))
    with pytest.raises(ConfigError, match="batch_size 2 has fewer rows than there are ranks, 4; set --batch-size 4 or more"):
        train.require_row_per_rank(setup, SimpleNamespace(size=4))


def test_threads_shards_and_the_threads_of_a_matmul(cli, tmp_path, monkeypatch):
    """Bits depend on the threads of a matmul, so a shard among several has one."""
    monkeypatch.setattr(train, "processors", lambda: 8)
    cpu, cuda = SimpleNamespace(name="cpu"), SimpleNamespace(name="cuda")
    laptop, stage = PRESETS["laptop"].model, PRESETS["layernorm"].model
    assert [train.default_threads(laptop, cpu, ranks) for ranks in (1, 3, 16)] == [8, 2, 1]
    assert train.default_threads(stage, cpu) == train.default_threads(laptop, cuda) == 1
    workers = Workers(ReferenceOps, shards=4)
    assert train.blas_threads(workers, 8) == 1
    assert train.blas_threads(Workers(ReferenceOps), 8) == 8
    setup = run_setup.new_run(PRESETS["laptop"], {}, {}, tmp_path, tmp_path / "text.txt", 1)
    assert [train.with_default_shards(setup, shards).train.shards for shards in (8, 40)] == [8, 12]


def test_the_sample_of_a_run_is_of_its_best_model(trained, monkeypatch):
    run = SimpleNamespace(setup=SimpleNamespace(out=Path("run")), state=SimpleNamespace(step=9, params=[0]), xp=np)
    best = checkpoint.load(Path("run/best.safetensors"))
    which, step, params = train.model_to_show(run)
    assert (which, step) == ("best", best.step)
    np.testing.assert_array_equal(params, best.params)
    Path("run/best.safetensors").unlink()
    assert train.model_to_show(run) == ("last", 9, [0])


def test_a_run_that_another_process_continues_meanwhile_is_refused(trained, monkeypatch):
    """The other one has the folder between the reading of the checkpoint and the lock."""
    status, _, _ = trained(train, *SMALL, "--data", "text.txt", "--out", "run")
    assert status == 0
    describe = train.describe

    def meanwhile(*args):
        monkeypatch.setattr(train, "describe", describe)
        assert trained(train, "--resume", "--out", "run", "--data", "text.txt", "--max-iters", "5", "--device", "cpu")[0] == 0
        describe(*args)

    monkeypatch.setattr(train, "describe", meanwhile)
    status, _, err = trained(train, "--resume", "--out", "run", "--data", "text.txt", "--max-iters", "9", "--device", "cpu")
    assert (status, checkpoint.load(Path("run/last.safetensors")).step) == (2, 5)
    assert "step 2 was read, and another process has since saved step 5" in err
