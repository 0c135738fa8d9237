"""One training step, written once, in ops: batch, forward, backward, clip, AdamW. Nothing here waits for the device."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from gpt.config import ModelConfig, TrainConfig
from gpt.params import ParamTable
from tensorlite.arrays import Array


@dataclass
class TrainState:
    """What training changes: four flat buffers and the number of updates made. All else is a function of (seed, step)."""

    table: ParamTable
    params: Array  # (size,) as are the others
    grads: Array
    m: Array
    v: Array
    step: int = 0

    @classmethod
    def start(cls, table: ParamTable, params: Array, xp: Any) -> "TrainState":
        """A state at step 0 with these parameters."""
        params = xp.array(params)  # a copy: training writes into it
        return cls(table, params, xp.zeros_like(params), xp.zeros_like(params), xp.zeros_like(params))

    def copy(self) -> "TrainState":
        """The same state in buffers of its own."""
        return TrainState(self.table, self.params.copy(), self.grads.copy(), self.m.copy(), self.v.copy(), self.step)

    def restore(self, saved: "TrainState") -> None:
        """Take over the numbers of a copy, into the buffers that are here."""
        self.params[...], self.grads[...], self.m[...], self.v[...] = saved.params, saved.grads, saved.m, saved.v
        self.step = saved.step


def loss_and_gradients(
    ops: Any,
    model: ModuleType,
    state: TrainState,
    data: Array,
    config: ModelConfig,
    train: TrainConfig,
    seed: int,
    rows: range | None = None,
    into: Array | None = None,
) -> Array:
    """The mean loss of this step's batch, its gradient left in state.grads. Micro-batches are rows of one global batch.

    rows: only these rows of each micro-batch; the loss and the gradient are then their share of the mean: the shares of all rows
    add up to the whole. into: a buffer for the gradient instead of state.grads.
    """
    B, micros = train.batch_size, train.gradient_accumulation_steps
    rows = range(B) if rows is None else rows
    params, slots = state.table.tree(ops.compute_params(state.params)), state.table.views(state.grads if into is None else into)
    share = len(rows) / (B * micros)
    total = None
    for micro in range(micros):
        key = ops.step_key(seed, state.step, micro * B + rows.start)
        idx, targets = ops.get_batch(data, ops.fold_in(key, 0, "batch"), len(rows), config.block_size)
        loss, cache = model.forward(ops, params, idx, targets, config, key if config.dropout else None)
        grads = model.backward(ops, share, cache)
        ops.pack_grads(state.table.leaves(grads), slots, add=micro > 0)
        total = ops.accumulate_loss(total, loss, share)
    return total


def update(ops: Any, state: TrainState, train: TrainConfig, part: slice = slice(None)) -> None:
    """AdamW on a part of the flat buffers (all of them): every element is changed on its own, so parts may run side by side."""
    ops.adamw_(
        state.params[part],
        state.grads[part],
        state.m[part],
        state.v[part],
        t=state.step + 1,
        lr=ops.cosine_lr(state.step, train.learning_rate, train.min_lr, train.warmup_iters, train.max_iters),
        beta1=train.beta1,
        beta2=train.beta2,
        weight_decay=train.weight_decay,
        n_decay=max(0, state.table.n_decay - (part.start or 0)),
    )


def train_step(
    ops: Any, model: ModuleType, state: TrainState, data: Array, config: ModelConfig, train: TrainConfig, seed: int
) -> tuple[Array, Array]:
    """Make one update. Returns the loss and the gradient's norm before clipping, both still on the device."""
    with ops.step():
        loss = loss_and_gradients(ops, model, state, data, config, train, seed)
        norm = ops.clip_grad_norm_(state.grads, train.grad_clip)
        update(ops, state, train)
    state.step += 1
    return loss, norm
