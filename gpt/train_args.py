"""The command line of gpt/train.py: every flag, its type and its help."""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from gpt.advice import resume_command
from gpt.reading import is_stream
from gpt.training.backends import PrecisionName
from gpt.training.distributed import SingleProcess

PresetName = Literal["bigram", "head", "multihead", "feedforward", "residual", "layernorm", "laptop", "shakespeare"]

_preset = tyro.conf.arg(help_behavior_hint="(default: the preset's)")
Int = Annotated[int | None, _preset, tyro.conf.arg(metavar="INT")]
Float = Annotated[float | None, _preset, tyro.conf.arg(metavar="FLOAT")]
Bool = Annotated[bool | None, _preset, tyro.conf.arg(metavar="{True,False}")]
File = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Files = Annotated[  # each use of the flag appends what follows it
    tuple[tuple[Path, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH [PATH ...]", help_behavior_hint="")
]


# --help breaks its lines where the texts below do, so each line is a sentence of its own.
@dataclass
class Args:
    """Train a character-level GPT with hand-derived gradients, from the lecture's bigram to its full Shakespeare model.

    The presets bigram, head, multihead, feedforward, residual and layernorm are the lecture's small stages and take less than
    a minute each. The preset laptop is a small GPT that a CPU trains in minutes. The preset shakespeare is the full model with 10.8
    million parameters and is meant for a GPU. A field that you leave out has the preset's value. Ctrl-C finishes the current
    step, saves and exits. You can continue such a run with --resume.
    """

    preset: Annotated[PresetName | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """The preset to train: bigram, head, multihead, feedforward, residual, layernorm, laptop or shakespeare.
    Default: shakespeare if CUDA works, otherwise laptop."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto uses CUDA if it works, otherwise the CPU."""
    backend: Literal["auto", "reference", "fast"] = "auto"
    """Which implementation of the ops to use.
    reference is written to be read; fast computes the same in less time; auto uses fast if it works here."""
    precision: PrecisionName = "auto"
    """Precision of the fast backend on a GPU: float32, tf32 (float32 with TF32 matmuls), fp16 or bf16.
    auto uses bf16 from compute capability 8.0 on, fp16 on 7.5, and float32 on older GPUs."""
    out: File = None
    """Folder for metrics.jsonl, loss.png, best.safetensors and last.safetensors.
    An earlier run in that folder is moved to a subfolder.
    Default: runs/PRESET."""
    data: Files = ()
    """UTF-8 text files to train on, joined in this order; - reads standard input.
    The last tenth of the text is used for validation.
    Default: the lecture's Shakespeare corpus, which is downloaded once."""
    val_data: Files = ()
    """Text files to validate on; the run then trains on all of --data.
    A new vocabulary contains the characters of both texts."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 1337)")] = None
    """Seed of the initial parameters, the batches and the dropout masks."""
    resume: bool = False
    """Continue from last.safetensors in the folder --out. The result is bitwise identical to that of a run that never stopped,
    if device, backend, precision and, with one shard, the number of threads are the same.
    You may change the training fields, but not the model fields.
    Without --out and --preset it continues the newest run under runs/."""
    init_from: File = None
    """Fine-tune: start from the weights, model fields and vocabulary of this checkpoint.
    PATH is a checkpoint file, or the folder of a run, which means its best.safetensors."""
    drop_unknown: bool = False
    """With --init-from: leave out the characters that the checkpoint's vocabulary lacks, instead of refusing the text."""
    dry_run: bool = False
    """Instead of training, print the kernels of one step on a GPU, with their FLOPs, bytes and roofline times.
    This needs no GPU."""
    gpu: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """With --dry-run: the GPU to show, for example H200 or "RTX 4090".
    Default: the GPU of this machine, or an H200 if it has none."""
    profile: bool = False
    """Instead of training, print the time of each op in a step, with its bytes, its FLOP/s and the limits of this machine."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Number of threads on the CPU. Each computes shards, or with a single shard all of them compute its matmuls.
    Default: all cores, divided among the ranks. The small stages use one thread because their matrices are small."""

    n_layer: Int = None
    """Number of transformer blocks."""
    n_head: Int = None
    """Number of attention heads. It must divide n-embd."""
    n_embd: Int = None
    """Number of channels: the width of the residual stream."""
    block_size: Int = None
    """Context length: the number of characters that the model sees."""
    dropout: Float = None
    """Probability of dropping an element during training, in [0, 1)."""
    activation: Annotated[Literal["gelu", "relu"] | None, _preset, tyro.conf.arg(metavar="{gelu,relu}")] = None
    """Activation function of the MLP. The lecture uses relu."""
    bias: Bool = None
    """Whether linear layers and layernorms have biases. q, k and v never have one."""
    tied: Bool = None
    """Whether the output head is the transposed token embedding."""
    init_std: Float = None
    """Standard deviation of the initial matrices and embeddings."""
    batch_size: Int = None
    """Number of text windows in one forward pass."""
    max_iters: Int = None
    """Number of updates."""
    learning_rate: Float = None
    """Peak learning rate."""
    min_lr: Float = None
    """Learning rate at the end of the cosine decay. If it equals learning-rate, the rate is constant."""
    warmup_iters: Int = None
    """Number of updates over which the learning rate rises to its peak, in a line that begins above 0."""
    weight_decay: Float = None
    """Weight decay of AdamW. It applies to matrices and embeddings only."""
    beta1: Float = None
    """Decay rate of AdamW's average of the gradient."""
    beta2: Float = None
    """Decay rate of AdamW's average of the squared gradient."""
    grad_clip: Float = None
    """Largest norm of the gradient. Longer gradients are scaled down to it; 0 turns this off."""
    gradient_accumulation_steps: Int = None
    """Number of forward passes that are summed into one update.
    It has the effect of a larger batch and takes the memory of a small one."""
    shards: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Number of shards per batch. Threads and ranks compute them in parallel.
    For a fixed number of shards above 1, results are bitwise identical for any number of threads.
    Different numbers of shards agree up to rounding.
    Default: one per thread with the fast CPU backend, otherwise one per rank; with --resume, the number of the run."""
    eval_interval: Int = None
    """Number of updates between evaluations."""
    eval_batches: Int = None
    """Number of random batches in the training loss."""
    val_chars: Int = None
    """Largest number of validation characters per evaluation, in evenly spread windows. 0 evaluates all of them."""

    def given(self, kind: type) -> dict[str, Any]:
        """Return the fields of a configuration class that were set on the command line."""
        values = {field.name: getattr(self, field.name, None) for field in dataclasses.fields(kind)}
        return {name: value for name, value in values.items() if value is not None}

    def resume_command(self, out: Path, ranks: SingleProcess) -> str:
        """Return the command that continues this run.

        The checkpoint holds everything but where to compute and where the text is, so these become flags.
        """
        flags: list[str] = []
        for flag, uses in (("--data", self.data), ("--val-data", self.val_data)):
            if uses:
                flags += [flag, *map(str, itertools.chain(*uses))]
        for name in ("device", "backend", "precision", "threads"):
            if getattr(self, name) not in ("auto", None):
                flags += [f"--{name}", str(getattr(self, name))]
        hint = "(piping in the same text again) " if any(map(is_stream, self.texts())) else ""
        return hint + resume_command(out, flags, ranks.size)

    def texts(self) -> list[Path]:
        """Return the files of the training text and of the validation text."""
        return list(itertools.chain(*self.data, *self.val_data))
