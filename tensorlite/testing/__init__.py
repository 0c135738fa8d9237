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
    """A name of `properties`, which is loaded when first asked for: `import tensorlite` needs NumPy alone."""
    if name.startswith("_"):
        raise AttributeError(name)
    return getattr(importlib.import_module("tensorlite.testing.properties"), name)
