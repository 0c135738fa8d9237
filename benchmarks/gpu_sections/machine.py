"""Versions, and two ceilings measured here: a large GEMM in each precision, a large copy."""

import contextlib
import functools
import importlib.metadata
import math
import platform
import subprocess

from gpu_sections.report import Section
from gpu_sections.timing import Timer
from gpu_sections.workload import ROOT, fast, random_values

VERSIONS = ("driver", "cublaslt", "nvrtc", "cupy", "numpy", "torch", "triton", "python", "commit")


def machine(section: Section) -> None:
    """Note the card and the versions, and measure the ceilings."""
    runtime = fast(section.args.precision).runtime
    xp = runtime.xp
    section.put(
        gpu=runtime.name,
        capability=runtime.architecture / 10,
        precision=section.args.precision,
        memory_bytes=int(xp.cuda.runtime.memGetInfo()[1]),
        pci=xp.cuda.Device().pci_bus_id,
        driver=first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        cuda_of_driver=xp.cuda.runtime.driverGetVersion(),
        cublaslt=runtime.library.version(),
        python=platform.python_version(),
        commit=section.args.commit or commit(),
        **{name: version(name) for name in ("cupy", "numpy", "torch", "triton")},
    )
    with section.attempt("nvrtc"):
        from tensorlite.cuda.runtime import nvrtc

        section.put(nvrtc="{}.{}".format(*nvrtc.version()))
    timer, ceilings = Timer(runtime), {}
    with section.attempt("copy"):
        big = random_values(fast("float32", runtime), 1 << 28)
        other = xp.empty_like(big)
        ceilings["copy"] = 2 * big.nbytes / timer.seconds([lambda: xp.copyto(other, big)], calls=10, captured=False)
        section.put(ceilings=ceilings)
    for precision in section.args.precisions:
        with section.attempt(f"GEMM in {precision}"):
            own, n = fast(precision, runtime), 8192 if precision in ("bf16", "fp16") else 4096
            a, b, out = random_values(own, n, n), random_values(own, n, n), own.empty((n, n))
            ceilings[precision] = 2 * n**3 / timer.seconds([functools.partial(own.gemm, a, b, out)], calls=8, captured=False)
            section.put(ceilings=ceilings)


def version(package: str) -> str:
    """Return the version of an installed package, or "". CuPy's package has one of three names."""
    for name in (package, f"{package}-cuda13x", f"{package}-cuda12x"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""


def first_line(command: list[str]) -> str:
    """Return the first line that a program prints, or "" if it fails or is not installed."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT, check=True)
        return done.stdout.splitlines()[0].strip()
    return ""


def memory_used(pci: str) -> float:
    """Return the bytes of a GPU's memory in use, or NaN if nvidia-smi does not say. To ask CUDA would create a context."""
    query = ["nvidia-smi", f"--id={pci}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    with contextlib.suppress(ValueError):
        return float(first_line(query)) * 2**20
    return math.nan


def commit() -> str:
    """Return git's name of the commit that is checked out, and whether files differ from it."""
    name = first_line(["git", "rev-parse", "--short", "HEAD"])
    return name and name + (" and changes" if first_line(["git", "status", "--porcelain", "-uno"]) else "")


def show_machine(found: dict) -> str:
    ceilings = found.get("ceilings", {})
    rates = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in ceilings.items() if name != "copy")
    size = f"compute capability {found['capability']}, {found['memory_bytes'] / 2**30:.0f} GiB"
    versions = ", ".join(f"{name} {found.get(name) or '-'}" for name in VERSIONS)
    return (
        f"{found['gpu']} ({size}), {versions}\n"
        f"ceilings here: GEMMs {rates}; copies {ceilings.get('copy', math.nan) / 1e12:.2f} TB/s, read and written"
    )
