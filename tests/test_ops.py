"""Every property that holds for all ops, on every op of the table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import CASES
from tensorlite import testing

every_op = pytest.mark.parametrize("name", CASES)


def drawn(name, data):
    """Inputs for an op: forward with its options bound, backward, arrays."""
    return CASES[name].split(data.draw(CASES[name].inputs))


@every_op
@given(data=st.data())
def test_gradients_by_finite_differences(name, data):
    testing.check_gradients(*drawn(name, data))


@every_op
@given(data=st.data())
def test_gradients_by_complex_step(name, data):
    testing.check_complex_step(*drawn(name, data))


@every_op
@given(data=st.data())
def test_value_against_loops(name, data):
    inputs = data.draw(CASES[name].inputs)
    testing.check_value(CASES[name].forward, inputs, CASES[name].reference)


@every_op
@given(data=st.data())
def test_read_only_inputs(name, data):
    testing.check_read_only(*drawn(name, data))


@every_op
@given(data=st.data())
def test_non_contiguous_inputs(name, data):
    testing.check_non_contiguous(*drawn(name, data))


@every_op
@given(data=st.data())
def test_float32_follows_float64(name, data):
    testing.check_float32(*drawn(name, data))


@every_op
@given(data=st.data())
def test_no_floating_point_errors(name, data):
    testing.check_float_errors(*drawn(name, data))


@every_op
@given(data=st.data())
def test_rows_of_a_batch_do_not_mix(name, data):
    case = CASES[name]
    inputs = data.draw(case.inputs)
    forward, backward, arrays = case.split(inputs | ({"key": None} if "key" in inputs else {}))
    testing.check_batch(forward, backward, arrays, case.batched, case.mean)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.mean])
@given(data=st.data())
def test_empty_batch(name, data):
    testing.check_empty_batch(*drawn(name, data), CASES[name].batched)


@every_op
@given(data=st.data())
def test_a_list_is_refused(name, data):
    inputs = data.draw(CASES[name].inputs)
    first = next(iter(inputs))
    with pytest.raises(TypeError, match="list"):
        CASES[name].forward(**inputs | {first: inputs[first].tolist()})
