"""Record one step of a model on a text, and train the small model of the example."""

from collections.abc import Callable

import numpy as np

from gpt.config import ModelConfig, TrainConfig
from gpt.errors import ConfigError
from gpt.models import MODELS
from gpt.params import ParamTable, get
from gpt.trace import tape
from gpt.trace.data import State
from gpt.trace.differences import differences
from gpt.trace.recorder import Recorder, listening
from gpt.training.step import Task, TrainState, train_step
from gpt.tokenizer import CharTokenizer
from tensorlite import ReferenceOps

MOST_NUMBERS = 60_000  # of one step; a page of more is slow to load and has tables nobody can read

EXAMPLE_TEXT = "to be, or not to be: that is the question"
EXAMPLE_WINDOW = "or not "
EXAMPLE_STEPS = 60
EXAMPLE_SEED = 1337
EXAMPLE_TRAIN = TrainConfig(batch_size=8, max_iters=EXAMPLE_STEPS, learning_rate=1e-2, min_lr=1e-2)


def record(config: ModelConfig, flat: np.ndarray, vocabulary: str, text: str, step: int) -> State:
    """Record forward and backward on one text, and take the differences.

    config: of a model without dropout.
    flat: (size,) the parameters in the layout of the model's table, float64.
    text: T + 1 characters. Each but the first is the target of the one before it.
    step: the number of updates behind the parameters.
    """
    model = MODELS[config.model]
    table = ParamTable(model.init(config))
    params = table.tree(flat)
    tokens = CharTokenizer(vocabulary).encode(text, "text").astype(np.int64)
    idx = tokens[None, :-1]  # (1, T)
    targets = tokens[None, 1:]  # (1, T)
    ops = ReferenceOps()
    recorder = Recorder()
    with listening(recorder):
        loss, cache = model.forward(ops, params, idx, targets, config)
        grads = model.backward(ops, 1.0, cache)
    trace = recorder.trace

    def loss_again() -> float:
        return float(model.forward(ops, params, idx, targets, config)[0])

    parameters = {recorder.array(get(params, p.name)): p.name for p in table}
    leaves = [recorder.array(get(grads, p.name)) for p in table]
    found = differences(trace, tape.pair_calls(trace), loss_again, table.views(flat), leaves)
    return State(step, float(loss), trace, parameters, found)
