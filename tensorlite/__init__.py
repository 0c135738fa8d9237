"""tensorlite: the forward and hand-derived backward of every layer of a GPT, on NumPy or CuPy arrays.

    y, cache      = X_forward(x, <params>, <options>)
    dx, <dparams> = X_backward(dy, cache)

`ReferenceOps` holds all of them as one backend object; `gradcheck` proves a backward against its forward.
"""

from tensorlite.arrays import Array, Device, DeviceError, array_namespace, device_failure, pick_device, to_numpy
from tensorlite.kv_cache import KVCache
from tensorlite.random import Key
from tensorlite.reference.ops import Ops, ReferenceOps
from tensorlite.testing.gradcheck import GradcheckError, GradReport, gradcheck
from tensorlite.version import __version__

__all__ = [
    "Array",
    "Device",
    "DeviceError",
    "GradReport",
    "GradcheckError",
    "KVCache",
    "Key",
    "Ops",
    "ReferenceOps",
    "__version__",
    "array_namespace",
    "device_failure",
    "gradcheck",
    "pick_device",
    "to_numpy",
]
