"""Two new processes, one after the other, must take the same algorithms and have bitwise equal losses."""

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from gpu_sections.report import Section
from gpu_sections.workload import SCRIPT


def choices(section: Section) -> None:
    """Start both with one cache folder, which is empty before the first."""
    with tempfile.TemporaryDirectory() as cache:
        for name in ("first process", "second process"):
            with section.attempt(name):
                section.row(name, **asked(section, cache))
    rows = section.found.get("rows", {})
    if len(rows) == 2:
        differences = compared(*rows.values())
        section.put(differences=differences)
        for what in differences:
            section.fail("second process", what)


def asked(section: Section, cache: str) -> dict[str, Any]:
    """Return what a process shows of its first steps. Raises RuntimeError with its last words if it fails."""
    command = [sys.executable, str(SCRIPT), "--first-steps", "--precisions", section.args.precision]
    environment = os.environ | {"TENSORLITE_CACHE": cache}
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=max(1.0, section.left), check=False)
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return json.loads(done.stdout.splitlines()[-1]) | {"wall": time.monotonic() - start}


def compared(first: dict, second: dict) -> list[str]:
    """Return how the second process differs from the first: an empty list if it repeats it."""
    other = [key for key, name in first["algorithms"].items() if second["algorithms"].get(key) != name]
    differing = sum(a != b for a, b in zip(first["losses"], second["losses"], strict=True))
    found = {
        f"takes other algorithms for {len(other)} of {len(first['algorithms'])} GEMMs, such as {(other or [''])[0]}": other,
        f"autotunes {second['autotuned']} GEMMs again": second["autotuned"],
        f"has other losses in {differing} of {len(first['losses'])} steps": differing,
    }
    return [what for what, is_so in found.items() if is_so]


def show_choices(found: dict) -> str:
    lines = [
        f"  {name}: first step after {row['first']:.1f} s, {row['autotuned']} of {len(row['algorithms'])} GEMMs autotuned, "
        f"{row['wall']:.1f} s in all"
        for name, row in found["rows"].items()
    ]
    verdict = "same algorithms by name, bitwise equal losses" if found["differences"] == [] else "; ".join(found["differences"])
    return "\n".join([f"two new processes, with one cache folder that was empty before the first: {verdict}", *lines])
