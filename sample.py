"""Write text with a trained model: python sample.py --help"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from gpt import checkpoint, console
from gpt.backends import PrecisionName, choose
from gpt.data import read_text
from gpt.errors import CheckpointError, ConfigError
from gpt.generate import Sampling, generate
from gpt.stages import MODELS
from gpt.tokenizer import CharTokenizer
from tensorlite import pick_device

OUT_OF_MEMORY = "out of memory ({}); the checkpoint's model does not fit this machine"


@dataclass
class Args:
    """Continue a prompt with a checkpoint of train.py, character by character.

    The same seed gives the same text. A prompt longer than the model's context is read from its last characters on.
    """

    checkpoint: Path | None = None
    """A checkpoint file, or a run's folder (its best). Default: the newest best.safetensors under runs/."""
    prompt: str | None = None
    """Text to continue; its characters must be in the model's vocabulary. Default: a line break."""
    prompt_file: Path | None = None
    """A UTF-8 file with the text to continue."""
    num_samples: int = 1
    """How many texts to write."""
    max_new_tokens: int = 500
    """How many characters to write."""
    temperature: float = 1.0
    """Below 1: safer; above 1: wilder; 0: always the likeliest character."""
    top_k: int | None = None
    """Choose among the k likeliest characters only."""
    top_p: float | None = None
    """Choose among the likeliest characters that together have this probability."""
    seed: int = 1337
    """Seed of the choices."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto: CUDA where it works, else the CPU."""
    backend: Literal["auto", "reference", "fast"] = "auto"
    """Which implementation of the layers: the reference, or a faster equal. auto: fast where it works."""
    precision: PrecisionName = "auto"
    """Of the fast backend on a GPU. auto: bf16."""


def main() -> int:
    """Run the command line; return the exit status."""
    console.set_up()
    try:
        return console.finish(run(tyro.cli(Args)))
    except Exception as error:
        message, status = console.explain(error, OUT_OF_MEMORY)
    except KeyboardInterrupt:
        message, status = "", 130
    print(message, file=sys.stderr)
    return console.finish(status)


def run(args: Args) -> int:
    """Load, encode, stream."""
    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    for field in ("num_samples", "max_new_tokens"):
        if getattr(args, field) < 1:
            raise ConfigError(f"{field} must be at least 1, not {getattr(args, field)}")
    if args.prompt is not None and args.prompt_file is not None:
        raise ConfigError("prompt and prompt-file exclude each other")
    device = pick_device(args.device)
    saved = checkpoint.load(args.checkpoint or newest())
    tokenizer = CharTokenizer(saved.vocabulary)
    prompt = read_text(args.prompt_file) if args.prompt_file else args.prompt or ""
    tokens = tokenizer.encode(prompt or tokenizer.start, "the prompt")
    ops = choose(args.backend, device, args.precision).make()
    model, params = MODELS[saved.model.model], saved.table.tree(ops.working(device.xp.asarray(saved.params)))
    for i in range(args.num_samples):
        if args.num_samples > 1:
            print(f"--- sample {i + 1} of {args.num_samples} ---")
        print(prompt, end="", flush=True)
        stream = generate(
            ops,
            model,
            params,
            device.xp.asarray(tokens),
            args.max_new_tokens,
            saved.model,
            sampling,
            seed=args.seed,
            sample=i,
        )
        for token in stream:
            print(tokenizer.vocabulary[token], end="", flush=True)
        print()
    return 0


def newest() -> Path:
    """The checkpoint of the latest run in the usual place."""
    found = sorted(Path("runs").glob("*/best.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CheckpointError("no runs/*/best.safetensors here; train a model with python train.py, or name one with --checkpoint")
    return found[-1]


if __name__ == "__main__":
    sys.exit(main())
