"""Token and position embeddings and the batch, by kernels/embedding.cu.

The kernel file says what differs; the derivations are in tensorlite/reference/embedding.py.
"""

from typing import TYPE_CHECKING

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.launch import BLOCK, blocks
from tensorlite.cuda.layout import c_integer, pad_columns, padded_width, place_columns, whole_tiles
from tensorlite.cuda.reduce import sum_rows
from tensorlite.cuda.runtime.device_key import DeviceKey, pack_key
from tensorlite.integers import ceil_div, round_up
from tensorlite.random import Key
from tensorlite.reference.embedding import check_position_embedding
from tensorlite.reference.indices import check_indices
from tensorlite.reference.ops import check_batch

if TYPE_CHECKING:
    from tensorlite.cuda.ops import CUDAOps

FILE = "embedding.cu"
WARPS = 8  # the most tokens that a block of lookup processes


def token_position_embedding_forward(ops: "CUDAOps", ids: Array, wte: Array, wpe: Array, start: int = 0) -> tuple[Array, tuple]:
    """x = wte[ids] + wpe[positions], in one kernel. The caches are those of the two ops."""
    y, emb_cache = _lookup(ops, ids, wte, wpe, start)
    return y, (emb_cache, (wpe, start))


def embedding_forward(ops: "CUDAOps", ids: Array, table: Array) -> tuple[Array, tuple]:
    """y = table[ids]. The cache refers to ids and the table."""
    return _lookup(ops, ids, table)


def _lookup(ops: "CUDAOps", ids: Array, table: Array, wpe: Array | None = None, start: int = 0) -> tuple[Array, tuple]:
    """y = table[ids], plus the positions in wpe unless it is None. The cache is that of embedding_forward."""
    xp = array_namespace(ids, table, wpe)
    index_t = c_integer(ids, "embedding: ids")
    if ops.check:
        check_indices(ids, table.shape[0], "embedding: ids")
    y = ops.empty((*ids.shape, *table.shape[1:]))
    ids = xp.ascontiguousarray(ids)
    table = ops.operand(table)
    wpe_rows = None
    if wpe is not None:
        check_position_embedding(y, wpe, start)
        wpe_rows = ops.operand(wpe)[start:]
    if ids.size:
        T = 1 if wpe is None else ids.shape[-1]
        ops.launch(
            FILE,
            "lookup",
            (ids.size // T, ceil_div(T, WARPS)),
            32 * min(WARPS, T),
            ids=ids,
            table=table,
            wpe_rows=wpe_rows,
            y=y,
            T=T,
            C=table.shape[1],
            defines={"scalar_t": ops.c_scalar(), "index_t": index_t},
        )
    return y, (ids, table)


def embedding_backward(ops: "CUDAOps", dy: Array, cache: tuple) -> Array:
    """dtable = onehot^T dy, in float32."""
    ids, table = cache
    array_namespace(dy, table)
    V, C = table.shape
    padded_vocab = whole_tiles(V)
    dy = pad_columns(ops, ops.gradient(dy, (*ids.shape, C), "embedding").reshape(-1, C), padded_width(C))
    onehot = ops.empty((ids.size, padded_vocab))
    dtable = ops.float32(padded_vocab, dy.shape[1])
    ops.launch(
        FILE,
        "write_onehot",
        blocks(32 * ids.size, BLOCK),
        BLOCK,
        ids=ids,
        onehot=onehot,
        padded_vocab=padded_vocab,
        rows=ids.size,
        defines={"scalar_t": ops.c_scalar(), "index_t": c_integer(ids, "embedding: ids")},
    )
    ops.gemm(onehot.T, dy, dtable)  # (padded_vocab, N) @ (N, C)
    return pad_columns(ops, dtable[:V], C)


def position_embedding_forward(ops: "CUDAOps", x: Array, wpe: Array, start: int = 0) -> tuple[Array, tuple]:
    """y_t = x_t + wpe_{start + t}. The cache refers to wpe and holds start."""
    array_namespace(x, wpe)
    check_position_embedding(x, wpe, start)
    T, C = x.shape[-2:]
    x = ops.operand(x)
    wpe_rows = ops.operand(wpe)[start : start + T]
    y = ops.empty(x.shape)
    if x.size:
        grid = (x.size // (T * C), blocks(T * C, 4 * BLOCK))
        defines = {"scalar_t": ops.c_scalar(), "index_t": "int"}  # this kernel reads no ids, but the file needs an index_t
        ops.launch(FILE, "add_positions", grid, BLOCK, x=x, wpe_rows=wpe_rows, y=y, TC=T * C, defines=defines)
    return y, (wpe, start)


def position_embedding_backward(ops: "CUDAOps", dy: Array, cache: tuple) -> tuple[Array, Array]:
    """dx = dy,  dwpe_{start + t} = sum of dy_t over the batch, in float32; zero elsewhere."""
    wpe, start = cache
    array_namespace(dy, wpe)
    T, C = dy.shape[-2:]
    summed = sum_rows(ops, ops.operand(dy).reshape(-1, T * C))
    if len(wpe) == T:
        return dy, summed.reshape(T, C)
    dwpe = ops.float32(*wpe.shape)
    place_columns(ops, summed.reshape(1, -1), dwpe.reshape(1, -1), at=start * C)
    return dy, dwpe


def get_batch(ops: "CUDAOps", data: Array, key: Key | DeviceKey, rows: int, block_size: int) -> tuple[Array, Array]:
    """Return windows of the text at places drawn from the key: idx and targets, both (rows, block_size), of the text's dtype."""
    array_namespace(data)
    check_batch(data, block_size)
    idx = ops.runtime.empty((rows, block_size), data.dtype)
    targets = ops.runtime.empty((rows, block_size), data.dtype)
    ops.launch(
        FILE,
        "get_batch",
        rows,
        min(BLOCK, round_up(block_size, 32)),
        data=data,
        n=len(data),
        key=pack_key(key, ops.address),
        row0=key.row0,
        idx=idx,
        targets=targets,
        T=block_size,
        defines={"scalar_t": "float", "index_t": c_integer(data, "get_batch: data")},
    )
    return idx, targets
