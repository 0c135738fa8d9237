"""class Trainer: the training loop, with its evaluations and checkpoints."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tqdm import tqdm

from gpt import console
from gpt.errors import TrainingError
from gpt.training import interrupts, run_dir
from gpt.training.checkpoint import Checkpoint
from gpt.training.checkpoint_writer import CheckpointWriter, Record
from gpt.training.clock import RunClock
from gpt.training.data_parallel import Stopped, Workers
from gpt.training.evaluate import split_loss, train_loss
from gpt.training.run_setup import RunSetup
from gpt.training.step import learning_rate
from tensorlite import Array
from tensorlite.loss_scale import LossScale


class PendingStep(NamedTuple):
    """An update that the device may still be computing."""

    step: int  # the number of updates, this one included
    loss: Array  # ()
    norm: Array  # (), of the gradient before clipping


class Trainer:
    """One run. All ranks compute, and rank 0 writes files and logs.

    setup: what fixes the run. A resumed run continues its history and its best loss.
    workers: the backends that compute it.
    xp: the array library of its device, numpy or cupy.
    """

    def __init__(self, setup: RunSetup, workers: Workers, xp: Any) -> None:
        self.setup = setup
        self.workers = workers
        self.xp = xp
        self.is_writer = workers.ranks.rank == 0
        self.task = setup.task(xp)
        self.val_data = xp.asarray(setup.corpus.val)
        self.state = setup.state(xp)
        self.pending: list[PendingStep] = []
        self.history: list[Record] = []  # one record per evaluation, on rank 0 those before a resume too
        self.last_eval_step = -1  # the step of the last record; -1: none
        self.best_val = math.inf
        self.clock = RunClock(self.tokens_per_step)
        self.writer = CheckpointWriter(setup)
        self.log: Callable[[str], None] = tqdm.write
        if setup.resumed and setup.weights is not None:
            self._restore_history(setup.weights)
            self._set_loss_scale(setup.weights.loss_scale)

    def _restore_history(self, start: Checkpoint) -> None:
        """Continue the records, the clock and the best loss of a resumed run."""
        self.best_val = start.best_val
        if self.is_writer:
            # A run that was interrupted before the evaluation of its last step has yet to make it, whatever the log says.
            evaluated = start.step - 1 if math.isnan(start.val_loss) else start.step
            self.history = run_dir.read_metrics(self.setup.out, up_to=evaluated)
            if self.history:
                self.clock.elapsed_before = self.history[-1]["elapsed_s"]
            best = run_dir.best_checkpoint(self.setup.out)
            if not best.exists() and math.isfinite(self.best_val):  # a run that was not evaluated yet has no best
                console.note(f"{best} is missing: the best of the evaluations from here on takes its place")
                self.best_val = math.inf
        step = self.history[-1]["step"] if self.history else -1
        self.last_eval_step = int(self.workers.sum([step if self.is_writer else 0])[0])  # rank 0 alone has read the history

    def run(self) -> int | None:
        """Train to max_iters. Return None, or the signal that ended the run early (its work is saved)."""
        max_iters = self.task.train.max_iters
        with interrupts.catch_signals() as stop, self.writer.finished(), self._progress_bar() as bar:
            self.workers.ranks.asked_to_stop = stop.is_set
            while self.state.step < max_iters or not self.is_evaluated:
                # A request to one rank stops all ranks at the same step.
                if self.workers.any(stop.is_set()):
                    self.sync()
                    if not self.is_evaluated:
                        self.save(val_loss=math.nan)
                    return stop.signal()

                # Measure the losses and save. A request in the middle discards the evaluation: a resumed run begins with it.
                if self.is_eval_step and not self.is_evaluated:
                    with contextlib.suppress(Stopped):
                        self.evaluate()
                    continue

                # Make one update. Its loss is read before an evaluation, or when the device is max_in_flight steps behind.
                with self.clock.training_step():
                    self.train_step()
                    if self.is_eval_step or len(self.pending) == self.workers.ops.max_in_flight:
                        bar.set_postfix_str(f"loss {self.sync():.4f}", refresh=False)
                bar.update()
        return None

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self.task.train.max_iters,
            initial=self.state.step,
            unit="step",
            dynamic_ncols=True,
            disable=None if self.is_writer else True,  # None: it is shown on a terminal alone
        )

    @property
    def is_eval_step(self) -> bool:
        """Whether this step is evaluated: the first of the run, every eval_interval-th, and the last."""
        train = self.task.train
        step = self.state.step
        return self.last_eval_step < 0 or step % train.eval_interval == 0 or step >= train.max_iters

    @property
    def is_evaluated(self) -> bool:
        return self.last_eval_step == self.state.step

    @property
    def tokens_per_step(self) -> int:
        train = self.task.train
        return train.batch_size * train.gradient_accumulation_steps * self.task.config.block_size

    def train_step(self) -> None:
        """Start one update, and leave its loss and norm pending: a GPU may be some steps behind."""
        loss, norm = self.workers.train_step(self.task, self.state)
        self.pending.append(PendingStep(self.state.step, loss, norm))

    def sync(self) -> float:
        """Wait for the pending steps. Return the last loss, or NaN if none was pending.

        Raises TrainingError if a loss or a gradient norm is not finite. Earlier checkpoints are left untouched. If the norm is not
        finite only because the loss scale was too large, the device has skipped the update, and a line of the log says so.
        """
        done, self.pending = self.pending, []
        values = self.workers.ops.to_floats([update.loss for update in done] + [update.norm for update in done])  # one wait
        losses, norms = values[: len(done)], values[len(done) :]
        for update, loss, norm in zip(done, losses, norms, strict=True):
            if not (math.isfinite(loss) and self._is_norm_good(update.step, norm)):
                raise self._not_finite_error(update.step, f"the loss is {loss}, the gradient's norm {norm}")
        return losses[-1] if losses else math.nan

    def _is_norm_good(self, step: int, norm: float) -> bool:
        """Return whether the run can go on after a step with this norm. A run in float16 can if a smaller loss scale is left."""
        before = self.loss_scale
        if before is None:
            return math.isfinite(norm)
        after = self.workers.ops.loss_scale.follow(norm)
        if after.skipped_steps == before.skipped_steps:
            return True
        if after.scale == before.scale:
            return False
        if self.is_writer:
            scales = f"{before.scale:.0f} -> {after.scale:.0f}"
            self.log(f"step {step}: the gradient overflowed in fp16; update skipped, loss scale {scales}")
        return True

    def _not_finite_error(self, step: int, what: str) -> TrainingError:
        """The error to raise. It names the first bad tensor as of now, on a GPU up to max_in_flight - 1 updates later."""
        return TrainingError(f"step {step}: {what}{self._first_bad_tensor()}; lower --learning-rate or set --grad-clip 1")

    def _first_bad_tensor(self) -> str:
        for kind, flat in (("gradient", self.state.grads), ("parameter", self.state.params)):
            for param in self.state.table:
                if not self.xp.isfinite(self.state.table.view(flat, param)).all():
                    return f", first bad {kind} {param.name}"
        return ""

    @contextlib.contextmanager
    def rolled_back(self) -> Iterator[None]:
        """Undo at the end of the block the steps that are made in it, which are made to be timed."""
        before = self.state.copy()
        loss_scale = self.loss_scale
        log, self.log = self.log, lambda _: None
        try:
            yield
        finally:
            self.log = log
            self.pending.clear()
            self._set_loss_scale(loss_scale)
            for buffer, values in zip(self.state.buffers(), before.buffers(), strict=True):
                buffer[...] = values
            self.state.step = before.step

    @property
    def loss_scale(self) -> LossScale | None:
        """The loss scale of a run in float16, after the last step that was read."""
        on_device = self.workers.ops.loss_scale
        return None if on_device is None else on_device.value

    def _set_loss_scale(self, value: LossScale | None) -> None:
        """Go on with this loss scale, if the run has one. Without a value it keeps its own."""
        if value is not None and self.workers.ops.loss_scale is not None:
            self.workers.ops.loss_scale.set(value)

    def params(self) -> dict[str, Any]:
        """The parameters as the model reads them."""
        return self.state.table.tree(self.workers.ops.compute_params(self.state.params))

    def train_loss(self) -> float:
        """The mean over eval_batches random batches of the training text."""
        return train_loss(self.workers, self.task, self.params())

    def val_loss(self) -> float:
        """The mean over the validation split, or over val_chars of its characters."""
        return split_loss(self.workers, self.task, self.params(), self.val_data)

    def evaluate(self) -> None:
        """Measure both losses, log them, and write the metrics, the checkpoints and the loss curve.

        Raises TrainingError if the validation loss is not finite.
        """
        step, scale = self.state.step, self.loss_scale
        train_loss, val_loss = self.train_loss(), self.val_loss()
        if not math.isfinite(val_loss):
            raise self._not_finite_error(step, f"the validation loss is {val_loss}")
        self.history.append(
            {
                "step": step,
                "train_loss": train_loss,
                "val_loss": val_loss,
                "lr": learning_rate(self.workers.ops, self.task.train, max(0, step - 1)),  # of the update that led here
                "tokens_per_s": round(self.clock.tokens_per_second, 1),
                "elapsed_s": round(self.clock.elapsed, 3),
            }
            | ({} if scale is None else {"loss_scale": scale.scale, "skipped_steps": scale.skipped_steps})
        )
        self.last_eval_step = step
        is_best = val_loss < self.best_val
        self.best_val = min(val_loss, self.best_val)
        if self.is_writer:
            self.writer.write_metrics(self.history)  # first: a resumed run drops the records that are ahead of its checkpoint
            self.save(val_loss, is_best)
            self.log(f"step {step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}")

    def save(self, val_loss: float, is_best: bool = False) -> None:
        """Let rank 0 write the state to a checkpoint, on a thread. val_loss: NaN if this step is not evaluated."""
        if self.is_writer:
            self.writer.save_async(
                self.state,
                self.history,
                val_loss=val_loss,
                best_val=self.best_val,
                is_best=is_best,
                loss_scale=self.loss_scale,
            )

    def summary(self) -> str:
        """The last line of a run."""
        last = self.history[-1]
        return (
            f"done: step {self.state.step} | train {last['train_loss']:.4f} | val {last['val_loss']:.4f} | "
            f"best val {self.best_val:.4f} | {self.clock.tokens_per_second:.0f} tok/s | {self.clock.elapsed:.1f} s"
        )
