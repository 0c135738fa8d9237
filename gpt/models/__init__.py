"""One file per model: init, forward, backward, logits; MODELS (__init__.py) has the lecture's order.

What they repeat of each other is the point: the difference between two files is the lesson.
"""

from types import ModuleType

from gpt.models import bigram, feedforward, gpt, head, multihead, residual

MODELS: dict[str, ModuleType] = {
    "bigram": bigram,
    "head": head,
    "multihead": multihead,
    "feedforward": feedforward,
    "residual": residual,
    "gpt": gpt,
}
