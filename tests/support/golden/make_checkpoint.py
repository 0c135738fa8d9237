"""Writes checkpoint-1.safetensors, a small run in checkpoint format 1. Run by hand, from the repository:

    PYTHONPATH=.:tests/support python tests/support/golden/make_checkpoint.py

Its numbers are whole numbers of 64ths from a formula, which float32 holds exactly on every machine. It was made by commit 20cc4e3
and is never made again: a later program must read this very file.
"""

import hashlib
from pathlib import Path

import numpy as np

from gpt.config import ModelConfig, TrainConfig
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.training import checkpoint
from gpt.training.checkpoint import BUFFERS, Checkpoint

FILE = Path(__file__).parent / "checkpoint-1.safetensors"
TEXT = "a café on the quay, 10 °C 🙂\n" * 12
MODEL = ModelConfig(vocab_size=20, block_size=4, n_layer=1, n_head=2, n_embd=4, dropout=0.25, tied=True, init_std=0.1)
TRAIN = TrainConfig(batch_size=4, max_iters=9, learning_rate=0.01, min_lr=0.001, beta2=0.99, grad_clip=1, eval_interval=3, shards=2)


def numbers(buffer: str) -> np.ndarray:
    """A flat buffer: the n-th number of parameter p is ((7 n + 11 p) mod 31 - 15) / 64; for the second moments, its square."""
    table = ParamTable(MODELS[MODEL.model].init(MODEL))
    flat = np.zeros(table.size, np.float32)
    for p, view in enumerate(table.views(flat), start=BUFFERS.index(buffer)):
        view[...] = (((7 * np.arange(view.size) + 11 * p) % 31 - 15) / 64).reshape(view.shape)
    return flat**2 if buffer == "v" else flat


def frozen() -> Checkpoint:
    """What the file holds."""
    return Checkpoint(
        model=MODEL,
        train=TRAIN,
        vocabulary="".join(sorted(set(TEXT))),
        seed=11,
        step=5,
        val_loss=2.75,
        best_val=2.5,
        data_sha256=hashlib.sha256(TEXT.encode()).hexdigest(),
        drop_unknown=False,
        **{name: numbers(name) for name in BUFFERS},
    )


if __name__ == "__main__":
    checkpoint.save(FILE, frozen())
