"""Known-wrong layers: the mistakes people make in a backward pass by hand, each as the code they would write.

Two audiences. The tests (`tests/test_known_wrong.py`) demand that each is rejected by the check it names, so that the checks are
worth believing. Readers get them as exercises (`python -m tensorlite.exercises`): what is wrong here, and which test says so?

A wrong backward stands in for the one of its op: the same arguments `(dy, cache)`, the cache that the reference forward made. It
is caught by "gradcheck", which compares it with finite differences. Where the forward is wrong too, and the backward follows it
faithfully, finite differences see nothing; such a pair names the test, in `tests/test_ops.py` or `tests/test_op_facts.py`, of
a property that the forward has lost.
"""

from tensorlite.known_wrong import activations, attention, cross_entropy, dropout, embedding, layernorm, linear, softmax
from tensorlite.known_wrong.mistake import MISTAKES, Mistake, example
from tensorlite.optable import ROWS

MISTAKES.sort(key=lambda mistake: list(ROWS).index(mistake.op))  # in the order of the book, not of the imports

__all__ = [
    "MISTAKES",
    "Mistake",
    "activations",
    "attention",
    "cross_entropy",
    "dropout",
    "embedding",
    "example",
    "layernorm",
    "linear",
    "softmax",
]
