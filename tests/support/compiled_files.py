"""The kernel files that a training run compiles, with the constants of each, and the files that only tests run."""

import numpy as np

from gpt.config import PRESETS, TrainConfig
from gpt.models import MODELS
from gpt.params import ParamTable
from gpt.training.step import Task, TrainState, train_step
from tensorlite import KVCache, cuda
from tensorlite.cuda.ops import PRECISIONS
from tensorlite.cuda.runtime.dry_run import DryRunRuntime


class Recorder(DryRunRuntime):
    """Notes the kernel files, and what is defined for each."""

    def __init__(self):
        super().__init__()
        self.files = {}

    def launch(self, file, kernel, grid, block, /, *, defines=None, **options):
        super().launch(file, kernel, grid, block, defines=defines, **options)
        self.files[file, tuple(sorted((defines or {}).items()))] = True

    def gemm(self, a, b, out, *, unfused=None, **options):
        if unfused:
            unfused()


def files_of_a_run():
    """What the full Shakespeare model needs, in each precision, to train and to write; more head sizes; the rest."""
    preset, files = PRESETS["shakespeare"], {}
    table = ParamTable(MODELS["gpt"].init(preset.model))
    train = TrainConfig(batch_size=2, grad_clip=1.0)
    task = Task(MODELS["gpt"], preset.model, train, data=np.zeros(1000, np.uint16), seed=0)
    for precision in PRECISIONS:
        ops = cuda.CUDAOps(precision, check=False, runtime=Recorder())
        state = TrainState(table, *(np.zeros(table.size, np.float32) for _ in range(4)))
        train_step(ops, task, state)
        kv_cache = KVCache(preset.model.n_layer, preset.model.block_size)
        MODELS["gpt"].logits(ops, table.tree(ops.compute_params(state.params)), task.data[None, :1], preset.model, kv_cache)
        files |= ops.runtime.files
    halves = ("bf16", "fp16")
    files |= {("attention_mma.cu", (("D", D), ("scalar_t", half))): True for D in (16, 32, 64, 128) for half in halves}
    files |= {("dropout.cu", (("scalar_t", scalar_t),)): True for scalar_t in ("float", *halves)}  # of the stage `residual`
    files |= {(f"simple/{name}.cu", ()): True for name in ("attention", "cross_entropy", "layernorm")}
    return sorted(files | {("spin.cu", ()): True})
