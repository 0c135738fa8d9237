"""Gradients of one batch of the full model, each precision against the reference in float64."""

import dataclasses
import math
import statistics
from typing import Any

import numpy as np

from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.training.step import Task, TrainState, loss_and_gradients
from gpu_sections.report import Section
from gpu_sections.workload import CONFIG, SEED, TRAIN, fast, text
from tensorlite import ReferenceOps, to_numpy
from tensorlite.cuda.ops import PRECISIONS

UNIT = {"float32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-8}  # one rounding, relatively
WITHIN = {"float32": 64, "tf32": 16, "bf16": 16}  # roundings that a gradient may be off by, after some hundred of them


def gradients(section: Section) -> None:
    """Of one batch with dropout: the masks are the same bits everywhere, so it is the same function of the same numbers."""
    runtime = fast("bf16").runtime
    xp = runtime.xp
    rows = 64 if xp.cuda.runtime.memGetInfo()[0] > 40 << 30 else 8
    train = dataclasses.replace(TRAIN, batch_size=rows)
    table = ParamTable(MODELS["gpt"].init(CONFIG))
    start = rounded(table.init_params(SEED) + 0.02 * np.random.default_rng(0).standard_normal(table.size, np.float32))
    task = Task(MODELS["gpt"], CONFIG, train, data=text(xp), seed=0)

    def found(ops: Any, dtype: type) -> tuple[float, np.ndarray]:
        state = TrainState.start(table, start.astype(dtype), xp)
        loss = loss_and_gradients(ops, task, state)
        return float(loss), to_numpy(state.grads)

    expected_loss, expected = found(ReferenceOps(check=False), np.float64)
    section.put(rows_of_the_batch=rows, loss=expected_loss)
    xp.get_default_memory_pool().free_all_blocks()
    for precision in PRECISIONS:
        with section.attempt(precision):
            loss, grads = found(fast(precision, runtime), np.float32)
            errors = {param.name: distance(table.view(grads, param), table.view(expected, param)) for param in table}
            worst = max(errors, key=lambda name: errors[name])
            row = {"worst": worst, "error": errors[worst], "roundings": errors[worst] / UNIT[precision]}
            row |= {"median": statistics.median(errors.values()), "loss_error": abs(loss - expected_loss), "errors": errors}
            section.row(precision, **row)
            if row["roundings"] > WITHIN[precision]:
                section.fail(f"{precision}: {worst}", f"off by {row['error']:.2g}, {row['roundings']:.0f} roundings")


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative, of whole arrays; infinite where a number is none."""
    away = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    return away if math.isfinite(away) else math.inf


def rounded(x: np.ndarray) -> np.ndarray:
    """float32 numbers that bf16 can hold."""
    return (x.view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32)


def show_gradients(found: dict) -> str:
    lines = [f"relative L2 error of a gradient against float64, batch {found['rows_of_the_batch']}, in roundings of the precision:"]
    for name, row in found["rows"].items():
        worst = f"worst {row['roundings']:6.2f} of {WITHIN[name]} allowed ({row['error']:.1e}, {row['worst']})"
        lines.append(f"  {name:9}{worst}, median {row['median'] / UNIT[name]:.2f}; loss off by {row['loss_error']:.1e}")
    return "\n".join(lines)
