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


@dataclass
class Args:
    """Train a character-level GPT, from the lecture's bigram to its full Shakespeare model, with hand-derived gradients.

    The presets bigram, head, multihead, feedforward, residual and layernorm are the lecture's small stages (about a minute
    each); laptop is a small GPT for a CPU (minutes); shakespeare is the full model (10.8 million parameters; for a GPU). Any
    field left out has the preset's value. Ctrl-C finishes the step, saves, and ends; --resume goes on from there.
    """

    preset: Annotated[PresetName | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """bigram, head, multihead, feedforward, residual, layernorm, laptop or shakespeare. Default: shakespeare where CUDA works,
    else laptop."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto: CUDA where it works, else the CPU."""
    backend: Literal["auto", "reference", "fast"] = "auto"
    """Which implementation of the layers: the reference, the one that reads like the lecture, or a faster equal. auto: fast
    where it works."""
    precision: PrecisionName = "auto"
    """Of the fast backend on a GPU: float32; tf32, float32 with rounded matmuls; or bf16. auto: bf16."""
    out: File = None
    """Folder for metrics.jsonl, loss.png, best.safetensors and last.safetensors; an earlier run in it is moved aside.
    Default: runs/PRESET."""
    data: Files = ()
    """A UTF-8 text to learn, or several, joined in their order as they are; - is standard input. The last tenth validates.
    Default: the lecture's Shakespeare corpus, fetched once."""
    val_data: Files = ()
    """A validation text of its own: all of --data is then trained on. A new vocabulary has the characters of both."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 1337)")] = None
    """Seed of the parameters, the batches and the dropout masks."""
    resume: bool = False
    """Go on from last.safetensors in the folder, bit for bit as if never stopped. Model fields cannot change. Without --out and
    --preset: the newest run below runs/."""
    init_from: File = None
    """Fine-tune: start from this checkpoint's weights, model fields and vocabulary (a file, or a folder: its best)."""
    drop_unknown: bool = False
    """With --init-from: leave out characters of the text that the vocabulary lacks, instead of refusing them."""
    dry_run: bool = False
    """Instead of training, print what a step on a GPU is made of: each op's kernels, their FLOPs and bytes, and their roofline.
    It needs no GPU."""
    gpu: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """With --dry-run: which GPU, H200 or "RTX 4090" for example. Default: the one here, else H200."""
    profile: bool = False
    """Instead of training, print where the time of a step goes: each op's time, bytes and FLOP/s against this machine's limits."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Threads on the CPU, one for each shard or, with one shard, for matmuls. Default: all cores (of each rank its
    share), but one for the small stages, whose matrices are small."""

    n_layer: Int = None
    """Number of blocks."""
    n_head: Int = None
    """Attention heads; must divide n-embd."""
    n_embd: Int = None
    """Channels."""
    block_size: Int = None
    """Context: how many characters the model sees."""
    dropout: Float = None
    """Probability of dropping a value in training, in [0, 1)."""
    activation: Annotated[Literal["gelu", "relu"] | None, _preset, tyro.conf.arg(metavar="{gelu,relu}")] = None
    """gelu, or the lecture's relu."""
    bias: Bool = None
    """Biases on linear layers and layernorms (q, k and v never have one)."""
    tied: Bool = None
    """Use the token embedding, transposed, as the head."""
    init_std: Float = None
    """Matrices start as N(0, init-std)."""
    batch_size: Int = None
    """Windows of text in one forward pass."""
    max_iters: Int = None
    """Number of updates."""
    learning_rate: Float = None
    """Peak learning rate."""
    min_lr: Float = None
    """Learning rate at the end of the cosine; equal to learning-rate: constant."""
    warmup_iters: Int = None
    """Updates over which the learning rate rises from 0."""
    weight_decay: Float = None
    """AdamW's decay of matrices and embeddings."""
    beta1: Float = None
    """AdamW's decay of the gradient mean."""
    beta2: Float = None
    """AdamW's decay of the squared-gradient mean."""
    grad_clip: Float = None
    """Largest norm of the gradient; 0: no clipping."""
    gradient_accumulation_steps: Int = None
    """Forward passes summed into one update: the effect of a larger batch in the memory of a small one."""
    shards: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Parts of each batch that threads and ranks compute side by side. The same shards give the same bits on any number of
    threads, others the same to rounding. Default: a shard a thread with the fast backend; with --resume the run's own."""
    eval_interval: Int = None
    """Updates between evaluations."""
    eval_batches: Int = None
    """Random batches in the train loss."""
    val_chars: Int = None
    """At most so many characters of the validation split in the validation loss, in windows spread evenly over it; 0: all."""

    def given(self, kind: type) -> dict[str, Any]:
        """The fields of a configuration that were set on the command line."""
        names = [f.name for f in dataclasses.fields(kind) if hasattr(self, f.name)]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def resume_command(self, out: Path, ranks: SingleProcess) -> str:
        """The command that goes on with this run: its checkpoint holds all but where to compute, and where the text is."""
        flags: list[str] = []
        for flag, uses in (("--data", self.data), ("--val-data", self.val_data)):
            flags += [flag, *map(str, itertools.chain(*uses))] if uses else []
        for name in ("device", "backend", "precision", "threads"):
            if getattr(self, name) not in ("auto", None):
                flags += [f"--{name}", str(getattr(self, name))]
        again = "(piping in the same text again) " if any(map(is_stream, self.texts())) else ""
        return again + resume_command(out, flags, ranks.size)

    def texts(self) -> list[Path]:
        """The files of the text and of the validation text."""
        return list(itertools.chain(*self.data, *self.val_data))
