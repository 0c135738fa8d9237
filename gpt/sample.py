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
from gpt.training.run_dir import BEST, newest
from tensorlite import pick_device

OUT_OF_MEMORY = "out of memory ({}); the checkpoint's model does not fit this machine"


File = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Int = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
Float = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
String = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]


# --help breaks its lines where the texts below do, so each line is a sentence of its own.
@dataclass
class Args:
    """Continue a prompt with a checkpoint of train.py, character by character.

    The same seed gives the same text. If the prompt is longer than the model's context, the model reads its last characters.
    """

    checkpoint: File = None
    """A checkpoint file, or the folder of a run, which means its best.safetensors.
    Default: the newest best.safetensors under runs/."""
    prompt: String = None
    """Text to continue. Its characters must be in the model's vocabulary; - reads standard input to its end.
    Write a text that begins with a dash as --prompt=-x.
    Default: a line break."""
    prompt_file: File = None
    """UTF-8 file with the text to continue."""
    num_samples: int = 1
    """Number of texts to write."""
    max_new_tokens: int = 500
    """Number of characters to write per text, at most."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """End a text where this string would appear. The string itself is not printed."""
    temperature: float = 1.0
    """Values below 1 make likely characters likelier, values above 1 make the choice more even.
    0 always chooses the likeliest character."""
    top_k: Int = None
    """Choose only among the k likeliest characters."""
    top_p: Float = None
    """Choose only among the likeliest characters that together reach this probability."""
    seed: int = 1337
    """Seed of the random choices."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto uses CUDA if it works, otherwise the CPU."""
    backend: Literal["auto", "reference", "fast"] = "auto"
    """Which implementation of the ops to use.
    reference is written to be read; fast computes the same in less time; auto uses fast if it works here."""
    precision: PrecisionName = "auto"
    """Precision of the fast backend on a GPU: float32, tf32 (float32 with TF32 matmuls), fp16 or bf16.
    auto uses bf16 from compute capability 8.0 on, fp16 on 7.5, and float32 on older GPUs."""


def main() -> int:
    """Run the command line and return the exit status."""
    return console.run_command(lambda: run(parse()), OUT_OF_MEMORY)


def parse() -> Args:
    """Read the command line. If it took a text for a flag and so misses the text, a hint says how to write it."""
    try:
        return tyro.cli(Args, prog=Path(sys.argv[0]).name)
    except SystemExit as end:
        for flag, value in itertools.pairwise(sys.argv if end.code else []):
            is_a_flag = value.lstrip("-").replace("-", "_") in vars(Args)
            if flag in ("--prompt", "--stop") and value.startswith("-") and not is_a_flag:
                print(f"hint: write a text that begins with a dash as {flag}={shlex.quote(value)}", file=sys.stderr)
        raise


def run(args: Args) -> int:
    """Load the checkpoint, encode the prompt, and print each text while it is generated. Returns the exit status."""
    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    check(args)
    device = pick_device(args.device)
    saved = checkpoint.load(find_checkpoint(args.checkpoint))
    tokenizer = CharTokenizer(saved.vocabulary)
    stop = [as_utf8(text) for text in args.stop]
    for text in stop:
        tokenizer.encode(text, f"stop {text!r}")
    prompt, tokens = read_prompt(args, tokenizer)
    ops = select_backend(args.backend, device, args.precision).make()
    model = MODELS[saved.model.model]
    params = saved.table.tree(ops.compute_params(device.xp.asarray(saved.params)))
    for i in range(args.num_samples):
        if args.num_samples > 1:
            print(f"--- sample {i + 1} of {args.num_samples} ---")
        print(prompt, end="", flush=True)
        new_tokens = generate(
            ops,
            model,
            params,
            device.xp.asarray(tokens),
            args.max_new_tokens,
            saved.model,
            sampling=sampling,
            seed=args.seed,
            sample=i,
        )
        characters = (tokenizer.vocabulary[token] for token in new_tokens)
        for text in until(stop, characters):
            print(text, end="", flush=True)
            if console.reader_gone():
                return console.READER_GONE
        print()
    return 0


def check(args: Args) -> None:
    """Raise ConfigError for flags that cannot be obeyed."""
    for field in ("num_samples", "max_new_tokens"):
        if getattr(args, field) < 1:
            raise ConfigError(f"{field} must be at least 1, not {getattr(args, field)}")
    if args.prompt is not None and args.prompt_file is not None:
        raise ConfigError("prompt and prompt-file exclude each other; give one of them")
    if "" in args.stop:
        raise ConfigError("stop must have at least one character, not ''")


def read_prompt(args: Args, tokenizer: CharTokenizer) -> tuple[str, np.ndarray]:
    """Return the text to continue, and its tokens. Notes go to standard error, because standard output is for the text."""
    path = Path("-") if args.prompt == "-" else args.prompt_file
    if path:
        text = read(path, keep=tokenizer.vocabulary)
        prompt = text.utf8.decode()
        notes = list(text.notes)
    else:
        prompt = as_utf8(args.prompt or "")
        notes = hints(prompt)
    try:
        tokens = tokenizer.encode(prompt or tokenizer.start, "the prompt")
    except UnknownCharactersError as error:
        raise UnknownCharactersError("; ".join([str(error), *notes])) from error
    for note in notes:
        print(f"note     {note}", file=sys.stderr)
    return prompt, tokens


def as_utf8(argument: str) -> str:
    """Return an argument of the command line as UTF-8 if the locale could not read it, as that of ASCII cannot read an é."""
    is_read = not any("\udc80" <= c <= "\udcff" for c in argument)
    return argument if is_read else os.fsencode(argument).decode(errors="surrogateescape")


def hints(prompt: str) -> list[str]:
    """Return notes about a prompt that looks like a file's name, or like a text with line breaks."""
    notes = []
    if os.path.isfile(prompt):
        notes.append(f"the prompt is also the name of a file; --prompt-file {shlex.quote(prompt)} continues the text in it")
    if "\\n" in prompt:
        notes.append("a backslash and an n are not a line break; --prompt-file FILE takes a text with line breaks")
    return notes


def find_checkpoint(path: Path | None) -> Path:
    """Return the checkpoint that the user named, or else that of the newest run."""
    found = path or newest(Path("runs"), BEST)
    if found is None:
        raise CheckpointError(
            "no runs/*/best.safetensors here; train a model with python -m gpt.train, or name a checkpoint with --checkpoint"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
