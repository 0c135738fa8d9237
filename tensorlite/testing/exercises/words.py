"""The second hint of the exercises in writing: for each gradient, the way to it in words."""

WORDS = {
    "linear": {
        "dx": "Entry c of a row enters all D outputs of that row, each through its own weight. Sum over the outputs.",
        "dw": "A weight is used once per row. Every use adds: sum over the rows, each with the x that met the weight there.",
        "db": "Every row adds the same b. Every use adds: backward sums exactly the axes that forward broadcast.",
    },
    "embedding": {
        "dtable": "A row of the table is used wherever its token occurs. Every use adds, and a row without a use gets zero.",
    },
    "position_embedding": {
        "dx": "x is added with weight 1, so what arrives is passed on.",
        "dwpe": "A position's row is added to every sequence of the batch. Every use adds; rows that took no part get zero.",
    },
    "softmax": {
        "dx": "Raising one entry lifts its own y, and through the shared sum it lowers every y of its row. Collect both paths; "
        "then a row of dx sums to 0.",
    },
    "cross_entropy": {
        "dlogits": "The loss of a row is its lse less the logit of its target. Every logit enters the lse, and the target's "
        "logit enters once more. Then comes the mean over the rows, and dloss.",
    },
    "layernorm": {
        "dx": "First go back through the gain. Then an entry moves three things: its own normalised value, the mean of its row "
        "and the spread of its row. Each path is a term, and the last two are means over the row.",
        "dw": "Every row multiplies its normalised values by the same w. Every use adds: sum over the rows.",
        "db": "Every row adds the same b. Every use adds: sum over the rows.",
    },
    "dropout": {
        "dx": "The mask does not depend on x. Backward blocks what forward blocked, and scales what forward scaled.",
    },
    "residual": {
        "dx": "A sum passes its gradient on, unchanged, to both terms.",
        "dy": "A sum passes its gradient on, unchanged, to both terms; but the second term went through dropout first.",
    },
    "gelu": {
        "dx": "y is a product of two functions of x, so there are two terms. The second goes through tanh and through the cubic "
        "inside it.",
    },
    "relu": {
        "dx": "The slope is 1 where x is above zero and 0 elsewhere, whatever dy is. The cache is y: where is that above zero?",
    },
    "attention": {
        "dq": "Go back one operation at a time: the matmul with v, dropout, softmax, scale, the matmul with k. A query meets all "
        "keys that it sees: sum over the keys.",
        "dk": "Go back as for dq, to the same gradient of the scores. A key is met by all queries that see it: sum over the "
        "queries.",
        "dv": "A value is read by all queries that see it, each with its probability after dropout: sum over the queries.",
    },
}
