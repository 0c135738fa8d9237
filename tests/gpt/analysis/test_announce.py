"""What a run prints before it starts, and the memory at which it is refused."""

import contextlib

import numpy as np
import pytest

from gpt.analysis import announce
from gpt.analysis.cost import estimate_cost
from gpt.analysis.format import human_bytes, human_seconds
from gpt.config import PRESETS, TrainConfig
from gpt.errors import ConfigError
from gpt.training import run_setup
from gpt.training.backends import select_backend
from gpt.training.data_parallel import Workers
from tensorlite import pick_device
from trainers import preset, trainer

TRAIN = TrainConfig(batch_size=4, max_iters=12, learning_rate=0.01, min_lr=0.001)
IN_USE = 5 * 2**20


@pytest.fixture
def described(corpus, tmp_path, monkeypatch, capsys):
    """Describe a run on a device with so much memory. Returns the printed lines by their labels."""
    device = pick_device("cpu")
    backend = select_backend("reference", device)
    setup = run_setup.new_run(preset(TRAIN), {}, {}, tmp_path / "run", corpus, seed=1)
    monkeypatch.setattr(announce, "memory_in_use", lambda: IN_USE)

    def describe(memory):
        monkeypatch.setattr(announce, "available_bytes", lambda xp, threads: memory)
        announce.describe(setup, device, backend, Workers(backend.make), threads=1)
        return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())

    describe.cost = estimate_cost(setup.model, TRAIN, on_cpu=True)
    return describe


def test_what_is_printed(described):
    lines = described(None)
    assert list(lines) == ["device", "backend", "model", "text", "memory"]
    assert lines["device"].startswith("cpu: ")
    assert lines["model"] == f"gpt, 2 layers, 3 heads, 6 channels, context 5: {described.cost.n_params:,} parameters"
    peak, cache = human_bytes(IN_USE + described.cost.peak_bytes), human_bytes(described.cost.cache_bytes)
    assert lines["memory"] == f"about {peak}, 5 MiB of it in use now, {cache} saved for the backward pass"


def test_a_run_is_refused_by_the_byte(described):
    """It is refused if the memory in use and the estimate exceed what the device has."""
    needs = IN_USE + described.cost.peak_bytes
    assert described(needs)
    with pytest.raises(ConfigError, match=r"^batch_size 4 needs about .*; lower --batch-size and raise --gradient-accum"):
        described(needs - 1)
    needs = IN_USE + described.cost.state_bytes
    with pytest.raises(ConfigError, match=r"^batch_size 4 "):
        described(needs)
    with pytest.raises(
        ConfigError, match=r"^n_embd 6: .* parameters and their optimizer need about .*; lower --n-embd or --n-layer"
    ):
        described(needs - 1)


def test_a_bigram_is_refused_for_its_symbols(corpus, tmp_path, monkeypatch):
    device = pick_device("cpu")
    backend = select_backend("reference", device)
    setup = run_setup.new_run(PRESETS["bigram"], {"block_size": 5}, {}, tmp_path / "run", corpus, seed=1)
    monkeypatch.setattr(announce, "available_bytes", lambda xp, threads: 1)
    with pytest.raises(ConfigError, match=r"^data has 28 symbols: .*; use a text with fewer, or another --preset$"):
        announce.describe(setup, device, backend, Workers(backend.make), threads=1)


def test_an_error_in_the_timed_steps_does_not_end_the_run(corpus, tmp_path):
    run = trainer(corpus, tmp_path / "run", {"learning_rate": 1e300, "min_lr": 0.0, "max_iters": 1})
    with np.errstate(all="ignore"):
        assert announce.estimated_time(run).startswith(
            "not known, because the steps to be timed ended in an error (step 2: the loss"
        )
    assert run.state.step == 0


@pytest.mark.parametrize(("resumed", "evaluations"), [(False, 4), (True, 3)])
def test_the_time_that_is_announced_is_that_of_steps_and_evaluations(resumed, evaluations, corpus, tmp_path, monkeypatch):
    """12 steps of half a second. An evaluation reads 12 rows of 5 characters for the training loss, and the validation text."""
    monkeypatch.setattr(announce, "time_call", lambda *_, **__: 0.5)
    run = trainer(corpus, tmp_path / "run", {"max_iters": 12, "eval_interval": 4, "batch_size": 4, "eval_batches": 3})
    run.history = [{}] * resumed
    evaluation_s = 0.5 / 3 * (len(run.val_data) - 1 + 3 * 4 * 5) / (4 * 5)
    said = f"about {human_seconds(12 * 0.5 + evaluations * evaluation_s)}: 12 steps of 0.5 s, timed here"
    assert announce.estimated_time(run).startswith(said)


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_of_one_machine_share_its_memory(ranks, corpus, tmp_path, monkeypatch):
    device = pick_device("cpu")
    backend = select_backend("reference", device)
    setup = run_setup.new_run(preset(TRAIN), {}, {}, tmp_path / "run", corpus, seed=1)
    workers = Workers(backend.make)
    monkeypatch.setattr(workers.ranks, "local_size", ranks, raising=False)
    cost = announce.cost_of(setup, device, backend, workers)
    memory = ranks * cost.peak_bytes
    for has, refused in ((memory, False), (memory - ranks, True)):
        monkeypatch.setattr(announce, "available_bytes", lambda xp, threads, has=has: has)
        with pytest.raises(ConfigError, match="batch_size") if refused else contextlib.nullcontext():
            announce.require_memory(setup, device, workers, cost, 0)
