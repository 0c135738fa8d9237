"""The loop that train.py drives: steps, evaluation, log, pictures, checkpoints."""

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
from gpt.config import ModelConfig, TrainConfig
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
from gpt.training.step import TrainState
from tensorlite import to_numpy

SIGPIPE = 13  # a number that Windows has no name for


@dataclass
class Trainer:
    """One run. `state` and the log change; everything else is fixed at the start. Of several ranks, all compute and one writes."""

    workers: Workers
    xp: Any
    model_config: ModelConfig
    train_config: TrainConfig
    corpus: Corpus
    state: TrainState
    seed: int
    out: Path
    drop_unknown: bool = False
    say: Callable[[str], None] = tqdm.write
    records: list[dict[str, Any]] = field(default_factory=list)
    best_val: float = math.inf
    evaluated_at: int = -1  # the last step whose losses are in the log; -1: none
    trained_seconds: float = 0.0  # in training steps alone, of this process
    trained_steps: int = 0
    elapsed_before: float = 0.0  # of the stretches before a resume
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "writer"))
    writing: Future | None = None
    unlogged: CheckpointError | None = None  # why the log on the disk is not up to date
    unread: list[tuple[int, Any, Any]] = field(default_factory=list)  # step, loss, norm: made, perhaps still being computed

    def __post_init__(self) -> None:
        self.model = MODELS[self.model_config.model]
        self.train_data, self.val_data = self.xp.asarray(self.corpus.train), self.xp.asarray(self.corpus.val)
        self.step = self.workers.train_step
        self.writes = self.workers.ranks.rank == 0
        self.started = time.perf_counter()

    @classmethod
    def of(cls, plan: RunSetup, workers: Workers, xp: Any) -> "Trainer":
        """Put a planned run on a device; a resumed one takes up its log and its best loss."""
        table = ParamTable(MODELS[plan.model.model].init(plan.model))
        start = plan.weights if plan.resumed else None
        state = start.state(xp) if start else TrainState.start(table, plan.params(), xp)
        trainer = cls(workers, xp, plan.model, plan.train, plan.corpus, state, plan.seed, plan.out, plan.drop_unknown)
        if start:
            trainer.best_val = start.best_val
            if trainer.writes:
                trainer._take_up_the_log(start.step - math.isnan(start.val_loss))  # whose own step may be still to be evaluated
            step = trainer.records[-1]["step"] if trainer.records else -1
            mine = step if trainer.writes else 0  # only the first rank has the log: the sum is what it says
            trainer.evaluated_at = int(workers.sum([mine])[0])
        return trainer

    def _take_up_the_log(self, up_to: int) -> None:
        """Go on with the records of a resumed run up to a step, and see that it has a best checkpoint."""
        self.records = run_dir.read_metrics(self.out, up_to)
        self.elapsed_before = self.records[-1]["elapsed_s"] if self.records else 0.0
        if not run_dir.best_checkpoint(self.out).exists():
            console.note(
                f"{run_dir.best_checkpoint(self.out)} is missing: the best of the evaluations from here on takes its place"
            )
            self.best_val = math.inf

    def make_step(self) -> None:
        """One update, whose loss and norm are left unread: a GPU may be some steps behind."""
        loss, norm = self.step(self.model, self.state, self.train_data, self.model_config, self.train_config, self.seed)
        self.unread.append((self.state.step, loss, norm))

    def read(self) -> float:
        """Wait for the steps made so far. Returns the last one's loss. Raises TrainingError where one has no finite numbers."""
        made, self.unread = self.unread, []
        numbers = self.workers.ops.to_floats([number for _, loss, norm in made for number in (loss, norm)])
        for (step, _, _), loss, norm in zip(made, numbers[::2], numbers[1::2], strict=True):
            self._stop_unless_finite(step, loss, norm)
        return numbers[-2] if numbers else math.nan

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Steps made within are taken back: something to time."""
        before = self.state.copy()
        try:
            yield
        finally:
            self.unread.clear()
            self.state.restore(before)

    def run(self) -> int | None:
        """Train to max_iters. Returns None, or the signal that ended the run early (its work is saved)."""
        cfg, state = self.train_config, self.state
        with (
            interrupts.noted() as caught,
            self._written_at_the_end(),
            tqdm(
                total=cfg.max_iters, initial=state.step, unit="step", dynamic_ncols=True, disable=None if self.writes else True
            ) as bar,
        ):
            asked = self.workers.ranks.asked_to_stop = lambda: bool(caught) or console.reader_gone()
            while state.step < cfg.max_iters or not self._evaluated:
                if self.workers.sum([asked()])[0]:  # asked of one rank, it ends all of them at the same step
                    self.read()
                    if not self._evaluated:
                        self.write(val_loss=math.nan)
                    return caught[0] if caught else SIGPIPE if console.reader_gone() else signal.SIGTERM
                if self._due and not self._evaluated:
                    with contextlib.suppress(Stopped):  # half an evaluation is none: a resumed run begins with it
                        self.evaluate()
                    continue
                start = time.perf_counter()
                self.make_step()
                if self._due or len(self.unread) == self.workers.ops.max_in_flight:
                    bar.set_postfix_str(f"loss {self.read():.4f}", refresh=False)
                self.trained_seconds += time.perf_counter() - start
                self.trained_steps += 1
                bar.update()
        return None

    @property
    def _due(self) -> bool:
        """Whether the losses belong in the log at this step: at the start, at every eval_interval, and at the end."""
        step, cfg = self.state.step, self.train_config
        return self.evaluated_at < 0 or step % cfg.eval_interval == 0 or step >= cfg.max_iters

    @property
    def _evaluated(self) -> bool:
        return self.evaluated_at == self.state.step

    def _stop_unless_finite(self, step: int, loss: float, norm: float) -> None:
        """A run whose numbers are gone stops when they are read; the checkpoints of its better days stay as they are."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._not_finite(step, f"the loss is {loss}, the gradient's norm {norm}")

    def _not_finite(self, step: int, what: str) -> TrainingError:
        """The error that says so, with the first bad tensor as it is now: on a GPU up to max_in_flight - 1 updates later."""
        tensors = (("gradient", self.state.grads), ("parameter", self.state.params))
        bad = [f"{kind} {p.name}" for kind, flat in tensors for p in self.state.table if not self._finite(flat, p)]
        first = f", first bad {bad[0]}" if bad else ""
        return TrainingError(f"step {step}: {what}{first}; lower --learning-rate or set --grad-clip 1")

    def _finite(self, flat: Any, param: Any) -> bool:
        return bool(self.xp.isfinite(self.state.table.view(flat, param)).all())

    @property
    def tokens_per_step(self) -> int:
        return self.train_config.batch_size * self.train_config.gradient_accumulation_steps * self.model_config.block_size

    @property
    def tokens_per_second(self) -> float:
        return self.trained_steps * self.tokens_per_step / self.trained_seconds if self.trained_seconds else 0.0

    @property
    def elapsed(self) -> float:
        return self.elapsed_before + time.perf_counter() - self.started

    def params(self) -> dict[str, Any]:
        """The parameters as the model reads them."""
        return self.state.table.tree(self.workers.ops.compute_params(self.state.params))

    def train_loss(self) -> float:
        """Mean over eval_batches random batches of the training text."""
        cfg = self.train_config
        return train_loss(
            self.workers, self.model, self.params(), self.train_data, self.model_config, cfg.eval_batches, cfg.batch_size, self.seed
        )

    def val_loss(self) -> float:
        """Over the validation split, or val_chars of its characters."""
        cfg = self.train_config
        return split_loss(self.workers, self.model, self.params(), self.val_data, self.model_config, cfg.batch_size, cfg.val_chars)

    def evaluate(self) -> None:
        """Measure both losses, log them, and write the checkpoints and the picture."""
        cfg, state = self.train_config, self.state
        train, val = self.train_loss(), self.val_loss()
        if not math.isfinite(val):
            raise self._not_finite(state.step, f"the validation loss is {val}")
        lr = self.workers.ops.cosine_lr(max(0, state.step - 1), cfg.learning_rate, cfg.min_lr, cfg.warmup_iters, cfg.max_iters)
        self.records.append(
            {
                "step": state.step,
                "train_loss": train,
                "val_loss": val,
                "lr": lr,
                "tokens_per_s": round(self.tokens_per_second, 1),
                "elapsed_s": round(self.elapsed, 3),
            }
        )
        self.evaluated_at = state.step
        better = val < self.best_val
        self.best_val = min(val, self.best_val)
        if not self.writes:
            return
        self._write_metrics()  # first: a resume leaves out what is ahead of its checkpoint
        self.write(val, better)
        self.say(f"step {state.step}: train loss {train:.4f}, val loss {val:.4f}")

    def write(self, val_loss: float, better: bool = False) -> None:
        """Copy the run as it stands, and let another thread write it: a checkpoint (two names if it is the best) and the curve.

        Of several ranks the first does. Training goes on meanwhile; what fails is raised by the next call, or by `written`.
        """
        if not self.writes:
            return
        self.written()
        buffers: dict[str, Any] = {name: to_numpy(getattr(self.state, name).copy()) for name in checkpoint.BUFFERS}
        saved = Checkpoint(
            model=self.model_config,
            train=self.train_config,
            vocabulary=self.corpus.tokenizer.vocabulary,
            seed=self.seed,
            step=self.state.step,
            val_loss=val_loss,
            best_val=self.best_val,
            data_sha256=self.corpus.sha256,
            drop_unknown=self.drop_unknown,
            **buffers,
        )
        self.writing = self.writer.submit(self._write, saved, better, list(self.records))

    def _write(self, saved: Checkpoint, better: bool, records: list[dict[str, Any]]) -> None:
        best, last = run_dir.best_checkpoint(self.out), run_dir.last_checkpoint(self.out)
        checkpoint.save(best if better else last, saved)
        if better:
            checkpoint.link_or_copy(best, last)
        if records:
            self._draw(records)

    def _draw(self, records: list[dict[str, Any]]) -> None:
        try:
            loss_curve(self.out / run_dir.PICTURE, records, self.out.absolute().name)
        except Exception as error:  # matplotlib's are of every kind, and a picture is not worth a run
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            console.note(
                f"the loss curve cannot be drawn ({type(error).__name__}: {reason}); all it would show is in {run_dir.METRICS}"
            )

    def _write_metrics(self) -> None:
        """Every call writes all records, so that one which fails costs nothing unless it is the last."""
        self.unlogged = None
        try:
            run_dir.write_metrics(self.out, self.records)
        except CheckpointError as error:
            self.unlogged = error
            console.note(f"{error}; the next evaluation tries again")

    def written(self) -> None:
        """Wait until all is on the disk. Raises what failed there."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    @contextmanager
    def _written_at_the_end(self) -> Iterator[None]:
        """However a run ends, what it began to write is whole."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(CheckpointError):  # what ended the run is the reason to tell
                self.written()
            raise
        self.written()
        if self.unlogged is not None:
            raise self.unlogged

    def summary(self) -> str:
        """The last line of a run."""
        last = self.records[-1]
        return (
            f"done: step {self.state.step} | train {last['train_loss']:.4f} | val {last['val_loss']:.4f} | "
            f"best val {self.best_val:.4f} | {self.tokens_per_second:.0f} tok/s | {self.elapsed:.1f} s"
        )
