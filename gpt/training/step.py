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
        """Copy the values of a saved state into the buffers of this one."""
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
    batch_rows: range | None = None,
    grads_out: Array | None = None,
) -> Array:
    """Return the mean loss of this step's batch and leave its gradient in state.grads.

    The micro-batches of gradient accumulation are rows of one global batch.

    batch_rows: only these rows of each micro-batch. The loss and the gradient are then their share of the mean, and the shares of
    all rows add up to the whole.
    grads_out: a buffer that receives the gradient instead of state.grads.
    """
    B, accum_steps = train.batch_size, train.gradient_accumulation_steps
    batch_rows = range(B) if batch_rows is None else batch_rows
    params = state.table.tree(ops.compute_params(state.params))
    slots = state.table.views(state.grads if grads_out is None else grads_out)
    dloss = len(batch_rows) / (B * accum_steps)  # d total / d loss: the weight of one micro-batch's loss in the mean
    total = None
    for micro_step in range(accum_steps):
        key = ops.step_key(seed, state.step, micro_step * B + batch_rows.start)
        idx, targets = ops.get_batch(data, ops.fold_in(key, 0, "batch"), len(batch_rows), config.block_size)
        loss, cache = model.forward(ops, params, idx, targets, config, key if config.dropout else None)
        grads = model.backward(ops, dloss, cache)
        ops.pack_grads(state.table.leaves(grads), slots, add=micro_step > 0)
        total = ops.accumulate_loss(total, loss, dloss)
    return total


def update(ops: Any, state: TrainState, train: TrainConfig, part: slice = slice(None)) -> None:
    """Apply AdamW to a slice of the flat buffers (all of them). It works on each element alone, so slices may run side by side."""
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
