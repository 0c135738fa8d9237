"""The tools that test a hand-derived layer, ours or yours.

`gradcheck` compares a backward with finite differences (needs SciPy). `properties` holds what every layer should obey, as functions
to call from a test suite, and the strategies that draw inputs for them (needs Hypothesis); all its names can be imported from here.
`bugs` holds known-wrong layers, and `exercises` asks a reader to find what is wrong in each.
"""

import importlib
from typing import Any

from tensorlite.testing.gradcheck import GradcheckError, GradReport, gradcheck

__all__ = ["GradReport", "GradcheckError", "gradcheck"]


def __getattr__(name: str) -> Any:
    """A module of this folder, or a name of `properties`: loaded when first asked for, as `import tensorlite` needs NumPy alone."""
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
    return getattr(importlib.import_module(f"{__name__}.properties"), name)
