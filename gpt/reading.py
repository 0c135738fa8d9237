"""Reads texts from files, pipes and standard input as clean UTF-8, and says what is odd about them."""

import codecs
import os
import shlex
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gpt.errors import DataError
from gpt.tokenizer import CODE_POINTS, code_points

PIECE = 2**20  # bytes that are read or decoded at a time
STDIN = "standard input"
MARKS = {  # byte-order marks; that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
RARELY_MEANT = (
    *range(9),
    *range(11, 32),
    *range(127, 160),
    0xFEFF,
    0xFFFD,
    0xFFFE,
    0xFFFF,
)  # control characters but tab and line feed


@dataclass(frozen=True)
class Text:
    """One text, whole and valid. It is kept as bytes: Python's own strings take four per character for a single emoji."""

    name: str
    utf8: bytes | bytearray
    alphabet: np.ndarray  # the code points that occur, uint32, in order
    characters: int
    notes: tuple[str, ...] = ()  # what was changed, or looks wrong; each a sentence for the user

    def codes(self) -> Iterator[np.ndarray]:
        """The code points, uint32, piece by piece."""
        return map(code_points, decoded(self.name, self.utf8))


def read(path: Path, keep: str = "") -> Text:
    """Read a text, `-` from standard input. See `clean` for `keep`. Every way this can fail is a DataError that names the file."""
    return clean(name_of(path), read_bytes(path), keep)


def name_of(path: Path) -> str:
    """What messages call it."""
    return STDIN if str(path) == "-" else str(path)


def is_stream(path: Path) -> bool:
    """Whether it can be read only once: standard input, a pipe, a device."""
    return str(path) == "-" or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path))


def read_bytes(path: Path) -> bytearray:
    """Read a file or a stream once, from its beginning to its end."""
    name, raw = name_of(path), bytearray()
    try:
        with _opened(path) as file:
            before = os.fstat(file.fileno())
            with _progress(f"reading {name}", before.st_size or None) as bar:
                while piece := file.read(PIECE):
                    raw += piece
                    bar.update(len(piece))
            after = os.fstat(file.fileno())
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except OSError as error:
        if path.is_dir():
            raise DataError(f"{name} is a directory; name a text file") from error
        raise DataError(f"{name} cannot be read: {error.strerror}") from error
    if piece is None:
        raise DataError(f"{name} cannot be read: it gives up waiting for more (it is non-blocking); save it to a file first")
    if stat.S_ISREG(before.st_mode) and (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"{name} changed while it was read; try again when it is finished, or train on a copy")
    return raw


def _opened(path: Path) -> FileIO:
    if str(path) != "-":
        return open(path, "rb", buffering=0)
    if sys.stdin is None:
        raise DataError(f"{STDIN} is closed; name a file")
    return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)


def _progress(what: str, total: int | None) -> AbstractContextManager:
    """A bar on a terminal, for what takes longer than a moment."""
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, dynamic_ncols=True, leave=False, delay=0.2, disable=None)


def decoded(name: str, raw: bytes | bytearray, encoding: str = "UTF-8") -> Iterator[str]:
    """Decode piece by piece; a character that a cut goes through comes with the later piece. Raises DataError with the offset."""
    decoder = codecs.getincrementaldecoder(encoding)()
    with _progress(f"decoding {name}", len(raw)) as bar:
        for begin in range(0, len(raw), PIECE):
            end = min(begin + PIECE, len(raw))
            try:
                text = decoder.decode(raw[begin:end], final=end == len(raw))
            except UnicodeDecodeError as error:  # its object begins with what the piece before left over
                at = end - len(error.object) + error.start
                guess = _guess(name, raw) if encoding == "UTF-8" else "it is damaged, or its byte-order mark is wrong"
                cut = "its end is cut off, or " if error.reason.startswith("unexpected end") else ""
                raise DataError(f"{name} is not {encoding} text: byte {at} is {raw[at]:#04x}; {cut}{guess}") from error
            yield text
            bar.update(end - begin)


def clean(name: str, raw: bytes | bytearray, keep: str = "", as_it_is: bool = False) -> Text:
    """Make a text of bytes: UTF-8 without a byte-order mark, every line ending in a line feed.

    keep: a checkpoint's vocabulary; if it has NUL or the carriage return, those stay.
    as_it_is: change nothing of a UTF-8 text.
    Raises DataError for what is no text.
    """
    notes = []
    encoding = next((encoding for mark, encoding in MARKS.items() if raw.startswith(mark)), None)
    if encoding:
        raw = bytearray().join(piece.encode() for piece in decoded(name, raw, encoding))
        notes.append(f"{name} was decoded from {encoding}")
        name = f"{name}, as UTF-8,"
    if b"\0" in raw and not (as_it_is or "\0" in keep):
        raise DataError(f"{name} has {raw.count(0):,} NUL characters, the first at byte {raw.find(0)}; {_guess(name, raw)}")
    occurs, characters = np.zeros(CODE_POINTS, bool), 0
    for piece in decoded(name, raw):
        codes = code_points(piece)
        occurs[codes] = True
        characters += len(codes)
    if raw.startswith(codecs.BOM_UTF8) and not as_it_is:
        raw = raw[len(codecs.BOM_UTF8) :]
        characters -= 1
        occurs[0xFEFF] = "\ufeff".encode() in raw
        notes.append(f"{name} begins with a byte-order mark, which was skipped")
    if occurs[ord("\r")] and not (as_it_is or "\r" in keep):
        pairs, all_ = raw.count(b"\r\n"), raw.count(b"\r")
        raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        characters -= pairs
        occurs[[ord("\r"), ord("\n")]] = False, True
        notes.append(f"{name} ends lines with {pairs:,} CR LF and {all_ - pairs:,} lone CR, which became line feeds")
    odd = [chr(code) for code in RARELY_MEANT if occurs[code] and not (as_it_is or chr(code) in keep)]
    if odd:
        listed = ", ".join(f"{c!a} x{raw.count(c.encode())}" for c in odd)
        notes.append(f"{name} has characters that are rarely meant, kept as symbols: {listed}")
    return Text(name, raw, np.flatnonzero(occurs).astype(np.uint32), characters, tuple(notes))


def _guess(name: str, raw: bytes | bytearray) -> str:
    """What bytes that are no UTF-8 text may be, and the command that converts them."""
    view = np.frombuffer(raw, np.uint8)
    zeros = [int(np.count_nonzero(view[i::4] == 0)) for i in range(4)]  # by place within four bytes
    quarter, even, odd = len(raw) // 4, zeros[0] + zeros[2], zeros[1] + zeros[3]
    encoding = "ENCODING"
    if zeros[3] == quarter and zeros[2] > quarter / 2 > 0:
        encoding = "UTF-32LE"
    elif zeros[0] == quarter and zeros[1] > quarter / 2 > 0:
        encoding = "UTF-32BE"
    elif len(raw) % 2 == 0 and max(even, odd) > len(raw) / 100 and even != odd and min(even, odd) < max(even, odd) / 100:
        encoding = "UTF-16LE" if odd > even else "UTF-16BE"
    elif any(zeros):
        return "it is no text, or a damaged one: tr -d '\\000' would remove them"
    elif np.count_nonzero(view >= 0x80) < len(raw) / 3:
        encoding = "WINDOWS-1252"
    likely = "it is in another encoding" if encoding == "ENCODING" else f"it is probably {encoding}"
    convert = f"iconv -f {encoding} -t UTF-8" + ("" if name == STDIN else f" {shlex.quote(name)} > new.txt")
    return f"{likely}; convert it: {convert}"
