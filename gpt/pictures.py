"""Pictures of a run."""

from pathlib import Path

from gpt.errors import CheckpointError


def loss_curve(path: Path, records: list[dict], title: str) -> None:
    """Draw the train and validation loss over the steps into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    steps = [r["step"] for r in records]
    for name, label in (("train_loss", "train"), ("val_loss", "validation")):
        axes.plot(steps, [r[name] for r in records], marker=".", label=label)
    best = min(records, key=lambda r: r["val_loss"])
    axes.axhline(best["val_loss"], color="0.8", linewidth=1, zorder=0)
    axes.annotate(
        f"best {best['val_loss']:.4f}", (best["step"], best["val_loss"]), textcoords="offset points", xytext=(0, 8), ha="right"
    )
    axes.set(xlabel="step", ylabel="loss (nats per character)", title=title)
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        plt.close(figure)
