"""A checkpoint: the whole run in one file, written whole or not at all, and checked when read. No pickle.

The file is in the safetensors format. Its metadata carries a hash over every tensor, because the format itself has no checksum.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
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
from gpt.limits import available_memory
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.training.step import TrainState
from tensorlite.arrays import to_numpy

FORMAT = "tensorlite-checkpoint-1"
BUFFERS = ("params", "m", "v")
SMALL_HEADER = 2**20  # bytes: up to here a header may be larger than the tensors it describes
LARGE_FILE = 2**26  # bytes: above it the machine is asked for its memory
ADDED_FIELDS = {"val_chars": 0}  # fields that are newer than the first files of this format: their values in such a file
MAX_FIELDS = 200  # a description has about forty


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

    def __post_init__(self) -> None:
        """What `load` refuses is never saved."""
        text = self.vocabulary
        _require(isinstance(text, str) and len(set(text)) == len(text), "vocabulary", "must be distinct characters")
        _require(len(text) == self.model.vocab_size, "vocabulary", f"must have {self.model.vocab_size} characters, not {len(text)}")
        _require(not any("\ud800" <= c <= "\udfff" for c in text), "vocabulary", "has a surrogate, which is no character")
        _require(type(self.seed) is int and 0 <= self.seed < 2**63, "seed", "must be a whole number in [0, 2^63)")
        _require(
            type(self.step) is int and 0 <= self.step <= self.train.max_iters, "step", "must be a whole number up to max_iters"
        )
        _require(isinstance(self.val_loss, float), "val_loss", "must be a number")
        _require(isinstance(self.best_val, float) and not math.isnan(self.best_val), "best_val", "must be a number")
        _require(isinstance(self.data_sha256, str), "data_sha256", "must be text")
        _require(isinstance(self.drop_unknown, bool), "drop_unknown", "must be True or False")

    @property
    def table(self) -> ParamTable:
        return ParamTable(MODELS[self.model.model].init(self.model))

    def state(self, xp: Any) -> TrainState:
        """The training state that the file froze, on a device."""
        params, m, v = (xp.array(buffer) for buffer in (self.params, self.m, self.v))  # copies: training writes
        return TrainState(self.table, params, xp.zeros_like(params), m, v, self.step)


def _require(condition: bool, field: str, rule: str) -> None:
    if not condition:
        raise ValueError(f"{field} {rule}")


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: a temporary file beside the target, flushed to the disk, then renamed over it.

    Raises CheckpointError when the file cannot be written or a value is not finite; an earlier file is then still whole.
    """
    table = checkpoint.table
    buffers = {name: to_numpy(getattr(checkpoint, name)) for name in BUFFERS}  # off the device, once
    tensors = {f"{name}/{param.name}": table.view(buffers[name], param) for name in BUFFERS for param in table}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise CheckpointError(
                f"{path} is left as it was: at step {checkpoint.step}, {name} is not finite; lower --learning-rate"
            )
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


def link_or_copy(path: Path, other: Path) -> None:
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
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
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
    """Read and check a file. Raises CheckpointError, with the reason, unless every part of it is as it was written.

    Nothing in the file is trusted. Its hash finds damage, but anyone can compute one, so whatever the file claims is compared with
    its size and its configuration before memory is taken for it.
    """
    try:
        if path.is_dir():
            path = path / "best.safetensors"
        if not path.is_file():
            raise CheckpointError(f"no checkpoint at {path}; train one with: python -m gpt.train")
        _check_sizes(path)
        with safetensors.safe_open(path, framework="numpy") as file:
            return _read(file)
    except CheckpointError:
        raise
    except MemoryError as error:
        raise CheckpointError(f"{path} cannot be read: it does not fit this machine's memory") from error
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, ArithmeticError, RecursionError, UserError) as error:
        reason = repr(str(error)[:300])[1:-1]  # one line, whatever a stranger's file put into it
        raise CheckpointError(f"{path} cannot be read: {reason}") from error


def _check_sizes(path: Path) -> None:
    """Refuse a header much larger than the tensors it describes, and a file larger than the memory."""
    with open(path, "rb") as file:
        size, header = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
    if header > SMALL_HEADER + 2 * (size - header):
        raise ValueError(f"its header claims {header} bytes, too many for a file of {size}")
    if size > LARGE_FILE and size > (available_memory() or size):
        raise MemoryError


def _read(file: Any) -> Checkpoint:
    """An open safetensors file's checkpoint. Raises ValueError or UserError where it is not what `save` writes."""
    metadata = file.metadata() or {}
    _check_format(metadata)
    about = _parse_about(metadata["about"])
    model = about["model"]
    names = file.keys()
    if model.n_layer > len(names):  # first: the loops below are as long as the configuration says
        raise ValueError(f"n_layer is {model.n_layer}, but there are {len(names)} tensors")
    params = [param for param in MODELS[model.model].init(model) if param.shape is not None]
    shapes = {f"{buffer}/{param.name}": list(param.shape or ()) for buffer in BUFFERS for param in params}
    unexpected = sorted(shapes.keys() ^ set(names))
    if unexpected:
        raise ValueError(f"tensor {unexpected[0]} is {'missing' if unexpected[0] in shapes else 'none of this model'}")
    headers = {name: file.get_slice(name) for name in names}
    for name, header in headers.items():
        if header.get_shape() != shapes[name]:
            raise ValueError(f"{name} has shape {header.get_shape()}, the configuration says {shapes[name]}")
    dtypes = {header.get_dtype() for header in headers.values()}
    if dtypes not in ({"F32"}, {"F64"}):
        raise ValueError(f"its numbers are {', '.join(sorted(dtypes))}, not all F32 or all F64")

    table = ParamTable(params)
    buffers: dict[str, Any] = {buffer: np.zeros(table.size, np.float32 if dtypes == {"F32"} else np.float64) for buffer in BUFFERS}
    tensors = {f"{buffer}/{p.name}": table.view(buffers[buffer], p) for buffer in BUFFERS for p in params}
    for name, tensor in tensors.items():
        tensor[...] = file.get_tensor(name)
    if _hash(tensors, metadata["about"]) != metadata["sha256"]:
        raise ValueError("it is damaged: its content does not match its hash; use another copy")
    return Checkpoint(**about, **buffers)


def _check_format(metadata: dict[str, str]) -> None:
    """Refuse other programs' files and later formats. What the rule for later formats is: docs/reliability.md."""
    name = metadata.get("format", "")
    if name != FORMAT:
        if name.startswith(FORMAT[:-1]):
            version = metadata.get("version", "newer than this one")[:20]
            raise ValueError(f"it is a {name[:40]}, this program reads {FORMAT}; it needs tensorlite {version}")
        raise ValueError(f"it was not written by this program (format {name[:40]!r}, not {FORMAT!r})")
    if metadata.keys() != {"format", "about", "sha256"}:
        raise ValueError(f"its metadata has the keys {', '.join(sorted(metadata))}")


def _parse_about(text: str) -> dict[str, Any]:
    """All fields of a checkpoint but its tensors, from JSON. The configurations are checked."""
    if sum(text.count(mark) for mark in "[{,") > MAX_FIELDS:  # this bounds the memory and the depth of the parsed JSON
        raise ValueError("its description has too many fields")
    about = _fields_of(Checkpoint, json.loads(text))
    about["model"] = ModelConfig(**_fields_of(ModelConfig, about["model"]))
    about["train"] = TrainConfig(**_fields_of(TrainConfig, about["train"]))
    return about


def _fields_of(kind: type, given: Any) -> dict[str, Any]:
    """The fields of a dataclass as a file gives them: one that was added later may be missing, none is unknown."""
    if not isinstance(given, dict):
        raise ValueError(f"the fields of its {kind.__name__} are no JSON object")
    names = {field.name for field in dataclasses.fields(kind)} - set(BUFFERS)
    given = {name: value for name, value in ADDED_FIELDS.items() if name in names} | given
    unknown, missing = sorted(given.keys() - names), sorted(names - given.keys())
    if unknown:
        raise ValueError(f"it has the field {unknown[0]!r}, which this version does not know; install a newer tensorlite")
    if missing:
        raise ValueError(f"the field {missing[0]} is missing")
    return given


def _hash(tensors: dict[str, np.ndarray], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()
