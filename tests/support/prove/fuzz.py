"""Searches for inputs that break the readers of files: make fuzz.

    PYTHONPATH=.:tests/support python -m prove.fuzz checkpoint|description|text [SECONDS]

checkpoint: any bytes as a file. description: any text as the description in a file whose hash is right, as an attacker writes it.
text: any bytes as a training text. Atheris guides the search (pip install atheris); without it Hypothesis draws blindly.
"""

import contextlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SECONDS = 20  # Atheris holds on to some 150 KB an input while it watches how texts are read; without it nothing is held
GUIDED = importlib.util.find_spec("atheris") is not None

if GUIDED:
    import atheris

with atheris.instrument_imports(include=["gpt"]) if GUIDED else contextlib.nullcontext():
    from prove.targets import TARGETS


def guided(target: Callable[[bytes], None], seed: bytes, seconds: int) -> None:
    """Let Atheris search. It prints how many inputs it tried and ends the process."""
    with tempfile.TemporaryDirectory() as corpus:
        (Path(corpus) / "seed").write_bytes(seed)
        atheris.Setup(
            [sys.argv[0], f"-max_total_time={seconds}", "-max_len=4096", "-verbosity=0", "-print_final_stats=1", corpus], target
        )
        atheris.Fuzz()


def blind(target: Callable[[bytes], None], seed: bytes, seconds: int) -> int:
    """Hypothesis draws bytes, alone and in the place of a stretch of the seed. Returns how many inputs it tried."""
    tried, end = 0, time.monotonic() + seconds
    place = st.integers(0, len(seed))

    @settings(max_examples=1000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=200), place, place, st.booleans())
    def search(content: bytes, a: int, b: int, alone: bool) -> None:
        nonlocal tried
        tried += 1
        target(content if alone else seed[:a] + content + seed[max(a, b) :])

    while time.monotonic() < end:
        search()
    return tried


if __name__ == "__main__":
    name, length = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    target, seed = TARGETS[name]
    if GUIDED:
        guided(target, seed(), length)
    print("atheris is not installed: no guidance by coverage")
    print(f"fuzz {name}: {blind(target, seed(), length):,} inputs in {length} s")
