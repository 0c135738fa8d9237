"""The command line of the exercises."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tensorlite.testing.bugs import BUGS, CHAPTERS
from tensorlite.testing.exercises import find, write
from tensorlite.testing.exercises.attempt import try_file
from tensorlite.testing.exercises.judge import LEVELS

PROGRAM = "python -m tensorlite.exercises"
NEEDS_SCIPY = 'gradcheck needs SciPy: pip install "tensorlite[check]"'
PASSED, FAILED, REFUSED = 0, 1, 2  # exit statuses

Number = Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[NUMBER]", help_behavior_hint="")]
Level = Annotated[int | None, tyro.conf.arg(metavar="{1,2,3}", help_behavior_hint="")]
Flag = Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help_behavior_hint="")]
Name = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(name="try", metavar="FILE", help_behavior_hint="")]


# --help breaks its lines where the texts below do, so each line is a sentence of its own.
@dataclass
class Args:
    """Find the mistake in a backward pass, or write a backward pass. Without arguments, the exercises are listed."""

    number: Number = None
    """Show the exercise with this number and ask what is wrong in it."""
    hint: Level = None
    """With NUMBER: 1 says which outputs are wrong, 2 adds ratios to the truth, 3 adds the formula.
    With --try: 1 says which gradients are wrong and their ratios, 2 adds what they look like, 3 adds the derivation.
    Default with --try: 1."""
    check: Flag = False
    """With NUMBER: compare with finite differences. This needs SciPy."""
    explain: Flag = False
    """With NUMBER: show the answer."""
    write: Name = None
    """Write exercise_NAME.py in the current folder: the forward of an op, a hole where its backward belongs, and a test."""
    attempt: File = None
    """Check the backward in a file that --write wrote. The exit status is 0 if it passes and 1 if it does not."""


class RefusedError(Exception):
    """The command line cannot be carried out. The message says why, and the way out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit status."""
    args = tyro.cli(Args, prog=PROGRAM, args=arguments)
    try:
        require_one_task(args)
        return run(args)
    except RefusedError as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print()
        return 130


def require_one_task(args: Args) -> None:
    """Raise RefusedError for flags that do not go together."""
    tasks = {"NUMBER": args.number, "--write": args.write, "--try": args.attempt}
    given = [name for name, value in tasks.items() if value is not None]
    if len(given) > 1:
        raise RefusedError(f"{' and '.join(given)} are different tasks; give one of them")
    if args.hint is not None and args.number is None and args.attempt is None:
        raise RefusedError("--hint needs the number of an exercise, or --try FILE")
    if args.hint is not None and args.hint not in LEVELS:
        raise RefusedError(f"--hint {args.hint}: choose 1, 2 or 3")
    if (args.check or args.explain) and args.number is None:
        way_out = "; --try always checks, and --hint 3 shows the derivation" if args.attempt else ""
        raise RefusedError(f"--check and --explain need the number of an exercise{way_out}")


def run(args: Args) -> int:
    """Do the task of the command line; return the exit status."""
    if args.number is not None:
        return show(args.number, args)
    if args.write is not None:
        return write_exercise(args.write)
    if args.attempt is not None:
        return check_attempt(args.attempt, args.hint or 1)
    print(find.contents())
    print(f"\n{PROGRAM} NUMBER         shows one and asks what is wrong in it")
    print(f"{PROGRAM} --write NAME   writes a file in which you fill in the backward of the op NAME")
    return PASSED


def show(number: str, args: Args) -> int:
    """Show an exercise, and then what the flags ask for; without flags, ask what is wrong."""
    if not number.isdecimal() or not 1 <= int(number) <= len(BUGS):
        way_out = f"--write {number} writes one" if number in CHAPTERS else f"they are numbered 1 to {len(BUGS)}"
        if number.endswith(".py"):
            way_out = f"--try {number} checks a file"
        raise RefusedError(f"there is no exercise {number}; {way_out}")
    bug = BUGS[int(number) - 1]
    print(find.code(bug))
    if args.hint is not None:
        print(f"\n{find.hint(bug, args.hint)}")
    if args.check:
        try:
            print(f"\n{find.check(bug)}")
        except ImportError:
            raise RefusedError(NEEDS_SCIPY) from None
    if args.explain:
        print(f"\n{find.answer(bug)}")
    if not (args.hint or args.check or args.explain):
        find.ask(bug)
        print(f"See also: {PROGRAM} {number} with --hint 1, 2 or 3, --check and --explain")
    return PASSED


def write_exercise(name: str) -> int:
    """Write the file of an op whose backward is a hole."""
    if name not in CHAPTERS:
        raise RefusedError(f"--write: there is no op {name!r}; choose one of {', '.join(CHAPTERS)}")
    path = Path(f"exercise_{name}.py")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(write.exercise(name))
    except FileExistsError:
        way_out = f"check it with --try {path}, or rename or delete it to start again"
        raise RefusedError(f"--write: {path} exists already and stays as it is; {way_out}") from None
    except OSError as error:
        raise RefusedError(f"--write: cannot write {path}: {error.strerror}; change to another folder") from None
    print(f"{path}: fill in {name}_backward. Then")
    print(f"  {PROGRAM} --try {path}   says how far it is, with --hint 1, 2 or 3")
    print(f"  python {path}   runs its test alone")
    return PASSED


def check_attempt(path: Path, level: int) -> int:
    """Check a file that a reader has filled in."""
    try:
        outcome = try_file(path, level)
    except OSError as error:
        raise RefusedError(f"--try: cannot read {path}: {error.strerror}; --write NAME writes an exercise") from None
    except ImportError:
        raise RefusedError(NEEDS_SCIPY) from None
    print(outcome.text)
    return PASSED if outcome.ok else FAILED
