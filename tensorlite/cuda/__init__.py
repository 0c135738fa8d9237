"""The CUDA backend: the ops as fused kernels and cuBLASLt GEMMs, and a step as one CUDA graph.

Read a kernel file beside the reference function that it names; `ops.py` says which file has which op. CuPy is not imported until a
`CudaRuntime` is made.
"""

from tensorlite.cuda.ops import CUDAOps

__all__ = ["CUDAOps"]
