"""Training runs of small models on the CUDA backend, whose kernels run on the CPU."""

import dataclasses

import numpy as np
import pytest

from gpt.config import TrainConfig
from gpt.models import MODELS
from gpt.training.step import Task, train_step
from shim.host import HostRuntime
from small import config_of, start
from tensorlite import ReferenceOps, cuda

REFERENCE = ReferenceOps(check=False)
every_precision = pytest.mark.parametrize("precision", ["float32", "bf16", pytest.param("fp16", marks=pytest.mark.long)])
TRAIN = TrainConfig(
    batch_size=3, max_iters=10, learning_rate=0.01, min_lr=0.001, warmup_iters=3, grad_clip=1.0, gradient_accumulation_steps=2
)
SIZE = {"n_embd": 32, "n_head": 2, "block_size": 8, "n_layer": 1, "dropout": 0.2}
QUICK = dataclasses.replace(TRAIN, batch_size=2, gradient_accumulation_steps=1)
VARIANTS = {
    "gpt": {"model": "gpt", "n_layer": 2},
    "small": {"model": "gpt"},
    "tied": {"model": "gpt", "tied": True},
    "no bias": {"model": "gpt", "bias": False},
    "odd": {"model": "gpt", "n_embd": 15, "n_head": 3},  # no array begins at an address that a vector load may have
    "relu": {"model": "gpt", "activation": "relu"},
    "no dropout": {"model": "gpt", "dropout": 0.0},
    "residual": {"model": "residual"},
    "feedforward": {"model": "feedforward"},
    "multihead": {"model": "multihead"},
    "head": {"model": "head", "n_head": 1, "n_embd": 16},
    "bigram": {"model": "bigram", "dropout": 0.0},
}


def ops_of(precision="float32", order="forward", **options):
    return cuda.CUDAOps(precision, check=False, runtime=HostRuntime(order, **options))


class Run:
    """One training run."""

    def __init__(self, ops, variant="gpt", train=TRAIN, seed=7, captured=False, **fields):
        self.ops = ops
        config = config_of(**SIZE | VARIANTS[variant] | fields)
        data = np.random.default_rng(0).integers(0, config.vocab_size, 300).astype(np.uint16)
        self.task = Task(MODELS[config.model], config, train, data, seed)
        self.state = start(config, std=0.3, dtype=np.float32)
        self.function = ops.compile(train_step) if captured else train_step

    @property
    def model(self):
        return self.task.model

    @property
    def config(self):
        return self.task.config

    @property
    def data(self):
        return self.task.data

    def step(self):
        """Make a step. Return its loss and norm."""
        return tuple(float(x) for x in self.function(self.ops, self.task, self.state))

    def steps(self, n):
        return [self.step() for _ in range(n)]


def assert_same_bits(one, other):
    for a, b in zip(one.state.buffers(), other.state.buffers(), strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def pair(precision="float32", variant="small", train=QUICK):
    """Return the same run op by op and captured, on machines with opposite orders of threads."""
    return Run(ops_of(precision), variant, train), Run(ops_of(precision, "reversed"), variant, train, captured=True)
