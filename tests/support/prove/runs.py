"""Random small training runs, for the proofs about resuming and about NaN."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import gpt.training.checkpoint_writer
from gpt.config import Preset, TrainConfig
from gpt.training import run_setup
from gpt.training.backends import select_backend
from gpt.training.data_parallel import Workers
from gpt.training.trainer import Trainer
from small import PANGRAMS, config_of
from tensorlite import pick_device

BACKENDS = ("reference", "fast")

gpt.training.checkpoint_writer.loss_curve = lambda *_, **__: None  # a picture takes longer than all else of such a run


def drawn(numbers: random.Random) -> Preset:
    """A model with dropout and a training configuration, all of it drawn."""
    model = numbers.choice(("gpt", "gpt", "gpt", "residual", "multihead"))
    train = TrainConfig(
        batch_size=numbers.randint(3, 6),
        gradient_accumulation_steps=numbers.randint(1, 3),
        shards=numbers.randint(1, 3),
        max_iters=numbers.randint(6, 14),
        learning_rate=numbers.choice((0.01, 0.1)),
        min_lr=numbers.choice((0.01, 0.001, 0.0)),
        warmup_iters=numbers.randint(0, 4),
        weight_decay=numbers.choice((0.0, 0.1)),
        grad_clip=numbers.choice((0.0, 0.5)),
        eval_interval=numbers.randint(2, 6),
        eval_batches=2,
    )
    return Preset(config_of(model, dropout=numbers.choice((0.1, 0.3, 0.5)), bias=numbers.choice((True, False))), train, "")


def trainer(preset: Preset, backend: str, threads: int, out: Path, resume: bool) -> Trainer:
    """A run that begins, or goes on from what is in its folder."""
    text = out.parent / "text"
    text.write_text(PANGRAMS)
    out.mkdir(exist_ok=True)
    setup = run_setup.resume(out, {}, {}, text) if resume else run_setup.new_run(preset, {}, {}, out, text, seed=3)
    workers = Workers(select_backend(backend, pick_device("cpu")).make, setup.train.shards, threads)
    run = Trainer(setup, workers, np)
    run.log = lambda _: None
    return run


def before_step(run: Trainer, at: int, do: Callable[[], Any]) -> None:
    """Do something when so many steps have been made, as the next one begins."""
    step = run.workers.train_step

    def stepped(*args: Any) -> Any:
        if run.state.step == at:
            do()
        return step(*args)

    run.workers.train_step = stepped
