"""Machine code is read as it is printed, and a thread's integer arithmetic decides the same branches as on a GPU."""

import pytest

from gpt.analysis import machine_code, thread_walk
from gpt.analysis.integer_unit import Thread, operation_of, sort_operands
from gpt.analysis.machine_code import Instruction, parse
from tensorlite import DeviceError

TEXT = """
\t.section\t.text.first,"ax",@progbits
first:
.text.first:
\t//## File "/k/random.cuh", line 7 inlined at "/k/a.cu", line 3
\t//## File "/k/a.cu", line 3
        /*0000*/                   LOP3.LUT R9, R9.reuse, R0, RZ, 0x3c, !PT ;
        /*0010*/              @!P0 BRA `(.L_x_1) ;
\t//## File "/k/a.cu", line 4
.L_x_1:
        /*0020*/                   EXIT ;
\t.section\t.text.second,"ax",@progbits
.text.second:
        /*0000*/                   NOP;
"""


def test_instructions_are_read_with_their_source_files():
    kernels = parse(TEXT)
    assert list(kernels) == ["first", "second"]
    first, branch, end = kernels["first"].instructions
    both = frozenset({"random.cuh", "a.cu"})
    assert first == Instruction("", "LOP3.LUT", ("R9", "R9.reuse", "R0", "RZ", "0x3c", "!PT"), both)
    assert branch == Instruction("!P0", "BRA", ("`(.L_x_1)",), both)
    assert end == Instruction("", "EXIT", (), frozenset({"a.cu"}))
    assert (kernels["first"].labels[".L_x_1"], first.name) == (2, "LOP3")
    assert [x.opcode for x in kernels["second"].instructions] == ["NOP"]


def test_a_missing_disassembler_is_a_device_error(monkeypatch):
    monkeypatch.setattr(machine_code.shutil, "which", lambda *_, **__: None)
    with pytest.raises(DeviceError, match="nvdisasm is not installed; pip install nvidia-cuda-nvdisasm"):
        machine_code.disassembler.__wrapped__()


MAX = 0xFFFFFFFF
BITS = {0.5: 0x3F000000, 3.0: 0x40400000}


@pytest.mark.parametrize(
    ("text", "known", "expected"),
    [
        ("IADD3 R0, R1, -R2, RZ", {"R1": 3, "R2": 5}, {"R0": MAX - 1}),
        ("IADD3 R0, P1, R1, 0x4, RZ", {"R1": MAX - 1}, {"R0": 2, "P1": 1}),
        ("IADD3 R0, P1, PT, R1, -R2, RZ", {"R1": 7, "R2": 0}, {"R0": 7, "P1": 1}),  # subtraction without a borrow
        ("IADD3.X R0, R1, ~R2, RZ, P0, !PT", {"R1": 9, "R2": 3, "P0": 1}, {"R0": 6}),
        ("IADD.64 R0, R2, -0x1", {"R2": 0, "R3": 1}, {"R0": MAX, "R1": 0}),
        ("IMAD R0, R1, R2, R3", {"R1": MAX, "R2": 5, "R3": 7}, {"R0": 2}),
        ("IMAD.WIDE R0, R2, 0x8, R4", {"R2": MAX, "R4": 3, "R5": 0}, {"R0": MAX - 4, "R1": MAX}),
        ("IMAD.WIDE.U32 R0, P1, R2, R3, R4", {"R2": MAX, "R3": MAX, "R4": MAX, "R5": MAX}, {"R0": 0, "R1": MAX - 1, "P1": 1}),
        ("IMAD.HI.U32 R0, R1, R2, R4", {"R1": MAX, "R2": MAX, "R4": 0, "R5": 9}, {"R0": 7}),
        ("IMAD.X R0, R1, 0x1, R2, P0", {"R1": 4, "R2": 5, "P0": 1}, {"R0": 10}),
        ("LEA R0, P1, R1, R2, 0x2", {"R1": 0x40000001, "R2": MAX}, {"R0": 3, "P1": 1}),
        ("LEA.HI R0, R1, R2, RZ, 0x1b", {"R1": 96, "R2": 5}, {"R0": 8}),
        ("LEA.HI.X R0, R1, R2, R3, 0x2, P0", {"R1": MAX, "R2": 10, "R3": 1, "P0": 1}, {"R0": 18}),
        ("LEA.HI.X.SX32 R0, R1, R2, 0x1, P0", {"R1": MAX, "R2": 10, "P0": 0}, {"R0": 9}),
        ("SHF.L.W.U32.HI R0, R1, 0xd, R1", {"R1": 0x80000001}, {"R0": 0x3000}),
        ("SHF.R.S32.HI R0, RZ, 0x1f, R1", {"R1": 1 << 31}, {"R0": MAX}),
        ("SHF.R.U64 R0, R1, 0x2, R2", {"R1": 5, "R2": 3}, {"R0": 0xC0000001}),
        ("SHF.L.U64.HI R0, R2, 0x2, R3", {"R2": 0xC0000000, "R3": 1, "R1": 6}, {"R0": 7, "R1": 6}),
        ("LOP3.LUT P0, RZ, R1, 0x3, RZ, 0xc0, !PT", {"R1": 12}, {"P0": 0}),
        ("LOP3.LUT R0, R1, R2, R3, 0x96, !PT", {"R1": 1, "R2": 3, "R3": 4}, {"R0": 6}),
        ("PLOP3.LUT P0, PT, P1, P2, PT, 0xa8, 0x0", {"P1": 1, "P2": 0}, {"P0": 1}),
        ("ISETP.GT.AND P0, PT, R1, R2, PT", {"R1": 1, "R2": MAX}, {"P0": True}),
        ("ISETP.GT.U32.AND P0, P1, R1, R2, P3", {"R1": 1, "R2": MAX, "P3": 1}, {"P0": False, "P1": True}),
        ("ISETP.NE.OR P0, PT, R1, RZ, !P3", {"R1": 0, "P3": 0}, {"P0": True}),
        ("ISETP.GE.AND.EX P0, PT, R1, R2, PT, P3", {"R1": 4, "R2": 4, "P3": 0}, {"P0": False}),
        ("ISETP.GE.S64.AND P0, PT, R2, R4, PT", {"R2": 0, "R3": MAX, "R4": 0, "R5": 0}, {"P0": False}),
        ("VOTE.ANY R0, P1, P2", {"P2": 0, "P1": 1}, {"R0": 0, "P1": 0}),
        ("VOTEU.ANY UR0, UPT, PT", {}, {"UR0": MAX}),
        ("VOTEU.ALL UP0, P2", {"P2": 1}, {"UP0": 1}),
        ("USEL UR0, UR1, 0xffffffff, !UP0", {"UR1": 4, "UP0": 0}, {"UR0": 4}),
        ("VIMNMX R0, R1, R2, PT", {"R1": MAX, "R2": 3}, {"R0": MAX}),
        ("VIMNMX.U32 R0, PT, PT, R1, 0xffff, PT", {"R1": MAX}, {"R0": 0xFFFF}),
        ("VIADDMNMX R0, R1, 0x8, R2, !PT", {"R1": 1, "R2": 3}, {"R0": 9}),
        ("PRMT R0, R1, 0x7610, R2", {"R1": 0x11223344, "R2": 0x55667788}, {"R0": 0x55663344}),
        ("R2P PR, R1.B1, 0x5", {"R1": 0x400, "P1": 9}, {"P0": 0, "P2": 1, "P1": 9}),
        ("CS2R R0, SRZ", {}, {"R0": 0, "R1": 0}),
        ("LDC.64 R0, c[0x0][R4+0x10]", {"R4": 8}, {"R0": 77, "R1": 88}),
        ("ULDC.U8 UR0, c[0x0][0x19]", {}, {"UR0": 0}),
        ("HFMA2 R0, -RZ, RZ, 0, 5.9604644775390625e-07", {}, {"R0": 10}),
        ("I2F.U32.RP R0, R1", {"R1": 3}, {"R0": BITS[3.0]}),
        ("I2F.U32.RP R0, R1", {"R1": (1 << 24) + 1}, {"R0": 0x4B800001}),
        ("MUFU.RCP R0, R1", {"R1": 0x40000000}, {"R0": BITS[0.5]}),
        ("F2I.FTZ.U32.TRUNC.NTZ R0, R1", {"R1": BITS[3.0]}, {"R0": 3}),
        ("IADD3 R0, R1, R2, RZ", {"R1": 3, "R0": 1}, {"R0": None}),
        ("LDG.E.64 R0, desc[UR4][R2.64]", {"R0": 1, "R1": 1, "R2": 1}, {"R0": None, "R1": None, "R2": 1}),
        ("FSETP.GT.AND P0, PT, R1, R2, PT", {"P0": 1}, {"P0": None}),
    ],
)
def test_an_instruction_computes_what_a_gpu_computes(text, known, expected):
    opcode, _, operands = text.partition(" ")
    code = machine_code.MachineCode([Instruction("", opcode, tuple(x.strip() for x in operands.split(",")))])
    walker = thread_walk.Walker(code)
    thread = Thread(constants={0x18: 77, 0x1C: 88}, values=dict(known))
    walker._execute(0, thread)
    assert {name: thread.values.get(name) for name in expected} == expected


def program(*lines):
    """Machine code of these lines; "name:" is a label."""
    code = machine_code.MachineCode()
    for line in lines:
        if line.endswith(":"):
            code.labels[line[:-1]] = len(code.instructions)
            continue
        guard, line = line[1:].split(" ", 1) if line[0] == "@" else ("", line)
        opcode, _, operands = line.partition(" ")
        code.instructions.append(Instruction(guard, opcode, tuple(filter(None, operands.split(", ")))))
    return code


def walk(*lines):
    return thread_walk.Walker(program(*lines)).walk({0: 5}, {"SR_TID.X": 32})


def test_a_loop_runs_as_often_as_its_counter_says():
    count = ("ISETP.LT.AND P0, PT, R1, c[0x0][0x0], PT", "@P0 BRA `(again)", "EXIT")
    found = walk("MOV R1, RZ", "again:", "@!P0 STG.E [R2], R3", "IADD3 R1, R1, 0x1, RZ", *count)
    assert found.issued == [1, 5, 5, 5, 5, 1]
    assert found.executed[1] == 1  # P0 is unknown at first, and then true
    assert not found.undecided


def test_unknown_branches_follow_the_rule(monkeypatch):
    loaded = ("LDG.E R1, [R2]", "ISETP.NE.AND P0, PT, R1, RZ, PT")
    rare = walk(*loaded, "@P0 BRA `(end)", "CALL.REL.NOINC `(slow)", "end:", "EXIT", "slow:", "RET.REL.NODEC R4")
    assert rare.issued == [1, 1, 1, 0, 1, 0]
    both = walk(*loaded, "@P0 BRA `(end)", "FADD R1, R1, R1", "end:", "EXIT")
    assert both.issued == [1, 1, 1, 1, 1]
    diverged = walk("BRA.DIV UR4, `(slow)", "EXIT", "slow:", "EXIT")
    assert diverged.issued == [1, 1, 0]
    loop = walk("again:", *loaded, "@P0 BRA `(again)", "EXIT")
    assert (loop.issued, loop.undecided) == ([1, 1, 1, 1], {2})
    monkeypatch.setattr(thread_walk, "LIMIT", 1000)
    with pytest.raises(thread_walk.EndlessError, match="depends on a value in memory"):
        walk("again:", "BRA `(again)")


def test_a_call_returns_to_the_next_instruction():
    found = walk(
        "CALL.REL.NOINC `(square)", "CALL.REL.NOINC `(square)", "EXIT", "square:", "IMAD R1, R1, R1, RZ", "RET.REL.NODEC R4"
    )
    assert found.issued == [1, 1, 1, 2, 2]


def test_every_operation_takes_the_operands_that_it_is_given():
    """An operation of a name with the prefix U is that of the name without it; a name that is not known is no error."""
    assert operation_of("UIADD3") is operation_of("IADD3")
    assert operation_of("FADD")(sort_operands(Instruction("", "FADD", ("R1", "R2", "R3"))), Thread()) == (None, ())
