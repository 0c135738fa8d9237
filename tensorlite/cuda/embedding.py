"""Embeddings, positions and the batch. kernels/embedding.cu says what differs;
the derivations are in tensorlite/reference/embedding.py."""

from typing import Any

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.elementwise import BLOCK, blocks
from tensorlite.cuda.linear import PADDED, columns, padded_width
from tensorlite.cuda.reduce import sum_rows
from tensorlite.cuda.runtime.device_key import DeviceKey, pack_key
from tensorlite.random import Key
from tensorlite.reference.embedding import check_indices, check_position_embedding

FILE = "embedding.cu"
INTEGERS = {
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
}


def c_integer(ids: Array, what: str) -> str:
    """What a kernel calls the dtype of ids. Raises TypeError for what is no integer."""
    if str(ids.dtype) not in INTEGERS:
        raise TypeError(f"{what} must be integers, one of {', '.join(INTEGERS)}, got {ids.dtype}")
    return INTEGERS[str(ids.dtype)]


def embedding_forward(ops: Any, ids: Array, table: Array) -> tuple[Array, tuple]:
    """y = table[ids]. The cache refers to ids and the table."""
    xp = array_namespace(ids, table)
    kind = c_integer(ids, "embedding: ids")
    if ops.check:
        check_indices(ids, table.shape[0], "embedding: ids")
    ids, table, C = xp.ascontiguousarray(ids), ops.operand(table), table.shape[1]
    y = ops.empty((*ids.shape, C))
    if ids.size:
        ops.launch(FILE, "lookup", ids.size, min(BLOCK, -(-C // 32) * 32), ids, table, y, C, REAL=ops.real(), ID=kind)
    return y, (ids, table)


def embedding_backward(ops: Any, dy: Array, cache: tuple) -> Array:
    """dtable = onehot^T dy, in float32."""
    ids, table = cache
    array_namespace(dy, table)
    V, C = table.shape
    wide = -(-V // PADDED) * PADDED
    dy = columns(ops, ops.gradient(dy, (*ids.shape, C), "embedding").reshape(-1, C), padded_width(C))
    onehot, dtable = ops.empty((ids.size, wide)), ops.float32(wide, dy.shape[1])
    grid = blocks(32 * ids.size, BLOCK)
    kind = c_integer(ids, "embedding: ids")
    ops.launch(FILE, "onehot", grid, BLOCK, ids, onehot, wide, ids.size, REAL=ops.real(), ID=kind)
    ops.gemm(onehot.T, dy, dtable)  # (wide, N) @ (N, C)
    return columns(ops, dtable[:V], C)


def position_embedding_forward(ops: Any, x: Array, wpe: Array, start: int = 0) -> tuple[Array, tuple]:
    """y_t = x_t + wpe_{start + t}. The cache refers to wpe."""
    array_namespace(x, wpe)
    check_position_embedding(x, wpe, start)
    T, C = x.shape[-2:]
    x, rows = ops.operand(x), ops.operand(wpe)[start : start + T]
    y = ops.empty(x.shape)
    if x.size:
        grid = (x.size // (T * C), blocks(T * C, 4 * BLOCK))
        ops.launch(FILE, "add_positions", grid, BLOCK, x, rows, y, T * C, REAL=ops.real(), ID="int")
    return y, (wpe, start)


def position_embedding_backward(ops: Any, dy: Array, cache: tuple) -> tuple[Array, Array]:
    """dx = dy,  dwpe_{start + t} = sum of dy_t over the batch, in float32; zero elsewhere."""
    wpe, start = cache
    array_namespace(dy, wpe)
    T, C = dy.shape[-2:]
    summed = sum_rows(ops, ops.operand(dy).reshape(-1, T * C))
    if len(wpe) == T:
        return dy, summed.reshape(T, C)
    dwpe = ops.float32(*wpe.shape)
    args = (summed, T * C, dwpe, dwpe.size, start * C, 1)
    ops.launch(FILE, "resize_rows", blocks(dwpe.size, BLOCK), BLOCK, *args, REAL="float", ID="int")
    return dy, dwpe


def get_batch(ops: Any, data: Array, key: Key | DeviceKey, rows: int, block_size: int) -> tuple[Array, Array]:
    """Windows of the text at places drawn from the key: idx and targets, both (rows, block_size), of the text's dtype."""
    array_namespace(data)
    idx, targets = (ops.runtime.empty((rows, block_size), data.dtype) for _ in range(2))
    args = (data, len(data), pack_key(key, ops.address), key.row0, idx, targets, block_size)
    kind = c_integer(data, "get_batch: data")
    ops.launch(FILE, "get_batch", rows, min(BLOCK, -(-block_size // 32) * 32), *args, REAL="float", ID=kind)
    return idx, targets
