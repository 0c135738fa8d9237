"""The device and one runtime for all tests of a GPU. Without a device these tests are skipped."""

import pytest

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
