"""The tools that test a hand-derived layer, ours or yours.

`gradcheck` compares a backward with finite differences (needs SciPy). `of_object`, `of_loss`, `from_torch` and `from_jax` make
layers of other styles ready for it. `check_layer` draws inputs from a specification of their shapes and checks every property of a
layer; `drawn_inputs` is its Hypothesis strategy. `properties` has the single checks and strategies (needs Hypothesis), and its
names can be imported from here as well. `bugs` is a collection of known-wrong layers. `exercises` asks the reader to find the
mistake in each, or to write a backward.
"""

import importlib
from typing import Any

from tensorlite.testing.gradcheck import GradcheckError, GradReport, gradcheck

__all__ = ["GradReport", "GradcheckError", "gradcheck"]

LAZY = {  # names by their modules, which are loaded on first use, because `import tensorlite` needs NumPy alone
    "of_object": "adapters.objects",
    "of_loss": "adapters.losses",
    "from_torch": "adapters.from_torch",
    "parameters_of": "adapters.from_torch",
    "from_jax": "adapters.from_jax",
    "check_layer": "property_tests",
    "CheckLayerError": "property_tests",
    "LayerReport": "property_tests",
    "drawn_inputs": "shapes",
}


def __getattr__(name: str) -> Any:
    """Load a name of `LAZY`, a module of this folder, or a name of `properties`, on first use."""
    if name.startswith("_"):
        raise AttributeError(name)
    if name in LAZY:
        return getattr(importlib.import_module(f"{__name__}.{LAZY[name]}"), name)
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
    return getattr(importlib.import_module(f"{__name__}.properties"), name)
