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

from gpt.config import PRESETS, STAGES

LIMITS = {"bigram": 2.52, "head": 2.45, "multihead": 2.32, "feedforward": 2.28, "residual": 2.12, "layernorm": 2.10}


@dataclass
class Args:
    """Train the small stages and compare them with the lecture."""

    seeds: int = 3
    """How many seeds for each."""
    stages: tuple[str, ...] = STAGES
    """Which stages."""


def main() -> int:
    """Run each stage in a process of its own, as a user would."""
    args = tyro.cli(Args)
    print(f"{'stage':12s} {'lecture':>8s} {'limit':>6s}  best validation loss by seed (whole split)   seconds a run")
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
        print(
            f"{stage:12s} {PRESETS[stage].reported:>8s} {LIMITS[stage]:6.2f}  {listed:44s} {max(seconds):8.1f}"
            + ("  ABOVE THE LIMIT" if over else ""),
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
