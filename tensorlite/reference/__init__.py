"""The book: every op of a GPT, forward directly above backward, each backward with its derivation.

Read in this order: linear, softmax, cross_entropy, embedding, layernorm, activations, attention, dropout, composites, optim.
The folder `longhand` has seven of these ops in the long form, with one operation per line.
`ops.py` gathers the ops under one object, `ReferenceOps`. The folders `tensorlite/cpu` and `tensorlite/cuda` hold
the ops that they compute in another way, under the same file names.
"""

from tensorlite.reference.ops import ReferenceOps

__all__ = ["ReferenceOps"]
