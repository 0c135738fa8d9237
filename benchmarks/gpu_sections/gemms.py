"""The model's GEMMs: cuBLASLt's algorithms, and epilogues fused into them or in separate kernels."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt.analysis.format import Cell, table
from gpu_sections.report import Section
from gpu_sections.timing import Timer, us
from gpu_sections.workload import CONFIG, TRAIN, fast, numbers
from tensorlite.cuda.gemm import unfused
from tensorlite.cuda.runtime.cublaslt import WORKSPACE_BYTES, MatmulPlan, MatmulProblem
from tensorlite.cuda.runtime.device import UNFUSED

LAYERS = {"qkv": (1, 3), "attn_proj": (1, 1), "fc": (1, 4), "mlp_proj": (4, 1)}  # input and output, in units of C
EPILOGUES = {  # as the model asks for them
    "attn_proj forward": "bias",
    "fc forward": "gelu_bias",
    "mlp_proj forward": "bias",
    "mlp_proj dx": "dgelu",
    "attn_proj dw": "bias_grad",
    "fc dw": "bias_grad",
    "mlp_proj dw": "bias_grad",
}


def gemms(section: Section) -> None:
    """The twelve of a block, in bf16. Each candidate is timed as a graph, over sets of arrays that no cache holds together."""
    ops = fast("bf16")
    timer, N = Timer(ops.runtime), TRAIN.batch_size * CONFIG.block_size
    ceiling = section.report.found.get("machine", {}).get("ceilings", {}).get("bf16", math.nan)
    for layer, (i, o) in LAYERS.items():
        i, o = i * CONFIG.n_embd, o * CONFIG.n_embd
        for way in ("forward", "dx", "dw"):
            name = f"{layer} {way}"
            with section.attempt(name):
                row = gemm_row(ops, timer, way, N, i, o, EPILOGUES.get(name, "none"))
                section.row(name, **row, of_ceiling=row["flops"] / row["plain"] / ceiling if ceiling > 0 else None)


def gemm_row(ops: Any, timer: Timer, way: str, N: int, i: int, o: int, epilogue: str) -> dict[str, Any]:
    """Seconds of the plain GEMM, with the epilogue fused and unfused, and what the backend itself takes."""

    def arrays() -> dict[str, Any]:
        if way == "forward":
            a, b, out = numbers(ops, N, i), numbers(ops, i, o), ops.empty((N, o))
        elif way == "dx":
            a, b, out = numbers(ops, N, o), numbers(ops, i, o).T, ops.empty((N, i))
        else:
            a, b, out = numbers(ops, N, i).T, numbers(ops, N, o), ops.float32(i, o)
        extra = {
            "none": {},
            "bias": {"bias": numbers(ops, out.shape[1])},
            "gelu_bias": {"bias": numbers(ops, out.shape[1]), "pre_gelu": ops.empty(out.shape)},
            "dgelu": {"dgelu_input": numbers(ops, *out.shape)},
            "bias_grad": {"bias_grad": ops.float32(out.shape[1])},
        }[epilogue]
        return {"a": a, "b": b, "out": out, **extra}

    first = arrays()
    sets = [first] + [arrays() for _ in range(timer.sets(sum(array.nbytes for array in first.values())) - 1)]
    plain, fused = (candidates(ops, sets, kind) for kind in ("none", epilogue))
    row: dict[str, Any] = {"shape": f"{N} x {i} x {o}", "epilogue": epilogue, "flops": 2.0 * N * i * o}
    row |= {"candidates": len(plain), "plain": timer.fastest(plain)[1]}
    row["backend"] = timer.seconds([lambda s=s: ops.gemm(**s) for s in sets])
    if epilogue != "none":
        row["unfused"] = timer.seconds([lambda s=s: unfused(ops, **s) for s in sets])
        row |= {"fused_candidates": len(fused), "fused": timer.fastest(fused)[1] if fused else None}
        row["chosen"] = chosen(ops.runtime, first, epilogue)
    return row


def problem_of(arrays: Mapping[str, Any], epilogue: str) -> MatmulProblem:
    """The matmul of these arrays, as the runtime describes it."""
    a, b, out = arrays["a"], arrays["b"], arrays["out"]
    a_t, b_t = (not x.flags.c_contiguous for x in (a, b))
    return MatmulProblem(a.shape[0], b.shape[1], a.shape[1], a_t, b_t, str(a.dtype), str(out.dtype), "bf16", epilogue)


def candidates(ops: Any, sets: Sequence[Mapping[str, Any]], epilogue: str) -> dict[str, list[Callable[[], None]]]:
    """cuBLASLt's algorithms by name, each as a call for each set of arrays."""
    runtime = ops.runtime
    plan = MatmulPlan(runtime.library, problem_of(sets[0], epilogue))

    def call(algo: Any, arrays: Mapping[str, Any]) -> Callable[[], None]:
        a, b, out = (arrays[name].data.ptr for name in ("a", "b", "out"))
        named = [arrays[k].data.ptr for k in ("bias", "pre_gelu", "dgelu_input", "bias_grad") if k in arrays and epilogue != "none"]

        def run() -> None:
            stream = runtime.xp.cuda.get_current_stream().ptr
            plan.run(runtime.handle, algo, a, b, out, named, runtime.workspace.ptr, WORKSPACE_BYTES, stream)

        return run

    return {algo.name: [call(algo, arrays) for arrays in sets] for algo in plan.candidates(runtime.handle)}


def chosen(runtime: Any, arrays: Mapping[str, Any], epilogue: str) -> str:
    """What the backend's own timing came to, as it is remembered on disk."""
    known = json.loads(runtime.autotune_cache.path.read_text()).get(str(problem_of(arrays, epilogue)), {})
    return "unfused" if known.get("algo") == UNFUSED else "fused" if known else "not remembered"


COLUMNS = (
    *(":18", "N x in x out:>20", "plain:>8.1f", "TFLOP/s:>9.0f", "ceiling:>9", "epilogue:>13"),
    *("fused:>9.1f", "unfused:>9.1f", "backend:>9.1f", "chosen:>16", "of:>4"),
)


def show_gemms(found: dict) -> str:
    rows: list[list[Cell]] = []
    for name, row in found["rows"].items():
        tflops = row["flops"] / row["plain"] / 1e12
        of_ceiling = f"{100 * row['of_ceiling']:.0f} %" if row["of_ceiling"] else None
        fused, unfused = us(row.get("fused")), us(row.get("unfused"))
        chosen_of = row.get("chosen"), row["candidates"]
        plain = [us(row["plain"]), tflops, of_ceiling]
        rows.append([name, row["shape"], *plain, row["epilogue"], fused, unfused, us(row["backend"]), *chosen_of])
    title = "GEMMs of a block in bf16, microseconds: plain, with their epilogues fused and unfused, and as the backend runs them"
    return f"{title}\n{table(rows, COLUMNS)}"


def short_gemms(found: dict) -> str:
    shares = [row["of_ceiling"] for row in found["rows"].values() if row["of_ceiling"]]
    fused = [row for row in found["rows"].values() if row.get("fused") and row.get("unfused")]
    better = sum(row["fused"] < row["unfused"] for row in fused)
    span = f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of the ceiling, " if shares else ""
    return f"{span}fused epilogues faster in {better} of {len(fused)}"
