"""tensorlite: the forward and hand-derived backward of every layer of a GPT, on NumPy or CuPy arrays.

    y, cache      = X_forward(x, <params>, <options>)
    dx, <dparams> = X_backward(dy, cache)

`Reference` holds all of them as one backend object; `gradcheck` proves a backward against its forward.
"""

from tensorlite.attention import KVCache
from tensorlite.checking import GradcheckError, GradReport, gradcheck
from tensorlite.random import Key
from tensorlite.reference import Reference
from tensorlite.version import __version__
from tensorlite.xp import Array, Device, DeviceError, device_failure, namespace, pick_device, to_numpy

__all__ = [
    "Array",
    "Device",
    "DeviceError",
    "GradReport",
    "GradcheckError",
    "KVCache",
    "Key",
    "Reference",
    "__version__",
    "device_failure",
    "gradcheck",
    "namespace",
    "pick_device",
    "to_numpy",
]
