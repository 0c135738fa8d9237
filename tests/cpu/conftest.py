"""A fixture that makes the CPU backend pool small arrays, too."""

import pytest

from tensorlite.cpu import memory_pool


@pytest.fixture(autouse=True, scope="module")
def small_arrays_too():
    """The arrays of tests are small, but should be on pooled blocks as the large arrays of a training run are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_pool, "SMALL", 0)
        yield
