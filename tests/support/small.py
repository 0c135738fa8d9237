"""Small models for tests: B, T, C, H, D, V all different, so that a swapped axis cannot hide."""

import numpy as np

from gpt.config import ModelConfig
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.training.step import TrainState

PANGRAMS = "the quick brown fox jumps over the lazy dog. " * 20
SMALL = {"vocab_size": 11, "block_size": 5, "n_layer": 2, "n_head": 3, "n_embd": 6}


def config_of(model: str, **fields) -> ModelConfig:
    stage = {"n_layer": 1} if model in ("bigram", "head", "multihead", "feedforward") else {}
    stage |= {"n_head": 1} if model == "head" else {}
    return ModelConfig(model=model, **SMALL | stage | fields)


def start(config: ModelConfig, seed: int = 0, dtype=np.float64, std: float = 0.0) -> TrainState:
    table = ParamTable(MODELS[config.model].init(config))
    flat = table.init_params(seed, dtype)
    for view in table.views(flat) if std else []:
        view += (std * np.random.default_rng(seed).standard_normal(view.shape)).astype(dtype)
    return TrainState.start(table, flat, np)


def text(config: ModelConfig, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.random.default_rng(seed).integers(0, config.vocab_size, (2, rows, config.block_size)))
