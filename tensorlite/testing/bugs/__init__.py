"""Known-wrong layers: the mistakes people make in a backward pass, as the code they would write.

Two audiences. The tests (`tests/testing/test_bugs.py`) demand that each is rejected by the check it names, so that the checks are
worth believing. Readers get them as exercises (`python -m tensorlite.exercises`): what is wrong here, and which test says so?

A wrong backward stands in for the one of its op: the same arguments `(dy, cache)`, the cache that the reference forward made. It
is caught by "gradcheck", which compares it with finite differences. Where the forward is wrong too, and the backward follows it
faithfully, finite differences see nothing; such a pair names the test, in `tests/reference/test_ops.py` or
`tests/reference/test_op_facts.py`, of a property that the forward has lost.
"""

from tensorlite.op_info import OP_INFO
from tensorlite.testing.bugs import activations, attention, cross_entropy, dropout, embedding, layernorm, linear, softmax
from tensorlite.testing.bugs.bug import BUGS, Bug, example

BUGS.sort(key=lambda bug: list(OP_INFO).index(bug.op))  # in the order of the book, not of the imports

__all__ = [
    "BUGS",
    "Bug",
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
