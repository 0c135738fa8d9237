"""The program of sample.py: continues a prompt with a checkpoint (python -m gpt.sample)."""

import itertools
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from gpt import console
from gpt.errors import CheckpointError, ConfigError, UnknownCharactersError
from gpt.generate import Sampling, generate, until
from gpt.models import MODELS
from gpt.reading import read
from gpt.tokenizer import CharTokenizer
from gpt.training import checkpoint
from gpt.training.backends import PrecisionName, select_backend
from gpt.training.run_dir import BEST, best_checkpoint, last_checkpoint, newest
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
    """Text to continue; its characters must be in the model's vocabulary. - reads standard input to its end; a text that begins
    with a dash is written --prompt=-x. Default: a line break."""
    prompt_file: Path | None = None
    """A UTF-8 file with the text to continue."""
    num_samples: int = 1
    """How many texts to write."""
    max_new_tokens: int = 500
    """How many characters to write."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """End a sample before this text appears."""
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
        return console.finish(run(parse()))
    except Exception as error:
        message, status = console.explain(error, OUT_OF_MEMORY)
    except KeyboardInterrupt:
        message, status = "", 130
    print(message, file=sys.stderr)
    return console.finish(status)


def parse() -> Args:
    """Read the command line. Where a text was taken for a flag, and so is missing, a hint says how to write it."""
    try:
        return tyro.cli(Args, prog=Path(sys.argv[0]).name)
    except SystemExit as end:
        for flag, value in itertools.pairwise(sys.argv if end.code else []):
            if flag in ("--prompt", "--stop") and value.startswith("-") and value.lstrip("-").replace("-", "_") not in vars(Args):
                print(f"hint: a text that begins with a dash is written {flag}={shlex.quote(value)}", file=sys.stderr)
        raise


def run(args: Args) -> int:
    """Load, encode, stream."""
    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    for field in ("num_samples", "max_new_tokens"):
        if getattr(args, field) < 1:
            raise ConfigError(f"{field} must be at least 1, not {getattr(args, field)}")
    if args.prompt is not None and args.prompt_file is not None:
        raise ConfigError("prompt and prompt-file exclude each other")
    if "" in args.stop:
        raise ConfigError("stop must be some text, not ''")
    device = pick_device(args.device)
    saved = checkpoint.load(find_checkpoint(args.checkpoint))
    tokenizer = CharTokenizer(saved.vocabulary)
    for text in args.stop:
        tokenizer.encode(text, f"stop {text!r}")
    prompt, tokens = read_prompt(args, tokenizer)
    ops = select_backend(args.backend, device, args.precision).make()
    model, params = MODELS[saved.model.model], saved.table.tree(ops.compute_params(device.xp.asarray(saved.params)))
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
        for text in until(args.stop, map(tokenizer.vocabulary.__getitem__, stream)):
            print(text, end="", flush=True)
            if console.reader_gone():
                return console.READER_GONE
        print()
    return 0


def read_prompt(args: Args, tokenizer: CharTokenizer) -> tuple[str, np.ndarray]:
    """The text to continue, and its tokens. What the user should know goes to standard error: the other one is for the text."""
    path = Path("-") if args.prompt == "-" else args.prompt_file
    if path:
        text = read(path, keep=tokenizer.vocabulary)
        prompt, notes = text.utf8.decode(), list(text.notes)
    else:
        prompt, notes = os.fsencode(args.prompt or "").decode(errors="surrogateescape"), []  # a locale may have read it as ASCII
        if os.path.isfile(prompt):
            notes.append(f"a file is called so: --prompt-file {shlex.quote(prompt)} continues its text")
        if "\\n" in prompt:
            notes.append("a backslash and an n are no line break: --prompt-file FILE takes a text with line breaks")
    try:
        tokens = tokenizer.encode(prompt or tokenizer.start, "the prompt")
    except UnknownCharactersError as error:
        raise UnknownCharactersError("; ".join([str(error), *notes])) from error
    for note in notes:
        print(f"note     {note}", file=sys.stderr)
    return prompt, tokens


def find_checkpoint(path: Path | None) -> Path:
    """Return the checkpoint that the user named, else that of the newest run."""
    if path and path.is_dir() and last_checkpoint(path).exists() and not best_checkpoint(path).exists():
        raise CheckpointError(
            f"{path} has no {best_checkpoint(path).name}; take its last one: --checkpoint {last_checkpoint(path)}"
        )
    found = path or newest(Path("runs"), BEST)
    if found is None:
        raise CheckpointError(
            "no runs/*/best.safetensors here; train a model with python -m gpt.train, or name one with --checkpoint"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
