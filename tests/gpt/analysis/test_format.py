"""Bytes and seconds as they are printed."""

from gpt.analysis.format import human_bytes, human_seconds


def test_units():
    assert [human_bytes(n) for n in (5, 2048, 3 * 2**20, 5 * 2**30)] == ["5 B", "2 KiB", "3 MiB", "5.0 GiB"]
    assert [human_seconds(n) for n in (59, 600, 4 * 3600 + 300, 864e3)] == ["59 s", "10 min", "4 h 5 min", "10.0 days"]
