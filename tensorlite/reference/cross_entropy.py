"""Softmax cross-entropy: the loss of a language model."""

from tensorlite.arrays import Array, array_namespace
from tensorlite.reference.indices import check_indices


def check_cross_entropy(shape: tuple[int, ...], targets: Array) -> None:
    """Raise ValueError unless logits of this shape, (..., V), are not empty and the targets are (...)."""
    if targets.shape != shape[:-1]:
        raise ValueError(f"cross_entropy: logits {shape} need targets {shape[:-1]}, got {targets.shape}")
    if 0 in shape:
        raise ValueError(f"cross_entropy: the mean of nothing, logits are {shape}")


def cross_entropy_forward(logits: Array, targets: Array, *, check: bool = True) -> tuple[Array, tuple]:
    """loss = mean over n of (lse_n - logits_{n, targets_n}),  lse_n = log sum_v exp(logits_{n,v}).   In nats.

    logits: (..., V) float.
    targets: (...) integers in [0, V).
    check: test the range of the targets first, as embedding_forward does.
    Returns the loss, a scalar of logits' dtype, and a cache of references to logits and targets plus lse, one value per row.
    Backward recomputes the probabilities. The largest logit is subtracted before exp, so a gap of 1e4 stays finite.
    Raises ValueError for an empty batch or shapes that do not fit, TypeError and IndexError for bad targets.
    Tests: tests/reference/test_ops.py[cross_entropy].
    """
    xp = array_namespace(logits, targets)
    check_cross_entropy(logits.shape, targets)
    V = logits.shape[-1]
    if check:
        check_indices(targets, V, "cross_entropy: targets")
    z = logits.reshape(-1, V)  # (N, V)
    N = z.shape[0]
    max_logit = z.max(axis=-1, keepdims=True)  # (N, 1)
    exp_sum = xp.exp(z - max_logit).sum(axis=-1, keepdims=True)  # (N, 1)
    lse = max_logit + xp.log(exp_sum)  # (N, 1)
    picked = z[xp.arange(N), targets.reshape(-1)]  # (N,)
    loss = (lse[:, 0] - picked).mean()
    return loss, (logits, targets, lse)


def cross_entropy_backward(dloss: Array | float, cache: tuple) -> Array:
    """dlogits = dloss (p - onehot) / N,  p = softmax(logits).

    dloss: scalar, the gradient of the value that the loss enters: 1 for a whole batch, N_i / N for a part of N_i rows.
    Returns dlogits: (..., V).

    Derivation, for row n with target t:
      1. d lse_n / d logits_v = exp(logits_v - lse_n) = p_v.
      2. d(-logits_t) / d logits_v = -[v = t].
      3. The mean over N rows gives each a weight 1/N, and the chain rule dloss.
    """
    logits, targets, lse = cache
    xp = array_namespace(logits)
    V = logits.shape[-1]
    z = logits.reshape(-1, V)  # (N, V)
    N = z.shape[0]
    dz = xp.exp(z - lse)  # 1. (N, V)
    dz[xp.arange(N), targets.reshape(-1)] -= 1.0  # 2. one entry per row, so no index repeats
    dz = dz * (dloss / N)  # 3.
    return dz.reshape(logits.shape)
