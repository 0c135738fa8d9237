"""An instrumented backend reports its op calls and computes the same results."""

import numpy as np

from gpt.analysis.instrument import instrument
from tensorlite import ReferenceOps


def test_an_instrumented_backend_computes_the_same():
    ops = ReferenceOps()
    seen = []
    instrumented = instrument(ops, lambda name, _, call: (seen.append(name), call())[1])
    r = np.random.default_rng(0).standard_normal
    args = (r((2, 3)), r((3, 5)), r(5), r((5, 3)), None)
    np.testing.assert_array_equal(instrumented.mlp_forward(*args)[0], ops.mlp_forward(*args)[0])
    assert seen == ["mlp_forward", "linear_forward", "activation_forward", "gelu_forward", "linear_forward"]
