"""Cross-entropy in the long form: softmax, its logarithm, the entry of the target, and the mean."""

from tensorlite.arrays import Array, array_namespace


def longhand_cross_entropy(logits: Array, targets: Array, dloss: Array | float) -> tuple[Array, Array]:
    """loss = -mean over n of log softmax(logits_n)_{targets_n}

    logits: (N, V).
    targets: (N,) integers in [0, V).
    dloss: scalar; 1 if the loss is the end.
    Returns loss: scalar, dlogits: (N, V).

    The fused form: lines 10 to 7 of backward give dprobs = -onehot dloss / (N probs). Lines 6 to 3 are softmax's, so
    dshifted = probs (dprobs - sum(dprobs probs)) = probs (-onehot dloss / (N probs) + dloss / N) = dloss (probs - onehot) / N.
    This is cross_entropy_backward. Its step 1 (probs) arrives through exp_sum, its step 2 (onehot) is line 8, and its step 3 is
    lines 10 and 9. On paper the division by probs cancels. Here a probability that underflows to 0 turns it into inf and NaN.
    """
    xp = array_namespace(logits, targets)
    N = len(targets)
    rows = xp.arange(N)
    max_logit = logits.max(axis=-1, keepdims=True)  # 1. (N, 1)
    shifted = logits - max_logit  # 2. (N, V)
    exps = xp.exp(shifted)  # 3. (N, V)
    exp_sum = exps.sum(axis=-1, keepdims=True)  # 4. (N, 1)
    inv_exp_sum = 1.0 / exp_sum  # 5. (N, 1)
    probs = exps * inv_exp_sum  # 6. (N, V)
    logprobs = xp.log(probs)  # 7. (N, V)
    picked = logprobs[rows, targets]  # 8. (N,)
    total = picked.sum()  # 9. ()
    loss = -total / N  # 10. ()

    dtotal = -dloss / N  # 10. (), constant
    dpicked = xp.full_like(picked, dtotal)  # 9. (N,), sum
    dlogprobs = xp.zeros_like(logprobs)  # 8. (N, V), pick: 0 elsewhere
    dlogprobs[rows, targets] = dpicked  # 8. (N,), pick
    dprobs = dlogprobs / probs  # 7. (N, V), function: log' u = 1/u
    dexps = dprobs * inv_exp_sum  # 6. (N, V), product
    dinv_exp_sum = (dprobs * exps).sum(axis=-1, keepdims=True)  # 6. (N, 1), product; inv_exp_sum was broadcast over the row
    dexp_sum = -dinv_exp_sum / exp_sum**2  # 5. (N, 1), function: (1/u)' = -1/u^2
    dexps = dexps + dexp_sum  # 4. (N, V), sum; exps is used in lines 4 and 6: reuse
    dshifted = dexps * exps  # 3. (N, V), function: exp' = exp
    dlogits = dshifted  # 2. (N, V), add
    dmax_logit = -dshifted.sum(axis=-1, keepdims=True)  # 2. (N, 1), add; max_logit was broadcast over the row
    dlogits = dlogits + xp.where(logits == max_logit, dmax_logit, 0.0)  # 1. (N, V), pick; reuse of logits
    return loss, dlogits
