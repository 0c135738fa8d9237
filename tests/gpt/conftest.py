"""A small text to train on, and the notes that a test caused."""

import pytest

from gpt import console
from small import PANGRAMS


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "text").write_text(PANGRAMS)
    return tmp_path / "text"


@pytest.fixture(autouse=True)
def notes(monkeypatch):
    """What was noted."""
    monkeypatch.setattr(console, "_noted", set())
    return console._noted
