"""The tape: names that last, forward beside backward, and what the axes of the arrays count."""

import sys

import pytest

from gpt.trace import tape
from gpt.trace.axes import axes_of
from gpt.trace.example import MODEL, VOCABULARY, WINDOW
from gpt.trace.formula import merge_axes
from gpt.trace.recorder import Listener, listening
from small import config_of
from traces import VARIANTS, recorded

ROWS = {
    "embedding_forward": ["embedding_backward"],
    "position_embedding_forward": ["position_embedding_backward"],
    "layernorm_forward.ln1": ["layernorm_backward.ln1", "add.ln1"],
    "linear_forward.qkv": ["linear_backward.qkv"],
    "attention_forward": ["attention_backward"],
    "softmax_forward": ["softmax_backward"],
    "linear_forward.attn_proj": ["linear_backward.attn_proj"],
    "residual_forward.1": ["residual_backward.1"],
    "layernorm_forward.ln2": ["layernorm_backward.ln2", "add.ln2"],
    "linear_forward.fc": ["linear_backward.fc"],
    "gelu_forward": ["gelu_backward"],
    "linear_forward.mlp_proj": ["linear_backward.mlp_proj"],
    "residual_forward.2": ["residual_backward.2"],
    "layernorm_forward.lnf": ["layernorm_backward.lnf"],
    "linear_forward.head": ["linear_backward.head"],
    "cross_entropy_forward": ["cross_entropy_backward"],
}


def tape_of(variant):
    state = recorded(variant)
    pairs = tape.pair_calls(state.trace)
    return state, pairs, tape.names(state.trace, pairs, state.parameters)


def test_the_rows_of_a_gpt_in_the_order_of_forward():
    state, pairs, names = tape_of("gpt")
    assert {names[row.forward]: [names[b] for b in row.backward] for row in tape.rows(state.trace, pairs)} == ROWS


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_stop_is_in_the_tape_once_under_a_name_of_its_own(variant):
    state, pairs, names = tape_of(variant)
    rows = tape.rows(state.trace, pairs)
    shown = [number for row in rows for number in (row.forward, *row.backward)]
    stops = [call.number for call in state.trace.calls if tape.has_formulas(call)]
    assert sorted(shown) == stops
    assert len({names[number] for number in stops}) == len(stops)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_backward_opened_the_cache_of_its_forward(variant):
    """With B = 1 the arrays of two calls may have equal shapes, so the pair is known by what the cache holds."""
    state, pairs, _ = tape_of(variant)
    for backward, forward in pairs.items():
        call, pair = state.trace.calls[backward], state.trace.calls[forward]
        assert pair.function == call.function.replace("backward", "forward")
        unpacked = {m.target.name: m.array for m in call.made if m.target.name in pair.arguments and not tape.formula_of(call, m)}
        for name, array in unpacked.items():
            assert pair.arguments[name] == array, f"{call.function} {name}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_axis_counts_what_its_length_says(variant):
    """T, V, H and the number of channels all differ in these models."""
    state = recorded(variant)
    config = config_of(**VARIANTS[variant])
    meaning = {config.block_size: "position", config.vocab_size: "token"}
    for array, axes in axes_of(state.trace, state.parameters).items():
        shape = merge_axes(state.trace.arrays[array], len(axes)).shape
        for length, axis in zip(shape, axes, strict=True):
            assert (axis == meaning.get(length)) == (length in meaning), (shape, axes)
            assert axis != "head" or length == config.n_head


def test_two_blocks_are_told_apart():
    _, _, names = tape_of("gpt-2-blocks-relu")
    assert {"linear_forward.0.qkv", "linear_backward.1.qkv", "layernorm_forward.lnf", "attention_forward.1"} <= set(names.values())


def test_logits_have_an_axis_of_tokens_and_scores_two_of_positions():
    state, _, names = tape_of("gpt")
    axes = axes_of(state.trace, state.parameters)
    by_name = {names[call.number]: call for call in state.trace.calls}

    def of(call, name):
        return axes[[m.array for m in by_name[call].made if m.target.name == name][-1]]

    assert of("linear_forward.head", "y") == of("cross_entropy_backward", "dlogits") == ("position", "token")
    assert of("linear_backward.head", "dw") == ("channel", "token")
    assert of("attention_backward", "dscores") == ("head", "position", "position")
    assert of("embedding_backward", "dtable") == ("token", "channel")
    assert of("add.ln1", "sum") == ("position", "channel")
    assert all(len(axes.get(i, ())) <= 4 for i in range(len(state.trace.arrays)))


def test_the_example_is_what_the_page_says():
    assert (MODEL.block_size, MODEL.n_embd, MODEL.n_head, MODEL.head_size, MODEL.n_layer) == (6, 8, 4, 2, 1)
    assert len(VOCABULARY) == 15
    assert len(WINDOW) == 7


def test_recording_leaves_the_trace_function_of_the_program_alone():
    """A debugger or a coverage tool goes on after the recording, also after one that fails."""

    def own(_frame, _event, _arg):
        return None

    before = sys.gettrace()
    sys.settrace(own)
    try:
        with listening(Listener()):
            pass
        with pytest.raises(ZeroDivisionError), listening(Listener()):
            raise ZeroDivisionError
        assert sys.gettrace() is own
    finally:
        sys.settrace(before)
