"""class KVCache: keys and values of earlier positions, saved for generation."""

from tensorlite.arrays import Array, array_namespace


class LayerCache:
    """Keys and values of the positions that one attention layer has seen, at most `capacity` (generation only)."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._k: Array = None  # (B, H, capacity, D), allocated by the first extend, which knows B, H, D and the dtype
        self._v: Array = None

    def extend(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Append k and v: (B, H, T, D); return all keys and all values: (B, H, length, D).

        Raises ValueError if the context is full, or B, H or D is not that of the first call.
        """
        B, H, T, D = k.shape
        if self.length + T > self.capacity:
            raise ValueError(f"attention: {self.length + T} positions do not fit a context of {self.capacity}")
        if self._k is None:
            self._k = array_namespace(k).empty((B, H, self.capacity, D), k.dtype)
            self._v = array_namespace(v).empty((B, H, self.capacity, D), v.dtype)
        if self._k.shape != (B, H, self.capacity, D):
            raise ValueError(f"attention: k {k.shape} does not continue a cache of {self._k.shape}; use a new KVCache")
        self._k[:, :, self.length : self.length + T] = k
        self._v[:, :, self.length : self.length + T] = v
        self.length += T
        return self._k[:, :, : self.length], self._v[:, :, : self.length]


class KVCache:
    """One LayerCache per layer: what a model must remember of a text to continue it token by token."""

    def __init__(self, n_layer: int, capacity: int) -> None:
        self.layers = [LayerCache(capacity) for _ in range(n_layer)]

    @property
    def length(self) -> int:
        """Number of positions seen, before a forward pass adds its own."""
        return self.layers[0].length
