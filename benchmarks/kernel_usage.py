"""What every kernel of the full model needs when compiled: registers, spilled bytes, stack and instructions. It needs no GPU.

    python benchmarks/kernel_usage.py [--architectures 80 90 100] [--save FILE] [--compare FILE]

An instruction is 16 bytes of the machine code. With --compare the exit status is 1 if any kernel of that file needs more now. A
kernel is identified by its name and by the values of its preprocessor definitions.
"""

import json
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from compiled_files import files_of_a_run
from gpt.analysis.format import table
from tensorlite.cuda.runtime import nvrtc

NEEDS = ("registers", "spilled", "stack", "instructions")
COLUMNS = ("kernel:64", *(f"{need}:>13" for need in NEEDS))


@dataclass
class Args:
    """Print what every kernel needs, and compare it with an earlier list."""

    architectures: tuple[int, ...] = (80, 90, 100)
    """Compute capabilities, 80 for 8.0."""
    save: Path | None = None
    """Write the list to this file, as JSON."""
    compare: Path | None = None
    """Compare with this list, which was saved before."""


def code_bytes(cubin: bytes) -> dict[str, int]:
    """Return the bytes of machine code per kernel: the sections .text.NAME of an ELF file."""
    (offset,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, offset + i * size) for i in range(count)]
    strings = sections[names][4]  # the offset of the section that holds the names
    found = {}
    for name_offset, _, _, _, _, nbytes in sections:
        start = strings + name_offset
        name = cubin[start : cubin.index(b"\0", start)].decode()
        if name.startswith(".text."):
            found[name.removeprefix(".text.")] = nbytes
    return found


def usage(architectures: tuple[int, ...]) -> dict[str, list[int]]:
    """Return the NEEDS of each kernel, by "architecture kernel values"."""
    found = {}
    for architecture in architectures:
        for file, defines in files_of_a_run():
            cubin, log = nvrtc.compile_file(file, architecture, dict(defines))
            size = code_bytes(cubin)
            values = " ".join(str(value) for _, value in defines)
            for kernel, u in nvrtc.usage(log).items():
                found[f"sm_{architecture} {kernel} {values}"] = [u.registers, u.spilled, u.stack, size[kernel] // 16]
    return found


def main(args: Args) -> int:
    """Print the list or the comparison, and return the exit status."""
    found = usage(args.architectures)
    if args.save:
        args.save.write_text(json.dumps(found, indent=0))
    if not args.compare:
        print(table([(kernel, *needs) for kernel, needs in found.items()], COLUMNS))
        return 0
    before = json.loads(args.compare.read_text())
    common = [kernel for kernel in found if kernel in before]
    same = [kernel for kernel in common if found[kernel] == before[kernel]]
    more = [kernel for kernel in common if any(now > then for now, then in zip(found[kernel], before[kernel], strict=True))]
    less = len(common) - len(same) - len(more)
    print(f"{len(common)} kernels in both lists: {len(same)} need the same, {less} less, {len(more)} more")
    print(f"only now: {sorted(found.keys() - before.keys())}")
    print(f"only before: {sorted(before.keys() - found.keys())}")
    for kernel in more:
        print(f"{kernel}: {dict(zip(NEEDS, before[kernel], strict=True))} -> {dict(zip(NEEDS, found[kernel], strict=True))}")
    return 1 if more else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
