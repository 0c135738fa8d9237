"""Writes gpt.json: values and gradients of two small models, computed by PyTorch. Run by hand, from the repository:

    pip install torch==2.13.0
    PYTHONPATH=.:tests/support python tests/support/golden/make_golden.py

Numbers are written with as many digits as float64 needs; the numbers of one tensor are one string, so that it is one line.
"""

import json

import numpy as np
import torch

from gpt.config import ModelConfig
from gpt.models import gpt
from gpt.params import ParamTable
from tests.gpt.models.test_golden import FILE, STEPS, TRAIN, VARIANTS, text, weights
from torch_model import GPT, adamw, gradients, load

COMMAND = "PYTHONPATH=.:tests/support python tests/support/golden/make_golden.py"


def results(config: ModelConfig) -> dict:
    """The loss, every gradient, and the course of ten AdamW steps on one batch."""
    table = ParamTable(gpt.init(config))
    network = GPT(config).double()
    load(network, table.tree(weights(table)))
    idx, targets = map(torch.from_numpy, text(config))
    optimizer = adamw(network, TRAIN)
    loss = network(idx, targets)
    loss.backward()
    first = {"loss": loss.item(), "gradients": {name: digits(grad) for name, grad in gradients(network).items()}}
    steps = []
    for _ in range(STEPS):
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), TRAIN.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        loss = network(idx, targets)
        loss.backward()
        size = torch.nn.utils.get_total_norm(list(network.parameters()))
        steps.append({"gradient norm before clipping": norm.item(), "loss": loss.item(), "parameter norm": size.item()})
    return {**first, "steps": steps}


def digits(array: np.ndarray) -> str:
    return " ".join(map(repr, array.ravel().tolist()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    golden = {
        "made by": COMMAND,
        "torch": torch.__version__,
        "variants": {name: results(config) for name, config in VARIANTS.items()},
    }
    FILE.write_text(json.dumps(golden, indent=1) + "\n")
