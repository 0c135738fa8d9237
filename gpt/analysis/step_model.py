"""A model of a training step that needs no GPU: what bounds each kernel, and how long it should take.

For each launch it computes the seconds that its bytes need at the memory bandwidth, and the seconds that each pipe of the
multiprocessors needs for the instructions that were counted in the machine code (launch_count.py). The longest of these is the
bound. It is the estimate, with the time in which the launch starts and ends. cuBLASLt's code is not ours, so a GEMM is estimated
from its tiles. assumptions.py has the figures that no datasheet gives. An estimate is counted, not measured.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from gpt.analysis import assumptions as assume
from gpt.analysis.gpus import RESERVED_SHARED, Gpu
from gpt.analysis.launch_count import LaunchCount, count
from gpt.analysis.pipes import LOAD_STORE, TENSOR, WARP
from tensorlite.cuda.runtime.dry_run import Gemm, Launch
from tensorlite.cuda.runtime.signature import kernel_signature
from tensorlite.integers import ceil_div, round_up

REGISTERS_PER_PARTITION = 16384  # an SM has four partitions with a scheduler and registers of their own


@dataclass
class KernelEstimate:
    """The calls of one kernel in an op."""

    op: str
    kernel: str
    calls: int = 0
    seconds: float = 0.0  # of all calls, without the gaps between kernels
    bound: str = ""  # what takes longest: "bytes", a pipe, "issue" slots, memory "latency"; "tiles" for a GEMM
    registers: int | None = None  # per thread; None for a GEMM, as are the next two
    occupancy: float | None = None  # resident warps over those that an SM can hold
    mask_share: float | None = None  # the part of the ALU's instructions that draw dropout masks
    undecided: bool = False  # whether the end of a loop is unknown; such a loop counts once


def estimate(launches: Iterable[tuple[tuple[str, str], Launch | Gemm]], gpu: Gpu, precision: str) -> list[KernelEstimate]:
    """Estimate each kernel of a step, by op and kernel, in the order of their first call.

    launches: those that a DryRunRuntime lists.
    Raises DeviceError where NVRTC or nvdisasm is missing or fails, and EndlessError.
    """
    found: dict[tuple[str, str], KernelEstimate] = {}
    counted: dict[object, LaunchCount] = {}
    for key, launch in launches:
        entry = found.setdefault(key, KernelEstimate(*key))
        entry.calls += 1
        if isinstance(launch, Gemm):
            seconds, entry.bound = gemm_seconds(launch, gpu, precision)
        else:
            alike = _without_addresses(launch)
            if alike not in counted:
                counted[alike] = count(launch, gpu, getattr(gpu, precision) or 0.0)
            seconds = _add_launch(entry, launch, counted[alike], gpu)
        entry.seconds += seconds
    return list(found.values())


def step_seconds(estimates: Iterable[KernelEstimate]) -> float:
    """Return the seconds of a step: its kernels, and a gap after each."""
    seconds = 0.0
    for entry in estimates:
        seconds += entry.seconds + entry.calls * assume.GAP
    return seconds


def _without_addresses(launch: Launch) -> Launch:
    """Return a launch that is equal for all that execute the same instructions."""
    types = kernel_signature(launch.file, launch.kernel).types.values()
    named = zip(launch.arguments, types, strict=True)
    alike = tuple(bool(a) if type_.endswith("*") else a for a, type_ in named if not isinstance(a, np.ndarray))
    return replace(launch, arguments=alike)


def _add_launch(entry: KernelEstimate, launch: Launch, counted: LaunchCount, gpu: Gpu) -> float:
    blocks_per_sm = resident_blocks(counted.registers, counted.shared, launch.block, gpu)
    needs = launch_seconds(launch, counted, blocks_per_sm, gpu)
    entry.bound = max(needs, key=lambda name: needs[name])
    entry.registers = counted.registers
    entry.occupancy = blocks_per_sm * launch.block / gpu.sm.threads
    entry.mask_share = counted.mask_share
    entry.undecided |= counted.undecided
    return needs[entry.bound] + assume.RAMP


def launch_seconds(launch: Launch, counted: LaunchCount, blocks_per_sm: int, gpu: Gpu) -> dict[str, float]:
    """Return the seconds that a launch needs of each resource."""
    blocks = math.prod(launch.grid)
    clock = assume.CLOCK * gpu.clock
    warps = ceil_div(launch.block, WARP) * ceil_div(blocks, gpu.sms)  # of the SM that has the most blocks
    needs = {"bytes": launch.bytes / bytes_per_second(gpu)}
    rates = {TENSOR: assume.MMA_SYNC.get(gpu.capability, assume.PIPE), LOAD_STORE: assume.QUEUED}
    for pipe, clocks in counted.clocks.items():
        needs[pipe] = warps * clocks / (rates.get(pipe, assume.PIPE) * clock)
    needs["issue"] = warps * counted.instructions * WARP / (assume.ISSUE_LANES * assume.QUEUED * clock)
    waves = ceil_div(blocks, gpu.sms * blocks_per_sm)
    needs["latency"] = waves * counted.load_rounds * assume.MEMORY_LATENCY / clock
    return needs


def bytes_per_second(gpu: Gpu) -> float:
    """Return the bandwidth that a kernel reaches."""
    return assume.BANDWIDTH * gpu.bandwidth * 1e9


def resident_blocks(registers: int, shared: int, block: int, gpu: Gpu) -> int:
    """Return how many blocks an SM holds at a time."""
    sm = gpu.sm
    warps = ceil_div(block, WARP)
    per_warp = round_up(registers * WARP, 256)
    by_registers = REGISTERS_PER_PARTITION // per_warp * 4 // warps
    bytes_per_block = shared + (RESERVED_SHARED if 80 <= gpu.capability < 90 else 0)  # code for 9.0 counts them itself
    by_shared = sm.shared // round_up(bytes_per_block, 128) if bytes_per_block else sm.blocks
    return max(1, min(by_registers, by_shared, sm.threads // block, sm.blocks))


def gemm_seconds(gemm: Gemm, gpu: Gpu, precision: str) -> tuple[float, str]:
    """Return the seconds of a GEMM with its epilogues, and its bound."""
    by_split = [_tile_seconds(gemm, split, gpu, precision) for split in _splits(gemm)]
    needs = {"tiles": min(by_split), "bytes": gemm.bytes / bytes_per_second(gpu)}
    bound = max(needs, key=lambda name: needs[name])
    epilogues = [_epilogue_seconds(gemm, name, gpu) for name in gemm.epilogues]
    return needs[bound] + sum(epilogues), bound


def _splits(gemm: Gemm) -> range:
    """Return into how many parts K may be split: each part has at least two tiles."""
    most = gemm.K // (2 * assume.TILE)
    return range(1, max(1, min(most, assume.MAX_SPLIT)) + 1)


def _tile_seconds(gemm: Gemm, split: int, gpu: Gpu, precision: str) -> float:
    """Return the seconds of the tiles: each SM computes one after the other. The parts of a split K are written and summed."""
    tile = assume.TILE
    tiles = ceil_div(gemm.M, tile) * ceil_div(gemm.N, tile) * split
    flops_of_each = 2 * tile * tile * (gemm.K / split + assume.TILE_START)
    flops_per_sm = assume.GEMM * getattr(gpu, precision) * 1e12 / gpu.sms
    seconds = ceil_div(tiles, gpu.sms) * flops_of_each / flops_per_sm
    if split > 1:
        partial_bytes = 4 * split * gemm.M * gemm.N
        seconds += 2 * partial_bytes / bytes_per_second(gpu) + assume.GAP
    return seconds


def _epilogue_seconds(gemm: Gemm, name: str, gpu: Gpu) -> float:
    rows = gemm.K if name == "bias_grad" else gemm.M
    instructions = assume.EPILOGUE[name] * rows * gemm.N
    per_second = assume.ISSUE_LANES * gpu.sms * assume.CLOCK * gpu.clock
    return instructions / per_second
