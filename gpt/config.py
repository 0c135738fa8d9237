"""The configuration of a model and of a run: frozen, checked, with the lecture's stages as presets."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from gpt.errors import ConfigError

MOST = 2**40  # of any number in a configuration, so that products of a few of them are numbers of 64 bits or floats
MOST_LAYERS = 10_000  # each has parameters to list before their memory can be estimated
ModelName = Literal["bigram", "head", "multihead", "feedforward", "residual", "gpt"]
Activation = Literal["gelu", "relu"]


@dataclass(frozen=True)
class ModelConfig:
    """The fields that fix the parameters and their meaning. The comments give the letters that the code uses."""

    model: ModelName = "gpt"  # the file of that name in gpt/models/
    vocab_size: int = 65  # V
    block_size: int = 256  # T, the context length
    n_layer: int = 6  # L
    n_head: int = 6  # H
    n_embd: int = 384  # C
    dropout: float = 0.0
    activation: Activation = "gelu"
    bias: bool = True  # of linear layers and layernorms; q, k and v never have one, as in the lecture
    tied: bool = False  # the output head is the transposed token embedding
    init_std: float = 0.02  # matrices and embeddings start as N(0, init_std^2); biases at 0, gains at 1

    def __post_init__(self) -> None:
        _require(self, "model", self.model in get_args(ModelName), f"must be one of {', '.join(get_args(ModelName))}")
        for field in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            _require_whole(self, field, least=1)
        _require(self, "n_embd", self.n_embd % self.n_head == 0, f"must be divisible by n_head {self.n_head}")
        _require(self, "dropout", _is_number(self.dropout) and 0 <= self.dropout < 1, "must be in [0, 1)")
        for field in ("bias", "tied"):
            _require(self, field, isinstance(getattr(self, field), bool), "must be True or False")
        repeats_blocks = self.model in ("residual", "gpt")
        if not repeats_blocks:
            _require(self, "n_layer", self.n_layer == 1, f"must be 1: the {self.model} stage has no blocks to repeat")
            _require(self, "tied", not self.tied, f"must be False: the {self.model} stage cannot tie its head")
        if self.model == "head":
            _require(self, "n_head", self.n_head == 1, "must be 1: the head stage is one head")
        _require(self, "activation", self.activation in get_args(Activation), "must be gelu or relu")
        _require_at_least_0(self, "init_std")

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head


@dataclass(frozen=True)
class TrainConfig:
    """The fields of training: batches, schedule, optimizer and evaluation."""

    batch_size: int = 64  # windows of text in one forward pass
    gradient_accumulation_steps: int = 1  # forward passes summed into one update
    shards: int = 1  # parts of each pass, for threads and ranks; they fix the order of sums, and so every bit of the result
    max_iters: int = 5000  # updates
    learning_rate: float = 3e-4
    min_lr: float = 3e-4  # at the end of the cosine; if it equals learning_rate, the rate is constant
    warmup_iters: int = 0
    weight_decay: float = 0.01  # on matrices and embeddings; biases and gains never decay
    beta1: float = 0.9
    beta2: float = 0.999
    grad_clip: float = 0.0  # largest norm of the whole gradient; 0: no clipping
    eval_interval: int = 500
    eval_batches: int = 50  # random batches in the training loss
    val_chars: int = 2**18  # largest number of characters in the validation loss, in evenly spread windows; 0: all

    def __post_init__(self) -> None:
        for field in ("batch_size", "gradient_accumulation_steps", "shards", "max_iters", "eval_interval", "eval_batches"):
            _require_whole(self, field, least=1)
        _require(self, "shards", self.shards <= self.batch_size, f"must not exceed batch_size {self.batch_size}")
        for field in ("warmup_iters", "val_chars"):
            _require_whole(self, field, least=0)
        _require(self, "learning_rate", _is_number(self.learning_rate) and self.learning_rate > 0, "must be a number above 0")
        for field in ("min_lr", "weight_decay", "grad_clip"):
            _require_at_least_0(self, field)
        _require(self, "min_lr", self.min_lr <= self.learning_rate, f"must not exceed learning_rate {self.learning_rate}")
        for field in ("beta1", "beta2"):
            value = getattr(self, field)
            _require(self, field, _is_number(value) and 0 <= value < 1, "must be in [0, 1)")


Config = ModelConfig | TrainConfig


def _require(config: Config, field: str, condition: bool, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{field} {rule}, not {getattr(config, field)!r}")


def _require_whole(config: Config, field: str, least: int) -> None:
    value = getattr(config, field)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    _require(config, field, is_whole and value >= least, f"must be a whole number of at least {least}")
    most = MOST_LAYERS if field == "n_layer" else MOST
    _require(config, field, value <= most, f"must not exceed {most:,}")


def _require_at_least_0(config: Config, field: str) -> None:
    value = getattr(config, field)
    _require(config, field, _is_number(value) and value >= 0, "must be 0 or more")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Preset:
    """A model and a training configuration."""

    model: ModelConfig
    train: TrainConfig
    reported: str  # the validation loss that the source reports


def _stage(model: ModelName, reported: str, n_layer: int = 1, n_head: int = 4, learning_rate: float = 3e-3) -> Preset:
    """Return a small stage of the lecture: context 8, 32 channels, batch 32, 5000 steps. The learning-rate schedule is ours."""
    return Preset(
        ModelConfig(model, block_size=8, n_layer=n_layer, n_head=n_head, n_embd=32, init_std=0.1),
        TrainConfig(batch_size=32, learning_rate=learning_rate, min_lr=1e-4, warmup_iters=100, eval_interval=500, eval_batches=200),
        reported,
    )


PRESETS: dict[str, Preset] = {
    "bigram": _stage("bigram", "2.5", learning_rate=1e-2),
    "head": _stage("head", "2.40", n_head=1),
    "multihead": _stage("multihead", "2.28"),
    "feedforward": _stage("feedforward", "2.24"),
    "residual": _stage("residual", "2.08", n_layer=3),
    "layernorm": _stage("gpt", "2.06", n_layer=3),
    "laptop": Preset(
        ModelConfig(block_size=64, n_layer=4, n_head=4, n_embd=128),
        TrainConfig(
            batch_size=12,
            max_iters=2000,
            learning_rate=2e-3,
            min_lr=1e-4,
            warmup_iters=100,
            weight_decay=0.1,
            beta2=0.99,
            grad_clip=1.0,
            eval_interval=250,
            eval_batches=100,
        ),
        "1.88",
    ),
    "shakespeare": Preset(ModelConfig(dropout=0.2), TrainConfig(eval_interval=250), "1.48"),
}

STAGES = ("bigram", "head", "multihead", "feedforward", "residual", "layernorm")


AnyConfig = TypeVar("AnyConfig", ModelConfig, TrainConfig)


def override(config: AnyConfig, fields: dict[str, Any]) -> AnyConfig:
    """Return the configuration with some fields replaced. It is checked again."""
    return dataclasses.replace(config, **fields)
