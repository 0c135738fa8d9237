"""pytest tests/cuda/gpu, and the counts that it prints."""

import re
import subprocess
import sys

from gpu_sections import needs
from gpu_sections.report import Section
from gpu_sections.workload import ROOT

LAST = "test_command_lines.py"  # the slowest, and the section run does the same


def tests(section: Section) -> None:
    """Run as many of them as there is time for."""
    lacking = needs.missing(needs.for_tests())
    if lacking:
        section.fail("pytest", f"left out: not installed: {', '.join(lacking)}")
        return
    log = section.args.out / "tests.log"
    command = [sys.executable, "-m", "pytest", "-n", "0", "-v", "--durations=10", "-p", "no:cacheprovider", *files()]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            status: int | str = process.wait(section.left - 3)
        except subprocess.TimeoutExpired:
            process.kill()
            status = "ended at its time limit"
    words = log.read_text(errors="replace")
    section.put(counts=counts(words), status=status, tail=words.splitlines()[-60:])
    if status != 0:
        section.fail("pytest", f"status {status}, see {log}")


def files() -> list[str]:
    """Return the files of tests in the order to run them."""
    found = sorted((ROOT / "tests" / "cuda" / "gpu").glob("test_*.py"), key=lambda path: (path.name == LAST, path.name))
    return [path.relative_to(ROOT).as_posix() for path in found]


def counts(text: str) -> dict[str, float]:
    """Return {"passed": 7, "failed": 1, "seconds": 12.3} from pytest's last line, or the counts so far of a run that was ended."""
    last = re.findall(r"^=+ (.*) in ([\d.]+)s.*=+$", text, re.MULTILINE)
    if last:
        words, seconds = last[-1]
        return {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", words)} | {"seconds": float(seconds)}
    words = re.findall(r"^tests/\S+.* (PASSED|FAILED|SKIPPED|ERROR)\b", text, re.MULTILINE)
    return {word.lower(): words.count(word) for word in dict.fromkeys(words)}


def show_tests(found: dict) -> str:
    totals = found["counts"]
    named = ", ".join(f"{n} {word}" for word, n in totals.items() if word != "seconds")
    return f"{named or 'no result'}" + (f" in {totals['seconds']:.0f} s" if "seconds" in totals else ", not to the end")
