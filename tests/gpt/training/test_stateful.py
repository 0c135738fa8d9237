"""Training, saving, loading and resuming in random order give bitwise the values of one long run."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gpt.config import TrainConfig
from gpt.models import MODELS
from gpt.training import checkpoint
from gpt.training.checkpoint import Checkpoint
from gpt.training.step import Task, train_step
from small import config_of, start
from tensorlite import ReferenceOps

OPS = ReferenceOps(check=False)
CONFIG = config_of("gpt", dropout=0.3, n_layer=1)
TRAIN = TrainConfig(batch_size=2, max_iters=30, learning_rate=0.01, min_lr=0.001, warmup_iters=3, grad_clip=0.5)
DATA = np.random.default_rng(0).integers(0, CONFIG.vocab_size, 200)
TASK = Task(MODELS["gpt"], CONFIG, TRAIN, DATA, seed=9)
STRAIGHT = [start(CONFIG, dtype=np.float32).params.copy()]  # the parameters after each step of a run nobody touched


def step(state):
    return train_step(OPS, TASK, state)


def straight(n):
    """Parameters of the straight run after n steps, computed once."""
    while len(STRAIGHT) <= n:
        state = start(CONFIG, dtype=np.float32)
        for _ in range(len(STRAIGHT) + 4):
            step(state)
            if state.step >= len(STRAIGHT):
                STRAIGHT.append(state.params.copy())
    return STRAIGHT[n]


class Run(RuleBasedStateMachine):
    """A user at work: trains a little, saves, loads an older file, loses the process, looks at the loss."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.state = start(CONFIG, dtype=np.float32)
        self.saved = []

    def teardown(self):
        self.folder.cleanup()

    @rule(n=st.integers(1, 3))
    def train(self, n):
        for _ in range(n):
            if self.state.step < 24:
                step(self.state)

    @rule()
    def save(self):
        path = Path(self.folder.name) / f"{self.state.step}.safetensors"
        about = {"vocabulary": "abcdefghijk", "seed": 9, "step": self.state.step}
        losses = {"val_loss": 1.0, "best_val": 1.0, "data_sha256": "", "drop_unknown": False}
        buffers = {"params": self.state.params, "m": self.state.m, "v": self.state.v}
        checkpoint.save(path, Checkpoint(CONFIG, TRAIN, **about, **losses, **buffers))
        self.saved.append(path)

    @rule(data=st.data())
    def load(self, data):
        if self.saved:
            self.state = checkpoint.load(data.draw(st.sampled_from(self.saved))).state(np)

    @rule()
    def lose_the_process(self):
        self.state = start(CONFIG, dtype=np.float32)

    @rule()
    def evaluate(self):
        params = self.state.table.tree(self.state.params)
        MODELS["gpt"].forward(OPS, params, DATA[None, :5], DATA[None, 1:6], CONFIG, with_cache=False)
        list(MODELS["gpt"].logits(OPS, params, DATA[None, :3], CONFIG))

    @invariant()
    def the_parameters_are_those_of_a_straight_run(self):
        np.testing.assert_array_equal(self.state.params, straight(self.state.step))


TestRun = Run.TestCase
TestRun.settings = settings(max_examples=max(5, settings().max_examples // 8), stateful_step_count=20, deadline=None)
