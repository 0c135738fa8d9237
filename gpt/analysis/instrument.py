"""A backend whose op calls pass through an observer, which times or names them."""

import copy
from collections.abc import Callable
from typing import Any

from tensorlite import Ops

Observer = Callable[[str, tuple, Callable[[], Any]], Any]  # observe(name, arguments, call) makes the call and returns its result
STEP_OPS = ("get_batch", "pack_grads", "clip_grad_norm_", "adamw_")  # the ops of a step outside the model


def instrument(ops: Ops, observe: Observer) -> Ops:
    """Return a copy of a backend that passes every op call through `observe`."""

    def observed(name: str) -> Callable:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            call = getattr(super(cls, self), name)
            return observe(name, (*args, *kwargs.values()), lambda: call(*args, **kwargs))

        return method

    model_ops = [name for name in dir(ops) if name.endswith(("_forward", "_backward"))]
    methods = {name: observed(name) for name in (*model_ops, "add", *STEP_OPS)}
    cls = type("Instrumented", (type(ops),), methods)
    instrumented = copy.copy(ops)
    instrumented.__class__ = cls
    return instrumented
