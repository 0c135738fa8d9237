"""`python -m gpt.trace`: a page of the example, of a checkpoint, and one clear line for what cannot be shown."""

import dataclasses
import string
import sys

import numpy as np
import pytest

from gpt.config import PRESETS, ModelConfig, TrainConfig
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.trace import program
from gpt.trace.page import unpack
from gpt.trace.state import MOST_VALUES
from gpt.training import checkpoint

SMALL = ModelConfig("head", vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=6, dropout=0.5, init_std=0.3)


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpt.trace", *map(str, arguments)])
        try:
            status = program.main()
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def save(path, model, step=3, seed=7):
    """A checkpoint as train.py writes it: float32, at some step."""
    table = ParamTable(MODELS[model.model].init(model))
    params = table.init_params(seed) + np.float32(0.125)
    vocabulary = string.printable[: model.vocab_size]
    zeros = np.zeros_like(params)
    saved = checkpoint.Checkpoint(
        model, TrainConfig(max_iters=9), vocabulary, seed, step, 1.0, 1.0, "0" * 64, False, params, zeros, zeros
    )
    checkpoint.save(path, saved)
    return saved


def test_a_checkpoint_is_shown_before_and_after_its_training(cli, tmp_path):
    saved = save(tmp_path / "model.safetensors", SMALL)
    status, out, err = cli("--checkpoint", "model.safetensors", "--text", "0120")
    assert (status, err) == (0, "")
    assert out.startswith("wrote trace.html (")
    data = unpack((tmp_path / "trace.html").read_text(encoding="utf-8"))
    assert [state["step"] for state in data["states"]] == [0, 3]
    assert data["text"] == "0120"
    assert data["model"]["dropout"] == 0.0
    model, table = MODELS["head"], saved.table
    from tensorlite import ReferenceOps

    idx = np.array([[0, 1, 2]])
    for state, flat in zip(data["states"], (table.init_params(7), saved.params), strict=True):
        config = dataclasses.replace(SMALL, dropout=0.0)
        loss, _ = model.forward(ReferenceOps(), table.tree(flat.astype(np.float64)), idx, np.array([[1, 2, 0]]), config)
        assert state["loss"] == loss


def test_a_checkpoint_at_step_0_has_one_state(cli, tmp_path):
    save(tmp_path / "model.safetensors", SMALL, step=0)
    assert cli("--checkpoint", "model.safetensors", "--text", "01", "--out", "new/page.html")[0] == 0
    assert len(unpack((tmp_path / "new" / "page.html").read_text(encoding="utf-8"))["states"]) == 1


REFUSED = {
    "no text": (["--checkpoint", "model.safetensors"], "text must have 2 to 5 characters"),
    "one character": (["--checkpoint", "model.safetensors", "--text", "0"], "not 1"),
    "too long": (["--checkpoint", "model.safetensors", "--text", "012012"], "not 6"),
    "unknown": (["--checkpoint", "model.safetensors", "--text", "0x1"], "'x'"),
    "text alone": (["--text", "01"], "text needs --checkpoint"),
    "no file": (["--checkpoint", "other.safetensors", "--text", "01"], "other.safetensors"),
    "no model": (["--checkpoint", "empty", "--text", "01"], "empty"),
    "out below a file": (["--out", "model.safetensors/x.html"], "choose another file with --out"),
    "out is a folder": (["--out", "empty"], "it is a folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_shown_is_said_in_one_line(cli, tmp_path, case):
    save(tmp_path / "model.safetensors", SMALL)
    (tmp_path / "empty").mkdir()
    arguments, message = REFUSED[case]
    status, out, err = cli(*arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert err.startswith("error: ")
    assert not (tmp_path / "trace.html").exists()


def test_a_model_that_is_too_large_names_the_fields_to_lower(cli, tmp_path):
    save(tmp_path / "laptop.safetensors", PRESETS["laptop"].model)
    status, out, err = cli("--checkpoint", "laptop.safetensors", "--text", "01")
    assert (status, out) == (2, "")
    assert all(field in err for field in ("n_embd 128", "n_layer 4", "--text", f"{MOST_VALUES:,}"))


def test_a_text_that_makes_too_many_values_is_refused(cli, tmp_path):
    wide = dataclasses.replace(SMALL, n_embd=32, block_size=200)
    save(tmp_path / "wide.safetensors", wide)
    status, _, err = cli("--checkpoint", "wide.safetensors", "--text", "01" * 100)
    assert status == 2
    assert "200 characters of --text" in err


def test_an_old_page_is_replaced_whole_or_not_at_all(cli, tmp_path, monkeypatch):
    save(tmp_path / "model.safetensors", SMALL)
    (tmp_path / "trace.html").write_text("old")
    arguments = ("--checkpoint", "model.safetensors", "--text", "01")

    def full(_source, _target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(program.files, "replace", full)
        status, _, err = cli(*arguments)
        assert (status, "No space left" in err) == (2, True)
    assert (tmp_path / "trace.html").read_text() == "old"
    assert not list(tmp_path.glob(".*.tmp"))
    assert cli(*arguments)[0] == 0
    assert len((tmp_path / "trace.html").read_text(encoding="utf-8")) > 1000
