"""Draw the validation loss of the lecture's six small stages, each beside the loss that the lecture ends at.

    python docs/figures/loss_stages.py

The losses are those of seed 1 of `make stages`, in runs/stages/. A run that is missing is trained first; all six take about a
minute. loss-stages.csv keeps them, so that a test can draw the picture again without training.
"""

import csv
import io
import json
import subprocess
import sys

import look
from matplotlib.figure import Figure

from gpt.config import PRESETS, STAGES

DATA, PICTURE = look.HERE / "loss-stages.csv", "loss-stages.svg"
COLORS = ("#3b0f70", "#2c5f9e", "#00806b", "#b8860b", "#d55e00", "#9b1c4a")  # from dark to light and back: no two neighbours alike
LEAST_GAP = 0.032  # of the losses at which two labels stand


def read_run(stage: str) -> list[tuple[int, float]]:
    """Return the steps and validation losses of a stage's run, which is trained where it is missing."""
    folder = look.ROOT / "runs" / "stages" / f"{stage}-1"
    last = PRESETS[stage].train.max_iters
    metrics = folder / "metrics.jsonl"
    if not metrics.exists() or json.loads(metrics.read_text().splitlines()[-1])["step"] < last:
        command = [sys.executable, "train.py", "--preset", stage, "--seed", "1", "--out", str(folder), "--device", "cpu"]
        subprocess.run(command, check=True, cwd=look.ROOT)
    records = map(json.loads, metrics.read_text().splitlines())
    return [(record["step"], record["val_loss"]) for record in records]


def table(curves: dict[str, list[tuple[int, float]]]) -> str:
    """Return the losses as comma-separated values."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(("stage", "step", "val_loss"))
    for stage, curve in curves.items():
        rows.writerows((stage, step, f"{loss:.5f}") for step, loss in curve)
    return file.getvalue()


def read_table() -> dict[str, list[tuple[int, float]]]:
    """Return the curve of each stage, from the file."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in csv.DictReader(DATA.read_text(encoding="utf-8").splitlines()):
        curves.setdefault(row["stage"], []).append((int(row["step"]), float(row["val_loss"])))
    return curves


def spread(heights: list[float]) -> list[float]:
    """Return the heights, which fall, moved so that labels at them do not overlap: each pair as little as it takes."""
    moved = list(heights)
    for _ in range(200):
        for i in range(len(moved) - 1):
            missing = LEAST_GAP - (moved[i] - moved[i + 1])
            if missing > 1e-9:
                moved[i] += missing / 2
                moved[i + 1] -= missing / 2
    return moved


def draw(curves: dict[str, list[tuple[int, float]]]) -> str:
    """Return the picture. The curves begin with the evaluation of step 500; at step 0 all models stand near ln 65 = 4.17."""
    with look.style():
        figure = Figure(figsize=(7.2, 4.1))
        axes = figure.add_axes((0.08, 0.12, 0.55, 0.84))
        axes.set(xlim=(350, 5000), ylim=(1.95, 2.65), xlabel="step", ylabel="validation loss (nats per character)")
        axes.grid(axis="y", color=look.RULE, linewidth=0.6)
        beside = {"transform": axes.get_yaxis_transform(), "clip_on": False}  # x: 1 is the right edge of the axes; y: a loss
        axes.text(1.42, 2.615, "seed 1", ha="center", **beside)
        axes.text(1.58, 2.615, "lecture \u25c7", ha="center", **beside)
        heights = spread([curve[-1][1] for curve in curves.values()])
        for (stage, curve), color, height in zip(curves.items(), COLORS, heights, strict=True):
            steps, losses = zip(*curve[1:], strict=True)
            lecture = PRESETS[stage].reported
            axes.plot(steps, losses, color=color, marker="o", markersize=3, linewidth=1.6, clip_on=False, gid=f"curve-{stage}")
            axes.plot(1.04, float(lecture), color=color, marker="D", markersize=5.5, markerfacecolor="white", **beside)
            axes.plot((1.07, 1.12), (losses[-1], height), color=color, linewidth=1.2, **beside)
            axes.text(1.13, height, stage, va="center", fontweight="bold", **beside)
            axes.text(1.42, height, f"{losses[-1]:.3f}", va="center", ha="center", **beside)
            axes.text(1.57, height, lecture, va="center", ha="center", **beside)
        return look.svg(figure, "Validation loss of the lecture's stages", describe(curves))


def describe(curves: dict[str, list[tuple[int, float]]]) -> str:
    """Return the last losses in words."""
    ends = (f"{stage} {curve[-1][1]:.3f} (lecture {PRESETS[stage].reported})" for stage, curve in curves.items())
    return f"Loss against step for six models. After 5000 steps: {', '.join(ends)}."


if __name__ == "__main__":
    DATA.write_text(table({stage: read_run(stage) for stage in STAGES}), encoding="utf-8")
    look.write(PICTURE, draw(read_table()))
