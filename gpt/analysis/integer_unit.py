"""What the instructions of NVIDIA's machine code that branches depend on compute, for one thread.

They are the integer arithmetic, the comparisons, and the moves between registers, uniform registers and constants, of compute
capability 7.0 to 12.0. All other instructions leave an unknown value, None, in their result, and whatever is computed from an
unknown value is unknown. Registers have 32 bits; a wider value lies in several, the lowest first.
"""

import functools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpt.analysis.machine_code import Instruction

MASK = 0xFFFFFFFF
Known = int | None


@dataclass
class Thread:
    """The registers, predicates and constants of one thread. What is missing is unknown."""

    constants: dict[int, int] = field(default_factory=dict)  # 32-bit words of constant bank 0, by offset
    special: dict[str, int] = field(default_factory=dict)  # SR_TID.X, ...
    values: dict[str, Known] = field(default_factory=dict)  # of registers (R1, UR4) and predicates (P0, UP0)

    def predicate(self, operand: str) -> bool | None:
        """Return the value of "P0" or "!P0"."""
        name = operand.lstrip("!")
        value = 1 if name in ("PT", "UPT") else self.values.get(name)
        return None if value is None else bool(value) != operand.startswith("!")

    def value(self, operand: str, words: int = 1, carry: bool = False) -> Known:
        """Return an operand, which takes one or two words. carry: a negated value keeps its carry, -0 being 2^32."""
        sign, body = split_sign(operand)
        x = self._magnitude(body, words)
        if x is None or not sign:
            return x
        full = (1 << 32 * words) - 1
        if sign == "~":
            return x ^ full
        return full + 1 - x if carry else -x & full

    def _magnitude(self, body: str, words: int) -> Known:
        names = register_names(body, words)
        if names:
            return _joined([self.values.get(name) for name in names])
        if body.startswith("c["):
            offset = self.constant_offset(body)
            return None if offset is None else _joined([self.constants.get(offset + 4 * i) for i in range(words)])
        return self.special.get(body, literal(body))

    def constant_offset(self, body: str) -> Known:
        """Return the offset of c[0x0][0x168] or c[0x0][R4+0x10] in bank 0."""
        bank, _, inner = body.removeprefix("c[").removesuffix("]").partition("][")
        offset = 0
        for part in inner.split("+"):
            value = self.value(part)
            if value is None:
                return None
            offset += value
        return offset & MASK if bank == "0x0" else None

    def store(self, register: str, value: Known, words: int = 1) -> None:
        """Store a value of several words in a register and those after it."""
        for i, name in enumerate(register_names(register, words)):
            self.values[name] = None if value is None else value >> 32 * i & MASK

    def store_predicate(self, name: str, value: Known) -> None:
        if name not in ("PT", "UPT"):
            self.values[name] = value


def _joined(words: Sequence[Known]) -> Known:
    joined = 0
    for i, word in enumerate(words):
        if word is None:
            return None
        joined |= word << 32 * i
    return joined


@functools.cache
def split_sign(operand: str) -> tuple[str, str]:
    """Split "-R4.64" into "-" and "R4"."""
    body = operand.removesuffix(".reuse").removesuffix(".64")
    return (body[0], body[1:]) if body[0] in "-~" else ("", body)


@functools.cache
def register_names(body: str, words: int) -> tuple[str, ...]:
    """Return "R4" and "R5" for the two words at R4; nothing for what is no register, or for RZ."""
    if not is_register(body):
        return ()
    prefix = "UR" if body[0] == "U" else "R"
    first = int(body.removeprefix(prefix))
    return tuple(f"{prefix}{first + i}" for i in range(words))


@functools.cache
def literal(body: str) -> Known:
    """Return the value of a number such as 0x10 or -1; None for a float or a name."""
    if body in ("RZ", "URZ", "SRZ"):
        return 0
    try:
        return int(body, 0)
    except ValueError:
        return None


@functools.cache
def is_register(operand: str) -> bool:
    """Whether an operand is R4 or UR4, without a sign."""
    name = operand.removeprefix("U")
    return name.startswith("R") and name[1:].isdigit()


@functools.cache
def is_predicate(operand: str) -> bool:
    """Whether an operand is P0, UP0, PT or one of these negated."""
    name = operand.removeprefix("!").removeprefix("U")
    return name == "PT" or (name.startswith("P") and name[1:].isdigit())


def signed(x: int, bits: int = 32) -> int:
    """Return the signed value of some bits."""
    is_negative = x >> bits - 1 & 1
    return x - (1 << bits) if is_negative else x


@dataclass(frozen=True)
class Operation:
    """An instruction whose operands are sorted: predicates that it sets, its register, values that it reads, predicates."""

    words: int  # of the result
    modifiers: tuple[str, ...]
    outs: tuple[str, ...]
    to: str
    reads: tuple[str, ...]
    ins: tuple[str, ...]


def sort_operands(instruction: Instruction) -> Operation:
    """Sort the operands: predicates before and right after the register are set, later ones are read."""
    rest = [operand.removesuffix(".reuse") for operand in instruction.operands]
    if instruction.name == "R2P":
        mask = int(rest[2], 0)
        rest = [f"P{i}" for i in range(7) if mask >> i & 1] + rest[1:]
    most_outs = {"R2P": 7, "VOTE": 1, "VOTEU": 1}.get(instruction.name, 2)
    outs = _take_predicates(rest, most_outs)
    to = ""
    if instruction.name.removeprefix("U") not in COMPARISONS and rest and (is_register(rest[0]) or rest[0] in ("RZ", "URZ")):
        to = rest.pop(0)
        outs += _take_predicates(rest, most_outs)
    reads = [operand for operand in rest if not is_predicate(operand)]
    ins = [operand for operand in rest if is_predicate(operand)]
    modifiers = instruction.opcode.split(".")[1:]
    return Operation(_words(instruction.name, modifiers), tuple(modifiers), tuple(outs), to, tuple(reads), tuple(ins))


RESULT_WORDS = {"HMMA": 4, "IMMA": 4, "LDSM": 4, "DFMA": 2, "DADD": 2, "DMUL": 2, "CS2R": 2, "SHF": 1, "USHF": 1}


def _words(name: str, modifiers: Sequence[str]) -> int:
    """Return the words of an instruction's result."""
    if name in ("I2F", "UI2F"):
        return 2 if "F64" in modifiers else 1
    if name in RESULT_WORDS:
        return RESULT_WORDS[name]
    if "128" in modifiers:
        return 4
    return 2 if {"64", "U64", "S64", "F64", "WIDE"}.intersection(modifiers) else 1


COMPARISONS = ("ISETP", "FSETP", "DSETP", "HSETP2", "PLOP3", "FCHK", "R2P")  # they set predicates and no register


def _take_predicates(rest: list[str], most: int) -> list[str]:
    """Remove the first predicates from a list, at most `most`, and return them."""
    taken: list[str] = []
    while len(taken) < most and rest and is_predicate(rest[0]):
        taken.append(rest.pop(0))
    return taken


# The operations. Each returns the result and the predicates that it sets; an unknown operand makes both unknown.

Result = tuple[Known, Sequence[Known]]


def add(op: Operation, thread: Thread) -> Result:
    """IADD3, IADD, UIADD3, VIADD: a + b + c + carries."""
    words = op.words
    parts: list[Any] = [thread.value(x, words, carry=True) for x in op.reads]
    parts += [thread.predicate(p) for p in op.ins if "X" in op.modifiers]
    if None in parts:
        return None, (None, None)
    total = sum(parts)
    carry = total >> 32 * words
    return total & (1 << 32 * words) - 1, (int(carry >= 1), int(carry >= 2))


def multiply_add(op: Operation, thread: Thread) -> Result:
    """IMAD: a b + c, of which .HI is the upper word and .WIDE both. With either, c has two words."""
    is_signed = "U32" not in op.modifiers
    wide = op.words == 2 or "HI" in op.modifiers
    parts: list[Any] = [thread.value(x) for x in op.reads[:2]]
    parts += [thread.value(op.reads[2], 2 if wide else 1)]
    parts += [thread.predicate(p) for p in op.ins if "X" in op.modifiers]
    if None in parts:
        return None, (None,)
    a, b, *rest = parts
    if is_signed:
        a, b = signed(a), signed(b)
    total = a * b + sum(rest)
    carry = total >> (64 if wide else 32) & 1
    if "HI" in op.modifiers:
        return total >> 32 & MASK, (carry,)
    return total & (1 << 32 * op.words) - 1, (carry,)


def shift_add(op: Operation, thread: Thread) -> Result:
    """LEA: (a << s) + b; LEA.HI takes the upper word of the shifted pair c:a."""
    parts: list[Any] = [thread.value(x, carry=i == 1) for i, x in enumerate(op.reads)]
    parts += [thread.predicate(p) for p in op.ins if "X" in op.modifiers]
    if None in parts:
        return None, (None,)
    carry = parts.pop() if "X" in op.modifiers else 0
    a, b, *upper, shift = parts
    pair = signed(a) if "SX32" in op.modifiers else a | (upper[0] << 32 if upper else 0)
    shifted = pair << shift >> 32 if "HI" in op.modifiers else pair << shift
    total = (shifted & MASK) + b + carry
    return total & MASK, (int(total >> 32),)


def shift(op: Operation, thread: Thread) -> Result:
    """SHF: the pair c:a shifted; .HI takes the upper word."""
    a, s, c = (thread.value(x) for x in op.reads)
    if a is None or s is None or c is None:
        return None, ()
    pair = c << 32 | a
    s = s & 31 if "W" in op.modifiers else min(s, 63)
    if "L" in op.modifiers:
        pair <<= s
    else:
        pair = (signed(pair, 64) if {"S32", "S64"}.intersection(op.modifiers) else pair) >> s
    return pair >> (32 if "HI" in op.modifiers else 0) & MASK, ()


def logic(op: Operation, thread: Thread) -> Result:
    """LOP3: any function of three bits, given as a table of its 8 values."""
    *inputs, table = (thread.value(x) for x in op.reads)
    combined = _look_up(inputs, table, MASK)
    return combined, (None if combined is None else int(combined != 0),)


def logic_of_predicates(op: Operation, thread: Thread) -> Result:
    """PLOP3: the same for predicates, with one table per predicate that it sets."""
    inputs = [thread.predicate(p) for p in op.ins]
    tables = [thread.value(x) for x in op.reads]
    return None, [_look_up(inputs, table, 1) for table in tables]


def _look_up(inputs: Sequence[Known], table: Known, full: int) -> Known:
    if None in inputs or table is None:
        return None
    a, b, c = inputs
    found = 0
    for row in range(8):
        if table >> row & 1:
            found |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)  # type: ignore[operator]
    return found & full


COMPARE = {"EQ": int.__eq__, "NE": int.__ne__, "LT": int.__lt__, "LE": int.__le__, "GT": int.__gt__, "GE": int.__ge__}


def compare(op: Operation, thread: Thread) -> Result:
    """ISETP: a comparison, combined with a predicate. With .EX it is the upper word's, and the last predicate the lower's."""
    bits = 32 * op.words
    a, b = (thread.value(x, op.words) for x in op.reads)
    first, *lower = (thread.predicate(p) for p in op.ins)
    if a is None or b is None or first is None or None in lower:
        return None, (None, None)
    if not {"U32", "U64"}.intersection(op.modifiers):
        a, b = signed(a, bits), signed(b, bits)
    is_true = bool(lower[0] if "EX" in op.modifiers and a == b else COMPARE[op.modifiers[0]](a, b))
    if "OR" in op.modifiers:
        return None, (is_true or first, not is_true or first)
    return None, (is_true and first, not is_true and first)


def select(op: Operation, thread: Thread) -> Result:
    """SEL: a if the predicate holds, else b."""
    which = thread.predicate(op.ins[0])
    if which is None:
        return None, ()
    return thread.value(op.reads[0 if which else 1], op.words), ()


def least(op: Operation, thread: Thread) -> Result:
    """IMNMX: the smaller of a and b if the predicate holds, else the larger. VIADDMNMX adds two values first."""
    bits = 32 * op.words
    values = [thread.value(x, op.words) for x in op.reads]
    smaller = thread.predicate(op.ins[-1])
    if None in values or smaller is None:
        return None, (None, None)
    numbers: list[int] = values  # type: ignore[assignment]
    if not {"U32", "U64"}.intersection(op.modifiers):
        numbers = [signed(x, bits) for x in numbers]
    if len(numbers) == 3:
        numbers = [signed((numbers[0] + numbers[1]) & MASK), numbers[2]]
    return (min if smaller else max)(numbers) & (1 << bits) - 1, (None, None)


def to_predicates(op: Operation, thread: Thread) -> Result:
    """R2P PR, R1.B2, 0x3: predicates from the bits of a byte, here P0 and P1."""
    register, _, byte = op.reads[0].partition(".B")
    word = thread.value(register)
    if word is None:
        return None, (None,) * len(op.outs)
    return None, [word >> 8 * int(byte or 0) + int(name[1:]) & 1 for name in op.outs]


def vote(op: Operation, thread: Thread) -> Result:
    """VOTE.ANY, VOTE.ALL: a word with a bit per lane of the warp, 1 where its predicate holds. The lanes are taken to agree."""
    holds = thread.predicate(op.ins[0])
    if holds is None:
        return None, (None,)
    return MASK * holds, (int(holds),)


def permute(op: Operation, thread: Thread) -> Result:
    """PRMT: four bytes of the pair c:a, each chosen by four bits."""
    a, choice, c = (thread.value(x) for x in op.reads)
    if a is None or choice is None or c is None or choice & 0x8888:
        return None, ()
    pair = c << 32 | a
    return sum((pair >> 8 * (choice >> 4 * i & 7) & 255) << 8 * i for i in range(4)), ()


def move(op: Operation, thread: Thread) -> Result:
    """MOV, S2R, R2UR, LDC and the like."""
    if {"U8", "S8", "U16", "S16"}.intersection(op.modifiers):
        return _narrow(op, thread), ()
    return thread.value(op.reads[0], op.words), ()


def _narrow(op: Operation, thread: Thread) -> Known:
    """Return a byte or a half word of a constant, whose offset need not be a multiple of 4."""
    offset = thread.constant_offset(op.reads[0])
    if offset is None:
        return None
    word = thread.constants.get(offset & ~3)
    mask = 0xFF if {"U8", "S8"}.intersection(op.modifiers) else 0xFFFF
    return None if word is None else word >> 8 * (offset & 3) & mask


def constant_halves(op: Operation, thread: Thread) -> Result:  # noqa: ARG001
    """HFMA2 R1, -RZ, RZ, x, y, by which compilers load constants: the halves x and y in one word."""
    factors = [x.removeprefix("-") for x in op.reads[:2]]
    if factors != ["RZ", "RZ"] or len(op.reads) != 4:
        return None, ()
    high, low = (float(x) for x in op.reads[2:])
    packed = struct.pack("<ee", low, high)
    return int.from_bytes(packed, "little"), ()


# Divisions of integers go through the reciprocal of a float, whose small error the code then corrects.


def to_float(op: Operation, thread: Thread) -> Result:
    """I2F: the bits of an integer as a float32; with .RP it is rounded up."""
    x = thread.value(op.reads[0], 2 if {"U64", "S64"}.intersection(op.modifiers) else 1)
    if x is None or "F64" in op.modifiers:
        return None, ()
    rounded = np.float32(x)
    if "RP" in op.modifiers and int(rounded) < x:
        rounded = np.nextafter(rounded, np.float32(np.inf))
    return int(rounded.view(np.uint32)), ()


def reciprocal(op: Operation, thread: Thread) -> Result:
    """MUFU.RCP: the bits of 1 / x."""
    bits = thread.value(op.reads[0])
    if not bits or "RCP" not in op.modifiers:
        return None, ()
    return int((np.float32(1) / np.uint32(bits).view(np.float32)).view(np.uint32)), ()


def to_integer(op: Operation, thread: Thread) -> Result:
    """F2I: the integer part of a float32."""
    bits = thread.value(op.reads[0])
    if bits is None or "F64" in op.modifiers:
        return None, ()
    x = float(np.uint32(bits).view(np.float32))
    return (int(x) if 0 <= x < 2.0**64 else None), ()


def no_exception(op: Operation, thread: Thread) -> Result:  # noqa: ARG001
    """FCHK: whether a division needs the rare case."""
    return None, (0,)


def unknown(op: Operation, thread: Thread) -> Result:  # noqa: ARG001
    """Return nothing: no branch of ours depends on such an instruction, unless by way of memory."""
    return None, (None,) * len(op.outs)


OPERATIONS: dict[str, Callable[[Operation, Thread], Result]] = {
    **dict.fromkeys(("IADD", "IADD3", "VIADD"), add),
    "IMAD": multiply_add,
    "LEA": shift_add,
    "SHF": shift,
    "LOP3": logic,
    "PLOP3": logic_of_predicates,
    "ISETP": compare,
    "SEL": select,
    **dict.fromkeys(("IMNMX", "VIMNMX", "VIADDMNMX"), least),
    "R2P": to_predicates,
    "PRMT": permute,
    **dict.fromkeys(("VOTE", "VOTEU"), vote),
    **dict.fromkeys(("MOV", "S2R", "S2UR", "CS2R", "R2UR", "LDC", "ULDC", "LDCU"), move),
    "HFMA2": constant_halves,
    "I2F": to_float,
    "MUFU": reciprocal,
    "F2I": to_integer,
    "FCHK": no_exception,
}


def operation_of(name: str) -> Callable[[Operation, Thread], Result]:
    """Return the operation of an opcode. A uniform one, which has the prefix U, is that of one thread."""
    if name in OPERATIONS:
        return OPERATIONS[name]
    return OPERATIONS.get(name.removeprefix("U"), unknown)
