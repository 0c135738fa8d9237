"""The first steps of a new process: what it autotunes, its algorithms, and its losses bit by bit."""

import json
import time
from typing import Any

from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.training.step import Task, TrainState, train_step
from gpu_sections.workload import CONFIG, SEED, TRAIN, fast, text

STEPS = 8


def print_first_steps(precision: str) -> int:
    """Make the steps and print what they show as one line of JSON. Returns the exit status."""
    print(json.dumps(first_steps(fast(precision))))
    return 0


def first_steps(ops: Any) -> dict[str, Any]:
    """Return what the first steps show.

    algorithms: the chosen algorithm by GEMM.
    autotuned: how many of them were timed here, not read from the cache folder.
    first: seconds of the first step, in which kernels are compiled and GEMMs are autotuned.
    losses: of all steps, in hexadecimal.
    """
    algorithms, autotuned = noted_choices(ops.runtime.autotune_cache)
    model, xp = MODELS[CONFIG.model], ops.runtime.xp
    table = ParamTable(model.init(CONFIG))
    state = TrainState.start(table, table.init_params(SEED), xp)
    task = Task(model, CONFIG, TRAIN, data=text(xp), seed=0)
    step = ops.compile(train_step)
    losses, start, first = [], time.perf_counter(), 0.0
    for _ in range(STEPS):
        losses.append(float(step(ops, task, state)[0]).hex())
        first = first or time.perf_counter() - start
    return {"algorithms": algorithms, "autotuned": len(autotuned), "first": first, "losses": losses}


def noted_choices(cache: Any) -> tuple[dict[str, str], set[str]]:
    """Make an AutotuneCache note its choices. Return the name of the algorithm by GEMM, and the GEMMs that were timed."""
    algorithms: dict[str, str] = {}
    autotuned: set[str] = set()
    pick = cache.pick

    def noting_pick(key: str, candidates: Any, time_call: Any) -> str:
        def noting_time_call(work: Any) -> float:
            autotuned.add(key)
            return time_call(work)

        algorithms[key] = pick(key, candidates, noting_time_call)
        return algorithms[key]

    cache.pick = noting_pick
    return algorithms, autotuned
