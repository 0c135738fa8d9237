"""Names for a factor: the lengths of axes, their roots, n - 1 for n, and what the options give."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite.testing.hints.case import named

MOST_MEANINGS = 3  # a sentence names at most this many things that a length could be
MOST_FACTORS = 2  # and at most this many ways to write the factor
NO_LENGTH = "key|seed|rng"  # options whose value is no length
COARSE = 1e-5  # a ratio that is known less precisely fits a name by accident

Lengths = dict[int, list[str]]  # what a length could be, such as 3: ["the length of axis 0 of x", "n_head"]


@dataclass(frozen=True)
class Factor:
    """A factor that has a name."""

    value: float
    text: str  # such as sqrt(3)
    meaning: str  # such as "3 is the length of axis 1 of x"
    divides: bool = False  # whether the factor is 1 over the value and the text

    @property
    def ratio(self) -> float:
        """The value of the gradient divided by the truth."""
        return 1 / self.value if self.divides else self.value

    @property
    def phrase(self) -> str:
        """What the gradient is."""
        return f"the truth divided by {self.text}" if self.divides else f"{self.text} times the truth"


def name_factor(
    ratio: float, precision: float, inputs: Mapping[str, Any], y: Sequence[np.ndarray] = (), dy: Sequence[np.ndarray] = ()
) -> str:
    """Say what this ratio of a wrong gradient to the true one could be; empty if it has no name.

    ratio: a negative one has the wrong sign, too.
    precision: how exactly the ratio is known, relatively.
    inputs, y, dy: what forward got and returned, and the gradients of y.
    """
    if precision > COARSE:
        return ""
    fitting = [f for f in factors(inputs, y, dy) if abs(abs(ratio) - f.ratio) <= precision * f.ratio]
    if not fitting:
        return ""
    sign = "minus " if ratio < 0 else ""
    meanings = [fitting[0].meaning, *(f"{sign}{f.phrase}; {f.meaning}" for f in fitting[1:MOST_FACTORS])]
    return f"{sign}{fitting[0].phrase}; {', or '.join(meanings)}"


def factors(inputs: Mapping[str, Any], y: Sequence[np.ndarray], dy: Sequence[np.ndarray]) -> Iterator[Factor]:
    """Yield every factor with a name, the likelier ones first."""
    single, several = lengths(inputs, y)
    for n, meaning in meanings(single, several):
        yield Factor(n, str(n), f"{meaning} (a sum where a mean belongs?)")
        yield Factor(n, str(n), f"{meaning} (a mean where a sum belongs?)", divides=True)
    yield from of_options(inputs)
    for n, meaning in meanings(single):
        for divides in (False, True):
            yield Factor(math.sqrt(n), f"sqrt({n})", meaning, divides)
    for n, meaning in meanings(single, several):
        if n > 2:
            yield Factor(n / (n - 1), f"{n}/{n - 1}", f"{meaning} (n - 1 for n?)")
            yield Factor((n - 1) / n, f"{n - 1}/{n}", f"{meaning} (n for n - 1?)")
    if len(dy) == 1 and dy[0].size == 1 and dy[0].item():
        for divides, question in ((True, "is it left out?"), (False, "is it applied twice?")):
            yield Factor(abs(float(dy[0].item())), "dy", f"dy is the gradient of the loss ({question})", divides)
    for n in sorted({2, 3, 4} - set(single) - set(several)):
        for divides in (False, True):
            yield Factor(n, str(n), f"no axis has the length {n}", divides)
    for n, n_meaning in meanings(single):
        for m, m_meaning in meanings(single):
            if math.gcd(n, m) not in (n, m):
                yield Factor(n / m, f"{n}/{m}", f"{n_meaning}, {m_meaning}")


def of_options(inputs: Mapping[str, Any]) -> Iterator[Factor]:
    """Yield the factors that a probability among the options gives."""
    for name, p in inputs.items():
        if isinstance(p, float) and 0 < p < 1:
            meaning = f"{name} is {p:g}"
            for divides in (False, True):
                yield Factor(1 - p, f"(1 - {name})", meaning, divides)
                yield Factor((1 - p) / p, f"(1 - {name})/{name}", meaning, divides)
                yield Factor(p, name, meaning, divides)


def meanings(*lengths: Lengths) -> Iterator[tuple[int, str]]:
    """Yield each length, and what it could be."""
    for n in dict.fromkeys(n for found in lengths for n in found):
        names = [name for found in lengths for name in found.get(n, [])]
        yield n, f"{n} is {' or '.join(names[:MOST_MEANINGS])}"


def lengths(inputs: Mapping[str, Any], y: Sequence[np.ndarray]) -> tuple[Lengths, Lengths]:
    """Return what each length could be: of one axis (or an option, or an axis per head), and of several axes together.

    The lengths of y count only where no input has them.
    """
    options = {name: n for name, n in inputs.items() if type(n) is int and n > 1 and not re.search(NO_LENGTH, name)}
    arrays = {name: a for name, a in inputs.items() if isinstance(a, np.ndarray)}
    single: Lengths = {}
    several: Lengths = {}
    for group in (arrays, named("y", y)):
        seen = set(single) | set(several)

        def add(found: Lengths, n: int, name: str, seen: set[int] = seen) -> None:
            if n > 1 and n not in seen:
                found.setdefault(n, []).append(name)

        for name, a in group.items():
            for n in dict.fromkeys(a.shape):
                axes = [str(k) for k in range(a.ndim) if a.shape[k] == n]
                add(single, n, f"the length of {'axis' if len(axes) == 1 else 'axes'} {', '.join(axes)} of {name}")
            if a.ndim > 2:
                add(several, math.prod(a.shape[:-1]), f"the number of rows of {name}")
            if a.ndim > 1:
                add(several, a.size, f"the number of entries of {name}")
    for option, n in options.items():
        single.setdefault(n, []).append(option)
    for name, a in arrays.items():
        for divisor, text in [(k * n, f"({k} {c})" if k > 1 else c) for c, n in options.items() for k in (1, 3)]:
            if a.ndim and a.shape[-1] % divisor == 0 and a.shape[-1] > divisor:
                single.setdefault(a.shape[-1] // divisor, []).append(f"the length of axis {a.ndim - 1} of {name} / {text}")
    return single, several
