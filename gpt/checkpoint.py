"""A run in one file: weights, optimizer moments, configuration, vocabulary, step. Written whole or not at all; no pickle.

The file is in the safetensors format. Its metadata carries a hash over every tensor, because the format itself has no checksum.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from gpt import files
from gpt.config import ModelConfig, TrainConfig
from gpt.errors import CheckpointError, UserError
from gpt.params import ParamTable
from gpt.stages import MODELS
from gpt.step import TrainState
from tensorlite.xp import to_numpy

FORMAT = "tensorlite-checkpoint-1"
BUFFERS = ("params", "m", "v")


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds. The buffers are flat, in the layout of `table`, on the host."""

    model: ModelConfig
    train: TrainConfig
    vocabulary: str
    seed: int
    step: int
    val_loss: float
    best_val: float
    data_sha256: str
    drop_unknown: bool  # whether characters outside the vocabulary were left out of the text
    params: np.ndarray
    m: np.ndarray
    v: np.ndarray

    @property
    def table(self) -> ParamTable:
        return ParamTable(MODELS[self.model.model].init(self.model))

    def state(self, xp: Any) -> TrainState:
        """The training state that the file froze, on a device."""
        params, m, v = (xp.array(buffer) for buffer in (self.params, self.m, self.v))  # copies: training writes
        return TrainState(self.table, params, xp.zeros_like(params), m, v, self.step)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: a temporary file beside the target, flushed to the disk, then renamed over it.

    Raises CheckpointError when the file cannot be written; an earlier file of that name is then still whole.
    """
    table = checkpoint.table
    buffers = {name: to_numpy(getattr(checkpoint, name)) for name in BUFFERS}  # off the device, once
    tensors = {f"{name}/{param.name}": table.view(buffers[name], param) for name in BUFFERS for param in table}
    about = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint) if f.name not in BUFFERS}
    about |= {"model": dataclasses.asdict(checkpoint.model), "train": dataclasses.asdict(checkpoint.train)}
    metadata = {"format": FORMAT, "about": json.dumps(about, sort_keys=True)}
    metadata["sha256"] = _hash(tensors, metadata["about"])
    data = safetensors.numpy.save(tensors, metadata)
    partial = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            files.flush_to_disk(file.fileno(), path)
        files.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


def twin(path: Path, other: Path) -> None:
    """Let `other` be the same file, at once: a second name where the system has those, else a copy.

    Files are replaced and never written into, so neither can change under the other's name.
    """
    partial = other.with_name(f"{other.name}.tmp-{os.getpid()}")
    try:
        if other.exists() and other.samefile(path):
            return  # to rename one name of a file to another does nothing, and leaves both
        try:
            os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)
        files.replace(partial, other)
        _sync_folder(other.parent)
    except OSError as error:
        raise _cannot_write(other, error) from error


def _cannot_write(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be written: {error.strerror or error}; free space or choose another --out")


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. Not every system lets a folder be opened; then the rename itself is all there is."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load(path: Path) -> Checkpoint:
    """Read and check a file. Raises CheckpointError, with the reason, unless every part of it is as it was written."""
    if path.is_dir():
        path = path / "best.safetensors"
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; train one with: python train.py")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(f"{path} was not written by this program (format {metadata.get('format')!r}, not {FORMAT!r})")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        if _hash(tensors, metadata["about"]) != metadata["sha256"]:
            raise CheckpointError(f"{path} is damaged: its content does not match its hash; use another copy")
        about = json.loads(metadata["about"])
        about["model"], about["train"] = ModelConfig(**about["model"]), TrainConfig(**about["train"])
        table = ParamTable(MODELS[about["model"].model].init(about["model"]))
        buffers: dict[str, Any] = {name: _flat(table, tensors, name) for name in BUFFERS}
        return Checkpoint(**about, **buffers)
    except CheckpointError:
        raise
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, UserError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _flat(table: ParamTable, tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    buffer = np.zeros(table.size, tensors[f"{name}/{next(iter(table)).name}"].dtype)
    for param in table:
        tensor = tensors[f"{name}/{param.name}"]
        if tensor.shape != param.shape:
            raise ValueError(f"{param.name} has shape {tensor.shape}, the configuration says {param.shape}")
        table.view(buffer, param)[...] = tensor
    return buffer


def _hash(tensors: dict[str, np.ndarray], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()
