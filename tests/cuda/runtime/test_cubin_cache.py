"""Compiled kernels on disk: a damaged file is compiled again."""

import pytest

from tensorlite.cache_dir import cache_folder
from tensorlite.cuda.runtime import nvrtc


@pytest.mark.parametrize("damage", ["empty", "cut short", "garbage", "a bit", "of an older version", "a folder"])
def test_damaged_code_is_compiled_anew(damage, fake_gpu, monkeypatch):
    """This happens once; afterwards the file is whole again. The driver never sees the damaged code."""
    code, made = bytes(range(256)) * 10, []
    monkeypatch.setattr(nvrtc, "compile_file", lambda *_: made.append(1) or (code, ""))
    assert nvrtc.cubin("spin.cu", 90, {}) == code
    (path,) = (cache_folder() / "kernels").iterdir()
    whole = path.read_bytes()
    if damage == "a folder":
        path.unlink(), path.mkdir()
    else:
        flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
        path.write_bytes(
            {"empty": b"", "cut short": whole[:-1], "garbage": b"x" * 5000, "a bit": flipped, "of an older version": code}[damage]
        )
    for _ in range(2):
        assert nvrtc.cubin("spin.cu", 90, {}) == code
    assert len(made) == (3 if damage == "a folder" else 2)
    assert damage == "a folder" or path.read_bytes() == whole
