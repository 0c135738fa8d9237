"""The setup of a new, resumed or fine-tuning run, and which fields may change when it resumes."""

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config import ModelConfig, Preset, TrainConfig, override
from gpt.console import note
from gpt.data import Corpus, Source, load_corpus
from gpt.errors import ConfigError, DataError, TrainingError, UnknownCharactersError
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.tokenizer import CharTokenizer
from gpt.training import checkpoint, run_dir
from gpt.training.checkpoint import Checkpoint
from gpt.training.step import Task, TrainState
from tensorlite.version import __version__


@dataclass(frozen=True)
class RunSetup:
    """Everything that a run needs but a device."""

    out: Path
    model: ModelConfig
    train: TrainConfig
    corpus: Corpus
    seed: int
    weights: Checkpoint | None = None  # to start from; None: the weights are drawn from the seed
    resumed: bool = False  # whether the run continues the checkpoint's step, moments and best loss too
    drop_unknown: bool = False  # whether characters outside the vocabulary are left out of the text

    def params(self) -> np.ndarray:
        """Return the parameters to start from: (size,), on the host."""
        if self.weights is not None:
            return self.weights.params
        return ParamTable(MODELS[self.model.model].init(self.model)).init_params(self.seed)

    def task(self, xp: Any) -> Task:
        """Return what every step of the run depends on, with the text on a device. xp: the array library of that device."""
        return Task(MODELS[self.model.model], self.model, self.train, data=xp.asarray(self.corpus.train), seed=self.seed)

    def state(self, xp: Any) -> TrainState:
        """Return the state to start from, on a device: the checkpoint's state if the run is resumed, else that of step 0."""
        if self.resumed and self.weights is not None:
            return self.weights.state(xp)
        table = ParamTable(MODELS[self.model.model].init(self.model))
        return TrainState.start(table, self.params(), xp)

    def facts(self) -> dict[str, object]:
        """Return everything that fixes what the run computes, by name and each in a few words, for the ranks to compare."""
        vocabulary = self.corpus.tokenizer.vocabulary
        facts: dict[str, object] = {
            "the version": __version__,
            "the text": _digest(self.corpus.sha256.encode()),
            "the vocabulary": _digest(vocabulary.encode("utf-8", "surrogatepass")),
            "seed": self.seed,
            "resume": self.resumed,
            "drop_unknown": self.drop_unknown,
        }
        if self.weights is not None:
            buffers = (getattr(self.weights, name) for name in checkpoint.BUFFERS)
            facts["the checkpoint"] = f"{_digest(*buffers)} at step {self.weights.step}"
            if self.weights.loss_scale is not None:
                facts["the loss scale"] = str(self.weights.loss_scale)
        return facts | dataclasses.asdict(self.model) | dataclasses.asdict(self.train)


def _digest(*parts: Any) -> str:
    """Return twelve hexadecimal digits of a hash over some bytes."""
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
    """Set up a preset, with some of its fields changed, on a text whose characters are the vocabulary."""
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
    """Set up a run on another text with the weights, model and vocabulary of a checkpoint.

    path: of the checkpoint.
    base: the training configuration before train_fields change it; None: the checkpoint's, but for its shards.
    drop_unknown: whether to leave characters out of the text that the vocabulary lacks. Otherwise they are a DataError.
    """
    start = checkpoint.load(path)
    model = _check_unchanged(start.model, model_fields, may_change=("dropout",))
    train = _override_train(base or override(start.train, {"shards": 1}), train_fields)
    try:
        corpus = load_corpus(
            data, model.block_size, tokenizer=CharTokenizer(start.vocabulary), drop_unknown=drop_unknown, val_data=val_data
        )
    except UnknownCharactersError as error:
        raise DataError(f"{error}; --drop-unknown leaves them out") from error
    return RunSetup(out, model, train, corpus, seed, weights=start, drop_unknown=drop_unknown)


def resume(
    out: Path,
    model_fields: dict[str, Any],
    train_fields: dict[str, Any],
    data: Source,
    seed: int | None = None,
    val_data: Source = None,
) -> RunSetup:
    """Set up the run that `last.safetensors` in a folder has saved, with some training fields changed (a longer max_iters, say).

    If that file is missing, the run goes on from its best checkpoint, and a note says so.

    Raises ConfigError for a model field or a seed that is not the run's, because they fix what is computed.
    """
    path = _checkpoint_to_resume(out)
    if path == run_dir.best_checkpoint(out):
        note(f"{run_dir.last_checkpoint(out)} is missing: the run goes on from {path}")
    start = checkpoint.load(path)
    if seed not in (None, start.seed):
        raise ConfigError(f"seed is {start.seed} in the checkpoint and cannot become {seed}; start a new run for that")
    model = _check_unchanged(start.model, model_fields)
    train = _override_train(start.train, train_fields)
    if train.max_iters < start.step:
        raise ConfigError(f"max_iters {train.max_iters} is behind the checkpoint, which is at step {start.step}")
    corpus = load_corpus(
        data,
        model.block_size,
        tokenizer=CharTokenizer(start.vocabulary),
        drop_unknown=start.drop_unknown,
        sha256=start.data_sha256,
        val_data=val_data,
    )
    return RunSetup(out, model, train, corpus, start.seed, weights=start, resumed=True, drop_unknown=start.drop_unknown)


def require_latest(setup: RunSetup) -> None:
    """Raise TrainingError if another process has continued a resumed run since its checkpoint was read. Call it under the lock."""
    assert setup.weights is not None
    step = checkpoint.load(_checkpoint_to_resume(setup.out)).step
    if step != setup.weights.step:
        read = f"step {setup.weights.step} was read, and another process has since saved step {step}"
        raise TrainingError(f"{setup.out}: {read}; give the same command again")


def _checkpoint_to_resume(out: Path) -> Path:
    """Return last.safetensors, or best.safetensors if there is only that."""
    last, best = run_dir.last_checkpoint(out), run_dir.best_checkpoint(out)
    return best if os.path.exists(best) and not os.path.exists(last) else last


def _check_unchanged(model: ModelConfig, fields: dict[str, Any], may_change: tuple[str, ...] = ()) -> ModelConfig:
    """Return the model with these fields. Raises ConfigError if one that may not change would change."""
    for field, value in fields.items():
        if field not in may_change and value != getattr(model, field):
            raise ConfigError(
                f"{field} is {getattr(model, field)} in the checkpoint and cannot become {value}; start a new run for that"
            )
    return override(model, fields)


def _override_train(base: TrainConfig, fields: dict[str, Any]) -> TrainConfig:
    """Return the configuration with these fields. A new learning rate scales min_lr with it, unless min_lr is given too."""
    if fields.get("learning_rate", base.learning_rate) != base.learning_rate and "min_lr" not in fields:
        fields = fields | {"min_lr": fields["learning_rate"] * (base.min_lr / base.learning_rate)}
    return override(base, fields)
