"""The training loop: steps, evaluation, metrics, plots, checkpoints."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpt import console
from gpt.data import Corpus
from gpt.errors import CheckpointError, TrainingError
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.training import checkpoint, interrupts, run_dir
from gpt.training.checkpoint import Checkpoint
from gpt.training.data_parallel import Stopped, Workers
from gpt.training.evaluate import split_loss, train_loss
from gpt.training.plots import loss_curve
from gpt.training.run_setup import RunSetup
from gpt.training.step import Task, TrainState, learning_rate
from tensorlite import to_numpy

SIGPIPE = 13  # Windows has no name for it


@dataclass
class Trainer:
    """One run. Its state and history change; everything else is fixed at the start. All ranks compute, and rank 0 writes."""

    workers: Workers
    xp: Any
    task: Task
    corpus: Corpus
    state: TrainState
    out: Path
    drop_unknown: bool = False
    log: Callable[[str], None] = tqdm.write
    history: list[dict[str, Any]] = field(default_factory=list)  # one record per evaluation, as in metrics.jsonl
    best_val: float = math.inf
    last_eval_step: int = -1  # the step of the last record; -1: none
    trained_seconds: float = 0.0  # in training steps alone, of this process
    trained_steps: int = 0
    elapsed_before: float = 0.0  # seconds of the run before it was resumed
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "writer"))
    pending_write: Future | None = None
    metrics_error: CheckpointError | None = None  # why metrics.jsonl is not up to date
    pending: list[tuple[int, Any, Any]] = field(default_factory=list)  # step, loss, norm of steps that may still be computing

    def __post_init__(self) -> None:
        self.val_data = self.xp.asarray(self.corpus.val)
        self.step_fn = self.workers.train_step
        self.is_writer = self.workers.ranks.rank == 0
        self.started = time.perf_counter()

    @classmethod
    def of(cls, setup: RunSetup, workers: Workers, xp: Any) -> "Trainer":
        """Put a run on a device. A resumed run continues its history and its best loss."""
        model = MODELS[setup.model.model]
        table = ParamTable(model.init(setup.model))
        start = setup.weights if setup.resumed else None
        state = start.state(xp) if start else TrainState.start(table, setup.params(), xp)
        task = Task(model, setup.model, setup.train, xp.asarray(setup.corpus.train), setup.seed)
        trainer = cls(workers, xp, task, setup.corpus, state, setup.out, setup.drop_unknown)
        if start:
            trainer.best_val = start.best_val
            if trainer.is_writer:
                trainer._restore_history(start.step - math.isnan(start.val_loss))  # the last step may not be evaluated yet
            step = trainer.history[-1]["step"] if trainer.history else -1
            local = step if trainer.is_writer else 0  # only rank 0 has the history: the sum is its value
            trainer.last_eval_step = int(workers.sum([local])[0])
        return trainer

    def _restore_history(self, up_to: int) -> None:
        """Read the records of a resumed run up to a step, and check that it has a best checkpoint."""
        self.history = run_dir.read_metrics(self.out, up_to)
        self.elapsed_before = self.history[-1]["elapsed_s"] if self.history else 0.0
        if not run_dir.best_checkpoint(self.out).exists():
            console.note(
                f"{run_dir.best_checkpoint(self.out)} is missing: the best of the evaluations from here on takes its place"
            )
            self.best_val = math.inf

    def train_step(self) -> None:
        """Start one update, and leave its loss and norm pending: a GPU may be some steps behind."""
        loss, norm = self.step_fn(self.task, self.state)
        self.pending.append((self.state.step, loss, norm))

    def sync(self) -> float:
        """Wait for the pending steps. Returns the last loss. Raises TrainingError where a loss or norm is not finite."""
        done, self.pending = self.pending, []
        values = self.workers.ops.to_floats([value for _, loss, norm in done for value in (loss, norm)])
        for (step, _, _), loss, norm in zip(done, values[::2], values[1::2], strict=True):
            self._raise_if_not_finite(step, loss, norm)
        return values[-2] if values else math.nan

    @contextmanager
    def rolled_back(self) -> Iterator[None]:
        """Undo at the end the steps that are made within: they are made to be timed."""
        before = self.state.copy()
        try:
            yield
        finally:
            self.pending.clear()
            self.state.restore(before)

    def run(self) -> int | None:
        """Train to max_iters. Returns None, or the signal that ended the run early (its work is saved)."""
        cfg, state = self.task.train, self.state
        with (
            interrupts.catch_signals() as caught,
            self._writer_finished(),
            tqdm(
                total=cfg.max_iters, initial=state.step, unit="step", dynamic_ncols=True, disable=None if self.is_writer else True
            ) as bar,
        ):
            should_stop = self.workers.ranks.asked_to_stop = lambda: bool(caught) or console.reader_gone()
            while state.step < cfg.max_iters or not self._evaluated:
                if self.workers.sum([should_stop()])[0]:  # a signal to one rank ends all of them at the same step
                    self.sync()
                    if not self._evaluated:
                        self.save_async(val_loss=math.nan)
                    return caught[0] if caught else SIGPIPE if console.reader_gone() else signal.SIGTERM
                if self._eval_due and not self._evaluated:
                    with contextlib.suppress(Stopped):  # half an evaluation is discarded: a resumed run begins with it
                        self.evaluate()
                    continue
                start = time.perf_counter()
                self.train_step()
                if self._eval_due or len(self.pending) == self.workers.ops.max_in_flight:
                    bar.set_postfix_str(f"loss {self.sync():.4f}", refresh=False)
                self.trained_seconds += time.perf_counter() - start
                self.trained_steps += 1
                bar.update()
        return None

    @property
    def _eval_due(self) -> bool:
        """Whether this step is evaluated: the first, every eval_interval-th, and the last."""
        step, cfg = self.state.step, self.task.train
        return self.last_eval_step < 0 or step % cfg.eval_interval == 0 or step >= cfg.max_iters

    @property
    def _evaluated(self) -> bool:
        return self.last_eval_step == self.state.step

    def _raise_if_not_finite(self, step: int, loss: float, norm: float) -> None:
        """Raise TrainingError if the loss or gradient norm is not finite. Earlier checkpoints are left untouched."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._not_finite_error(step, f"the loss is {loss}, the gradient's norm {norm}")

    def _not_finite_error(self, step: int, what: str) -> TrainingError:
        """The error to raise. It names the first bad tensor as of now, on a GPU up to max_in_flight - 1 updates later."""
        tensors = (("gradient", self.state.grads), ("parameter", self.state.params))
        bad = [f"{kind} {p.name}" for kind, flat in tensors for p in self.state.table if not self._is_finite(flat, p)]
        first = f", first bad {bad[0]}" if bad else ""
        return TrainingError(f"step {step}: {what}{first}; lower --learning-rate or set --grad-clip 1")

    def _is_finite(self, flat: Any, param: Any) -> bool:
        return bool(self.xp.isfinite(self.state.table.view(flat, param)).all())

    @property
    def tokens_per_second(self) -> float:
        return self.trained_steps * self.task.tokens_per_step / self.trained_seconds if self.trained_seconds else 0.0

    @property
    def elapsed(self) -> float:
        return self.elapsed_before + time.perf_counter() - self.started

    def params(self) -> dict[str, Any]:
        """The parameters as the model reads them."""
        return self.state.table.tree(self.workers.ops.compute_params(self.state.params))

    def train_loss(self) -> float:
        """Mean over eval_batches random batches of the training text."""
        return train_loss(self.workers, self.task, self.params())

    def val_loss(self) -> float:
        """Over the validation split, or val_chars of its characters."""
        return split_loss(self.workers, self.task, self.params(), self.val_data)

    def evaluate(self) -> None:
        """Measure both losses, log them, and write the checkpoints and the picture."""
        state = self.state
        train, val = self.train_loss(), self.val_loss()
        if not math.isfinite(val):
            raise self._not_finite_error(state.step, f"the validation loss is {val}")
        lr = learning_rate(self.workers.ops, self.task.train, max(0, state.step - 1))
        self.history.append(
            {
                "step": state.step,
                "train_loss": train,
                "val_loss": val,
                "lr": lr,
                "tokens_per_s": round(self.tokens_per_second, 1),
                "elapsed_s": round(self.elapsed, 3),
            }
        )
        self.last_eval_step = state.step
        better = val < self.best_val
        self.best_val = min(val, self.best_val)
        if not self.is_writer:
            return
        self._write_metrics()  # first: a resumed run drops the records that are ahead of its checkpoint
        self.save_async(val, better)
        self.log(f"step {state.step}: train loss {train:.4f}, val loss {val:.4f}")

    def save_async(self, val_loss: float, better: bool = False) -> None:
        """Copy the run's state, and let another thread write it: a checkpoint (two names if it is the best) and the loss curve.

        Only rank 0 writes. Training goes on meanwhile. An error is raised by the next call, or by `wait_for_writer`.
        """
        if not self.is_writer:
            return
        self.wait_for_writer()
        buffers: dict[str, Any] = {name: to_numpy(getattr(self.state, name).copy()) for name in checkpoint.BUFFERS}
        saved = Checkpoint(
            model=self.task.config,
            train=self.task.train,
            vocabulary=self.corpus.tokenizer.vocabulary,
            seed=self.task.seed,
            step=self.state.step,
            val_loss=val_loss,
            best_val=self.best_val,
            data_sha256=self.corpus.sha256,
            drop_unknown=self.drop_unknown,
            **buffers,
        )
        self.pending_write = self.writer.submit(self._save, saved, better, list(self.history))

    def _save(self, saved: Checkpoint, better: bool, history: list[dict[str, Any]]) -> None:
        best, last = run_dir.best_checkpoint(self.out), run_dir.last_checkpoint(self.out)
        checkpoint.save(best if better else last, saved)
        if better:
            checkpoint.link_or_copy(best, last)
        if history:
            self._plot(history)

    def _plot(self, history: list[dict[str, Any]]) -> None:
        try:
            loss_curve(self.out / run_dir.PLOT, history, self.out.absolute().name)
        except Exception as error:  # matplotlib raises many kinds, and none is worth ending a run
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            console.note(
                f"the loss curve cannot be drawn ({type(error).__name__}: {reason}); all it would show is in {run_dir.METRICS}"
            )

    def _write_metrics(self) -> None:
        """Write all records each time, so that a failed write costs nothing unless it is the last."""
        self.metrics_error = None
        try:
            run_dir.write_metrics(self.out, self.history)
        except CheckpointError as error:
            self.metrics_error = error
            console.note(f"{error}; the next evaluation tries again")

    def wait_for_writer(self) -> None:
        """Wait until all files are on the disk. Raises the error of a write that failed."""
        pending_write, self.pending_write = self.pending_write, None
        if pending_write is not None:
            pending_write.result()

    @contextmanager
    def _writer_finished(self) -> Iterator[None]:
        """However the run ends, finish the write that is under way."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(CheckpointError):  # the error that ended the run is the one to report
                self.wait_for_writer()
            raise
        self.wait_for_writer()
        if self.metrics_error is not None:
            raise self.metrics_error

    def summary(self) -> str:
        """The last line of a run."""
        last = self.history[-1]
        return (
            f"done: step {self.state.step} | train {last['train_loss']:.4f} | val {last['val_loss']:.4f} | "
            f"best val {self.best_val:.4f} | {self.tokens_per_second:.0f} tok/s | {self.elapsed:.1f} s"
        )
