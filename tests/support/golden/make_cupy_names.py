"""Write cupy_names.json: the public names of the parts of CuPy that this project uses, for the tests' stand-ins (fake_cupy.py).

It needs CuPy and NCCL, and no GPU:

    pip install "cupy-cuda13x==14.2.0" nvidia-nccl-cu13 && python tests/support/golden/make_cupy_names.py
"""

import json
from pathlib import Path

import cupy
import cupy_backends.cuda.api.driver

PARTS = {
    "cupy": cupy,
    "cupy.ndarray": cupy.ndarray,
    "cupy.cuda": cupy.cuda,
    "cupy.cuda.Device": cupy.cuda.Device,
    "cupy.cuda.Event": cupy.cuda.Event,
    "cupy.cuda.Graph": cupy.cuda.Graph,
    "cupy.cuda.MemoryPointer": cupy.cuda.MemoryPointer,
    "cupy.cuda.MemoryPool": cupy.cuda.MemoryPool,
    "cupy.cuda.Stream": cupy.cuda.Stream.null,  # an object, as some of its attributes are set when it is made
    "cupy.cuda.function": cupy.cuda.function,
    "cupy.cuda.function.Function": cupy.cuda.function.Function,
    "cupy.cuda.function.Module": cupy.cuda.function.Module,
    "cupy.cuda.nvrtc": cupy.cuda.nvrtc,
    "cupy.cuda.runtime": cupy.cuda.runtime,
    "cupy_backends.cuda.api.driver": cupy_backends.cuda.api.driver,
}


def public(part: object) -> str:
    return " ".join(name for name in dir(part) if not name.startswith("_"))


names = {name: public(part) for name, part in PARTS.items()}  # before the import below adds an attribute to cupy.cuda
from cupy.cuda import nccl  # noqa: E402

assert nccl.available
names |= {"cupy.cuda.nccl": public(nccl), "cupy.cuda.nccl.NcclCommunicator": public(nccl.NcclCommunicator)}
made_from = {"version": cupy.__version__, "nccl": nccl.get_version()}
Path(__file__).with_name("cupy_names.json").write_text(json.dumps(made_from | dict(sorted(names.items())), indent=1) + "\n")
