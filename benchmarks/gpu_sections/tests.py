"""pytest tests/cuda/gpu, and what it counts."""

import re
import subprocess
import sys

from gpu_sections.report import Section
from gpu_sections.workload import ROOT


def tests(section: Section) -> None:
    log = section.args.out / "tests.log"
    command = [sys.executable, "-m", "pytest", "-n", "0", "-v", "--durations=10", "tests/cuda/gpu"]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            status: int | str = process.wait(section.left - 3)
        except subprocess.TimeoutExpired:
            process.kill()
            status = "ended at its limit of time"
    words = log.read_text(errors="replace")
    section.put(counts=counts(words), status=status, tail=words.splitlines()[-60:])
    if status != 0:
        section.fail("pytest", f"status {status}, see {log}")


def counts(text: str) -> dict[str, float]:
    """{"passed": 7, "failed": 1, "seconds": 12.3} of pytest's last line; of a run that was ended, what it had come to."""
    last = re.findall(r"^=+ (.*) in ([\d.]+)s.*=+$", text, re.MULTILINE)
    if last:
        words, seconds = last[-1]
        return {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", words)} | {"seconds": float(seconds)}
    words = re.findall(r"^tests/\S+.* (PASSED|FAILED|SKIPPED|ERROR)\b", text, re.MULTILINE)
    return {word.lower(): words.count(word) for word in dict.fromkeys(words)}


def show_tests(found: dict) -> str:
    numbers = found["counts"]
    named = ", ".join(f"{n} {word}" for word, n in numbers.items() if word != "seconds")
    return f"{named or 'no result'}" + (f" in {numbers['seconds']:.0f} s" if "seconds" in numbers else ", not to the end")
