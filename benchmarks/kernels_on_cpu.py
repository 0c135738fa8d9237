"""Train with the CUDA kernels on a CPU, to see what 16 bits do to the loss. It says nothing about speed.

    python benchmarks/kernels_on_cpu.py [--preset laptop] [--precision bf16] [--steps 2000]

The kernels run through the shim of the tests and the GEMMs run in NumPy with the same roundings. Everything else is as in train.py.
"""

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from gpt.config import PRESETS
from gpt.data import load_corpus
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.training.data_parallel import Workers
from gpt.training.evaluate import split_loss
from gpt.training.step import Task, TrainState
from tensorlite import ReferenceOps
from tensorlite.cuda import CUDAOps
from tensorlite.cuda.ops import Precision

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from shim.host import HostRuntime


@dataclass
class Args:
    """Train with the CUDA kernels on a CPU."""

    preset: str = "laptop"
    precision: Precision = "bf16"
    steps: int | None = None
    """Number of updates. Default: the preset's."""
    seed: int = 1337
    report: int = 100
    """Number of updates between printed lines."""


def main() -> None:
    """Train, and print the loss over the validation split, which is computed in float32."""
    args = tyro.cli(Args)
    preset = PRESETS[args.preset]
    corpus = load_corpus(None, preset.model.block_size)
    config = dataclasses.replace(preset.model, vocab_size=len(corpus.tokenizer))
    train = preset.train
    model = MODELS[config.model]
    table = ParamTable(model.init(config))
    state = TrainState.start(table, table.init_params(args.seed), np)
    task = Task(model, config, train, data=corpus.train, seed=args.seed)
    workers = Workers.of(CUDAOps(args.precision, check=False, runtime=HostRuntime()))
    reference = Workers.of(ReferenceOps(check=False))
    start = time.perf_counter()
    for step in range(1, (args.steps or train.max_iters) + 1):
        loss, norm = workers.train_step(task, state)
        if step % args.report == 0 or step == args.steps or step == train.max_iters:
            val = split_loss(reference, task, table.tree(state.params), corpus.val)
            seconds = time.perf_counter() - start
            print(f"step {step}: loss {float(loss):.4f}, norm {float(norm):.3f}, val {val:.4f}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
