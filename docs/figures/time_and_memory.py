"""Draw the time and the memory of a training step, beside PyTorch's.

    python docs/figures/time_and_memory.py

The values are read from benchmarks/RESULTS.md, "The CPU backends against PyTorch".
"""

import re
from dataclasses import dataclass

import look
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PICTURE = "time-and-memory.svg"
RESULTS = look.ROOT / "benchmarks" / "RESULTS.md"
SECTION = "## The CPU backends against PyTorch"
PRESETS = {"laptop": "laptop, 0.8 M parameters, batch 12", "shakespeare": "shakespeare, 10.8 M parameters, batch 8"}
IMPLEMENTATIONS = {  # the rows of a table, and how they are called and colored here
    "fast, 2 threads": ("tensorlite, fast", look.BLUE),
    "reference": ("tensorlite, reference", "#7fb3d9"),
    "PyTorch eager": ("PyTorch, eager", "#8c8c8c"),
    "torch.compile": ("PyTorch, torch.compile", "#bdbdbd"),
}


@dataclass(frozen=True)
class Measured:
    """One row: the time of a step in ms (median, 10th and 90th percentile), and the peak memory of three steps in MiB."""

    median: float
    low: float
    high: float
    mib: float


def section() -> str:
    """Return the part of the results that is drawn."""
    return RESULTS.read_text(encoding="utf-8").partition(SECTION)[2].partition("\n## ")[0]


def rows(text: str, preset: str) -> dict[str, Measured]:
    """Return the rows of a preset's table that are drawn."""
    table = re.search(rf"^\| {preset} \(.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    if table is None:
        raise ValueError(f"{RESULTS.name}: no table of {preset} below {SECTION!r}")
    found = {}
    for line in table.group(1).splitlines():
        name, step, *_, mib = (cell.strip() for cell in line.strip("|").split("|"))
        if name in IMPLEMENTATIONS:
            median, low, high = map(float, re.findall(r"[\d.]+", step))
            found[name] = Measured(median, low, high, float(mib))
    return {name: found[name] for name in IMPLEMENTATIONS}


def bars(axes: Axes, title: str, name: str, values: list[float], ends: list[float], unit: str) -> None:
    """Draw one bar per implementation, from above.

    name: of the bars in the file, where a test looks for them.
    ends: where the text of each value begins.
    """
    drawn = axes.barh(range(len(values)), values, height=0.72, color=[color for _, color in IMPLEMENTATIONS.values()])
    for place, (bar, value, end) in enumerate(zip(drawn, values, ends, strict=True)):
        bar.set_gid(f"{name}-{place}")
        axes.annotate(f"{value:g} {unit}", (end, place), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set(xlim=(0, 1.4 * max(ends)), ylim=(len(values) - 0.5, -0.5), yticks=[], xticks=[])
    axes.set_title(title, loc="left", fontsize=9)
    axes.spines["bottom"].set_visible(False)


def draw(text: str) -> str:
    """Return the picture. text: the section of the results."""
    date = re.findall(r"\d{4}-\d\d-\d\d", text)[0]
    measured = {preset: rows(text, preset) for preset in PRESETS}
    with look.style():
        figure = Figure(figsize=(7.2, 3.9))
        for i, preset in enumerate(PRESETS):
            found = list(measured[preset].values())
            bottom = 0.55 - 0.47 * i
            time = figure.add_axes((0.225, bottom, 0.4, 0.31))
            memory = figure.add_axes((0.65, bottom, 0.34, 0.31))
            bars(time, "time of a training step", f"time-{preset}", [m.median for m in found], [m.high for m in found], "ms")
            mib = [m.mib for m in found]
            bars(memory, "peak memory besides the libraries", f"memory-{preset}", mib, mib, "MiB")
            for place, (m, (name, _)) in enumerate(zip(found, IMPLEMENTATIONS.values(), strict=True)):
                time.plot((m.low, m.high), (place, place), color=look.INK, linewidth=1)
                time.annotate(name, (0, place), xytext=(-5, 0), textcoords="offset points", va="center", ha="right")
            figure.text(0.015, bottom + 0.39, PRESETS[preset], fontweight="bold")
        note = f"2 CPU cores, {date}; bars: median; thin lines: 10th to 90th percentile"
        figure.text(0.985, 0.02, note, ha="right", color=look.FAINT, fontsize=8)
        return look.svg(figure, "Time and memory of a training step beside PyTorch", describe(measured))


def describe(measured: dict[str, dict[str, Measured]]) -> str:
    """Return the values in words."""
    words = []
    for preset, found in measured.items():
        parts = (f"{IMPLEMENTATIONS[name][0]} {m.median:g} ms and {m.mib:g} MiB" for name, m in found.items())
        words.append(f"{preset}: {'; '.join(parts)}.")
    return " ".join(words)


if __name__ == "__main__":
    look.write(PICTURE, draw(section()))
