"""Reads texts from files, pipes and standard input as clean UTF-8, and notes what is odd about them."""

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

PIECE = 2**20  # bytes per read or decoding step
STDIN = "standard input"
UNKNOWN = "ENCODING"  # what a command to paste names, if the encoding cannot be guessed
MARKS = {  # byte-order marks; UTF-32 comes first because its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
RARELY_MEANT = (*range(9), *range(11, 32), *range(127, 160), 0xFEFF, 0xFFFD, 0xFFFE, 0xFFFF)  # no tab, no line feed


@dataclass(frozen=True)
class Text:
    """One text, complete and valid, as bytes: a Python string takes four bytes per character as soon as it has one emoji."""

    name: str
    utf8: bytes | bytearray
    alphabet: np.ndarray  # the code points that occur, sorted, uint32
    characters: int
    notes: tuple[str, ...] = ()  # what was changed or looks wrong: sentences for the user

    def codes(self) -> Iterator[np.ndarray]:
        """Yield the code points in pieces of uint32."""
        return map(code_points, decoded(self.name, self.utf8))


def read(path: Path, keep: str = "") -> Text:
    """Read and clean a text; `-` is standard input. See `clean` for `keep`. Raises DataError, which names the file."""
    return clean(name_of(path), read_bytes(path), keep)


def name_of(path: Path) -> str:
    """Return the name of a text in messages."""
    return STDIN if str(path) == "-" else str(path)


def is_stream(path: Path) -> bool:
    """Return whether a path can be read only once: standard input, a pipe or a device."""
    is_special = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    return is_special or str(path) == "-"


def read_bytes(path: Path) -> bytearray:
    """Read a file or a stream once, from beginning to end. Raises DataError, which names the file."""
    name = name_of(path)
    raw = bytearray()
    try:
        with _opened(path) as file:
            before = os.fstat(file.fileno())
            size = before.st_size if stat.S_ISREG(before.st_mode) else None  # a Mac counts what waits in a pipe
            with _progress(f"reading {name}", size or None) as bar:
                while piece := file.read(PIECE):
                    raw += piece
                    bar.update(len(piece))
            after = os.fstat(file.fileno())
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file; check the path") from error
    except OSError as error:
        if os.path.isdir(path):
            raise DataError(f"{name} is a directory; name a text file") from error
        raise DataError(f"{name} cannot be read: {error.strerror}") from error
    if piece is None:
        raise DataError(f"{name} cannot be read: it is non-blocking and does not wait for more text; save it to a file first")
    changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
    if changed and stat.S_ISREG(before.st_mode):
        raise DataError(f"{name} changed while it was read; try again when it no longer changes, or use a copy")
    return raw


def _opened(path: Path) -> FileIO:
    if str(path) != "-":
        return open(path, "rb", buffering=0)
    if sys.stdin is None:
        raise DataError(f"{STDIN} is closed; name a file")
    return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)


def _progress(what: str, total: int | None) -> AbstractContextManager:
    """Return a progress bar, which appears on a terminal after 0.2 s."""
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, dynamic_ncols=True, leave=False, delay=0.2, disable=None)


def decoded(name: str, raw: bytes | bytearray, encoding: str = "UTF-8") -> Iterator[str]:
    """Yield the decoded text in pieces; a character across a cut belongs to the later piece. Raises DataError with the offset."""
    decoder = codecs.getincrementaldecoder(encoding)()
    with _progress(f"decoding {name}", len(raw)) as bar:
        for begin in range(0, len(raw), PIECE):
            end = min(begin + PIECE, len(raw))
            try:
                text = decoder.decode(raw[begin:end], final=end == len(raw))
            except UnicodeDecodeError as error:  # error.object begins with the bytes that the previous piece left over
                at = end - len(error.object) + error.start
                guess = _guess(name, raw) if encoding == "UTF-8" else "it is damaged, or its byte-order mark is wrong"
                cut = "its end is cut off, or " if error.reason.startswith("unexpected end") else ""
                raise DataError(f"{name} is not {encoding} text: byte {at} is {raw[at]:#04x}; {cut}{guess}") from error
            yield text
            bar.update(end - begin)


def clean(name: str, raw: bytes | bytearray, keep: str = "", as_it_is: bool = False) -> Text:
    """Return the bytes as a text: UTF-8 without a byte-order mark, every line ending in a line feed.

    keep: the vocabulary of a checkpoint. If it has NUL or the carriage return, those stay.
    as_it_is: change nothing in a UTF-8 text.
    Raises DataError if the bytes are not a text.
    """
    notes = []
    encoding = next((encoding for mark, encoding in MARKS.items() if raw.startswith(mark)), None)
    if encoding:
        raw = bytearray().join(piece.encode() for piece in decoded(name, raw, encoding))
        notes.append(f"{name} was decoded from {encoding}")
        name = f"{name}, as UTF-8,"
    if b"\0" in raw and not (as_it_is or "\0" in keep):
        raise DataError(f"{name} has {raw.count(0):,} NUL characters, the first at byte {raw.find(0)}; {_guess(name, raw)}")
    occurs, characters = _count(name, raw)
    if raw.startswith(codecs.BOM_UTF8) and not as_it_is:
        raw = raw[len(codecs.BOM_UTF8) :]
        characters -= 1
        occurs[0xFEFF] = "\ufeff".encode() in raw
        notes.append(f"{name} begins with a byte-order mark, which was skipped")
    if occurs[ord("\r")] and not (as_it_is or "\r" in keep):
        pairs = raw.count(b"\r\n")
        lone = raw.count(b"\r") - pairs
        raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        characters -= pairs
        occurs[ord("\r")] = False
        occurs[ord("\n")] = True
        notes.append(f"{name} ends lines with {pairs:,} CR LF and {lone:,} lone CR, which became line feeds")
    odd = [chr(code) for code in RARELY_MEANT if occurs[code] and not (as_it_is or chr(code) in keep)]
    if odd:
        listed = ", ".join(f"{c!a} x{raw.count(c.encode())}" for c in odd)
        notes.append(f"{name} has characters that are rarely meant, kept as symbols: {listed}")
    return Text(name, raw, np.flatnonzero(occurs).astype(np.uint32), characters, tuple(notes))


def _count(name: str, raw: bytes | bytearray) -> tuple[np.ndarray, int]:
    """Return which code points occur in a UTF-8 text, as a table of bool, and its number of characters."""
    occurs = np.zeros(CODE_POINTS, bool)
    characters = 0
    for piece in decoded(name, raw):
        codes = code_points(piece)
        occurs[codes] = True
        characters += len(codes)
    return occurs, characters


def _guess(name: str, raw: bytes | bytearray) -> str:
    """Return what bytes that are not UTF-8 may be, and the command that converts them."""
    encoding = _guess_encoding(raw)
    if encoding is None:
        return "it is not a text, or a damaged one: tr -d '\\000' would remove them"
    likely = "it is in another encoding" if encoding == UNKNOWN else f"it is probably {encoding}"
    target = "" if name == STDIN else f" {shlex.quote(name)} > new.txt"
    return f"{likely}; convert it: iconv -f {encoding} -t UTF-8{target}"


def _guess_encoding(raw: bytes | bytearray) -> str | None:
    """Return the likely encoding of bytes that are not UTF-8, UNKNOWN, or None for bytes that are not a text.

    The high bytes of UTF-16 and UTF-32 are often 0, and always at the same place within a character.
    """
    view = np.frombuffer(raw, np.uint8)
    zeros = [int(np.count_nonzero(view[i::4] == 0)) for i in range(4)]  # by place within four bytes
    quarter = len(raw) // 4
    if zeros[3] == quarter and zeros[2] > quarter / 2 > 0:
        return "UTF-32LE"
    if zeros[0] == quarter and zeros[1] > quarter / 2 > 0:
        return "UTF-32BE"
    even = zeros[0] + zeros[2]
    odd = zeros[1] + zeros[3]
    fewer, more = sorted((even, odd))
    if len(raw) % 2 == 0 and more > len(raw) / 100 and even != odd and fewer < more / 100:
        return "UTF-16LE" if odd > even else "UTF-16BE"
    if any(zeros):
        return None
    mostly_ascii = np.count_nonzero(view >= 0x80) < len(raw) / 3
    return "WINDOWS-1252" if mostly_ascii else UNKNOWN
