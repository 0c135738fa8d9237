"""One training step in ops: batch, forward, backward, clip, AdamW. Nothing here waits for the device."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from gpt.config import ModelConfig, TrainConfig
from gpt.params import ParamTable
from tensorlite import Array, Ops


@dataclass(frozen=True, eq=False)  # eq=False: == of two tasks would compare their arrays; a task is equal to itself alone
class Task:
    """Everything that a training step depends on and that no step changes."""

    model: ModuleType  # of gpt/models
    config: ModelConfig
    train: TrainConfig
    data: Array  # (n,) integers: the training text
    seed: int


@dataclass
class TrainState:
    """What training changes: four flat buffers and the number of updates. All else is a function of (seed, step)."""

    table: ParamTable
    params: Array  # (size,), like the other three
    grads: Array
    m: Array
    v: Array
    step: int = 0

    @classmethod
    def start(cls, table: ParamTable, params: Array, xp: Any) -> "TrainState":
        """Return a state at step 0 with a copy of these parameters, because training writes into them."""
        params = xp.array(params)
        return cls(table, params, grads=xp.zeros_like(params), m=xp.zeros_like(params), v=xp.zeros_like(params))

    def buffers(self) -> list[Array]:
        return [self.params, self.grads, self.m, self.v]

    def copy(self) -> "TrainState":
        """Return the same state in buffers of its own."""
        return TrainState(self.table, self.params.copy(), self.grads.copy(), self.m.copy(), self.v.copy(), self.step)


def loss_and_gradients(
    ops: Ops, task: Task, state: TrainState, batch_rows: range | None = None, grads_out: Array | None = None
) -> Array:
    """Return the mean loss of this step's batch, of shape (), and leave its gradient in state.grads.

    The micro-batches of gradient accumulation are rows of one global batch.

    batch_rows: compute only these rows of each micro-batch. The loss and the gradient are then their share of the mean, and the
        shares of all rows add up to the whole.
    grads_out: a buffer that receives the gradient instead of state.grads.
    """
    config, train = task.config, task.train
    if batch_rows is None:
        batch_rows = range(train.batch_size)
    params = state.table.tree(ops.compute_params(state.params))
    slots = state.table.views(state.grads if grads_out is None else grads_out)
    # d total / d loss: the weight of one micro-batch's loss in the mean
    dloss = len(batch_rows) / (train.batch_size * train.gradient_accumulation_steps)
    total = None
    for micro_step in range(train.gradient_accumulation_steps):
        key = ops.step_key(task.seed, state.step, micro_step * train.batch_size + batch_rows.start)
        batch_key = ops.fold_in(key, 0, "batch")
        idx, targets = ops.get_batch(task.data, batch_key, len(batch_rows), config.block_size)
        loss, cache = task.model.forward(ops, params, idx, targets, config, key if config.dropout else None)
        grads = task.model.backward(ops, ops.scale_loss(dloss), cache)
        ops.pack_grads(state.table.leaves(grads), slots, add=micro_step > 0)
        total = ops.accumulate_loss(total, loss, dloss)
    return total


def learning_rate(ops: Ops, train: TrainConfig, step: int) -> float:
    """Return the learning rate of the update that follows `step` updates."""
    return ops.cosine_lr(step, lr=train.learning_rate, min_lr=train.min_lr, warmup=train.warmup_iters, total=train.max_iters)


def update(ops: Ops, task: Task, state: TrainState, part: slice = slice(None)) -> None:
    """Apply AdamW to a slice of the flat buffers, or to all. It treats each element alone, so slices may run side by side."""
    ops.adamw_(
        state.params[part],
        state.grads[part],
        state.m[part],
        state.v[part],
        t=state.step + 1,
        lr=learning_rate(ops, task.train, state.step),
        beta1=task.train.beta1,
        beta2=task.train.beta2,
        weight_decay=task.train.weight_decay,
        n_decay=max(0, state.table.n_decay - (part.start or 0)),
    )


def train_step(ops: Ops, task: Task, state: TrainState) -> tuple[Array, Array]:
    """Make one update. Return the loss and the gradient's norm before clipping, both still on the device."""
    with ops.step():
        loss = loss_and_gradients(ops, task, state)
        norm = ops.clip_grad_norm_(state.grads, task.train.grad_clip)
        update(ops, task, state)
    state.step += 1
    return loss, norm
