"""The model of docs/trace.html: small enough to read every value, and trained here in under a second.

It has 4 heads of 2 channels, so the values of a head are points in a plane, which the page draws.
"""

import numpy as np

from gpt.config import ModelConfig, TrainConfig
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.tokenizer import CharTokenizer
from gpt.trace.state import State, record
from gpt.training.step import Task, TrainState, train_step
from tensorlite import ReferenceOps

TEXT = "to be, or not to be: that is the question"
WINDOW = "or not "
STEPS = 60
SEED = 1337
TRAIN = TrainConfig(batch_size=8, max_iters=STEPS, learning_rate=1e-2, min_lr=1e-2)
VOCABULARY = "".join(sorted(set(TEXT)))
MODEL = ModelConfig(vocab_size=len(VOCABULARY), block_size=len(WINDOW) - 1, n_layer=1, n_head=4, n_embd=8, init_std=0.3)


def example(with_differences: bool = True) -> list[State]:
    """Return the window's step before training and after STEPS updates, in float64."""
    model = MODELS[MODEL.model]
    table = ParamTable(model.init(MODEL))
    state = TrainState.start(table, table.init_params(SEED, np.float64), np)
    task = Task(model, MODEL, TRAIN, CharTokenizer(VOCABULARY).encode(TEXT, "text"), SEED)
    before = record(MODEL, state.params.copy(), VOCABULARY, WINDOW, 0, with_differences)
    for _ in range(STEPS):
        train_step(ReferenceOps(), task, state)
    return [before, record(MODEL, state.params.copy(), VOCABULARY, WINDOW, STEPS, with_differences)]
