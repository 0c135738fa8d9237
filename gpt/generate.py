"""Generation: one token at a time, drawn from the distribution that the model predicts."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gpt.config import ModelConfig
from gpt.errors import ConfigError
from tensorlite import Array, KVCache, Ops, array_namespace, to_numpy
from tensorlite.random import fold_in, random_uint64, step_key


@dataclass(frozen=True)
class Sampling:
    """How to sample a token from the model's distribution."""

    temperature: float = 1.0  # values below 1 sharpen the distribution, values above 1 flatten it; 0 takes the likeliest token
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
    """Sample a token, in float64 on the host.

    logits: (V,).
    u: a uniform random value in [0, 1), which fixes the choice.

    Raises ConfigError for logits that are NaN.
    """
    logits = logits.astype(np.float64)
    if np.isnan(logits).any():
        raise ConfigError(
            "precision is too low for this model: its logits are NaN; set --precision float32, or --backend reference"
        )
    order: np.ndarray = np.argsort(-logits, kind="stable")  # likeliest first
    if sampling.temperature == 0:
        return int(order[0])
    ranked = logits[order][: sampling.top_k]
    with np.errstate(over="ignore"):  # with a tiny temperature all but the likeliest become -inf
        probs = np.exp((ranked - ranked[0]) / sampling.temperature)
    probs /= probs.sum()
    if sampling.top_p is not None:  # keep a token if the likelier ones have not reached top_p
        before = np.cumsum(probs) - probs
        probs = np.where(before < sampling.top_p, probs, 0.0)
        probs /= probs.sum()
    rank = int(np.searchsorted(np.cumsum(probs), u, side="right"))
    return int(order[min(rank, int(np.count_nonzero(probs)) - 1)])


def generate(
    ops: Ops,
    model: ModuleType,
    params: dict[str, Any],
    prompt: Array,
    n: int,
    config: ModelConfig,
    sampling: Sampling | None = None,
    seed: int = 0,
    sample: int = 0,
    cached: bool = True,
) -> Iterator[int]:
    """Yield n tokens that continue the prompt.

    While the prompt and the new tokens fit the context, keys and values are cached and each token costs one position. Beyond the
    context every position would shift, so each token costs a forward pass over the last block_size tokens.
    For given parameters and prompt, a token depends only on (seed, sample, position), and not on `cached`.

    prompt: (T,) integers on the model's device, T >= 1.
    n: number of tokens.
    sample: index of the text; texts with different indices are independent.
    cached: whether to cache keys and values.
    """
    if not len(prompt):
        raise ValueError("generate: the prompt has no token to continue")
    xp = array_namespace(prompt)
    sampling = sampling or Sampling()
    text = prompt[-config.block_size :]  # all that the model may see
    kv_cache: KVCache | None = None
    if cached and len(text) < config.block_size:
        kv_cache = KVCache(config.n_layer, config.block_size)
    new = text  # the tokens that the model has not seen yet
    for position in range(n):
        if kv_cache is None or kv_cache.length + len(new) > config.block_size:
            kv_cache = None
            new = text
        logits = model.logits(ops, params, new[None], config, kv_cache)[0, -1]  # (V,)
        token = sample_token(to_numpy(logits), sampling, _uniform(seed, sample, position))
        yield token
        new = xp.asarray([token], text.dtype)
        text = xp.concatenate([text, new])[-config.block_size :]


def _uniform(seed: int, sample: int, position: int) -> float:
    """Return a random float in [0, 1) with 53 bits."""
    key = fold_in(step_key(seed, position, sample), 0, "sample")
    bits = random_uint64(np, key, 1)
    return float(int(bits[0]) >> 11) * 2.0**-53


def until(stops: Sequence[str], characters: Iterable[str]) -> Iterator[str]:
    """Yield the characters up to the first stop text.

    Characters that may be the beginning of a stop text are held back until they turn out not to be.
    """
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
