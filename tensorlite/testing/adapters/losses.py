"""Functions that return a loss together with its gradients, as pairs of functions.

gradcheck(*of_loss(loss_and_grads), {"params": params, "x": x, "target": target}, wrt=["params"])
"""

import inspect
from collections.abc import Callable
from typing import Any

from tensorlite.testing.adapters.calls import Method, call_forward, scaled
from tensorlite.testing.adapters.object_state import float_arrays
from tensorlite.testing.adapters.objects import Pair, of_object
from tensorlite.testing.layer import describe
from tensorlite.testing.trees import is_float_array


def of_loss(loss_and_grads: Callable[..., tuple[Any, Any]]) -> Pair:
    """Return forward and backward of a function that returns a loss together with its gradients, for gradcheck.

    loss_and_grads: `f(**inputs) -> (loss, grads)`, where the loss is one value. The gradients are in the order of the inputs, or a
      dict or tree like the inputs or like the parameters among them. Inputs without a gradient, such as data and targets, are left
      out of gradcheck's wrt. A method of a model, `model.loss`, has the model's parameters as further inputs, as in `of_object`.

    Raises ValueError, which says what to write, if the function returns anything else.
    """
    if inspect.ismethod(loss_and_grads) and float_arrays(loss_and_grads.__self__):
        name = loss_and_grads.__name__

        def method(model: Any, **data: Any) -> tuple[Any, Any]:
            return _loss_and_grads(call_forward(Method(model, name, "forward"), data))

        def scale(_model: Any, dloss: Any, grads: Any) -> Any:
            return scaled(grads, dloss)

        return of_object(loss_and_grads.__self__, forward=method, backward=scale)

    def forward(**inputs: Any) -> tuple[Any, Any]:
        loss, _ = _loss_and_grads(loss_and_grads(**inputs))
        return loss, inputs

    def backward(dloss: Any, inputs: dict[str, Any]) -> Any:
        _, grads = _loss_and_grads(loss_and_grads(**inputs))  # called again, so that gradients that add up are noticed
        return scaled(grads, dloss)

    return forward, backward


def _loss_and_grads(returned: Any) -> tuple[Any, Any]:
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise ValueError(f"the function must return a pair, `return loss, grads`, and returned {describe(returned)}")
    loss, grads = returned
    if not isinstance(loss, float) and not (is_float_array(loss) and loss.size == 1):
        raise ValueError(f"the function must `return loss, grads` with a loss of one value, and returned {describe(loss)} for it")
    return loss, grads
