"""Where layers that are objects leave the gradient of a parameter: the names people give it."""

import re
from typing import Any

SHORT = {"weight": "w", "weights": "w", "kernel": "w", "bias": "b", "biases": "b"}
FORMS = ("d{}", "grad{}", "{}grad", "grads{}", "{}grads", "gradient{}", "{}gradient", "dld{}", "dloss{}", "delta{}", "nabla{}")
FOLDERS = ("grads", "grad", "gradients", "gradient", "dparams", "gradparams", "paramgrads", "paramsgrad")  # dicts and lists
OF_THE_INPUT = ("dinputs", "dinput", "gradinput", "gradinputs", "inputgrad", "gradin", "dx", "din", "dprev", "daprev")
VALUES = ("data", "value", "val", "values")  # `W.data` beside `W.grad`


def find_gradient(path: str, x: Any, arrays: dict[str, Any], is_input: bool = False) -> str | None:
    """Return the path of the array, among `arrays`, that is the gradient of x by its name and shape; None if there is none.

    path: of the parameter in its object, or the name of an input of forward.
    """
    owner, names = _owner_and_names(path)
    wanted = _wanted(names) | set(OF_THE_INPUT if is_input else ())
    fitting = [p for p, a in arrays.items() if a.shape == x.shape and p != path and p.startswith(owner)]
    fitting = [p for p in fitting if _plain(p.removeprefix(owner)) in wanted]
    return min(fitting, key=lambda p: names[0] not in p, default=None)  # the same spelling, w or W, comes first


def what_was_sought(path: str) -> str:
    """Return examples of the names under which a gradient is looked for."""
    owner, (name, *_) = _owner_and_names(path)
    return ", ".join(f"{owner}{text}" for text in (f"d{name}", f"grad_{name}", f"{name}_grad", f'grads["{name}"]'))


def _owner_and_names(path: str) -> tuple[str, list[str]]:
    """Return the owner of a parameter, with the dot behind it, and names of the parameter.

    `fc.W` is W of `fc.`, and so is the value of a parameter object, `fc.W.data`. `fc.params["W"]` is W, or paramsW, of `fc.`.
    """
    parts = re.findall(r"[^.\[\]]+|\[[^\]]*\]", path)
    if parts[-1] in VALUES and len(parts) > 1:
        parts.pop()
    last = parts.pop()
    names = [_public(last).strip("[]\"'")]
    if last.startswith("[") and parts:
        names.append(parts.pop() + names[0])
    owner = "".join(part if part.startswith("[") else f".{part}" for part in parts).removeprefix(".")
    return (f"{owner}." if owner else ""), names


def _wanted(names: list[str]) -> set[str]:
    """Return the plain spellings of the gradient's place below the owner of a parameter."""
    plain = {_plain(name) for name in names}
    plain |= {SHORT[name] for name in plain if name in SHORT}
    in_folders = {folder + prefix + name for folder in FOLDERS for prefix in ("", "d", "grad") for name in plain}
    return in_folders | {form.format(name) for form in FORMS for name in plain}


def _plain(text: str) -> str:
    """Return the letters and digits of a path in lower case: `self.grads["W"]` and `self.grads_w` are spelled alike."""
    return re.sub(r"[^0-9a-z]", "", _public(text).lower())


def _public(text: str) -> str:
    """Return a path without the class that Python puts before private names: `self.__W` of a class C is `_C__W`."""
    return re.sub(r"\b_\w+?__(?=\w)", "", text)
