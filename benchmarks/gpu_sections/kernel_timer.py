"""How long each kernel of a training step takes, by name, on whatever clock it is given."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from gpt.analysis.dry_run import op_observer
from gpt.analysis.instrument import instrument
from gpt.config import ModelConfig, TrainConfig
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.training.step import Task, TrainState, train_step
from gpu_sections.workload import SEED, fast
from tensorlite.cuda.runtime.dry_run import gemm_label


class KernelTimer:
    """A runtime that passes all on to another and marks when each launch and GEMM begins and ends.

    mark: notes a point in time. between: seconds from one to another. What a GEMM launches itself belongs to it. marks: by
    (op, kernel), as the costs of tensorlite/cuda/runtime/dry_run.py. op: the op that is running, set by the caller.
    """

    def __init__(self, runtime: Any, mark: Callable[[], Any], between: Callable[[Any, Any], float]) -> None:
        self.runtime, self.mark, self.between = runtime, mark, between
        self.op, self.marks, self.within = "", [], False  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)

    def launch(self, file: str, kernel: str, /, *size: Any, **kwargs: Any) -> None:
        self._marked(kernel, lambda: self.runtime.launch(file, kernel, *size, **kwargs))

    def gemm(self, a: Any, b: Any, out: Any, **kwargs: Any) -> None:
        self._marked(gemm_label(a, b, kwargs), lambda: self.runtime.gemm(a, b, out, **kwargs))

    def _marked(self, name: str, work: Callable[[], None]) -> None:
        if self.within:
            work()
            return
        start, self.within = self.mark(), True
        try:
            work()
        finally:
            self.within = False
        self.marks.append(((self.op, name), start, self.mark()))

    def take(self) -> dict[tuple[str, str], float]:
        """Seconds by (op, kernel) since the last call."""
        total: dict[tuple[str, str], float] = defaultdict(float)
        for key, start, end in self.marks:
            total[key] += self.between(start, end)
        self.marks.clear()
        return dict(total)


def timed_steps(
    kernel_timer: KernelTimer,
    precision: str,
    config: ModelConfig,
    train: TrainConfig,
    data: Any,
    steps: int,
    cover: Callable[[float], None],
) -> tuple[dict[tuple[str, str], float], float]:
    """Seconds by (op, kernel) of the median step, op by op; and of the host, to launch a step.

    cover(seconds): keeps the device busy so long, so that all launches of a step wait in its queue when it comes to the first.
    """
    ops, model = instrument(fast(precision, kernel_timer), op_observer(kernel_timer)), MODELS[config.model]
    table = ParamTable(model.init(config))
    state = TrainState.start(table, table.init_params(SEED), kernel_timer.xp)
    task = Task(model, config, train, data, seed=0)
    taken: list[dict[tuple[str, str], float]] = []
    host: list[float] = []
    for _ in range(steps + 2):  # the first two warm up
        cover(3 * min(host[1:]) if len(host) > 1 else 0.0)
        start = time.perf_counter()
        train_step(ops, task, state)
        host.append(time.perf_counter() - start)
        kernel_timer.synchronize()
        taken.append(kernel_timer.take())
    return {key: statistics.median(step[key] for step in taken[2:]) for key in taken[-1]}, statistics.median(host[2:])
