"""The small checkpoints that the proofs damage, and the comparison of two checkpoints."""

import dataclasses
import json
from functools import cache

import numpy as np

from gpt.config import ModelConfig, TrainConfig
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.training import checkpoint
from gpt.training.checkpoint import BUFFERS, Checkpoint
from prove.harness import scratch

MODELS_OF = {
    "bigram": ModelConfig("bigram", vocab_size=3, block_size=2, n_layer=1, n_head=1, n_embd=2),
    "gpt": ModelConfig("gpt", vocab_size=3, block_size=2, n_layer=1, n_head=1, n_embd=2),
}


def checkpoint_of(model: ModelConfig, step: int = 5) -> Checkpoint:
    """A checkpoint whose numbers tell its step."""
    table = ParamTable(MODELS[model.model].init(model))
    buffers = {}
    for i, name in enumerate(BUFFERS):
        buffers[name] = np.zeros(table.size, np.float32)
        for view in table.views(buffers[name]):  # not the gaps, which a file leaves out
            view[...] = np.arange(view.size).reshape(view.shape) + step + i / 4
    vocabulary = "".join(chr(ord("a") + i) for i in range(model.vocab_size))
    return Checkpoint(model, TrainConfig(max_iters=10**9), vocabulary, 7, step, 2.5, 2.25, "00", False, **buffers)


@cache
def file_of(name: str, step: int = 5) -> tuple[Checkpoint, bytes]:
    """A checkpoint and the file that `save` makes of it."""
    saved, path = checkpoint_of(MODELS_OF[name], step), scratch() / f"{name}-{step}.safetensors"
    checkpoint.save(path, saved)
    return saved, path.read_bytes()


def split(data: bytes) -> tuple[dict, bytes]:
    """A file's header, and the tensors behind it."""
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def join(header: dict | str, tensors: bytes) -> bytes:
    """The file of a header, as an object or as text, and some tensors."""
    text = header if isinstance(header, str) else json.dumps(header)
    encoded = text.encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded + tensors


def equal(a: Checkpoint, b: Checkpoint) -> bool:
    """Whether all fields are the same, the numbers bit for bit."""
    return all(
        getattr(a, f.name).tobytes() == getattr(b, f.name).tobytes()
        if f.name in BUFFERS
        else getattr(a, f.name) == getattr(b, f.name)
        for f in dataclasses.fields(a)
    )
