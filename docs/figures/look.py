"""What the pictures of this folder share: fonts, colors, and how a figure becomes SVG.

A picture has a white background of its own, so that it can be read on a dark page. Its text stays text. The same data give the
same file.
"""

import io
import re
from html import escape
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

INK, FAINT, RULE = "#1f2328", "#57606a", "#d0d7de"  # text, lesser text, thin lines
BLUE, ORANGE, GREEN = "#0072b2", "#c04f00", "#00745a"  # told apart by every kind of color blindness; dark enough for text
STYLE = {
    "svg.hashsalt": "tensorlite",  # without one, the ids in a file differ each time
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],  # matplotlib brings the first; browsers fall back to any sans-serif font
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def style() -> mpl.rc_context:
    """Return a context in which figures are drawn and written."""
    return mpl.rc_context(STYLE)


SANS, MONO = "'DejaVu Sans', Verdana, sans-serif", "'DejaVu Sans Mono', Menlo, Consolas, monospace"


def svg(figure: Figure, title: str, description: str) -> str:
    """Return a figure as SVG, with a title and a description for readers who do not see it."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r" *<metadata>.*?</metadata>\n", "", file.getvalue(), flags=re.DOTALL)
    words = f" <title>{escape(title)}</title>\n <desc>{escape(description)}</desc>\n"
    return re.sub(r"(<svg [^>]*)>\n", rf'\1 role="img">\n{words}', text, count=1)


def page(width: int, height: int, title: str, description: str, body: list[str]) -> str:
    """Return SVG elements as a picture of this size in pixels."""
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="{SANS}" font-size="12" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(description)}</desc>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def write(name: str, text: str) -> None:
    """Write a picture of this folder."""
    (HERE / name).write_text(text, encoding="utf-8", newline="\n")
