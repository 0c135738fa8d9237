"""How many instructions a launch executes on each pipe, counted in the machine code without a GPU.

The first lane of a warp stands for the warp. Of a block of up to WARPS warps, all are followed. Of a larger block the second is, so
that work of one thread per block does not count for all. Up to SAMPLES blocks, spread evenly over the grid, stand for all blocks.
Launches that differ only in addresses and structs count as equal.
"""

import functools
import itertools
import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from gpt.analysis.gpus import Gpu
from gpt.analysis.machine_code import MachineCode, disassemble
from gpt.analysis.pipes import ALU, GLOBAL_LOADS, PIPES, WARP, clocks, pipe_of
from gpt.analysis.thread_walk import Walker
from tensorlite.cuda.runtime import nvrtc
from tensorlite.cuda.runtime.dry_run import Launch
from tensorlite.cuda.runtime.signature import kernel_signature
from tensorlite.integers import ceil_div

SAMPLES = 8
WARPS = 4
# Where the sizes of block and grid are in constant bank 0, by the place of the first parameter: 7.x and 8.x, 9.0, 10.0 and later.
SIZES_AT = {0x160: (0x0, 0xC), 0x210: (0x0, 0xC), 0x380: (0x360, 0x370)}
ADDRESS = 1 << 32  # stands for every address that is not null
TOGETHER = 40  # loads at most so many instructions apart wait for memory together
MASKS = "random.cuh"  # the file whose instructions draw dropout masks


@dataclass
class LaunchCount:
    """The work of one warp, the mean over the warps of a launch, and what its block needs."""

    clocks: dict[str, float]  # per pipe: clocks of an SM
    registers: int  # per thread
    instructions: float = 0.0  # that are issued, those whose guard is false included
    load_rounds: float = 0.0  # how often it waits for memory
    mask_share: float = 0.0  # the part of the ALU's instructions that draw dropout masks
    shared: int = 0  # bytes per block, dynamic ones included
    undecided: bool = False  # whether a loop's end is unknown, so that it counts once


@functools.cache
def walkers(file: str, defines: tuple[tuple[str, str | int], ...], architecture: int) -> dict[str, Walker]:
    """Compile and disassemble a kernel file. Raises DeviceError."""
    kernels = disassemble(nvrtc.cubin(file, architecture, dict(defines)))
    return {name: Walker(code) for name, code in kernels.items()}


def code_architecture(capability: int) -> int:
    """Return the architecture whose machine code is read: the card's own, or that of 7.5 for older ones."""
    known = [known for known in nvrtc.architectures() if 70 <= known <= capability and known // 10 == capability // 10]
    return max(known, default=75)


def count(launch: Launch, gpu: Gpu, tensor_tflops: float) -> LaunchCount:
    """Count the instructions of a launch. Raises DeviceError and EndlessError."""
    walker = walkers(launch.file, launch.defines, code_architecture(gpu.capability))[launch.kernel]
    code = walker.code
    executed: Counter[int] = Counter()
    issued = 0
    undecided = False
    positions = list(itertools.product(sampled_blocks(launch.grid), sampled_warps(launch.block)))
    constants = constant_bank(launch, code)
    for (x, y), warp in positions:
        special = {"SR_TID.X": WARP * warp, "SR_CTAID.X": x, "SR_CTAID.Y": y}
        walk = walker.walk(constants, special)
        undecided |= bool(walk.undecided)
        executed.update(dict(enumerate(walk.executed)))
        issued += sum(walk.issued)
    work = _work(code, {i: times / len(positions) for i, times in executed.items()}, gpu, tensor_tflops)
    return replace(work, instructions=issued / len(positions), shared=code.shared + launch.shared, undecided=undecided)


def _work(code: MachineCode, executed: Mapping[int, float], gpu: Gpu, tensor_tflops: float) -> LaunchCount:
    """Add up what a warp executes. executed: how often, by the index of the instruction."""
    work = LaunchCount(dict.fromkeys(PIPES, 0.0), registers=code.registers)
    of_alu = from_masks = 0.0
    last_load = -TOGETHER - 1
    for i, instruction in enumerate(code.instructions):
        pipe = pipe_of(instruction)
        work.clocks[pipe] += executed[i] * clocks(instruction, gpu, tensor_tflops)
        if pipe == ALU:
            of_alu += executed[i]
            from_masks += executed[i] * (MASKS in instruction.files)
        if instruction.name in GLOBAL_LOADS:
            work.load_rounds += executed[i] * (i - last_load > TOGETHER)
            last_load = i
    work.mask_share = from_masks / max(of_alu, 1.0)
    return work


def sampled_warps(block: int) -> range:
    """Return the warps of a block of so many threads that are followed."""
    warps = ceil_div(block, WARP)
    return range(warps) if warps <= WARPS else range(1, 2)


def sampled_blocks(grid: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Return the positions (x, y) of up to SAMPLES blocks, evenly spread over the grid."""
    width = grid[0]
    blocks = math.prod(grid)
    samples = min(SAMPLES, blocks)
    for i in range(samples):
        block = (2 * i + 1) * blocks // (2 * samples)
        yield block % width, block // width


def constant_bank(launch: Launch, code: MachineCode) -> dict[int, int]:
    """Return the words of constant bank 0: the sizes of block and grid, and the arguments."""
    block_at, grid_at = SIZES_AT[code.parameters_at]
    y = launch.grid[1] if len(launch.grid) > 1 else 1
    words = {block_at: launch.block, block_at + 4: 1, block_at + 8: 1, grid_at: launch.grid[0], grid_at + 4: y, grid_at + 8: 1}
    types = kernel_signature(launch.file, launch.kernel).types.values()
    for i, (argument, type_) in enumerate(zip(launch.arguments, types, strict=True)):
        packed = _packed(argument, type_)
        at = code.parameters_at + code.parameter_offsets[i]
        for j, (byte4,) in enumerate(struct.iter_unpack("<I", packed + bytes(-len(packed) % 4))):
            words[at + 4 * j] = byte4
    return words


def _packed(argument: object, type_: str) -> bytes:
    """Return an argument's bytes. All addresses but the null pointer are alike."""
    if type_.endswith("*"):
        return struct.pack("<Q", ADDRESS if argument else 0)
    if isinstance(argument, int):
        return struct.pack("<q", argument)
    return argument.tobytes()  # type: ignore[attr-defined]  # a NumPy scalar or struct
