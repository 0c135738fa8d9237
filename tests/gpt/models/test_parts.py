"""The parts of each model: its parameters and how they start, its heads, its dropout, and what it keeps."""

import weakref

import numpy as np
import pytest

from gpt.models import MODELS
from gpt.params import Param, ParamTable
from small import config_of, start, text
from tensorlite import ReferenceOps
from tensorlite.random import fold_in, step_key

every_model = pytest.mark.parametrize("name", MODELS)

HEAD = {"wte": "VC", "wpe": "TC", "qkv_w": "C3", "head_w": "CV", "head_b": "V"}
RESIDUAL_BLOCK = {
    "qkv_w": "C3",
    "attn_proj_w": "CC",
    "attn_proj_b": "C",
    "fc_w": "C4",
    "fc_b": "4",
    "mlp_proj_w": "4C",
    "mlp_proj_b": "C",
}
GPT_BLOCK = RESIDUAL_BLOCK | {"ln1_w": "C", "ln1_b": "C", "ln2_w": "C", "ln2_b": "C"}
AROUND = {"wte": "VC", "wpe": "TC", "head_w": "CV", "head_b": "V"}
PARAMETERS = {  # their axes; 3 and 4: 3C and 4C
    "bigram": {"wte": "VV"},
    "head": HEAD,
    "multihead": HEAD,
    "feedforward": HEAD | {"fc_w": "CC", "fc_b": "C"},
    "residual": AROUND | {f"blocks.{i}.{p}": axes for i in range(2) for p, axes in RESIDUAL_BLOCK.items()},
    "gpt": AROUND | {"lnf_w": "C", "lnf_b": "C"} | {f"blocks.{i}.{p}": axes for i in range(2) for p, axes in GPT_BLOCK.items()},
}


@every_model
@pytest.mark.parametrize("bias", [True, False])
def test_the_parameters_and_how_they_start(name, bias):
    """Matrices and embeddings as N(0, init_std), gains at 1, biases at 0; without biases there are none."""
    config = config_of(name, init_std=0.25, bias=bias)
    V, T, C = config.vocab_size, config.block_size, config.n_embd
    sizes = {"V": V, "T": T, "C": C, "3": 3 * C, "4": 4 * C}
    table = ParamTable(MODELS[name].init(config))
    expected = {p: tuple(sizes[axis] for axis in axes) for p, axes in PARAMETERS[name].items() if bias or not p.endswith("_b")}
    assert {param.name: param.shape for param in table} == expected
    for param in table:
        gain = param.name.endswith(("ln1_w", "ln2_w", "lnf_w"))
        assert (param.std, param.fill) == (0.25 if len(param.shape) == 2 else 0, 1 if gain else 0), param.name


class Spy(ReferenceOps):
    """Notes the heads, the probability and the key of each dropout."""

    def __init__(self):
        super().__init__()
        self.heads, self.drawn = [], []

    def attention_forward(self, qkv, n_head, p=0.0, key=None, kv_cache=None):
        self.heads.append(n_head)
        self.drawn.append((p, key))
        return super().attention_forward(qkv, n_head, p, key, kv_cache)

    def residual_forward(self, x, y, p=0.0, key=None):
        self.drawn.append((p, key))
        return super().residual_forward(x, y, p, key)


@every_model
def test_each_dropout_is_drawn_at_its_own_site(name):
    """The sites fix the random stream: with others, a resumed run would not be the run that it was."""
    config = config_of(name, dropout=0.25)
    state, spy, key = start(config), Spy(), step_key(1, 2, 8)
    params = state.table.tree(state.params)
    MODELS[name].forward(spy, params, *text(config, 2), config, key)
    sites = {"bigram": (), "residual": ("attention", "attention_residual", "mlp_residual")}
    sites |= {"gpt": sites["residual"]}
    drawn = [fold_in(key, layer, site) for layer in range(config.n_layer) for site in sites.get(name, ("attention",))]
    assert spy.drawn == [(0.25, site_key) for site_key in drawn]
    assert spy.heads == [config.n_head] * (0 if name == "bigram" else config.n_layer)
    without = Spy()
    MODELS[name].forward(without, params, *text(config, 2), config)
    MODELS[name].logits(without, params, text(config, 2)[0], config)
    assert {key for _, key in without.drawn} <= {None}


@pytest.mark.parametrize("name", ["feedforward", "residual", "gpt"])
def test_the_activation_is_the_configurations(name):
    class Activations(ReferenceOps):
        def activation_forward(self, x, kind):
            used.append(kind)
            return super().activation_forward(x, kind)

    for kind in ("gelu", "relu"):
        used, config = [], config_of(name, activation=kind)
        state = start(config)
        MODELS[name].forward(Activations(), state.table.tree(state.params), *text(config, 2), config)
        assert used == [kind] * config.n_layer


@pytest.mark.parametrize("name", ["residual", "gpt"])
def test_a_tied_model_has_no_head_and_no_gradient_of_one(name):
    config = config_of(name, tied=True)
    state = start(config)
    params = state.table.tree(state.params)
    _, cache = MODELS[name].forward(ReferenceOps(), params, *text(config, 2), config)
    assert params["head_w"] is MODELS[name].backward(ReferenceOps(), 1.0, cache)["head_w"] is None


@pytest.mark.parametrize("name", ["residual", "gpt"])
def test_no_block_is_remembered_where_no_backward_follows(name):
    """An evaluation and a generated token take the memory of one block, whatever the depth."""

    class Cache:
        def __init__(self, content):
            self.content = content

    class Forgetting(ReferenceOps):
        def __init__(self):
            super().__init__()
            self.kept, self.most = [], 0

        def mlp_forward(self, *args, **options):
            y, cache = super().mlp_forward(*args, **options)
            self.most = max(self.most, sum(earlier() is not None for earlier in self.kept))
            cache = Cache(cache)
            self.kept.append(weakref.ref(cache))
            return y, cache

    config = config_of(name, n_layer=3)
    state = start(config)
    params, (idx, targets), spy = state.table.tree(state.params), text(config, 2), Forgetting()
    MODELS[name].logits(spy, params, idx, config)
    MODELS[name].forward(spy, params, idx, targets, config, with_cache=False)
    assert (len(spy.kept), spy.most) == (6, 0)
    MODELS[name].forward(spy, params, idx, targets, config)
    assert spy.most == 2


@every_model
def test_the_starting_values_are_the_same_in_every_version(name):
    flat = ParamTable(MODELS[name].init(config_of(name))).init_params(7)
    drawn = np.random.Generator(np.random.Philox(7)).standard_normal(2)
    np.testing.assert_array_equal(flat[:2], np.float32(0.02 * drawn))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "bigram"])
def test_gradients_through_the_masks_of_dropout(name):
    """Each backward uses the masks that its own forward drew: along one direction, the slope of the loss."""
    tied = name in ("residual", "gpt")
    ops, config, key = ReferenceOps(), config_of(name, dropout=0.3, tied=tied), step_key(1, 2)
    state = start(config, std=0.5)
    direction = np.random.default_rng(0).standard_normal(state.table.size)

    def loss(distance):
        params = state.table.tree(state.params + distance * direction)
        return MODELS[name].forward(ops, params, *text(config, 2), config, key)

    grads = state.table.leaves(MODELS[name].backward(ops, 1.0, loss(0)[1]))
    slope = sum((grad * view).sum() for grad, view in zip(grads, state.table.views(direction), strict=True))
    assert (loss(1e-6)[0] - loss(-1e-6)[0]) / 2e-6 == pytest.approx(slope, rel=1e-6)


def test_a_table_of_biases_alone_has_nothing_that_decays():
    assert ParamTable([Param("b", (3,))]).n_decay == 0
