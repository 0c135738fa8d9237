"""from_torch: PyTorch functions and modules under our checker, and mistakes that PyTorch's own checker lets pass."""

import numpy as np
import pytest

from tensorlite import GradcheckError, gradcheck
from tensorlite.testing import from_torch, parameters_of

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
torch.set_num_threads(1)
RANDOM = np.random.default_rng(0).standard_normal


def function_of(forward, backward, name="Function"):
    """An autograd.Function out of forward(ctx, ...) and backward(ctx, ...)."""
    return type(name, (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})


def linear(mistake=lambda g: g):
    """A linear layer, with a mistake in dw."""

    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        return dy @ w.T, mistake(x.T @ dy)

    return function_of(forward, backward)


LINEAR = {"x": RANDOM((4, 3)), "w": RANDOM((3, 5))}


# ---- right functions pass ----


@pytest.mark.parametrize("of", [lambda f: f, lambda f: f.apply], ids=["class", "apply"])
def test_a_function_is_checked_by_its_class_or_its_apply(of):
    report = gradcheck(*from_torch(of(linear())), LINEAR)
    assert [a.name for a in report.arguments] == ["x", "w"]


def test_inputs_are_passed_by_name_where_the_names_are_known_and_in_order_otherwise():
    assert gradcheck(*from_torch(linear()), {"w": LINEAR["w"], "x": LINEAR["x"]}).ok
    assert gradcheck(*from_torch(linear()), {"a": LINEAR["x"], "b": LINEAR["w"]}).ok
    assert gradcheck(*from_torch(lambda x, w: x @ w), {"w": LINEAR["w"], "x": LINEAR["x"]}).ok
    assert gradcheck(*from_torch(lambda x, w: x @ w), {"a": LINEAR["x"], "b": LINEAR["w"]}).ok


def test_several_outputs_integers_options_and_none():
    def forward(ctx, x, ids, power, w, mode):
        ctx.save_for_backward(x, ids, w)
        ctx.power = power
        assert mode == "rows"
        return x[ids] ** power, x.sum() * w, ids.clone()  # the last has no gradient

    def backward(ctx, dy, dz, _):
        x, ids, w = ctx.saved_tensors
        dx = torch.zeros_like(x).index_add_(0, ids, dy * ctx.power * x[ids] ** (ctx.power - 1))
        return dx + (dz * w).sum(), None, None, dz * x.sum(), None

    inputs = {"x": RANDOM((3, 2)), "ids": np.array([0, 2, 2]), "power": 3, "w": RANDOM(4), "mode": "rows"}
    report = gradcheck(*from_torch(function_of(forward, backward)), inputs)
    assert [a.name for a in report.arguments] == ["x", "w"]


def test_a_function_with_setup_context():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, dy):
            return 2 * dy * ctx.saved_tensors[0]

    assert gradcheck(*from_torch(Square), {"x": RANDOM(3)}).ok


def test_a_module_brings_its_parameters():
    """Fresh gains and biases get random values; a frozen parameter and the buffers only take part."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    module[3].bias.requires_grad_(False)
    before = {name: a.clone() for name, a in module.state_dict().items()}
    report = gradcheck(*from_torch(module), {"input": RANDOM((5, 3))})
    assert [a.name for a in report.arguments] == ["input", "0.weight", "0.bias", "1.weight", "1.bias", "3.weight"]
    assert all(torch.equal(a, before[name]) for name, a in module.state_dict().items())
    gain = parameters_of(module)["1.weight"]
    assert len(set(gain)) == 4
    with pytest.raises(ValueError, match=r"\['0.weight', .*parameters_of"):
        from_torch(module)[0](input=RANDOM((5, 3)))


def test_trees_of_arrays():
    inputs = {"x": RANDOM((2, 3)), "params": {"layers": [{"w": RANDOM((3, 4)), "n": 2}, {"w": RANDOM((4, 1)), "n": 1}]}}

    def network(x, params):
        for layer in params["layers"]:
            x = torch.tanh(x @ layer["w"]) ** layer["n"]
        return x

    report = gradcheck(*from_torch(network), inputs)
    assert [a.name for a in report.arguments] == ["x", 'params["layers"][0]["w"]', 'params["layers"][1]["w"]']


def test_low_precision_against_a_twin():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        inputs = {name: a.astype(dtype) for name, a in LINEAR.items()}
        assert gradcheck(*from_torch(linear()), inputs, twin=from_torch(linear())).ok
        twin = (lambda x, w: (x @ w, (x, w))), (lambda dy, c: (dy @ c[1].T, c[0].T @ dy))
        assert gradcheck(*from_torch(linear()), inputs, twin=twin).ok
        assert not gradcheck(*from_torch(linear(lambda g: g * 1.05)), inputs, twin=twin, raise_on_fail=False).ok


# ---- mistakes that torch.autograd.gradcheck lets pass ----


def loss(backward):
    """A mean of squares, whose dy is one float."""

    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x * x).mean()

    return function_of(forward, backward)


def loses_the_sign_of_dy(ctx, dy):
    (x,) = ctx.saved_tensors
    return 2 * x / x.numel() * dy.abs()


def clips_dy(ctx, dy):
    x, w = ctx.saved_tensors
    dy = dy.clamp(-1.0, 1.0)
    return dy @ w.T, x.T @ dy


def saves_both(ctx, x, w):
    ctx.save_for_backward(x, w)
    return x @ w


def small_mean(ctx, x):
    return 1e-5 * x.mean()


def small_mean_with_a_wrong_sign(ctx, dy):
    return -1e-5 * dy.expand(6) / 6


def one_entry(g):
    g = g.clone()
    g[1, 2] *= 1.001
    return g


def through_float32(g):
    return g.float()


WRONG = {
    "a factor of 1.0005": (linear(lambda g: g * 1.0005), LINEAR),
    "one entry off by 0.1 %": (linear(one_entry), LINEAR),
    "computed in float32": (linear(through_float32), LINEAR),
    "the sign of dy is lost, and a loss has dy = 1": (loss(loses_the_sign_of_dy), {"x": RANDOM(6)}),
    "dy is clipped, and PyTorch's checker has no dy above 1": (function_of(saves_both, clips_dy), LINEAR),
    "a wrong sign of a small gradient": (function_of(small_mean, small_mean_with_a_wrong_sign), {"x": RANDOM(6)}),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_that_pytorchs_checker_lets_pass(mistake):
    function, inputs = WRONG[mistake]
    tensors = [torch.tensor(a, requires_grad=True) for a in inputs.values()]
    assert torch.autograd.gradcheck(function.apply, tensors)
    with pytest.raises(GradcheckError):
        gradcheck(*from_torch(function), inputs)


def test_a_gradient_of_another_dtype_is_named():
    """Autograd casts it, so that nobody sees it."""
    with pytest.raises(GradcheckError, match=r"dw is \(3, 5\) float32, w is \(3, 5\) float64"):
        gradcheck(*from_torch(linear(through_float32)), LINEAR)


def test_a_forgotten_gradient_counts_as_zero():
    def forward(ctx, x, w):
        return x + w

    wrong = function_of(forward, lambda ctx, dy: (dy, None))
    report = gradcheck(*from_torch(wrong), {"x": RANDOM(3), "w": RANDOM(3)}, raise_on_fail=False)
    assert [a.status for a in report.arguments] == ["pass", "fail"]
    right = function_of(lambda ctx, x, w: x * 1.0, lambda ctx, dy: (dy, None))
    assert gradcheck(*from_torch(right), {"x": RANDOM(3), "w": RANDOM(3)}).ok


# ---- errors in words ----


def in_place_on_input(x):
    return x.mul_(2.0)


def in_place_on_data(x):
    x.data.mul_(2.0)
    return x * 1.0


def in_place_on_saved(x):
    y = torch.exp(x)
    y.mul_(2.0)
    return y


def in_place_within_a_function(ctx, x):
    x.clamp_(min=0.0)
    return x * 1.0


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (in_place_on_input, r"writes into one of its inputs in place.*x\.clone"),
        (in_place_on_data, r"writes into its input 'x'.*x\.clone"),
        (function_of(in_place_within_a_function, lambda ctx, dy: dy), "writes into its input 'x'"),
        (in_place_on_saved, "a tensor that backward needs was written in place"),
        (lambda x: (x * 2.0, x.detach() * 2.0), "output 1 of the function does not require grad"),
        (lambda x: torch.tensor(x.tolist(), dtype=torch.float64), "output 0 of the function does not require grad"),
    ],
)
def test_what_cannot_be_checked_is_said_in_words(function, words):
    with pytest.raises(ValueError, match=words):
        gradcheck(*from_torch(function), {"x": RANDOM(3)})


def test_no_output_or_a_missing_option():
    def forward(ctx, x, eps, w):
        return x * w + eps

    function = function_of(forward, lambda ctx, dy: (dy, None, dy))
    with pytest.raises(ValueError, match=r"\['eps'\] must be among the inputs"):
        gradcheck(*from_torch(function), {"x": RANDOM(3), "w": RANDOM(3)})
    with pytest.raises(ValueError, match=r"the function returned .*: there is no float tensor in it"):
        gradcheck(*from_torch(lambda x: x.argmax()), {"x": RANDOM(3)})


def test_the_callers_grad_mode_and_arrays_do_not_matter():
    x = RANDOM((4, 3))
    before = x.copy()
    with torch.no_grad():
        assert gradcheck(*from_torch(torch.tanh), {"x": x}).ok
    with torch.inference_mode():
        assert gradcheck(*from_torch(torch.tanh), {"x": x}).ok
    np.testing.assert_array_equal(x, before)


def test_without_pytorch_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        from_torch(lambda x: x)


# ---- nothing is left unchecked ----


class Doubled(torch.nn.Module):
    """A linear layer whose dw is doubled."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(RANDOM((3, 5))))

    def forward(self, x):
        return linear(lambda g: 2 * g).apply(x, self.weight)


def test_a_parameter_that_is_no_input_is_refused():
    """A function around a module hides the module's parameters."""
    x, module = {"x": RANDOM((4, 3))}, Doubled()
    with pytest.raises(GradcheckError, match=r"ratio 2\n"):
        gradcheck(*from_torch(module), x)
    for function in (module.forward, lambda x: module(x)):
        with pytest.raises(ValueError, match=r"depend on a tensor \(3, 5\) that requires grad and is not among the inputs"):
            gradcheck(*from_torch(function), x)
    module.requires_grad_(False)
    assert gradcheck(*from_torch(lambda x: module(x)), x).ok


def test_outputs_within_outputs_are_checked():
    wrong = function_of(lambda ctx, x: x * 1.0, lambda ctx, dy: 2 * dy)
    for outputs in (lambda x: (x * x, (wrong.apply(x),)), lambda x: {"a": x * x, "b": wrong.apply(x)}):
        with pytest.raises(GradcheckError):
            gradcheck(*from_torch(outputs), {"x": RANDOM(3)})


def test_a_backward_that_writes_into_dy_is_refused():
    function = function_of(lambda ctx, x: 2 * x, lambda ctx, dy: dy.mul_(2))
    with pytest.raises(ValueError, match="backward writes into dy"):
        gradcheck(*from_torch(function), {"x": RANDOM(3)})


class Masked(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(3, dtype=torch.float64))

    def forward(self, x, mask=None):
        return x * self.mask if mask is None else x * x * mask


def test_an_argument_of_forward_is_no_buffer_of_the_same_name():
    x, mask = RANDOM((2, 3)), np.array([1.0, 0.0, 2.0])
    forward, _ = from_torch(Masked())
    np.testing.assert_array_equal(forward(x=x, mask=mask)[0], x * x * mask)
    np.testing.assert_array_equal(forward(x=x)[0], x)
    assert gradcheck(*from_torch(Masked()), {"x": x, "mask": mask}).ok


def test_names_that_nobody_knows_are_listed():
    with pytest.raises(ValueError, match=r"\['wieght'\] are neither parameters of the module, \['weight'\], nor arguments"):
        from_torch(Doubled())[0](x=RANDOM((4, 3)), weight=RANDOM((3, 5)), wieght=RANDOM((3, 5)))


def test_an_argument_and_a_parameter_of_one_name_are_told_apart_by_nobody():
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, x, weight):
            return x * self.weight * weight

    with pytest.raises(ValueError, match=r"\['weight'\] are parameters of the module and arguments of its forward"):
        gradcheck(*from_torch(Scale()), {"x": RANDOM(3), "weight": RANDOM(3)})


def test_a_sparse_gradient_and_any_keyword():
    class Keywords(torch.nn.Module):
        def forward(self, x, **others):
            return x * others["factor"]

    assert gradcheck(*from_torch(torch.nn.Embedding(5, 3, sparse=True)), {"input": np.array([[0, 1, 1], [2, 4, 0]])}).ok
    assert gradcheck(*from_torch(Keywords()), {"x": RANDOM(3), "factor": RANDOM(3)}).ok
