"""Datasheet figures of GPUs, for the table that --dry-run prints.

The figures of data-centre cards are from NVIDIA's datasheets. Those of GeForce and RTX cards are from the appendices of NVIDIA's
architecture whitepapers (GA102, Ada, RTX Blackwell) and from the product pages. Those of the H20 and B300 are from cloud providers'
tables. The A10G is left out because such tables disagree about it.
"""

import re
from dataclasses import dataclass

from gpt.errors import ConfigError
from tensorlite import Device

DEFAULT_GPU = "H200"  # the GPU to show if the user names none and this machine has none


@dataclass(frozen=True)
class Gpu:
    """Peak rates of one card: of the SXM variant with the larger memory, if there are several.

    None: the tensor cores do not support the format, or the card has none. Such a card has a compute capability below 8.0.
    """

    bf16: float | None  # dense TFLOP/s with float32 accumulation, as are the next two
    tf32: float | None
    float32: float
    bandwidth: float  # GB/s
    fp16_alone: float | None = None  # of a card of compute capability 7.5, whose tensor cores support no other format

    @property
    def fp16(self) -> float | None:
        """Dense TFLOP/s in fp16 with float32 accumulation. From compute capability 8.0 on, it is the rate of bf16."""
        return self.bf16 or self.fp16_alone


def geforce(float32: float, bandwidth: float) -> Gpu:
    """Return a GeForce card: with float32 accumulation its bf16 rate is twice its float32 rate, and its tf32 rate equals it."""
    return Gpu(bf16=2 * float32, tf32=float32, float32=float32, bandwidth=bandwidth)


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
    "T4": Gpu(None, None, 8.1, 320, fp16_alone=65),
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
NO_VARIANT = r"(?![a-z0-9]| *(ti|super|laptop|mobile|max-q|d)\b)"  # no suffix that names another card follows


def lookup_gpu(gpu: str) -> str:
    """Return the key of GPUS that a name means, for example "H200" for "NVIDIA H200". Raises ConfigError for an unknown GPU."""
    found = [known for known in GPUS if _names(gpu, known)]
    if not found:
        raise ConfigError(f"gpu {gpu!r} is not known; --gpu takes one of {', '.join(GPUS)}")
    return max(found, key=len)


def _names(text: str, card: str) -> bool:
    """Whether a text names this card, and not a variant of it."""
    spaces_optional = card.lower().replace(" ", " *")
    return re.search(rf"(?<![a-z0-9]){spaces_optional}{NO_VARIANT}", text.lower()) is not None


def figures_for(asked: str | None, device: Device) -> str:
    """Return the key of GPUS to use: the one asked for, else this machine's GPU, else DEFAULT_GPU.

    It prints a note if this machine's GPU has no entry.
    """
    if asked is not None:
        return lookup_gpu(asked)
    if device.name != "cuda":
        return DEFAULT_GPU
    try:
        return lookup_gpu(device.description)
    except ConfigError:
        print(
            f"note     there are no datasheet figures for {device.description}: these are an {DEFAULT_GPU}'s; --gpu selects another"
        )
        return DEFAULT_GPU
