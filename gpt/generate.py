"""Writing text: one token at a time, each drawn from what the model thinks comes next."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gpt.config import ModelConfig
from gpt.errors import ConfigError
from tensorlite import KVCache, array_namespace, to_numpy
from tensorlite.random import fold_in, random_uint64, step_key


@dataclass(frozen=True)
class Sampling:
    """How to sample from the model's distribution."""

    temperature: float = 1.0  # below 1 sharpens, above 1 flattens; 0 always takes the likeliest
    top_k: int | None = None  # only the k likeliest tokens
    top_p: float | None = None  # only the likeliest tokens that together reach this probability

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be in (0, 1], not {self.top_p}")


def sample_token(logits: np.ndarray, sampling: Sampling, u: float) -> int:
    """Sample a token from logits (V,) with u, uniform in [0, 1). Computed in float64 on the host."""
    logits = logits.astype(np.float64)
    order: np.ndarray = np.argsort(-logits, kind="stable")  # likeliest first
    if sampling.temperature == 0:
        return int(order[0])
    ranked = logits[order][: sampling.top_k]
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the likeliest to -inf
        probs = np.exp((ranked - ranked[0]) / sampling.temperature)
    probs /= probs.sum()
    if sampling.top_p is not None:  # keep a token as long as those before it have not reached top_p
        before = np.cumsum(probs) - probs
        probs = np.where(before < sampling.top_p, probs, 0.0)
        probs /= probs.sum()
    rank = int(np.searchsorted(np.cumsum(probs), u, side="right"))
    return int(order[min(rank, int(np.count_nonzero(probs)) - 1)])


def generate(
    ops: Any,
    model: ModuleType,
    params: dict,
    prompt: Any,
    n: int,
    config: ModelConfig,
    sampling: Sampling | None = None,
    seed: int = 0,
    sample: int = 0,
    cached: bool = True,
) -> Iterator[int]:
    """Yield n tokens that continue the prompt: (T,) integers on the model's device, T >= 1.

    While prompt and new tokens fit the context, the keys and values are cached and each token costs one position;
    beyond it every position would shift, so the last block_size tokens are read anew for each token.
    The token at each position is a function of (seed, sample, position): the same with and without `cached`.
    """
    xp = array_namespace(prompt)
    sampling = sampling or Sampling()
    text = prompt[-config.block_size :]
    kv_cache = KVCache(config.n_layer, config.block_size) if cached and len(text) < config.block_size else None
    new = text
    for position in range(n):
        if kv_cache is None or kv_cache.length + len(new) > config.block_size:
            kv_cache, new = None, text[-config.block_size :]
        logits = model.logits(ops, params, new[None], config, kv_cache)[0, -1]  # (V,)
        bits = random_uint64(np, fold_in(step_key(seed, position, sample), 0, "sample"), 1)  # type: ignore[arg-type]
        token = sample_token(to_numpy(logits), sampling, float(int(bits[0]) >> 11) * 2.0**-53)
        yield token
        new = xp.asarray([token], text.dtype)
        text = xp.concatenate([text[-config.block_size + 1 :] if config.block_size > 1 else text[:0], new])


def until(stops: Sequence[str], characters: Iterable[str]) -> Iterator[str]:
    """Pass characters on, and end before the first of the stop texts. What may be the beginning of one waits until it is known."""
    pending = ""  # may be the beginning of a stop text
    for character in characters:
        pending += character
        ends = [stop for stop in stops if pending.endswith(stop)]
        if ends:
            yield pending.removesuffix(max(ends, key=len))
            return
        beginnings = (i for i in range(len(pending)) if any(stop.startswith(pending[i:]) for stop in stops))
        safe = next(beginnings, len(pending))
        yield pending[:safe]
        pending = pending[safe:]
    yield pending
