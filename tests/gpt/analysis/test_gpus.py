"""GPU figures are found by the names that drivers and users give the cards."""

import numpy as np
import pytest

from gpt.analysis import gpus
from gpt.errors import ConfigError
from tensorlite import Device

GPU = Device("cuda", np, "a GPU of the tests")


@pytest.mark.parametrize(
    ("said", "meant"),
    {
        "nvidia l40s": "L40S",
        "NVIDIA L40": "L40",
        "NVIDIA L4": "L4",
        "NVIDIA H200": "H200",
        "NVIDIA GH200 480GB": "GH200",
        "NVIDIA A10": "A10",
        "NVIDIA A10G": None,
        "NVIDIA A100-SXM4-80GB": "A100",
        "NVIDIA H100 80GB HBM3": "H100",
        "Tesla T4": "T4",
        "Tesla P100-PCIE-16GB": "P100",
        "NVIDIA GeForce GTX 1660 Ti": "GTX 1660 Ti",
        "NVIDIA GeForce GTX 1660 SUPER": None,
        "NVIDIA GeForce RTX 2080 Ti": "RTX 2080 Ti",
        "NVIDIA GeForce RTX 2080 SUPER": None,
        "NVIDIA GeForce GTX 1080": "GTX 1080",
        "Tesla V100-SXM2-16GB": "V100",
        "NVIDIA RTX A6000": "RTX A6000",
        "rtx4090": "RTX 4090",
        "NVIDIA GeForce RTX 4070": "RTX 4070",
        "NVIDIA GeForce RTX 4070 Ti": "RTX 4070 Ti",
        "rtx 4070ti": "RTX 4070 Ti",
        "NVIDIA GeForce RTX 4070 Ti SUPER": None,
        "NVIDIA GeForce RTX 4070 SUPER": None,
        "NVIDIA GeForce RTX 4070 Laptop GPU": None,
        "NVIDIA GeForce RTX 4090 D": None,
        "NVIDIA RTX A1000": None,
        "NVIDIA RTX 4000 Ada Generation": None,
        "GTX 970": None,
    }.items(),
)
def test_a_name_means_one_card_or_none(said, meant, capsys):
    """A GPU that the user names must be known. For an unknown GPU of this machine a note says that other figures are shown."""
    here = Device("cuda", np, said)
    if meant:
        assert gpus.lookup_gpu(said) == gpus.figures_for(said, GPU) == gpus.figures_for(None, here) == meant
        assert capsys.readouterr().out == ""
    else:
        with pytest.raises(ConfigError, match=f"gpu '{said}' is not known; --gpu takes one of A100, H100"):
            gpus.figures_for(said, here)
        assert gpus.figures_for(None, here) == "H200"
        assert capsys.readouterr().out.startswith(f"note     there are no datasheet figures for {said}: these are an H200's")


def test_figures_without_any_gpu():
    assert gpus.figures_for(None, Device("cpu", np, "")) == "H200"
