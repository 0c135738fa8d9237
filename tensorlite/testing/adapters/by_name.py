"""How from_torch and from_jax hand inputs, which have names, to functions that may only know an order."""

import inspect
from collections.abc import Callable
from typing import Any


def positional_names(function: Callable) -> list[str]:
    """Return the names of the parameters that may be given by position; none for a function without a signature."""
    return _names(function, {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD})


def parameter_names(function: Callable) -> list[str]:
    """Return the names of all parameters, without *args and **kwargs."""
    return [*positional_names(function), *_names(function, {inspect.Parameter.KEYWORD_ONLY})]


def takes_more(function: Callable) -> bool:
    """Whether the function takes *args or **kwargs."""
    return bool(_names(function, {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}))


def call_with(function: Callable, inputs: dict[str, Any], signature_of: Callable | None = None) -> Any:
    """Call the function with its inputs by name where all names are its parameters, otherwise by position in their own order.

    Some functions do not take keywords, so the inputs are put into the order of the parameters wherever these are its first ones.

    signature_of: the function whose parameters count, if not this one's.
    """
    described = signature_of or function
    order = positional_names(described)[: len(inputs)]
    if set(order) == set(inputs):
        return function(*(inputs[name] for name in order))
    keywords = _names(described, {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY})
    any_keyword = _names(described, {inspect.Parameter.VAR_KEYWORD}) and not _names(described, {inspect.Parameter.VAR_POSITIONAL})
    if set(inputs) <= set(keywords) or (any_keyword and set(keywords) <= set(inputs)):
        return function(**inputs)
    return function(*inputs.values())


def _names(function: Callable, kinds: set) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions in C have none
        return []
    return [parameter.name for parameter in parameters if parameter.kind in kinds]
