"""Gradients of one batch of the full model: each precision against the reference in float64."""

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

UNIT = {"float32": 2.0**-24, "tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8}  # the relative error of one rounding
WITHIN = {"float32": 64, "tf32": 16, "fp16": 16, "bf16": 16}  # roundings that a gradient may be off by, after about a hundred
OVERFLOWS = 20  # the batch is computed at most so often, each time with half the loss scale


def gradients(section: Section) -> None:
    """Compare one batch with dropout. Masks are bitwise identical everywhere, so all compute one function of the same values."""
    runtime = fast(section.args.precision).runtime
    xp = runtime.xp
    rows = 64 if xp.cuda.runtime.memGetInfo()[0] > 40 << 30 else 8
    train = dataclasses.replace(TRAIN, batch_size=rows)
    table = ParamTable(MODELS["gpt"].init(CONFIG))
    start = rounded(table.init_params(SEED) + 0.02 * np.random.default_rng(0).standard_normal(table.size, np.float32))
    task = Task(MODELS["gpt"], CONFIG, train, data=text(xp), seed=0)

    def found(ops: Any, dtype: type) -> tuple[float, np.ndarray]:
        state = TrainState.start(table, start.astype(dtype), xp)
        for _ in range(OVERFLOWS):
            loss = loss_and_gradients(ops, task, state)
            if math.isfinite(float(ops.clip_grad_norm_(state.grads, 0.0))):  # after an overflow this halves the loss scale of fp16
                break
        return float(loss), to_numpy(state.grads)

    expected_loss, expected = found(ReferenceOps(check=False), np.float64)
    section.put(rows_of_the_batch=rows, loss=expected_loss)
    xp.get_default_memory_pool().free_all_blocks()
    for precision in section.args.precisions:
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
    """Return the relative L2 distance of two arrays, infinite if it is not a number."""
    away = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    return away if math.isfinite(away) else math.inf


def rounded(x: np.ndarray) -> np.ndarray:
    """Return float32 values that bf16 can hold. So can fp16, to within 2^-25."""
    return (x.view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32)


def show_gradients(found: dict) -> str:
    lines = [f"relative L2 error of a gradient against float64, batch {found['rows_of_the_batch']}, in roundings of the precision:"]
    for name, row in found["rows"].items():
        worst = f"worst {row['roundings']:6.2f} of {WITHIN[name]} allowed ({row['error']:.1e}, {row['worst']})"
        lines.append(f"  {name:9}{worst}, median {row['median'] / UNIT[name]:.2f}; loss off by {row['loss_error']:.1e}")
    return "\n".join(lines)
