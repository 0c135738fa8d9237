"""The folder of downloaded and compiled files, also on a system without a home folder."""

import errno
import os
import re
from pathlib import Path

import pytest

from failing import failing
from tensorlite import cache_dir
from tensorlite.cache_dir import cache_folder, write_whole


def test_no_home_folder(monkeypatch, tmp_path):
    for name in ("TENSORLITE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", failing(RuntimeError("Could not determine home directory.")))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    where = cache_folder()
    assert tmp_path in where.parents
    write_whole(where / "x", b"1")
    assert cache_folder() == where
    if os.name == "posix":
        assert where.stat().st_mode & 0o077 == 0  # no other user may write there
    monkeypatch.setattr("tempfile.gettempdir", failing(FileNotFoundError("No usable temporary directory found")))
    words = re.escape(os.strerror(errno.ENOTDIR)) if os.name == "posix" else None
    with pytest.raises(OSError, match=words):  # every caller ignores an OSError
        write_whole(cache_folder() / "x", b"1")


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has owners and modes")
@pytest.mark.parametrize("user", [0, 4711])
def test_a_temporary_folder_that_others_may_write_into_is_not_used(user, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: user)
    theirs = tmp_path / f"tensorlite-{user}"
    theirs.mkdir(mode=0o700)
    os.chmod(theirs, 0o777)
    private = cache_dir._private_temporary_folder()
    assert private != theirs
    assert private.stat().st_mode & 0o077 == 0
    os.chmod(theirs, 0o700)
    is_owner = theirs.stat().st_uid == user
    assert (cache_dir._private_temporary_folder() == theirs) == is_owner


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("TENSORLITE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "tensorlite"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/tensorlite")
    monkeypatch.setenv("TENSORLITE_CACHE", "/y")
    assert cache_folder() == Path("/y")


def test_two_writers_of_one_number_do_not_meet(tmp_path, monkeypatch):
    """Two hosts share a home folder. Each has its own partial file, though their process ids are equal."""
    partial, replace = [], Path.replace
    monkeypatch.setattr(os, "getpid", lambda: 7)
    monkeypatch.setattr(Path, "replace", lambda self, target: partial.append(self.name) or replace(self, target))
    for data in (b"one", b"two"):
        write_whole(tmp_path / "file", data)
    assert len(set(partial)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        write_whole(tmp_path / "file", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
