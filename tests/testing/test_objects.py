"""Layers that are objects with state, and functions that return a loss with its gradients."""

import numpy as np
import pytest

from tensorlite import gradcheck
from tensorlite.testing import of_loss, of_object

RANDOM = np.random.default_rng(0).standard_normal
X = {"x": RANDOM((2, 4))}


def check(pair, inputs, **options):
    return gradcheck(*pair, inputs, raise_on_fail=False, **options)


def names(report):
    return [argument.name for argument in report.arguments]


# ---- the forms in which people write such classes ----


class Linear:
    """dW and db are left in attributes, dx is returned."""

    def __init__(self):
        self.W = 0.01 * RANDOM((4, 3))
        self.b = np.zeros(3)

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, dy):
        self.dW, self.db = self.x.T @ dy, dy.sum(axis=0)
        return dy @ self.W.T


class Attributes(Linear):
    """All gradients are left in attributes, with other names; nothing is returned by either method."""

    def __init__(self):
        self.weights, self.biases = RANDOM((4, 3)), np.zeros((1, 3))

    def forward(self, inputs):
        self.inputs = inputs
        self.output = inputs @ self.weights + self.biases

    def backward(self, dvalues):
        self.dweights = self.inputs.T @ dvalues
        self.dbiases = dvalues.sum(axis=0, keepdims=True)
        self.dinputs = dvalues @ self.weights.T


class GradPrefix(Linear):
    def backward(self, dy):
        self.grad_W, self.grad_b, self.grad_input = self.x.T @ dy, dy.sum(axis=0), dy @ self.W.T


class GradCamel(Linear):
    def backward(self, dy):
        self.gradW, self.gradB = self.x.T @ dy, dy.sum(axis=0)
        self.gradInput = dy @ self.W.T
        return self.gradInput


class GradSuffix(Linear):
    def backward(self, dy):
        self.W_grad, self.b_grad = self.x.T @ dy, dy.sum(axis=0)
        return dy @ self.W.T


class ShortNames(Linear):
    def __init__(self):
        self.weight, self.bias = RANDOM((4, 3)), np.zeros(3)

    def forward(self, x):
        self.x = x
        return x @ self.weight + self.bias

    def backward(self, dy):
        self.dw, self.db = self.x.T @ dy, dy.sum(axis=0)
        return dy @ self.weight.T


class Dicts(Linear):
    """Gradients are added up in float32 buffers that were made like the parameters."""

    def __init__(self):
        self.params = {"W": RANDOM((4, 3)).astype(np.float32), "b": np.zeros(3, np.float32)}
        self.grads = {key: np.zeros_like(value) for key, value in self.params.items()}

    def forward(self, x):
        self.x = x
        return x @ self.params["W"] + self.params["b"]

    def backward(self, dy):
        self.grads["W"] += self.x.T @ dy
        self.grads["b"] += dy.sum(axis=0)
        return dy @ self.params["W"].T


class Lists(Linear):
    """Gradients are written into the arrays of a list."""

    def __init__(self):
        self.params = [RANDOM((4, 3)), np.zeros(3)]
        self.grads = [np.zeros_like(p) for p in self.params]

    def forward(self, x):
        self.x = x
        W, b = self.params
        return x @ W + b

    def backward(self, dy):
        self.grads[0][...], self.grads[1][...] = self.x.T @ dy, dy.sum(axis=0)
        return dy @ self.params[0].T


class Aliases(Linear):
    """Every parameter has two names, and gradients have one."""

    def __init__(self):
        super().__init__()
        self.params = [self.W, self.b]

    def backward(self, dy):
        self.grads = [self.x.T @ dy, dy.sum(axis=0)]
        return dy @ self.params[0].T


class History(Linear):
    """Inputs are collected in a list, and gradients added up over it."""

    def __init__(self):
        self.X = []
        self.parameters = {"W": RANDOM((4, 3)), "b": np.zeros(3)}
        self.gradients = {key: np.zeros_like(value) for key, value in self.parameters.items()}

    def forward(self, X, retain_derived=True):
        self.X.append(X)
        return X @ self.parameters["W"] + self.parameters["b"]

    def backward(self, dy, retain_grads=True):
        dx = [d @ self.parameters["W"].T for d in [dy]]
        for d, x in zip([dy], self.X, strict=True):
            self.gradients["W"] += x.T @ d
            self.gradients["b"] += d.sum(axis=0)
        return dx[0]


class Parameter:
    def __init__(self, data):
        self.data, self.grad = data, np.zeros_like(data)


class ParameterObjects(Linear):
    def __init__(self):
        self.W, self.b = Parameter(RANDOM((4, 3))), Parameter(np.zeros(3))

    def __call__(self, x):
        self.x = x
        return x @ self.W.data + self.b.data

    forward = property()  # there is no method of this name: the object is called

    def backward(self, dy):
        self.W.grad += self.x.T @ dy
        self.b.grad += dy.sum(axis=0)
        return dy @ self.W.data.T


class Returned(Linear):
    def backward(self, dy):
        return dy @ self.W.T, self.x.T @ dy, dy.sum(axis=0)


class ReturnedList(Linear):
    def backward(self, dy):
        return dy @ self.W.T, [self.x.T @ dy, dy.sum(axis=0)]


class ReturnedDict(Linear):
    def backward(self, dy):
        return {"b": dy.sum(axis=0), "W": self.x.T @ dy, "x": dy @ self.W.T}


class CacheStyle(Linear):
    def forward(self, x):
        return x @ self.W + self.b, x

    def backward(self, dy, cache):
        self.dW, self.db = cache.T @ dy, dy.sum(axis=0)
        return dy @ self.W.T


class Slots(Linear):
    __slots__ = ("W", "b", "dW", "db", "x")


class Uncopyable(Linear):
    def __init__(self):
        super().__init__()
        self.log = (line for line in ["a generator cannot be copied"])
        self.parts = {"logs": [self.log]}


FORMS = [
    Linear,
    Attributes,
    GradPrefix,
    GradCamel,
    GradSuffix,
    ShortNames,
    Dicts,
    Lists,
    Aliases,
    History,
    ParameterObjects,
    Returned,
    ReturnedList,
    ReturnedDict,
    CacheStyle,
    Slots,
    Uncopyable,
]


def wrong(kind):
    """Return a subclass whose dW, wherever it is left, is doubled: backward sees x twice as large, and nothing else uses x."""

    class Wrong(kind):
        def backward(self, dy, *cache):
            for name in ("x", "inputs"):
                if hasattr(self, name):
                    setattr(self, name, 2 * getattr(self, name))
            if hasattr(self, "X"):
                self.X = [2 * x for x in self.X]
            return super().backward(dy, *(2 * c for c in cache))

    if kind is CacheStyle:
        Wrong.backward = lambda self, dy, cache: kind.backward(self, dy, 2 * cache)
    return Wrong


@pytest.mark.parametrize("kind", FORMS)
def test_the_parameters_of_a_class_are_found_and_checked(kind):
    layer = kind()
    report = check(of_object(layer), X)
    assert report.ok, report
    assert len(report.arguments) == 3
    assert not hasattr(layer, "dW")  # the object itself does not change
    report = check(of_object(wrong(kind)()), X)
    assert [argument.status for argument in report.arguments] == ["pass", "fail", "pass"]
    assert report.arguments[1].entries[0].ratio == pytest.approx(2)


def test_parameters_are_named_as_they_are_addressed():
    assert names(check(of_object(Linear()), X)) == ["x", "W", "b"]
    assert names(check(of_object(Dicts()), X)) == ["x", 'params["W"]', 'params["b"]']
    assert names(check(of_object(Lists()), X)) == ["x", "params[0]", "params[1]"]
    assert names(check(of_object(ParameterObjects()), X)) == ["x", "W.data", "b.data"]
    assert names(check(of_object(Linear()), X, wrt=["b"])) == ["b"]


def test_a_factory_will_do():
    assert check(of_object(Linear), X).ok
    assert check(of_object(lambda: Linear()), X).ok


class Relu:
    def forward(self, x):
        self.mask = x > 0
        return x * self.mask

    def backward(self, dy):
        return dy * self.mask


class Network:
    def __init__(self):
        self.layers = [Linear(), Relu(), Dicts()]
        self.layers[2].params = {"W": RANDOM((3, 2)), "b": np.zeros(2)}
        self.layers[2].grads = {"W": np.zeros((3, 2)), "b": np.zeros(2)}

    def forward(self, x):
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dy):
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy


def test_the_parameters_of_layers_in_layers():
    report = check(of_object(Network()), X)
    assert report.ok
    assert names(report) == ["x", "layers[0].W", "layers[0].b", 'layers[2].params["W"]', 'layers[2].params["b"]']
    assert names(check(of_object(Relu()), X)) == ["x"]


class Tied:
    """Two layers share one array, and each adds its part of the gradient."""

    def __init__(self):
        self.first, self.second = Linear(), Linear()
        self.first.W = self.second.W = self.W = RANDOM((4, 4))
        self.first.b, self.second.b = np.zeros(4), np.zeros(4)

    def forward(self, x):
        return self.second.forward(np.tanh(self.first.forward(x)))

    def backward(self, dy):
        dh = self.second.backward(dy) * (1 - self.second.x**2)
        dx = self.first.backward(dh)
        self.dW = self.first.dW + self.second.dW
        return dx


def test_a_shared_array_is_one_parameter():
    report = check(of_object(Tied(), gradients={"W": "dW"}), X)
    assert report.ok
    assert sum(name.endswith("W") for name in names(report)) == 1


# ---- state ----


def test_gradients_that_add_up_are_a_mistake_only_if_asked():
    assert check(of_object(Dicts()), X).ok
    used = Dicts()
    used.forward(X["x"])
    used.backward(np.ones((2, 3)))
    assert check(of_object(used), X).ok
    report = check(of_object(Dicts(), reset=False), X)
    assert "backward adds to a buffer it keeps" in str(report)
    assert "ratio" not in str(report)
    assert check(of_object(Linear(), reset=False), X).ok


def test_an_object_that_was_used_before():
    """It holds x and dx, which are no parameters, under the names of inputs."""

    class Keeps(Linear):
        def backward(self, dy):
            self.dx = super().backward(dy)
            return self.dx

    layer = Keeps()
    layer.forward(RANDOM((2, 4)))
    layer.backward(RANDOM((2, 3)))
    for inputs in (X, {"X": X["x"]}):
        report = check(of_object(layer), inputs)
        assert report.ok, report
        assert names(report) == [*inputs, "W", "b"]


def test_random_numbers_of_the_object_itself_are_repeatable():
    class Dropout:
        def __init__(self):
            self.rng = np.random.default_rng(0)

        def forward(self, x):
            self.mask = self.rng.random(x.shape) < 0.5
            return 2 * x * self.mask

        def backward(self, dy):
            return 2 * dy * self.mask

    assert check(of_object(Dropout()), X).ok


def test_an_update_inside_backward_is_named():
    class Updates(Linear):
        def backward(self, dy, rate):
            dx = super().backward(dy)
            self.W -= rate * self.dW
            return dx

    with pytest.raises(ValueError, match=r"takes \(dy, rate\), and there is dy alone to give it"):
        check(of_object(Updates()), X)
    report = check(of_object(Updates(), backward=lambda layer, dy: layer.backward(dy, 0.1)), X)
    assert report.contract_violations == ["backward writes into the inputs"]
    assert check(of_object(Updates(), backward=lambda layer, dy: layer.backward(dy, 0.0)), X).ok


def test_zeros_and_ones_are_moved_because_they_hide_mistakes():
    """With a gain of ones, layernorm's dx is right without the gain."""

    class Scale:
        def __init__(self):
            self.gamma, self.beta = np.ones(4), np.zeros(4)

        def forward(self, x):
            self.x = x
            return x * self.gamma + self.beta

        def backward(self, dy):
            self.dgamma, self.dbeta = (dy * self.x).sum(axis=0), dy.sum(axis=0)
            return dy

    report = check(of_object(Scale()), X)
    assert [argument.status for argument in report.arguments] == ["fail", "pass", "pass"]
    assert check(of_object(Scale()), X | {"gamma": np.ones(4)}).ok  # a value that is given is used


# ---- what was not found ----


class Forgetful(Linear):
    def backward(self, dy):
        self.dW = self.x.T @ dy
        return dy @ self.W.T


def test_a_gradient_that_is_not_found_is_named_with_the_way_out():
    words = r"y depends on b of Forgetful, and no gradient of it was found .* such as db, grad_b, b_grad, grads\[.b.\]"
    with pytest.raises(ValueError, match=words):
        check(of_object(Forgetful()), X)
    report = check(of_object(Forgetful(), parameters=["W"]), X)
    assert report.ok
    assert names(report) == ["x", "W"]
    report = check(of_object(Forgetful(), parameters=["W", "b"]), X)
    assert "db was not found: backward did not return it, and Forgetful has none under names such as db" in str(report)
    with pytest.raises(ValueError, match=r"has no float array 'w'. It has \['W', 'b'\]"):
        check(of_object(Forgetful(), parameters=["w"]), X)


def test_a_gradient_with_an_unusual_name_is_told():
    class Nabla(Linear):
        def backward(self, dy):
            self.nabla = {"one": self.x.T @ dy, "two": dy.sum(axis=0)}
            self.error = dy @ self.W.T

    places = {"W": 'nabla["one"]', "b": 'nabla["two"]', "x": "error"}
    assert check(of_object(Nabla(), gradients=places), X).ok
    assert "Nabla has none at mistake" in str(check(of_object(Nabla(), gradients=places | {"x": "mistake"}), X))
    del places["x"]
    assert "dx was not found" in str(check(of_object(Nabla(), gradients=places), X))
    assert check(of_object(Nabla(), gradients=places), X, wrt=["W", "b"]).ok


def test_methods_with_other_names():
    class Other:
        def fprop(self, x):
            self.result = x * 2

        def bprop(self, dy):
            return dy * 2

    with pytest.raises(ValueError, match=r"has no method 'forward'. It has \['bprop', 'fprop'\]"):
        check(of_object(Other()), X)
    with pytest.raises(ValueError, match="its result is in none of the attributes output, "):
        check(of_object(Other(), forward="fprop", backward="bprop"), X)
    pair = of_object(Other(), forward=lambda layer, x: (layer.fprop(x), layer.result)[1], backward="bprop")
    assert check(pair, X).ok


def test_parameters_that_do_not_exist_yet():
    class Lazy(Linear):
        def __init__(self):
            self.built = False

        def forward(self, x):
            if not self.built:
                Linear.__init__(self)
                self.built = True
            return super().forward(x)

    with pytest.raises(ValueError, match=r"Lazy creates \['W', 'b'\] in its first forward"):
        check(of_object(Lazy()), X)


def test_something_that_is_no_object_is_refused():
    with pytest.raises(ValueError, match=r"<lambda> takes \(x, w\); is it a function for of_loss?"):
        check(of_object(lambda x, w: x), X)


# ---- losses ----


class MeanSquares:
    def forward(self, p, t):
        self.difference = p - t
        return float((self.difference**2).mean()) if np.isrealobj(p) else (self.difference**2).mean()

    def backward(self):
        return 2 * self.difference / self.difference.size


def test_the_backward_of_a_loss_may_take_nothing():
    inputs = {"p": RANDOM((2, 3)), "t": RANDOM((2, 3))}
    assert check(of_object(MeanSquares()), inputs, wrt=["p"]).ok
    assert "returns 1 gradient for the 2 inputs" in str(check(of_object(MeanSquares()), inputs))


def regression(params, x, t):
    difference = x @ params["w"] + params["b"][0] - t
    return float((difference**2).sum()), {"b": [2 * difference.sum(axis=0)], "w": 2 * x.T @ difference}


PARAMS = {"w": RANDOM((4, 3)), "b": [RANDOM(3)]}


def test_loss_and_grads_of_a_tree():
    inputs = {"params": PARAMS, "x": RANDOM((2, 4)), "t": RANDOM((2, 3))}
    report = check(of_loss(regression), inputs, wrt=["params"])
    assert report.ok
    assert names(report) == ['params["w"]', 'params["b"][0]']
    missing = check(of_loss(regression), inputs)
    assert "dx is None or missing" in str(missing)
    assert "wrt=[...]" in str(missing)

    def halved(params, x, t):
        loss, grads = regression(params, x, t)
        return loss / 2, grads

    assert check(of_loss(halved), inputs, wrt=["params"]).arguments[0].entries[0].ratio == pytest.approx(2)


@pytest.mark.parametrize("form", [tuple, list, lambda g: {"p": g[0], "q": g[1]}, lambda g: {"dq": g[1], "dp": g[0]}])
def test_loss_and_grads_of_several_arrays(form):
    inputs = {"p": RANDOM(3), "q": RANDOM(3)}
    assert check(of_loss(lambda p, q: ((p * q).sum(), form((q, p)))), inputs).ok
    assert not check(of_loss(lambda p, q: ((p * q).sum(), form((p, q)))), inputs).ok


def test_grads_that_add_up_from_call_to_call_are_named():
    kept = {"p": np.zeros(3)}

    def adding(p):
        kept["p"] += 2 * p
        return (p * p).sum(), kept

    report = check(of_loss(adding), {"p": RANDOM(3)})
    assert "backward adds to a buffer it keeps" in str(report)
    assert "ratio" not in str(report)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda p: 1.0, "`return loss, grads`, and returned a float"),
        (lambda p: (2 * p, (p * p).sum()), r"a loss of one value, and returned an array \(3,\) float64 for it"),
        (lambda p: (1.0, p, p), "must return a pair"),
        (lambda p: None, "returned None"),
    ],
)
def test_a_function_that_returns_something_else_is_told_what_to_write(function, words):
    with pytest.raises(ValueError, match=words):
        check(of_loss(function), {"p": RANDOM(3)})


class Model:
    """A network with its parameters in a dict, whose loss returns the gradients by the same names."""

    def __init__(self, reg=0.1):
        self.params = {"W1": RANDOM((4, 3)), "b1": np.zeros(3)}
        self.reg = reg

    def loss(self, X, y=None):
        W1, b1 = self.params["W1"], self.params["b1"]
        scores = X @ W1 + b1
        if y is None:
            return scores
        p = np.exp(scores - scores.real.max(axis=1, keepdims=True))
        p = p / p.sum(axis=1, keepdims=True)
        data_loss = -np.log(p[np.arange(len(y)), y]).mean()
        d = p.copy()
        d[np.arange(len(y)), y] -= 1
        d /= len(y)
        return data_loss + 0.5 * self.reg * (W1 * W1).sum(), {"W1": X.T @ d + self.dreg(W1), "b1": d.sum(axis=0)}

    def dreg(self, W1):
        return self.reg * W1


class Twice(Model):
    """The half in front of the regularisation is forgotten in the gradient."""

    def dreg(self, W1):
        return 2 * self.reg * W1


def test_a_method_that_returns_loss_and_grads_brings_its_model():
    inputs, wrt = {"X": RANDOM((5, 4)), "y": np.array([0, 1, 2, 0, 1])}, ['params["W1"]', 'params["b1"]']
    report = check(of_loss(Model().loss), inputs, wrt=wrt)
    assert report.ok
    assert names(report) == wrt
    wrong = check(of_loss(Twice().loss), inputs, wrt=wrt)
    assert [argument.status for argument in wrong.arguments] == ["fail", "pass"]
    assert "dX was not found" in str(check(of_loss(Model().loss), inputs))


# ---- a small automatic differentiation: values that know how to pass gradients back ----


class Value:
    def __init__(self, data, parents=(), pass_back=None):
        self.data, self.grad = data, np.zeros_like(data)
        self.parents, self.pass_back = parents, pass_back

    def __matmul__(self, other):
        def pass_back(dy):
            self.grad = self.grad + dy @ other.data.T
            other.grad = other.grad + self.data.T @ dy

        return Value(self.data @ other.data, (self, other), pass_back)

    def tanh(self, slope=1.0):
        y = np.tanh(self.data)

        def pass_back(dy):
            self.grad = self.grad + slope * dy * (1 - y * y)

        return Value(y, (self,), pass_back)

    def backward(self, dy):
        self.grad = self.grad + dy
        if self.pass_back:
            self.pass_back(self.grad)
            for parent in self.parents:
                if parent.pass_back:
                    parent.backward(0.0)


class Perceptron:
    def __init__(self, slope):
        self.first, self.second, self.slope = Value(RANDOM((4, 3))), Value(RANDOM((3, 2))), slope

    def __call__(self, x):
        return (x @ self.first).tanh(self.slope) @ self.second


def forward_of_values(network, x):
    y = network(Value(x))
    return y.data, y


@pytest.mark.parametrize("slope", [1.0, 1.01])
def test_values_that_pass_gradients_back(slope):
    pair = of_object(Perceptron(slope), forward=forward_of_values, backward=lambda network, dy, y: y.backward(dy))
    report = check(pair, X, wrt=["first.data", "second.data"])
    assert [argument.status for argument in report.arguments] == ["pass" if slope == 1 else "fail", "pass"]


# ---- what cannot be checked is said ----


class OfClass:
    W = RANDOM((4, 3))


class OfFloat:
    def __init__(self):
        self.W = 0.7


class OfIntegers:
    def __init__(self):
        self.W = np.arange(12).reshape(4, 3)


class OfLists:
    def __init__(self):
        self.W = RANDOM((4, 3)).tolist()


@pytest.mark.parametrize(
    ("kind", "what"),
    [(OfClass, "an attribute of the class"), (OfFloat, "a float"), (OfIntegers, "an array"), (OfLists, "a list")],
)
def test_a_gradient_of_what_is_no_float_array_is_refused(kind, what):
    class Layer(kind):
        def forward(self, x):
            self.x = x
            return x @ np.asarray(self.W) if np.ndim(self.W) else x * self.W

        def backward(self, dy):
            self.dW = 2 * (self.x.T @ dy if np.ndim(self.W) else np.asarray((self.x * dy).sum()))
            return dy @ np.transpose(self.W) if np.ndim(self.W) else dy * self.W

    with pytest.raises(ValueError, match=f"Layer has a gradient, dW, for W, which is {what}.* and cannot be checked"):
        gradcheck(*of_object(Layer()), X)
    assert gradcheck(*of_object(Layer(), parameters=[]), X).ok


class Private:
    def __init__(self):
        self.__W, self.__dW = RANDOM((4, 3)), np.zeros((4, 3))

    def forward(self, x):
        self.__x = x
        return x @ self.__W

    def backward(self, dy):
        self.__dW += self.factor * self.__x.T @ dy
        return dy @ self.__W.T

    factor = 1


class Slots(Private):
    __slots__ = ("__V", "__dV", "__z")

    def __init__(self):
        super().__init__()
        self.__V, self.__dV = RANDOM(4), np.zeros(4)

    def forward(self, x):
        self.__z = x
        return super().forward(x * self.__V)

    def backward(self, dy):
        dz = super().backward(dy)
        self.__dV += self.factor * (dz * self.__z).sum(axis=0)
        return dz * self.__V


def test_private_names_are_names():
    assert names(check(of_object(Private()), X)) == ["x", "_Private__W"]
    assert sorted(names(check(of_object(Slots()), X))) == ["_Private__W", "_Slots__V", "x"]
    assert check(of_object(Slots()), X).ok
    Slots.factor = 2
    assert not check(of_object(Slots()), X).ok


def test_an_object_that_draws_random_values_is_told_so():
    random = np.random.default_rng(1)

    class Noisy(Linear):
        def forward(self, x):
            return super().forward(x) * random.random()

    assert "forward is not repeatable" in str(check(of_object(Noisy()), X))


def test_a_gradient_within_a_tuple_is_not_that_of_the_input():
    def backward(dy, cache):
        x, w = cache
        return (dy @ w.T,), x.T @ dy

    inputs = {"x": RANDOM((2, 4)), "w": RANDOM((4, 3))}
    report = gradcheck(lambda x, w: (x @ w, (x, w)), backward, inputs, raise_on_fail=False)
    assert "backward returns a tuple (an array (2, 4) float64) where dx" in str(report)
