"""Datasheet figures of GPUs and of their multiprocessors, for the table that --dry-run prints.

The figures of data-centre cards are from NVIDIA's datasheets. Those of GeForce and RTX cards are from the appendices of NVIDIA's
architecture whitepapers (Turing, GA102, Ada, RTX Blackwell) and from the product pages. Those of the H20 and B300 are from cloud
providers' tables. The A10G is left out because such tables disagree about it. The limits of a multiprocessor (SM) are from the
CUDA C++ Programming Guide's table of compute capabilities, and its units from the whitepapers.
"""

import re
from dataclasses import dataclass

from gpt.errors import ConfigError
from tensorlite import Device

DEFAULT_GPU = "H200"  # the GPU to show if the user names none and this machine has none
RESERVED_SHARED = 1024  # bytes of shared memory per block that the system owns from compute capability 8.0 on


@dataclass(frozen=True)
class Multiprocessor:
    """What one SM of a compute capability has and holds."""

    threads: int  # the most resident threads
    blocks: int  # the most resident blocks
    shared: int  # bytes of shared memory for all of its blocks
    fma: int  # lanes that multiply and add floats, each once per clock
    load_store: int  # lanes that load and store
    fp64: int  # lanes of double precision


MULTIPROCESSORS = {  # by compute capability, 75 for 7.5
    60: Multiprocessor(2048, 32, 64 << 10, fma=64, load_store=32, fp64=32),
    61: Multiprocessor(2048, 32, 96 << 10, fma=128, load_store=32, fp64=4),
    70: Multiprocessor(2048, 32, 96 << 10, fma=64, load_store=32, fp64=32),
    75: Multiprocessor(1024, 16, 64 << 10, fma=64, load_store=16, fp64=2),
    80: Multiprocessor(2048, 32, 164 << 10, fma=64, load_store=32, fp64=32),
    86: Multiprocessor(1536, 16, 100 << 10, fma=128, load_store=16, fp64=2),
    89: Multiprocessor(1536, 24, 100 << 10, fma=128, load_store=16, fp64=2),
    90: Multiprocessor(2048, 32, 228 << 10, fma=128, load_store=32, fp64=64),
    100: Multiprocessor(2048, 32, 228 << 10, fma=128, load_store=32, fp64=64),
    103: Multiprocessor(2048, 32, 228 << 10, fma=128, load_store=32, fp64=2),
    120: Multiprocessor(1536, 24, 100 << 10, fma=128, load_store=16, fp64=2),
}


@dataclass(frozen=True)
class Gpu:
    """Peak rates of one card: of the SXM variant with the larger memory, if there are several.

    None: the tensor cores do not support the format, or no kernel of ours uses it there. bf16 and tf32 need compute capability 8.0.
    fp16 needs 7.5; a V100 has it in a layout that no kernel of ours supports.
    """

    capability: int  # 75 for compute capability 7.5
    sms: int  # multiprocessors
    fp16: float | None  # dense TFLOP/s with float32 accumulation, as are the next three
    bf16: float | None
    tf32: float | None
    float32: float
    bandwidth: float  # GB/s

    @property
    def sm(self) -> Multiprocessor:
        return MULTIPROCESSORS[self.capability]

    @property
    def clock(self) -> float:
        """The boost clock in Hz, which the datasheet's float32 rate contains: 2 FLOPs per lane and clock."""
        flops_per_clock = 2 * self.sm.fma * self.sms
        return self.float32 * 1e12 / flops_per_clock


def tensor_card(capability: int, sms: int, bf16: float, tf32: float, float32: float, bandwidth: float) -> Gpu:
    """Return a data-centre card of compute capability 8.0 or later, whose fp16 rate equals its bf16 rate."""
    return Gpu(capability, sms, bf16, bf16, tf32, float32, bandwidth)


def geforce(capability: int, sms: int, float32: float, bandwidth: float) -> Gpu:
    """Return a GeForce card: with float32 accumulation its bf16 rate is twice its float32 rate, and its tf32 rate equals it."""
    return tensor_card(capability, sms, 2 * float32, float32, float32, bandwidth)


def turing(sms: int, fp16: float, float32: float, bandwidth: float) -> Gpu:
    """Return a card of compute capability 7.5. A GeForce card has half of its fp16 rate when sums are float32."""
    return Gpu(75, sms, fp16, None, None, float32, bandwidth)


def float32_card(capability: int, sms: int, float32: float, bandwidth: float) -> Gpu:
    """Return a card on which the kernels compute in float32 alone."""
    return Gpu(capability, sms, None, None, None, float32, bandwidth)


GPUS = {
    "A100": tensor_card(80, 108, 312, 156, 19.5, 2039),
    "H100": tensor_card(90, 132, 989, 495, 67, 3350),
    "H200": tensor_card(90, 132, 989, 495, 67, 4800),
    "GH200": tensor_card(90, 132, 989, 495, 67, 4000),
    "H20": tensor_card(90, 78, 148, 74, 44, 4000),
    "B200": tensor_card(100, 148, 2250, 1125, 75, 8000),
    "B300": tensor_card(103, 148, 2250, 1125, 75, 8000),
    "L4": tensor_card(89, 58, 121, 60, 30.3, 300),
    "L40": tensor_card(89, 142, 181, 90.5, 90.5, 864),
    "L40S": tensor_card(89, 142, 362, 183, 91.6, 864),
    "A10": tensor_card(86, 72, 125, 62.5, 31.2, 600),
    "A40": tensor_card(86, 84, 149.7, 74.8, 37.4, 696),
    "RTX A6000": tensor_card(86, 84, 154.8, 77.4, 38.7, 768),
    "T4": turing(40, 65, 8.1, 320),
    "V100": float32_card(70, 80, 15.7, 900),
    "P100": float32_card(60, 56, 10.6, 732),
    "GTX 1060": float32_card(61, 10, 4.4, 192),
    "GTX 1080": float32_card(61, 20, 8.9, 320),
    "GTX 1080 Ti": float32_card(61, 28, 11.3, 484),
    "GTX 1660 Ti": turing(24, 5.4, 5.4, 288),  # no tensor cores: fp16 with float32 sums is taken to be as fast as float32
    "RTX 2060": turing(30, 25.8, 6.5, 336),
    "RTX 2070": turing(36, 29.9, 7.5, 448),
    "RTX 2080": turing(46, 40.3, 10.1, 448),
    "RTX 2080 Ti": turing(68, 53.8, 13.4, 616),
    "RTX 3060": geforce(86, 28, 12.7, 360),
    "RTX 3060 Ti": geforce(86, 38, 16.2, 448),
    "RTX 3070": geforce(86, 46, 20.3, 448),
    "RTX 3070 Ti": geforce(86, 48, 21.7, 608),
    "RTX 3080": geforce(86, 68, 29.8, 760),
    "RTX 3080 Ti": geforce(86, 80, 34.1, 912),
    "RTX 3090": geforce(86, 82, 35.6, 936),
    "RTX 3090 Ti": geforce(86, 84, 40.0, 1008),
    "RTX 4060": geforce(89, 24, 15.1, 272),
    "RTX 4060 Ti": geforce(89, 34, 22.1, 288),
    "RTX 4070": geforce(89, 46, 29.1, 504),
    "RTX 4070 Ti": geforce(89, 60, 40.1, 504),
    "RTX 4080": geforce(89, 76, 48.7, 717),
    "RTX 4090": geforce(89, 128, 82.6, 1008),
    "RTX 5070": geforce(120, 48, 30.9, 672),
    "RTX 5070 Ti": geforce(120, 70, 43.9, 896),
    "RTX 5080": geforce(120, 84, 56.3, 960),
    "RTX 5090": geforce(120, 170, 104.8, 1792),
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
