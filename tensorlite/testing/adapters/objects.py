"""Layers that are objects with state, as pairs of functions.

gradcheck(*of_object(Linear(4, 3)), {"x": x})
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.testing.adapters.calls import host
from tensorlite.testing.adapters.gradient_names import find_gradient, what_was_sought
from tensorlite.testing.adapters.object_runs import Run, Runner
from tensorlite.testing.adapters.object_state import float_arrays
from tensorlite.testing.layer import AS_ARRAY, describe
from tensorlite.testing.returned import Absent
from tensorlite.testing.trees import children, flatten, flatten_inputs, is_array, is_float_array, map_arrays, same_bits

Pair = tuple[Callable[..., tuple[Any, Any]], Callable[[Any, Any], Any]]


def of_object(
    layer: Any,
    *,
    forward: str | Callable = "forward",
    backward: str | Callable = "backward",
    parameters: Sequence[str] | None = None,
    gradients: Mapping[str, str] | None = None,
    reset: bool = True,
    seed: int = 0,
) -> Pair:
    """Return forward and backward of a layer that is an object, for gradcheck, with its parameters as further inputs.

    The inputs given to gradcheck are those of the layer's forward. The parameters are added to them: the float arrays in the
    attributes of the object, and of objects in it, for which a gradient is found after backward. They are named as they are
    addressed, `W`, `params["W"]` or `layers[0].W`, and a value given to gradcheck under that name replaces the object's own.
    Gradients are taken from what backward returns and from attributes such as `dW`, `grad_W`, `W_grad`, `grads["W"]` and `W.grad`.

    Each call works on a new copy of the object, in which gradients start from zero, so a layer may add them up from call to call.
    The object itself does not change.

    layer: the object, or a function or class without arguments that returns a new one.
    forward: name of the method, or a function `f(layer, *inputs)` that returns y. If it returns None, y is looked for in attributes
      such as `output`. A pair `(y, cache)` is understood where backward takes `(dy, cache)`.
    backward: name of the method, or a function `f(layer, dy)`, or `f(layer, dy, cache)`. A method without arguments, as of a loss,
      returns the gradient for dy = 1.
    parameters: names of the parameters, if not every array with a gradient is meant.
    gradients: where to find gradients with unusual names, by the name of the input: {"W": "nabla[0]", "x": "error"}. Also for an
      array that several layers share, whose gradient is the sum of theirs.
    reset: False to call backward repeatedly on one object. Then a layer that adds its gradients up is named as such.
    seed: of the values for parameters that are all 0 or all 1, where mistakes would not show.

    Float32 parameters are checked in float64 if the inputs are. Raises ValueError if y depends on an array of the object whose
    gradient is not found, and says how to name it.
    """
    adapter = _Object(Runner(layer, forward, backward), parameters, dict(gradients or {}), reset, seed)
    return adapter, adapter.backward


@dataclass
class _Object:
    """The forward of an object: `self(**inputs)` returns y and the run that computed it."""

    runner: Runner
    chosen: Sequence[str] | None  # names of the parameters, if the caller chose them
    places: dict[str, str]  # where the gradient of an input is, by the input's name
    reset: bool
    seed: int
    parameters: list[str] = field(default_factory=list)
    in_float64: bool = False  # whether float32 arrays of the object are converted

    def __call__(self, **inputs: Any) -> tuple[Any, Run]:
        data = {name: value for name, value in inputs.items() if name not in self.parameters}
        self.in_float64 = _in_float64(inputs)
        run = self.run(data, {name: inputs[name] for name in self.parameters})
        return run.y, run

    def backward(self, dy: Any, run: Run) -> Any:
        """Return the gradients for dy, by the names of the inputs where the object has parameters."""
        if self.reset:
            run = self.run(run.data, run.parameters)
        returned = self.runner.backward(run, dy)
        if not self.parameters and not self.places and returned is not None:
            return returned
        return self.of_data(run, returned) | self.of_parameters(run, returned)

    def run(self, data: dict[str, Any], parameters: dict[str, Array]) -> Run:
        """Call forward of a copy of the object that holds these parameters."""
        from_zero = {place: parameters.get(name) for name, place in self.places.items()} if self.reset else {}
        return self.runner.forward(data, parameters, self.in_float64, from_zero)

    # ---- gradients ----

    def of_data(self, run: Run, returned: Any) -> dict[str, Any]:
        """Return the gradients of the inputs of forward: as returned by name or in order, otherwise from attributes."""
        names = _with_floats(run.data)
        if isinstance(returned, Mapping):
            found = {name: returned[key] for name in names for key in (name, f"d{name}") if key in returned}
        elif len(names) == 1 and children(run.data[names[0]]) is not None:
            found = {names[0]: returned}
        else:
            in_order = returned if isinstance(returned, tuple | list) else (returned,)
            found = {name: g for name, g in zip(names, in_order, strict=False) if g is not None}
        arrays = float_arrays(run.layer)
        for name in names:
            x = run.data[name]
            if name in self.places or (name not in found and is_float_array(x)):
                place = self.places.get(name) or find_gradient(name, x, arrays, is_input=len(names) == 1)
                found[name] = self.at(place, arrays, name, run.layer)
        return found

    def of_parameters(self, run: Run, returned: Any) -> dict[str, Any]:
        """Return the gradients of the parameters, from the places where they were found at first."""
        arrays = float_arrays(run.layer) | _returned_arrays(run, returned)
        return {name: self.at(self.places.get(name), arrays, name, run.layer) for name in self.parameters}

    def at(self, place: str | None, arrays: Mapping[str, Array], name: str, layer: Any) -> Any:
        """Return the gradient at a place, or what says that it is not there."""
        if place is not None and place in arrays:
            return arrays[place]
        where = f"at {place}" if place else f"under names such as {what_was_sought(name)}"
        return Absent(f"backward did not return it, and {type(layer).__name__} has none {where}")

    # ---- parameters ----

    def with_parameters(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of forward and, behind them, the parameters of the object."""
        layer = self.runner.new()
        held = float_arrays(layer)
        for name in self.chosen or ():
            if name not in held:
                way_out = f". {AS_ARRAY}" if isinstance(getattr(layer, name, None), float) else ""
                raise ValueError(f"{type(layer).__name__} has no float array {name!r}. It has {list(held)}{way_out}")
        given = self.given_parameters(inputs, held, layer)
        data = {name: value for name, value in inputs.items() if name not in given}
        self.in_float64 = _in_float64(data)
        self.parameters = self.find_parameters(held, data)
        random = np.random.default_rng(self.seed)
        own = {name: _moved(self.converted(held[name]), random) for name in self.parameters}
        return data | own | {name: inputs[name] for name in given if name in own}

    def given_parameters(self, inputs: Mapping[str, Any], held: Mapping[str, Array], layer: Any) -> list[str]:
        """Return the names of the inputs that are parameters of the object, for which the caller has other values."""
        method = self.runner.forward_method(layer)
        given = [name for name in inputs if name in held and not method.takes(name)]
        while given and len(inputs) - len(given) < method.required:  # from earlier calls the object holds an input by that name
            given.pop(0)
        return given

    def find_parameters(self, held: dict[str, Array], data: dict[str, Any]) -> list[str]:
        """Return the names of the arrays of the object that are parameters, and remember where their gradients are.

        A parameter has a gradient, and forward does not replace it. An array without gradient on which y depends is an error.
        """
        run = self.run(data, {})
        returned = self.runner.backward(run, _random_dy(run.y, self.seed))
        arrays, extra = float_arrays(run.layer), _returned_arrays(run, returned)
        if not held:
            self.refuse_late_parameters(run.layer, arrays)
        if self.chosen is None:
            refuse_other_numbers(self.runner.new(), held, arrays, data)
        again = zip(flatten(run.y).values(), flatten(self.run(data, {}).y).values(), strict=False)
        is_repeatable = all(same_bits(host(y), host(z)) for y, z in again)  # if not, gradcheck says so

        found: list[str] = []
        without_gradient: list[str] = []
        for name, aliases in self.named_arrays(held, data).items():
            places = [self.places.get(alias) for alias in aliases]
            places += [find_gradient(alias, held[name], arrays | extra) for alias in aliases]
            place = next((place for place in places if place), None)
            is_used, is_replaced = self.use_of(name, held[name], run) if is_repeatable else (False, False)
            if place and (is_used or not is_replaced):
                self.places[name] = place
                found.append(name)
            elif is_used or self.chosen is not None:
                without_gradient.append(name)
        if [held[name].shape for name in without_gradient] == [g.shape for g in extra.values()]:  # (dx, dW, db), without names
            self.places |= dict(zip(without_gradient, extra, strict=True))
        elif without_gradient and self.chosen is None:
            self.refuse_unknown_gradient(run.layer, without_gradient[0], found)
        return [name for name in held if name in found or name in without_gradient]

    def named_arrays(self, held: Mapping[str, Array], data: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return all names of each array that may be a parameter, under the one that the caller chose or the first one."""
        by_identity: dict[int, list[str]] = {}
        for name, a in held.items():
            if name not in data:
                by_identity.setdefault(id(a), []).append(name)
        if self.chosen is None:
            return {names[0]: names for names in by_identity.values()}
        return {name: by_identity[id(held[name])] for name in self.chosen}

    def use_of(self, name: str, a: Array, run: Run) -> tuple[bool, bool]:
        """Return whether another value of an array of the object gives another y, and whether forward replaces the array."""
        value = self.converted(a) * 1.25 + 0.25
        moved = self.run(run.data, {name: value})
        outputs = zip(flatten(run.y).values(), flatten(moved.y).values(), strict=False)
        is_used = any(bool((host(y) != host(z)).any()) for y, z in outputs)
        return is_used, float_arrays(moved.layer).get(name) is not value

    def converted(self, a: Array) -> Array:
        """Return the array in the precision of the check."""
        return a.astype(np.float64) if self.in_float64 else a

    def refuse_late_parameters(self, layer: Any, arrays: dict[str, Array]) -> None:
        late = [name for name, a in arrays.items() if find_gradient(name, a, arrays)]
        if late:
            text = f"{type(layer).__name__} creates {late} in its first forward. Give of_object a layer that has them already"
            raise ValueError(f"{text} and is otherwise as new")

    def refuse_unknown_gradient(self, layer: Any, name: str, found: list[str]) -> None:
        text = f"y depends on {name} of {type(layer).__name__}, and no gradient of it was found after backward under names such as "
        text += f"{what_was_sought(name)}. Say where it is, of_object(..., gradients={{{name!r}: ...}}), or name the parameters "
        raise ValueError(f"{text}without it, of_object(..., parameters={found})")


def refuse_other_numbers(layer: Any, held: Mapping[str, Array], arrays: Mapping[str, Array], data: Mapping[str, Any]) -> None:
    """Raise ValueError for an attribute that has a gradient and is no float array of the object, so it could not be checked."""
    of_classes = {name: a for kind in reversed(type(layer).__mro__) for name, a in vars(kind).items()}
    for name, a in (of_classes | getattr(layer, "__dict__", {})).items():
        if name in held or name in data or not isinstance(a, float | list | np.ndarray):
            continue
        try:
            numbers = np.asarray(a)
        except ValueError:  # a list of arrays of several shapes
            continue
        if numbers.dtype.kind in "if" and (place := find_gradient(name, numbers, dict(arrays))):
            what = "an attribute of the class" if is_float_array(a) else describe(a)
            text = f"{type(layer).__name__} has a gradient, {place}, for {name}, which is {what} and cannot be checked: make it a "
            raise ValueError(f"{text}float array of the object, np.asarray(..., float), or choose of_object(..., parameters=[...])")


def _in_float64(inputs: Mapping[str, Any]) -> bool:
    """Whether the object shall compute in float64: a float array among the inputs is of it, or there is none."""
    floats = [leaf for leaf in flatten_inputs(inputs).values() if is_float_array(leaf)]
    return not floats or any(leaf.dtype == np.float64 for leaf in floats)


def _with_floats(data: Mapping[str, Any]) -> list[str]:
    """Return the names of the inputs that are float arrays or contain one."""
    return [name for name, tree in data.items() if any(map(is_float_array, flatten(tree).values()))]


def _returned_arrays(run: Run, returned: Any) -> dict[str, Array]:
    """Return the arrays that backward returned, but for those of the inputs of forward, as if the object had kept them."""
    if isinstance(returned, Mapping):
        return {path: g for path, g in flatten(returned, "grads").items() if is_float_array(g)}
    if not isinstance(returned, tuple | list):
        return {}
    surplus = flatten(list(returned[len(_with_floats(run.data)) :]))
    return {f"returned[{i}]": g for i, g in enumerate(surplus.values()) if is_float_array(g)}


def _random_dy(y: Any, seed: int) -> Any:
    random = np.random.default_rng(seed)
    return map_arrays(lambda a: array_namespace(a).asarray(random.standard_normal(a.shape)) if is_array(a) else 1.0, y)


def _moved(a: Array, random: np.random.Generator) -> Array:
    """Return the array, or values around it if all are 0 or all are 1."""
    if a.size and (bool((a == 0).all()) or bool((a == 1).all())):
        return a + array_namespace(a).asarray(random.uniform(-0.5, 0.5, a.shape).astype(a.dtype))
    return a
