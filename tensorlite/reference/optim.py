"""AdamW on flat buffers, gradient clipping, the learning-rate schedule. What ends in an underscore changes its arguments."""

import math

from tensorlite.arrays import Array, array_namespace


def adamw_(
    params: Array,
    grads: Array,
    m: Array,
    v: Array,
    t: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    n_decay: int | None = None,
) -> None:
    """One AdamW update, in place (Loshchilov and Hutter 2019, arXiv:1711.05101; Kingma and Ba 2015, arXiv:1412.6980).

        params_i -= lr weight_decay params_i            for i < n_decay, the decay group
        m         = beta1 m + (1 - beta1) grads         mean of the gradient
        v         = beta2 v + (1 - beta2) grads^2       mean of its square
        params   -= lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    params, grads, m, v: (n,) flat buffers of one dtype.
    t: 1 at the first step. The powers undo the bias of m and v towards their zero start, so the first step has size lr, however
    large the gradient is.
    n_decay: length of the prefix that decays. None: all.
    Tests: tests/reference/test_optim.py.
    """
    xp = array_namespace(params, grads, m, v)
    params[:n_decay] *= 1.0 - lr * weight_decay
    m *= beta1
    m += (1.0 - beta1) * grads
    v *= beta2
    v += (1.0 - beta2) * grads * grads
    m_hat = m / (1.0 - beta1**t)
    v_hat = v / (1.0 - beta2**t)
    params -= lr * m_hat / (xp.sqrt(v_hat) + eps)


def global_norm(grads: Array) -> Array:
    """Return sqrt(sum of squares) of the flat gradient: a scalar of its dtype, still on its device."""
    return array_namespace(grads).sqrt(grads @ grads)


def clip_grad_norm_(grads: Array, max_norm: float) -> Array:
    """Scale the flat gradient, in place, so that its norm is at most max_norm; return the norm before. max_norm 0: no clipping.

    The direction stays (Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063). The 1e-6 avoids a division by zero for a zero gradient.
    """
    norm = global_norm(grads)
    if max_norm > 0:
        grads *= array_namespace(grads).fmin(1.0, max_norm / (norm + 1e-6))  # fmin: a NaN norm scales by 1
    return norm


def cosine_lr(step: int, lr: float, min_lr: float, warmup: int, total: int) -> float:
    """Learning rate of `step` (counted from 0): a line up to `lr` over `warmup` steps, then half a cosine down to `min_lr`.

    The cosine ends at step `total`, after which the rate stays at min_lr. With min_lr = lr the rate is constant after warmup.
    """
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    cosine = 0.5 * (1.0 + math.cos(math.pi * done))  # from 1 to 0
    return min_lr + (lr - min_lr) * cosine
