"""The implementations that are timed, each in a process of its own that works on request."""

import contextlib
import importlib
import json
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gpt.generate import generate
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.training.step import Task, TrainState, train_step
from gpu_sections.report import said
from gpu_sections.workload import CONFIG, SEED, TRAIN, fast, text
from tensorlite import ReferenceOps

Work = Callable[[int], float]  # makes n steps, or writes n tokens, and returns the last loss when the device is done
PLAIN = "fast {}, op by op"
GRAPH = "fast {}"
TUNED = "torch.compile, tuned, one graph"
FAIR = ("torch.compile, one graph", "torch.compile, CUDA graphs", TUNED)  # the fastest of these is the fair baseline
TORCH = ("PyTorch eager", "torch.compile", *FAIR)  # the keys of torch_baseline.CUDA


def writers(precision: str) -> list[str]:
    """Return the implementations that generate text."""
    return ["write: reference", f"write: fast {precision}", "write: PyTorch uncached", "write: PyTorch cached"]


def of_pytorch(name: str) -> bool:
    return "torch" in name.lower()


def precision_of(name: str) -> str | None:
    """Return the precision that a name of the CUDA backend has, and None for the reference."""
    found = re.search(r"\bfast (\w+)", name)
    return found[1] if found else None


def implementation(name: str, precision: str) -> tuple[Work, Callable[[], dict[str, int]]]:
    """Return its work, and a function of the bytes that it has reserved and, if its allocator tells, used at the highest point.

    precision: the 16-bit precision of PyTorch. The names of our implementations have their own.
    """
    if not of_pytorch(name):
        return ours(name)
    import torch
    import torch_baseline as baseline

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = baseline.GPT(CONFIG).cuda()

    def memory() -> dict[str, int]:
        return {"reserved": torch.cuda.max_memory_reserved(), "used": torch.cuda.max_memory_allocated()}

    if name.startswith("write"):
        loop = baseline.generate_cached if name.endswith(" cached") else baseline.generate
        model = model.to(baseline.DTYPES[precision])
        prompt = torch.zeros((1, 1), dtype=torch.long, device="cuda")
        return (lambda n: [*loop(model, prompt, n, CONFIG)][-1]), memory
    data = torch.from_numpy(text(np).astype(np.int64)).cuda()
    return baseline.steps_on_cuda(model, data, CONFIG, TRAIN, name, precision), memory


def ours(name: str) -> tuple[Work, Callable[[], dict[str, int]]]:
    """Return the same for the reference on CuPy arrays, or for the CUDA backend."""
    import cupy

    precision, model = precision_of(name), MODELS["gpt"]
    ops: Any = fast(precision) if precision else ReferenceOps(check=False)
    table = ParamTable(model.init(CONFIG))
    state = TrainState.start(table, table.init_params(SEED), cupy)
    task = Task(model, CONFIG, TRAIN, data=text(cupy), seed=0)
    step = train_step if name.endswith("op by op") or not precision else ops.compile(train_step)

    def steps(n: int) -> float:
        for _ in range(n):
            loss, _norm = step(ops, task, state)
        last = float(loss)
        cupy.cuda.Device().synchronize()
        return last

    def write(n: int) -> float:
        params = table.tree(ops.compute_params(state.params))
        return [*generate(ops, model, params, task.data[:1], n, CONFIG)][-1]

    def memory() -> dict[str, int]:
        return {"reserved": cupy.get_default_memory_pool().total_bytes()}

    return write if name.startswith("write") else steps, memory


def serve(name: str, precision: str) -> int:
    """Be an implementation. A line in: {"warm": n, "blocks": n, "each": n}. A line out: the seconds per step of each block."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    with contextlib.suppress(ImportError):
        importlib.import_module("torch" if of_pytorch(name) else "cupy")  # while others are warmed up
    work: Work | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if work is None:
                work, memory = implementation(name, precision)
            answer = turn(work, asked)
            answer["memory"] = memory()
        except Exception as error:
            traceback.print_exc()
            channel.write(json.dumps({"error": said(error)}) + "\n")
            return 1
        channel.write(json.dumps(answer) + "\n")
    return 0


def turn(work: Work, asked: Mapping[str, int]) -> dict[str, Any]:
    """Warm up, then work in blocks."""
    if asked["warm"]:
        work(asked["warm"])
    seconds, last = [], math.nan
    for _ in range(asked["blocks"]):
        start = time.perf_counter()
        last = work(asked["each"])
        seconds.append((time.perf_counter() - start) / asked["each"])
    return {"seconds": seconds, "last": last}
