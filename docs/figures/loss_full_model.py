"""Draw the losses of the lecture's full model, trained on two CPU cores, beside the loss that the lecture reports.

    python docs/figures/loss_full_model.py [RUN]

Without RUN it draws loss-full-model.csv. With the folder of a run it writes that file first. docs/training.md has the command
that trains the model, which takes hours.
"""

import csv
import json
import sys
from pathlib import Path

import look
from matplotlib.figure import Figure

from gpt.config import PRESETS

DATA, PICTURE = look.HERE / "loss-full-model.csv", "loss-full-model.svg"
KINDS = {"train_loss": ("training", look.BLUE), "val_loss": ("validation", look.ORANGE)}

Record = dict[str, float]  # of one evaluation: its step and its losses


def read_run(folder: Path) -> list[Record]:
    """Return the evaluations of a run."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: record[name] for name in ("step", *KINDS)} for record in map(json.loads, lines)]


def write_table(records: list[Record]) -> None:
    """Keep the evaluations as comma-separated values."""
    with DATA.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("step", *KINDS))
        rows.writerows((record["step"], *(f"{record[name]:.4f}" for name in KINDS)) for record in records)


def read_table() -> list[Record]:
    """Return the evaluations from the file."""
    with DATA.open(encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def best(records: list[Record]) -> Record:
    """Return the evaluation with the lowest validation loss."""
    return min(records, key=lambda record: record["val_loss"])


def draw(records: list[Record]) -> str:
    """Return the picture. The curves begin with the second evaluation; at step 0 the model stands near ln 65 = 4.17."""
    lecture = float(PRESETS["shakespeare"].reported)
    records = records[1:]
    steps, lowest = [record["step"] for record in records], best(records)
    with look.style():
        figure = Figure(figsize=(7.2, 3.6))
        axes = figure.add_axes((0.08, 0.14, 0.74, 0.82))
        axes.set(xlim=(0, steps[-1]), ylim=(1.0, 2.6), xlabel="step", ylabel="loss (nats per character)")
        axes.axhline(lecture, color=look.FAINT, linewidth=1, linestyle="--")
        axes.text(30, lecture - 0.02, f"the lecture's validation loss, {lecture}", va="top", color=look.FAINT)
        for name, (label, color) in KINDS.items():
            losses = [record[name] for record in records]
            axes.plot(steps, losses, color=color, marker="o", markersize=3, linewidth=1.6, clip_on=False, gid=f"curve-{name}")
            axes.text(steps[-1] + 30, losses[-1], f"{label}\n{losses[-1]:.4f}", color=color, va="center", fontweight="bold")
        axes.annotate(
            f"best {lowest['val_loss']:.4f}",
            (lowest["step"], lowest["val_loss"]),
            textcoords="offset points",
            xytext=(0, 22),
            ha="right",
            color=look.ORANGE,
        )
        return look.svg(figure, "Losses of the lecture's full model on two CPU cores", describe(records))


def describe(records: list[Record]) -> str:
    """Return the curves in words."""
    last, lowest = records[-1], best(records)
    return (
        f"Training and validation loss against step. The validation loss falls to {lowest['val_loss']:.4f} at step "
        f"{lowest['step']:.0f}; at step {last['step']:.0f} the training loss is {last['train_loss']:.4f}."
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write_table(read_run(Path(sys.argv[1])))
    look.write(PICTURE, draw(read_table()))
