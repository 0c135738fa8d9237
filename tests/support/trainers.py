"""Runs of a small GPT with dropout, from their first step or resumed."""

import numpy as np

from gpt.config import Preset, TrainConfig
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.training import checkpoint, run_setup
from gpt.training.data_parallel import Workers
from gpt.training.trainer import Trainer
from small import config_of
from tensorlite import ReferenceOps

TRAIN = TrainConfig(batch_size=4, max_iters=12, learning_rate=0.01, min_lr=0.001, eval_interval=4, eval_batches=3, grad_clip=1.0)
RECORD = {"step": 0, "train_loss": 1.5, "val_loss": 1.25, "lr": 0.1, "tokens_per_s": 5.0, "elapsed_s": 2.5}


def preset(train=TRAIN, **fields):
    return Preset(config_of("gpt", dropout=0.2, **fields), train, "")


def trainer(corpus, out, train_fields=None, resume=False, **fields):
    if resume:
        setup = run_setup.resume(out, {}, train_fields or {}, corpus)
    else:
        setup = run_setup.new_run(preset(**fields), {}, train_fields or {}, out, corpus, seed=1)
    out.mkdir(exist_ok=True)
    return Trainer(setup, Workers.of(ReferenceOps()), np)


def save_checkpoint(setup, path, step=7, val_loss=1.5, best_val=1.25):
    """Write and return a checkpoint of this run, with buffers as after some steps: no two are equal, and the gaps are zero."""
    params, m, v = (ParamTable(MODELS["gpt"].init(setup.model)).init_params(seed) for seed in (7, 8, 9))
    saved = checkpoint.Checkpoint(
        model=setup.model,
        train=setup.train,
        vocabulary=setup.corpus.tokenizer.vocabulary,
        seed=setup.seed,
        step=step,
        val_loss=val_loss,
        best_val=best_val,
        data_sha256=setup.corpus.sha256,
        drop_unknown=setup.drop_unknown,
        params=params,
        m=m,
        v=v,
    )
    checkpoint.save(path, saved)
    return saved


def without_time(records):
    return [{k: v for k, v in r.items() if k not in ("tokens_per_s", "elapsed_s")} for r in records]
