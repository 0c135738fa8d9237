"""The device and one runtime for all tests of a GPU.

Without CuPy, without a device, and with one that is too old, these tests are skipped. Whatever else does not work fails them.
"""

import importlib.util

import pytest

from on_gpu import require
from tensorlite import DeviceError, pick_device


@pytest.fixture(scope="session")
def cupy():
    try:
        return pick_device("cuda").xp
    except DeviceError as error:
        if importlib.util.find_spec("cupy") is None or not has_device():
            pytest.skip(str(error))
        raise


def has_device():
    """Return whether CUDA lists a device."""
    import cupy

    try:
        return cupy.cuda.runtime.getDeviceCount() > 0
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


@pytest.fixture(scope="session")
def gpu(cupy):
    """Return a runtime on the device."""
    from tensorlite.cuda.runtime.device import MIN_ARCHITECTURE, CudaRuntime

    capability, least = int(cupy.cuda.Device().compute_capability), min(MIN_ARCHITECTURE.values())
    if capability < least:
        pytest.skip(f"the GPU has compute capability {capability / 10}, the kernels need {least / 10}")
    return CudaRuntime()


@pytest.fixture(scope="session")
def gpu_sm75(gpu):
    """Return a runtime that takes the kernels' path for compute capability 7.5, on a newer device."""
    from tensorlite.cuda.runtime.device import SM75_PATH, CudaRuntime

    if gpu.capability <= 75:
        pytest.skip("the path of compute capability 7.5 is this GPU's own, or needs a newer one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SM75_PATH, "1")
        return CudaRuntime()


@pytest.fixture(autouse=True)
def a_precision_that_the_gpu_supports(request):
    """Skip a test of a precision that needs a newer GPU."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if "precision" in parameters:
        require(request.getfixturevalue("gpu"), parameters["precision"])
