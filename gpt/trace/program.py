"""The program of `python -m gpt.trace`: it records one training step and writes the page that shows it."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from gpt import console, files
from gpt.config import ModelConfig
from gpt.errors import ConfigError, UserError
from gpt.sample import find_checkpoint
from gpt.trace import example
from gpt.trace.data import page_data
from gpt.trace.page import page
from gpt.trace.state import State, record
from gpt.training import checkpoint

OUT_OF_MEMORY = "out of memory ({}); choose a smaller model or a shorter --text"

File = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
String = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]


@dataclass
class Args:
    """Write a page that shows one training step, forward and backward, number by number.

    Without arguments the page shows the small model of docs/trace.html. With a checkpoint and a text it shows yours, before its
    training and after. It needs no network: open the file in a browser.
    """

    checkpoint: File = None
    """A checkpoint file of train.py, or the folder of a run, which means its best.safetensors.
    Default: the small model of docs/trace.html, which is trained at once."""
    text: String = None
    """The text of the step: at least 2 characters, and at most the model's context and 1 more.
    Each character but the first is the target of the one before it."""
    out: Annotated[Path, tyro.conf.arg(metavar="PATH")] = Path("trace.html")
    """The file to write. A file of that name is replaced."""


def main() -> int:
    """Run the command line and return the exit status."""
    return console.run_command(lambda: run(tyro.cli(Args, prog="python -m gpt.trace")), OUT_OF_MEMORY)


def run(args: Args) -> int:
    """Record the step and write the page. Returns the exit status."""
    if args.checkpoint is None and args.text is not None:
        raise ConfigError("text needs --checkpoint: the small model of the example shows its own text")
    prepare(args.out)
    if args.checkpoint is None:
        html = page_of(example.MODEL, example.VOCABULARY, example.WINDOW, example.example())
    else:
        html = page_of_checkpoint(args.checkpoint, args.text)
    write(args.out, html)
    print(f"wrote {args.out} ({len(html.encode()) / 1024:.0f} KiB); open it in a browser")
    return 0


def page_of(config: ModelConfig, vocabulary: str, text: str, states: Sequence[State]) -> str:
    """Return the HTML of these states of a model."""
    return page(page_data(dataclasses.asdict(config), vocabulary, text, states))


def page_of_checkpoint(path: Path, text: str | None) -> str:
    """Return the HTML of a step of a checkpoint's model, as it started and as it is, in float64 and without dropout."""
    saved = checkpoint.load(find_checkpoint(path))
    config = dataclasses.replace(saved.model, dropout=0.0)
    if text is None or not 2 <= len(text) <= config.block_size + 1:
        found = "none" if text is None else f"{len(text)}"
        raise ConfigError(f"text must have 2 to {config.block_size + 1} characters (the model's context and 1), not {found}")
    start = saved.table.init_params(saved.seed)  # float32, as training draws it
    runs = {0: start, saved.step: saved.params}
    states = [record(config, params.astype(np.float64), saved.vocabulary, text, step) for step, params in runs.items()]
    return page_of(config, saved.vocabulary, text, states)


def prepare(path: Path) -> None:
    """Make the folder of the file to write. Raises UserError if the file cannot be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _partial(path).touch()
        _partial(path).unlink()
    except OSError as error:
        raise _cannot_write(path, error.strerror) from error
    if path.is_dir():
        raise _cannot_write(path, "it is a folder")


def write(path: Path, html: str) -> None:
    """Write the file whole or not at all. Raises UserError if that fails."""
    partial = _partial(path)
    try:
        partial.write_text(html, encoding="utf-8")
        files.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise _cannot_write(path, error.strerror) from error


def _partial(path: Path) -> Path:
    return path.with_name(f".trace-{os.getpid()}.tmp")


def _cannot_write(path: Path, reason: str | None) -> UserError:
    return UserError(f"out: {path} cannot be written: {reason}; choose another file with --out")
