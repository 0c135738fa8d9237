"""NaN or infinity at a random step and place ends the run, and no file ever holds it.

The place is an entry of the parameters, of the moments, or of what an op returned, forward or backward. What an op returned must
end the run within one step. An entry of the state does so as soon as it is used (a row of the embedding waits for its character)
and is refused by the next save at the latest. In a third of the cases a signal arrives in that step, so that the run would save.
"""

import random
import re
import shutil
import signal
from typing import Any

import numpy as np

from gpt.errors import CheckpointError, TrainingError
from gpt.training import checkpoint, run_dir
from gpt.training.checkpoint import BUFFERS
from gpt.training.trainer import Trainer
from prove.harness import draw, main, scratch
from prove.runs import BACKENDS, before_step, drawn, trainer

PLACES = ("params", "m", "v", "forward", "backward")


def poison(array: Any, numbers: random.Random) -> None:
    """Make one entry of an array NaN or infinite."""
    array[tuple(numbers.randrange(n) for n in array.shape)] = numbers.choice((np.nan, np.inf, -np.inf))


def poison_an_op(run: Trainer, way: str, numbers: random.Random) -> None:
    """Let one call of an op, the next drawn one in forward or backward, return a bad number."""
    ops = numbers.choice(run.workers.backends)
    names = [name for name in dir(ops) if name.endswith(f"_{way}")]
    countdown = [numbers.randrange(6)]

    def spoiled(op: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = op(*args, **kwargs)
            arrays = [x for x in (result if isinstance(result, tuple) else (result,)) if isinstance(x, np.ndarray) and x.ndim]
            if arrays and countdown[0] >= 0:
                countdown[0] -= 1
                if countdown[0] < 0:
                    poison(numbers.choice(arrays), numbers)
            return result

        return call

    for name in names:
        setattr(ops, name, spoiled(getattr(ops, name)))


def case(n: int) -> str:
    numbers, out = draw("nan", n), scratch() / "run"
    shutil.rmtree(out, ignore_errors=True)
    run = trainer(drawn(numbers), BACKENDS[n % 2], 1, out, resume=False)
    at, place, interrupted = numbers.randrange(run.task.train.max_iters), numbers.choice(PLACES), numbers.randrange(3) == 0

    def inject() -> None:
        if place in BUFFERS:
            param = numbers.choice(list(run.state.table))
            poison(run.state.table.view(getattr(run.state, place), param), numbers)
        else:
            poison_an_op(run, place, numbers)
        if interrupted:
            signal.raise_signal(signal.SIGINT)

    before_step(run, at, inject)
    said = ""
    with np.errstate(all="ignore"), run_dir.locked(out):
        try:
            run.run()
        except (TrainingError, CheckpointError) as error:
            said = str(error)
    for path in (run_dir.best_checkpoint(out), run_dir.last_checkpoint(out)):
        saved = checkpoint.load(path)
        assert all(np.isfinite(getattr(saved, name)).all() for name in BUFFERS), f"{place}: a bad number was saved: {said}"
    where = "an op" if place in ("forward", "backward") else "parameters" if place == "params" else "moments"
    if not said:
        assert all(np.isfinite(getattr(run.state, name)).all() for name in BUFFERS), f"{place}: the run went on"
        return f"{where}: swallowed"  # by a relu, a dropped entry, a mask
    steps = int(re.search(r"step (\d+)", said)[1]) - at
    assert steps == 1 or where != "an op", f"{place} at step {at + 1}: {said}"
    named = "" if re.search(r"first bad|is not finite", said) else ", no tensor named"
    return f"{where}: {'stopped within one step' if steps <= 2 else 'stopped when it was used or saved'}{named}"


if __name__ == "__main__":
    main(case, 500)
