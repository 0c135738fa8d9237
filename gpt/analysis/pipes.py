"""The pipes of a multiprocessor (SM), and how long an instruction of one warp occupies its pipe."""

import re

from gpt.analysis.assumptions import ALU_LANES, MULTIPLY_LANES, SPECIAL_LANES
from gpt.analysis.gpus import Gpu
from gpt.analysis.machine_code import Instruction

WARP = 32
PIPES = TENSOR, FMA, ALU, LOAD_STORE, SPECIAL, FP64, OTHER = "tensor", "fma", "alu", "load/store", "special", "fp64", "other"
GLOBAL_LOADS = ("LDG", "LDGSTS", "LD")

INSTRUCTIONS = {  # those that are missing here are the ALU's
    TENSOR: "HMMA",
    FMA: "FFMA FADD FMUL FSWZADD IMAD HFMA2 HADD2 HMUL2",
    LOAD_STORE: "LDG STG LDGSTS LD ST LDS STS LDSM STSM SHFL LDL STL ATOM ATOMS ATOMG RED",
    SPECIAL: "MUFU I2F F2I F2F FRND POPC FLO BREV",
    FP64: "DADD DMUL DFMA DSETP",
    OTHER: "BRA BRX JMP EXIT CALL RET BSSY BSYNC BREAK BAR WARPSYNC NOP DEPBAR LDGDEPBAR LDC S2R S2UR CS2R BMOV YIELD MEMBAR "
    "ERRBAR ENDCOLLECTIVE NANOSLEEP",
}
PIPE_OF = {name: pipe for pipe, names in INSTRUCTIONS.items() for name in names.split()}


def pipe_of(instruction: Instruction) -> str:
    """Return the pipe that executes an instruction. A uniform one, whose name begins with U, has a pipe of its own."""
    name = instruction.name
    return PIPE_OF.get(name) or (OTHER if name.startswith("U") or name == "LDCU" else ALU)


def clocks(instruction: Instruction, gpu: Gpu, tensor_tflops: float) -> float:
    """Return for how many clocks of an SM an instruction of a warp occupies its pipe.

    tensor_tflops: the peak of the tensor cores for the format of the launch, 0 without tensor cores.
    """
    pipe = pipe_of(instruction)
    if pipe == TENSOR:
        flops_per_clock = tensor_tflops * 1e12 / (gpu.sms * gpu.clock)
        return _tensor_flops(instruction) / flops_per_clock
    if pipe == LOAD_STORE:
        return _words(instruction) * WARP / gpu.sm.load_store
    lanes = {FMA: gpu.sm.fma, ALU: ALU_LANES, SPECIAL: SPECIAL_LANES, FP64: gpu.sm.fp64}
    if instruction.name == "IMAD":
        return WARP / MULTIPLY_LANES
    return WARP / lanes[pipe] if pipe in lanes else 0.0


def _tensor_flops(instruction: Instruction) -> int:
    """Return the FLOPs of HMMA.16816, which multiplies (16 x 16) by (16 x 8)."""
    shape = instruction.opcode.split(".")[1]
    return 2 * 16 * 8 * int(shape.removeprefix("168"))


def _words(instruction: Instruction) -> int:
    """Return how many words of 4 bytes each lane of a load or store moves."""
    if instruction.name == "LDSM":
        return 4 if instruction.opcode.endswith(".4") else 2 if instruction.opcode.endswith(".2") else 1
    width = re.search(r"\.(64|128)\b", instruction.opcode)
    return int(width[1]) // 32 if width else 1
