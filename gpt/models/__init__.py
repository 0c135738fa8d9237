"""The models on the way, one file each: `init`, `forward`, `backward`, `logits`. What they repeat is the point."""

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
