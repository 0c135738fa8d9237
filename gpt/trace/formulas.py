"""One formula per line of the ops: what every element of a value is, as a Python expression.

`y[t,d] = Sum(c, x[t,c] * w[c,d])` says that element (t, d) of y is the sum over all c. A text is one sequence (B = 1), so the rows
of every (..., C) array are positions. An index is t or s for a position, c, d, e for a channel, f for a channel of the MLP, h for a
head, v for a token of the vocabulary. Where an array has more axes than the formula has indices, its leading axes are merged.

The k-th formula that sets a name belongs to the k-th statement of the function that does so. A formula whose right side is a single
element only moves values to another place.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Formula:
    """A formula, and what it means in words.

    gradient_of: the name, in forward, of the value whose gradient the line makes. None: the line makes no gradient.
    """

    text: str
    means: str = ""
    gradient_of: str | None = None


F = Formula

# The names of returned values that the function returns under another name, or under none.
RETURN_NAMES: dict[str, tuple[str, ...]] = {
    "linear_forward": ("y",),
    "embedding_forward": ("y",),
    "embedding_backward": ("dtable",),
    "position_embedding_forward": ("y",),
    "position_embedding_backward": ("dx",),
    "gelu_backward": ("dx",),
    "relu_backward": ("dx",),
    "softmax_backward": ("dx",),
    "attention_backward": ("dqkv",),
    "residual_forward": ("out",),
    "residual_backward": ("dx", "dy"),
    "cross_entropy_backward": ("dlogits",),
    "add": ("sum",),
    "head_weight": ("w",),
}

FORMULAS: dict[str, tuple[Formula, ...]] = {
    "linear_forward": (
        F("y[t,d] = Sum(c, x[t,c] * w[c,d])", "row t of x against column d of w"),
        F("y[t,d] = y[t,d] + b[d]", "the same bias for every row"),
        F("y[t,d] = y[t,d]"),
    ),
    "linear_backward": (
        F("dy[t,d] = dy[t,d]"),
        F("dx[t,c] = Sum(d, dy[t,d] * w[c,d])", "x[t,c] entered every y[t,d], with weight w[c,d]", "x"),
        F("dw[c,d] = Sum(t, x[t,c] * dy[t,d])", "w[c,d] served every row t, so every row adds its part", "w"),
        F("db[d] = Sum(t, dy[t,d])", "b was added to every row: forward broadcast it, so backward sums", "b"),
    ),
    "embedding_forward": (F("y[t,c] = table[ids[t],c]", "the row of the table that belongs to the token"),),
    "embedding_backward": (
        F("onehot[t,v] = (ids[t] == v)", "1 in the column of the token, 0 elsewhere"),
        F("onehot[t,v] = onehot[t,v]"),
        F("dtable[v,c] = Sum(t, onehot[t,v] * dy[t,c])", "a token that occurs twice adds two rows", "table"),
    ),
    "position_embedding_forward": (
        F("positions[t,c] = wpe[t,c]"),
        F("y[t,c] = x[t,c] + positions[t,c]", "which token, plus where it stands"),
    ),
    "position_embedding_backward": (
        F("dwpe[t,c] = 0"),
        F("dwpe[t,c] = (dy[t,c] if t < T else dwpe[t,c])", "the sum over the batch, which is one text here", "wpe"),
        F("dx[t,c] = dy[t,c]", "a sum passes its gradient to both terms unchanged"),
    ),
    "layernorm_forward": (
        F("mean[t] = Mean(c, x[t,c])"),
        F("centered[t,c] = x[t,c] - mean[t]"),
        F("var[t] = Mean(c, centered[t,c] * centered[t,c])"),
        F("rstd[t] = 1 / sqrt(var[t] + eps)"),
        F("y[t,c] = centered[t,c] * rstd[t] * w[c]"),
        F("y[t,c] = y[t,c] + b[c]"),
    ),
    "layernorm_backward": (
        F("xhat[t,c] = (x[t,c] - mean[t]) * rstd[t]", "as in forward"),
        F("dw[c] = Sum(t, dy[t,c] * xhat[t,c])", "the gain served every row, so every row adds its part", "w"),
        F("db[c] = 0"),
        F("db[c] = Sum(t, dy[t,c])", "the bias served every row", "b"),
        F("g[t,c] = dy[t,c] * w[c]", "the gradient of xhat"),
        F("g_mean[t] = Mean(c, g[t,c])", "what reaches x through the mean"),
        F("g_xhat_mean[t] = Mean(c, g[t,c] * xhat[t,c])", "what reaches x through rstd"),
        F(
            "dx[t,c] = rstd[t] * (g[t,c] - g_mean[t] - xhat[t,c] * g_xhat_mean[t])",
            "the direct path, less the two paths through the row's statistics. Each row sums to 0",
            "x",
        ),
    ),
    "gelu_forward": (
        F("u[t,f] = SQRT_2_OVER_PI * (x[t,f] + CUBIC * x[t,f] * x[t,f] * x[t,f])"),
        F("y[t,f] = 0.5 * x[t,f] * (1 + tanh(u[t,f]))", "x, times nearly the probability that a normal value is below x"),
    ),
    "gelu_backward": (
        F("tanh[t,f] = tanh(SQRT_2_OVER_PI * (x[t,f] + CUBIC * x[t,f] * x[t,f] * x[t,f]))", "as in forward"),
        F("du[t,f] = SQRT_2_OVER_PI * (1 + 3 * CUBIC * x[t,f] * x[t,f])", "the slope of u"),
        F("dtanh[t,f] = (1 - tanh[t,f] * tanh[t,f]) * du[t,f]", "the slope of tanh u"),
        F("dydx[t,f] = 0.5 * (1 + tanh[t,f]) + 0.5 * x[t,f] * dtanh[t,f]", "the slope of y, by the product rule"),
        F("dx[t,f] = dy[t,f] * dydx[t,f]", "each element alone: slope times gradient", "x"),
    ),
    "relu_forward": (F("y[t,f] = max(x[t,f], 0)"),),
    "relu_backward": (F("dx[t,f] = (dy[t,f] if y[t,f] > 0 else 0)", "passed on where the line was on, 0 elsewhere", "x"),),
    "softmax_forward": (
        F("e[h,t,s] = exp(x[h,t,s] - Max(j, x[h,t,j]))", "a masked entry is exp(-inf) = 0"),
        F("y[h,t,s] = e[h,t,s] / Sum(j, e[h,t,j])", "the shared denominator: each row sums to 1"),
    ),
    "softmax_backward": (
        F(
            "dx[h,t,s] = y[h,t,s] * (dy[h,t,s] - Sum(j, dy[h,t,j] * y[h,t,j]))",
            "dy less its row's mean by the weights y, times the weight. The same amount added to all x of a row changes no y, so "
            "each row sums to 0. In attention this y is probs, and this dy is dprobs",
            "x",
        ),
    ),
    "attention_forward": (
        F("q[h,t,d] = qkv[t, h * D + d]", "what position t looks for"),
        F("k[h,s,d] = qkv[s, n_head * D + h * D + d]", "what position s offers to be found by"),
        F("v[h,s,d] = qkv[s, 2 * n_head * D + h * D + d]", "what position s passes on"),
        F("k_t[h,d,s] = k[h,s,d]"),
        F("scores[h,t,s] = Sum(d, q[h,t,d] * k_t[h,d,s]) * scale", "how well key s fits query t; scale is 1 / sqrt(D)"),
        F("visible[t,s] = (s <= t)", "position t sees itself and what came before"),
        F("scores[h,t,s] = (scores[h,t,s] if visible[t,s] == 1 else -inf)", "exp(-inf) = 0: a future key gets no weight"),
        F(
            "probs[h,t,s] = exp(scores[h,t,s] - Max(j, scores[h,t,j])) / Sum(j, exp(scores[h,t,j] - Max(i, scores[h,t,i])))",
            "softmax: each row sums to 1",
        ),
        F("p_dropped[h,t,s] = probs[h,t,s]", "dropout is off"),
        F("y[t,e] = Sum(s, p_dropped[e // D, t, s] * v[e // D, s, e % D])", "the mixture of the values, head beside head"),
    ),
    "attention_backward": (
        F("q[h,t,d] = qkv[t, h * D + d]"),
        F("k[h,s,d] = qkv[s, n_head * D + h * D + d]"),
        F("v[h,s,d] = qkv[s, 2 * n_head * D + h * D + d]"),
        F("p_dropped[h,t,s] = probs[h,t,s]", "dropout is off"),
        F("dy[h,t,d] = dy[t, h * D + d]", "the channels of each head"),
        F(
            "dp_dropped[h,t,s] = Sum(d, dy[h,t,d] * v[h,s,d])",
            "dy . v: how fast the loss rises as key s gets more weight",
            "p_dropped",
        ),
        F("dv[h,s,d] = Sum(t, p_dropped[h,t,s] * dy[h,t,d])", "v[s] went to every later query, so every query adds its part", "v"),
        F("dprobs[h,t,s] = dp_dropped[h,t,s]", "dropout is off"),
        F(
            "dscores[h,t,s] = probs[h,t,s] * (dprobs[h,t,s] - Sum(j, dprobs[h,t,j] * probs[h,t,j]))",
            "dprobs of key s less its row's mean by weight, times the weight: above 0 where more weight on s raises the loss. The "
            "same amount added to all scores of a row changes no weight and no loss, so each row sums to 0. A masked key has "
            "weight 0, so its gradient is exactly 0",
            "scores",
        ),
        F(
            "dq[h,t,d] = Sum(s, dscores[h,t,s] * k[h,s,d]) * scale",
            "scores = q . k * scale with scale = 1 / sqrt(D), so dq and dk carry one scale each",
            "q",
        ),
        F("dk[h,s,d] = Sum(t, dscores[h,t,s] * q[h,t,d]) * scale", "key s met every query t", "k"),
        F("dqkv[g,h,t,d] = (dq[h,t,d] if g == 0 else dk[h,t,d] if g == 1 else dv[h,t,d])"),
        F("dqkv[t,e] = dqkv[e // (n_head * D), e // D % n_head, t, e % D]", "packed as qkv is"),
    ),
    "residual_forward": (
        F("branch[t,c] = y[t,c]", "dropout is off"),
        F("out[t,c] = x[t,c] + branch[t,c]", "the stream, plus what the branch adds to it"),
    ),
    "residual_backward": (
        F("dx[t,c] = dout[t,c]", "a sum passes its gradient to both terms unchanged: this is the stream's"),
        F("dy[t,c] = dout[t,c]", "and this is the branch's, the same values; dropout is off"),
    ),
    "cross_entropy_forward": (
        F("z[t,v] = logits[t,v]"),
        F("max_logit[t] = Max(v, z[t,v])"),
        F("exp_sum[t] = Sum(v, exp(z[t,v] - max_logit[t]))"),
        F("lse[t] = max_logit[t] + log(exp_sum[t])", "log of the sum of exp(z); the maximum only keeps exp small"),
        F("picked[t] = z[t, targets[t]]", "the logit of the true next token"),
        F("loss[] = Mean(t, lse[t] - picked[t])", "the mean of -log p(true token), in nats"),
    ),
    "cross_entropy_backward": (
        F("z[t,v] = logits[t,v]"),
        F("dz[t,v] = exp(z[t,v] - lse[t])", "p, the softmax of the row: the gradient of lse"),
        F("dz[t,v] = dz[t,v] - (targets[t] == v)", "less 1 at the true token. Each row sums to 0"),
        F("dz[t,v] = dz[t,v] * (dloss / N)", "the loss is a mean over N rows", "z"),
        F("dlogits[t,v] = dz[t,v]"),
    ),
    "add": (F("sum[t,c] = a[t,c] + b[t,c]", "the value was used twice, so its two gradients add"),),
    "head_weight": (F("w[c,v] = wte[v,c]", "tied: the token table, transposed"),),
}
