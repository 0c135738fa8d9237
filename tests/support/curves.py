"""Loss curves of a hundred steps of a small float64 model with dropout, on workers of any kind."""

import numpy as np

from gpt.config import TrainConfig
from gpt.models import MODELS
from gpt.training.data_parallel import Workers
from gpt.training.distributed import SingleProcess
from gpt.training.evaluate import split_loss
from gpt.training.step import Task, TrainState
from small import config_of, start
from tensorlite import ReferenceOps, cpu

BACKENDS = {"reference": ReferenceOps, "fast": cpu.CPUOps}
CONFIG = config_of("gpt", dropout=0.2)
DATA = np.arange(400) ** 2 % CONFIG.vocab_size  # something to learn
STEPS = 100


def curve(
    shards: int, batch: int, accumulation: int, backend: str = "fast", threads: int = 2, ranks: SingleProcess | None = None
) -> tuple[list[float], TrainState, float]:
    """The losses, the state at the end, and the loss over a text."""
    train = TrainConfig(
        batch_size=batch, gradient_accumulation_steps=accumulation, shards=shards, learning_rate=0.01, min_lr=0.001, grad_clip=1.0
    )
    workers = Workers(BACKENDS[backend], shards, threads, ranks)
    task, state = Task(MODELS["gpt"], CONFIG, train, DATA, seed=3), start(CONFIG)
    losses = [workers.train_step(task, state)[0] for _ in range(STEPS)]
    return losses, state, split_loss(workers, task, state.table.tree(state.params), DATA)
