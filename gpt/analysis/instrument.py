"""A backend whose ops are observed: to time them (profile.py), or to know which one runs (dry_run.py)."""

import copy
from collections.abc import Callable
from typing import Any

Observer = Callable[[str, tuple, Callable[[], Any]], Any]  # observe(name, arguments, call) makes the call and returns its result
STEP_OPS = ("get_batch", "pack_grads", "clip_grad_norm_", "adamw_")  # the ops of a step outside the model


def instrument(ops: Any, observe: Observer) -> Any:
    """Return a copy of a backend that passes each call of an op through `observe`."""

    def observed(name: str) -> Callable:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            call = getattr(super(cls, self), name)
            return observe(name, (*args, *kwargs.values()), lambda: call(*args, **kwargs))

        return method

    names = [n for n in dir(ops) if n.endswith(("_forward", "_backward")) or n in ("add", *STEP_OPS)]
    cls = type("Instrumented", (type(ops),), {name: observed(name) for name in names})
    instrumented = copy.copy(ops)
    instrumented.__class__ = cls
    return instrumented
