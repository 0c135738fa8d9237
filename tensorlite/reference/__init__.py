"""The book: every op of a GPT, forward directly above backward, each backward with its derivation.

Read in this order: linear, softmax, cross_entropy, embedding, layernorm, activations, attention, dropout, composites, optim.
`ops.py` gathers them under one object, `ReferenceOps`. The folders `tensorlite/cpu` and `tensorlite/cuda` hold
those ops that they make faster, under the same file names.
"""

from tensorlite.reference.ops import ReferenceOps

__all__ = ["ReferenceOps"]
