"""The CUDA backend on this machine's GPU, compared with PyTorch and the card's limits in ten minutes.

    python benchmarks/gpu.py [--quick] [--out runs/benchmark-gpu] [--only steps run] [--data FILE] [--needs]

It needs a GPU of compute capability 7.5 or later, and measures the best precision of the card: bf16 from 8.0 on, else fp16. PyTorch
is optional. --needs lists the packages, and how to carry them to a machine without a package index. Its sections, in order:

    machine     versions, and two ceilings measured here: a large GEMM in each precision, a large copy
    tests       pytest tests/cuda/gpu, as many as there is time for
    gradients   the gradients of one batch of the full model, in each precision, against the reference in float64
    gemms       the model's GEMMs: cuBLASLt's algorithms, and whether each fused epilogue pays
    kernels     the time of each kernel of a step, its counted time and its roofline; the largest gaps first
    ncu         which pipes the slowest kernels fill, where Nsight Compute is installed and permitted
    choices     two new processes, one after the other: the same algorithms, and bitwise equal losses
    steps       a training step of the reference, of each precision op by op and as one graph, and of PyTorch, in turns
    run         train.py --preset shakespeare: as many steps as fit, a second time to compare every bit, and in tf32
    sdpa        PyTorch's attention kernels at the same shape
    generation  the generation of 255 tokens

Each section is a separate process with a time limit, so that a crash or a hang costs one section, and its results so far remain.
All results are in gpu.json in the output folder, which is rewritten at every step. The last thing printed is one Markdown table,
which is also in gpu.md. It names no host, user or path.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a checkout that is not installed

from gpu_sections import needs


def main() -> int:
    """Check what is missing before anything but the standard library is imported. Return the exit status."""
    status = needs.answer(sys.argv[1:])
    if status is not None:
        return status
    from gpu_sections import conductor

    return conductor.main()


if __name__ == "__main__":
    sys.exit(main())
