"""The memory pool of the CPU backend, for small arrays too."""

import pytest

from tensorlite.cpu import memory_pool


@pytest.fixture(autouse=True, scope="module")
def small_arrays_too():
    """Arrays of tests are small, and are to stand on pooled blocks as the large ones of a training do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_pool, "SMALL", 0)
        yield
