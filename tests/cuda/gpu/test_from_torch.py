"""gradcheck of a PyTorch function that runs on a GPU."""

import warnings

import numpy as np
import pytest

from tensorlite import gradcheck
from tensorlite.testing import from_torch

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu_of_torch():
    with warnings.catch_warnings(action="ignore"):  # of a driver that is too old for PyTorch
        if not torch.cuda.is_available():
            pytest.skip("PyTorch finds no GPU")


def square(factor):
    """Return y = x^2 with a backward that is wrong by a factor."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            return factor * 2 * x * dy

    return Square


def test_a_function_on_a_gpu():
    inputs = {"x": np.random.default_rng(0).standard_normal((3, 4))}
    assert gradcheck(*from_torch(square(1), device="cuda"), inputs).ok
    assert not gradcheck(*from_torch(square(1.0005), device="cuda"), inputs, raise_on_fail=False).ok
