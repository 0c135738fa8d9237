"""One term of the gradient that is missing, or has a wrong factor."""

import numpy as np

from tensorlite.testing.hints.case import FEW, Case


def a_term_constant_along_an_axis(case: Case) -> str:
    """A term is missing, or has a wrong factor, that is one value for each row, such as a mean."""
    for axis, n in enumerate(case.true.shape):
        if n < FEW or case.is_constant(case.true, axis):
            continue
        if case.is_constant(case.difference, axis) and not case.equal(case.wrong, case.true):
            return f"{case.label} minus the truth is constant along axis {axis}: is a term missing there, such as a mean?"
    return ""


def a_term_along_an_array(case: Case) -> str:
    """A term is missing, or has a wrong factor, that is in each row a multiple of an input, the centered input, or y."""
    for name, a in case.float_arrays().items():
        for axis, n in enumerate(case.true.shape):
            if a.shape != case.true.shape or n < FEW:
                continue
            for text, b in ((name, a), (f"{name} minus its mean", a - a.mean(axis=axis, keepdims=True))):
                term_explains = case.explained_by(case.true + along(case.difference, b, axis))
                if term_explains and not case.equal(case.true, along(case.true, b, axis)):
                    term = f"along axis {axis} a multiple of {text}"
                    return f"{case.label} minus the truth is {term}: is that term missing, or its factor wrong?"
    return ""


def a_term_at_the_indices(case: Case) -> str:
    """A term is missing, or has a wrong factor, that has one entry for each index, such as a onehot."""
    for name, ids in case.index_arrays().items():
        if not ids.size or ids.shape != case.true.shape[:-1] or ids.min() < 0 or ids.max() >= case.true.shape[-1]:
            continue
        picked = ids[..., None] == np.arange(case.true.shape[-1])
        off = abs(case.difference) > case.slack
        if case.true.shape[-1] > 1 and ids.size >= FEW and (off == picked).all():
            return f"{case.label} is wrong only in the entries that {name} picks: is a term missing there, such as a onehot?"
    return ""


def along(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    """Return the multiples of the rows of b that come closest to the rows of a."""
    squares = (b * b).sum(axis=axis, keepdims=True)
    return (a * b).sum(axis=axis, keepdims=True) / np.where(squares > 0, squares, 1.0) * b
