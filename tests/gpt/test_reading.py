"""Reading a text: the guess what a file is, standard input, the bar, what messages say."""

import contextlib
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt import reading
from gpt.data import load_corpus
from gpt.errors import DataError
from gpt.reading import clean, read
from gpt.tokenizer import CharTokenizer, code_points


def le(text):
    return text.encode("utf-16-le")


NO_TEXT = "tr -d"
GUESSES = {
    "UTF-16, Chinese first": (le("中a" * 9), "it is probably UTF-16LE"),
    "UTF-16, Chinese second": (le("a中" * 9), "it is probably UTF-16LE"),
    "UTF-16 the other way round, Chinese first": ("中a".encode("utf-16-be") * 9, "it is probably UTF-16BE"),
    "UTF-16 the other way round, Chinese second": ("a中".encode("utf-16-be") * 9, "it is probably UTF-16BE"),
    "UTF-16, one character": (b"a\0", "it is probably UTF-16LE"),
    "UTF-16, NUL characters below one per cent of the others": (le("a" * 101 + "中") + b"\0b", "it is probably UTF-16LE"),
    "UTF-16, one per cent": (le("a" * 100 + "中") + b"\0b", NO_TEXT),
    "UTF-16 the other way round, one per cent": (("a" * 100 + "中").encode("utf-16-be") + b"b\0", NO_TEXT),
    "UTF-16, half as many": (le("a" * 100 + "中") + b"\0b" * 50, NO_TEXT),
    "one zero among a hundred bytes": (b"a" * 99 + b"\0", NO_TEXT),
    "UTF-32, two characters": ("ab".encode("utf-32-le"), "it is probably UTF-32LE"),
    "UTF-32, its last byte cut off": ("abc".encode("utf-32-le")[:-1], "it is probably UTF-32LE"),
    "UTF-32, half of it emoji": ("a😀".encode("utf-32-le"), NO_TEXT),
    "UTF-32, three fifths of it emoji": ("aa😀😀😀".encode("utf-32-le"), NO_TEXT),
    "UTF-32 the other way round, two characters": ("ab".encode("utf-32-be"), "it is probably UTF-32BE"),
    "UTF-32 the other way round, half of it emoji": ("a😀".encode("utf-32-be"), NO_TEXT),
    "three bytes": (b"ab\0", NO_TEXT),
    "less than a third beyond ASCII": (b"\xe4bcdefg\xe4\xe4j", "it is probably WINDOWS-1252"),
    "a third beyond ASCII": (b"\xe4bc" * 3, "it is in another encoding"),
    "euro signs": (b"\x80" * 9, "it is in another encoding"),
}


@pytest.mark.parametrize("what", GUESSES)
def test_what_bytes_may_be(what):
    raw, guess = GUESSES[what]
    with pytest.raises(DataError) as caught:
        clean("t", raw)
    assert guess in str(caught.value)
    assert ("tr -d" in str(caught.value)) == (guess == NO_TEXT)


@pytest.fixture
def stdin(monkeypatch):
    """Let standard input be a pipe that has some bytes; returns its descriptor."""
    with contextlib.ExitStack() as opened:

        def set_up(content, end=True):
            reader, writer = os.pipe()
            os.write(writer, content)
            if end:
                os.close(writer)
            else:
                opened.callback(os.close, writer)
                os.set_blocking(reader, False)
            monkeypatch.setattr(sys, "stdin", opened.enter_context(open(reader)))
            return reader

        yield set_up


def test_standard_input_is_read_and_stays_open(stdin):
    descriptor = stdin(b"one\ntwo\n")
    text = read(Path("-"))
    assert (text.name, bytes(text.utf8), text.notes) == ("standard input", b"one\ntwo\n", ())
    os.fstat(descriptor)  # an error if it is closed
    stdin(b"ab" * 10)
    assert load_corpus(Path("-"), 8).tokenizer.vocabulary == "ab"


def test_a_command_that_converts_standard_input_names_no_file(stdin):
    stdin(b"caf\xe9 au lait")
    with pytest.raises(DataError, match=r"standard input is not UTF-8 .*; convert it: iconv -f WINDOWS-1252 -t UTF-8$"):
        read(Path("-"))


def test_standard_input_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="standard input is closed"):
        read(Path("-"))


@pytest.mark.skipif(os.name != "posix", reason="this system has no non-blocking pipes")
def test_standard_input_that_does_not_wait(stdin):
    stdin(b"begun", end=False)
    with pytest.raises(DataError, match=r"standard input cannot be read: it .*; save it to a file"):
        read(Path("-"))


@pytest.fixture
def bars(monkeypatch):
    """What every bar is called, what it counts to, and what it counts. Bars are silent where standard error is no terminal."""
    shown = []

    class Bar(reading.tqdm):
        def __init__(self, **options):
            super().__init__(**options, file=io.StringIO())
            assert self.disable
            self.counted = []
            shown.append((options["desc"], options["total"], self.counted))

        def update(self, n=1):
            self.counted.append(n)

    monkeypatch.setattr(reading, "tqdm", Bar)
    monkeypatch.setattr(reading, "PIECE", 4)
    return shown


def test_a_bar_shows_each_pass_over_the_bytes(bars, tmp_path, stdin):
    path = tmp_path / "t"
    path.write_bytes(b"one two th")
    list(read(path).codes())
    assert bars == [(f"{what} {path}", 10, [4, 4, 2]) for what in ("reading", "decoding", "decoding")]
    bars.clear()
    stdin(b"one two")
    read(Path("-"))
    assert bars == [("reading standard input", None, [4, 3]), ("decoding standard input", 7, [4, 3])]


def test_a_file_keeps_what_a_vocabulary_has_and_is_named_in_messages(tmp_path):
    path = tmp_path / "t"
    path.write_bytes(b"a\r\nb\rc\r\n")
    assert bytes(read(path, keep="\r").utf8) == b"a\r\nb\rc\r\n"
    assert read(path).notes == (f"{path} ends lines with 2 CR LF and 1 lone CR, which became line feeds",)


def test_at_most_twenty_unknown_characters_are_listed():
    with pytest.raises(DataError, match="has 26 characters that the vocabulary lacks: 'z' x2, 'a' x1") as caught:
        CharTokenizer("A").encode("abcdefghijklmnopqrstuvwxyzz")
    assert str(caught.value).count(" x") == 20


def test_tokens_are_small_integers_even_where_characters_are_left_out():
    tokens, unknown = CharTokenizer("ab").encode_codes(code_points("abzzb"))
    assert (tokens.tolist(), tokens.dtype, unknown) == ([0, 1, 1], np.uint16, {"z": 2})
    assert CharTokenizer.of("b\ud800a").vocabulary == "ab\ud800"
