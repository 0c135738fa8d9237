"""The random bits of the CUDA backend are bitwise identical to the reference's."""

import numpy as np
import pytest

from cuda_machines import KEY, PRECISIONS, both, every_precision
from cuda_step_checks import (
    MASKED,
    batch,
    device_key,
    masks_of_attention,
    masks_of_dropout_add_layernorm,
    masks_of_dropout_and_residual,
    threshold,
)


@every_precision
@pytest.mark.parametrize("p", [0.2, 0.9])
@pytest.mark.parametrize(("shape", "row0"), MASKED)
def test_masks_of_dropout_and_residual(shape, row0, p, precision):
    masks_of_dropout_and_residual(both(precision), shape, row0, p)


@every_precision
@pytest.mark.parametrize("C", [32, 33])
@pytest.mark.parametrize("row0", [0, 5])
def test_masks_of_add_layernorm(C, row0, precision):
    masks_of_dropout_add_layernorm(both(precision), C, row0)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("T", "D"), [(13, 16), (16, 16), (72, 128)])
@pytest.mark.parametrize("row0", [0, 3])
def test_masks_of_attention(precision, T, D, row0):
    masks_of_attention(both(precision), T, D, row0)


@pytest.mark.parametrize("element", [0, 1, 2, 3, 17])
def test_a_lane_equal_to_the_threshold_is_kept(element):
    threshold(both("float32"), element)


@every_precision
@pytest.mark.parametrize(("seed", "step"), [(0, 0), (7, 3), (2**40 + 5, 2**33 + 1)])
def test_a_key_of_a_step_on_the_device_is_the_key_of_the_step(seed, step, precision):
    device_key(both(precision), seed, step)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
@pytest.mark.parametrize(("rows", "T", "row0"), [(1, 1, 0), (5, 9, 0), (3, 300, 2**32 - 2), (4, 32, 8)])
def test_batches_are_the_references(dtype, rows, T, row0):
    batch(both("float32"), dtype, rows, T, row0)


def test_a_text_of_one_window_has_one_batch():
    data = np.arange(10, dtype=np.uint8)
    idx, targets = both("float32").run(lambda ops, data: ops.get_batch(data, KEY, 3, 9), data)
    np.testing.assert_array_equal(idx, [data[:9]] * 3)
    np.testing.assert_array_equal(targets, [data[1:]] * 3)
