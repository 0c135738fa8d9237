"""What fixes a new, resumed or fine-tuning run, and which fields may change when it resumes."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config import ModelConfig, Preset, TrainConfig, override
from gpt.console import note
from gpt.data import Corpus, Source, load_corpus
from gpt.errors import ConfigError, DataError, UnknownCharactersError
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.tokenizer import CharTokenizer
from gpt.training import checkpoint, run_dir
from gpt.training.checkpoint import Checkpoint
from gpt.training.step import Task, TrainState
from tensorlite.version import __version__


@dataclass(frozen=True)
class RunSetup:
    """Everything a run needs but a device."""

    out: Path
    model: ModelConfig
    train: TrainConfig
    corpus: Corpus
    seed: int
    weights: Checkpoint | None = None  # to start from; None: drawn from the seed
    resumed: bool = False  # whether to take up the checkpoint's step, moments and best loss as well
    drop_unknown: bool = False  # whether characters outside the vocabulary are left out of the text

    def params(self) -> np.ndarray:
        """The parameters to start from: (size,), on the host."""
        if self.weights is not None:
            return self.weights.params
        return ParamTable(MODELS[self.model.model].init(self.model)).init_params(self.seed)

    def task(self, xp: Any) -> Task:
        """What every step of the run depends on, its text on a device. xp: the device's array library."""
        return Task(MODELS[self.model.model], self.model, self.train, data=xp.asarray(self.corpus.train), seed=self.seed)

    def state(self, xp: Any) -> TrainState:
        """The state to start from, on a device: the checkpoint's if the run is resumed, else that of step 0."""
        if self.resumed and self.weights is not None:
            return self.weights.state(xp)
        table = ParamTable(MODELS[self.model.model].init(self.model))
        return TrainState.start(table, self.params(), xp)

    def facts(self) -> dict[str, object]:
        """Everything that fixes what the run computes, by name, in a few words each: for ranks to compare."""
        facts: dict[str, object] = {"the version": __version__, "the text": _digest(self.corpus.sha256.encode())}
        facts["the vocabulary"] = _digest(self.corpus.tokenizer.vocabulary.encode("utf-8", "surrogatepass"))
        facts |= {"seed": self.seed, "resume": self.resumed, "drop_unknown": self.drop_unknown}
        if self.weights is not None:
            buffers = (getattr(self.weights, name) for name in checkpoint.BUFFERS)
            facts["the checkpoint"] = f"{_digest(*buffers)} at step {self.weights.step}"
        return facts | dataclasses.asdict(self.model) | dataclasses.asdict(self.train)


def _digest(*parts: Any) -> str:
    """Twelve hexadecimal digits that tell some bytes from others."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:12]


def new_run(
    preset: Preset,
    model_fields: dict[str, Any],
    train_fields: dict[str, Any],
    out: Path,
    data: Source,
    seed: int,
    val_data: Source = None,
) -> RunSetup:
    """A preset with some fields changed, on a text whose characters make the vocabulary."""
    model = override(preset.model, model_fields)
    train = _override_train(preset.train, train_fields)
    corpus = load_corpus(data, model.block_size, val_data=val_data)
    model = override(model, {"vocab_size": len(corpus.tokenizer)})
    return RunSetup(out, model, train, corpus, seed)


def fine_tune(
    path: Path,
    base: TrainConfig | None,
    model_fields: dict[str, Any],
    train_fields: dict[str, Any],
    out: Path,
    data: Source,
    drop_unknown: bool,
    seed: int,
    val_data: Source = None,
) -> RunSetup:
    """A checkpoint's weights, model and vocabulary on another text. base: the training fields; the checkpoint's if None."""
    start = checkpoint.load(path)
    model = _check_unchanged(start.model, model_fields, may_change=("dropout",))
    train = _override_train(base or start.train, train_fields)
    try:
        corpus = load_corpus(data, model.block_size, CharTokenizer(start.vocabulary), drop_unknown, val_data=val_data)
    except UnknownCharactersError as error:
        raise DataError(f"{error}; --drop-unknown leaves them out") from error
    return RunSetup(out, model, train, corpus, seed, start, drop_unknown=drop_unknown)


def resume(
    out: Path,
    model_fields: dict[str, Any],
    train_fields: dict[str, Any],
    data: Source,
    seed: int | None = None,
    val_data: Source = None,
) -> RunSetup:
    """The run that `last.safetensors` in a folder froze, training fields possibly changed (a longer max_iters, say).

    Where that file is gone, the run goes on from its best checkpoint, with a note.

    Model fields, and the seed where it is given, must be those of the run: they fix what is computed.
    """
    path = run_dir.last_checkpoint(out)
    if not path.exists() and run_dir.best_checkpoint(out).exists():
        path = run_dir.best_checkpoint(out)
        note(f"{run_dir.last_checkpoint(out)} is missing: the run goes on from {path}")
    start = checkpoint.load(path)
    if seed not in (None, start.seed):
        raise ConfigError(f"seed is {start.seed} in the checkpoint and cannot become {seed}; start a new run for that")
    model = _check_unchanged(start.model, model_fields)
    train = _override_train(start.train, train_fields)
    if train.max_iters < start.step:
        raise ConfigError(f"max_iters {train.max_iters} is behind the checkpoint, which is at step {start.step}")
    tokenizer = CharTokenizer(start.vocabulary)
    corpus = load_corpus(data, model.block_size, tokenizer, start.drop_unknown, start.data_sha256, val_data)
    return RunSetup(out, model, train, corpus, start.seed, start, resumed=True, drop_unknown=start.drop_unknown)


def _check_unchanged(model: ModelConfig, fields: dict[str, Any], may_change: tuple[str, ...] = ()) -> ModelConfig:
    for field, value in fields.items():
        if field not in may_change and value != getattr(model, field):
            raise ConfigError(
                f"{field} is {getattr(model, field)} in the checkpoint and cannot become {value}; start a new run for that"
            )
    return override(model, fields)


def _override_train(base: TrainConfig, fields: dict[str, Any]) -> TrainConfig:
    """A new learning rate takes min_lr along, in the same proportion, unless that is given too."""
    if "learning_rate" in fields and "min_lr" not in fields:
        fields = fields | {"min_lr": fields["learning_rate"] * (base.min_lr / base.learning_rate)}
    return override(base, fields)
