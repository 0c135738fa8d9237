"""Autotuning: time several ways to compute the same result, and store on disk which is the fastest.

A later run starts faster and, because it uses the same algorithms, is bitwise reproducible. A candidate is a named function without
arguments. cuBLASLt's algorithms, by their hexadecimal names, compete with "unfused" on equal terms.

    cache = AutotuneCache("NVIDIA H200, driver 580.65, cuBLASLt 131000")
    name = cache.pick(str(problem), {algo.name: run(algo) for algo in algos} | {"unfused": unfused}, time_call)
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from statistics import median

from tensorlite.cache_dir import cache_folder, locked, write_whole

Candidate = Callable[[], object]  # may be called any number of times, always with the same result
TimeCall = Callable[[Candidate], float]  # calls a candidate, and returns the seconds that it took

ROUNDS = 3
TOO_SLOW = 1.5  # a candidate that takes so many times as long as the fastest is not timed in the next round


def fastest(candidates: Mapping[str, Candidate], time_call: TimeCall) -> tuple[str, float]:
    """Return the name of the candidate with the smallest median time, the first of equals, and that time in seconds.

    Each round times all candidates that are left, so that a change of the GPU's clock affects all of them. A candidate that is
    TOO_SLOW, or raises RuntimeError, is dropped. Raises RuntimeError when no candidate is left.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    reason: RuntimeError | None = None
    for _ in range(ROUNDS):
        for name in list(seconds):
            try:
                seconds[name].append(time_call(candidates[name]))
            except RuntimeError as error:
                del seconds[name]
                reason = error
        if not seconds:
            raise RuntimeError(f"none of {len(candidates)} candidates runs: {reason}") from reason
        least = min(map(median, seconds.values()))
        seconds = {name: times for name, times in seconds.items() if median(times) <= TOO_SLOW * least}
    name = min(seconds, key=lambda name: median(seconds[name]))
    return name, median(seconds[name])


def first_that_runs(candidates: Mapping[str, Candidate]) -> str:
    """Return the name of the first candidate that does not raise RuntimeError. Raises RuntimeError if all do."""
    reason: RuntimeError | None = None
    for name, candidate in candidates.items():
        try:
            candidate()
            return name
        except RuntimeError as error:
            reason = error
    raise RuntimeError(f"none of {len(candidates)} candidates runs: {reason}") from reason


class AutotuneCache:
    """The winners of one machine, in one JSON file: key -> {"algo": name, "microseconds": ..., "note": ...}.

    machine: everything but the key that a choice depends on, such as the GPU, its driver and the version of cuBLASLt. The file is
        named after it.
    warn: is called once per message where the file cannot be read or written. Neither is an error: the candidates are timed again.
    """

    def __init__(self, machine: str, warn: Callable[[str], None] = print) -> None:
        self.path = cache_folder() / f"choices-{re.sub(r'[^A-Za-z0-9.]+', '-', machine).strip('-').lower()}.json"
        self._warn = warn
        self._warned: set[str] = set()
        self._known = self._read()
        self._holds_lock = False

    def pick(self, key: str, candidates: Mapping[str, Candidate], time_call: TimeCall) -> str:
        """Return the name of the stored candidate; if there is none, time all candidates and store the fastest.

        A stored candidate is run once, so that its kernel is loaded before a graph is captured. If it raises RuntimeError, or is no
        longer among the candidates, all are timed. One process at a time does so, and the processes that waited use its choice. So
        all ranks of a run, and their next run, choose the same. Do not call this during a capture.
        """
        if name := self._remembered(key, candidates):
            return name
        with self._locked():
            self._known |= self._read()
            if name := self._remembered(key, candidates):
                return name
            name, seconds = fastest(candidates, time_call)
            self._keep(key, {"algo": name, "microseconds": round(seconds * 1e6, 2), "note": f"of {len(candidates)} candidates"})
            return name

    def _remembered(self, key: str, candidates: Mapping[str, Candidate]) -> str:
        """Return the name of the stored candidate for the key, after running it; "" where there is none, or it fails."""
        name = self._known.get(key, {}).get("algo", "")
        if name in candidates:
            with contextlib.suppress(RuntimeError):
                candidates[name]()
                return name
        return ""

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """A context for one process at a time. It may be entered again inside, by a candidate that autotunes its own parts."""
        if self._holds_lock:
            yield
            return
        with locked(self.path):
            self._holds_lock = True
            try:
                yield
            finally:
                self._holds_lock = False

    def _read(self) -> dict[str, dict]:
        try:
            known = json.loads(self.path.read_bytes())
            if all(isinstance(entry["algo"], str) for entry in known.values()):
                return known
            raise ValueError("an algorithm has no name")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # it may be any JSON
            self._say(f"{self.path} cannot be read ({error}): the fastest algorithms are timed again")
            return {}

    def _keep(self, key: str, entry: dict) -> None:
        """Write the file as a whole or not at all, with the entries that another process has added meanwhile."""
        self._known = self._read() | self._known | {key: entry}
        try:
            write_whole(self.path, json.dumps(self._known, indent=1, sort_keys=True).encode())
        except OSError as error:
            self._say(f"{self.path} cannot be written ({error}): the next run times the algorithms again")

    def _say(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text)
