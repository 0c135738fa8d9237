"""Which instructions a thread executes, found by running its integer arithmetic on the CPU.

A kernel's loops depend on its parameters and on the thread's position alone, and so do its other branches, with few exceptions.
`Walker.walk` therefore follows one thread through the machine code, with the values that integer_unit.py computes. What is loaded
from memory is unknown. A branch that depends on an unknown value is decided by a rule. A forward branch is not taken, unless that
avoids a call, because compilers put the rare cases of division and of square roots into calls. A backward branch is not taken, and
it is reported.
"""

from dataclasses import dataclass

from gpt.analysis.integer_unit import Thread, is_predicate, operation_of, sort_operands
from gpt.analysis.machine_code import Instruction, MachineCode

LIMIT = 2_000_000  # instructions of one thread; a loop whose end depends on memory might never end


class EndlessError(RuntimeError):
    """A thread does not end. A value that the walk does not know decides a loop."""


@dataclass
class Walk:
    """What a thread did.

    issued: how often it came to each instruction.
    executed: how often the guard of the instruction then let it run, or was unknown.
    undecided: the branches of loops whose end is unknown.
    """

    issued: list[int]
    executed: list[int]
    undecided: set[int]


CONTROL = {"BRA", "EXIT", "CALL", "RET"}


class Walker:
    """Walks threads through one kernel's machine code."""

    def __init__(self, code: MachineCode) -> None:
        self.code = code
        self.operations = [sort_operands(instruction) for instruction in code.instructions]

    def walk(self, constants: dict[int, int], special: dict[str, int]) -> Walk:
        """Follow one thread from the first instruction to its end. Raises EndlessError.

        constants: the words of constant bank 0, by offset.
        special: the special registers, by name.
        """
        thread = Thread(constants, special)
        length = len(self.code.instructions)
        walk = Walk([0] * length, [0] * length, set())
        returns: list[int] = []
        at, steps = 0, 0
        while 0 <= at < length:
            walk.issued[at] += 1
            steps += 1
            if steps > LIMIT:
                raise EndlessError("a thread executes too many instructions; a loop depends on a value in memory")
            name = self.code.instructions[at].name
            if name in CONTROL:
                at = self._next(at, thread, walk, returns)
                continue
            walk.executed[at] += self._execute(at, thread)
            at += 1
        return walk

    def _execute(self, at: int, thread: Thread) -> bool:
        """Compute an instruction. Return whether its guard let it run."""
        instruction, op = self.code.instructions[at], self.operations[at]
        runs = thread.predicate(instruction.guard) if instruction.guard else True
        if runs is False:
            return False
        result, predicates = operation_of(instruction.name)(op, thread)
        if runs is None:
            result, predicates = None, (None,) * len(op.outs)
        if op.to:
            thread.store(op.to, result, op.words)
        for name, value in zip(op.outs, predicates, strict=False):
            thread.store_predicate(name, value)
        return True

    def _next(self, at: int, thread: Thread, walk: Walk, returns: list[int]) -> int:
        """Return the index of the instruction that follows a branch, a call, a return or an exit; -1 at the end."""
        instruction = self.code.instructions[at]
        taken = self._taken(at, thread, walk)
        if not taken:
            return at + 1
        if instruction.name == "EXIT":
            return -1
        if instruction.name == "RET":
            return returns.pop() if returns else -1
        if instruction.name == "CALL":
            returns.append(at + 1)
        return self._target(instruction)

    def _target(self, instruction: Instruction) -> int:
        label = instruction.operands[-1].strip("`()")
        return self.code.labels[label]

    def _taken(self, at: int, thread: Thread, walk: Walk) -> bool:
        instruction = self.code.instructions[at]
        if "DIV" in instruction.opcode.split("."):  # BRA.DIV: the lanes of a warp have diverged
            return False
        conditions = [x for x in (instruction.guard, *instruction.operands) if x and is_predicate(x)]
        decided = [thread.predicate(x) for x in conditions]
        if None not in decided:
            return all(decided)
        if False in decided or instruction.name != "BRA":
            return False
        target = self._target(instruction)
        if target <= at:
            walk.undecided.add(at)
            return False
        return any(skipped.name == "CALL" for skipped in self.code.instructions[at:target])
