"""Train a tiny GPT on a text of your own and let it write, all from Python.

    python docs/examples/train_on_your_text.py             # a short text that the script writes itself
    python docs/examples/train_on_your_text.py FILE        # a UTF-8 text of yours

The run takes seconds and its folder is temporary. `python train.py --data FILE` is the same with a larger model, a folder that
stays, and a run that can be stopped and resumed.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from gpt.config import PRESETS
from gpt.generate import Sampling, generate
from gpt.models import MODELS
from gpt.tokenizer import CharTokenizer
from gpt.training import checkpoint, run_dir, run_setup
from gpt.training.data_parallel import Workers
from gpt.training.trainer import Trainer
from tensorlite import cpu

EXAMPLE = """\
A small boat went out in the morning, and the sea was calm.
A small boat came back in the evening, and the sea was rough.
A small bird sat on the boat, and the boat was blue.
"""


def train(text: Path, out: Path) -> Path:
    """Train on a text file and return the checkpoint with the lowest validation loss."""
    # A preset is a model and a way to train it. Fields that are named here replace those of the preset.
    setup = run_setup.new_run(
        PRESETS["layernorm"],
        model_fields={"n_layer": 1, "block_size": 16},
        train_fields={"max_iters": 300, "batch_size": 16, "eval_interval": 100, "eval_batches": 4},
        out=out,
        data=text,
        seed=1337,
    )
    out.mkdir()
    ops = cpu.CPUOps(check=False)  # the fast backend; ReferenceOps() goes in its place and computes the same
    trainer = Trainer(setup, Workers.of(ops), np)
    with threadpool_limits(1):  # matmuls this small end before a second thread has woken up
        trainer.run()
    print(trainer.summary())
    return run_dir.best_checkpoint(out)


def write(path: Path, prompt: str, n: int) -> str:
    """Continue a prompt by n characters with a checkpoint."""
    # A checkpoint holds the weights, the configuration and the alphabet, so nothing else is needed.
    saved = checkpoint.load(path)
    tokenizer = CharTokenizer(saved.vocabulary)
    model = MODELS[saved.model.model]
    params = saved.table.tree(saved.params)  # named views of one flat buffer
    tokens = generate(
        cpu.CPUOps(),
        model,
        params,
        prompt=tokenizer.encode(prompt),
        n=n,
        config=saved.model,
        sampling=Sampling(temperature=0.8),
        seed=1,
    )
    return prompt + tokenizer.decode(tokens)


with tempfile.TemporaryDirectory() as folder:
    if len(sys.argv) > 1:
        text = Path(sys.argv[1])
    else:
        text = Path(folder) / "text.txt"
        text.write_text(EXAMPLE * 20, encoding="utf-8")
    best = train(text, Path(folder) / "run")
    prompt = text.read_text(encoding="utf-8").strip()[:8]  # the first words of the text
    written = write(best, prompt, n=120)
    print(f"\n{written}")
