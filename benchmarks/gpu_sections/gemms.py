"""The model's GEMMs: cuBLASLt's algorithms, and epilogues fused into them or in separate kernels."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt.analysis.dry_run import trace_step
from gpt.analysis.format import Cell, table
from gpt.config import ModelConfig, TrainConfig
from gpu_sections.report import Section
from gpu_sections.timing import Timer, us
from gpu_sections.workload import CONFIG, TRAIN, fast, random_values
from tensorlite.cuda.gemm import unfused
from tensorlite.cuda.runtime.cublaslt import WORKSPACE_BYTES, MatmulPlan, MatmulProblem
from tensorlite.cuda.runtime.device import UNFUSED, epilogue_name
from tensorlite.cuda.runtime.dry_run import DryRunRuntime, gemm_label

RESERVED = 4.0  # seconds in which a GEMM is timed
EXTRAS = ("bias", "pre_gelu", "dgelu_input", "bias_grad")


@dataclass
class Gemm:
    """One GEMM of the step, as the model asks for it: its arrays hold nothing but their shapes, dtypes and layouts."""

    op: str
    arrays: dict[str, np.ndarray]
    calls: int = 0  # per step

    @property
    def epilogue(self) -> str:
        return epilogue_name(**{name: self.arrays.get(name) for name in EXTRAS})

    @property
    def flops(self) -> float:
        return 2.0 * math.prod(self.arrays["a"].shape) * self.arrays["b"].shape[1]


class GemmList(DryRunRuntime):
    """A dry run that notes the GEMMs of a step, by (op, label)."""

    def __init__(self) -> None:
        super().__init__()
        self.gemms: dict[tuple[str, str], Gemm] = {}

    def gemm(self, a: Any, b: Any, out: Any, **options: Any) -> None:
        super().gemm(a, b, out, **options)
        extras = {name: options[name] for name in EXTRAS if options.get(name) is not None}
        arrays = {"a": a, "b": b, "out": out, **extras}
        self.gemms.setdefault((self.op, gemm_label(a, b, extras)), Gemm(self.op, arrays)).calls += 1


def gemms_of_a_step(precision: str, config: ModelConfig, train: TrainConfig) -> dict[tuple[str, str], Gemm]:
    runtime = GemmList()
    trace_step(fast(precision, runtime), config, train, characters=100_000)
    return runtime.gemms


def gemms(section: Section) -> None:
    """Time the GEMMs of a step, the largest first, each candidate as a graph over sets of arrays that no cache holds together."""
    precision = section.args.precision
    ops = fast(precision)
    timer = Timer(ops.runtime)
    ceiling = section.report.found.get("machine", {}).get("ceilings", {}).get(precision, math.nan)
    found = gemms_of_a_step(precision, CONFIG, TRAIN)
    for (op, label), gemm in sorted(found.items(), key=lambda item: -item[1].calls * item[1].flops):
        if section.left < RESERVED:
            section.fail("the rest", f"left out: {section.left:.0f} s were left")
            return
        with section.attempt(f"{op}: {label}"):
            row = gemm_row(ops, timer, gemm)
            section.row(f"{op}: {label}", **row, of_ceiling=row["flops"] / row["plain"] / ceiling if ceiling > 0 else None)


def gemm_row(ops: Any, timer: Timer, gemm: Gemm) -> dict[str, Any]:
    """Return the seconds of the plain GEMM, with the epilogue fused and unfused, and as the backend runs it."""
    nbytes = sum(array.nbytes for array in gemm.arrays.values())
    sets = [on_device(ops, gemm.arrays) for _ in range(timer.sets(nbytes))]
    plain, fused = (candidates(ops, sets, kind) for kind in ("none", gemm.epilogue))
    row: dict[str, Any] = {"op": gemm.op, "calls": gemm.calls, "epilogue": gemm.epilogue, "flops": gemm.flops}
    row |= {"candidates": len(plain), "plain": timer.fastest(plain)[1]}
    row["backend"] = timer.seconds([lambda s=s: ops.gemm(**s) for s in sets])
    if gemm.epilogue != "none":
        row["unfused"] = timer.seconds([lambda s=s: unfused(ops, **s) for s in sets])
        row["fused"] = timer.fastest(fused)[1] if fused else None
        row["chosen"] = chosen(ops, sets[0], gemm.epilogue)
    return row


def on_device(ops: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return arrays of random values with the shapes, dtypes and layouts of these."""

    def like(array: np.ndarray) -> Any:
        transposed = not array.flags.c_contiguous
        dtype = np.dtype(np.float32) if array.dtype == np.float32 else ops.dtype
        made = random_values(ops, *(array.T if transposed else array).shape, dtype=dtype)
        return made.T if transposed else made

    return {name: like(array) for name, array in arrays.items()}


def problem_of(ops: Any, arrays: Mapping[str, Any], epilogue: str) -> MatmulProblem:
    """Return the matmul of these arrays, as the runtime describes it."""
    a, b, out = arrays["a"], arrays["b"], arrays["out"]
    return MatmulProblem(
        M=a.shape[0],
        N=b.shape[1],
        K=a.shape[1],
        a_t=not a.flags.c_contiguous,
        b_t=not b.flags.c_contiguous,
        operands=str(a.dtype),
        out=str(out.dtype),
        compute=ops.precision,
        epilogue=epilogue,
    )


def candidates(ops: Any, sets: Sequence[Mapping[str, Any]], epilogue: str) -> dict[str, list[Callable[[], None]]]:
    """Return cuBLASLt's algorithms by name, each as a call for each set of arrays."""
    runtime = ops.runtime
    plan = MatmulPlan(runtime.library, problem_of(ops, sets[0], epilogue))

    def call(algo: Any, arrays: Mapping[str, Any]) -> Callable[[], None]:
        a, b, out = (arrays[name].data.ptr for name in ("a", "b", "out"))
        extra = [arrays[name].data.ptr for name in EXTRAS if name in arrays and epilogue != "none"]

        def run() -> None:
            stream = runtime.xp.cuda.get_current_stream().ptr
            plan.run(runtime.handle, algo, a, b, out, extra, runtime.workspace.ptr, WORKSPACE_BYTES, stream)

        return run

    return {algo.name: [call(algo, arrays) for arrays in sets] for algo in plan.candidates(runtime.handle)}


def chosen(ops: Any, arrays: Mapping[str, Any], epilogue: str) -> str:
    """Return what the backend has chosen, as it is stored on disk."""
    stored = json.loads(ops.runtime.autotune_cache.path.read_text()).get(str(problem_of(ops, arrays, epilogue)), {})
    return "unfused" if stored.get("algo") == UNFUSED else "fused" if stored else "not stored"


COLUMNS = (
    *("op: GEMM, M x K x N + epilogue:68", "calls:>6", "plain:>8.1f", "TFLOP/s:>9.0f", "ceiling:>9"),
    *("fused:>9.1f", "unfused:>9.1f", "backend:>9.1f", "chosen:>12"),
)


def show_gemms(found: dict) -> str:
    rows: list[list[Cell]] = []
    for name, row in found["rows"].items():
        of_ceiling = f"{100 * row['of_ceiling']:.0f} %" if row["of_ceiling"] else None
        plain = [us(row["plain"]), row["flops"] / row["plain"] / 1e12, of_ceiling]
        epilogue = [us(row.get("fused")), us(row.get("unfused"))]
        rows.append([name, row["calls"], *plain, *epilogue, us(row["backend"]), row.get("chosen")])
    title = "GEMMs of a step, microseconds per call: plain, with their epilogues fused and unfused, and as the backend runs them"
    return "\n".join([title, table(rows, COLUMNS), *verdicts(found["rows"].values())])


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line per epilogue: what it adds to the plain GEMM per step, fused and unfused, and whether fusing it pays."""
    lines = []
    for epilogue in dict.fromkeys(row["epilogue"] for row in rows if "unfused" in row):
        own = [row for row in rows if row["epilogue"] == epilogue]
        both = [row for row in own if row["fused"] is not None]
        named = f"{epilogue} (BGRADA)" if epilogue == "bias_grad" else epilogue
        if not both:
            lines.append(f"epilogue {named}: cuBLASLt has none for its {len(own)} GEMMs")
            continue
        fused, apart = (sum(row["calls"] * (row[way] - row["plain"]) for row in both) * 1e6 for way in ("fused", "unfused"))
        pays = "fusing pays" if fused < apart else "fusing does not pay"
        chosen = sum(row["chosen"] == "fused" for row in own)
        lines.append(
            f"epilogue {named}: {fused:+.0f} us per step over the plain GEMM if fused, {apart:+.0f} us if not: {pays}; "
            f"the backend chose fused for {chosen} of {len(own)}"
        )
    return lines
