"""Where layers that are objects leave the gradient of a parameter: the names people give it."""

import re
from typing import Any

from tensorlite.testing.trees import is_float_array

SHORT = {"weight": "w", "weights": "w", "kernel": "w", "bias": "b", "biases": "b"}
FORMS = ("d{}", "grad{}", "{}grad", "grads{}", "{}grads", "gradient{}", "{}gradient", "dld{}", "dloss{}", "delta{}", "nabla{}")
FOLDERS = ("grads", "grad", "gradients", "gradient", "dparams", "gradparams", "paramgrads", "paramsgrad")  # dicts and lists
OF_THE_INPUT = ("dinputs", "dinput", "gradinput", "gradinputs", "inputgrad", "gradin", "dx", "din", "dprev", "daprev")
VALUES = ("data", "value", "val", "values", "_data")  # `W.data` beside `W.grad`


def find_gradient(path: str, x: Any, arrays: dict[str, Any], is_input: bool = False) -> str | None:
    """Return the path of the array, among `arrays`, that is the gradient of x by its name and shape; None if there is none.

    path: of the parameter in its object, or the name of an input of forward.
    """
    fitting = [p for p, a in arrays.items() if is_float_array(a) and a.shape == x.shape and a is not x]
    owner, name = _split(path)
    wanted = _wanted(name, is_input)
    for candidate in sorted(fitting, key=lambda p: name not in p):  # the same spelling, w or W, comes first
        if _plain(candidate.removeprefix(owner)) in wanted and candidate.startswith(owner):
            return candidate
    return None


def what_was_sought(path: str) -> str:
    """Return examples of the names under which a gradient is looked for."""
    owner, name = _split(path)
    return ", ".join(f"{owner}{text}" for text in (f"d{name}", f"grad_{name}", f"{name}_grad", f'grads["{name}"]'))


def _split(path: str) -> tuple[str, str]:
    """Return the owner of a parameter, with the dot behind it, and the parameter's own name: `fc[0].params["W"]` is `fc[0].`, `W`.

    The value of a parameter object, `fc.W.data`, has the name of that object, and so has `params["W"]` in a dict.
    """
    parts = re.findall(r"[^.\[\]]+|\[[^\]]*\]", path)
    tail = parts[-1]
    if tail in VALUES and len(parts) > 1:
        parts.pop()
    name = parts.pop()
    if name.startswith("[") and parts and _plain(parts[-1]) in ("params", "parameters", "weights", "param", "values", "variables"):
        parts.pop()
    owner = "".join(part if part.startswith("[") else f".{part}" for part in parts).removeprefix(".")
    return (f"{owner}." if owner else ""), name.strip("[]\"'")


def _wanted(name: str, is_input: bool) -> set[str]:
    """Return the plain spellings of the gradient's place below the owner of the parameter `name`."""
    names = {_plain(name), SHORT.get(_plain(name), _plain(name))}
    wanted = {form.format(n) for form in FORMS for n in names}
    wanted |= {folder + inner for folder in FOLDERS for n in names for inner in (n, f"d{n}", f"grad{n}")}
    wanted |= {f"{n}{grad}" for n in names for grad in ("grad", "gradient", "g")}
    return wanted | set(OF_THE_INPUT) if is_input else wanted


def _plain(text: str) -> str:
    """Return the letters and digits of a path in lower case: `self.grads["W"]` and `self.grads_w` are spelled alike."""
    return re.sub(r"[^0-9a-z]", "", text.lower())
