"""The device and one runtime for all tests of a GPU. Without a device these tests are skipped."""

import pytest

from on_gpu import require
from tensorlite import DeviceError, pick_device


@pytest.fixture(scope="session")
def cupy():
    try:
        return pick_device("cuda").xp
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def gpu(cupy):
    """Return a runtime on the device."""
    from tensorlite.cuda.runtime.device import CudaRuntime

    try:
        return CudaRuntime()
    except DeviceError as error:
        pytest.skip(str(error))


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
