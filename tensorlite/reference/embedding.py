"""Embeddings: a row of a table for each token, and a row for each position."""

from tensorlite.arrays import Array, array_namespace
from tensorlite.reference.indices import check_indices


def embedding_forward(ids: Array, table: Array, *, check: bool = True) -> tuple[Array, tuple]:
    """y = table[ids]

    ids: (...) integers in [0, V).
    table: (V, C).
    check: test the range of ids first. On a GPU that waits for the device, so a trainer that has validated its text skips it.
    Returns y: (..., C), and a cache of references to ids and table (no bytes of its own).
    Raises TypeError for ids that are not integers, IndexError for ids out of range. Tests: tests/reference/test_ops.py[embedding].
    """
    array_namespace(ids, table)
    if check:
        check_indices(ids, table.shape[0], "embedding: ids")
    return table[ids], (ids, table)  # (..., C)


def embedding_backward(dy: Array, cache: tuple) -> Array:
    """dtable = onehot^T dy

    dy: (..., C).
    Returns dtable: (V, C). The rows of tokens that do not occur are exactly zero.

    Derivation. Write the lookup as a matmul, y = onehot table, with onehot_nv = 1 where ids_n = v, else 0. Then
      1. onehot: (N, V) is the x of a linear layer whose weight is the table,
      2. so dtable is that layer's dw: dtable_v = sum of dy_n over the n with ids_n = v. A token used twice gets both rows.
    The tempting `dtable[ids] += dy` adds only one of them. A scatter-add with atomics is right, but on a GPU the order of its
    sums changes from run to run. The matmul is right and reproducible, and costs 2 N V C FLOPs, as the head's own forward does.
    """
    ids, table = cache
    xp = array_namespace(dy, table)
    V, C = table.shape
    onehot = ids.reshape(-1, 1) == xp.arange(V)  # 1. (N, V)
    onehot = onehot.astype(dy.dtype)
    return onehot.T @ dy.reshape(-1, C)  # 2. (V, N) @ (N, C) -> (V, C)


def check_position_embedding(x: Array, wpe: Array, start: int) -> None:
    """Raise ValueError unless the positions start..start+T-1 of x: (..., T, C) are rows of wpe: (block_size, C)."""
    T = x.shape[-2]
    if not 0 <= start <= wpe.shape[0] - T:
        raise ValueError(f"position_embedding: positions {start} to {start + T - 1} do not fit a context of {wpe.shape[0]}")
    if x.shape[-1] != wpe.shape[1]:
        raise ValueError(f"position_embedding: x has {x.shape[-1]} channels, wpe {wpe.shape[1]}")


def position_embedding_forward(x: Array, wpe: Array, start: int = 0) -> tuple[Array, tuple]:
    """y_t = x_t + wpe_{start + t}

    x: (..., T, C).
    wpe: (block_size, C).
    start: position of the first row of x (generation continues a text).
    Returns y: (..., T, C), and a cache of a reference to wpe and the integer start.
    Raises ValueError when start + T positions do not fit the table. Tests: tests/reference/test_ops.py[position_embedding].
    """
    array_namespace(x, wpe)
    check_position_embedding(x, wpe, start)
    T = x.shape[-2]
    positions = wpe[start : start + T]  # (T, C)
    return x + positions, (wpe, start)  # (..., T, C) + (T, C)


def position_embedding_backward(dy: Array, cache: tuple) -> tuple[Array, Array]:
    """dx = dy,  dwpe_{start + t} = sum of dy_t over the batch

    dy: (..., T, C).
    Returns dx: (..., T, C), the same array as dy, and dwpe: (block_size, C).

    Derivation:
      1. x is added with weight 1, so dx = dy.
      2. Row start + t of wpe is added to position t of every sequence, so it collects dy_t of all of them.
      3. The rows outside start..start+T-1 took no part, so their gradient is zero.
    """
    wpe, start = cache
    xp = array_namespace(dy, wpe)
    T, C = dy.shape[-2:]
    dwpe = xp.zeros(wpe.shape, dy.dtype)  # 3. (block_size, C)
    dwpe[start : start + T] = dy.reshape(-1, T, C).sum(axis=0)  # 2. (B, T, C) -> (T, C)
    return dy, dwpe  # 1.
