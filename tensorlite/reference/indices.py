"""The check that token ids and targets are integers in range."""

from tensorlite.arrays import Array


def check_indices(ids: Array, n: int, what: str) -> None:
    """Raise TypeError unless `ids` are integers, IndexError unless all are in [0, n).

    NumPy would read a negative index from the end and CuPy would wrap a large one, both silently.
    """
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{what} must be integers, got {ids.dtype}")
    if ids.size == 0:
        return
    low = int(ids.min())
    high = int(ids.max())
    if low < 0 or high >= n:
        raise IndexError(f"{what} must be in [0, {n}), got {low} to {high}")
