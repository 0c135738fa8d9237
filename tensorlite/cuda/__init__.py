"""The CUDA backend: the same ops as fused kernels and cuBLASLt's GEMMs, and a step as one graph.

Read a kernel file beside the reference function that it names; `ops.py` says which op is where. CuPy is imported when a
`CudaRuntime` is made.
"""

from tensorlite.cuda.ops import CUDAOps

__all__ = ["CUDAOps"]
