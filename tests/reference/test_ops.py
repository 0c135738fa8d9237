"""Every property that all ops have, on every op of the table and every backend."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import CASES, every_backend
from tensorlite.testing import properties

pytestmark = every_backend
every_op = pytest.mark.parametrize("name", CASES)


def drawn(ops, name, data):
    """Draw inputs; return forward with its options bound, backward, and the arrays."""
    return CASES[name].split(ops, data.draw(CASES[name].inputs))


@every_op
@given(data=st.data())
def test_gradients_by_finite_differences(ops, name, data):
    properties.check_gradients(*drawn(ops, name, data))


@every_op
@given(data=st.data())
def test_gradients_by_complex_step(ops, name, data):
    properties.check_complex_step(*drawn(ops, name, data))


@every_op
@given(data=st.data())
def test_value_against_loops(ops, name, data):
    inputs = data.draw(CASES[name].inputs)
    properties.check_value(CASES[name].on(ops)[0], inputs, CASES[name].reference)


@every_op
@given(data=st.data())
def test_read_only_inputs(ops, name, data):
    properties.check_read_only(*drawn(ops, name, data))


@every_op
@given(data=st.data())
def test_non_contiguous_inputs(ops, name, data):
    properties.check_non_contiguous(*drawn(ops, name, data))


@every_op
@given(data=st.data())
def test_float32_follows_float64(ops, name, data):
    properties.check_float32(*drawn(ops, name, data))


@every_op
@given(data=st.data())
def test_no_floating_point_errors(ops, name, data):
    properties.check_float_errors(*drawn(ops, name, data))


@every_op
@given(data=st.data())
def test_rows_of_a_batch_do_not_mix(ops, name, data):
    case = CASES[name]
    inputs = data.draw(case.inputs)
    forward, backward, arrays = case.split(ops, inputs | ({"key": None} if "key" in inputs else {}))
    properties.check_batch(forward, backward, arrays, case.batched, case.mean)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.mean])
@given(data=st.data())
def test_empty_batch(ops, name, data):
    properties.check_empty_batch(*drawn(ops, name, data), CASES[name].batched)


@every_op
@given(data=st.data())
def test_a_list_is_refused(ops, name, data):
    inputs = data.draw(CASES[name].inputs)
    first = next(iter(inputs))
    with pytest.raises(TypeError, match="list"):
        CASES[name].on(ops)[0](**inputs | {first: inputs[first].tolist()})
