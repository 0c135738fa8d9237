"""A checkpoint: the whole run in one file, written whole or not at all, and checked when it is read.

The file is in the safetensors format, so nothing is unpickled. Its metadata has a hash over every tensor, because the format itself
has no checksum.
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
from gpt.params import Param, ParamTable
from gpt.training.step import TrainState
from tensorlite.arrays import to_numpy
from tensorlite.loss_scale import LossScale

FORMAT = "tensorlite-checkpoint-1"
BUFFERS = ("params", "m", "v")
SMALL_HEADER = 2**20  # bytes: up to here a header may be larger than the tensors it describes
LARGE_FILE = 2**26  # bytes: a larger file is compared with the memory of the machine
# Fields that are newer than the first files of this format, and what their absence means.
ADDED_FIELDS: dict[str, Any] = {"val_chars": 0, "loss_scale": None}
MAX_FIELDS = 200  # a description has about forty


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file. The buffers are flat, in the layout of `table`, on the host."""

    model: ModelConfig
    train: TrainConfig
    vocabulary: str
    seed: int
    step: int
    val_loss: float  # at this step; NaN: the run was interrupted before its evaluation
    best_val: float  # the lowest of the run so far
    data_sha256: str
    drop_unknown: bool  # whether characters outside the vocabulary were left out of the text
    params: np.ndarray  # (size,), like m and v
    m: np.ndarray
    v: np.ndarray
    loss_scale: LossScale | None = None  # of a float16 run

    def __post_init__(self) -> None:
        """Check the fields: what `load` would refuse is never saved. Raises ValueError."""
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
        """Return the training state that was saved, on a device. Its buffers are copies, because training writes into them."""
        params = xp.array(self.params)
        return TrainState(self.table, params, xp.zeros_like(params), xp.array(self.m), xp.array(self.v), self.step)


def _require(condition: bool, field: str, rule: str) -> None:
    if not condition:
        raise ValueError(f"{field} {rule}")


def _named_tensors(table: ParamTable, buffers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters' views of each buffer, by their names in the file."""
    return {f"{name}/{param.name}": table.view(flat, param) for name, flat in buffers.items() for param in table}


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: a temporary file beside the target is flushed to the disk and then renamed over the target.

    Raises CheckpointError if the file cannot be written or a value is not finite. An earlier file is then still whole.
    """
    buffers = {name: to_numpy(getattr(checkpoint, name)) for name in BUFFERS}  # off the device, once
    tensors = _named_tensors(checkpoint.table, buffers)
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise CheckpointError(
                f"{path} is left as it was: at step {checkpoint.step}, {name} is not finite; lower --learning-rate"
            )
    about = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint) if f.name not in BUFFERS}
    about |= {"model": dataclasses.asdict(checkpoint.model), "train": dataclasses.asdict(checkpoint.train)}
    if checkpoint.loss_scale is None:
        del about["loss_scale"]  # so that earlier versions can read the file
    else:
        about["loss_scale"] = dataclasses.asdict(checkpoint.loss_scale)
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
    """Make `other` a second name of the file, atomically, or a copy of it where the file system has no second names.

    A file is replaced and never written into, so a later save under one name leaves the other name's content alone.
    """
    partial = other.with_name(f"{other.name}.tmp-{os.getpid()}")
    try:
        if other.exists() and other.samefile(path):
            return  # a rename of one name of a file to another of its names does nothing, and leaves both
        try:
            os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)
            with open(partial, "rb+") as copy:
                files.flush_to_disk(copy.fileno(), partial)
        files.replace(partial, other)
        _sync_folder(other.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise _cannot_write(other, error) from error


def _cannot_write(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be written: {error.strerror or error}; free space or choose another --out")


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. Where the system does not let a folder be opened, there is no more to do than the rename."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load(path: Path) -> Checkpoint:
    """Read and check a file, or best.safetensors of a folder.

    Nothing in the file is trusted. Its hash finds damage, but anyone can compute a hash, so the sizes that the file claims are
    compared with its length and its configuration before memory is taken for them.

    Raises CheckpointError, with the reason, unless every part of the file is as it was written.
    """
    try:
        if path.is_dir():
            best, last = path / "best.safetensors", path / "last.safetensors"
            if last.exists() and not best.exists():
                raise CheckpointError(f"{path} has no {best.name}; name its last checkpoint: {last}")
            path = best
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
        reason = repr(str(error)[:300])[1:-1]  # escaped and cut to one line, because it may quote a stranger's file
        raise CheckpointError(f"{path} cannot be read: {reason}") from error


def _check_sizes(path: Path) -> None:
    """Refuse a header much larger than the tensors it describes, and a file larger than the memory."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = int.from_bytes(file.read(8), "little")
    if header > SMALL_HEADER + 2 * (size - header):
        raise ValueError(f"its header claims {header} bytes, too many for a file of {size}")
    if size > LARGE_FILE and size > (available_memory() or size):
        raise MemoryError


def _read(file: Any) -> Checkpoint:
    """Return the checkpoint in an open safetensors file. Raises ValueError or UserError if `save` does not write such a file."""
    metadata = file.metadata() or {}
    _check_format(metadata)
    about = _parse_about(metadata["about"])
    model = about["model"]
    if model.n_layer > len(file.keys()):  # first: the loops below are as long as the configuration says
        raise ValueError(f"n_layer is {model.n_layer}, but there are {len(file.keys())} tensors")
    params = [param for param in MODELS[model.model].init(model) if param.shape is not None]
    dtype = _check_tensors(file, params)

    table = ParamTable(params)
    buffers: dict[str, Any] = {name: np.zeros(table.size, dtype) for name in BUFFERS}
    tensors = _named_tensors(table, buffers)
    for name, tensor in tensors.items():
        tensor[...] = file.get_tensor(name)
    if _hash(tensors, metadata["about"]) != metadata["sha256"]:
        raise ValueError("it is damaged: its content does not match its hash; use another copy")
    return Checkpoint(**about, **buffers)


def _check_tensors(file: Any, params: list[Param]) -> type:
    """Compare the tensors' names and shapes with those of the model, and return their dtype. Reads no tensor."""
    shapes = {f"{buffer}/{param.name}": list(param.shape or ()) for buffer in BUFFERS for param in params}
    unexpected = sorted(shapes.keys() ^ set(file.keys()))
    if unexpected:
        raise ValueError(f"tensor {unexpected[0]} is {'missing' if unexpected[0] in shapes else 'none of this model'}")
    dtypes = set()
    for name, shape in shapes.items():
        header = file.get_slice(name)
        if header.get_shape() != shape:
            raise ValueError(f"{name} has shape {header.get_shape()}, the configuration says {shape}")
        dtypes.add(header.get_dtype())
    if dtypes not in ({"F32"}, {"F64"}):
        raise ValueError(f"its tensors are {', '.join(sorted(dtypes))}, not all F32 or all F64")
    return np.float32 if dtypes == {"F32"} else np.float64


def _check_format(metadata: dict[str, str]) -> None:
    """Refuse other programs' files and later formats. docs/reliability.md has the rule for later formats."""
    name = metadata.get("format", "")
    if name != FORMAT:
        if name.startswith(FORMAT[:-1]):
            version = metadata.get("version", "newer than this one")[:20]
            raise ValueError(f"it is a {name[:40]}, this program reads {FORMAT}; it needs tensorlite {version}")
        raise ValueError(f"it was not written by this program (format {name[:40]!r}, not {FORMAT!r})")
    if metadata.keys() != {"format", "about", "sha256"}:
        raise ValueError(f"its metadata has the keys {', '.join(sorted(metadata))}")


def _parse_about(text: str) -> dict[str, Any]:
    """Return all fields of a checkpoint but its tensors, from JSON. The configurations check themselves."""
    if sum(text.count(mark) for mark in "[{,") > MAX_FIELDS:  # this bounds the memory and the depth of the parsed JSON
        raise ValueError("its description has too many fields")
    about = _fields_of(Checkpoint, json.loads(text))
    about["model"] = ModelConfig(**_fields_of(ModelConfig, about["model"]))
    about["train"] = TrainConfig(**_fields_of(TrainConfig, about["train"]))
    if about["loss_scale"] is not None:
        about["loss_scale"] = LossScale(**_fields_of(LossScale, about["loss_scale"]))
    return about


def _fields_of(kind: type, given: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as a file gives them. A field that was added later may be missing, and none is unknown."""
    if not isinstance(given, dict):
        raise ValueError(f"the fields of its {kind.__name__} are no JSON object")
    names = {field.name for field in dataclasses.fields(kind)} - set(BUFFERS)
    given = {name: value for name, value in ADDED_FIELDS.items() if name in names} | given
    unknown = sorted(given.keys() - names)
    missing = sorted(names - given.keys())
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
