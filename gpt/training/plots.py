"""The loss curve of a run as a picture, loss.png."""

import os
from pathlib import Path

from gpt import files


def loss_curve(path: Path, history: list[dict], title: str) -> None:
    """Draw the train and validation loss over the steps into a PNG file.

    The figure is drawn without pyplot, so that no other program's backend or settings change. Errors of matplotlib and of the file
    system are passed on, because the caller decides whether a missing plot matters.

    history: the records of the evaluations, at least one.
    title: may have any characters; none of them is read as mathematics.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    steps = [record["step"] for record in history]
    for name, label in (("train_loss", "train"), ("val_loss", "validation")):
        axes.plot(steps, [record[name] for record in history], marker=".", label=label)
    best = min(history, key=lambda record: record["val_loss"])
    axes.axhline(best["val_loss"], color="0.8", linewidth=1, zorder=0)
    axes.annotate(
        f"best {best['val_loss']:.4f}", (best["step"], best["val_loss"]), textcoords="offset points", xytext=(0, 8), ha="right"
    )
    axes.set(xlabel="step", ylabel="loss (nats per character)")
    axes.set_title(os.fsencode(title).decode("utf-8", "replace"), parse_math=False)  # a file name, which may hold any bytes
    axes.legend()
    partial = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    figure.savefig(partial, dpi=120, format="png")
    files.replace(partial, path)
