"""Reading texts: every encoding and line end is handled or named, streams are read once, and memory and time stay small."""

import codecs
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt import reading
from gpt.data import load_corpus
from gpt.errors import DataError
from gpt.reading import CODE_POINTS, clean, is_stream, name_of, read
from gpt.tokenizer import CharTokenizer
from paths import ROOT

LINES = "Der Fuchs\nspringt über\nden Hund.\n" * 8


def text_of(raw, keep="", **how):
    text = clean("t", raw, keep, **how)
    codes = np.concatenate([*text.codes(), np.empty(0, np.uint32)])
    assert len(codes) == text.characters
    assert text.alphabet.tolist() == sorted(set(codes.tolist()))
    assert codes.astype("<u4").tobytes().decode("utf-32-le") == text.utf8.decode()
    return text.utf8.decode(), text.notes


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(reading, "PIECE", 3)


@given(st.text(), st.integers(1, 9))
def test_a_cut_may_go_through_a_character(text, piece):
    before, reading.PIECE = reading.PIECE, piece
    try:
        got, _ = text_of(text.encode(), as_it_is=True)
    finally:
        reading.PIECE = before
    assert got == text


@given(st.text(st.sampled_from("ab\r\né"), max_size=40))
def test_line_ends_become_line_feeds(text):
    got, notes = text_of(text.encode())
    assert got == text.replace("\r\n", "\n").replace("\r", "\n")
    pairs = text.count("\r\n")
    said = f"t ends lines with {pairs} CR LF and {text.count(chr(13)) - pairs} lone CR, which became line feeds"
    assert notes == ((said,) if "\r" in text else ())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_byte_order_mark_is_never_a_symbol(encoding, small_pieces):
    mark = {"utf-16-be": codecs.BOM_UTF16_BE, "utf-32-be": codecs.BOM_UTF32_BE}.get(encoding, b"")
    got, (note,) = text_of(mark + (LINES + "😀").encode(encoding))
    assert got == LINES + "😀"
    assert ("byte-order mark, which was skipped" if "8" in encoding else f"decoded from {encoding[:6].upper()}") in note
    (first, second) = text_of(mark + LINES.replace("\n", "\r\n").encode(encoding))[1]
    assert first == note
    assert "24 CR LF" in second


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", [LINES, "中文的文本没有英文的字母\n" * 9], ids=["latin", "chinese"])
def test_without_a_mark_the_encoding_is_guessed(encoding, text):
    raw = text.encode(encoding)
    with pytest.raises(DataError) as caught:
        clean("t 1", raw)
    name = encoding.upper().replace("-L", "L").replace("-B", "B")
    assert f"it is probably {name}; convert it: iconv -f {name} -t UTF-8 't 1' > new.txt" in str(caught.value)
    assert f"t 1 has {raw.count(0):,} NUL characters, the first at byte {raw.index(0)}; " in str(caught.value)


REFUSED = {
    "t is not UTF-8 text: byte 13 is 0xff; it is probably WINDOWS-1252": b"ab" * 5 + b"abc\xff",
    "byte 10 is 0xfc; it is probably WINDOWS-1252; convert it: iconv -f WINDOWS-1252 -t UTF-8 t": "Fuchs\nund über\n".encode(
        "cp1252"
    ),
    "byte 0 is 0xd6; it is in another encoding; convert it: iconv -f ENCODING": "中文的文本。\n".encode("gbk"),
    "byte 5 is 0xe2; its end is cut off, or ": "abcde€".encode()[:-1],
    "t has 10 NUL characters, the first at byte 0; it is not a text, or a damaged one: tr -d": bytes(range(256)) * 10,
    "t is not UTF-16 text: byte 8 is 0x00; it is damaged": codecs.BOM_UTF16_LE + "abc".encode("utf-16-le") + b"\x00\xd8a\0",
    "t, as UTF-8, has 1 NUL characters, the first at byte 1": codecs.BOM_UTF16_LE + "a\0b".encode("utf-16-le"),
}


@pytest.mark.parametrize("words", REFUSED)
@pytest.mark.parametrize("piece", [3, 2**20])
def test_what_is_no_utf8_is_named(words, piece, monkeypatch):
    monkeypatch.setattr(reading, "PIECE", piece)
    with pytest.raises(DataError) as caught:
        clean("t", REFUSED[words])
    assert words in str(caught.value)


def test_characters_that_are_rarely_meant_are_named():
    got, (note,) = text_of("a\x0b\tb\x1b\x1b\n\x85\ufffdc\ufeff".encode())
    assert got == "a\x0b\tb\x1b\x1b\n\x85\ufffdc\ufeff"
    assert note.endswith(r"kept as symbols: '\x0b' x1, '\x1b' x2, '\x85' x1, '\ufeff' x1, '\ufffd' x1")
    assert text_of("äöü 😀👩‍👩‍👧 “-” عربى".encode())[1] == ()


def test_what_a_vocabulary_has_stays():
    raw = "\ufeffa\0b\r\nc\r".encode()
    assert text_of(raw, keep="\0")[0] == "a\0b\nc\n"
    assert text_of(raw, keep="\0\r\ufeff")[0] == "a\0b\r\nc\r"  # but a mark at the beginning
    assert text_of(raw, as_it_is=True) == (raw.decode(), ())


def test_reading_a_stream_once(tmp_path, monkeypatch):
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(LINES.encode() * 1000,))
    writer.start()
    assert read(pipe).utf8.decode() == LINES * 1000
    writer.join()
    assert is_stream(pipe)
    assert is_stream(Path("-"))
    assert not is_stream(tmp_path)
    assert not is_stream(Path(__file__))
    assert not is_stream(tmp_path / "none")
    assert name_of(Path("-")) == "standard input"


@pytest.mark.parametrize("change", ["shrinks", "grows", "is written anew"])
def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch, small_pieces, change):
    path = tmp_path / "t"
    path.write_text(LINES)
    os.utime(path, (1, 1))

    class Bar(reading.tqdm):
        def update(self, n=1):
            if change == "shrinks":
                os.truncate(path, 10)
                os.utime(path, (1, 1))  # a clock too coarse to tell
            elif change == "grows" and path.stat().st_size < 1000:
                path.write_text(LINES + LINES[:7])
            elif change == "is written anew":
                path.write_text(LINES.upper())

    assert read(path).utf8.decode() == LINES
    monkeypatch.setattr(reading, "tqdm", Bar)
    with pytest.raises(DataError, match="t changed while it was read; try again"):
        read(path)


def test_no_permission(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match="t cannot be read: Permission denied"):
        read(tmp_path / "t")


STDIN = "import sys; from pathlib import Path; from gpt.reading import read; print(len(read(Path('-')).utf8))"


def read_stdin(**streams):
    return subprocess.run([sys.executable, "-c", STDIN], cwd=ROOT, capture_output=True, text=True, check=False, **streams)


@pytest.mark.program
def test_standard_input(tmp_path):
    assert read_stdin(input="a" * 300_000).stdout == "300000\n"
    (tmp_path / "t").write_bytes(b"first\nsecond\n")
    with open(tmp_path / "t") as file:
        os.lseek(file.fileno(), 6, os.SEEK_SET)  # as after a `read` of the shell
        assert read_stdin(stdin=file).stdout == "7\n"
    if hasattr(os, "set_blocking") and os.name == "posix":
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.write(writer, b"begun")
        assert "gpt.errors.DataError: standard input cannot be read: it is non-blocking" in read_stdin(stdin=reader).stderr
        os.close(reader), os.close(writer)
        closed = subprocess.run(["sh", "-c", '"$0" -c "$1" <&-', sys.executable, STDIN], cwd=ROOT, capture_output=True, text=True)
        assert "gpt.errors.DataError: standard input is closed; name a file" in closed.stderr


MEASURE = """
import json, sys, time, tracemalloc
from pathlib import Path
from gpt.data import load_corpus
found = []
for name in sys.argv[1:]:
    begin = time.perf_counter()
    tracemalloc.start()
    corpus = load_corpus(Path(name), 8)
    found.append([tracemalloc.get_traced_memory()[1], len(corpus.tokenizer), time.perf_counter() - begin])
    tracemalloc.stop()
    del corpus
print(json.dumps(found))
"""


@pytest.mark.program
def test_memory_and_time_of_loading(tmp_path):
    """At most six bytes per byte of the file, whatever the characters, beside a fixed 24 MB; a million symbols in seconds."""
    line = b"The quick brown fox jumps over the lazy dog.\r\n"
    symbols = [chr(c) for c in range(32, CODE_POINTS) if not 0xD800 <= c < 0xE000 and c not in reading.RARELY_MEANT]
    texts = {
        "ascii": line * (4 * 2**20 // len(line)),
        "emoji": line[:-2] * (20 * 2**20 // len(line)) + "😀".encode(),
        "chinese": "".join(map(chr, range(0x4E00, 0x9E00))).encode() * 340,
        "symbols": "".join(symbols).encode(),
        "utf-16": (line.decode() * (2 * 2**20 // len(line))).encode("utf-16"),
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    command = [sys.executable, "-c", MEASURE, *(str(tmp_path / name) for name in texts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for (name, text), (peak, vocabulary, seconds) in zip(texts.items(), json.loads(done.stdout), strict=True):
        assert peak <= 6 * len(text) + 24 * 2**20, f"{name}: {peak / len(text):.1f} bytes per byte"
        assert seconds < 20, f"{name}: {seconds:.1f} s"  # all take less than one; what was quadratic took 46
        assert vocabulary == {"chinese": 0x5000, "symbols": len(symbols)}.get(name, vocabulary)


def test_a_vocabulary_beyond_16_bits():
    text = "".join(map(chr, range(0x10000, 0x20001)))
    tokenizer = CharTokenizer.of(text[::-1])
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.uint32
    assert (tokens == np.arange(65537)).all()
    assert CharTokenizer.of(text[1:]).encode(text[1:]).dtype == np.uint16
    assert tokenizer.unknown("ab\ud800b") == {"a": 1, "b": 2, "\ud800": 1}


def test_an_old_run_goes_on_with_the_text_as_it_knew_it(tmp_path):
    """Before there was any cleaning, the hash was of the file as it is."""
    raw = b"\xef\xbb\xbfone\r\ntwo\rthree\0\n" * 9
    path = tmp_path / "t"
    path.write_bytes(raw)
    sha256 = hashlib.sha256(raw).hexdigest()
    old = load_corpus(path, 8, CharTokenizer.of(raw.decode()), sha256=sha256)
    assert old.tokenizer.decode([*old.train, *old.val]) == raw.decode()
    without = CharTokenizer.of("onetwhr\n")  # a fine-tuned run that dropped what its vocabulary lacks
    assert load_corpus(path, 8, without, drop_unknown=True, sha256=sha256).dropped == 9 * 4
    path.write_bytes(raw.replace(b"\0", b""))
    new = load_corpus(path, 8)
    assert new.tokenizer.vocabulary == "\nehnortw\ufeff"  # marks within a text stay, and are named
    assert load_corpus(path, 8, new.tokenizer, sha256=new.sha256).sha256 == new.sha256
    path.write_bytes(raw.replace(b"\0", b"").replace(b"\r", b"\n"))
    with pytest.raises(DataError, match="another text"):
        load_corpus(path, 8, new.tokenizer, sha256=new.sha256)
