"""Autotuning: which of several ways to compute the same is fastest here, remembered on disk.

A later run starts faster and, choosing the same algorithms, is bitwise reproducible. A candidate is a function without
arguments under a name: cuBLASLt's algorithms, by their hexadecimal names, compete with "unfused" on the same terms.

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
TimeCall = Callable[[Candidate], float]  # calls it, and returns the seconds that it took

ROUNDS = 5


def fastest(candidates: Mapping[str, Candidate], time_call: TimeCall) -> tuple[str, float]:
    """The name of the candidate with the least median time, and that time in seconds; of equals the first.

    Each round times them all, so that a GPU that changes its clock changes it for all. One that raises RuntimeError is left out.
    Raises RuntimeError when none is left.
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
    name = min(seconds, key=lambda name: median(seconds[name]))
    return name, median(seconds[name])


class AutotuneCache:
    """The winners of one machine, in one JSON file: key -> {"algo": name, "microseconds": ..., "note": ...}.

    machine: all that a choice depends on, apart from the key: GPU, driver, version of cuBLASLt; it becomes the file's name.
    warn: called, once per message, where the file cannot be read or written. Neither is an error: what is not known is timed again.
    """

    def __init__(self, machine: str, warn: Callable[[str], None] = print) -> None:
        self.path = cache_folder() / f"choices-{re.sub(r'[^A-Za-z0-9.]+', '-', machine).strip('-').lower()}.json"
        self._warn, self._warned = warn, set[str]()
        self._known = self._read()
        self._holds_lock = False

    def pick(self, key: str, candidates: Mapping[str, Candidate], time_call: TimeCall) -> str:
        """The name of the remembered candidate, else of the one that is fastest now, which is remembered.

        The remembered one is run once: a graph that is captured next then finds its kernel loaded. If it raises RuntimeError, or
        is no longer among the candidates, all are timed. One process at a time does so, and those that wait take its choice:
        the ranks of a run make the choices that their next run will make. Not to be called during a capture.
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
        """The name of the candidate that is known for the key, which has been run; "" where there is none, or it fails."""
        name = self._known.get(key, {}).get("algo", "")
        if name in candidates:
            with contextlib.suppress(RuntimeError):
                candidates[name]()
                return name
        return ""

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time; a candidate may make choices of its own, inside."""
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
            raise ValueError("a choice is no name")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # any other JSON, too
            self._say(f"{self.path} cannot be read ({error}): the fastest algorithms are looked for again")
            return {}

    def _keep(self, key: str, entry: dict) -> None:
        """Write the file whole or not at all, with what another process has added to it meanwhile."""
        self._known = self._read() | self._known | {key: entry}
        try:
            write_whole(self.path, json.dumps(self._known, indent=1, sort_keys=True).encode())
        except OSError as error:
            self._say(f"{self.path} cannot be written ({error}): the next run looks for the fastest algorithms again")

    def _say(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text)
