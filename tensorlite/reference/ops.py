"""class ReferenceOps: the functions of this folder under one object, which models take as `ops`.

Another backend (`tensorlite.cpu.CPUOps`, `tensorlite.cuda.CUDAOps`) is a subclass that overrides some of these names with the same
signatures. The model code is the same for all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tensorlite import op_info
from tensorlite.arrays import Array, array_namespace
from tensorlite.random import Key, fold_in, random_uint64, step_key
from tensorlite.reference import (
    activations,
    attention,
    composites,
    cross_entropy,
    dropout,
    embedding,
    layernorm,
    linear,
    optim,
    softmax,
)


def check_batch(data: Array, block_size: int) -> None:
    """Raise ValueError unless the text has a window of block_size tokens and one more, its last target."""
    if len(data) <= block_size:
        raise ValueError(f"get_batch: a text of {len(data)} tokens has no window of {block_size} and a target")


class ReferenceOps:
    """Plain array code on NumPy or CuPy, by the type of the arguments.

    check: test the range of ids and targets at every call. Pass False once the data has been validated: on a GPU the test forces
    a synchronisation.
    """

    name = "reference"
    op_table: Mapping[str, op_info.OpInfo] = op_info.OP_INFO  # what each op saves and costs
    max_in_flight = 1  # how many steps may be in flight before the trainer reads a loss; 1: every step is read
    warm_up = 1  # first steps that take longer than the others

    def __init__(self, *, check: bool = True) -> None:
        self.check = check

    # primitives: the functions of the modules
    linear_forward = staticmethod(linear.linear_forward)
    linear_backward = staticmethod(linear.linear_backward)
    embedding_backward = staticmethod(embedding.embedding_backward)
    position_embedding_forward = staticmethod(embedding.position_embedding_forward)
    position_embedding_backward = staticmethod(embedding.position_embedding_backward)
    layernorm_forward = staticmethod(layernorm.layernorm_forward)
    layernorm_backward = staticmethod(layernorm.layernorm_backward)
    gelu_forward = staticmethod(activations.gelu_forward)
    gelu_backward = staticmethod(activations.gelu_backward)
    relu_forward = staticmethod(activations.relu_forward)
    relu_backward = staticmethod(activations.relu_backward)
    softmax_forward = staticmethod(softmax.softmax_forward)
    softmax_backward = staticmethod(softmax.softmax_backward)
    attention_forward = staticmethod(attention.attention_forward)
    attention_backward = staticmethod(attention.attention_backward)
    dropout_forward = staticmethod(dropout.dropout_forward)
    dropout_backward = staticmethod(dropout.dropout_backward)
    residual_forward = staticmethod(dropout.residual_forward)
    residual_backward = staticmethod(dropout.residual_backward)
    cross_entropy_backward = staticmethod(cross_entropy.cross_entropy_backward)

    def embedding_forward(self, ids: Array, table: Array) -> tuple[Array, tuple]:
        return embedding.embedding_forward(ids, table, check=self.check)

    def cross_entropy_forward(self, logits: Array, targets: Array) -> tuple[Array, tuple]:
        return cross_entropy.cross_entropy_forward(logits, targets, check=self.check)

    # composites: functions whose first argument is the backend, hence methods
    mlp_forward = composites.mlp_forward
    mlp_backward = composites.mlp_backward
    self_attention_forward = composites.self_attention_forward
    self_attention_backward = composites.self_attention_backward
    dropout_add_layernorm_forward = composites.dropout_add_layernorm_forward
    dropout_add_layernorm_backward = composites.dropout_add_layernorm_backward
    linear_cross_entropy_forward = composites.linear_cross_entropy_forward
    linear_cross_entropy_backward = composites.linear_cross_entropy_backward

    def token_position_embedding_forward(self, ids: Array, wte: Array, wpe: Array, start: int = 0) -> tuple[Array, tuple]:
        """x_t = wte[ids_t] + wpe_{start + t}

        ids: (..., T) integers in [0, V).
        wte: (V, C). wpe: (block_size, C).
        start: position of the first token.
        Returns x: (..., T, C), and the two caches.
        """
        tok, emb_cache = self.embedding_forward(ids, wte)  # (..., T) -> (..., T, C)
        x, pos_cache = self.position_embedding_forward(tok, wpe, start)
        return x, (emb_cache, pos_cache)

    def token_position_embedding_backward(self, dx: Array, cache: tuple) -> tuple[Array, Array]:
        """The chain rule, last step first. Returns dwte, dwpe."""
        emb_cache, pos_cache = cache
        dtok, dwpe = self.position_embedding_backward(dx, pos_cache)
        dwte = self.embedding_backward(dtok, emb_cache)
        return dwte, dwpe

    def activation_forward(self, x: Array, name: str) -> tuple[Array, Any]:
        """The activation of that name, "gelu" or "relu". Raises ValueError for another."""
        if name not in ("gelu", "relu"):
            raise ValueError(f"activation must be gelu or relu, not {name!r}")
        forward = self.gelu_forward if name == "gelu" else self.relu_forward
        return forward(x)

    def activation_backward(self, dy: Array, name: str, cache: Any) -> Array:
        backward = self.gelu_backward if name == "gelu" else self.relu_backward
        return backward(dy, cache)

    @staticmethod
    def add(a: Array, b: Array) -> Array:
        """a + b: where a value is used twice, its two gradients add."""
        array_namespace(a, b)
        return a + b

    @staticmethod
    def to_floats(scalars: Sequence[Array]) -> list[float]:
        """The values of some arrays of shape (). It waits for the device."""
        return [float(scalar) for scalar in scalars]

    @staticmethod
    def accumulate_loss(total: Array | None, loss: Array, weight: float) -> Array:
        """total + weight loss, or weight loss where there is no total yet: the loss of several micro-batches, or of a shard."""
        weighted = loss * weight
        return weighted if total is None else total + weighted

    # randomness: keys are values, see random.py
    step_key = staticmethod(step_key)
    fold_in = staticmethod(fold_in)

    @staticmethod
    def get_batch(data: Array, key: Key, rows: int, block_size: int) -> tuple[Array, Array]:
        """Draw `rows` windows of the text: idx and targets, both (rows, block_size), targets one character later.

        data: (n,) integers, n > block_size.
        key: row r's window is a function of the key and the global row number key.row0 + r.
        """
        xp = array_namespace(data)
        check_batch(data, block_size)
        n_starts = xp.uint64(len(data) - block_size)
        starts = (random_uint64(xp, key, rows) % n_starts).astype("int64")  # (B,)
        index = starts[:, None] + xp.arange(block_size)  # (B, T)
        return data[index], data[index + 1]

    # one training step: gradients into a flat buffer, then the optimizer
    @staticmethod
    def compute_params(params: Array) -> Array:
        """The flat parameters as the model reads them: a backend that computes in another precision returns a copy in it."""
        return params

    loss_scale: Any = None  # of a backend that computes in float16: tensorlite/cuda/loss_scale.py

    def scale_loss(self, dloss: float) -> Array | float:
        """dloss, with which backward begins. A backend in float16 multiplies it by its loss scale, and its pack_grads divides."""
        return dloss

    @staticmethod
    def pack_grads(leaves: Sequence[Array], slots: Sequence[Array], add: bool = False) -> None:
        """Copy each gradient into its slot, a view of the flat gradient buffer; with add, sum it into the slot."""
        for leaf, slot in zip(leaves, slots, strict=True):
            if add:
                slot += leaf
            else:
                slot[...] = leaf

    global_norm = staticmethod(optim.global_norm)
    clip_grad_norm_ = staticmethod(optim.clip_grad_norm_)
    adamw_ = staticmethod(optim.adamw_)
    cosine_lr = staticmethod(optim.cosine_lr)

    @contextmanager
    def step(self) -> Iterator[None]:
        """The extent of one training step. A fast backend takes results from reused memory inside it; here nothing happens."""
        yield

    def compile(self, function: Callable) -> Callable:
        """Return a faster equal of a step function, where the backend has one; here the function itself."""
        return function


Ops = ReferenceOps  # the type of every backend: the others are its subclasses
