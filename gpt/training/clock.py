"""class RunClock: the seconds that a run has taken, and its speed in training steps alone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class RunClock:
    """The clock of one process of a run. It starts when it is created."""

    tokens_per_step: int
    elapsed_before: float = 0.0  # seconds that the run had taken before it was resumed
    started: float = field(default_factory=time.perf_counter)
    steps: int = 0  # training steps of this process
    step_seconds: float = 0.0  # in these steps, without evaluations and checkpoints

    @contextmanager
    def training_step(self) -> Iterator[None]:
        """Count the block as one training step."""
        start = time.perf_counter()
        yield
        self.step_seconds += time.perf_counter() - start
        self.steps += 1

    @property
    def tokens_per_second(self) -> float:
        if self.step_seconds == 0.0:
            return 0.0
        return self.steps * self.tokens_per_step / self.step_seconds

    @property
    def elapsed(self) -> float:
        return self.elapsed_before + time.perf_counter() - self.started
