"""Train the lecture's six small stages with several seeds and print their validation losses beside the lecture's.

    python benchmarks/stages.py [--seeds 3] [--stages head residual ...]

Exits with status 1 when a loss is above its limit. Runs go to runs/stages/.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from gpt.analysis.format import table, table_row
from gpt.config import PRESETS, STAGES

LIMITS = {"bigram": 2.52, "head": 2.45, "multihead": 2.32, "feedforward": 2.28, "residual": 2.12, "layernorm": 2.10}

LOSSES = "best validation loss by seed (whole split)"
COLUMNS = ("stage:12", "lecture:>9", "limit:>7.2f", f"{LOSSES}:>46", "seconds per run:>17.1f", ":>17")


@dataclass
class Args:
    """Train the small stages and compare them with the lecture."""

    seeds: int = 3
    """Number of seeds per stage."""
    stages: tuple[str, ...] = STAGES
    """Stages to train."""


def main() -> int:
    """Run each stage in a separate process, as a user would."""
    args = tyro.cli(Args)
    print(table([], COLUMNS))
    failed = False
    for stage in args.stages:
        losses, seconds = [], []
        for seed in range(1, args.seeds + 1):
            out = Path("runs") / "stages" / f"{stage}-{seed}"
            start = time.perf_counter()
            command = [sys.executable, "train.py", "--preset", stage, "--seed", str(seed), "--out", str(out), "--device", "cpu"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(done.stdout + done.stderr, file=sys.stderr)
                return 1
            seconds.append(time.perf_counter() - start)
            losses.append(float(done.stdout.splitlines()[-1].split("best val ")[1].split()[0]))
        over = max(losses) > LIMITS[stage]
        failed |= over
        listed = "  ".join(f"{loss:.4f}" for loss in losses)
        row = [stage, PRESETS[stage].reported, LIMITS[stage], listed, max(seconds), "ABOVE THE LIMIT" if over else None]
        print(table_row(row, COLUMNS), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
