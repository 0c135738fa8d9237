"""Time on the device's own clock, without what the host needs to launch work."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensorlite.cuda.runtime.autotune import fastest


@dataclass
class Timer:
    """Times work on the device of a runtime."""

    runtime: Any

    def seconds(self, works: Sequence[Callable[[], Any]], rounds: int = 5, calls: int = 24, captured: bool = True) -> float:
        """Of one call, the median over rounds of so many.

        works: the same on several sets of arrays, so that no cache holds them all. captured: the calls of a round are one graph.
        The round before a timed one keeps the device busy while that is launched.
        """
        xp, cycles = self.runtime.xp, max(1, calls // len(works))

        def launch() -> None:
            for _ in range(cycles):
                for work in works:
                    work()

        for work in works:
            work()
        again = self.runtime.capture(launch).launch if captured else launch
        again()
        times = []
        for _ in range(rounds):
            start, end = xp.cuda.Event(), xp.cuda.Event()
            again()
            start.record()
            again()
            end.record()
            end.synchronize()
            times.append(xp.cuda.get_elapsed_time(start, end) / 1e3)
        return statistics.median(times) / (cycles * len(works))

    def fastest(self, candidates: Mapping[str, Sequence[Callable[[], Any]]]) -> tuple[str, float]:
        """The name of the fastest candidate and its seconds; one that raises RuntimeError is left out."""
        return fastest(
            {name: (lambda w=works: w) for name, works in candidates.items()}, lambda candidate: self.seconds(candidate(), rounds=1)
        )

    def sets(self, nbytes: int) -> int:
        """How many sets of arrays of so many bytes are beyond the cache."""
        cache = int(self.runtime.xp.cuda.runtime.getDeviceProperties(self.runtime.device)["l2CacheSize"])
        return max(1, min(8, math.ceil(3 * cache / nbytes)))


def us(seconds: float | None) -> float | None:
    """Return microseconds, or None if the time is missing."""
    return None if seconds is None else seconds * 1e6
