"""A PyTorch function or module as a (forward, backward) pair over NumPy arrays.

gradcheck(*from_torch(MyFunction), {"x": x, "w": w})
gradcheck(*from_torch(module), {"x": x})
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite.testing.adapters.by_name import call_with, parameter_names, positional_names, takes_more
from tensorlite.testing.layer import describe
from tensorlite.testing.trees import as_tuple, flatten, is_float_array, map_arrays

INSTALL = "from_torch needs PyTorch: pip install torch"
BFLOAT16 = "bfloat16"  # NumPy knows it from ml_dtypes alone, so its bits travel as int16


@dataclass
class Graph:
    """One call of the function: what backward needs."""

    inputs: dict[str, Any]  # as NumPy arrays and options
    tensors: dict[str, Any]  # the same as tensors, the leaves of the graph
    outputs: list[Any]  # the float outputs
    returned_dtypes: dict[str, str]  # of the gradients of a Function, before autograd casts them; a backward call fills it


def from_torch(function: Any, *, device: str = "cpu") -> tuple[Callable[..., tuple[Any, Graph]], Callable[[Any, Graph], tuple]]:
    """Return (forward, backward) over NumPy arrays for a function that PyTorch differentiates.

    function: a `torch.autograd.Function` (the class or its `.apply`), an `nn.Module`, or any callable on tensors.
    device: where the tensors live, such as "cuda"; the arrays stay NumPy arrays.

    forward(**inputs) passes the inputs by name where the function has parameters of these names, otherwise in their order. Arrays
      become tensors of their dtype, also within dicts, lists and tuples, and everything else is passed on as it is. Inputs named as
      a parameter of the module replace it. All trainable parameters must be given; gradcheck adds those that are missing, with the
      values of `parameters_of(module)`.
      Returns y, which is an array or a tuple of the float outputs, and the graph of this call as the cache.
    backward(dy, cache) returns one gradient per input that holds a float array. As in PyTorch, no gradient (None) counts as zero,
      and one that is larger than its input along broadcast axes is summed over them. It may be called repeatedly. If the backward
      of a Function returns another dtype than its input has, so does this one: autograd would hide it by a cast.

    Raises ImportError without PyTorch; ValueError when the function writes into its inputs, a saved tensor or dy, when a float
      output has no gradient, or when a tensor that requires grad is not among the inputs.
    """
    try:
        import torch
    except ImportError as missing:
        raise ImportError(INSTALL) from missing

    function_class = _function_class(function, torch)
    module = function if isinstance(function, torch.nn.Module) else None

    def forward(**inputs: Any) -> tuple[Any, Graph]:
        returned_dtypes: dict[str, str] = {}
        with torch.inference_mode(False), torch.enable_grad(), _errors_in_words():  # whatever the caller has switched off
            tensors = {name: map_arrays(lambda a: _leaf(a, device, torch), value) for name, value in inputs.items()}
            if module is not None:
                outputs = _call_module(module, tensors, torch)
            elif function_class is not None:
                order = _call_order(function_class, list(tensors), torch)
                watched = _watch(function_class, order, returned_dtypes)
                outputs = watched.apply(*(tensors[name] for name in order))
            else:
                outputs = call_with(function, tensors)
        for name in inputs:
            _require_unchanged(name, inputs[name], tensors[name])
        float_outputs = [y for y in _leaves(outputs) if isinstance(y, torch.Tensor) and _is_float(y)]
        if not float_outputs:
            raise ValueError(f"the function returned {describe(outputs)}: there is no float tensor in it to differentiate")
        for i, y in enumerate(float_outputs):
            if not y.requires_grad:
                raise ValueError(
                    f"output {i} of the function does not require grad: detach(), no_grad() or a conversion cut it off, or no "
                    "input is a float array. If it is meant to have no gradient, leave it out: lambda *inputs: f(*inputs)[0]"
                )
        arrays = [_to_array(y) for y in float_outputs]
        alone = isinstance(outputs, torch.Tensor) and len(arrays) == 1
        return arrays[0] if alone else tuple(arrays), Graph(inputs, tensors, float_outputs, returned_dtypes)

    def backward(dy: Any, cache: Graph) -> tuple:
        differentiable = [leaf for leaf in _leaves(cache.tensors) if _requires_grad(leaf)]
        _require_known_leaves(cache.outputs, differentiable)  # here, because forward is called for every difference
        dys = [_to_tensor(dyi, device, torch).to(y.dtype) for dyi, y in zip(as_tuple(dy), cache.outputs, strict=True)]
        cache.returned_dtypes.clear()
        before = [_to_array(dyi) for dyi in dys]
        with _errors_in_words():
            found = torch.autograd.grad(cache.outputs, differentiable, dys, retain_graph=True, allow_unused=True)
        if any(_to_array(dyi).tobytes() != a.tobytes() for dyi, a in zip(dys, before, strict=True)):
            raise ValueError("backward writes into dy, which is not its own; compute a new tensor instead")
        arrays = [np.zeros_like(_to_array(x)) if g is None else _to_array(g) for x, g in zip(differentiable, found, strict=True)]
        remaining = iter(arrays)
        gradients = []
        for name, value in cache.tensors.items():
            gradient = map_arrays(lambda leaf: next(remaining) if _requires_grad(leaf) else None, value)
            if name in cache.returned_dtypes:
                gradient = gradient.astype(_dtype(cache.returned_dtypes[name]), copy=False)
            if any(map(_requires_grad, _leaves(value))):
                gradients.append(gradient)
        return tuple(gradients)

    def with_parameters(inputs: Mapping[str, Any]) -> dict[str, Any]:
        dtype = next((leaf.dtype for leaf in _leaves(dict(inputs)) if is_float_array(leaf)), np.float64)
        return dict(inputs) | {name: p for name, p in parameters_of(function, dtype).items() if name not in inputs}

    if module is not None:
        forward.with_parameters = with_parameters  # type: ignore[attr-defined]  # gradcheck asks for it
    return forward, backward


def parameters_of(module: Any, dtype: Any = np.float64, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the trainable parameters of an `nn.Module` by name, as arrays to check it at.

    A parameter whose entries are all equal, such as a fresh gain or bias, gets random values instead: 0 and 1 hide mistakes.
    """
    random = np.random.default_rng(seed)
    found = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            a = _to_array(parameter)
            constant = a.size > 0 and bool((a == a.flat[0]).all())
            found[name] = (random.uniform(0.5, 2.0, a.shape) if constant else a).astype(dtype)
    return found


# ---- calls ----


def _function_class(function: Any, torch: Any) -> Any:
    """Return the `torch.autograd.Function` that `function` is, or whose `apply` it is, or None."""
    owner = getattr(function, "__self__", None) if getattr(function, "__name__", "") == "apply" else function
    return owner if isinstance(owner, type) and issubclass(owner, torch.autograd.Function) else None


def _watch(function_class: Any, names: list[str], returned_dtypes: dict[str, str]) -> Any:
    """Return a subclass whose backward also notes the dtypes of the gradients, by name of the input."""

    def backward(ctx: Any, *dys: Any) -> Any:
        gradients = function_class.backward(ctx, *dys)
        for name, g in zip(names, as_tuple(gradients), strict=False):
            if hasattr(g, "dtype"):
                returned_dtypes[name] = str(g.dtype).removeprefix("torch.")
        return gradients

    return type(function_class.__name__, (function_class,), {"backward": staticmethod(backward)})


def _call_order(function_class: Any, names: list[str], torch: Any) -> list[str]:
    """Return the names of the inputs in the order of the Function's parameters if they are their names, otherwise as they are."""
    parameters = positional_names(function_class.forward)
    if function_class.setup_context is torch.autograd.Function.setup_context:
        parameters = parameters[1:]  # without ctx
    if not set(names) <= set(parameters):
        return names
    order = parameters[: len(names)]
    if set(order) != set(names):
        left_out = [name for name in parameters if name not in names]
        raise ValueError(f"apply takes its arguments by position, so {left_out} must be among the inputs too")
    return order


def _call_module(module: Any, inputs: dict[str, Any], torch: Any) -> Any:
    """Call the module with the inputs that name a parameter in the places of its own."""
    trainable = [name for name, p in module.named_parameters() if p.requires_grad]
    missing = [name for name in trainable if name not in inputs]
    if missing:
        raise ValueError(
            f"the module's parameters {missing} are not among the inputs, so their gradients would go unchecked: "
            "add **parameters_of(module) to the inputs"
        )
    known = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    taken = parameter_names(module.forward)
    both = [name for name in trainable if name in taken]
    if both:
        raise ValueError(
            f"{both} are parameters of the module and arguments of its forward; check a module that renames the arguments"
        )
    replaced = {name: value for name, value in inputs.items() if name in known and name not in taken}
    rest = {name: value for name, value in inputs.items() if name not in replaced}
    unknown = [name for name in rest if name not in taken]
    if taken and len(rest) > len(taken) and not takes_more(module.forward):
        raise ValueError(f"{unknown} are neither parameters of the module, {sorted(known)}, nor arguments of its forward, {taken}")
    like = next((leaf for leaf in _leaves(inputs) if _requires_grad(leaf)), None)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:  # frozen ones, in the dtype of the others
        if name not in replaced and like is not None:
            kept = tensor.detach().clone()
            replaced[name] = kept.to(like.device, like.dtype) if kept.dtype.is_floating_point else kept.to(like.device)

    def run(*args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(module, replaced, args, kwargs)

    return call_with(run, rest, signature_of=module.forward)


# ---- errors ----


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """Say what torch's messages about tensors written in place mean here."""
    try:
        yield
    except RuntimeError as error:
        if "a leaf Variable that requires grad" in str(error) and "in-place" in str(error):
            text = (
                "the function writes into one of its inputs in place; check a function, or a module, that calls it with x.clone()"
            )
            raise ValueError(f"{text} ({error})") from error
        if "modified by an inplace operation" in str(error):
            text = "a tensor that backward needs was written in place after it had been saved; compute a new tensor instead"
            raise ValueError(f"{text} ({error})") from error
        raise


def _require_known_leaves(outputs: list[Any], inputs: list[Any]) -> None:
    """Raise ValueError if the outputs depend on a tensor that requires grad and is no input, so that nobody would check it."""
    known, seen = {id(leaf) for leaf in inputs}, set()
    nodes = [y.grad_fn for y in outputs]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad" and id(node.variable) not in known:
            text = (
                f"the outputs depend on a tensor {tuple(node.variable.shape)} that requires grad and is not among the inputs, so "
            )
            raise ValueError(f"{text}nobody would check its gradient: give from_torch the nn.Module, or a module that calls it")
        nodes += [next_node for next_node, _ in node.next_functions]


def _require_unchanged(name: str, value: Any, tensors: Any) -> None:
    """Raise ValueError if the function has changed this input."""
    for array, tensor in zip(_leaves(value), _leaves(tensors), strict=True):
        if isinstance(array, np.ndarray) and _to_array(tensor).tobytes() != array.tobytes():
            raise ValueError(
                f"the function writes into its input {name!r}; check a function, or a module, that calls it with {name}.clone()"
            )


# ---- arrays and tensors ----


def _to_tensor(a: Any, device: str, torch: Any) -> Any:
    """Return a copy as a tensor."""
    if a.dtype.name == BFLOAT16:
        return torch.tensor(np.array(a).view(np.int16), device=device).view(torch.bfloat16)
    return torch.tensor(np.array(a), device=device)


def _to_array(tensor: Any) -> np.ndarray:
    """Return the tensor's values as an array of its own."""
    tensor = tensor.detach().cpu()
    if tensor.is_sparse:  # the gradient of an embedding may be
        tensor = tensor.to_dense()
    if str(tensor.dtype) == "torch.bfloat16":
        import torch

        return tensor.contiguous().view(torch.int16).numpy().copy().view(_dtype(BFLOAT16))
    return tensor.resolve_conj().resolve_neg().numpy().copy()


def _dtype(name: str) -> np.dtype:
    if name != BFLOAT16:
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def _leaf(value: Any, device: str, torch: Any) -> Any:
    """Return an array as a leaf of a graph, and everything else as it is."""
    if not isinstance(value, np.ndarray | np.generic):
        return value
    tensor = _to_tensor(value, device, torch)
    return tensor.requires_grad_(_is_float(tensor))


def _is_float(tensor: Any) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _requires_grad(leaf: Any) -> bool:
    return getattr(leaf, "requires_grad", False)


def _leaves(tree: Any) -> list[Any]:
    return list(flatten(tree).values())
