"""A kernel's machine code as text: its instructions, their source files, registers and shared memory. It needs no GPU.

NVIDIA's disassembler `nvdisasm` prints the instructions of a cubin, the file that NVRTC compiles. What the text lacks is read from
the sections of the cubin itself, which is an ELF file.
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tensorlite.arrays import DeviceError
from tensorlite.cache_dir import cache_folder, write_whole

FOLDERS = ("cu13/bin", "cuda_nvdisasm/bin", "cuda_nvcc/bin")  # where Python packages of CUDA 13 and 12 may have nvdisasm
SOURCE = re.compile(r'//## File "([^"]*)"')
LABEL = re.compile(r"([.$]?[\w$.]+):")
INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@(?P<guard>!?U?P\w+)\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*);")


class DisassemblerError(DeviceError):
    """nvdisasm is not installed, or it does not read this code."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: `@!P0 IADD3 R1, R2, 0x4, RZ` has the guard "!P0", the opcode "IADD3" and four operands."""

    guard: str
    opcode: str
    operands: tuple[str, ...]
    files: frozenset[str] = frozenset()  # names of the source files that it comes from, those that inlined it included

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]


@dataclass
class MachineCode:
    """One kernel for one architecture."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # the index of the instruction that follows each label
    registers: int = 0  # per thread
    shared: int = 0  # bytes of static shared memory per block
    parameters_at: int = 0  # offset of the first parameter in constant bank 0
    parameter_offsets: dict[int, int] = field(default_factory=dict)  # offset of each parameter from the first


@functools.cache
def disassembler() -> str:
    """Return the path of nvdisasm, from its Python package or from PATH. Raises DisassemblerError."""
    nvidia = importlib.util.find_spec("nvidia")
    roots = nvidia.submodule_search_locations if nvidia else None
    folders = [f"{root}/{folder}" for root in roots or () for folder in FOLDERS]
    found = shutil.which("nvdisasm", path=os.pathsep.join(folders)) or shutil.which("nvdisasm")
    if found is None:
        raise DisassemblerError("nvdisasm is not installed; pip install nvidia-cuda-nvdisasm")
    return found


def disassemble(cubin: bytes) -> dict[str, MachineCode]:
    """Return the kernels of a cubin by name. Raises DisassemblerError.

    The text is stored in the cache folder, because the disassembler takes half a second per cubin.
    """
    path = cache_folder() / "disassembly" / f"{hashlib.sha256(cubin).hexdigest()[:24]}.txt"
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        text = _run_disassembler(cubin)
        with contextlib.suppress(OSError):  # it cannot be stored, so the next run disassembles again
            write_whole(path, text.encode())
    kernels = parse(text)
    _add_resources(kernels, cubin)
    return kernels


def _run_disassembler(cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "code.cubin"
        file.write_bytes(cubin)
        command = [disassembler(), "--print-code", "--print-line-info-inline", str(file)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise DisassemblerError(f"nvdisasm fails: {result.stderr.strip()}")
    return result.stdout


def parse(text: str) -> dict[str, MachineCode]:
    """Return the instructions and labels of each kernel in the text that nvdisasm prints."""
    kernels: dict[str, MachineCode] = {}
    code = MachineCode()
    files: list[str] = []
    located = False  # whether an instruction has used `files`
    for line in text.splitlines():
        if "\t.section\t.text." in line:
            name = line.split(".text.")[1].split(",")[0]
            code = kernels[name] = MachineCode()
        elif source := SOURCE.search(line):
            files = [] if located else files
            located = False
            files.append(Path(source[1]).name)
        elif label := LABEL.fullmatch(line.strip()):
            code.labels[label[1]] = len(code.instructions)
        elif match := INSTRUCTION.match(line):
            located = True
            operands = tuple(part.strip() for part in match["operands"].split(",")) if match["operands"].strip() else ()
            code.instructions.append(Instruction(match["guard"] or "", match["opcode"], operands, frozenset(files)))
    return kernels


def _add_resources(kernels: Mapping[str, MachineCode], cubin: bytes) -> None:
    """Read registers, shared memory and the places of the parameters from the sections of an ELF file."""
    sections = dict(_sections(cubin))
    symbols = _symbols(sections)
    for attribute, value in _attributes(sections[".nv.info"]):
        if attribute == 0x2F:  # EIATTR_REGCOUNT
            symbol, registers = struct.unpack("<II", value)
            if symbols[symbol] in kernels:
                kernels[symbols[symbol]].registers = registers
    for name, code in kernels.items():
        code.shared = len(sections.get(f".nv.shared.{name}", b""))
        for attribute, value in _attributes(sections[f".nv.info.{name}"]):
            if attribute == 0x0A:  # EIATTR_PARAM_CBANK
                code.parameters_at = struct.unpack_from("<H", value, 4)[0]
            if attribute == 0x17:  # EIATTR_KPARAM_INFO
                ordinal, offset = struct.unpack_from("<HH", value, 4)
                code.parameter_offsets[ordinal] = offset


def _sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """Return name and content of each section. A section without content in the file, such as shared memory, is zeros."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    names_at = headers[names][4]
    for name, kind, _, _, start, nbytes in headers:
        end = elf.index(b"\0", names_at + name)
        content = bytes(nbytes) if kind == 8 else elf[start : start + nbytes]  # SHT_NOBITS
        yield elf[names_at + name : end].decode(), content


def _symbols(sections: Mapping[str, bytes]) -> list[str]:
    """Return the names of the symbols, in order."""
    names = sections[".strtab"]
    starts = [entry[0] for entry in struct.iter_unpack("<IBBHQQ", sections[".symtab"])]
    return [names[start : names.index(b"\0", start)].decode() for start in starts]


def _attributes(info: bytes) -> Iterator[tuple[int, bytes]]:
    """Return number and value of each attribute in a section .nv.info that has a value of its own length."""
    at = 0
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == 4:  # EIFMT_SVAL; other forms hold their value in the place of `size`
            yield attribute, info[at : at + size]
            at += size
