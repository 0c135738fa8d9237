"""Known-wrong layers: the mistakes people make in a backward pass, as the code they would write.

They have two uses. The tests (`tests/testing/test_bugs.py`) demand that each is rejected by the check it names, which is why the
checks can be trusted. Readers get them as exercises (`python -m tensorlite.exercises`): what is wrong here, and which test says so?

A wrong backward replaces the one of its op. It takes the same arguments `(dy, cache)`, with the cache of the reference forward, and
is caught by "gradcheck", which compares it with finite differences. If the forward is wrong too and the backward follows it
faithfully, finite differences see nothing. Such a pair names a test in `tests/reference/test_ops.py` or
`tests/reference/test_op_facts.py`, of a property that the forward has lost.
"""

from tensorlite.testing.bugs import activations, attention, cross_entropy, dropout, embedding, layernorm, linear, softmax
from tensorlite.testing.bugs.bug import BUGS, CHAPTERS, Bug, example, true_pair

BUGS.sort(key=lambda bug: (bug.chapter, list(CHAPTERS).index(bug.op)))  # in the order of the course, not of the imports

__all__ = [
    "BUGS",
    "CHAPTERS",
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
    "true_pair",
]
