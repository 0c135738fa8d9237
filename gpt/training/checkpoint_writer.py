"""class CheckpointWriter: writes the files of a run, the large ones while training goes on."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from gpt import console
from gpt.errors import CheckpointError
from gpt.training import checkpoint, run_dir
from gpt.training.checkpoint import Checkpoint
from gpt.training.plots import loss_curve
from gpt.training.run_setup import RunSetup
from gpt.training.step import TrainState
from tensorlite import to_numpy
from tensorlite.loss_scale import LossScale

Record = dict[str, Any]  # of one evaluation, a line of metrics.jsonl


class CheckpointWriter:
    """Writes the metrics at once, and the checkpoints and the loss curve on a thread of its own. Only rank 0 uses it.

    setup: the run, whose files go to setup.out.
    """

    def __init__(self, setup: RunSetup) -> None:
        self.setup = setup
        self._thread = ThreadPoolExecutor(1, "writer")
        self._pending_save: Future | None = None
        self._metrics_error: CheckpointError | None = None  # why metrics.jsonl is not up to date

    def write_metrics(self, history: list[Record]) -> None:
        """Write all records each time, so that a failed write costs a note and no more, unless it is the last."""
        self._metrics_error = None
        try:
            run_dir.write_metrics(self.setup.out, history)
        except CheckpointError as error:
            self._metrics_error = error
            console.note(f"{error}; the next evaluation tries again")

    def save_async(
        self,
        state: TrainState,
        history: list[Record],
        *,
        val_loss: float,
        best_val: float,
        is_best: bool = False,
        loss_scale: LossScale | None = None,
    ) -> None:
        """Copy the state, and let the thread write the copy to a checkpoint and draw the loss curve.

        The previous save is finished first, so that there is one copy of the state at a time.

        val_loss: of this state; NaN: it is not evaluated.
        best_val: the lowest validation loss of the run so far.
        is_best: whether it is the loss of this state. The checkpoint is then both the best and the last one.
        loss_scale: of a float16 run, after this step.

        Raises CheckpointError if the previous save has failed and this one fails too. If it has not, an error of this save is noted
        by the next call, or raised by `wait`.
        """
        failed = False
        try:
            self.wait()
        except CheckpointError as error:
            failed = True
            console.note(f"{error}; trying again, with step {state.step}")
        buffers: dict[str, Any] = {name: to_numpy(getattr(state, name).copy()) for name in checkpoint.BUFFERS}
        saved = Checkpoint(
            model=self.setup.model,
            train=self.setup.train,
            vocabulary=self.setup.corpus.tokenizer.vocabulary,
            seed=self.setup.seed,
            step=state.step,
            val_loss=val_loss,
            best_val=best_val,
            data_sha256=self.setup.corpus.sha256,
            drop_unknown=self.setup.drop_unknown,
            loss_scale=loss_scale,
            **buffers,
        )
        self._pending_save = self._thread.submit(self._save, saved, is_best, list(history))
        if failed:
            self.wait()

    def wait(self) -> None:
        """Wait until the files are on the disk. Raises the error of a save that failed, once."""
        pending_save, self._pending_save = self._pending_save, None
        if pending_save is not None:
            pending_save.result()

    @contextlib.contextmanager
    def finished(self) -> Iterator[None]:
        """Finish the save that is under way, however the block ends.

        Raises the error of a save that failed or of metrics that are not up to date, unless the block has raised another.
        """
        try:
            yield
        except BaseException:
            with contextlib.suppress(CheckpointError):  # the error that ended the run is the one to report
                self.wait()
            raise
        self.wait()
        if self._metrics_error is not None:
            raise self._metrics_error

    def _save(self, saved: Checkpoint, is_best: bool, history: list[Record]) -> None:
        """What the thread does: write the checkpoint under one name or both, then draw the loss curve."""
        best = run_dir.best_checkpoint(self.setup.out)
        last = run_dir.last_checkpoint(self.setup.out)
        if is_best:
            checkpoint.save(best, saved)
            checkpoint.link_or_copy(best, last)
        else:
            checkpoint.save(last, saved)
        if history:
            self._plot(history)

    def _plot(self, history: list[Record]) -> None:
        """Draw the loss curve. If that fails, a note says why."""
        out = self.setup.out
        try:
            loss_curve(out / run_dir.PLOT, history, title=out.absolute().name)
        except Exception as error:  # matplotlib raises many kinds, and none is worth ending a run
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            console.note(
                f"the loss curve cannot be drawn ({type(error).__name__}: {reason}); all it would show is in {run_dir.METRICS}"
            )
