"""The configuration of a model and of a run: frozen, checked, with the lecture's stages as presets."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gpt.errors import ConfigError

ModelName = Literal["bigram", "head", "multihead", "feedforward", "residual", "gpt"]
Activation = Literal["gelu", "relu"]


@dataclass(frozen=True)
class ModelConfig:
    """What fixes the parameters and what they mean. The letters of the code: V, T, L, H, C."""

    model: ModelName = "gpt"  # the file of that name in gpt/models/
    vocab_size: int = 65  # V
    block_size: int = 256  # T, the context
    n_layer: int = 6  # L
    n_head: int = 6  # H
    n_embd: int = 384  # C
    dropout: float = 0.0
    activation: Activation = "gelu"
    bias: bool = True  # biases on linear layers and layernorms; q, k and v never have one, as in the lecture
    tied: bool = False  # the head is the token embedding, transposed
    init_std: float = 0.02  # matrices and embeddings start as N(0, init_std); biases at 0, gains at 1

    def __post_init__(self) -> None:
        _require(self.model in get_args(ModelName), "model", self, f"must be one of {', '.join(get_args(ModelName))}")
        for field in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            _require(
                _is_int(getattr(self, field)) and getattr(self, field) >= 1, field, self, "must be a whole number of at least 1"
            )
        _require(self.n_embd % self.n_head == 0, "n_embd", self, f"must be divisible by n_head {self.n_head}")
        _require(_is_number(self.dropout) and 0 <= self.dropout < 1, "dropout", self, "must be in [0, 1)")
        _require(isinstance(self.bias, bool), "bias", self, "must be True or False")
        _require(isinstance(self.tied, bool), "tied", self, "must be True or False")
        one_layer = self.model in ("bigram", "head", "multihead", "feedforward")
        _require(not one_layer or self.n_layer == 1, "n_layer", self, f"must be 1: the {self.model} stage has no blocks to repeat")
        _require(self.model != "head" or self.n_head == 1, "n_head", self, "must be 1: the head stage is one head")
        _require(
            not self.tied or self.model in ("residual", "gpt"), "tied", self, f"must be False: the {self.model} stage cannot tie"
        )
        _require(self.activation in ("gelu", "relu"), "activation", self, "must be gelu or relu")
        _require(_is_number(self.init_std) and self.init_std >= 0, "init_std", self, "must be 0 or more")

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head


@dataclass(frozen=True)
class TrainConfig:
    """How the parameters are found."""

    batch_size: int = 64  # windows of text in one forward pass
    gradient_accumulation_steps: int = 1  # forward passes summed into one update
    shards: int = 1  # parts that each such pass is split into, for threads and ranks; fixes the order of sums, so the bits
    max_iters: int = 5000  # updates
    learning_rate: float = 3e-4
    min_lr: float = 3e-4  # where the cosine ends; equal to learning_rate: a constant rate
    warmup_iters: int = 0
    weight_decay: float = 0.01  # on matrices and embeddings; biases and gains never decay
    beta1: float = 0.9
    beta2: float = 0.999
    grad_clip: float = 0.0  # largest norm of the whole gradient; 0: no clipping
    eval_interval: int = 500
    eval_batches: int = 50  # random training batches in the train loss
    val_chars: int = 2**18  # at most so many characters of the validation split in the val loss, in evenly spread windows; 0: all

    def __post_init__(self) -> None:
        for field in ("batch_size", "gradient_accumulation_steps", "shards", "max_iters", "eval_interval", "eval_batches"):
            _require(
                _is_int(getattr(self, field)) and getattr(self, field) >= 1, field, self, "must be a whole number of at least 1"
            )
        _require(self.shards <= self.batch_size, "shards", self, f"must not exceed batch_size {self.batch_size}")
        for field in ("warmup_iters", "val_chars"):
            _require(
                _is_int(getattr(self, field)) and getattr(self, field) >= 0, field, self, "must be a whole number of at least 0"
            )
        _require(_is_number(self.learning_rate) and self.learning_rate > 0, "learning_rate", self, "must be a number above 0")
        _require(_is_number(self.min_lr) and self.min_lr >= 0, "min_lr", self, "must be 0 or more")
        _require(self.min_lr <= self.learning_rate, "min_lr", self, f"must not exceed learning_rate {self.learning_rate}")
        for field in ("weight_decay", "grad_clip"):
            _require(_is_number(getattr(self, field)) and getattr(self, field) >= 0, field, self, "must be 0 or more")
        for field in ("beta1", "beta2"):
            _require(_is_number(getattr(self, field)) and 0 <= getattr(self, field) < 1, field, self, "must be in [0, 1)")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(condition: bool, field: str, config: Any, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{field} {rule}, not {getattr(config, field)!r}")


@dataclass(frozen=True)
class Preset:
    """A named pair of configurations, and the validation loss its source reports."""

    model: ModelConfig
    train: TrainConfig
    reported: str


def _stage(model: ModelName, reported: str, n_layer: int = 1, n_head: int = 4, learning_rate: float = 3e-3) -> Preset:
    """A small stage of the lecture: context 8, 32 channels, batch 32, 5000 steps. The schedule is ours."""
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


def override(config: Any, fields: dict[str, Any]) -> Any:
    """Return the configuration with some fields replaced, checked again."""
    return dataclasses.replace(config, **fields)
