"""The embedding in the long form: one token at a time."""

from tensorlite.arrays import Array, array_namespace


def longhand_embedding(ids: Array, table: Array, dy: Array) -> tuple[Array, Array]:
    """y_n = table_{ids_n}

    ids: (N,) integers in [0, V).
    table: (V, C).
    dy: (N, C).
    Returns y: (N, C), dtable: (V, C).

    The fused form: the loop of backward is step 2 of embedding_backward, onehot^T dy. The `+=` is the point of both: a token that
    stands at two positions was read twice, so its row collects two gradients.
    """
    xp = array_namespace(ids, table, dy)
    N = len(ids)
    y = xp.zeros((N, table.shape[1]), table.dtype)
    dtable = xp.zeros_like(table)

    for n in range(N):
        y[n] = table[ids[n]]  # 1. (C,)

    for n in reversed(range(N)):
        dtable[ids[n]] += dy[n]  # 1. (C,), pick and reuse
    return y, dtable
