"""Datasheet figures of GPUs, for the table that --dry-run prints.

They are NVIDIA's: of data-centre cards from their datasheets, of GeForce and RTX cards from the appendices of the architecture
whitepapers (GA102, Ada, RTX Blackwell) and the product pages. The figures of the H20 and B300 are from providers' tables; of the
A10G the tables disagree, so it is not here.
"""

import re
from dataclasses import dataclass

from gpt.errors import ConfigError
from tensorlite import Device

DEFAULT_GPU = "H200"  # where none is named and none is in this machine


@dataclass(frozen=True)
class Gpu:
    """Dense TFLOP/s with float32 accumulation, and GB/s; of the SXM card, and the larger memory, where there are several.

    None: its tensor cores do not know the format. Such cards are of compute capability below 8.0, where the kernels do not run.
    """

    bf16: float | None
    tf32: float | None
    float32: float
    bandwidth: float


def geforce(float32: float, bandwidth: float) -> Gpu:
    """A card whose whitepaper lists, with float32 accumulation, twice its float32 rate for bf16 and its float32 rate for tf32."""
    return Gpu(2 * float32, float32, float32, bandwidth)


GPUS = {
    "A100": Gpu(312, 156, 19.5, 2039),
    "H100": Gpu(989, 495, 67, 3350),
    "H200": Gpu(989, 495, 67, 4800),
    "GH200": Gpu(989, 495, 67, 4000),
    "H20": Gpu(148, 74, 44, 4000),
    "B200": Gpu(2250, 1125, 75, 8000),
    "B300": Gpu(2250, 1125, 75, 8000),
    "L4": Gpu(121, 60, 30.3, 300),
    "L40": Gpu(181, 90.5, 90.5, 864),
    "L40S": Gpu(362, 183, 91.6, 864),
    "A10": Gpu(125, 62.5, 31.2, 600),
    "A40": Gpu(149.7, 74.8, 37.4, 696),
    "RTX A6000": Gpu(154.8, 77.4, 38.7, 768),
    "T4": Gpu(None, None, 8.1, 320),
    "V100": Gpu(None, None, 15.7, 900),
    "RTX 3060": geforce(12.7, 360),
    "RTX 3060 Ti": geforce(16.2, 448),
    "RTX 3070": geforce(20.3, 448),
    "RTX 3070 Ti": geforce(21.7, 608),
    "RTX 3080": geforce(29.8, 760),
    "RTX 3080 Ti": geforce(34.1, 912),
    "RTX 3090": geforce(35.6, 936),
    "RTX 3090 Ti": geforce(40.0, 1008),
    "RTX 4060": geforce(15.1, 272),
    "RTX 4060 Ti": geforce(22.1, 288),
    "RTX 4070": geforce(29.1, 504),
    "RTX 4070 Ti": geforce(40.1, 504),
    "RTX 4080": geforce(48.7, 717),
    "RTX 4090": geforce(82.6, 1008),
    "RTX 5070": geforce(30.9, 672),
    "RTX 5070 Ti": geforce(43.9, 896),
    "RTX 5080": geforce(56.3, 960),
    "RTX 5090": geforce(104.8, 1792),
}
VARIANT = r"(?![a-z0-9]| *(ti|super|laptop|mobile|max-q|d)\b)"  # a suffix that makes it another card than the name before it


def lookup_gpu(gpu: str) -> str:
    """The entry of GPUS that a name means, "NVIDIA H200" too. Raises ConfigError for one that is not known."""
    found = [known for known in GPUS if re.search(rf"(?<![a-z0-9]){known.lower().replace(' ', ' *')}{VARIANT}", gpu.lower())]
    if not found:
        raise ConfigError(f"gpu {gpu!r} is not known; one of {', '.join(GPUS)}")
    return max(found, key=len)


def figures_for(asked: str | None, device: Device) -> str:
    """The entry of GPUS to use: as asked, else that of this machine's GPU, else DEFAULT_GPU. Notes a GPU here that has no entry."""
    if asked is not None:
        return lookup_gpu(asked)
    if device.name != "cuda":
        return DEFAULT_GPU
    try:
        return lookup_gpu(device.description)
    except ConfigError:
        unknown = f"no datasheet figures are known here of {device.description}"
        print(f"note     {unknown}: these are an {DEFAULT_GPU}'s; --gpu names another")
        return DEFAULT_GPU
