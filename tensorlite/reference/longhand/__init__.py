"""The long form of the ops: one operation per line, and its backward in reverse.

The files of the folder above are the fused form: their backwards are short, because each was simplified on paper first. The files
here skip the paper. Forward names every intermediate value, and its lines are numbered. Backward has one gradient for each of these
values (dprobs is d loss / d probs, and has the shape of probs). It undoes the lines from the last to the first and carries their
numbers. A function receives dy, the gradient of its output, last, and returns y followed by the gradients of its inputs.

These rules are all that the backward lines need. The comment of each line names its rule.

  product    u = a b:                    da = du b,  db = du a
  function   u = f(a):                   da = du f'(a)
  constant   u = c a,  u = a + c:        da = c du,  da = du
  add        u = a + b,  u = a - b:      da = du,  db = du or -du
  sum        u = a_1 + ... + a_n:        da_i = du for each i: a sum copies its gradient to every term
  broadcast  one a serves many u_i:      da = the sum of its gradients over i: backward sums the axes that forward broadcast
  pick       u = a_i:                    da_i = du, and 0 for the entries that were not picked
  reuse      several lines read a:       their gradients add
  matmul     u = a b, of matrices:       da = du b^T,  db = a^T du: product, sum and broadcast in one, see longhand_linear

Read a function with a pencil, then the fused backward in the file of the same name. The docstring says which of its lines collapse
into which step of the derivation there. Where the two forms disagree, compare the d-variables from the top: the first wrong one
names the mistake. The tests compare them on every backend (tests/reference/test_stepwise.py), and nothing else calls the long form.
It shares no code with the fused form, it is slow, and it loses digits where a step overflows or cancels.
"""

from tensorlite.reference.longhand.activations import longhand_gelu
from tensorlite.reference.longhand.attention import longhand_attention, longhand_head, longhand_query
from tensorlite.reference.longhand.cross_entropy import longhand_cross_entropy
from tensorlite.reference.longhand.embedding import longhand_embedding
from tensorlite.reference.longhand.layernorm import longhand_layernorm
from tensorlite.reference.longhand.linear import longhand_linear
from tensorlite.reference.longhand.softmax import longhand_softmax

__all__ = [
    "longhand_attention",
    "longhand_cross_entropy",
    "longhand_embedding",
    "longhand_gelu",
    "longhand_head",
    "longhand_layernorm",
    "longhand_linear",
    "longhand_query",
    "longhand_softmax",
]
