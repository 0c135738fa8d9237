"""The functions that `prove.fuzz` searches for inputs that break them.

Each takes any bytes and must not raise an error. Each has a seed, an input to begin the search with.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from gpt.data import load_corpus
from gpt.errors import CheckpointError, DataError
from gpt.training import checkpoint
from prove.harness import scratch
from prove.mutations import rehash
from prove.subject import equal, file_of, split


def file_with(content: bytes) -> Path:
    path = scratch() / "fuzzed"
    path.write_bytes(content)
    return path


def fuzz_checkpoint(content: bytes) -> None:
    try:
        loaded = checkpoint.load(file_with(content))
    except CheckpointError:
        return
    assert equal(loaded, file_of("bigram")[0]), "other values came out"  # JSON can be written in more than one way


def fuzz_description(content: bytes) -> None:
    header, tensors = split(file_of("bigram")[1])
    try:
        loaded = checkpoint.load(file_with(rehash(header, tensors, content.decode("utf-8", "replace"))))
    except CheckpointError:
        return
    checkpoint.save(scratch() / "again.safetensors", loaded)


def fuzz_text(content: bytes) -> None:
    try:
        corpus = load_corpus(file_with(content), block_size=1)
    except DataError:
        return
    tokens = np.concatenate([corpus.train, corpus.val])
    text = corpus.tokenizer.decode(tokens)
    assert "".join(sorted(set(text))) == corpus.tokenizer.vocabulary
    assert (corpus.tokenizer.encode(text) == tokens).all()


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], bytes]]] = {
    "checkpoint": (fuzz_checkpoint, lambda: file_of("bigram")[1]),
    "description": (fuzz_description, lambda: split(file_of("bigram")[1])[0]["__metadata__"]["about"].encode()),
    "text": (fuzz_text, lambda: ("café 🙂\r\n" * 4).encode()),
}
