"""The interface of the CPU backend: its ops, and the arguments that they refuse."""

import inspect
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fake_cupy
from cases import CASES
from cpu_results import OPS, REFERENCE
from tensorlite import Key, ReferenceOps, cpu

KEY = Key(1, 2, 3)
OWN = [name for name in CASES if f"{name}_forward" in vars(cpu.CPUOps)]


@pytest.mark.parametrize("name", OWN)
@settings(max_examples=5)
@given(data=st.data())
def test_arrays_of_a_gpu_are_refused(name, data):
    """The ops of this backend, written for NumPy, refuse them; inherited ops accept them."""
    inputs = data.draw(CASES[name].inputs) | ({"p": 0.5, "key": KEY} if name in ("attention", "dropout", "residual") else {})
    module = fake_cupy.module()
    moved = {k: module.asarray(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", module)
        with pytest.raises(TypeError):
            CASES[name].on(OPS)[0](**moved)


@pytest.mark.parametrize("name", OWN)
@given(data=st.data())
def test_what_the_reference_refuses_is_refused_in_its_words(name, data):
    """Each array in turn loses its last column or its last axis, or gets another type."""
    inputs = data.draw(CASES[name].inputs)
    for k, v in inputs.items():
        if isinstance(v, np.ndarray):
            for wrong in (v[..., :-1], v[..., 0], v.tolist()):
                said = []
                for ops in (REFERENCE, OPS):
                    try:
                        CASES[name].on(ops)[0](**inputs | {k: wrong})
                        said.append(None)
                    except (TypeError, ValueError) as error:
                        said.append((type(error), str(error)))
                assert said[0] == said[1], k


def test_every_override_has_its_pair():
    own = {name for name in vars(cpu.CPUOps) if not name.startswith("_")} - {"name"}
    assert {name.replace("_forward", "_backward") for name in own if name.endswith("_forward")} <= own
    assert own <= {name for name, _ in inspect.getmembers(ReferenceOps)}
