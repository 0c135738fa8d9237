"""The models on the way, one file each: `init`, `forward`, `backward`, `logits`. What they repeat is the point."""

from types import ModuleType

from gpt import model
from gpt.stages import bigram, feedforward, head, multihead, residual

MODELS: dict[str, ModuleType] = {
    "bigram": bigram,
    "head": head,
    "multihead": multihead,
    "feedforward": feedforward,
    "residual": residual,
    "gpt": model,
}
